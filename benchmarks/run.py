"""Measures ratios of speed and memory on this machine, and writes them as tables into docs/benchmarks.md.

    python benchmarks/run.py                     # everything, about ten minutes on two free cores
    python benchmarks/run.py --only loading      # one section, printed and not written
    python benchmarks/run.py --images PHOTOS     # the dataset tool on images of your own

Things that are compared are measured in turn, A B A B, so that a busy machine slows both sides: trust the ratios, not
the seconds. Each measurement has a process of its own.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's root

import pictures
from denoising import cli, machine
from denoising.cli import number
from tables import Row, table

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "benchmarks.md"
NAMES = {"onednn fp32": "engine, fp32", "onednn bf16": "engine, bf16", "paddle fp32": "Paddle's own layers"}


def get_parser():
    parser = cli.Parser(__doc__)
    add = parser.add_argument
    add("--only", nargs="+", choices=SECTIONS, metavar="NAME", help=f"these sections alone: {', '.join(SECTIONS)}")
    add("--images", type=Path, help="a folder of photos for the section dataset_tool, instead of made ones")
    add("--rounds", type=number(int, 1), default=5, help="how often each cheap measurement is made")
    add("--quick", action="store_true", help="one round of little work, to see whether everything runs: no benchmark")
    add("--output", type=Path, help="where the document goes; a full run writes docs/benchmarks.md unless given")
    return parser


# --- Measuring -------------------------------------------------------------------------------------------------


def measure(name, **values):
    """Runs one function of measures.py in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", ROOT / "benchmarks" / "measures.py", name, json.dumps(values, default=str)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"{name} {values} failed:\n{done.stderr}")
    return json.loads(done.stdout)


@dataclass
class Bench:
    """What the sections share."""

    options: argparse.Namespace
    folder: Path  # temporary
    engines: list  # the ways to compute that this machine has, fastest first

    @property
    def quick(self):
        return self.options.quick

    def rounds(self, limit=None):
        """How often to measure; a limit is for what is dear."""
        return 1 if self.quick else min(self.options.rounds, limit or self.options.rounds)

    def photos(self):
        """About two hundred JPEG files of 300 to 500 pixels a side."""
        folder = self.folder / "photos"
        if not folder.exists():
            pictures.make_photos(folder, 12 if self.quick else 200)
        return folder

    def picture(self, height, width, suffix=".png"):
        """A noisy photo of any size, uint8 RGB."""
        path = self.folder / f"noisy_{height}x{width}{suffix}"
        if not path.exists():
            pictures.make_noisy(path, height, width)
        return path

    def weights(self, n_feature):
        """An untrained network of this width."""
        path = self.folder / f"{n_feature}.pdparams"
        if not path.exists():
            measure("make_weights", path=path, n_feature=n_feature)
        return path


# --- Sections --------------------------------------------------------------------------------------------------


def dataset_tool(bench):
    """Preparing training images.

    Seconds per image, without the start of Python. As published: Pillow opens each image, converts it to RGB and
    saves it in quality 100, 4:4:4, in one process. CPU seconds are what the work costs however busy the machine is:
    the second worker can halve the time only if a core is free for it.
    """
    source = bench.options.images or bench.photos()
    times, cpu = ({"published": [], 1: [], 2: []} for _ in range(2))
    for i in range(bench.rounds(5)):
        for name in times:
            target = bench.folder / f"prepared_{name}_{i}"
            if name == "published":
                seconds, used, count = measure("dataset_published", source=source, target=target)
            else:
                seconds, used, count = measure("dataset_tool", source=source, target=target, workers=name)
            times[name].append(seconds / count)
            cpu[name].append(used / count)
    with_1, with_2 = "dataset_tool.py, 1 worker", "dataset_tool.py, 2 workers"
    rows = [
        Row("as published", times["published"], "s"),
        Row(with_1, times[1], "s", "speed of the published way", times["published"], True),
        Row(with_2, times[2], "s", "speed of the published way", times["published"], True),
        Row(with_2, times[2], "s", "speed of 1 worker", times[1], True),
        Row("as published", cpu["published"], "CPU s"),
        Row(with_1, cpu[1], "CPU s", "times the published way", cpu["published"]),
        Row(with_2, cpu[2], "CPU s", "times 1 worker", cpu[1]),
    ]
    speeds = ", ".join(
        f"{name}: {1 / statistics.median(seconds):.0f}"
        for name, seconds in zip(("published", "1 worker", "2 workers"), times.values(), strict=True)
    )
    return rows, f"Images per second: {speeds}."


