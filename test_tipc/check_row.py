"""Holds a row that ended with 0 against what it was asked for: the log, the files, the pictures.

    python test_tipc/check_row.py infer --log LOG --images DIR --results DIR --reference DIR --clean DIR \
        --precision fp32 --tolerance "fp32=1e-4|bf16=0.05dB" --facts enable_mkldnn=True runtime_device=cpu

prints what it found, or what is wrong and ends with 1.
"""

import json
import math
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's root

from denoising import cli
from denoising.imaging.pixels import to_01

# images and metrics, which take their time to import, where pictures are looked at.


class Wrong(Exception):
    """What a row claims is not what it did."""


def get_parser():
    """One sub-command per kind of row."""
    parser = cli.Parser(__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind in KINDS:
        add = kinds.add_parser(kind, doc=KINDS[kind].__doc__).add_argument
        if kind not in ("export", "onnx", "service"):
            add("--log", type=Path, required=True)
        if kind in ("train", "export", "onnx"):
            add("--weights", type=Path, required=True)
        if kind == "train":
            add("--loss", choices=["falls", "finite"], required=True, help="what the losses must be")
            add("--ranks", type=int, default=1, help="how many processes log here")
            add("--launch_logs", default="", help="their folder, if there are several")
            add("--shows", nargs="*", default=[], help="what the log has to say, as regular expressions")
        if kind in ("export", "onnx", "quantised"):
            add("--model", type=Path, required=True, help="its folder, or the .onnx file")
        if kind == "onnx":
            add("--full", type=cli.boolean, default=True, help="run ONNX's own checker")
        if kind == "service":
            add("--url", required=True, help="of the service")
            add("--images", type=Path, required=True)
            add("--times", type=int, required=True, help="how often all of them were sent")
        if kind == "infer":
            for name in ("images", "results", "reference", "clean"):
                add(f"--{name}", type=Path, required=True)
            add("--precision", required=True)
            add("--tolerance", required=True, help="by precision, in values or dB: fp32=1e-4|int8=0.3dB")
        if kind in ("infer", "speed"):
            add("--facts", nargs="*", default=[], help="what AutoLog's report in the log has to say")
    return parser


# --- Training -----------------------------------------------------------------------------------------------


def check_train(options):
    """It ran as asked; the losses are numbers and go down; the weights are there; all processes have the same."""
    log = options.log
    if options.launch_logs:
        (log,) = sorted(Path(options.launch_logs).rglob("workerlog.0"))[:1] or [options.log]
    text = log.read_text(errors="replace")
    for wanted in options.shows:
        if not re.search(wanted, text):
            raise Wrong(f"it did not run as asked: the log shows nothing like '{wanted}'")
    # The regulariser's loss is not among them: its weight rises.
    losses = [float(value) for value in re.findall(r"\bLoss1=(\S+?),", text)]
    if len(losses) < 3:
        raise Wrong(f"the log shows {len(losses)} losses, three at least are needed")
    if not all(map(math.isfinite, losses)):
        raise Wrong("a loss is not finite")
    third = len(losses) // 3
    first, last = sum(losses[:third]) / third, sum(losses[-third:]) / third
    if options.loss == "falls" and not last < first:
        raise Wrong(f"the loss does not fall: {first:.6f} at first, {last:.6f} at last")
    if not options.weights.is_file() or not options.weights.stat().st_size:
        raise Wrong(f"{options.weights} is missing")
    if options.ranks > 1:
        check_ranks(Path(options.launch_logs), options.ranks)
    return f"{len(losses)} losses from {first:.6f} to {last:.6f}, {options.weights}"


def check_ranks(folder, ranks):
    """Every process has logged its weights, and they are the same."""
    found = {}
    for path in sorted(folder.rglob("workerlog.*")):
        found |= dict(re.findall(r"^weights of rank (\d+): (\w+)$", path.read_text(errors="replace"), re.MULTILINE))
    if len(found) != ranks or len(set(found.values())) != 1:
        raise Wrong(f"{ranks} processes with the same weights are expected, {folder} tells of {found or 'none'}")


def check_eval(options):
    """A finite score of at least one set."""
    scores = re.findall(r"^\[EVAL\] (.+): psnr:(\S+) ssim:(\S+)$", options.log.read_text(), re.MULTILINE)
    if not scores or not all(math.isfinite(float(value)) for _, *values in scores for value in values):
        raise Wrong(f"no finite score of any set: {scores}")
    return ", ".join(f"{name} {float(psnr):.2f} dB" for name, psnr, _ in scores)


# --- Export and inference -------------------------------------------------------------------------------------


def check_export(options):
    """Program and weights are there, and younger than the weights that they were made from."""
    programs = [path for name in ("model.pdmodel", "model.json") if (path := options.model / name).is_file()]
    if len(programs) != 1 or not (options.model / "model.pdiparams").is_file():
        raise Wrong(f"{options.model} holds no exported model")
    if programs[0].stat().st_mtime < options.weights.stat().st_mtime:
        raise Wrong(f"{programs[0]} is older than {options.weights}")
    return str(programs[0])


def check_onnx(options):
    """The file is valid, younger than its weights, and takes any batch, height and width."""
    import onnx

    if not options.model.is_file() or options.model.stat().st_mtime < options.weights.stat().st_mtime:
        raise Wrong(f"{options.model} is missing, or older than {options.weights}")
    try:
        model = onnx.load(options.model)
        if options.full:
            onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        raise Wrong(f"{options.model}: {error}") from None
    sizes = [dimension.dim_value for dimension in model.graph.input[0].type.tensor_type.shape.dim]
    if len(sizes) != 4 or sizes[0] or sizes[2] or sizes[3]:
        raise Wrong(f"{options.model} takes images of one size: {sizes}")
    return f"{options.model}, opset {model.opset_import[0].version}, {len(model.graph.node)} nodes"


def check_quantised(options):
    """A model in 8 bits is there, and was compared with the float network."""
    found = re.findall(r"^PSNR of int8 against float: (\S+) dB$", options.log.read_text(errors="replace"), re.MULTILINE)
    files = [path for name in ("model.pdmodel", "model_int8.onnx") if (path := options.model / name).is_file()]
    if len(files) != 1 or len(found) != 1 or not math.isfinite(float(found[0])):
        raise Wrong(f"{options.model} holds {len(files)} models, and the log tells of {len(found)} comparisons")
    return f"{files[0]}, {found[0]} dB against the float network"


def facts_of(text):
    """What AutoLog's report in a log says: its key: value lines, some of which hold several."""
    facts = {}
    for line in re.findall(r"root INFO: +(.*)", text):
        facts |= dict(re.findall(r"([\w()]+): (\([^)]*\)|[^,]+)", line))
    return facts


def check_facts(text, wanted):
    """The report tells of the device, the threads and so on that were asked for."""
    facts = facts_of(text)
    for key, value in wanted.items():
        if facts.get(key) != value:
            raise Wrong(f"asked for {key} {value}, the log says {facts.get(key, 'nothing of it')}")
    for key in ("preprocess_time(ms)", "inference_time(ms)", "postprocess_time(ms)"):
        if not math.isfinite(float(facts.get(key, "nan"))):
            raise Wrong(f"the log has no {key}")
    return facts


def check_speed(options):
    """The times of random input, taken as asked."""
    facts = check_facts(options.log.read_text(errors="replace"), dict(fact.split("=", 1) for fact in options.facts))
    return f"{facts['inference_time(ms)']} ms a batch of {facts['input_shape']}"


def pixels(path):
    """The one page of a picture, as float in 0..1."""
    from denoising.files import images

    (page,) = images.read_image(path).pages
    return to_01(page).astype("float64")


def same_named(folder, path, suffix=""):
    """The picture of that name in a folder, whose type is the same or PNG."""
    for extension in (path.suffix, ".png"):
        found = folder / f"{path.stem}{suffix}{extension}"
        if found.is_file():
            return found
    raise Wrong(f"{folder} has no {path.stem}{suffix}")


def check_infer(options):
    """As asked; for every input a result of its size; as the network itself has it."""
    from denoising.files import images
    from denoising.imaging import metrics

    inputs = images.find_images("--images", options.images)
    facts = dict(fact.split("=", 1) for fact in options.facts)
    if "runtime_device" in facts:
        facts = check_facts(options.log.read_text(errors="replace"), facts | {"data_num": str(len(inputs))})
    results = [path for path in options.results.rglob("*") if path.is_file()] if options.results.is_dir() else []
    if len(results) != len(inputs):
        raise Wrong(f"{len(inputs)} pictures went in, {options.results} holds {len(results)}")
    tolerances = dict(limit.split("=", 1) for limit in options.tolerance.split("|"))
    if options.precision not in tolerances:
        raise Wrong(f"no tolerance is given for {options.precision}")
    tolerance = tolerances[options.precision]
    worst, mean = 0.0, []
    for path in inputs:
        result = pixels(same_named(options.results, path, "_denoise"))
        expected = pixels(same_named(options.reference, path, "_denoise"))
        if result.shape != pixels(path).shape:
            raise Wrong(f"the result of {path} has another size")
        if tolerance.endswith("dB"):
            clean = pixels(same_named(options.clean, path))
            difference = metrics.psnr(clean, expected, 1.0) - metrics.psnr(clean, result, 1.0)
            mean.append(difference)
        else:
            # Eight bits may round to either side.
            difference = abs(result - expected).max() - (0 if path.suffix == ".npy" else 1.01 / 255)
        worst = max(worst, difference) if difference == difference else math.inf  # NaN is no small difference
    limit = float(tolerance.removesuffix("dB"))
    value = sum(mean) / len(mean) if mean else worst
    if not value <= limit:
        raise Wrong(f"differs from the network by {value:.2g}{'dB' * bool(mean)}, {tolerance} is allowed")
    kind = f"{value:+.4f} dB below" if mean else f"within {max(value, 0):.1e} of"
    time = f", {facts['inference_time(ms)']} ms a batch" if "inference_time(ms)" in facts else ""
    return f"{len(inputs)} pictures {kind} the network{time}"


def check_service(options):
    """It says that it is well, and has counted every picture."""
    import urllib.request

    from denoising.files import images

    with urllib.request.urlopen(options.url + "/health", timeout=30) as answer:
        health = json.load(answer)
    with urllib.request.urlopen(options.url + "/metrics", timeout=30) as answer:
        metrics_text = answer.read().decode()
    found = re.findall(r'^denoise_requests_total{what="denoise",status="200"} (\d+)', metrics_text, re.MULTILINE)
    sent = options.times * len(images.find_images("--images", options.images))
    if health.get("status") != "ok" or found != [str(sent)]:
        raise Wrong(f"{sent} pictures were sent; health {health}, counted {found}")
    return f"{sent} pictures counted, health {health['status']}"


KINDS = {
    "train": check_train, "eval": check_eval, "export": check_export, "infer": check_infer, "onnx": check_onnx,
    "quantised": check_quantised, "service": check_service, "speed": check_speed,
}  # fmt: skip


def main(argv=None):
    """Checks one row."""
    options = get_parser().parse_args(argv)
    try:
        print(f"checked: {KINDS[options.kind](options)}")
    except (Wrong, OSError, cli.UserError) as error:
        print(f"check failed: {error}")
        return 1
    return 0


if __name__ == "__main__":
    cli.run(main)
