"""The framework in NumPy alone: each derivative against finite differences and against Paddle's own layers."""

import ast
import subprocess
import sys

import numpy as np
import pytest

import convolution
import layers
import optim
from conftest import ENVIRONMENT, ROOT
from tensor import Tensor, concat, gradients, no_recording
from unet import UNet

FOLDER = ROOT / "from_scratch"
RNG = np.random.default_rng(0)

# kernel, stride, padding, dilation, groups
GEOMETRIES = [
    (3, 1, 1, 1, 1),
    (1, 1, 0, 1, 1),
    (3, 2, 1, 1, 1),
    (2, 2, 0, 1, 1),
    (5, 3, 2, 1, 1),
    (3, 1, 2, 2, 1),
    (3, 2, 2, 2, 2),
    (3, 1, 1, 1, 2),
    (3, 1, 1, 1, 4),
    (1, 1, 2, 1, 1),
    (4, 2, 1, 1, 4),
    (3, 1, 0, 1, 2),
]


def arrays(*shapes, dtype=np.float64):
    """Random numbers away from the kinks of the activations, all different from each other."""
    found = []
    for shape in shapes:
        values = RNG.standard_normal(shape)
        found.append((values + 0.05 * np.sign(values)).astype(dtype))
    return found


def through(operation, inputs, weights):
    """One number from an operation's result, and tensors to differentiate it by."""
    tensors = [Tensor(array, trainable=True) for array in inputs]
    return (operation(*tensors) * weights).mean(), tensors


def assert_finite_differences_agree(operation, *inputs, step=1e-6):
    """Compares every number of every gradient with (f(x + h) - f(x - h)) / 2h."""
    weights = RNG.standard_normal(operation(*map(Tensor, inputs)).shape)
    found = gradients(*through(operation, inputs, weights))
    for array, gradient in zip(inputs, found, strict=True):
        assert gradient.shape == array.shape
        expected = np.empty_like(array)
        for place in np.ndindex(array.shape):
            kept, sides = array[place], []
            for moved in (kept + step, kept - step):
                array[place] = moved
                sides.append(float(through(operation, inputs, weights)[0].data))
            array[place] = kept
            expected[place] = (sides[0] - sides[1]) / (2 * step)
        np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-9)


def geometry_of(case):
    return dict(zip(("stride", "padding", "dilation", "groups"), case[1:], strict=True))


# --- Against finite differences -----------------------------------------------------------------------------


