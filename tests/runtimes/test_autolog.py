"""The report: AutoLog's keys and lines, from ourselves or from AutoLog, whatever state that is in."""

import io
import re
import sys

import pytest

from denoising import machine
from denoising.runtimes import autolog
from denoising.runtimes.autolog import REPORT_KEYS, BenchmarkLog, Times

CONFIG = {
    "runtime_device": "cpu",
    "ir_optim": True,
    "enable_memory_optim": True,
    "enable_tensorrt": False,
    "enable_mkldnn": False,
    "cpu_math_library_num_threads": 2,
}
LINE = re.compile(r"^\[\d{4}/\d\d/\d\d \d\d:\d\d:\d\d\] root INFO: ")


def timed(gpu_ids=None, batches=3):
    log = BenchmarkLog("unet", "fp32", 2, "dynamic", CONFIG, gpu_ids=gpu_ids, stream=io.StringIO())
    for _ in range(batches):
        log.times.start()
        log.times.stamp()
        log.times.stamp()
        log.times.end(2)
    return log


def reported(log):
    log.report()
    return log.stream.getvalue()


def test_report_has_autologs_keys_in_its_lines(capsys):
    text = reported(timed())
    for line in text.strip().splitlines():
        assert LINE.match(line), line
    for key in REPORT_KEYS:
        assert f" {key}: " in text, key
    assert "root INFO:  enable_mkldnn: False\n" in text
    assert "root INFO:  data_num: 6\n" in text
    assert re.search(
        r"INFO:  preprocess_time\(ms\): [\d.]+, inference_time\(ms\): [\d.]+, postprocess_time\(ms\): [\d.]+\n", text
    )
    assert re.search(r"INFO:  cpu_rss\(MB\): [\d.]+, gpu_rss\(MB\): None, gpu_util: None%\n", text)
    assert capsys.readouterr().err == "benchmark report by autolog.py (auto_log is not installed)\n"


def test_means_and_percentiles():
    times = Times()
    times.stages["inference_time"] = [0.001 * value for value in (1, 2, 3, 4, 100)]
    assert times.mean_ms("inference_time") == pytest.approx(22)
    assert times.percentile_ms("inference_time", 50) == pytest.approx(3)
    assert times.percentile_ms("inference_time", 90) == pytest.approx(100)


def test_wrong_order_of_stamps_is_a_bug_that_is_told():
    times = Times()
    with pytest.raises(ValueError, match="start"):
        times.stamp()
    times.start()
    times.stamp()
    with pytest.raises(ValueError, match="in stage 2 of 3"):
        times.end(1)
    with pytest.raises(ValueError, match="nothing was timed"):
        BenchmarkLog("unet", "fp32", 1, "dynamic", CONFIG).report()


def test_peak_memory_is_the_peak():
    log = timed()
    block = bytearray(200 << 20)
    block[::4096] = b"1" * len(block[::4096])
    del block
    peak = float(re.search(r"cpu_rss\(MB\): ([\d.]+)", reported(log))[1])
    # What is in use now does not count, nor does it matter what the process took before.
    assert peak > machine.used_memory("VmRSS") / 2**20 + 150


@pytest.mark.parametrize("script", ["echo 4321, 87", "exit 9", "echo '[N/A], [N/A]'"])
def test_nvidia_smi_answers_or_not(script, tmp_path, monkeypatch):
    smi = tmp_path / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\n{script}\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    text = reported(timed(gpu_ids=0))
    expected = "4321.0, gpu_util: 87.0%" if "4321" in script else "None, gpu_util: None%"
    assert f"gpu_rss(MB): {expected}" in text


def test_without_nvidia_smi_nothing_waits(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "gpu_rss(MB): None" in reported(timed(gpu_ids=0))


# AutoLog as far as it matters: its report reads Times, starts a helper process, and ends the program.
AUTO_LOG = """
import multiprocessing, sys, time

def sample():
    time.sleep(600)

class Times:
    pass

class AutoLogger:
    def __init__(self, model_name, model_precision, batch_size, data_shape, save_path, inference_config=None,
                 pids=None, process_name=None, gpu_ids=None, time_keys=None, warmup=0, logger=None):
        self.facts, self.logger, self.times, self.keys = inference_config, logger, Times(), time_keys
        self.helper = multiprocessing.get_context("spawn").Process(target=sample)
        self.helper.start()

    def report(self):
        mean = [1e3 * sum(self.times.times[key]) / len(self.times.times[key]) for key in self.keys]
        self.logger.info("\\n")
        for key in {keys!r}:
            self.logger.info(f" {key}: by AutoLog of {len(self.times.total_time)} batches")
        {end}
"""


def install(tmp_path, monkeypatch, text):
    (tmp_path / "auto_log.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "auto_log", raising=False)


@pytest.mark.parametrize("end", ["sys.exit(0)", "pass"])
def test_a_working_auto_log_reports(end, tmp_path, monkeypatch, capsys):
    install(tmp_path, monkeypatch, AUTO_LOG.replace("{keys!r}", repr(REPORT_KEYS)).replace("{end}", end))
    text = reported(timed())
    assert " data_num: by AutoLog of 3 batches" in text
    assert "inference_time_p90(ms): " in text.splitlines()[-1]
    assert all(LINE.match(line) for line in text.strip().splitlines())
    assert capsys.readouterr().err == "benchmark report by auto_log\n"


BROKEN = {
    "import": ("", "No module named 'no_such_module'"),
    "incomplete": ("sys.exit(0)", "its report lacks keys"),
    "raises": ("[][0]", "IndexError: list index out of range"),
    "hangs": ("time.sleep(600)", "no answer in 3 s"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_auto_log_is_replaced(how, tmp_path, monkeypatch, capsys):
    end, reason = BROKEN[how]
    text = AUTO_LOG.replace("{keys!r}", "()").replace("{end}", end) if end else "import no_such_module"
    install(tmp_path, monkeypatch, text)
    # Enough for it to start, so that the end of the report is reached.
    monkeypatch.setattr(autolog, "AUTO_LOG_SECONDS", 3.0 if how == "hangs" else 30.0)
    text = reported(timed())
    assert "root INFO:  data_num: 6\n" in text
    error = capsys.readouterr().err
    assert "by autolog.py (auto_log is installed but does not work: " in error
    assert reason in error
