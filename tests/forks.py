"""Runs scripts in processes that are forked from one which has imported Paddle already.

A process of its own keeps what a test is about: signals, exit codes, crashes, files that stay open. What takes long is
only the import of Paddle, some three seconds each time. The server imports it once, together with NumPy, OpenCV and
the rooms of this project, starts no thread, calls no operator, and forks a child for each run.

    result = forks.run("val.py", "--model_path", weights)            # like subprocess.run
    process = forks.start("train.py", "--resume", folder)            # like subprocess.Popen, with pipes of text
    result = forks.run("-c", "import paddle; print(paddle.__version__)")

Where the interpreter's start matters (variables that are read on import, `-W error`, what gets imported), a test starts
an interpreter: `fresh=True`. It is done by itself for variables that Paddle or NumPy read on import.
"""

import atexit
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# As it was before Paddle's import set OMP_NUM_THREADS to 1: a process started by a test gets what a user's shell gives.
ENVIRONMENT = dict(os.environ)
READ_ON_IMPORT = ("PYTHON", "PADDLE", "FLAGS_", "OMP_", "OPENBLAS_", "MKL_", "KMP_", "ONEDNN", "GLOG", "LD_", "CUDA")
NOT_PRELOADED = ("denoising.runtimes.paddle_inference",)  # sets a variable for Paddle's log when it is imported


def can_fork(script, environment):
    """Whether a fork runs this as a new interpreter would."""
    mine = str(script) == "-c" or Path(ROOT / script).resolve().is_relative_to(ROOT)
    # from_scratch counts the threads of NumPy on import; it needs no Paddle and starts fast.
    alone = "from_scratch" in Path(script).parts
    changes = any(name.startswith(READ_ON_IMPORT) for name in environment)
    return sys.platform == "linux" and mine and not alone and not changes


def start(script, *arguments, cwd=ROOT, fresh=False, stdin=subprocess.DEVNULL, setup=None, **environment):
    """Starts a script of this project, or `-c` and code; returns a process with stdout and stderr as pipes of text.

    Of a fork, `setup` may be code that it runs first: limits, other ends of stdin and stdout.
    """
    words = [str(script) if str(script) == "-c" else str(ROOT / script), *map(os.fsdecode, map(_plain, arguments))]
    variables = {**ENVIRONMENT, **environment}
    wanted = not fresh and (setup or can_fork(script, environment))
    if not (wanted and Server.get()):
        return subprocess.Popen(
            [sys.executable, *words], cwd=cwd, env=variables, stdin=stdin, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, encoding="utf-8", errors="surrogateescape",
        )  # fmt: skip
    return Process(words, cwd, variables, setup)


def run(script, *arguments, timeout=300, **options):
    """Runs it to its end and returns a CompletedProcess; raises TimeoutExpired, after killing it, when that is late."""
    process = start(script, *arguments, **options)
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return subprocess.CompletedProcess([script, *arguments], process.returncode, out, err)


def _plain(argument):
    return argument if isinstance(argument, (str, bytes)) else str(argument)


