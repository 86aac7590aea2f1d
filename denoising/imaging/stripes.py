"""Stripes: noise that all pixels of a row share, or all of a column, as scanners and cheap sensors leave it.

What measures noise in blocks of some pixels takes a stripe for a part of the picture; here whole rows are compared.
"""

import numpy as np
from scipy.ndimage import gaussian_filter1d

from denoising.imaging.pixels import from_01, to_01

PART = 32  # pixels: a row is compared with the next one in parts of this length, of which the median is taken
LEAST_PARTS = 4
LARGEST_STEP = 5.0  # deviations, between two rows: noise that is Gaussian has a larger one in 2500 rows
AROUND = 8.0  # rows: the width over which offsets are compared
LEAST = 0.3 / 255  # weaker ones are not seen
CLEAR = 2.0  # how many times its deviation by chance the difference of rows must have


def deviations(image_01):
    """The standard deviation of the rows' own offsets and of the columns', in 0..1; 0 where there are no stripes.

    Args:
        image_01: H x W x C float32.
    """
    return _of_rows(image_01), _of_rows(image_01.transpose(1, 0, 2))


def add(image_01, level, rng):
    """Offsets of the rows and columns, as strong as `deviations` says, for an image or an array of zeros."""
    rows, columns = level
    height, width = image_01.shape[:2]
    if rows:
        image_01 = image_01 + np.float32(rows) * rng.standard_normal((height, 1, 1), dtype=np.float32)
    if columns:
        image_01 = image_01 + np.float32(columns) * rng.standard_normal((1, width, 1), dtype=np.float32)
    return image_01


def take_off(image):
    """The image, H x W x C of any type, without its stripes, and the line that says so; as it is and "" without any.

    What lines share with those around them, within some twenty, may be the scene's and stays.
    """
    image_01 = to_01(image)
    rows, columns = deviations(image_01)
    if not rows and not columns:
        return image, ""
    words = []
    if rows:
        image_01 = image_01 - _offsets(image_01, rows)
        words.append(f"{255 * rows:.1f} of 255 along rows")
    if columns:
        image_01 = image_01 - _offsets(image_01.transpose(1, 0, 2), columns).transpose(1, 0, 2)
        words.append(f"{255 * columns:.1f} of 255 along columns")
    return from_01(image_01, image.dtype), f"stripes of {' and '.join(words)} are taken off first"


def _offsets(image_01, deviation):
    """The offset of each row from those around it, H x 1 x 1."""
    # What differs by more than stripes can is an edge of the scene from one side to the other.
    steps = np.median(_steps(image_01), axis=1)
    steps = np.where(np.abs(steps) < LARGEST_STEP * deviation, steps, 0)
    heights = np.concatenate([[0], np.cumsum(steps)])
    return (heights - gaussian_filter1d(heights, AROUND, mode="reflect"))[:, None, None].astype(np.float32)


def _steps(image_01):
    """By how much each row differs from the one before it, in parts of some pixels: H - 1 x parts."""
    height, width = image_01.shape[:2]
    count = width // PART
    grey = image_01[:, : count * PART].mean(axis=2).reshape(height, count, PART).mean(axis=2)
    return np.diff(grey, axis=0)


def _of_rows(image_01):
    """The deviation of the rows' offsets; their strength is taken as the same in all channels."""
    height, width = image_01.shape[:2]
    count = width // PART
    if count < LEAST_PARTS or height < PART:
        return 0.0
    steps = _steps(image_01)
    # The scene's own edges are in some of the parts, a stripe is in all of them.
    found = np.median(steps, axis=1)
    around = steps - found[:, None]
    by_chance = np.pi / 2 * np.median(np.square(around)) / 0.455 / count  # 0.455: median of a squared normal number
    variance = np.median(np.square(found)) / 0.455
    usual = np.abs(found) < 3 * np.sqrt(variance)
    pairs = usual[1:] & usual[:-1]
    # Offsets that are independent of each other make differences that turn back; a gradient goes on.
    turning = (found[1:] * found[:-1])[pairs].mean() / max(np.square(found[usual]).mean(), 1e-12) if pairs.any() else 0
    if variance < CLEAR**2 * by_chance or turning > -0.25:
        return 0.0
    deviation = float(np.sqrt((variance - by_chance) / 2))
    return deviation if deviation > LEAST else 0.0
