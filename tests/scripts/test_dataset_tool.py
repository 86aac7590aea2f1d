"""The training set as a user makes it: odd files, names that meet, kills, full disks, archives."""

import hashlib
import io
import json
import os
import signal
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib

import numpy as np
import pytest
import scipy.io
import tifffile
from PIL import Image

import dataset_tool
from conftest import ENVIRONMENT, ROOT, refusal, run_script, save, scene
from denoising.cli import UserError
from denoising.data import conversion, targets
from denoising.files import images
from denoising.imaging.pixels import ORIENTATION, Picture, to_01


def picture(height=60, width=64, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (height // 4 + 1, width // 4 + 1, channels)).astype(np.uint8)
    return np.kron(blocks, np.ones((4, 4, 1), np.uint8))[:height, :width]


def run(source, target, *flags):
    """In this process, with sizes that keep the tests quick; a later flag wins."""
    sizes = ("--min_size", 40, "--max_size", 80, "--workers", 1)
    return dataset_tool.main(["--input_dir", source, "--save_dir", target, *sizes, *flags])


def tree(folder):
    """Every file below a folder with its bytes, temporary ones too."""
    found = {}
    for root, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(root, name)
            with open(path, "rb") as file:
                found[os.path.relpath(path, folder)] = file.read()
    return found


def visible(folder):
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))


def skipped(folder):
    with open(folder / ".dataset_tool" / "skipped.csv") as file:
        return dict(line.split(",", 1) for line in file.read().splitlines()[1:])


def read(path):
    return images.read_image(path).pages[0]


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    (folder / "b").mkdir(parents=True)
    for index in range(40):
        name = f"b/{index}.JPEG" if index % 2 else f"{index}.jpg"
        Image.fromarray(picture(50 + index % 9, seed=index)).save(folder / name, quality=80)
    return folder


# --- The reference's result -----------------------------------------------------------------------


def test_jpeg_and_png_come_out_as_the_reference_writes_them(tmp_path):
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for name in ("colour.JPEG", "grey.jpg", "deep/a.png"):
        (source / name).parent.mkdir(exist_ok=True)
        image = Image.fromarray(picture()).convert("L" if "grey" in name else "RGB")
        image.save(source / name, **({} if name.endswith("png") else {"quality": 70}))
    run(source, target)
    assert visible(target) == ["a.png", "colour.JPEG", "grey.jpg"]
    for name, given in (("colour.JPEG", "colour.JPEG"), ("grey.jpg", "grey.jpg")):
        expected = io.BytesIO()
        with Image.open(source / given) as image:
            image.convert("RGB").save(expected, "JPEG", quality=100, subsampling=0)
        assert (target / name).read_bytes() == expected.getvalue()
    assert (target / "a.png").read_bytes() == (source / "deep/a.png").read_bytes()


def test_sizes_are_filtered_at_the_very_bounds(tmp_path):
    sizes = {"40x80": True, "39x80": False, "40x81": False, "80x80": True, "81x81": False, "8x8": False}
    for name in sizes:
        height, width = map(int, name.split("x"))
        images.write_image(tmp_path / f"{name}.png", picture(height, width))
    run(tmp_path, tmp_path / "out")
    assert visible(tmp_path / "out") == sorted(f"{name}.png" for name, good in sizes.items() if good)
    assert skipped(tmp_path / "out") == {
        "39x80.png": "smaller than 40 pixels a side,80 x 39",
        "40x81.png": "larger than 80 pixels a side,81 x 40",
        "81x81.png": "larger than 80 pixels a side,81 x 81",
        "8x8.png": "smaller than 40 pixels a side,8 x 8",
    }


