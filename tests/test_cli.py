"""What every script shares: files that are whole or absent, and what a kill leaves of them."""

import argparse
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ENVIRONMENT, ROOT
from denoising import cli

GONE = 2**22 + 1  # Linux gives no process a number so high


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_a_kill_left_of_a_file_goes_when_the_file_is_written_again(tmp_path):
    for name in ("psnr.png", "NAME.zip", "notes", "a.tar.gz"):
        stem, suffix = os.path.splitext(name)
        (tmp_path / f".{stem}.{GONE}.tmp{suffix}").write_text("half")
        cli.write_text(tmp_path / name, "whole")
        assert names(tmp_path) == [name]
        (tmp_path / name).unlink()
        cli._leftovers_by_target.cache_clear()  # as the next process finds the folder


@pytest.mark.parametrize(
    "stranger",
    [
        f".notes.{GONE}.tmp",  # of another file
        f".psnr.{GONE}.tmp",  # of psnr, which is not psnr.png
        f".psnr.{GONE}.tmp.svg",
        f".psnr.{GONE}.tmp.png.bak",
        f"psnr.{GONE}.tmp.png",
        ".psnr.x.tmp.png",
        f".psnr.old.{GONE}.tmp.png",
        f".psnr.{os.getppid()}.tmp.png",  # somebody is still writing it
    ],
)
def test_what_is_not_surely_of_a_killed_process_stays(tmp_path, stranger):
    (tmp_path / stranger).write_text("mine")
    cli.write_text(tmp_path / "psnr.png", "whole")
    assert names(tmp_path) == sorted([stranger, "psnr.png"])
    assert (tmp_path / stranger).read_text() == "mine"


WRITES_HALF_AND_IS_KILLED = """
import os, signal, sys
from denoising import cli
with cli.atomic_write(sys.argv[1]) as temporary:
    open(temporary, "w").write("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_what_the_next_one_sweeps(tmp_path):
    command = [sys.executable, "-c", WRITES_HALF_AND_IS_KILLED, tmp_path / "a.json"]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -9
    ((leftover, target),) = cli.leftovers(tmp_path)
    assert (leftover.read_text(), target) == ("half", "a.json")
    cli.write_json(tmp_path / "a.json", {})
    assert names(tmp_path) == ["a.json"]


def test_a_failed_writer_leaves_the_old_file_and_nothing_else(tmp_path):
    cli.write_text(tmp_path / "a.txt", "old")

    def write_half():
        with cli.atomic_write(tmp_path / "a.txt") as temporary:
            Path(temporary).write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()
    assert names(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_refusal_is_the_first_that_holds():
    cli.refuse((False, "no"), (None, "no"))
    with pytest.raises(cli.UserError, match="^second$"):
        cli.refuse((False, "first"), (True, "second"), (True, "third"))


@pytest.mark.parametrize("text", ["9" * 400, "1e999", "nan", "0", "x"])
def test_a_number_out_of_range_is_refused(text):
    for kind in (int, float):
        with pytest.raises(argparse.ArgumentTypeError, match=f"{text[:9]}.* number from 1 up"):
            cli.number(kind, 1)(text)


def test_a_pattern_that_the_shell_has_taken_apart_is_told(tmp_path, capsys):
    (tmp_path / "b.png").touch()
    parser = cli.Parser("")
    parser.add_argument("--image_path")
    with pytest.raises(SystemExit):
        parser.parse_args(["--image_path", "a.png", tmp_path / "b.png", "c.png", "--strength", "1"])
    assert re.fullmatch(r".*: error: \S+b\.png belongs to no flag, .* quote a pattern.*\n", capsys.readouterr().err)
    with pytest.raises(SystemExit):
        parser.parse_args(["--strength", "1"])
    assert "unrecognized arguments: --strength 1 (" in capsys.readouterr().err


# As the real one does, whose modules are initialised by C.
PADDLE_THAT_IS_INTERRUPTED = """
import signal
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    raise ImportError("initialization failed")
"""


@pytest.mark.parametrize("script", ["train.py", "predict.py", "val.py", "tools/convert_weights.py", "denoising"])
def test_ctrl_c_while_paddle_is_imported_is_one_line(script, tmp_path):
    (tmp_path / "paddle.py").write_text(PADDLE_THAT_IS_INTERRUPTED)
    command = [sys.executable, "-m", script] if script == "denoising" else [sys.executable, ROOT / script]
    ended = subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
        # A shell that starts tests in the background has it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), check=False,
    )  # fmt: skip
    name = "denoise" if script == "denoising" else Path(script).name
    assert (ended.returncode, ended.stderr) == (130, f"{name}: interrupted\n")


def test_other_programs_keep_their_ctrl_c(tmp_path):
    program = "import signal, denoising.cli; assert signal.getsignal(signal.SIGINT) is not denoising.cli._interrupt"
    (tmp_path / "program.py").write_text(program)
    for command in ([tmp_path / "program.py"], ["-c", program]):
        environment = ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, *command], cwd=ROOT / "tools", env=environment, check=True)


def test_help_shows_defaults_as_they_are_written():
    parser = cli.Parser("What it does.")
    parser.add_argument("--seed", type=int, default=0, help="of all randomness")
    parser.add_argument("--detail", type=float, default=0.0, help="how much")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512], help="of images")
    parser.add_argument("--overwrite", action="store_true", help="replace")
    parser.add_argument("--tile", help="side")
    shown = parser.format_help()
    found = re.findall(r"(--\w+).* \(default: ([^)]+)\)", shown)
    assert found == [("--seed", "0"), ("--detail", "0.0"), ("--sizes", "256 512")]


@pytest.mark.parametrize("command", [["predict.py"], ["tools/figure.py"], ["-m", "denoising"]])
def test_a_machine_without_room_for_temporary_files_is_told_in_one_line(command, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import tempfile\ntempfile._candidate_tempdir_list = lambda: ['/proc']")
    environment = ENVIRONMENT | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, *command, "--help"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert re.fullmatch(r"\S+: error: TMPDIR: No usable temporary directory found in \['/proc'\]\n", done.stderr)


def test_a_path_in_a_command_can_be_pasted():
    assert [cli.quoted(path) for path in ("a", "a b", "-a", Path("-a b"))] == ["a", "'a b'", "./-a", "'./-a b'"]
