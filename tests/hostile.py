"""Hostile inputs for every script: wrong flags, odd files, broken weights, pickles that would run code, full disks.

    python tests/hostile.py                # all of them, with what is wrong
    python tests/hostile.py predict        # those whose name contains this

Each run must end in time and not by a signal, with one of the exit codes that fit, without a traceback, without
running code from a file, and without changing a file that it was given. tests/test_hostile.py does the same by pytest.
"""

import importlib
import io
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

import forks
from forks import ROOT

SECONDS = 20  # of computing, and as many times that of waiting as other work on the machine may take
# Of a fork, before it runs: what hangs, takes all memory or fills the disk is ended instead of the machine.
LIMITS = f"""
import resource, signal
resource.setrlimit(resource.RLIMIT_CPU, ({SECONDS}, {SECONDS}))
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
signal.signal(signal.SIGXCPU, signal.SIG_DFL)
"""
CLOSED, FULL = "os.close(1)", "os.dup2(os.open('/dev/full', os.O_WRONLY), 1)"
ENDS, REFUSES, FAILS, FINISHES = (0, 1, 2), (2,), (1, 2), (0,)


@dataclass
class Case:
    """One run: {zoo} and {out} in its arguments are the folders of the inputs and of the results."""

    script: str
    arguments: tuple
    codes: tuple = ENDS
    setup: str = ""
    adds: bool = False  # whether it may put files among its inputs

    @property
    def name(self):
        """What distinguishes it: the words that its script's good run does not have."""
        usual = set(BASES.get(self.script, "").replace("OUT", OUT).split())
        words, previous = [self.script], ""
        for word in self.arguments:
            if word not in usual:
                words += [previous] * (previous in usual) + [repr(word)]
            previous = word
        words.append({CLOSED: "stdout closed", FULL: "stdout full"}.get(self.setup, ""))
        return re.sub(r"[^ -~]", "_", " ".join(words)).replace("{zoo}/", "").replace("'", "").strip()[:110]


# --- What is good -------------------------------------------------------------------------------------------

OUT = "{out}/result"
BASES = {  # runs that end well in a second or two; each case changes something in one
    "dataset_tool.py": "--input_dir {zoo}/good --save_dir OUT --min_size 16 --workers 1",
    "train.py": "--data_dir {zoo}/good --val_dirs {zoo}/val --max_steps 1 --n_feature 4 --patchsize 16 --batchsize 1"
    " --val_repeats 1 --workers 1 --save_model_path OUT",
    "val.py": "--model_path {zoo}/tiny.pdparams --val_dirs {zoo}/val --val_repeats 1",
    "predict.py": "--image_path {zoo}/good --model_path {zoo}/tiny.pdparams --save_dir OUT",
    "export_model.py": "--model_path {zoo}/tiny.pdparams --save_dir OUT",
    "infer.py": "--model_dir {zoo}/export --input_file {zoo}/good --save_dir OUT",
    "tools/quantize_model.py": "--model_path {zoo}/tiny.pdparams --images {zoo}/good --crops 1 --save_dir OUT",
    "tools/convert_weights.py": "--model_path {zoo}/tiny.pdparams --save_path OUT.pdparams",
    "tools/figure.py": "--result_dir {zoo}/good --save_path OUT.png",
    "tools/inspect_noise.py": "--image_path {zoo}/good --report OUT",
    "tools/mri_dataset.py": "--phantoms 1 --size 32 --save_dir OUT",
    "tools/render_dataset.py": "--save_dir OUT --n_scenes 1 --n_valid 1 --size 16 --spp 1 --reference_spp 2"
    " --workers 1",
    "tools/serve_client.py": "--image_path {zoo}/good --url http://127.0.0.1:9 --patience 0 --save_dir OUT",
    "from_scratch/make_pairs.py": "--images {zoo}/good --val_images {zoo}/val --size 16 --count 9 --val_count 2"
    " --out OUT",
    "from_scratch/train.py": "--train {zoo}/pairs/train.npz --val {zoo}/pairs/val.npz --features 4 --batch 4 --epochs 1"
    " --out OUT",
    "test_tipc/train_for_tipc.py": "--data_dir={zoo}/good --val_dirs={zoo}/val --max_steps=1 --n_feature=4"
    " --patchsize=16 --batchsize=1 --val_repeats=1 --workers=1 --save_model_path=OUT",
    # These two are never started whole: a service does not end, a card takes its time.
    "tools/serve.py": "--model_path {zoo}/broken/empty.pdparams --port 0",
    "tools/model_card.py": "--model_path {zoo}/broken/empty.pdparams --save_dir OUT",
}


