import contextlib
import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import paddle
import pytest

import train
from conftest import ENVIRONMENT, ROOT, assert_user_error, refusal, rows_of, run_script, save, scene
from denoising.cli import UserError
from denoising.inference import checkpoint, distributed
from denoising.training.options import get_parser, parse_options
from denoising.training.state import STATE, Training

TINY = ["--n_feature", 2, "--patchsize", 32, "--batchsize", 2, "--log_iters", 1]
BARE = ["--val_dirs", "none", "--n_snapshot", 1000]  # neither scores nor snapshots but the last


def flags(folders, results, *more):
    data = ["--data_dir", folders / "data", "--val_dirs", folders / "val", "--save_model_path", results]
    return [str(flag) for flag in [*data, *TINY, *more]]


def run_folder(results):
    (folder,) = Path(results).glob("*/*")
    return folder


def trained(folders, results, *more):
    assert train.main(flags(folders, results, *more)) == 0
    return run_folder(results)


def state_of(folder):
    """The arrays of a run's state, and the JSON beside them."""
    state = checkpoint.read_state(folder / STATE)
    return state, json.loads(state.pop("@options"))


def step_of(folder):
    return state_of(folder)[1]["where"]["step"]


def weights_of(folder, epoch):
    return checkpoint.read_state(folder / f"epoch_model_{epoch:03d}.pdparams")


def values_of(folder, name):
    return [float(row["value"]) for row in rows_of(folder / "metrics.csv") if row["name"] == name]


def assert_same_weights(a, b):
    assert a.keys() == b.keys()
    for name, array in a.items():
        assert np.array_equal(array, b[name]), name


@pytest.fixture(scope="module")
def run(folders, tmp_path_factory):
    """The folder of a run of two epochs, and what it printed."""
    results, printed = tmp_path_factory.mktemp("run"), io.StringIO()
    with contextlib.redirect_stdout(printed):
        folder = trained(folders, results, "--n_epoch", 2, "--n_snapshot", 1)
    return folder, printed.getvalue()


@pytest.fixture
def copy(run, tmp_path):
    """A copy of that run, to go on with or to spoil."""
    return shutil.copytree(run[0], tmp_path / "copy")


# --- What a run leaves --------------------------------------------------------------------------------------


def test_a_run_leaves_what_is_promised(run):
    folder, out = run
    assert re.search(r"^8 images, 4 steps per epoch, 8 steps; ", out, re.MULTILINE)
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
    folder = trained(folders, tmp_path, "--max_steps", 120, "--lr", 3e-3, *BARE)
    losses = values_of(folder, "loss/rec")
    assert len(losses) == 120
    assert np.mean(losses[-20:]) < 0.4 * np.mean(losses[:5])


@pytest.mark.parametrize("method", ["noise2noise", "supervised"])
def test_targets_train_and_leave_their_statistics(folders, tmp_path, method):
    more = ["--method", method, "--max_steps", 60, "--lr", 3e-3, "--n_snapshot", 10, "--train_size", 6]
    folder = trained(folders, tmp_path, *more, "--valid_size", 1, "--plot_stats")
    stats = json.loads((folder / "stats.json").read_text())
    losses = stats["loss/full"]["value"]
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:5])
    assert len(stats["loss/valid"]["value"]) == len(stats["psnr/Tiny"]["step"]) == 2
    (best,) = folder.glob("best_epoch_*.pdparams")
    assert best.read_bytes() == (folder / "best_model.pdparams").read_bytes()
    assert float(best.stem.split("_")[-1]) == pytest.approx(min(stats["loss/valid"]["value"]), abs=1e-6)
    about = json.loads(checkpoint.read_state(best)["@options"])
    assert (about["method"], about["loss"]) == (method, "l2")


