from argparse import Namespace
from collections import Counter

import numpy as np
import paddle
import pytest

from arch_unet import build_network
from denoising.data import renders
from denoising.data.streams import CROP, MORE, NOISE, ORDER, PICKS, TARGET, generator, streams
from denoising.imaging.noise import parse_noise
from denoising.training.methods import (
    Neighbor2Neighbor,
    Noise2Noise,
    Recorrupted2Recorrupted,
    Regression,
    Supervised,
    build_method,
    default_loss,
    draw_picks,
    intact,
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
    # Made by the published masks (unfold, boolean selection) with pairs 4 7 5, 0 3 3 and 3 7 1, 3 5 2.
    image = np.arange(2 * 2 * 4 * 6, dtype=np.float32).reshape(2, 2, 4, 6)
    picks = np.array([
        [[[0, 1, 1], [0, 1, 1]], [[1, 1, 0], [0, 0, 0]], [[0, 0, 1], [0, 0, 0]]],
        [[[1, 1, 0], [1, 1, 0]], [[0, 1, 0], [0, 0, 1]], [[0, 0, 1], [0, 1, 1]]],
    ], bool)  # fmt: skip
    first, second = split(image, picks)
    assert first.astype(int).tolist() == [
        [[[1, 9, 10], [12, 20, 22]], [[25, 33, 34], [36, 44, 46]]],
        [[[54, 57, 52], [66, 68, 65]], [[78, 81, 76], [90, 92, 89]]],
    ]
    assert second.astype(int).tolist() == [
        [[[0, 8, 4], [13, 21, 23]], [[24, 32, 28], [37, 45, 47]]],
        [[[55, 56, 58], [67, 62, 71]], [[79, 80, 82], [91, 86, 95]]],
    ]


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
    assert optimum("tone_mapped", targets) == pytest.approx(targets.mean(), abs=0.02)
    assert optimum("psnr", targets) == pytest.approx(targets.mean(), abs=0.01)


def test_the_loss_in_decibels_is_minus_the_mean_psnr():
    rng = np.random.default_rng(0)
    target = rng.random((3, 3, 32, 32), np.float32)
    strengths = np.float32([0.02, 0.1, 0.3])[:, None, None, None]
    noisy = target + strengths * rng.standard_normal(target.shape, np.float32)
    loss = Noise2Noise("psnr")(lambda x: x, paddle.to_tensor(noisy), paddle.to_tensor(target))[0].item()
    psnr = -10 * np.log10(((noisy - target) ** 2).mean(axis=(1, 2, 3)) + (5 / 255) ** 2)
    assert loss == pytest.approx(-psnr.mean(), abs=0.02)
    # An image that is exact has a loss too, which is finite.
    same = paddle.to_tensor(target)
    assert Noise2Noise("psnr")(lambda x: x, same, same)[0].item() == pytest.approx(-34.15, abs=0.01)


def test_the_loss_in_units_of_the_noise():
    """Each brightness counts alike: a residual that is the noise alone costs one, and its target's noise one more."""
    rng = np.random.default_rng(0)
    clean = np.zeros((2, 1, 64, 64), np.float32)
    deviation = np.float32([0.001, 0.1])[:, None, None, None] * np.ones_like(clean)
    shots = [clean + deviation * rng.standard_normal(clean.shape, np.float32) for _ in range(2)]
    given, target = paddle.to_tensor(np.concatenate([shots[0], deviation], axis=1)), paddle.to_tensor(shots[1])
    loss = Noise2Noise("sigma")(lambda x: x[:, :1], given, target)[0].item()
    assert loss == pytest.approx(2, abs=0.1)
    assert Noise2Noise("sigma")(lambda x: 0 * x[:, :1], given, target)[0].item() == pytest.approx(1, abs=0.05)


def test_two_shots_of_a_camera_are_input_and_target():
    scene = np.random.default_rng(0).random((24, 24, 3), np.float32)
    noisy, target = Noise2Noise().corrupt(scene, parse_noise("camera5"), streams(3, 0, 0))
    wanted = parse_noise("camera5").shots(scene, generator(3, NOISE, 0, 0), generator(3, TARGET, 0, 0))
    assert (noisy == wanted[0]).all()
    assert (target == wanted[1]).all()
    assert (noisy != target).any()


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


@pytest.mark.parametrize(
    ("loss", "ramp", "expected"),
    [
        ("l2", 0.0, [0.16, 0.01, 0.25]),
        ("l1", 0.0, [0.4, 0.1, 0.5]),
        ("l0", 0.0, [0.16, 0.01, 0.25]),
        ("l0", 0.5, [0.4, 0.1, 0.5]),
        ("l0", 1.0, [1.0, 1.0, 1.0]),
        # Relative to the brightness of the output, 0.5, 0.2 and -0.1, of which what is below black counts as black.
        ("hdr", 0.0, [0.16 / 0.51**2, 0.01 / 0.21**2, 0.25 / 0.01**2]),
    ],
)
def test_the_distances_are_those_of_the_papers(loss, ramp, expected):
    denoised, target = (
        paddle.to_tensor(np.array(values, np.float32).reshape(1, 1, 1, 3))
        for values in ([0.5, 0.2, -0.1], [0.1, 0.3, 0.4])
    )
    found = Regression(loss)(lambda x: x, denoised, target, ramp=ramp)
    assert found[0].item() == pytest.approx(np.mean(expected), rel=1e-5)
    assert (found[1].item(), found[2].item(), found[3]) == (found[0].item(), 0, 0)


def test_the_loss_of_pictures_is_their_squared_error():
    rng = np.random.default_rng(0)
    light = rng.uniform(0.05, 5, (1, 3, 8, 8)).astype("float32")
    target = light * rng.uniform(0.99, 1.01, light.shape).astype("float32")
    found = Regression("tone_mapped")(lambda x: x, paddle.to_tensor(light), paddle.to_tensor(target))[1].item()
    # As if all were a hundredth brighter, which keeps the slope finite at black.
    expected = np.mean((renders.tone_map(light + 0.01) - renders.tone_map(target + 0.01)) ** 2)
    assert found == pytest.approx(expected, rel=0.02)


def test_a_firefly_in_the_target_pulls_as_far_as_white_does():
    pulls = []
    for light in (1.0, 10.0, 1000.0):
        weight = paddle.create_parameter([1], "float32", default_initializer=paddle.nn.initializer.Constant(0.5))
        target = 0.6 + 0.5 * paddle.to_tensor([1.0, -1.0]).tile([1, 3, 40, 20])
        target[:, :, 20, 20] = light
        Regression("tone_mapped")(lambda x, weight=weight: x * 0 + weight, target, target)[0].backward()
        pulls.append(-weight.grad.item())
    assert pulls[1:] == pytest.approx(pulls[:1] * 2, rel=0.05)


def test_pictures_with_little_noise_count_as_much_as_others():
    def pull(noise):
        weight = paddle.create_parameter([1], "float32", default_initializer=paddle.nn.initializer.Constant(0.0))
        light = paddle.full([1, 3, 4, 4], 0.5)
        target = light + noise * paddle.to_tensor([1.0, -1.0]).tile([1, 3, 4, 2]) + noise / 2
        Regression("tone_mapped")(lambda x, weight=weight: x + weight, light, target)[0].backward()
        return -weight.grad.item() * noise  # a tenth of the noise is a tenth of the way to go

    assert pull(0.1) == pytest.approx(pull(0.2), rel=0.2)


def test_the_weights_of_intact_pixels_are_no_part_of_the_gradient():
    # 0.1 and -0.1 beside an impulse: its share of the loss and of the gradient is next to nothing.
    weight = paddle.create_parameter([1], "float32", default_initializer=paddle.nn.initializer.Constant(0.0))
    target = np.full((1, 1, 10, 10), 0.1, np.float32)
    target[0, 0, ::2] *= -1
    target[0, 0, 3, 3] = 1
    diff, share = -target, intact(paddle.to_tensor(-target)).numpy()
    assert share[0, 0, 3, 3] < 0.01
    loss = Regression("robust")(lambda x: x + weight, paddle.zeros(target.shape), paddle.to_tensor(target))[0]
    loss.backward()
    assert loss.item() == pytest.approx((diff**2 * share).mean(), rel=1e-4)
    assert weight.grad.item() == pytest.approx((2 * diff * share).mean(), rel=1e-3)


def test_intact_is_the_recorded_mixture():
    """Eight rounds of the likeliest mixture, for two channels: values that never change."""
    diff = np.random.default_rng(0).normal(0, 0.05, (1, 2, 8, 8)).astype(np.float32)
    diff[0, :, :2] = np.random.default_rng(1).uniform(-1, 1, (2, 2, 8))
    found = intact(paddle.to_tensor(diff)).numpy()
    assert found.shape == (1, 1, 8, 8)
    assert [found[0, 0, 0, 0], found.mean(), found[0, 0, 7, 7]] == pytest.approx([0, 0.73218, 0.98082], abs=1e-4)
    # At their bounds: no pixel is hit, nearly all are, and the output is the target already.
    near, far = np.zeros((1, 1, 4, 4), np.float32), np.random.default_rng(3).uniform(-3, 3, (1, 1, 8, 8))
    near[0, 0, 0, 0], far[0, 0, 0, 0] = 0.03, 0.01
    assert intact(paddle.to_tensor(near)).numpy()[0, 0, 0, :2] == pytest.approx([0.86771, 0.99831], abs=1e-4)
    assert intact(paddle.to_tensor(far.astype(np.float32))).numpy()[0, 0, 0, 0] == pytest.approx(0.56016, abs=1e-4)
    assert intact(paddle.zeros([1, 1, 4, 4])).numpy().min() > 0.99


def test_each_image_of_a_batch_has_a_mixture_of_its_own():
    rng = np.random.default_rng(0)
    few, soft = rng.normal(0, 0.02, (1, 2, 8, 8)), rng.normal(0, 0.2, (1, 2, 8, 8))
    few[0, :, :1] = rng.uniform(-1, 1, (2, 1, 8))
    batch = paddle.to_tensor(np.concatenate([few, soft, 3 * few]).astype(np.float32))
    found = intact(batch).numpy()
    assert found[:2].mean((1, 2, 3)) == pytest.approx([0.87348, 0.65075], abs=1e-4)
    for number in range(3):
        np.testing.assert_allclose(found[number], intact(batch[number : number + 1]).numpy()[0], atol=1e-5)


def test_the_regulariser_costs_nothing_until_it_counts():
    paddle.seed(0)
    calls = []

    def network(image):
        calls.append(image.shape)
        return image * 0.5

    noisy = paddle.to_tensor(np.random.default_rng(0).random((1, 1, 8, 8), np.float32))
    picks = paddle.to_tensor(draw_picks(np.random.default_rng(0), 8, 8)[None])
    for method, ramp in ((Neighbor2Neighbor(Lambda1=3), 0.0), (Neighbor2Neighbor(Lambda1=3, Lambda2=0), 1.0)):
        loss, loss1, loss2, Lambda = method(network, noisy, picks, ramp)
        assert loss.item() == pytest.approx(3 * loss1.item())
        assert (loss2.item(), Lambda) == (0, 2 * ramp)
    assert calls == [[1, 1, 4, 4]] * 2
    Neighbor2Neighbor()(network, noisy, picks, 0.5)
    assert calls[2:] == [[1, 1, 4, 4], [1, 1, 8, 8]]


# --- What each gets -----------------------------------------------------------------------------------------

CLEAN = np.random.default_rng(2).random((12, 16, 3), np.float32)


def test_purposes_have_generators_of_their_own():
    assert (ORDER, CROP, NOISE, PICKS, TARGET, MORE) == (0, 1, 2, 3, 4, 5)  # what a run is resumed with
    of = streams(7, 3, 1)
    first = [of(purpose).random() for purpose in range(6)]
    assert first == [generator(7, purpose, 3, 1).random() for purpose in range(6)]
    assert len({*first, *(streams(8, 3, 1)(purpose).random() for purpose in range(6))}) == 12
    assert generator(7, NOISE, 3, 1).random() == np.random.default_rng([7, 2, 3, 1]).random()
    assert of(NOISE).random() == first[NOISE]  # made anew at each call


def test_the_noisy_image_and_its_target_are_drawn_from_their_streams():
    of, model = streams(5, 1, 0), parse_noise("bernoulli0.4")
    noisy = model.add(CLEAN, of(NOISE))
    for method in (Neighbor2Neighbor(), Recorrupted2Recorrupted(parse_noise("gauss5"))):
        (found,) = method.corrupt(CLEAN, model, of)
        assert np.array_equal(found, noisy)
    found, target, known = Noise2Noise().corrupt(CLEAN, model, of)
    assert np.array_equal(found, noisy)
    assert np.array_equal(target, model.add(CLEAN, of(TARGET)))
    assert np.array_equal(known[..., 0], (target > 0).any(axis=2))
    assert len(Noise2Noise().corrupt(CLEAN, parse_noise("gauss5"), of)) == 2
    found, target = Supervised().corrupt(CLEAN, model, of)
    assert np.array_equal(found, noisy)
    assert target is CLEAN
    assert [method.clean_targets for method in (Supervised, Noise2Noise, Neighbor2Neighbor)] == [True, False, False]


def test_what_is_drawn_beside_a_patch():
    of, patch = streams(5, 1, 0), CLEAN.transpose(2, 0, 1)
    (picks,) = Neighbor2Neighbor().beside(patch, of)
    assert np.array_equal(picks, draw_picks(of(PICKS), 12, 16))
    assert picks.shape == (3, 6, 8)
    model = parse_noise("gauss5_50")
    found = Recorrupted2Recorrupted(model).beside(patch, of)
    for one, other in zip(found, model.recorrupt(patch, of(NOISE), of(MORE)), strict=True):
        assert np.array_equal(one, other)
    assert Supervised().beside(patch, of) == ()


def test_what_changes_during_a_training():
    plan = Namespace(progress=lambda *where: ("progress", *where), ramp=lambda *where: ("ramp", *where))
    assert Neighbor2Neighbor().ramp(plan, 3, 4.5) == ("ramp", 3, 4.5)
    for method in (Regression(), Recorrupted2Recorrupted(parse_noise("gauss5"))):
        assert method.ramp(plan, 3, 4.5) == ("progress", 3, 4.5)


def test_the_flags_make_the_method():
    def built(**options):
        flags = {
            "method": "neighbor2neighbor", "noisetype": "gauss25", "known_noise": None, "loss": None,
            "Lambda1": 0.5, "Lambda2": 3.0, "increase_ratio": 7.0, "clipped": 0.0,
        }  # fmt: skip
        return build_method(Namespace(**flags | options))

    method = built()
    assert type(method) is Neighbor2Neighbor
    assert (method.Lambda1, method.Lambda2, method.increase_ratio) == (0.5, 3.0, 7.0)
    method = Neighbor2Neighbor()
    assert (method.Lambda1, method.Lambda2, method.increase_ratio) == (1.0, 1.0, 2.0)
    method = built(method="recorrupted2recorrupted", noisetype="none", known_noise="poisson30")
    assert (type(method), method.noise.name, method.in_files) == (Recorrupted2Recorrupted, "poisson30", True)
    assert method.weight == parse_noise("poisson30").recorruption_weight
    method = built(method="recorrupted2recorrupted")
    assert (method.noise.name, method.in_files) == ("gauss25", False)
    assert built(method="recorrupted2recorrupted", loss="psnr").loss == "psnr"
    for name, kind in (("noise2noise", Noise2Noise), ("supervised", Supervised)):
        method = built(method=name, loss="l1")
        assert (type(method), method.loss, method.noise.name) == (kind, "l1", "gauss25")
    assert Regression().noise.name == "none"


@pytest.mark.parametrize("method", [Noise2Noise, Supervised])
def test_of_some_images_the_noise_is_cut_off_and_their_targets_are_whole(method):
    drawn = [method(clipped=0.7).corrupt(CLEAN, parse_noise("gauss50"), streams(seed)) for seed in range(100)]
    whole = [method().corrupt(CLEAN, parse_noise("gauss50"), streams(seed)) for seed in range(100)]
    cut = [np.array_equal(noisy, all_of_it.clip(0, 1)) for (noisy, _), (all_of_it, _) in zip(drawn, whole, strict=True)]
    assert sum(cut) == pytest.approx(70, abs=14)
    for (noisy, target), (all_of_it, same), is_cut in zip(drawn, whole, cut, strict=True):
        assert is_cut or np.array_equal(noisy, all_of_it)
        assert np.array_equal(target, same)


def test_mri_is_put_back_before_the_loss():
    model, rng = parse_noise("mri0.3"), np.random.default_rng(0)
    clean = rng.random((16, 16), np.float32)
    noisy = paddle.to_tensor(model.add(clean, rng)[None, None])
    target = paddle.to_tensor(clean[None, None])
    found = Supervised("l2", model)(paddle.zeros_like, noisy, target)[0].item()
    assert found == pytest.approx(((model.restore(noisy.numpy()[0, 0], 0 * clean) - clean) ** 2).mean(), rel=1e-3)
    assert found < 0.9 * (clean**2).mean()
