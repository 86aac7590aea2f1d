"""How far a denoised image is to be trusted, where there is no clean one: what was removed, against the noise it had.

>>> level = level_of(analyse(noisy), 3)  # or known_level(parse_noise("gauss25"), 3)
>>> found = compare(noisy, denoised, level, probe)
>>> found.strength, found.shared, found.lost, found.structure

Images are H x W x C, float32 with 0..1 as display range. What needs the network itself is in `inference/estimate.py`.
"""

from dataclasses import dataclass, field

import cv2
import numpy as np

from denoising.imaging.noise import Gaussian, Poisson, PoissonGaussian
from denoising.imaging.noise_analysis import SHIFTS
from denoising.imaging.pixels import to_01

FINE, COARSE = 0.8, 2.5  # pixels: between these widths lies the band in which lost structure is looked for
AROUND = 16.0  # pixels: the width over which its energy is averaged, to be sure that it is no noise
NEAR = 3.0  # pixels: the same where it is known that there is structure, to see where
SURE = 1.5  # how many times the energy that was removed of drawn noise at the same place: what has more is structure
LEAST_ENERGY = 0.02  # of the noise: less is the rounding of 8 bits
STRIP = 512  # rows that are looked at together, so that a large image takes no more memory
DRAWN = 256  # pixels: the side of the noise that tells how much energy noise has
LEAST_SHARE = 0.05  # of the image: so much must be unclipped to be looked at alone
LITTLE = 0.1  # correlation of the channels' noise, up to which it counts as each channel's own
NOTICEABLE = 0.05  # the share of an image's structure from which on the words speak of a loss
COLOURS = ("red", "green", "blue")
OVERLAY, MOST_OPAQUE = (255, 45, 120), 0.8  # a colour that few images have; from half of the noise's strength on
PLACES = (
    ("in the upper left", "at the top", "in the upper right"),
    ("on the left", "in the middle", "on the right"),
    ("in the lower left", "at the bottom", "in the lower right"),
)


@dataclass(frozen=True)
class Level:
    """The noise that an image has.

    Attributes:
        kind: "gauss", "poisson" or "correlated".
        curve: for each channel (a, b): the variance in 0..1 is a * brightness + b.
        correlation: C x 7 x 7, of the noise with itself that many pixels away.
        between_channels: the mean correlation of two channels.
        known: whether somebody has named it; else it was measured.
    """

    kind: str
    curve: tuple
    correlation: np.ndarray
    between_channels: float = 0.0
    known: bool = False

    @property
    def is_own(self):
        """Whether each value has its noise by itself, and shares it with no pixel and no channel."""
        return self.kind != "correlated" and self.between_channels <= LITTLE

    def variance(self, image_01):
        """The variance of each value, in 0..1; linear in brightness, so that a noisy image gives the true mean."""
        a, b = np.array(self.curve, np.float32).T
        return image_01 * a + b

    def sigma_255(self, image_01):
        """The deviation over an image, on 0..255."""
        return 255 * float(np.sqrt(max(self.variance(image_01).mean(), 0)))

    def draw(self, image_01, rng):
        """Noise like this one for an image, float32."""
        deviation = np.sqrt(np.maximum(self.variance(np.clip(image_01, 0, 1)), 0))
        noise = rng.standard_normal(image_01.shape, dtype=np.float32)
        if not self.is_own:
            share = np.clip(self.between_channels, 0, 1)
            common = rng.standard_normal((*image_01.shape[:2], 1), dtype=np.float32)
            noise = np.float32(np.sqrt(share)) * common + np.float32(np.sqrt(1 - share)) * noise
        if self.kind == "correlated":
            for channel, kernel in enumerate(map(_kernel, self.correlation)):
                noise[..., channel] = cv2.filter2D(noise[..., channel], -1, kernel, borderType=cv2.BORDER_REFLECT_101)
        return noise * deviation


def _kernel(correlation):
    """The filter that gives white noise this correlation; its squares sum to 1."""
    period = 32
    whole = np.zeros((period, period))
    whole[: 2 * SHIFTS + 1, : 2 * SHIFTS + 1] = correlation
    spectrum = np.fft.fft2(np.roll(whole, (-SHIFTS, -SHIFTS), (0, 1))).real
    kernel = np.fft.fftshift(np.fft.ifft2(np.sqrt(np.maximum(spectrum, 0))).real)[1:, 1:]
    return (kernel / np.sqrt(np.square(kernel).sum())).astype(np.float32)