def test_each_odd_kind_is_handled_on_purpose(tmp_path):
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    pixels, image = picture(), Image.fromarray(picture())
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    image.save(source / "rotated.png", exif=exif)
    image.convert("CMYK").save(source / "cmyk.jpg", quality=100)
    image.convert("P").save(source / "palette.png")
    image.convert("1").save(source / "bits.png")
    image.save(source / "a.webp", lossless=True)
    image.save(source / "a.bmp")
    alpha = np.zeros((60, 64), np.uint8)
    alpha[:30] = 255
    images.write_image(source / "clear.png", pixels, like=Picture([pixels], [alpha]))
    deep = pixels.astype(np.uint16) * 257 + 1
    images.write_image(source / "deep.png", deep)
    images.write_image(source / "float.tif", pixels.astype(np.float32) * 3)
    tifffile.imwrite(source / "stack.tif", np.stack([pixels[..., 0]] * 3), photometric="minisblack")
    image.save(source / "moving.gif", save_all=True, append_images=[Image.fromarray(255 - pixels)])
    (source / "cut.jpg").write_bytes((source / "cmyk.jpg").read_bytes()[:-900])
    (source / "text.png").write_text("no image")
    (source / "empty.png").touch()
    (source / "notes.txt").write_text("not tried")
    images.write_image(source / "fine.npy", picture().astype(np.float32))
    bad = picture().astype(np.float32)
    bad[3, 4] = np.nan
    images.write_image(source / "nan.npy", bad)
    bomb = bytearray((source / "bits.png").read_bytes())
    bomb[16:24] = struct.pack(">II", 99999, 99999)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
    (source / "bomb.png").write_bytes(bomb)
    run(source, target)

    assert visible(target) == [
        "a.png", f"a_{hashlib.sha256(b'a.webp').hexdigest()[:12]}.png", "bits.png", "clear.png",
        "cmyk.jpg", "deep.png", "fine.npy", "float.npy", "palette.png", "rotated.png",
        "stack_p001.png", "stack_p002.png", "stack_p003.png",
    ]  # fmt: skip
    for name in visible(target):
        assert read(target / name).shape[2] == 3
    np.testing.assert_array_equal(read(target / "rotated.png"), np.rot90(pixels, -1))
    with Image.open(target / "palette.png") as image:
        assert image.mode == "RGB"
    np.testing.assert_array_equal(read(target / "clear.png")[:30], pixels[:30])
    assert (read(target / "clear.png")[30:] == 255).all()
    np.testing.assert_array_equal(read(target / "deep.png"), deep)
    np.testing.assert_array_equal(read(target / "float.npy"), pixels.astype(np.float32) * 3)
    reasons = skipped(target)
    for name, word in {
        "moving.gif": "animation", "cut.jpg": "cut short", "text.png": "no image",
        "empty.png": "empty",
        "notes.txt": "no image by its name", "nan.npy": "NaN", "bomb.png": "larger",
    }.items():  # fmt: skip
        assert word in reasons.pop(name)
    assert not reasons


def test_grey_output_and_other_formats(tmp_path, source):
    run(source, tmp_path / "grey", "--n_channel", 1, "--format", "png")
    assert all(read(tmp_path / "grey" / name).shape[2] == 1 for name in visible(tmp_path / "grey"))
    run(source, tmp_path / "copy", "--format", "copy")
    assert (tmp_path / "copy/4.jpg").read_bytes() == (source / "4.jpg").read_bytes()
    run(source, tmp_path / "jpeg", "--format", "jpeg")
    assert len(visible(tmp_path / "jpeg")) == 40


def test_large_images_are_cut_where_asked(tmp_path):
    big = picture(200, 170)
    (tmp_path / "in").mkdir()
    images.write_image(tmp_path / "in/big.png", big)
    images.write_image(tmp_path / "in/strip.png", picture(45, 200))
    with pytest.raises(UserError, match=r"2 larger than 80 pixels a side\): --crop 80 .* --max_size"):
        run(tmp_path / "in", tmp_path / "out")
    run(tmp_path / "in", tmp_path / "out", "--crop", 80)
    crops = [read(tmp_path / "out" / name) for name in visible(tmp_path / "out")]
    assert [crop.shape[:2] for crop in crops] == [(80, 80)] * 4 + [(45, 80)] * 2
    np.testing.assert_array_equal(crops[0], big[20:100, 5:85])
    np.testing.assert_array_equal(crops[3], big[100:180, 85:165])


# --- Names ----------------------------------------------------------------------------------------


