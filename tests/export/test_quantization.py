"""8 bits in the real runtimes, and the script that writes them."""

import json
import shutil

import numpy as np
import pytest
from networks import RUNTIMES, graph_of, histograms_of, nchw, needs_openvino, needs_runtime, opened

import infer
import quantize_model
from conftest import broken_copies, noisy_scene, save, scene
from denoising import cli, machine
from denoising.export import onnx_file, quantization, writing
from denoising.files import images
from denoising.imaging.noise import parse_noise
from denoising.runtimes import choice, onnx_runtimes

paddle = pytest.importorskip("paddle")
onnx = pytest.importorskip("onnx")

needs_vnni = pytest.mark.skipif(not machine.adds_bytes_exactly(), reason="8-bit sums overflow on this CPU")


@pytest.fixture(scope="module")
def noisy_folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("noisy")
    for i in range(4):
        save(root / f"{i}.png", noisy_scene(90 + 10 * i, 130, seed=i))
    return root


@pytest.fixture(scope="module")
def int8_folder(weights, noisy_folder, tmp_path_factory):
    if not (RUNTIMES and machine.adds_bytes_exactly()):
        pytest.skip("nothing runs 8 bits here")
    out = tmp_path_factory.mktemp("int8")
    flags = ["--model_path", weights, "--images", noisy_folder, "--save_dir", out, "--crops", 6, "--least", 20]
    assert quantize_model.main([*flags, "--float_layers", "nin_c"]) == 0
    return out


@needs_runtime
@needs_vnni
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_int8_is_computed_in_int8(runtime, int8_folder, weights, tmp_path):
    from denoising.inference.checkpoint import load_network

    data = (int8_folder / "model_int8.onnx").read_bytes()
    model = graph_of(data)
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    kernels = [node for node in model.graph.node if node.op_type == "Conv"]
    assert sum(node.input[1].endswith("/weight") for node in kernels) == 24
    assert sum(kind == onnx.TensorProto.INT8 and name.endswith(".weight") for name, kind in types.items()) == 24
    exported = opened(data, tmp_path, runtime, "int8")
    done = exported.facts["convolutions"]
    # ONNX Runtime computes the one before the float layer in float, too.
    assert done["int8"] >= 23
    assert done["int8"] + done["fp32"] == 25
    assert exported.record["int8_convolutions"] <= done["int8"]
    network, _ = load_network(weights)
    x = nchw(61, 85, 3)
    with paddle.no_grad():
        expected = network(paddle.to_tensor(x)).numpy()
    error = np.sqrt(np.mean((exported(x) - expected) ** 2))
    # Four channels hide little of 25 layers' rounding.
    assert 1e-4 < error < 0.2 * expected.std()


@needs_runtime
@needs_vnni
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_runtime_that_falls_back_to_float_is_refused(runtime, weights, tmp_path):
    """A file that says to be 8-bit, of which most is float."""
    from dataclasses import replace

    from denoising.inference.checkpoint import load_network

    network, _ = load_network(weights)
    nodes = writing.trace(network)
    stretched, int8 = quantization.fit(nodes, histograms_of(network, nodes, [nchw(64, 64, 3)], tmp_path), "absmax")
    names = [node.name for node in nodes if node.kind == "conv"]
    data = writing.to_onnx(stretched, network, {}, replace(int8, floats=frozenset(names[2:])))
    model = graph_of(data)
    del model.metadata_props[:]
    data = onnx_file.sealed(model.SerializeToString(), {"precision": "int8", "int8_convolutions": 24})
    with pytest.raises(cli.UserError, match=rf"--precision: {runtime} runs \d of 25 convolutions in int8"):
        opened(data, tmp_path, runtime, "int8")
    # A float file without our record is no 8-bit one either.
    plain = writing.to_onnx(nodes, network, {})
    model = graph_of(plain)
    del model.metadata_props[:]
    with pytest.raises(cli.UserError, match=rf"--precision: {runtime} runs 0 of 25 convolutions in int8"):
        opened(model.SerializeToString(), tmp_path, runtime, "int8")
    model = graph_of(writing.to_onnx(stretched, network, {}, int8))
    del model.metadata_props[:]
    with pytest.raises(cli.UserError, match="holds 8-bit weights: --precision=int8"):
        opened(model.SerializeToString(), tmp_path, runtime)


