"""The pieces of train.py by themselves, without a training."""

import json
import os
import re
import signal
from argparse import Namespace

import numpy as np
import paddle
import pytest

import dataset
import train
from arch_unet import PlainOps
from conftest import save, scene
from denoising.cli import UserError
from denoising.files import pair_files
from denoising.inference import checkpoint, distributed
from denoising.training.methods import Neighbor2Neighbor, Noise2Noise, Supervised
from denoising.training.options import get_parser, parse_options
from denoising.training.state import STATE, Training


def options_of(*flags):
    return parse_options(get_parser(), [str(flag) for flag in ("--data_dir", ".", "--n_feature", 2, *flags)])[0]


# --- What it scores on, and what it trains on ---------------------------------------------------------------


def test_the_sets_to_score_on_and_their_noise(folders, tmp_path, capsys, monkeypatch):
    val = folders / "val"

    def sets(*flags):
        found, noise = train.validation_sets(options_of(*flags))
        return [validation.name for validation in found], noise and noise.name

    assert sets("--val_dirs", val) == (["Tiny"], "gauss25")
    note = capsys.readouterr().err
    assert f"scores on Tiny; not under {val}: Kodak, BSD300, Set14" in note
    assert sets("--val_dirs", val, "--noisetype", "gauss5", "--val_noisetype", "poisson30") == (["Tiny"], "poisson30")
    assert sets("--val_dirs", "none") == ([], None)
    capsys.readouterr()
    # Images with noise of their own: only sets of pairs give scores.
    with monkeypatch.context() as elsewhere:
        elsewhere.chdir(tmp_path)
        assert sets("--noisetype", "none", "--n_epoch", 1) == ([], None)
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match="--val_dirs: .*nowhere does not exist"):
        sets("--val_dirs", tmp_path / "nowhere", "--noisetype", "none", "--n_epoch", 1)
    assert sets("--val_dirs", val, "--noisetype", "none", "--n_epoch", 1) == ([], "none")
    assert "no scores: the images are noisy already" in capsys.readouterr().err
    for kind in ("noisy", "clean"):
        save(tmp_path / "val" / "night" / kind / "a.png", scene(40, 40))
    assert sets("--val_dirs", tmp_path / "val", "--noisetype", "none", "--n_epoch", 1) == (["night"], "none")
    assert capsys.readouterr().err == ""
    sets("--val_dirs", tmp_path / "val", "--val_noisetype", "gauss5")
    assert capsys.readouterr().err.startswith(f"--val_noisetype: does nothing with {tmp_path / 'val'}, whose images")
    sets("--val_dirs", val, "--val_noisetype", "gauss5")
    assert "--val_noisetype" not in capsys.readouterr().err
    halves = np.zeros((2, 1, 3, 8, 8), np.uint8)
    pair_files.write(tmp_path / "a.npz", pair_files.VALIDATION, halves)
    assert sets("--val_dirs", tmp_path / "a.npz", "--noisetype", "none", "--n_epoch", 1) == (["a"], "none")
    with pytest.raises(UserError, match="--val_dirs"):
        sets("--val_dirs", tmp_path / "nowhere")
    monkeypatch.setattr(distributed, "IS_MAIN", False)
    capsys.readouterr()
    sets("--val_dirs", val)
    assert capsys.readouterr().err == ""  # one process says it


def test_the_flags_make_the_images(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "free_memory", lambda: 8000)
    more = ["--patchsize", 64, "--seed", 7, "--translate", 3, "--noisetype", "gauss5", "--train_size", 5]
    images = train.training_images(options_of("--data_dir", folders / "data", *more), Neighbor2Neighbor())
    assert type(images) is dataset.TrainingImages
    assert (len(images), images.patchsize, images.seed, images.translate) == (5, 64, 7, 3)
    assert (images.noise.name, images.n_channel, images.frozen, images.augment) == ("gauss5", 3, False, False)
    assert images._cache_left == 2000  # a quarter
    more = ["--noise_protocol", "frozen", "--augment", "--n_channel", 1, "--cache_gb", 0.5, "--noisetype", "gauss5"]
    images = train.training_images(options_of("--data_dir", folders / "data", *more), Neighbor2Neighbor())
    assert (len(images), images.n_channel, images.frozen, images.augment) == (8, 1, True, True)
    assert images._cache_left == 2**29 - images._cache[0][0].nbytes  # of which the first image has been read

    for side, seed in (("a", 0), ("b", 1)):
        save(tmp_path / side / "x.png", scene(64, 64, seed=seed))
    pairs = options_of("--data_dir", tmp_path / "a", "--pair_dir", tmp_path / "b", "--method", "noise2noise")
    assert type(train.training_images(pairs, Noise2Noise())) is dataset.TrainingPairs
    halves = np.zeros((2, 6, 3, 40, 40), np.uint8)
    for names, method in ((pair_files.TRAINING, Noise2Noise()), (pair_files.VALIDATION, Supervised())):
        pair_files.write(tmp_path / "a.npz", names, halves)
        flags = ["--method", "noise2noise", "--patchsize", 32, "--seed", 7, "--augment", "--train_size", 4]
        found = train.training_images(options_of("--data_dir", tmp_path / "a.npz", *flags), method)
        assert type(found) is dataset.PairFile
        assert (len(found), found.size, found.seed, found.augment) == (4, 32, 7, True)
        assert found.swap == (not method.clean_targets)


