"""Weights on disk: written atomically, read without running anything that is in the file.

`.pdparams` files are pickles, and `paddle.load` unpickles them: a crafted one runs code. Here every name that a
pickle may ask for is mapped to a small recorder class of ours, so that a file can only ever become numbers and
text. What is written is a plain dict of numpy arrays that `paddle.load` and `set_state_dict` take as well.
"""

import io
import json
import pickle
import zipfile
from typing import ClassVar

import numpy as np

from arch_unet import NETWORKS, build_network
from cli import UserError, atomic_write

OPTIONS_KEY = "@options"  # JSON text beside the weights: what builds the network, how it was trained
MAX_BYTES = 4 << 30


# --- Reading ------------------------------------------------------------------------------------------------


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


def _empty_dict(*arguments):
    if arguments:
        raise pickle.UnpicklingError("a dict that is made of arguments")
    return {}


_GRANTED = {
    ("collections", "OrderedDict"): _empty_dict,
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

# What dicts of arrays and text are written with, by any protocol and numpy. Left out are, above all, objects by
# other ways than `find_class`, and integers of any length.
_OPCODES = (
    "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE "
    "BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT "
    "SETITEM SETITEMS BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD"
).split()


class _TensorsOnly(pickle._Unpickler):
    """An unpickler whose world holds arrays, dicts, tuples and text, and nothing that acts.

    The one in Python rather than the one in C, because that one can be told which opcodes exist.
    """

    dispatch: ClassVar[dict] = {
        code: pickle._Unpickler.dispatch[code] for code in (getattr(pickle, name)[0] for name in _OPCODES)
    }

    def find_class(self, module, name):
        try:
            return _GRANTED[module, name]
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

    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.SETITEM[0]] = load_setitem


def read_state(path):
    """Reads a .pdparams file into a dict of float, integer or text values by name.

    Raises:
        UserError: missing, truncated, no weights file, or one that asks for more than tensors.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise UserError(f"{path}: larger than any weights file")
    if zipfile.is_zipfile(io.BytesIO(data)):
        raise UserError(f"{path}: a zip archive (a PyTorch file?), not .pdparams weights")
    try:
        raw = _TensorsOnly(io.BytesIO(data)).load()
        if not isinstance(raw, dict):
            raise pickle.UnpicklingError(f"it holds a {type(raw).__name__}")
        state = {name: _plain(value) for name, value in raw.items() if name != "StructuredToParameterName@@"}
        # Many arrays may share one buffer of the file: small on disk, endless in memory.
        if sum(value.nbytes for value in state.values() if isinstance(value, np.ndarray)) > len(data):
            raise pickle.UnpicklingError("its arrays are larger than the file")
        return state
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: refused, it is no file of tensors only: {error}") from None
    except MemoryError:
        raise UserError(f"{path}: refused, it asks for more memory than there is") from None
    except RecursionError:
        raise UserError(f"{path}: refused, it is nested without end") from None
    # A truncated or crafted stream can break the unpickler's opcodes in any of these ways; none of them ran code.
    except (
        EOFError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        OverflowError,
        ImportError,
    ) as error:
        raise UserError(f"{path}: truncated or no .pdparams file ({type(error).__name__})") from None


def _plain(value):
    """Turns recorders into arrays; Paddle writes each tensor as a tuple (its name, its array)."""
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], _Array):
        value = value[1]
    if isinstance(value, _Array):
        return value.value()
    if isinstance(value, str | int | float | bool):
        return value
    raise pickle.UnpicklingError(f"it holds a {type(value).__name__} where a tensor is expected")


# --- Writing ------------------------------------------------------------------------------------------------


def write_state(path, state):
    """Writes a dict of arrays and text atomically; protocol 4 is what every Paddle reads."""
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        pickle.dump(state, file, protocol=4)


# --- Networks -----------------------------------------------------------------------------------------------


def network_state(network):
    """The weights of a network as a dict of numpy arrays."""
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}


def save_network(path, state, options):
    """Saves weights together with what rebuilds the network, so that no flag is needed to load them."""
    write_state(path, {**state, OPTIONS_KEY: json.dumps(options)})


def load_network(path):
    """Rebuilds the network that a weights file holds, in evaluation mode.

    Returns:
        The network and the options saved with it (for files of other origin: what their shapes tell).

    Raises:
        UserError: the file is broken, or holds no network of ours.
    """
    state = read_state(path)
    options = _saved_options(path, state)
    network = build_network(options["arch"], options["n_channel"], options["n_feature"], options["n_head"])
    set_weights(network, state, path)
    network.eval()
    return network, options


def set_weights(network, state, path):
    """Puts weights into a network after checking that names and shapes are exactly its own."""
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    missing = sorted(set(expected) - set(state))
    surplus = sorted(set(state) - set(expected) - {OPTIONS_KEY})
    if missing or surplus:
        first = f"it lacks {missing[0]}" if missing else f"it also has {surplus[0]}"
        raise UserError(f"{path}: holds another network: {first}")
    weights = {}
    for name, shape in expected.items():
        array = state[name]
        if not isinstance(array, np.ndarray) or array.shape != shape:
            raise UserError(f"{path}: holds another network: {name} is {np.shape(array)}, not {shape}")
        with np.errstate(over="ignore"):
            weights[name] = array.astype(np.float32)
        if not np.isfinite(weights[name]).all():
            raise UserError(f"{path}: {name} holds NaN or infinite weights")
    network.set_state_dict(weights)


def _saved_options(path, state):
    """The options in the file, or what the shapes of a published U-Net file tell."""
    text = state.pop(OPTIONS_KEY, None)
    try:
        if text is not None:
            options = json.loads(text)
        else:
            n_feature, n_channel = state["enc_conv0.weight"].shape[:2]
            n_head = state["nin_c.weight"].shape[1]
            options = {"arch": "unet", "n_channel": n_channel, "n_feature": n_feature, "n_head": n_head}
        sizes = [options[name] for name in ("n_channel", "n_feature", "n_head")]
        # A layer of n features has n * n weights and more: a claim beyond the file's own size is not built.
        numbers = sum(array.size for array in state.values() if isinstance(array, np.ndarray))
        believable = all(type(n) is int and 0 < n and n * n <= numbers for n in sizes)
        if options["arch"] not in NETWORKS or not believable:
            raise ValueError
        if not isinstance(options.get("noisetype", ""), str):
            raise ValueError
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path}: holds no network of this project") from None
    return options
