import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

import val
from conftest import ENVIRONMENT, ROOT, assert_user_error, opened, refusal, rows_of, run_script, save, scene
from denoising import cli
from denoising.imaging.metrics import psnr
from denoising.inference import checkpoint


def run(*flags):
    assert val.main([str(flag) for flag in flags]) == 0


def test_scores_in_every_form(folders, weights, tmp_path, capsys):
    run("--model_path", weights, "--val_dirs", folders / "val", "--val_repeats", 2, "--json", tmp_path / "s.json",
        "--csv", tmp_path / "s.csv", "--report", tmp_path / "report", "--show_output", 1)  # fmt: skip
    out = capsys.readouterr().out
    mean_psnr, ssim = map(float, re.search(r"^\[EVAL\] Tiny: psnr:(\S+) ssim:(\S+)$", out, re.MULTILINE).groups())
    (summary,) = json.loads((tmp_path / "s.json").read_text())["sets"]
    assert (summary["set"], summary["images"], summary["repeats"]) == ("Tiny", 2, 2)
    assert (summary["psnr"], summary["ssim"]) == (mean_psnr, ssim)
    rows = rows_of(tmp_path / "s.csv")
    assert [row["image"] for row in rows] == ["0.png", "1.png"] * 2
    assert sum(float(row["psnr"]) for row in rows) / 4 == pytest.approx(mean_psnr)
    page = (tmp_path / "report" / "index.html").read_text()
    HTMLParser().feed(page)
    assert "Tiny" in page
    kinds = ("input", "label", "output", "residual")
    pictures = {f"0000{n}-{kind}.png" for n in (0, 1) for kind in kinds}
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert names == pictures | {"index.html", "settings.json", "00000-montage.png"}
    settings = json.loads((tmp_path / "report" / "settings.json").read_text())
    assert (settings["val_repeats"], settings["noisetype"], settings["n_feature"]) == (2, "gauss25", 4)
    label = opened(tmp_path / "report" / "00001-label.png")
    assert np.array_equal(label, opened(folders / "val" / "Tiny" / "1.png"))
    # The output is what was scored.
    output = np.asarray(opened(tmp_path / "report" / "00001-output.png"))
    assert psnr(np.asarray(label), output, 255) == pytest.approx(float(rows[1]["psnr"]))


def test_the_numbers_of_pictures_count_through_the_sets(folders, weights, tmp_path, capsys):
    for name in ("A", "B"):
        shutil.copytree(folders / "val" / "Tiny", tmp_path / "val" / name)
    flags = ["--model_path", weights, "--val_dirs", tmp_path / "val", "--report_images", "1", "--show_output", "3"]
    run(*flags, "--save_dir", tmp_path / "page")
    names = {path.name for path in (tmp_path / "page").glob("*-[im]*.png")}
    assert names == {"00000-input.png", "00002-input.png", *(f"0000{n}-montage.png" for n in range(3))}
    notes = capsys.readouterr().err
    for set_name in ("A", "B"):
        assert f"{set_name}: it shows 1 of 2 images" in notes


def test_montages_go_to_files_where_there_is_no_screen(folders, weights, tmp_path, monkeypatch, capsys):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    flags = ["--model_path", weights, "--val_dirs", folders / "val"]
    run(*flags, "--show_output", 4)
    notes = capsys.readouterr().err
    assert "--show_output: 4, but there are 2 images" in notes
    assert "montages: output/00000-montage.png to 00001-montage.png (there is no screen" in notes
    assert sorted(path.name for path in (tmp_path / "output").iterdir()) == ["00000-montage.png", "00001-montage.png"]
    clean = np.asarray(opened(folders / "val" / "Tiny" / "1.png"))
    assert holds(opened(tmp_path / "output" / "00001-montage.png"), clean)
    with pytest.raises(cli.UserError, match="^--show_output: output/00000-montage.png exists; --overwrite"):
        run(*flags, "--show_output", 1)
    before = (tmp_path / "output" / "00000-montage.png").stat().st_mtime_ns
    run(*flags, "--show_output", 1, "--overwrite")
    assert (tmp_path / "output" / "00000-montage.png").stat().st_mtime_ns > before


