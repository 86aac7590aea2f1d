"""What an image teaches about its own noise: pairs of patches to learn from, and what is judged by afterwards.

A single image teaches by its denoised version, to which noise as measured in it is added; two frames of a scene teach
by each other.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from denoising.data.streams import CROP, NOISE, generator
from denoising.imaging import trust
from denoising.imaging.noise import parse_noise
from denoising.imaging.noise_analysis import Analysis, analyse
from denoising.imaging.pixels import from_01, to_01
from denoising.imaging.second_look import SeenLevel, look_again
from denoising.training.methods import Method, Noise2Noise
from denoising.training.own_noise import counted
from denoising.training.watched import Watched

PATCH, LEAST_PATCH = 128, 64  # pixels, the side of the patches
SHRINK = 2  # how many times smaller the denoised image is taken
SMALLEST = 3 * LEAST_PATCH  # pixels: of a smaller image nothing is left to judge by
JUDGED = 256  # side of the middle that is left out and judged, at most; at most a third of the image's
LARGEST = 1024  # side of the part of an image that is learnt from


@dataclass(frozen=True)
class Subject:
    """An image that is adapted to.

    Attributes:
        noisy: H x W x C.
        second: another frame of the scene in the same place, or None.
        analysis: of its noise.
    """

    noisy: np.ndarray
    second: np.ndarray | None
    analysis: Analysis

    @classmethod
    def of(cls, noisy, second=None, analysis=None):
        """A subject, or None: it is too small, it has no noise, or its neighbours share the noise.

        From neighbours that share noise only another frame of the scene tells what is noise.
        """
        if min(noisy.shape[:2]) < SMALLEST:
            return None
        analysis = analysis or analyse(noisy)
        noisy, second = _middle(noisy, LARGEST), None if second is None else _middle(second, LARGEST)
        white = analysis.kind not in ("none", "correlated")
        return cls(noisy, second, analysis) if white or second is not None else None


def _middle(image, side):
    top, left = (max(0, (length - side) // 2) for length in image.shape[:2])
    return np.ascontiguousarray(image[top : top + side, left : left + side])


class Renoised:
    """Learns from the denoised image, to which noise of the same kind is added: what it was is then known.

    The denoised image is taken half as large: what was blurred is sharp again, and what noise was left is averaged.

    Args:
        noisy: H x W x C.
        denoised_01: what the first weights make of it.
        level: its noise.
        photons: the noise model, where single ones are seen in the image; else None.
    """

    def __init__(self, noisy, denoised_01, level, photons=None):
        self.method, self.channels, self.dtype = Noise2Noise(), noisy.shape[2], noisy.dtype
        height, width = (side // SHRINK for side in noisy.shape[:2])
        small = cv2.resize(denoised_01, (width, height), interpolation=cv2.INTER_AREA)
        self.clean, self.size = small.reshape(height, width, -1), min(PATCH, height, width) // 32 * 32
        self.level, self.photons = level, photons
        self.watched = Watched([(to_01(noisy), level, None, trust.unclipped(noisy, level))])

    def sample(self, seed, *place):
        """A noisy patch and the clean one."""
        rng, (height, width) = generator(seed, CROP, *place), self.clean.shape[:2]
        top, left = rng.integers(0, height - self.size + 1), rng.integers(0, width - self.size + 1)
        clean = self.clean[top : top + self.size, left : left + self.size][_flips(rng)]
        rng = generator(seed, NOISE, *place)
        noisy = self.photons.add(clean, rng) if self.photons else clean + self.level.draw(clean, rng)
        noisy = to_01(from_01(noisy, self.dtype))  # rounded and cut off as in the file
        return tuple(np.ascontiguousarray(patch.transpose(2, 0, 1), np.float32) for patch in (noisy, clean))


class Frames:
    """Learns from two frames of a scene; the middle is left out, and judged by.

    Args:
        first: H x W x C.
        second: the same, with noise of its own.
    """

    def __init__(self, first, second):
        self.method, self.channels, self.images = Noise2Noise(), first.shape[2], [first, second]
        sides = first.shape[:2]
        judged = [min(side // 3, JUDGED) for side in sides]
        self.middle = tuple(slice((s - j) // 2, (s - j) // 2 + j) for s, j in zip(sides, judged, strict=True))
        self.size = min(PATCH, *sides, max(part.start for part in self.middle)) // 32 * 32
        crops = [to_01(np.ascontiguousarray(image[self.middle])) for image in self.images]
        self.watched = Watched([(crops[0], None, crops[1], None)])

    def sample(self, seed, *place):
        """A patch from around the middle, and the same of the other frame."""
        rng = generator(seed, CROP, *place)
        corners = self._corners()
        areas = np.array([(rows[1] - rows[0]) * (columns[1] - columns[0]) for rows, columns in corners], float)
        top, left = (int(rng.integers(*ends)) for ends in corners[rng.choice(len(corners), p=areas / areas.sum())])
        flips = _flips(rng)
        patches = [to_01(image[top : top + self.size, left : left + self.size][flips]) for image in self.images]
        return tuple(np.ascontiguousarray(patch.transpose(2, 0, 1)) for patch in patches)

    def _corners(self):
        """Where a patch may begin: ranges of rows and columns above, below, left and right of the middle."""
        (height, width), size = self.images[0].shape[:2], self.size
        rows, columns = self.middle
        all_rows, all_columns = (0, height - size + 1), (0, width - size + 1)
        ranges = [
            ((0, rows.start - size + 1), all_columns),
            ((rows.stop, height - size + 1), all_columns),
            (all_rows, (0, columns.start - size + 1)),
            (all_rows, (columns.stop, width - size + 1)),
        ]
        return [pair for pair in ranges if all(low < high for low, high in pair)]


def _flips(rng):
    return np.s_[:: rng.choice((-1, 1)), :: rng.choice((-1, 1))]


def lesson(subject, denoiser, side=LARGEST):
    """What an image teaches: Frames or a Renoised, of at most its middle, `side` pixels long."""
    noisy = _middle(subject.noisy, max(side, SMALLEST))
    if subject.second is not None:
        return Frames(noisy, _middle(subject.second, max(side, SMALLEST)))
    noisy_01 = to_01(noisy)
    denoised_01 = np.clip(denoiser(noisy_01), 0, 1)
    level = look_again(noisy_01, denoised_01, trust.level_of(subject.analysis))
    step = 1 / np.iinfo(noisy.dtype).max if noisy.dtype.kind == "u" else 0.0
    peak = 0 if isinstance(level, SeenLevel) else subject.analysis.peak
    photons = counted(peak, step, noisy_01[::5, ::7]) if peak else None
    if photons is None:
        return Renoised(noisy, denoised_01, level)
    noise = parse_noise(f"poisson{photons:.3f}")
    return Renoised(noisy, denoised_01, trust.known_level(noise, noisy.shape[2]), noise)


class Seen(Method):
    """A method for images of other channels than the network's, which sees them as a Denoiser shows them to it."""

    def __init__(self, method, channels):
        self.method, self.channels = method, channels

    def __call__(self, network, *tensors, ramp):
        of_network = network.options["n_channel"]

        def shown(images):
            if of_network == self.channels:
                return network(images)
            if of_network == 1:
                return network(images.reshape([-1, 1, *images.shape[2:]])).reshape(images.shape)
            return network(images.expand([-1, of_network, -1, -1])).mean(axis=1, keepdim=True)

        return self.method(shown, *tensors, ramp=ramp)
