"""The network that weighs neighbours: what holds for it whatever it has learnt, and the filter that it starts as."""

import sys

import numpy as np
import paddle
import pytest

from arch_unet import JointBilateral, PlainOps, build_network, limited, median9
from conftest import ROOT, scene
from denoising import machine
from denoising.cli import UserError
from denoising.data import renders
from denoising.engine import operators
from denoising.imaging.pixels import Picture
from denoising.inference import checkpoint
from denoising.inference.denoiser import Denoiser, needs_fp32
from denoising.training.methods import Noise2Noise

RNG = np.random.default_rng(0)


def frame(height, width, seed=0, buffers=True):
    """A textured scene in heavy-tailed noise, with fireflies and a black corner."""
    rng = np.random.default_rng(seed)
    albedo = scene(height, width, seed=seed).astype(np.float32) / 255
    normal = rng.normal(size=(height, width, 3)).astype(np.float32) * [0.02, 0.02, 0] + [0, 0, 1]
    light = albedo * rng.gamma(0.7, 2, (height, width, 1)).astype(np.float32)
    light[height // 2, width // 2] *= 500
    light[:3, :3] = 0
    if not buffers:
        albedo, normal = np.zeros_like(albedo), np.zeros_like(normal)
    return renders.Frame(light.astype(np.float32), albedo, normal.astype(np.float32), Picture([]))


def tensor(frame):
    return paddle.to_tensor(frame.network_input().transpose(2, 0, 1)[None])


def network(n_feature=4, learnt=0.0):
    """One that has learnt something, if it is told how strongly."""
    paddle.seed(3)
    made = build_network("joint_bilateral", n_channel=3, n_input=9, n_feature=n_feature)
    if learnt:
        made.last.weight.set_value(paddle.randn(made.last.weight.shape) * learnt)
    made.eval()
    return made


def denoised(made, frame):
    with paddle.no_grad():
        return made(tensor(frame)).numpy()[0].transpose(1, 2, 0)


# --- The average -----------------------------------------------------------------------------------


def arguments(batch, lights, groups, height, width):
    guides = sum(groups) - 1
    drawn = RNG.normal(size=(batch, lights + guides + 1, height, width)).astype("float32")
    precision = RNG.uniform(0, 0.5, (batch, len(groups), height, width)).astype("float32")
    arrays = drawn[:, :lights], drawn[:, lights:-1], precision, drawn[:, -1:]
    return [paddle.to_tensor(np.ascontiguousarray(array), stop_gradient=False) for array in arrays]


def plainly(light, guide, precision, trust, groups, radius, dilation):
    """The definition in `weigh`, pixel by pixel."""
    light, guide, precision, trust = (array.numpy()[0] for array in (light, guide, precision, trust))
    precision = np.repeat(precision, groups, axis=0)
    height, width = light.shape[1:]
    result = np.zeros_like(light)
    steps = range(-radius, radius + 1)
    for y, x in np.ndindex(height, width):
        total = 0.0
        for down, right in ((a, b) for a in steps for b in steps):
            i, j = y + down * dilation, x + right * dilation
            if 0 <= i < height and 0 <= j < width:
                unlike = (precision[:-1, y, x] * (guide[:, y, x] - guide[:, i, j]) ** 2).sum()
                unlike += precision[-1, y, x] * (down**2 + right**2)
                weight = np.exp(trust[0, i, j] - 0.5 * unlike)
                total += weight
                result[:, y, x] += weight * light[:, i, j]
        result[:, y, x] /= total
    return result


@pytest.mark.parametrize(("radius", "dilation"), [(1, 1), (2, 3)])
def test_an_average_is_what_it_says(radius, dilation):
    groups = (2, 1, 1)
    given = [*arguments(1, 2, groups, 7, 9), groups, radius, dilation]
    np.testing.assert_allclose(PlainOps().weigh(*given).numpy()[0], plainly(*given), rtol=1e-4, atol=1e-5)


def test_its_gradients_are_those_of_finite_differences():
    paddle.set_default_dtype("float64")
    try:
        given = [
            paddle.to_tensor(x.numpy().astype("float64"), stop_gradient=False) for x in arguments(1, 2, (2, 1), 4, 5)
        ]
        weighting = paddle.to_tensor(RNG.normal(size=[1, 2, 4, 5]))

        def value():
            return (PlainOps().weigh(*given, (2, 1), 1, 2) * weighting).sum()

        for argument, gradient in zip(given, paddle.grad(value(), given), strict=True):
            for place in RNG.integers(0, argument.size, 6):
                change = np.zeros(argument.size)
                change[place] = 1e-5
                change = paddle.to_tensor(change.reshape(argument.shape))
                with paddle.no_grad():
                    argument.set_value(argument + change)
                    above = value()
                    argument.set_value(argument - 2 * change)
                    below = value()
                    argument.set_value(argument + change)
                slope = float(above - below) / 2e-5
                assert slope == pytest.approx(float(gradient.flatten()[int(place)]), rel=1e-5, abs=1e-8)
    finally:
        paddle.set_default_dtype("float32")


def test_median9():
    values = RNG.normal(size=(9, 50)).astype("float32")
    np.testing.assert_array_equal(median9(paddle.to_tensor(values)).numpy(), np.median(values, axis=0))


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (9, 50), (20, 130)])
def test_the_engine_calms_a_render_as_paddle_does(size):
    ops = operators.choose()[0]
    if isinstance(ops, PlainOps):
        pytest.skip("no engine here")
    render = 8 * RNG.random((2, 3, *size)).astype("float32") ** 6
    render[1, :, size[0] // 2, size[1] // 2] = 3000
    render[:, :, :3, :3] *= size[0] < 9  # black
    render = paddle.to_tensor(render)
    expected = PlainOps().calm(render).numpy()
    np.testing.assert_allclose(ops.calm(render).numpy(), expected, rtol=1e-5, atol=2e-6)
    if size[0] >= 9:
        assert expected[1, 3].min() < np.log(0.5)  # the firefly
        assert expected[:, :3].max() < 1
        assert np.median(expected[:, 3]) == 0


# --- The network -----------------------------------------------------------------------------------


@pytest.mark.parametrize("buffers", [True, False])
def test_at_the_start_it_is_the_filter_of_the_comparison(buffers):
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from render_comparison import joint_bilateral
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    noisy = frame(37, 45, buffers=buffers)
    expected = joint_bilateral(noisy)
    # The features, which are not quite zero, lower some weights by a thousandth.
    np.testing.assert_allclose(denoised(network(), noisy), expected, rtol=0.01, atol=1e-3)
    without = network()
    without.last.weight.set_value(without.last.weight * 0)
    np.testing.assert_allclose(denoised(without, noisy), expected, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("learnt", [0.0, 0.5])
def test_constant_light_stays_constant(learnt):
    noisy = frame(24, 32)
    noisy.render[:] = [0.3, 2.0, 0.01]
    noisy.albedo[:] = 0.5
    result = denoised(network(learnt=learnt), noisy)
    np.testing.assert_allclose(result, np.broadcast_to([0.3, 2.0, 0.01], result.shape), rtol=1e-4)


@pytest.mark.parametrize("buffers", [True, False])
def test_light_is_never_negative_nor_brighter_than_the_brightest(buffers):
    noisy = frame(40, 48, buffers=buffers)
    result = denoised(network(learnt=0.5), noisy)
    assert np.isfinite(result).all()
    assert result.min() >= 0
    # Divided by the albedo and multiplied by another one, light may grow by their ratio.
    bound = noisy.render.max() if not buffers else noisy.render.max() * 1.05 / 0.05
    assert result.max() <= bound * 1.001


def test_a_firefly_does_not_fill_its_window():
    noisy = frame(24, 32)
    calm = frame(24, 32)
    calm.render[12, 16] /= 500
    around = np.s_[8:17, 12:21]
    lifted = denoised(network(), noisy)[around] - denoised(network(), calm)[around]
    # It counts as ten times the median at most, among some hundred pixels. Untamed it would be five hundred times.
    assert np.median(np.abs(lifted)) < 0.1 * np.median(denoised(network(), calm)[around])


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (37, 45)])
def test_any_size(size):
    result = denoised(network(learnt=0.2), frame(*size))
    assert result.shape == (*size, 3)
    assert np.isfinite(result).all()


