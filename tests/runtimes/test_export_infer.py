"""From weights to denoised pictures through Paddle Inference: right, as asked, and calm about bad input."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import export_model
import forks
import infer
from conftest import assert_user_error, noisy_scene, run_script, save, scene
from denoising import cli
from denoising.export import writing
from denoising.files import images
from denoising.imaging.metrics import psnr, ssim
from denoising.runtimes import paddle_inference

paddle = pytest.importorskip("paddle")
PIR = hasattr(paddle.pir_utils, "OldIrGuard")
FORMATS = ["pdmodel", "json"] if PIR else ["pdmodel"]
CPUINFO = Path("/proc/cpuinfo")
BF16 = CPUINFO.exists() and "avx512_bf16" in CPUINFO.read_text()


@pytest.fixture(scope="session")
def exports(weights, tmp_path_factory):
    """An export in each format that this Paddle writes."""
    root = tmp_path_factory.mktemp("exports")
    for kind in FORMATS:
        assert export_model.main(["--model_path", weights, "--save_dir", root / kind, "--format", kind]) == 0
    return root


@pytest.fixture
def model(exports, tmp_path):
    """A copy of the export that a test may spoil."""
    return shutil.copytree(exports / "pdmodel", tmp_path / "model")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Three sizes, one of them twice and not in a row; grey, 16 bits, transparency."""
    root = tmp_path_factory.mktemp("pictures")
    for name, size in {"a": (37, 53), "b": (61, 45), "sub/c": (37, 53), "d": (33, 20), "e": (37, 53)}.items():
        save(root / f"{name}.png", noisy_scene(*size, seed=ord(name[-1])))
    return root


def run(capsys, *flags):
    """Runs infer.py in this process and returns what it says as JSON."""
    capsys.readouterr()
    code = infer.main([*map(str, flags), "--json"])
    return code, json.loads(capsys.readouterr().out)


def folder_content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# --- Export -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
def test_export_computes_what_the_network_computes(kind, exports, weights, capsys):
    from denoising.inference.checkpoint import load_network

    network, _ = load_network(weights)
    options = infer.get_parser().parse_args(["--random_input", "1,3,8,8", "--enable_mkldnn", "False"])
    infer.check_options(options)
    program = exports / kind / export_model.PROGRAM[kind]
    runtime = paddle_inference.PaddleInference(program, exports / kind / "model.pdiparams", options)
    assert runtime.channels == 3
    for height, width in ((1, 1), (33, 57), (64, 32), (97, 2)):
        x = np.random.default_rng(0).random((2, 3, height, width), dtype=np.float32)
        expected = network(paddle.to_tensor(x)).numpy()
        assert expected.std() > 0.01
        np.testing.assert_allclose(runtime(x), expected, atol=1e-5)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("options", [{"arch": "unet_photons"}, {"arch": "unet_lite", "careful": True}])
def test_what_comes_after_the_layers_is_exported_with_them(options, kind, tmp_path, capsys):
    """The export compares itself with the network; where bf16 would be partial it is refused, and does not crash."""
    from arch_unet import build_network
    from denoising.inference import checkpoint

    paddle.seed(3)
    network = build_network(**options, n_feature=4)
    network.last.weight.set_value(network.last.weight * 10)
    weights = tmp_path / "w.pdparams"
    checkpoint.save_network(weights, checkpoint.network_state(network), network.options)
    assert export_model.main(["--model_path", weights, "--save_dir", tmp_path / kind, "--format", kind]) == 0
    differences = re.findall(r"largest difference from the network.*: (\S+)", capsys.readouterr().out)
    assert len(differences) == 2
    assert max(map(float, differences)) < 1e-5
    if BF16:
        done = forks.run(
            "infer.py", "--model_dir", tmp_path / kind, "--random_input", "1,3,32,32", "--precision", "bf16"
        )
        assert done.returncode == 2
        assert "would run in bf16" in done.stderr