def test_two_files_of_one_name_both_survive(tmp_path):
    names = ["x/cat.png", "y/cat.png", "y/CAT.png", "dog.png", "x/dog.png", "x__dog.png", "cat_s001.png"]
    for seed, name in enumerate(names):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        images.write_image(tmp_path / "in" / name, picture(seed=seed))
    run(tmp_path / "in", tmp_path / "out")
    written = visible(tmp_path / "out")
    assert len({name.casefold() for name in written}) == len(names)
    assert {"dog.png", "x__cat.png", "y__CAT.png", "x__dog.png"} <= set(written)
    found = {read(tmp_path / "out" / name).tobytes() for name in written}
    assert found == {picture(seed=seed).tobytes() for seed in range(len(names))}


# --- Any number of workers, any interruption: the same tree ---------------------------------------


AFTER_OPENCV_WORKED_IN_THREADS = """
import sys
import cv2, numpy
import dataset_tool
cv2.setNumThreads(2)
cv2.GaussianBlur(numpy.zeros((2000, 2000, 3), numpy.uint8), (31, 31), 3)
sys.exit(dataset_tool.main(sys.argv[1:]))
"""


def test_workers_of_a_process_in_which_opencv_has_worked_do_not_wait_for_its_threads(tmp_path):
    for i in range(2 * dataset_tool.BATCH):
        save(tmp_path / "in" / f"{i:02d}.png", scene(40, 40, seed=i))
    command = [sys.executable, "-c", AFTER_OPENCV_WORKED_IN_THREADS, "--input_dir", tmp_path / "in"]
    command += ["--save_dir", tmp_path / "out", "--min_size", 32, "--workers", 2]
    subprocess.run(list(map(str, command)), cwd=ROOT, check=True, timeout=60)
    assert len(list((tmp_path / "out").glob("*.png"))) == 2 * dataset_tool.BATCH


@pytest.mark.parametrize("flags", [(), ("--noise", "gauss5_50", "--seed", 3)])
def test_any_number_of_workers_writes_the_same_bytes(tmp_path, source, flags):
    trees = []
    for workers in (1, 2, 5):
        run(source, tmp_path / str(workers), "--workers", workers, *flags)
        trees.append(tree(tmp_path / str(workers)))
        run(source, tmp_path / f"{workers}.zip", "--workers", workers, *flags)
    assert trees[0] == trees[1] == trees[2]
    assert len(trees[0]) == 40 + 3
    archives = [(tmp_path / f"{workers}.zip").read_bytes() for workers in (1, 2, 5)]
    assert archives[0] == archives[1] == archives[2]


INTERRUPTED_WHILE_IT_FORKS = """
import os, signal, sys
import dataset_tool
from denoising import cli
os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), signal.SIGINT))
cli.run(lambda: dataset_tool.main(sys.argv[1:]))
"""


def test_ctrl_c_is_not_lost_while_a_process_forks(tmp_path):
    """What is raised there, Python ignores."""
    for number in range(dataset_tool.BATCH + 1):
        save(tmp_path / "in" / f"{number}.png", picture(seed=number))
    flags = ["--min_size", 40, "--workers", 2, "--input_dir", tmp_path / "in", "--save_dir", tmp_path / "out"]
    done = run_script("-c", INTERRUPTED_WHILE_IT_FORKS, *flags, ok=130)
    assert done.stderr == "-c: interrupted\n"


def test_killed_at_any_moment_and_resumed_it_ends_the_same(tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    for index in range(300):
        Image.fromarray(picture(70, 75, seed=index)).save(folder / f"{index}.jpg")
    run(folder, tmp_path / "whole", "--workers", 2)
    target, kills = tmp_path / "killed", 0
    flags = ("--input_dir", folder, "--save_dir", target, "--min_size", 40, "--max_size", 80, "--workers", 2)
    command = [sys.executable, str(ROOT / "dataset_tool.py"), *map(str, flags)]
    for wanted in (20, 120):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=ENVIRONMENT)
        while process.poll() is None and (not target.exists() or len(visible(target)) < wanted):
            time.sleep(0.002)
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        for name in visible(target):
            read(target / name)  # never half a file
    (target / ".dataset_tool" / "99.tmp").write_bytes(b"left by a kill")
    capsys.readouterr()
    run(folder, target, "--workers", 2)
    assert tree(target) == tree(tmp_path / "whole")
    assert kills
    assert "of them earlier" in capsys.readouterr().out


