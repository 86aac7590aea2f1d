"""What the certification wants of a model that is deployed: as ONNX, in 8 bits, as a service, and on random input."""

import os

import chains
import pytest
from chains import HERE, ONE_ROW, needs_bash

import check_row
from conftest import ROOT

pytestmark = needs_bash
chain = chains.chain  # the fixture

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
    # Its answers are compared in fp32, and by itself it computes in bf16 where the CPU does.
    assert ["--precision=fp32" in words for words in chain.called("serve.py")] == [True]
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
