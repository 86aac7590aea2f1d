import numpy as np
import pytest

from denoising.files.images import from_01
from denoising.imaging.metrics import psnr, ssim
from denoising.imaging.noise import parse_noise


def recorded_case():
    y, x = np.mgrid[0:40, 0:33]
    waves = [np.clip(128 + 100 * np.sin(x / 5 + k) * np.cos(y / 7), 0, 255) for k in range(3)]
    clean = np.stack(waves, -1).astype(np.uint8)
    noisy = parse_noise("gauss25").add(clean.astype(np.float32) / 255, np.random.RandomState(101))
    return clean, noisy, from_01(noisy, np.uint8)


def test_the_published_evaluation_recorded():
    # Numbers of the published functions (full 11x11 window, noise of seed 101) on the same arrays.
    clean, noisy, noisy_255 = recorded_case()
    assert abs(float(noisy[3, 4, 1]) - 0.8420389294624329) < 1e-7
    assert noisy_255[:2, :2].tolist() == [
        [[196, 228, 241], [160, 237, 200]],
        [[97, 251, 190], [112, 187, 209]],
    ]
    assert abs(psnr(clean, noisy_255, 255) - 20.010462) < 2e-6
    assert abs(ssim(clean, noisy_255, 255) - 0.48332634981493766) < 1e-9


def test_equal_images():
    clean, _, _ = recorded_case()
    assert psnr(clean, clean, 255) == float("inf")
    assert ssim(clean, clean, 255) == pytest.approx(1)


def test_the_range_scales():
    clean, _, noisy = recorded_case()
    a, b = clean.astype(np.float32), noisy.astype(np.float32)
    assert psnr(a / 255, b / 255, 1) == pytest.approx(psnr(clean, noisy, 255), abs=1e-5)
    assert ssim(a / 255, b / 255, 1) == pytest.approx(ssim(clean, noisy, 255), abs=1e-6)
    assert ssim(clean[..., 0], noisy[..., 0], 255) == pytest.approx(ssim(clean[..., :1], noisy[..., :1], 255))


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_different_shapes_are_refused(measure):
    with pytest.raises(ValueError, match="different shapes"):
        measure(np.zeros((20, 20, 3)), np.zeros((20, 20)), 255)


def test_ssim_of_less_than_its_window_is_refused():
    with pytest.raises(ValueError, match="11x11"):
        ssim(np.zeros((10, 20)), np.zeros((10, 20)), 255)
