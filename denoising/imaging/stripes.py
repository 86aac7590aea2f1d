"""Stripes: noise that all pixels of a row share, or all of a column, as scanners and cheap sensors leave it.

What measures noise in blocks of some pixels takes a stripe for a part of the picture; here whole rows are compared.
"""

import numpy as np

PART = 32  # pixels: a row is compared with the next one in parts of this length, of which the median is taken
LEAST_PARTS = 4
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


def _of_rows(image_01):
    """The deviation of the rows' offsets; their strength is taken as the same in all channels."""
    height, width = image_01.shape[:2]
    count = width // PART
    if count < LEAST_PARTS or height < PART:
        return 0.0
    grey = image_01[:, : count * PART].mean(axis=2).reshape(height, count, PART).mean(axis=2)
    steps = np.diff(grey, axis=0)
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
    return float(np.sqrt((variance - by_chance) / 2))
