"""A network as a list of simple nodes, and that list as an ONNX file.

    >>> nodes = trace(network)
    >>> data = to_onnx(nodes, network, record={"name": "unet"})  # bytes; any batch, height and width

The network is not converted from another format but asked what it computes: its `ops` are replaced by some that write
down what they are told. Transposed convolutions become 1x1 convolutions whose channels are then laid out as 2x2
pixels, which is the same, and runs in 8 bits; batch normalisations become part of the convolution before them.
"""

import hashlib
import json
from dataclasses import dataclass, field, replace

import numpy as np

from denoising.cli import UserError

OPSET, IR_VERSION = 17, 9  # of 2022: read by every ONNX Runtime since 1.14 and every OpenVINO since 2023
INPUT, OUTPUT = "noisy", "denoised"


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


# What only moves numbers or picks some of them: these run on whatever type their input has.
MOVES = ("pool", "blocks", "shuffle", "unshuffle", "double", "concat")


# --- Tracing ------------------------------------------------------------------------------------------------


class _Recorder:
    """A network's `ops` that take and return names."""

    def __init__(self, network):
        self.layers = {id(layer): name for name, layer in network.named_sublayers()}
        self.nodes, self.channels, self.unshuffled = [], {INPUT: channels_in(network)}, set()

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


def channels_in(network):
    """How many channels a network takes."""
    return network.options.get("n_input") or network.options["n_channel"]


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
    """The tensors that hold the same numbers as others, moved: where one has 8 bits, all have, with one scale."""
    leader = {INPUT: INPUT}
    for node in nodes:
        leader[node.name] = node.name
        if node.kind in MOVES:
            merged = {leader[name] for name in node.inputs}
            leader = {name: node.name if of in merged else of for name, of in leader.items()}
    return [[name for name, of in leader.items() if of == each] for each in dict.fromkeys(leader.values())]


# --- Writing ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Eight:
    """What quantization.py has found: how the tensors of a network become 8 bits.

    A number x becomes round(x / scale) + zero point, from 0 to 255.
    """

    scales: dict  # (scale, zero point) of each tensor
    before: dict  # the same of what an activation gets: ONNX Runtime rounds there, too
    floats: frozenset  # the convolutions that stay in float


class _Graph:
    """Nodes and constants of ONNX, each named after what it makes."""

    def __init__(self):
        from onnx import helper, numpy_helper

        self.make, self.to_tensor = helper.make_node, numpy_helper.from_array
        self.nodes, self.constants = [], {}

    def const(self, name, array):
        if name not in self.constants:
            self.constants[name] = self.to_tensor(np.asarray(array), name)
        return name

    def number(self, value):
        """A constant named after its value."""
        return self.const(f"{value.dtype}:{value:.9g}", value)

    def integer(self, value):
        return self.number(np.int64(value))

    def __call__(self, operator, name, *inputs, **attributes):
        self.nodes.append(self.make(operator, list(inputs), [name], name=name, **attributes))
        return name


