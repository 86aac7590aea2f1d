"""Compiles the engine's operators for this machine, once, and registers them with Paddle.

One call of the compiler, without `paddle.utils.cpp_extension`: that one takes four times as long,
needs Python's headers, and talks to the terminal. The headers of oneDNN, which Paddle's wheel lacks,
are not needed: `onednn.h` declares the few functions that are called.

    python -m denoising.engine.build

compiles them beforehand, for several generations of processors, into the folder `built` beside this file. A machine
without a compiler, such as a container, takes from there what its processor can run.
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

from denoising import cli, machine

HERE = Path(__file__).resolve().parent
FLAGS = "-std=c++17 -O3 -fopenmp -fPIC -shared -w -D_GLIBCXX_USE_CXX11_ABI=1"
BUILT = HERE / "built"
# Generations of processors, the newest first: how the compiler calls them, and the instructions of /proc/cpuinfo that
# tell them from the one before.
_V3 = {"avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"}
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
GENERATIONS = {
    "x86-64-v4-bf16": ("-march=x86-64-v4 -mavx512bf16", _V4 | {"avx512_bf16"}),
    "x86-64-v4": ("-march=x86-64-v4", _V4),
    "x86-64-v3": ("-march=x86-64-v3", _V3),
}


class BuildError(Exception):
    """Why there is no engine on this machine, in one line."""


def load():
    """Builds the operators if they are not in the cache, and registers them."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise BuildError("it is made for Linux on x86-64")
    # Registering the same operators twice would end the process.
    if hasattr(load, "done"):
        return
    compiler = _compiler()
    if not shutil.which(compiler[0]):
        library = _built_before()
        if library is None:
            raise BuildError(f"there is no compiler '{compiler[0]}' (on Debian or Ubuntu: apt install g++)")
        _register(library)
        return
    with _cache_folder() as folder:
        library = _build(compiler, folder)
        try:
            _register(library)
        except BuildError:
            library.unlink()  # so that the next run tries again
            raise


def _compiler():
    return shlex.split(os.environ.get("CXX", "")) or ["g++"]


def _built_before():
    """The library in `built` for this processor, or None."""
    able = set(machine.cpu_flags())
    found = (_built_path(name) for name, (_, needed) in GENERATIONS.items() if needed <= able)
    return next((path for path in found if path.exists()), None)


def _built_path(generation):
    return BUILT / f"{generation}-paddle-{paddle.__version__}.so"


def _register(library):
    """Makes Paddle know the operators in a library."""
    try:
        functions = ctypes.CDLL(str(library))
        set_threads, release = functions.denoise_set_threads, functions.denoise_release
    except (OSError, AttributeError) as error:
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


def _command(compiler, processor="-march=native"):
    """The compiler's call, without the file that it makes."""
    package = Path(paddle.__file__).resolve().parent
    for name in ("libs/libdnnl.so.3", "libs/libiomp5.so", "base/libpaddle.so"):
        if not (package / name).exists():
            raise BuildError(f"this build of Paddle ships no {name}")
    return [
        *compiler,
        *FLAGS.split(),
        *processor.split(),
        *(f"-I{package / folder}" for folder in ("include", "include/third_party")),
        str(HERE / "ops.cc"),
        *(f"-L{package / folder}" for folder in ("libs", "base")),
        *(f"-Wl,-rpath,{package / folder}" for folder in ("libs", "base")),
        # Intel's OpenMP, which oneDNN in Paddle's process uses, and not the compiler's own: the idle
        # threads of a second one would stand in the way of the first.
        *("-l:libdnnl.so.3", "-l:libpaddle.so", "-l:libiomp5.so", "-Wl,--as-needed"),
    ]


def _build(compiler, folder):
    command = _command(compiler)
    version = _run([*compiler, "--version"])
    sources = [path.read_text() for path in sorted(HERE.iterdir()) if path.suffix in (".cc", ".h")]
    key = [*sources, *command, version, paddle.__version__, *machine.cpu_flags()]
    name = hashlib.sha256("\0".join(key).encode()).hexdigest()[:16] + ".so"

    library = folder / name
    with _locked(folder / "lock"):
        if not library.exists():
            print("engine: compiling it for this machine, once (a few seconds)", file=sys.stderr)
            _compile(command, library)
    return library


def _compile(command, library):
    # Under a name of its own until it is whole, so that a killed build leaves nothing to load.
    partial = library.with_suffix(".partial")
    _run([*command, "-o", str(partial)])
    if not partial.exists():
        raise BuildError(f"the compiler '{command[0]}' made nothing")
    partial.replace(library)


def main(argv=None):
    """Compiles the operators for each generation of processors."""
    cli.Parser(__doc__).parse_args(argv)
    BUILT.mkdir(exist_ok=True)
    for generation, (processor, _) in GENERATIONS.items():
        cli.note(f"engine: compiling it for {generation}")
        try:
            _compile(_command(_compiler(), processor), _built_path(generation))
        except BuildError as error:
            raise cli.UserError(f"the engine cannot be compiled: {error}") from None


@contextlib.contextmanager
def _cache_folder():
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "neighbor2neighbor-paddle"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError):  # as in containers: no HOME, and a user without an account
            why = "neither HOME nor XDG_CACHE_HOME says where to keep it"
        else:
            why = f"cannot write to {folder} ({error.strerror})"
        print(f"engine: {why}: will not be kept", file=sys.stderr)
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
        # That the linker failed is said after what the linker said.
        lines = [line for line in lines if not line.startswith("collect2:")] or lines
        reason = next((line for line in lines if "error" in line.lower()), lines[-1])
        raise BuildError(f"the compiler '{command[0]}' failed: {reason.strip()}")
    return done.stdout


if __name__ == "__main__":
    cli.run(main)