def test_export_prints_the_difference_and_repeats_itself(weights, tmp_path, capsys):
    flags = ["--model_path", weights, "--save_dir", tmp_path / "out"]
    for _ in range(2):
        assert export_model.main(flags) == 0
        found = re.findall(
            r"largest difference from the network, oneDNN (?:on |off): ([\d.e+-]+)", capsys.readouterr().out
        )
        assert len(found) == 2
        assert all(float(value) <= 1e-5 for value in found)
    assert not [name for name in folder_content(tmp_path / "out") if name.startswith(".")]


def test_export_of_other_weights_is_not_replaced_unasked(model, weights, tmp_path):
    from denoising.inference.checkpoint import load_network, network_state, save_network

    network, options = load_network(weights)
    network.nin_c.bias.set_value(network.nin_c.bias + 0.5)
    save_network(tmp_path / "other.pdparams", network_state(network), options)
    before = folder_content(model)
    flags = ["--model_path", tmp_path / "other.pdparams", "--save_dir", model]
    with pytest.raises(cli.UserError, match="--overwrite"):
        export_model.main(flags)
    assert folder_content(model) == before
    assert export_model.main([*flags, "--overwrite"]) == 0
    assert folder_content(model)["model.pdiparams"] != before["model.pdiparams"]


def test_a_spoilt_export_is_not_replaced_unasked(model, weights):
    (model / "model.pdiparams").write_bytes(b"mine")
    with pytest.raises(cli.UserError, match="--overwrite"):
        export_model.main(["--model_path", weights, "--save_dir", model])


@pytest.mark.parametrize("step", range(5))
def test_a_killed_export_leaves_no_program_beside_foreign_weights(step, model, weights, monkeypatch):
    steps = iter(range(100))
    replace = os.replace

    def killed(source, target):
        if "deploy" in str(source) and ".tmp" in str(source):  # the record's own atomic write
            return replace(source, target)
        if next(steps) == step:
            raise KeyboardInterrupt
        return replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    flags = ["--model_path", weights, "--save_dir", model, "--overwrite"]
    try:
        export_model.main(flags)
    except KeyboardInterrupt:
        assert not (model / "model.pdmodel").exists()
    else:
        assert step >= 3
        paddle_inference.read_record(model / "model.pdmodel", model / "model.pdiparams")
    assert not list(model.glob(".export-*"))


def test_a_wrong_export_is_a_failure_that_writes_nothing(weights, tmp_path, monkeypatch, capsys):
    plain = writing.with_plain_biases

    def spoilt(program):
        # The slope of the activations, as a converter once got it wrong.
        return plain(program).replace(np.float32(0.2).tobytes(), np.float32(0.3).tobytes())

    monkeypatch.setattr(writing, "with_plain_biases", spoilt)
    assert export_model.main(["--model_path", weights, "--save_dir", tmp_path / "out"]) == 1
    assert "export failed" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.skipif(PIR, reason="Paddle 3 writes model.json")
def test_json_is_refused_by_paddle_2(weights, tmp_path):
    with pytest.raises(cli.UserError, match=r"--format: Paddle 2[\d.]+ cannot write model.json"):
        export_model.main(["--model_path", weights, "--save_dir", tmp_path, "--format", "json"])


def test_export_of_bad_input_is_refused(weights, tmp_path):
    (tmp_path / "truncated.pdparams").write_bytes(weights.read_bytes()[:1000])
    (tmp_path / "file").write_text("")
    for flags, words in (
        (["--model_path", tmp_path / "none.pdparams"], "--model_path: .*none.pdparams does not exist"),
        (["--model_path", tmp_path / "truncated.pdparams"], "truncated.pdparams"),
        (["--model_path", weights, "--save_dir", tmp_path / "file"], "--save_dir: "),
    ):
        with pytest.raises(cli.UserError, match=words):
            export_model.main(["--save_dir", tmp_path / "out", *flags])
    assert not folder_content(tmp_path).keys() - {"truncated.pdparams", "file"}


