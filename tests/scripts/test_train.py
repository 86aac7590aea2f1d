import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import paddle
import pytest

import train
from conftest import ENVIRONMENT, ROOT, assert_user_error, rows_of, run_script, save, scene
from denoising.inference import checkpoint
from denoising.training.schedule import Schedule

TINY = ["--n_feature", 2, "--patchsize", 32, "--batchsize", 2, "--log_iters", 1]


def flags(folders, results, *more):
    data = ["--data_dir", folders / "data", "--val_dirs", folders / "val", "--save_model_path", results]
    return [*data, *TINY, *more]


def run_folder(results):
    (folder,) = Path(results).glob("*/*")
    return folder


def trained(folders, results, *more):
    assert train.main([str(flag) for flag in flags(folders, results, *more)]) == 0
    return run_folder(results)


def weights_of(folder, epoch):
    return checkpoint.read_state(folder / f"epoch_model_{epoch:03d}.pdparams")


def assert_same_weights(a, b):
    assert a.keys() == b.keys()
    for name, array in a.items():
        assert np.array_equal(array, b[name]), name


def test_a_run_leaves_what_is_promised(folders, tmp_path, capsys):
    folder = trained(folders, tmp_path, "--n_epoch", 2, "--n_snapshot", 1)
    out = capsys.readouterr().out
    published = r"^0002 00003 Loss1=\d\.\d{6}, Lambda=2\.0, Loss2=\d\.\d{6}, Loss_Full=\d\.\d{6}, Time=\d+\.\d{4}"
    assert re.search(published + r" .*ips: \d+\.\d+ images/s, eta: 0:00:00$", out, re.MULTILINE)
    assert re.search(r"^\[EVAL\] Tiny: psnr:\d+\.\d+ ssim:-?\d\.\d+$", out, re.MULTILINE)
    assert f"Checkpoint saved to {folder}/epoch_model_002.pdparams" in out
    names = {path.name for path in folder.rglob("*")}
    wanted = {
        "options.json",
        "train.log",
        "metrics.csv",
        "loss.png",
        "psnr.png",
        "best_model.pdparams",
        "A_log_Tiny.csv",
    }
    assert wanted <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert {f"Tiny_00{i}-002_{kind}.png" for i in (0, 1) for kind in ("clean", "noisy", "denoised")} <= names
    rows = rows_of(folder / "validation" / "A_log_Tiny.csv", csv.reader)
    assert [row[0] for row in rows] == ["1", "2"]
    options = json.loads((folder / "options.json").read_text())
    assert options["options"]["n_feature"] == 2
    assert set(options["versions"]) == {"python", "paddle", "numpy", "commit"}


def test_training_reduces_the_loss(folders, tmp_path):
    folder = trained(folders, tmp_path, "--max_steps", 120, "--lr", 3e-3, "--n_snapshot", 100)
    rows = rows_of(folder / "metrics.csv")
    losses = [float(row["value"]) for row in rows if row["name"] == "loss/rec"]
    assert len(losses) == 120
    assert np.mean(losses[-20:]) < 0.4 * np.mean(losses[:5])


VARIANTS: list[tuple] = [
    (),
    ("--method", "noise2noise", "--noisetype", "impulse0.2", "--n_feature", 3),
    ("--ema", 0, "--noise_protocol", "frozen", "--augment", "--clip_grad", 1),
    ("--optimizer", "muon", "--lr", 1e-3, "--n_feature", 16),
    ("--method", "recorrupted2recorrupted", "--noisetype", "gauss5_50", "--augment"),
]