def test_a_runs_folder_is_new_or_the_old_one(tmp_path, capsys):
    options = options_of("--save_model_path", tmp_path, "--log_name", "night")
    training = Training(options, PlainOps())
    training.images = "digest"
    with train.run_folder(options, training, None) as folder:
        assert re.fullmatch(re.escape(str(tmp_path / "night")) + r"/\d{4}-\d\d-\d\d-\d\d-\d\d", folder)
        assert os.path.isdir(os.path.join(folder, "validation"))
    about = json.loads((tmp_path / "night" / os.path.basename(folder) / "options.json").read_text())
    assert about["options"] == vars(options)
    training.seconds = 2.5
    training.save_state(folder)
    for images, noted in (("digest", False), ("others", True)):
        again = Training(options, PlainOps())
        again.images = images
        stopped = Namespace(folder=folder, state=checkpoint.read_state(os.path.join(folder, STATE)))
        with train.run_folder(options, again, stopped) as found:
            assert found == folder
        assert again.seconds == 2.5
        assert ("the training images have changed" in capsys.readouterr().err) == noted
    assert len(list((tmp_path / "night").iterdir())) == 1


def test_only_the_first_process_makes_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "IS_MAIN", False)
    monkeypatch.setattr(distributed, "from_main", lambda value: value or "the first one's")
    with train.run_folder(options_of("--save_model_path", tmp_path / "r"), None, None) as folder:
        assert folder == "the first one's"
    assert not (tmp_path / "r").exists()


# --- What the loop asks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_one_ends(number, capsys):
    before = [signal.getsignal(caught) for caught in (signal.SIGINT, signal.SIGTERM)]
    with train.StopRequest() as stop:
        assert stop.signal is None
        signal.raise_signal(number)
        assert stop.signal == number
        assert "stopping after this step" in capsys.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert [signal.getsignal(caught) for caught in (signal.SIGINT, signal.SIGTERM)] == before


def test_how_it_ends(tmp_path, capsys, monkeypatch):
    folder = str(tmp_path)
    assert train.end(folder, False) == 130
    assert f"stopped; go on with: python train.py --resume {folder}" in capsys.readouterr().err
    train.end("my runs/1", False)
    assert "train.py --resume 'my runs/1'" in capsys.readouterr().err
    assert train.end(folder, True) == 0
    assert capsys.readouterr().out == f"done: {folder}\n"
    (tmp_path / "best_model.pdparams").touch()
    assert train.end(folder, True) == 0
    assert capsys.readouterr().out == f"done: {tmp_path / 'best_model.pdparams'}\n"
    monkeypatch.setattr(distributed, "IS_MAIN", False)
    assert train.end(folder, True) == 0
    assert capsys.readouterr().out == ""


# --- When it saves ------------------------------------------------------------------------------------------


class Counting(Training):
    """Makes no steps, and says what is done between them."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        Counting.saved, Counting.rates, Counting.ramps = [], [], []

    def train_on(self, method, batch, rate, ramp):
        self.rates.append(rate)
        self.ramps.append(ramp)
        self.step += 1
        return (*(paddle.to_tensor(0.5) for _ in range(3)), 1.0)

    def save_state(self, folder):
        self.saved.append(self.step)
        super().save_state(folder)


def counted(folders, results, *more):
    flags = ["--data_dir", folders / "data", "--val_dirs", "none", "--save_model_path", results, "--patchsize", 32]
    options = options_of(*flags, "--batchsize", 2, "--log_iters", 3, *more)
    return train.train(options, None, None, Counting)


def test_a_state_is_saved_at_the_start_with_each_snapshot_and_when_it_is_time(folders, tmp_path, capsys):
    folder, finished = counted(folders, tmp_path, "--n_epoch", 3)
    assert finished
    assert Counting.saved == [0, 4, 8, 12]
    printed = capsys.readouterr().out
    assert printed.startswith(f"8 images, 4 steps per epoch, 12 steps; {folder}\n")
    assert re.findall(r"^(\d{4} \d{5}) Loss1", printed, re.MULTILINE) == [
        f"{epoch:04d} {step:05d}" for epoch in (1, 2, 3) for step in (0, 3)
    ]
    for epoch in (1, 2, 3):
        assert os.path.exists(os.path.join(folder, f"epoch_model_{epoch:03d}.pdparams"))
    counted(folders, tmp_path, "--n_epoch", 3, "--n_snapshot", 2, "--save_minutes", 0)
    assert Counting.saved == [0, *range(1, 13)]
    counted(folders, tmp_path, "--max_steps", 5, "--n_snapshot", 9, "--lr_schedule", "cosine", "--reg_start", 0.5)
    assert Counting.saved == [0, 5]  # the last step is always scored and saved
    assert Counting.rates == pytest.approx([3e-4 * (1 + np.cos(np.pi * step / 5)) / 2 for step in range(5)])
    assert Counting.ramps == pytest.approx([0, 0, 0, 0.8, 1])


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless `clock.now` is moved."""
    clock = Namespace(now=100.0)
    monkeypatch.setattr(train.time, "perf_counter", lambda: clock.now)
    return clock


def test_minutes_between_states_are_counted_from_the_last_one(folders, tmp_path, clock):
    class Late(Counting):
        def train_on(self, *arguments):
            clock.now += 25
            return super().train_on(*arguments)

    flags = ["--data_dir", folders / "data", "--val_dirs", "none", "--save_model_path", tmp_path, "--patchsize", 32]
    options = options_of(*flags, "--batchsize", 2, "--max_steps", 9, "--n_snapshot", 99, "--save_minutes", 1)
    train.train(options, None, None, Late)
    assert Counting.saved == [0, 3, 6, 9]
