"""What is written to an image file is what is read from it: pixels, range, and what lies beside them."""

import io
import os
import struct

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps
from samples import BLOCKS, chunk, noise, read, saved, tiff

from denoising.cli import UserError
from denoising.files import images, npy
from denoising.imaging.pixels import ORIENTATION, Picture, from_01, to_01

# --- What is written is what is read --------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("suffix", "dtypes"),
    [
        (".png", "uint8 uint16"), (".tif", "uint8 uint16 float32"),
        (".npy", "uint8 uint16 float32"),
        (".ppm", "uint8 uint16"), (".pgm", "uint8 uint16"), (".bmp", "uint8"),
    ],
)  # fmt: skip
def test_round_trip_keeps_type_channels_and_every_pixel(tmp_path, suffix, dtypes, channels):
    for dtype in dtypes.split():
        for height, width in ((21, 33), (1, 1), (1, 9), (9, 1)):
            pixels = noise(dtype, height, width, channels)
            path = tmp_path / f"a{suffix}"
            images.write_image(path, pixels)
            (page,) = images.read_image(path).pages
            assert page.dtype == pixels.dtype
            np.testing.assert_array_equal(page, pixels)
            assert images.image_size(path) == (height, width)
            assert os.listdir(tmp_path) == [path.name]