@needs_runtime
@needs_vnni
def test_infer_runs_what_quantize_writes(int8_folder, noisy_folder, tmp_path, capsys):
    for runtime in RUNTIMES:
        flags = ["--runtime", runtime, "--precision", "int8", "--model_dir", str(int8_folder), "--json"]
        flags += ["-i", str(noisy_folder), "--save_dir", str(tmp_path / runtime), "--cpu_threads", "1", "-b", "2"]
        capsys.readouterr()
        assert infer.main(flags) == 0
        facts = json.loads(capsys.readouterr().out)["engine"]
        assert (facts["runtime"], facts["precision"], facts["runtime_device"]) == (runtime, "int8", "cpu")
        assert len(list((tmp_path / runtime).glob("*_denoise.png"))) == 4
    pictures = [
        [images.read_image(tmp_path / r / f"{i}_denoise.png").pages[0].astype(int) for i in range(4)] for r in RUNTIMES
    ]
    for several in zip(*pictures, strict=True):
        assert np.abs(several[0] - several[-1]).mean() < 10


@needs_openvino
@needs_vnni
@pytest.mark.slow
def test_weights_that_ship_lose_little(tmp_path, capsys):
    """Calibrated on pictures of scikit-image, scored on others, which ship in validation/."""
    from skimage import data

    # Dark pictures alone would leave ranges that clip bright ones, at a loss of 0.1 dB.
    pictures = {name: getattr(data, name)() for name in ("rocket", "immunohistochemistry", "retina", "colorwheel")}
    for name, picture in {**pictures, "motorcycle": data.stereo_motorcycle()[0]}.items():
        save(tmp_path / "images" / f"{name}.png", picture[..., :3])
    flags = ["--model_path", "best_model.pdparams", "--images", str(tmp_path / "images"), "--noise", "gauss25"]
    flags += ["--save_dir", str(tmp_path), "--crops", "9", "--float_layers", "nin_c", "--json"]
    assert quantize_model.main(flags) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["psnr_against_float"] > 50
    assert (tmp_path / "model_int8.onnx").stat().st_size < 1.5e6
    from denoising.inference.checkpoint import load_network

    network, options = load_network("best_model.pdparams")
    writing.write(network, tmp_path, "onnx", writing.record_of(network, options))
    means = {}
    for precision in ("fp32", "int8"):
        flags = ["--runtime", "openvino", "--precision", precision, "--model_dir", str(tmp_path), "--json"]
        assert infer.main([*flags, "-i", "validation/Sample", "--noise", "gauss25"]) == 0
        means[precision] = json.loads(capsys.readouterr().out)["mean"]
    assert means["fp32"]["psnr"] > 30
    # The aim is 0.05, which two dozen crops of photographs reach; these nine reach 0.055.
    assert 0 < means["fp32"]["psnr"] - means["int8"]["psnr"] < 0.1
    # Of flat areas, where the float network is exactly black or white, half a step of 256 is much.
    assert means["fp32"]["ssim"] - means["int8"]["ssim"] < 0.004