def test_a_strangers_temporary_file_is_left_alone(tmp_path, source):
    target = tmp_path / "out"
    target.mkdir()
    (target / ".notes.12.tmp").write_text("years of work")
    (target / ".4.99.tmp.jpg").write_text("not ours either: unfinished images of this tool lie in its own folder")
    before = tree(target)
    run(source, target, "--overwrite")
    after = tree(target)
    assert {name: after[name] for name in before} == before


def test_resume_redoes_what_changed_and_nothing_else(tmp_path, source):
    target = tmp_path / "out"
    run(source, target)
    (target / "4.jpg").write_bytes(b"damaged")
    Image.fromarray(picture(70, 70, seed=99)).save(source / "6.jpg")
    with open(target / ".dataset_tool" / "manifest.jsonl", "a") as file:
        file.write('{"name": "torn by a cra')
    before = os.stat(target / "8.jpg").st_mtime_ns
    run(source, target)
    assert os.stat(target / "8.jpg").st_mtime_ns == before
    run(source, tmp_path / "fresh")
    assert tree(target) == tree(tmp_path / "fresh")


@pytest.mark.parametrize("line", ["[1]", "7", "null", "{}", '{"name": "4.jpg"}', '[{"name": "4.jpg"}]', "[" * 9000])
def test_a_line_of_the_list_that_is_no_record_is_damaged(tmp_path, source, line):
    target = tmp_path / "out"
    (target / ".dataset_tool").mkdir(parents=True)
    manifest = target / ".dataset_tool" / "manifest.jsonl"
    manifest.write_text(line + "\n")  # in place of the settings
    run(source, target)
    whole = tree(target)
    lines = manifest.read_text().splitlines()
    manifest.write_text("\n".join([*lines[:3], line, *lines[3:]]) + "\n")
    run(source, target)
    assert tree(target) == whole


def test_a_target_that_is_not_ours_or_made_otherwise_is_refused(tmp_path, source):
    target = tmp_path / "out"
    target.mkdir()
    (target / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"--save_dir: .* not made by this tool; --overwrite"):
        run(source, target)
    run(source, target, "--overwrite")
    with pytest.raises(UserError, match=r"--save_dir: .* has another min_size; --overwrite"):
        run(source, target, "--min_size", 55)
    count = len(visible(target))
    run(source, target, "--min_size", 55, "--overwrite")
    assert len(visible(target)) < count
    (source / "8.jpg").unlink()
    with pytest.raises(UserError, match="source is gone"):
        run(source, target, "--min_size", 55)
    assert (target / "thesis.txt").read_text() == "years of work"


# --- Mistakes, full disks -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--input_dir", "absent"], "--input_dir: absent does not exist"),
        (["--input_dir", "empty"], "--input_dir: empty is empty"),
        (["--input_dir", "text"], "--input_dir: text is neither a folder, a .zip nor a .tar"),
        (["--input_dir", "images", "--min_size", "-3"], "--min_size"),
        (["--input_dir", "images", "--min_size", "600"], "--min_size"),
        (["--input_dir", "images", "--noise", "gauss"], "--noise"),
        (["--input_dir", "images", "--noise", "gauss25", "--format", "jpeg"], "--format"),
        (["--input_dir", "images", "--worker", "2"], "--worker"),
        (["--input_dir", "images"], "nothing usable in images (1 smaller than 256 pixels a side"),
        (["--input_dir", "images", "--save_dir", "images"], "--save_dir"),
        (["--input_dir", "images", "--save_dir", "text"], "--save_dir: text is a file"),
        (["--input_dir", "images", "--save_dir", ""], "--save_dir: is empty"),
        (["--input_dir", "images", "--val_dir", "images"], "--val_dir: belongs to --pairs"),
        (["--input_dir", "images", "--save_dir", "/proc/out"], "--save_dir: cannot write to /proc"),
        (["--input_dir", "images", "--save_dir", "/proc/out.zip"], "/proc/out.zip: cannot be written"),
        (["--input_dir", "empty", "--validation_set", "Kodak"], "--input_dir"),
        (["--input_dir", "images", "--validation_set", "Kodak", "--noise", "gauss25"], "--noise: has no meaning with"),
        (["--input_dir", "images", "--validation_set", "Kodak", "--n_channel", "1"], "--n_channel: has no meaning"),
        (["--input_dir", "images", "--validation_set", "Kodak", "--pairs", "9"], "--pairs: has no meaning with"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "images").mkdir()
    (tmp_path / "text").write_text("x" * 2000)
    images.write_image(tmp_path / "images/a.png", picture())
    flags = flags if "--save_dir" in flags else [*flags, "--save_dir", "out"]
    line = refusal(dataset_tool.main, flags, capsys)
    assert words in line
    assert "\n" not in line
    assert not (tmp_path / "out").exists() or not visible(tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "images")) == ["a.png"]


