import numpy as np
import pytest

from conftest import scene
from denoising.imaging import trust
from denoising.imaging.noise import parse_noise
from denoising.imaging.noise_analysis import analyse
from denoising.imaging.pixels import to_01
from denoising.imaging.second_look import look_again


def picture():
    """Dark where it is flat, so that a first look sees no bright noise."""
    clean = to_01(scene(256, 256, seed=4))
    return np.where(np.arange(256)[:, None, None] < 128, 0.1, clean).astype(np.float32)


def test_noise_that_grows_faster_than_brightness_is_seen():
    clean = picture()
    noisy = parse_noise("speckle50").add(clean, np.random.default_rng(0))
    first = trust.level_of(analyse(noisy), noisy.shape[2])
    second = look_again(noisy, clean, first)
    true = (50 / 255) ** 2 * np.square(clean).mean()
    assert first.variance(clean).mean() < 0.7 * true
    assert second.variance(clean).mean() == pytest.approx(true, rel=0.15)
    # A noisy image tells the same as the clean one.
    assert second.variance(noisy).mean() == pytest.approx(second.variance(clean).mean(), rel=0.05)


@pytest.mark.parametrize("noise", ["gauss25", "poisson30"])
def test_what_was_measured_well_stays(noise):
    clean = to_01(scene(256, 256))
    noisy = parse_noise(noise).add(clean, np.random.default_rng(0))
    first = trust.level_of(analyse(noisy), noisy.shape[2])
    second = look_again(noisy, clean, first)
    assert second is first


def test_texture_that_was_taken_for_noise():
    clean = to_01(scene(256, 256))
    noisy = clean + np.random.default_rng(0).normal(0, 0.02, clean.shape).astype(np.float32)
    level = trust.known_level(parse_noise("gauss15"), 3)
    assert look_again(noisy, clean, level).variance(clean).mean() == pytest.approx(0.02**2, rel=0.15)