def unclipped(noisy, level):
    """Where neither black nor white cuts the noise off, H x W x C; None where that is everywhere.

    Files of whole numbers are cut off. What is compared is the noisy image, smoothed, so that it is the same places
    for each denoiser.
    """
    if noisy.dtype.kind != "u":
        return None
    smooth = cv2.GaussianBlur(to_01(noisy), (0, 0), 2.0).reshape(noisy.shape)
    reach = 2 * np.sqrt(np.maximum(level.variance(smooth), 0))
    where = (smooth > reach) & (smooth < 1 - reach)
    return where if where.mean() > LEAST_SHARE else None


def level_of(analysis, channels):
    """What `noise_analysis.analyse` has measured, or None where there is no noise that can be measured."""
    if analysis.kind == "none":
        return None
    curve, correlation = analysis.curve, analysis.correlation
    if len(curve) != channels:  # what looks like a mosaic has been measured in its four phases
        curve = (tuple(np.mean(curve, 0)),) * channels
        correlation = np.repeat(correlation.mean(0, keepdims=True), channels, 0)
    return Level(analysis.kind, curve, correlation, analysis.between_channels)


def known_level(noise, channels):
    """The level of a noise model of one strength, gauss25, poisson30 or poisson30+gauss5; None for others."""
    if noise.low != noise.high or not isinstance(noise, Gaussian | Poisson | PoissonGaussian):
        return None
    if isinstance(noise, PoissonGaussian):
        kind, line = "gauss", noise.line  # read-out noise hides the steps between the counts
    elif isinstance(noise, Gaussian):
        kind, line = "gauss", (0.0, (noise.low / 255) ** 2)
    else:
        kind, line = "poisson", (1 / noise.low, 0.0)
    white = np.zeros((channels, 2 * SHIFTS + 1, 2 * SHIFTS + 1))
    white[:, SHIFTS, SHIFTS] = 1
    return Level(kind, (line,) * channels, white, known=True)


@dataclass(frozen=True)
class Loss:
    """The structure that went with the noise.

    Attributes:
        lost: its share, 0..1, of the image's structure.
        structure: H x W, where it went: its deviation as a share of the noise's.
        looks: what the image looks like there, compared with elsewhere: "where it is dark and green", or nothing.
    """

    lost: float
    structure: np.ndarray = field(repr=False)
    looks: str

    def words(self):
        """How much structure was lost and where; None where none can be seen."""
        if self.lost < NOTICEABLE:
            return None
        lost = f"loses {100 * self.lost:.0f} % of the structure"
        share, place = float((self.structure > 0).mean()), worst_place(self.structure)
        if share > 0.6:
            return f"{lost}, everywhere"
        where = "all over it" if place == "everywhere" else place
        return f"{lost}, in {max(100 * share, 1):.0f} % of the image, {where}{self.looks and f', {self.looks}'}"


@dataclass(frozen=True)
class Comparison(Loss):
    """What a noisy image and its denoised one tell.

    Attributes:
        strength: the deviation of what was removed, as a share of the noise's.
        shared: the mean correlation of what was removed with the next pixel.
        expected: the same of the noise: 0 where it is white.
    """

    strength: float
    shared: float
    expected: float


def compare(noisy_01, denoised_01, level, probe, where=None):
    """Looks at what was removed, for its strength at the places of `unclipped` alone; `probe`: see `lost_structure`."""
    residual = noisy_01 - denoised_01
    variance = level.variance(np.clip(denoised_01, 0, 1))
    scaled = residual / np.sqrt(np.maximum(variance, 1e-8))
    strength = float(np.sqrt(mean(np.square(residual), where) / max(mean(variance, where), 1e-12)))
    expected = np.mean([level.correlation[:, SHIFTS, SHIFTS + 1], level.correlation[:, SHIFTS + 1, SHIFTS]])
    loss = lost_structure(noisy_01, denoised_01, level, probe)
    return Comparison(**vars(loss), strength=strength, shared=_neighbour(scaled), expected=float(expected))


def mean(values, where=None):
    """The mean of values, at some places or everywhere."""
    return float(values.mean(dtype=np.float64) if where is None else values[where].mean(dtype=np.float64))


def _neighbour(scaled):
    """The mean correlation with the next pixel, to the right and below."""
    scaled = scaled - scaled.mean((0, 1))
    energy = float(np.square(scaled).mean())
    if energy < 1e-8:
        return 0.0
    return float((scaled[:, 1:] * scaled[:, :-1]).mean() + (scaled[1:] * scaled[:-1]).mean()) / 2 / energy


