import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from conftest import ENVIRONMENT, ROOT, assert_user_error, rows_of, run_script, save, scene

import val


def test_scores_in_every_form(folders, weights, tmp_path, capsys):
    flags = [
        "--model_path",
        weights,
        "--val_dirs",
        folders / "val",
        "--val_repeats",
        2,
        "--json",
        tmp_path / "s.json",
    ]
    flags += ["--csv", tmp_path / "s.csv", "--report", tmp_path / "report"]
    assert val.main([str(flag) for flag in flags]) == 0
    out = capsys.readouterr().out
    psnr, ssim = map(float, re.search(r"^\[EVAL\] Tiny: psnr:(\S+) ssim:(\S+)$", out, re.MULTILINE).groups())
    (summary,) = json.loads((tmp_path / "s.json").read_text())["sets"]
    assert (summary["set"], summary["images"], summary["repeats"]) == ("Tiny", 2, 2)
    assert (summary["psnr"], summary["ssim"]) == (psnr, ssim)
    rows = rows_of(tmp_path / "s.csv")
    assert [row["image"] for row in rows] == ["0.png", "1.png"] * 2
    assert sum(float(row["psnr"]) for row in rows) / 4 == pytest.approx(psnr)
    page = (tmp_path / "report" / "index.html").read_text()
    HTMLParser().feed(page)
    assert "Tiny" in page
    assert len(list((tmp_path / "report" / "images").glob("*.png"))) == 8


def test_json_on_stdout_is_nothing_but_json(folders, weights):
    result = run_script("val.py", "--model_path", weights, "--val_dirs", folders / "val", "--json", ok=0)
    data = json.loads(result.stdout)
    assert data["noisetype"] == "gauss25"  # of the weights
    assert "Kodak" in result.stderr or data["sets"][0]["set"] == "Tiny"


def test_absent_sets_are_named_with_their_origin(folders, weights):
    result = run_script("val.py", "--model_path", weights, "--val_dirs", folders / "val", ok=0)
    for name in ("Kodak", "BSD300", "Set14"):
        assert name in result.stderr
    assert "Berkeley" in result.stderr


def test_the_shipped_set_is_scored_from_any_folder(weights, tmp_path):
    flags = ("--model_path", weights, "--val_dirs", ROOT / "validation", "--val_images", 1)
    result = run_script("val.py", *flags, "--json", cwd=tmp_path, ok=0)
    assert json.loads(result.stdout)["sets"][0]["images"] == 1


@pytest.mark.slow
def test_two_processes_share_the_images(folders, weights, tmp_path):
    flags = ["--model_path", weights, "--val_dirs", folders / "val", "--val_repeats", "2"]
    alone, shared = tmp_path / "alone.csv", tmp_path / "shared.csv"
    run_script("val.py", *flags, "--csv", alone, ok=0)
    launcher = [
        sys.executable,
        "-m",
        "paddle.distributed.launch",
        "--nproc_per_node",
        "2",
        "--log_dir",
        tmp_path / "l",
    ]
    command = [*launcher, ROOT / "val.py", *flags, "--csv", shared]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, timeout=120, env=ENVIRONMENT)
    rows = [rows_of(path) for path in (alone, shared)]
    assert len(rows[0]) == len(rows[1]) == 4
    for a, b in zip(*rows, strict=True):
        assert a["image"] == b["image"]
        assert float(a["psnr"]) == pytest.approx(float(b["psnr"]), abs=1e-3)


def test_mistakes_are_one_line(folders, weights, tmp_path):
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
        flags = [part for pair in {**good, **changed}.items() for part in pair]
        assert_user_error(run_script("val.py", *flags), *words)
    assert_user_error(run_script("val.py"), "--model_path")
    assert (tmp_path / "taken.json").read_text() == "mine"
