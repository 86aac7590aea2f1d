"""OpenEXR: linear light of any range is kept to the bit, with its layers; what is broken or unusual is one line."""

import io
import pickle
from fractions import Fraction

import numpy as np
import OpenEXR
import pytest

from conftest import broken_copies
from denoising.cli import UserError
from denoising.files import exr, images
from denoising.imaging import pixels

RNG = np.random.default_rng(3)
HDR = RNG.gamma(0.3, 20.0, (21, 34, 3)).astype(np.float32)


def exr_bytes(channels, **header):
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage} | header
    file = io.BytesIO()
    OpenEXR.File(header, {name: np.ascontiguousarray(plane) for name, plane in channels.items()}).write(file)
    return file.getvalue()


def planes(array, names="RGB"):
    return {name: array[..., i] for i, name in enumerate(names)}


def read(data):
    return images.read_image("it.bin", data)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(21, 33), (1, 1), (1, 9), (9, 1)])
def test_round_trip_keeps_every_pixel_beyond_white_and_below_black(tmp_path, shape, channels):
    pixels = RNG.normal(0, 1e4, (*shape, channels)).astype(np.float32)
    images.write_image(tmp_path / "a.exr", pixels)
    picture = images.read_image(tmp_path / "a.exr")
    np.testing.assert_array_equal(picture.pages[0], pixels)
    assert picture.pages[0].dtype == np.float32
    assert images.image_size(tmp_path / "a.exr") == shape


@pytest.mark.parametrize("compression", ["NO", "RLE", "ZIPS", "ZIP", "PIZ", "PXR24", "B44", "DWAA"])
def test_all_compressions_are_read(compression):
    ramp = np.linspace(0.5, 40, 21 * 34 * 3).reshape(21, 34, 3).astype(np.float16)
    page = read(exr_bytes({"RGB": ramp}, compression=getattr(OpenEXR, f"{compression}_COMPRESSION"))).pages[0]
    lossy = compression in ("B44", "DWAA")
    np.testing.assert_allclose(page, ramp.astype(np.float32), rtol=0.1 if lossy else 0)


def test_tiles_are_read():
    tiles = OpenEXR.TileDescription()
    tiles.xSize = tiles.ySize = 16
    picture = read(exr_bytes({"RGB": HDR}, type=OpenEXR.tiledimage, tiles=tiles))
    np.testing.assert_array_equal(picture.pages[0], HDR)


def test_half_floats_alpha_and_layers_are_handed_on(tmp_path):
    half, alpha = HDR.astype(np.float16), RNG.random((21, 34)).astype(np.float16)
    identity = RNG.integers(0, 9, (21, 34)).astype(np.uint32)
    data = exr_bytes(
        {"RGBA": np.dstack([half, alpha]), "id": identity, **planes(HDR, [f"nn.{axis}" for axis in "XYZ"])}
    )
    picture = read(data)
    assert picture.pages[0].shape == (21, 34, 3)
    images.write_image(tmp_path / "b.exr", picture.pages[0] / 2, like=picture)
    found = OpenEXR.File(str(tmp_path / "b.exr"), separate_channels=True).channels()
    assert sorted(found) == sorted(["R", "G", "B", "A", "id", "nn.X", "nn.Y", "nn.Z"])
    assert found["R"].pixels.dtype == found["A"].pixels.dtype == np.float16
    np.testing.assert_array_equal(found["A"].pixels, alpha)
    np.testing.assert_array_equal(found["id"].pixels, identity)
    np.testing.assert_array_equal(found["nn.Y"].pixels, HDR[..., 1])
    # What 16 bits cannot hold is written with 32.
    images.write_image(tmp_path / "b.exr", np.full((21, 34, 3), 1e6, np.float32), like=picture)
    assert images.read_image(tmp_path / "b.exr").pages[0].max() == 1e6


def test_place_in_the_frame_and_attributes_are_handed_on(tmp_path):
    def corners(*numbers):
        return np.int32(numbers[:2]), np.int32(numbers[2:])

    about = {"owner": "me", "pixelAspectRatio": 2.0, "framesPerSecond": Fraction(24), "passes": ["a", "b"]}
    about |= {"chromaticities": tuple(np.arange(1, 9) / 16), "worldToCamera": np.eye(4, dtype=np.float32)}
    about |= {"dataWindow": corners(-3, 20, 30, 40), "displayWindow": corners(0, 0, 63, 63)}
    picture = pickle.loads(pickle.dumps(read(exr_bytes({"RGB": HDR}, **about))))  # as between the service's processes
    images.write_image(tmp_path / "a.exr", picture.pages, like=picture)
    again = images.read_image(tmp_path / "a.exr")
    np.testing.assert_array_equal(again.pages[0], HDR)
    for name, value in about.items():
        np.testing.assert_array_equal(again.exr["attributes"][name], value)
    # A part of the image lies elsewhere in the frame.
    images.write_image(tmp_path / "b.exr", picture.pages[0][:9], like=picture)
    attributes = images.read_image(tmp_path / "b.exr").exr["attributes"]
    assert attributes["owner"] == "me"
    np.testing.assert_array_equal(attributes["dataWindow"], [(0, 0), (33, 8)])


