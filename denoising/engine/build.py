"""Compiles the engine's operators for this machine, once, and registers them with Paddle.

One call of the compiler, without `paddle.utils.cpp_extension`: that one takes four times as long,
needs Python's headers, and talks to the terminal. The headers of oneDNN, which Paddle's wheel lacks,
are not needed: `onednn.h` declares the few functions that are called.
"""

import contextlib
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import paddle

from denoising import machine

HERE = Path(__file__).resolve().parent
FLAGS = "-std=c++17 -O3 -march=native -fopenmp -fPIC -shared -w -D_GLIBCXX_USE_CXX11_ABI=1"


class BuildError(Exception):
    """Why there is no engine on this machine, in one line."""


def load():
    """Builds the operators if they are not in the cache, and registers them."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise BuildError("it is made for Linux on x86-64")
    # Registering the same operators twice would end the process.
    if hasattr(load, "done"):
        return
    compiler = shlex.split(os.environ.get("CXX", "")) or ["g++"]
    if not shutil.which(compiler[0]):
        raise BuildError(f"there is no compiler '{compiler[0]}' (on Debian or Ubuntu: apt install g++)")
    with _cache_folder() as folder:
        library = _build(compiler, folder)
        try:
            functions = ctypes.CDLL(str(library))
            set_threads, release = functions.denoise_set_threads, functions.denoise_release
        except (OSError, AttributeError) as error:
            library.unlink()  # so that the next run tries again
            raise BuildError(f"what the compiler made cannot be loaded: {error}") from error
        paddle.base.core.load_op_meta_info_and_register_op(str(library))
        set_threads(threads())
    load.done, load.release = True, release


def threads():
    """How many threads the engine uses: what the user set in OMP_NUM_THREADS, or a share of the cores.

    Read from how the process began, because Paddle sets the variable to 1 on import where the user has not.
    """
    for setting in Path("/proc/self/environ").read_bytes().split(b"\0"):
        name, _, value = setting.partition(b"=")
        if name == b"OMP_NUM_THREADS" and value.isdigit() and int(value) > 0:
            return int(value)
    processes = int(os.environ.get("PADDLE_LOCAL_SIZE", "1"))  # that Paddle's launcher started here
    return max(1, machine.cores() // processes)


def _build(compiler, folder):
    package = Path(paddle.__file__).resolve().parent
    for name in ("libs/libdnnl.so.3", "libs/libiomp5.so", "base/libpaddle.so"):
        if not (package / name).exists():
            raise BuildError(f"this build of Paddle ships no {name}")
    command = [
        *compiler,
        *FLAGS.split(),
        *(f"-I{package / folder}" for folder in ("include", "include/third_party")),
        str(HERE / "ops.cc"),
        *(f"-L{package / folder}" for folder in ("libs", "base")),
        *(f"-Wl,-rpath,{package / folder}" for folder in ("libs", "base")),
        # Intel's OpenMP, which oneDNN in Paddle's process uses, and not the compiler's own: the idle
        # threads of a second one would stand in the way of the first.
        *("-l:libdnnl.so.3", "-l:libpaddle.so", "-l:libiomp5.so", "-Wl,--as-needed"),
    ]
    version = _run([*compiler, "--version"])
    sources = [path.read_text() for path in sorted(HERE.iterdir()) if path.suffix in (".cc", ".h")]
    key = [*sources, *command, version, paddle.__version__, *machine.cpu_flags()]
    name = hashlib.sha256("\0".join(key).encode()).hexdigest()[:16] + ".so"

    library = folder / name
    with _locked(folder / "lock"):
        if not library.exists():
            print("engine: compiling it for this machine, once (a few seconds)", file=sys.stderr)
            # Under a name of its own until it is whole, so that a killed build leaves nothing to load.
            partial = library.with_suffix(".partial")
            _run([*command, "-o", str(partial)])
            if not partial.exists():
                raise BuildError(f"the compiler '{compiler[0]}' made nothing")
            partial.replace(library)
    return library


@contextlib.contextmanager
def _cache_folder():
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = home / "neighbor2neighbor-paddle"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        print(f"engine: cannot write to {folder} ({error.strerror}): will not be kept", file=sys.stderr)
        # A new folder that nobody else can write into, because what lies in it will be run.
        with tempfile.TemporaryDirectory() as private:
            yield Path(private)
    else:
        yield folder


@contextlib.contextmanager
def _locked(path):
    import fcntl  # not on Windows, where this module is imported but never gets here

    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _run(command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"the compiler did not run: {error}") from error
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        reason = next((line for line in lines if "error" in line.lower()), lines[-1])
        raise BuildError(f"the compiler '{command[0]}' failed: {reason.strip()}")
    return done.stdout
