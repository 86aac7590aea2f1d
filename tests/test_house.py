"""The rules of CONTRIBUTING.md that a machine can check."""

import ast
import re

from conftest import ROOT

SCRIPTS = {
    "convert_weights",
    "dataset_tool",
    "train",
    "val",
    "predict",
    "export_model",
    "quantize_model",
    "model_card",
    "infer",
    "serve",
    "serve_client",
    "figure",
    "mri_dataset",
    "render_dataset",
}


def order_of_imports():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    listed = re.search(r"in this order: (.*?), scripts\.", text, re.DOTALL)[1]
    return re.split(r",\s+", listed)


def imports_of(path):
    """The modules of ours that a file imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module)
    return {name.split(".")[0] for name in found}


def test_files_import_only_from_above_them():
    order = order_of_imports()
    files = {path.stem: path for path in ROOT.glob("*.py")}
    assert set(order) - {"engine"} == set(files) - SCRIPTS
    for place, name in enumerate(order):
        path = ROOT / "engine" / "__init__.py" if name == "engine" else files[name]
        allowed = set(order[:place])
        below = imports_of(path) & (set(order) | SCRIPTS) - allowed - {name}
        assert not below, f"{name} imports {below}"


def test_scripts_never_import_each_other():
    for name in SCRIPTS:
        assert not imports_of(ROOT / f"{name}.py") & SCRIPTS, name
