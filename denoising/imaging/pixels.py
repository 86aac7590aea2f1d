"""Pixels in memory: what a file of any format holds, and the types, sizes and range it may come in."""

import math
from dataclasses import dataclass, field

import numpy as np

from denoising.cli import UserError

MAX_PIXELS = 1 << 29  # of one page; beyond the largest cameras and most stitched panoramas
# What unpacks to more than this, and to more than so many times its own size, is a bomb.
BOMB_BYTES, BOMB_RATIO = 1 << 29, 200

ORIENTATION = 274  # the tag of EXIF and TIFF that says how the camera was held


class TooLarge(UserError):
    """An image beyond the limits, found before it is decoded."""


@dataclass
class Picture:
    """What a file holds: pixels, turned upright, and what is handed on to a file made from them."""

    pages: list  # of HWC arrays; one, unless the file is a stack
    alpha: list | None = None  # one H x W array per page, of the same type: kept, never denoised
    format: str = ""  # "PNG", "JPEG", "TIFF", "NPY", ...
    exif: bytes = b""  # without its rotation tag, which has been obeyed
    icc: bytes = b""
    png: bytes = b""  # what a PNG has in place of a profile: its chunks on gamma and the like
    dpi: tuple | None = None
    plain: bool = False  # 8-bit grey or RGB in the file too, and upright: any decoder gives these pixels
    axes: int = 0  # of the array in an NPY: a single page or channel may have one of its own
    tiff: dict = field(default_factory=dict)  # descriptions, pixel size, tags, compression
    exr: dict = field(default_factory=dict)  # whether it is of 16-bit floats, and its layers


def check_size(path, data, shapes, itemsize):
    """Refuses what would fill the memory, before it is decoded; `shapes` are those of all pages."""
    total = itemsize * sum(math.prod(shape) for shape in shapes)
    # A page's height and width are among the three largest of its dimensions; the rest are few.
    pixels = max((math.prod(sorted(shape)[-2:]) for shape in shapes), default=0)
    if pixels > MAX_PIXELS or (total > BOMB_BYTES and total > BOMB_RATIO * len(data)):
        raise TooLarge(f"{path}: would unpack to {pixels / 1e6:.0f} megapixels, {total / 1e9:.1f} GB: refused")
    if total == 0:
        raise UserError(f"{path}: holds no pixels")


def check_finite(path, array):
    """Refuses NaN and infinite values, and says what to put in their place."""
    if count := array.size - int(np.count_nonzero(np.isfinite(array))):
        raise UserError(
            f"{path}: holds NaN or infinite pixels ({count} of {array.size}): give them a value first, in NumPy by "
            "numpy.where(numpy.isfinite(image), image, value), such as that of the background"
        )


def known_dtype(array, path):
    """Returns the array as uint8, uint16 or float32, or refuses it."""
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind == "b":
        return array.astype(np.uint8) * np.uint8(255)
    if kind == "f" and size <= 8:
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
            return np.ascontiguousarray(array, np.float32)
    if size == 2 and (kind == "u" or (kind == "i" and array.min() >= 0)):
        return np.ascontiguousarray(array, np.uint16)
    if kind == "u" and size == 1:
        return np.ascontiguousarray(array)
    negative = " with negative values" if array.dtype == np.int16 else ""
    raise UserError(f"{path}: {array.dtype}{negative} has no agreed white: save it as uint8, uint16 or float32")


def swap_bgr(array):
    """OpenCV's channel order to RGB as HWC, or the same way back; other numbers of channels stay."""
    if array.ndim == 2:
        return array[..., None]
    return array[..., [2, 1, 0, 3][: array.shape[2]]] if array.shape[2] in (3, 4) else array


def upright(picture, orientation):
    """Turns the pixels as the rotation tag of EXIF and TIFF asks."""
    if orientation in range(2, 9):
        picture.plain = False
        picture.pages = [turned(page, orientation) for page in picture.pages]
        picture.alpha = picture.alpha and [turned(alpha, orientation) for alpha in picture.alpha]
        if orientation >= 5 and picture.dpi:
            picture.dpi = picture.dpi[::-1]
    return picture


