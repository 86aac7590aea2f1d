"""Trained networks as files for runtimes, the comparison with the network, and how the files get into place.

>>> with tempfile.TemporaryDirectory() as folder:
...     program = write(network, Path(folder), "onnx", record_of(network, options))
...     print(largest_difference(network, open_runtime(runtime_options(runtime="openvino", model_file=program))))
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import warnings
from pathlib import Path

import numpy as np

from denoising import cli
from denoising.cli import UserError
from denoising.export.onnx_file import to_onnx
from denoising.export.onnx_graph import trace
from denoising.runtimes.choice import ONNX_RUNTIMES
from denoising.runtimes.onnx_runtimes import read_onnx

PROGRAM = {"pdmodel": "model.pdmodel", "json": "model.json", "onnx": "model.onnx"}
PARAMS, FACTS = "model.pdiparams", "deploy.json"
SIZES = ((1, 37, 53), (2, 67, 45))  # batch, height, width: odd, and larger than one window of 32


def load_exportable(path):
    """Loads a network to export; those for renders and for raw files are refused, which take more than an image."""
    import paddle

    from denoising.inference.checkpoint import load_network

    paddle.set_device("cpu")
    network, options = load_network(path)
    if not network.takes_images:
        raise UserError(f"--model_path: {path} takes renders with buffers or raw files; what is exported takes images")
    return network, options


def record_of(network, options, precision="fp32"):
    """The facts that travel with an export: whose weights these are, in fp32 or int8, and how they were trained."""
    import paddle

    return {
        "options": options,
        "weights": weights_digest(network),
        "precision": precision,
        "widest": max(p.shape[0] for p in network.parameters() if p.ndim == 4),
        "paddle": paddle.__version__,
    }


def write(network, folder, kind, record):
    """Writes a network into a folder and returns the program's path; in an .onnx file weights and record are within."""
    program = folder / PROGRAM[kind]
    if kind == "onnx":
        program.write_bytes(to_onnx(trace(network), network, record))
    else:
        export(network, folder, kind)
    return program


def write_record(folder, record):
    """Writes the record of Paddle's files beside them, with their checksums."""
    files = {path.name: file_digest(path) for path in sorted(folder.iterdir())}
    cli.write_json(folder / FACTS, {"files": files, **record})


def installed_runtimes():
    """The names of the installed runtimes for .onnx files."""
    return [name for name in ONNX_RUNTIMES if importlib.util.find_spec(name)]


# --- Paddle's files -----------------------------------------------------------------------------------------


def export(network, folder, kind):
    """Writes the network's program and weights into a folder and returns the program's path."""
    import paddle

    spec = [paddle.static.InputSpec([-1, network.n_input, -1, -1], "float32", "x")]
    guard = contextlib.nullcontext()
    if hasattr(paddle.pir_utils, "OldIrGuard"):
        # Paddle 3 builds either kind of program, whichever of them its environment asks for.
        guard = paddle.pir_utils.IrGuard() if kind == "json" else paddle.pir_utils.OldIrGuard()
    with warnings.catch_warnings(), guard:
        # The tracer warns about deprecated attributes that it sets itself.
        warnings.simplefilter("ignore")
        traced = paddle.jit.to_static(network, input_spec=spec, full_graph=True)
        try:
            paddle.jit.save(traced, str(folder / "model"))
        finally:
            network.forward.rollback()
    program = folder / PROGRAM[kind]
    if kind == "pdmodel":
        program.write_bytes(with_plain_biases(program.read_bytes()))
    return program


def with_plain_biases(program):
    """Rewrites the biases of a .pdmodel into the form that oneDNN's fusions look for.

    Paddle traces a convolution's bias as reshape(bias, [1, C, 1, 1]) + addition, but fuses only an addition of
    the bias itself along axis 1. As traced, each bias and activation is a pass over memory of its own, and
    of the convolutions without neighbours to share bfloat16 with, more than half stay in float32.
    """
    from paddle.base import core

    description = core.ProgramDesc(program)
    block = description.block(0)
    operators = [block.op(index) for index in range(block.op_size())]
    producer = {name: op for op in operators for name in op.output_arg_names()}
    for op in operators:
        if op.type() != "elementwise_add":
            continue
        sources = [producer.get(op.input(side)[0]) for side in "XY"]
        if None in sources or not sources[0].type().startswith("conv2d") or sources[1].type() != "reshape2":
            continue
        bias = block.find_var(sources[1].input("X")[0].encode())
        shape = sources[1].attr("shape")
        if bias is not None and bias.persistable() and len(bias.shape()) == 1 and shape[0] == 1 and len(shape) == 4:
            op.set_input("Y", [bias.name()])
            op._set_attr("axis", 1)
    used = {name for op in operators for name in op.input_arg_names()}
    for index in reversed(range(len(operators))):
        if operators[index].type() == "reshape2" and used.isdisjoint(operators[index].output_arg_names()):
            block._remove_op(index, index + 1)
    return description.serialize_to_string()


