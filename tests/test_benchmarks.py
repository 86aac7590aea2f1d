"""Each section of each benchmark in its smallest form, so that none stops working unseen.

Beside these: lite_race.py in tests/tools/test_lite.py, render_comparison.py in tests/data/test_renders.py, and
bench_from_scratch.py in tests/scratch.
"""

import contextlib
import io
import itertools
import json
import re
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import train
from arch_unet import build_network
from conftest import ROOT, needs_rawpy, run_script, save, scene
from denoising import cli, machine
from denoising.files import images
from denoising.inference import checkpoint

sys.path += [str(ROOT / "benchmarks"), str(ROOT / "scripts")]

import noise_picture
import readme_picture
import sample_images

import adapting
import bench_serve
import bench_train_step
import measures
import mri_comparison
import own_photos
import raw_comparison
import recipes
import run
import tables
import targets
import trust


def cells(output):
    """The rows of the tables in Markdown, without their headings."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in output.splitlines() if line.startswith("|")]
    rules = [index for index, row in enumerate(rows) if set(row[0]) == {"-"}]
    return [row for index, row in enumerate(rows) if index not in rules and index + 1 not in rules]


def test_every_benchmark_has_its_test():
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    scripts = [path for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text()]
    assert len(scripts) >= 9
    for path in scripts:
        called = any(f"{path.stem}.{function}(" in tests for function in ("main", "call"))
        assert called or f"benchmarks/{path.name}" in tests, f"{path.name} is tested nowhere"


# --- run.py -------------------------------------------------------------------------------------------------


@pytest.fixture
def here(monkeypatch, folders):
    """Makes run.py measure in this process, on networks of four features and small images."""
    network_of = measures._denoiser

    def measure(name, **values):
        values = {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}
        values |= {"val_dirs": str(folders / "val")} if "val_dirs" in values else {}
        return json.loads(json.dumps(measures.call(name, values)))

    monkeypatch.setattr(run, "measure", measure)
    monkeypatch.setattr(measures, "_denoiser", lambda way, precision, n_feature=4: network_of(way, precision, 4))


def test_ratios_are_those_of_each_round():
    fast, slow = [1.0, 2.0, 4.0], [2.0, 6.0, 16.0]
    row = tables.Row("ours", fast, "s", "speed", slow, inverse=True).cells()
    assert row == ("ours", "2.00 s", "1.00 .. 4.00", "**3.00**", "2.00 .. 4.00", "speed")
    assert tables.Row("memory", [0.1], "s", "", [0.4], percent=True).cells()[1:4] == ("100 ms", "", "**25.0 %**")


IN_A_PROCESS = "dataset_tool"


@pytest.mark.parametrize("section", [name for name in run.SECTIONS if name != IN_A_PROCESS])
def test_a_section_fills_its_table(section, here, capsys):
    assert run.main(["--quick", "--only", section]) == 0
    rows = cells(capsys.readouterr().out)
    assert len(rows) >= 2
    for row in rows:
        # One peak cannot lie above that of the process so far: that takes a process of its own.
        assert float(row[1].split()[0]) > 0 or row[0].startswith("&nbsp;")
    assert any(re.fullmatch(r"\*\*[\d.]+( %)?\*\*", row[3]) for row in rows)


def test_a_document_tells_command_machine_and_versions(tmp_path):
    document, written = tmp_path / "bench.md", ROOT / "docs" / "benchmarks.md"
    before = written.read_bytes()
    flags = ["--quick", "--only", IN_A_PROCESS, "--rounds", 1, "--output", document]
    result = run_script("benchmarks/run.py", *flags, ok=0)
    text = document.read_text()
    for word in ("make bench", "--only dataset_tool", "cores", "GiB", "paddle ", "python 3.", "numpy"):
        assert word in text
    assert "Images per second: published: " in text
    assert len(cells(result.stdout)) == 7
    # A part of the benchmarks is no reason to replace what a whole run has written.
    assert written.read_bytes() == before


def test_refuses_what_it_does_not_know(capsys):
    for flags in (["--only", "everything"], ["--quik"], ["--rounds", "0"]):
        with pytest.raises(SystemExit) as end:
            run.main(flags)
        assert end.value.code == 2
        assert flags[-1] in capsys.readouterr().err
    with pytest.raises(cli.UserError, match="--images: /nowhere"):
        run.main(["--images", "/nowhere"])


# --- Training steps -----------------------------------------------------------------------------------------

SMALL_STEP = ["--rounds", "1", "--steps", "1", "--batch", "1", "--size", "64"]


def step_here(who, precision, options):
    """What bench_train_step.run does, in this process."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        bench_train_step.measure(who, precision, options, bench_train_step.time.perf_counter)
    return json.loads(output.getvalue())