def test_export_says_one_line_to_a_user(weights, tmp_path, capsys):
    assert_flags_refused(export_model.main, ["--save_dir", tmp_path / "o"], "--model_path", capsys)
    assert_flags_refused(export_model.main, ["--model_path", weights, "--formt", "json"], "--formt", capsys)
    (tmp_path / "truncated.pdparams").write_bytes(weights.read_bytes()[:1000])
    flags = ["--model_path", tmp_path / "truncated.pdparams", "--save_dir", tmp_path / "o"]
    result = run_script("export_model.py", *flags, cwd=tmp_path)
    assert_user_error(result, "truncated.pdparams")
    assert len(result.stderr.splitlines()) == 1, result.stderr


def assert_flags_refused(main, flags, word, capsys):
    """Flags that the parser refuses: exit code 2 and one line."""
    with pytest.raises(SystemExit) as ended:
        main(flags)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert word in line


# --- The runtime does what is asked -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
def test_onednn_is_really_on_or_off(kind, exports, pictures, capsys):
    for asked in (True, False):
        flags = ("--model_dir", exports / kind, "-i", pictures / "a.png", "--enable_mkldnn", asked)
        facts = run(capsys, *flags, "--cpu_threads", 1 + asked)[1]["engine"]
        assert facts["enable_mkldnn"] is asked
        assert facts["convolutions_by_onednn"] == (20 if asked else 0)
        assert facts["cpu_math_library_num_threads"] == 1 + asked
        assert facts["runtime_device"] == "cpu"


def test_onednn_that_paddle_would_drop_is_refused(exports, pictures):
    flags = ["--model_dir", exports / "pdmodel", "-i", pictures / "a.png", "--ir_optim", "False"]
    with pytest.raises(cli.UserError, match="--enable_mkldnn: asked for True, but oneDNN runs 0 convolutions"):
        infer.main(flags)


@pytest.mark.skipif(not BF16, reason="this CPU has no bfloat16")
def test_bf16_computes_in_bf16(exports, pictures, tmp_path, capsys):
    outputs = {}
    for precision in ("fp32", "bf16"):
        flags = ("--model_dir", exports / "pdmodel", "-i", pictures / "a.png", "--save_dir", tmp_path / precision)
        code, result = run(capsys, *flags, "--precision", precision, "--enable_mkldnn", "True")
        assert code == 0
        assert result["engine"]["precision"] == precision
        outputs[precision] = np.asarray(Image.open(tmp_path / precision / "a_denoise.png"), float)
    difference = np.abs(outputs["fp32"] - outputs["bf16"])
    assert 0 < difference.max() <= 32
    assert difference.mean() < 1


@pytest.mark.skipif(not PIR, reason="Paddle 2 has no model.json")
def test_bf16_of_a_part_is_refused(exports, pictures):
    with pytest.raises(cli.UserError, match=r"--precision: only \d+ of 20 convolutions would run in bf16"):
        infer.main(["--model_dir", exports / "json", "-i", pictures / "a.png", "--precision", "bf16"])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--precision", "fp16"], "--precision: fp16"),
        (["--precision", "int8"], "--precision: .*holds float weights"),
        (["--precision", "int8", "--enable_mkldnn", "False"], "--precision: int8 is computed by oneDNN"),
        (["--precision", "bf16", "--enable_mkldnn", "False"], "--precision: bf16"),
        (["--use_tensorrt", "True"], "--use_tensorrt: needs --use_gpu"),
        (["--use_gpu", "True", "--enable_mkldnn", "True"], "--enable_mkldnn: oneDNN is for CPUs"),
        (["--noise", "gauss"], "--noise: unknown noise"),
    ],
)
def test_what_would_not_run_as_asked_is_refused(flags, words, exports, pictures):
    with pytest.raises(cli.UserError, match=words):
        infer.main(["--model_dir", exports / "pdmodel", "-i", pictures, *flags])


@pytest.mark.skipif(paddle.is_compiled_with_cuda(), reason="this Paddle may have a GPU")
def test_a_gpu_that_is_not_there_is_refused(exports, pictures):
    with pytest.raises(cli.UserError, match="--use_gpu: this Paddle is built for CPUs only"):
        infer.main(["--model_dir", exports / "pdmodel", "-i", pictures, "--use_gpu", "True"])


# --- Images -------------------------------------------------------------------------------------------------


