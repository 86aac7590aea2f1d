"""Pixels in memory: types, ranges, channels and rotations, by their laws and by recorded numbers."""

import numpy as np
import pytest
from PIL import ExifTags

from denoising.cli import UserError
from denoising.imaging import pixels
from denoising.imaging.pixels import Picture, as_channels, from_01, to_01

CORNERS = np.array([[[1], [2]], [[3], [4]], [[5], [6]]], np.uint8)  # 3 x 2


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_integer_survives_the_way_to_01_and_back(dtype):
    every = np.arange(np.iinfo(dtype).max + 1, dtype=dtype)
    image_01 = to_01(every)
    assert image_01.dtype == np.float32
    assert (image_01[0], image_01[-1]) == (0, 1)
    assert image_01[51 * (1 if dtype == np.uint8 else 257)] == np.float32(0.2)
    assert (from_01(image_01, dtype) == every).all()
    assert from_01(image_01, dtype).dtype == dtype


def test_the_way_back_rounds_half_up_and_clips():
    values = np.array([-3, -0.6, 0.4, 0.5, 1.5, 2.49, 254.4, 254.5, 255.6, 900], np.float32) / 255
    assert from_01(values, np.uint8).tolist() == [0, 0, 0, 1, 2, 2, 254, 255, 255, 255]
    assert values[0] < 0  # the input is left as it is
    floats = np.array([-3.5, 7.25], np.float32)
    assert (from_01(floats, np.float32) == floats).all()
    assert (to_01(floats) == floats).all()


def test_types_become_the_three_that_are_known_or_are_refused():
    known = {
        np.bool_: np.uint8, np.uint8: np.uint8, np.uint16: np.uint16, np.int16: np.uint16,
        np.float16: np.float32, np.float32: np.float32, np.float64: np.float32,
    }  # fmt: skip
    for given, wanted in known.items():
        array = np.array([[0, 1]], given)
        found = pixels.known_dtype(array, "a.tif")
        assert found.dtype == wanted
        assert found.tolist() == [[0, 255]] if given is np.bool_ else found.tolist() == [[0, 1]]
    for given in (np.int8, np.int32, np.uint32, np.uint64, np.complex64, np.longdouble):
        with pytest.raises(UserError, match=r"a\.tif: \w+ has no agreed white: save it as uint8, uint16 or float32"):
            pixels.known_dtype(np.zeros((1, 2), given), "a.tif")
    with pytest.raises(UserError, match="int16 with negative values has no agreed white"):
        pixels.known_dtype(np.array([[0, -1]], np.int16), "a.tif")
    assert np.isinf(pixels.known_dtype(np.array([1e39]), "a.tif")).all()