def base(script, **changes):
    """The words of a script's good run, some flags with another value, or without the flag where that is None."""
    words = BASES[script].replace("OUT", OUT).split()
    if words and "=" in words[0]:
        words = [part for word in words for part in word.split("=", 1)]
    flags = dict(zip(words[::2], words[1::2], strict=True)) | {f"--{name}": value for name, value in changes.items()}
    return tuple(word for name, value in flags.items() if value is not None for word in (name, value))


# --- What is not --------------------------------------------------------------------------------------------


class Trap:
    """Unpickled, it would leave a file that is looked for afterwards."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def picture(height=40, width=48, seed=0):
    rng = np.random.default_rng(seed)
    return np.kron(rng.integers(30, 220, (height // 8, width // 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)


def png_of(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def npy_of(header, data=b""):
    text = header.encode() + b" " * (-(10 + len(header) + 1) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def special_files(folder, suffix):
    """What a path may lead to other than a file's bytes."""
    (folder / f"folder{suffix}").mkdir()
    os.mkfifo(folder / f"fifo{suffix}")
    (folder / f"device{suffix}").symlink_to("/dev/zero")
    (folder / f"dangling{suffix}").symlink_to("nowhere")
    (folder / f"ring{suffix}").symlink_to(f"ring{suffix}")