def holds(picture, part):
    """Whether a picture holds another one, pixel for pixel."""
    found = cv2.matchTemplate(np.asarray(picture), part, cv2.TM_SQDIFF)
    return found.min() / part.size < 0.01


def test_json_on_stdout_is_nothing_but_json(folders, weights):
    # A process of its own: libraries could write there too.
    result = run_script("val.py", "--model_path", weights, "--val_dirs", folders / "val", "--json", ok=0)
    data = json.loads(result.stdout)
    assert data["model"] == str(weights)
    assert data["noisetype"] == "gauss25"  # of the weights
    assert [scored["set"] for scored in data["sets"]] == ["Tiny"]


def test_noise_is_not_told_of_sets_that_have_their_own(folders, weights, tmp_path, capsys):
    for name in ("noisy", "clean"):
        shutil.copytree(folders / "val" / "Tiny", tmp_path / "val" / "Pairs" / name)
    flags = ["--model_path", weights, "--val_images", 1, "--val_repeats", 1, "--json"]
    pairs = [*flags, "--val_dirs", tmp_path / "val" / "Pairs"]
    assert "--noisetype: what " in refusal(val.main, [*pairs, "--noisetype", "poisson30"], capsys)
    for more in ([], ["--noisetype", "none"]):
        run(*pairs, *more)
        data = json.loads(capsys.readouterr().out)
        assert (data["noisetype"], data["sets"][0]["noisetype"]) == ("none", "none")
    shutil.copytree(folders / "val" / "Tiny", tmp_path / "val" / "Tiny")
    run(*flags, "--val_dirs", tmp_path / "val", "--noisetype", "poisson30")
    data = json.loads(capsys.readouterr().out)
    assert {scored["set"]: scored["noisetype"] for scored in data["sets"]} == {"Pairs": "none", "Tiny": "poisson30"}


def test_weights_of_noisy_files_do_not_say_what_noise_to_add(folders, weights, tmp_path, capsys):
    state = checkpoint.read_state(weights)
    about = json.loads(state.pop(checkpoint.OPTIONS_KEY)) | {"noisetype": "none"}
    checkpoint.save_network(tmp_path / "own.pdparams", state, about)
    flags = ["--model_path", tmp_path / "own.pdparams", "--val_dirs", folders / "val", "--val_repeats", 1, "--json"]
    assert "--noisetype: " in refusal(val.main, flags, capsys)
    for noisetype in ("gauss25", "none"):
        run(*flags, "--noisetype", noisetype)
        assert json.loads(capsys.readouterr().out)["noisetype"] == noisetype


def test_absent_sets_are_named_with_their_origin(folders, weights, capsys):
    run("--model_path", weights, "--val_dirs", folders / "val")
    notes = capsys.readouterr().err.splitlines()
    for name, origin in (("Kodak", "Kodak Lossless"), ("BSD300", "Berkeley"), ("Set14", "super-resolution")):
        (line,) = [line for line in notes if line.startswith(f"{name} is not under {folders / 'val'}: ")]
        assert origin in line


