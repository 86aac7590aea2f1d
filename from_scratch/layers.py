"""The layers of a network: modules that hold weights, and the operations on tensors that they call.

    >>> net = Sequential(Conv2d(3, 16, 3, padding=1), LeakyReLU(0.1), Conv2d(16, 3, 3, padding=1))
    >>> loss = mse(net(Tensor(noisy)), Tensor(clean))                    # N x H x W x C
    >>> gradients(loss, list(net.parameters().values()))

In each operation `forward` is the first lines and `backward` the function at its end: it takes the gradient of the
result and returns those of the inputs, None for one that nobody asked for.
"""

import numpy as np

from convolution import correlate, input_gradient, weight_gradient, windows
from tensor import Tensor

# --- Operations ---------------------------------------------------------------------------------------------


def conv2d(x, weight, bias, **geometry):
    """A convolution; geometry: stride, padding, dilation, groups."""
    y = correlate(x.data, weight.data, **geometry)
    y += bias.data

    def backward(g):
        dx = input_gradient(g, weight.data, x.shape, **geometry) if x.tracked else None
        dw = weight_gradient(x.data, g, weight.shape[:2], **geometry)
        return dx, dw, np.einsum("nhwc->c", g)

    return Tensor(y, (x, weight, bias), backward)


def conv_transpose2d(x, weight, bias, output_padding=0, **geometry):
    """The adjoint of a convolution: each pixel of x paints a filter into the result."""
    size, stride, padding = weight.shape[:2], geometry["stride"], geometry["padding"]
    height, width = (
        (length - 1) * stride - 2 * padding + geometry["dilation"] * (k - 1) + output_padding + 1
        for length, k in zip(x.shape[1:3], size, strict=True)
    )
    channels = weight.shape[2] * geometry["groups"]
    y = input_gradient(x.data, weight.data, (len(x.data), height, width, channels), **geometry)
    y = y + bias.data

    def backward(g):
        dx = correlate(g, weight.data, **geometry) if x.tracked else None
        return dx, weight_gradient(g, x.data, size, **geometry), np.einsum("nhwc->c", g)

    return Tensor(y, (x, weight, bias), backward)


def max_pool2d(x, size, stride):
    """The largest value of each window; of equal ones the first gets the gradient."""
    view = windows(x.data, (size, size), stride)
    places = list(np.ndindex(size, size))
    y = view[:, :, :, 0, 0].copy()
    for u, v in places[1:]:
        np.maximum(y, view[:, :, :, u, v], out=y)

    def backward(g):
        dx, g = np.zeros_like(x.data), g.copy()
        parts = windows(dx, (size, size), stride)
        for u, v in places:
            hit = view[:, :, :, u, v] == y
            parts[:, :, :, u, v] += g * hit
            g *= ~hit
        return (dx,)

    return Tensor(y, (x,), backward)


def avg_pool2d(x, size, stride):
    """The mean of each window."""
    y = windows(x.data, (size, size), stride).mean(axis=(3, 4))

    def backward(g):
        dx = np.zeros_like(x.data)
        parts = windows(dx, (size, size), stride)
        for u, v in np.ndindex(size, size):
            parts[:, :, :, u, v] += g / size**2
        return (dx,)

    return Tensor(y, (x,), backward)


def upsample_nearest(x, scale):
    """Each pixel scale x scale times."""
    n, height, width, c = x.shape
    y = np.broadcast_to(x.data[:, :, None, :, None], (n, height, scale, width, scale, c))

    def backward(g):
        return (g.reshape(n, height, scale, width, scale, c).sum(axis=(2, 4)),)

    return Tensor(y.reshape(n, height * scale, width * scale, c), (x,), backward)


def leaky_relu(x, slope=0.0):
    """Negative values times a slope of 0 to 1; with 0 it is ReLU."""
    y = np.maximum(x.data, slope * x.data)
    # maximum(True or False, slope) is 1 or the slope, and much faster than np.where.
    return Tensor(y, (x,), lambda g: (g * np.maximum(y > 0, g.dtype.type(slope)),))