def subsampler(bench):
    """The random neighbour sub-sampler.

    Drawing the picks of four 256x256 RGB images and splitting them, forward only, against the published algorithm
    written plainly: masks by scatter into int64, boolean selection channel by channel. CPU seconds of the one thread
    that both use.
    """
    found = measure("subsampler", rounds=bench.rounds() * 2, size=64 if bench.quick else 256)
    return [
        Row("masks and selection", found["plain"], "CPU s"),
        Row("ours", found["ours"], "CPU s", "speed of masks and selection", found["plain"], True),
    ], ""


def loading(bench):
    """Loading against the training step.

    "Alone" is a loader that runs by itself, with all its threads, per batch. The loop's wait is what train.py logs
    as avg_reader_cost. The loop's time against that of steps on one prepared batch shows what the loader's threads
    take from the step when there are no cores to spare. Goal: waiting below 5 % of the step.
    """
    settings = [("published setting", 4, 256, "fp32")]
    if "onednn bf16" in bench.engines:
        settings.append(("fast setting", 8, 128, "bf16"))
    rows = []
    for name, batch, patch, precision in settings[:1] if bench.quick else settings:
        if bench.quick:
            batch, patch = 1, 64
        found = measure(
            "loading", folder=bench.photos(), batch=batch, patch=patch, precision=precision,
            rounds=bench.rounds(4), steps=1 if bench.quick else 5,
        )  # fmt: skip
        title, step = f"{name} (batch {batch}, patch {patch}, {precision})", found["step"]
        rows.append(Row(f"{title}: step on a prepared batch", step, "s"))
        for kind in ("JPEG", "cached"):
            source = "decoding JPEG each time" if kind == "JPEG" else "from the cache"
            rows += [
                Row(f"{source}: loader alone", found[f"{kind} alone"], "s", "of the step", step, percent=True),
                Row(f"{source}: wait in the loop", found[f"{kind} wait"], "s", "of the loop's step",
                    found[f"{kind} loop"], percent=True),
                Row(f"{source}: whole loop", found[f"{kind} loop"], "s", "times the step", step),
            ]  # fmt: skip
    return rows, ""


def around(bench):
    """Around the convolutions.

    What a training step on four 256x256 images does beside the network, each by itself. Noise and picks are made by
    the loader's threads, the rest by the step. "Losses" holds the sub-images of both passes, forward and backward.
    Goal: all of it below 10 % of the step.
    """
    rows = []
    ways = [way for way in bench.engines if way != "paddle fp32"] or bench.engines
    for way in ways[::-1][: 1 if bench.quick else 2]:
        small = {"batch": 1, "patch": 64} if bench.quick else {}
        found = measure("around", folder=bench.photos(), precision=way.split()[1], rounds=bench.rounds() * 2, **small)
        step = found.pop("step")
        rows.append(Row(f"{NAMES[way]}: whole step", step, "s"))
        for name, seconds in found.items():
            rows.append(Row(name, seconds, "s", "of the step", step, percent=True))
        total = [sum(values) for values in zip(*(v for k, v in found.items() if k != "sub-images"), strict=True)]
        rows.append(Row("all of these (sub-images are in the losses)", total, "s", "of the step", step, percent=True))
    return rows, ""


def denoising(bench):
    """Scoring and denoising.

    Seconds per megapixel with the published network of 48 features: val.py's work on images of 256x256 with noise,
    PSNR and SSIM; predict.py's on one file of 512x512, reading and writing PNG included. The start of Python is not.
    """
    image = bench.picture(*(64, 64) if bench.quick else (512, 512))
    found = {way: {"val.py": [], "predict.py": []} for way in reversed(bench.engines)}
    for _ in range(bench.rounds(3)):
        for way, lists in found.items():
            name, precision = way.split()
            seconds = measure(
                "val_and_predict", val_dirs=ROOT / "validation", image=image, target=bench.folder / "out.png",
                engine_name=name, precision=precision, limit=1 if bench.quick else 3,
                # Paddle's own layers take long, and compile nothing that a first pass would have to wait for.
                warm=0 if name == "paddle" else 1,
            )  # fmt: skip
            for script, value in seconds.items():
                lists[script].append(value)
    rows = []
    for script in ("val.py", "predict.py"):
        for way, lists in found.items():
            first = way == "paddle fp32"
            others = None if first else found["paddle fp32"][script]
            against = "" if first else "speed of Paddle's own layers"
            rows.append(Row(f"{script}: {NAMES[way]}", lists[script], "s/MP", against, others, True))
    return rows, ""


def window(bench):
    """Working memory of one window.

    Peak bytes per pixel of one pass of the network of 48 features, against `bytes_per_pixel`, from which predict.py
    plans how large a window fits into memory. Above 1 more is taken than planned; far below, windows are smaller
    than they could be, and their overlaps are computed twice.
    """
    rows = []
    for way in bench.engines:
        for side in (256,) if bench.quick else (512,) if way == "paddle fp32" else (512, 1024):
            name, precision = way.split()
            found = measure("working_memory", engine_name=name, precision=precision, side=side)
            what = f"{NAMES[way]}: {side}x{side}"
            rows.append(Row(what, [found["measured"]], "B/pixel", "times the plan", [found["planned"]]))
    return rows, ""