def test_noisy_images_of_ones_own_train_for_the_time_asked_and_leave_a_best_model(folders, tmp_path):
    # More than the published hundred epochs, of one step each.
    length = ["--train_size", 2, "--max_steps", 110]
    folder = trained(folders, tmp_path, "--noisetype", "none", "--val_dirs", "none", *length)
    assert (folder / "best_model.pdparams").exists()
    assert step_of(folder) == 110
    assert len(list(folder.glob("epoch_model_*.pdparams"))) == 10


def test_noisy_images_choose_the_best_weights_and_the_end(folders, tmp_path, capsys, monkeypatch):
    """At a rate of 0 nothing gets better: the first snapshot stays the best one, and patience ends the run."""
    more = ["--noisetype", "none", "--known_noise", "gauss25", "--method", "recorrupted2recorrupted"]
    more += ["--val_dirs", "none", "--max_steps", 50, "--lr", 0, "--ema", 0, "--train_size", 3]
    folder = trained(folders, tmp_path, *more, "--patience", 2)
    assert step_of(folder) == 15  # three of the ten snapshots
    said = capsys.readouterr().out
    assert "stopped early: 2 snapshots since the best one" in said
    assert json.loads(checkpoint.read_state(folder / "best_model.pdparams")["@options"])["step"] == 5
    scores = {name: values_of(folder, name) for name in ("psnr/another_frame", "loss/another_frame", "loss/estimated")}
    assert all(len(values) == 3 for values in scores.values())
    noise = (25 / 255) ** 2
    for another, error in zip(scores["loss/another_frame"], scores["loss/estimated"], strict=True):
        assert another - error == pytest.approx(noise, rel=1e-3)
    # Weights that have learnt nothing are worse than the noise, and a run whose weights are not says nothing.
    own = re.search(r"make the images worse by this estimate: as they are they have psnr:(.*)", said)
    assert float(own[1]) == pytest.approx(-10 * np.log10(2 * noise), abs=0.3)
    monkeypatch.setattr(train, "as_they_are", lambda judged: -99.0)
    trained(folders, tmp_path / "again", *more)
    assert "as they are" not in capsys.readouterr().out


def test_what_cannot_be_scored_is_told_before_the_training(folders, tmp_path, capsys):
    shutil.copytree(folders / "val", tmp_path / "val")
    (tmp_path / "val" / "Tiny" / "z.png").write_bytes(b"no image")
    broken = flags(folders, tmp_path / "runs", "--val_dirs", tmp_path / "val")
    assert "z.png: no image, broken" in refusal(train.main, broken, capsys)
    assert not (tmp_path / "runs").exists()
    trained(folders, tmp_path / "runs", "--val_dirs", tmp_path / "val", "--val_images", 2, "--max_steps", 1)


@pytest.mark.parametrize("val_dirs", ["data/val", "val"])
def test_a_validation_among_the_training_images_is_told(folders, tmp_path, capsys, val_dirs):
    shutil.copytree(folders / "data", tmp_path / "data")
    shutil.copytree(folders / "val", tmp_path / val_dirs)
    data = "--data_dir", tmp_path / "data", "--val_dirs", tmp_path / val_dirs
    options, _ = parse_options(get_parser(), flags(folders, tmp_path, *data))
    train.validation_sets(options)
    assert ("lies in --data_dir" in capsys.readouterr().err) == (val_dirs == "data/val")


def test_patience_is_refused_where_nothing_scores(folders, tmp_path, capsys):
    assert "--patience: " in refusal(train.main, flags(folders, tmp_path, "--patience", 2, *BARE), capsys)


def test_images_whose_noise_is_known_train(folders, tmp_path):
    noise = ["--noisetype", "none", "--method", "recorrupted2recorrupted", "--known_noise", "poisson255"]
    folder = trained(folders, tmp_path, *noise, *BARE, "--max_steps", 2)
    about = json.loads(checkpoint.read_state(folder / "best_model.pdparams")["@options"])
    assert (about["method"], about["known_noise"], about["step"]) == ("recorrupted2recorrupted", "poisson255", 2)


