"""The scripts of the framework in NumPy, as users run them: pairs, training, resume, denoising, broken files."""

import importlib.util
import os
import pickle
import re
import shlex
import signal
import subprocess
import sys
import zipfile

import cv2
import numpy as np
import pytest
from PIL import Image

import denoise
import files
import make_pairs
from conftest import ENVIRONMENT, ROOT, assert_user_error, broken_copies, opened, run_script, save, scene
from tensor import Tensor, gradients
from unet import UNet

SMALL = ("--features", 4, "--batch", 8, "--val_every", 10)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """160 training pairs and 20 validation images, cut from pictures that are synthesised."""
    folder = tmp_path_factory.mktemp("pairs")
    for i in range(6):
        save(folder / "images" / f"{i % 2}" / f"{i}.png", scene(90, 80, seed=i))
    run_script(
        "from_scratch/make_pairs.py", "--images", folder / "images", "--out", folder, "--count", 160, "--val_count", 20,
        "--seed", 3, ok=0,
    )  # fmt: skip
    return folder


def train(pairs, out, *flags, **kwargs):
    data = ("--train", pairs / "train.npz", "--val", pairs / "val.npz")
    return run_script("from_scratch/train.py", *data, "--out", out, *flags, **kwargs)


# --- Pairs --------------------------------------------------------------------------------------------------


def test_the_two_corruptions_are_independent(pairs, tmp_path):
    with np.load(pairs / "train.npz") as archive:
        assert sorted(archive) == ["noisy1", "noisy2"]
        noisy1, noisy2 = archive["noisy1"], archive["noisy2"]
    assert noisy1.shape == noisy2.shape == (160, 3, 32, 32)
    assert noisy1.dtype == noisy2.dtype == np.uint8

    # The same patches without noise: the places do not depend on sigma.
    run_script(
        "from_scratch/make_pairs.py", "--images", pairs / "images", "--out", tmp_path, "--count", 160,
        "--val_count", 20, "--seed", 3, "--sigma", 0, ok=0,
    )  # fmt: skip
    with np.load(tmp_path / "train.npz") as archive:
        clean = archive["noisy1"].astype(float)
        np.testing.assert_array_equal(clean, archive["noisy2"])
    middle = (clean > 90) & (clean < 165)  # where nothing is clipped
    noise1, noise2 = (noisy1 - clean)[middle], (noisy2 - clean)[middle]
    for noise in (noise1, noise2):
        assert abs(noise.mean()) < 0.3
        assert noise.std() == pytest.approx(25, rel=0.02)
    assert middle.sum() > 50000
    assert abs(np.corrcoef(noise1, noise2)[0, 1]) < 5 / np.sqrt(middle.sum())
    # The noise of the validation is none of these, and its images are others.
    with np.load(pairs / "val.npz") as archive, np.load(tmp_path / "val.npz") as unspoilt:
        assert sorted(archive) == ["clean", "noisy"]
        np.testing.assert_array_equal(archive["clean"], unspoilt["noisy"])
        assert (archive["noisy"].astype(float) - archive["clean"]).std() > 20


def test_images_are_held_out(pairs):
    found = make_pairs.find_images("--images", str(pairs / "images"))
    trained, held_out = make_pairs.hold_out(found, 2)
    assert len(held_out) == 1
    assert sorted(trained + held_out) == found
    many = [f"{i:03}" for i in range(100)]
    trained, held_out = make_pairs.hold_out(many, 10)
    assert held_out == [f"{i:03}" for i in range(5, 100, 10)]
    assert sorted(trained + held_out) == many
    with pytest.raises(files.UserError, match="--val_images"):
        make_pairs.hold_out(many[:4], 10)


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--images", "/nowhere"], "--images"),
        (["--images", "tests"], "no images"),
        (["--val_images", "/nowhere"], "--val_images"),
        (["--size", 300], "256x256"),
        (["--sigma", "nan"], "--sigma"),
        (["--count", 0], "--count"),
    ],
)
def test_pairs_that_cannot_be_made_are_refused(flags, word, tmp_path):
    assert_user_error(run_script("from_scratch/make_pairs.py", "--out", tmp_path / "out", *flags), word)
    assert not (tmp_path / "out").exists()


