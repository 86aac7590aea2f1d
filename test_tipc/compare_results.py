"""Compares the scores in inference logs with the stored ones, and fails unless each of them is there and agrees.

    python test_tipc/compare_results.py --gt_file="./test_tipc/results/python_*.txt" \
        --log_file="./test_tipc/output/*/whole_infer/python_infer_*.log"

A log belongs to the stored results of its model (the folder above its mode) and precision; in 8 bits, where runtimes
round at other places (with absmax by 0.2 dB), of its runtime too. The stored files have one
line a picture (or validation set, in logs of val.py), NAME<TAB>{"psnr": ..., "ssim": ...}, and one that names the
weights they were made with. `--record` writes them anew, from logs that agree with each other, if the weights denoise
at all.
"""

import glob
import hashlib
import json
import math
import re
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's root

from denoising import cli
from denoising.runtimes.onnx_runtimes import read_onnx

TOLERANCES = {  # by precision: dB and SSIM
    "fp32": {"psnr": 0.01, "ssim": 1e-4},
    "bf16": {"psnr": 0.03, "ssim": 1e-3},
    "int8": {"psnr": 0.3, "ssim": 3e-3},
}
GAIN = 3.0  # dB that recorded results are above the noisy pictures
SCORES = re.compile(r"^(?:.*/)?([^/]+)_denoise(\.\w+)  psnr: (\S+)  ssim: (\S+)$", re.MULTILINE)
SETS = re.compile(r"^\[EVAL\] (.+): psnr:(\S+) ssim:(\S+)$", re.MULTILINE)
GAINS = re.compile(r"^\S+ +\d+ x \d+ +\S+ +\S+ +([+-]\S+) +\S+$", re.MULTILINE)  # of val.py's table


class Mismatch(Exception):
    """Something differs, or is not there."""


def get_parser():
    """The official flags."""
    parser = cli.Parser(__doc__)
    parser.add_argument("--gt_file", required=True, help="stored results, a glob")
    parser.add_argument("--log_file", required=True, help="logs of inference, a glob")
    parser.add_argument("--atol", type=float, help="of both measures, instead of what the precision allows")
    parser.add_argument("--rtol", type=float, default=0.0, help="added to it, times the stored value")
    parser.add_argument("--record", action="store_true", help="write the stored results from these logs")
    return parser


def key_of(log):
    """Model, precision, and the end of the stored file's name, of a log by its place and name."""
    precision = re.search(r"_precision_(\w+?)_batchsize_", log.name)
    if not precision and "_eval" not in log.name:
        raise Mismatch(f"{log}: the name tells no precision")
    precision = precision[1] if precision else "fp32"
    runtime = re.search(r"_(onnxruntime|openvino|paddle)_", log.name) if precision == "int8" else None
    return log.parent.parent.name, precision, f"{precision}_{runtime[1]}" if runtime else precision


def scores_in(log):
    """{picture: scores} of a log."""
    text = log.read_text(errors="replace")
    found = [(stem + suffix, *values) for stem, suffix, *values in SCORES.findall(text)] + SETS.findall(text)
    scores = {name: {"psnr": float(psnr), "ssim": float(ssim)} for name, psnr, ssim in found}
    if not scores:
        raise Mismatch(f"{log}: holds no scores")
    for name, values in scores.items():
        if not all(map(math.isfinite, values.values())):
            raise Mismatch(f"{log}: {name} has no finite score")
    return scores


def weights_of(log):
    """The digest of the weights behind a log: of the record beside the model that it ran, or of the weights file."""
    command = status_line(log)
    if model := re.search(r"--model_dir=(\S+)", command):
        folder = Path(model[1])
        if (folder / "model_int8.onnx").is_file():
            return read_onnx(folder / "model_int8.onnx")[1]["weights"]
        return json.loads((folder / "deploy.json").read_text())["weights"]
    if weights := re.search(r"--model_path=(\S+)", command):
        return hashlib.sha256(Path(weights[1]).read_bytes()).hexdigest()
    raise Mismatch(f"{log}: its command names no model")


def status_line(log):
    """The line of the chain's status log that names a log; all rows there have to be green or skipped, and on disk."""
    path = log.parent / "results_python.log"
    if not path.is_file():
        raise Mismatch(f"{path} is missing: which rows were there?")
    found = None
    for line in path.read_text().splitlines():
        if " Run failed " in line and "compare_results.log" not in line:
            raise Mismatch(f"{path} has a failed row:{line}")
        for name in re.findall(r" - \S*/(\S+\.log) !", line):
            if " Run successfully " in line and not (log.parent / name).is_file():
                raise Mismatch(f"{log.parent / name} is missing, though its row ran")
            found = line if name == log.name else found
    if found is None:
        raise Mismatch(f"{log}: {path} knows nothing of it; it is of another run")
    return found


