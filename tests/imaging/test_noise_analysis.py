"""What is measured of an image's noise."""

import cv2
import numpy as np
import pytest

from denoising.imaging.noise_analysis import analyse


def scene(height=192, width=256, channels=3):
    """Smooth shading from dark to bright in 0..1, without any noise."""
    ramp = np.linspace(0.15, 0.85, width, dtype=np.float32)[None, :, None]
    return np.repeat(np.repeat(ramp, height, 0), channels, 2)


def with_noise(image_01, sigma, blur=0.0, seed=0):
    noise = np.random.default_rng(seed).standard_normal(image_01.shape).astype(np.float32)
    if blur:
        noise = cv2.GaussianBlur(noise, (0, 0), blur).reshape(noise.shape)
        noise /= noise.std()
    return image_01 + sigma / 255 * noise


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("sigma", [3, 25])
def test_white_noise(sigma, channels):
    found = analyse(with_noise(scene(channels=channels), sigma))
    assert found.kind == "gauss"
    assert found.sigma == pytest.approx(sigma, rel=0.05)
    assert len(found.curve) == len(found.correlation) == channels
    assert found.neighbour == pytest.approx(0, abs=0.03)


def test_shot_noise_grows_with_brightness():
    noisy = np.random.default_rng(0).poisson(scene() * 30) / 30
    found = analyse(noisy.astype(np.float32))
    assert found.kind == "poisson"
    assert found.peak == pytest.approx(30, rel=0.1)


def test_neighbours_that_share_their_noise():
    found = analyse(with_noise(scene(), 10, blur=0.7))
    assert found.kind == "correlated"
    assert found.sigma == pytest.approx(10, rel=0.1)
    assert found.neighbour == pytest.approx(0.6, abs=0.05)


@pytest.mark.parametrize("value", [0, 128, 255])
def test_one_colour_has_no_noise(value):
    found = analyse(np.full((64, 64, 3), value, np.uint8))
    assert (found.kind, found.sigma) == ("none", 0)
    assert "one colour" in found.describe()


def test_few_pixels():
    assert analyse(np.zeros((9, 1), np.float32)).certainty == "guess"
