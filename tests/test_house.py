"""The rules of CONTRIBUTING.md that a machine can check."""

import ast
import re
import subprocess

from conftest import ROOT

ORDER = re.search(r"^    (arch_unet, .*)$", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)[1]
ROOMS = [[name.strip() for name in floor.split(",")] for floor in ORDER.split("<")]
KNOWN = "arch_unet dataset dataset_tool export_model infer predict train val".split()
NO_TRAINING = ("runtimes", "reports", "serving")  # what needs no training code


def tracked(*patterns):
    done = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.split()


def room_of(module):
    """The room in which a module of ours stands, or None."""
    first, *rest = module.split(".")
    if first == "denoising":
        # `python -m denoising` is a script, though it stands in the package.
        return {"__main__": "scripts"}.get(rest[0], rest[0]) if rest else None
    if first == "tools" or (ROOT / "tools" / f"{first}.py").exists():
        return "tools"
    if first in ("arch_unet", "dataset"):
        return "dataset.py" if first == "dataset" else first
    return "scripts" if first in KNOWN else None


def imports_of(path):
    """The modules of ours that a file imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            # `from denoising import cli` names a module, `from denoising.files.images import walk` is one.
            names = [f".{alias.name}" for alias in node.names] if node.module == "denoising" else [""]
            found |= {node.module + name for name in names}
    return {module for module in found if room_of(module)}


def files():
    """Each of our files with its module's name."""
    for path in tracked("*.py", "denoising/**.py", "tools/*.py"):
        if path.count("/") == 0 or path.startswith(("denoising/", "tools/")):
            yield path, path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def test_the_root_holds_the_files_that_people_know():
    assert [path for path in tracked("*.py") if "/" not in path] == [f"{name}.py" for name in KNOWN]


def test_every_room_is_in_the_order():
    rooms = {room_of(module) for _, module in files()} - {None}
    assert rooms == {name for floor in ROOMS for name in floor}


def test_rooms_import_only_from_the_left():
    floors = {name: floor for floor, names in enumerate(ROOMS) for name in names}
    checked = 0
    for path, module in files():
        room = room_of(module)
        for other in map(room_of, imports_of(path)) if room else ():
            checked += 1
            assert floors[other] < floors[room] or (other == room and room != "scripts"), f"{path} imports {other}"
    assert checked > 200


def test_running_and_serving_need_no_training_code():
    for path, module in files():
        if room_of(module) in NO_TRAINING:
            assert "training" not in map(room_of, imports_of(path)), path


def test_scripts_never_import_each_other():
    for path, module in files():
        if room_of(module) in ("scripts", "tools"):
            assert not {"scripts", "tools"} & set(map(room_of, imports_of(path))), path