@pytest.mark.parametrize("more", VARIANTS)
def test_killed_and_resumed_equals_never_killed_to_the_bit(folders, tmp_path, more):
    length = ["--n_epoch", 20, "--n_snapshot", 10, "--save_minutes", 0, "--val_images", 1, *more]
    expected = trained(folders, tmp_path / "whole", *length)

    # Killed twice without warning, wherever that happens to be.
    command = [sys.executable, ROOT / "train.py", *flags(folders, tmp_path / "parts", *length)]
    for attempt in range(2):
        more_flags = ["--resume"] if attempt else []
        process = subprocess.Popen(
            [*map(str, command), *more_flags], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
        )
        for line in process.stdout:
            if line.startswith(("0005 00002", "0013 00001")[attempt]):
                break
        process.kill()
        process.wait()
        process.stdout.close()
    folder = run_folder(tmp_path / "parts")
    assert not (folder / "epoch_model_020.pdparams").exists()
    assert train.main(["--resume", str(folder)]) == 0

    for epoch in (10, 20):
        assert_same_weights(weights_of(folder, epoch), weights_of(expected, epoch))
    for name in ("metrics.csv", "validation/A_log_Tiny.csv"):
        lines = [
            [line for line in (one / name).read_text().splitlines() if "speed" not in line]
            for one in (folder, expected)
        ]
        assert lines[0] == lines[1]


def test_ctrl_c_saves_and_says_how_to_go_on(folders, tmp_path):
    command = [
        sys.executable,
        ROOT / "train.py",
        *flags(folders, tmp_path, "--n_epoch", 100_000, "--n_snapshot", 99_999),
    ]
    process = subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    while not process.stdout.readline().startswith("0003"):
        pass
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"--resume {run_folder(tmp_path)}" in err
    state = checkpoint.read_state(run_folder(tmp_path) / train.STATE)
    assert json.loads(state["@options"])["where"]["step"] >= 8


def test_resume_refuses_to_become_another_run(folders, tmp_path):
    folder = trained(folders, tmp_path, "--max_steps", 2)
    result = run_script("train.py", "--resume", folder, "--n_feature", 5)
    assert_user_error(result, "--n_feature", "2")
    assert train.main(["--resume", str(folder), "--max_steps", "4"]) == 0
    state = checkpoint.read_state(folder / train.STATE)
    assert json.loads(state["@options"])["where"]["step"] == 4


CRAFTED = {
    "no JSON": "[" * 200_000,
    "a list of options": json.dumps({"training": [1], "where": {}}),
    "a size of the wrong type": {"training": {"patchsize": "sixty"}},
    "a huge network": {"training": {"n_feature": 100_000}},
    "an unknown network": {"training": {"arch": "nope"}},
    "no length": {"training": {"n_epoch": 0}},
    "a negative step": {"where": {"step": -5}},
    "a step that is text": {"where": {"step": "x"}},
}


@pytest.mark.parametrize("what", CRAFTED)
def test_a_crafted_state_is_one_line(folders, tmp_path, what, capsys):
    folder = trained(folders, tmp_path, "--max_steps", 2)
    state = checkpoint.read_state(folder / train.STATE)
    about = json.loads(state["@options"])
    change = CRAFTED[what]
    if isinstance(change, dict):
        for part, values in change.items():
            about[part] |= values
    state["@options"] = change if isinstance(change, str) else json.dumps(about)
    checkpoint.write_state(folder / train.STATE, state)
    with pytest.raises((train.UserError, SystemExit)) as refusal:
        train.main(["--resume", str(folder)])
    assert refusal.type is train.UserError or refusal.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_state_without_the_optimizer_does_not_pass_for_exact(folders, tmp_path):
    folder = trained(folders, tmp_path, "--max_steps", 2)
    state = checkpoint.read_state(folder / train.STATE)
    checkpoint.write_state(folder / train.STATE, {k: v for k, v in state.items() if not k.startswith("optimizer/")})
    with pytest.raises(train.UserError, match="optimizer"):
        train.main(["--resume", str(folder), "--max_steps", "4"])