def test_batches_of_mixed_sizes_equal_single_runs(exports, pictures, tmp_path, capsys):
    results = {}
    for batch in (1, 2, 5):
        flags = ("--model_dir", exports / "pdmodel", "-i", pictures, "-b", batch, "--save_dir", tmp_path / str(batch))
        code, result = run(capsys, *flags, "--noise", "gauss25", "--seed", 3)
        assert code == 0
        names = [os.path.relpath(image["input"], pictures) for image in result["images"]]
        assert names == ["a.png", "b.png", "d.png", "e.png", "sub/c.png"]
        results[batch] = {
            name: np.asarray(Image.open(tmp_path / str(batch) / name.replace(".png", "_denoise.png")), int)
            for name in names
        }
    for batch in (2, 5):
        for name, image in results[batch].items():
            # Rounding may fall to either side.
            assert np.abs(image - results[1][name]).max() <= 1, name


def test_few_pictures_wait_for_others_of_their_size(tmp_path):
    class Runtime:
        record, channels = {}, 1
        batches = []

        def bytes_for(self, shape):
            return 0

        def __call__(self, x):
            self.batches.append(x.shape)
            return x

    for i in range(40):
        save(tmp_path / f"{i:02d}.png", scene(16 + (i if i % 4 else 0), 16)[..., :1])
    options = infer.get_parser().parse_args(["-i", str(tmp_path), "-b", "2"])
    runtime, held = Runtime(), []

    class Runner(infer.Runner):
        def _load(self, job):
            super()._load(job)
            held.append(sum(other.picture is not None for other in jobs))

    jobs = infer.plan(options)
    Runner(runtime, infer.BenchmarkLog("", "fp32", 2, "dynamic", {}).times, options, None).run(jobs)
    assert max(held) == infer.WAITING * 2 + 1
    assert sum(shape[0] for shape in runtime.batches) == 40
    assert [shape[0] for shape in runtime.batches if shape[2] == 16] == [2] * 5  # they met all the same


def test_noise_is_added_only_if_asked_and_by_seed(exports, pictures, tmp_path, capsys):
    def scores(*flags):
        flags = (*flags, "--save_dir", tmp_path, "--overwrite")
        result = run(capsys, "--model_dir", exports / "pdmodel", "-i", pictures, *flags)[1]
        return [(image.get("psnr"), image.get("ssim")) for image in result["images"]]

    assert scores() == [(None, None)] * 5
    first = scores("--noise", "gauss25", "--seed", 1)
    assert first == scores("--noise", "gauss25", "--seed", 1)
    other = scores("--noise", "gauss25", "--seed", 2)
    assert first != other
    # Scored against the input before the noise.
    clean, denoised = (images.read_image(path).pages[0] for path in (pictures / "a.png", tmp_path / "a_denoise.png"))
    assert other[0] == (pytest.approx(psnr(clean, denoised, 255)), pytest.approx(ssim(clean, denoised, 255)))


def test_scores_against_truth(exports, pictures, tmp_path, capsys):
    flags = ("--model_dir", exports / "pdmodel", "-i", pictures, "--save_dir", tmp_path / "out")
    run(capsys, *flags)
    # The truth is what comes out: infinite PSNR, in another format and folder.
    for path in sorted((tmp_path / "out").rglob("*.png")):
        name = path.relative_to(tmp_path / "out").with_name(path.name.replace("_denoise", ""))
        save(tmp_path / "gt" / name.with_suffix(".bmp"), np.asarray(Image.open(path)))
    capsys.readouterr()
    assert infer.main([*map(str, flags[:4]), "--gt_dir", str(tmp_path / "gt")]) == 0
    out = capsys.readouterr().out
    assert "Metric psnr: inf\nMetric ssim: 1.0000\n" in out
    told = run(capsys, *flags[:4], "--gt_dir", tmp_path / "gt")[1]
    assert {scores["psnr"] for scores in (told["mean"], *told["images"])} == {None}  # JSON knows no infinity
    (tmp_path / "gt" / "sub" / "c.bmp").unlink()
    with pytest.raises(cli.UserError, match=r"--gt_dir: .*gt has no sub/c.png"):
        infer.main([*map(str, flags[:4]), "--gt_dir", str(tmp_path / "gt")])
    save(tmp_path / "gt" / "a.bmp", scene(10, 10))
    with pytest.raises(cli.UserError, match=r"--gt_dir: .*a.bmp has another shape"):
        infer.main(["--model_dir", exports / "pdmodel", "-i", pictures / "a.png", "--gt_dir", tmp_path / "gt"])


