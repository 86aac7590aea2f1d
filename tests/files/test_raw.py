"""DNG files that these tests write themselves, read by LibRaw and written again."""

import io
import struct
import sys

import numpy as np
import pytest
import tifffile

from conftest import needs_rawpy
from denoising.cli import UserError
from denoising.files import dng, raw

ORDERS = {"RGGB": (0, 0), "GRBG": (0, 1), "GBRG": (1, 0), "BGGR": (1, 1)}


def colours(red, height, width):
    """The number of the colour at each pixel."""
    return np.tile(dng.pattern(red), (height // 2 + 1, width // 2 + 1))[:height, :width]


def mosaic_of(red, height=40, width=60):
    """A mosaic with a gradient, and another brightness in each colour."""
    ramp = np.linspace(0.3, 0.9, width, dtype=np.float32)
    return np.float32([0.4, 0.8, 0.2])[colours(red, height, width)] * ramp


def dng_by_hand(values, red=(0, 0), black=0, white=4095, photometric="cfa", **tags):
    """A DNG as cameras write it: whole numbers of 12 bits and more, black by colour, other tags."""
    number_of = {"black_by_place": 50714, "area": 50829, "profile": 51041, "flip": 274, "repeat": 50713}
    kinds = {"black_by_place": "I", "area": "I", "profile": "d", "flip": "H", "repeat": "H"}
    common = [
        (50706, "B", 4, bytes((1, 4, 0, 0)), True),
        (50708, "s", 0, "A camera", True),
        (50717, "I", 1, white, True),
    ]
    if photometric == "cfa":
        common += [(33421, "H", 2, (2, 2), True), (33422, "B", 4, bytes(dng.pattern(red).ravel().tolist()), True)]
    if "black_by_place" not in tags:
        common += [(50714, "I", 1, black, True)]
    for name, value in tags.items():
        common.append((number_of[name], kinds[name], np.size(value), value, True))
    file = io.BytesIO()
    tifffile.imwrite(file, values, photometric=photometric, metadata=None, extratags=common)
    return file.getvalue()


@needs_rawpy
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("size", [(40, 60), (41, 63), (22, 22)])
def test_all_orders_and_odd_sizes(order, size):
    red, mosaic = ORDERS[order], mosaic_of(ORDERS[order], *size)
    with raw.opened("a.dng", dng.encode(mosaic, red, (2.0, 1.0, 3.0))) as photo:
        assert photo.red == red
        assert photo.kind is None
        np.testing.assert_allclose(photo.mosaic(), mosaic, atol=1e-5)
        picture = photo.develop(no_auto_bright=True)
    assert picture.shape == (*size, 3)
    assert picture.dtype == np.uint16


@needs_rawpy
@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_bits_and_black_levels(bits):
    white, mosaic = 2**bits - 1, mosaic_of((0, 0))
    blacks = np.array([60, 64, 68, 72]) * 2**bits // 4096
    at = np.tile(blacks.reshape(2, 2), (20, 30))
    values = np.rint(at + mosaic * (white - blacks.min())).astype(np.uint16)
    data = dng_by_hand(values, white=white, black_by_place=blacks.tolist(), repeat=(2, 2))
    with raw.opened("a.dng", data) as photo:
        np.testing.assert_allclose(photo.mosaic(), mosaic, atol=0.6 / (white - blacks.min()))
        as_it_is = photo.develop()
        again = photo.develop(photo.mosaic())
    # The same picture, up to the rounding of few bits, which LibRaw decides by here and there.
    assert np.abs(as_it_is.astype(int) - again).mean() < 40
    assert np.median(np.abs(as_it_is.astype(int) - again)) < 20


@needs_rawpy
@pytest.mark.parametrize("corner", [(3, 5), (2, 5), (4, 4)])
def test_a_mosaic_that_starts_within_the_sensor(corner):
    """The colours are told from the corner of the visible part on, which LibRaw may move by a pixel."""
    mosaic = mosaic_of((0, 0), 48, 64)
    values = np.rint(mosaic * 4095).astype(np.uint16)
    told = (corner[0] % 2, corner[1] % 2)  # of the first red pixel from there on
    with raw.opened("a.dng", dng_by_hand(values, told, area=(*corner, 44, 60))) as photo:
        top, left = photo.libraw.sizes.top_margin, photo.libraw.sizes.left_margin
        found = photo.mosaic()
        np.testing.assert_allclose(found, mosaic[top : top + len(found), left : left + found.shape[1]], atol=2e-4)
        assert photo.red == (top % 2, left % 2)


@needs_rawpy
@pytest.mark.parametrize(
    ("flip", "corner"),
    [
        *((1, (0, 0)), (2, (0, -1)), (3, (-1, -1)), (4, (-1, 0))),
        *((5, (0, 0)), (6, (0, -1)), (7, (-1, -1)), (8, (-1, 0))),
    ],
)
def test_how_the_camera_was_held(flip, corner):
    mosaic = np.full((40, 60), 0.1, np.float32)
    mosaic[:8, :8] = 0.8
    first = dng.encode(mosaic, (0, 0), (1.0, 1.0, 1.0), orientation=flip)
    with raw.opened("a.dng", first) as photo:
        picture = photo.develop(no_auto_bright=True)
        second = photo.as_dng(photo.mosaic())
    assert picture.shape[:2] == ((60, 40) if flip > 4 else (40, 60))
    assert picture[corner].min() > 2 * np.median(picture)
    with raw.opened("b.dng", second) as photo:
        assert np.array_equal(photo.develop(no_auto_bright=True), picture)


@needs_rawpy
def test_what_is_written_is_what_was_read():
    """Colours, white balance and the camera's name go from a DNG to the DNG made of it."""
    matrix = np.array([[0.9, -0.2, -0.1], [-0.4, 1.2, 0.2], [-0.1, 0.3, 0.6]])
    from PIL import Image

    exif = Image.Exif()
    exif[271], exif[272], exif[315] = "Maker", "Modèl 1".encode(), "José".encode()
    first = dng.encode(mosaic_of((0, 1)), (0, 1), (2.0, 1.0, 1.5), matrix, exif=exif.tobytes())
    with raw.opened("a.dng", first) as photo:
        second = photo.as_dng(photo.mosaic())
        pictures = [photo.develop()]
    assert first == second
    assert second.count("Modèl 1\0".encode()) == 2  # by itself, and as a part of the camera's name
    assert "José\0".encode() in second
    with raw.opened("b.dng", second) as photo:
        pictures.append(photo.develop())
    assert np.array_equal(*pictures)


@needs_rawpy
def test_the_noise_profile():
    values = np.full((40, 60), 900, np.uint16)
    profiles = {
        (2e-4, 3e-6): (2e-4, 3e-6),
        (1e-4, 1e-6, 2e-4, 2e-6, 3e-4, 3e-6): (2e-4, 2e-6),
        (np.nan, 1.0): None,
        (-1.0, 0.0): None,
        (1e-4, 1e-6, 1e-4): None,
    }
    for told, expected in profiles.items():
        with raw.opened("a.dng", dng_by_hand(values, profile=told)) as photo:
            assert photo.noise == (None if expected is None else pytest.approx(expected))
    with raw.opened("a.dng", dng_by_hand(values)) as photo:
        assert photo.noise is None


@needs_rawpy
def test_sensors_without_a_bayer_mosaic():
    linear = np.full((40, 60, 3), 900, np.uint16)
    with raw.opened("a.dng", dng_by_hand(linear, photometric=34892)) as photo:
        assert photo.red is None
        assert "each pixel" in photo.kind
        assert photo.develop().shape == linear.shape
    # Nothing but the tag of the photometric interpretation tells a sensor without colours.
    grey = dng_by_hand(np.full((40, 60), 900, np.uint16), photometric="minisblack")
    black_is_zero, linear_raw = (struct.pack("<HHII", 262, 3, 1, kind) for kind in (1, 34892))
    assert black_is_zero in grey
    with raw.opened("a.dng", grey.replace(black_is_zero, linear_raw)) as photo:
        assert photo.red is None
        assert "no colours" in photo.kind


@needs_rawpy
def test_what_libraw_refuses(capfd):
    whole = dng.encode(mosaic_of((0, 0)), (0, 0), (1.0, 1.0, 1.0))
    cases = {b"": "empty|read", b"no raw file at all" * 40: "LibRaw cannot read it", whole[:-1]: "cut short"}
    cases |= {whole[:length]: "cut short|LibRaw" for length in (9, 100, len(whole) // 2)}
    for data, words in cases.items():
        with pytest.raises(UserError, match=rf"^a\.dng: .*({words})"), raw.opened("a.dng", data):
            pass
    small = dng.encode(mosaic_of((0, 0), 8, 9), (0, 0), (1.0, 1.0, 1.0))
    with pytest.raises(UserError, match="LibRaw cannot read it"), raw.opened("a.dng", small):
        pass


@needs_rawpy
def test_a_bomb_is_refused_before_it_is_unpacked():
    whole = dng.encode(mosaic_of((0, 0)), (0, 0), (1.0, 1.0, 1.0))
    width, height = (struct.pack("<HHII", code, 4, 1, size) for code, size in ((256, 60), (257, 40)))
    short = [struct.pack("<HHIH", code, 3, 1, size) for code, size in ((256, 60), (257, 40))]
    data = whole
    for long_, short_, code in zip((width, height), short, (256, 257), strict=True):
        huge = struct.pack("<HHII", code, 4, 1, 60000)
        assert long_ in data or short_ in data
        data = data.replace(long_, huge) if long_ in data else data.replace(short_ + b"\0\0", huge)
    with pytest.raises(UserError, match=r"megapixels|cut short|LibRaw"), raw.opened("a.dng", data):
        pass


def test_without_rawpy(monkeypatch):
    monkeypatch.setitem(sys.modules, "rawpy", None)
    with pytest.raises(UserError, match=r"a\.dng: raw files need rawpy: pip install -r requirements-raw\.txt"):
        with raw.opened("a.dng", b"anything"):
            pass


def test_names_of_raw_files():
    assert raw.is_raw("photo.CR3")
    assert raw.is_raw("a/b.dng")
    assert not raw.is_raw("a.tif")