def test_a_light_network_learns_from_a_teacher(folders, tmp_path, weights, capsys):
    """Of any noise, and resumed to the bit, for which way the teacher sees a batch follows from the seed."""
    lesson = ["--method", "distillation", "--teacher", weights, "--arch", "unet_lite", "--noisetype", "text0.2"]
    folder = trained(folders, tmp_path / "r", *lesson, *BARE, "--max_steps", 30, "--lr", 3e-3)
    losses = values_of(folder, "loss/full")
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 1  # a decibel
    assert "reaches over neighbours" not in capsys.readouterr().err
    network, about = checkpoint.load_network(folder / "best_model.pdparams")
    assert (network.options["arch"], about["method"], about["noisetype"]) == ("unet_lite", "distillation", "text0.2")
    assert "--teacher" in refusal(train.main, flags(folders, tmp_path, *lesson, "--n_channel", 1), capsys)
    missing = flags(folders, tmp_path, "--method", "distillation", "--teacher", tmp_path / "none.pdparams")
    assert "none.pdparams" in refusal(train.main, missing, capsys)


def test_an_early_full_Lambda_trains(folders, tmp_path):
    folder = trained(folders, tmp_path, "--max_steps", 8, "--reg_full", 0.5, *BARE)
    assert values_of(folder, "schedule/Lambda") == pytest.approx([0.5, 1, 1.5, 2, 2, 2, 2, 2])


def test_max_minutes_ends_in_time_and_is_told_in_minutes(folders, tmp_path, capsys):
    start = time.perf_counter()
    folder = trained(folders, tmp_path, "--max_minutes", 0.02, "--lr_schedule", "cosine", *BARE)
    assert 1.2 <= time.perf_counter() - start < 15
    assert state_of(folder)[1]["where"]["seconds"] >= 1.2
    assert "4 steps per epoch, 0.02 minutes; " in capsys.readouterr().out


def test_the_method_and_the_training_are_parameters(folders, tmp_path):
    options, stopped = parse_options(get_parser(), flags(folders, tmp_path, "--max_steps", 3, *BARE))
    before = dict(vars(options))

    class Method:
        def __init__(self):
            self.calls = 0

        def __getattr__(self, name):
            return getattr(usual, name)

        def __call__(self, *batch, ramp):
            self.calls += 1
            return usual(*batch, ramp=ramp)

    class Slow(Training):
        def train_on(self, method, batch, rate, ramp):
            return super().train_on(method, batch, rate / 2, ramp)

    usual, method = train.build_method(options), Method()
    slow, finished = train.train(options, stopped, method, Slow)
    assert finished
    assert method.calls == 3
    half = trained(folders, tmp_path / "b", "--max_steps", 3, "--lr", 1.5e-4, *BARE)
    for name, array in state_of(half)[0].items():
        assert np.array_equal(array, state_of(Path(slow))[0][name]), name
    assert vars(options) == before  # nobody writes into them


# --- Stopped, and gone on with ------------------------------------------------------------------------------


class Killed(Exception):
    pass


def dying_at(step):
    """A training that ends without warning."""

    class Dying(Training):
        def train_on(self, *arguments):
            if self.step == step:
                raise Killed
            return super().train_on(*arguments)

    return Dying


def killed(arguments, step):
    with pytest.raises(Killed):
        train.train(*parse_options(get_parser(), arguments), training_class=dying_at(step))


def assert_same_run(folder, expected, epochs):
    for epoch in epochs:
        assert_same_weights(weights_of(folder, epoch), weights_of(expected, epoch))
    for name in {path.relative_to(expected) for path in expected.rglob("*.csv")}:
        lines = [
            [line for line in (parent / name).read_text().splitlines() if "speed" not in line]
            for parent in (folder, expected)
        ]
        assert lines[0] == lines[1]