@needs_runtime
@needs_vnni
def test_paddle_runs_8_bits_of_its_own(weights, noisy_folder, tmp_path, capsys):
    flags = ["--model_path", weights, "--images", noisy_folder, "--save_dir", tmp_path, "--crops", 3, "--least", 15]
    assert quantize_model.main([*flags, "--format", "pdmodel", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["float_layers"] == ["up5.deconv", "up4.deconv", "up3.deconv", "up2.deconv", "up1.deconv", "nin_c"]
    model = ["--model_dir", str(tmp_path), "-i", str(noisy_folder / "0.png"), "--json"]
    assert infer.main([*model, "--precision", "int8"]) == 0
    assert json.loads(capsys.readouterr().out)["engine"]["convolutions"]["int8"] == 19
    with pytest.raises(cli.UserError, match="--precision: .*holds 8-bit weights"):
        infer.main(model)


@pytest.mark.skipif(not hasattr(paddle.pir_utils, "OldIrGuard"), reason="Paddle 2.6 carries no OpenVINO")
def test_paddles_own_openvino_runs_as_asked(weights, tmp_path, capsys):
    from denoising.inference.checkpoint import load_network

    network, options = load_network(weights)
    writing.write(network, tmp_path, "pdmodel", {})
    for precision in ("fp32", "bf16"):
        options = choice.runtime_options(model_dir=str(tmp_path), use_openvino=True, precision=precision, cpu_threads=1)
        if precision == "bf16" and "avx512_bf16" not in machine.cpu_flags():
            with pytest.raises(cli.UserError, match="--precision: Paddle's OpenVINO does not compute in bf16"):
                choice.open_runtime(options, trusted=True)
            continue
        runtime = choice.open_runtime(options, trusted=True)
        assert "its OpenVINO" in runtime.describe()
        difference = writing.largest_difference(network, runtime)
        assert difference < 1e-5 if precision == "fp32" else 1e-5 < difference < 0.1


# --- Files that are broken, and flags that do not fit -------------------------------------------------------


@needs_runtime
def test_changed_files_are_refused_in_one_line(weights, tmp_path):
    from denoising.inference.checkpoint import load_network

    network, options = load_network(weights)
    path = writing.write(network, tmp_path, "onnx", writing.record_of(network, options))
    data = path.read_bytes()
    onnx_runtimes.read_onnx(path)
    for damaged in broken_copies(data, len(data) // 50):
        if damaged == data:
            continue
        path.write_bytes(damaged)
        with pytest.raises(cli.UserError, match="--model_file: "):
            choice.open_runtime(choice.runtime_options(runtime=RUNTIMES[0], model_file=str(path)))


@needs_runtime
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_files_of_others_run_or_are_refused_in_one_line(runtime, weights, tmp_path):
    from denoising.inference.checkpoint import load_network

    network, _ = load_network(weights)
    model = graph_of(writing.to_onnx(writing.trace(network), network, {}))
    del model.metadata_props[:]
    exported = opened(model.SerializeToString(), tmp_path, runtime)
    assert writing.largest_difference(network, exported) < 1e-5
    for tensor in model.graph.initializer:
        if tensor.name == "enc_conv1.weight":
            tensor.ClearField("raw_data")  # weights that are not there
    for broken in (model.SerializeToString(), b"", b"\x3a\x02\x0a\x00"):
        with pytest.raises(cli.UserError, match="--model_file: .*fp32.onnx") as error:
            opened(broken, tmp_path, runtime)
        assert "\n" not in str(error.value)
    tensor = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 4])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 4])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [tensor], [out])
    small = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    with pytest.raises(cli.UserError, match="takes no images"):
        opened(small.SerializeToString(), tmp_path, runtime, trusted=False)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--runtime", "openvino", "--use_gpu", "True"], "--use_gpu: "),
        (["--runtime", "openvino", "--enable_mkldnn", "True"], "--enable_mkldnn: is Paddle's"),
        (["--runtime", "openvino", "--ir_optim", "False"], "--ir_optim: OpenVINO always"),
        (["--runtime", "openvino", "--use_openvino", "True"], "--use_openvino: "),
        (["--runtime", "onnxruntime", "--precision", "bf16"], "--precision: bf16 is not computed by ONNX Runtime"),
        (["--runtime", "onnxruntime", "--precision", "int8"], "--model_dir: .* has no model_int8.onnx; tools/quant"),
        (["--runtime", "onnxruntime", "--use_tensorrt", "True"], "--use_tensorrt: needs --use_gpu"),
        (["--runtime", "onnxruntime", "--params_file", "x", "--model_file", "README.md"], "README.md is no .onnx file"),
        (["--model_file", "MODEL"], "is run by --runtime=openvino or onnxruntime"),
    ],
)
def test_flags_that_do_not_fit_are_refused(flags, words, weights, tmp_path):
    from denoising.inference.checkpoint import load_network

    runtime = flags[1] if flags[0] == "--runtime" else None
    if runtime and runtime not in RUNTIMES:
        pytest.skip(f"{runtime} is not installed")
    network, _ = load_network(weights)
    path = writing.write(network, tmp_path, "onnx", {})
    flags = [str(path) if flag == "MODEL" else flag for flag in flags]
    with pytest.raises(cli.UserError, match=words):
        infer.main(["--model_dir", str(tmp_path), "-i", "demo", *flags])


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_missing_package_is_named(runtime, tmp_path, monkeypatch):
    (tmp_path / "model.onnx").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, runtime, None)
    with pytest.raises(cli.UserError, match=f"--runtime: {runtime} needs the package {runtime}: pip install {runtime}"):
        infer.main(["--runtime", runtime, "--model_dir", str(tmp_path), "-i", "demo"])
    monkeypatch.setattr(writing, "installed_runtimes", list)
    with pytest.raises(cli.UserError, match="--runtime: openvino or onnxruntime is needed"):
        quantize_model.main(["--model_path", "best_model.pdparams", "--images", "demo", "--save_dir", str(tmp_path)])


