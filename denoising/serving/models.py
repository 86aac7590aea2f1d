"""The networks that the service has: one, or several among which an image's noise decides.

>>> models = ManyModels(Shelf(shipped_weights()))
>>> taken = models.take("auto", picture, fast=False)
"""

from dataclasses import dataclass

from denoising.imaging.noise import NoiseModel, noise_of_flag
from denoising.imaging.noise_analysis import Analysis, analyse
from denoising.imaging.pixels import PLAIN_SPAN
from denoising.serving.image_process import Refused

NAMED = "named in the request"


@dataclass(frozen=True)
class TakenModel:
    """What an image is denoised with."""

    name: str
    why: str  # one line
    network: object  # None: the image has no noise
    noise: NoiseModel | None
    analysis: Analysis | None = None  # where the noise was measured
    # `span` and `bounded` of a Denoiser, for each page; None: it has no noise. Empty: PLAIN_SPAN for all.
    spans: tuple = ()

    def span_of(self, page):
        """Those of the page of a number."""
        return self.spans[page] if self.spans else (PLAIN_SPAN, False)


class OneModel:
    """One network for all.

    Args:
        name: by which requests may name it.
        denoiser: a Denoiser, whose network it is.
        flag: that named it, for a refusal.

    Raises:
        UserError: its options name no noise that is known.
    """

    def __init__(self, name, denoiser, flag):
        self.default, self.denoiser = name, denoiser
        noisetype = denoiser.options.get("noisetype")
        self.noise = noise_of_flag(flag, noisetype and str(noisetype))

    def check(self, name, fast):
        """Refuses a request for what there is not."""
        if name not in (None, self.default):
            raise Refused(400, f"model: {self.default} is the only one")
        if fast:
            raise Refused(400, "fast: is for auto, and one model alone is served")

    def take(self, name, picture, fast):
        """The network, whatever the image."""
        return TakenModel(self.default, "the only one that is served", self.denoiser.network, self.noise)

    def analyse(self, name, picture, fast):
        """The same, with the noise measured for who asks for it."""
        taken = self.take(name, picture, fast)
        return TakenModel(taken.name, taken.why, taken.network, taken.noise, analyse(picture.pages[0]))

    def first(self):
        """A network to warm up."""
        return self.denoiser.network

    def rows(self):
        """What GET /models lists."""
        return [_row(self.default, self.noise.name, self.denoiser.n_channel, True)]


class ManyModels:
    """A shelf of weights; `auto` is the default."""

    default = "auto"

    def __init__(self, shelf):
        self.shelf = shelf

    def check(self, name, fast):
        """Refuses a request for what there is not."""
        if name not in (None, "auto", *self.shelf.weights):
            raise Refused(400, f"model: there are auto, {', '.join(self.shelf.weights)}")
        if fast and name not in (None, "auto"):
            raise Refused(400, "fast: is for auto, not for a model by its name")

    def take(self, name, picture, fast):
        """The network that is named, or that is for the image's noise.

        Raises:
            ValueError: there is none for such an image.
        """
        if name in (None, "auto"):
            return self.analyse(name, picture, fast)
        return TakenModel(name, NAMED, self.shelf.network(name), self.shelf.weights[name].noise)

    def analyse(self, name, picture, fast):
        """The same, with the noise measured in any case."""
        if name not in (None, "auto"):
            return TakenModel(name, NAMED, None, None, analyse(picture.pages[0]))
        choice, spans = self.shelf.choose_for_pages(picture.pages, fast)
        if choice.name is None:
            return TakenModel("none", choice.why, None, None, choice.analysis)
        noise = self.shelf.weights[choice.name].noise
        network = self.shelf.network(choice.name)
        return TakenModel(choice.name, choice.why, network, noise, choice.analysis, spans)

    def first(self):
        """A network to warm up."""
        return self.shelf.network(next(iter(self.shelf.weights)))

    def rows(self):
        """What GET /models lists."""
        weights = self.shelf.weights.values()
        rows = [_row(w.name, w.noise.name, w.n_channel, w.name in self.shelf.loaded) for w in weights]
        return [_row("auto", None, None, True), *rows]


def _row(name, noise, channels, loaded):
    return {"name": name, "noise": noise, "channels": channels, "loaded": loaded}
