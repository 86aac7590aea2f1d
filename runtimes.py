"""Runtimes that execute an exported model: what is asked for is what runs, or it is refused.

>>> engine = PaddleEngine(Path("model.pdmodel"), Path("model.pdiparams"), options)
>>> denoised = engine(noisy)  # NCHW float32
"""

import contextlib
import ctypes
import hashlib
import json
import math
import os
import re
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np

from cli import UserError

# Paddle's C++ side logs each pass over the graph; errors remain.
os.environ.setdefault("GLOG_minloglevel", "2")


class PaddleEngine:
    """Paddle Inference: NCHW float32 in and out.

    `facts` tells how it really runs, `channels` what it takes, `name` whose weights it has.
    """

    def __init__(self, program, params, options):
        # Paddle takes seconds to import: paths and flags are checked by now.
        warnings.filterwarnings("ignore", "No ccache found")
        import paddle
        from paddle import inference

        self.record = read_record(program, params)
        self.name = self.record.get("options", {}).get("arch", program.stem)
        self.folder = Path(paddle.__file__).parent
        _check_device(paddle, inference, options)
        self.channels = check_model(program, params)
        config = inference.Config(str(program), str(params))
        with _captured():
            configure(config, program, options)
            try:
                self.predictor = inference.create_predictor(config)
            except PADDLE_ERRORS as error:
                raise UserError(f"--model_file: {program}, {params}: {_sentence(error)}") from None
        self.entry = self.predictor.get_input_handle(self.predictor.get_input_names()[0])
        self.exit = self.predictor.get_output_handle(self.predictor.get_output_names()[0])
        self.facts = {
            "runtime": "paddle",
            "version": paddle.__version__,
            "precision": options.precision,
            "runtime_device": "gpu" if config.use_gpu() else "cpu",
            "ir_optim": config.ir_optim(),
            "enable_memory_optim": program.suffix != ".json",
            "enable_tensorrt": config.tensorrt_engine_enabled(),
            "enable_mkldnn": config.mkldnn_enabled(),
            "cpu_math_library_num_threads": config.cpu_math_library_num_threads(),
        }
        self._verify(options)

    def __call__(self, nchw):
        """Runs one batch."""
        self.entry.copy_from_cpu(np.ascontiguousarray(nchw, np.float32))
        try:
            self.predictor.run()
            return self.exit.copy_to_cpu()
        except PADDLE_ERRORS as error:
            size = "x".join(map(str, nchw.shape))
            raise UserError(f"Paddle cannot run a batch of {size}: {_sentence(error)}") from None

    def _verify(self, options):
        """Compares what is asked with the configuration, and with what oneDNN executes."""
        asked = {
            ("use_gpu", "runtime_device"): "gpu" if options.use_gpu else "cpu",
            ("enable_mkldnn", "enable_mkldnn"): options.enable_mkldnn,
            ("ir_optim", "ir_optim"): options.ir_optim,
        }
        if not options.use_gpu:
            asked["cpu_threads", "cpu_math_library_num_threads"] = options.cpu_threads
        for (flag, key), value in asked.items():
            if self.facts[key] != value:
                raise UserError(f"--{flag}: asked for {value}, Paddle takes {self.facts[key]}")
        done = self._convolutions()
        if done is None:
            if options.precision == "bf16":
                raise UserError("--precision: oneDNN's library is not there to confirm bf16")
            return
        self.facts["convolutions_by_onednn"] = len(done)
        if bool(done) != options.enable_mkldnn:
            raise UserError(
                f"--enable_mkldnn: asked for {options.enable_mkldnn}, but oneDNN runs {len(done)} "
                f"convolutions with --ir_optim={options.ir_optim}"
            )
        low = sum("bf16" in line for line in done)
        if options.precision == "bf16" and low < len(done):
            raise UserError(
                f"--precision: only {low} of {len(done)} convolutions would run in bf16, the rest "
                "silently in fp32; on a CPU that knows bf16, a model.pdmodel of export_model.py runs all"
            )

    def _convolutions(self):
        """What oneDNN logs of a small run, a line for each convolution; None without its library.

        Transposed convolutions have a name of their own: Paddle leaves these five in fp32.
        """
        found = sorted([*self.folder.glob("libs/libdnnl.so*"), *self.folder.glob("libs/libmkldnn.so*")])
        if not found:
            return None
        library = ctypes.CDLL(str(found[0]))
        with _captured() as lines:
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
        onednn = "on" if facts["enable_mkldnn"] else "off"
        cpu = f"CPU, oneDNN {onednn}, {facts['cpu_math_library_num_threads']} thread(s)"
        where = cpu if facts["runtime_device"] == "cpu" else "GPU"
        return f"Paddle Inference {facts['version']}: {where}, {facts['precision']}, {self.name}"

    def bytes_for(self, nchw_shape):
        """Roughly the memory of a run, measured per pixel and channel of the widest layer."""
        batch, _, height, width = nchw_shape
        # Without oneDNN each convolution unfolds an image into a matrix of patches.
        each = 12 * batch + (0 if self.facts["enable_mkldnn"] else 40)
        return each * height * width * self.record.get("widest", 0)