def memory(bench):
    """Peak memory of predict.py.

    The whole process on uint8 RGB images. Past the window's size only the image itself may add: in and out are 6
    bytes per pixel, the codec's buffers come on top. The 100 megapixels go through a network of 8 features, which
    takes windows of the same size and a fraction of the time; NPY shows the same without a codec.
    """
    best = bench.engines[0].split()
    flags = ["--engine", best[0], "--precision", best[1]]
    sizes = {1: (1000, 1000), 10: (2500, 4000), 100: (8000, 12500)}
    plan = [(48, 1, ".png"), (48, 10, ".png")]
    plan += [(8, 1, ".png"), (8, 10, ".png"), (8, 100, ".png"), (8, 10, ".npy"), (8, 100, ".npy")]
    if bench.quick:
        plan, sizes = [(8, 1, ".png"), (8, 10, ".png")], {1: (64, 64), 10: (200, 320)}
    rows, peaks, seconds = [], {}, []
    for n_feature, size, suffix in plan:
        found = measure(
            "predict_memory", weights=bench.weights(n_feature), image=bench.picture(*sizes[size], suffix),
            folder=bench.folder / "denoised", flags=flags,
        )  # fmt: skip
        peak = peaks[n_feature, size, suffix] = found["peak"]
        before = peaks.get((n_feature, size // 10, suffix))
        rows.append(
            Row(
                f"{n_feature} features, {size} MP, {suffix[1:].upper()}", [peak / 2**20], "MiB",
                f"times that of {size // 10} MP" if before else "", [before / 2**20] if before else None,
            )
        )  # fmt: skip
        seconds.append(f"{n_feature} features, {size} MP {suffix[1:].upper()}: {found['seconds']:.1f} s")
        if before:
            pixels = [side[0] * side[1] for side in (sizes[size], sizes[size // 10])]
            extra = (peak - before) / (pixels[0] - pixels[1])
            rows.append(Row(f"&nbsp; from {size // 10} to {size} MP", [extra], "B/pixel", "times in and out", [6]))
    return rows, "With " + NAMES[bench.engines[0]] + ". Time: " + ", ".join(seconds) + "."


SECTIONS = {
    section.__name__: section for section in (dataset_tool, subsampler, loading, around, denoising, window, memory)
}


# --- The document ----------------------------------------------------------------------------------------------


def this_machine():
    """The processor and its memory; not whose it is."""
    flags = machine.cpu_flags()
    special = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{machine.cpu_name()}, {machine.cores()} cores ({', '.join(special)}), {gigabytes:.0f} GiB of memory"


def heading(arguments, versions, busy):
    """What was run, where and when."""
    load = ""
    if busy > 0.3:
        load = (
            f"\nThe machine was shared: its load was {busy:.1f} before the start. The seconds are longer than they"
            "\nwould be, the ranges wide. The ratios hold where both sides took turns, but not for what needs a core"
            "\nof its own: a second worker, and a loader beside a step that uses all cores.\n"
        )
    versions = ", ".join(f"{name} {version[:12]}" for name, version in versions.items())
    return f"""# Benchmarks

    make bench            # or: {" ".join(["python", "benchmarks/run.py", *arguments])}

{datetime.date.today()}, {this_machine()}. {versions}.
{load}
Each ratio is between measurements that took turns, round by round: the median of the rounds' ratios, and their range.
The training step itself against other frameworks: `make bench-train`.
"""


def main(argv=None):
    arguments = sys.argv[1:] if argv is None else argv
    options = get_parser().parse_args(arguments)
    if options.images:
        cli.existing_folder("--images", options.images)
    busy = os.getloadavg()[0]
    known = measure("engines")
    parts = [heading(arguments, known["versions"], busy)]
    print(parts[0])
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder), known["engines"])
        for name in options.only or SECTIONS:
            cli.note(f"measuring: {name}")
            title, _, text = SECTIONS[name].__doc__.partition("\n\n")
            rows, note = SECTIONS[name](bench)
            text = "\n".join(line.strip() for line in text.strip().splitlines())
            parts.append(f"## {title[:-1]}\n\n{text}\n\n{table(rows)}\n" + f"\n{note}\n" * bool(note))
            print(parts[-1], flush=True)
    target = options.output or (None if options.only or options.quick else DOCUMENT)
    if target:
        cli.write_text(target, "\n".join(parts))
        cli.note(f"written: {target}")
    return 0


if __name__ == "__main__":
    cli.run(main)