def odd_images(folder, canary):
    folder.mkdir()
    good = png_of(picture())
    crc = bytearray(good)
    crc[-20] ^= 1  # within the pixels' checksum
    huge = bytearray(good)
    huge[16:24] = (200_000).to_bytes(4, "big") * 2
    pickled = io.BytesIO()
    np.save(pickled, np.array([Trap(canary)], object), allow_pickle=True)
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("../../escaped.png", good)
        archive.writestr("inner.png", good[:99])
    contents = {
        "empty.png": b"", "one_byte.png": b"\x89", "truncated.png": good[:99], "half.png": good[: len(good) // 2],
        "text.png": b"no picture\n" * 9, "checksum.png": bytes(crc), "huge.png": bytes(huge),
        "trap.npy": pickled.getvalue(),
        "bomb.npy": npy_of("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000, 3), }", b"abc"),
        "negative.npy": npy_of("{'descr': '<f4', 'fortran_order': False, 'shape': (-4, 4), }", b"abcd" * 16),
        "nan.npy": npy_of("{'descr': '<f4', 'fortran_order': False, 'shape': (4, 4), }", b"\0\0\xc0\x7f" * 16),
        "code.npy": npy_of(f"__import__('os').system('touch {canary}')"),
        "nothing.npy": npy_of("{'descr': '<f4', 'fortran_order': False, 'shape': (0, 4, 3), }"),
        "empty.tif": b"", "loop.tif": b"II*\0\x08\0\0\0\0\0\x08\0\0\0", "empty.exr": b"",
        "magic.exr": b"v/1\x01\x02\0\0\0",
        "half.jpg": b"\xff\xd8\xff\xe0\0\x10JFIF\0\1", "tiny.gif": b"GIF89a\1\0\1\0", "zero.bmp": b"BM" + b"\0" * 52,
        "slip.zip": zipped.getvalue(), "x" * 245 + ".png": good, "new\nline.png": good[:70], "-h.png": good[:70],
        os.fsdecode(b"\xff\xfe.png"): good, **raw_files(),
    }  # fmt: skip
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    special_files(folder, ".png")


def raw_files():
    """Raw files that are cut short, claim to be huge, or are none."""
    from denoising.files import dng

    whole = dng.encode(np.full((40, 60), 0.3), (0, 0), (2.0, 1.0, 1.5))
    sides = [struct.pack("<HHI", code, kind, 1) for code in (256, 257) for kind in (3, 4)]
    huge = whole
    for side in sides:
        if side in whole:
            at = huge.index(side)
            huge = huge[:at] + side[:2] + struct.pack("<HII", 4, 1, 60_000) + huge[at + 12 :]
    assert huge != whole
    return {
        "cut.dng": whole[:-9], "header.dng": whole[:300], "huge.dng": huge, "text.nef": b"no raw file\n" * 99,
        "empty.arw": b"",
        "fuji.raf": b"FUJIFILMCCD-RAW " + b"\xff" * 400,
        "canon.cr3": b"\0\0\0\x18ftypcrx " + b"\xff" * 99,
    }  # fmt: skip


def broken_weights(folder, canary, tiny):
    from denoising.inference import checkpoint

    folder.mkdir()
    data = tiny.read_bytes()
    state = checkpoint.read_state(tiny)
    options = json.loads(state["@options"])

    def changed(**weights):
        return pickle.dumps({**state, **weights}, protocol=4)

    name = next(name for name in state if name.endswith("weight"))
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Trap(canary), protocol=2))
        archive.writestr("archive/version", "3\n")
    contents = {
        "empty.pdparams": b"", "truncated.pdparams": data[:200], "half.pdparams": data[: len(data) // 2],
        "text.pdparams": b"no weights\n", "trap.pdparams": pickle.dumps(Trap(canary)),
        "trap_inside.pdparams": changed(**{name: Trap(canary)}), "trap.pth": zipped.getvalue(),
        "trap_old.pth": pickle.dumps(Trap(canary), protocol=2), "list.pdparams": pickle.dumps([1, 2]),
        "nan.pdparams": changed(**{name: np.full_like(state[name], np.nan)}),
        "large.pdparams": changed(**{name: np.full_like(state[name], 3e38)}),
        "shape.pdparams": changed(**{name: state[name][:1]}), "text_inside.pdparams": changed(**{name: "text"}),
        "no_options.pdparams": changed(**{"@options": "{"}), "other_name.pdparams": changed(more=state[name]),
        "claims.pdparams": changed(**{"@options": json.dumps(options | {"n_feature": 10**9})}),
        "deep.pdparams": b"\x80\x04" + b"(" * 100_000 + b".", "rubbish.pth": b"PK\x03\x04" + b"\0" * 99,
        "loops.pdparams": b"\x80\x04]q\0h\0a.", "memory.pdparams": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.",
    }  # fmt: skip
    for file, content in contents.items():
        (folder / file).write_bytes(content)
    special_files(folder, ".pdparams")


def broken_exports(folder, export, onnx, canary):
    """Folders and files that look like exported models."""
    folder.mkdir()
    program = next(
        path.name for path in export.iterdir() if path.suffix in (".pdmodel", ".json") and "deploy" not in path.name
    )
    data = {path.name: path.read_bytes() for path in export.iterdir()}
    broken = {
        "no_program": {program: None}, "no_weights": {"model.pdiparams": None}, "no_facts": {"deploy.json": None},
        "empty_all": {program: b"", "model.pdiparams": b"", "deploy.json": None}, "empty_program": {program: b""},
        "empty_weights": {"model.pdiparams": b""}, "cut_program": {program: data[program][:300]},
        "cut_weights": {"model.pdiparams": data["model.pdiparams"][:300]}, "text_facts": {"deploy.json": b"no facts"},
        "list_facts": {"deploy.json": b"[1]"}, "binary_facts": {"deploy.json": b"\xff\xfe\0"},
        "deep_facts": {"deploy.json": b"[" * 100_000}, "trap_weights": {"model.pdiparams": pickle.dumps(Trap(canary))},
        "text_program": {program: b"no program\n" * 30}, "changed_program": {program: data[program][::-1]},
    }  # fmt: skip
    for name, changes in broken.items():
        (folder / name).mkdir()
        for file, content in {**data, **changes}.items():
            if content is not None:
                (folder / name / file).write_bytes(content)
    graph = onnx.read_bytes() if onnx else b"\x08\x08" * 200
    middle = len(graph) // 2
    for name, content in {
        "empty": b"", "cut": graph[:middle], "text": b"no graph", "reversed": graph[::-1], "zeros": b"\0" * 500,
        "flipped": graph[:60] + bytes(byte ^ 0x15 for byte in graph[60:90]) + graph[90:],
        "longer": graph + graph[:middle], "hostile": b"\x08\x08\x3a\xff\xff\xff\xff\x0f" + b"\x0a" * 200,
    }.items():  # fmt: skip
        (folder / f"{name}.onnx").write_bytes(content)


def broken_runs(folder, script_ends):
    """Run folders whose state says what no training said."""
    from denoising.inference import checkpoint

    made = forks.run("train.py", *filled(base("train.py", save_model_path=str(folder / "made")), folder.parent, folder))
    script_ends(made)
    (state_path,) = (folder / "made").rglob("last_state.pdparams")
    state = checkpoint.read_state(state_path)
    about = json.loads(state["@options"])

    def run(name, change, **files):
        shutil.copytree(state_path.parent, folder / name)
        changed = json.loads(json.dumps(about))
        change(changed)
        (folder / name / state_path.name).write_bytes(
            pickle.dumps({**state, "@options": json.dumps(changed)}, protocol=4)
        )
        for file, content in files.items():
            (folder / name / file.replace("__", ".")).write_bytes(content)

    def keep(_):
        pass

    run("far_step", lambda a: a["where"].update(step=10**30))
    run("negative_step", lambda a: a["where"].update(step=-5))
    run("text_step", lambda a: a["where"].update(step="many"))
    run("nan_seconds", lambda a: a["where"].update(seconds=float("nan")))
    run("text_best", lambda a: a["where"].update(best_psnr="good"))
    run("help", lambda a: a["training"].update({"help": True}))
    run("unknown_flag", lambda a: a["training"].update({"no_such_flag": 1}))
    run("wrong_kind", lambda a: a["training"].update({"batchsize": [1]}))
    run("huge_batch", lambda a: a["training"].update({"batchsize": 10**8}))
    run("list_options", lambda a: a.update(training=[1]))
    run("no_where", lambda a: a.pop("where"))
    run("binary_metrics", keep, metrics__csv=bytes(range(256)) * 9)
    run("empty_metrics", keep, metrics__csv=b"")
    run("long_field", keep, metrics__csv=b'step,name,value\n1,"' + b"x" * 300_000)
    run("empty_state", keep, last_state__pdparams=b"")
    run("binary_log", keep, train__log=bytes(range(256)))


MAKE_WEIGHTS = """
import sys
import paddle
from arch_unet import build_network
from denoising.inference import checkpoint
paddle.seed(1)
network = build_network(n_feature=4)
options = {**network.options, "noisetype": "gauss25"}
checkpoint.save_network(sys.argv[1], checkpoint.network_state(network), options)
"""


def zoo(folder):
    """Makes all inputs; returns the folder, and the file that only code from one of them would make."""
    folder, canary = Path(folder, "zoo"), Path(folder, "canary")
    folder.mkdir()

    def ends(result):
        assert result.returncode == 0, result.stderr

    for i in range(2):
        (folder / "good").mkdir(exist_ok=True)
        (folder / "val" / "Tiny").mkdir(parents=True, exist_ok=True)
        (folder / "good" / f"{i}.png").write_bytes(png_of(picture(seed=i)))
        (folder / "val" / "Tiny" / f"{i}.png").write_bytes(png_of(picture(seed=9 + i)))
    shutil.copytree(folder / "good", folder / "already")
    (folder / "already" / "0_denoise.png").write_bytes(png_of(picture(seed=5)))
    shutil.copytree(folder / "good", folder / "one_broken")
    (folder / "one_broken" / "00.png").write_bytes(png_of(picture())[:99])
    shutil.copytree(folder / "good", folder / "beside")
    (folder / "nothing").mkdir()
    (folder / "rings" / "inner").mkdir(parents=True)
    for name, target in {"inner/up": "..", "inner/self": ".", "inner/twice": "../../rings", "side": "inner"}.items():
        (folder / "rings" / name).symlink_to(target)
    odd_images(folder / "odd", canary)
    ends(forks.run("-c", MAKE_WEIGHTS, folder / "tiny.pdparams"))
    broken_weights(folder / "broken", canary, folder / "tiny.pdparams")
    ends(
        forks.run("export_model.py", *filled(base("export_model.py", save_dir=str(folder / "export")), folder, folder))
    )
    onnx = filled(base("export_model.py", save_dir=str(folder / "onnx"), format="onnx"), folder, folder)
    has_onnx = forks.run("export_model.py", *onnx).returncode == 0
    broken_exports(folder / "exports", folder / "export", folder / "onnx" / "model.onnx" if has_onnx else None, canary)
    pairs = filled(base("from_scratch/make_pairs.py", out=str(folder / "pairs")), folder, folder)
    ends(forks.run("from_scratch/make_pairs.py", *pairs))
    (folder / "runs").mkdir()
    broken_runs(folder / "runs", ends)
    (folder / "text.txt").write_text("Loss1=0.5\n")
    (folder / "binary.log").write_bytes(bytes(range(256)) * 20)
    return folder, canary


# --- The cases ----------------------------------------------------------------------------------------------

NO_NUMBERS = ("", "x", "nan", "1e999", "-1e99", "0x10", "1,5", "1" * 5000)
ODD_IMAGES = """empty.png one_byte.png truncated.png half.png text.png checksum.png huge.png trap.npy bomb.npy
    negative.npy nan.npy code.npy nothing.npy empty.tif loop.tif empty.exr magic.exr half.jpg tiny.gif zero.bmp
    cut.dng header.dng huge.dng text.nef empty.arw fuji.raf canon.cr3
    slip.zip -h.png folder.png fifo.png device.png dangling.png ring.png""".split()
ODD_IMAGES += ["x" * 245 + ".png", "new\nline.png", os.fsdecode(b"\xff\xfe.png")]
WEIGHTS = """empty truncated half text trap trap_inside list nan shape text_inside no_options other_name claims deep
    loops memory folder fifo device dangling ring""".split()
WEIGHTS = [f"{name}.pdparams" for name in WEIGHTS] + ["trap.pth", "trap_old.pth", "rubbish.pth"]
EXPORTS = """no_program no_weights empty_all empty_program empty_weights cut_program cut_weights text_facts list_facts
    binary_facts deep_facts trap_weights text_program changed_program""".split()
GRAPHS = "empty cut text reversed zeros flipped longer hostile".split()
RUNS = """far_step negative_step text_step text_best help unknown_flag wrong_kind huge_batch list_options no_where
    binary_metrics long_field empty_state""".split()
SOURCES = {  # the flag of each script that names images
    "dataset_tool.py": "input_dir", "train.py": "data_dir", "val.py": "val_dirs", "predict.py": "image_path",
    "infer.py": "input_file", "tools/quantize_model.py": "images", "tools/serve_client.py": "image_path",
    "from_scratch/make_pairs.py": "images", "tools/mri_dataset.py": "data", "tools/figure.py": "result_dir",
    "tools/inspect_noise.py": "image_path",
}  # fmt: skip
PLACES = ("nowhere", "nothing", "rings", "odd/text.png", "odd/fifo.png", "odd/device.png", "odd/ring.png")
RESULTS = {
    "dataset_tool.py": "save_dir", "train.py": "save_model_path", "predict.py": "save_dir",
    "export_model.py": "save_dir", "infer.py": "save_dir", "tools/quantize_model.py": "save_dir",
    "tools/mri_dataset.py": "save_dir",
    "tools/convert_weights.py": "save_path", "tools/render_dataset.py": "save_dir",
    "from_scratch/make_pairs.py": "out",
    "from_scratch/train.py": "out", "tools/figure.py": "save_path", "tools/inspect_noise.py": "report",
}  # fmt: skip
HELPERS = (
    ("extract_loss.py", ""), ("extract_loss.py", "{zoo}/nowhere"), ("extract_loss.py", "{zoo}/binary.log"),
    ("extract_loss.py", "{zoo}/good"), ("extract_loss.py", "{zoo}/text.txt {zoo}/binary.log {zoo}/text.txt"),
    ("check_row.py", ""), ("check_row.py", "train"), ("check_row.py", "none --log x"),
    ("compare_results.py", ""), ("compare_results.py", "--gt_file {zoo}/* --log_file {zoo}/*"),
    ("compare_results.py", "--gt_file {zoo}/nowhere --log_file {zoo}/binary.log"),
    ("compare_results.py", "--gt_file {zoo}/** --log_file {zoo}/binary.log --atol x"),
    ("analysis.py", ""),
    ("analysis.py", "--filename {zoo}/nowhere --speed_log_file {out}/x --model_name x --base_batch_size 1"),
    ("analysis.py", "--filename {zoo}/binary.log --speed_log_file {out}/x --model_name x --base_batch_size 0"),
    ("analysis.py", "--filename {zoo}/good --speed_log_file {out}/x --model_name x --base_batch_size 1"),
    ("make_renders.py", ""), ("make_renders.py", "{zoo}/text.txt"), ("make_renders.py", "/proc/nowhere"),
    ("export_qat.py", ""), ("export_qat.py", "--model_path={zoo}/broken/empty.pdparams"),
    ("export_qat.py", "--model_path={zoo}/tiny.pdparams --save_dir={out}"),
)  # fmt: skip


def parser_of(script):
    sys.path[:0] = [str(ROOT / folder) for folder in (".", "tools") if str(ROOT / folder) not in sys.path]
    return importlib.import_module(Path(script).stem).get_parser()


def cases():
    """All of them, in an order that does not change."""
    for script in (name for name in BASES if "/" not in name or name.startswith("tools/")):
        if script != "tools/serve.py":  # which needs no flag
            yield Case(script, (), REFUSES)
        yield Case(script, (*base(script), "--no_such_flag"), REFUSES)
        yield Case(script, (*base(script), "surplus"), REFUSES)
        numbers = 0
        for action in parser_of(script)._actions:
            flag = action.option_strings[-1].lstrip("-")
            numeric = action.type is not None and action.type.__name__ != "boolean" or action.choices
            if numeric and len(action.option_strings[-1]) > 2:
                yield Case(script, base(script, **{flag: NO_NUMBERS[numbers % len(NO_NUMBERS)]}), REFUSES)
                numbers += 1
            elif action.nargs is None and not action.choices and flag not in ("result_dir", "model"):
                yield Case(script, base(script, **{flag: ""}))
    for name in ODD_IMAGES:
        path = "{zoo}/odd/" + name
        for script in ("predict.py", "infer.py", "tools/inspect_noise.py"):
            yield Case(script, base(script, **{SOURCES[script]: path}))
        if name.endswith((".npy", ".zip", ".tif")):
            yield Case("dataset_tool.py", base("dataset_tool.py", input_dir=path))
            yield Case("tools/mri_dataset.py", base("tools/mri_dataset.py", phantoms=None, data=path))
    for script, flag in SOURCES.items():
        more = {"phantoms": None} if script == "tools/mri_dataset.py" else {}
        for place in PLACES:
            yield Case(script, base(script, **more, **{flag: "{zoo}/" + place}), FAILS)
        yield Case(script, base(script, **more, **{flag: "{zoo}/odd"}))
        yield Case(script, base(script, **more, **{flag: "{zoo}/rings/**"}))
    for name in WEIGHTS:
        for script in ("predict.py", "export_model.py", "tools/convert_weights.py"):
            yield Case(script, base(script, model_path="{zoo}/broken/" + name), REFUSES if "nan" not in name else ENDS)
        fits = ENDS if name in ("no_options.pdparams", "claims.pdparams") else REFUSES  # it has its own options
        yield Case("train.py", base("train.py", pretrained="{zoo}/broken/" + name), fits)
        teacher = base("train.py", method="distillation", teacher="{zoo}/broken/" + name)
        yield Case("train.py", teacher, REFUSES if "nan" not in name else ENDS)
    for script in ("val.py", "tools/quantize_model.py", "tools/serve.py", "tools/model_card.py"):
        for name in ("trap.pdparams", "trap.pth", "half.pdparams", "claims.pdparams", "fifo.pdparams"):
            yield Case(script, base(script, model_path="{zoo}/broken/" + name), REFUSES)
    yield Case("tools/quantize_model.py", base("tools/quantize_model.py", model_path="{zoo}/broken/large.pdparams"))
    for script, flag in RESULTS.items():
        for place in ("", "/proc/nowhere", "{zoo}/text.txt/inside", "{zoo}/odd/dangling.png/x", "{out}/" + "y" * 300):
            # A name of no letters is this folder, or refused.
            yield Case(script, base(script, **{flag: place}), ENDS if place == "" else REFUSES)
    for name in EXPORTS:
        for script in ("infer.py", "tools/serve.py"):
            more = {"model_path": None} if script == "tools/serve.py" else {}
            if script == "infer.py" or name not in ("text_facts", "deep_facts", "trap_weights", "changed_program"):
                fits = ENDS if script == "infer.py" else REFUSES
                yield Case(script, base(script, **more, model_dir="{zoo}/exports/" + name), fits)
    for name in GRAPHS:
        for runtime in ("onnxruntime", "openvino"):
            model = {"model_dir": None, "model_file": "{zoo}/exports/" + name + ".onnx", "runtime": runtime}
            yield Case("infer.py", base("infer.py", **model))
    for name in RUNS:
        yield Case("train.py", ("--resume", "{zoo}/runs/" + name, "--save_model_path", "{out}/x"))
    for name in ODD_IMAGES[::3]:
        yield Case("predict.py", base("predict.py", model_path=None, image_path="{zoo}/odd/" + name))
    for place in ("good", "odd", "rings/**", "one_broken"):
        yield Case("predict.py", base("predict.py", model_path=None, image_path="{zoo}/" + place))
    yield Case("predict.py", (*base("predict.py", model_path=None), "--fast"))
    for flags in ("--fast", "--skip_existing --overwrite"):
        yield Case("predict.py", (*base("predict.py"), *flags.split()), REFUSES)
    yield Case("predict.py", (*base("predict.py", image_path="{zoo}/already", save_dir="{zoo}/already"),
        "--skip_existing"), FINISHES, adds=True)  # fmt: skip
    for place in (*PLACES, "odd", "odd/*.npy", "rings/**", "one_broken", "good"):
        judged = base("val.py", val_dirs=None, val_repeats=None, no_clean="{zoo}/" + place)
        yield Case("val.py", judged, REFUSES if place in PLACES else ENDS)
        yield Case("val.py", (*judged, "--noisetype", "gauss25", "--report", "{out}/report"))
        yield Case("val.py", (*judged, "--pair_dir", "{zoo}/good"))
    yield Case("predict.py", (*base("predict.py"), "--report", "{zoo}/text.txt/inside"), REFUSES)
    for place in ("nowhere", "nothing", "broken", "odd", "text.txt"):
        yield Case("tools/serve.py", base("tools/serve.py", model_path=None, models="{zoo}/" + place), REFUSES)
    for flags in ("--model other", "--model", "--fast --model auto", "--detail 1 --chroma 0"):
        yield Case("tools/serve_client.py", (*base("tools/serve_client.py"), *flags.split()), FAILS)
    for flags in ("--tile 1", "--tile 352", "--strength 1e30", "--strength -1", "--device gpu", "--gpu_devices 99"):
        yield Case("predict.py", (*base("predict.py"), *flags.split()))
    # Results beside their sources: none of those may change.
    for folder in ("already", "beside"):
        save = {"image_path": "{zoo}/" + folder, "save_dir": "{zoo}/" + folder}
        yield Case("predict.py", (*base("predict.py", **save), "--overwrite"), adds=True)
    for flags in (
        "--batchsize 100000000",
        "--patchsize 100000000",
        "--n_feature 1000000",
        "--n_epoch 10000000000000000000000",
    ):
        name, value = flags[2:].split()
        yield Case("train.py", base("train.py", **{name: value}), REFUSES if "epoch" not in name else ENDS)
    for flags in ("--cpu_threads 100000", "--batch_size 100000000", "--random_input 1,3,10000000,10000000",
                  "--random_input 0,0", "--random_input ,,,", "--use_gpu maybe", "--precision fp16"):  # fmt: skip
        yield Case("infer.py", (*base("infer.py"), *flags.split()))
    for url in (
        "http://[::1",
        "",
        "ftp://x",
        "http://127.0.0.1:99999",
        "http://\n",
        "file:///etc/passwd",
        "http://x y/",
    ):
        yield Case("tools/serve_client.py", base("tools/serve_client.py", url=url), FAILS)
    for second in ("{zoo}/odd/text.png", "{zoo}/odd/fifo.png", "{zoo}/nowhere", "{zoo}/good"):
        yield Case("tools/inspect_noise.py", (*base("tools/inspect_noise.py"), "--second", second), REFUSES)
    for target in ("/proc/nowhere", "{zoo}/text.txt/inside", "{out}/" + "y" * 300, "{zoo}/good"):
        yield Case("tools/inspect_noise.py", (*base("tools/inspect_noise.py"), "--json", target), REFUSES)
    yield Case("tools/render_dataset.py", base("tools/render_dataset.py", variant="cuda_ad_rgb"), REFUSES)
    for seed in ("-1", "x", "1" * 400):
        yield Case("from_scratch/make_pairs.py", base("from_scratch/make_pairs.py", seed=seed), REFUSES[:1] + FINISHES)
    yield Case("from_scratch/make_pairs.py", base("from_scratch/make_pairs.py", images="{zoo}/one_broken"))
    for flag in ("train", "val"):
        for path in ("odd/slip.zip", "odd/trap.npy", "odd/fifo.png", "odd/empty.png", "good", "nowhere"):
            yield Case("from_scratch/train.py", base("from_scratch/train.py", **{flag: "{zoo}/" + path}), REFUSES)
    for path in ("odd/slip.zip", "odd/trap.npy", "odd/empty.png", "broken/trap.pth"):
        yield Case(
            "from_scratch/denoise.py",
            ("--weights", "{zoo}/" + path, "--image", "{zoo}/good/0.png", "--out", OUT + ".png"),
            REFUSES,
        )
    for script, flags in HELPERS:
        yield Case(f"test_tipc/{script}", tuple(flags.split()), FAILS)
    for setup in (CLOSED, FULL):
        for script in (
            "dataset_tool.py",
            "val.py",
            "predict.py",
            "export_model.py",
            "infer.py",
            "from_scratch/make_pairs.py",
        ):
            yield Case(script, base(script), setup=setup)
        yield Case("train.py", ("--help",), setup=setup)


# --- Running them -------------------------------------------------------------------------------------------


def filled(words, inputs, out):
    return [word.replace("{zoo}", str(inputs)).replace("{out}", str(out)) for word in words]


def state_of(folder):
    """What changes with every file and link below a folder, whether it is written, replaced, moved or made."""
    found = {}
    for root, folders, names in os.walk(folder):
        if root == os.path.join(folder, "runs"):
            folders.clear()  # a training that goes on writes into its own
        for name in names + folders:
            about = os.lstat(path := os.path.join(root, name))
            # Of a folder, only that it is there: something may have been tried in it and taken away again.
            found[path] = about.st_ino if name in folders else (about.st_ino, about.st_size, about.st_mtime_ns)
    return found


def faults_of(case, inputs, canary, out, patience=3):
    """What is wrong with a run, in words; nothing if all is well."""
    before = state_of(inputs)
    try:
        result = forks.run(
            case.script, *filled(case.arguments, inputs, out), cwd=out, setup=LIMITS + case.setup,
            timeout=patience * SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return [f"does not end within {patience * SECONDS} s"]
    wrong, text = [], result.stdout + result.stderr
    if result.returncode not in case.codes:
        wrong.append(f"exit code {result.returncode}, not one of {case.codes}")
    if "Traceback (most recent call last)" in text or "Exception ignored" in text:
        wrong.append("a traceback")
    if result.returncode == 2 and not case.setup and not re.search(r"error: |usage: ", result.stderr):
        wrong.append("no line that says what is wrong")
    if canary.exists():
        canary.unlink()
        wrong.append("code from a file was run")
    if (after := state_of(inputs)) != before:
        changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
        changed -= after.keys() - before.keys() if case.adds else set()
        if changed:
            wrong.append(f"inputs changed: {', '.join(sorted(changed)[:5])}")
    return [*wrong, text[-1500:]] if wrong else []


def main():
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    chosen = [case for case in cases() if wanted in case.name]
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        inputs, canary = zoo(folder)
        for number, case in enumerate(chosen):
            out = Path(folder, "out", str(number))
            out.mkdir(parents=True)
            if wrong := faults_of(case, inputs, canary, out):
                failed += 1
                print(f"FAILED {case.name}", *wrong, sep="\n    ", flush=True)
            shutil.rmtree(out, ignore_errors=True)
    print(f"{len(chosen) - failed} of {len(chosen)} end as they should")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