def test_webp_is_lossless_and_jpeg_nearly(tmp_path):
    # Colours that alpha hides, too.
    hidden = Picture([], alpha=[np.zeros(BLOCKS.shape[:2], np.uint8)])
    images.write_image(tmp_path / "a.webp", BLOCKS, like=hidden)
    np.testing.assert_array_equal(images.read_image(tmp_path / "a.webp").pages[0], BLOCKS)
    images.write_image(tmp_path / "a.webp", BLOCKS)
    np.testing.assert_array_equal(images.read_image(tmp_path / "a.webp").pages[0], BLOCKS)
    images.write_image(tmp_path / "a.jpg", BLOCKS)
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.layer[0][1:3] == (1, 1)  # no chroma subsampling
    error = images.read_image(tmp_path / "a.jpg").pages[0].astype(int) - BLOCKS
    assert np.abs(error).max() < 16


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_alpha_is_kept_apart(tmp_path, suffix, dtype, channels):
    pixels, alpha = noise(dtype, 7, 9, channels), noise(dtype, 7, 9)
    images.write_image(tmp_path / f"a{suffix}", pixels, like=Picture([pixels], [alpha]))
    picture = images.read_image(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(picture.pages[0], pixels)
    np.testing.assert_array_equal(picture.alpha[0], alpha)


@pytest.mark.parametrize(("dtype", "white"), [("uint8", 255), ("uint16", 65535), ("float32", 1)])
def test_alpha_follows_the_pixels_to_another_depth(dtype, white):
    pixels = noise(dtype, 1, 3, 3)
    for alpha in (np.uint8([[0, 51, 255]]), np.uint16([[0, 13107, 65535]]), np.float32([[0, 0.2, 1]])):
        written = read(images.encode("a.tif", pixels, like=Picture([], [alpha])))
        np.testing.assert_array_equal(written.pages[0], pixels)
        np.testing.assert_allclose(written.alpha[0], [[0, white / 5, white]], rtol=1e-6)


@pytest.mark.parametrize("suffix", [".tif", ".npy"])
def test_stacks_and_many_channels(tmp_path, suffix):
    pages = [noise("float32", 8, 9, 5) for _ in range(3)]
    images.write_image(tmp_path / f"a{suffix}", pages)
    np.testing.assert_array_equal(images.read_image(tmp_path / f"a{suffix}").pages, pages)


@pytest.mark.parametrize(
    ("name", "pages", "able"),
    [
        ("a.png", np.zeros((4, 4, 3), np.float32), ".tif .npy"),
        ("a.jpg", np.zeros((4, 4, 3), np.uint16), ".png .ppm .tif .npy"),
        ("a.png", np.zeros((4, 4, 4), np.uint8), ".tif .npy"),
        ("a.png", [np.zeros((4, 4, 1), np.uint8)] * 2, ".tif .npy"),
        ("a.gif", np.zeros((4, 4, 3), np.uint8), ".png"),
        ("a", np.zeros((4, 4, 3), np.uint8), ".png"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_with_those_that_can(tmp_path, name, pages, able):
    with pytest.raises(UserError, match=f"{name}.*{able}"):
        images.write_image(tmp_path / name, pages)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(("name", "length"), [("a.png", 1_000_001), ("a.jpg", 65_536), ("a.webp", 16_384)])
def test_what_an_encoder_refuses_is_told(name, length):
    with pytest.raises(UserError, match=f"{name}: cannot be written as"):
        images.encode(name, np.zeros((length, 1, 3), np.uint8))


def test_a_stack_of_several_types():
    pages = [noise("uint16", 8, 9, 1), noise("float32", 5, 6, 3)]
    like = Picture(pages, format="TIFF")
    for page, again in zip(pages, read(images.encode("a.tif", pages, like=like)).pages, strict=True):
        assert again.dtype == page.dtype
        np.testing.assert_array_equal(again, page)


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    images.write_image(path, BLOCKS)
    before = path.read_bytes()

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(images.Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"a\.png: cannot be written: No space left"):
        images.write_image(path, BLOCKS // 2)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.png"]


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_has_the_bytes_that_pillow_writes(channels):
    pixels = BLOCKS[..., :channels]
    expected = saved(Image.fromarray(pixels.squeeze()), "JPEG", quality=93, subsampling=0)
    assert images.encode("a.jpg", pixels, quality=93) == expected


# --- Range ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_range_there_and_back_is_identity(dtype):
    every = np.arange(np.iinfo(dtype).max + 1, dtype=dtype).reshape(1, -1, 1)
    unit = to_01(every)
    assert unit.dtype == np.float32
    assert unit.min() == 0
    assert unit.max() == 1
    np.testing.assert_array_equal(from_01(unit, dtype), every)


def test_rounding_half_up_clipping_and_hdr():
    values = np.array([-1, 0.5 / 255, 1.5 / 255, 2], np.float32)
    np.testing.assert_array_equal(from_01(values, np.uint8), [0, 1, 2, 255])
    np.testing.assert_array_equal(from_01(values, np.float32), values)
    np.testing.assert_array_equal(to_01(values), values)


# --- Metadata -------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotation_is_obeyed_and_its_tag_reset(tmp_path, orientation):
    exif = Image.Exif()
    exif[ORIENTATION], exif[271] = orientation, "Maker"
    exif.get_ifd(0x8769)[33434] = 0.5
    for kind in ("PNG", "JPEG", "WEBP", "TIFF"):
        data = saved(Image.fromarray(BLOCKS), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
        picture = read(data)
        expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        np.testing.assert_array_equal(picture.pages[0], np.asarray(expected))
        assert picture.plain == (orientation == 1 and kind != "TIFF")
        for suffix in (".png", ".jpg", ".webp"):
            images.write_image(tmp_path / f"a{suffix}", picture.pages, like=picture)
            with Image.open(tmp_path / f"a{suffix}") as written:
                tags = written.getexif()
                assert ORIENTATION not in tags
                assert tags[271] == "Maker"
                if kind != "TIFF":
                    assert float(tags.get_ifd(0x8769)[33434]) == 0.5


@pytest.mark.parametrize("target", [".png", ".jpg", ".webp", ".tif"])
def test_names_beyond_ascii_are_carried_over(target):
    """Cameras and software write them in UTF-8; every byte is kept."""
    exif = Image.Exif()
    exif[315], exif[33432], exif[ORIENTATION] = "José".encode(), "© Müller".encode(), 6
    exif.get_ifd(0x8769)[42036] = "Zeiß 50 mm"
    lens, owners = "Zeiß 50 mm".encode("latin-1"), ("José".encode(), "© Müller".encode())
    jpeg = saved(Image.fromarray(BLOCKS), "JPEG", exif=exif).replace(b"Zei? 50 mm", lens)
    assert lens in jpeg
    names = [(code, 2, len(name) + 1, name, True) for code, name in zip((315, 33432), owners, strict=True)]
    for data, wanted in ((jpeg, (*owners, lens)), (tiff(BLOCKS, photometric="rgb", extratags=names), owners)):
        picture = read(data)
        written = images.encode(f"a{target}", picture.pages, picture)
        assert all(name + b"\0" in written for name in wanted[: 2 if target == ".tif" else 3])


def test_each_page_of_a_tiff_is_turned_by_its_own_tag(tmp_path):
    lying, standing = noise("uint8", 10, 20), noise("uint8", 20, 10)
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for page, orientation in ((lying, 6), (standing, 1), (lying, 3)):
            tags = [(ORIENTATION, 3, 1, orientation, True)]
            writer.write(page, extratags=tags, resolution=(204, 98), resolutionunit=2, metadata=None)
    picture = read(file.getvalue())
    for page, wanted in zip(picture.pages, (np.rot90(lying, -1), standing, lying[::-1, ::-1]), strict=True):
        np.testing.assert_array_equal(page[..., 0], wanted)
    assert picture.dpi == (98, 204)
    images.write_image(tmp_path / "a.tif", picture.pages, like=picture)
    assert images.read_image(tmp_path / "a.tif").dpi == (98, 204)


@pytest.mark.parametrize("source", [".png", ".jpg", ".tif", ".webp"])
@pytest.mark.parametrize("target", [".png", ".jpg", ".tif", ".webp"])
def test_profile_and_resolution_are_carried_over(tmp_path, source, target):
    exif = Image.Exif()
    exif[33432] = "Somebody"
    like = Picture([BLOCKS], exif=exif.tobytes(), icc=b"\0" * 200, dpi=(300.0, 150.0))
    images.write_image(tmp_path / f"a{source}", BLOCKS, like=like)
    first = images.read_image(tmp_path / f"a{source}")
    images.write_image(tmp_path / f"b{target}", first.pages, like=first)
    second = images.read_image(tmp_path / f"b{target}")
    assert second.icc == b"\0" * 200
    assert Image.Exif().load(second.exif) is None
    assert b"Somebody" in second.exif
    if ".webp" not in (source, target):  # has no field for it
        assert second.dpi == pytest.approx((300, 150), abs=0.1)


def test_a_profile_of_megabytes_is_carried_over():
    icc = noise("uint8", 255 * 65519).tobytes()  # as much as a JPEG holds; of scanners and printers some have millions
    first = read(saved(Image.fromarray(BLOCKS), "JPEG", icc_profile=icc))
    assert read(images.encode("a.png", first.pages, first)).icc == icc


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_png_in_linear_light_stays_so(dtype, channels):
    """Without its gamma the same numbers would be shown far darker."""
    chunks = chunk(b"gAMA", struct.pack(">I", 100000)) + chunk(b"cICP", bytes([9, 16, 0, 1]))
    pixels = noise(dtype, 9, 12, channels)
    alpha = [pixels[..., -1]] if channels in (2, 4) else None
    like = Picture([], alpha=alpha)
    plain = images.encode("a.png", pixels[..., : channels - 1] if alpha else pixels, like)
    picture = read(plain[:33] + chunks + plain[33:])
    assert images.encode("a.png", picture.pages, picture) == plain[:33] + chunks + plain[33:]
    if dtype == "uint8" and not alpha:
        assert not read(images.encode("a.jpg", picture.pages, picture)).png


def test_files_do_not_grow(tmp_path):
    images.write_image(tmp_path / "a.tif", BLOCKS, like=Picture([BLOCKS], format="PNG"))
    assert (tmp_path / "a.tif").stat().st_size < BLOCKS.nbytes / 2
    raw = tiff(noise("uint16", 64, 64))
    images.write_image(tmp_path / "b.tif", read(raw).pages, like=read(raw))
    assert (tmp_path / "b.tif").stat().st_size < len(raw) + 500


# --- NPY ------------------------------------------------------------------------------------------


def npy_file(array, version=None):
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version)
    return file.getvalue()


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_npy_is_read_in_both_orders_of_its_axes(version):
    array = np.arange(24.0).reshape(2, 3, 4)
    for written in (array, np.asfortranarray(array)):
        data = npy_file(written, version)
        found = npy.read(io.BytesIO(data), len(data))
        np.testing.assert_array_equal(found, array)
        shape, fortran, dtype = npy.header(io.BytesIO(data))
        assert (shape, fortran, dtype) == ((2, 3, 4), written is not array, np.float64)


@pytest.mark.parametrize("shape", [(8, 9), (8, 9, 1), (8, 9, 3), (1, 8, 9, 3), (1, 8, 9, 1), (2, 8, 9, 1)])
def test_npy_keeps_its_axes(shape):
    array = noise("uint16", *shape)
    picture = read(npy_file(array))
    data = images.encode("a.npy", picture.pages, like=picture)
    np.testing.assert_array_equal(npy.read(io.BytesIO(data), len(data)), array, strict=True)


def test_npy_that_is_no_array_of_numbers_is_refused():
    good = npy_file(np.arange(12.0).reshape(3, 4))
    objects = io.BytesIO()
    np.save(objects, np.array([{}]), allow_pickle=True)
    for data, words in {
        good[:-1]: "does not fit", good + b"\0": "does not fit", good.replace(b"(3, 4), ", b"(-3,-4),"):
        "unknown dimension",
        objects.getvalue(): "objects",
        npy_file(np.zeros(3), (3, 0)): "version",
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=words):
            npy.read(io.BytesIO(data), len(data))
