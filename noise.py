"""Noise, named by short strings: parsed once into a model that corrupts images.

    >>> model = parse_noise("gauss5_50")
    >>> noisy = model.add(clean_01, np.random.default_rng(seed))

Images are float32 in 0..1 of any layout; results are not clipped. Fresh strength is drawn at each call for ranges.
"""

import re
from dataclasses import dataclass
from typing import ClassVar

import numpy as np


@dataclass(frozen=True)
class NoiseModel:
    """What all models share: their published name, and whether they change the image at all."""

    name: str
    low: float = 0.0
    high: float = 0.0
    form: ClassVar[str] = ""
    example: ClassVar[str] = ""

    def add(self, image_01, rng):
        """Returns a corrupted float32 copy; `rng` is a numpy Generator, or a RandomState for published protocols."""
        raise NotImplementedError

    def _strength(self, rng):
        """The fixed strength, or one drawn uniformly from the range."""
        return self.low if self.low == self.high else float(rng.uniform(self.low, self.high))


class NoNoise(NoiseModel):
    """For images that are noisy already."""

    form, example = "none", "none"

    def add(self, image_01, rng):
        return np.array(image_01, np.float32)


class Gaussian(NoiseModel):
    """Additive, independent; the strength is the standard deviation on the 0..255 scale."""

    form, example = "gaussA or gaussA_B", "gauss25"

    def add(self, image_01, rng):
        deviation = self._strength(rng) / 255.0
        if isinstance(rng, np.random.RandomState):
            # In float64 and rounded once, which is what the published evaluation does.
            return np.array(image_01 + rng.normal(size=image_01.shape) * deviation, np.float32)
        noise = rng.standard_normal(image_01.shape, dtype=np.float32)
        noise *= np.float32(deviation)
        noise += image_01
        return noise


class Poisson(NoiseModel):
    """Shot noise: counts whose mean is the strength times the image, divided by the strength again."""

    form, example = "poissonA or poissonA_B", "poisson30"

    def add(self, image_01, rng):
        peak = self._strength(rng)
        return np.array(rng.poisson(np.maximum(peak * image_01, 0.0)) / peak, np.float32)


KINDS = {"gauss": Gaussian, "poisson": Poisson}
MAX_STRENGTH = 1e6  # beyond it, numpy cannot draw Poisson counts
NUMBER = r"(\d+(?:\.\d+)?)"


def parse_noise(text):
    """Turns "gauss25", "gauss5_50", "poisson30", "poisson5_50" or "none" into its model.

    Raises:
        ValueError: the text is none of them; the message lists what exists.
    """
    if text == "none":
        return NoNoise(text)
    match = re.fullmatch(rf"({'|'.join(KINDS)}){NUMBER}(?:_{NUMBER})?", text)
    low, high = (float(match[2]), float(match[3] or match[2])) if match else (0.0, 0.0)
    if not 0 < low <= high <= MAX_STRENGTH:
        raise ValueError(f"unknown noise {text!r}: it is one of {list_of_noise()}")
    return KINDS[match[1]](text, low, high)


def list_of_noise():
    """What exists, for help texts and refusals."""
    forms = [f"{kind.form} (e.g. {kind.example})" for kind in KINDS.values()]
    return ", ".join([*forms, "none"]) + "; A_B draws the strength from A to B for each image"