def lost_structure(noisy, denoised, level, probe):
    """The structure that is in what was removed, as a Loss.

    What was removed is noise and lost structure. In a band of middle frequencies, and in the mean of the channels,
    structure stands out. How much energy noise alone would have is seen place by place in noise that is drawn, put into
    the image, and removed again: where there is texture a network leaves some of the noise.

    Args:
        noisy: H x W x C of any type.
        denoised: the same.
        level: the noise, not None.
        probe: called with some rows of both in 0..1, returns what would be removed there of noise that is drawn.
    """
    height, width, channels = noisy.shape
    flat = np.full((DRAWN, DRAWN, channels), 0.5, np.float32)
    unit = _energy(level.draw(flat, np.random.default_rng(0)) / _deviation(flat, level))
    usual = float(unit.mean())
    rare = float(np.percentile(_around(unit, NEAR), 99)) / usual
    structure, excess, of_image = np.zeros((height, width), np.float32), 0.0, 0.0
    reach = int(4 * (AROUND + COARSE)) + 2  # as far as the filters look
    for first in range(0, height, STRIP):
        start, stop = max(first - reach, 0), min(first + STRIP + reach, height)
        inside = slice(first - start, min(first + STRIP, height) - start)
        rows, clean = to_01(noisy[start:stop]), np.clip(to_01(denoised[start:stop]), 0, 1)
        deviation = _deviation(clean, level)
        energy = _energy((rows - clean) / deviation)
        found = _around(energy, AROUND)[inside]
        expected = _around(_energy(probe(rows, clean) / deviation), AROUND)[inside]
        sure = found > SURE * expected + LEAST_ENERGY * usual
        excess += float(np.where(sure, found - expected, 0).sum(dtype=np.float64))
        of_image += float(_around(_energy(clean / deviation), AROUND)[inside].sum(dtype=np.float64))
        near = _around(energy, NEAR)[inside]
        sharp = np.sqrt(np.maximum(near - expected, 0))
        structure[first : first + STRIP] = np.where(sure & (near > rare * expected), sharp, 0)
    # Beside the image's own structure stands what the noise would hide, so that a flat image has something to lose.
    pixels = height * width
    lost = float(np.sqrt(excess / pixels / max((excess + of_image) / pixels + usual, 1e-12)))
    return Loss(lost, structure, _looks(denoised, structure) if lost >= NOTICEABLE else "")


def _deviation(image_01, level):
    return np.sqrt(np.maximum(level.variance(image_01), 1e-8))


def _energy(image):
    """The energy of the mean of the channels between two widths, H x W."""
    grey = image.mean(axis=2)
    return np.square(cv2.GaussianBlur(grey, (0, 0), FINE) - cv2.GaussianBlur(grey, (0, 0), COARSE))


def _around(energy, width):
    return cv2.GaussianBlur(energy, (0, 0), width)


def _colour(mean):
    """The name of a colour that stands out, or None."""
    if len(mean) != 3:
        return None
    least, middle, most = np.sort(mean)
    return COLOURS[mean.argmax()] if most - middle > 0.5 * (middle - least) and most > 1.15 * middle else None


def _looks(denoised, structure):
    """Whether the image is darker, brighter or of another colour where structure was lost than it is on average."""
    every = 1 + max(structure.shape) // 1024  # so many pixels tell a colour
    denoised_01, weight = to_01(denoised[::every, ::every]), np.square(structure[::every, ::every, None])
    there = (weight * denoised_01).sum((0, 1), dtype=np.float64) / max(float(weight.sum(dtype=np.float64)), 1e-12)
    usual = denoised_01.mean((0, 1), dtype=np.float64)
    words = []
    if there.mean() < 0.7 * usual.mean():
        words.append("dark")
    elif 1 - there.mean() < 0.7 * (1 - usual.mean()):
        words.append("bright")
    colour = _colour(there)
    if colour and colour != _colour(usual):
        words.append(colour)
    return f"where it is {' and '.join(words)}" if words else ""


def error_of_pair(denoised_01, noisy_01, second_01):
    """The mean squared error that another frame of the scene tells: its noise is independent of the denoised image."""
    noise = np.square(noisy_01 - second_01).mean(dtype=np.float64) / 2
    return float(np.square(denoised_01 - second_01).mean(dtype=np.float64) - noise)


def worst_place(structure):
    """In words, which ninth of an image lost the most, or "everywhere"."""
    rows = np.array_split(np.square(structure), 3, axis=0)
    ninths = np.array([[part.mean() if part.size else 0 for part in np.array_split(row, 3, axis=1)] for row in rows])
    row, column = np.unravel_index(ninths.argmax(), ninths.shape)
    return "everywhere" if ninths.max() < 2 * ninths.mean() else f"most {PLACES[row][column]}"


def structure_picture(structure):
    """The map as a picture to lay over the image: H x W x 3 of one colour, and how opaque it is, H x W; both uint8."""
    opaque = (255 * MOST_OPAQUE * np.minimum(2 * structure, 1)).astype(np.uint8)
    return np.full((*structure.shape, 3), OVERLAY, np.uint8), opaque
