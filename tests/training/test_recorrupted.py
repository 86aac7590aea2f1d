"""Recorrupted-to-Recorrupted: its loss without clean images, and the noise that it must know."""

import numpy as np
import paddle
import pytest

from arch_unet import build_network
from denoising.cli import UserError
from denoising.data.streams import streams
from denoising.imaging import noise
from denoising.imaging.noise import parse_noise
from denoising.training.methods import Neighbor2Neighbor, Recorrupted2Recorrupted


def recorruptions(model, noisy, seed):
    """Of an image H x W x C: what a training gets, as tensors."""
    parts = [noisy, *model.recorrupt(noisy, np.random.default_rng(seed), np.random.default_rng(1))]
    return [paddle.to_tensor(part.transpose(2, 0, 1)[None].copy()) for part in parts]


def test_the_recorrupted_loss_is_that_of_two_pairs_with_opposite_noise():
    paddle.seed(0)
    network, model, a = build_network(n_feature=4), parse_noise("gauss25"), noise.MORE_NOISE
    noisy, *inputs = recorruptions(model, np.random.default_rng(0).random((32, 32, 3), np.float32), 0)
    loss, *_ = Recorrupted2Recorrupted(model)(network, noisy, *inputs)
    loss.backward()
    gradients = [parameter.grad.numpy() for parameter in network.parameters()]
    network.clear_gradients()
    for recorruption in inputs:
        target = noisy - (recorruption - noisy) / a**2  # y - z / a for y + a z
        (paddle.mean((network(recorruption) - target) ** 2) / 2).backward()
    for gradient, parameter in zip(gradients, network.parameters(), strict=True):
        expected = parameter.grad.numpy()
        np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def blur(image):
    kernel = paddle.full([3, 1, 3, 3], 1 / 9)
    return paddle.nn.functional.conv2d(image, kernel, padding=1, groups=3)


def whole_photons(image):
    """As a network might that tells the steps of single photons in its input."""
    return paddle.round(image * 30) / 30


@pytest.mark.parametrize(
    ("name", "network"),
    [("gauss25", blur), ("poisson30", blur), ("gauss5_50", blur), ("poisson5_50", blur), ("poisson30", whole_photons)],
)
def test_the_recorrupted_loss_estimates_the_error_without_clean_images(name, network):
    model = parse_noise(name)
    y, x = np.mgrid[:512, :512].astype(np.float32)
    clean = np.stack([0.5 + 0.4 * np.sin(x / period) * np.cos(y / 7) for period in (3, 5, 9)], axis=-1)
    parts = recorruptions(model, model.add(clean, np.random.default_rng(5)), 5)
    estimate, distance, *_ = Recorrupted2Recorrupted(model)(network, *parts)
    # What is denoised has 1.02 times the noise, in the estimate as here.
    error = paddle.mean((network(parts[1]) - paddle.to_tensor(clean.transpose(2, 0, 1)[None].copy())) ** 2).item()
    assert abs(distance.item() / error - 1) > 0.3  # what the noisy images alone would say
    assert estimate.item() == pytest.approx(error, rel=0.02)


def test_in_decibels_images_with_little_noise_count_as_much_as_the_others():
    """Two images, one with ten times as much noise as the other, and a network that shrinks towards grey."""
    model, clean = parse_noise("gauss5_50"), np.full((64, 64, 3), 0.5, np.float32)
    pairs = []
    for seed, sigma in enumerate((5, 50)):
        known = parse_noise(f"gauss{sigma}")
        pairs.append(recorruptions(known, known.add(clean, np.random.default_rng(seed)), seed))
    batch = [paddle.concat(parts) for parts in zip(*pairs, strict=True)]

    def slopes(loss):
        """How much the loss of each image grows with what the network lets through."""
        found = []
        for parts in (batch, *pairs):
            through = paddle.to_tensor(0.5, stop_gradient=False)
            total, *_ = Recorrupted2Recorrupted(model, loss=loss)(lambda x, k=through: 0.5 + k * (x - 0.5), *parts)
            total.backward()
            found.append(through.grad.item())
        return found

    both, little, much = slopes("l2")
    assert both == pytest.approx((little + much) / 2, rel=1e-3)
    assert much > 50 * little > 0
    both, little, much = slopes("psnr")
    assert both == pytest.approx((little + much) / 2, rel=1e-3)
    assert 1.5 * little > much > little > 0  # the cleaner one is near the least error that counts


def test_in_decibels_the_recorrupted_loss_estimates_the_psnr_without_clean_images():
    model = parse_noise("gauss25")
    y, x = np.mgrid[:512, :512].astype(np.float32)
    clean = np.stack([0.5 + 0.4 * np.sin(x / period) * np.cos(y / 17) for period in (23, 25, 29)], axis=-1)
    parts = recorruptions(model, model.add(clean, np.random.default_rng(5)), 5)
    estimate, *_ = Recorrupted2Recorrupted(model, loss="psnr")(blur, *parts)
    error = paddle.mean((blur(parts[1]) - paddle.to_tensor(clean.transpose(2, 0, 1)[None].copy())) ** 2).item()
    assert estimate.item() == pytest.approx(10 * np.log10(error), abs=0.5)


