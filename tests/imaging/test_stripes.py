import numpy as np
import pytest

from conftest import noisy_scene, scene
from denoising.imaging import stripes
from denoising.imaging.pixels import from_01, to_01


@pytest.mark.parametrize("level", [(0.04, 0.0), (0.0, 0.02), (0.03, 0.05)])
def test_how_strong_they_are(level):
    rng = np.random.default_rng(3)
    clean = to_01(scene(256, 320))
    noisy = stripes.add(clean, level, rng) + rng.normal(0, 0.05, clean.shape).astype(np.float32)
    for found, true in zip(stripes.deviations(noisy), level, strict=True):
        assert found == pytest.approx(true, rel=0.2)


@pytest.mark.parametrize("sigma", [0.0, 0.1])
def test_there_are_none(sigma):
    rng = np.random.default_rng(1)
    for seed in range(4):
        clean = to_01(scene(256, 320, seed=seed))
        assert stripes.deviations((clean + rng.normal(0, sigma, clean.shape)).astype(np.float32)) == (0.0, 0.0)
    # Real edges from one side to the other are no noise, nor is too small an image measured.
    bars = np.repeat(np.arange(256) // 16 % 2, 320).reshape(256, 320, 1).astype(np.float32)
    assert stripes.deviations(bars) == (0.0, 0.0)
    assert stripes.deviations(clean[:31]) == (0.0, 0.0)


@pytest.mark.parametrize("level", [(0.04, 0.0), (0.0, 0.04), (0.03, 0.05)])
def test_they_are_taken_off(level):
    rng = np.random.default_rng(3)
    clean = to_01(scene(256, 320))
    striped = stripes.add(clean, level, rng) + rng.normal(0, 0.02, clean.shape).astype(np.float32)
    for image in (striped, from_01(striped, np.uint8)):
        left, line = stripes.take_off(image)
        assert (left.shape, left.dtype) == (image.shape, image.dtype)
        before, after = (np.square(to_01(each) - clean).mean() for each in (image, left))
        # The white noise stays, and what the lines share with those around them.
        assert after - 0.02**2 < 0.15 * (before - 0.02**2)
        assert ("along rows" in line, "along columns" in line) == (level[0] > 0, level[1] > 0)


def test_an_image_without_them_stays():
    image = noisy_scene(200, 200)
    left, line = stripes.take_off(image)
    assert left is image
    assert line == ""