def test_what_would_fill_the_memory_is_refused_at_the_very_bounds():
    side = 1 << 10
    limit = pixels.MAX_PIXELS // side
    data = bytes(4 * pixels.BOMB_BYTES // pixels.BOMB_RATIO + 1)
    pixels.check_size("a", data, [(limit, side, 1)], 1)
    with pytest.raises(pixels.TooLarge, match=r"a: would unpack to 537 megapixels, 0\.5 GB: refused"):
        pixels.check_size("a", data, [(limit + 1, side, 1)], 1)
    # A page is its two largest dimensions: few channels or planes do not count as pixels.
    pixels.check_size("a", data, [(3, limit, side)], 1)
    # Many pages of few pixels each: as large as the bomb, and not a byte more.
    pages = [(1 << 10, 1 << 10, 1)] * (pixels.BOMB_BYTES >> 20)
    pixels.check_size("a", b"", pages, 1)
    with pytest.raises(pixels.TooLarge):
        pixels.check_size("a", b"", [*pages, (1, 1, 1)], 1)
    with pytest.raises(pixels.TooLarge):
        pixels.check_size("a", b"", pages, 2)
    large = pixels.BOMB_BYTES // pixels.BOMB_RATIO + 1
    pixels.check_size("a", bytes(large), [*pages, (1, 1, 1)], 1)  # what is not packed is no bomb
    for shapes in ([], [(0, 5, 3)]):
        with pytest.raises(UserError, match="a: holds no pixels"):
            pixels.check_size("a", b"", shapes, 1)


def test_opencvs_order_is_swapped_both_ways():
    for channels, order in ((1, [0]), (2, [0, 1]), (3, [2, 1, 0]), (4, [2, 1, 0, 3]), (5, [0, 1, 2, 3, 4])):
        array = np.arange(2 * 3 * channels).reshape(2, 3, channels)
        assert (pixels.swap_bgr(array) == array[..., order]).all()
        assert (pixels.swap_bgr(pixels.swap_bgr(array)) == array).all()
    assert pixels.swap_bgr(np.zeros((2, 3))).shape == (2, 3, 1)


@pytest.mark.parametrize(
    ("orientation", "wanted"),
    [
        (1, [[1, 2], [3, 4], [5, 6]]), (2, [[2, 1], [4, 3], [6, 5]]), (3, [[6, 5], [4, 3], [2, 1]]),
        (4, [[5, 6], [3, 4], [1, 2]]), (5, [[1, 3, 5], [2, 4, 6]]), (6, [[5, 3, 1], [6, 4, 2]]),
        (7, [[6, 4, 2], [5, 3, 1]]), (8, [[2, 4, 6], [1, 3, 5]]), (0, [[1, 2], [3, 4], [5, 6]]),
        (9, [[1, 2], [3, 4], [5, 6]]),
    ],
)  # fmt: skip
def test_a_rotation_tag_turns_pixels_alpha_and_resolution(orientation, wanted):
    picture = Picture([CORNERS], [CORNERS[..., 0]], dpi=(72.0, 96.0), plain=True)
    turned = pixels.upright(picture, orientation)
    assert turned.pages[0][..., 0].tolist() == wanted
    assert turned.alpha[0].tolist() == wanted
    assert turned.dpi == ((96.0, 72.0) if 5 <= orientation <= 8 else (72.0, 96.0))
    assert turned.plain == (orientation not in range(2, 9))
    assert pixels.upright(Picture([CORNERS]), orientation).alpha is None


def test_a_picture_is_only_its_pages_unless_told():
    assert pixels.ORIENTATION == ExifTags.Base.Orientation
    bare, other = Picture([CORNERS]), Picture([CORNERS])
    assert (bare.alpha, bare.format, bare.exif, bare.icc, bare.dpi, bare.plain) == (None, "", b"", b"", None, False)
    assert bare.axes == 0
    assert bare.tiff == bare.exr == {}
    bare.tiff["description"] = "mine"
    assert other.tiff == {}


def test_grey_is_the_luma_of_rec_601():
    colours = np.array(
        [[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [200, 200, 200], [10, 20, 30]]], np.uint8
    )
    assert pixels.to_grey(colours)[0, :, 0].tolist() == [76, 150, 29, 255, 200, 18]
    assert pixels.to_grey(colours).dtype == np.uint8
    light = pixels.to_grey(np.array([[[1.0, 2.0, 4.0]]], np.float32))
    assert light.shape == (1, 1, 1)
    assert light[0, 0, 0] == pytest.approx(0.299 + 2 * 0.587 + 4 * 0.114)


def test_an_image_gets_the_channels_of_the_network():
    colour = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    grey = colour[..., :1]
    assert as_channels(colour, 3, "a") is colour
    assert (as_channels(grey, 3, "a") == np.concatenate([grey] * 3, axis=2)).all()
    assert (as_channels(colour, 1, "a") == pixels.to_grey(colour)).all()
    assert (as_channels(grey, 4, "a") == pixels.pack_bayer(grey)).all()
    for given, wanted in ((colour, 4), (np.zeros((2, 2, 4)), 3), (np.zeros((2, 2, 2)), 1)):
        with pytest.raises(UserError, match=rf"^a: has {given.shape[2]} channels, --n_channel is {wanted}$"):
            as_channels(given, wanted, "a")


def test_a_mosaic_is_packed_phase_by_phase():
    mosaic = np.arange(15).reshape(3, 5, 1)
    assert pixels.pack_bayer(mosaic).tolist() == [[[0, 1, 5, 6], [2, 3, 7, 8]]]
    wide = np.arange(24).reshape(4, 6, 1)
    phases = [wide[::2, ::2, 0], wide[::2, 1::2, 0], wide[1::2, ::2, 0], wide[1::2, 1::2, 0]]
    assert (pixels.pack_bayer(wide) == np.stack(phases, axis=2)).all()
