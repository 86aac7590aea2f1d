"""Are the files what they claim to be, also after a kill and with hostile names?"""

import glob
import json
import struct
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

import reporting
from reporting import RunLog


def events(folder):
    """(step, tag, value or image) of each event, purged as TensorBoard purges."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    kept = []
    for path in sorted(glob.glob(f"{glob.escape(str(folder))}/*tfevents*")):
        with open(path, "rb") as file:
            data = file.read()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            if event.HasField("session_log") and event.session_log.status == SessionLog.START:
                kept = [known for known in kept if known[0] < event.step]
            for value in event.summary.value:
                image = value.image.encoded_image_string
                kept.append((event.step, value.tag, image or value.simple_value))
    return kept


def series(folder, tag):
    return [(step, round(value, 6)) for step, name, value in events(folder) if name == tag]


def test_run_log_leaves_log_csv_and_events(tmp_path, capsys):
    with RunLog(tmp_path) as log:
        log.line("0001 00010 Loss1=0.5, größer")
        log.scalars(10, {"train/loss": np.float32(0.1), "a,b": 2})
        log.image("val/0", np.full((4, 5, 3), 7, np.uint8), 10)
        log.image("val/grey", np.full((4, 5), 7, np.uint8), 10)
    assert capsys.readouterr().out == "0001 00010 Loss1=0.5, größer\n"
    assert (tmp_path / "train.log").read_text("utf-8") == "0001 00010 Loss1=0.5, größer\n"
    assert (tmp_path / "metrics.csv").read_text() == (
        'step,name,value\n10,train/loss,0.100000001\n10,"a,b",2\n'
    )
    assert reporting.read_metrics(tmp_path) == {
        "train/loss": [(10, 0.100000001)],
        "a,b": [(10, 2.0)],
    }
    read = {tag: value for _, tag, value in events(tmp_path)}
    assert read["train/loss"] == pytest.approx(0.1)
    for tag in ("val/0", "val/grey"):
        image = cv2.imdecode(np.frombuffer(read[tag], np.uint8), cv2.IMREAD_UNCHANGED)
        assert image.shape == (4, 5, 3)
        assert (image == 7).all()


def test_events_load_in_tensorboard(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for resume_at, steps in ((None, (1, 2, 3)), (2, (3, 4))):
        with RunLog(tmp_path, resume_at) as log:
            for step in steps:
                log.scalars(step, {"loss": step})
    loaded = accumulator.EventAccumulator(str(tmp_path))
    loaded.Reload()
    assert [(event.step, event.value) for event in loaded.Scalars("loss")] == [
        (1, 1),
        (2, 2),
        (3, 3),
        (4, 4),
    ]


def test_everything_is_on_disk_without_close(tmp_path):
    log = RunLog(tmp_path)
    log.line("a line")
    log.scalars(1, {"loss": 0.5})
    assert (tmp_path / "train.log").read_text() == "a line\n"
    assert reporting.read_metrics(tmp_path) == {"loss": [(1, 0.5)]}
    assert series(tmp_path, "loss") == [(1, 0.5)]
    log.close()


def test_resumed_files_read_as_if_never_interrupted(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    with RunLog(whole) as log:
        for step in range(1, 7):
            log.scalars(step, {"loss": 1 / step})
    with RunLog(killed) as log:
        for step in range(1, 6):
            log.scalars(step, {"loss": 1 / step if step < 4 else 99})
    with open(killed / "metrics.csv", "a") as file:
        file.write("5,lo")
    with RunLog(killed, resume_at=3) as log:
        for step in range(4, 7):
            log.scalars(step, {"loss": 1 / step})
    assert (killed / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    assert series(killed, "loss") == series(whole, "loss")


def test_a_new_run_starts_an_empty_csv_and_resume_needs_none(tmp_path):
    RunLog(tmp_path, resume_at=7).close()
    assert (tmp_path / "metrics.csv").read_text() == "step,name,value\n"


def test_disabled_log_does_nothing(tmp_path, capsys):
    with RunLog(tmp_path / "absent", enabled=False) as log:
        log.line("text")
        log.scalars(1, {"loss": 1})
        log.image("image", np.zeros((2, 2, 3), np.uint8), 1)
    assert not (tmp_path / "absent").exists()
    assert capsys.readouterr().out == ""


def test_append_score_replaces_the_line_of_an_epoch(tmp_path):
    for epoch, psnr in ((1, 28.5), (2, 29.0), (10, 29.75), (2, 29.25)):
        reporting.append_score(tmp_path, "BSD300", epoch, psnr, 0.8)
    assert (tmp_path / "A_log_BSD300.csv").read_text() == "1,28.5,0.8\n2,29.25,0.8\n10,29.75,0.8\n"
    reporting.append_score(tmp_path, "../a/b", 1, 28.5, 0.8)
    assert (tmp_path / "A_log_.._a_b.csv").exists()


@pytest.mark.parametrize("count", [0, 1, 5, 500])
def test_plot_curves_draws_a_png(tmp_path, count):
    points = [(step, 10.0 / (1 + step)) for step in range(count)]
    odd = [(0, float("nan")), (1, float("inf")), (2, 1.0)]
    panels = {"loss": {"train/loss": points, "$\\frac_中": odd}, "PSNR [dB]": {"_set": points}}
    path = tmp_path / "loss.png"
    reporting.plot_curves(path, "results/$unet_25", "step", panels)
    assert cv2.imread(str(path)).shape == (852, 960, 3)
    assert [file.name for file in tmp_path.iterdir()] == ["loss.png"]


def set_scores(name, scores):
    """Stands for denoising.SetScores, without Paddle."""

    def mean(key):
        return float(np.mean([getattr(score, key) for score in scores]))

    return SimpleNamespace(name=name, scores=scores, seconds=1.25, megapixels=0.1, mean=mean)


def score(set_name, name, repeat=0, psnr=30.0, ssim=0.75, psnr_noisy=20.0, ssim_noisy=0.5):
    return SimpleNamespace(**locals())


def test_score_table_and_summary():
    results = [
        set_scores("BSD300", [score("BSD300", f"{n}", r) for r in range(3) for n in range(100)]),
        set_scores("mine", [score("mine", "a", psnr=float("inf"), ssim=1.0)]),
    ]
    table = reporting.score_table(results).splitlines()
    assert table[0].split() == ["set", "images", "noisy", "PSNR", "PSNR", "gain", "SSIM"]
    assert table[1].split() == ["BSD300", "100", "x", "3", "20.00", "30.00", "+10.00", "0.7500"]
    assert table[2].split() == ["mine", "1", "x", "1", "20.00", "inf", "+inf", "1.0000"]
    assert len({len(line) for line in table}) == 1
    summary = reporting.score_summary(results)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert summary[0] == {
        "set": "BSD300",
        "images": 100,
        "repeats": 3,
        "psnr_noisy": 20.0,
        "ssim_noisy": 0.5,
        "psnr": 30.0,
        "ssim": 0.75,
        "seconds": 1.25,
    }
    assert summary[1]["psnr"] is None
