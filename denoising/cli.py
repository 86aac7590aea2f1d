"""What every script shares: mistakes reported in one line, strict flags, progress, atomic files, the run folder.

A script is

    def get_parser() -> cli.Parser: ...
    def main(argv=None): ...
    if __name__ == "__main__":
        cli.run(main)
"""

import argparse
import contextlib
import csv
import datetime
import errno
import functools
import io
import json
import math
import multiprocessing
import multiprocessing.connection
import os
import re
import shlex
import signal
import sys
import tempfile
import threading
from pathlib import Path

from tqdm import tqdm

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]


class UserError(Exception):
    """A mistake that the user can mend: reported in one line that names the flag or file, exit code 2."""


def refuse(*cases):
    """Raises the message of the first (condition, message) whose condition holds."""
    for condition, message in cases:
        if condition:
            raise UserError(message)


USERS_ERRORS = (
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR,
    errno.ENAMETOOLONG, errno.ELOOP, errno.EIO,
)  # fmt: skip


def _interrupt(number, frame):
    """Ctrl-C: an exception as ever, but not out of an import, which Paddle would take for a broken installation."""
    while frame and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    if frame is None:
        raise KeyboardInterrupt
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        print(f"{os.path.basename(sys.argv[0])}: interrupted", file=sys.stderr, flush=True)
    os._exit(130)


def _watch_imports():
    """Not where a shell has Ctrl-C ignored, or somebody else handles it."""
    here = threading.current_thread() is threading.main_thread()
    if here and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)


def _check_temporary_folder():
    """Paddle is not even imported without one: where all are full or read-only."""
    try:
        tempfile.gettempdir()
    except OSError as error:
        sys.exit(_complain(os.path.basename(sys.argv[0]), f"TMPDIR: {error.strerror}"))


def _complain(name, message):
    print(f"{name}: error: {' '.join(str(message).split())}", file=sys.stderr)
    return 2


# A script imports Paddle, which takes seconds, before it calls `run`. Other programs keep their own Ctrl-C.
_MAIN, _ROOT = getattr(sys.modules["__main__"], "__file__", None), Path(__file__).resolve().parents[1]
if _MAIN and Path(_MAIN).resolve().parent in (_ROOT, _ROOT / "tools"):
    _watch_imports()
    _check_temporary_folder()


def run(main):
    """Runs a script's main and turns its end into an exit code: 0, 1 (some items failed), 2 (user), 130 (Ctrl-C)."""
    # A full pipe or a killed parent ends the script like Ctrl-C does, so that the same clean-up runs.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    _watch_imports()
    name = os.path.basename(sys.argv[0])
    # A closed stderr is None; file names that are no valid text must not end a run that is nearly done.
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")
    _check_temporary_folder()
    try:
        code = main()
        sys.stdout.flush()
    except UserError as error:
        code = _complain(name, error)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        code = 130
    except RuntimeError as error:
        # Of several processes, those that wait for one that has ended get a page of C++ from the network's library.
        alone = os.environ.get("PADDLE_TRAINERS_NUM", "1") == "1"
        if alone or not any(word in str(error) for word in ("gloo", "NCCL")):
            raise
        code = _complain(name, "another process of this run has ended; its log (--log_dir) says why")
    except MemoryError as error:
        code = _complain(name, f"more memory is needed than there is: {error}")
    except OSError as error:
        if error.errno not in USERS_ERRORS:
            raise
        code = _complain(name, f"{error.filename or 'writing'}: {error.strerror}")
    try:
        sys.stdout.flush()
    except OSError:  # a full disk: the interpreter would try again at its end, and complain in its own words
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


