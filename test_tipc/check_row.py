"""Holds a row that ended with 0 against what it was asked for: the log, the files, the pictures.

    python test_tipc/check_row.py infer --log LOG --images DIR --results DIR --reference DIR --clean DIR \
        --precision fp32 --tolerance "fp32=1e-4|bf16=0.05dB" --facts enable_mkldnn=True runtime_device=cpu

prints what it found, or what is wrong and ends with 1.
"""

import argparse
import math
import re
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cli
import images
import metrics


class Wrong(Exception):
    """What a row claims is not what it did."""


def get_parser():
    """One sub-command per kind of row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind in ("train", "eval", "export", "infer"):
        one = kinds.add_parser(kind, allow_abbrev=False)
        if kind != "export":
            one.add_argument("--log", type=Path, required=True)
        if kind in ("train", "export"):
            one.add_argument("--weights", type=Path, required=True)
        if kind == "train":
            one.add_argument("--loss", choices=["falls", "finite"], required=True, help="what the losses must be")
            one.add_argument("--ranks", type=int, default=1, help="how many processes log here")
            one.add_argument("--launch_logs", default="", help="their folder, if there are several")
        if kind == "export":
            one.add_argument("--model", type=Path, required=True)
        if kind == "infer":
            for name in ("images", "results", "reference", "clean"):
                one.add_argument(f"--{name}", type=Path, required=True)
            one.add_argument("--precision", required=True)
            one.add_argument("--tolerance", required=True, help="by precision, in values or dB: fp32=1e-4|int8=0.3dB")
            one.add_argument("--facts", nargs="+", required=True, help="what the log has to say of itself")
    return parser


# --- Training -----------------------------------------------------------------------------------------------


def losses_of(text):
    """The losses that a training log shows, in order; the regulariser, whose weight rises, is not among them."""
    return [float(value) for value in re.findall(r"\bLoss1=(\S+?),", text)]


def check_train(options):
    """The losses are numbers and go down; the weights are there; all processes have the same."""
    losses = losses_of(options.log.read_text(errors="replace"))
    if options.launch_logs:
        (first,) = sorted(Path(options.launch_logs).rglob("workerlog.0"))[:1] or [options.log]
        losses = losses_of(first.read_text(errors="replace"))
    if len(losses) < 3:
        raise Wrong(f"the log shows {len(losses)} losses, three at least are needed")
    if not all(map(math.isfinite, losses)):
        raise Wrong("a loss is not finite")
    third = len(losses) // 3
    first, last = np.mean(losses[:third]), np.mean(losses[-third:])
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


def pixels(path):
    """The one page of a picture, as float in 0..1."""
    (page,) = images.read_image(path).pages
    return images.to_01(page).astype(np.float64)


def same_named(folder, path, suffix=""):
    """The picture of that name in a folder, whose type is the same or PNG."""
    for extension in (path.suffix, ".png"):
        found = folder / f"{path.stem}{suffix}{extension}"
        if found.is_file():
            return found
    raise Wrong(f"{folder} has no {path.stem}{suffix}")


def check_infer(options):
    """As asked; for every input a result of its size; as the network itself has it."""
    inputs = images.find_images("--images", options.images)
    facts = check_facts(
        options.log.read_text(errors="replace"),
        dict(fact.split("=", 1) for fact in options.facts) | {"data_num": str(len(inputs))},
    )
    results = [path for path in options.results.rglob("*") if path.is_file()] if options.results.is_dir() else []
    if len(results) != len(inputs):
        raise Wrong(f"{len(inputs)} pictures went in, {options.results} holds {len(results)}")
    tolerances = dict(one.split("=", 1) for one in options.tolerance.split("|"))
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
            difference = np.abs(result - expected).max() - (0 if path.suffix == ".npy" else 1.01 / 255)
        worst = max(worst, difference)
    limit = float(tolerance.removesuffix("dB"))
    value = float(np.mean(mean)) if mean else worst
    if not value <= limit:
        raise Wrong(f"differs from the network by {value:.2g}{'dB' * bool(mean)}, {tolerance} is allowed")
    kind = f"{value:+.4f} dB below" if mean else f"within {max(value, 0):.1e} of"
    return f"{len(inputs)} pictures {kind} the network, {facts['inference_time(ms)']} ms a batch"


def main(argv=None):
    """Checks one row."""
    options = get_parser().parse_args(argv)
    check = {"train": check_train, "eval": check_eval, "export": check_export, "infer": check_infer}[options.kind]
    try:
        print(f"checked: {check(options)}")
    except (Wrong, OSError, cli.UserError) as error:
        print(f"check failed: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
