import cv2
import numpy as np
import pytest

from conftest import scene
from denoising.imaging import trust
from denoising.imaging.noise import parse_noise
from denoising.imaging.noise_analysis import analyse
from denoising.imaging.pixels import to_01
from denoising.imaging.second_look import look_again, no_more_than_noise


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


@pytest.mark.parametrize("channels", [1, 3])
def test_stars_that_were_taken_for_noise_are_given_back_and_the_sky_stays_denoised(channels):
    """What a network makes of lights that it does not know, a strong blur stands for."""
    rng = np.random.default_rng(0)
    clean = np.full((301, 203, channels), 200, np.float32)  # counts
    stars = np.zeros((301, 203), bool)
    for row, column in rng.integers(20, 180, (9, 2)):
        clean[row - 1 : row + 2, column - 1 : column + 2] += 5000
        stars[row - 1 : row + 2, column - 1 : column + 2] = True
    noisy = clean + rng.normal(0, 10, clean.shape).astype(np.float32)
    denoised = cv2.blur(noisy, (9, 9)).reshape(noisy.shape)
    found = no_more_than_noise(noisy, denoised, (150.0, 400.0))
    assert found.dtype == np.float32
    assert np.abs(denoised - clean)[stars].mean() > 2000
    assert np.abs(found - noisy)[stars].max() < 20
    sky = cv2.dilate(stars.astype(np.uint8), np.ones((21, 21))) == 0
    assert np.abs(found - denoised)[sky].mean() < 0.1
    counts = no_more_than_noise(noisy.astype(np.uint16), denoised.astype(np.uint16), (150 / 65535, 400 / 65535))
    assert np.abs(counts - noisy)[stars].max() < 20


def test_noise_that_was_removed_well_stays_removed_however_it_grows_with_brightness():
    clean = np.linspace(0.1, 0.9, 256, dtype=np.float32)[None, :, None].repeat(300, 0)
    noisy = parse_noise("speckle50").add(clean, np.random.default_rng(0))
    error = no_more_than_noise(noisy, clean, (0.0, 1.0)) - clean
    assert np.square(error).mean() < 0.001 * np.square(noisy - clean).mean()


def test_few_bright_places_have_the_noise_that_grows_up_to_them():
    clean = np.linspace(0.02, 0.1, 256, dtype=np.float32)[None, :, None].repeat(300, 0)
    clean[100:130, 100:130] = 0.9
    noisy = parse_noise("poisson30").add(clean, np.random.default_rng(0))
    found = no_more_than_noise(noisy, clean, (0.0, 1.0))
    bright = clean == np.float32(0.9)
    assert np.square(found - clean)[bright].mean() < 0.01 * np.square(noisy - clean)[bright].mean()
