"""ONNX Runtime and OpenVINO, the runtimes for .onnx files; the settings that they ignore are refused.

>>> runtime = OpenVino(Path("model.onnx"), options)
>>> denoised = runtime(noisy)  # NCHW float32

Each is an optional package of its own, and is imported only when it is asked for. Neither needs Paddle or onnx.
"""

import collections
import hashlib
import importlib
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

from denoising import machine
from denoising.cli import UserError, refuse
from denoising.runtimes import trial


class OnnxFileRuntime:
    """What both have in common: NCHW float32 in and out.

    `facts` tells how it really runs, `channels` what it takes, `name` whose weights it has.
    """

    runtime = package = ""
    bytes_each = 0  # of memory, for each pixel and channel of the widest layer

    def __init__(self, path, options, trusted=False):
        library = _import(self.package, self.runtime)
        data, self.record = read_onnx(path)
        self.name = self.record.get("options", {}).get("arch", Path(path).stem)
        self.path, self.options = path, options
        self._refuse(library)
        self._check_kind()
        if not trusted and not self.record:
            trial.run(type(self), path, options)
        with tempfile.TemporaryDirectory(prefix="runtime-") as self.scratch:
            self._start(library, data)

    def _start(self, library, data):
        options, path = self.options, self.path
        try:
            shape = self._open(library, data)
        except self.errors(library) as error:
            raise UserError(f"--model_file: {path}: {_sentence(error)}") from None
        if len(shape) != 4 or not isinstance(shape[1], int):
            raise UserError(f"--model_file: {path} takes no images: its input is {shape}")
        self.channels = shape[1]
        self.facts = {
            "runtime": self.runtime,
            "version": library.__version__.split("-")[0],
            "precision": options.precision,
            "runtime_device": "cpu",
            "ir_optim": options.ir_optim,
            "enable_memory_optim": True,
            "enable_tensorrt": False,
            "enable_mkldnn": False,
            "cpu_math_library_num_threads": options.cpu_threads,
        }
        self.facts["convolutions"] = dict(sorted(self._convolutions().items()))
        self._verify()

    def _open(self, library, data):
        """Makes the library ready to run, and returns the shape of its one input."""
        raise NotImplementedError

    def every(self, nchw):
        """All outputs of a batch, in their order; the first is the denoised image."""
        raise NotImplementedError

    def _convolutions(self):
        """How many convolutions run in which precision: fp32, fp16, bf16 or int8."""
        raise NotImplementedError

    @staticmethod
    def errors(library):
        """What the library raises."""
        raise NotImplementedError

    def __call__(self, nchw):
        """Runs one batch."""
        try:
            return self.every(np.ascontiguousarray(nchw, np.float32))[0]
        except self.errors(sys.modules[self.package]) as error:
            size = "x".join(map(str, nchw.shape))
            raise UserError(f"{self.runtime} cannot run a batch of {size}: {_sentence(error)}") from None

    def _refuse(self, library):
        options = self.options
        refuse(
            (options.use_gpu, "--use_gpu: this runtime is for CPUs here"),
            (options.use_tensorrt, "--use_tensorrt: is for Paddle on GPUs"),
            (options.enable_mkldnn, "--enable_mkldnn: is Paddle's"),
            (options.use_openvino, "--use_openvino: is Paddle's; --runtime=openvino is OpenVINO itself"),
        )

    def _check_kind(self):
        """Whether file, precision and processor go together, as far as the file tells."""
        made, asked = self.record.get("precision"), self.options.precision
        refuse(
            (made == "int8" and asked != "int8", f"--precision: {self.path} holds 8-bit weights: --precision=int8"),
            (made == "fp32" and asked == "int8",
             f"--precision: {self.path} holds float weights; tools/quantize_model.py makes 8-bit ones"),
            # Older instructions add pairs of products in 16 bits, which overflow.
            (asked == "int8" and not machine.adds_bytes_exactly(),
             "--precision: int8 needs a CPU with VNNI instructions, others would overflow"),
        )  # fmt: skip

    def _verify(self):
        """Compares what is asked with what the library executes."""
        found = self.facts["convolutions"]
        wanted = self.options.precision
        count, total = found.get(wanted, 0), sum(found.values())
        if wanted != "int8" and found.get("int8"):
            raise UserError(f"--precision: {self.path} holds 8-bit weights: --precision=int8")
        least = max(self.record.get("int8_convolutions", 1), 1) if wanted == "int8" else total
        if count < least:
            others = ", ".join(f"{number} in {name}" for name, number in found.items() if name != wanted)
            raise UserError(
                f"--precision: {self.runtime} runs {count} of {total} convolutions in {wanted} on this CPU, {others}"
            )

    def describe(self):
        """One line on how it runs."""
        facts = self.facts
        threads = facts["cpu_math_library_num_threads"]
        mixed = "".join(f", {number} convolutions {name}" for name, number in facts["convolutions"].items())
        return f"{self.runtime} {facts['version']}: CPU, {threads} thread(s), {facts['precision']}{mixed}, {self.name}"

    def bytes_for(self, nchw_shape):
        """Roughly the memory of a run, measured per pixel and channel of the widest layer."""
        batch, _, height, width = nchw_shape
        return self.bytes_each * batch * height * width * self.record.get("widest", 0)


