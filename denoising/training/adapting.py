"""Goes on training from given weights on the very images that are to be denoised, and keeps what is better.

    >>> subjects = [Subject.of(noisy)]  # H x W x C: uint8, uint16 or float32
    >>> result = adapt("models/gauss5_50.pdparams", subjects, ops, Length(minutes=0.5))
    >>> result.network, result.gain, result.describe()

Nothing clean is needed. What an image teaches is in `lessons.py`. The weights before and after are judged by the other
frame of the scene where there is one, else by Stein's estimate.
"""

import signal
import time
import types
from dataclasses import dataclass

import numpy as np

from denoising import cli
from denoising.data import renders
from denoising.data.samples import evenly
from denoising.data.streams import ORDER, generator
from denoising.inference import checkpoint
from denoising.inference.denoiser import Denoiser
from denoising.training.lessons import Seen, lesson
from denoising.training.state import Training
from denoising.training.stopping import StopRequest

RATE, WARM_UP, EMA = 3e-4, 5, 0.99  # of Adam, Muon's follows from it; found by short runs (docs/predicting.md)
RATE_OF_RENDERS = 1e-4  # at three times of which two scenes were learnt by heart at once
BATCH = 2  # patches of a step
PIXELS = 1 << 20  # that are learnt from, of all images
JUDGES = 8  # images that are judged
LOOKS = 5  # times a training on renders is judged, which learn each other's noise by heart after a while
LEFT = 0.03  # of the noise's variance is what a good denoiser errs by, at least
WORTH = 0.1  # dB: what is estimated to gain less is not kept, because the estimate may err by so much


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
        subjects: at least one Subject, or Rendered, none of them None.
        ops: how the network computes, of `devices.prepare`.
        length: a Length.
        seed: of all randomness.
    """
    before, _ = checkpoint.load_network(path)
    before.ops = ops
    side = int((PIXELS / len(subjects)) ** 0.5)
    lessons = [lesson(subject, Denoiser(before), side) for subject in subjects]
    training = _training(path, before, ops, seed)
    judges = [lessons[i].watched for i in evenly(len(lessons), JUDGES)]
    best = _Best(training, before, judges)
    looks, highest = (LOOKS, RATE_OF_RENDERS) if _of_renders(before) else (1, RATE)
    total, unit = (length.steps, "step") if length.steps else (round(60 * length.minutes), "s")
    start = time.perf_counter()
    with StopRequest() as stop, cli.progress(total=total, unit=unit, label="adapting") as bar:
        while (progress := length.progress(training.step, time.perf_counter() - start)) < 1 and not stop.signal:
            # Each round goes through all images, in an order of its own.
            turn, place = divmod(training.step, len(lessons))
            now = lessons[generator(seed, ORDER, turn).permutation(len(lessons))[place]]
            samples = [now.sample(seed, training.step, number) for number in range(BATCH)]
            batch = [np.stack(part) for part in zip(*samples, strict=True)]
            rate = highest * min(1.0, (training.step + 1) / WARM_UP) * 0.5 * (1 + np.cos(np.pi * progress))
            training.train_on(Seen(now.method, now.channels), batch, rate, ramp=0.0)
            if progress * looks >= best.looked + 1:
                best.look()
            done = training.step if length.steps else time.perf_counter() - start
            bar.update(min(int(done), total) - bar.n)
    if stop.signal == signal.SIGTERM:
        raise SystemExit(143)  # a polite kill is no wish to go on
    best.look()
    training.averaged.set_state_dict(best.weights)
    kept = np.mean(best.gains) >= WORTH and min(best.gains) > -WORTH  # none is to pay for the others
    return Result(training, bool(kept), float(np.mean(best.gains)), training.step, len(subjects))


class _Best:
    """The best averaged weights that have been looked at, by the mean gain of the images that judge."""

    def __init__(self, training, before, judges):
        self._training, self._before, self._judges = training, before, judges
        self.looked, self.gains, self.weights = 0, [-np.inf], None

    def look(self):
        """Judges the weights as they are now."""
        after = self._training.averaged
        gains = [_gain(watched, self._before, after) for watched in self._judges]
        self.looked += 1
        if self.weights is None or np.mean(gains) > np.mean(self.gains):
            self.gains = gains
            self.weights = {name: weight.clone() for name, weight in after.state_dict().items()}


def _of_renders(network):
    return network.n_input == renders.N_INPUT


def _training(path, network, ops, seed):
    options = types.SimpleNamespace(
        seed=seed, to_static=False, ema=EMA, optimizer="muon", lr=RATE, amp=False,
        clip_grad=1.0 if _of_renders(network) else 0.0, n_channel=network.n_channel,
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