@pytest.mark.parametrize("method", ["noise2noise", "supervised"])
def test_targets_train_and_leave_their_statistics(folders, tmp_path, method):
    more = [
        "--method",
        method,
        "--max_steps",
        60,
        "--lr",
        3e-3,
        "--n_snapshot",
        5,
        "--train_size",
        6,
        "--valid_size",
        1,
    ]
    folder = trained(folders, tmp_path, *more, "--plot_stats")
    stats = json.loads((folder / "stats.json").read_text())
    losses = stats["loss/full"]["value"]
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:5])
    assert len(stats["loss/valid"]["value"]) == len(stats["psnr/Tiny"]["step"]) == 4
    (best,) = folder.glob("best_epoch_*.pdparams")
    assert best.read_bytes() == (folder / "best_model.pdparams").read_bytes()
    assert float(best.stem.split("_")[-1]) == pytest.approx(min(stats["loss/valid"]["value"]), abs=1e-6)
    about = json.loads(checkpoint.read_state(best)["@options"])
    assert (about["method"], about["loss"]) == (method, "l2")


KNOWN = ["--method", "recorrupted2recorrupted", "--known_noise", "poisson255"]


@pytest.mark.parametrize("more", [[], KNOWN], ids=["neighbor2neighbor", "recorrupted2recorrupted"])
def test_noisy_images_of_ones_own_train_for_the_time_asked_and_leave_a_best_model(folders, tmp_path, more):
    flags_ = ["--noisetype", "none", "--val_dirs", "none", "--max_steps", 450, *more]
    folder = trained(folders, tmp_path, *flags_)
    assert (folder / "best_model.pdparams").exists()
    state = checkpoint.read_state(folder / train.STATE)
    assert json.loads(state["@options"])["where"]["step"] == 450  # more than a hundred epochs of four steps
    assert len(list(folder.glob("epoch_model_*.pdparams"))) == 10


def test_a_second_process_does_not_work_in_the_same_run(folders, tmp_path):
    folder = trained(folders, tmp_path, "--max_steps", 2)
    with train.cli.only_process_in(folder):
        result = run_script("train.py", "--resume", folder, "--max_steps", 4)
    assert_user_error(result, folder, "another process")


def test_a_run_of_adam_does_not_go_on_with_muon(folders, tmp_path):
    folder = trained(folders, tmp_path, "--max_steps", 2)
    assert_user_error(run_script("train.py", "--resume", folder, "--optimizer", "muon"), "--optimizer", "adam")


def test_a_run_that_diverged_does_not_write_over_its_last_good_state(folders, tmp_path):
    more = ["--lr", 1e30, "--max_steps", 30, "--log_iters", 1000, "--save_minutes", 0]
    result = run_script("train.py", *flags(folders, tmp_path, *more))
    assert_user_error(result, "not finite", "--lr")
    state = checkpoint.read_state(run_folder(tmp_path) / train.STATE)
    assert all(np.isfinite(array).all() for name, array in state.items() if name != "@options")


def schedule(**options):
    defaults = {
        "n_epoch": None, "max_steps": None, "n_snapshot": None, "max_minutes": None,
        "lr": 1.0, "gamma": 0.5, "lr_schedule": "step",
        "warmup_steps": 0, "reg_start": 0.0,
    }  # fmt: skip
    return Schedule(SimpleNamespace(**{**defaults, **options}), steps_per_epoch=10)


def test_the_published_schedule():
    plan = schedule()
    rates = [plan.learning_rate(epoch * 10, 0) for epoch in range(100)]
    assert [epoch for epoch in range(1, 100) if rates[epoch] != rates[epoch - 1]] == [19, 39, 59, 79]
    assert rates[-1] == 0.5**4
    assert [plan.ramp(epoch * 10 + 9, 0) for epoch in (0, 49, 99)] == [0.01, 0.5, 1.0]


