r"""Measures a network on every runtime and in every precision, and writes its deployment card.

    python tools/model_card.py --model_path best_model.pdparams --images my_noisy_images --save_dir output/card
    python tools/model_card.py --model_path best_model.pdparams --images clean_photos --noise gauss25 --quick \
        --save_dir output/card

writes `NAME.json`, and into `NAME.md` a section between two marks, which leaves alone what else that page says: work,
parameters and file sizes; PSNR and SSIM in each precision on a validation set by the protocol of val.py; latency,
throughput and memory of each runtime; which goals that reaches; how images become its input and its output images.
`--images` are what 8 bits are calibrated on, as in tools/quantize_model.py; they must not be those of the validation
set.

Each row is measured in a process of its own, one after the other. A row that the runtime would compute in another
precision than asked is left out, and the card says why. On two free
cores this takes about six minutes, with --quick about two; --val_images 100 adds six.
"""

import datetime
import multiprocessing
import os
import shlex
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's root

from denoising import cli, machine
from denoising.cli import UserError, number

# Nothing that imports Paddle: each row's process reads this file, and Paddle would count as its memory.
from denoising.export import card_page, card_rows, writing
from denoising.export.card_rows import Conditions, Row
from denoising.export.onnx_graph import multiplications, trace
from denoising.export.quantization import METHODS
from denoising.imaging.noise import list_of_noise, noise_of_flag, parse_noise

ROWS = (
    Row("engine", "fp32"),
    Row("engine", "bf16"),
    Row("Paddle, plain", "fp32", "model.pdmodel", {"enable_mkldnn": False}, single=True),
    Row("Paddle, oneDNN", "fp32", "model.pdmodel"),
    Row("Paddle, oneDNN", "bf16", "model.pdmodel"),
    Row("Paddle, oneDNN", "int8", "paddle_int8/model.pdmodel"),
    Row("Paddle, its OpenVINO", "fp32", "model.pdmodel", {"use_openvino": True}),
    Row("Paddle, its OpenVINO", "bf16", "model.pdmodel", {"use_openvino": True}),
    Row("Paddle, GPU", "fp32", "model.pdmodel", {"use_gpu": True}),
    Row("Paddle, TensorRT", "fp16", "model.pdmodel", {"use_gpu": True, "use_tensorrt": True}),
    Row("ONNX Runtime", "fp32", "model.onnx", {"runtime": "onnxruntime"}),
    Row("ONNX Runtime", "int8", "model_int8.onnx", {"runtime": "onnxruntime"}),
    Row("OpenVINO", "fp32", "model.onnx", {"runtime": "openvino"}),
    Row("OpenVINO", "bf16", "model.onnx", {"runtime": "openvino"}),
    Row("OpenVINO", "fp16", "model.onnx", {"runtime": "openvino"}),
    Row("OpenVINO", "int8", "model_int8.onnx", {"runtime": "openvino"}),
)


def get_parser():
    """The flags."""
    parser = cli.Parser(__doc__)
    add = parser.add_argument
    add("--model_path", "--model", dest="model_path", required=True, help="trained weights, a .pdparams file")
    add("--save_dir", default="./docs/models", help="folder for the card; created if needed")
    add("--overwrite", action="store_true", help="replace an earlier card's section and JSON")
    add("--quick", action="store_true", help="only 256 pixels, single images, few runs, and four images to score")
    add("--only", nargs="+", metavar="RUNTIME",
        help="measure only these runtimes, e.g. OpenVINO or 'Paddle, oneDNN', and the engine in fp32")  # fmt: skip
    add = parser.add_argument_group("calibration of 8 bits").add_argument
    add("--images", help="folder of noisy images, or of clean ones if --noise is given; int8 needs them")
    add("--noise", default="none", help=f"noise to add to them: {list_of_noise()}")
    add("--method", choices=METHODS, default="kl", help="how the ranges of activations are chosen")
    add = parser.add_argument_group("quality").add_argument
    add("--val_dirs", default="./validation", help="folder of clean validation sets; the first one is used")
    add("--val_set", help="name of the validation set to use instead of the first")
    add("--val_images", type=number(int, 1), default=10, help="how many images of the set are scored")
    add("--val_repeats", type=number(int, 1), default=1, help="how often each is scored, with fresh noise")
    add("--noisetype", help="noise to score on; by default that which the network was trained on, or --noise")
    add = parser.add_argument_group("speed").add_argument
    add("--sizes", type=number(int, 32, 4096), nargs="+", default=[256, 512], help="sides of the square images to time")
    add("--batches", type=number(int, 1, 64), nargs="+", default=[1, 8], help="numbers of images at once")
    add("--threads", type=number(int, 1, 256), nargs="+", help="numbers of threads; 1 and all cores by default")
    add("--seconds", type=number(float, 0, 60), default=1.0, help="how long each latency is measured")
    add("--full", action="store_true", help="time batches of all sizes, not only of the smallest")
    return parser


