import argparse
import contextlib

import numpy as np
import pytest

import dataset
import train
import val
from conftest import save, scene
from denoising.cli import UserError
from denoising.data import pairs
from denoising.imaging.noise import parse_noise
from denoising.training.methods import Noise2Noise, Supervised


def captures(folder, names, seed=0, **shape):
    """Noisy captures of the same scenes, one for each name; another seed is another night."""
    for i, name in enumerate(names):
        clean = scene(**{"height": 90, "width": 100, "seed": i, **shape})
        noisy = parse_noise("gauss20").add(clean / np.float32(255), np.random.default_rng([seed, i]))
        save(folder / name, (noisy.clip(0, 1) * 255 + 0.5).astype(np.uint8))


def training_pairs(*folders, method=None, **more):
    folders = (folder and str(folder) for folder in folders)
    return dataset.TrainingPairs(*folders, method or Noise2Noise(), parse_noise("none"), 3, 64, 5, **more)


def flags(tmp_path, *more):
    sizes = ["--n_feature", 2, "--patchsize", 32, "--batchsize", 2, "--log_iters", 1]
    return [*map(str, ["--save_model_path", tmp_path / "r", "--max_steps", 3, *sizes, *more])]


def test_pairs_by_name_are_cut_alike(tmp_path):
    captures(tmp_path / "a", ["x.png", "sub/y.png"])
    captures(tmp_path / "b", ["x.bmp", "sub/y.bmp"], seed=1)
    data = training_pairs(tmp_path / "a", tmp_path / "b", augment=True)
    assert data.names == ["sub/y.png", "x.png"]
    for epoch in range(6):
        noisy, target = data.sample(epoch, 1)
        assert noisy.shape == target.shape == (3, 64, 64)
        assert 20 < (noisy - target).std() * 255 < 32  # the noise of both, and nothing of the scene


def test_either_capture_may_be_the_input(tmp_path):
    captures(tmp_path / "a", ["x.png"])
    captures(tmp_path / "b", ["x.png"], seed=1)
    data = training_pairs(tmp_path / "a", tmp_path / "b")
    orders = []
    for epoch in range(12):
        patches = [np.round(patch[0] * 255) for patch in data.sample(epoch, 0)]
        orders.append([place for patch in patches for place, path in enumerate(data.groups[0])
                       if holds(data._read(path)[..., 0], patch)])  # fmt: skip
    assert sorted(map(tuple, orders))[:: len(orders) - 1] == [(0, 1), (1, 0)]


def holds(image, patch):
    """Whether a patch was cut out of an image."""
    corner = patch[:4, :4]
    windows = np.lib.stride_tricks.sliding_window_view(image, corner.shape)
    return bool((windows == corner).all((2, 3)).any())


def test_clean_targets_stay_targets(tmp_path):
    captures(tmp_path / "noisy", ["x.png"])
    save(tmp_path / "clean" / "x.png", scene(90, 100))
    data = training_pairs(tmp_path / "noisy", tmp_path / "clean", method=Supervised())
    colours = set(np.unique(scene(90, 100)))
    for epoch in range(8):
        assert set(np.unique((data.sample(epoch, 0)[1] * 255).round().astype(int))) <= colours


def test_a_bar_counts_the_pairs_that_are_compared(tmp_path, monkeypatch):
    for name in ("a", "b"):
        captures(tmp_path / name, ["x.png", "y.png"], seed=ord(name))
    bars, counts = [], []

    @contextlib.contextmanager
    def progress(**options):
        bars.append(options)
        yield argparse.Namespace(update=lambda: counts.append(1))

    monkeypatch.setattr(dataset.cli, "progress", progress)
    training_pairs(tmp_path / "a", tmp_path / "b")
    assert bars == [{"total": 2, "unit": "pair", "label": "checking pairs"}]
    assert counts == [1, 1]