def test_cosine_with_warm_up_ends_at_zero_by_steps_and_by_the_clock():
    plan = schedule(lr_schedule="cosine", warmup_steps=100)
    assert plan.learning_rate(0, 0) == pytest.approx(0.01)
    assert plan.learning_rate(500, 0) == pytest.approx(0.5)
    assert plan.learning_rate(999, 0) < 1e-5
    plan = schedule(lr_schedule="cosine", max_minutes=10)
    assert plan.learning_rate(1, 300) == pytest.approx(0.5)
    assert plan.progress(1, 600) == 1
    assert plan.ramp(1, 300) == pytest.approx(0.5)


def test_the_regulariser_can_start_late():
    plan = schedule(max_steps=100, reg_start=0.5)
    assert plan.ramp(49, 0) == 0
    assert plan.ramp(50, 0) == pytest.approx(0.51)


def test_max_minutes_ends_in_time(folders, tmp_path):
    start = time.perf_counter()
    folder = trained(folders, tmp_path, "--max_minutes", 0.05, "--lr_schedule", "cosine")
    assert 3 <= time.perf_counter() - start < 20
    state = checkpoint.read_state(folder / train.STATE)
    assert json.loads(state["@options"])["where"]["seconds"] >= 3


def launch(folders, results, logs, *more, nodes=1):
    """Starts training in two processes, or on two "nodes" of this machine; returns the run's folder."""
    command = [sys.executable, "-m", "paddle.distributed.launch", "--log_dir"]
    port = 20_000 + os.getpid() % 20_000
    script = [ROOT / "train.py", *flags(folders, results, *more)]
    if nodes == 1:
        commands = [[*command, logs, "--nproc_per_node", "2", *script]]
    else:
        node = ["--master", f"127.0.0.1:{port}", "--nnodes", "2", "--nproc_per_node", "1"]
        commands = [[*command, logs / str(rank), *node, "--rank", rank, *script] for rank in (0, 1)]
    processes = [
        subprocess.Popen(
            [str(part) for part in one], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT
        )
        for one in commands
    ]
    codes = [process.wait(timeout=180) for process in processes]
    text = "\n".join(path.read_text() for path in sorted(logs.rglob("workerlog.*")))
    assert codes == [0] * len(codes), text
    return run_folder(results), text


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [1, 2])
def test_two_processes_equal_one_with_twice_the_batch(folders, tmp_path, nodes):
    length = ["--max_steps", 12, "--n_snapshot", 100, "--seed", 3]
    single = trained(folders, tmp_path / "one", *length, "--batchsize", 4)
    double, text = launch(folders, tmp_path / "two", tmp_path / "logs", *length, "--batchsize", 2, nodes=nodes)
    assert text.count("0001 00000 Loss1=") == 1  # one log

    def losses(folder):
        rows = rows_of(folder / "metrics.csv")
        return [float(row["value"]) for row in rows if row["name"] == "loss/full"]

    np.testing.assert_allclose(losses(double), losses(single), rtol=2e-3)
    a, b = weights_of(single, 6), weights_of(double, 6)
    for name in a:
        if name != checkpoint.OPTIONS_KEY:
            np.testing.assert_allclose(a[name], b[name], atol=2e-3)
    # What the ranks say of their weights at the end.
    sums = re.findall(r"weights of rank \d: ([0-9a-f]+)", text)
    assert len(sums) == 2
    assert len(set(sums)) == 1
    scores = [(one / "validation" / "A_log_Tiny.csv").read_text().split(",") for one in (single, double)]
    assert float(scores[0][1]) == pytest.approx(float(scores[1][1]), abs=0.05)