def main(argv=None):
    """Makes the files, runs the rows one by one, and writes the card."""
    options = get_parser().parse_args(argv)
    cli.existing_file("--model_path", options.model_path)
    if options.images:
        cli.existing_folder("--images", options.images)
    name = Path(options.model_path).stem
    folder = Path(cli.writable_folder("--save_dir", options.save_dir))
    page, data = folder / f"{name}.md", folder / f"{name}.json"
    if page.exists():
        cli.existing_file("--save_dir", page)
    before = page.read_text(encoding="utf-8", errors="surrogateescape") if page.exists() else f"# {name}\n"
    if (data.exists() or card_page.find_section(page, before)) and not options.overwrite:
        raise UserError(f"--save_dir: {folder} has a card of {name}; --overwrite replaces it, and nothing else there")
    if options.quick:
        options.sizes, options.batches, options.val_images, options.seconds = [256], [1], 4, 0.3
    options.threads = sorted(set(options.threads or (1, machine.cores())))
    known = {row.runtime for row in ROWS}
    if options.only and set(options.only) - known:
        raise UserError(f"--only: {min(set(options.only) - known)} is none of {'; '.join(sorted(known))}")
    rows = [row for row in ROWS if not options.only or row.runtime in options.only or row == ROWS[0]]
    start = datetime.datetime.now()
    network, trained = writing.load_exportable(options.model_path)
    validation = choose_set(options, trained)

    with tempfile.TemporaryDirectory(prefix="card-") as temporary:
        card = {"name": name, "command": command(argv), "machine": measured_on()}
        card |= make_files(network, trained, options, rows, Path(temporary))
        card["validation"] = dict(zip(("set", "noise", "images", "repeats"), validation[1:], strict=True))
        batches = tuple(sorted({1, *options.batches}))
        conditions = Conditions(temporary, options.model_path, tuple(sorted(set(options.sizes))), batches, options.full,
                  options.seconds, validation, card.get("lacking", "it takes --images and a runtime"))  # fmt: skip
        card["rows"] = run_rows(rows, options.threads, conditions)
    card["minutes"] = round((datetime.datetime.now() - start).total_seconds() / 60, 1)
    card["goals"] = card_page.reached(card["rows"])
    cli.write_json(data, card)
    cli.write_text(page, card_page.with_section(page, before, card_page.section(card, guide_from(folder))))
    for goal in card["goals"]:
        print(f"{goal['goal']}: {goal['measured']}: {goal['verdict']}")
    print(page, data, sep="\n")
    return 0


def command(argv):
    """What was typed; of paths elsewhere on this machine, which are nobody else's, the last name."""
    words = [str(word) for word in (sys.argv[1:] if argv is None else argv)]
    words = [os.path.basename(word.rstrip("/")) if os.path.isabs(word) else word for word in words]
    return shlex.join(["python", "tools/model_card.py", *words])


def guide_from(folder):
    """How a card names docs/deployment.md: by a link from within the project, and elsewhere without one."""
    root = Path(__file__).resolve().parent.parent
    if not cli.lies_in(folder, root):
        return "the project's docs/deployment.md"
    way = os.path.relpath(root / "docs" / "deployment.md", os.path.realpath(folder))
    return f"[deployment.md]({Path(way).as_posix()})"


def measured_on():
    """What was measured on, and how busy it was before."""
    from denoising.inference import devices

    interesting = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
    flags = [flag for flag in interesting if flag in machine.cpu_flags()]
    load = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
    return {
        "date": str(datetime.date.today()), "processor": machine.cpu_name(), "instructions": flags,
        "cores": os.cpu_count(), "load_before": load, **devices.versions(),
    }  # fmt: skip


