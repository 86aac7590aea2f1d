"""What a run leaves to look at: log, metrics.csv, TensorBoard events, the page of its latest snapshot."""

import csv
import json
import math
import os
import socket
import sys
import time
from collections import defaultdict
from pathlib import Path

from tqdm import tqdm

from denoising import cli
from denoising.reports.page import HtmlReport


class RunLog:
    """The records of a run: train.log, metrics.csv and TensorBoard events in one folder.

    Everything is on disk when a call returns, so that a killed run has lost nothing that came
    before its checkpoint.

    Args:
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
        cli.write_text(metrics, cli.csv_text([("step", "name", "value"), *rows]))
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
            self._metrics.write(cli.csv_text((step, name, f"{value:.9g}") for name, value in values.items()))
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
        from tensorboardX import summary
        from tensorboardX.proto import event_pb2
        from tensorboardX.record_writer import RecordWriter

        self._pb, self._summary = event_pb2, summary
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
        for tag, value in values.items():
            self._write(step=step, summary=self._summary.scalar(tag, value), flush=False)
        self._writer.flush()  # once for all of them: it waits for the disk

    def image(self, step, tag, image):
        image = image if image.ndim == 3 else image[..., None]
        self._write(step=step, summary=self._summary.image(tag, image, dataformats="HWC"))

    def _write(self, flush=True, **content):
        event = self._pb.Event(wall_time=time.time(), **content)
        self._writer.write(event.SerializeToString())
        if flush:
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
    try:
        with open(path, encoding="utf-8", newline="") as file:
            lines = [line for line in file if line.endswith("\n")]
        rows = [row for row in csv.reader(lines) if len(row) == 3 and row[0].isdecimal()]
    except (UnicodeDecodeError, csv.Error):
        raise cli.UserError(f"{path}: is no table of a training; move it away to go on without it") from None
    return [(int(step), name, value) for step, name, value in rows]


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
    """The page of a run's latest snapshot, in its validation/, which replaces that of the snapshot before.

    It shows so many `pictures` of each set; `first` is whether this is the first process.
    """
    folder = Path(folder).resolve()
    about = json.loads((folder / "options.json").read_text(encoding="utf-8"))
    settings = {**about["options"], "Versions": about["versions"]}
    title = f"{folder.parent.name}, epoch {epoch}"
    return HtmlReport(folder / "validation", title, settings, pictures, overwrite=True, first=first)


def write_stats(folder):
    """Writes what metrics.csv holds as stats.json: {"loss/rec": {"step": [...], "value": [...]}, ...}."""
    columns = {}
    for name, points in read_metrics(folder).items():
        steps, values = zip(*points, strict=True)
        columns[name] = {"step": steps, "value": [v if math.isfinite(v) else None for v in values]}
    cli.write_json(Path(folder) / "stats.json", columns)
