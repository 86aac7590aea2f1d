import numpy as np
import paddle
import pytest

from conftest import noisy_scene, scene
from denoising.imaging import trust
from denoising.imaging.noise_analysis import analyse
from denoising.imaging.pixels import from_01, to_01
from denoising.inference.denoiser import Denoiser
from denoising.training.lessons import Frames, Renoised, Seen, Subject, lesson
from denoising.training.methods import Noise2Noise


def level_of(noisy):
    return trust.level_of(analyse(noisy))


@pytest.mark.parametrize("size", [(192, 192), (193, 900), (700, 300), (1500, 1400)])
def test_the_middle_is_not_learnt_from(size):
    taught = Frames(noisy_scene(*size), noisy_scene(*size, seed=1))
    rows, columns = taught.middle
    assert min(rows.stop - rows.start, columns.stop - columns.start) >= 64
    assert taught.size in (64, 96, 128)
    # Every pixel says whether it is of the middle, and which frame it is of.
    taught.images = [np.full((*size, 3), 51 * number, np.uint8) for number in (1, 2)]
    for image in taught.images:
        image[taught.middle] = 255
    for step in range(20):
        first, second = taught.sample(0, step)
        assert first.shape == (3, taught.size, taught.size)
        np.testing.assert_allclose(first, 0.2, atol=1e-6)
        np.testing.assert_allclose(second, 0.4, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_noise_is_added_as_it_was(dtype):
    clean = to_01(scene(300, 320))
    noisy = from_01(clean + np.random.default_rng(0).normal(0, 0.1, clean.shape).astype(np.float32), dtype)
    taught = Renoised(noisy, clean, level_of(noisy))
    assert taught.clean.shape == (150, 160, 3)
    samples = [taught.sample(0, step) for step in range(10)]
    assert samples[0][0].shape == samples[0][1].shape == (3, 128, 128)
    added = np.concatenate([noisy - clean for noisy, clean in samples])
    assert added.std() == pytest.approx(0.1, rel=0.1)
    values = np.concatenate([noisy.reshape(-1) for noisy, _ in samples])
    assert (dtype is np.uint8) == bool(np.allclose(values * 255, np.rint(values * 255), atol=1e-4))
    assert (taught.sample(0, 0)[0] == samples[0][0]).all()
    assert (taught.sample(0, 1)[0] != samples[0][0]).any()


def test_photons_that_can_be_counted_are_drawn_by_the_piece():
    clean = to_01(scene(300, 320))
    noisy = np.random.default_rng(0).poisson(5 * clean).astype(np.float32) / 5
    subject = Subject.of(noisy)
    taught = lesson(subject, lambda image: clean)
    counts = 5 * taught.sample(0, 0)[0]
    np.testing.assert_allclose(counts, np.rint(counts), atol=0.02)


def test_what_an_image_teaches():
    def denoiser(image):
        return image

    assert Subject.of(noisy_scene(191, 300)) is None  # too small
    assert Subject.of(scene(200, 200)) is None  # no noise
    assert isinstance(lesson(Subject.of(noisy_scene(200, 200)), denoiser), Renoised)
    pair = lesson(Subject.of(noisy_scene(200, 200), noisy_scene(200, 200, seed=1)), denoiser)
    assert isinstance(pair.method, Noise2Noise)


@pytest.mark.parametrize(("of_network", "channels"), [(3, 3), (3, 1), (1, 3)])
def test_a_network_sees_images_as_a_denoiser_shows_them(of_network, channels):
    from arch_unet import build_network

    network = build_network(n_channel=of_network, n_feature=4)
    network.eval()
    noisy = to_01(noisy_scene(64, 64, channels))
    shown = []
    method = Seen(lambda f, image, ramp: shown.append(f(image)), channels)
    method(network, paddle.to_tensor(noisy.transpose(2, 0, 1)[None]), ramp=1.0)
    np.testing.assert_allclose(shown[0].numpy()[0].transpose(1, 2, 0), Denoiser(network)(noisy), atol=1e-5)
