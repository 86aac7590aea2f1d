"""What a run leaves to look at: log, metrics.csv, TensorBoard events, plots, the score table."""

import csv
import io
import json
import math
import os
import socket
import sys
import time
import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from denoising import cli
from denoising.reports.page import HtmlReport as HtmlReport
from denoising.reports.page import decimals, image_count, repeats
from denoising.reports.page import file_name as file_name
from denoising.reports.page import refuse_report as refuse_report

COLOURS = ("#2563a8", "#d9822b", "#3d8b5f", "#b5485d", "#7a5ba6", "#6b7280")  # of plots

# --- A training run -------------------------------------------------------------------------------


class RunLog:
    """The records of a run: train.log, metrics.csv and TensorBoard events in one folder.

    Everything is on disk when a call returns, so that a killed run has lost nothing that came
    before its checkpoint.

    Args:
        folder: the run's folder, which exists.
        resume_at: the step that the run continues from: what had been recorded past it is dropped
            from metrics.csv and hidden from TensorBoard. train.log keeps it: that happened.
        enabled: False makes every call do nothing, for all processes but the first.
    """

    def __init__(self, folder, resume_at=None, enabled=True):
        self._enabled = enabled
        if not enabled:
            return
        folder = Path(folder)
        metrics = folder / "metrics.csv"
        rows = []
        if resume_at is not None and metrics.exists():
            rows = [row for row in _metrics_rows(metrics) if row[0] <= resume_at]
        cli.write_text(metrics, _csv_text([("step", "name", "value"), *rows]))
        self._metrics = open(metrics, "a", encoding="utf-8", newline="")
        self._log = open(folder / "train.log", "a", encoding="utf-8")
        self._events = _EventFile(folder, resume_at)

    def line(self, text):
        """One line to stdout and to train.log."""
        if self._enabled:
            # tqdm's write keeps a progress bar on the same terminal in one piece.
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()
            self._log.write(text + "\n")
            self._log.flush()

    def scalars(self, step, values):
        """Numbers by name, such as {"train/loss": 0.1}, to metrics.csv and TensorBoard."""
        if self._enabled:
            values = {name: float(value) for name, value in values.items()}
            self._metrics.write(_csv_text((step, name, f"{value:.9g}") for name, value in values.items()))
            self._metrics.flush()
            self._events.scalars(step, values)

    def image(self, tag, image, step):
        """One HWC uint8 image to TensorBoard."""
        if self._enabled:
            self._events.image(step, tag, image)

    def close(self):
        """Closes the files; the object is of no use afterwards."""
        if self._enabled:
            self._enabled = False
            self._metrics.close()
            self._log.close()
            self._events.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class _EventFile:
    """A TensorBoard event file, written at once.

    tensorboardX's SummaryWriter sends events through another thread, and its flush does not wait
    for that thread: a killed run would lose some. Its parts, used here without it, lose none.
    """

    def __init__(self, folder, resume_at):
        from tensorboardX.proto import event_pb2
        from tensorboardX.record_writer import RecordWriter

        self._pb = event_pb2
        # TensorBoard reads the files of a folder in the order of their names, hence the time.
        now = time.time_ns()
        name = f"events.out.tfevents.{now // 10**9}.{socket.gethostname()}.{os.getpid()}.{now}"
        self._writer = RecordWriter(str(folder / name))
        self._write(file_version="brain.Event:2")
        if resume_at is not None:
            # Hides all events of this step and later ones that other files hold.
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(step=resume_at + 1, session_log=start)

    def scalars(self, step, values):
        from tensorboardX import summary

        for tag, value in values.items():
            self._write(step=step, summary=summary.scalar(tag, value))

    def image(self, step, tag, image):
        from tensorboardX import summary

        image = image if image.ndim == 3 else image[..., None]
        self._write(step=step, summary=summary.image(tag, image, dataformats="HWC"))

    def _write(self, **content):
        event = self._pb.Event(wall_time=time.time(), **content)
        self._writer.write(event.SerializeToString())
        self._writer.flush()

    def close(self):
        self._writer.close()


def read_metrics(folder):
    """Reads metrics.csv as {name: [(step, value), ...]}, in the order of recording."""
    series = defaultdict(list)
    for step, name, value in _metrics_rows(Path(folder) / "metrics.csv"):
        series[name].append((step, float(value)))
    return dict(series)


def _metrics_rows(path):
    """The well-formed rows as (int, str, str): a killed run may have left half a line."""
    with open(path, encoding="utf-8", newline="") as file:
        lines = [line for line in file if line.endswith("\n")]
    rows = [row for row in csv.reader(lines) if len(row) == 3 and row[0].isdecimal()]
    return [(int(step), name, value) for step, name, value in rows]


def _csv_text(rows):
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def append_score(folder, set_name, epoch, psnr, ssim):
    """Adds the line epoch,psnr,ssim to A_log_SET.csv.

    A line of the same epoch, which a run left that was killed and resumed, is replaced.
    """
    path = Path(folder) / f"A_log_{_file_name(set_name)}.csv"
    lines = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.partition(",")[0].isdecimal():
                lines[int(line.partition(",")[0])] = line
    lines[epoch] = f"{epoch},{psnr},{ssim}"
    cli.write_text(path, "".join(f"{lines[key]}\n" for key in sorted(lines)))