TEACHERS = ",".join(str(ROOT / "models" / f"{name}.pdparams") for name in ("photo_fast", "gauss5_50_fast"))
VARIANTS: list[tuple] = [
    ("--method", "noise2noise", "--noisetype", "impulse0.2", "--n_feature", 3),
    ("--ema", 0, "--noise_protocol", "frozen", "--augment", "--clip_grad", 1),
    ("--optimizer", "muon", "--lr", 1e-3, "--n_feature", 16),
    ("--method", "recorrupted2recorrupted", "--noisetype", "gauss5_50", "--augment"),
    ("--method", "distillation", "--teacher", TEACHERS, "--precision", "fp32"),
]
SNAPSHOTS = ["--n_epoch", 4, "--n_snapshot", 2, "--save_minutes", 0]
LENGTH, UNSCORED = [*SNAPSHOTS, "--val_images", 1], [*SNAPSHOTS, "--val_dirs", "none"]


@pytest.mark.parametrize("more", VARIANTS)
def test_killed_and_resumed_equals_never_killed_to_the_bit(folders, tmp_path, more):
    expected = trained(folders, tmp_path / "whole", *UNSCORED, *more)
    killed(flags(folders, tmp_path / "parts", *UNSCORED, *more), 5)
    folder = run_folder(tmp_path / "parts")
    killed(["--resume", folder], 10)
    assert not (folder / "epoch_model_004.pdparams").exists()
    assert train.main(["--resume", str(folder)]) == 0
    assert_same_run(folder, expected, (2, 4))