@needs_runtime
def test_quantising_of_bad_input_is_refused(weights, noisy_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(machine, "adds_bytes_exactly", lambda: True)  # it is refused before anything is computed
    shutil.copy("README.md", tmp_path / "text.png")
    ok = ["--model_path", str(weights), "--save_dir", str(tmp_path / "out")]
    for flags, words in (
        (["--images", tmp_path / "none"], "--images: .*none does not exist"),
        (["--images", tmp_path / "text.png"], "--images: no image of .*text.png can be read"),
        (["--images", noisy_folder, "--noise", "gauss"], "--noise: unknown noise"),
        (["--images", noisy_folder, "--float_layers", "nin_x"], "--float_layers: there is no layer nin_x"),
        (["--images", noisy_folder, "--name", "a/b.onnx"], "--name: "),
        (["--images", noisy_folder, "--model_path", "README.md"], "README.md"),
    ):
        with pytest.raises(cli.UserError, match=words):
            quantize_model.main([*ok, *map(str, flags)])
    assert not list((tmp_path / "out").glob("*"))
    with pytest.raises(SystemExit) as ended:
        quantize_model.main([*ok, "--images", noisy_folder, "--crops", 1])
    assert ended.value.code == 2
    assert "--crops" in capsys.readouterr().err


@needs_runtime
def test_quantising_needs_a_cpu_that_adds_bytes_exactly(weights, noisy_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "adds_bytes_exactly", lambda: False)
    with pytest.raises(cli.UserError, match="^8 bits are calibrated by computing in them, .* lacks VNNI"):
        quantize_model.main(["--model_path", weights, "--images", noisy_folder, "--save_dir", tmp_path / "out"])
    assert not list((tmp_path / "out").glob("*"))


@needs_runtime
@needs_vnni
def test_a_bad_result_is_not_written_and_a_model_of_others_not_replaced(
    int8_folder, noisy_folder, weights, tmp_path, capsys
):
    flags = ["--model_path", weights, "--images", noisy_folder, "--crops", 3, "--float_layers", "none"]
    assert quantize_model.main([*flags, "--save_dir", tmp_path, "--least", 150]) == 1
    assert "quantisation failed" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    shutil.copy(int8_folder / "model_int8.onnx", tmp_path)
    (tmp_path / "other_int8.onnx").write_bytes(b"mine")
    with pytest.raises(cli.UserError, match="--overwrite"):
        quantize_model.main([*flags, "--save_dir", tmp_path, "--name", "other_int8.onnx"])
    # The same weights: made again, and the same to the bit.
    made = []
    for _ in range(2):
        assert quantize_model.main([*flags, "--save_dir", tmp_path, "--least", 10, "--seed", 3]) == 0
        made.append((tmp_path / "model_int8.onnx").read_bytes())
    assert made[0] == made[1]


@needs_runtime
def test_a_float_model_of_the_same_weights_is_not_replaced_by_one_of_8_bits_nor_the_other_way(
    noisy_folder, weights, tmp_path
):
    network, options = writing.load_exportable(weights)
    (tmp_path / "model.pdmodel").write_bytes(b"a program")
    writing.write_record(tmp_path, writing.record_of(network, options))
    flags = ["--model_path", weights, "--images", noisy_folder, "--format", "pdmodel", "--save_dir", tmp_path]
    with pytest.raises(cli.UserError, match=r"--save_dir: .*model.pdmodel exists, in fp32; .*--overwrite"):
        quantize_model.main(flags)
    int8 = writing.record_of(network, options, "int8")
    writing.check_replaceable(tmp_path, "pdmodel", int8, overwrite=True)
    (tmp_path / writing.FACTS).unlink()
    writing.write_record(tmp_path, int8)
    writing.check_replaceable(tmp_path, "pdmodel", int8, overwrite=False)
    with pytest.raises(cli.UserError, match=r"model.pdmodel exists, in int8; "):
        writing.check_replaceable(tmp_path, "pdmodel", writing.record_of(network, options), overwrite=False)


def test_noise_is_added_to_crops_of_clean_images_only(tmp_path):
    from denoising.export import calibration

    save(tmp_path / "a.png", scene(250, 230))
    save(tmp_path / "small.png", scene(40, 30, 1))
    (tmp_path / "broken.png").write_bytes(b"no image")
    plain = calibration.read_crops("--images", tmp_path, parse_noise("none"), 3, count=5)
    noisy = calibration.read_crops("--images", tmp_path, parse_noise("gauss100"), 3, count=5)
    assert len(plain) == len(noisy) == 5
    assert {crop.noisy.shape for crop in plain} == {(1, 3, 192, 192), (1, 3, 40, 30)}
    assert all(crop.clean is None for crop in plain)
    for crop in noisy[::2]:  # the whole noise
        assert np.std(crop.noisy[0].transpose(1, 2, 0) - crop.clean) == pytest.approx(100 / 255, rel=0.05)
        assert crop.noisy.min() < 0
        assert crop.noisy.max() > 1
    for crop in noisy[1::2]:  # as files have it
        assert crop.noisy.min() == 0
        assert crop.noisy.max() == 1
