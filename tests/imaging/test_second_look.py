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
    first = trust.level_of(analyse(noisy))
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
    first = trust.level_of(analyse(noisy))
    second = look_again(noisy, clean, first)
    assert second.kind == first.kind
    assert second.variance(clean).mean() == pytest.approx(first.variance(clean).mean(), rel=0.12)


def test_stripes_are_drawn_as_they_are():
    rng = np.random.default_rng(0)
    clean = to_01(scene(256, 256))
    noisy = clean + rng.normal(0, 0.05, (256, 1, 1)) + rng.normal(0, 0.03, clean.shape)
    noisy = noisy.astype(np.float32)
    level = look_again(noisy, clean, trust.level_of(analyse(noisy)))
    assert (level.kind, level.columns) == ("correlated", 0.0)
    assert level.rows == pytest.approx(0.05, rel=0.2)
    drawn = level.draw(clean, np.random.default_rng(1))
    assert drawn.mean(axis=(1, 2)).std() == pytest.approx(0.05, rel=0.25)
    assert np.square(drawn).mean() == pytest.approx(level.variance(clean).mean(), rel=0.2)


def test_texture_that_was_taken_for_noise():
    clean = to_01(scene(256, 256))
    noisy = clean + np.random.default_rng(0).normal(0, 0.02, clean.shape).astype(np.float32)
    level = trust.known_level(parse_noise("gauss15"), 3)
    assert look_again(noisy, clean, level).variance(clean).mean() == pytest.approx(0.02**2, rel=0.15)