def test_in_decibels_a_network_that_has_learnt_nothing_has_a_loss_of_this_size_too():
    model = parse_noise("gauss25")
    parts = recorruptions(model, model.add(np.full((64, 64, 3), 0.9, np.float32), np.random.default_rng(0)), 0)
    loss, *_ = Recorrupted2Recorrupted(model, loss="psnr")(lambda x: x * 0 + 0.1, *parts)
    assert loss.item() == pytest.approx(10 * np.log10(0.8**2), abs=8)  # and not the thousands of a far-off tangent


def test_the_recorrupted_loss_shows_its_parts():
    noisy, first, second = (paddle.full([1, 1, 2, 2], value) for value in (0.5, 0.6, 0.4))
    # Of a network that halves: 0.3 and 0.2; the noise that was added differs by 0.2, of which half passes.
    found = Recorrupted2Recorrupted(parse_noise("gauss25"))(lambda x: x / 2, noisy, first, second)
    distance, passed, added = (0.2**2 + 0.3**2) / 2, 12.5 * 0.1 * 0.2, 12.5 / 2 * 0.2**2
    assert [float(part) for part in found] == pytest.approx([distance + passed - added, distance, passed, 1])


def cut_off(clean, sigma=25, size=64):
    """A flat patch of a file of 8 bits, CHW, noisy and clean, 0..1."""
    noisy = clean * 255 + np.random.default_rng(3).normal(size=(3, size, size)) * sigma
    return (np.clip(np.rint(noisy), 0, 255) / 255).astype(np.float32), np.full((3, size, size), clean, np.float32)


@pytest.mark.parametrize("level", [4, 20, 251])
def test_values_that_files_cut_off_do_not_count(level):
    """A network knows the noise that was added to black, and would put as much of it back as it likes."""
    noisy, clean = cut_off(level / 255)
    near = 3 * parse_noise("gauss25").recorruption_deviation(0)

    def cheat(images):
        edge = 0.0 if level < 128 else 1.0
        at_edge = ((images - edge).abs() < near).astype("float32")
        return honest(images) - at_edge * 4 * (images - edge)

    def honest(images):
        return paddle.full_like(images, float(clean.mean()))

    for in_files in (False, True):
        method = Recorrupted2Recorrupted(parse_noise("gauss25"), in_files)
        parts = method.beside(noisy, streams(1))
        batch = [paddle.to_tensor(part[None]) for part in (noisy, *parts)]
        cheated, right = (float(method(network, *batch)[0]) for network in (cheat, honest))
        assert (right <= cheated + 1e-7) == in_files
        if in_files:
            for one, counts in zip(parts[:2], parts[2:], strict=True):
                assert np.array_equal(counts, (one >= near) if level < 128 else (one <= 1 - near))


def test_where_nothing_is_cut_off_everything_counts():
    photons, gauss = parse_noise("poisson30"), parse_noise("gauss25")
    rng, dark = np.random.default_rng(0), np.full((3, 32, 32), 0.05, np.float32)
    for model, noisy in (
        (photons, photons.add(dark, rng)),
        (gauss, gauss.add(dark, rng)),
        (gauss, gauss.add(1 - dark, rng)),
    ):
        for counts in Recorrupted2Recorrupted(model, in_files=True).beside(noisy, streams(1))[2:]:
            assert counts.all()  # black is a count of photons, or not the least value


# --- What it refuses ----------------------------------------------------------------------------------------


def test_images_whose_noise_is_not_what_it_is_told_are_refused():
    def check(known, page, channels=3, size=8, frozen=False, in_files=True):
        image = np.zeros((*page.shape[:2], channels), np.float32)
        Recorrupted2Recorrupted(parse_noise(known), in_files).check("a.png", page, image, size, frozen)

    grey, colour = np.zeros((8, 9, 1), np.uint8), np.zeros((8, 9, 3), np.uint8)
    check("gauss3", colour)
    check("gauss12", grey, channels=1)
    check("gauss0.1", colour.astype(np.float32))
    check("gauss0.1", colour.astype(np.uint16))
    check("gauss12", grey, channels=4)  # a mosaic, each of whose values goes to one channel
    check("gauss1", grey, in_files=False)
    check("gauss1", colour, size=9, in_files=False)
    with pytest.raises(UserError, match=r"^--n_channel: a.png has 1, and its noise is known in these only"):
        check("gauss12", grey)
    with pytest.raises(UserError, match=r"^--n_channel: a.png has 3"):
        check("gauss12", colour, channels=1)
    for more in ({}, {"in_files": False, "frozen": True}):
        with pytest.raises(UserError, match=r"^--patchsize: a.png has 9x8 pixels; padding would repeat"):
            check("gauss12", colour, size=9, **more)
    with pytest.raises(UserError, match=r"^--known_noise: a.png has 8 bits, .* too coarse for gauss1$"):
        check("gauss1", colour)
    with pytest.raises(UserError, match=r"^--known_noise: a.png has 16 bits"):
        check("gauss0.01", colour.astype(np.uint16))
    Neighbor2Neighbor().check("a.png", grey, grey, 64, True)
