import numpy as np
import paddle
import pytest

from conftest import noisy_scene, scene
from denoising.data import renders
from denoising.imaging import trust
from denoising.imaging.noise_analysis import analyse
from denoising.imaging.pixels import from_01, to_01
from denoising.inference.denoiser import Amount, Denoiser
from denoising.training.lessons import MOST, Frames, Rendered, Renders, Renoised, Seen, Subject, lesson
from denoising.training.methods import Noise2Noise


def level_of(noisy):
    return trust.level_of(analyse(noisy), noisy.shape[2])


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


def rendered(seed, shift=0, size=200):
    """A frame whose light is its albedo under noise of a seed."""
    albedo = to_01(scene(size + shift, size, seed=3))[shift:]
    noise = np.random.default_rng(seed).gamma(1.5, 1 / 1.5, (size, size, 1)).astype(np.float32)
    return renders.Frame(albedo * noise, albedo, np.zeros_like(albedo), None)


def test_which_renders_show_one_view():
    view = Rendered(rendered(0))
    assert view.takes(rendered(1))
    for other in (rendered(1), rendered(2, shift=1), rendered(2, shift=30), rendered(2, size=192)):
        assert not view.takes(other)  # a copy of the last one, a camera that has moved, another size
    assert all(view.takes(rendered(seed)) for seed in range(2, MOST + 3))
    assert len(view.frames) == MOST
    small = Rendered(rendered(0, size=128))
    assert not small.takes(rendered(1, size=128))


def test_renders_learn_from_the_mean_of_the_others():
    frames = [rendered(seed) for seed in range(4)]
    view = Rendered(frames[0])
    assert all(view.takes(frame) for frame in frames[1:])
    taught = lesson(view, None)
    assert isinstance(taught, Renders)
    for frame in taught.frames:
        frame.render[taught.middle] = np.nan  # never learnt from
    deviations = set()
    for step in range(30):
        code, target = taught.sample(0, step)
        assert code.shape == (9, taught.size, taught.size)
        assert np.isfinite(code).all()
        assert np.isfinite(target).all()
        light, albedo = renders.decode(code[:3]), code[3:6]
        noise = light.mean(axis=(1, 2)) / (light / np.maximum(albedo, 1e-3)).std(axis=(1, 2))
        deviations.add(round(float(noise.mean()), 1))
    assert len(deviations) > 1  # some inputs are means of more renders than others


def test_what_renders_are_judged_by_knows_the_better_denoiser():
    frames = [rendered(seed, size=256) for seed in range(2)]
    judge = Renders(frames).watched

    class Blur:
        amount = Amount()

        def __init__(self, share):
            self.share = share

        def __call__(self, code):
            light, albedo = renders.decode(code[..., :3]), code[..., 3:6]
            return light + self.share * (albedo - light)

    errors = [judge.score(Blur(share))[1] for share in (0, 0.5, 0.9, 1)]
    assert errors == sorted(errors, reverse=True)
    assert abs(errors[-1]) < 0.05 * errors[0]  # the albedo is the truth


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