@pytest.mark.parametrize("name", ["out", "out.zip"])
def test_a_full_disk_ends_the_run_and_leaves_nothing_half(tmp_path, source, monkeypatch, name):
    written = []

    def limited(function):
        def write(*arguments):
            written.append(1)
            if len(written) > 9:
                raise OSError(28, "No space left on device")
            return function(*arguments)

        return write

    monkeypatch.setattr(targets.os, "replace", limited(os.replace))
    monkeypatch.setattr(zipfile.ZipFile, "writestr", limited(zipfile.ZipFile.writestr))
    with pytest.raises(UserError, match="No space left"):
        run(source, tmp_path / name)
    monkeypatch.undo()
    assert not list(tmp_path.rglob("*.tmp*"))
    if name == "out":
        assert len(visible(tmp_path / name)) == 9 - 1  # one was the list of records
    else:
        assert not (tmp_path / name).exists()
    run(source, tmp_path / name)
    if name == "out":
        assert len(visible(tmp_path / name)) == 40


def test_the_published_command_from_another_folder(tmp_path):
    (tmp_path / "in").mkdir()
    images.write_image(tmp_path / "in/a.png", picture(300, 400))
    (tmp_path / "in/b.png").write_text("broken")
    result = run_script("dataset_tool.py", "--input-dir=in", "--save_dir", "deep/out", cwd=tmp_path, ok=0)
    assert result.stdout.splitlines()[0] == "1 images in deep/out, from 2 files"
    assert "1 skipped: unreadable, e.g. b.png: no image" in result.stdout


def test_help_tells_examples_and_defaults():
    text = dataset_tool.get_parser().format_help()
    assert "python dataset_tool.py --input_dir ILSVRC2012_img_val" in text
    assert "(default: 256)" in text


# --- Archives -------------------------------------------------------------------------------------


def test_zip_and_tar_give_what_the_folder_gives(tmp_path, source):
    run(source, tmp_path / "folder")
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive, tarfile.open(tmp_path / "in.tar", "w") as tar:
        for name in tree(source):
            archive.write(source / name, name)
        tar.add(source, "")
    images_of_folder = {name: data for name, data in tree(tmp_path / "folder").items() if name[0] != "."}
    for kind in ("zip", "tar"):
        run(tmp_path / f"in.{kind}", tmp_path / kind, "--workers", 2)
        assert {name: data for name, data in tree(tmp_path / kind).items() if name[0] != "."} == images_of_folder
    run(source, tmp_path / "out.zip")
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert {name: archive.read(name) for name in archive.namelist() if name[0] != "."} == images_of_folder
        assert json.loads(archive.read(".dataset_tool/record.json"))["images"] == 40
    with pytest.raises(UserError, match="--overwrite"):
        run(source, tmp_path / "out.zip")


def test_a_hostile_zip_writes_nothing_outside(tmp_path):
    good = images.encode("a.png", picture())
    with zipfile.ZipFile(tmp_path / "in.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../escape.png", good)
        archive.writestr("/absolute.png", good)
        archive.writestr("C:\\windows\\drive.png", good)
        archive.writestr("__MACOSX/._a.png", b"junk")
        archive.writestr(".hidden/a.png", good)
        archive.writestr("zeros.png", bytes(200 << 20))
    data = bytearray((tmp_path / "in.zip").read_bytes())
    target = tmp_path / "a" / "b" / "out"
    run(tmp_path / "in.zip", target)
    assert visible(target) == ["absolute.png", "drive.png", "escape.png"]
    assert sorted(os.listdir(tmp_path)) == ["a", "in.zip"]
    assert os.listdir(tmp_path / "a") == ["b"]
    assert "bomb" in skipped(target)["zeros.png"]
    data[200] ^= 255  # inside of the first member
    (tmp_path / "bad.zip").write_bytes(data)
    run(tmp_path / "bad.zip", tmp_path / "bad")
    assert "cannot be read from the archive" in skipped(tmp_path / "bad")["escape.png"]
    (tmp_path / "cut.zip").write_bytes(data[:500])
    with pytest.raises(UserError, match="--input_dir"):
        run(tmp_path / "cut.zip", tmp_path / "cut")


