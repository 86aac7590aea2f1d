"""Which weights fit an image: its noise is measured, and compared with the noise that the weights were trained on.

>>> shelf = Shelf(shipped_weights())
>>> choice = shelf.choose(image)  # H x W x C
>>> print(choice.why)
>>> denoised = Denoiser(shelf.network(choice.name))(image)

What noise weights are for is what they say themselves (`noisetype` in the file), so weights of one's own take part.
"""

import dataclasses
import sysconfig
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from denoising import machine
from denoising.cli import UserError
from denoising.engine import operators
from denoising.imaging.noise import Camera, Gaussian, NoiseModel, Poisson, parse_noise
from denoising.imaging.noise_analysis import Analysis, analyse
from denoising.imaging.pixels import PLAIN_SPAN, is_grey, span_of
from denoising.inference.checkpoint import load_network

# In the order in which they are taken where two are for the same noise.
SHIPPED = (
    "best_model",
    "gauss25_deep",
    "gauss5_50_deep",
    "gauss5_50_fast",
    "gauss5_50",
    "grey_gauss25",
    "grey_gauss5_50_deep",
    "grey_gauss5_50",
    "grey_poisson5_50_deep",
    "photo_deep",
    "photo",
    "photo_fast",
    "poisson5_50_deep",
    "poisson30",
)
# Of these, what newer ones do better: for whoever names them, and to start a training of that network from. They are
# neither in the wheel nor in the container's image.
SUPERSEDED = ("gauss25_deep", "gauss5_50", "grey_gauss25", "photo", "poisson30")
FOR_RENDERS = "renders"  # path-traced ones, whose noise is like none of these
FOR_MOSAICS = "raw"  # the sensors' of cameras, before they are developed
SHARE = "share/neighbor2neighbor-paddle/models"  # where `pip install .` puts them, below the environment's folder
# How far noise may be from the one strength that weights are for, until those for a range do better: measured on BSD300
# (docs/predicting.md).
NEAR = {Gaussian: (0.97, 1.07), Poisson: (0.94, 1.12)}
BEYOND = 0.5, 2.0  # how far photons may lie outside a range, until weights for Gaussian noise do as well
# The share of values that are black or white from which on much of the noise is cut off, as in most files; weights for
# a range know that, those for one strength do not.
CUT_OFF = 0.01
MIXED = 10.0  # images of one folder whose noise differs by this factor are said to
LOW_MEMORY = 512 << 20  # free; below it, of the networks only the one in use is kept


def shipped_weights(flag="--model_path"):
    """The paths of the weights that come with this project, in its folder or installed with the package."""
    root = Path(__file__).resolve().parents[2]
    for folder in _shelves():
        found = [folder / f"{name}.pdparams" for name in SHIPPED]
        if any(path.is_file() for path in found):
            found = [root / path.name if (root / path.name).is_file() else path for path in found]  # best_model
            return [path for path in found if path.is_file()]
    raise UserError(
        f"{flag}: auto finds no weights in {_shelves()[0]}: name a .pdparams file; the project's repository holds some"
    )


def weights_for_renders():
    """The path of the weights for renders that come with this project."""
    return _only(FOR_RENDERS, "renders", "docs/rendering.md")


def weights_for_mosaics():
    """The path of those for raw files."""
    return _only(FOR_MOSAICS, "raw files", "docs/models/raw.md")


def _only(name, what, document):
    for folder in _shelves():
        if (path := folder / f"{name}.pdparams").is_file():
            return path
    raise UserError(f"--model_path: there are no weights for {what} in {_shelves()[0]}: train some ({document})")


def _shelves():
    root = Path(__file__).resolve().parents[2]
    return [root / "models", root / SHARE, Path(sysconfig.get_path("data")) / SHARE]


@dataclass(frozen=True)
class Weights:
    """A file of weights, and what it says about itself."""

    name: str
    path: Path
    noise: NoiseModel
    n_channel: int
    n_input: int
    numbers: int  # how many weights there are: the fewest are taken for the fastest, the most for the best

    @property
    def n_given(self):
        """How many channels an image must have; colour networks take grey images, and grey networks any."""
        return (1, 3) if self.n_channel == 3 else None if self.n_channel == 1 else (self.n_channel,)