def test_a_scene_gives_any_two_different_frames(tmp_path):
    for i in range(3):
        save(tmp_path / "scene" / f"{i}.png", scene(64, 64) // 2 + 10 * i)
    data = training_pairs(None, tmp_path)
    orders = set()
    for epoch in range(40):
        levels = [
            int((part[0].mean() * 255 - (scene(64, 64)[..., 0] // 2).mean()).round()) for part in data.sample(epoch, 0)
        ]
        orders.add(tuple(levels))
    assert orders == {(a, b) for a in (0, 10, 20) for b in (0, 10, 20) if a != b}


def test_a_shift_is_found_and_noise_is_none():
    rng = np.random.default_rng(0)
    clean = scene(200, 240, seed=3) / np.float32(255)
    for sigma in ("gauss5", "gauss10"):
        noise = parse_noise(sigma)
        first = noise.add(clean, rng)
        assert pairs.shift_between(first, noise.add(clean, rng)) == (0, 0)
        for shift in ((3, 0), (0, -4), (12, 25)):
            assert pairs.shift_between(first, noise.add(np.roll(clean, shift, (0, 1)), rng)) == shift
    flat = np.full((64, 64, 3), 0.5, np.float32)
    assert pairs.shift_between(noise.add(flat, rng), noise.add(flat, rng)) == (0, 0)


def test_pairs_that_are_not_of_one_scene_are_told(tmp_path, capsys):
    captures(tmp_path / "a", ["w.png", "x.png", "y.png"])
    captures(tmp_path / "b", ["w.png", "x.png", "y.png"], seed=1)
    training_pairs(tmp_path / "a", tmp_path / "b")
    assert "in common" not in capsys.readouterr().err
    for name, seed in (("x.png", 9), ("y.png", 8)):
        save(tmp_path / "b" / name, scene(90, 100, seed=seed))
    training_pairs(tmp_path / "a", tmp_path / "b")
    said = capsys.readouterr().err
    assert f"--pair_dir: 2 of 3 pairs have nothing in common, such as {tmp_path}/a/x.png and {tmp_path}/b/x.png" in said


def test_noise_and_flat_pairs_are_not_taken_for_two_scenes():
    rng = np.random.default_rng(0)
    flat = np.full((96, 96, 3), 0.5, np.float32)
    clean = scene(96, 96, seed=3) / np.float32(255)
    for noise in map(parse_noise, ("gauss50", "gauss100", "poisson3")):
        for image in (flat, clean):
            assert not pairs.unlike(noise.add(image, rng), noise.add(image, rng))


def test_bad_pairs_are_refused_with_both_names(tmp_path):
    captures(tmp_path / "a", ["x.png", "y.png"])
    captures(tmp_path / "b", ["x.png"], seed=1)
    for folders in (("a", "b"), ("b", "a")):
        with pytest.raises(UserError, match=r"a/y\.png has no partner y"):
            training_pairs(*(tmp_path / name for name in folders))
    captures(tmp_path / "b", ["x.png", "y.png"], seed=1, height=80)
    with pytest.raises(UserError, match=r"a/x\.png is 100x90, but .*b/x\.png is 100x80"):
        training_pairs(tmp_path / "a", tmp_path / "b")
    captures(tmp_path / "b", ["x.png", "y.png"], seed=1)
    save(tmp_path / "b" / "y.png", np.roll(scene(90, 100, seed=1), 5, 1))
    with pytest.raises(UserError, match=r"b/y\.png shows the scene of .*a/y\.png moved by 0 down, 5 right"):
        training_pairs(tmp_path / "a", tmp_path / "b")
    captures(tmp_path / "b", ["x.png"])
    with pytest.raises(UserError, match=r"b/x\.png is the same image as .*a/x\.png"):
        training_pairs(tmp_path / "a", tmp_path / "b")
    with pytest.raises(UserError, match=r"--pair_dir: .*a is --data_dir itself"):
        training_pairs(tmp_path / "a", tmp_path / "a")
    captures(tmp_path / "scenes" / "one", ["x.png"])
    with pytest.raises(UserError, match=r"holds one frame"):
        training_pairs(None, tmp_path / "scenes")


def test_pairs_train_and_score_on_pairs(tmp_path, capsys):
    captures(tmp_path / "a", ["x.png", "y.png"])
    captures(tmp_path / "b", ["x.png", "y.png"], seed=1)
    captures(tmp_path / "val" / "night" / "noisy", ["x.png"])
    save(tmp_path / "val" / "night" / "clean" / "x.png", scene(90, 100))
    more = ["--method", "noise2noise", "--data_dir", tmp_path / "a", "--pair_dir", tmp_path / "b"]
    assert train.main(flags(tmp_path, *more, "--val_dirs", tmp_path / "val")) == 0
    (log,) = (tmp_path / "r").rglob("A_log_night.csv")
    assert log.read_text().count("\n") == 3
    (weights,) = (tmp_path / "r").rglob("best_model.pdparams")
    capsys.readouterr()
    assert val.main(["--model_path", str(weights), "--val_dirs", str(tmp_path / "val")]) == 0
    assert "[EVAL] night" in capsys.readouterr().out
    with pytest.raises(UserError, match="^--data_dir: the noisy images are needed"):
        train.main(flags(tmp_path, "--method", "supervised", "--pair_dir", tmp_path / "b"))