def test_training_steps_of_paddle(monkeypatch, capsys):
    monkeypatch.setattr(bench_train_step, "run", lambda who, *rest: None if who == "torch" else step_here(who, *rest))
    assert bench_train_step.main(SMALL_STEP) == 0
    rows = cells(capsys.readouterr().out)
    expected = {"this project, fp32", "Paddle's own layers, fp32"}
    expected |= {"this project, bf16"} if "avx512_bf16" in machine.cpu_flags() else set()
    assert {row[0] for row in rows} == expected
    assert all(float(row[1]) >= float(row[2]) > 0 for row in rows)


def test_training_steps_without_bf16(monkeypatch, capsys):
    """Most CPUs do not compute in it: what they can do is measured."""
    monkeypatch.setattr(machine, "cpu_flags", lambda: ["avx2"])
    monkeypatch.setattr(bench_train_step, "run", lambda who, precision, options: [1.0])
    assert bench_train_step.main(["--rounds", "1"]) == 0
    printed = capsys.readouterr()
    assert len(cells(printed.out)) == 3
    assert "bf16 is left out" in printed.err


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_steps_of_pytorch(precision):
    pytest.importorskip("torch", reason="PyTorch is needed for `make bench-train` only")
    options = bench_train_step.get_parser().parse_args(SMALL_STEP)
    (seconds,) = step_here("torch", precision, options)
    assert seconds > 0


def test_a_training_step_is_measured_in_a_process_of_its_own():
    options = bench_train_step.get_parser().parse_args([*SMALL_STEP, "--cpu-time"])
    (seconds,) = bench_train_step.run("ours", "fp32", options)
    assert seconds > 0


def test_the_steps_from_scratch():
    flags = ["--rounds", 1, "--steps", 1, "--batch", 4, "--features", 3]
    result = run_script("benchmarks/bench_from_scratch.py", *flags, "--only", "ours", "blas", "torch-unfold", ok=0)
    rows = cells(result.stdout)
    assert len(rows) + result.stderr.count("PyTorch, unfold and fold: not measured: ModuleNotFound") == 3
    assert all(float(row[1]) > 0 for row in rows)


# --- The service --------------------------------------------------------------------------------------------


def test_the_service_under_load(weights, capsys, monkeypatch):
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(bench_serve.shutil, "which", lambda name: None)  # with hey the counts are the same
    served = f"--model_path {weights} --max_queue 1"
    assert bench_serve.main(["--serve", served, "--size", "32", "--seconds", "1", "--clients", "1", "6"]) == 0
    output = capsys.readouterr().out
    alone, together = cells(output)
    assert (alone[0], alone[4], together[0]) == ("1", "0", "6")
    assert float(alone[1]) > 0
    assert float(together[4]) > 0, "six at a time are too many for a queue of one"
    assert alone[6] == together[6] == "0"
    assert "Health afterwards: ok" in output
    assert float(re.search(r"Most memory: (\d+) MB", output)[1]) > 100


# --- Trainings that are compared ----------------------------------------------------------------------------


def trained_here(*changes):
    """What trainings.trained does, in this process and with further flags."""

    def trained(save_dir, name, *flags):
        small = ["--n_feature", 4, "--batchsize", 1, "--patchsize", 32, "--precision", "fp32", *changes]
        flags = [*flags, *small, "--save_model_path", save_dir, "--log_name", name]
        assert train.main([str(flag) for flag in flags]) == 0
        return max((Path(save_dir) / name).glob("*/metrics.csv")).parent

    return trained


