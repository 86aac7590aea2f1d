"""Frames of a burst: whether two images show one scene, and the parts of both in which they do.

What is learnt from two frames needs the same scene under noise that is independent. So frames that differ by parts of a
pixel, by more than their noise, or not at all are not taken for a pair.
"""

import cv2
import numpy as np

from denoising.data.pairs import shift_between
from denoising.imaging import noise_traces
from denoising.imaging.pixels import middle, to_01

LARGEST = 0.25  # pixels that may remain after whole ones have been taken off: more would blur
NOISE, SCENE = 4.0, 8.0  # pixels: of what two frames differ by, noise is gone at the one width as at the other
GROWS = 1.25  # times: what is more of it at the wider one, for its size, is a change of the scene or of the camera
INDEPENDENT = 0.5  # of the variance that two frames of independent noise differ by, at least
SMOOTH = 2.0  # pixels
CHECKED = 1024  # side of the middle part that is compared


def aligned(first, second, sigma):
    """The parts of two images that show the same, moved by whole pixels, and the shift; None if there are none.

    Args:
        first: H x W x C of any type.
        second: another image, with noise of its own if it is another frame.
        sigma: the deviation of the noise in 0..1.

    Returns:
        None, or first and second of one size and (down, right).
    """
    if first.shape != second.shape or first.dtype != second.dtype:
        return None
    down, right = shift_between(first, second)
    height, width = first.shape[:2]
    if abs(down) > height // 4 or abs(right) > width // 4:
        return None
    here = np.s_[max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)]
    there = np.s_[max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)]
    first, second = first[here], second[there]
    return (first, second, (down, right)) if _belong_together(first, second, sigma) else None


def cut_off(first, second):
    """The share of the values of two aligned frames that are black or white in one of them alone: noise is lost there.

    Their mean is then too bright or too dark, and so is what is learnt from them. Where photons are counted, that there
    was none is no loss.
    """
    if first.dtype.kind == "u":
        black, white = 0, np.iinfo(first.dtype).max
    else:
        black, white = min(first.min(), second.min()), max(first.max(), second.max())
    black = -1 if noise_traces.photons(first) else black
    ends = [(frame <= black) | (frame >= white) for frame in (first, second)]
    return float((ends[0] != ends[1]).mean())


def _belong_together(first, second, sigma):
    channels = first.shape[2]
    first, second = (to_01(image[middle(image, CHECKED)]).mean(axis=2) for image in (first, second))
    difference = float(np.square(first - second).mean())
    if difference < INDEPENDENT * 2 * sigma**2 / channels:
        return False  # the same noise, as in copies of one file
    coarse, coarser = (_smoothed_variance(first - second, width) for width in (NOISE, SCENE))
    by_chance = np.sqrt(2 * 4 * np.pi * SCENE**2 / first.size)
    if coarser > (GROWS + 2 * by_chance) * coarse:
        return False
    return float(np.abs(_rest(*(cv2.GaussianBlur(grey, (0, 0), SMOOTH) for grey in (first, second)))).max()) <= LARGEST


def _smoothed_variance(difference, width):
    """The variance that is left after smoothing; white noise has the same at each width."""
    return float(cv2.GaussianBlur(difference, (0, 0), width).var() * width**2)


def _rest(first, second):
    """By how many pixels (down, right) the second smooth image is displaced, where that is little."""
    slopes = np.gradient((first + second) / 2)
    matrix = np.array([[float((a * b).mean()) for b in slopes] for a in slopes])
    change = first - second
    target = np.array([float((slope * (change - change.mean())).mean()) for slope in slopes])
    return np.linalg.lstsq(matrix, target, rcond=None)[0]
