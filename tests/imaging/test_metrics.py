import numpy as np
import pytest

from denoising.imaging.metrics import psnr, ssim
from denoising.imaging.noise import parse_noise
from denoising.imaging.pixels import from_01


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
    assert noisy_255[:2, :2].tolist() == [[[196, 228, 241], [160, 237, 200]], [[97, 251, 190], [112, 187, 209]]]
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


def test_psnr_by_hand():
    reference, image = np.zeros((2, 2), np.uint8), np.array([[0, 0], [0, 51]], np.uint8)
    assert psnr(reference, image, 255) == psnr(image, reference, 255) == pytest.approx(10 * np.log10(4 * 25))
    assert psnr(reference / 1.0, image / 255, 1) == pytest.approx(20)
    # Integers are not subtracted as they are, where 0 - 1 is 255.
    assert psnr(np.array([[0]], np.uint8), np.array([[1]], np.uint8), 255) == pytest.approx(20 * np.log10(255))


@pytest.mark.parametrize("data_range", [1.0, 255.0])
def test_ssim_of_flat_images_is_its_luminance_term(data_range):
    a, b = 0.2 * data_range, 0.6 * data_range
    c1 = (0.01 * data_range) ** 2
    expected = (2 * a * b + c1) / (a * a + b * b + c1)
    found = ssim(np.full((11, 12), a), np.full((11, 12), b), data_range)
    assert found == pytest.approx(expected, rel=1e-9)


def test_ssim_of_one_window_by_hand():
    rng = np.random.default_rng(0)
    x, y = rng.random((2, 11, 11))
    line = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / np.outer(line, line).sum()
    mx, my = (window * x).sum(), (window * y).sum()
    vx, vy, vxy = (window * x * x).sum() - mx**2, (window * y * y).sum() - my**2, (window * x * y).sum() - mx * my
    expected = (2 * mx * my + 1e-4) * (2 * vxy + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
    assert ssim(x, y, 1) == pytest.approx(expected, rel=1e-9)
    colour = np.stack([x, y, x], -1), np.stack([y, y, x], -1)
    assert ssim(*colour, 1) == pytest.approx((expected + 2) / 3, rel=1e-9)