def stored_in(path):
    """The digest of the weights, and {picture: scores}, of a stored file."""
    try:
        lines = dict(line.split("\t", 1) for line in path.read_text().splitlines() if line)
        lines = {name: json.loads(text) for name, text in lines.items()}
        return lines.pop("weights")["sha256"], lines
    except (ValueError, KeyError, TypeError) as error:
        raise Mismatch(f"{path}: is no file of stored results ({error!r})") from None


def largest_difference(name, found, expected, options, tolerance):
    """The largest difference of the PSNR.

    Raises:
        Mismatch: a picture is missing or new, or a score differs by more than allowed.
    """
    if set(found) != set(expected):
        raise Mismatch(f"{name}: the pictures differ: {', '.join(sorted(set(found) ^ set(expected)))}")
    worst = 0.0
    for picture, values in expected.items():
        for measure, allowed in tolerance.items():
            allowed = (allowed if options.atol is None else options.atol) + options.rtol * abs(values[measure])
            difference = abs(found[picture][measure] - values[measure])
            if not difference <= allowed:
                what = f"{measure} {found[picture][measure]:.4f}, {values[measure]:.4f} is stored"
                raise Mismatch(f"{name}: {picture}: {what}, {allowed:g} is allowed")
            if measure == "psnr":
                worst = max(worst, difference)
    return worst


def noisy_psnr(clean="test_tipc/inputs/clean", noisy="test_tipc/inputs/noisy"):
    """The mean PSNR of the stored noisy pictures."""
    import check_row
    from denoising.imaging import metrics

    pairs = [(check_row.pixels(path), check_row.pixels(Path(noisy) / path.name)) for path in Path(clean).iterdir()]
    return statistics.mean(metrics.psnr(a, b, 1.0) for a, b in pairs)


def record(logs, folder, options):
    """Writes one file for each model and precision."""
    for key in sorted({key_of(log) for log in logs}):
        mine = [log for log in logs if key_of(log) == key]
        first = scores_in(mine[0])
        for log in mine[1:]:
            largest_difference(log, scores_in(log), first, options, TOLERANCES[key[1]])
        mean = statistics.mean(scores["psnr"] for scores in first.values())
        gains = GAINS.findall(mine[0].read_text(errors="replace"))
        noisy = mean - statistics.mean(map(float, gains)) if gains else noisy_psnr()
        if mean < noisy + GAIN:
            raise Mismatch(f"{mine[0]}: {mean:.2f} dB, but the noisy pictures have {noisy:.2f}: nothing to record")
        lines = [("weights", {"sha256": weights_of(mine[0])}), *sorted(first.items())]
        path = folder / f"python_{key[0]}_results_{key[2]}.txt"
        cli.write_text(path, "".join(f"{name}\t{json.dumps(values)}\n" for name, values in lines))
        print(f"recorded {path}: {mean:.2f} dB, noisy {noisy:.2f}")


def compare(logs, stored, options):
    """Compares all logs."""
    paths = {path.name: path for path in stored}
    if not paths:
        raise Mismatch(f"--gt_file: nothing is there: {options.gt_file}")
    for log in logs:
        model, precision, kind = key_of(log)
        name = f"python_{model}_results_{kind}.txt"
        if name not in paths:
            raise Mismatch(f"{log}: {name} is not among {options.gt_file}")
        weights, expected = stored_in(paths[name])
        if weights != weights_of(log):
            raise Mismatch(f"{paths[name]}: was made with other weights; --record makes it with these")
        worst = largest_difference(log, scores_in(log), expected, options, TOLERANCES[precision])
        print(f"{log}: {len(expected)} pictures agree with {name} within {worst:.4f} dB")


def main(argv=None):
    """Compares or records."""
    options = get_parser().parse_args(argv)
    logs = [Path(path) for path in sorted(glob.glob(options.log_file))]
    try:
        if not logs:
            raise Mismatch(f"--log_file: nothing is there: {options.log_file}")
        for log in logs:
            status_line(log)
        if options.record:
            record(logs, Path(options.gt_file).parent, options)
        else:
            compare(logs, [Path(path) for path in sorted(glob.glob(options.gt_file))], options)
    except (Mismatch, OSError, cli.UserError) as error:
        print(f"compare failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    cli.run(main)
