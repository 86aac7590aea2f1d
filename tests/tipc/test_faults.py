"""The certification chain, broken on purpose in each way that it must notice."""

import re
import shutil
import subprocess

import chains
import pytest
from chains import BASE, BASH, CONFIGS, MONTE_CARLO, ONE_ROW, compare, needs_bash

from conftest import ENVIRONMENT, ROOT

pytestmark = needs_bash
chain = chains.chain  # the fixture


@pytest.mark.parametrize("fault", ["train_for_tipc.py fails", "no weights", "nan", "rises", "few"])
def test_a_training_that_failed_blocks_what_follows(fault, chain):
    config = chain.config(**ONE_ROW)
    if fault.endswith("fails"):
        # An earlier run has left a model where the chain looks for one.
        assert chain.run(config, "lite_train_lite_infer", checks=False).returncode == 0
    result = chain.run(config, "lite_train_lite_infer", FAULT=fault)
    assert result.returncode == 1
    assert chain.statuses() == {"failed": 5}
    assert not chain.called("infer.py")
    assert not chain.called("export_model.py")
    assert "0 successfully, 5 failed" in result.stdout
    assert "not run: norm_train_gpus_-1_autocast_null_nodes_1 failed" in result.stdout


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("val.py fails", ["successfully", "failed", "failed", "failed", "failed"]),
        ("nan score", ["successfully", "failed", "failed", "failed", "failed"]),
        ("predict.py fails", ["successfully", "successfully", "failed", "failed", "failed"]),
        ("export_model.py fails", ["successfully", "successfully", "successfully", "failed", "failed"]),
        ("nothing exported", ["successfully", "successfully", "successfully", "failed", "failed"]),
        ("an old export", ["successfully", "successfully", "successfully", "failed", "failed"]),
    ],
)
def test_a_row_that_did_not_do_what_was_asked_is_red(fault, expected, chain):
    result = chain.run(chain.config(**ONE_ROW), "lite_train_lite_infer", FAULT=fault)
    assert [row[1] for row in chain.rows] == expected, result.stdout
    assert result.returncode == 1


def test_inference_that_did_not_do_what_was_asked_is_red(chain):
    faults = {
        "none": "checked: 6 pictures",
        "infer.py fails": "exit code 3",
        "no report": "asked for precision fp32, the log says nothing of it",
        "oneDNN is not used": "asked for enable_mkldnn True, the log says False",
        "one thread": "asked for cpu_math_library_num_threads 5, the log says 1",
        "another batch": "asked for batch_size 2, the log says 1",
        "fewer timed": "asked for data_num 6, the log says 5",
        "a picture is missing": "6 pictures went in, ",
        "a result is not a number": "holds NaN or infinite pixels",
        "another size": "coffee_cup.png has another size",
        "another model": "differs from the network by",
    }
    threads = "|".join(str(number) for number in range(1, len(faults) + 1))
    fault = "|".join(f"{number}={name}" for number, name in enumerate(faults, 1))
    result = chain.run(chain.config(**ONE_ROW | {"cpu_threads": threads}), "whole_infer", FAULT=fault)
    assert result.returncode == 1
    rows = chain.rows[2:-1]
    assert [row[1] for row in rows] == ["successfully"] + ["failed"] * (len(faults) - 1), result.stdout
    for row, message in zip(rows, faults.values(), strict=True):
        assert message in (chain.root / row[3].split(" - ")[-1]).read_text()


def test_a_precision_that_was_not_computed_is_red(chain):
    config = chain.config(**ONE_ROW | {"precision": "bf16", "cpu_threads": "1|2"})
    facts = "paddle=3 cuda=0 gpus=0 tensorrt=0 bf16=1"
    result = chain.run(config, "whole_infer", FAULT="2=another precision", FACTS=facts)
    assert [row[1] for row in chain.rows[2:4]] == ["successfully", "failed"]
    assert "asked for precision bf16, the log says fp32" in result.stdout


def test_rows_for_a_gpu_are_skipped_without_one_and_red_if_it_is_not_used(chain):
    config = chain.config(**ONE_ROW | {"use_gpu": "True", "use_tensorrt": "False|True"})
    chain.run(config, "whole_infer", checks=False)
    assert not chain.called("infer.py")
    assert [row[1] for row in chain.rows[2:4]] == ["skipped", "skipped"]
    assert [row[2] for row in chain.rows[2:4]] == ["this Paddle is built for CPUs only"] * 2
    result = chain.run(config, "whole_infer", FAULT="the GPU is not used", FACTS="cuda=1 gpus=1 tensorrt=0 bf16=0")
    assert [row[1] for row in chain.rows[2:4]] == ["failed", "skipped"]
    assert "asked for runtime_device gpu, the log says cpu" in result.stdout
    assert chain.rows[3][2] == "this Paddle is built without TensorRT"
    chain.run(config, "whole_infer", FAULT="TensorRT is not used", FACTS="cuda=1 gpus=1 tensorrt=1 bf16=0")
    assert [row[1] for row in chain.rows[2:4]] == ["successfully", "failed"]


