"""The engine's library: compiled once for each machine, kept, loaded, and every way in which there can be none."""

import fcntl
import os
import re
import shutil
from pathlib import Path

import paddle
import pytest

import forks
from denoising import cli, machine
from denoising.engine import build

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to build the engine with")

# --- In this process, with a compiler that only says what it was asked --------------------------------------

COMPILER = """#!/bin/sh
echo "$@" >> {log}
for argument; do case $last in -o) cp {source} $argument;; esac; last=$argument; done
echo version {version}
"""


@pytest.fixture
def source(tmp_path, monkeypatch):
    folder = tmp_path / "source"
    folder.mkdir()
    for name in ("ops.cc", "onednn.h", "notes.txt"):
        (folder / name).write_text(name)
    monkeypatch.setattr(build, "HERE", folder)
    return folder


def compiler_of(folder, version=1):
    path = folder / "compiler"
    path.write_text(COMPILER.format(log=folder / "log", source=folder / "source" / "ops.cc", version=version))
    path.chmod(0o755)
    return [str(path)]


def test_a_library_is_compiled_once_and_again_for_whatever_it_depends_on(source, tmp_path, monkeypatch, capsys):
    cache = tmp_path / "cache"
    cache.mkdir()

    def built(**options):
        library = build._build(compiler_of(tmp_path, **options), cache)
        assert library.read_text() == (source / "ops.cc").read_text()
        return library, "compiling it" in capsys.readouterr().err

    first, compiled = built()
    assert compiled
    assert re.fullmatch(r"[0-9a-f]{16}\.so", first.name)
    assert built() == (first, False)
    assert sorted(path.name for path in cache.iterdir()) == sorted([first.name, "lock"])
    (source / "notes.txt").write_text("no source")
    assert built() == (first, False)
    names = {first}
    for change in (
        lambda: (source / "ops.cc").write_text("changed"),
        lambda: (source / "onednn.h").write_text("changed"),
        lambda: monkeypatch.setattr(build, "FLAGS", build.FLAGS + " -g"),
        lambda: monkeypatch.setattr(build.machine, "cpu_flags", lambda: ["avx512_other"]),
        lambda: monkeypatch.setattr(build.paddle, "__version__", "9.9"),
    ):
        change()
        library, compiled = built()
        assert compiled
        names.add(library)
    library, compiled = built(version=2)
    assert compiled
    assert len(names | {library}) == 7


def test_the_compiler_is_told_where_paddle_lies_and_what_to_link(source, tmp_path):
    build._build(compiler_of(tmp_path), tmp_path)
    version, command = (tmp_path / "log").read_text().splitlines()
    assert version == "--version"
    words, package = command.split(), Path(build.paddle.__file__).parent
    assert words[: len(build.FLAGS.split())] == build.FLAGS.split()
    assert {f"-I{package}/include", f"-I{package}/include/third_party", str(source / "ops.cc")} <= set(words)
    assert {f"{flag}{package}/{name}" for flag in ("-L", "-Wl,-rpath,") for name in ("libs", "base")} <= set(words)
    assert {"-O3", "-march=native", "-fopenmp", "-shared", "-l:libdnnl.so.3", "-l:libiomp5.so"} <= set(words)
    assert words[-2:][0] == "-o"
    assert words[-1].endswith(".partial")


