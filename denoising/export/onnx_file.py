"""A list of nodes as an ONNX file, in float or in 8 bits.

>>> data = to_onnx(trace(network), network, record={"name": "unet"})  # bytes; any batch, height and width
"""

import hashlib
import json

import numpy as np

from denoising.cli import UserError
from denoising.export.onnx_graph import INPUT, MOVES, groups

OPSET, IR_VERSION = 17, 9  # of 2022: read by every ONNX Runtime since 1.14 and every OpenVINO since 2023
OUTPUT = "denoised"


def to_onnx(nodes, network, record, int8=None, also=()):
    """The file's bytes.

    Args:
        nodes: of `trace`, or what quantization.py has made of them.
        network: whose options and sizes these are.
        record: facts for whoever runs the file; JSON.
        int8: Int8Scales, for a file that computes in 8 bits.
        also: tensors that are handed out beside the result.
    """
    try:
        import onnx
        from onnx import TensorProto, helper
    except ImportError:
        raise UserError("ONNX files are written by the package onnx: pip install onnx") from None

    writer = _Writer(nodes, network, int8)
    writer.write_all()
    shapes = [(INPUT, network.n_input), (OUTPUT, network.n_channel)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", c, "h", "w"]) for name, c in shapes]
    more = [helper.make_tensor_value_info(writer.in_float(name), TensorProto.FLOAT, None) for name in also]
    constants = [*writer.graph.constants.values()]
    model = helper.make_model(
        helper.make_graph(writer.graph.nodes, "denoiser", ends[:1], ends[1:] + more, constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="neighbor2neighbor-paddle",
    )
    if not also:
        onnx.checker.check_model(model, full_check=True)
    return sealed(model.SerializeToString(), {**record, **writer.facts()})


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

    def scale(self, scale):
        """Scale and zero point of Int8Scales as two constants."""
        return self.number(np.float32(scale[0])), self.number(np.uint8(scale[1]))

    def __call__(self, operator, name, *inputs, **attributes):
        self.nodes.append(self.make(operator, list(inputs), [name], name=name, **attributes))
        return name


class _Writer:
    """Writes nodes in their order, and each tensor in the type that its users take."""

    def __init__(self, nodes, network, int8):
        self.graph, self.nodes, self.int8, self.dark = _Graph(), nodes, int8, network.dark
        self.careful = "careful" in network.options
        self.image = _rooted(self.graph, INPUT, self.dark) if self.dark else INPUT
        # Where each tensor is to be had, in float and in bytes.
        self.floats, self.bytes = {INPUT: _padded(self.graph, self.image, network.multiple)}, {}
        # The image is at hand in float whatever its users take; others are made once, in the type that is taken.
        self.in_bytes = _names_in_bytes(nodes, int8)
        # From mid-grey: bfloat16 keeps a bit or two more of a result around 0 than of one around 0.5.
        self.centred = nodes[-1].kind == "conv"

    def write_all(self):
        """All nodes, and the result, cropped to the image's size."""
        for node in self.nodes:
            if node.kind in MOVES:
                self._write_move(node)
            elif node.kind == "add":
                self._finish(node, self.graph("Add", f"{node.name}/sum", *map(self.in_float, node.inputs)))
            else:
                made = self._normalised(node) if node.kind == "norm" else self._convolved(node)
                if node.slope != 1.0:
                    made = self.graph("LeakyRelu", f"{node.name}/act", made, alpha=node.slope)
                self._finish(node, made)
        graph = self.graph
        crop = graph.const("from", np.int64([0, 0])), "size", graph.const("axes", np.int64([2, 3]))
        y = graph("Slice", "cropped", self.in_float(self.nodes[-1].name), *crop)
        if self.centred:
            y = graph("Add", "from_black", y, graph.number(np.float32(0.5)))
        if self.careful:
            y = _mixed(graph, y, self.image)
        if self.dark:
            y = _squared(graph, y, self.dark)
        graph.nodes[-1].output[0] = OUTPUT

    def facts(self):
        """The record's facts about the precision."""
        if not self.int8:
            return {"precision": "fp32"}
        # Where the result of a convolution stays in float, ONNX Runtime computes all of it in float.
        convolutions = {node.name for node in self.nodes if node.kind == "conv" and node.name in self.in_bytes}
        return {"precision": "int8", "int8_convolutions": len(convolutions - self.int8.floats)}

    def quantised(self, name):
        """A tensor in 8 bits."""
        if name not in self.bytes:
            scale = self.graph.scale(self.int8.scales[name])
            self.bytes[name] = self.graph("QuantizeLinear", f"{name}/u8", self.floats[name], *scale)
        return self.bytes[name]

    def in_float(self, name):
        """A tensor in float."""
        if name not in self.floats:
            scale = self.graph.scale(self.int8.scales[name])
            self.floats[name] = self.graph("DequantizeLinear", f"{name}/f32", self.bytes[name], *scale)
        return self.floats[name]

    def _finish(self, node, made):
        self.floats[node.name] = made
        if node.name in self.in_bytes:
            self.quantised(node.name)
            del self.floats[node.name]

    def _write_move(self, node):
        if node.name in self.in_bytes:
            self.bytes[node.name] = _move(self.graph, node, list(map(self.quantised, node.inputs)))
        else:
            self.floats[node.name] = _move(self.graph, node, list(map(self.in_float, node.inputs)))

    def _bias(self, node):
        return node.bias - np.float32(0.5) if self.centred and node is self.nodes[-1] else node.bias

    def _normalised(self, node):
        graph, name = self.graph, node.name
        constants = graph.const(f"{name}.scale", node.weight), graph.const(f"{name}.bias", self._bias(node))
        x = self.in_float(node.inputs[0])
        return graph("InstanceNormalization", f"{name}/norm", x, *constants, epsilon=node.epsilon)

    def _convolved(self, node):
        graph, name = self.graph, node.name
        if not self.int8 or name in self.int8.floats:
            constants = graph.const(f"{name}.weight", node.weight), graph.const(f"{name}.bias", self._bias(node))
            return _convolution(graph, node, self.in_float(node.inputs[0]), *constants)
        # A copy for this convolution alone: what others share, runtimes would keep in float.
        scale = self.int8.scales[node.inputs[0]]
        x = graph("DequantizeLinear", f"{name}/x", self.quantised(node.inputs[0]), *graph.scale(scale))
        y = _convolution(graph, node, x, *_weights_in_bytes(graph, node, self._bias(node), scale[0]))
        if node.slope != 1.0 and name in self.in_bytes:
            before = graph.scale(self.int8.before_activation[name])
            y = graph("QuantizeLinear", f"{name}/before_u8", y, *before)
            y = graph("DequantizeLinear", f"{name}/before", y, *before)
        return y


def _names_in_bytes(nodes, int8):
    """The tensors that exist in 8 bits: those that some 8-bit convolution takes, and what these are made from."""
    if not int8:
        return set()
    wanted = {node.inputs[0] for node in nodes if node.kind == "conv" and node.name not in int8.floats}
    return {name for group in groups(nodes) if wanted & set(group) for name in group}


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
    for part, values, scales in (("weight", steps, scale), ("bias", np.rint(bias / unit).astype(np.int32), unit)):
        zero = graph.const(f"{name}.{part}.zero", np.zeros(len(scales), values.dtype))
        inputs = graph.const(f"{name}.{part}", values), graph.const(f"{name}.{part}.scale", scales), zero
        made.append(graph("DequantizeLinear", f"{name}/{part}", *inputs, axis=0))
    return made


def _move(graph, node, inputs):
    name = node.name
    if node.kind == "pool":
        return graph("MaxPool", name, *inputs, kernel_shape=[2, 2], strides=[2, 2])
    if node.kind == "double":
        sizes = graph.const("doubled", np.float32([1, 1, 2, 2]))
        nearest = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return graph("Resize", name, *inputs, "", sizes, **nearest)
    if node.kind == "unshuffle":
        return graph("SpaceToDepth", name, *inputs, blocksize=2)
    if node.kind == "concat":
        return graph("Concat", name, *inputs, axis=1)
    return graph("DepthToSpace", name, *inputs, blocksize=2, mode="DCR" if node.kind == "blocks" else "CRD")


def _rooted(graph, x, dark):
    """What a network on square roots sees: `rooted` of arch_unet.py."""
    half, square = graph.number(np.float32(dark / 2)), graph("Mul", "root/x2", x, x)
    beyond = graph("Sqrt", "root/inner", graph("Add", "root/sum", square, graph.number(np.float32(dark**2 / 4))))
    return graph("Div", "root", x, graph("Sqrt", "root/outer", graph("Add", "root/more", beyond, half)))


def _mixed(graph, y, image):
    """From all channels but the last to the image, at a share that the last one says."""
    ends = {"first": 0, "last": -1, "end": 2**31}
    first, last, end = (graph.const(name, np.int64([place])) for name, place in ends.items())
    axis = graph.const("channels", np.int64([1]))
    painted = graph("Slice", "painted", y, first, last, axis)
    share = graph("Slice", "share", y, last, end, axis)
    share = graph("Clip", "limited", share, graph.number(np.float32(0)), graph.number(np.float32(1)))
    kept = graph("Mul", "kept", share, graph("Sub", "left_out", image, painted))
    return graph("Add", "mixed", painted, kept)


def _squared(graph, x, dark):
    """And the way back."""
    more = graph("Add", "square/more", graph("Mul", "square/x2", x, x), graph.number(np.float32(dark)))
    return graph("Mul", "square", x, graph("Sqrt", "square/sqrt", more))


def _padded(graph, image, multiple):
    """The image, extended by reflection to what the pooling pyramid divides: `reflect_indices` of arch_unet.py."""
    unit, step = graph.integer(1), graph.integer(multiple)
    shape = graph("Shape", "shape", image)
    graph("Slice", "size", shape, graph.const("two", np.int64([2])), graph.const("four", np.int64([4])))
    for axis, name in ((2, "height"), (3, "width")):
        size = graph("Gather", name, shape, graph.integer(axis))
        count = graph("Add", f"{name}/count", size, graph.integer(multiple - 1))
        padded = graph("Mul", f"{name}/padded", graph("Div", f"{name}/steps", count, step), step)
        last = graph("Sub", f"{name}/last", size, unit)
        period = graph("Max", f"{name}/period", graph("Add", f"{name}/twice", last, last), unit)
        place = graph("Range", f"{name}/range", graph.integer(0), padded, unit)
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