def test_a_training_for_gpus_is_skipped_with_all_that_follows(chain):
    config = chain.config(**ONE_ROW | {"gpu_list": "0|0,1", "device": "gpu"})
    result = chain.run(config, "lite_train_lite_infer", checks=False)
    assert result.returncode == 77, result.stdout
    assert chain.statuses() == {"skipped": 10}
    assert {row[2] for row in chain.rows} == {"this Paddle is built for CPUs only"}
    chain.run(config, "lite_train_lite_infer", checks=False, FACTS="cuda=1 gpus=1 tensorrt=0 bf16=0")
    assert [row[1] for row in chain.rows] == ["successfully"] * 5 + ["skipped"] * 5
    assert chain.rows[-1][2] == "there is no GPU 1, this machine has 1"


def test_a_card_is_taken_by_its_number(chain):
    config = chain.config(**ONE_ROW | {"gpu_list": "1", "device": "gpu"})
    chain.run(config, "lite_train_lite_infer", FACTS="cuda=1 gpus=1 tensorrt=0 bf16=0")
    assert {row[2] for row in chain.rows} == {"there is no GPU 1, this machine has 1"}
    chain.run(config, "lite_train_lite_infer", FACTS="cuda=1 gpus=2 tensorrt=0 bf16=0")
    assert "--gpu_devices=1" in chain.called("train_for_tipc.py")[0]
    assert chain.rows[0][1] == "successfully"


def test_a_training_that_did_not_run_as_asked_is_red(chain):
    config = chain.config(**ONE_ROW | {"auto_cast": "bf16"})
    facts = {"FACTS": "cuda=0 gpus=0 tensorrt=0 bf16=1"}
    assert chain.run(config, "lite_train_lite_infer", **facts).returncode == 0
    result = chain.run(config, "lite_train_lite_infer", FAULT="bf16 is ignored", **facts)
    assert chain.statuses() == {"failed": 5}
    assert "the log shows nothing like 'engine: onednn, bf16'" in result.stdout


def test_what_was_trained_and_finished_weights_have_pictures_of_their_own(chain):
    config = chain.config(**ONE_ROW | {"train_infer_img_dir": "./test_tipc/inputs/noisy"})
    assert chain.run(config, "lite_train_lite_infer").returncode == 0
    assert "--input_file=./test_tipc/inputs/noisy" in chain.called("infer.py")[0]
    assert "--image_path=./test_tipc/inputs/noisy" in chain.called("predict.py")[0]
    chain.run(config, "whole_infer", checks=False)
    assert "--input_file=./test_tipc/data/noisy" in chain.called("infer.py")[0]


def test_finished_weights_are_exported_before_they_are_run(chain):
    for lines in ({"infer_export": "null"}, {"infer_quant": "False|False"}):
        result = chain.run(chain.config(**ONE_ROW | lines), "whole_infer")
        assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
        assert "infer_export" in result.stderr
    assert "are no finished weights" in chain.run(chain.config(infer_model="null"), "whole_infer").stderr


def test_finished_weights_that_no_row_can_run_are_not_compared(chain):
    config = chain.config(**ONE_ROW | {"use_gpu": "True"})
    assert chain.run(config, "whole_infer").returncode == 0
    assert [row[1] for row in chain.rows] == ["successfully", "successfully", "skipped", "skipped"]
    assert chain.rows[3][2] == "no row with scores can be run here"


def test_weights_that_no_runtime_takes_are_scored_and_compared(chain):
    config = chain.config(MONTE_CARLO)
    weights = chain.root / "test_tipc" / "weights" / "MonteCarlo.pdparams"
    weights.parent.mkdir(exist_ok=True)
    weights.write_text("weights")
    stored = chain.root / "test_tipc" / "results" / "python_MonteCarlo_results_fp32.txt"
    stored.unlink(missing_ok=True)
    assert chain.run(config, "lite_train_lite_infer").returncode == 0
    assert chain.statuses() == {"successfully": 3}
    record = ["--record", "--log_file=test_tipc/output/MonteCarlo/whole_infer/model_*_eval*.log"]
    assert chain.run(config, "whole_infer", FAULT="barely denoised").returncode == 1
    assert "nothing to record" in compare(chain, *record).stderr
    assert chain.run(config, "whole_infer").returncode == 1
    assert compare(chain, *record).returncode == 0
    assert chain.run(config, "whole_infer").returncode == 0
    assert [words[-1] for words in chain.called("val.py")] == ["--engine=onednn", "--engine=paddle"]
    for fault, message in (
        ("another score", "Sample: psnr 30.7000, 30.5000 is stored"),
        ("nan score", "no finite score"),
    ):
        result = chain.run(config, "whole_infer", FAULT=fault)
        assert result.returncode == 1
        assert message in result.stdout
    weights.write_text("others")
    assert chain.run(config, "whole_infer").returncode == 1
    assert "was made with other weights" in (chain.output / "compare_results.log").read_text()
    config.write_text(config.read_text().replace("--use_gpu:null", "--use_gpu:False"))
    assert "--use_gpu: is not used, because inference is null" in chain.run(config, "whole_infer").stderr


