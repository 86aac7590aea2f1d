"""Goes on training from given weights on the very images that are to be denoised, and keeps what is better.

    >>> subjects = [Subject.of(noisy)]  # H x W x C: uint8, uint16 or float32
    >>> result = adapt("models/gauss5_50.pdparams", subjects, ops, Length(minutes=0.5))
    >>> result.network, result.gain, result.describe()

Nothing clean is needed. A single image teaches by its own denoised version, to which noise as measured in it is added;
one with stripes by its neighbouring lines; several frames of a scene by each other. The weights before and after are
judged by the other frame where there is one, else by Stein's estimate. For that, noise is measured again in what the
first weights remove (`imaging/second_look.py`).
"""

import time
import types
from dataclasses import dataclass, replace

import cv2
import numpy as np
import paddle

from denoising import cli
from denoising.data.streams import CROP, NOISE, ORDER, generator
from denoising.imaging import stripes, trust
from denoising.imaging.noise import parse_noise
from denoising.imaging.noise_analysis import Analysis, analyse
from denoising.imaging.pixels import from_01, to_01
from denoising.imaging.second_look import look_again
from denoising.inference import checkpoint
from denoising.inference.denoiser import Denoiser
from denoising.training.methods import Method, Noise2Noise
from denoising.training.own_noise import counted
from denoising.training.state import Training
from denoising.training.stopping import StopRequest
from denoising.training.watched import Watched

RATE, WARM_UP, EMA = 3e-4, 5, 0.99  # of Adam, Muon's follows from it; found by short runs (docs/predicting.md)
REG_START = 0.4  # share of the training after which stripes are regularised: before, it slows down that they go
BATCH, PATCH, LEAST_PATCH = 2, 128, 64  # patches of a step, and their side in pixels
SHRINK = 2
SMALLEST = 3 * LEAST_PATCH  # pixels: of a smaller image nothing is left to judge by
JUDGED = 256  # side of the middle that is left out and judged, at most; at most a third of the image's
JUDGES = 8  # images that are judged
LARGEST, PIXELS = 1024, 1 << 20  # side of the part of an image that is learnt from; and pixels, of all images
LEFT = 0.03  # of the noise's variance is what a good denoiser errs by, at least
WORTH = 0.1  # dB: what is estimated to gain less is not kept, because the estimate may err by so much


# --- What is learnt from ------------------------------------------------------------------------------------


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


# --- The training -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Length:
    """How long is learnt: minutes, or so many steps, which can be repeated exactly."""

    minutes: float = 0.0
    steps: int = 0

    def progress(self, step, seconds):
        """0 at the start, 1 at the end."""
        return min(1.0, step / self.steps if self.steps else seconds / 60 / self.minutes)


@dataclass(frozen=True)
class Result:
    """What adapting has come to.

    Attributes:
        training: the weights after it; `network` is the one to use.
        kept: whether they are better.
        gain: in dB, estimated, the mean of the images that are judged.
        steps: that were made.
        images: that were learnt from.
    """

    training: Training
    kept: bool
    gain: float
    steps: int
    images: int

    @property
    def network(self):
        """The adapted network."""
        return self.training.averaged

    def describe(self):
        """One line, for people."""
        count = f"{self.images} image{'s' * (self.images != 1)}, {self.steps} steps"
        if self.kept:
            return f"{count}: {self.gain:+.2f} dB by an estimate without clean images"
        return f"{count}: the weights stay as they were (estimated {self.gain:+.2f} dB; {WORTH} is the least)"


def adapt(path, subjects, ops, length, seed=0):
    """Trains the weights of a file further on images, as long as `length` says or until Ctrl-C.

    Args:
        path: of the weights.
        subjects: at least one, none of them None.
        ops: how the network computes, of `devices.prepare`.
        length: a Length.
        seed: of all randomness.
    """
    before, _ = checkpoint.load_network(path)
    before.ops = ops
    side = int((PIXELS / len(subjects)) ** 0.5)
    lessons = [lesson(subject, Denoiser(before), side) for subject in subjects]
    training = _training(path, before, ops, seed)
    total, unit = (length.steps, "step") if length.steps else (round(60 * length.minutes), "s")
    start = time.perf_counter()
    with StopRequest() as stop, cli.progress(total=total, unit=unit, label="adapting") as bar:
        while (progress := length.progress(training.step, time.perf_counter() - start)) < 1 and not stop.signal:
            # Each round goes through all images, in an order of its own.
            turn, place = divmod(training.step, len(lessons))
            now = lessons[generator(seed, ORDER, turn).permutation(len(lessons))[place]]
            samples = [now.sample(seed, training.step, number) for number in range(BATCH)]
            batch = [np.stack(part) for part in zip(*samples, strict=True)]
            rate = RATE * min(1.0, (training.step + 1) / WARM_UP) * 0.5 * (1 + np.cos(np.pi * progress))
            training.train_on(Seen(now.method, now.channels), batch, rate, now.ramp(progress))
            done = training.step if length.steps else time.perf_counter() - start
            bar.update(min(int(done), total) - bar.n)
    judges = [lessons[i].watched for i in sorted(set(np.linspace(0, len(lessons) - 1, JUDGES).astype(int)))]
    gains = [_gain(watched, before, training.averaged) for watched in judges]
    kept = np.mean(gains) >= WORTH and min(gains) > -WORTH  # none is to pay for the others
    return Result(training, bool(kept), float(np.mean(gains)), training.step, len(subjects))


def _training(path, network, ops, seed):
    options = types.SimpleNamespace(
        seed=seed, to_static=False, ema=EMA, optimizer="muon", lr=RATE, clip_grad=0.0, amp=False,
        n_channel=network.options["n_channel"],
    )  # fmt: skip
    training = Training(options, ops, structure=network.options)
    training.start_from(path)
    return training


def _gain(watched, before, after):
    """How many dB less the error of the second network is by an estimate; minus infinity if it has diverged."""
    another, before = watched.score(Denoiser(before))
    try:
        _, after = watched.score(Denoiser(after))
    except ValueError:  # its results are no longer numbers
        return -np.inf
    # Of strong noise so little is left that the level, which is known to some per cent, makes the estimate of either
    # error wrong, though hardly that of their difference: an error counts as no less than a usual share of the noise.
    usual = max(before, LEFT * (another - before))
    return float(-10 * np.log10(max(1 - (before - after) / usual, 0.01)))
