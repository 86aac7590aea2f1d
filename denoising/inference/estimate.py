"""The error of a denoised image, estimated without a clean one, and what is said of the image in words.

>>> trust = judge(denoiser, noisy)  # or judge(denoiser, noisy, level, second)
>>> trust.error, trust.psnr, trust.verdict()

The estimate is Stein's: the denoised image differs from the noisy one by its error and by the noise, and how much of
the noise it has followed is seen when a little noise more is put in, or, where photons are counted, when some are taken
out. Where a second frame of the scene exists, the frame itself tells the error, whatever the noise is.
"""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from denoising.imaging import trust
from denoising.imaging.noise_analysis import analyse
from denoising.imaging.pixels import is_grey, to_01

STEP = 0.03  # the noise that is put in, as a share of the image's
PROBED = 0.3  # the same to see what is removed of noise; of less, bfloat16 would round too much away
THINNED = 0.05  # the share of the values from which a photon is taken: of more, the network would see another image


@dataclass(frozen=True)
class Trust:
    """What is known of a denoised image without a clean one.

    Attributes:
        level: the noise, or None: there is none that can be measured, and the other numbers are None too.
        why_not: the reason for which there is none.
        sigma: its deviation in the image, on 0..255.
        error: the estimated mean squared error, of white as 1; it may be negative where it is small. It ranks
            denoisers on the same images.
        psnr: the same in dB; None unless the noise is named and white, or there is a second frame.
        kept: the share of the noise that is in the denoised image still.
        found: the `trust.Comparison` of the two images.
    """

    level: trust.Level | None
    why_not: str = ""
    sigma: float = 0.0
    error: float | None = None
    psnr: float | None = None
    kept: float | None = None
    found: trust.Comparison | None = None

    def verdict(self):
        """One line, for people."""
        if self.level is None or self.found is None or self.kept is None:
            return f"cannot be judged: {self.why_not}"
        words = [f"removes {100 * min(max(1 - self.kept, 0), 1):.0f} % of the noise"]
        loss = self.found.words()
        words.append(f"{loss} (map)" if loss else "loses no structure that can be seen in what was removed")
        if self.psnr is not None:
            words.append(f"about {self.psnr:.1f} dB")
        return ", ".join(words)


def judge(denoise, noisy, level=None, second=None, denoised=None):
    """Judges what a denoiser makes of a noisy image.

    Args:
        denoise: takes and returns H x W x C float32, as a Denoiser does.
        noisy: H x W x C: uint8, uint16, or float32 in 0..1.
        level: its noise; measured unless given.
        second: another frame of the same scene, with noise of its own.
        denoised: the denoised image, where it has been computed.
    """
    why_not = ""
    if level is None:
        analysis = analyse(noisy, second)
        level, why_not = trust.level_of(analysis, noisy.shape[2]), analysis.reason
    if level is None:
        return Trust(None, why_not or "no noise that can be measured")
    if noisy.shape[2] == 3 and is_grey(noisy):
        level = replace(level, between_channels=1.0)  # who names the noise may not think of it
    noisy_01 = to_01(noisy)
    denoised_01 = np.clip(to_01(denoised) if denoised is not None else denoise(noisy_01), 0, 1)
    where = trust.unclipped(noisy, level)
    error, kept = estimate_error(denoise, noisy_01, denoised_01, level, where)
    if second is not None:
        error = trust.error_of_pair(denoised_01, noisy_01, to_01(second))
    told = second is not None or (level.known and level.kind != "correlated")
    psnr = float(-10 * np.log10(error)) if told and error > 0 else None
    found = trust.compare(noisy_01, denoised_01, level, partial(removed_of_drawn, denoise, level), where)
    return Trust(level, "", level.sigma_255(noisy_01), error, psnr, kept, found)


def estimate_error(denoise, noisy_01, denoised_01, level, where=None):
    """Stein's estimate of the mean squared error, and the share of the noise that the denoised image holds still.

    `denoised_01` has been clipped to 0..1, `where` is what `trust.unclipped` says. The network runs once
    more.
    """
    rng = np.random.default_rng(0)
    noise = trust.mean(level.variance(noisy_01), where)
    # Of many photons one is too small a step to be followed, and none is needed: their noise is as good as Gaussian.
    counted = level.kind == "poisson" and min(a for a, _ in level.curve) > 0.1 * np.sqrt(max(noise, 0))
    products = (_of_photons if counted else _of_noise)(denoise, noisy_01, denoised_01, level, rng)
    followed = trust.mean(products, where)
    removed = trust.mean(np.square(denoised_01 - noisy_01), where)
    return removed - noise + 2 * followed, followed / max(noise, 1e-12)


def removed_of_drawn(denoise, level, noisy_01, denoised_01):
    """What a denoiser removes of noise like the image's that is drawn and put into the image beside its own."""
    drawn = level.draw(denoised_01, np.random.default_rng(1))
    more = np.clip(denoise(noisy_01 + np.float32(PROBED) * drawn), 0, 1)
    return drawn - (more - denoised_01) / np.float32(PROBED)


def _of_noise(denoise, noisy_01, denoised_01, level, rng):
    """Whose mean is that of the noise times what is left of it: from a little noise more."""
    if not level.is_own:
        more = level.draw(denoised_01, rng)
    else:  # signs vary least
        signs = rng.integers(0, 2, noisy_01.shape, np.int8).astype(np.float32) * 2 - 1
        more = signs * np.sqrt(np.maximum(level.variance(noisy_01), 0))
    changed = np.clip(denoise(noisy_01 + np.float32(STEP) * more), 0, 1) - denoised_01
    return more * changed / np.float32(STEP)


def _of_photons(denoise, noisy_01, denoised_01, level, rng):
    """The same of counts: each pixel's own photon is taken, because a network sees the steps between counts."""
    photon = np.array([a for a, _ in level.curve], np.float32)
    # What all channels share they lose together: a grey image's count stands in each of three.
    shape = noisy_01.shape if level.is_own else (*noisy_01.shape[:2], 1)
    taken = (rng.random(shape, np.float32) < THINNED).astype(np.float32)
    # Where there is no photon none can be taken.
    given = np.where(noisy_01 > photon / 2, taken, 0) * photon
    changed = denoised_01 - np.clip(denoise(noisy_01 - given), 0, 1)
    changed -= changed.mean(dtype=np.float64)  # all of the image is darker by a little
    return level.variance(noisy_01) / photon * (taken - THINNED) * changed / np.float32(THINNED * (1 - THINNED))
