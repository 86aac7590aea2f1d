"""The inference report that certification tools parse: AutoLog's keys and lines, on any machine.

    >>> log = BenchmarkLog("unet", "fp32", batch_size=2, data_shape="3,-1,-1", config=facts)
    >>> for batch in batches:
    ...     log.times.start()
    ...     x = prepare(batch); log.times.stamp()
    ...     y = run(x); log.times.stamp()
    ...     finish(y); log.times.end(len(batch))
    >>> log.report()

AutoLog (`auto_log`) is on no package index and depends on its surroundings: it may end the process,
wait for a helper that has died, or fail to be imported. Where it is installed, it is given the
measured times in a process of its own and some seconds; if a complete report comes back, that is
printed, otherwise ours is.
"""

import contextlib
import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

from denoising import machine

TIME_KEYS = ("preprocess_time", "inference_time", "postprocess_time")
CONFIG_KEYS = (
    "runtime_device", "ir_optim", "enable_memory_optim", "enable_tensorrt", "enable_mkldnn",
    "cpu_math_library_num_threads",
)  # fmt: skip
# A report without one of these is not complete; "drivier" is how the parsers know the word.
REPORT_KEYS = (
    "OS_version", "CUDA_version", "CUDNN_version", "drivier_version",
    "paddle_version", "paddle_commit", "log_api_version", *CONFIG_KEYS,
    "model_name", "precision", "batch_size", "input_shape", "data_num",
    "cpu_rss(MB)", "gpu_rss(MB)", "gpu_util", "total time spent(s)",
    *(f"{key}(ms)" for key in TIME_KEYS),
)  # fmt: skip
AUTO_LOG_SECONDS = 60.0


class Times:
    """Seconds per stage and batch; what warms up is simply not timed."""

    def __init__(self):
        self.stages = {key: [] for key in TIME_KEYS}
        self.total, self.items = [], 0
        self._stamps = []

    def start(self):
        """Begins a batch."""
        self._stamps = [time.perf_counter()]

    def stamp(self):
        """Ends the next stage of the batch."""
        if not 0 < len(self._stamps) <= len(TIME_KEYS):
            raise ValueError(f"a batch is start() and then one stamp for each of {TIME_KEYS}")
        self._stamps.append(time.perf_counter())
        self.stages[TIME_KEYS[len(self._stamps) - 2]].append(self._stamps[-1] - self._stamps[-2])

    def end(self, items):
        """Ends the last stage of the batch, and with it the batch of so many images."""
        self.stamp()
        if len(self._stamps) != len(TIME_KEYS) + 1:
            raise ValueError(f"end() in stage {len(self._stamps) - 1} of {len(TIME_KEYS)}")
        self.total.append(self._stamps[-1] - self._stamps[0])
        self.items += items
        self._stamps = []

    def mean_ms(self, key):
        """The average per batch."""
        return 1e3 * sum(self.stages[key]) / len(self.stages[key])

    def percentile_ms(self, key, percent):
        """The value that so many percent of the batches do not exceed (nearest rank)."""
        ordered = sorted(self.stages[key])
        return 1e3 * ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


class BenchmarkLog:
    """Collects times and prints the report.

    Args:
        model_name: as it should appear.
        model_precision: what was computed in.
        batch_size: as asked; `data_num` is how many images were really timed.
        data_shape: text or tuple.
        config: a dict of CONFIG_KEYS, as they really were.
        gpu_ids: the device whose memory is sampled through nvidia-smi, or None.
        stream: where the report goes; stdout by default.
    """

    def __init__(
        self, model_name, model_precision, batch_size, data_shape, config,
        gpu_ids=None, stream=None,
    ):  # fmt: skip
        self.model = {"model_name": model_name, "precision": model_precision}
        self.data = {"batch_size": batch_size, "input_shape": data_shape}
        self.config = {key: config.get(key) for key in CONFIG_KEYS}
        self.gpu_ids, self.stream = gpu_ids, stream or sys.stdout
        self.times = Times()
        self._gpu = _GpuSampler(gpu_ids) if gpu_ids is not None else None

    def report(self):
        """Prints the report, and on stderr who made it."""
        if not self.times.total:
            raise ValueError("nothing was timed")
        self.cpu_rss = machine.peak_memory() / 2**20
        self.gpu = self._gpu.stop() if self._gpu else {}
        lines, maker = _by_auto_log(self)
        lines = (lines or self._lines()) + [_line(self._percentiles())]
        print("\n".join(lines), file=self.stream, flush=True)
        print(f"benchmark report by {maker}", file=sys.stderr, flush=True)

    def _percentiles(self):
        """Our addition, last: what a mean hides."""
        p50, p90 = (self.times.percentile_ms("inference_time", percent) for percent in (50, 90))
        speed = self.times.items / sum(self.times.total)
        return f" inference_time_p50(ms): {p50:.4f}, inference_time_p90(ms): {p90:.4f}, images_per_second: {speed:.4f}"

    def _lines(self):
        used, busy = self.gpu.get("memory"), self.gpu.get("util")
        stages = ", ".join(f"{key}(ms): {self.times.mean_ms(key):.4f}" for key in TIME_KEYS)
        groups = {
            "---------------------- Env info ----------------------": _environment(),
            "---------------------- Paddle info ----------------------": _paddle_facts(),
            "----------------------- Conf info -----------------------": self.config,
            "----------------------- Model info ----------------------": self.model,
            "----------------------- Data info -----------------------": {
                **self.data, "data_num": self.times.items,
            },
        }  # fmt: skip
        lines = [_line("")]
        for header, facts in groups.items():
            lines += [_line(header), *(_line(f" {key}: {value}") for key, value in facts.items())]
        return [
            *lines,
            _line("----------------------- Perf info -----------------------"),
            _line(f" cpu_rss(MB): {self.cpu_rss:.4f}, gpu_rss(MB): {used}, gpu_util: {busy}%"),
            _line(f" total time spent(s): {sum(self.times.total):.4f}"),
            _line(f" {stages}"),
        ]


