"""Pictures side by side: every pixel where it belongs, captions whole, and a window only where there is a screen."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

import figure
from conftest import ROOT, noisy_scene, opened, refusal, run_script, save, scene
from denoising.reports import montage


def test_a_grid_holds_its_pictures_unscaled():
    colour, grey, wide = scene(30, 40), scene(25, 20, 1), scene(12, 300)[..., 0]
    for text in ("", "a title"):
        picture = montage.grid([[(colour, "one"), (grey, "two")], [(wide, "three")]], text)
        assert picture.dtype == np.uint8
        top = montage.GAP if not text else picture.shape[0] - montage.grid([[(colour, "")], [(wide, "")]]).shape[0]
        top = max(top, montage.GAP) if not text else top + montage.GAP
        left = montage.GAP
        assert np.array_equal(picture[top : top + 30, left : left + 40], colour)
        # The column is as wide as the widest picture in it.
        left += 300 + montage.GAP
        assert np.array_equal(picture[top : top + 25, left : left + 20], np.repeat(grey, 3, axis=2))


def test_captions_are_never_cut_and_grow_with_the_pictures():
    small = montage.grid([[(scene(8, 8), "a caption far wider than its picture, 31.02 dB")]])
    dark = np.argwhere((small < 100).all(axis=2))
    assert small.shape[1] > 300
    assert dark[:, 1].min() >= montage.GAP
    assert dark[:, 1].max() < small.shape[1] - montage.GAP
    heights = []
    for width in (100, 2400):
        picture = montage.grid([[(np.full((8, width, 3), 255, np.uint8), "caption")]])
        rows = np.flatnonzero((picture < 100).any(axis=(1, 2)))
        heights.append(rows[-1] - rows[0] + 1)
    assert heights[0] >= 10
    assert heights[1] >= 5 * heights[0]


@pytest.mark.parametrize("title", ["x" * 500, "\udcff\n\0\u202e", "写真 é", " "])
def test_any_name_can_stand_above(title):
    plain = montage.grid([[(scene(20, 60), "clean")]], "title")
    assert montage.grid([[(scene(20, 60), "clean")]], title).shape == plain.shape


@pytest.fixture
def results(tmp_path):
    """What val.py --save_dir leaves of seven images, one of them grey and of another size."""
    for n in range(7):
        size = (30, 40, 3) if n != 2 else (44, 24, 1)
        clean = scene(*size, seed=n)
        save(tmp_path / "out" / f"{n:05d}-label.png", clean)
        save(tmp_path / "out" / f"{n:05d}-input.png", noisy_scene(*size, seed=n))
        save(tmp_path / "out" / f"{n:05d}-output.png", noisy_scene(*size, seed=n, sigma=5))
    return tmp_path / "out"


def test_the_figure_has_rows_of_inputs_labels_and_outputs(results, tmp_path):
    flags = ["--result_dir", results, "--save_path", tmp_path / "f.png"]
    assert run_script("tools/figure.py", *flags, ok=0).stdout == f"{tmp_path}/f.png\n"
    drawn = np.asarray(opened(tmp_path / "f.png"))
    column = (drawn.shape[1] - montage.GAP) // 5  # the captions of so small pictures are wider: equal columns
    row = (drawn.shape[0] - montage.GAP) // 3
    for i, kind in enumerate(("input", "label", "output")):
        for n in range(5):
            picture = np.asarray(opened(results / f"{n:05d}-{kind}.png").convert("RGB"))
            places = [
                (y, x)
                for y in range(i * row, (i + 1) * row)
                for x in range(n * column, (n + 1) * column)
                if np.array_equal(drawn[y, x : x + 6], picture[0, :6])
                and np.array_equal(drawn[y : y + len(picture), x : x + picture.shape[1]], picture)
            ]
            assert len(places) == 1, (kind, n)
    two = run_script("tools/figure.py", *flags, "--images", 6, 2, "--overwrite", ok=0)
    assert two.stderr == ""
    assert opened(tmp_path / "f.png").size[0] < drawn.shape[1]


def test_mistakes_are_one_line(results, tmp_path, capsys):
    (tmp_path / "taken.png").write_text("mine")
    (tmp_path / "empty").mkdir()
    shutil.copytree(results, tmp_path / "half")
    (tmp_path / "half" / "00001-label.png").unlink()
    shutil.copytree(results, tmp_path / "sizes")
    save(tmp_path / "sizes" / "00000-output.png", scene(9, 9))
    good = {"--result_dir": results, "--save_path": tmp_path / "new.png"}
    for changed, words in (
        ({"--result_dir": tmp_path / "nowhere"}, ["--result_dir", "nowhere"]),
        ({"--result_dir": tmp_path / "empty"}, ["--result_dir", "00000-input.png"]),
        ({"--result_dir": tmp_path / "half"}, ["--result_dir", "00001-label.png"]),
        ({"--result_dir": tmp_path / "sizes"}, ["--result_dir", "00000-output.png", "shapes"]),
        ({"--images": 9}, ["--images", "9", "0 to 6"]),
        ({"--images": -1}, ["--images", "-1"]),
        ({"--save_path": tmp_path / "taken.png"}, ["--save_path", "--overwrite"]),
        ({"--save_path": tmp_path / "figure.xyz"}, ["figure.xyz", ".png"]),
    ):
        message = refusal(figure.main, {**good, **changed}, capsys)
        assert all(word in message for word in words), message
    assert (tmp_path / "taken.png").read_text() == "mine"
    assert not (tmp_path / "new.png").exists()


NO_SCREEN = {"DISPLAY": ""}, {"DISPLAY": ":4711"}, {"DISPLAY": ":4711", "MPLBACKEND": "tkagg"}


@pytest.mark.parametrize("environment", NO_SCREEN)
def test_without_a_screen_the_figure_is_a_file_and_a_note_says_so(results, tmp_path, environment):
    flags = ["--result_dir", results, "--save_path", tmp_path / "f.png", "--show"]
    result = run_script("tools/figure.py", *flags, ok=0, WAYLAND_DISPLAY="", **environment)
    # Where the variables are empty, and not absent, a library of the desktop has its say too.
    assert result.stderr.splitlines()[-1] == "--show: there is no screen to show it on"
    assert (tmp_path / "f.png").exists()


SHOWS_TWO_AND_CLOSES_THEM = """
import numpy
from denoising.reports import montage
pyplot = montage.screen()
shown, timers = pyplot.show, []