@dataclass(frozen=True)
class Choice:
    """What is taken for an image, and why; no name: it has no noise, and stays as it is."""

    name: str | None
    why: str
    analysis: Analysis
    span: tuple[float, float] = PLAIN_SPAN  # of a Denoiser
    bounded: bool = False  # the same
    light: str | None = None  # the weights that --fast would take instead

    @property
    def sigma(self):
        """Of the noise, as the network sees it, on 0..255."""
        return within(self.analysis, self.span).sigma


class Shelf:
    """Weights among which to choose. Networks are loaded when they are first needed, and kept; any thread may call.

    Args:
        paths: of the files.
        ops: how the networks compute, of `devices.prepare`; unless given, as fast as they can.
    """

    def __init__(self, paths, ops=None):
        self.ops = ops or operators.choose("auto", "auto")[0]
        self.loaded, self.replaced, self.lock = {}, {}, threading.Lock()
        self.weights = {}
        for path in map(Path, paths):
            network, options = load_network(path)
            if path.stem in self.weights:
                raise UserError(f"{path}: another file of that name is served already")
            try:
                noise = parse_noise(str(options.get("noisetype") or "none"))
            except ValueError as error:
                raise UserError(f"{path}: {error}") from None
            numbers = sum(parameter.size for parameter in network.parameters())
            self.weights[path.stem] = Weights(path.stem, path, noise, network.n_channel, network.n_input, numbers)

    def network(self, name):
        """The network of these weights; the others are dropped where memory is short."""
        with self.lock:
            if name in self.replaced:
                return self.replaced[name]
            if machine.free_memory() < LOW_MEMORY:
                self.loaded = {kept: network for kept, network in self.loaded.items() if kept == name}
            if name not in self.loaded:
                network, _ = load_network(self.weights[name].path)
                network.ops = self.ops
                self.loaded[name] = network
            return self.loaded[name]

    def replace(self, name, network):
        """Takes another network, which is in memory alone, wherever these weights are chosen."""
        with self.lock:
            self.replaced[name] = network
            self.loaded.pop(name, None)

    def choose_for_pages(self, pages, fast=False):
        """One choice for the pages of a file, which are alike: that of most of those whose noise shows.

        Returns:
            The choice, and for each page `span` and `bounded` of a Denoiser; None: it has no noise, and stays as it is.
        """
        choices = [self.choose(page, fast) for page in pages]
        noisy = [choice for choice in choices if choice.name]
        if not noisy:
            return choices[0], (None,) * len(pages)
        shows = [choice for choice in noisy if choice.analysis.kind != "none"] or noisy
        name = Counter(choice.name for choice in shows).most_common(1)[0][0]
        taken = next(choice for choice in shows if choice.name == name)
        if len(noisy) < len(pages):
            there = f"; {len(noisy)} of {len(pages)} pages have noise, the others stay as they are"
            taken = dataclasses.replace(taken, why=taken.why + there)
        return taken, tuple((choice.span, choice.bounded) if choice.name else None for choice in choices)

    def choose(self, image, fast=False):
        """Measures the noise of H x W x C and takes the weights that are for it.

        Raises:
            ValueError: no weights take images of so many channels.
        """
        channels = image.shape[2]
        able = [w for w in self.weights.values() if w.n_input == w.n_channel and channels in (w.n_given or (1, 3))]
        if not able:
            raise ValueError(f"the image has {channels} channels, and no weights here take so many: name some that do")
        analysis = analyse(np.ascontiguousarray(image))
        span = span_of(image)
        seen, values = analysis, ""
        if span != PLAIN_SPAN:
            seen, values = (
                within(analysis, span),
                f"; {span[0]:.4g} is taken for black and {span[1]:.4g} for white, where the type's own white is 1",
            )
        seen_channels = 1 if is_grey(image) or sum(map(any, analysis.curve)) == 1 else channels
        taken, lightest = (fitting(able, seen, seen_channels, quick) for quick in (fast, True))
        light = lightest.name if lightest is not taken else None
        if analysis.kind == "none" and taken:
            why = f"{analysis.describe()}: {taken.name}, which changes little if so{values}"
            return Choice(taken.name, why, analysis, span, light=light)
        if analysis.kind == "none":
            return Choice(None, f"{analysis.describe()}: it stays as it is", analysis)
        if taken is None:
            raise ValueError(f"{analysis.describe()}; no weights here are for it: name some by --model_path")
        why = f"{analysis.describe()}: {taken.name}, trained on {taken.noise.name}{values}"
        # Weaker noise than the weights know, or lights far beyond what is taken for white.
        weak = isinstance(taken.noise, Gaussian) and seen.sigma < NEAR[Gaussian][0] * taken.noise.low
        bounded = analysis.kind != "correlated" and (weak or span != PLAIN_SPAN)
        return Choice(taken.name, why, analysis, span, bounded, light)