# --- Comparing ----------------------------------------------------------------------------------------------


def noisy_pictures(batch, channels, height, width):
    """Smooth shapes with an edge and noise of sigma 25/255: what a network sees, unlike plain noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width] / 24.0
    phase = rng.uniform(0, 6, (2, batch, channels, 1, 1))
    picture = 0.5 + 0.2 * np.sin(x + phase[0]) + 0.2 * np.cos(y + phase[1]) + 0.1 * (x > y)
    return (picture + rng.normal(0, 25 / 255, picture.shape)).astype(np.float32)


def largest_difference(network, runtime):
    """Compares a runtime with the network on noisy pictures of odd sizes."""
    import paddle

    worst = 0.0
    for batch, height, width in SIZES:
        x = noisy_pictures(batch, runtime.channels, height, width)
        with paddle.no_grad():
            expected = network(paddle.to_tensor(x)).numpy()
        result = runtime(x)
        if result.shape != expected.shape:
            return float("inf")
        # np.maximum hands NaN on, which max() may drop.
        worst = float(np.maximum(worst, np.abs(result - expected).max()))
    return worst


# --- Files --------------------------------------------------------------------------------------------------


def weights_digest(network):
    """A checksum of all weights with their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def file_digest(path):
    """The SHA-256 of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def check_replaceable(folder, kind, record, overwrite, name=None):
    """Refuses to replace anything but an intact export of the same weights in the same precision, unless asked.

    Args:
        folder: where the export goes.
        kind: of PROGRAM.
        record: of `record_of`, for the new export.
        overwrite: whether it was asked.
        name: of the file, where it is not PROGRAM's.
    """
    ours = [name or PROGRAM["onnx"]] if kind == "onnx" else [PROGRAM["pdmodel"], PROGRAM["json"], PARAMS, FACTS]
    existing = [folder / file for file in ours if (folder / file).exists()]
    if not existing or overwrite:
        return
    try:
        if kind == "onnx":
            found = read_onnx(existing[0])[1]
            same = found["weights"] == record["weights"]
        else:
            found = json.loads((folder / FACTS).read_text(encoding="utf-8"))
            intact = all(file_digest(folder / file) == digest for file, digest in found["files"].items())
            same = intact and found["weights"] == record["weights"]
        precision = found.get("precision", "fp32")
    except (OSError, UserError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        same, precision = False, None
    exists = f"--save_dir: {existing[0]} exists"
    cli.refuse(
        (not same, f"{exists}, made from other weights; --overwrite replaces it"),
        (precision != record["precision"],
         f"{exists}, in {precision}; another folder keeps it beside the {record['precision']} model, --overwrite "
         "replaces it"),
    )  # fmt: skip


def put_in_place(temporary, folder, program):
    """Moves the files so that no program ever stands beside foreign weights, even if the process is killed."""
    if program.endswith(".onnx"):
        os.replace(temporary / program, folder / program)
        return
    # The old program goes first and the new one comes last: between them there is none.
    for name in (PROGRAM["pdmodel"], PROGRAM["json"], PARAMS + ".info"):
        (folder / name).unlink(missing_ok=True)
    names = sorted(path.name for path in temporary.iterdir() if path.name != program)
    for name in (*names, program):
        os.replace(temporary / name, folder / name)


@contextlib.contextmanager
def full_disk_named(folder):
    """Turns errors while writing, most of which name no file, into one line that names the folder."""
    try:
        yield
    except OSError as error:
        raise UserError(f"--save_dir: cannot write to {folder}: {error.strerror or error}") from None
