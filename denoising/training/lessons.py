"""What an image teaches about its own noise: pairs of patches to learn from, and what is judged by afterwards.

A single image teaches by its denoised version, to which noise as measured in it is added; two frames of a scene, or two
renders of a view, teach by each other.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from denoising.data import renders
from denoising.data.streams import CROP, NOISE, generator
from denoising.imaging import trust
from denoising.imaging.noise import parse_noise
from denoising.imaging.noise_analysis import Analysis, analyse
from denoising.imaging.pixels import from_01, middle, to_01
from denoising.imaging.second_look import SeenLevel, look_again
from denoising.training.methods import Method, Noise2Noise
from denoising.training.own_noise import counted
from denoising.training.watched import Watched, WatchedRenders

PATCH, LEAST_PATCH = 128, 64  # pixels, the side of the patches
SHRINK = 2  # how many times smaller the denoised image is taken
SMALLEST = 3 * LEAST_PATCH  # pixels: of a smaller image nothing is left to judge by
JUDGED = 256  # side of the middle that is left out and judged, at most; at most a third of the image's
LARGEST = 1024  # side of the part of an image that is learnt from
MOST = 8  # renders of a view that are learnt from


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


class Rendered:
    """A view that is adapted to, of which the renders' middles are kept, each a renders.Frame."""

    def __init__(self, first):
        self.frames, self._last = [], first
        self._keep(first)

    def takes(self, frame):
        """Takes another render in, if it shows the same under noise of its own; whether it did."""
        if min(frame.render.shape[:2]) < SMALLEST or not renders.same_view(self._last, frame):
            return False
        self._last = frame
        self._keep(frame)
        return True

    def _keep(self, frame):
        if len(self.frames) < MOST:
            self.frames.append(frame.part(middle(frame.render, LARGEST)))


def _middle(image, side):
    return np.ascontiguousarray(image[middle(image, side)])


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
        return _chw(noisy), _chw(clean)


class _Around:
    """What lies around the middle, which is left out, and judged by."""

    def __init__(self, height, width):
        self.sides = height, width
        judged = [min(side // 3, JUDGED) for side in self.sides]
        self.middle = tuple(slice((s - j) // 2, (s - j) // 2 + j) for s, j in zip(self.sides, judged, strict=True))
        self.size = min(PATCH, *self.sides, max(part.start for part in self.middle)) // 32 * 32

    def place(self, rng):
        """The rows and columns of a patch, drawn at random."""
        corners = self._corners()
        areas = np.array([(rows[1] - rows[0]) * (columns[1] - columns[0]) for rows, columns in corners], float)
        top, left = (int(rng.integers(*ends)) for ends in corners[rng.choice(len(corners), p=areas / areas.sum())])
        return np.s_[top : top + self.size, left : left + self.size]

    def _corners(self):
        """Where a patch may begin: ranges of rows and columns above, below, left and right of the middle."""
        (height, width), size = self.sides, self.size
        rows, columns = self.middle
        all_rows, all_columns = (0, height - size + 1), (0, width - size + 1)
        ranges = [
            ((0, rows.start - size + 1), all_columns),
            ((rows.stop, height - size + 1), all_columns),
            (all_rows, (0, columns.start - size + 1)),
            (all_rows, (columns.stop, width - size + 1)),
        ]
        return [pair for pair in ranges if all(low < high for low, high in pair)]


class Frames(_Around):
    """Learns from two frames of a scene.

    Args:
        first: H x W x C.
        second: the same, with noise of its own.
    """

    def __init__(self, first, second):
        super().__init__(*first.shape[:2])
        self.method, self.channels, self.images = Noise2Noise(), first.shape[2], [first, second]
        crops = [to_01(np.ascontiguousarray(image[self.middle])) for image in self.images]
        self.watched = Watched([(crops[0], None, crops[1], None)])

    def sample(self, seed, *place):
        """A patch from around the middle, and the same of the other frame."""
        rng = generator(seed, CROP, *place)
        where, flips = self.place(rng), _flips(rng)
        return tuple(_chw(to_01(image[where][flips])) for image in self.images)


class Renders(_Around):
    """Learns from renders of a view: the mean of some of them has that of the others for a target.

    Args:
        frames: renders.Frame, two or more, each with noise of its own.
    """

    def __init__(self, frames):
        super().__init__(*frames[0].render.shape[:2])
        self.method, self.channels, self.frames = Noise2Noise(loss="tone_mapped"), 3, frames
        self.watched = WatchedRenders([frame.part(self.middle) for frame in frames])

    def sample(self, seed, *place):
        """What the network gets of a patch from around the middle, and the light of the other renders."""
        rng = generator(seed, CROP, *place)
        where, flips = self.place(rng), _flips(rng)
        parts = [self.frames[i].part(where) for i in rng.permutation(len(self.frames))]
        count = rng.integers(1, len(parts))
        first, others = renders.mean(parts[:count]), renders.mean(parts[count:])
        relit = renders.relit(first.network_input(), others.render, rng)
        return tuple(_chw(part[flips]) for part in relit)


def _chw(patch):
    return np.ascontiguousarray(patch.transpose(2, 0, 1), np.float32)


def _flips(rng):
    return np.s_[:: rng.choice((-1, 1)), :: rng.choice((-1, 1))]


def lesson(subject, denoiser, side=LARGEST):
    """What an image teaches: Frames or a Renoised, of at most its middle, `side` pixels long; Renders of a Rendered."""
    if isinstance(subject, Rendered):
        return Renders(subject.frames)
    noisy = _middle(subject.noisy, max(side, SMALLEST))
    if subject.second is not None:
        return Frames(noisy, _middle(subject.second, max(side, SMALLEST)))
    noisy_01 = to_01(noisy)
    denoised_01 = np.clip(denoiser(noisy_01), 0, 1)
    level = look_again(noisy_01, denoised_01, trust.level_of(subject.analysis, noisy.shape[2]))
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
        of_network = network.n_channel

        def shown(images):
            if of_network == 1:
                return network(images.reshape([-1, 1, *images.shape[2:]])).reshape(images.shape)
            return network(images.expand([-1, of_network, -1, -1])).mean(axis=1, keepdim=True)

        return self.method(network if of_network == self.channels else shown, *tensors, ramp=ramp)