def test_pairs_are_not_replaced_unasked(pairs):
    before = (pairs / "train.npz").read_bytes()
    assert_user_error(run_script("from_scratch/make_pairs.py", "--images", pairs / "images", "--out", pairs), "exists")
    assert (pairs / "train.npz").read_bytes() == before


def test_a_broken_image_is_named(tmp_path):
    for i in range(5):
        (tmp_path / f"{i}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    assert_user_error(run_script("from_scratch/make_pairs.py", "--images", tmp_path, "--out", tmp_path / "o"), ".png")


# --- Training -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_short_training_denoises(tmp_path):
    for i in range(5):
        save(tmp_path / "images" / f"{i}.png", scene(120, 140, seed=i))
    run_script(
        "from_scratch/make_pairs.py", "--images", tmp_path / "images", "--out", tmp_path, "--count", 1600,
        "--val_count", 40, ok=0,
    )  # fmt: skip
    result = train(tmp_path, tmp_path / "run", "--features", 8, "--epochs", 2, "--val_every", 50, ok=0)
    scores = [float(line.split(" dB")[0].split()[-1]) for line in result.stdout.splitlines() if line.startswith("step")]
    noisy = float(result.stdout.splitlines()[0].split("noisy ")[1].split()[0])
    assert len(scores) == 4
    assert 19 < noisy < 22
    assert scores[-1] > noisy + 4
    assert f"{scores[-1]:.2f} dB" in result.stdout.splitlines()[-1]
    # The score is that of the weights that were written.
    network = denoise.load_network(tmp_path / "run" / "weights.npz")
    images, clean = files.read_images(tmp_path / "val.npz", ["noisy", "clean"])
    assert make_pairs.psnr(denoise.denoise(network, images), clean) == pytest.approx(scores[-1], abs=0.006)
    assert make_pairs.psnr(images, clean) == pytest.approx(noisy, abs=0.006)
    assert opened(tmp_path / "run" / "loss.png").width > 500
    assert opened(tmp_path / "run" / "pictures.png").size == (10 * 32 * 3, 3 * 32 * 3)


def test_a_stopped_training_ends_with_the_same_weights(pairs, tmp_path):
    train(pairs, tmp_path / "whole", *SMALL, "--epochs", 4, ok=0)
    command = [
        sys.executable, ROOT / "from_scratch/train.py", "--train", pairs / "train.npz", "--val", pairs / "val.npz",
        "--out", tmp_path / "parts", *map(str, SMALL), "--epochs", "4",
    ]  # fmt: skip
    checkpoint = tmp_path / "parts" / "checkpoint.npz"
    for number, code in [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 130)]:
        process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while not process.stdout.readline().startswith("step"):
            assert process.poll() is None
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode == code, err
        command = [sys.executable, ROOT / "from_scratch/train.py", "--resume", checkpoint]
        if number != signal.SIGKILL:
            assert f"--resume {checkpoint}" in err
            assert not (tmp_path / "parts" / "weights.npz").exists()
    run_script("from_scratch/train.py", "--resume", checkpoint, ok=0)
    names = ["weights.npz", "checkpoint.npz"]
    for whole, parts in ([files.read_arrays(tmp_path / run / name) for run in ("whole", "parts")] for name in names):
        assert set(whole) == set(parts)
        for name in set(whole) - {"options", "training.seconds"}:
            np.testing.assert_array_equal(whole[name], parts[name], err_msg=name)