def test_tiles_equal_the_whole():
    made = network(learnt=0.2)
    made.ops = operators.choose()[0]
    image = frame(200, 220).network_input()
    whole, tiled = Denoiser(made, tile=2000)(image), Denoiser(made, tile=168)(image)
    np.testing.assert_allclose(tiled, whole, rtol=1e-3, atol=1e-4)


def test_every_weight_learns():
    made = network()
    made.train()
    made.ops = operators.choose()[0]
    for _ in range(2):
        loss = (made(tensor(frame(16, 16))) ** 2).mean()
        gradients = paddle.grad(loss, made.parameters())
        for parameter, gradient in zip(made.parameters(), gradients, strict=True):
            parameter.set_value(parameter - 0.01 * gradient / (gradient.abs().max() + 1e-12))
    for (name, _), gradient in zip(made.named_parameters(), gradients, strict=True):
        assert np.isfinite(gradient.numpy()).all()
        assert float(gradient.abs().max()) > 0, name


def test_while_it_trains_its_painting_learns_from_the_target_too():
    made, noisy = network(), frame(16, 16)
    x, target = tensor(noisy), paddle.rand([1, 3, 16, 16])
    made.train()
    result, painted = paddle.split(made(x), 2, axis=1)
    # Before the first step both are the filter's.
    np.testing.assert_allclose(result.numpy(), painted.numpy(), rtol=0.01, atol=1e-3)
    method = Noise2Noise("tone_mapped")
    alone = [float(method(lambda _, image=image: image, x, target)[1]) for image in (result, painted)]
    assert float(method(made, x, target)[1]) == pytest.approx(alone[0] + 0.1 * alone[1], rel=1e-5)
    made.eval()
    assert made(x).shape == [1, 3, 16, 16]


