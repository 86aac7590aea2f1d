"""Arrays in .npz files, which are never unpickled; and mistakes told in one line.

Files come from anywhere. What is read here is arrays of numbers under the names that were asked for, or an error.
"""

import argparse
import contextlib
import lzma
import os
import signal
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np

MAX_BYTES = 8 << 30  # of one array: more is refused before it is unpacked
BROKEN = (
    OSError, ValueError, EOFError, KeyError, RuntimeError, OverflowError, MemoryError, zipfile.BadZipFile, zlib.error,
    lzma.LZMAError,
)  # fmt: skip


class Parser(argparse.ArgumentParser):
    """Shows a script's docstring as it stands, takes no abbreviations, and complains in one line."""

    def __init__(self, doc):
        super().__init__(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} (--help lists the flags)\n")


class UserError(Exception):
    """A mistake the user can mend: one line that names the flag or file, exit code 2."""


def run(main):
    """Runs a script's main and turns a mistake into one line."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    name = os.path.basename(sys.argv[0])
    try:
        code = main()
        if sys.stdout:  # while a full disk can still be told
            sys.stdout.flush()
        sys.exit(code)
    except UserError as error:
        message, code = " ".join(str(error).split()), 2
    except OSError as error:
        message, code = f"{error.filename or 'a file'}: {error.strerror or error}", 2
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what could not be written is not tried again at the end
    except KeyboardInterrupt:
        message, code = "interrupted", 130
    print(f"{name}: error: {message}", file=sys.stderr)
    sys.exit(code)


@contextlib.contextmanager
def atomic_write(path):
    """Yields a temporary path beside `path` and renames it in the end: never half a file, never a spoilt old one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def positive(text):
    """A whole number from 1 up, for argparse."""
    return _whole(text, 1)


def natural(text):
    """A whole number from 0 up, for argparse."""
    return _whole(text, 0)


def _whole(text, low):
    if not text.isdecimal() or not low <= int(text[:30]) < 2**63:
        raise argparse.ArgumentTypeError(f"{text[:30]!r} is no whole number from {low} up")
    return int(text)


def not_negative(text):
    """A number from 0 up, for argparse."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 up")
    return value


def new_file(flag, path, overwrite):
    """Returns a path that may be written: nothing is replaced unasked."""
    if os.path.isdir(path):
        raise UserError(f"{flag}: {path} is a folder, a file is wanted")
    if os.path.exists(path) and not overwrite:
        raise UserError(f"{flag}: {path} exists; --overwrite replaces it")
    return path


def write_arrays(path, arrays):
    """Writes {name: array} atomically."""
    with atomic_write(path) as temporary:
        np.savez(temporary, **arrays)


def read_arrays(path, names=None):
    """Reads {name: array} of the wanted names, or of all; no pickle is opened, no array of objects is made."""
    if not os.path.isfile(path):
        raise UserError(f"{path}: there is no such file")
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path}: is no .npz file, or the end of it is missing")
    try:
        # Opened here, because of a broken archive NumPy would leave the file open.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            sizes = {info.filename.removesuffix(".npy"): info.file_size for info in archive.zip.infolist()}
            wanted = list(sizes) if names is None else names
            for name in wanted:
                if name not in sizes:
                    raise UserError(f"{path}: has no array {name!r}, only {', '.join(sorted(sizes)) or 'nothing'}")
                if sizes[name] > MAX_BYTES:
                    raise UserError(f"{path}: {name!r} has {sizes[name]:,} bytes, {MAX_BYTES:,} are the most")
            arrays = {name: archive[name] for name in wanted}
    except BROKEN as error:
        raise UserError(f"{path}: cannot be read: {error or type(error).__name__}") from None
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise UserError(f"{path}: {name!r} is no array")
    return arrays


def read_images(path, names):
    """Reads uint8 arrays, N x 3 x H x W each and all of one shape, as N x H x W x 3."""
    arrays = read_arrays(path, names)
    for name, array in arrays.items():
        if array.dtype != np.uint8:
            raise UserError(f"{path}: {name!r} is of type {array.dtype}, uint8 is wanted")
        if array.ndim != 4 or array.shape[1] != 3 or 0 in array.shape:
            raise UserError(f"{path}: {name!r} has the shape {array.shape}, N x 3 x H x W is wanted")
    first, second = arrays.values()
    if first.shape != second.shape:
        shapes = " and ".join(f"{name!r} {array.shape}" for name, array in arrays.items())
        raise UserError(f"{path}: the halves of the pairs differ: {shapes}")
    return [np.ascontiguousarray(array.transpose(0, 2, 3, 1)) for array in arrays.values()]


def load_into(tensors, arrays, path):
    """Fills tensors, by name, with arrays; names, shapes and types must be exactly theirs."""
    for name in sorted(set(tensors) ^ set(arrays)):
        raise UserError(f"{path}: {name!r} is {'missing' if name in tensors else 'not wanted'}: another network?")
    for name, tensor in tensors.items():
        array = arrays[name]
        if array.shape != tensor.shape or array.dtype != tensor.data.dtype:
            raise UserError(
                f"{path}: {name!r} is {array.dtype} {array.shape}, wanted is {tensor.data.dtype} {tensor.shape}"
            )
        if not np.isfinite(array).all():
            raise UserError(f"{path}: {name!r} has values that are no finite numbers")
        tensor.data[...] = array
