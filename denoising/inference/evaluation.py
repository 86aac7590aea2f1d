"""The published evaluation: seeded noise, results rounded to 8 bits, PSNR and SSIM of each image."""

import time
from dataclasses import dataclass, field

import numpy as np

from denoising.cli import UserError
from denoising.imaging.metrics import psnr, ssim
from denoising.inference import distributed
from denoising.inference.denoiser import finite
from denoising.inference.windows import reflected, round_up

VALIDATION_SEED = 101  # published


@dataclass
class Score:
    """One image of one repeat."""

    set_name: str
    name: str
    index: int  # of the image within its set
    number: int  # of the image among those of all sets
    repeat: int
    psnr: float
    ssim: float
    psnr_noisy: float
    ssim_noisy: float


@dataclass
class SetScores:
    """All scores of a set, repeat by repeat and in the order of its images, with the time that they took."""

    name: str
    scores: list = field(default_factory=list)
    seconds: float = 0.0
    megapixels: float = 0.0

    def mean(self, measure):
        """The average of a measure over all images and repeats."""
        return float(np.mean([getattr(score, measure) for score in self.scores]))

    @property
    def repeats(self):
        """How often each image was scored."""
        return 1 + max(score.repeat for score in self.scores)

    @property
    def image_count(self):
        """How many images the set has."""
        return len(self.scores) // self.repeats


def evaluate_sets(denoiser, validation_sets, noise, repeats=None, limit=None, on_image=None):
    """Scores set after set; images are numbered through all of them. The arguments are those of `evaluate`.

    Yields:
        The SetScores of each set, as soon as it has been scored.
    """
    first = 0
    for validation_set in validation_sets:
        result = evaluate(denoiser, validation_set, noise, repeats, limit, on_image, first)
        first += result.image_count
        yield result


def evaluate(denoiser, validation_set, noise, repeats=None, limit=None, on_image=None, first=0):
    """Scores a set as published: seeded noise in float and not clipped, results rounded to 8 bits.

    The noise of each set starts from seed 101. Images are padded to a square, as the published evaluation does.
    Several processes share the images; all return the scores of all.

    `repeats` replaces the set's own, `limit` takes only the first images, and `first` is the number of the first one:
    how many the sets before have. For each image that this process scores, on_image(score, clean, noisy, denoised) is
    called with HWC uint8 images.
    """
    rng = np.random.RandomState(VALIDATION_SEED)
    result = SetScores(validation_set.name)
    start = time.perf_counter()
    scored, order = [], 0  # by this process: the place of each image in the order of all, and its Score
    for repeat in range(repeats or validation_set.repeats):
        for index, (name, clean, noisy_01) in enumerate(validation_set.images(denoiser.n_channel, noise, rng, limit)):
            order += 1
            if order % distributed.WORLD_SIZE != distributed.RANK:
                continue
            place = validation_set.name, name, index, first + index, repeat
            try:
                denoised = validation_set.shown(_denoised(denoiser, noise, noisy_01))
                noisy = validation_set.shown(noisy_01)
                score = Score(*place, *(measure(clean, i, 255) for i in (denoised, noisy) for measure in (psnr, ssim)))
            except ValueError as error:
                raise UserError(f"--val_dirs: {error}") from None
            scored.append((order, score))
            result.megapixels += clean.shape[0] * clean.shape[1] / 1e6
            if on_image:
                on_image(score, clean, noisy, denoised)
    result.scores = [score for _, score in sorted(distributed.gather(scored), key=lambda pair: pair[0])]
    result.seconds = time.perf_counter() - start
    return result


def _denoised(denoiser, noise, noisy_01):
    """With the published padding: by reflection at bottom and right, to a square whose side divides by 32."""
    height, width = noisy_01.shape[:2]
    side = round_up(max(height, width), denoiser.network.multiple)
    square = reflected(reflected(noisy_01, 0, side, axis=0), 0, side, axis=1)
    return finite(noise.restore(noisy_01, denoiser(np.ascontiguousarray(square))[:height, :width]))
