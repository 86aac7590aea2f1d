"""The light network, its operations, its preset and what is built on them."""

import contextlib
import io
import re
import subprocess
import sys

import numpy as np
import paddle
import pytest
from test_engine import choose, needs_compiler

import export_model
import infer
import lite
import train
import val
from arch_unet import PlainOps, build_network
from conftest import ENVIRONMENT, ROOT, noisy_scene, opened, rows_of, run_script, save, scene
from denoising.files import images as image_files
from denoising.files import pair_files
from denoising.files.pair_files import TRAINING, VALIDATION
from denoising.inference import checkpoint
from denoising.inference.denoiser import Denoiser


def network(n_feature=16):
    """Untrained, with a last layer that changes the image."""
    paddle.seed(1)
    built = build_network("unet_lite", n_feature=n_feature)
    built.last.weight.set_value(built.last.weight * 10)
    built.eval()
    return built


def write_pairs(folder, count=200, val_count=20, sigma=25):
    """Patches of scenes with noise; other scenes to validate on."""

    def patches(count, first):
        pictures = [scene(96, 96, seed=first + i) for i in range(1 + count // 40)]
        rng = np.random.default_rng(first)
        for i in range(count):
            top, left = rng.integers(0, 65, 2)
            yield pictures[i % len(pictures)][top : top + 32, left : left + 32].transpose(2, 0, 1)

    def noisy(clean, seed):
        noise = np.random.default_rng(seed).normal(0, sigma, clean.shape)
        return np.clip(clean + noise + 0.5, 0, 255).astype(np.uint8)

    clean, val_clean = (np.stack(list(patches(*wanted))) for wanted in ((count, 100), (val_count, 900)))
    folder.mkdir(parents=True, exist_ok=True)
    pair_files.write(folder / "train.npz", TRAINING, (noisy(clean, 1), noisy(clean, 2)))
    pair_files.write(folder / "val.npz", VALIDATION, (noisy(val_clean, 3), val_clean))
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"))


# --- The operations -----------------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize("shape", [(5, 7), (6, 7)])
def test_what_does_not_fit_is_refused(shape):
    ops = choose()
    with pytest.raises(OSError, match="even size"):
        ops.unshuffle(ops.enter(paddle.rand([1, 3, *shape])))
    with pytest.raises(OSError, match="one shape"):
        ops.add(ops.enter(paddle.rand([1, 3, 4, 4])), ops.enter(paddle.rand([1, 3, 4, 5])))


# --- The network --------------------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize("size", [(32, 32), (17, 29)])
def test_the_engine_computes_the_same_network(size):
    built = network()
    image = paddle.rand([2, 3, *size])

    def found(ops):
        built.ops = ops
        result = built(image)
        learnt = [parameter for parameter in built.parameters() if not parameter.stop_gradient]
        return [result, *paddle.grad((result * image).sum(), learnt)]

    for a, b in zip(found(PlainOps()), found(choose()), strict=True):
        assert float((a - b).abs().max()) <= 1e-4 * float(a.abs().max())


def test_a_new_network_is_a_blur_already():
    clean, noisy = (picture.astype(np.float32) / 255 for picture in (scene(96, 96), noisy_scene(96, 96)))
    paddle.seed(1)
    built = build_network("unet_lite")
    built.last.weight.set_value(built.last.weight * 0)
    denoised = Denoiser(built)(noisy)
    padded = np.pad(noisy, ((1, 1), (1, 1), (0, 0)), constant_values=0.5)
    rows = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
    assert np.abs((rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 4 - denoised).max() < 1e-5
    assert np.mean((denoised - clean) ** 2) < np.mean((noisy - clean) ** 2) / 2


def test_tiles_equal_the_whole():
    image = noisy_scene(230, 270).astype(np.float32) / 255
    whole = Denoiser(network(), tile=2000)(image)
    assert np.abs(Denoiser(network(), tile=170)(image) - whole).max() < 1e-5
    assert np.abs(whole - image).max() > 0.1


def test_buffers_cannot_be_added_to_an_image():
    with pytest.raises(ValueError, match="9 channels"):
        build_network("unet_lite", n_input=9)


def test_it_exports_and_infers(tmp_path):
    built = network()
    weights = tmp_path / "lite.pdparams"
    checkpoint.save_network(weights, checkpoint.network_state(built), {**built.options, "noisetype": "gauss25"})
    assert not export_model.main(["--model_path", str(weights), "--save_dir", str(tmp_path / "export")])
    noisy = save(tmp_path / "noisy.png", noisy_scene(45, 67))
    flags = ["--use_gpu=False", "--model_file", tmp_path / "export/model.pdmodel"]
    flags += ["--params_file", tmp_path / "export/model.pdiparams", "--input_file", noisy]
    assert not infer.main([*map(str, flags), "--save_dir", str(tmp_path / "inferred")])
    (found,) = (tmp_path / "inferred").glob("*.png")
    wanted = image_files.from_01(Denoiser(built)(noisy_scene(45, 67).astype(np.float32) / 255), np.uint8)
    assert np.abs(np.asarray(opened(found)).astype(int) - wanted).max() <= 1
    assert np.abs(wanted.astype(int) - noisy_scene(45, 67)).max() > 20


# --- The preset ---------------------------------------------------------------------------------------------


def run(pairs, folder, *flags):
    where = ["--data_dir", pairs / "train.npz", "--val_dirs", pairs / "val.npz", "--save_model_path", folder]
    assert train.main([*map(str, ["--preset", "lite", "--n_feature", 16, *where, *flags])]) == 0
    return max((folder / "lite").iterdir())


@pytest.fixture(scope="module")
def trained(pairs, tmp_path_factory):
    """The run folder of a short training."""
    with contextlib.redirect_stdout(io.StringIO()):
        return run(pairs, tmp_path_factory.mktemp("runs"), "--max_steps", 80, "--n_snapshot", 4)


def test_a_short_training_denoises(trained, pairs, capsys):
    scores = [float(row["value"]) for row in rows_of(trained / "metrics.csv") if row["name"] == "psnr/val"]
    assert scores[-1] > 26.6  # 27.3 when this was written; noisy: 20.3, and 24.2 for the blur that it starts from
    assert len(scores) == 4
    flags = ["--model_path", trained / "best_model.pdparams", "--val_dirs", pairs / "val.npz"]
    assert val.main([*map(str, flags)]) == 0
    found = re.search(r"\[EVAL\] val: psnr:([\d.]+)", capsys.readouterr().out)
    assert abs(float(found[1]) - max(scores)) < 0.01


def test_a_resumed_training_ends_with_the_same_weights(pairs, tmp_path):
    ends, plan = [], ["--n_epoch", 1, "--lr_schedule", "step", "--gamma", 1, "--val_dirs", "none"]
    for name, steps in (("whole", 6), ("parts", 3)):
        folder = run(pairs, tmp_path / name, "--max_steps", steps, *plan)
        if name == "parts":
            assert train.main(["--resume", str(folder), "--max_steps", "6"]) == 0
        ends.append(checkpoint.read_state(folder / "last_state.pdparams"))
    weights = [name for name in ends[0] if name.startswith("network/")]
    assert weights
    assert all((ends[0][name] == ends[1][name]).all() for name in weights)


# --- What is built on it ------------------------------------------------------------------------------------


def test_the_courses_interface(pairs):
    noisy1, noisy2 = pair_files.read(pairs / "train.npz", TRAINING)
    noisy, clean = pair_files.read(pairs / "val.npz", VALIDATION)
    model = lite.Model()
    with pytest.raises(ValueError, match="no network yet"):
        model.predict(noisy)
    model.train(noisy1[:64], noisy2[:64], num_epochs=1)
    denoised = model.predict(noisy)
    assert denoised.dtype == np.uint8
    assert denoised.shape == noisy.shape
    alone = model.predict(noisy[3:4])
    assert np.abs(alone[0].astype(int) - denoised[3]).max() <= 1
    large = np.tile(noisy[:1], (1, 1, 16, 16))  # 512 x 512
    assert model.predict(large).shape == (1, 3, 512, 512)
    with pytest.raises(ValueError, match="1 channels"):
        model.predict(noisy[:, :1])
    for wrong in (noisy[0], noisy / 255, noisy[:0]):
        with pytest.raises(ValueError, match="uint8 of N x C x H x W"):
            model.predict(wrong)
    with pytest.raises(ValueError, match=r"differ in number or size: \(64, 3, 32, 32\) and \(63, 3, 32, 32\)"):
        model.train(noisy1[:64], noisy2[:63])


class Tensor(np.ndarray):
    """What is used of PyTorch's."""

    def new_tensor(self, data):
        return np.asarray(data, self.dtype).view(Tensor)


def test_the_weights_that_ship_denoise_in_the_kind_of_the_input():
    model = lite.Model()
    model.load_pretrained_model()
    clean = np.stack([scene(64, 48, seed=i).transpose(2, 0, 1) for i in range(3)])
    noisy = np.stack([noisy_scene(64, 48, seed=i, sigma=30).transpose(2, 0, 1) for i in range(3)])
    denoised = model.predict(noisy)
    assert type(denoised) is np.ndarray
    before, after = (np.mean((stack.astype(float) - clean) ** 2) for stack in (noisy, denoised))
    assert after < before / 6
    as_tensor = model.predict(noisy.view(Tensor))
    assert type(as_tensor) is Tensor
    assert (as_tensor == denoised).all()


def test_the_race_is_told_in_a_table(pairs, tmp_path):
    result = run_script("benchmarks/lite_race.py", "--pairs", pairs, "--save_dir", tmp_path, "--minutes", 0.01, ok=0)
    rows = [line.strip("| ").split(" | ") for line in result.stdout.splitlines() if line.startswith("| ")][1:]
    assert [row[0] for row in rows] == ["0.6"]
    assert all(5 < float(row[column]) < 60 for row in rows for column in (2, 4))
    assert {"lite_race.png", "lite_race.json", "ours.pdparams", "theirs.pdparams"} <= {
        p.name for p in tmp_path.iterdir()
    }


@pytest.mark.slow
def test_the_script_runs_from_anywhere(tmp_path):
    for i in range(6):
        save(tmp_path / "pictures" / f"{i}.png", scene(40, 50, seed=i))
    settings = {"PAIRS": tmp_path / "p", "RUNS": tmp_path / "r", "COUNT": 70, "VAL_COUNT": 9, "MINUTES": 0.02}
    settings |= {"PYTHON": sys.executable}
    result = subprocess.run(
        ["bash", str(ROOT / "scripts" / "8_lite.sh"), "pictures"], cwd=tmp_path, capture_output=True, text=True,
        timeout=300, env={**ENVIRONMENT, **{name: str(value) for name, value in settings.items()}},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "[EVAL] val: psnr:" in result.stdout
    assert list((tmp_path / "r" / "lite").glob("*/best_model.pdparams"))