BAD: list[tuple[list, list]] = [
    (["--noisetype", "fog3"], ["--noisetype", "gaussA"]),
    (["--n_epochs", 3], ["--n_epochs"]),
    (["--patchsize", -4], ["--patchsize", "-4"]),
    (["--patchsize", 33], ["--patchsize", "odd"]),
    (["--lr", "nan"], ["--lr"]),
    (["--batchsize", "two"], ["--batchsize", "two"]),
    (["--data_dir", "/nowhere/at/all"], ["--data_dir", "/nowhere/at/all"]),
    (["--val_dirs", "/nowhere/at/all"], ["--val_dirs", "/nowhere/at/all"]),
    (["--amp"], ["--amp"]),
    (["--device", "gpu"], ["--device"]),
    (["--pretrained", "/nowhere.pdparams"], ["/nowhere.pdparams"]),
    (["--resume", "/nowhere"], ["--resume", "/nowhere"]),
    (["--loss", "l1"], ["--loss", "neighbor2neighbor"]),
    (["--method", "noise2noise", "--noisetype", "text1.5"], ["--noisetype", "text1.5"]),
    (["--method", "noise2noise", "--noisetype", "none"], ["--noisetype", "--pair_dir"]),
    (["--method", "noise2noise", "--pair_dir", "/nowhere"], ["--pair_dir", "/nowhere"]),
    (["--pair_dir", "."], ["--pair_dir", "neighbor2neighbor"]),
    (["--method", "noise2noise", "--pair_dir", ".", "--noisetype", "gauss5"], ["--noisetype"]),
    (["--method", "recorrupted2recorrupted", "--noisetype", "speckle25"], ["--noisetype", "gauss25", "speckle25"]),
    (["--method", "recorrupted2recorrupted", "--noisetype", "none"], ["--known_noise", "gauss25"]),
    (["--method", "recorrupted2recorrupted", "--known_noise", "gauss5"], ["--known_noise", "--noisetype none"]),
    (
        ["--method", "recorrupted2recorrupted", "--noisetype", "gauss5_50", "--noise_protocol", "frozen"],
        ["--noisetype", "one number"],
    ),
    (
        ["--method", "recorrupted2recorrupted", "--noisetype", "none", "--known_noise", "gauss5_50"],
        ["--known_noise", "one number"],
    ),
    (
        ["--method", "recorrupted2recorrupted", "--noisetype", "none", "--known_noise", "gauss2"],
        ["--known_noise", "8 bits", "gauss2"],
    ),
    (["--known_noise", "gauss5", "--noisetype", "none"], ["--known_noise", "recorrupted2recorrupted"]),
    (["--method", "recorrupted2recorrupted", "--noisetype", "none", "--known_noise", "x"], ["--known_noise", "'x'"]),
]


@pytest.mark.parametrize(("more", "words"), BAD, ids=[" ".join(map(str, more)) for more, _ in BAD])
def test_mistakes_are_one_line(folders, tmp_path, more, words):
    if more in (["--amp"], ["--device", "gpu"]) and paddle.device.is_compiled_with_cuda():
        pytest.skip("this Paddle has CUDA")
    assert_user_error(run_script("train.py", *flags(folders, tmp_path / "r", *more)), *words)
    assert not (tmp_path / "r").exists()


def test_an_empty_folder_and_a_broken_image_are_one_line(folders, tmp_path):
    (tmp_path / "empty").mkdir()
    result = run_script("train.py", *flags(folders, tmp_path / "r", "--data_dir", tmp_path / "empty"))
    assert_user_error(result, "--data_dir")
    save(tmp_path / "broken" / "b.png", scene(80, 80))
    (tmp_path / "broken" / "a.png").write_bytes((tmp_path / "broken" / "b.png").read_bytes()[:400])
    result = run_script("train.py", *flags(folders, tmp_path / "r", "--data_dir", tmp_path / "broken"))
    assert_user_error(result, "a.png")


def test_weights_of_other_channels_are_refused(folders, tmp_path, weights):
    result = run_script("train.py", *flags(folders, tmp_path, "--n_channel", 1, "--pretrained", weights))
    assert_user_error(result, weights)


def test_a_loss_that_is_not_finite_stops_the_run(folders, tmp_path):
    result = run_script("train.py", *flags(folders, tmp_path, "--lr", 1e30, "--max_steps", 30))
    assert_user_error(result, "step", "--lr")