def within(analysis, span):
    """The analysis of the image as a network sees it that sees this span."""
    width = span[1] - span[0]
    return dataclasses.replace(analysis, sigma=analysis.sigma / width, peak=analysis.peak * width)


def fitting(able, analysis, channels, fast=False):
    """The weights for a kind of noise, or those that come next; None if there is nothing to do, or nothing for it."""

    def of(kind):
        return [weights for weights in able if isinstance(weights.noise, kind)]

    # Texture may hide what noise there is: better a photograph that changes a little than one that keeps its noise.
    hidden = analysis.kind == "none" and analysis.certainty == "guess"
    # Neighbours share the noise, or channels do, as in a JPEG, whose colours are coarser.
    correlated = analysis.kind == "correlated" and not (channels == 3 and analysis.is_nearly_white)
    shared = correlated or (channels == 3 and analysis.channels_share)
    if (shared or hidden) and (cameras := of(Camera)):
        return (min if fast else max)(cameras, key=lambda weights: weights.numbers)
    if analysis.kind == "none":
        return None
    # Noise that is white in each channel and the same in all of a grey image would pass for a part of it.
    able = [weights for weights in able if weights.n_channel == channels] or able
    if analysis.kind == "poisson":
        near = [w for w in of(Poisson) if _is_near(w.noise, analysis.peak)]
        if near:
            return near[0]
    ranges = [weights for weights in of(Gaussian) if weights.noise.low < weights.noise.high]
    single = [w for w in of(Gaussian) if w not in ranges and w.name not in SUPERSEDED]
    exact = [w for w in single if _is_near(w.noise, analysis.sigma)]
    if analysis.kind == "gauss" and exact and (analysis.clipped < CUT_OFF or not ranges):
        light = [weights for weights in ranges if fast and _distance(weights.noise, analysis.sigma) == 1]
        return min(exact + light, key=lambda weights: fast * weights.numbers)

    def rank(weights):
        return _distance(weights.noise, analysis.sigma), weights.numbers if fast else 0

    return min(ranges or of((Gaussian, Poisson, Camera)), key=rank, default=None)


def _is_near(noise, strength):
    low, high = NEAR[type(noise)] if noise.low == noise.high else BEYOND
    return noise.low * low <= strength <= noise.high * high


def _distance(noise, sigma):
    """How far a strength lies outside a range, as a factor; other noise than Gaussian counts as far away."""
    if not isinstance(noise, Gaussian):
        return 1e9
    return max(noise.low / max(sigma, 1e-6), sigma / noise.high, 1.0)


class Spread:
    """Follows the strength of the noise over the images of a folder."""

    def __init__(self):
        self.low, self.high, self.told = float("inf"), 0.0, False

    def note(self, sigma):
        """Counts an image; returns a line the first time that the noise differs tenfold."""
        if sigma > 0:
            self.low, self.high = min(self.low, sigma), max(self.high, sigma)
        if self.told or self.high < MIXED * self.low:
            return None
        self.told = True
        return (
            f"the noise of these images differs more than tenfold ({self.low:.1f} to {self.high:.1f} of 255), as that "
            "of several cameras does: each image is handled by itself"
        )