def _file_name(text):
    """Text with everything replaced that may not be in a file's name."""
    return "".join("_" if c in '/\\:*?"<>|' or not c.isprintable() else c for c in text) or "_"


def run_page(folder, epoch, pictures, first):
    """The page of a run's latest snapshot, in its validation/, which replaces that of the one before.

    Args:
        folder: of the run, with its options.json.
        epoch: of the snapshot.
        pictures: how many images of each set are shown.
        first: whether this is the first process.
    """
    folder = Path(folder).resolve()
    about = json.loads((folder / "options.json").read_text(encoding="utf-8"))
    settings = {**about["options"], "Versions": about["versions"]}
    title = f"{folder.parent.name}, epoch {epoch}"
    return HtmlReport(folder / "validation", title, settings, pictures, overwrite=True, first=first)


# --- Plots ----------------------------------------------------------------------------------------


def plot_curves(path, title, x_label, panels):
    """Draws curves to a PNG file, written atomically.

    Args:
        path: the PNG file.
        title: stands over the figure.
        x_label: what the curves run over.
        panels: {y label: {series name: [(x, y), ...]}}, one panel under the other. A panel whose
            label speaks of a loss gets a logarithmic axis when its values span more than a factor
            of ten. Points that are not finite are left out.
    """
    # Imported here because it takes a second; not pyplot, which keeps figures and wants a screen.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 0.9 + 3.1 * len(panels)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, parse_math=False)
    rows = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for axes, (y_label, series) in zip(rows, panels.items(), strict=True):
        curves, names, values = [], [], np.empty(0)
        for name, points in series.items():
            x, y = np.array(points, np.float64).reshape(-1, 2).T
            x, y = x[np.isfinite(y)], y[np.isfinite(y)]
            if len(y):
                curves.append(_plot_curve(axes, x, y, COLOURS[len(curves) % len(COLOURS)]))
                names.append(name)
                values = np.concatenate([values, y])
        positive = values[values > 0]
        if "loss" in y_label.lower() and len(positive) and positive.max() > 10 * positive.min():
            # A term that is switched on later has no place on this axis while it is 0.
            axes.set_yscale("log", nonpositive="mask")
        axes.set_ylabel(y_label, parse_math=False)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if len(curves) > 1:
            for text in axes.legend(curves, names, frameon=False, fontsize=9).get_texts():
                text.set_parse_math(False)
    axes.set_xlabel(x_label, parse_math=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    with cli.atomic_write(path) as temporary, warnings.catch_warnings():
        # A set may be named in a script that the font lacks: a box in the legend is enough.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(temporary)


def plot_run(folder):
    """Draws a run's loss.png and psnr.png from what metrics.csv calls loss/, psnr/ and ssim/."""
    folder = Path(folder).resolve()
    metrics = read_metrics(folder)

    def series(kind):
        return {key[len(kind) :]: metrics[key] for key in metrics if key.startswith(kind)}

    plots = {
        "loss.png": {"loss": series("loss/")},
        "psnr.png": {"PSNR [dB]": series("psnr/"), "SSIM": series("ssim/")},
    }
    for name, panels in plots.items():
        if any(panels.values()):
            plot_curves(folder / name, f"{folder.parent.name} {folder.name}", "step", panels)


def write_stats(folder):
    """Writes what metrics.csv holds as stats.json: {"loss/rec": {"step": [...], "value": [...]}, ...}."""
    columns = {}
    for name, points in read_metrics(folder).items():
        steps, values = zip(*points, strict=True)
        columns[name] = {"step": steps, "value": [v if math.isfinite(v) else None for v in values]}
    cli.write_json(Path(folder) / "stats.json", columns)


def _plot_curve(axes, x, y, colour):
    """One curve, a long one faint with its running mean over it; returns the legend's line."""
    window = len(y) // 40
    if window < 3:
        marker = "o" if len(y) < 30 else None
        return axes.plot(x, y, color=colour, linewidth=1.6, marker=marker, markersize=3.5)[0]
    axes.plot(x, y, color=colour, alpha=0.22, linewidth=0.8)
    total = np.concatenate([[0.0], np.cumsum(y)])
    mean = (total[window:] - total[:-window]) / window
    return axes.plot(x[window - 1 :], mean, color=colour, linewidth=1.6)[0]


# --- Scores ---------------------------------------------------------------------------------------


def score_summary(results):
    """The means of each set as dicts ready for JSON: what is infinite or unknown is None.

    Args:
        results: the `denoising.SetScores` of each set.
    """
    summary = []
    for result in results:
        means = {key: result.mean(key) for key in ("psnr_noisy", "ssim_noisy", "psnr", "ssim")}
        summary.append(
            {"set": result.name, "images": image_count(result), "repeats": repeats(result)}
            | {key: value if math.isfinite(value) else None for key, value in means.items()}
            | {"seconds": round(result.seconds, 3)}
        )
    return summary


def score_table(results):
    """The means of each set as an aligned text table."""
    table = [("set", "images", "noisy PSNR", "PSNR", "gain", "SSIM")]
    for result in results:
        noisy, psnr, ssim = (result.mean(key) for key in ("psnr_noisy", "psnr", "ssim"))
        images = f"{image_count(result)} x {repeats(result)}"
        numbers = (decimals(noisy), decimals(psnr), decimals(psnr - noisy, "+.2f"))
        table.append((result.name, images, *numbers, decimals(ssim, ".4f")))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for row in table:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells[1:]]))
    return "\n".join(lines)
