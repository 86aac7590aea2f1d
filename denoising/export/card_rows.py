"""One row of a model card: a network on one runtime in one precision with so many threads, in a process of its own.

>>> with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
...     facts = pool.submit(measure, row, 2, True, True, conditions).result()

A row of which the runtime does not compute as asked is absent, and says why; nothing is measured in its place.
"""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from denoising import machine
from denoising.cli import UserError
from denoising.runtimes import choice

LONG = 3.0  # seconds, after which one run is enough


@dataclass(frozen=True)
class Row:
    """What runs, and on which of the exported files."""

    runtime: str  # as the card names it
    precision: str
    file: str = ""  # of an export; without, the network itself runs on the project's engine
    flags: dict = field(default_factory=dict)
    single: bool = False  # too slow for batches


@dataclass(frozen=True)
class Conditions:
    """What all rows of a card share."""

    folder: str  # of the exports, and of `reference.npz`: noisy pictures and what the network makes of them
    model_path: str
    sizes: tuple
    batches: tuple
    full: bool  # batches of all sizes, not of the smallest alone
    seconds: float  # for each latency
    scored: tuple  # validation folder, name of the set, noise, how many images, how many repeats
    lacking: str = ""  # why there are no 8-bit files


class NetworkRuntime:
    """The network itself, called like a runtime: as val.py and predict.py run it."""

    def __init__(self, model_path, precision):
        from denoising.engine import operators
        from denoising.inference.denoiser import Denoiser

        self.denoiser = Denoiser(model_path, operators.choose("onednn", precision)[0])

    def __call__(self, nchw):
        return self.denoiser.run_batch(nchw)

    def describe(self):
        """One line on how it runs."""
        return "the project's engine"


def measure(row, threads, first, score, conditions):
    """All figures of a row, as a dict; with the key `absent` if there are none.

    Args:
        row: what runs.
        threads: of the runtime.
        first: whether to take what does not depend on the threads: the difference from the network, and memory.
        score: whether to take PSNR and SSIM.
        conditions: what all rows share.
    """
    try:
        runtime = open_row(row, threads, conditions)
        facts = {"engine": runtime.describe(), "latency": []}
        with np.load(Path(conditions.folder) / "reference.npz") as file:
            noisy, denoised = file["noisy"], file["denoised"]
        channels = noisy.shape[1]
        if first:
            facts |= difference(runtime(noisy), denoised)
            # The largest image alone, before anything else takes memory.
            runtime(np.full((1, channels, conditions.sizes[-1], conditions.sizes[-1]), 0.5, np.float32))
            facts["peak_mib"] = machine.used_memory("VmHWM") / 2**20
        for size in conditions.sizes:
            some = conditions.full or (size == conditions.sizes[0] and not row.single)
            for batch in conditions.batches if some else conditions.batches[:1]:
                facts["latency"].append(latency(runtime, batch, channels, size, threads, conditions.seconds))
        return facts | (scores(runtime, conditions) if score else {})
    except UserError as error:
        reason = str(error).replace(conditions.folder + os.sep, "")
        return {"absent": reason.removeprefix("--precision: ").removeprefix("--runtime: ")}


def open_row(row, threads, conditions):
    """The runtime of a row."""
    if not row.file:
        return NetworkRuntime(conditions.model_path, row.precision)
    options = {
        "cpu_threads": threads,
        "precision": row.precision,
        "model_file": os.path.join(conditions.folder, row.file),
    }
    return choice.open_runtime(choice.runtime_options(**options, **row.flags), trusted=True)


def difference(result, expected):
    """How far a result is from the network's own."""
    error = np.abs(result.astype(np.float64) - expected)
    decibels = float(-10 * np.log10(np.mean(error**2))) if error.any() else None
    return {"largest_difference": float(error.max()), "psnr_to_network": decibels}


def latency(runtime, batch, channels, size, threads, seconds):
    """Median and 90th percentile of some runs after a first one, which counts only if it takes long."""
    x = np.random.default_rng(0).random((batch, channels, size, size), dtype=np.float32)

    def timed():
        start = time.perf_counter()
        runtime(x)
        return time.perf_counter() - start

    first = timed()
    runs = [first] if first > LONG else [timed()]
    while sum(runs) < seconds and len(runs) < 50:
        runs.append(timed())
    median = float(np.median(runs))
    return {
        "size": size, "batch": batch, "threads": threads, "runs": len(runs), "median_ms": 1e3 * median,
        "p90_ms": 1e3 * float(np.quantile(runs, 0.9)), "images_per_second": batch / median,
    }  # fmt: skip


class _Scored:
    """A runtime as `evaluate` takes denoisers."""

    def __init__(self, runtime, network):
        self.runtime, self.network, self.n_channel = runtime, network, network.n_channel

    def __call__(self, hwc):
        nchw = np.ascontiguousarray(hwc.transpose(2, 0, 1)[None], np.float32)
        return self.runtime(nchw)[0].transpose(1, 2, 0)


def scores(runtime, conditions):
    """PSNR and SSIM as val.py has them."""
    # They import Paddle, which would have counted as the runtime's memory before.
    from denoising.data.validation import find_validation_sets
    from denoising.imaging.noise import parse_noise
    from denoising.inference.checkpoint import load_network
    from denoising.inference.evaluation import evaluate

    folder, name, noisetype, limit, repeats = conditions.scored
    (validation_set,) = [found for found in find_validation_sets(folder)[0] if found.name == name]
    denoiser = _Scored(runtime, load_network(conditions.model_path)[0])
    result = evaluate(denoiser, validation_set, parse_noise(noisetype), repeats, limit)
    return {measure: result.mean(measure) for measure in ("psnr", "ssim", "psnr_noisy", "ssim_noisy")}