def test_the_shipped_set_is_scored_from_any_folder(weights, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run("--model_path", weights, "--val_dirs", ROOT / "validation", "--val_images", 1, "--json")
    (scored,) = json.loads(capsys.readouterr().out)["sets"]
    assert (scored["set"], scored["images"]) == ("Sample", 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_two_processes_share_the_images(folders, weights, tmp_path):
    flags = ["--model_path", weights, "--val_dirs", folders / "val", "--val_repeats", "2"]
    alone, shared, page = tmp_path / "alone.csv", tmp_path / "shared.csv", tmp_path / "page"
    run(*flags, "--csv", alone)
    launcher = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--log_dir", tmp_path / "l"]
    command = [*launcher, ROOT / "val.py", *flags, "--csv", shared, "--save_dir", page, "--show_output", "2"]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, timeout=120, env=ENVIRONMENT)
    rows = [rows_of(path) for path in (alone, shared)]
    assert len(rows[0]) == len(rows[1]) == 4
    for a, b in zip(*rows, strict=True):
        assert a["image"] == b["image"]
        assert float(a["psnr"]) == pytest.approx(float(b["psnr"]), abs=1e-3)
    # Each wrote the pictures of its images, and the page shows both's.
    shown = set(re.findall(r'src="([^"]+)"', (page / "index.html").read_text()))
    assert {"00000-output.png", "00001-output.png"} <= shown
    assert shown | {"00000-montage.png", "00001-montage.png"} == {path.name for path in page.glob("*.png")}


def test_mistakes_are_one_line(folders, weights, tmp_path, capsys):
    good = {"--model_path": weights, "--val_dirs": folders / "val"}
    (tmp_path / "taken.json").write_text("mine")
    (tmp_path / "empty").mkdir()
    save(tmp_path / "small" / "set" / "a.png", scene(8, 8))
    for changed, words in (
        ({"--model_path": tmp_path}, ["--model_path", "folder"]),
        ({"--model_path": tmp_path / "none"}, ["--model_path", "none"]),
        ({"--val_dirs": tmp_path / "nowhere"}, ["--val_dirs", "nowhere"]),
        ({"--val_dirs": tmp_path / "empty"}, ["--val_dirs", "empty"]),
        ({"--val_dirs": tmp_path / "small"}, ["--val_dirs", "11x11"]),
        ({"--noisetype": "gauss"}, ["--noisetype", "gaussA"]),
        ({"--n_channel": 1}, ["--n_channel", "3"]),
        ({"--json": tmp_path / "taken.json"}, ["--json", "--overwrite"]),
        ({"--val_repeats": 0}, ["--val_repeats", "0"]),
    ):
        message = refusal(val.main, {**good, **changed}, capsys)
        assert all(word in message for word in words), message
    assert_user_error(run_script("val.py"), "val.py: error: ", "--model_path")
    assert (tmp_path / "taken.json").read_text() == "mine"


@pytest.mark.parametrize("count", [0, -3, "many"])
def test_so_many_montages_cannot_be_shown(count, capsys):
    with pytest.raises(SystemExit) as end:
        val.main(["--model_path", "x", "--show_output", str(count)])
    assert end.value.code == 2
    assert re.fullmatch(rf".*--show_output: '{count}' is not a whole number from 1 up.*\n", capsys.readouterr().err)


def test_pictures_are_not_written_over_and_nowhere_else(folders, weights, tmp_path):
    (tmp_path / "used").mkdir()
    for mine in (tmp_path / "file", tmp_path / "used" / "00000-output.png"):
        mine.write_text("mine")
    flags = ["--model_path", weights, "--val_dirs", folders / "val", "--save_dir"]
    for folder, words in (
        (tmp_path / "file", f"--report: cannot write to {tmp_path}/file"),
        ("/proc/nowhere", "--report: cannot write to /proc/nowhere"),
        (tmp_path / "used", "--report: .*00000-output.png exists; --overwrite"),
    ):
        with pytest.raises(cli.UserError, match=words):
            val.main([str(flag) for flag in (*flags, folder)])
    assert (tmp_path / "used" / "00000-output.png").read_text() == "mine"


# --- Without clean images -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """Two folders with a frame each of the same two scenes."""
    root = tmp_path_factory.mktemp("noisy")
    for i in range(2):
        clean = scene(96, 120, seed=i).astype(float)
        for frame in ("a", "b"):
            noise = np.random.default_rng(ord(frame) + i).normal(0, 15, clean.shape)
            save(root / frame / f"{i}.png", np.clip(clean + noise + 0.5, 0, 255).astype(np.uint8))
    return root


def test_judges_without_clean_images(noisy, weights, tmp_path, capsys):
    flags = ["--model_path", weights, "--no_clean", noisy / "a", "--noisetype", "gauss15"]
    run(*flags, "--report", tmp_path / "report", "--json", tmp_path / "t.json")
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()] == ["image", "0.png", "1.png", "mean", "0.png:", "1.png:"]
    found = json.loads((tmp_path / "t.json").read_text())["images"]
    assert [(row["image"], row["noise"], row["sigma"]) for row in found] == [
        ("0.png", "gauss", pytest.approx(15)), ("1.png", "gauss", pytest.approx(15)),
    ]  # fmt: skip
    page = (tmp_path / "report" / "index.html").read_text()
    HTMLParser().feed(page)
    assert found[0]["verdict"] in page
    kinds = ("input", "output", "residual", "structure")
    assert {path.name for path in (tmp_path / "report").glob("*.png")} == {
        f"0000{n}-{kind}.png" for n in (0, 1) for kind in kinds
    }
    assert "--overwrite" in refusal(val.main, [*flags, "--report", tmp_path / "report"], capsys)
    run(*flags, "--report", tmp_path / "report", "--overwrite", "--report_images", "1", "--json")
    assert json.loads(capsys.readouterr().out)["images"] == found
    assert not list((tmp_path / "report").glob("00001-*"))


