"""Reads the speed and the loss from a training log and writes them as the benchmark's record.

    python test_tipc/analysis.py --filename LOG --speed_log_file OUT --model_name N2N_bs4_fp32_DP_N1C1 \
        --base_batch_size 4 --fp_item fp32 --run_mode DP --device_num N1C1 --keyword ips: --convergence_key Loss1=

The flags and the record's keys are those of the official benchmark. `ips` is the median of all steps after the first
--skip_steps, over all processes together; fewer than three of them, or one that is no positive number, is an error.
"""

import contextlib
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's root

from denoising import cli


def get_parser():
    """The official flags."""
    parser = cli.Parser(__doc__)
    parser.add_argument("--filename", type=Path, required=True, help="the training log")
    parser.add_argument("--speed_log_file", type=Path, required=True, help="where the record goes")
    parser.add_argument("--model_name", required=True)
    parser.add_argument("--base_batch_size", type=int, required=True)
    parser.add_argument("--fp_item", default="fp32")
    parser.add_argument("--run_mode", default="DP")
    parser.add_argument("--device_num", default="N1C1")
    parser.add_argument("--keyword", default="ips:", help="the word before the speed")
    parser.add_argument("--convergence_key", default="loss:", help="the word before the loss")
    parser.add_argument("--skip_steps", type=int, default=2, help="steps at the start that are not counted")
    parser.add_argument("--speed_unit", default="images/s")
    parser.add_argument("--started", type=float, help="when the training began, in seconds since 1970")
    return parser


def numbers_after(text, keyword):
    """The numbers that follow a word, or are joined to it, in each line of a log."""
    found = []
    for line in text.splitlines():
        words = [word.rstrip(",") for word in line.split()]
        for word, following in zip(words, [*words[1:], ""], strict=False):
            if word.startswith(keyword):
                with contextlib.suppress(ValueError):  # paddle.distributed.launch prints "ips: None" of its own
                    found.append(float(word[len(keyword) :] or following))
    return found


def git(*words):
    """What git says of the project; unknown outside of it."""
    answer = subprocess.run(["git", *words], capture_output=True, text=True, cwd=Path(__file__).parent)
    return answer.stdout.strip() or "unknown"


def main(argv=None):
    """Writes the record."""
    options = get_parser().parse_args(argv)
    text = Path(cli.existing_file("--filename", options.filename)).read_text(errors="replace")
    speeds = numbers_after(text, options.keyword)[options.skip_steps :]
    losses = numbers_after(text, options.convergence_key)
    if len(speeds) < 3 or not all(0 < speed < math.inf for speed in speeds):
        print(f"analysis failed: {options.filename} has {len(speeds)} speeds after {options.skip_steps} steps")
        return 1
    if not losses or not math.isfinite(losses[-1]):
        print(f"analysis failed: {options.filename} has no finite loss")
        return 1
    import paddle  # takes its time

    record = {
        "model_branch": git("rev-parse", "--abbrev-ref", "HEAD"),
        "model_commit": git("rev-parse", "HEAD"),
        "model_name": options.model_name,
        "batch_size": options.base_batch_size,
        "fp_item": options.fp_item,
        "run_mode": options.run_mode,
        "convergence_value": losses[-1],
        "convergence_key": options.convergence_key,
        "ips": statistics.median(speeds),
        "speed_unit": options.speed_unit,
        "device_num": options.device_num,
        "model_run_time": round(time.time() - options.started, 3) if options.started else None,
        "frame_commit": paddle.version.commit,
        "frame_version": paddle.__version__,
    }
    cli.write_text(options.speed_log_file, json.dumps(record) + "\n")
    print(json.dumps(record))
    return 0


if __name__ == "__main__":
    cli.run(main)
