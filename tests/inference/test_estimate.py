import cv2
import numpy as np
import pytest

from conftest import scene
from denoising.imaging import trust
from denoising.imaging.noise import parse_noise
from denoising.imaging.pixels import from_01, to_01
from denoising.inference.estimate import estimate_error, judge

CLEAN = to_01(scene(160, 192, seed=3))


def noisy(kind, seed=0):
    return parse_noise(kind).add(CLEAN, np.random.default_rng(seed))


def blur(width):
    return lambda image: cv2.GaussianBlur(image, (0, 0), width)


@pytest.mark.parametrize("kind", ["gauss25", "poisson30", "poisson2000"])
@pytest.mark.parametrize("denoise", [blur(0.6), blur(1.5), lambda image: image], ids=["weak", "strong", "identity"])
def test_the_estimate_is_the_true_error(kind, denoise):
    image, level = noisy(kind), trust.known_level(parse_noise(kind), 3)
    denoised = np.clip(denoise(image), 0, 1)
    error, _ = estimate_error(denoise, image, denoised, level)
    true, noise = np.square(denoised - CLEAN).mean(), level.variance(CLEAN).mean()
    assert error == pytest.approx(true, rel=0.06, abs=0.03 * noise)


def test_the_share_of_the_noise_that_is_kept():
    image, level = noisy("gauss25"), trust.known_level(parse_noise("gauss25"), 3)
    for share in (0.0, 0.5, 1.0):

        def denoise(image, share=share):
            return 0.5 + np.float32(share) * (image - 0.5)

        _, kept = estimate_error(denoise, image, denoise(image), level)
        assert kept == pytest.approx(share, abs=0.06)  # what leaves 0..1 is clipped


def test_a_second_frame_tells_the_error_whatever_the_noise_is():
    first, second = noisy("speckle40", 1), noisy("speckle40", 2)
    denoised = np.clip(blur(1.0)(first), 0, 1)
    found = judge(blur(1.0), first, trust.known_level(parse_noise("gauss20"), 3), second)
    true = np.square(denoised - CLEAN).mean()
    assert found.error == pytest.approx(true, rel=0.05)
    assert found.psnr == pytest.approx(-10 * np.log10(true), abs=0.2)


def test_measured_noise_ranks_and_gives_no_decibels():
    image = noisy("gauss25")
    found = [judge(blur(width), image) for width in (0.5, 1.0, 4.0)]
    true = [np.square(blur(width)(image) - CLEAN).mean() for width in (0.5, 1.0, 4.0)]
    assert np.argsort([f.error for f in found]).tolist() == np.argsort(true).tolist()
    assert all(f.psnr is None and "dB" not in f.verdict() for f in found)
    assert found[0].sigma == pytest.approx(25, rel=0.1)


@pytest.mark.parametrize("kind", ["gauss25", "poisson30"])
def test_a_grey_image_of_three_channels_is_judged_as_one(kind):
    """Its channels share their noise, whoever names it: no structure is lost, and the error is the true one."""
    grey = parse_noise(kind).add(CLEAN[..., :1], np.random.default_rng(0)).astype(np.float32)

    def denoise(image):
        image = blur(1.0)(image)
        return (image + image[..., [1, 2, 0]]) / 2  # each channel follows the noise of another, too

    level = trust.known_level(parse_noise(kind), 3)
    found = judge(denoise, np.repeat(grey, 3, axis=2), level)
    true = np.square(np.clip(blur(1.0)(grey), 0, 1) - CLEAN[..., 0]).mean()
    assert found.error == pytest.approx(true, rel=0.06, abs=0.03 * level.variance(CLEAN).mean())
    assert found.found.lost < 0.05


def test_whole_numbers_are_cut_off_at_black_and_white():
    """Where the noise is cut off it is weaker than its level says: the estimate leaves such places out."""
    clean = np.full((160, 160, 3), 0.5, np.float32)
    clean[:, 80:] = 1.0
    image = from_01(parse_noise("gauss25").add(clean, np.random.default_rng(0)), np.uint8)
    found = judge(blur(1.0), image, trust.known_level(parse_noise("gauss25"), 3))
    where = trust.unclipped(image, found.level)
    assert where[:, :70].all()
    assert not where[:, 90:].any()
    true = np.square(blur(1.0)(to_01(image)) - clean)[where].mean()
    noise = (25 / 255) ** 2
    assert found.error == pytest.approx(true, abs=0.06 * noise)  # beside the edge some of it is cut off
    everywhere, _ = estimate_error(blur(1.0), to_01(image), blur(1.0)(to_01(image)), found.level)
    assert everywhere < true - 0.2 * noise


def test_words():
    grass = np.zeros((192, 192, 3), np.float32) + 0.5
    grass[128:, 128:] += 0.2 * np.sin(np.arange(64) * 1.3)[:, None, None].astype(np.float32)
    image = parse_noise("gauss10").add(grass, np.random.default_rng(0))
    level = trust.known_level(parse_noise("gauss10"), 3)
    words = judge(blur(3.0), image, level).verdict()
    assert words.startswith(("removes 99 %", "removes 98 %"))
    assert "most in the lower right (map)" in words
    assert "loses no structure" in judge(lambda image: grass, image, level).verdict()
    flat = judge(blur(1.0), np.full((64, 64, 3), 128, np.uint8))
    assert flat.verdict() == f"cannot be judged: {flat.why_not}"
    assert flat.error is flat.psnr is flat.found is None


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 40, 1), (33, 2, 3)])
def test_tiny_images(shape):
    image = np.full(shape, 100, np.uint8)
    assert judge(blur(1.0), image).level is None
    level = trust.known_level(parse_noise("gauss25"), shape[2])
    found = judge(lambda image: image * np.float32(0.5), image, level)
    assert np.isfinite(found.error)
    assert found.verdict()
