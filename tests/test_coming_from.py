"""docs/coming_from.md does as it says: each command and flag on its right-hand side is run as it is printed there."""

import glob
import importlib
import importlib.util
import os
import re
import shlex
import shutil

import numpy as np
import paddle
import pytest

import dataset
from conftest import ROOT, run_script, save, scene
from denoising.cli import UserError

# What there is to be mapped.
THEIRS = {
    ("noise2noise-pytorch", "train.py"): """--train-dir --valid-dir --ckpt-save-path --ckpt-overwrite --report-interval
        --train-size --valid-size --learning-rate --adam --batch-size --nb-epochs --loss --cuda --plot-stats --seed
        --crop-size --clean-targets -n -p""",
    ("noise2noise-pytorch", "render.py"): """--tungsten --scene-path --spp --nb-renders --resolution --output-dir
        --hdr-buffers --hdr-targets""",
    ("noise2noise-pytorch", "test.py"): """--data --load-ckpt --show-output --cuda --noise-type --noise-param
        --crop-size --seed""",
    ("pytorch-noise2noise", "main.py --mode train"): """--train_continue --scope --norm --dir_checkpoint --dir_log
        --name_data --dir_data --num_epoch --batch_size --lr_G --optim --beta1 --ny_in --nx_in --nch_in --ny_load
        --nx_load --nch_load --ny_out --nx_out --nch_out --nch_ker --data_type --num_freq_disp --num_freq_save
        --gpu_ids""",
    ("pytorch-noise2noise", "main.py --mode test"): "--dir_checkpoint --scope --name_data --dir_data --dir_result",
    ("Neighbor2Neighbor, official (PyTorch)", "train.py"): """--noisetype --data_dir --val_dirs --save_model_path
        --log_name --gpu_devices --parallel --n_feature --n_channel --lr --gamma --n_epoch --n_snapshot --batchsize
        --patchsize --Lambda1 --Lambda2 --increase_ratio""",
}  # fmt: skip

# Small and short; these come after what a command says, and before what a flag's row says.
TINY = {
    "train.py": "--max_steps 1 --n_feature 4 --patchsize 32 --batchsize 2 --val_repeats 1 --val_images 1 --workers 1",
    "val.py": "--val_repeats 1 --overwrite",
    "tools/render_dataset.py": "--n_scenes 1 --n_valid 1 --n_renders 2 --spp 1 --size 32 --reference_spp 4 --workers 1",
    "dataset_tool.py": "",
    "tools/figure.py": "",
}


def tables():
    """(section, header, rows) of each table, cells stripped."""
    section, lines = "", []
    for line in [*(ROOT / "docs" / "coming_from.md").read_text(encoding="utf-8").splitlines(), ""]:
        if line.startswith("## "):
            section = line[3:]
        if line.startswith("|"):
            lines.append([cell.strip() for cell in line.strip("|").split("|")])
        elif lines:
            yield section, lines[0], lines[2:]
            lines = []


def code(cell):
    """What stands between backticks."""
    return re.findall(r"`([^`]+)`", cell)


COMMANDS, FLAGS = [], []
for section_, header_, rows_ in tables():
    for row_ in rows_:
        assert len(row_) == len(header_), row_
        for text_ in code(row_[1]):
            if header_[1] == "here":
                COMMANDS.append((section_, text_))
            else:
                FLAGS.append((section_, code(header_[1])[0], text_))


def run(folder, words):
    """Runs a script in a folder, train.py and val.py in this process; a * is what the shell makes of it."""
    words = [found for word in words for found in (glob.glob(word, root_dir=folder) if "*" in word else [word])]
    if words[0] == "tools/render_dataset.py":
        pytest.importorskip("mitsuba")
    if words[0] not in ("train.py", "val.py"):
        run_script(*words, cwd=folder, ok=0)
        return
    before = os.getcwd()
    os.chdir(folder)
    try:
        assert importlib.import_module(words[0].removesuffix(".py")).main(words[1:]) == 0
    finally:
        os.chdir(before)


def words_of(command, *more):
    assert command.startswith("python "), command
    return shlex.split(command.removeprefix("python ")) + shlex.split(" ".join(more))


SCENE = """<scene version="3.0.0">
  <integrator type="direct"/><sensor type="perspective"/><emitter type="constant"/>
  <shape type="rectangle"><transform name="to_world"><translate z="3"/></transform></shape>
</scene>
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with the data of all three programs under the names that the document uses."""
    root = tmp_path_factory.mktemp("theirs")
    for kind in ("train", "valid", "test"):
        for i in range(3):
            save(root / "data" / kind / f"{i}.png", scene(40, 50 + i, seed=i))
    for kind in ("train", "val", "test"):
        (root / "datasets" / "bsd500" / kind).mkdir(parents=True)
        for i, image in enumerate(arrays()):
            np.save(root / "datasets" / "bsd500" / kind / f"{i:03d}.npy", image)
    (root / "scene.xml").write_text(SCENE)
    if importlib.util.find_spec("mitsuba") is None:
        for kind in ("render", "albedo", "normal", "target"):
            for folder in (root / "data" / "mc" / split / kind for split in ("train", "valid")):
                folder.mkdir(parents=True)
                np.save(folder / "0.npy", (scene(40, 50) / 255).astype(np.float32))
    for i in range(2):
        save(root / "ILSVRC2012_img_val" / f"{i}.JPEG", scene(260, 300, seed=i))
        save(root / "validation" / "BSD300" / "test" / f"{i}.png", scene(40, 30, seed=9 + i))
    return root