def test_a_truth_of_another_shape_costs_the_score_and_not_the_result(exports, pictures, tmp_path, capsys):
    source, out, truths = tmp_path / "in", tmp_path / "out", tmp_path / "gt"
    for name in ("a", "b"):
        save(source / f"{name}.png", noisy_scene(24, 32))
        save(truths / f"{name}.png", scene(24, 32) if name == "a" else scene(10, 10))
    flags = ("--model_dir", exports / "pdmodel", "-i", source, "--gt_dir", truths, "--save_dir", out)
    assert infer.main([*map(str, flags)]) == 1
    told = capsys.readouterr()
    assert [path.name for path in sorted(out.iterdir())] == ["a_denoise.png", "b_denoise.png"]
    assert f"\n{out / 'b_denoise.png'}\n" in told.out
    assert "b.png has another shape" in told.err
    assert "1 of 2 images were denoised, but not scored" in told.err
    assert "could not be denoised" not in told.err


def test_kinds_of_images_are_kept(exports, tmp_path, capsys):
    source, out = tmp_path / "in", tmp_path / "out"
    image = scene(40, 35)
    save(source / "grey.png", image[..., :1])
    save(source / "alpha.png", np.dstack([image, image[..., 0]]))
    images.write_image(source / "deep.png", image.astype(np.uint16) * 257)
    images.write_image(source / "float.npy", image.astype(np.float32) / 255)
    images.write_image(source / "stack.tif", [image, image[:20], image[::-1]])
    code, _ = run(capsys, "--model_dir", exports / "pdmodel", "-i", source, "--save_dir", out, "-b", 2)
    assert code == 0
    for path in source.iterdir():
        before = images.read_image(path)
        after = images.read_image(out / f"{path.stem}_denoise{path.suffix}")
        assert [(p.shape, p.dtype) for p in after.pages] == [(p.shape, p.dtype) for p in before.pages]
        assert (after.alpha is None) == (before.alpha is None)
    three = images.read_image(out / "stack_denoise.tif").pages
    run(capsys, "--model_dir", exports / "pdmodel", "-i", save(tmp_path / "p.png", image[:20]), "--save_dir", out)
    assert np.abs(three[1].astype(int) - images.read_image(out / "p_denoise.png").pages[0]).max() <= 1


def test_results_are_not_replaced_unasked(exports, pictures, tmp_path, capsys):
    flags = ("--model_dir", exports / "pdmodel", "-i", pictures, "--save_dir", tmp_path)
    run(capsys, *flags)
    with pytest.raises(cli.UserError, match="--save_dir: .*a_denoise.png exists; --overwrite replaces it"):
        infer.main(list(flags))
    assert run(capsys, *flags, "--overwrite")[0] == 0


def test_two_inputs_of_one_result_are_refused(exports, tmp_path):
    for name in ("a.png", "a.bmp"):
        save(tmp_path / "in" / name, scene(20, 20))
    with pytest.raises(cli.UserError, match="--input_file: .*a.bmp and .*a.png would both become .*a_denoise.png$"):
        infer.main(["--model_dir", exports / "pdmodel", "-i", tmp_path / "in", "--save_dir", tmp_path / "out"])


def test_a_broken_image_among_good_ones_is_reported(exports, pictures, tmp_path, capsys):
    source = shutil.copytree(pictures, tmp_path / "in")
    (source / "b.png").write_bytes(b"no image")
    images.write_image(source / "six.npy", np.zeros((20, 20, 6), np.float32))
    code, result = run(capsys, "--model_dir", exports / "pdmodel", "-i", source, "-b", 2, "--save_dir", tmp_path / "o")
    assert code == 1
    errors = {os.path.basename(image["input"]): image.get("error") for image in result["images"]}
    assert sorted(name for name, error in errors.items() if error) == ["b.png", "six.npy"]
    assert "6 channels" in errors["six.npy"]
    assert len(list((tmp_path / "o").rglob("*.png"))) == 4