def test_what_cannot_be_written_again_is_left_out():
    """A list of no words is read; the library cannot tell what kind of list it would have to write."""
    picture = read(exr_bytes({"RGB": HDR}))
    picture.exr["attributes"]["passes"] = []
    np.testing.assert_array_equal(read(images.encode("a.exr", HDR, like=picture)).pages[0], HDR)


def test_the_image_is_found_in_a_named_layer_and_layers_by_the_end_of_their_name():
    normal = RNG.normal(size=(21, 34, 3)).astype(np.float32)
    data = exr_bytes(
        planes(HDR, [f"ViewLayer.Combined.{c}" for c in "RGBA"[:3]])
        | planes(HDR * 2, [f"ViewLayer.Denoising Albedo.{c}" for c in "RGB"])
        | planes(normal, [f"ViewLayer.Denoising Normal.{c}" for c in "XYZ"])
    )
    picture = read(data)
    np.testing.assert_array_equal(picture.pages[0], HDR)
    np.testing.assert_array_equal(exr.layer(picture, "albedo"), HDR * 2)
    np.testing.assert_array_equal(exr.layer(picture, "normal"), normal)
    assert exr.layer(picture, "depth") is None


def test_image_albedo_and_normal_are_of_one_view_layer_where_a_file_holds_several():
    """Blender writes all view layers of a scene into one file; not each of them need have data for denoising."""

    def view_layer(name, factor, parts):
        names = {"Combined": "RGB", "Denoising Albedo": "RGB", "Denoising Normal": "XYZ"}
        return {f"{name}.{part}.{c}": HDR[..., 0] * factor for part in parts for c in names[part]}

    every = ("Combined", "Denoising Albedo", "Denoising Normal")
    picture = read(exr_bytes(view_layer("ViewLayer", 1, every) | view_layer("ViewLayer_001", 2, every)))
    for found in (picture.pages[0], exr.layer(picture, "albedo"), exr.layer(picture, "normal")):
        np.testing.assert_array_equal(found, HDR[..., :1].repeat(3, 2))
    picture = read(exr_bytes(view_layer("ViewLayer", 1, every[:1]) | view_layer("ViewLayer_001", 2, every)))
    np.testing.assert_array_equal(picture.pages[0], HDR[..., :1].repeat(3, 2))
    assert exr.layer(picture, "albedo") is None


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (exr_bytes({"Z": HDR[..., 0], "nn.X": HDR[..., 1]}), "no channels R G B or Y, its channels are: Z nn.X"),
        (exr_bytes({"R": HDR[..., 0], "G": HDR[..., 1]}), "its channels are: G R"),
        (exr_bytes({"Y": np.full((4, 4), 7, np.uint32)}), "uint32"),
        (exr_bytes({"RGB": HDR * np.float32(np.nan)}), "NaN or infinite"),
        (exr_bytes({"RGB": HDR})[:700], "broken or cut short"),
        (exr_bytes({"RGB": HDR})[:40], "broken or cut short"),
        (exr.MAGIC, "broken or cut short"),
    ],
)  # fmt: skip
def test_what_is_no_image_is_one_line(data, words, capfd):
    with pytest.raises(UserError, match="it.bin: ") as caught:
        read(data)
    assert words in str(caught.value)
    assert capfd.readouterr().err == ""  # the library's own remarks


def test_a_bomb_is_refused_before_it_is_unpacked(monkeypatch):
    monkeypatch.setattr(pixels, "BOMB_BYTES", 1 << 20)
    with pytest.raises(UserError, match="would unpack to 4 megapixels"):
        read(exr_bytes({"Y": np.zeros((2000, 2000), np.float16)}))


def test_broken_files_are_read_or_refused_and_never_more(capfd):
    refused = 0
    for data in broken_copies(exr_bytes({"RGB": HDR, "albedo.R": HDR[..., 0]}), 97):
        try:
            page = read(data or b"x").pages[0]
        except UserError:
            refused += 1
        else:
            assert np.isfinite(page).all()
    assert refused > 100
    assert capfd.readouterr().err == ""
