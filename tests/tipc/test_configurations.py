"""The certification's configurations: what they ask for is run, and one that says anything else is refused."""

import importlib
import re
import subprocess
from pathlib import Path

import chains
import pytest
from chains import BASE, BASH, CONFIGS, HERE, ONE_ROW, needs_bash

import train_for_tipc
from conftest import ENVIRONMENT, ROOT

pytestmark = needs_bash
chain = chains.chain  # the fixture


def test_there_are_configurations():
    assert ROOT / BASE in CONFIGS


def test_the_base_chain_is_green_when_nothing_is_wrong(chain):
    result = chain.run(chain.config(**ONE_ROW), "lite_train_lite_infer")
    assert result.returncode == 0, result.stdout + result.stderr
    assert chain.statuses() == {"successfully": 5}
    names = [Path(next(word for word in row[3].split() if word.endswith(".py"))).name for row in chain.rows]
    assert names == ["train_for_tipc.py", "val.py", "predict.py", "export_model.py", "infer.py"]
    # The log that a status line names is there, and tells what the check found.
    for row in chain.rows:
        log = chain.root / row[3].split(" - ")[-1]
        assert log.is_file()
        assert row[3].startswith("N2N - ")
    assert "checked: 6 pictures within 0.0e+00 of the network" in log.read_text()


def test_all_combinations_of_a_configuration_run(chain):
    config = chain.config(enable_mkldnn="True|False", cpu_threads="1|2|3", batch_size="1|2", precision="fp32|bf16")
    result = chain.run(config, "lite_train_lite_infer", checks=False, FACTS="paddle=3 cuda=0 gpus=0 tensorrt=0 bf16=1")
    assert result.returncode == 0
    assert len(chain.called("infer.py")) == 2 * 3 * 2 + 1 * 3 * 2  # bf16 with oneDNN alone
    assert chain.statuses() == {"successfully": 4 + 18, "skipped": 6}
    asked = {tuple(word for word in words if "save_dir" not in word) for words in chain.called("infer.py")}
    assert len(asked) == 18


def test_modes_choose_the_length(chain):
    for mode, epochs in {
        "lite_train_lite_infer": 2,
        "lite_train_whole_infer": 2,
        "whole_train_whole_infer": 100,
    }.items():
        chain.run(chain.config(**ONE_ROW), mode, checks=False)
        (training,) = chain.called("train_for_tipc.py")
        assert f"--n_epoch={epochs}" in training
        # What the runner supplies, and what the configuration says word for word.
        save = f"test_tipc/output/N2N/{mode}/norm_train_gpus_-1_autocast_null_nodes_1"
        for word in (f"--save_model_path={save}", "--batchsize=4", "--device=cpu", "--noisetype=gauss25"):
            assert word in training
        (export,) = chain.called("export_model.py")
        assert export[1:] == [f"--model_path={save}/N2N/best_model.pdparams", f"--save_dir={save}"]
        assert f"--model_dir={save}" in chain.called("infer.py")[0]
        assert [word for word in chain.called("val.py")[0] if "model_path" in word] == [export[1]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("--gt_dir:", "--gt_dir:a:"), "line 51 has two colons"),
        (lambda text: text.replace("##\n", "\n", 1), "line 14 is blank"),
        (lambda text: text.replace("pact_train:null", "pact_trian:null"), "line 17 should begin with pact_train:"),
        (lambda text: text.replace("\nnull:null\n##\ntrainer", "\n##\ntrainer"), "line 13 should be KEY:VALUE"),
        (lambda text: text.replace("\n##\ntrainer", "\nseed:1\ntrainer"), "line 14 is not used: 'seed:1'"),
        (lambda text: text + "extra:1\n", "is not used: 'extra:1'"),
        (lambda text: text.replace("=2|whole_train", "=2|all_train"), "--n_epoch: has no value for whole_train"),
        (lambda text: text.replace("trainer:norm_train", "trainer:norm_trian"), "trainer:norm_trian is none of"),
        (lambda text: text.replace("trainer:norm_train", "trainer:fpgm_train"), "trainer:fpgm_train has no command"),
        (lambda text: text.replace("model_name:N2N", "model_name:../N2N"), "names no model"),
        (lambda text: text.replace("--use_gpu:False", "--use_gpu:Fasle"), "'Fasle' is neither True nor False"),
        (lambda text: text.replace("--precision:fp32", "--precision:int8"), "'int8' does not go with a model"),
        (lambda text: text.replace("python3", "python3 "), "line 3 ends in a blank"),
        (lambda text: text.replace("model_path:./output/", "model_path:./here/"), "line 8 names './here/'"),
        (lambda text: text.replace("--save_dir:null", "--save_dir:./here/"), "line 49 names './here/'"),
        (lambda text: text.replace("export1:null", "export1:export_model.py"), "line 34 names 'export_model.py'"),
        (lambda text: text.replace("batch_size:4\n", "batch_size:4\nbatch_size:8\n"), "line 55 is there for the"),
        (lambda text: text + "===accuracy_params===\n", "line 71 is there for the second time"),
        (lambda text: text.replace("trainer:norm_train", "trainer:null"), "trainer:null is none of the trainers"),
        (lambda text: text.replace("gpu_list:-1", "gpu_list:-1,0"), "gpu_list: what is '-1,0'?"),
        (lambda text: text.replace("norm_export:export_model.py", "norm_export:null"), "an inference without an"),
        (lambda text: text.replace("inference:infer.py", "inference:null"), "norm_export: is not used"),
        (lambda text: text.replace("===train_params", "===train_param"), "line 1 should be ===train_params==="),
    ],
)  # fmt: skip
def test_a_wrong_configuration_is_refused(change, message, chain):
    config = chain.config()
    text = config.read_text()
    config.write_text(change(text))
    assert config.read_text() != text
    result = chain.run(config, "whole_train_whole_infer", checks=False)
    assert result.returncode == 2, result.stdout
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_wrong_call_is_refused(chain):
    config = chain.config()
    result = chain.run(config, "lite_train")
    assert (result.returncode, result.stdout) == (2, "")
    assert "mode 'lite_train': this chain knows lite_train_lite_infer" in result.stderr
    (chain.root / "test_tipc" / "data" / "prepared").write_text("N2N whole_infer\n")
    for arguments, message in (
        ([], "usage: "), (["none.txt", "whole_infer"], "none.txt: no such configuration"),
        ([config, "lite_train_lite_infer"], "run first: bash test_tipc/prepare.sh"),
    ):  # fmt: skip
        words = [BASH, "test_tipc/test_train_inference_python.sh", *map(str, arguments)]
        environment = {**ENVIRONMENT, "PYTHON": str(chain.python)}
        result = subprocess.run(words, cwd=chain.root, capture_output=True, text=True, env=environment)
        assert result.returncode == 2
        assert message in result.stderr
    assert "no such interpreter" in chain.run(config, "whole_infer", PYTHON="/none/python").stderr