# --- Flags --------------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """Strict: no abbreviations, a mistake is one line. Forgiving: a dash may stand for any underscore."""

    def __init__(self, doc, **kwargs):
        super().__init__(description=doc, formatter_class=_HelpFormatter, allow_abbrev=False, **kwargs)

    def parse_args(self, args=None, namespace=None):
        args = sys.argv[1:] if args is None else [str(argument) for argument in args]
        options, left = self.parse_known_args([self._underscored(argument) for argument in args], namespace)
        if left and os.path.exists(left[0]):  # as where a shell has put the files of a pattern in its place
            self.error(f"{left[0]} belongs to no flag, and each takes one path: quote a pattern, or name a folder")
        if left:
            self.error(f"unrecognized arguments: {' '.join(left)}")
        return options

    def _underscored(self, argument):
        name, equals, value = argument.partition("=")
        known = self._option_string_actions
        underscored = "--" + name[2:].replace("-", "_")
        if name.startswith("--") and name not in known and underscored in known:
            return underscored + equals + value
        return argument

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} (--help lists the flags)\n")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Shows the module's docstring as it stands, and each flag with its default."""

    def __init__(self, prog):
        super().__init__(prog, max_help_position=30, width=110)

    def _get_help_string(self, action):
        # 0 equals False, and is a default like any other.
        told = action.default not in (None, argparse.SUPPRESS, "") and action.default is not False
        shown, text = told and action.option_strings, action.help or ""
        default = " ".join(map(str, action.default)) if isinstance(action.default, list) else "%(default)s"
        return f"{text} (default: {default})" if shown and "%(default)" not in text else text


def boolean(text):
    """True/False as the published commands write them; anything else is refused."""
    values = {"true": True, "t": True, "yes": True, "1": True, "false": False, "f": False, "no": False, "0": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return values[text.lower()]


def number(kind, low=None, high=None):
    """An argparse type: an int or float within [low, high]."""

    def parse(text):
        with contextlib.suppress(ValueError, OverflowError):  # no number, or one of hundreds of digits
            value = kind(text)
            if math.isfinite(value) and (low is None or low <= value) and (high is None or value <= high):
                return value
        what = "a whole number" if kind is int else "a number"
        bounds = f" from {low}" if low is not None else ""
        bounds += f" to {high}" if high is not None else (" up" if bounds else "")
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}{bounds}")

    return parse


def existing_file(flag, path):
    """Returns the path, or says which flag names what is missing."""
    if os.path.isdir(path):
        raise UserError(f"{flag}: {path} is a folder, a file is wanted")
    if not os.path.isfile(path):
        raise UserError(f"{flag}: {path} does not exist")
    return path


def existing_folder(flag, path):
    """The same for a folder."""
    if not os.path.isdir(path):
        state = "is a file, a folder is wanted" if os.path.exists(path) else "does not exist"
        raise UserError(f"{flag}: {path} {state}")
    return path


def quoted(path):
    """A path as one may paste it after a flag: with quotes where they are needed, and no dash at its start."""
    return shlex.quote(f"./{path}" if str(path).startswith("-") else str(path))


