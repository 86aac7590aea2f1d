"""The deployment card: what is measured is what ran, the page keeps the rest of itself, goals are told as they are."""

import json
import re

import numpy as np
import pytest

import model_card
from conftest import ROOT, noisy_scene, save
from denoising import cli, machine
from denoising.export import card_page, card_rows, writing
from denoising.export.card_rows import Conditions, Row

RUNTIMES = writing.installed_runtimes()
SHOWN = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
needs_runtime = pytest.mark.skipif(not RUNTIMES, reason="neither onnxruntime nor openvino is installed")


# --- In whole -----------------------------------------------------------------------------------------------


@needs_runtime
def test_one_command_writes_the_card_beside_what_the_page_says(weights, folders, tmp_path, capsys):
    for i in range(3):
        save(tmp_path / "noisy" / f"{i}.png", noisy_scene(70, 80, seed=i))
    out = tmp_path / "cards"
    page = save_text(out / "tiny.md", "# tiny\n\nTrained by hand.\n")
    runtime = SHOWN[RUNTIMES[0]]
    flags = ["--model_path", weights, "--images", tmp_path / "noisy", "--val_dirs", folders / "val"]
    flags += ["--sizes", 64, 32, "--batches", 2, "--threads", 1, "--seconds", 0, "--only", runtime]
    assert model_card.main([*flags, "--save_dir", out]) == 0
    card = json.loads((out / "tiny.json").read_text())
    assert capsys.readouterr().out.splitlines()[-2:] == [str(page), str(out / "tiny.json")]

    rows = {(row["runtime"], row["precision"]): row for row in card["rows"]}
    assert set(rows) == {(r.runtime, r.precision) for r in model_card.ROWS if r.runtime == runtime} | {
        ("engine", "fp32")
    }
    first, same = rows["engine", "fp32"], rows[runtime, "fp32"]
    for row in (first, same):
        assert row["largest_difference"] < 1e-5
        measured = [(timing["size"], timing["batch"], timing["threads"]) for timing in row["latency"]]
        assert measured == [(32, 1, 1), (32, 2, 1), (64, 1, 1)]
        for timing in row["latency"]:
            assert 0 < timing["median_ms"] <= timing["p90_ms"]
            assert timing["images_per_second"] == pytest.approx(1000 * timing["batch"] / timing["median_ms"])
        assert row["peak_mib"] > 20
    # What computes the same is scored once; the score is that of val.py.
    assert "psnr" not in same
    import val  # here, so that the processes of rows need not import it

    assert val.main(["--model_path", weights, "--val_dirs", folders / "val", "--val_repeats", 1, "--json"]) == 0
    assert first["psnr"] == pytest.approx(json.loads(capsys.readouterr().out)["sets"][0]["psnr"], abs=1e-3)
    if machine.adds_bytes_exactly():
        int8 = rows[runtime, "int8"]
        assert "int8" in int8["engine"]
        assert int8["largest_difference"] > 1e-4
        assert int8["psnr"] != first["psnr"]
        assert int8["psnr"] == pytest.approx(first["psnr"], abs=2)
        assert card["files"]["model_int8.onnx"] < card["files"]["model.onnx"]
    assert card["flops_256"] == 2 * card["multiplications_256"] > 0
    # No path of this machine is told.
    assert str(tmp_path) not in (out / "tiny.json").read_text() + page.read_text()

    text = page.read_text()
    assert text.startswith("# tiny\n\nTrained by hand.\n")
    assert f"| fp32 | {runtime} |" in text
    assert f"{card['parameters']:,} parameters" in text
    assert "python tools/model_card.py --model_path tiny.pdparams" in text
    assert "[tiny.json](tiny.json); what they mean is in the project's docs/deployment.md." in text
    with pytest.raises(cli.UserError, match="--save_dir: .*--overwrite replaces it"):
        model_card.main([*flags, "--save_dir", out])