def test_an_image_that_fails_does_not_take_its_batch_along(exports, tmp_path, capsys):
    good = noisy_scene(20, 20).astype(np.float32) / 255
    pages = np.stack([good, good * np.float32(3e38), good * np.float32(3e38)])
    (tmp_path / "in").mkdir()
    for name, array in {"a": good, "b": pages, "c": good}.items():
        images.write_image(tmp_path / "in" / f"{name}.npy", list(array) if array.ndim == 4 else array)
    flags = ("--model_dir", exports / "pdmodel", "-i", tmp_path / "in", "-b", 5, "--save_dir", tmp_path / "out")
    code, result = run(capsys, *flags)
    assert code == 1
    assert [image.get("error") for image in result["images"]] == [
        None, f"{tmp_path / 'in' / 'b.npy'}: the result holds NaN or infinite pixels", None
    ]  # fmt: skip
    results = [images.read_image(tmp_path / "out" / f"{name}_denoise.npy").pages[0] for name in "ac"]
    np.testing.assert_array_equal(*results)


# --- Benchmark ----------------------------------------------------------------------------------------------


def test_benchmark_report_tells_what_ran(exports, pictures, capsys):
    flags = ["--model_dir", exports / "pdmodel", "-i", pictures, "-b", 2, "--enable_benchmark", "True"]
    assert infer.main([*flags, "--enable_mkldnn", "False", "--cpu_threads", 2]) == 0
    out, err = capsys.readouterr()
    for line in (
        "runtime_device: cpu",
        "enable_mkldnn: False",
        "cpu_math_library_num_threads: 2",
        "model_name: unet",
        "precision: fp32",
        "batch_size: 2",
        "data_num: 5",
    ):
        assert f"root INFO:  {line}\n" in out
    assert re.search(r"inference_time\(ms\): \d+\.\d+", out)
    assert "benchmark report by" in err


def test_random_input_is_timed(exports, capsys):
    flags = ["--model_dir", exports / "pdmodel", "--random_input", "2,3,32,48", "--repeats", 3]
    assert infer.main([*flags, "--enable_benchmark", "True"]) == 0
    out = capsys.readouterr().out
    assert "batch_size: 2\n" in out
    assert "input_shape: (2, 3, 32, 48)\n" in out
    assert "data_num: 6\n" in out
    with pytest.raises(cli.UserError, match="--random_input: the network takes 3 channels"):
        infer.main(["--model_dir", exports / "pdmodel", "--random_input", "1,1,32,32"])


