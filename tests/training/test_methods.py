from collections import Counter

import numpy as np
import paddle
import pytest

from arch_unet import build_network
from denoising.imaging import noise
from denoising.imaging.noise import parse_noise
from denoising.training.methods import (
    Neighbor2Neighbor,
    Recorrupted2Recorrupted,
    Regression,
    all_neighbors,
    default_loss,
    draw_picks,
    intact,
    picks_of_published,
    subimages,
)


def split(image, picks):
    first, second = subimages(paddle.to_tensor(image), paddle.to_tensor(picks))
    return first.numpy(), second.numpy()


def test_picks_are_different_adjacent_and_all_eight_pairs_equally_likely():
    # An image that holds the number of each pixel within its 2x2 cell shows what was picked.
    size = 512
    cell = np.tile(np.array([[0, 1], [2, 3]], np.float32), (size // 2, size // 2))[None, None]
    first, second = split(cell, draw_picks(np.random.default_rng(0), size, size)[None])
    counts = Counter(zip(first.astype(int).ravel().tolist(), second.astype(int).ravel().tolist(), strict=True))
    assert set(counts) == {(0, 1), (0, 2), (1, 3), (2, 3), (1, 0), (2, 0), (3, 1), (3, 2)}
    expected = (size // 2) ** 2 / 8
    chi_square = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_square < 24.3  # 99.9 % of fair draws lie below, 7 degrees of freedom


def test_pixels_stay_in_their_cell_and_channels_together():
    image = np.arange(2 * 3 * 8 * 10, dtype=np.float32).reshape(2, 3, 8, 10)
    picks = np.stack([draw_picks(np.random.default_rng(i), 8, 10) for i in range(2)])
    for sub in split(image, picks):
        assert sub.shape == (2, 3, 4, 5)
        assert (sub[:, 1] - sub[:, 0] == 80).all()
        row, column = sub[:, 0] % 80 // 10, sub[:, 0] % 10
        assert (row // 2 == np.arange(4)[:, None]).all()
        assert (column // 2 == np.arange(5)).all()


def test_a_recorded_case_of_the_published_sampler():
    # Made by the published masks (unfold, boolean selection) with these pair numbers.
    image = np.arange(2 * 2 * 4 * 6, dtype=np.float32).reshape(2, 2, 4, 6)
    pairs = np.array([4, 7, 5, 0, 3, 3, 3, 7, 1, 3, 5, 2]).reshape(2, 2, 3)
    picks = np.stack([picks_of_published(numbers) for numbers in pairs])
    first, second = split(image, picks)
    assert first.astype(int).tolist() == [
        [[[1, 9, 10], [12, 20, 22]], [[25, 33, 34], [36, 44, 46]]],
        [[[54, 57, 52], [66, 68, 65]], [[78, 81, 76], [90, 92, 89]]],
    ]
    assert second.astype(int).tolist() == [
        [[[0, 8, 4], [13, 21, 23]], [[24, 32, 28], [37, 45, 47]]],
        [[[55, 56, 58], [67, 62, 71]], [[79, 80, 82], [91, 86, 95]]],
    ]


def test_all_neighbors_share_out_the_pixels_and_are_neighbours():
    height, width = 12, 16
    places = np.arange(height * width, dtype=np.float32).reshape(1, 1, height, width)
    picks = draw_picks(np.random.default_rng(3), height, width)[None]
    inputs, targets = (
        [part.numpy()[0, 0].astype(int) for part in parts]
        for parts in all_neighbors(paddle.to_tensor(places), paddle.to_tensor(picks))
    )
    # The four sub-images are a partition of the pixels: each is an input once, and a target once.
    for parts in (inputs, targets):
        assert sorted(np.concatenate(parts).ravel()) == list(range(height * width))
    for source, target in zip(inputs, targets, strict=True):
        (down, right), (down2, right2) = ((place // width, place % width) for place in (source, target))
        assert (abs(down - down2) + abs(right - right2) == 1).all()
        assert (down // 2 == down2 // 2).all()
        assert (right // 2 == right2 // 2).all()
    # The first pair is the one that is drawn.
    assert [part.tolist() for part in (inputs[0], targets[0])] == [
        part[0, 0].astype(int).tolist() for part in split(places, picks)
    ]


def test_the_loss_of_all_neighbors_is_the_mean_over_four_draws():
    paddle.seed(0)
    network = build_network(n_feature=4)
    noisy = paddle.to_tensor(np.random.default_rng(0).random((2, 3, 64, 64), np.float32))
    drawn = np.stack([draw_picks(np.random.default_rng(i), 64, 64) for i in range(2)])
    row, column, down = (drawn[:, i] for i in range(3))
    # The same pair in the other direction, and what is left over of each cell in both.
    second = np.stack([row ^ down, column ^ ~down, down], 1)
    third = np.stack([row ^ ~down, column ^ down, down], 1)
    fourth = np.stack([~row, ~column, down], 1)
    found = Neighbor2Neighbor(all_neighbors=True)(network, noisy, paddle.to_tensor(drawn), 0.5)
    draws = [
        Neighbor2Neighbor()(network, noisy, paddle.to_tensor(picks), 0.5) for picks in (drawn, second, third, fourth)
    ]
    for i in range(3):
        np.testing.assert_allclose(found[i].item(), np.mean([draw[i].item() for draw in draws]), rtol=1e-5)
    assert len({draw[0].item() for draw in draws}) == 4


def test_the_loss_is_the_papers():
    paddle.seed(0)
    network = build_network(n_feature=4)
    noisy = np.random.default_rng(0).random((2, 3, 64, 64), np.float32)
    picks = np.stack([draw_picks(np.random.default_rng(i), 64, 64) for i in range(2)])
    method = Neighbor2Neighbor(Lambda1=0.5, Lambda2=3.0, increase_ratio=2.0)
    loss, loss1, loss2, Lambda = method(network, paddle.to_tensor(noisy), paddle.to_tensor(picks), 0.25)

    sub1, sub2 = split(noisy, picks)
    denoised1, denoised2 = split(network(paddle.to_tensor(noisy)).numpy(), picks)
    diff = network(paddle.to_tensor(sub1)).numpy() - sub2
    assert Lambda == 0.5
    np.testing.assert_allclose(loss1.item(), np.mean(diff**2), rtol=1e-5)
    np.testing.assert_allclose(loss2.item(), 0.5 * np.mean((diff - (denoised1 - denoised2)) ** 2), rtol=1e-5)
    np.testing.assert_allclose(loss.item(), 0.5 * loss1.item() + 3.0 * loss2.item(), rtol=1e-5)


def test_no_gradient_flows_through_the_full_image():
    # With a network that doubles its input by one weight, the gradient is known in closed form.
    weight = paddle.create_parameter([1], "float32", default_initializer=paddle.nn.initializer.Constant(2.0))
    noisy = np.random.default_rng(0).random((1, 1, 8, 8), np.float32)
    picks = draw_picks(np.random.default_rng(1), 8, 8)[None]
    method = Neighbor2Neighbor(Lambda1=0.0)
    loss, *_ = method(lambda x: x * weight, paddle.to_tensor(noisy), paddle.to_tensor(picks), 1.0)
    loss.backward()
    a, b = split(noisy, picks)
    residual = 2 * a - b - (2 * a - 2 * b)
    np.testing.assert_allclose(weight.grad.item(), 2.0 * np.mean(2 * residual * a), rtol=1e-4)


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


def optimum(loss, targets, steps=300):
    """The constant that training on these targets ends at."""
    weight = paddle.create_parameter([1], "float32", default_initializer=paddle.nn.initializer.Constant(0.5))
    optimizer = paddle.optimizer.Adam(10 / steps, parameters=[weight])
    method, target = Regression(loss), paddle.to_tensor(targets.astype(np.float32))
    for step in range(steps):
        ramp = step / steps
        optimizer.set_lr(10 / steps * (1 - ramp))
        method(lambda x: x + weight, paddle.zeros_like(target), target, ramp=ramp)[0].backward()
        optimizer.step()
        optimizer.clear_grad()
    return weight.item()


def test_each_loss_ends_where_the_paper_says():
    # A third of the values near 0.2, the others anywhere up to 1: mean, median and mode lie apart.
    rng = np.random.default_rng(0)
    targets = np.concatenate([rng.normal(0.2, 0.02, 1400), rng.uniform(0, 1, 2600)])[None, None, None]
    assert optimum("l2", targets) == pytest.approx(targets.mean(), abs=0.01)
    assert optimum("l1", targets) == pytest.approx(np.median(targets), abs=0.01)
    assert optimum("l0", targets, steps=1000) == pytest.approx(0.2, abs=0.01)
    assert optimum("robust", targets) == pytest.approx(0.2, abs=0.01)
    assert np.median(targets) > 0.22
    # Its weight is the output's brightness, so that one constant still ends at the mean.
    assert optimum("hdr", targets * 3) == pytest.approx(3 * targets.mean(), abs=0.02)


def test_impulses_of_a_target_are_told_from_intact_pixels():
    rng = np.random.default_rng(0)
    clean = rng.random((4, 64, 64, 3), np.float32)
    output = clean + rng.normal(0, 0.05, clean.shape)
    targets = [
        parse_noise(f"impulse{share}").add(image, rng) for share, image in zip((0.1, 0.3, 0.6, 0.8), clean, strict=True)
    ]
    spared = (np.array(targets) == clean).all(-1)
    weight = intact(paddle.to_tensor((output - targets).transpose(0, 3, 1, 2).astype(np.float32))).numpy()[:, 0]
    assert weight.shape == spared.shape
    # What cannot be told is an impulse that happens to be near.
    assert ((weight > 0.5) == spared).mean(axis=(1, 2)).min() > 0.95
    assert np.abs(weight.mean(axis=(1, 2)) - spared.mean(axis=(1, 2))).max() < 0.05
    # Nothing is cast out where there are none.
    assert intact(paddle.to_tensor((output - clean).transpose(0, 3, 1, 2).astype(np.float32))).numpy().min() > 0.9


def test_unknown_pixels_of_the_target_do_not_count():
    rng = np.random.default_rng(0)
    noisy, target = (paddle.to_tensor(rng.random((1, 3, 8, 8), np.float32)) for _ in range(2))
    known = paddle.to_tensor((rng.random((1, 1, 8, 8)) < 0.5).astype(np.float32))
    loss = Regression()(lambda x: x, noisy, target, known)[0].item()
    where = np.broadcast_to(known.numpy() == 1, noisy.shape)
    assert loss == pytest.approx(np.mean((noisy.numpy() - target.numpy())[where] ** 2), rel=1e-5)


def test_the_loss_follows_the_noise():
    assert [default_loss("noise2noise", name) for name in ("gauss25", "text0.3", "impulse0.2", "text0.1+gauss5")] == [
        "l2", "l1", "robust", "l1"
    ]  # fmt: skip
    assert default_loss("supervised", "impulse0.2") == "l2"