def test_a_report_among_the_images_is_none_of_them(noisy, weights, tmp_path):
    save(tmp_path / "0.png", np.asarray(opened(noisy / "a" / "0.png")))
    flags = ["--model_path", weights, "--no_clean", tmp_path, "--noisetype", "gauss15", "--report", tmp_path / "report"]
    for _ in range(2):
        run(*flags, "--overwrite", "--json", tmp_path / "t.json")
        assert [row["image"] for row in json.loads((tmp_path / "t.json").read_text())["images"]] == ["0.png"]


def test_the_second_frame_tells_the_error(noisy, weights, capsys):
    run("--model_path", weights, "--no_clean", noisy / "a", "--pair_dir", noisy / "b", "--json")
    for row in json.loads(capsys.readouterr().out)["images"]:
        denoised = val.Denoiser(str(weights))(np.asarray(opened(noisy / "a" / row["image"])))
        true = psnr(scene(96, 120, seed=int(row["image"][0])), denoised, 255)
        assert row["psnr"] == pytest.approx(true, abs=0.3)


def test_refusals_without_clean_images(noisy, weights, tmp_path, capsys):
    save(tmp_path / "flat" / "0.png", np.full((80, 80, 3), 90, np.uint8))
    save(tmp_path / "tiny" / "0.png", np.full((3, 2, 3), 90, np.uint8))
    np.save(tmp_path / "five.npy", np.zeros((64, 64, 5), np.float32))
    np.save(tmp_path / "counts.npy", np.random.default_rng(0).normal(900, 30, (64, 64, 3)).astype(np.float32))
    (tmp_path / "empty").mkdir()
    for flags, words in (
        (["--no_clean", tmp_path / "flat"], ["--no_clean", "--noisetype", "of one colour"]),
        (["--no_clean", tmp_path / "tiny"], ["--no_clean", "2x3 pixels are too few"]),
        (["--no_clean", tmp_path / "five.npy"], ["five.npy", "5 channels"]),
        (["--no_clean", tmp_path / "empty"], ["--no_clean", "empty"]),
        (["--no_clean", tmp_path / "nowhere"], ["--no_clean", "nowhere"]),
        (["--no_clean", tmp_path / "counts.npy"], ["counts.npy", "where white is 1", "without --model_path"]),
        (["--no_clean", noisy / "a", "--noisetype", "text0.25"], ["--noisetype", "text0.25", "measured"]),
        (["--no_clean", noisy / "a", "--noisetype", "gauss5_50"], ["--noisetype", "gauss5_50"]),
        (["--no_clean", noisy / "a", "--pair_dir", tmp_path / "flat"], ["--pair_dir", "1"]),
        (["--no_clean", noisy / "a", "--pair_dir", noisy / "a"], ["--pair_dir", "same image"]),
        (["--no_clean", noisy / "a", "--pair_dir", tmp_path / "nowhere"], ["--pair_dir", "nowhere"]),
        (["--pair_dir", noisy / "b"], ["--pair_dir", "--no_clean"]),
        (["--no_clean", noisy / "a", "--csv", tmp_path / "x.csv"], ["--csv", "--json"]),
        (["--no_clean", noisy / "a", "--show_output", "1"], ["--show_output", "--report"]),
        (["--no_clean", noisy / "a", "--val_repeats", "2"], ["--val_repeats"]),
    ):
        message = refusal(val.main, ["--model_path", weights, *flags], capsys)
        assert all(word in message for word in words), message
