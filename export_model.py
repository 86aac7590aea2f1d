"""Exports trained weights as a static graph for Paddle Inference, and proves that it computes the same.

    python export_model.py --model_path best_model.pdparams --save_dir ./output/

writes `model.pdmodel` and `model.pdiparams` (any batch, height and width), and `deploy.json`: their
checksums, by which `infer.py` tells a broken or mixed pair, and the network's options. The export is
loaded into the real predictor, without and with oneDNN, and compared with the network on two odd
sizes before anything is put in place; a difference above 1e-4 is a failure (exit 1).

Nothing is replaced unasked, with one exception: an intact export of the very same weights may be made
again. `--format json` writes Paddle 3's own program format, `model.json`; `model.pdmodel` is read by
both Paddle versions and is faster under oneDNN.
"""

import argparse
import contextlib
import hashlib
import json
import os
import tempfile
import warnings
from pathlib import Path

import numpy as np

import cli
from cli import UserError
from runtimes import PaddleEngine

PROGRAM = {"pdmodel": "model.pdmodel", "json": "model.json"}
PARAMS, FACTS = "model.pdiparams", "deploy.json"
TOLERANCE = 1e-4
SIZES = ((1, 37, 53), (2, 67, 45))  # batch, height, width: odd, and larger than one window of 32


def get_parser():
    """The published flags under their published names, and ours."""
    parser = cli.Parser(__doc__)
    parser.add_argument("--model_path", required=True, help="the .pdparams weights")
    parser.add_argument("--save_dir", default="./output/", help="where the export goes; created if needed")
    parser.add_argument("--format", choices=PROGRAM, default="pdmodel", help="of the program")
    parser.add_argument("--overwrite", action="store_true", help="replace an export of other weights")
    return parser


def main(argv=None):
    """Exports into a temporary folder, compares, and puts the files in place."""
    options = get_parser().parse_args(argv)
    cli.existing_file("--model_path", options.model_path)
    folder = Path(cli.writable_folder("--save_dir", options.save_dir))

    # Paddle takes seconds to import: the flags are checked by now.
    warnings.filterwarnings("ignore", "No ccache found")
    import paddle

    from checkpoint import load_network

    if options.format == "json" and not hasattr(paddle.pir_utils, "OldIrGuard"):
        raise UserError(f"--format: Paddle {paddle.__version__} cannot write model.json, 3.0 and later can")
    paddle.set_device("cpu")
    network, facts = load_network(options.model_path)
    if network.options.get("n_input") not in (None, network.options["n_channel"]):
        raise UserError(f"--model_path: {options.model_path} takes renders with buffers; images alone are exported")
    source = weights_digest(network)
    check_replaceable(folder, source, options.overwrite)

    with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as temporary, _full_disk_named(folder):
        temporary = Path(temporary)
        program = export(network, temporary, options.format)
        difference = 0.0
        for onednn in (False, True):
            worst = largest_difference(network, program, temporary / PARAMS, onednn)
            difference = max(difference, worst)
            print(f"largest difference from the network, oneDNN {'on ' if onednn else 'off'}: {worst:.2e}")
        # Also false for NaN.
        if not difference <= TOLERANCE:
            cli.note(f"export failed: the difference is above {TOLERANCE:g}, nothing was written")
            return 1
        files = {path.name: file_digest(path) for path in sorted(temporary.iterdir())}
        record = {
            "files": files,
            "weights": source,
            "options": facts,
            "widest": max(p.shape[0] for p in network.parameters() if p.ndim == 4),
            "paddle": paddle.__version__,
            "largest_difference": difference,
        }
        cli.write_json(temporary / FACTS, record)
        put_in_place(temporary, folder, program.name)
    print(f"{folder / program.name}\n{folder / PARAMS}")
    return 0


@contextlib.contextmanager
def _full_disk_named(folder):
    """Errors while writing, most of which name no file, as one line."""
    try:
        yield
    except OSError as error:
        raise UserError(f"--save_dir: cannot write to {folder}: {error.strerror or error}") from None


# --- Exporting ----------------------------------------------------------------------------------------------


def export(network, folder, kind):
    """Writes the network's program and weights into a folder and returns the program's path."""
    import paddle

    channels = network.options["n_channel"]
    spec = [paddle.static.InputSpec([-1, channels, -1, -1], "float32", "x")]
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


def largest_difference(network, program, params, onednn):
    """Loads an export into Paddle Inference and compares it with the network."""
    import paddle

    options = argparse.Namespace(
        use_gpu=False, use_tensorrt=False, enable_mkldnn=onednn, ir_optim=True, precision="fp32", cpu_threads=1
    )  # fmt: skip
    engine = PaddleEngine(program, params, options)
    worst = 0.0
    for batch, height, width in SIZES:
        x = noisy_pictures(batch, network.options["n_channel"], height, width)
        with paddle.no_grad():
            expected = network(paddle.to_tensor(x)).numpy()
        result = engine(x)
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


def check_replaceable(folder, source, overwrite):
    """Refuses to replace what is not an intact export of the same weights, unless asked."""
    existing = [folder / name for name in (*PROGRAM.values(), PARAMS, FACTS) if (folder / name).exists()]
    if not existing or overwrite:
        return
    try:
        record = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        intact = all(file_digest(folder / name) == digest for name, digest in record["files"].items())
        same = record["weights"] == source
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        intact = same = False
    if not (intact and same):
        raise UserError(f"--save_dir: {existing[0]} exists, made from other weights; --overwrite replaces it")


def put_in_place(temporary, folder, program):
    """Moves the files so that no program ever stands beside weights which are not its own, even if killed."""
    # The old program goes first and the new one comes last: between them there is none.
    for name in (*PROGRAM.values(), PARAMS + ".info"):
        (folder / name).unlink(missing_ok=True)
    names = sorted(path.name for path in temporary.iterdir() if path.name != program)
    for name in (*names, program):
        os.replace(temporary / name, folder / name)


if __name__ == "__main__":
    cli.run(main)
