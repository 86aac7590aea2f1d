"""Goes on training from given weights on the very images that are to be denoised, and keeps what is better.

    >>> subjects = [Subject.of(noisy)]  # H x W x C: uint8, uint16 or float32
    >>> result = adapt("models/gauss5_50.pdparams", subjects, ops, Length(minutes=0.5))
    >>> result.network, result.gain, result.describe()

Nothing clean is needed. An image's middle is left out of the training, and by it the weights before and after are
judged: by another frame of the scene where there is one, else by Stein's estimate with the noise as it shows in what
the first weights remove.
"""

import time
import types
from dataclasses import dataclass, replace

import numpy as np
import paddle

from denoising import cli
from denoising.data.streams import CROP, generator, streams
from denoising.imaging import stripes, trust
from denoising.imaging.noise_analysis import Analysis, analyse
from denoising.imaging.pixels import to_01
from denoising.imaging.second_look import look_again
from denoising.inference import checkpoint
from denoising.inference.denoiser import Denoiser
from denoising.training.methods import Method, Neighbor2Neighbor, Noise2Noise
from denoising.training.state import Training
from denoising.training.stopping import StopRequest
from denoising.training.watched import Watched

RATE, WARM_UP, EMA = 3e-4, 5, 0.99  # of Adam, Muon's follows from it; found by short runs (docs/predicting.md)
REG_START = 0.4  # share of the training after which stripes are regularised: before, it slows down that they go
BATCH, PATCH, LEAST_PATCH = 2, 128, 64  # patches of a step, and their side in pixels
SMALLEST = 3 * LEAST_PATCH  # pixels: of a smaller image nothing is left to judge by
JUDGED = 256  # side of the middle that is judged, at most; at most a third of the image's
JUDGES = 8  # images that are judged
LOOKED_AT = 512  # side of the part by which its noise is known
LARGEST = 1024  # side of the part of an image that is learnt from
LEFT = 0.03  # of the noise's variance is what a good denoiser errs by, at least
WORTH = 0.1  # dB: what is estimated to gain less is not kept, because the estimate may err by so much


# --- What is learnt from ------------------------------------------------------------------------------------


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


