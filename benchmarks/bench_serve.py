"""Loads tools/serve.py until it saturates, with the public load generator hey: images per second, latencies, refusals.

    python benchmarks/bench_serve.py                      # 256x256 pictures, some five minutes
    python benchmarks/bench_serve.py --size 64 --seconds 10 --max_batch 1 8
    python benchmarks/bench_serve.py --serve="--model_path best_model.pdparams --precision bf16"

Needs hey (apt install hey) and aiohttp. Each of the clients sends the same PNG as soon as it has its last answer, also
when that was a 503: a real client would wait as the answer tells it. Load and service share this machine. Prints
tables in Markdown; ends with an error if the service's own counters do not agree with the answers that hey has got.
"""

import argparse
import csv
import json
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import numpy as np

from pictures import make_noisy
from run import machine

ROOT = Path(__file__).resolve().parent.parent


def get_parser():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add(
        "--serve",
        default=f"--model_path {ROOT / 'best_model.pdparams'}",
        help="flags of tools/serve.py (default: %(default)s)",
    )
    add("--size", type=int, default=256, help="side of the picture (default: %(default)s)")
    add("--clients", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128], help="at a time, one after the other")
    add("--seconds", type=int, default=30, help="for each number of clients (default: %(default)s)")
    add("--max_batch", type=int, nargs="+", default=[8], help="of the service; a table for each (default: %(default)s)")
    return parser


class Served:
    """tools/serve.py on a free port, and what it counts."""

    def __init__(self, options, max_batch):
        flags = [*shlex.split(options.serve), "--port", "0", "--max_connections", "1000", "--max_batch", str(max_batch)]
        command = [sys.executable, str(ROOT / "tools/serve.py"), *flags]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.url = self.process.stdout.readline().strip()
        if not self.url:
            sys.exit("bench_serve.py: error: the service does not start")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()

    def metrics(self):
        with urllib.request.urlopen(f"{self.url}/metrics") as answer:
            lines = [line for line in answer.read().decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    def answers(self, status):
        """How many images were answered so."""
        return int(self.metrics().get(f'denoise_requests_total{{what="denoise",status="{status}"}}', 0))

    def memory_mb(self):
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.split("VmHWM:")[1].split()[0]) / 1000


def load(url, clients, seconds, *flags):
    """Seconds of each answer by status, and how long it took in all."""
    command = ["hey", "-z", f"{seconds}s", "-c", str(clients), "-t", "0", "-o", "csv", *flags, url]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found, end = {}, 0.0
    for row in csv.DictReader(output.splitlines()):
        latency = float(row["response-time"])
        found.setdefault(row["status-code"], []).append(latency)
        end = max(end, float(row["offset"]) + latency)
    return found, end


def row_of(clients, found, end, batches):
    done, refused = (np.array(found.get(status, [])) for status in ("200", "503"))
    others = sum(len(times) for status, times in found.items() if status not in ("200", "503"))
    p50, p99 = (f"{np.percentile(done, share):.2f}" if len(done) else "" for share in (50, 99))
    refusals = [f"{len(refused) / end:.0f}", f"{1e3 * np.percentile(refused, 99):.0f}"] if len(refused) else ["0", ""]
    return [clients, f"{len(done) / end:.2f}", p50, p99, *refusals, others, f"{batches:.1f}"]


def print_row(cells):
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def measure(options, picture, max_batch):
    """A table for one service."""
    upload = ("-m", "POST", "-T", "image/png", "-D", str(picture))
    name = options.serve.replace(f"{ROOT}/", "")
    print(f"\n{options.size}x{options.size}, `{name} --max_batch {max_batch}`:\n")
    print_row(["clients", "images/s", "p50 s", "p99 s", "503/s", "p99 of 503, ms", "other answers", "windows a batch"])
    print_row(["---"] * 8)
    with Served(options, max_batch) as served:
        load(served.url, 1, 3, *upload)  # warm
        for clients in options.clients:
            before, counted = served.metrics(), [served.answers(status) for status in (200, 503)]
            found, end = load(f"{served.url}/denoise", clients, options.seconds, *upload)
            after = served.metrics()
            batches = [
                after[name] - before[name] for name in ("denoise_batch_windows_sum", "denoise_batch_windows_count")
            ]
            print_row(row_of(clients, found, end, batches[0] / max(batches[1], 1)))
            now = [served.answers(status) for status in (200, 503)]
            got = [len(found.get(status, [])) for status in ("200", "503")]
            if [b - a for a, b in zip(counted, now, strict=True)] != got:
                sys.exit(f"bench_serve.py: error: the service has answered {counted} to {now}, hey has got {got}")
        with urllib.request.urlopen(f"{served.url}/health") as answer:
            health = json.load(answer)["status"]
        found, end = load(f"{served.url}/health", 8, 5)
        print(
            f"\nHealth afterwards: {health}. GET /health: {len(found['200']) / end:.0f} a second with 8 clients.",
            end=" ",
        )
        print(f"Most memory: {served.memory_mb():.0f} MB.", flush=True)


def main():
    options = get_parser().parse_args()
    if not shutil.which("hey"):
        sys.exit("bench_serve.py: error: needs the load generator hey: apt install hey")
    print(f"{machine()}; hey, service and network on it together.")
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "noisy.png"
        make_noisy(picture, options.size, options.size)
        for max_batch in options.max_batch:
            measure(options, picture, max_batch)


if __name__ == "__main__":
    main()