ON_CORES = """
import os, runpy, sys
sys.argv = sys.argv[1:]
os.sched_setaffinity(0, set(map(int, sys.argv.pop(0).split(","))))
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_the_result_does_not_depend_on_the_number_of_threads(pairs, tmp_path):
    cores = sorted(map(str, os.sched_getaffinity(0)))[:2]
    for used in (cores, cores[:1]):
        flags = ["--train", pairs / "train.npz", "--val", pairs / "val.npz", "--out", tmp_path / str(len(used))]
        done = subprocess.run(
            [sys.executable, "-c", ON_CORES, ",".join(used), ROOT / "from_scratch/train.py", *flags,
             *map(str, SMALL), "--epochs", "1"],
            env=ENVIRONMENT, check=True, capture_output=True, text=True,
        )  # fmt: skip
        assert f"{len(used)} threads" in done.stdout
    one, two = (files.read_arrays(tmp_path / number / "weights.npz") for number in ("1", "2"))
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])


def test_a_training_is_not_begun_anew_unasked(pairs, tmp_path):
    (tmp_path / "checkpoint.npz").write_bytes(b"a long training")
    assert_user_error(train(pairs, tmp_path, *SMALL), "--overwrite")
    assert_user_error(train(pairs, tmp_path, "--resume", tmp_path / "checkpoint.npz"), "--resume")
    assert (tmp_path / "checkpoint.npz").read_bytes() == b"a long training"


@pytest.mark.parametrize("flag", [["--lr", "nan"], ["--lr", "-1"], ["--seed", "x"], ["--no_such_flag"]])
def test_a_wrong_flag_is_refused(flag, pairs, tmp_path):
    assert_user_error(train(pairs, tmp_path, *flag), flag[0])


def test_a_rate_that_is_too_high_is_told(pairs, tmp_path):
    assert_user_error(train(pairs, tmp_path, *SMALL, "--lr", 1e30), "--lr", "no finite number")


# --- Files from elsewhere -----------------------------------------------------------------------------------


class Trap:
    """Would create a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


GOOD = np.zeros((8, 3, 32, 32), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"noisy1": GOOD}, ["noisy2"]),
        ({}, ["noisy1"]),
        ({"noisy1": GOOD, "noisy2": GOOD[:7]}, ["halves", "(7, 3, 32, 32)"]),
        ({"noisy1": GOOD, "noisy2": GOOD.astype(np.float32)}, ["noisy2", "float32"]),
        ({"noisy1": GOOD[:, :1], "noisy2": GOOD[:, :1]}, ["noisy1", "(8, 1, 32, 32)"]),
        ({"noisy1": GOOD[:0], "noisy2": GOOD[:0]}, ["(0, 3, 32, 32)"]),
        ({"noisy1": GOOD[0], "noisy2": GOOD[0]}, ["(3, 32, 32)"]),
        ({"noisy1": GOOD[..., :2], "noisy2": GOOD[..., :2]}, ["4 pixels"]),
    ],
)
def test_pairs_that_are_none_are_refused(arrays, words, pairs, tmp_path):
    np.savez(tmp_path / "train.npz", **arrays)
    (tmp_path / "val.npz").write_bytes((pairs / "val.npz").read_bytes())
    assert_user_error(train(tmp_path, tmp_path / "run", *SMALL), "train", *words)
    assert not (tmp_path / "run").exists()


def test_nothing_is_unpickled(pairs, tmp_path):
    trap = tmp_path / "sprung"
    objects = np.array([Trap(trap)], object)
    np.savez(tmp_path / "object.npz", noisy1=objects, noisy2=objects)
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(Trap(trap)))
    with zipfile.ZipFile(tmp_path / "inside.npz", "w") as archive:
        for name in ("noisy1.npy", "noisy2"):
            archive.writestr(name, pickle.dumps(Trap(trap)))
    (tmp_path / "cut.npz").write_bytes((pairs / "train.npz").read_bytes()[:-2000])
    (tmp_path / "empty.npz").write_bytes(b"")
    for name in ("object", "pickle", "inside", "cut", "empty", "absent"):
        result = run_script("from_scratch/train.py", "--train", tmp_path / f"{name}.npz", "--val", pairs / "val.npz")
        assert_user_error(result, f"{name}.npz")
    assert not trap.exists()


