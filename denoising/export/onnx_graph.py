"""A network as a list of simple nodes, which onnx_file.py writes and quantization.py turns into 8 bits.

    >>> nodes = trace(network)

The network is not converted from another format but asked what it computes: its `ops` are replaced by others that
record each operation. Transposed convolutions become 1x1 convolutions whose channels are then laid out as 2x2 pixels:
that is the same, and can run in 8 bits. Batch normalisations become part of the convolution before them.
"""

from dataclasses import dataclass, field, replace

import numpy as np

from denoising.cli import UserError

INPUT = "noisy"


@dataclass(frozen=True)
class Node:
    """One operation on NCHW tensors. `name` is also that of the tensor it makes."""

    kind: str  # conv, norm, or one of MOVES, or add
    name: str
    inputs: tuple
    channels: int  # of that tensor
    slope: float = 1.0  # of the leaky ReLU that follows a conv or norm; 1 is none
    weight: np.ndarray | None = field(default=None, repr=False)
    bias: np.ndarray | None = field(default=None, repr=False)
    epsilon: float = 0.0  # of a norm


# These only move numbers or pick some of them, and run on whatever type their input has.
MOVES = ("pool", "blocks", "shuffle", "unshuffle", "double", "concat")


# --- Tracing ------------------------------------------------------------------------------------------------


class _Recorder:
    """A network's `ops` that take and return names."""

    def __init__(self, network):
        self.layers = {id(layer): name for name, layer in network.named_sublayers()}
        self.nodes, self.channels, self.unshuffled = [], {INPUT: network.n_input}, set()

    def enter(self, image):
        return image

    leave = enter

    def _add(self, kind, name, *inputs, channels=None, **more):
        while name in self.channels:
            name += "_"
        if kind != "conv" and self.unshuffled & set(inputs):
            raise UserError(f"--format: after an unshuffle only convolutions can be written, not {name}")
        self.channels[name] = channels or self.channels[inputs[0]]
        self.nodes.append(Node(kind, name, inputs, self.channels[name], **more))
        return name

    def _conv(self, x, layer, weight, bias, slope=1.0):
        size = len(weight)
        return self._add("conv", self.layers[id(layer)], x, channels=size, slope=slope, weight=weight, bias=bias)

    def _joined(self, x, skip):
        return self._add("concat", f"{x}.concat", x, skip, channels=self.channels[x] + self.channels[skip])

    def conv(self, x, layer, slope=0.2):
        weight = layer.weight.numpy()
        if x in self.unshuffled:
            # Paddle orders the channels by colour, ONNX by place. To order them again by a Gather would be one
            # operation more, after which OpenVINO 2026.4 gives wrong results.
            weight = weight[:, np.arange(self.channels[x]).reshape(-1, 4).T.ravel()]
        return self._conv(x, layer, weight, layer.bias.numpy(), slope)

    def pool(self, x):
        return self._add("pool", f"{x}.pool", x)

    def upsample_cat(self, x, layer, skip):
        # [in, out, 2, 2] to four blocks of `out` channels, one for each of the 2x2 pixels.
        weight = layer.weight.numpy().transpose(2, 3, 1, 0)
        weight = weight.reshape(-1, weight.shape[3], 1, 1)
        x = self._conv(x, layer, weight, np.tile(layer.bias.numpy(), 4))
        return self._joined(self._add("blocks", f"{x}.blocks", x, channels=self.channels[x] // 4), skip)

    def enlarge_cat(self, x, skip):
        return self._joined(self._add("double", f"{x}.double", x), skip)

    def shuffle(self, x):
        return self._add("shuffle", f"{x}.shuffle", x, channels=self.channels[x] // 4)

    def unshuffle(self, x):
        name = self._add("unshuffle", f"{x}.unshuffle", x, channels=self.channels[x] * 4)
        self.unshuffled.add(name)
        return name

    def add(self, x, y):
        return self._add("add", f"{x}.add", x, y)

    def norm(self, x, layer, slope=0.2):
        if not hasattr(layer, "_mean"):
            scale, bias = layer.scale.numpy(), layer.bias.numpy()
            name = self.layers[id(layer)]
            return self._add("norm", name, x, slope=slope, weight=scale, bias=bias, epsilon=layer._epsilon)
        # Batch normalisation of a trained network: constants, which go into the convolution before it.
        conv = self.nodes.pop()
        assert conv.name == x
        factor = layer.weight.numpy() / np.sqrt(layer._variance.numpy() + layer._epsilon)
        bias = (conv.bias - layer._mean.numpy()) * factor + layer.bias.numpy()
        weight = conv.weight * factor[:, None, None, None]
        self.nodes.append(replace(conv, weight=weight, bias=bias, slope=slope))
        return x


def trace(network):
    """The nodes of a network in the order of execution; the last one makes the result."""
    recorder, ops = _Recorder(network), network.ops
    network.ops = recorder
    try:
        last = network.body(INPUT)
    finally:
        network.ops = ops
    assert recorder.nodes[-1].name == last
    return recorder.nodes


def multiplications(nodes, height, width):
    """How often each convolution multiplies and adds for one image, by its name."""
    area, count = {INPUT: height * width}, {}
    factors = {"pool": 1 / 4, "unshuffle": 1 / 4, "blocks": 4, "shuffle": 4, "double": 4}
    for node in nodes:
        area[node.name] = area[node.inputs[0]] * factors.get(node.kind, 1)
        if node.kind == "conv":
            count[node.name] = int(area[node.name] * node.weight.size)
    return count


def groups(nodes):
    """Lists of tensors that hold the same numbers, moved: if one has 8 bits, all of its list have, with one scale."""
    leader = {INPUT: INPUT}
    for node in nodes:
        leader[node.name] = node.name
        if node.kind in MOVES:
            merged = {leader[name] for name in node.inputs}
            leader = {name: node.name if of in merged else of for name, of in leader.items()}
    return [[name for name, of in leader.items() if of == first] for first in dict.fromkeys(leader.values())]


@dataclass(frozen=True)
class Int8Scales:
    """What quantization.py has found: how the tensors of a network become 8 bits.

    A number x becomes round(x / scale) + zero point, clipped to 0..255.
    """

    scales: dict  # (scale, zero point) of each tensor
    before_activation: dict  # the same of what an activation gets: ONNX Runtime rounds there, too
    floats: frozenset  # the convolutions that stay in float