@pytest.mark.parametrize("case", GEOMETRIES)
def test_a_convolution_differentiates(case):
    k, groups = case[0], case[4]
    inputs = arrays((2, 7, 6, 4), (k, k, 4 // groups, 8), (8,))
    assert_finite_differences_agree(lambda *t: layers.conv2d(*t, **geometry_of(case)), *inputs)


@pytest.mark.parametrize("case", [case for case in GEOMETRIES if case != (1, 1, 2, 1, 1)])
def test_a_transposed_convolution_differentiates(case):
    k, stride, groups = case[0], case[1], case[4]
    inputs = arrays((2, 3, 4, 8), (k, k, 4 // groups, 8), (4,))
    assert_finite_differences_agree(
        lambda *t: layers.conv_transpose2d(*t, output_padding=stride - 1, **geometry_of(case)), *inputs
    )


@pytest.mark.parametrize(
    ("operation", "shapes"),
    [
        (lambda x: layers.max_pool2d(x, 2, 2), [(2, 6, 5, 3)]),
        (lambda x: layers.max_pool2d(x, 3, 2), [(2, 7, 8, 3)]),
        (lambda x: layers.avg_pool2d(x, 2, 2), [(2, 6, 5, 3)]),
        (lambda x: layers.avg_pool2d(x, 3, 1), [(2, 5, 6, 3)]),
        (lambda x: layers.upsample_nearest(x, 3), [(2, 3, 2, 3)]),
        (lambda x: layers.leaky_relu(x, 0.1), [(2, 3, 4, 3)]),
        (lambda x: layers.leaky_relu(x), [(2, 3, 4, 3)]),
        (layers.sigmoid, [(2, 3, 4, 3)]),
        (layers.mse, [(2, 3, 4, 3), (2, 3, 4, 3)]),
        (layers.l1, [(2, 3, 4, 3), (2, 3, 4, 3)]),
        (lambda a, b: concat([a, b, a]), [(2, 3, 4, 1), (2, 3, 4, 3)]),
        (lambda a, b: a + b, [(2, 3, 4), (4,)]),
        (lambda a, b: a - b, [(3, 1), (2, 1, 4)]),
        (lambda a, b: a * b, [(2, 3), (2, 1)]),
        (lambda a: a * a * 3 - a, [(2, 3)]),
        (lambda a, b: a @ b, [(2, 3), (3, 4)]),
    ],
)
def test_an_operation_differentiates(operation, shapes):
    assert_finite_differences_agree(operation, *arrays(*shapes))


def test_the_unet_differentiates():
    net, (x, target) = UNet(features=2), arrays((1, 8, 12, 3), (1, 8, 12, 3))
    weights = list(net.parameters().values())
    for weight in weights:
        weight.data = weight.data.astype(np.float64)
    found = gradients(layers.mse(net(Tensor(x)), Tensor(target)), weights)
    # Along a random direction: of all weights at once, and of each tensor alone.
    for chosen in [weights, *([weight] for weight in weights)]:
        steps = {weight: RNG.standard_normal(weight.shape) for weight in chosen}
        slope = sum((steps[w] * g).sum() for w, g in zip(weights, found, strict=True) if w in steps)
        sides = []
        for sign in (1e-6, -1e-6):
            for weight in chosen:
                weight.data += sign * steps[weight]
            sides.append(float(layers.mse(net(Tensor(x)), Tensor(target)).data))
            for weight in chosen:
                weight.data -= sign * steps[weight]
        assert (sides[0] - sides[1]) / 2e-6 == pytest.approx(slope, rel=1e-5, abs=1e-9)


# --- Against Paddle -----------------------------------------------------------------------------------------


def nchw(array):
    return np.ascontiguousarray(np.moveaxis(array, -1, 1))


def assert_close(ours, theirs):
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


def assert_paddle_agrees(operation, theirs, x, parameters=(), to_paddle=lambda w: w):
    """The result, and the gradients by the input and by all weights, in float32."""
    import paddle

    ours = [Tensor(array, trainable=True) for array in (x, *parameters)]
    y = operation(*ours)
    weights = RNG.standard_normal(y.shape).astype(np.float32)
    found = gradients((y * weights).mean(), ours)

    tensors = [paddle.to_tensor(a, stop_gradient=False) for a in (nchw(x), *map(to_paddle, parameters))]
    result = theirs(*tensors)
    (result * paddle.to_tensor(nchw(weights))).mean().backward()
    assert_close(nchw(y.data), result.numpy())
    assert_close(nchw(found[0]), tensors[0].grad.numpy())
    for gradient, tensor in zip(found[1:], tensors[1:], strict=True):
        assert_close(to_paddle(gradient), tensor.grad.numpy())


def paddle_weight(w):
    """kh x kw x C/G x O to O x C/G x kh x kw; also right for transposed convolutions. A bias stays as it is."""
    return np.ascontiguousarray(w.transpose(3, 2, 0, 1)) if w.ndim == 4 else w


@pytest.mark.parametrize("case", GEOMETRIES)
def test_a_convolution_is_paddles(case):
    from paddle.nn import functional as F

    k, groups = case[0], case[4]
    x, w, b = arrays((3, 13, 10, 8), (k, k, 8 // groups, 12), (12,), dtype=np.float32)
    geometry = geometry_of(case)
    assert_paddle_agrees(
        lambda *t: layers.conv2d(*t, **geometry), lambda *t: F.conv2d(*t, **geometry), x, (w, b), paddle_weight
    )


@pytest.mark.parametrize("case", [case for case in GEOMETRIES if case != (1, 1, 2, 1, 1)])
def test_a_transposed_convolution_is_paddles(case):
    from paddle.nn import functional as F

    k, stride, groups = case[0], case[1], case[4]
    x, w, b = arrays((3, 7, 6, 8), (k, k, 12 // groups, 8), (12,), dtype=np.float32)
    geometry = geometry_of(case) | {"output_padding": stride - 1}
    assert_paddle_agrees(
        lambda *t: layers.conv_transpose2d(*t, **geometry),
        lambda *t: F.conv2d_transpose(*t, **geometry),
        x, (w, b), paddle_weight,
    )  # fmt: skip


def test_other_layers_are_paddles():
    from paddle.nn import functional as F

    (x,) = arrays((3, 9, 10, 4), dtype=np.float32)
    pairs = [
        (layers.MaxPool2d(2), lambda t: F.max_pool2d(t, 2)),
        (layers.MaxPool2d(3, stride=2), lambda t: F.max_pool2d(t, 3, 2)),
        (layers.AvgPool2d(2), lambda t: F.avg_pool2d(t, 2)),
        (layers.AvgPool2d(3, stride=1), lambda t: F.avg_pool2d(t, 3, 1)),
        (layers.Upsample(2), lambda t: F.interpolate(t, scale_factor=2, mode="nearest")),
        (layers.ReLU(), F.relu),
        (layers.LeakyReLU(0.2), lambda t: F.leaky_relu(t, 0.2)),
        (layers.Sigmoid(), F.sigmoid),
    ]
    for ours, theirs in pairs:
        assert_paddle_agrees(ours, theirs, x)
    # Of equal values the first gets the gradient, as after a ReLU that made many zeros.
    assert_paddle_agrees(layers.MaxPool2d(2), lambda t: F.max_pool2d(t, 2), np.maximum(x[:, :8], 0))


def test_the_losses_are_paddles():
    import paddle
    from paddle.nn import functional as F

    a, b = arrays((2, 5, 4, 3), (2, 5, 4, 3), dtype=np.float32)
    for ours, theirs in [(layers.mse, F.mse_loss), (layers.l1, F.l1_loss)]:
        mine, x = Tensor(a, trainable=True), paddle.to_tensor(a, stop_gradient=False)
        loss, expected = ours(mine, Tensor(b)), theirs(x, paddle.to_tensor(b))
        expected.backward()
        assert_close(loss.data, expected.numpy())
        assert_close(gradients(loss, [mine])[0], x.grad.numpy())


def test_the_unet_is_paddles():
    import paddle
    from paddle.nn import functional as F

    net = UNet(features=4)
    x, target = arrays((2, 16, 24, 3), (2, 16, 24, 3), dtype=np.float32)
    names, weights = zip(*net.parameters().items(), strict=True)
    loss = layers.mse(net(Tensor(x)), Tensor(target))
    found = gradients(loss, weights)

    theirs = {
        n: paddle.to_tensor(paddle_weight(w.data), stop_gradient=False) for n, w in zip(names, weights, strict=True)
    }

    def conv(t, name):
        return F.conv2d(t, theirs[f"{name}.weight"], theirs[f"{name}.bias"], padding=1)

    def convs(t, name):
        for i in range(0, len(getattr(net, name).parameters()), 2):
            t = F.leaky_relu(conv(t, f"{name}.{i}"), 0.1)
        return t

    def up(t, name):
        return F.conv2d_transpose(t, theirs[f"{name}.weight"], theirs[f"{name}.bias"], stride=2)

    image = paddle.to_tensor(nchw(x))
    level0 = convs(image, "enc0")
    level1 = convs(F.max_pool2d(level0, 2), "enc1")
    level2 = convs(F.max_pool2d(level1, 2), "enc2")
    y = convs(paddle.concat([up(level2, "up1"), level1], axis=1), "dec1")
    y = image + conv(convs(paddle.concat([up(y, "up0"), level0], axis=1), "dec0"), "last")
    expected = F.mse_loss(y, paddle.to_tensor(nchw(target)))
    expected.backward()
    assert_close(loss.data, expected.numpy())
    for name, gradient in zip(names, found, strict=True):
        assert_close(paddle_weight(gradient), theirs[name].grad.numpy())


def test_the_optimizers_are_paddles():
    import paddle

    (start,) = arrays((3, 4), dtype=np.float32)
    steps = arrays(*[(3, 4)] * 5, dtype=np.float32)
    cases = [
        (lambda w: optim.SGD(w, 0.1), lambda p: paddle.optimizer.SGD(0.1, parameters=p)),
        (lambda w: optim.SGD(w, 0.1, momentum=0.9), lambda p: paddle.optimizer.Momentum(0.1, 0.9, parameters=p)),
        (lambda w: optim.Adam(w, 0.1), lambda p: paddle.optimizer.Adam(0.1, parameters=p)),
        # An epsilon this large shows where it stands.
        (lambda w: optim.Adam(w, 0.1, eps=0.3), lambda p: paddle.optimizer.Adam(0.1, epsilon=0.3, parameters=p)),
    ]
    for make_ours, make_theirs in cases:
        ours = Tensor(start.copy(), trainable=True)
        theirs = paddle.create_parameter([3, 4], "float32")
        theirs.set_value(start)
        optimizer, other = make_ours([ours]), make_theirs([theirs])
        for g in steps:
            optimizer.step([g])
            (theirs * paddle.to_tensor(g)).sum().backward()
            other.step()
            other.clear_grad()
        assert ours.data.dtype == np.float32
        assert_close(ours.data, theirs.numpy())


# --- The tape -----------------------------------------------------------------------------------------------


def test_a_tensor_used_twice_gets_both_parts():
    (a,) = arrays((3,))
    x = Tensor(a, trainable=True)
    y = x * x
    np.testing.assert_allclose(gradients((y * x + y).mean(), [x, y])[0], (3 * a * a + 2 * a) / 3)


def test_a_long_chain_needs_no_recursion():
    x = y = Tensor(np.ones(2), trainable=True)
    for _ in range(5000):
        y = y + 1
    assert gradients(y.mean(), [x])[0].tolist() == [0.5, 0.5]


def test_what_a_loss_does_not_depend_on_has_gradient_zero():
    x, other = Tensor(np.ones(2), trainable=True), Tensor(np.ones(3), trainable=True)
    assert gradients((x * 2).mean(), [other])[0].tolist() == [0, 0, 0]


def test_nothing_is_kept_when_nothing_is_recorded():
    x = Tensor(np.ones((1, 4, 4, 3)), trainable=True)
    with no_recording():
        y = layers.max_pool2d(x, 2, 2)
    assert not y.tracked
    assert y.backward is None
    assert layers.max_pool2d(x, 2, 2).tracked


def test_only_one_number_is_a_loss():
    with pytest.raises(ValueError, match="one number"):
        gradients(Tensor(np.ones(2), trainable=True) * 2, [])


def test_float32_stays_float32():
    net, x = UNet(features=2), Tensor(np.zeros((1, 8, 8, 3), np.float32))
    loss = layers.l1(net(x), x) * 2 + layers.mse(net(x), x)
    assert loss.data.dtype == np.float32
    assert {g.dtype.name for g in gradients(loss, list(net.parameters().values()))} == {"float32"}


def test_a_window_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="fits into 2 x 9"):
        convolution.correlate(np.zeros((1, 2, 9, 1)), np.zeros((3, 3, 1, 1)))
    with pytest.raises(ValueError, match="unevenly"):
        layers.Conv2d(3, 4, 3, groups=2)


# --- Alone --------------------------------------------------------------------------------------------------


def test_it_imports_numpy_and_itself():
    own = {path.stem for path in FOLDER.glob("*.py")}
    assert {"tensor", "layers", "optim", "train"} <= own
    pictures = {"PIL", "matplotlib", "tqdm"}
    for path in FOLDER.glob("*.py"):
        found = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module.split(".")[0])
        allowed = own | sys.stdlib_module_names | {"numpy"}
        if path.stem in ("train", "denoise", "make_pairs"):
            allowed |= pictures
        assert found <= allowed, f"{path.name} imports {found - allowed}"
    code = f"import sys; sys.path.insert(0, {str(FOLDER)!r}); import denoise, make_pairs, train; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-I", "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )  # fmt: skip
    ours = {path.stem for path in ROOT.glob("*.py")} - {"train"}
    assert not {name.split(".")[0] for name in run.stdout.split()} & (ours | {"paddle", "torch", "scipy", "cv2"})
