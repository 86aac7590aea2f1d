"""How a large image is cut into windows, so that memory is bounded and the result is that of the whole image.

>>> for window in windows(4000, 6016, step=8, margin=24, pixels=500_000):
...     result[window.kept] = denoise(image[window.taken])[window.inside]

A window overlaps the next by two margins, and keeps what lies farther from its edges than a margin, where the network
sees only what it would see in the whole image. All windows of an image have one size: their memory is taken once.
"""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Window:
    """A rectangle that is computed, and the part of it that is kept."""

    rows: tuple  # the first that is computed, and the one behind the last
    columns: tuple
    kept_rows: tuple
    kept_columns: tuple

    @property
    def taken(self):
        """Where the window lies in the image, as an index of rows and columns."""
        return np.s_[slice(*self.rows), slice(*self.columns)]

    @property
    def kept(self):
        """Where its result belongs."""
        return np.s_[slice(*self.kept_rows), slice(*self.kept_columns)]

    @property
    def inside(self):
        """Where that result lies within the window."""
        (top, bottom), (left, right) = self.kept_rows, self.kept_columns
        return np.s_[top - self.rows[0] : bottom - self.rows[0], left - self.columns[0] : right - self.columns[0]]

    @property
    def pixels(self):
        """How many are computed."""
        return (self.rows[1] - self.rows[0]) * (self.columns[1] - self.columns[0])

    def moved(self, block):
        """The same window, of a block whose own place in the image is given, as a window of the image."""
        by = (block.rows[0], block.columns[0]) * 2
        return Window(*((start + first, stop + first) for (start, stop), first in zip(self._ends(), by, strict=True)))

    def kept_within(self, block, height, width):
        """Where its result belongs as far as that is kept of a block and lies in an image, and where it lies within."""
        kept, inside = [], []
        ends = (
            (self.kept_rows, block.kept_rows, height, self.rows),
            (self.kept_columns, block.kept_columns, width, self.columns),
        )
        for mine, blocks, size, window in ends:
            start = max(mine[0], blocks[0])
            stop = max(min(mine[1], blocks[1], size), start)
            kept.append(slice(start, stop))
            inside.append(slice(start - window[0], stop - window[0]))
        return tuple(kept), tuple(inside)

    def _ends(self):
        return self.rows, self.columns, self.kept_rows, self.kept_columns

    def scaled(self, factor):
        """The same rectangle in an image that is so many times smaller."""
        return Window(*(tuple(end // factor for end in ends) for ends in self._ends()))


def windows(height, width, step, margin, pixels):
    """The windows of an image whose sides are multiples of `step`; each has at most `pixels`, if that is possible."""
    sides = plan_windows(height, width, step, margin, pixels)
    rows, columns = (list(along(size, side, margin)) for size, side in zip((height, width), sides, strict=True))
    return [Window((y0, y1), (x0, x1), (y2, y3), (x2, x3)) for y0, y1, y2, y3 in rows for x0, x1, x2, x3 in columns]


def plan_windows(height, width, step, margin, window_pixels):
    """Height and width of the windows, multiples of `step`, that compute the fewest pixels within the budget.

    A window at the image's border needs no margin there. Where no window is within the budget, it is the smallest
    that keeps any of its result.
    """
    best = None
    least = 2 * margin + step
    for count in range(1, max(width // step, 1) + 1):
        window_width = window_side(width, count, step, margin)
        # The tallest window that the budget leaves, and then the lowest that needs no more of them.
        tallest = max(window_pixels // window_width // step * step, least)
        rows = window_count(height, tallest, margin)
        window_height = window_side(height, rows, step, margin)
        pixels = window_height * window_width
        work = rows * window_count(width, window_width, margin) * pixels
        key = (max(pixels - window_pixels, 0), work)
        if best is None or key < best[0]:
            best = key, (window_height, window_width)
        if window_width <= least:
            break
    return best[1]


def window_side(length, count, step, margin):
    """How long `count` windows must be that cover a length and overlap by two margins."""
    return min(round_up(math.ceil((length + 2 * margin * (count - 1)) / count), step), length)


def window_count(length, side, margin):
    """How many windows cover a length."""
    return 1 if side >= length else math.ceil((length - 2 * margin) / (side - 2 * margin))


def along(length, side, margin):
    """The windows along an axis: start and end of each, and between which lines its result is kept."""
    first = 0
    while first < length:
        start = max(min(first - margin, length - side), 0)
        last = length if start + side >= length else start + side - margin
        yield start, start + side, first, last
        first = last


def round_up(size, step):
    """The next multiple of `step`."""
    return (size + step - 1) // step * step


def reflected(array, start, stop, axis):
    """array[start:stop] along an axis, continued past its end by reflection."""
    size = array.shape[axis]
    if stop <= size:
        return array[(slice(None),) * axis + (slice(start, stop),)]
    period = max(2 * size - 2, 1)
    index = np.arange(start, stop) % period
    return np.take(array, np.minimum(index, period - index) if size > 1 else index * 0, axis=axis)
