"""Loads tools/serve.py until it saturates, and tells images per second, latencies and refusals.

    python benchmarks/bench_serve.py                      # 256x256 pictures, some five minutes
    python benchmarks/bench_serve.py --size 64 --seconds 10 --max_batch 1 8
    python benchmarks/bench_serve.py --serve="--model_path best_model.pdparams --precision bf16"    # needs AVX512_BF16

It needs aiohttp. The load comes from the public generator hey where that is installed (apt install hey), and else from
threads of this script, which take more of the cores that the service computes on. Each client sends the same PNG as
soon as it has its last answer, even when that was a 503: a real client would wait as the answer asks. The service keeps
nothing (`--keep_mb 0`), so that it computes each image. Load and service share this machine. It prints tables in
Markdown, and ends with an error if the service has counted other answers than the load generator has got.
"""

import csv
import http.client
import json
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's root

from denoising import cli, machine
from denoising.cli import number
from pictures import make_noisy
from run import this_machine

ROOT = Path(__file__).resolve().parent.parent


def get_parser():
    parser = cli.Parser(__doc__)
    add = parser.add_argument
    add("--serve", default=f"--model_path {ROOT / 'best_model.pdparams'}", help="flags of tools/serve.py")
    add("--size", type=number(int, 1), default=256, help="side of the picture in pixels")
    add("--clients", type=number(int, 1), nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128],
        help="how many there are at a time, one number after the other")  # fmt: skip
    add("--seconds", type=number(int, 1), default=30, help="how long each number of clients sends")
    add("--max_batch", type=number(int, 1), nargs="+", default=[8], help="of the service; each value gets a table")
    return parser


class Served:
    """tools/serve.py on a free port, and what it counts."""

    def __init__(self, options, max_batch):
        flags = ["--keep_mb", "0", *shlex.split(options.serve), "--port", "0", "--max_connections", "1000"]
        flags += ["--max_batch", str(max_batch)]
        command = [sys.executable, str(ROOT / "tools/serve.py"), *flags]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.url = self.process.stdout.readline().strip()
        if not self.url:
            raise RuntimeError("the service does not start")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()
        self.process.stdout.close()

    def metrics(self):
        with urllib.request.urlopen(f"{self.url}/metrics") as answer:
            lines = [line for line in answer.read().decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    def answers(self, status):
        """How many images were answered so."""
        return int(self.metrics().get(f'denoise_requests_total{{what="denoise",status="{status}"}}', 0))


def load(url, clients, seconds, picture=None):
    """Asks over and over, by POST with a picture, else by GET; returns its latencies by status and its seconds."""
    return (load_by_hey if shutil.which("hey") else load_by_threads)(url, clients, seconds, picture)


def load_by_hey(url, clients, seconds, picture):
    """With the public generator."""
    upload = ["-m", "POST", "-T", "image/png", "-D", str(picture)] if picture else []
    command = ["hey", "-z", f"{seconds}s", "-c", str(clients), "-t", "0", "-o", "csv", *upload, url]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found, end = {}, 0.0
    for row in csv.DictReader(output.splitlines()):
        latency = float(row["response-time"])
        found.setdefault(row["status-code"], []).append(latency)
        end = max(end, float(row["offset"]) + latency)
    return found, end


def load_by_threads(url, clients, seconds, picture):
    """With a thread for each client, which keeps its connection as long as the service does."""
    address, data, start = urlsplit(url), picture and picture.read_bytes(), time.perf_counter()

    def answers_of_a_client(_):
        answers, connection = [], http.client.HTTPConnection(address.netloc)
        while (asked := time.perf_counter()) < start + seconds:
            connection.request("POST" if data else "GET", address.path, body=data)
            answer = connection.getresponse()
            answer.read()
            answers.append((str(answer.status), time.perf_counter() - asked))
        connection.close()
        return answers

    with ThreadPoolExecutor(clients) as pool:
        answers = [answer for part in pool.map(answers_of_a_client, range(clients)) for answer in part]
    found = {status: [latency for other, latency in answers if other == status] for status, _ in answers}
    return found, time.perf_counter() - start


def row_of(clients, found, end, batches):
    done, refused = (np.array(found.get(status, [])) for status in ("200", "503"))
    others = sum(len(times) for status, times in found.items() if status not in ("200", "503"))
    p50, p99 = (f"{np.percentile(done, share):.2f}" if len(done) else "" for share in (50, 99))
    refusals = [f"{len(refused) / end:.0f}", f"{1e3 * np.percentile(refused, 99):.0f}"] if len(refused) else ["0", ""]
    return [clients, f"{len(done) / end:.2f}", p50, p99, *refusals, others, f"{batches:.1f}"]


def print_row(cells):
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def measure(options, picture, max_batch):
    """Prints a table for one service."""
    name = options.serve.replace(f"{ROOT}/", "")
    print(f"\n{options.size}x{options.size}, `{name} --max_batch {max_batch}`:\n")
    print_row(["clients", "images/s", "p50 s", "p99 s", "503/s", "p99 of 503, ms", "other answers", "windows a batch"])
    print_row(["---"] * 8)
    with Served(options, max_batch) as served:
        load(f"{served.url}/denoise", 1, min(3, options.seconds), picture)  # warm
        for clients in options.clients:
            measure_clients(served, clients, options.seconds, picture)
        with urllib.request.urlopen(f"{served.url}/health") as answer:
            health = json.load(answer)["status"]
        found, end = load(f"{served.url}/health", 8, min(5, options.seconds))
        speed = f"{len(found['200']) / end:.0f} a second with 8 clients"
        print(f"\nHealth afterwards: {health}. GET /health: {speed}.", end=" ")
        print(f"Most memory: {machine.used_memory('VmHWM', served.process.pid) / 1e6:.0f} MB.", flush=True)


def measure_clients(served, clients, seconds, picture):
    """Prints the row for a number of clients, and makes sure that both sides count alike."""
    before, counted = served.metrics(), [served.answers(status) for status in (200, 503)]
    found, end = load(f"{served.url}/denoise", clients, seconds, picture)
    after, now = served.metrics(), [served.answers(status) for status in (200, 503)]
    windows, batches = (
        after[name] - before[name] for name in ("denoise_batch_windows_sum", "denoise_batch_windows_count")
    )
    print_row(row_of(clients, found, end, windows / max(batches, 1)))
    received = [len(found.get(status, [])) for status in ("200", "503")]
    if [b - a for a, b in zip(counted, now, strict=True)] != received:
        raise RuntimeError(f"the service has answered {counted} to {now}, the load generator has got {received}")


def main(argv=None):
    options = get_parser().parse_args(argv)
    generator = "hey" if shutil.which("hey") else "this script's own threads (hey is not installed)"
    print(f"{this_machine()}; load by {generator}; load, service and network on it together.")
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "noisy.png"
        make_noisy(picture, options.size, options.size)
        for max_batch in options.max_batch:
            measure(options, picture, max_batch)
    return 0


if __name__ == "__main__":
    cli.run(main)
