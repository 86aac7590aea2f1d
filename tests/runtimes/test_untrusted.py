"""Models from elsewhere: none may crash or hang the process, and nothing is written where the user works."""

import os

import numpy as np
import pytest

import infer
from denoising import cli
from denoising.runtimes import choice, trial


def onnx_of(*nodes):
    """A serialised ONNX file of somebody else's with these nodes between x and y."""
    onnx = pytest.importorskip("onnx")
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", channels, "h", "w"])
        for name, channels in (("x", 3), ("y", 3))
    ]
    nodes = [onnx.helper.make_node(kind, inputs, [output]) for kind, inputs, output in nodes]
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:])
    opset = onnx.helper.make_opsetid("", 17)
    return onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9).SerializeToString()


def test_a_file_that_crashes_openvino_is_refused(tmp_path):
    pytest.importorskip("openvino")
    path = tmp_path / "hostile.onnx"
    path.write_bytes(onnx_of(("Conv", [], "y")))
    with pytest.raises(cli.UserError, match="--model_file: .*hostile.onnx: openvino crashes"):
        infer.main(["--runtime", "openvino", "--model_file", path, "--random_input", "1,3,32,32"])


def test_a_file_that_never_loads_is_given_up(tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    path = tmp_path / "ring.onnx"
    path.write_bytes(onnx_of(("Add", ["x", "b"], "a"), ("Relu", ["a"], "b"), ("Relu", ["b"], "y")))
    monkeypatch.setattr(trial, "SECONDS", 4)
    with pytest.raises(cli.UserError, match="--model_file: .*ring.onnx: openvino does not load it within 4 seconds"):
        choice.open_runtime(choice.runtime_options(runtime="openvino", model_file=str(path)))


def test_a_file_of_others_that_is_sound_runs(tmp_path):
    pytest.importorskip("openvino")
    path = tmp_path / "sound.onnx"
    path.write_bytes(onnx_of(("Relu", ["x"], "y")))
    options = choice.runtime_options(runtime="openvino", model_file=str(path))
    x = np.random.default_rng(0).normal(size=(1, 3, 20, 30)).astype(np.float32)
    np.testing.assert_array_equal(choice.open_runtime(options)(x), np.maximum(x, 0))


def test_a_folder_without_a_model_is_named(tmp_path):
    for runtime, names in (("paddle", "model.pdmodel or model.json"), ("onnxruntime", "model.onnx")):
        with pytest.raises(cli.UserError, match=f"--model_dir: {tmp_path} has no {names}.*export_model.py"):
            infer.main(["--runtime", runtime, "--model_dir", tmp_path, "--random_input", "1,3,32,32"])


def test_empty_files_of_paddle_are_refused(tmp_path):
    pytest.importorskip("paddle")
    for name in ("model.pdmodel", "model.pdiparams"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(cli.UserError, match="--model_file: .*model.pdmodel is broken"):
        infer.main(["--model_dir", tmp_path, "--random_input", "1,3,32,32"])


@pytest.mark.parametrize("runtime", choice.RUNTIMES)
def test_more_threads_than_the_machine_has_are_refused(runtime, tmp_path):
    with pytest.raises(cli.UserError, match="--cpu_threads: 100000 is too many"):
        infer.main(["--runtime", runtime, "--cpu_threads", 100000, "--model_dir", tmp_path, "-i", tmp_path])
    # Published commands ask for some more than a small machine has.
    assert choice.runtime_options(runtime=runtime, cpu_threads=16).cpu_threads == 16


@pytest.mark.parametrize("present", [False, True])
def test_paddles_openvino_leaves_the_working_folder_alone(present, weights, tmp_path, monkeypatch):
    paddle = pytest.importorskip("paddle")
    if not hasattr(paddle.pir_utils, "OldIrGuard"):
        pytest.skip("Paddle 2.6 carries no OpenVINO")
    from denoising.export import writing

    here = tmp_path / "here"
    here.mkdir()
    if present:
        (here / "__cache__").mkdir()
    monkeypatch.chdir(here)
    program = writing.export(writing.load_exportable(weights)[0], tmp_path, "pdmodel")
    options = choice.runtime_options(model_file=str(program), use_openvino=True, cpu_threads=1)
    runtime = choice.open_runtime(options, trusted=True)
    assert runtime(np.zeros((1, 3, 40, 50), np.float32)).shape == (1, 3, 40, 50)
    assert os.listdir(here) == (["__cache__"] if present else [])
    assert not present or os.listdir(here / "__cache__") == []