def arrays():
    """The kinds of arrays that such datasets hold, and of which one picture is the other's like."""
    image = scene(44, 33, seed=1)
    return image, image[..., 0], (image / 255).astype(np.float32), image[..., 1] / 255


@pytest.fixture(scope="module")
def done(workplace):
    """The folder after all commands ran, and how each ended."""
    ends = {}
    for command in COMMANDS:
        words = words_of(command[1])
        try:
            run(workplace, words + shlex.split(TINY[words[0]]))
        except (UserError, AssertionError, SystemExit, pytest.skip.Exception) as error:
            ends[command] = error
    return workplace, ends


@pytest.mark.parametrize("command", COMMANDS, ids=[command[:70] for _, command in COMMANDS])
def test_the_command_does_it(done, command):
    _, ends = done
    if isinstance(ends.get(command), pytest.skip.Exception):
        pytest.skip(str(ends[command]))
    assert command not in ends, ends.get(command)


def test_the_commands_leave_what_the_other_programs_left(done):
    folder, _ = done
    for result in ("data/denoised", "results/resnet/bsd500-test"):
        names = {path.name for path in (folder / result).iterdir()}
        kinds = ("input", "output", "label")
        assert {"index.html", "settings.json", *(f"0000{i}-{kind}.png" for i in range(3) for kind in kinds)} <= names
    assert {"00000-montage.png", "00002-montage.png"} <= {path.name for path in (folder / "data/denoised").iterdir()}
    (run_folder,) = (folder / "results" / "resnet" / "bsd500").iterdir()
    assert {"options.json", "stats.json", "loss.png", "psnr.png"} <= {path.name for path in run_folder.iterdir()}
    assert (run_folder / "validation" / "index.html").exists()
    assert "resumed at step" in (run_folder / "train.log").read_text()
    assert (folder / "figure.png").exists()


def test_folders_of_arrays_are_the_images_they_hold(done):
    import cv2

    folder, _ = done
    for i, array in enumerate(arrays()):
        label = cv2.imread(str(folder / "results" / "resnet" / "bsd500-test" / f"{i:05d}-label.png"))[..., ::-1]
        expected = array if array.dtype == np.uint8 else np.floor(array.astype(np.float32) * 255 + np.float32(0.5))
        expected = expected if expected.ndim == 3 else np.repeat(expected[..., None], 3, axis=2)
        assert np.array_equal(label, expected), i


class Begun(Exception):
    """A training has all that it needs."""


def begin(*_arguments, **_more):
    raise Begun


@pytest.mark.parametrize(("section", "script", "flag"), FLAGS, ids=[f"{s[:11]} {f[:60]}" for s, _, f in FLAGS])
def test_the_flag_does_it(done, section, script, flag, tmp_path, capsys, monkeypatch):
    """A training is stopped before its first step, when the flags have been taken and the images found."""
    folder, _ = done
    commands = [words_of(command) for where, command in COMMANDS if where == section]
    base = next(words for words in commands if words[0] == script) + shlex.split(TINY[script])
    if script != "val.py":  # elsewhere, so that there is one run of each name
        folder = shutil.copytree(folder, tmp_path / "theirs", ignore=shutil.ignore_patterns("ckpts", "results"))
    if script == "tools/render_dataset.py":
        shutil.rmtree(folder / "data" / "mc", ignore_errors=True)
    if flag == "--resume":
        run(folder, base)
        base += ["--max_steps", "2"]
    has_gpu = paddle.device.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0
    if "gpu" in flag and not has_gpu:
        with pytest.raises(UserError, match="--gpu_devices: no GPU"):
            run(folder, base + shlex.split(flag))
    elif script == "train.py" and flag != "--resume":
        monkeypatch.setattr(dataset, "Batches", begin)
        with pytest.raises(Begun):
            run(folder, base + shlex.split(flag))
    else:
        run(folder, base + shlex.split(flag))
        written = capsys.readouterr().out
        assert {"train.py": "done: ", "val.py": "[EVAL] "}.get(script, "") in written


def test_all_that_they_have_is_told():
    told = {}
    for section, header, rows in tables():
        if header[0] != "there":
            flags = re.findall(r"(?<![\w-])-[a-z-][\w-]*", " ".join(row[0] for row in rows))
            told[section, code(header[0])[0]] = set(flags)
    assert told.keys() == THEIRS.keys()
    for table, flags in THEIRS.items():
        assert not set(flags.split()) - told[table], table
