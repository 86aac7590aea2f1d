"""tools/inspect_noise.py: five lines, JSON and a page; each kind of file answered truthfully."""

import json
import shlex

import cv2
import numpy as np
import pytest

import inspect_noise
import predict
from conftest import ROOT, needs_rawpy, refusal, save
from denoising.files import dng, images
from denoising.imaging import noise_traces


def scene(height=192, width=256, channels=3):
    """Smooth shading from dark to bright on 0..255."""
    ramp = np.linspace(40, 215, width)[None, :, None]
    return np.repeat(np.repeat(ramp, height, 0), channels, 2)


def noisy(sigma=10, blur=0.0, seed=0, **size):
    clean = scene(**size)
    noise = np.random.default_rng(seed).standard_normal(clean.shape)
    if blur:
        noise = cv2.GaussianBlur(noise, (0, 0), blur).reshape(noise.shape)
        noise /= noise.std()
    return np.clip(np.rint(clean + sigma * noise), 0, 255).astype(np.uint8)


def lines_of(path, capsys, *flags):
    assert inspect_noise.main(["--image_path", str(path), *map(str, flags)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    return lines


def test_white_noise_is_left_to_the_weights_that_predict_takes(tmp_path, capsys):
    path = save(tmp_path / "a.png", noisy())
    lines = lines_of(path, capsys)
    assert "white noise of 10" in lines[0] or "white noise of 9.9" in lines[0]
    assert lines[-1] == f"next: python predict.py --image_path {path} --save_dir denoised"


def test_the_command_to_run_next_runs(tmp_path, capsys, monkeypatch):
    """Also with a blank in the folder's name, and for images of two channels."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my images").mkdir()
    images.write_image(tmp_path / "my images" / "a.npy", noisy()[..., :2])
    command = shlex.split(lines_of("my images", capsys)[-1].removeprefix("next: python "))
    *command, weights = command
    assert command == ["predict.py", "--image_path", "my images", "--save_dir", "denoised", "--model_path"]
    assert predict.main([*command[1:], ROOT / weights]) == 0
    assert np.load(tmp_path / "denoised" / "a_denoise.npy").shape == noisy()[..., :2].shape


def test_noise_that_neighbours_share_gets_no_model(tmp_path, capsys):
    lines = lines_of(save(tmp_path / "a.png", noisy(blur=0.7)), capsys)
    assert "correlated noise" in lines[0]
    assert lines[-1].startswith("next: python predict.py")
    assert "--model_path" not in lines[-1]


@pytest.mark.parametrize("image", [np.zeros((64, 64, 3)), np.full((64, 64, 3), 255), scene()])
def test_no_noise_is_an_answer(image, tmp_path, capsys):
    lines = lines_of(save(tmp_path / "a.png", image.astype(np.uint8)), capsys)
    assert "no noise that can be measured" in lines[0]
    assert lines[-1] == "next: nothing to do"


@pytest.mark.parametrize("kind", ["counts", "clipped"])
def test_a_report_on_unusual_numbers(kind, tmp_path, capsys):
    noise = np.random.default_rng(0).normal(0, 60, (128, 128, 1))
    if kind == "counts":
        images.write_image(tmp_path / "a.tif", (1250 + noise).astype(np.float32))
    else:
        save(tmp_path / "a.tif", np.clip(noise, 0, 255).astype(np.uint8))
    lines = lines_of(tmp_path / "a.tif", capsys, "--report", tmp_path / "report")
    assert "white noise of" in lines[0]
    assert "nan" not in " ".join(lines)
    assert "<circle" in (tmp_path / "report" / "index.html").read_text()


def test_where_noise_may_hide_predict_decides(tmp_path, capsys):
    lines = lines_of(save(tmp_path / "a.png", np.zeros((3, 5, 1), np.uint8)), capsys)
    assert "5x3 pixels are too few" in lines[0]
    assert lines[-1].startswith("next: python predict.py")


def test_of_a_stack_the_first_page_is_measured(tmp_path, capsys):
    """Where that one has no noise the others may: predict.py, which measures each, decides."""
    clean = scene(channels=1).round().astype(np.uint8)
    images.write_image(tmp_path / "a.tif", [clean, noisy(channels=1)])
    lines = lines_of(tmp_path / "a.tif", capsys)
    assert "no noise that can be measured" in lines[0]
    assert "the first of 2 pages measured" in lines[3]
    assert lines[-1].startswith("next: python predict.py")


def test_a_mosaic_is_measured_in_its_four_phases(tmp_path, capsys):
    raw = scene(256, 256, 1) * np.tile([[[0.5], [1.0]], [[1.0], [0.7]]], (128, 128, 1))
    raw = (raw + np.random.default_rng(0).normal(0, 8, raw.shape)) / 255
    images.write_image(tmp_path / "raw.tif", raw.astype(np.float32))
    lines = lines_of(tmp_path / "raw.tif", capsys)
    assert "Bayer mosaic" in lines[3]
    assert "white noise of 8" in lines[0] or "white noise of 7.9" in lines[0]
    assert "--n_channel 4" in lines[-1]


def test_two_frames_show_noise_where_texture_hides_it(tmp_path, capsys):
    texture = np.random.default_rng(9).integers(0, 90, (192, 256, 3))
    frames = [np.clip(noisy(4, seed=seed).astype(int) // 2 + texture, 0, 255).astype(np.uint8) for seed in (1, 2)]
    first, second = (save(tmp_path / f"{i}.png", frame) for i, frame in enumerate(frames))
    lines = lines_of(first, capsys, "--second", second)
    assert "white noise of 2" in lines[0]


def test_json_and_a_page_of_a_folder(tmp_path, capsys):
    for i in range(4):
        image = noisy(seed=i)
        image[50, 60] = 255
        save(tmp_path / "photos" / f"{i}.png", image)
    flags = ("--json", tmp_path / "new" / "noise.json", "--report", tmp_path / "report")
    lines = lines_of(tmp_path / "photos", capsys, *flags)
    assert "4 images" in lines[0]
    assert "1 hot pixel" in lines[3]
    found = json.loads((tmp_path / "new" / "noise.json").read_text())
    assert found["hot_pixels"] == [[50, 60]]
    assert [image["kind"] for image in found["images"]] == ["gauss"] * 4
    page = (tmp_path / "report" / "index.html").read_text()
    assert page.count("<svg") == 4
    assert "<pre>python predict.py" in page  # to be copied as it is
    assert page.count("<polyline") == 12  # of white noise, a line for each channel
    assert "src=" in page
    assert 'src="data:' in page
    assert page.count("src=") == page.count('src="data:')


def test_images_whose_noise_differs_tenfold_are_told(tmp_path, capsys):
    for i, sigma in enumerate((3, 45)):
        save(tmp_path / f"{i}.png", noisy(sigma))
    assert "differs 1" in lines_of(tmp_path, capsys)[0]


def test_what_is_true_of_some_files_is_not_said_of_all(tmp_path, capsys):
    save(tmp_path / "a.jpg", noisy(20))
    save(tmp_path / "b.png", noisy(20, blur=0.7, height=128))
    lines = lines_of(tmp_path, capsys)
    assert " to " not in lines[0]  # a range of one image
    assert "in 1, " in lines[0]
    assert lines[3].startswith("file: several sizes or types, JPEG of quality ")
    assert " in 1 of 2, " in lines[3]


def test_refusals(tmp_path, capsys):
    first = save(tmp_path / "a" / "1.png", noisy())
    save(tmp_path / "a" / "2.png", noisy())
    small = save(tmp_path / "small.png", noisy(height=64))
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "index.html").write_text("mine")
    (tmp_path / "there.json").write_text("{}")
    cases = {
        "single image": {"--image_path": tmp_path / "a", "--second": first},
        "same size": {"--image_path": first, "--second": small},
        "same image": {"--image_path": first, "--second": first},
        "--report": {"--image_path": first, "--report": tmp_path / "report"},
        "--json: cannot write to /proc": {"--image_path": first, "--json": "/proc/nowhere/a.json"},
        "there.json exists": {"--image_path": first, "--json": tmp_path / "there.json"},
        "does not exist": {"--image_path": tmp_path / "nowhere"},
    }
    for words, flags in cases.items():
        assert words in refusal(inspect_noise.main, flags, capsys)
    assert (tmp_path / "report" / "index.html").read_text() == "mine"


def test_what_a_jpeg_leaves():
    image = noisy(15, height=256)
    data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 40])[1]
    found = noise_traces.jpeg_grid(cv2.imdecode(data, cv2.IMREAD_COLOR)[3:, 5:])
    assert found[:2] == (5, 3)
    assert noise_traces.jpeg_grid(image) is None


def test_bits_and_combs():
    image = noisy(20)
    assert noise_traces.levels(image)[0] == 8
    assert noise_traces.levels(image)[1] < 0.02
    stretched = np.clip(image.astype(int) * 3 // 2, 0, 255).astype(np.uint8)
    assert noise_traces.levels(stretched)[1] > 0.2


def test_rows_that_differ(tmp_path):
    rng = np.random.default_rng(0)
    image = scene(height=256) + rng.normal(0, 5, (256, 256, 3))
    save(tmp_path / "plain.png", np.clip(image, 0, 255).astype(np.uint8))
    save(tmp_path / "rows.png", np.clip(image + rng.normal(0, 4, (256, 1, 1)), 0, 255).astype(np.uint8))
    plain, rows = (inspect_noise.inspect(tmp_path / f"{name}.png")[1] for name in ("plain", "rows"))
    assert (plain.rows, plain.columns) == (0, 0)
    assert rows.rows == pytest.approx(4, rel=0.2)
    assert rows.columns == 0


def test_of_several_kinds_the_commonest_is_described(tmp_path, capsys):
    rng = np.random.default_rng(0)
    flat = np.full((128, 160, 3), 120.0)
    for i, sigma in enumerate((20, 20, 6)):
        noise = rng.normal(0, sigma, flat.shape)
        if i == 2:
            noise = cv2.GaussianBlur(noise, (0, 0), 1.0) * 3
        save(tmp_path / "photos" / f"{i}.png", np.clip(flat + noise + 0.5, 0, 255).astype(np.uint8))
    lines = lines_of(tmp_path / "photos", capsys, "--report", tmp_path / "report")
    assert "white noise of" in lines[0]
    assert "correlated noise of" in lines[0]
    for line in lines[1:3]:
        assert line.endswith(", in the 2 with white noise")
    assert lines[2].removeprefix("neighbours: share ").lstrip("-").startswith("0.0")
    page = (tmp_path / "report" / "index.html").read_text()
    assert page.count("<polyline") == 6  # the curve of shared noise is no line


@needs_rawpy
def test_the_mosaic_of_a_raw_file(tmp_path, capsys):
    """Its four colours are measured, and what is to be done is to denoise the raw file itself."""
    light = np.repeat(np.linspace(0.1, 0.9, 320, dtype=np.float32)[None], 200, 0)
    noisy = light + 0.03 * np.random.default_rng(0).standard_normal(light.shape, np.float32)
    (tmp_path / "a.dng").write_bytes(dng.encode(noisy, (1, 0), (2.0, 1.0, 1.5)))
    assert inspect_noise.main(["--image_path", str(tmp_path / "a.dng"), "--json", str(tmp_path / "a.json")]) == 0
    found = json.loads((tmp_path / "a.json").read_text())["images"][0]
    assert found["shape"] == [101, 160, 4]  # from the first red pixel on, a row earlier
    assert found["sigma"] == pytest.approx(0.03 * 255, rel=0.06)
    assert f"next: python predict.py --image_path {tmp_path / 'a.dng'}" in capsys.readouterr().out
    # Beside a picture it stays predict.py that takes both; train.py reads no raw files.
    folder = tmp_path / "both"
    folder.mkdir()
    (folder / "a.dng").write_bytes((tmp_path / "a.dng").read_bytes())
    save(folder / "a.png", np.full((64, 64, 3), 90, np.uint8))
    assert lines_of(folder, capsys)[4] == f"next: python predict.py --image_path {folder} --save_dir denoised"
    (tmp_path / "b.nef").write_bytes(b"no raw file " * 50)
    assert "LibRaw cannot read it" in refusal(inspect_noise.main, ["--image_path", tmp_path / "b.nef"], capsys)
