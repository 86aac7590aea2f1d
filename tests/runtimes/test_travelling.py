"""infer.py and denoising/ alone, without Paddle: what a machine gets that only denoises."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

import infer
from conftest import ENVIRONMENT, ROOT, noisy_scene, save
from denoising import cli, machine
from denoising.export import writing
from denoising.files import images
from denoising.imaging.noise import parse_noise
from denoising.imaging.pixels import to_01
from denoising.runtimes import onnx_runtimes

paddle = pytest.importorskip("paddle")
RUNTIMES = writing.installed_runtimes()
needs_runtime = pytest.mark.skipif(not RUNTIMES, reason="neither onnxruntime nor openvino is installed")


def exported(folder, noisetype, **options):
    """An .onnx file of a small network that was trained on this noise, and the network."""
    from arch_unet import build_network

    pytest.importorskip("onnx")
    paddle.seed(5)
    network = build_network(n_feature=4, **options)
    network.nin_c.weight.set_value(network.nin_c.weight * 10)
    record = writing.record_of(network, {**network.options, "noisetype": noisetype})
    return writing.write(network, folder, "onnx", record), network


@needs_runtime
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_two_names_travel_and_need_no_paddle(runtime, tmp_path):
    program, network = exported(tmp_path, "gauss25")
    picture = save(tmp_path / "a.png", noisy_scene(40, 50))
    there = tmp_path / "there"
    shutil.copytree(ROOT / "denoising", there / "denoising", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "infer.py", there)
    (there / "paddle.py").write_text("raise ImportError('there is no Paddle on this machine')\n")
    flags = ["--runtime", runtime, "--model_file", program, "-i", picture, "--save_dir", tmp_path / "out", "--json"]
    flags += ["--enable_benchmark", "True"]
    command = [sys.executable, there / "infer.py", *flags]
    done = subprocess.run([*map(str, command)], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["engine"]["runtime"] == runtime
    noisy = to_01(images.read_image(picture).pages[0])
    with paddle.no_grad():
        expected = network(paddle.to_tensor(noisy.transpose(2, 0, 1)[None])).numpy()[0].transpose(1, 2, 0)
    found = images.read_image(tmp_path / "out" / "a_denoise.png").pages[0]
    assert np.abs(found - np.clip(255 * expected, 0, 255)).max() <= 0.51
    assert found.std() > 1


@needs_runtime
def test_known_frequencies_are_put_back_as_the_record_says(tmp_path, capsys):
    noise = parse_noise("mri0.1")
    program, network = exported(tmp_path, "mri0.1", n_channel=1)
    clean = noisy_scene(64, 48, 1).astype(np.float32) / 255
    noisy = noise.add(clean, np.random.default_rng(3))
    images.write_image(tmp_path / "slice.npy", noisy)
    flags = ["--runtime", RUNTIMES[0], "--model_file", program, "--save_dir", tmp_path / "out"]
    assert infer.main([*flags, "-i", tmp_path / "slice.npy"]) == 0
    found = images.read_image(tmp_path / "out" / "slice_denoise.npy").pages[0]
    with paddle.no_grad():
        plain = network(paddle.to_tensor(noisy.transpose(2, 0, 1)[None])).numpy()[0].transpose(1, 2, 0)
    np.testing.assert_allclose(found, noise.restore(noisy, plain), atol=1e-5)
    assert np.abs(found - plain).max() > 0.05
    # As the service and predict.py have it, 8 bits hold no such slice.
    save(tmp_path / "slice.png", noisy_scene(64, 48, 1))
    with pytest.raises(cli.UserError, match="slice.png: undersampled slices are float32"):
        infer.main([*flags, "-i", tmp_path / "slice.png"])
    # Noise that is added here is what is in the image.
    assert infer.main([*flags, "-i", tmp_path / "slice.png", "--noise", "gauss25"]) == 0


@needs_runtime
def test_a_record_of_unknown_noise_is_refused(tmp_path):
    program, _ = exported(tmp_path, "snow5")
    picture = save(tmp_path / "a.png", noisy_scene(40, 50))
    with pytest.raises(cli.UserError, match="--model_file: unknown noise 'snow5'"):
        infer.main(["--runtime", RUNTIMES[0], "--model_file", program, "-i", picture])


@needs_runtime
def test_too_little_memory_is_told(tmp_path, monkeypatch, capsys):
    program, _ = exported(tmp_path, "gauss25")
    flags = ["--runtime", RUNTIMES[0], "--model_file", program, "--random_input", "1,3,512,512", "--repeats", 1]
    assert infer.main(flags) == 0
    assert "GiB" not in capsys.readouterr().err
    # What a container leaves, though the machine has more.
    monkeypatch.setattr(machine, "free_memory", lambda: 48 << 20)
    assert infer.main(flags) == 0
    assert "--random_input: 1x3x512x512 at once takes about 0.0 GiB, 0.0 are free" in capsys.readouterr().err


def test_a_runtime_whose_import_asks_for_a_home_needs_none(tmp_path, monkeypatch):
    """As OpenVINO's does, where a container runs as a user without an account."""

    def no_account(uid):
        raise KeyError(uid)

    (tmp_path / "homely.py").write_text("from pathlib import Path\nHOME = Path.home()\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("HOME", "none of this")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", no_account)
    assert not onnx_runtimes._import("homely", "Homely").HOME.is_dir()
