"""Paddle Inference, the runtime for model.pdmodel and model.json; the settings that it ignores are refused.

>>> runtime = PaddleInference(Path("model.pdmodel"), Path("model.pdiparams"), options)
>>> denoised = runtime(noisy)  # NCHW float32

Paddle is imported only when a model is opened.
"""

import contextlib
import ctypes
import hashlib
import json
import math
import os
import re
import struct
import sys
import tempfile
from pathlib import Path

import numpy as np

from denoising import machine
from denoising.cli import UserError, refuse
from denoising.runtimes import trial
from denoising.runtimes.onnx_runtimes import fields

# Paddle's C++ code logs each pass over the graph; only its errors are wanted.
os.environ.setdefault("GLOG_minloglevel", "2")


class PaddleInference:
    """Paddle Inference: NCHW float32 in and out.

    `facts` tells how it really runs, `channels` what it takes, `name` whose weights it has.
    """

    runtime = "paddle"

    def __init__(self, program, params, options, trusted=False):
        # Paddle takes seconds to import: paths and flags are checked by now.
        import paddle
        from paddle import inference

        self.record = read_record(program, params)
        self.name = self.record.get("options", {}).get("arch", program.stem)
        self.folder = Path(paddle.__file__).parent
        _check_device(paddle, inference, options)
        if not trusted and not self.record:
            trial.run(PaddleInference, program, params, options)
        self.channels, quantised = check_model(program, params)
        refuse(
            (quantised and options.precision != "int8",
             f"--precision: {program} holds 8-bit weights: --precision=int8"),
            (not quantised and options.precision == "int8",
             f"--precision: {program} holds float weights: tools/quantize_model.py makes 8-bit ones"),
            # Else oneDNN halves the weights, so that no sum of two products overflows 16 bits.
            (options.precision == "int8" and not machine.adds_bytes_exactly(),
             "--precision: int8 needs a CPU with VNNI instructions, without them oneDNN rounds weights to 7 bits"),
        )  # fmt: skip
        config = inference.Config(str(program), str(params))
        with captured(), tempfile.TemporaryDirectory(prefix="runtime-") as cache:
            configure(config, program, options, cache)
            try:
                self.predictor = inference.create_predictor(config)
            except PADDLE_ERRORS as error:
                raise UserError(f"--model_file: {program}, {params}: {_sentence(error)}") from None
        self.entry = self.predictor.get_input_handle(self.predictor.get_input_names()[0])
        self.exit = self.predictor.get_output_handle(self.predictor.get_output_names()[0])
        self.facts = self._facts(paddle.__version__, config, program, options)
        if options.use_openvino:
            self._verify_openvino(options)
        else:
            self._verify_settings(options)
            self._verify_convolutions(options)

    def _facts(self, version, config, program, options):
        return {
            "runtime": self.runtime,
            "version": version,
            "precision": options.precision,
            "runtime_device": "gpu" if config.use_gpu() else "cpu",
            "ir_optim": config.ir_optim(),
            "enable_memory_optim": program.suffix != ".json",
            "enable_tensorrt": config.tensorrt_engine_enabled(),
            "enable_mkldnn": config.mkldnn_enabled(),
            "cpu_math_library_num_threads": config.cpu_math_library_num_threads(),
        }

    def __call__(self, nchw):
        """Runs one batch."""
        self.entry.copy_from_cpu(np.ascontiguousarray(nchw, np.float32))
        try:
            self.predictor.run()
            return self.exit.copy_to_cpu()
        except PADDLE_ERRORS as error:
            size = "x".join(map(str, nchw.shape))
            raise UserError(f"Paddle cannot run a batch of {size}: {_sentence(error)}") from None

    def _verify_settings(self, options):
        """Compares what is asked with Paddle's configuration."""
        asked = [
            ("use_gpu", "runtime_device", "gpu" if options.use_gpu else "cpu"),
            ("enable_mkldnn", "enable_mkldnn", options.enable_mkldnn),
            ("ir_optim", "ir_optim", options.ir_optim),
        ]
        if not options.use_gpu:
            asked.append(("cpu_threads", "cpu_math_library_num_threads", options.cpu_threads))
        for flag, fact, value in asked:
            if self.facts[fact] != value:
                raise UserError(f"--{flag}: asked for {value}, Paddle takes {self.facts[fact]}")

    def _verify_convolutions(self, options):
        """Compares what is asked with what oneDNN executes."""
        executed = self._convolutions()
        if executed is None:
            if options.precision != "fp32":
                raise UserError(f"--precision: oneDNN's library is not there to confirm {options.precision}")
            return
        total = len(executed)
        bf16, int8 = (sum(kind in line for line in executed) for kind in ("bf16", "s8"))
        self.facts["convolutions_by_onednn"] = total
        refuse(
            (bool(total) != options.enable_mkldnn,
             f"--enable_mkldnn: asked for {options.enable_mkldnn}, but oneDNN runs {total} convolutions with "
             f"--ir_optim={options.ir_optim}"),
            # The last layer stays in float.
            (options.precision == "int8" and int8 < total - 1,
             f"--precision: oneDNN runs {int8} of {total} convolutions in int8 on this CPU"),
            (options.precision == "bf16" and bf16 < total,
             f"--precision: only {bf16} of {total} convolutions would run in bf16, the rest silently in fp32; on a CPU "
             "that knows bf16, a model.pdmodel of export_model.py runs all"),
        )  # fmt: skip
        self.facts["convolutions"] = {"bf16": bf16, "fp32": total - bf16 - int8, "int8": int8}

    def _verify_openvino(self, options):
        """Paddle tells little of what its OpenVINO does: whether it is loaded, and the precision of its results."""
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
            loaded = any("openvino_intel_cpu_plugin" in line for line in file)
        x = np.random.default_rng(0).random((1, self.channels, 32, 32), dtype=np.float32)
        # A result in bfloat16 that became float32 again has nothing in the lower half of its bits.
        halves = not (np.ascontiguousarray(self(x)).view(np.uint32) & 0xFFFF).any()
        if not loaded or halves != (options.precision == "bf16"):
            raise UserError(f"--precision: Paddle's OpenVINO does not compute in {options.precision} on this CPU")
        self.facts["openvino"] = True

    def _convolutions(self):
        """What oneDNN logs of a small run, a line for each convolution; None without its library.

        Transposed convolutions have a name of their own: Paddle leaves these five in fp32.
        """
        found = sorted([*self.folder.glob("libs/libdnnl.so*"), *self.folder.glob("libs/libmkldnn.so*")])
        if not found:
            return None
        library = ctypes.CDLL(str(found[0]))
        with captured() as lines:
            library.dnnl_set_verbose(1)
            try:
                self(np.full((1, self.channels, 32, 32), 0.5, np.float32))
            except UserError as error:
                raise UserError(f"--model_file: {error}") from None
            finally:
                library.dnnl_set_verbose(0)
        return [line for line in lines if ",exec,cpu,convolution," in line]

    def describe(self):
        """One line on how it runs."""
        facts = self.facts
        library = f"oneDNN {'on' if facts['enable_mkldnn'] else 'off'}"
        if facts.get("openvino"):
            library = "its OpenVINO"
        cpu = f"CPU, {library}, {facts['cpu_math_library_num_threads']} thread(s)"
        where = cpu if facts["runtime_device"] == "cpu" else "GPU"
        return f"Paddle Inference {facts['version']}: {where}, {facts['precision']}, {self.name}"

    def bytes_for(self, nchw_shape):
        """Roughly the memory of a run, measured per pixel and channel of the widest layer."""
        batch, _, height, width = nchw_shape
        # Without oneDNN each convolution unfolds an image into a matrix of patches.
        values = 12 * batch + (0 if self.facts["enable_mkldnn"] else 40)
        return values * height * width * self.record.get("widest", 0)