def lies_in(path, folder):
    """Whether a file or folder is in a folder, at any depth, or is that folder; not where one is None."""
    # realpath: Path.resolve raises an error on links in a ring.
    return bool(path and folder) and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def writable_folder(flag, path):
    """Creates a folder for results, before any slow step, and makes sure that files can be written there."""
    try:
        os.makedirs(path, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(f"{flag}: cannot write to {path}: {error.strerror}") from None
    return path


def writable_file(flag, path, overwrite):
    """The same for one file: refuses one that exists, unless it may be replaced, and creates its folder."""
    refuse((os.path.exists(path) and not overwrite, f"{flag}: {path} exists; --overwrite replaces it"))
    writable_folder(flag, os.path.dirname(path) or ".")


# --- Files --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def atomic_write(path):
    """Yields a temporary path beside `path`; renamed onto it on success, removed on failure: never half a file.

    What an earlier process left of the same file, because it was killed while writing, is removed first.
    """
    path = Path(os.path.realpath(path))
    # os.path knows no error: a name that is too long for the disk fails when the temporary is opened.
    other = os.path.exists(path) and not os.path.isfile(path)
    refuse((other, f"{path}: is no regular file, and is not replaced by one"))
    for leftover in _leftovers_by_target(path.parent).pop(path.name, ()):
        with contextlib.suppress(OSError):
            leftover.unlink(missing_ok=True)
    # The suffix is kept, because writers choose the format by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield str(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def leftovers(folder):
    """The temporaries in a folder that killed processes have left.

    Returns:
        Pairs of a temporary's path and the name of the file that it was to become: only who knows that name to be of
        a file of ours may remove the temporary.
    """
    try:
        found = [(path, re.fullmatch(r"\.(.+)\.([0-9]+)\.tmp(\.[^.]+)?", path.name)) for path in Path(folder).iterdir()]
    except OSError:
        return []
    return [(path, match[1] + (match[3] or "")) for path, match in found if match and not _is_running(int(match[2]))]


@functools.cache
def _leftovers_by_target(folder):
    """Listed once for each folder, because a folder of many results is written to many times."""
    by_target: dict[str, list[Path]] = {}
    for path, target in leftovers(folder):
        by_target.setdefault(target, []).append(path)
    return by_target


def _is_running(process):
    """Whether there is a process of this number; where the system does not tell, there is."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # of another user
        return True
    return True


def write_text(path, text):
    """Writes a text file atomically."""
    with atomic_write(path) as temporary:
        Path(temporary).write_text(text, encoding="utf-8", errors="backslashreplace")


def csv_text(rows, end_of_line="\n"):
    """Rows as text for a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator=end_of_line).writerows(rows)
    return text.getvalue()


def write_json(path, data):
    """Writes readable JSON atomically."""
    write_text(path, json.dumps(data, indent=2) + "\n")


def new_run_folder(save_model_path, log_name):
    """Creates results/LOG_NAME/TIMESTAMP, another one if two runs start within the same minute."""
    stamp = datetime.datetime.now().strftime("%Y-%m-%d-%H-%M")
    for number_ in range(1, 1000):
        folder = os.path.join(save_model_path, log_name, stamp + (f"-{number_}" if number_ > 1 else ""))
        try:
            os.makedirs(folder)
            return folder
        except FileExistsError:
            pass
        except OSError as error:
            raise UserError(f"--log_name: cannot make {folder}: {error.strerror}") from None
    raise UserError(f"--save_model_path: no free run folder under {save_model_path}")


@contextlib.contextmanager
def only_process_in(folder):
    """Keeps a second process from working in the same folder; a killed one leaves no lock behind."""
    with open(os.path.join(folder, ".lock"), "w") as file:
        if fcntl:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(f"{folder}: another process is at work there") from None
        yield


# --- Processes ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def interruptible_afterwards():
    """Holds Ctrl-C back while processes fork: Python ignores what is raised just then, in its own callbacks."""
    came = []
    before = signal.signal(signal.SIGINT, lambda *_: came.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        signal.raise_signal(signal.SIGINT)


def start_worker():
    """The first thing that a process of a pool does: Ctrl-C is its parent's to handle, and it ends with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process().sentinel

    def follow():
        multiprocessing.connection.wait([parent])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


# --- Progress -----------------------------------------------------------------------------------------------


def progress(iterable=None, total=None, unit="it", label=None, **kwargs):
    """A bar with ETA on stderr; in a log file, a line every half minute."""
    kind, seconds = (tqdm, 0.2) if sys.stderr.isatty() else (_LogLines, 30.0)
    return kind(
        iterable,
        total=total,
        unit=unit,
        desc=label,
        file=sys.stderr,
        mininterval=seconds,
        maxinterval=seconds,
        delay=0 if kind is tqdm else seconds,
        dynamic_ncols=True,
        leave=False,
        **kwargs,
    )


class _LogLines(tqdm):
    """A bar for a file: what tqdm would draw over and over is a line now and then."""

    def refresh(self, nolock=False, lock_args=None):
        if not nolock:  # with it, tqdm only redraws the bar after somebody's message
            note(str(self))

    def clear(self, nolock=False):
        pass

    def display(self, msg=None, pos=None):
        pass


def note(message):
    """Something the user should know that is no result: to stderr."""
    print(message, file=sys.stderr, flush=True)