def sigmoid(x):
    """1 / (1 + exp(-x)), written with tanh, which never overflows."""
    y = 0.5 * np.tanh(0.5 * x.data) + 0.5
    return Tensor(y, (x,), lambda g: (g * y * (1 - y),))


def mse(prediction, target):
    """The mean of squares, the L2 loss: its best prediction is the mean of all targets."""
    difference = prediction - target
    return (difference * difference).mean()


def l1(prediction, target):
    """The mean of absolute values, the L1 loss: its best prediction is the median of all targets."""
    return (prediction - target).abs().mean()


# --- Modules ------------------------------------------------------------------------------------------------


class Module:
    """Something with weights: its attributes that are tensors, and those of the modules among its attributes."""

    def __call__(self, *tensors):
        return self.forward(*tensors)

    def forward(self, *tensors):
        raise NotImplementedError

    def parameters(self):
        """All weights by name, like `enc0.weight`."""
        found = {}
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                found[name] = value
            elif isinstance(value, Module):
                found |= {f"{name}.{inner}": tensor for inner, tensor in value.parameters().items()}
        return found


class Sequential(Module):
    """One module after another."""

    def __init__(self, *modules):
        vars(self).update({str(i): module for i, module in enumerate(modules)})

    def forward(self, x):
        for module in vars(self).values():
            x = module(x)
        return x


class Conv2d(Module):
    """A convolution, He-initialised for the (leaky) ReLU that follows; weights kh x kw x C/groups x O."""

    def __init__(self, inputs, outputs, size, stride=1, padding=0, dilation=1, groups=1, rng=None):
        if inputs % groups or outputs % groups:
            raise ValueError(f"{groups} groups divide {inputs} and {outputs} channels unevenly")
        self.geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        self.weight = _normal((size, size, inputs // groups, outputs), 2 / (size * size * inputs / groups), rng)
        self.bias = Tensor(np.zeros(outputs, np.float32), trainable=True)

    def forward(self, x):
        return conv2d(x, self.weight, self.bias, **self.geometry)


class ConvTranspose2d(Module):
    """A transposed convolution; weights as those of the convolution it undoes, kh x kw x O/groups x C."""

    def __init__(
        self, inputs, outputs, size, stride=1, padding=0, output_padding=0, dilation=1, groups=1, rng=None
    ):  # fmt: skip
        if inputs % groups or outputs % groups:
            raise ValueError(f"{groups} groups divide {inputs} and {outputs} channels unevenly")
        self.geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        self.output_padding = output_padding
        # A pixel of the result is painted by (size / stride)^2 pixels of the input.
        self.weight = _normal((size, size, outputs // groups, inputs), stride**2 / (size**2 * inputs / groups), rng)
        self.bias = Tensor(np.zeros(outputs, np.float32), trainable=True)

    def forward(self, x):
        return conv_transpose2d(x, self.weight, self.bias, self.output_padding, **self.geometry)


def _normal(shape, variance, rng):
    rng = rng or np.random.default_rng(0)
    return Tensor(rng.normal(0, np.sqrt(variance), shape).astype(np.float32), trainable=True)


class MaxPool2d(Module):
    """The largest value of each window."""

    def __init__(self, size, stride=None):
        self.size, self.stride = size, stride or size

    def forward(self, x):
        return max_pool2d(x, self.size, self.stride)


class AvgPool2d(MaxPool2d):
    """The mean of each window."""

    def forward(self, x):
        return avg_pool2d(x, self.size, self.stride)


class Upsample(Module):
    """Each pixel `scale` times in both directions."""

    def __init__(self, scale=2):
        self.scale = scale

    def forward(self, x):
        return upsample_nearest(x, self.scale)


class LeakyReLU(Module):
    """Negative values times a slope."""

    def __init__(self, slope=0.1):
        self.slope = slope

    def forward(self, x):
        return leaky_relu(x, self.slope)


class ReLU(LeakyReLU):
    """Negative values become 0."""

    def __init__(self):
        super().__init__(slope=0.0)


class Sigmoid(Module):
    """Any value to one between 0 and 1."""

    def forward(self, x):
        return sigmoid(x)