class Process:
    """A forked run, used like subprocess.Popen."""

    def __init__(self, words, cwd, environment, setup=None):
        self.returncode = None
        self._readers: list[threading.Thread] = []
        self._texts: dict[str, str] = {}
        self._end, theirs = socket.socketpair()
        (out, out_of), (err, err_of) = os.pipe(), os.pipe()
        with open(os.devnull) as null:
            message = json.dumps([words, str(cwd), environment, setup]).encode()
            server = Server.get()
            with Server.lock:
                server.sendall(len(message).to_bytes(8, "big"))
                socket.send_fds(server, [b"!"], [null.fileno(), out_of, err_of, theirs.fileno()])
                server.sendall(message)
        for end in (out_of, err_of, theirs.detach()):
            os.close(end)
        self.stdout, self.stderr = (open(end, encoding="utf-8", errors="surrogateescape") for end in (out, err))
        self.pid = int.from_bytes(self._end.recv(8), "big")

    def wait(self, timeout=None):
        if self.returncode is None:
            self._end.settimeout(timeout)
            try:
                status = self._end.recv(8)
            except TimeoutError:
                raise subprocess.TimeoutExpired("a forked run", timeout) from None
            self.returncode = int.from_bytes(status, "big", signed=True) if status else -signal.SIGKILL
            self._end.close()
        return self.returncode

    def poll(self):
        if self.returncode is None and select.select([self._end], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def communicate(self, timeout=None):
        ends = time.monotonic() + timeout if timeout else None

        def read(name, stream):
            with stream:
                self._texts[name] = stream.read()

        if not self._readers:  # those of an earlier call, which was too short, still read
            streams = {"out": self.stdout, "err": self.stderr}
            self._readers = [threading.Thread(target=read, args=pair, daemon=True) for pair in streams.items()]
            for reader in self._readers:
                reader.start()
        for reader in self._readers:
            reader.join(max(0, ends - time.monotonic()) if ends else None)
            if reader.is_alive():
                raise subprocess.TimeoutExpired("a forked run", timeout)
        self.wait(max(0.01, ends - time.monotonic()) if ends else None)
        return self._texts["out"], self._texts["err"]

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for stream in (self.stdout, self.stderr):
            stream.close()
        self.wait()


class Server:
    """The connection to this process's server, which starts when it is first needed and ends with this process."""

    connection: socket.socket | None = None
    process: subprocess.Popen | None = None
    lock = threading.Lock()

    @classmethod
    def get(cls):
        """The connection, or None where there can be no server."""
        with cls.lock:
            if cls.process is None:
                cls.connection, theirs = socket.socketpair()
                with theirs:
                    # One thread in NumPy's library means: none to fork in the midst of.
                    cls.process = subprocess.Popen(
                        [sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()], cwd=ROOT,
                        env={**ENVIRONMENT, "OPENBLAS_NUM_THREADS": "1"}, stdin=subprocess.DEVNULL,
                    )  # fmt: skip
                atexit.register(cls.end)
                if not cls.connection.recv(1):
                    cls.end()
            return cls.connection

    @classmethod
    def end(cls):
        if cls.connection:
            cls.connection.close()
            cls.connection = None
            cls.process.wait()


# --- The server's side --------------------------------------------------------------------------------------


def preload():
    """Imports what takes long; returns the variables that the imports have set, as they do in a script."""
    sys.path.insert(0, str(ROOT))
    import denoising  # before Paddle, whose import is noisy otherwise

    before = dict(os.environ)
    for name in ("cv2", "paddle", "PIL.Image"):
        importlib.import_module(name)
    for module in pkgutil.walk_packages(denoising.__path__, "denoising."):
        if module.name not in NOT_PRELOADED and not module.name.endswith("__main__"):
            try:
                importlib.import_module(module.name)
            except ImportError:
                pass  # of a library that is not installed here
    import arch_unet  # noqa: F401

    sys.path.remove(str(ROOT))
    if len(os.listdir("/proc/self/task")) > 1:
        sys.exit(0)  # an import has started a thread, as that of Paddle 2.6 does; a fork would lose it
    return {name: value for name, value in os.environ.items() if before.get(name) != value}


def serve(connection, variables):
    """Forks a child for each request; returns in the child, with what to run."""
    children = {}  # by the descriptor that tells of its end: its number, and where that is to be reported
    while True:
        for ready in select.select([connection, *children], [], [])[0]:
            if ready is not connection:
                number, report = children.pop(ready)
                code = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
                os.close(ready)
                with report:
                    try:
                        report.sendall(code.to_bytes(8, "big", signed=True))
                    except OSError:
                        pass  # nobody waits for it any more
                continue
            length = int.from_bytes(connection.recv(8, socket.MSG_WAITALL), "big")
            if not length:
                os._exit(0)
            _, ends, _, _ = socket.recv_fds(connection, 1, 4)
            words, cwd, environment, setup = json.loads(connection.recv(length, socket.MSG_WAITALL))
            report = socket.socket(fileno=ends.pop())
            number = os.fork()
            if number == 0:
                for target, end in enumerate(ends):
                    os.dup2(end, target)
                for descriptor in (connection, report, *(other for _, other in children.values())):
                    descriptor.close()
                for descriptor in (*ends, *children):
                    os.close(descriptor)
                os.environ.clear()
                os.environ.update({**variables, **environment})
                os.chdir(cwd)
                exec(setup or "")
                return words
            for end in ends:
                os.close(end)
            report.sendall(number.to_bytes(8, "big"))
            children[os.pidfd_open(number)] = number, report


def become(words):
    """Makes this process look like an interpreter that was started with these words; returns its code and namespace."""
    import numpy

    numpy.random.seed()
    for number, mode in enumerate("rww"):
        name = ("stdin", "stdout", "stderr")[number]
        try:
            stream = open(number, mode, encoding="utf-8", closefd=False)
        except OSError:
            stream = None  # closed, as the interpreter finds it too
        if number == 2 and stream:
            stream.reconfigure(errors="backslashreplace", line_buffering=True)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    if words[0] == "-c":
        sys.argv, sys.path[0] = ["-c", *words[2:]], ""
        return compile(words[1], "<string>", "exec"), main.__dict__
    sys.argv, sys.path[0] = words, os.path.dirname(words[0])
    main.__file__ = words[0]
    return compile(Path(words[0]).read_bytes(), words[0], "exec"), main.__dict__


def end(words):
    """Runs it and ends as an interpreter does, but for taking all of Paddle apart, which lasts two seconds."""
    code = 0
    try:
        exec(*become(words))
    except SystemExit as error:
        code = error.code
        if code is not None and not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException as error:  # noqa: BLE001 - told just as the interpreter tells it
        traceback.print_exception(error.with_traceback(error.__traceback__.tb_next))
        code = 1
        if isinstance(error, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream:
                stream.flush()
        except OSError as error:
            print(f"Exception ignored in: {stream}\n{type(error).__name__}: {error}", file=sys.__stderr__)
            code = 120
    os._exit((code or 0) & 255)


if __name__ == "__main__":
    for_children = preload()
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.sendall(b"1")
    end(serve(connection, for_children))