def test_a_process_killed_anywhere_resumes_to_the_bit(folders, tmp_path):
    expected = trained(folders, tmp_path / "whole", *LENGTH)
    command = [sys.executable, ROOT / "train.py", *flags(folders, tmp_path / "parts", *LENGTH)]
    process = subprocess.Popen(map(str, command), stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    for line in process.stdout:
        if line.startswith("0002 00001"):
            break
    process.kill()
    process.wait()
    process.stdout.close()
    folder = run_folder(tmp_path / "parts")
    assert not (folder / "epoch_model_004.pdparams").exists()
    assert train.main(["--resume", str(folder)]) == 0
    assert_same_run(folder, expected, (2, 4))
    assert (folder / "validation" / "A_log_Tiny.csv").exists()


def test_ctrl_c_saves_and_says_how_to_go_on(folders, tmp_path, monkeypatch, capsys):
    class Interrupted(Training):
        def train_on(self, *arguments):
            if self.step == 5:
                os.kill(os.getpid(), signal.SIGINT)
            return super().train_on(*arguments)

    before = signal.getsignal(signal.SIGINT)  # a shell that starts tests in the background has it ignored
    arguments = flags(folders, tmp_path, "--n_epoch", 100_000, *BARE)
    ended = train.train(*parse_options(get_parser(), arguments), training_class=Interrupted)
    assert train.end(*ended) == 130
    folder = run_folder(tmp_path)
    assert f"--resume {folder}" in capsys.readouterr().err
    assert step_of(folder) == 6
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_is_not_lost_while_processes_agree(folders, tmp_path, monkeypatch):
    agree = distributed.agree

    def interrupted(*of_this_process):
        agreed = agree(*of_this_process)
        os.kill(os.getpid(), signal.SIGINT)
        monkeypatch.undo()
        return agreed

    monkeypatch.setattr(distributed, "agree", interrupted)
    arguments = flags(folders, tmp_path, "--max_steps", 5, *BARE)
    assert train.end(*train.train(*parse_options(get_parser(), arguments))) == 130
    assert step_of(run_folder(tmp_path)) == 2


def test_resume_refuses_to_become_another_run(copy, capsys):
    for more, word in (
        (("--n_feature", 5), "with 2"), (("--optimizer", "muon"), "with adam"), (("--preset", "lite"), "with None"),
    ):  # fmt: skip
        message = refusal(train.main, ["--resume", copy, *more], capsys)
        assert message.startswith(f"{more[0]}: the run was started {word}")
    assert step_of(copy) == 8
    assert train.main(["--resume", str(copy), "--n_epoch", "3"]) == 0
    assert step_of(copy) == 12


CRAFTED = {
    "no JSON": "[" * 200_000,
    "a list of options": json.dumps({"training": [1], "where": {}}),
    "a size of the wrong type": {"training": {"patchsize": "sixty"}},
    "a huge network": {"training": {"n_feature": 100_000}},
    "an unknown network": {"training": {"arch": "nope"}},
    "no length": {"training": {"n_epoch": 0}},
    "a call for help": {"training": {"help": True}},
    "another run to resume": {"training": {"resume": "elsewhere"}},
    "a negative step": {"where": {"step": -5}},
    "a step that is text": {"where": {"step": "x"}},
    "a step beyond all numbers": {"where": {"step": 10**30}},
}


@pytest.mark.parametrize("what", CRAFTED)
def test_a_crafted_state_is_one_line(copy, what, capsys):
    state, about = state_of(copy)
    change = CRAFTED[what]
    if isinstance(change, dict):
        for part, values in change.items():
            about[part] |= values
    state["@options"] = change if isinstance(change, str) else json.dumps(about)
    checkpoint.write_state(copy / STATE, state)
    message = refusal(train.main, ["--resume", copy, "--n_epoch", 3], capsys)
    assert len(message.strip().splitlines()) == 1
    assert STATE in message or "argument --" in message


def test_a_state_without_the_optimizer_does_not_pass_for_exact(copy):
    state = checkpoint.read_state(copy / STATE)
    checkpoint.write_state(copy / STATE, {k: v for k, v in state.items() if not k.startswith("optimizer/")})
    with pytest.raises(UserError, match="optimizer"):
        train.main(["--resume", str(copy), "--n_epoch", "3"])


NO_TABLES = {"no text": b"\xff\xfe\x00\x01\n" * 9, "a huge number": b"1,loss/rec," + b"0" * 200_000 + b"\n"}


@pytest.mark.parametrize("content", NO_TABLES.values(), ids=NO_TABLES)
def test_metrics_that_are_no_table_are_named_and_kept(copy, content, capsys):
    (copy / "metrics.csv").write_bytes(content)
    assert "metrics.csv" in refusal(train.main, ["--resume", copy, "--n_epoch", 3], capsys)
    assert (copy / "metrics.csv").read_bytes() == content


def test_a_second_process_does_not_work_in_the_same_run_and_leaves_its_files_alone(copy, capsys):
    with open(copy / "metrics.csv", "a", encoding="utf-8") as file:
        file.write("9,train/loss,0.5\n")  # of the run in progress, past the saved state
    before = {path.name: path.read_bytes() for path in copy.iterdir() if path.is_file()}
    with train.cli.only_process_in(copy):
        assert "another process" in refusal(train.main, ["--resume", copy, "--n_epoch", 3], capsys)
    after = {path.name: path.read_bytes() for path in copy.iterdir() if path.is_file()}
    assert {**after, ".lock": b""} == {**before, ".lock": b""}


def test_a_run_that_diverged_does_not_write_over_its_last_good_state(folders, tmp_path, capsys):
    more = ["--lr", 1e30, "--max_steps", 30, "--log_iters", 1000, "--save_minutes", 0]
    message = refusal(train.main, flags(folders, tmp_path, *more), capsys)
    assert "not finite" in message
    assert "--lr" in message
    state, _ = state_of(run_folder(tmp_path))
    assert all(np.isfinite(array).all() for array in state.values())


def test_a_loss_that_is_not_finite_stops_the_run(folders, tmp_path, capsys):
    diverging = flags(folders, tmp_path, "--lr", 1e30, "--max_steps", 30, "--save_minutes", 9)
    message = refusal(train.main, diverging, capsys)
    assert "the loss is not finite at step" in message
    assert "--lr 1e+30" in message


# --- Several processes --------------------------------------------------------------------------------------


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
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": ENVIRONMENT}
    processes = [subprocess.Popen([str(part) for part in command], **quiet) for command in commands]
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

    losses = [values_of(folder, "loss/full") for folder in (double, single)]
    np.testing.assert_allclose(*losses, rtol=2e-3)
    a, b = weights_of(single, 6), weights_of(double, 6)
    for name in a:
        if name != checkpoint.OPTIONS_KEY:
            np.testing.assert_allclose(a[name], b[name], atol=2e-3)
    # Adam does not mind the scale of the gradients, so that equal weights do not tell a sum from a mean; its first
    # moments, which are averages of the gradients, do.
    a, b = (state_of(folder)[0] for folder in (single, double))
    moments = [name for name in a if name.endswith("_moment1_0")]
    assert moments
    norms = [sum(float((state[name] ** 2).sum()) for name in moments) ** 0.5 for state in (a, b)]
    assert norms[1] == pytest.approx(norms[0], rel=0.2)
    # What the ranks say of their weights at the end.
    sums = re.findall(r"weights of rank \d: ([0-9a-f]+)", text)
    assert len(sums) == 2
    assert len(set(sums)) == 1
    scores = [(folder / "validation" / "A_log_Tiny.csv").read_text().split(",") for folder in (single, double)]
    assert float(scores[0][1]) == pytest.approx(float(scores[1][1]), abs=0.05)


# --- Mistakes -----------------------------------------------------------------------------------------------

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
    (["--batchsize", 100_000_000], ["--batchsize", "100000000 patches", "of this size do"]),
    (["--amp", "--optimizer", "muon"], ["--optimizer", "--amp"]),
    (["--reg_full", 0], ["--reg_full"]),
    (["--val_noisetype", "fog"], ["--val_noisetype", "fog"]),
    (["--known_noise", "gauss5", "--noisetype", "none"], ["--known_noise", "recorrupted2recorrupted"]),
    (["--method", "recorrupted2recorrupted", "--noisetype", "none", "--known_noise", "x"], ["--known_noise", "'x'"]),
]