def turned(array, orientation):
    """The same for an array of H x W or H x W x C."""
    if orientation not in range(2, 9):
        return array
    down = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    across = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    array = array.swapaxes(0, 1) if orientation >= 5 else array
    return np.ascontiguousarray(array[down, across])


PLAIN_SPAN = (0.0, 1.0)  # of to_01: black and white


def to_01(array):
    """Maps uint8 and uint16 to float32 in 0..1; float passes, 0..1 being its display range."""
    if array.dtype.kind == "u":
        result = array.astype(np.float32)
        result /= np.iinfo(array.dtype).max
        return result
    return array.astype(np.float32, copy=False)


def from_01(array_01, dtype):
    """The way back: integers are rounded half up and clipped, float32 is left as it is."""
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        return array_01.astype(dtype, copy=False)
    top = np.iinfo(dtype).max
    result = array_01 * np.float32(top)
    result += np.float32(0.5)
    return np.clip(np.floor(result, out=result), 0, top, out=result).astype(dtype)


def middle(image, side):
    """Where the middle of H x W or H x W x C lies, at most so many pixels a side: an index of rows and columns."""
    top, left = (max(length - side, 0) // 2 for length in image.shape[:2])
    return np.s_[top : top + side, left : left + side]


def span_of(image):
    """Which values of 0..1 a network is to see as black and white: those that nearly all of the image lies between.

    Counts of a sensor use a small part of 16 bits, or lie far beyond 1 in files of floats: networks have learnt from
    images that are neither so dark nor so bright. Where values fill a quarter of the range or more, it stays.
    """
    if image.dtype == np.uint8:
        return PLAIN_SPAN
    step = max(1, int((image.shape[0] * image.shape[1] / 1e6) ** 0.5))
    low, high = map(float, np.percentile(to_01(image[::step, ::step]), (0.1, 99.9)))
    usual = low > -0.25 and high < 1.25 and high - low > 0.25
    return PLAIN_SPAN if usual or high <= low else (low, high)


def seen_in(span, array):
    """As float32, what is 0 and 1 in the span being 0 and 1; the array itself where that is so already."""
    if span == PLAIN_SPAN:
        return array
    return (to_01(array) - np.float32(span[0])) / np.float32(span[1] - span[0])


LUMA = (0.299, 0.587, 0.114)  # Rec. 601


def to_grey(array):
    """Luma as H x W x 1, rounded to the image's own type."""
    luma = to_01(array) @ np.array(LUMA, np.float32)
    return from_01(luma[..., None], array.dtype)


def is_grey(array):
    """Whether H x W x C shows no colours: it has one channel, or three that are all the same."""
    same = array.shape[2] == 3 and np.array_equal(array[..., 0], array[..., 1])
    return array.shape[2] == 1 or (same and np.array_equal(array[..., 1], array[..., 2]))


def as_channels(array, n_channel, name):
    """Gives an HWC image the channels that the network takes: RGB to grey, grey to RGB, Bayer raw to four."""
    channels = array.shape[2]
    if channels == n_channel:
        return array
    if n_channel == 3 and channels == 1:
        return np.repeat(array, 3, axis=2)
    if n_channel == 1 and channels == 3:
        return to_grey(array)
    if n_channel == 4 and channels == 1:
        return pack_bayer(array)
    raise UserError(f"{name}: has {channels} channels, --n_channel is {n_channel}")


def pack_bayer(mosaic):
    """Packs an H x W x 1 Bayer mosaic into its four phases, H/2 x W/2 x 4 (an odd last row or column is dropped)."""
    height, width = mosaic.shape[0] // 2 * 2, mosaic.shape[1] // 2 * 2
    phases = [mosaic[i:height:2, j:width:2, 0] for i in (0, 1) for j in (0, 1)]
    return np.stack(phases, axis=2)