# --- Noise ----------------------------------------------------------------------------------------


def test_noisy_copies_lose_nothing_and_are_on_record(tmp_path, source):
    run(source, tmp_path / "a", "--noise", "gauss25", "--seed", 7)
    record = json.loads((tmp_path / "a/.dataset_tool/record.json").read_text())
    assert (record["noise"], record["seed"], record["images"]) == ("gauss25", 7, 40)
    residuals = []
    for name in visible(tmp_path / "a"):
        noisy = read(tmp_path / "a" / name)
        assert noisy.dtype == np.float32
        clean = read(next(path for path in source.rglob("*.*") if path.stem == name[:-4]))
        residuals.append((noisy - to_01(clean)) * 255)
    every = np.concatenate([residual.ravel() for residual in residuals])
    assert abs(every.mean()) < 0.2
    assert abs(every.std() - 25) < 0.2
    assert not np.allclose(residuals[0][:40, :40], residuals[1][:40, :40])
    run(source, tmp_path / "b", "--noise", "gauss25", "--seed", 8)
    other = json.loads((tmp_path / "b/.dataset_tool/record.json").read_text())
    assert other["pixels_sha256"] != record["pixels_sha256"]
    run(source, tmp_path / "c", "--noise", "gauss25", "--format", "png")
    assert read(tmp_path / "c/4.png").dtype == np.uint8