def test_what_is_beyond_its_limits_comes_back():
    """One bad step must not leave a painting black for good."""
    value = paddle.to_tensor([-9.0, 0.5, 9.0], stop_gradient=False)
    within = limited(value, -4.0, 4.0)
    assert within.numpy().tolist() == [-4.0, 0.5, 4.0]
    # A step lowers what has a gradient above 0.
    assert paddle.grad(within.sum(), [value], retain_graph=True)[0].numpy().tolist() == [0.0, 1.0, 1.0]
    assert paddle.grad(-within.sum(), [value])[0].numpy().tolist() == [-1.0, -1.0, 0.0]
    made, x = network(), tensor(frame(16, 16))
    made.train()
    dark = made.last.bias.numpy()
    painting = slice(25 * 4, 28 * 4)  # three colours of the four pixels that each output makes
    dark[painting] -= 6
    made.last.bias.set_value(dark)
    painted = made(x)[:, 3:]
    assert float(painted.max()) < 0.1 * float(made(x)[:, :3].max())
    (gradient,) = paddle.grad(Noise2Noise("tone_mapped")(made, x, paddle.rand([1, 3, 16, 16]))[0], [made.last.bias])
    assert (gradient.numpy()[painting] < 0).all()  # a step makes it brighter


def test_the_engine_computes_the_same():
    ops = operators.choose()[0]
    if isinstance(ops, PlainOps):
        pytest.skip("no engine here")
    made, noisy = network(learnt=0.2), frame(37, 45)
    expected = denoised(made, noisy)
    made.ops = ops
    np.testing.assert_allclose(denoised(made, noisy), expected, rtol=1e-3, atol=1e-4)


def test_bfloat16_does_not_show_in_its_light():
    made, noisy = network(learnt=0.05), frame(37, 45)
    assert not needs_fp32(made, {})
    assert needs_fp32(build_network("unet_n2n", n_channel=3, n_feature=4, n_input=9), {})
    expected = denoised(made, noisy)
    if "avx512_bf16" not in machine.cpu_flags() or isinstance(operators.choose()[0], PlainOps):
        pytest.skip("no bfloat16 here")
    made.ops = operators.choose("onednn", "bf16")[0]
    shown = [renders.tone_map(light) for light in (expected, denoised(made, noisy))]
    assert np.abs(shown[0] - shown[1]).mean() < 0.5 / 255


def test_weights_of_other_channels_are_refused(tmp_path):
    made = network()
    for change in ({"n_input": 3}, {"n_input": None}, {"n_channel": 1}, {"norm": "batch"}):
        options = {**made.options, **change}
        checkpoint.save_network(tmp_path / "a.pdparams", checkpoint.network_state(made), options)
        with pytest.raises(UserError, match=r"a\.pdparams: holds no network of this project"):
            checkpoint.load_network(tmp_path / "a.pdparams")
    checkpoint.save_network(tmp_path / "a.pdparams", checkpoint.network_state(made), made.options)
    assert isinstance(checkpoint.load_network(tmp_path / "a.pdparams")[0], JointBilateral)


def test_albedo_and_normals_are_denoised_before_the_light():
    """What the buffers' round gives is what light is weighed by, and multiplied by where textures were divided out."""
    made, noisy = network(), frame(24, 32)
    share, divided = 4 * 39, 4 * 24
    bias = made.last.bias.numpy()
    bias[share : share + 4] = 1
    bias[divided : divided + 4] = 1
    made.last.bias.set_value(bias)
    seen = []
    round_of = made.round
    made.round = lambda kind, *given: seen.append((kind, given[1], round_of(kind, *given))) or seen[-1][-1]
    result = made(tensor(noisy))
    (kind, raw, buffers), *of_light = seen
    assert kind is made.OF_BUFFERS
    assert all(given is buffers for _, given, _ in of_light)
    rough, calm = (np.abs(np.diff(x.numpy()[0, 3:], axis=2)).mean() for x in (raw, buffers))
    assert calm < 0.5 * rough
    light = of_light[-1][-1][:, 3:] * (buffers[:, :3] + 0.05)
    np.testing.assert_allclose(result.numpy(), light.numpy(), rtol=1e-3, atol=1e-5)