def choose_set(options, trained):
    """What is scored: folder, name, noise, images, repeats."""
    from denoising.data.validation import find_validation_sets

    present, _ = find_validation_sets(cli.existing_folder("--val_dirs", options.val_dirs))
    sets = {validation_set.name: validation_set for validation_set in present}
    name = options.val_set or present[0].name
    if name not in sets:
        raise UserError(f"--val_set: {options.val_dirs} has no {name}, but {', '.join(sets)}")
    cli.refuse(
        (options.noisetype == "none" and not sets[name].own_noise,
         f"--noisetype: none, but the images of {name} are clean: there would be nothing to remove"),
    )  # fmt: skip
    named = (options.noisetype, trained.get("noisetype"), options.noise)
    noisetype = next((name for name in named if name and name != "none"), "gauss25")  # weights of pairs know no noise
    noise_of_flag("--noisetype", noisetype)
    noise_of_flag("--noise", options.noise)
    if sets[name].own_noise:
        noisetype = "none"  # nothing is added to images that are noisy already
    return options.val_dirs, name, noisetype, options.val_images, options.val_repeats


# --- Measuring ----------------------------------------------------------------------------------------------


def make_files(network, trained, options, rows, folder):
    """Exports, 8-bit models and the reference, as far as rows need them; returns what the card says of them."""
    import paddle

    from denoising.export import calibration

    record = writing.record_of(network, trained)
    nodes = trace(network)
    costs = multiplications(nodes, 256, 256)
    card = {
        "network": network.options, "noisetype": trained.get("noisetype"),
        "parameters": sum(int(np.prod(p.shape)) for p in network.parameters()),
        "multiplications_256": sum(costs.values()), "flops_256": 2 * sum(costs.values()), "files": {},
    }  # fmt: skip
    needed = {row.file for row in rows}
    if "model.pdmodel" in needed:
        writing.export(network, folder, "pdmodel")
    runtimes = writing.installed_runtimes()
    if runtimes:
        writing.write(network, folder, "onnx", record)
    if options.images and runtimes:
        cli.note("calibrating 8 bits")
        crops = calibration.read_crops("--images", options.images, parse_noise(options.noise), network.n_input)
        runtime = "openvino" if "openvino" in runtimes else runtimes[0]
        try:
            made = calibration.quantise(network, record, crops, options.method, runtime)
            (folder / "model_int8.onnx").write_bytes(made.data)
            card["int8"] = {"method": options.method, "noise": options.noise, "float_layers": made.floats,
                            "psnr_to_float_on_crops": made.decibels}  # fmt: skip
            if "paddle_int8/model.pdmodel" in needed:
                paddles = folder / "paddle_int8"
                paddles.mkdir()
                calibration.quantise(network, record, crops, options.method, runtime, kind="pdmodel", folder=paddles)
        except UserError as error:
            card["lacking"] = str(error)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            card["files"][str(path.relative_to(folder))] = path.stat().st_size
    pictures = writing.noisy_pictures(2, network.n_input, 219, 270)
    with paddle.no_grad():
        denoised = network(paddle.to_tensor(pictures)).numpy()
    np.savez(folder / "reference.npz", noisy=pictures, denoised=denoised)
    return card


def run_rows(wanted, counts, conditions):
    """Measures rows, each with each number of threads in a new process; a crash is noted and costs only its row."""
    rows = []
    with cli.progress(total=len(wanted) * len(counts), unit="row") as bar:
        for row in wanted:
            facts = {"runtime": row.runtime, "precision": row.precision, "file": row.file}
            for threads in reversed(counts):
                # All that computes in float32 gives the same pictures; only what rounds is scored anew.
                first = threads == counts[-1]
                found = measured(row, threads, first, first and (row.precision != "fp32" or row == ROWS[0]), conditions)
                bar.update()
                facts["latency"] = facts.get("latency", []) + found.pop("latency", [])
                facts = found | facts
                if "absent" in found:
                    bar.update(len(counts) - 1)
                    break
            rows.append(facts)
    return rows


def measured(row, threads, first, score, conditions):
    """One row in a process of its own."""
    if row.file and not (Path(conditions.folder) / row.file).exists():
        reason = conditions.lacking if row.precision == "int8" else "it takes onnxruntime or openvino"
        return {"absent": f"there is no {row.file}: {reason}"}
    # The engine takes its threads from the environment, and all cores by default; runtimes have a flag. Paddle's
    # import has set the variable to 1 in this process.
    os.environ.pop("OMP_NUM_THREADS", None)
    if not row.file and threads != machine.cores():
        os.environ["OMP_NUM_THREADS"] = str(threads)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=cli.start_worker) as pool:
        try:
            return pool.submit(card_rows.measure, row, threads, first, score, conditions).result()
        except BrokenProcessPool:
            return {"absent": "its process died"}


if __name__ == "__main__":
    cli.run(main)