PADDLE_ERRORS = (RuntimeError, ValueError, OSError, SystemError, MemoryError)


def configure(config, program, options, cache):
    """Writes the options into a paddle.inference.Config; `cache` is a folder that lasts until the model is loaded."""
    config.disable_glog_info()
    config.switch_ir_optim(options.ir_optim)
    if options.use_gpu:
        config.enable_use_gpu(options.gpu_mem, 0)
    else:
        config.disable_gpu()
        config.set_cpu_math_library_num_threads(options.cpu_threads)
    if options.use_openvino:
        from paddle.inference import PrecisionType

        if not hasattr(config, "enable_openvino_engine"):
            raise UserError("--use_openvino: this Paddle carries no OpenVINO")
        config.set_optim_cache_dir(cache)  # else it makes a folder of its own where the user works
        config.enable_openvino_engine(PrecisionType.Bfloat16 if options.precision == "bf16" else PrecisionType.Float32)
        return
    # oneDNN is on unless it is switched off.
    if options.enable_mkldnn:
        config.enable_mkldnn()
    else:
        config.disable_mkldnn()
    if options.precision == "bf16":
        config.enable_mkldnn_bfloat16()
    if options.precision == "int8":
        # Without the list, poolings and concatenations are rounded as well, which costs 9 dB.
        config.enable_mkldnn_int8({"conv2d", "fused_conv2d"})
        if hasattr(config, "enable_new_ir"):
            config.enable_new_ir(False)
    if program.suffix == ".json":
        # Paddle 3.3 crashes in this pass when a leaky ReLU follows a convolution.
        config.delete_pass("conv_activation_onednn_fuse_pass")
    else:
        # A third of the memory; Paddle 3.3 fails with it on .json programs.
        config.enable_memory_optim()