MODES = ["lite_train_lite_infer", "whole_infer"]
CHAINS = {  # by what a configuration's name says: the script and its modes
    "paddle2onnx": ("test_paddle2onnx.sh", ["paddle2onnx_infer"]),
    "serving": ("test_serving_infer_python.sh", ["serving_infer"]),
    "infer_cpp": ("test_inference_cpp.sh", ["cpp_infer"]),
    "lite_arm": ("test_lite_arm_cpu_cpp.sh", ["lite_infer"]),
    "ptq": ("test_ptq_inference_python.sh", ["whole_infer"]),
    "dy2static": ("test_train_dy2static_python.sh", ["lite_train_lite_infer"]),
    "train_": ("test_train_inference_python.sh", MODES),
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_command_of_every_configuration_is_one_that_the_scripts_take(path, chain):
    script, modes = next(value for key, value in CHAINS.items() if key in path.name)
    # One value on each axis is enough to see the flags.
    text = re.sub(
        r"^(--(?:enable_mkldnn|cpu_threads|batch_size|precision):[^|\n]*)\|.*$", r"\1", path.read_text(), flags=re.M
    )
    config = chain.root / path.name
    config.write_text(text)
    for mode in modes:
        result = chain.run(config, mode, script=script, checks=False, FACTS=HERE.replace("=0", "=2"))
        if mode == "whole_infer" and result.returncode == 2:
            assert "infer_model:null: there are no finished weights" in result.stderr
            continue
        assert result.returncode in (0, 77), result.stdout + result.stderr
        assert chain.rows
        for row in chain.rows:
            takes(row[3].split(" - ", 1)[1].rsplit(" - ", 1)[0].split())
    for options in re.findall(r"^(?:\w+_train\w+|\w+_train):(--.*)$", text, re.M):  # what a mode adds
        takes(["train.py", *options.split()])


def takes(words):
    """Parses a command by the parser of its script."""
    place = next((place for place, word in enumerate(words) if word.endswith(".py")), None)
    if place is None:  # a row that is always skipped
        assert words[0] in ("inference_cpp", "adb", "paddle_lite_opt")
        return
    name, flags = words[place], words[place + 1 :]
    assert (ROOT / name).is_file()
    if Path(name).stem in ("train_for_tipc", "train_fpgm", "train_qat"):
        flags, _ = train_for_tipc.translate(flags)
        name = "train.py"
    importlib.import_module(Path(name).stem).get_parser().parse_args(flags)


OFFICIAL = {  # where PaddleClas's runner looks, counted from 1: the key that it wants there
    2: "model_name", 3: "python", 4: "gpu_list", 11: "train_model_name", 12: "train_infer_img_dir", 15: "trainer",
    16: "norm_train", 17: "pact_train", 18: "fpgm_train", 19: "distill_train", 20: "to_static_train", 24: "eval",
    30: "norm_export", 31: "quant_export", 32: "fpgm_export", 33: "distill_export", 36: "inference_dir",
    37: "infer_model", 38: "infer_export", 39: "infer_quant", 40: "inference",
}  # fmt: skip


@pytest.mark.parametrize(
    "path", [path for path in CONFIGS if "=train_params=" in path.read_text(encoding="utf-8")],
    ids=lambda path: f"{path.parent.name}/{path.stem}",
)  # fmt: skip
def test_the_official_runner_finds_what_it_looks_for(path):
    # It splits the file at white space of any length but spaces, and a line at its colons.
    lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line]
    fields = [line.split(":") for line in lines[:52]]
    assert {number: fields[number - 1][0] for number in OFFICIAL} == OFFICIAL
    for number, field in enumerate(fields, 1):
        assert len(field) == (1 if number in (1, 14, 22, 23, 26, 27) else 2), lines[number - 1]
        assert "*" not in lines[number - 1]  # the shell would look for files
    modes = [mode.split("=") for mode in fields[6][1].split("|")]
    assert all(len(mode) == 2 and mode[1].isdigit() for mode in modes)
    # The weights that it asks for are <save>/<model>/<train_model_name>.
    for trainer in fields[14][1].split("|"):
        command = fields[{"norm_train": 15, "pact_train": 16, "fpgm_train": 17, "distill_train": 18}[trainer]][1]
        assert f"--log_name={fields[1][1]}" in command.split()