@pytest.mark.parametrize(("more", "words"), BAD, ids=[" ".join(map(str, more)) for more, _ in BAD])
def test_mistakes_are_one_line(folders, tmp_path, more, words, capsys):
    if more in (["--amp"], ["--device", "gpu"]) and paddle.device.is_compiled_with_cuda():
        pytest.skip("this Paddle has CUDA")
    message = refusal(train.main, flags(folders, tmp_path / "r", *more), capsys)
    assert len(message.strip().splitlines()) == 1
    for word in words:
        assert str(word) in message
    assert not (tmp_path / "r").exists()


def test_a_mistake_ends_the_process_with_code_2(folders, tmp_path):
    result = run_script("train.py", *flags(folders, tmp_path, "--loss", "l1"))
    assert_user_error(result, "--loss", "neighbor2neighbor")


def test_an_empty_folder_and_one_of_broken_images_are_one_line(folders, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert "--data_dir" in refusal(train.main, flags(folders, tmp_path / "r", "--data_dir", tmp_path / "empty"), capsys)
    for name in "ab":
        save(tmp_path / "broken" / f"{name}.png", scene(80, 80))
        (tmp_path / "broken" / f"{name}.png").write_bytes((tmp_path / "broken" / f"{name}.png").read_bytes()[:400])
    capsys.readouterr()
    for noise in ("gauss25", "none"):
        where = ["--data_dir", tmp_path / "broken", *BARE]
        assert "a.png" in refusal(train.main, flags(folders, tmp_path / "r", *where, "--noisetype", noise), capsys)
        assert capsys.readouterr().err == ""


def test_weights_of_other_channels_are_refused(folders, tmp_path, weights, capsys):
    grey = flags(folders, tmp_path, "--n_channel", 1, "--n_feature", 5, "--pretrained", weights)
    message = refusal(train.main, grey, capsys)
    assert str(weights) in message
