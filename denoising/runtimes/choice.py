"""The choice among runtimes, which execute exported models: their flags, the model's files, and the opened model.

>>> options = runtime_options(runtime="openvino", precision="int8", model_file="model_int8.onnx")
>>> runtime = open_runtime(options)
>>> denoised = runtime(noisy)  # NCHW float32; runtime.facts tells how it really runs

What is asked for is what runs; anything that a runtime would silently replace is refused.
"""

import os
from pathlib import Path

from denoising import cli, machine
from denoising.cli import UserError, boolean, number, refuse
from denoising.runtimes.onnx_runtimes import OnnxRuntime, OpenVino
from denoising.runtimes.paddle_inference import PaddleInference

PRECISIONS = ("fp32", "bf16", "fp16", "int8")
ONNX_RUNTIMES = {"onnxruntime": OnnxRuntime, "openvino": OpenVino}
RUNTIMES = ("paddle", *ONNX_RUNTIMES)


# --- Flags --------------------------------------------------------------------------------------------------


def add_flags(parser):
    """Adds the flags that name a model and say how it runs."""
    add = parser.add_argument_group("model").add_argument
    add("--model_dir", help="folder that holds model.pdmodel (or model.json) and model.pdiparams, or model.onnx")
    add("--model_file", help="the exported program: a .pdmodel, .json or .onnx file")
    add("--params_file", help="the weights of a .pdmodel or .json; by default the .pdiparams file beside it")
    add = parser.add_argument_group("runtime").add_argument
    add("--runtime", choices=RUNTIMES, default="paddle",
        help="paddle runs .pdmodel and .json files on Paddle Inference, the others run .onnx files")  # fmt: skip
    add("--use_gpu", type=boolean, default=False, help="run on the GPU")
    add("--gpu_mem", type=number(int, 1), default=500, help="MB that are reserved on the GPU at the start")
    add("--enable_mkldnn", type=boolean, help="use Paddle's oneDNN; True on CPUs by default")
    add("--cpu_threads", type=number(int, 1), help="threads to compute with; one per available core by default")
    add("--precision", choices=PRECISIONS, default="fp32", help="number format to compute in")
    add("--ir_optim", type=boolean, default=True, help="let the runtime fuse operators")
    add("--use_tensorrt", type=boolean, default=False, help="run on TensorRT")
    add("--use_openvino", type=boolean, default=False,
        help="use the OpenVINO that is built into Paddle 3 instead of oneDNN")  # fmt: skip


def check_flags(options):
    """Refuses what would not run as asked, and fills in the defaults that depend on other flags."""
    if options.enable_mkldnn is None:
        options.enable_mkldnn = options.runtime == "paddle" and not options.use_gpu and not options.use_openvino
    if options.cpu_threads is None:
        options.cpu_threads = machine.cores()
    # A library that cannot start its threads ends the process; more than a few per core only slow each other down.
    most_threads = max(64, 4 * (os.cpu_count() or 1))
    paddle, precision = options.runtime == "paddle", options.precision
    refuse(
        (options.cpu_threads > most_threads, f"--cpu_threads: {options.cpu_threads} is too many: this machine has "
         f"{os.cpu_count()} cores, and at most {most_threads} threads are started"),
        (options.use_tensorrt and not options.use_gpu, "--use_tensorrt: needs --use_gpu=True"),
        (options.enable_mkldnn and options.use_gpu, "--enable_mkldnn: oneDNN is for CPUs"),
        (options.use_openvino and options.use_gpu, "--use_openvino: OpenVINO is for CPUs"),
        (options.use_openvino and options.enable_mkldnn, "--use_openvino: give either this or --enable_mkldnn=True"),
        (options.use_openvino and not options.ir_optim, "--use_openvino: it always optimises: leave out --ir_optim"),
        (paddle and precision == "bf16" and not (options.enable_mkldnn or options.use_openvino),
         "--precision: bf16 is computed by oneDNN: add --enable_mkldnn=True"),
        (paddle and precision == "fp16" and options.use_gpu, "--precision: fp16 is not certified on GPUs yet"),
        (paddle and precision == "fp16", "--precision: fp16 is computed on GPUs only"),
        (paddle and precision == "int8" and not options.enable_mkldnn,
         "--precision: int8 is computed by oneDNN: add --enable_mkldnn=True"),
    )  # fmt: skip


def runtime_options(**changes):
    """The flags' defaults with some of them changed, checked."""
    parser = cli.Parser(__doc__)
    add_flags(parser)
    options = parser.parse_args([])
    vars(options).update(changes)
    check_flags(options)
    return options


# --- Opening ------------------------------------------------------------------------------------------------


def find_model(options):
    """The paths of the program and its weights; an .onnx file holds both, and has None for the second."""
    program, params = options.model_file, options.params_file
    onnx = options.runtime != "paddle"
    if options.model_dir and not program:
        cli.existing_folder("--model_dir", options.model_dir)
        names = ("model.pdmodel", "model.json", "model.onnx")  # the last one is refused, with what runs it
        if onnx:
            names = ("model_int8.onnx",) if options.precision == "int8" else ("model.onnx",)
        paths = [os.path.join(options.model_dir, name) for name in names]
        program = next(filter(os.path.isfile, paths), None)
        if not program:
            wanted = " or ".join(names[:2])
            maker = "tools/quantize_model.py" if options.precision == "int8" else "export_model.py"
            raise UserError(f"--model_dir: {options.model_dir} has no {wanted}; {maker} writes one")
    if not program:
        raise UserError("--model_file: name a model to run, or its folder by --model_dir; export_model.py writes one")
    cli.existing_file("--model_file", program)
    suffix = Path(program).suffix
    refuse(
        (onnx and suffix != ".onnx",
         f"--model_file: {program} is no .onnx file, which --runtime={options.runtime} runs"),
        (not onnx and suffix == ".onnx", f"--model_file: {program} is run by --runtime=openvino or onnxruntime"),
        (not onnx and suffix not in (".pdmodel", ".json"), f"--model_file: {program} is neither .pdmodel nor .json"),
    )  # fmt: skip
    if onnx:
        return Path(program), None
    params = params or str(Path(program).with_suffix(".pdiparams"))
    return Path(program), Path(cli.existing_file("--params_file", params))


def open_runtime(options, trusted=False):
    """The runtime that the flags name, ready to run: its files are checked, and it computes as asked.

    Args:
        options: parsed flags of `add_flags`, checked.
        trusted: the files were written a moment ago by this project, and need no trial (see trial.py).
    """
    program, params = find_model(options)
    if params:
        return PaddleInference(program, params, options, trusted)
    return ONNX_RUNTIMES[options.runtime](program, options, trusted)
