"""Files of tensors that others wrote, read without running anything that is in them.

`.pdparams` files are pickles, and so is the heart of PyTorch's `.pth` files: Paddle and PyTorch unpickle them, and a
crafted one runs code. Here every name that a pickle may ask for is mapped to a small recorder class of ours, so that
a file can only ever become numbers and text.

    >>> state = read("results/best_model.pdparams")  # {"enc_conv0.weight": array(...), ...}
"""

import io
import math
import os
import pickle
import struct
import zipfile
from typing import ClassVar

import numpy as np

from denoising.cli import UserError

MAX_BYTES = 4 << 30

# --- What numpy's arrays are made of ------------------------------------------------------------------------


class _DType:
    """Records what a pickled numpy.dtype asks for; only plain numbers are granted."""

    def __init__(self, code, *_):
        self.code = code if isinstance(code, str) else ""
        self.order = "<"

    def __setstate__(self, state):
        self.order = state[1] if state[1] in ("<", ">") else "<"

    def granted(self):
        if self.code not in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"):
            raise pickle.UnpicklingError(f"an array of type {self.code!r}")
        return np.dtype(self.order + self.code)


class _Array:
    """Records the pieces of a pickled array; `value` joins them after checking that they agree."""

    def __init__(self, *_):
        self.pieces = None

    def __setstate__(self, state):
        _, shape, dtype, fortran, data = state
        self.pieces = (data, dtype, shape, "F" if fortran else "C")

    def value(self):
        if self.pieces is None:
            raise pickle.UnpicklingError("an array without content")
        data, dtype, shape, order = self.pieces
        if not isinstance(data, bytes | bytearray) or not isinstance(dtype, _DType):
            raise pickle.UnpicklingError("an array that is not made of bytes")
        array = np.frombuffer(data, dtype.granted())
        return array.reshape(shape, order=order).copy()


def _array_from_buffer(data, dtype, shape, order):
    array = _Array()
    array.pieces = (data, dtype, shape, order)
    return array


def _scalar(dtype, data):
    return _array_from_buffer(data, dtype, (), "C")


def _latin1(text, encoding="latin1"):
    """Protocol 2 writes bytes as text; nothing but that one decoding is granted."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"an encoding {encoding!r}")
    return text.encode("latin1")


class _Dict(dict):
    """An OrderedDict; PyTorch hangs its versions of modules on it, which nobody here needs."""

    def __init__(self, *arguments):
        if arguments:
            raise pickle.UnpicklingError("a dict that is made of arguments")
        super().__init__()

    def __setstate__(self, state):
        pass


_GRANTED = {
    ("collections", "OrderedDict"): _Dict,
    ("builtins", "tuple"): tuple,
    ("__builtin__", "tuple"): tuple,
    ("_codecs", "encode"): _latin1,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
}
for _numpy in ("numpy.core", "numpy._core"):
    _GRANTED[_numpy + ".multiarray", "_reconstruct"] = _Array
    _GRANTED[_numpy + ".multiarray", "scalar"] = _scalar
    _GRANTED[_numpy + ".numeric", "_frombuffer"] = _array_from_buffer

# --- What PyTorch's tensors are made of ---------------------------------------------------------------------


class _Storage:
    """A stretch of numbers, kept outside of the pickle under a key."""

    def __init__(self, code, key, count):
        self.code, self.key, self.count = code, key, count


class _Tensor:
    """Records a view of a storage; `value` takes it out of the storage's bytes."""

    def __init__(self, storage, offset, shape, strides, *_):
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

    def value(self, storages):
        data = storages[self.storage.key]
        numbers = (self.offset, *self.shape, *self.strides)
        if not all(type(n) is int and n >= 0 for n in numbers) or len(self.shape) != len(self.strides):
            raise pickle.UnpicklingError("a tensor whose shape is none")
        array = np.frombuffer(data, "<" + self.storage.code)
        # Its last element, and no more elements than its storage has (strides of 0 could ask for any number).
        last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        if math.prod(self.shape) > len(array) or (math.prod(self.shape) and last >= len(array)):
            raise pickle.UnpicklingError("a tensor that is larger than its storage")
        view = np.lib.stride_tricks.as_strided(
            array[self.offset :], self.shape, [step * array.itemsize for step in self.strides]
        )
        return view.copy()


def _parameter(tensor, *_):
    return tensor


_STORAGES = {
    "FloatStorage": "f4", "DoubleStorage": "f8", "HalfStorage": "f2", "ByteStorage": "u1", "CharStorage": "i1",
    "ShortStorage": "i2", "IntStorage": "i4", "LongStorage": "i8", "BoolStorage": "b1",
}  # fmt: skip
_TORCH: dict = _GRANTED | {("torch", name): code for name, code in _STORAGES.items()}
_TORCH["torch._utils", "_rebuild_tensor_v2"] = _Tensor
_TORCH["torch._utils", "_rebuild_parameter"] = _parameter

# --- The unpickler ------------------------------------------------------------------------------------------

# What dicts of arrays and text are written with, by any protocol and library. Left out are, above all, objects by
# other ways than `find_class`, and integers of any length.
_OPCODES = (
    "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE "
    "BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT "
    "EMPTY_LIST APPEND APPENDS SETITEM SETITEMS BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL "
    "REDUCE BUILD BINPERSID"
).split()