def test_noise_follows_from_the_seed_and_the_name_alone(tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in ("deep/a.png", "b.png"):
        images.write_image(tmp_path / "in" / name, picture())
    run(tmp_path / "in", tmp_path / "out", "--noise", "gauss25", "--seed", 3)
    for name, written in (("deep/a.png", "a.npy"), ("b.png", "b.npy")):
        number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
        expected = picture() / np.float32(255)
        expected = expected + np.random.default_rng([3, number]).standard_normal(expected.shape, np.float32) * (
            25 / 255
        )
        np.testing.assert_allclose(np.load(tmp_path / "out" / written), expected, atol=1e-6)


def test_half_transparent_pixels_are_half_white(tmp_path):
    pixels, alpha = np.full((60, 64, 3), 100, np.uint8), np.full((60, 64), 51, np.uint8)
    (tmp_path / "in").mkdir()
    images.write_image(tmp_path / "in" / "a.png", pixels, like=Picture([pixels], [alpha]))
    run(tmp_path / "in", tmp_path / "out")
    assert (read(tmp_path / "out" / "a.png") == 100 / 5 + 255 * 4 / 5).all()


def test_a_large_file_is_left_out_by_its_header(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    images.write_image(tmp_path / "in" / "large.png", picture(90, 90))
    images.write_image(tmp_path / "in" / "good.png", picture())
    monkeypatch.setattr(conversion, "LARGE_FILE", 0)
    opened, read_bytes = [], images.read_bytes
    monkeypatch.setattr(images, "read_bytes", lambda path: opened.append(path) or read_bytes(path))
    run(tmp_path / "in", tmp_path / "out")
    assert opened == [str(tmp_path / "in" / "good.png")]
    assert skipped(tmp_path / "out") == {"large.png": "larger than 80 pixels a side,90 x 90"}


# --- Raw frames -----------------------------------------------------------------------------------


def test_raw_frames_become_crops_of_the_same_bayer_phase(tmp_path, capsys):
    scene = tmp_path / "in" / "0001_001_S6_00100_00060_3200_L"
    scene.mkdir(parents=True)
    frame = np.random.default_rng(0).random((1031, 900)).astype(np.float32)
    scipy.io.savemat(scene / "0001_NOISY_RAW_010.MAT", {"x": frame}, appendmat=False)
    scipy.io.savemat(scene / "0001_GT_RAW_010.MAT", {"x": frame}, appendmat=False)
    scipy.io.savemat(scene / "small_NOISY.mat", {"x": frame[:100, :100]})
    scipy.io.savemat(scene / "text_NOISY.mat", {"x": "hello"})
    (scene / "broken_NOISY.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(range(256)))
    (scene / "new_NOISY.mat").write_bytes(b"MATLAB 7.3 MAT-file" + bytes(600))
    run(tmp_path / "in", tmp_path / "out")
    stem = "0001_001_S6_00100_00060_3200_L__0001_NOISY_RAW_010"
    starts = [(top, left) for top in (0, 256, 512, 518) for left in (0, 256, 388)]
    assert visible(tmp_path / "out") == [f"{stem}_s{n:03d}.npy" for n in range(1, len(starts) + 1)]
    for name, (top, left) in zip(visible(tmp_path / "out"), starts, strict=True):
        crop = np.load(tmp_path / "out" / name)
        assert crop.dtype == np.float32
        np.testing.assert_array_equal(crop, frame[top : top + 512, left : left + 512])
    assert "GRBG 12" in capsys.readouterr().out
    reasons = {name.split("/")[-1]: reason for name, reason in skipped(tmp_path / "out").items()}
    assert "clean frame" in reasons["0001_GT_RAW_010.MAT"]
    assert "smaller" in reasons["small_NOISY.mat"]
    assert set(reasons) == {"0001_GT_RAW_010.MAT", "small_NOISY.mat", "text_NOISY.mat",
                            "broken_NOISY.mat", "new_NOISY.mat"}  # fmt: skip


# --- Validation sets ------------------------------------------------------------------------------


def add(tar, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def test_validation_sets_are_put_into_place(tmp_path, capsys):
    jpeg, png = images.encode("a.jpg", picture()), images.encode("a.png", picture())
    with tarfile.open(tmp_path / "BSDS300-images.tgz", "w:gz") as tar:
        for name in ("images/train/1.jpg", "images/test/2.jpg", "images/test/../../../test/3.jpg"):
            add(tar, f"BSDS300/{name}", jpeg)
        add(tar, "BSDS300/iids_test.txt", b"2\n3\n")
        link = tarfile.TarInfo("BSDS300/images/test/link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with zipfile.ZipFile(tmp_path / "Set14.zip", "w") as archive:
        for name in ("2/img_001_SRF_2_HR", "2/img_001_SRF_2_LR", "3/img_001_SRF_3_HR"):
            archive.writestr(f"Set14/image_SRF_{name}.png", png)
    (tmp_path / "kodak").mkdir()
    (tmp_path / "kodak/kodim01.png").write_bytes(png)
    target = tmp_path / "validation"
    sources = {"BSD300": "BSDS300-images.tgz", "Kodak": "kodak", "Set14": "Set14.zip"}
    for name, given in sources.items():
        for _ in range(2):  # a second time it is just there
            flags = ["--validation_set", name, "--input_dir", tmp_path / given, "--save_dir", target]
            assert dataset_tool.main(flags) == 0
    assert tree(target) == {
        "BSD300/test/2.jpg": jpeg, "BSD300/test/3.jpg": jpeg, "Kodak/kodim01.png": png,
        "Set14/img_001_SRF_2_HR.png": png,
    }  # fmt: skip
    assert "BSD300 has 100 images" in capsys.readouterr().err
    (target / "Kodak/kodim01.png").write_bytes(jpeg)
    with pytest.raises(UserError, match="--overwrite"):
        dataset_tool.main(["--validation_set", "Kodak", "--input_dir", tmp_path / "kodak", "--save_dir", target])
    (tmp_path / "cut.tgz").write_bytes((tmp_path / "BSDS300-images.tgz").read_bytes()[:-200])
    with pytest.raises(UserError, match="--input_dir"):
        dataset_tool.main(["--validation_set", "BSD300", "--input_dir", tmp_path / "cut.tgz", "--save_dir", target])