@pytest.mark.parametrize("flag", ["--noise=gauss25", "--save_dir=out", "--gt_dir=.", "--batch_size=7", "--overwrite"])
def test_what_random_input_would_not_obey_is_refused(flag, exports, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(cli.UserError, match=f"^{flag.partition('=')[0]}: is for images"):
        infer.main(["--model_dir", exports / "pdmodel", "--random_input", "1,3,32,32", flag])
    assert not list(tmp_path.iterdir())


# --- Bad input: one line, exit 2, nothing of Paddle's own on the terminal --------------------------------------


def spoilt(model, how):
    program, params, record = model / "model.pdmodel", model / "model.pdiparams", model / "deploy.json"
    without_record = how.endswith("without record")
    if how.startswith("program cut"):
        program.write_bytes(program.read_bytes()[:5000])
    elif how.startswith("program of noise"):
        program.write_bytes(np.random.default_rng(0).bytes(3000))
    elif how.startswith("weights cut"):
        params.write_bytes(params.read_bytes()[:-1000])
    elif how.startswith("weights of text"):
        params.write_text("hello")
    elif how == "weights of another export":
        data = bytearray(params.read_bytes())
        data[-1] ^= 1
        params.write_bytes(data)
    elif how == "record broken":
        record.write_text("{")
    if without_record:
        record.unlink()


@pytest.mark.parametrize(
    ("how", "word"),
    [
        ("program cut", "model.pdmodel"),
        ("program cut, without record", "model.pdmodel"),
        ("program of noise, without record", "model.pdmodel"),
        ("weights cut", "model.pdiparams"),
        ("weights cut, without record", "model.pdiparams"),
        ("weights of text, without record", "model.pdiparams"),
        ("weights of another export", "model.pdiparams"),
        ("record broken", "deploy.json"),
    ],
)
def test_broken_models_are_refused(how, word, model, pictures, capfd):
    spoilt(model, how)
    with pytest.raises(cli.UserError, match=word) as error:
        infer.main(["--model_dir", model, "-i", pictures / "a.png"])
    assert "C++" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_bad_input_is_refused(exports, pictures, tmp_path):
    for name in ("empty", "onnx"):
        (tmp_path / name).mkdir()
    (tmp_path / "onnx" / "model.onnx").write_text("")
    (tmp_path / "file").write_text("")
    (tmp_path / "text.png").write_text("no image")
    ok = ["--model_dir", exports / "pdmodel"]
    for flags, words in (
        ([*ok, "-i", tmp_path / "none"], "--input_file: .*none does not exist"),
        ([*ok, "-i", tmp_path / "empty"], "--input_file: no image in"),
        ([*ok, "-i", tmp_path / "text.png"], "text.png: "),
        ([*ok, "-i", pictures, "--save_dir", tmp_path / "file"], "--save_dir: .*file"),
        ([*ok, "-i", pictures, "--gt_dir", tmp_path / "none"], "--gt_dir: .*none does not exist"),
        ([*ok], "--input_file: "),
        (["-i", pictures], "--model_file: "),
        (["-i", pictures, "--model_dir", tmp_path / "empty"], "--model_dir: .*empty has no model.pdmodel or"),
        (["-i", pictures, "--model_dir", tmp_path / "onnx"], "--model_file: .*model.onnx is run by --runtime=openvino"),
        (["-i", pictures, "--model_file", pictures], "--model_file: .* is a folder"),
        (["-i", pictures, "--model_file", tmp_path / "text.png"], "--model_file: .* is neither"),
    ):
        with pytest.raises(cli.UserError, match=words):
            infer.main(flags)


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--batchsize", 2], "--batchsize"),
        (["--batch_size", 0], "--batch_size"),
        (["--random_input", "1,3,x"], "--random_input"),
    ],
)
def test_flags_that_mean_nothing_are_refused(flags, word, pictures, capsys):
    assert_flags_refused(infer.main, ["-i", pictures, *flags], word, capsys)


def test_bad_input_is_one_line_to_a_user(exports, model, pictures, tmp_path):
    spoilt(model, "program of noise, without record")
    images.write_image(tmp_path / "nan.npy", np.zeros((20, 20, 3), np.float32))
    (tmp_path / "nan.npy").write_bytes((tmp_path / "nan.npy").read_bytes()[:-4] + np.float32(np.nan).tobytes())
    ok = ["--model_dir", exports / "pdmodel"]
    for flags, words in (
        ([*ok, "-i", tmp_path / "nan.npy"], ["nan.npy", "NaN"]),
        (["-i", pictures, "--model_dir", model], ["--model_file", "model.pdmodel"]),
    ):
        result = run_script("infer.py", *flags, cwd=tmp_path)
        assert_user_error(result, *words)
        # Beside the mistake at most the line that tells how the runtime runs: nothing of Paddle's own.
        assert len(result.stderr.splitlines()) <= 2, result.stderr
        assert result.stdout == ""


def test_a_full_disk_ends_in_one_line(exports, pictures, tmp_path, monkeypatch):
    def full(path, pages, like=None):
        raise cli.UserError(f"{path}: cannot be written: No space left on device")

    monkeypatch.setattr(images, "write_image", full)
    with pytest.raises(cli.UserError, match="a_denoise.png: cannot be written"):
        infer.main(["--model_dir", exports / "pdmodel", "-i", pictures / "a.png", "--save_dir", tmp_path])