PADDLE_ERRORS = (RuntimeError, ValueError, OSError, SystemError, MemoryError)


def configure(config, program, options):
    """Writes the options into a paddle.inference.Config."""
    config.disable_glog_info()
    config.switch_ir_optim(options.ir_optim)
    if options.use_gpu:
        config.enable_use_gpu(options.gpu_mem, 0)
    else:
        config.disable_gpu()
        config.set_cpu_math_library_num_threads(options.cpu_threads)
    # oneDNN is on unless it is switched off.
    if options.enable_mkldnn:
        config.enable_mkldnn()
    else:
        config.disable_mkldnn()
    if options.precision == "bf16":
        config.enable_mkldnn_bfloat16()
    if program.suffix == ".json":
        # Paddle 3.3 crashes in this pass when a leaky ReLU follows a convolution.
        config.delete_pass("conv_activation_onednn_fuse_pass")
    else:
        # A third of the memory; Paddle 3.3 fails with it on .json programs.
        config.enable_memory_optim()


def _check_device(paddle, inference, options):
    """Paddle itself would log a line and run on the CPU."""
    if options.use_gpu and not paddle.device.is_compiled_with_cuda():
        raise UserError("--use_gpu: this Paddle is built for CPUs only")
    if options.use_gpu and paddle.device.cuda.device_count() == 0:
        raise UserError("--use_gpu: there is no GPU")
    if options.use_tensorrt:
        built = inference.get_trt_compile_version() != (0, 0, 0)
        state = "is not certified yet" if built else "is missing: this Paddle is built without it"
        raise UserError(f"--use_tensorrt: TensorRT {state}")


def check_model(program, params):
    """Finds broken files, over which the C++ side would abort or not even stumble.

    Returns:
        How many channels the program takes.
    """
    from paddle.base import core

    if program.suffix == ".json" and not hasattr(core, "pir"):
        raise UserError(f"--model_file: {program} needs Paddle 3: export a model.pdmodel")
    try:
        read = _read_pdmodel if program.suffix == ".pdmodel" else _read_json
        channels, weights = read(program.read_bytes())
    except (ValueError, TypeError, LookupError, RuntimeError):
        raise UserError(f"--model_file: {program} is broken, or no model of one image input") from None
    # Each array is 20 bytes, a description of its type and dimensions, and its numbers, here float32.
    size = sum(22 + sum(1 + -(-max(n.bit_length(), 1) // 7) for n in dims) + 4 * math.prod(dims) for dims in weights)
    if size != params.stat().st_size:
        raise UserError(f"--params_file: {params} is truncated, or holds other weights than {program} needs")
    return channels


def _read_pdmodel(data):
    from paddle.base import core

    description = core.ProgramDesc(data)
    block = description.block(0)
    feeds = [block.op(i) for i in range(block.op_size()) if block.op(i).type() == "feed"]
    (shape,) = [block.find_var(op.output("Out")[0].encode()).shape() for op in feeds]
    stored = [v for v in block.all_vars() if v.persistable() and v.name() not in ("feed", "fetch")]
    return shape[1], [v.shape() for v in stored]


def _read_json(data):
    operators = json.loads(data)["program"]["regions"][0]["blocks"][0]["ops"]
    (entry,) = [op for op in operators if op["#"].endswith(".data")]
    (shape,) = [attribute["AT"]["D"] for attribute in entry["A"] if attribute["N"] == "shape"]
    return shape[1], [op["O"]["TT"]["D"][1] for op in operators if op["#"] == "p"]


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
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"--model_file: {path} is broken: export the model again") from None
    for flag, file in (("--model_file", program), ("--params_file", params)):
        if digests.get(file.name) != hashlib.sha256(file.read_bytes()).hexdigest():
            raise UserError(f"{flag}: {file} is truncated, changed, or not of the export in {path}")
    return record


@contextlib.contextmanager
def _captured():
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
