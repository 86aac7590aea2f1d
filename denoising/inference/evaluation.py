"""The published evaluation: seeded noise, results rounded to 8 bits, PSNR and SSIM of each image."""

import time
from dataclasses import dataclass, field

import numpy as np

from denoising.cli import UserError
from denoising.imaging.metrics import psnr, ssim
from denoising.inference import distributed
from denoising.inference.denoiser import reflected, round_up

VALIDATION_SEED = 101  # published


@dataclass
class Score:
    """One image of one repeat."""

    set_name: str
    name: str
    index: int  # of the image within its set
    repeat: int
    psnr: float
    ssim: float
    psnr_noisy: float
    ssim_noisy: float


@dataclass
class SetScores:
    """All scores of a set, in order, with the time that they took."""

    name: str
    scores: list = field(default_factory=list)
    seconds: float = 0.0
    megapixels: float = 0.0

    def mean(self, measure):
        """The average of a measure over all images and repeats."""
        return float(np.mean([getattr(score, measure) for score in self.scores]))


def evaluate(denoiser, validation_set, noise, repeats=None, limit=None, on_image=None):
    """Scores a set as published: seeded noise in float and not clipped, results rounded to 8 bits.

    The noise of each set starts from seed 101. Images are padded to a square, as the published evaluation does.
    Several processes share the images; all return the scores of all.

    Args:
        denoiser: a Denoiser.
        validation_set: of `find_validation_sets`.
        noise: a noise model.
        repeats: instead of the set's own.
        limit: only the first so many images.
        on_image: called as on_image(score, clean, noisy, denoised) with HWC uint8 images, for each that is scored here.
    """
    rng = np.random.RandomState(VALIDATION_SEED)
    result = SetScores(validation_set.name)
    start = time.perf_counter()
    number = 0
    for repeat in range(repeats or validation_set.repeats):
        for index, (name, clean, noisy_01) in enumerate(validation_set.images(denoiser.n_channel, noise, rng, limit)):
            number += 1
            if number % distributed.WORLD_SIZE != distributed.RANK:
                continue
            denoised = validation_set.shown(_denoised(denoiser, noise, noisy_01))
            noisy = validation_set.shown(noisy_01)
            score = Score(validation_set.name, name, index, repeat, *_scores(clean, denoised), *_scores(clean, noisy))
            result.scores.append((number, score))
            result.megapixels += clean.shape[0] * clean.shape[1] / 1e6
            if on_image:
                on_image(score, clean, noisy, denoised)
    result.scores = [score for _, score in sorted(distributed.gather(result.scores), key=lambda pair: pair[0])]
    result.seconds = time.perf_counter() - start
    return result


def _denoised(denoiser, noise, noisy_01):
    """With the published padding: by reflection at bottom and right, to a square whose side divides by 32."""
    height, width = noisy_01.shape[:2]
    side = round_up(max(height, width), denoiser.network.multiple)
    square = reflected(reflected(noisy_01, 0, side, axis=0), 0, side, axis=1)
    try:
        return noise.restore(noisy_01, denoiser(np.ascontiguousarray(square))[:height, :width])
    except ValueError as error:
        raise UserError(f"--val_dirs: {error}") from None


def _scores(clean, image):
    try:
        return psnr(clean, image, 255), ssim(clean, image, 255)
    except ValueError as error:
        raise UserError(f"--val_dirs: {error}") from None