def close():
    managers = [pyplot.figure(number).canvas.manager for number in pyplot.get_fignums()]
    print([manager.get_window_title() for manager in managers])
    pyplot.close("all")

def show():
    timers.append(pyplot.gcf().canvas.new_timer(200))
    timers[0].add_callback(close)
    timers[0].start()
    shown()

pyplot.show = show
montage.show(pyplot, [(name, numpy.zeros((90, 300, 3), numpy.uint8)) for name in "ab"])
print("closed")
"""


def test_on_a_screen_a_window_opens_and_waits(results, tmp_path):
    pytest.importorskip("tkinter")
    if shutil.which("Xvfb") is None:
        pytest.skip("Xvfb is not installed")
    reader, writer = os.pipe()
    server = subprocess.Popen(["Xvfb", "-displayfd", str(writer)], pass_fds=[writer], stderr=subprocess.DEVNULL)
    os.close(writer)
    try:
        with os.fdopen(reader) as file:
            display = f":{file.readline().strip()}"
        result = subprocess.run(
            [sys.executable, "-c", SHOWS_TWO_AND_CLOSES_THEM], cwd=ROOT, capture_output=True, text=True,
            env={**os.environ, "DISPLAY": display, "MPLBACKEND": "tkagg"}, timeout=60,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert result.stdout == "['a', 'b']\nclosed\n"
        assert result.stderr == "close the windows to go on\n"
    finally:
        server.terminate()
        server.wait()