class _TensorsOnly(pickle._Unpickler):
    """An unpickler whose world holds arrays, dicts, tuples, lists and text, and nothing that acts.

    The one in Python rather than the one in C, because that one can be told which opcodes exist.
    """

    dispatch: ClassVar[dict] = {
        code: pickle._Unpickler.dispatch[code] for code in (getattr(pickle, name)[0] for name in _OPCODES)
    }

    def __init__(self, file, granted=_GRANTED):
        super().__init__(file)
        self.granted, self.storages = granted, {}

    def find_class(self, module, name):
        try:
            return self.granted[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {f'{module}.{name}'[:80]!r}") from None

    def load_setitems(self):
        items = self.pop_mark()
        # Any other key would be hashed, and hashing tuples of tuples of ... takes forever.
        if not all(type(key) is str for key in items[::2]):
            raise pickle.UnpicklingError("it holds a dict whose keys are no text")
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def load_setitem(self):
        value, key = self.stack.pop(), self.stack.pop()
        if type(key) is not str:
            raise pickle.UnpicklingError("it holds a dict whose keys are no text")
        self.stack[-1][key] = value

    def load_build(self):
        # Only recorders made for this file take a state: set on a class or function, it would outlive the file.
        state, recorder = self.stack.pop(), self.stack[-1]
        if not isinstance(recorder, _DType | _Array | _Dict):
            raise pickle.UnpicklingError("it sets the state of something that has none")
        recorder.__setstate__(state)

    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.SETITEM[0]] = load_setitem

    def persistent_load(self, pid):
        """PyTorch's reference to a storage: ("storage", type, key, device, count, ...)."""
        kind, code, key, _, count = pid[:5]
        if kind != "storage" or code not in _STORAGES.values() or type(key) is not str or type(count) is not int:
            raise pickle.UnpicklingError("it refers to something that is no storage of numbers")
        return self.storages.setdefault(key, _Storage(code, key, count))


# --- The two kinds of files ---------------------------------------------------------------------------------

_ZIP, _LEGACY = b"PK\x03\x04", 0x1950A86A20F9469CFC6C  # how PyTorch's files begin, since 1.6 and before


def read(path):
    """Reads what `paddle.save`, `pickle.dump` or `torch.save` wrote: dicts, tuples and lists of arrays and text.

    Raises:
        UserError: missing, truncated, or a file that asks for more than that.
    """
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe would never end
        raise UserError(f"{path}: is no regular file")
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise UserError(f"{path}: larger than any file of tensors")
    try:
        if data.startswith(_ZIP):
            return _read_torch_zip(data)
        if _LEGACY.to_bytes(10, "little") in data[:20]:
            return _read_torch_legacy(data)
        return _plain(_TensorsOnly(io.BytesIO(data)).load(), {}, len(data))
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: refused, it is no file of tensors only: {error}") from None
    except MemoryError:
        raise UserError(f"{path}: refused, it asks for more memory than there is") from None
    except RecursionError:
        raise UserError(f"{path}: refused, it is nested without end") from None
    # A truncated or crafted stream can break the opcodes in any of these ways; none of them ran code.
    except (
        EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, ImportError,
        NotImplementedError, RuntimeError, struct.error, zipfile.BadZipFile,
    ) as error:  # fmt: skip
        raise UserError(f"{path}: truncated or no file of tensors ({type(error).__name__})") from None


def _read_torch_zip(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        # PyTorch never compresses: what is compressed is none of its files, and might be endless when unpacked.
        if any(info.compress_type != zipfile.ZIP_STORED or info.file_size > len(data) for info in entries.values()):
            raise pickle.UnpicklingError("a compressed zip archive, which PyTorch does not write")
        heart = [name for name in entries if name.endswith("/data.pkl")]
        if len(heart) != 1:
            raise pickle.UnpicklingError("a zip archive, and not one of PyTorch")
        folder = heart[0].removesuffix("data.pkl")
        if folder + "byteorder" in entries and archive.read(folder + "byteorder") != b"little":
            raise pickle.UnpicklingError("its numbers are big-endian")
        unpickler = _TensorsOnly(io.BytesIO(archive.read(heart[0])), _TORCH)
        content = unpickler.load()
        storages = {key: archive.read(f"{folder}data/{key}") for key in unpickler.storages}
    return _plain(content, storages, len(data))


def _read_torch_legacy(data):
    """The format before PyTorch 1.6: five pickles one after the other, then the storages."""
    file = io.BytesIO(data)
    unpicklers = [_TensorsOnly(file, _TORCH) for _ in range(5)]
    magic, _, system, content, keys = (unpickler.load() for unpickler in unpicklers)
    if magic != _LEGACY or system["little_endian"] is not True:
        raise pickle.UnpicklingError("it was not written by PyTorch on a common computer")
    known, storages = unpicklers[3].storages, {}
    for key in keys:
        size = int.from_bytes(file.read(8), "little") * np.dtype(known[key].code).itemsize
        storages[key] = file.read(size) if size <= len(data) else b""
        if len(storages[key]) != size:
            raise EOFError
    return _plain(content, storages, len(data))


def _plain(value, storages, size):
    """Turns recorders into arrays.

    Parts of a file may be referred to many times over: small on disk, endless in memory. So neither the arrays nor
    the number of parts may be larger than the file, which is of `size` bytes.
    """
    bytes_left = parts_left = size

    def plain(value):
        nonlocal bytes_left, parts_left
        if isinstance(value, _Array):
            value = value.value()
        elif isinstance(value, _Tensor):
            value = value.value(storages)
        parts_left -= 1
        bytes_left -= getattr(value, "nbytes", 0)
        if min(bytes_left, parts_left) < 0:
            raise pickle.UnpicklingError("its arrays are larger than the file")
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(plain(item) for item in value)
        if isinstance(value, np.ndarray | str | int | float | bool | None):
            return value
        raise pickle.UnpicklingError(f"it holds a {type(value).__name__}")

    return plain(value)
