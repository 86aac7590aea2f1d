"""The commands of the documents parse: every script, with every flag, as it is printed."""

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ENVIRONMENT, ROOT, run_script

SCRIPTS = [
    "tools/convert_weights",
    "dataset_tool",
    "train",
    "val",
    "predict",
    "export_model",
    "tools/quantize_model",
    "tools/model_card",
    "infer",
    "tools/serve",
    "tools/serve_client",
    "tools/figure",
    "tools/inspect_noise",
    "tools/mri_dataset",
    "tools/render_dataset",
]
DOCUMENTS = ["README.md", "docs/deployment.md", *(f"{name}.py" for name in SCRIPTS)]


def commands():
    """(where, command line) of each `python SCRIPT.py ...` in the documents, continued lines joined."""
    for document in DOCUMENTS:
        text = (ROOT / document).read_text(encoding="utf-8")
        text = text.replace("\\\\\n", " ").replace("\\\n", " ")
        for line in text.splitlines():
            match = re.match(r"\s+(python (?:-u )?(?:tools/)?\w+\.py [^#`]*)", line)
            if match and "..." not in line:
                yield document, match[1].strip()


FOUND = sorted(set(commands()))


def test_commands_were_found():
    assert len(FOUND) >= 20
    assert {line.split(".py")[0].split()[-1] for _, line in FOUND} >= set(SCRIPTS)


@pytest.mark.parametrize(("document", "line"), FOUND, ids=[line[:60] for _, line in FOUND])
def test_the_command_parses(document, line):
    words = [word for word in shlex.split(line)[1:] if word != "-u"]
    parser = importlib.import_module(Path(words[0]).stem).get_parser()
    parser.parse_args(words[1:])


def test_documented_cards_do_not_meet_those_that_ship():
    """Which are in the folder that is the default, and are not replaced unasked."""
    lines = [line for _, line in FOUND if "model_card.py" in line]
    assert lines
    assert [line for line in lines if "--save_dir" not in line] == []


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_shows_an_example_and_defaults(name):
    # In an interpreter of its own, once for each script: everything that it needs is found and imported from there.
    result = run_script(f"{name}.py", "--help", fresh=True, ok=0)
    assert f"python {name}.py " in result.stdout or f"python -u {name}.py " in result.stdout
    assert "(default: " in result.stdout
    assert result.stderr == ""


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_unknown_flag_is_refused_in_one_line(name):
    result = run_script(f"{name}.py", "--no_such_flag", 1)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "--no_such_flag" in result.stderr or "required" in result.stderr


def test_each_numbered_script_says_what_it_needs(tmp_path):
    # A copy of the scripts in an empty project: everything earlier is missing.
    folder = tmp_path / "scripts"
    folder.mkdir()
    for path in (ROOT / "scripts").glob("*.sh"):
        (folder / path.name).write_text(path.read_text())
    numbered = sorted(folder.glob("[2-6]_*.sh"))
    assert len(numbered) >= 5
    for script in numbered:
        result = subprocess.run(
            ["bash", str(script)], cwd="/", capture_output=True, text=True,
            env={**ENVIRONMENT, "PYTHON": sys.executable},
        )  # fmt: skip
        assert result.returncode == 2, result.stderr
        assert re.search(r"is missing; run scripts/\d_\w+\.sh first", result.stderr), result.stderr