def save_text(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


# --- Rows ---------------------------------------------------------------------------------------------------


@pytest.fixture
def conditions(weights, tmp_path):
    """A folder with a reference, and without any export."""
    x = np.random.default_rng(0).random((1, 3, 32, 32), dtype=np.float32)
    runtime = card_rows.NetworkRuntime(str(weights), "fp32")
    np.savez(tmp_path / "reference.npz", noisy=x, denoised=runtime(x))
    return Conditions(
        str(tmp_path), str(weights), (32,), (1,), False, 0.0, ("none", "Tiny", "gauss25", 1, 1), "why not"
    )


def test_a_row_that_would_compute_otherwise_is_absent_with_its_reason(conditions, weights):
    from denoising.inference.checkpoint import load_network

    writing.write(load_network(weights)[0], model_card.Path(conditions.folder), "pdmodel", {})
    for row, reason in (
        (Row("Paddle", "int8", "model.pdmodel"), "holds float weights: tools/quantize_model.py makes 8-bit ones"),
        (Row("Paddle", "fp16", "model.pdmodel"), "fp16 is computed on GPUs only"),
        (Row("Paddle, GPU", "fp32", "model.pdmodel", {"use_gpu": True}), "--use_gpu: "),
    ):
        found = card_rows.measure(row, 1, True, True, conditions)
        assert set(found) == {"absent"}
        assert reason in found["absent"]
        assert conditions.folder not in found["absent"]
    for row in model_card.ROWS:
        if row.precision == "int8":
            found = model_card.measured(row, 1, True, True, conditions)
            assert found == {"absent": f"there is no {row.file}: why not"}


def test_a_process_that_dies_costs_its_row_alone(conditions, monkeypatch):
    monkeypatch.setattr(card_rows, "measure", dies)
    assert model_card.measured(Row("engine", "fp32"), 1, True, False, conditions) == {"absent": "its process died"}


def dies(*_):
    model_card.os._exit(1)


def test_differences_and_times_are_what_they_say():
    def slow(x):
        card_rows.time.sleep(0.01)
        return x

    expected = np.random.default_rng(0).random((1, 3, 32, 32), dtype=np.float32)
    found = card_rows.difference(expected + np.float32(0.1), expected)
    assert found["largest_difference"] == pytest.approx(0.1, rel=1e-3)
    assert found["psnr_to_network"] == pytest.approx(20, abs=0.01)
    took = card_rows.latency(slow, 4, 3, 32, 1, 0.05)
    assert 10 <= took["median_ms"] <= took["p90_ms"]
    assert 1 <= took["runs"] <= 6
    assert took["images_per_second"] == pytest.approx(4000 / took["median_ms"])


# --- The page -----------------------------------------------------------------------------------------------


def row(runtime, precision, milliseconds, psnr=None, size=256):
    """As card_rows.py measures."""
    latency = [
        {"size": size, "batch": 1, "threads": threads, "median_ms": milliseconds * 2 / threads} for threads in (1, 2)
    ]
    return {"runtime": runtime, "precision": precision, "latency": latency} | ({"psnr": psnr} if psnr else {})


def verdicts(*rows):
    return [(goal["goal"].split()[0], goal["verdict"]) for goal in card_page.reached(rows)]


def test_goals_are_told_as_they_are():
    ours, theirs = row("engine", "fp32", 100, 31.0), row("OpenVINO", "fp32", 99)
    assert verdicts(ours, theirs) == [("fp32", "the same within 3 %")]
    assert verdicts(ours, row("OpenVINO", "fp32", 101), row("ONNX Runtime", "fp32", 120)) == [("fp32", "yes")]
    assert verdicts(ours, row("ONNX Runtime", "fp32", 80), theirs) == [("fp32", "no, 1.25 times as long")]
    # The fastest of ours counts, on both sides.
    quick = row("Paddle, oneDNN", "fp32", 90)
    assert verdicts(ours, quick, theirs) == [("fp32", "yes")]
    fast = row("OpenVINO", "bf16", 49, 30.995)
    assert verdicts(ours, theirs, fast) == [("fp32", "the same within 3 %"), ("bf16", "yes")]
    assert verdicts(quick, ours, fast) == [("bf16", "no")]
    assert verdicts(ours, row("OpenVINO", "bf16", 51, 30.995)) == [("bf16", "the same within 3 %")]
    # Of those that lose little, the fastest.
    lossy = row("engine", "bf16", 40, 30.98)
    (goal,) = card_page.reached([ours, lossy, fast])
    assert goal["measured"] == "49.0 ms (OpenVINO), 2.04 times as fast, -0.005 dB"
    assert verdicts(ours, row("OpenVINO", "bf16", 49, 30.98)) == [("bf16", "no")]
    assert verdicts(ours, row("OpenVINO", "int8", 33, 30.96)) == [("int8", "yes")]
    assert verdicts(ours, row("OpenVINO", "int8", 35, 30.96)) == [("int8", "no")]
    assert verdicts(ours, row("OpenVINO", "int8", 33, 30.94)) == [("int8", "no")]
    # What is absent is not compared with, and proves nothing.
    gone = {"runtime": "OpenVINO", "precision": "int8", "absent": "no"}
    assert verdicts(ours, gone) == verdicts(gone) == []
    (goal,) = card_page.reached([ours, theirs])
    assert goal["measured"] == "100.0 ms (engine) against 99.0 ms (OpenVINO)"


def test_the_section_is_replaced_and_nothing_else():
    def section(text):
        return f"{card_page.START}\n{text}\n{card_page.END}"

    before = "# name\n\nmine\n"
    once = card_page.with_section("p", before, section("first"))
    assert once == f"# name\n\nmine\n\n{section('first')}\n"
    twice = card_page.with_section("p", once + "\nafter\n", section("second"))
    assert twice == f"# name\n\nmine\n\n{section('second')}\n\nafter\n"
    for broken in (card_page.START, f"{card_page.END}{card_page.START}", once + once):
        with pytest.raises(cli.UserError, match="--save_dir: p: the marks"):
            card_page.with_section("p", broken, "")


def test_what_is_typed_tells_no_folder_of_this_machine():
    said = model_card.command(
        ["--model_path", "models/a.pdparams", "--images", "/home/me/photos/", "--val_set", "Set 14"]
    )
    assert said == "python tools/model_card.py --model_path models/a.pdparams --images photos --val_set 'Set 14'"


def test_a_card_links_to_what_its_figures_mean_where_that_is_in_reach(tmp_path):
    for folder in (ROOT / "docs" / "models", ROOT / "output" / "a card", ROOT):
        link = re.fullmatch(r"\[deployment.md\]\((.+)\)", model_card.guide_from(folder))[1]
        assert (folder / link).resolve() == ROOT / "docs" / "deployment.md"
    assert model_card.guide_from(ROOT / "docs" / "models") == "[deployment.md](../deployment.md)"  # as in what ships
    assert model_card.guide_from(tmp_path) == "the project's docs/deployment.md"


def test_a_card_links_to_its_figures_whatever_the_weights_are_called():
    about = dict.fromkeys(("date", "processor", "cores", "load_before", "python", "paddle", "commit"), "")
    card = {"name": "my model (2)", "command": "", "machine": about | {"instructions": []}, "minutes": 1,
            "network": {"n_channel": 3}, "parameters": 1, "flops_256": 1}  # fmt: skip
    assert "[my model (2).json](my%20model%20%282%29.json)" in "".join(card_page.head(card, ""))


def test_no_noise_is_told_of_where_none_is_added(folders, tmp_path):
    for kind in ("noisy", "clean"):
        save(tmp_path / "sets" / "Real" / kind / "a.png", noisy_scene(32, 32))

    def chosen(*flags):
        options = model_card.get_parser().parse_args(["--model_path", "m.pdparams", *map(str, flags)])
        return model_card.choose_set(options, {"noisetype": "camera0_16"})[1:3]

    assert chosen("--val_dirs", tmp_path / "sets") == ("Real", "none")
    assert chosen("--val_dirs", folders / "val") == ("Tiny", "camera0_16")
    without = model_card.get_parser().parse_args(
        ["--model_path", "m", "--val_dirs", str(folders / "val"), "--noise", "gauss9"]
    )
    assert model_card.choose_set(without, {"noisetype": "none"})[2] == "gauss9"  # weights of pairs


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--images", "none"], "--images: none does not exist"),
        (["--val_set", "Kodak9"], "--val_set: .* has no Kodak9, but Tiny"),
        (["--noisetype", "gauss"], "--noisetype: unknown noise"),
        (["--noisetype", "none"], "there would be nothing to remove"),
        (["--only", "TensorFlow"], "--only: TensorFlow is none of ONNX Runtime; OpenVINO; Paddle, GPU; "),
    ],
)
def test_mistakes_are_one_line(flags, words, weights, folders, tmp_path):
    flags = ["--model_path", weights, "--val_dirs", folders / "val", "--save_dir", tmp_path, *flags]
    with pytest.raises(cli.UserError, match=words):
        model_card.main(flags)
    assert list(tmp_path.iterdir()) == []