def to_onnx(nodes, network, record, eight=None, also=()):
    """The file's bytes.

    Args:
        nodes: of `trace`, or what quantization.py has made of them.
        network: whose options and sizes these are.
        record: facts for whoever runs the file; JSON.
        eight: scales, for a file that computes in 8 bits.
        also: tensors that are handed out beside the result.
    """
    try:
        import onnx
        from onnx import TensorProto, helper
    except ImportError:
        raise UserError("--format: ONNX files need the package onnx: pip install onnx") from None

    graph = _Graph()
    floats, bytes_ = {INPUT: _padded(graph, network.multiple)}, {}  # where each tensor is to be had
    # The image is at hand in float whatever its users are; others are made once, in the type that they are needed in.
    whole = _in_bytes(nodes, eight)

    def quantised(name):
        if name not in bytes_:
            bytes_[name] = graph("QuantizeLinear", f"{name}/u8", floats[name], *_scale(graph, eight.scales[name]))
        return bytes_[name]

    def in_float(name):
        if name not in floats:
            floats[name] = graph("DequantizeLinear", f"{name}/f32", bytes_[name], *_scale(graph, eight.scales[name]))
        return floats[name]

    def finish(name, made):
        floats[name] = made
        if name in whole:
            quantised(name)
            del floats[name]

    # From mid-grey: bfloat16 keeps a bit or two more of a result around 0 than of one around 0.5.
    centred = nodes[-1].kind == "conv"
    for node in nodes:
        name = node.name
        if node.kind in MOVES and name in whole:
            bytes_[name] = _move(graph, node, [quantised(each) for each in node.inputs], name)
        elif node.kind in MOVES:
            floats[name] = _move(graph, node, [in_float(each) for each in node.inputs], name)
        elif node.kind == "add":
            finish(name, graph("Add", f"{name}/sum", *map(in_float, node.inputs)))
        else:
            bias = node.bias - np.float32(0.5) if centred and node is nodes[-1] else node.bias
            if node.kind == "norm":
                constants = graph.const(f"{name}.scale", node.weight), graph.const(f"{name}.bias", bias)
                y = graph("InstanceNormalization", f"{name}/norm", in_float(node.inputs[0]), *constants,
                          epsilon=node.epsilon)  # fmt: skip
            elif eight and name not in eight.floats:
                # A copy for this convolution alone: what others share, runtimes would keep in float.
                scale = eight.scales[node.inputs[0]]
                x = graph("DequantizeLinear", f"{name}/x", quantised(node.inputs[0]), *_scale(graph, scale))
                y = _convolution(graph, node, x, *_weights_in_bytes(graph, node, bias, scale[0]))
                if node.slope != 1.0 and name in whole:
                    scale = _scale(graph, eight.before[name])
                    y = graph("QuantizeLinear", f"{name}/before_u8", y, *scale)
                    y = graph("DequantizeLinear", f"{name}/before", y, *scale)
            else:
                constants = graph.const(f"{name}.weight", node.weight), graph.const(f"{name}.bias", bias)
                y = _convolution(graph, node, in_float(node.inputs[0]), *constants)
            if node.slope != 1.0:
                y = graph("LeakyRelu", f"{name}/act", y, alpha=node.slope)
            finish(name, y)

    crop = graph.const("from", np.int64([0, 0])), "size", graph.const("axes", np.int64([2, 3]))
    y = graph("Slice", "cropped" if centred else OUTPUT, in_float(nodes[-1].name), *crop)
    if centred:
        graph("Add", OUTPUT, y, graph.number(np.float32(0.5)))
    shapes = [(INPUT, channels_in(network)), (OUTPUT, network.options["n_channel"])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", c, "h", "w"]) for name, c in shapes]
    more = [helper.make_tensor_value_info(in_float(name), TensorProto.FLOAT, None) for name in also]
    body = helper.make_graph(graph.nodes, "denoiser", ends[:1], ends[1:] + more, [*graph.constants.values()])
    model = helper.make_model(
        body,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="neighbor2neighbor-paddle",
    )
    if not also:
        onnx.checker.check_model(model, full_check=True)
    record = {**record, "precision": "fp32"}
    if eight:
        # Where the result of a convolution stays in float, ONNX Runtime computes all of it in float.
        small = {node.name for node in nodes if node.kind == "conv" and node.name in whole} - eight.floats
        record |= {"precision": "int8", "int8_convolutions": len(small)}
    return sealed(model.SerializeToString(), record)


def _in_bytes(nodes, eight):
    """The tensors that exist in 8 bits: those that some 8-bit convolution takes, and what these are made from."""
    if not eight:
        return set()
    wanted = {node.inputs[0] for node in nodes if node.kind == "conv" and node.name not in eight.floats}
    return {name for group in groups(nodes) if wanted & set(group) for name in group}


def _scale(graph, scale):
    return graph.number(np.float32(scale[0])), graph.number(np.uint8(scale[1]))


def _convolution(graph, node, *inputs):
    size = node.weight.shape[2]
    return graph("Conv", f"{node.name}/conv", *inputs, kernel_shape=[size, size], pads=[size // 2] * 4)


def _weights_in_bytes(graph, node, bias, input_scale):
    """Weights in 8 bits with a scale for each output; the bias in 32, in the unit of the sums."""
    name, weight = node.name, node.weight
    scale = np.maximum(np.abs(weight).max((1, 2, 3)), 1e-12).astype(np.float32) / np.float32(127)
    steps = np.rint(weight / scale[:, None, None, None]).astype(np.int8)
    unit = np.maximum(scale * np.float32(input_scale), np.abs(bias) / 2**30).astype(np.float32)
    made = []
    for part, values, of in (("weight", steps, scale), ("bias", np.rint(bias / unit).astype(np.int32), unit)):
        zero = graph.const(f"{name}.{part}.zero", np.zeros(len(of), values.dtype))
        inputs = graph.const(f"{name}.{part}", values), graph.const(f"{name}.{part}.scale", of), zero
        made.append(graph("DequantizeLinear", f"{name}/{part}", *inputs, axis=0))
    return made


def _move(graph, node, inputs, name):
    if node.kind == "pool":
        return graph("MaxPool", name, *inputs, kernel_shape=[2, 2], strides=[2, 2])
    if node.kind == "double":
        sizes = graph.const("doubled", np.float32([1, 1, 2, 2]))
        how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return graph("Resize", name, *inputs, "", sizes, **how)
    if node.kind == "unshuffle":
        return graph("SpaceToDepth", name, *inputs, blocksize=2)
    if node.kind == "concat":
        return graph("Concat", name, *inputs, axis=1)
    return graph("DepthToSpace", name, *inputs, blocksize=2, mode="DCR" if node.kind == "blocks" else "CRD")


def _padded(graph, multiple):
    """The image, extended by reflection to what the pooling pyramid divides: `reflect_indices` of arch_unet.py."""
    one, step = graph.integer(1), graph.integer(multiple)
    shape = graph("Shape", "shape", INPUT)
    graph("Slice", "size", shape, graph.const("two", np.int64([2])), graph.const("four", np.int64([4])))
    image = INPUT
    for axis, name in ((2, "height"), (3, "width")):
        size = graph("Gather", name, shape, graph.integer(axis))
        count = graph("Add", f"{name}/count", size, graph.integer(multiple - 1))
        padded = graph("Mul", f"{name}/padded", graph("Div", f"{name}/steps", count, step), step)
        last = graph("Sub", f"{name}/last", size, one)
        period = graph("Max", f"{name}/period", graph("Add", f"{name}/twice", last, last), one)
        place = graph("Range", f"{name}/range", graph.integer(0), padded, one)
        place = graph("Sub", f"{name}/offset", last, graph("Mod", f"{name}/mod", place, period))
        place = graph("Sub", f"{name}/place", last, graph("Abs", f"{name}/abs", place))
        image = graph("Gather", f"{name}/reflected", image, place, axis=axis)
    return image


# --- The record ---------------------------------------------------------------------------------------------


def sealed(model, record):
    """Appends facts to a serialised model, and last the checksum of all that stands before it."""
    model += _entry("denoiser", json.dumps(record))
    return model + _entry("sha256", hashlib.sha256(model).hexdigest())


def _entry(key, value):
    """One of the model's metadata_props, as protobuf writes them."""
    from onnx import StringStringEntryProto

    data = StringStringEntryProto(key=key, value=value).SerializeToString()
    return b"\x72" + _varint(len(data)) + data


def _varint(number):
    data = bytearray()
    while number > 127:
        data.append(number & 127 | 128)
        number >>= 7
    return bytes([*data, number])
