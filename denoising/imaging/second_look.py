"""The noise of an image once more, with the help of its denoised version: what a first look at flat places missed.

Flat places may all be dark, and noise that grows faster than brightness, as speckle does, is then taken for weak. What
a denoiser has removed shows the noise at each brightness.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from denoising.imaging.pixels import from_01, seen_in, to_01
from denoising.imaging.trust import Level

RANGES = 8  # of brightness
DIFFER = 1.3  # times: if the variance that was removed differs less from the first look's, either may err by as much
SEEN = 0.93  # of the noise's variance is in what a good denoiser removes; it follows the rest
MEDIAN = 0.455  # of a squared normal number
GRID = 4  # pixels: of each such square, four are looked at for the noise of the whole image
AROUND = 7  # pixels: the side of the squares in which what was removed is compared with it
MORE = 1.25**2  # times the noise's variance is in what was removed of noise alone, at most, by chance
STRIP = 256  # rows that are computed at a time: the memory is that of so many, however large the image


@dataclass(frozen=True)
class SeenLevel(Level):
    """Noise as strong as what was removed shows at each brightness.

    Attributes:
        removed: for each channel (c, a, b): the variance is c * brightness**2 + a * brightness + b.
    """

    removed: tuple = ()

    def variance(self, image_01):
        c, a, b = np.array(self.removed, np.float32).T
        # The noise itself is in the square of a noisy image, by its variance on average.
        c = c / (1 + c)
        return (c * image_01 + a) * image_01 + b


def look_again(noisy_01, denoised_01, level):
    """The level of an image, H x W x C, that the first look took for `level`: the same, unless it differs much."""
    removed = tuple(map(_curve, *(image.transpose(2, 0, 1) for image in (noisy_01 - denoised_01, denoised_01))))
    seen = SeenLevel(level.kind, level.curve, level.correlation, level.between_channels, level.known, removed)
    times = seen.variance(denoised_01).mean() / max(level.variance(denoised_01).mean(), 1e-12)
    # Less is removed than was measured where texture was taken for noise. Noise that neighbours share has less of the
    # finest detail than of others: this says nothing then.
    less = times < 1 / DIFFER and level.kind != "correlated"
    return seen if times > DIFFER or less else level


def no_more_than_noise(noisy, denoised, span):
    """The denoised image, with what was removed beyond the noise given back around where it was.

    A network that knows stronger noise alone, or darker images, takes small lights and fine texture for noise. These
    are rare at each brightness, or have little of the finest diagonal detail, by whose median the noise is told.

    Args:
        noisy: H x W x C, uint8, uint16 or float32.
        denoised: the same of what was made of it.
        span: of the Denoiser.
    """
    height, width, _ = noisy.shape
    thinned = np.ix_(*(np.flatnonzero(np.arange(side // GRID * GRID) % GRID < 2) for side in (height, width)))
    before, after = (to_01(seen_in(span, image[thinned])).transpose(2, 0, 1) for image in (noisy, denoised))
    curves = list(map(_medians, before - after, after))
    result = np.empty_like(denoised)
    for first in range(0, height, STRIP):
        rows, start = slice(first, first + STRIP), max(first - AROUND, 0)
        around = slice(start, first + STRIP + AROUND)
        before, after = (to_01(seen_in(span, image[around])) for image in (noisy, denoised))
        variance = np.stack([_at(after[..., c], *curve) for c, curve in enumerate(curves)], axis=2)
        excess = np.square(before - after) / np.maximum(MORE * variance, 1e-12)
        excess = cv2.blur(excess, (AROUND, AROUND)).reshape(excess.shape)[first - start :][:STRIP]
        before, after = to_01(noisy[rows]), to_01(denoised[rows])
        result[rows] = from_01(before + (after - before) / np.maximum(excess, 1), denoised.dtype)
    return result


def _medians(removed, denoised):
    """The brightness of the ranges of H x W, and the noise's variance there, whatever is removed in a few places."""
    energy, brightness = np.square(_diagonal(removed)).ravel(), _mean_of_four(denoised).ravel()
    parts = np.array_split(np.argsort(brightness), RANGES)
    variances = [np.median(energy[part]) / (MEDIAN * SEEN) for part in parts]
    return [brightness[part].mean() for part in parts], variances


def _at(brightness, levels, variances):
    """The noise's variance at each brightness; beyond the brightest range it grows on as over all ranges."""
    slope = (variances[-1] - variances[0]) / max(levels[-1] - levels[0], 1e-12)
    beyond = np.maximum(brightness - levels[-1], 0)
    return np.interp(brightness, levels, variances) + max(slope, 0) * beyond


def _curve(removed, denoised):
    """(c, a, b), none of them negative, of the variance of H x W over its brightness."""
    energy, brightness = np.square(_diagonal(removed)), _mean_of_four(denoised)
    order = np.argsort(brightness, axis=None)
    parts = np.array_split(order, RANGES)
    x, variance = (np.array([values.reshape(-1)[part].mean() for part in parts]) for values in (brightness, energy))
    fits = [np.zeros(3)]
    for used in ((0,), (1,), (2,), (0, 2), (1, 2), (0, 1), (0, 1, 2)):
        weight = 1 / np.maximum(variance, 1e-10)
        design = np.stack([x ** (2 - power) for power in used], 1) * weight[:, None]
        found = np.linalg.lstsq(design, np.ones(len(x)), rcond=None)[0]
        if (found >= 0).all():
            fits.append(np.zeros(3))
            fits[-1][list(used)] = found
    best = min(fits, key=lambda fit: np.square((fit[0] * x + fit[1]) * x + fit[2] - variance).sum())
    return tuple(float(value) / SEEN for value in best)


def _diagonal(image):
    """The finest diagonal detail, in which there is hardly any structure; white noise keeps its variance."""
    a, b, c, d = _quarters(image)
    return (a - b - c + d) / 2


def _mean_of_four(image):
    return sum(_quarters(image)) / 4


def _quarters(image):
    height, width = (side // 2 * 2 for side in image.shape)
    return [image[i:height:2, j:width:2] for i in (0, 1) for j in (0, 1)]