def test_broken_archives_are_refused_or_are_right(tmp_path):
    tensors, path = UNet(features=1).parameters(), tmp_path / "weights.npz"
    files.write_arrays(path, {name: tensor.data for name, tensor in tensors.items()})
    data, refused = path.read_bytes(), 0
    for broken in broken_copies(data, step=len(data) // 40):
        path.write_bytes(broken)
        try:
            files.load_into(tensors, files.read_arrays(path), path)
        except files.UserError:
            refused += 1
    assert refused > 200


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda arrays: arrays.pop("last.bias"), "missing"),
        (lambda arrays: arrays.update(more=np.zeros(1)), "more"),
        (lambda arrays: arrays.update({"last.bias": np.zeros(4, np.float32)}), "(4,)"),
        (lambda arrays: arrays.update({"last.bias": np.zeros(3)}), "float64"),
        (lambda arrays: arrays.update({"last.bias": np.full(3, np.nan, np.float32)}), "finite"),
        (lambda arrays: arrays.update({"enc0.0.weight": np.zeros(3, np.float32)}), "no weights"),
        (lambda arrays: arrays.clear(), "no weights"),
    ],
)
def test_weights_of_another_network_are_refused(change, word, tmp_path):
    arrays = {name: tensor.data for name, tensor in UNet(features=2).parameters().items()}
    change(arrays)
    files.write_arrays(tmp_path / "w.npz", arrays)
    result = run_script(
        "from_scratch/denoise.py", "--image", "demo/chelsea_noise.png", "--weights", tmp_path / "w.npz", "--out",
        tmp_path / "out.png",
    )  # fmt: skip
    assert_user_error(result, "w.npz", word)
    assert not (tmp_path / "out.png").exists()


def test_a_size_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    np.savez(tmp_path / "big.npz", noisy1=np.zeros(1000))
    monkeypatch.setattr(files, "MAX_BYTES", 1000)
    with pytest.raises(files.UserError, match="1,000 are the most"):
        files.read_arrays(tmp_path / "big.npz")


def test_half_a_file_is_never_left(tmp_path):
    path = tmp_path / "weights.npz"
    path.write_bytes(b"old")

    def fail():
        with files.atomic_write(path) as temporary:
            temporary.write_bytes(b"half")
            raise RuntimeError

    pytest.raises(RuntimeError, fail)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["weights.npz"]


# --- Denoising ----------------------------------------------------------------------------------------------


@pytest.fixture
def network():
    """One whose output is not its input: the last layer has its full weights."""
    net = UNet(features=4, seed=5)
    net.last.weight.data *= 10
    return net


@pytest.fixture
def weights(network, tmp_path):
    files.write_arrays(tmp_path / "weights.npz", {name: tensor.data for name, tensor in network.parameters().items()})
    return tmp_path / "weights.npz"


def test_no_pixel_depends_on_one_beyond_the_margin(network):
    size, middle = 160, slice(76, 80)
    x = Tensor(np.random.default_rng(0).standard_normal((1, size, size, 3)), trainable=True)
    mask = np.zeros((1, size, size, 3))
    mask[:, middle, middle] = 1
    (reach,) = gradients((network(x) * mask).mean(), [x])
    rows = np.flatnonzero(np.abs(reach[0]).sum(axis=(1, 2)))
    assert 76 - network.margin <= rows.min() < 76 - network.margin / 2
    assert 79 + network.margin / 2 < rows.max() <= 79 + network.margin


def test_tiles_are_the_whole(network, monkeypatch):
    images = np.stack([scene(150, 211, seed=i) for i in range(2)])
    monkeypatch.setattr(denoise, "TILE", 512)
    whole = denoise.denoise(network, images)
    monkeypatch.setattr(denoise, "TILE", 64)
    tiles = denoise.denoise(network, images)
    assert np.abs(whole.astype(int) - images).max() > 5
    # Products of matrices of other sizes may differ in their last bits, and one of these decides a rounding.
    difference = np.abs(whole.astype(int) - tiles)
    assert difference.max() <= 1
    assert np.count_nonzero(difference) < 20