def _line(message):
    return f"[{time.strftime('%Y/%m/%d %H:%M:%S')}] root INFO: {message}"


# --- The machine ----------------------------------------------------------------------------------


def _environment():
    try:
        system = platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        system = platform.platform()
    version = getattr(sys.modules.get("paddle"), "version", None)
    # A Paddle without CUDA answers "False".
    cuda, cudnn = (getattr(version, name)() if version else None for name in ("cuda", "cudnn"))
    driver = _nvidia_smi("driver_version", 0)
    return {
        "OS_version": system,
        "CUDA_version": None if cuda == "False" else cuda,
        "CUDNN_version": None if cudnn == "False" else cudnn,
        "drivier_version": driver[0] if driver else None,
    }


def _paddle_facts():
    version = getattr(sys.modules.get("paddle"), "version", None)
    return {
        "paddle_version": getattr(version, "full_version", None),
        "paddle_commit": getattr(version, "commit", None),
        "log_api_version": 1.0,
    }


def _nvidia_smi(query, gpu_id):
    """The answers to a query, or None where there is no driver or it does not answer in time."""
    if not shutil.which("nvidia-smi"):
        return None
    wanted = [f"--query-gpu={query}", "--format=csv,noheader,nounits", f"--id={gpu_id}"]
    try:
        answer = subprocess.run(["nvidia-smi", *wanted], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    line = answer.stdout.strip().partition("\n")[0]
    return [value.strip() for value in line.split(",")] if line else None


class _GpuSampler:
    """The largest memory and load that nvidia-smi showed while the clock ran."""

    def __init__(self, gpu_id):
        self.peak = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(gpu_id,), daemon=True)
        self._thread.start()

    def _watch(self, gpu_id):
        while answer := _nvidia_smi("memory.used,utilization.gpu", gpu_id):
            for key, value in zip(("memory", "util"), answer, strict=True):
                if value.replace(".", "").isdigit():  # "[N/A]" on some devices
                    self.peak[key] = max(self.peak.get(key, 0.0), float(value))
            if self._over.wait(0.5):
                break

    def stop(self):
        self._over.set()
        self._thread.join(timeout=11)
        return self.peak


# --- AutoLog, if it works -------------------------------------------------------------------------

# A logger of our own: the one that it makes is the root logger, where Paddle's handlers double it.
# It is left by os._exit, because a failure would otherwise wait for its helper process for ever.
_AUTO_LOG = """
import json, logging, os, sys, traceback

def main():
    facts = json.load(sys.stdin)
    import auto_log
    logger = logging.Logger("root", logging.INFO)
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter(
        "[%(asctime)s] %(name)s %(levelname)s: %(message)s", datefmt="%Y/%m/%d %H:%M:%S"))
    logger.addHandler(handler)
    log = auto_log.AutoLogger(
        **facts["model"], inference_config=facts["config"], save_path=None, pids=facts["pid"],
        gpu_ids=facts["gpu_ids"], time_keys=facts["keys"], warmup=0, logger=logger)
    log.times.times, log.times.total_time = facts["stages"], facts["total"]
    log.report()

if __name__ == "__main__":
    try:
        main()
    except SystemExit:
        pass
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
"""


def _by_auto_log(log):
    """Returns AutoLog's lines, or None, and who reports and why."""
    ours = "autolog.py"
    if importlib.util.find_spec("auto_log") is None:
        return None, f"{ours} (auto_log is not installed)"
    facts = {
        "model": {
            "model_name": log.model["model_name"], "model_precision": log.model["precision"],
            "batch_size": log.data["batch_size"], "data_shape": log.data["input_shape"],
        },
        "config": {**log.config, "precision": log.model["precision"]},
        "pid": os.getpid(), "gpu_ids": log.gpu_ids, "keys": TIME_KEYS,
        "stages": log.times.stages, "total": log.times.total,
    }  # fmt: skip
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err, tempfile.TemporaryFile("w+") as in_:
        json.dump(facts, in_)
        in_.seek(0)
        # Files instead of pipes, which its helper would keep open; a session, so that the helper ends with it.
        process = subprocess.Popen(
            [sys.executable, "-c", _AUTO_LOG], stdin=in_, stdout=out, stderr=err, start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )  # fmt: skip
        try:
            process.wait(AUTO_LOG_SECONDS)
        except subprocess.TimeoutExpired:
            err.write(f"no answer in {AUTO_LOG_SECONDS:.0f} s")
        finally:
            with contextlib.suppress(ProcessLookupError):  # all of it has ended by itself
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        out.seek(0)
        err.seek(0)
        output, reason = out.read(), (err.read().strip().splitlines() or ["its report lacks keys"])[-1]
    if all(f"{key}: " in output for key in REPORT_KEYS):
        return [line for line in output.splitlines() if "root INFO:" in line], "auto_log"
    return None, f"{ours} (auto_log is installed but does not work: {reason})"