def test_all_configurations_are_taken_by_a_chain(chain):
    folder = chain.root / "test_tipc" / "configs" / "Only"
    folder.mkdir()
    chain.config(**ONE_ROW | {"model_name": "Only", "fp_items": "fp32"}).rename(folder / "train_infer_python.txt")
    (chain.root / "validation" / "Sample").mkdir(parents=True)
    (chain.root / "test_tipc" / "data" / "lite").mkdir()

    def run_all(*models, **environment):
        words = [BASH, "test_tipc/test_all.sh", *models]
        environment = {**ENVIRONMENT, "PYTHON": str(chain.python), "CALLS": str(chain.calls)} | environment
        return subprocess.run(words, cwd=chain.root, capture_output=True, text=True, timeout=120, env=environment)

    result = run_all("Only")
    assert result.returncode == 0, result.stdout + result.stderr
    table = result.stdout.split("\n\n")[1].splitlines()
    assert [line.split()[0::3][:2] for line in table] == [
        ["successfully", mode] for mode in ("lite_train_lite_infer", "whole_infer", "benchmark_train")
    ]
    assert result.stdout.endswith("3 chains\n")
    result = run_all("Only", FAULT="val.py fails")
    assert result.returncode == 1
    assert result.stdout.count("failed    ") == 2  # as it happens, and in the table
    (folder / "trian_ptq.txt").write_text("")
    result = run_all("Only")
    assert result.returncode == 1
    assert "Only/trian_ptq.txt: no chain takes it" in result.stdout
    assert run_all("Olny").returncode == 2
    # All of ours are taken, by their names alone.
    text = (ROOT / "test_tipc" / "test_all.sh").read_text()
    patterns = [pattern for group in re.findall(r'"\$folder"/(\S+)', text) for pattern in expanded(group.rstrip(";"))]
    for path in CONFIGS:
        assert any(path.match(pattern) for pattern in patterns if pattern != "*"), path


def test_the_demo_ends_with_the_chain_and_fails_with_it(chain):
    (chain.root / "scripts").mkdir()
    for name in ("common.sh", "7_certify.sh"):
        shutil.copy(ROOT / "scripts" / name, chain.root / "scripts")
    (chain.root / "validation" / "Sample").mkdir(parents=True)
    (chain.root / "test_tipc" / "data" / "lite").mkdir()
    chain.config(**ONE_ROW).rename(chain.root / BASE)
    for fault, code, expected in (
        ("", 0, ["successfully"] * 5),
        ("val.py fails", 1, ["successfully"] + ["failed"] * 4),
    ):
        result = subprocess.run(
            [BASH, "scripts/7_certify.sh"], cwd=chain.root, capture_output=True, text=True,
            env={**ENVIRONMENT, "PYTHON": str(chain.python), "CALLS": str(chain.calls), "FAULT": fault},
        )  # fmt: skip
        assert result.returncode == code, result.stdout + result.stderr
        assert re.findall(r"^(\w+)  (?:norm_train|python_infer)_\S+$", result.stdout, re.M) == expected


def expanded(pattern):
    """The patterns of a{b,c}d."""
    if found := re.fullmatch(r"(.*)\{(.*)\}(.*)", pattern):
        return [found[1] + choice + found[3] for choice in found[2].split(",")]
    return [pattern]


def test_two_processes_must_end_with_the_same_weights(chain):
    config = chain.config(**ONE_ROW | {"gpu_list": "-1,-1"})
    assert chain.run(config, "lite_train_lite_infer").returncode == 0
    (training,) = chain.called("train_for_tipc.py")
    assert training[:2] == ["-m", "paddle.distributed.launch"]
    assert training[training.index("--nproc_per_node") + 1] == "2"
    result = chain.run(config, "lite_train_lite_infer", FAULT="ranks differ")
    assert result.returncode == 1
    assert "2 processes with the same weights are expected" in result.stdout


def test_a_row_that_hangs_is_ended(chain):
    (chain.root / "slow").write_text('#!/bin/sh\ncase $* in *val.py*) sleep 60;; esac\nexec ./interpreter "$@"\n')
    (chain.root / "slow").chmod(0o755)
    result = chain.run(
        chain.config(**ONE_ROW), "lite_train_lite_infer", PYTHON="./slow", TIPC_ROW_SECONDS="2", checks=False
    )
    assert "ended after 2 seconds" in result.stdout
    assert chain.rows[1][1] == "failed"