def test_a_flag_without_sense_is_refused(weights, capsys):
    with pytest.raises(SystemExit) as ended:
        model_card.main(["--model_path", weights, "--batches", 0])
    assert ended.value.code == 2
    assert "--batches" in capsys.readouterr().err


def test_a_page_that_is_a_folder_is_refused(weights, folders, tmp_path):
    (tmp_path / "tiny.md").mkdir()
    with pytest.raises(cli.UserError, match="--save_dir: .*tiny.md is a folder"):
        model_card.main(["--model_path", weights, "--val_dirs", folders / "val", "--save_dir", tmp_path])


@pytest.mark.skipif("onnxruntime" not in RUNTIMES, reason="onnxruntime is not installed")
@pytest.mark.parametrize("channels", [1, 3])
def test_the_steps_on_the_card_give_what_infer_writes(channels, tmp_path):
    """By hand, with the runtime alone; 8 and 16 bits."""
    import onnxruntime
    import paddle

    import infer
    from arch_unet import build_network
    from denoising.files import images

    paddle.seed(5)
    network = build_network(n_channel=channels, n_feature=4)
    network.nin_c.weight.set_value(network.nin_c.weight * 10)
    path = writing.write(network, tmp_path, "onnx", writing.record_of(network, network.options))
    picture = noisy_scene(37, 53, channels)
    (tmp_path / "in").mkdir()
    images.write_image(tmp_path / "in" / "8.png", [picture])
    images.write_image(tmp_path / "in" / "16.png", [picture.astype(np.uint16) * 257])
    flags = ["--runtime", "onnxruntime", "--model_file", path, "-i", tmp_path / "in", "--save_dir", tmp_path / "out"]
    assert infer.main(flags) == 0
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for name in ("8", "16"):
        hwc = images.read_image(tmp_path / "in" / f"{name}.png").pages[0]
        white = np.float32(np.iinfo(hwc.dtype).max)
        nchw = (hwc.astype(np.float32) / white).transpose(2, 0, 1)[None]
        (result,) = session.run(["denoised"], {"noisy": np.ascontiguousarray(nchw)})
        by_hand = np.clip(np.rint(result[0].transpose(1, 2, 0) * white), 0, white).astype(hwc.dtype)
        written = images.read_image(tmp_path / "out" / f"{name}_denoise.png").pages[0]
        assert written.dtype == hwc.dtype
        assert written.std() > 1
        np.testing.assert_array_equal(written, by_hand)