@dataclass(frozen=True)
class Subject:
    """An image that is adapted to.

    Attributes:
        noisy: H x W x C.
        second: another frame of the scene in the same place, or None.
        analysis: of its noise.
        method: that learns from it.
    """

    noisy: np.ndarray
    second: np.ndarray | None
    analysis: Analysis
    method: Method

    @classmethod
    def of(cls, noisy, second=None, analysis=None):
        """A subject, or None: it is too small, it has no noise, or its neighbours share the noise.

        From neighbours that share noise only another frame of the scene tells what is noise.
        """
        if min(noisy.shape[:2]) < SMALLEST:
            return None
        analysis = analysis or analyse(noisy)
        noisy, second = _middle(noisy, LARGEST), None if second is None else _middle(second, LARGEST)
        axes = [axis for axis, found in zip((2, 3), stripes.deviations(to_01(noisy)), strict=True) if found]
        if analysis.kind in ("none", "correlated") and not axes and second is None:
            return None
        method = (
            Noise2Noise()
            if second is not None
            else LineNeighbours(axes)
            if axes
            else Neighbor2Neighbor(increase_ratio=1.0)
        )
        return cls(noisy, second, analysis, method)

    @property
    def judged(self):
        """The middle, which is not learnt from: two slices."""
        sides = [min(side // 3, JUDGED) for side in self.noisy.shape[:2]]
        return tuple(slice((s - j) // 2, (s - j) // 2 + j) for s, j in zip(self.noisy.shape[:2], sides, strict=True))

    def ramp(self, progress):
        """The weight of the regulariser."""
        return float(progress >= REG_START or not isinstance(self.method, LineNeighbours))

    def batch(self, seed, step):
        """Patches from around the middle: N x C x P x P, and what the method needs beside them."""
        samples = [self._sample(seed, step, number) for number in range(BATCH)]
        return tuple(np.stack(part) for part in zip(*samples, strict=True))

    def _sample(self, seed, *place):
        rng = generator(seed, CROP, *place)
        corners = self._corners()
        top, left = (int(rng.integers(*ends)) for ends in corners[rng.choice(len(corners), p=_shares(corners))])
        flips = np.s_[:: rng.choice((-1, 1)), :: rng.choice((-1, 1))]
        patches = []
        for image in (self.noisy, self.second)[: 1 if self.second is None else 2]:
            patch = image[top : top + self.patch, left : left + self.patch][flips]
            patches.append(np.ascontiguousarray(to_01(patch).transpose(2, 0, 1)))
        return (*patches, *self.method.beside(patches[0], streams(seed, *place)))

    @property
    def patch(self):
        """The side of the patches."""
        widest = max(start for start in (part.start for part in self.judged))
        return min(PATCH, widest, *self.noisy.shape[:2]) // 32 * 32

    def _corners(self):
        """Where a patch may begin: ranges of rows and columns above, below, left and right of the middle."""
        (height, width), size = self.noisy.shape[:2], self.patch
        rows, columns = self.judged
        all_rows, all_columns = (0, height - size + 1), (0, width - size + 1)
        ranges = [
            ((0, rows.start - size + 1), all_columns),
            ((rows.stop, height - size + 1), all_columns),
            (all_rows, (0, columns.start - size + 1)),
            (all_rows, (columns.stop, width - size + 1)),
        ]
        return [pair for pair in ranges if all(low < high for low, high in pair)]


def _method(second, axes):
    """What learns from an image: from its other frame, around its stripes, or from its pixels' neighbours."""
    if second is not None:
        return Noise2Noise()
    return LineNeighbours(axes) if axes else Neighbor2Neighbor(increase_ratio=1.0)


def _shares(corners):
    areas = np.array([(rows[1] - rows[0]) * (columns[1] - columns[0]) for rows, columns in corners], float)
    return areas / areas.sum()


def _middle(image, side):
    top, left = (max(0, (length - side) // 2) for length in image.shape[:2])
    return np.ascontiguousarray(image[top : top + side, left : left + side])


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
        gain: in dB, estimated.
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
    before, options = checkpoint.load_network(path)
    before.ops = ops
    watched = _watched(subjects, Denoiser(before))
    training = _training(path, before, ops, seed)
    methods = [Seen(subject.method, subject.noisy.shape[2]) for subject in subjects]
    total, unit = (length.steps, "step") if length.steps else (round(60 * length.minutes), "s")
    start = time.perf_counter()
    with StopRequest() as stop, cli.progress(total=total, unit=unit, label="adapting") as bar:
        while (progress := length.progress(training.step, time.perf_counter() - start)) < 1 and not stop.signal:
            # Each round goes through all images, in an order of its own.
            turn, place = divmod(training.step, len(subjects))
            chosen = generator(seed, CROP, turn).permutation(len(subjects))[place]
            rate = RATE * min(1.0, (training.step + 1) / WARM_UP) * 0.5 * (1 + np.cos(np.pi * progress))
            batch, ramp = subjects[chosen].batch(seed, training.step), subjects[chosen].ramp(progress)
            training.train_on(methods[chosen], batch, rate, ramp)
            done = training.step if length.steps else time.perf_counter() - start
            bar.update(min(int(done), total) - bar.n)
    gain = _gain(watched, before, training.averaged)
    return Result(training, gain >= WORTH, gain, training.step, len(subjects))


def _training(path, network, ops, seed):
    options = types.SimpleNamespace(
        seed=seed, to_static=False, ema=EMA, optimizer="muon", lr=RATE, clip_grad=0.0, amp=False,
        n_channel=network.options["n_channel"],
    )  # fmt: skip
    training = Training(options, ops, structure=network.options)
    training.start_from(path)
    return training


def _watched(subjects, denoiser):
    """The middles of some images, by which weights are judged."""
    crops = []
    for index in sorted(set(np.linspace(0, len(subjects) - 1, JUDGES).astype(int))):
        subject = subjects[index]
        crop = np.ascontiguousarray(subject.noisy[subject.judged])
        if subject.second is not None:
            crops.append((to_01(crop), None, to_01(subject.second[subject.judged]), None))
            continue
        # An image that has stripes alone is as one of white noise whose strength is 0.
        kind = subject.analysis.kind.replace("none", "gauss")
        noisy_01 = to_01(_middle(subject.noisy, LOOKED_AT))
        level = trust.level_of(replace(subject.analysis, kind=kind))
        level = look_again(noisy_01, np.clip(denoiser(noisy_01), 0, 1), level)
        crops.append((to_01(crop), level, None, trust.unclipped(crop, level)))
    return Watched(crops)


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
