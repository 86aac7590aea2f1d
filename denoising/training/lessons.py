"""What an image teaches about its own noise: pairs of patches to learn from, and what is judged by afterwards.

A single image teaches by its denoised version, to which noise as measured in it is added; one with stripes by its
neighbouring lines; two frames of a scene by each other.
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np
import paddle

from denoising.data.streams import CROP, NOISE, generator
from denoising.imaging import stripes, trust
from denoising.imaging.noise import parse_noise
from denoising.imaging.noise_analysis import Analysis, analyse
from denoising.imaging.pixels import from_01, to_01
from denoising.imaging.second_look import look_again
from denoising.training.methods import Method, Noise2Noise
from denoising.training.own_noise import counted
from denoising.training.watched import Watched

REG_START = 0.4  # share of the training after which stripes are regularised: before, it slows down that they go
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
        return cls(noisy, second, analysis) if white or second is not None or any(_stripes(noisy)) else None


def _middle(image, side):
    top, left = (max(0, (length - side) // 2) for length in image.shape[:2])
    return np.ascontiguousarray(image[top : top + side, left : left + side])


def _stripes(noisy):
    return stripes.deviations(to_01(noisy))


class Renoised:
    """Learns from the denoised image, to which noise of the same kind is added: what it was is then known.

    The denoised image is taken half as large: what was blurred is sharp again, and what noise was left is averaged.

    Args:
        noisy: H x W x C.
        denoised_01: what the first weights make of it.
        level: its noise.
        photons: at white, where single ones are seen in the image; else None.
    """

    def __init__(self, noisy, denoised_01, level, photons=None):
        self.method, self.channels, self.dtype = Noise2Noise(), noisy.shape[2], noisy.dtype
        height, width = (side // SHRINK for side in noisy.shape[:2])
        small = cv2.resize(denoised_01, (width, height), interpolation=cv2.INTER_AREA)
        self.clean, self.size = small.reshape(height, width, -1), min(PATCH, height, width) // 32 * 32
        self.level, self.photons = level, parse_noise(f"poisson{photons:.3f}") if photons else None
        self.watched = Watched([(to_01(noisy), level, None, trust.unclipped(noisy, level))])

    def ramp(self, progress):
        """The weight of the regulariser: there is none."""
        return 0.0

    def sample(self, seed, *place):
        """A noisy patch and the clean one."""
        rng, (height, width) = generator(seed, CROP, *place), self.clean.shape[:2]
        top, left = rng.integers(0, height - self.size + 1), rng.integers(0, width - self.size + 1)
        clean = self.clean[top : top + self.size, left : left + self.size][_flips(rng)]
        rng = generator(seed, NOISE, *place)
        noisy = self.photons.add(clean, rng) if self.photons else clean + self.level.draw(clean, rng)
        noisy = to_01(from_01(noisy, self.dtype))  # rounded and cut off as in the file
        return tuple(np.ascontiguousarray(patch.transpose(2, 0, 1), np.float32) for patch in (noisy, clean))


class FromItself:
    """Learns from the noisy image itself: from its other frame, or from neighbouring lines where there are stripes.

    The middle is left out, and judged by.
    """

    def __init__(self, noisy, second=None, level=None):
        self.images, self.channels = [noisy] if second is None else [noisy, second], noisy.shape[2]
        sides = noisy.shape[:2]
        judged = [min(side // 3, JUDGED) for side in sides]
        self.middle = tuple(slice((s - j) // 2, (s - j) // 2 + j) for s, j in zip(sides, judged, strict=True))
        self.size = min(PATCH, *sides, max(part.start for part in self.middle)) // 32 * 32
        crops = [np.ascontiguousarray(image[self.middle]) for image in self.images]
        if second is None:
            axes = [axis for axis, strength in ((2, level.rows), (3, level.columns)) if strength]
            self.method = LineNeighbours(axes)
            self.watched = Watched([(to_01(crops[0]), level, None, trust.unclipped(crops[0], level))])
        else:
            self.method = Noise2Noise()
            self.watched = Watched([(to_01(crops[0]), None, to_01(crops[1]), None)])

    def ramp(self, progress):
        """The weight of the regulariser."""
        return float(progress >= REG_START)

    def sample(self, seed, *place):
        """A patch from around the middle, and the same of the other frame, if there is one."""
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
    """What an image teaches: a Renoised or FromItself, of at most its middle, `side` pixels long."""
    noisy = _middle(subject.noisy, max(side, SMALLEST))
    if subject.second is not None:
        return FromItself(noisy, _middle(subject.second, max(side, SMALLEST)))
    # An image that has stripes alone is as one of white noise whose strength is 0.
    analysis = replace(subject.analysis, kind=subject.analysis.kind.replace("none", "gauss"))
    noisy_01 = to_01(noisy)
    denoised_01 = np.clip(denoiser(noisy_01), 0, 1)
    level = look_again(noisy_01, denoised_01, trust.level_of(analysis))
    if level.rows or level.columns:
        return FromItself(noisy, level=level)
    step = 1 / np.iinfo(noisy.dtype).max if noisy.dtype.kind == "u" else 0.0
    photons = level.kind == "poisson" and not level.removed and counted(analysis.peak, step, noisy_01[::5, ::7])
    return Renoised(noisy, denoised_01, level, photons or None)


class LineNeighbours(Method):
    """Neighbor2Neighbor where whole rows or columns share noise: the sub-images take turns line by line.

    Args:
        axes: of N x C x H x W, along which lines are told apart: 2 for stripes along rows, 3 for those along columns.
    """

    def __init__(self, axes):
        self.axes = axes

    def __call__(self, network, noisy, ramp=0.0):
        halves = self.halves(noisy)
        diff = network(halves) - halves.flip(0)
        loss = paddle.mean(diff**2)
        with paddle.no_grad():  # what the two sub-images differ by without noise
            denoised = self.halves(network(noisy))
        loss_reg = ramp * paddle.mean((diff - (denoised - denoised.flip(0))) ** 2)
        return loss + loss_reg, loss, loss_reg, ramp

    def halves(self, image):
        """Both sub-images, one after the other in the batch, so that `flip(0)` puts each at the other's place."""
        even = odd = image
        for axis in self.axes:
            even, odd = _every_other(even, axis, 0), _every_other(odd, axis, 1)
        return paddle.concat([even, odd.flip(0)])


def _every_other(image, axis, first):
    return paddle.strided_slice(image, [axis], [first], [image.shape[axis]], [2])


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