@pytest.mark.parametrize("size", [(1, 1), (3, 130), (33, 7), (128, 129)])
def test_any_size_comes_out_as_it_went_in(size, weights, tmp_path):
    source = tmp_path / "in.png"
    Image.fromarray(scene(*size)).save(source)
    run_script(
        "from_scratch/denoise.py", "--image", source, "--weights", weights, "--out", tmp_path / "new" / "out.png", ok=0
    )
    assert opened(tmp_path / "new" / "out.png").size == size[::-1]


def test_grey_stays_grey(weights, tmp_path):
    source = save(tmp_path / "in.png", scene(40, 50, channels=1))
    out = tmp_path / "out.png"
    run_script("from_scratch/denoise.py", "--image", source, "--weights", weights, "--out", out, ok=0)
    assert opened(out).mode == "L"


def test_pictures_that_cannot_be_denoised_are_refused(weights, tmp_path):
    deep = save(tmp_path / "deep.png", np.zeros((9, 9), np.uint16))
    cv2.imwrite(str(colours := tmp_path / "colours.png"), np.zeros((9, 9, 3), np.uint16))
    good = save(tmp_path / "good.png", scene(9, 9))
    (tmp_path / "broken.png").write_bytes(good.read_bytes()[:60])
    cases = [
        (deep, "out.png", "8-bit"),
        (colours, "out.png", "RGB, of 16 bits"),
        (tmp_path / "broken.png", "out.png", "broken.png"),
        (tmp_path / "absent.png", "out.png", "absent.png"),
        (tmp_path, "out.png", "--image"),
        (good, "out.xyz", "suffix"),
        (good, "out.psd", "suffix"),  # is read, and not written
        (good, "good.png", "--overwrite"),
    ]
    before = good.read_bytes()
    for image, out, word in cases:
        result = run_script("from_scratch/denoise.py", "--image", image, "--weights", weights, "--out", tmp_path / out)
        assert_user_error(result, word)
    assert good.read_bytes() == before


@pytest.mark.parametrize("name", ["train", "denoise", "make_pairs"])
def test_help_shows_an_example_and_defaults(name):
    result = run_script(f"from_scratch/{name}.py", "--help", ok=0)
    assert f"python from_scratch/{name}.py " in result.stdout
    assert "(default: " in result.stdout
    assert_user_error(run_script(f"from_scratch/{name}.py", "--no_such_flag"), "--")


def test_the_commands_of_the_documents_parse():
    documents = [ROOT / "from_scratch" / name for name in ("README.md", "train.py", "denoise.py", "make_pairs.py")]
    text = "\n".join(path.read_text(encoding="utf-8").replace("\\\n", " ") for path in documents)
    commands = re.findall(r"^ +python from_scratch/(\w+)\.py (.*)$", text, re.MULTILINE)
    assert {name for name, _ in commands} == {"train", "denoise", "make_pairs"}
    assert len(commands) >= 10
    for name, flags in commands:
        # By its path: the project has another train.py.
        spec = importlib.util.spec_from_file_location(f"from_scratch_{name}", ROOT / "from_scratch" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.get_parser().parse_args(shlex.split(flags))


# --- The benchmark ------------------------------------------------------------------------------------------


def test_the_benchmark_compares_the_same_network():
    everyone = ["ours", "index", "paddle-unfold-1", "paddle-1"]
    flags = ["--rounds", 1, "--steps", 1, "--batch", 6, "--features", 3]
    # It ends with an error if losses or gradients differ.
    result = run_script("benchmarks/bench_from_scratch.py", *flags, "--only", *everyone, ok=0)
    rows = [line.strip("| ").split(" | ") for line in result.stdout.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == len(everyone)
    assert all(float(row[1]) >= float(row[2]) > 0 for row in rows)


def test_the_benchmark_tells_where_the_time_goes():
    result = run_script("benchmarks/bench_from_scratch.py", "--where", "--steps", 2, "--features", 8, ok=0)
    shares = [float(line.split("|")[2].strip(" %")) for line in result.stdout.splitlines() if line.endswith(" % |")]
    assert len(shares) == 8
    assert min(shares) >= 0
    assert sum(shares) == pytest.approx(100, abs=4)