def test_a_paddle_without_onednn_is_named(source, tmp_path, monkeypatch):
    monkeypatch.setattr(build.paddle, "__file__", str(tmp_path / "paddle" / "__init__.py"))
    with pytest.raises(build.BuildError, match=r"^this build of Paddle ships no libs/libdnnl\.so\.3$"):
        build._build(compiler_of(tmp_path), tmp_path)
    (tmp_path / "paddle" / "libs").mkdir(parents=True)
    (tmp_path / "paddle" / "libs" / "libdnnl.so.3").touch()
    with pytest.raises(build.BuildError, match=r"ships no libs/libiomp5\.so$"):
        build._build(compiler_of(tmp_path), tmp_path)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo one; echo two >&2; echo 'x: Error: three' >&2; echo four >&2; exit 3", "x: Error: three"),
        ("echo one >&2; echo ' two ' >&2; exit 1", "two"),
        ("echo one; exit 1", "one"),
        ("exit 1", "no message"),
        (
            "echo '/usr/bin/ld: final link failed: No space left on device' >&2;"
            "echo 'collect2: error: ld returned 1 exit status' >&2; exit 1",
            "/usr/bin/ld: final link failed: No space left on device",
        ),
        ("echo 'collect2: error: ld returned 1 exit status' >&2; exit 1", "collect2: error: ld returned 1 exit status"),
    ],
)
def test_the_first_error_of_a_compiler_is_told(script, reason):
    with pytest.raises(build.BuildError, match=f"^the compiler 'sh' failed: {reason}$"):
        build._run(["sh", "-c", script])


def test_what_a_compiler_says_is_returned_and_one_that_does_not_run_is_told(monkeypatch):
    assert build._run(["sh", "-c", "echo 13.2; echo warning >&2"]) == "13.2\n"
    with pytest.raises(build.BuildError, match="^the compiler did not run: .*nowhere"):
        build._run(["/nowhere/g++"])
    run = build.subprocess.run
    monkeypatch.setattr(build.subprocess, "run", lambda *_, timeout, **more: run(*_, timeout=timeout / 6000, **more))
    with pytest.raises(build.BuildError, match="did not run: .*timed out"):
        build._run(["sleep", "9"])


def test_libraries_are_kept_in_the_users_cache(tmp_path, monkeypatch, capsys):
    for variables, kept in (
        ({"XDG_CACHE_HOME": str(tmp_path / "cache"), "HOME": str(tmp_path / "home")}, tmp_path / "cache"),
        ({"XDG_CACHE_HOME": "", "HOME": str(tmp_path / "home")}, tmp_path / "home" / ".cache"),
    ):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        for _ in range(2):  # a second time it is there
            with build._cache_folder() as folder:
                assert folder == kept / "neighbor2neighbor-paddle"
        assert list(folder.iterdir()) == []
    assert capsys.readouterr().err == ""