class OnnxRuntime(OnnxFileRuntime):
    """Microsoft's."""

    runtime = package = "onnxruntime"
    bytes_each = 16

    @staticmethod
    def errors(library):
        state = library.capi.onnxruntime_pybind11_state
        kinds = (value for value in vars(state).values() if isinstance(value, type))
        return (RuntimeError, ValueError, *(kind for kind in kinds if issubclass(kind, Exception)))

    def _refuse(self, library):
        super()._refuse(library)
        if self.options.precision not in ("fp32", "int8"):
            raise UserError(f"--precision: {self.options.precision} is not computed by ONNX Runtime on CPUs")

    def _open(self, library, data):
        options = library.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = self.options.cpu_threads
        if not self.options.ir_optim:
            options.graph_optimization_level = library.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.enable_profiling = True
        options.profile_file_prefix = os.path.join(self.scratch, "profile")
        self.session = library.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        (entry,) = self.session.get_inputs()
        self.entry = entry.name
        return entry.shape

    def every(self, nchw):
        return self.session.run(None, {self.entry: nchw})

    def _convolutions(self):
        """By the profile of a small run, after which profiling ends."""
        self(np.full((1, self.channels, 32, 32), 0.5, np.float32))
        events = json.loads(Path(self.session.end_profiling()).read_text(encoding="utf-8"))
        ran = {event["name"]: event["args"]["op_name"] for event in events if "op_name" in event.get("args", {})}
        ran = [name for event, name in ran.items() if event.endswith("_kernel_time")]
        kinds = {"Conv": "fp32", "FusedConv": "fp32", "QLinearConv": "int8", "ConvInteger": "int8"}
        return collections.Counter(kinds[name] for name in ran if name in kinds)


class OpenVino(OnnxFileRuntime):
    """Intel's, for any x86-64 or ARM processor."""

    runtime = package = "openvino"
    bytes_each = 12
    names = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "u8": "int8", "i8": "int8"}

    @staticmethod
    def errors(library):
        return RuntimeError, ValueError, TypeError

    def _refuse(self, library):
        super()._refuse(library)
        if not self.options.ir_optim:
            raise UserError("--ir_optim: OpenVINO always optimises")

    def _open(self, library, data):
        core = library.Core()
        model = core.read_model(model=data)
        (entry,) = model.inputs
        _round_once(model)
        # Layers of an 8-bit network that stay in float do so for the sake of exactness.
        precision = {"bf16": "bf16", "fp16": "f16"}.get(self.options.precision, "f32")
        settings = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": self.options.cpu_threads,
            "NUM_STREAMS": 1,
        }
        self.compiled = core.compile_model(model, "CPU", settings)
        self.request = self.compiled.create_infer_request()
        return [d.get_length() if d.is_static else None for d in entry.partial_shape]

    def every(self, nchw):
        self.request.infer([nchw], share_inputs=True)
        return [np.array(tensor.data) for tensor in self.request.output_tensors]

    def _convolutions(self):
        operations = self.compiled.get_runtime_model().get_ops()
        facts = [{key: str(value.astype(str)) for key, value in op.get_rt_info().items()} for op in operations]
        ran = [fact["runtimePrecision"] for fact in facts if fact["layerType"] == "Convolution"]
        return collections.Counter(self.names.get(name, name) for name in ran)


def _round_once(model):
    """Takes out the rounding before each activation that only ONNX Runtime needs: OpenVINO rounds after it.

    By the names that onnx_graph.py gives; in other files there is nothing to find.
    """
    operations = {op.get_friendly_name(): op for op in model.get_ops()}
    for name, op in operations.items():
        layer = name.removesuffix("/act")
        if layer != name and f"{layer}/before" in operations:
            op.input(0).replace_source_output(operations[f"{layer}/conv"].output(0))


def _import(package, runtime):
    try:
        Path.home()
    except RuntimeError:  # no HOME, and a user without an account, as in containers: OpenVINO's import would end there
        os.environ["HOME"] = os.devnull
    try:
        return importlib.import_module(package)
    except ImportError as error:
        missing = getattr(error, "name", None) in (package, None)
        reason = f"pip install {package}" if missing else error
        raise UserError(f"--runtime: {runtime} needs the package {package}: {reason}") from None


# --- Files --------------------------------------------------------------------------------------------------


def read_onnx(path):
    """An ONNX file's bytes and the facts that onnx_graph.py has put into it; none for files of others.

    The bytes are handed to the libraries, not the path, so that a file cannot name others to be read as weights.

    Raises:
        UserError: broken, or changed since it was written.
    """
    data = Path(path).read_bytes()
    try:
        facts, end = _metadata(data)
        if "denoiser" not in facts:
            return data, {}
        record = json.loads(facts["denoiser"])
        if facts["sha256"] != hashlib.sha256(data[:end]).hexdigest():
            raise ValueError
        if type(record.get("options", {})) is not dict or type(record.get("widest", 1)) is not int:
            raise ValueError
    except (ValueError, KeyError, LookupError, TypeError, AttributeError, RecursionError):
        raise UserError(f"--model_file: {path} is truncated, changed, or no ONNX file") from None
    return data, record


def _metadata(data):
    """The metadata of a serialised ONNX model, and where the last entry of it starts."""
    found, end, place = {}, 0, 0
    for number, value, after in fields(data):
        if number == 14:
            entry = {key: text for key, text, _ in fields(value)}
            found[entry[1].decode()] = entry[2].decode()
            end = place
        place = after
    return found, end


def fields(data):
    """Yields each field of a protobuf message: its number, its value (bytes, or an int), and where it ends."""
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        if tag & 7 == 0:
            value, place = _varint(data, place)
        else:
            length, start = _varint(data, place) if tag & 7 == 2 else ({1: 8, 5: 4}[tag & 7], place)
            value, place = data[start : start + length], start + length
        if place > len(data):
            raise ValueError("truncated")
        yield tag >> 3, value, place


def _varint(data, place):
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
        if shift > 63:
            raise ValueError("not protobuf")


def _sentence(error):
    """What matters of a library's error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(("Exception from", "Check "))] or lines or ["no memory"]
    return lines[-1][:200]