def _check_device(paddle, inference, options):
    """Paddle itself would log a line and run on the CPU."""
    without_cuda = not paddle.device.is_compiled_with_cuda()
    refuse(
        (options.use_gpu and without_cuda, "--use_gpu: this Paddle is built for CPUs only"),
        (options.use_gpu and not without_cuda and paddle.device.cuda.device_count() == 0, "--use_gpu: there is no GPU"),
    )
    if options.use_tensorrt:
        built = inference.get_trt_compile_version() != (0, 0, 0)
        state = "is not certified yet" if built else "is missing: this Paddle is built without it"
        raise UserError(f"--use_tensorrt: TensorRT {state}")


def check_model(program, params):
    """Finds broken files, over which Paddle's C++ code would abort, or which it would take as they are.

    Returns:
        How many channels the program takes, and whether it has 8-bit weights.
    """
    from paddle.base import core

    if program.suffix == ".json" and not hasattr(core, "pir"):
        raise UserError(f"--model_file: {program} needs Paddle 3: export a model.pdmodel")
    try:
        read = _read_pdmodel if program.suffix == ".pdmodel" else _read_json
        channels, weights = read(program.read_bytes())
    except (ValueError, TypeError, LookupError, RuntimeError):
        raise UserError(f"--model_file: {program} is broken, or no model of one image input") from None
    try:
        stored = list(_read_params(params.read_bytes()))
    except (ValueError, LookupError, struct.error):
        stored = []
    if sorted(count for count, _ in stored) != sorted(weights):
        raise UserError(f"--params_file: {params} is truncated, or holds other weights than {program} needs")
    return channels, any(kind == INT8 for _, kind in stored)


INT8 = 21  # Paddle's number for it
BYTES = {INT8: 1, 2: 4, 3: 8, 5: 4}  # and for int32, int64 and float32


def _read_params(data):
    """Yields how many numbers each array of a .pdiparams has, and their type."""
    place = 0
    while place < len(data):
        levels, size = struct.unpack_from("<4xQ4xI", data, place)
        place += 20
        kind, count, description = 0, 1, data[place : place + size]
        for field, value, _ in fields(description):
            if field == 1:
                kind = value
            elif field == 2:
                count *= value
        place += size + count * BYTES[kind]
        if levels or place > len(data):
            raise ValueError
        yield count, kind


def _read_pdmodel(data):
    from paddle.base import core

    description = core.ProgramDesc(data)
    if description.num_blocks() == 0:  # to ask for the first of none would crash
        raise ValueError
    block = description.block(0)
    feeds = [block.op(i) for i in range(block.op_size()) if block.op(i).type() == "feed"]
    (shape,) = [block.find_var(op.output("Out")[0].encode()).shape() for op in feeds]
    stored = [v for v in block.all_vars() if v.persistable() and v.name() not in ("feed", "fetch")]
    return shape[1], [math.prod(v.shape()) for v in stored]


def _read_json(data):
    operators = json.loads(data)["program"]["regions"][0]["blocks"][0]["ops"]
    (entry,) = [op for op in operators if op["#"].endswith(".data")]
    (shape,) = [attribute["AT"]["D"] for attribute in entry["A"] if attribute["N"] == "shape"]
    return shape[1], [math.prod(op["O"]["TT"]["D"][1]) for op in operators if op["#"] == "p"]


def read_record(program, params):
    """Compares the files with the record that export_model.py writes beside them, and returns it."""
    path = program.with_name("deploy.json")
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        digests = dict(record["files"])
        if type(record.get("options", {})) is not dict or type(record.get("widest", 1)) is not int:
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"--model_file: {path} is broken: export the model again") from None
    for flag, file in (("--model_file", program), ("--params_file", params)):
        if digests.get(file.name) != hashlib.sha256(file.read_bytes()).hexdigest():
            raise UserError(f"{flag}: {file} is truncated, changed, or not of the export in {path}")
    return record


@contextlib.contextmanager
def captured():
    """Catches what C++ prints to stdout and stderr; the list it yields has the lines afterwards."""
    sys.stdout.flush()
    sys.stderr.flush()
    lines, saved = [], (os.dup(1), os.dup(2))
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            ctypes.CDLL(None).fflush(None)
            for stream, copy in enumerate(saved, start=1):
                os.dup2(copy, stream)
                os.close(copy)
            file.seek(0)
            lines += file.read().decode(errors="replace").splitlines()


def _sentence(error):
    """The sentence within Paddle's page-long errors."""
    match = re.search(r"\(\w+\) (.+)", str(error))
    return (match[1] if match else (str(error).strip().splitlines() or ["no memory"])[-1])[:200]