def test_where_nothing_can_be_kept_the_library_lies_in_a_folder_of_its_own(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with build._cache_folder() as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        assert folder.stat().st_uid == os.getuid()
    assert not folder.exists()
    assert re.fullmatch(r"engine: cannot write to .* \(Not a directory\): will not be kept\n", capsys.readouterr().err)


def test_a_user_without_a_home_keeps_none(tmp_path, monkeypatch, capsys):
    """As in a container that runs as any number: no HOME, and no account that would have one."""

    def no_account(uid):
        raise KeyError(uid)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pwd.getpwuid", no_account)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    with build._cache_folder() as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not folder.exists()
    assert list(tmp_path.iterdir()) == []
    said = capsys.readouterr().err
    assert said == "engine: neither HOME nor XDG_CACHE_HOME says where to keep it: will not be kept\n"


def test_only_one_at_a_time_holds_the_lock(tmp_path):
    with build._locked(tmp_path / "lock"), open(tmp_path / "lock") as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with open(tmp_path / "lock") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize(
    ("environment", "cores", "processes", "expected"),
    [
        ("A=1\0OMP_NUM_THREADS=3\0B=2", 8, "2", 3),
        ("OMP_NUM_THREADS=1", 8, "1", 1),
        ("OMP_NUM_THREADS=0", 8, "2", 4),
        ("OMP_NUM_THREADS=two", 8, "1", 8),
        ("MY_OMP_NUM_THREADS=3", 7, "2", 3),
        ("A=1", 8, None, 8),
        ("A=1", 3, "4", 1),
    ],
)
def test_threads_are_those_that_were_asked_for_or_a_share_of_the_cores(
    environment, cores, processes, expected, monkeypatch
):
    monkeypatch.setattr(build.Path, "read_bytes", lambda path: environment.encode())
    monkeypatch.setattr(build.machine, "cores", lambda: cores)
    if processes is None:
        monkeypatch.delenv("PADDLE_LOCAL_SIZE", raising=False)
    else:
        monkeypatch.setenv("PADDLE_LOCAL_SIZE", processes)
    assert build.threads() == expected


@pytest.mark.parametrize(("system", "processor"), [("darwin", "x86_64"), ("linux", "aarch64"), ("win32", "AMD64")])
def test_on_other_machines_there_is_none(system, processor, monkeypatch):
    monkeypatch.setattr(build.sys, "platform", system)
    monkeypatch.setattr(build.platform, "machine", lambda: processor)
    with pytest.raises(build.BuildError, match="^it is made for Linux on x86-64$"):
        build.load()


def test_an_empty_name_of_a_compiler_is_none(monkeypatch):
    monkeypatch.delattr(build.load, "done", raising=False)
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    for name, expected in (("", "g\\+\\+"), ("my-g++ -m64", "my-g\\+\\+")):
        monkeypatch.setenv("CXX", name)
        with pytest.raises(build.BuildError, match=f"^there is no compiler '{expected}' "):
            build.load()


def test_without_a_compiler_what_was_built_before_is_taken(tmp_path, monkeypatch):
    """The newest generation that the processor can run and that is there."""
    monkeypatch.delattr(build.load, "done", raising=False)
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    monkeypatch.setattr(build, "BUILT", tmp_path)
    registered = []
    monkeypatch.setattr(build, "_register", lambda path: registered.append(path.name))
    for generation in ("x86-64-v4-bf16", "x86-64-v3"):
        build._built_path(generation).write_bytes(b"")
    for flags, expected in (
        (build._V4 | {"avx512_bf16", "sse"}, "x86-64-v4-bf16"),
        (build._V4, "x86-64-v3"),  # v4 itself is not there
        (build._V3, "x86-64-v3"),
    ):
        monkeypatch.setattr(machine, "cpu_flags", lambda flags=flags: list(flags))
        build.load()
        assert registered.pop() == f"{expected}-paddle-{paddle.__version__}.so"
    monkeypatch.setattr(machine, "cpu_flags", lambda: ["sse"])
    with pytest.raises(build.BuildError, match="^there is no compiler"):
        build.load()


def test_it_is_built_for_several_generations(tmp_path, monkeypatch):
    commands = []

    def run(command):
        commands.append(command)
        Path(command[-1]).write_bytes(b"")

    monkeypatch.setattr(build, "BUILT", tmp_path / "built")
    monkeypatch.setattr(build, "_run", run)
    build.main([])
    assert len(list((tmp_path / "built").glob("*.so"))) == len(commands) == 3
    assert all("-march=native" not in command for command in commands)
    assert "-mavx512bf16" in commands[0]
    monkeypatch.setattr(build, "_run", lambda command: None)
    with pytest.raises(cli.UserError, match="made nothing"):
        build.main([])


def test_help_compiles_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(build, "BUILT", tmp_path / "built")
    with pytest.raises(SystemExit):
        build.main(["--help"])
    assert "python -m denoising.engine.build" in capsys.readouterr().out
    assert not (tmp_path / "built").exists()


# --- In processes of their own ------------------------------------------------------------------------------

CHOOSE = """
import sys
from denoising.engine import operators
from denoising.cli import UserError
try:
    ops, line = operators.choose(*sys.argv[1:])
    print(type(ops).__name__, "|", line)
except UserError as error:
    print("UserError", "|", error)
"""


# Building, loading and keeping are the same for a library without operators, which compiles in a second.
STUB = """
#include <string>
#include <unordered_map>
#include <vector>
extern "C" void denoise_set_threads(int threads) {}
extern "C" void denoise_release() {}
extern "C" std::unordered_map<std::string, std::vector<int>> &PD_GetOpMetaInfoMap() {
  static std::unordered_map<std::string, std::vector<int>> none;
  return none;
}
"""
LOAD = """
import sys
from pathlib import Path
from denoising.engine import build
build.HERE = Path(sys.argv[1])
build.load()
print("loaded")
"""


@pytest.fixture(scope="module")
def stub(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stub")
    (folder / "ops.cc").write_text(STUB)
    return folder


@needs_compiler
def test_two_processes_at_once_build_it_once(stub, tmp_path):
    both = [forks.start("-c", LOAD, stub, XDG_CACHE_HOME=str(tmp_path)) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [out for out, _ in outputs] == ["loaded\n"] * 2, outputs
    assert sum(err.count("compiling") for _, err in outputs) == 1
    assert len(list(tmp_path.glob("*/*.so"))) == 1


@needs_compiler
def test_what_a_killed_build_left_is_not_loaded(stub, tmp_path):
    first = forks.run("-c", LOAD, stub, XDG_CACHE_HOME=str(tmp_path))
    (library,) = tmp_path.glob("*/*.so")
    library.rename(library.with_suffix(".partial"))
    library.with_suffix(".partial").write_bytes(b"half")
    second = forks.run("-c", LOAD, stub, XDG_CACHE_HOME=str(tmp_path))
    assert first.stdout == second.stdout == "loaded\n"
    assert "compiling" in second.stderr
    third = forks.run("-c", LOAD, stub, XDG_CACHE_HOME=str(tmp_path))
    assert (third.stdout, third.stderr) == ("loaded\n", "")


@needs_compiler
def test_a_changed_source_is_compiled_anew(stub, tmp_path):
    folder = shutil.copytree(stub, tmp_path / "source")
    forks.run("-c", LOAD, folder, XDG_CACHE_HOME=str(tmp_path / "cache"))
    (folder / "more.h").write_text("// a header of it")
    assert "compiling" in forks.run("-c", LOAD, folder, XDG_CACHE_HOME=str(tmp_path / "cache")).stderr
    assert len(list(tmp_path.glob("cache/*/*.so"))) == 2


@needs_compiler
def test_a_home_that_cannot_be_written_is_said_and_not_needed(stub):
    done = forks.run("-c", LOAD, stub, XDG_CACHE_HOME="/proc/nowhere")
    assert done.stdout == "loaded\n"
    assert re.search("cannot write to /proc/nowhere/.*will not be kept", done.stderr)


@pytest.mark.parametrize(
    ("compiler", "words"),
    [
        ("exit 1", "'{}' failed: no message"),
        (
            "echo 1.0; echo 'x.cc:1: error: bad' >&2; test $1 = --version",
            "'{}' failed: x.cc:1: error: bad",
        ),
        ("echo 1.0", "'{}' made nothing"),
        (
            "for last; do :; done; test $last = --version || echo rubbish > $last",
            "what the compiler made cannot be loaded",
        ),
        (None, "there is no compiler '{}'"),
    ],
)
def test_without_a_working_compiler_paddles_layers_are_taken(compiler, words, tmp_path):
    path = tmp_path / "compiler"
    if compiler:
        path.write_text(f"#!/bin/sh\n{compiler}\n")
        path.chmod(0o755)
    environment = {"CXX": str(path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    words = words.format(path)
    auto = forks.run("-c", CHOOSE, "auto", **environment)
    assert auto.stdout.startswith("PlainOps | engine: Paddle's own layers ("), auto.stderr
    assert words in auto.stdout
    assert forks.run("-c", CHOOSE, "onednn", **environment).stdout.startswith("UserError | --engine onednn: ")
    assert forks.run("-c", CHOOSE, "auto", "bf16", **environment).stdout.startswith("UserError | --precision bf16")
    assert "Traceback" not in auto.stderr
    # What cannot be loaded is not kept: the next run tries again.
    assert list(tmp_path.rglob("*.so")) == []
