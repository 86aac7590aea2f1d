"""Shared by the tests of the certification: its chain in a copy, and the stand-in interpreter on which it runs there.

The stand-in records every command and does what the scripts would do, right or wrong as a test asks; only the checks
are the real ones, where a test is about them.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ENVIRONMENT, ROOT

sys.path.insert(0, str(ROOT / "test_tipc"))  # for the tests that import its scripts after this module

BASH = shutil.which("bash")
needs_bash = pytest.mark.skipif(BASH is None, reason="the chain is bash")

CONFIGS = sorted((ROOT / "test_tipc" / "configs").rglob("*.txt"))
BASE = "test_tipc/configs/N2N/train_infer_python.txt"
MONTE_CARLO = "test_tipc/configs/MonteCarlo/train_infer_python.txt"
ONE_ROW = {"enable_mkldnn": "True", "cpu_threads": "2", "batch_size": "2", "precision": "fp32"}
ONE_ROW |= {"random_infer_input": "null"}
HERE = "paddle=3 cuda=0 gpus=0 tensorrt=0 bf16=0 vnni=1 onnx=1 onnxruntime=1 openvino=1 aiohttp=1"

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


def compare(chain, *more):
    words = ["--gt_file=test_tipc/results/*.txt", "--log_file=test_tipc/output/N2N/whole_infer/python_infer_*.log"]
    return subprocess.run(
        [sys.executable, "test_tipc/compare_results.py", *words, *more], cwd=chain.root, capture_output=True, text=True,
        env={**ENVIRONMENT, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