def test_noisy_and_clean_targets(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(targets, "trained", trained_here("--max_steps", 1))
    flags = ["--data_dir", folders / "data", "--val_dirs", folders / "val", "--save_dir", tmp_path]
    assert not targets.main([*flags, "--val_images", 1, "--picture", tmp_path / "a.jpg"])
    rows = cells(capsys.readouterr().out)
    assert [row[0].strip("`") for row in rows] == list(targets.TASKS)
    for row in rows:
        assert all(5 < float(cell.split(" / ")[0]) < 60 for cell in row[2:5])
        assert row[7] == "1 / 1"
    picture = images.read_image(tmp_path / "a.jpg").pages[0]
    assert picture.shape[0] > 4 * 45
    assert picture.shape[1] > 5 * 67


def test_undersampled_slices(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mri_comparison, "trained", trained_here("--max_steps", 1))
    flags = ["--save_dir", tmp_path, "--phantoms", 2, "--scored", 1, "--size", 48, "--share", 0.3]
    assert not mri_comparison.main([*flags, "--picture", tmp_path / "a.png"])
    rows = cells(capsys.readouterr().out)
    assert len(rows) == 5
    by_name = {row[0].split(",")[0]: float(row[1]) for row in rows[1:3]}
    assert by_name["total variation"] > by_name["inverse FFT of what was measured"]
    assert images.read_image(tmp_path / "a.png").pages[0].shape[0] > 2 * 48
    with pytest.raises(cli.UserError, match="--share: "):
        mri_comparison.main(["--save_dir", str(tmp_path), "--share", "2"])


def test_recipes(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recipes, "trained", trained_here("--max_steps", 2, "--log_iters", 1))
    flags = ["--data_dir", folders / "data", "--val_dirs", folders / "val", "--save_dir", tmp_path]
    assert not recipes.main([*flags, "--only", "adam", "recorrupted"])
    rows = cells(capsys.readouterr().out)
    assert [row[1] for row in rows] == ["2", "2"]
    assert all(5 < float(row[4].strip("*")) < 60 for row in rows)


def test_own_photos(tmp_path, capsys):
    for i in range(2):
        noise = cv2.GaussianBlur(np.random.default_rng(i).normal(0, 30, (64, 64, 3)), (0, 0), 0.8)
        noisy = np.clip(scene(64, 64, seed=i) + noise, 0, 255).astype(np.uint8)
        for kind, image in (("noisy", noisy), ("clean", scene(64, 64, seed=i))):
            save(tmp_path / "pairs" / kind / f"{i}.png", image)
    flags = ["--data_dir", tmp_path / "pairs" / "noisy", "--pairs", tmp_path / "pairs", "--save_dir", tmp_path / "kept"]
    flags += ["--model_path", ROOT / "models" / "photo.pdparams", "--minutes", 0.001, "--batchsize", 1]
    flags += ["--patchsize", 36, "--precision", "fp32"]
    assert own_photos.main(flags) is None
    rows = cells(capsys.readouterr().out)
    assert [row[0].split(":")[0] for row in rows] == list(own_photos.CONTENDERS)
    assert rows[0][1] == "0"
    assert all(int(row[1]) >= 1 for row in rows[1:])
    assert all(15 < float(row[2]) < 50 for row in rows)
    own_photos.main([*flags, "--only", "unchanged"])
    assert cells(capsys.readouterr().out) == rows[:1]


def test_every_recipe_is_one_that_train_takes():
    from denoising.training.options import get_parser

    for name, _, flags, _ in recipes.RECIPES:
        options = get_parser().parse_args([*recipes.BASE.split(), *flags.split(), "--data_dir", "images"])
        assert options.noisetype == "gauss25", name


# --- Pictures of the documents ------------------------------------------------------------------------------


def test_trust_without_clean_images(folders, weights, tmp_path, capsys, monkeypatch):
    """The denoisers are a network of four features and what needs none; the sets hold two images."""
    for name in ("BSD300/test", "PolyU/clean", "PolyU/noisy"):
        shutil.copytree(folders / "val" / "Tiny", tmp_path / "val" / name)
    shutil.copytree(weights.parent, tmp_path / "root")
    monkeypatch.setattr(trust, "ROOT", tmp_path / "root")
    monkeypatch.setattr(trust, "OWN", {"gauss25": "tiny", "poisson30": "tiny"})
    monkeypatch.setattr(trust, "denoisers", lambda ops: {
        "identity": lambda noisy: noisy, "blur": lambda noisy: cv2.GaussianBlur(noisy, (0, 0), 1.0),
        "black": lambda noisy: 0 * noisy})  # fmt: skip
    trust.main(["--val_dirs", tmp_path / "val", "--accuracy_images", "2", "--order_images", "2", "--crop", "64"])
    rows = cells(capsys.readouterr().out)
    assert len(rows) == 2 * 3 + len(trust.MEASURES) + 3
    (named,) = [row for row in rows if row[:2] == ["gauss25", "named"]]
    assert abs(float(named[3].removesuffix(" dB"))) < 0.5
    (order,) = [row for row in rows if row[0] == trust.MEASURES["error"]]
    assert order[1:] == ["1.000", "1.000", "-"]


@needs_rawpy
def test_raw_files_before_and_after_they_are_developed(folders, weights, tmp_path, capsys):
    """Networks of four features, and images too small for much to be measured."""
    network = build_network("unet_raw", n_channel=1, n_input=2, n_feature=4)
    checkpoint.save_network(tmp_path / "raw.pdparams", checkpoint.network_state(network), network.options)
    flags = {"--model_path": tmp_path / "raw.pdparams", "--photo_path": weights, "--picture": tmp_path / "a.png"}
    words = [str(word) for pair in flags.items() for word in pair]
    raw_comparison.main(["--image_dir", str(folders / "data"), "--images", "2", "--strengths", "2", "12", *words])
    rows = cells(capsys.readouterr().out)
    assert len(rows) == 6
    (noisy,) = [[float(cell.split("/")[0]) for cell in row[1:]] for row in rows if row[0] == "nothing is done"]
    assert noisy[0] > noisy[1] + 12
    assert images.read_image(tmp_path / "a.png").pages[0].shape[1] > 7 * 96


def test_adapting_to_one_image(folders, tmp_path, capsys, monkeypatch, weights):
    save(tmp_path / "val" / "Kodak" / "0.png", scene(200, 220))
    monkeypatch.setattr(adapting.auto, "shipped_weights", lambda: [weights])
    adapting.main(["--val_dirs", tmp_path / "val", "--steps", "1", "--only", "stripes", "gauss25"])
    rows = cells(capsys.readouterr().out)
    assert [row[0] for row in rows] == [adapting.WORDS[kind] for kind in ("stripes", "gauss25")]
    assert [row[1] for row in rows] == ["tiny", "tiny"]
    assert all(5 < float(row[column]) < 60 for row in rows for column in (2, 3, 4, 7))
    # Without Kodak there is nothing to measure on.
    with pytest.raises(cli.UserError, match="there is no Kodak"):
        adapting.main(["--val_dirs", folders / "val"])


def test_the_picture_of_noise(tmp_path, capsys):
    noise_picture.main([tmp_path / "a.png", "--calls", 1])
    assert len(capsys.readouterr().out.splitlines()) == len(noise_picture.SHOWN)
    assert images.read_image(tmp_path / "a.png").pages[0].shape[1] > 5 * noise_picture.SIDE


def test_the_picture_of_the_readme(weights, tmp_path):
    readme_picture.main([weights, tmp_path / "a.png"])
    picture = images.read_image(tmp_path / "a.png").pages[0]
    assert picture.shape[0] > 2 * 256
    clean = images.read_image(ROOT / "validation" / "Sample" / "astronaut_face.png").pages[0]
    assert (picture[286:542, 536:792] == clean).all()
    with pytest.raises(cli.UserError, match="nowhere"):
        readme_picture.main([tmp_path / "nowhere", tmp_path / "b.png"])


def test_the_samples_that_ship_can_be_made_again(tmp_path):
    for kind, folder in (("validation", ROOT / "validation" / "Sample"), ("demo", ROOT / "demo")):
        sample_images.main([kind, tmp_path / kind])
        made = sorted((tmp_path / kind).iterdir())
        assert made
        for path in made:
            np.testing.assert_array_equal(
                images.read_image(path).pages[0], images.read_image(folder / path.name).pages[0]
            )
    sample_images.main(["train", tmp_path / "train"])
    assert len(list((tmp_path / "train").iterdir())) == len(sample_images.TRAIN)
    drawings = dict(itertools.islice(sample_images.graphics_images(), 2))
    assert {drawing.shape for drawing in drawings.values()} == {(512, 512, 3)}
    assert np.array_equal(*[drawings["graphics_01"][start::2, start::2] for start in (0, 1)])  # in steps of two pixels
    sample_images.main(["graphics_validation", tmp_path / "Drawings"])
    scored = [images.read_image(path).pages[0] for path in sorted((tmp_path / "Drawings").iterdir())]
    assert {drawing.shape for drawing in scored} == {(256, 256, 3)}
    assert len(scored) == 16
    assert not set(sample_images.GRAPHICS) & set(sample_images.GRAPHICS_VALIDATION)  # nor is any trained on
    with pytest.raises(SystemExit):
        sample_images.main(["nothing", tmp_path])
