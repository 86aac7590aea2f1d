"""Weights on disk: written atomically, read without running anything that is in the file.

What is written is a plain dict of numpy arrays that `paddle.load` and `set_state_dict` take as well. What is read may
also be a `.pth` file of PyTorch: the published network has the same names and layouts there.
"""

import json
import os
import pickle

import numpy as np

from arch_unet import NETWORKS, NORMS, build_network
from denoising.cli import UserError, atomic_write, quoted
from denoising.files import tensors

STRUCTURE = (
    "arch",
    "n_channel",
    "n_input",
    "n_feature",
    "n_head",
    "norm",
    "careful",
)  # the arguments of `build_network`
OPTIONS_KEY = "@options"  # JSON text beside the weights: what builds the network, how it was trained


# --- Reading ------------------------------------------------------------------------------------------------


def read_state(path):
    """Reads a .pdparams or .pth file into a dict of arrays, numbers or text by name.

    Raises:
        UserError: missing, truncated, no weights file, or one that asks for more than tensors.
    """
    state = tensors.read(path)
    if not isinstance(state, dict):
        raise UserError(f"{path}: refused, it holds a {type(state).__name__} and no weights by name")
    state.pop("StructuredToParameterName@@", None)
    # PyTorch's DataParallel puts a word before each name.
    return {name.removeprefix("module."): _value(value, path) for name, value in state.items()}


def read_weights(path):
    """The same, but not the state of a training, which has weights twice and much beside them."""
    state = read_state(path)
    if any(name.startswith("network/") for name in state):
        folder = quoted(os.path.dirname(path) or ".")
        raise UserError(
            f"{path}: is the state of a training, which train.py --resume {folder} goes on with; "
            "best_model.pdparams or epoch_model_NNN.pdparams beside it are its weights"
        )
    return state


def _value(value, path):
    """A tensor or its description; Paddle writes each tensor as a tuple (its name, its array)."""
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], np.ndarray):
        return value[1]
    if isinstance(value, np.ndarray | str | int | float | bool):
        return value
    raise UserError(f"{path}: refused, it holds a {type(value).__name__} where a tensor is expected")


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
    state = read_weights(path)
    options = _saved_options(path, state)
    try:
        network = build_network(**{name: options[name] for name in STRUCTURE if name in options})
    except (TypeError, ValueError):  # a number that this network does not have, or cannot have
        raise UserError(f"{path}: holds no network of this project") from None
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


def to_larger(network, state):
    """Weights of a `unet_lite` as a start for a `unet_deep`, or for a careful network; others as they are.

    The network then computes the same: its blocks add nothing, and no share of the image stays.
    """
    own = network_state(network)
    state = {name: array for name, array in own.items() if "_block" in name} | state
    for name in ("last.weight", "last.bias", "blur.weight", "blur.bias"):
        array, wider = state.get(name), own.get(name)
        if "careful" in network.options and isinstance(array, np.ndarray) and array.shape[1:] == wider.shape[1:]:
            state[name] = np.concatenate([array, np.zeros_like(wider[len(array) :])])
    return state


def to_grey(state):
    """Weights of a `unet` or `unet_lite` for RGB as a start for grey images: the channels at its ends, taken for one.

    On a grey image it computes what the RGB network gives for that image in all three channels, averaged. Others
    are returned as they are.
    """
    return _light_to_grey(state) if "enc_conv1a.weight" in state else _plain_to_grey(state)


def _light_to_grey(state):
    entry, last, bias = (state.get(name) for name in ("enc_conv1a.weight", "last.weight", "last.bias"))
    if not all(isinstance(array, np.ndarray) for array in (entry, last, bias)):
        return state
    if entry.shape[1:2] != (12,) or entry.ndim != 4 or last.ndim != 4 or bias.shape != last.shape[:1]:
        return state
    if len(last) not in (12, 16):
        return state
    # At half the size each channel is four. What is not learnt is the same for each channel. A careful network has
    # one more, the share of the image that stays.
    fixed = {
        name: (array[:, :1] if array.ndim == 4 else array)[[0, *range(3, len(array))]]
        for name, array in state.items()
        if name.startswith(("centre.", "blur."))
    }
    ends = {
        "enc_conv1a.weight": entry.reshape(len(entry), 3, 4, *entry.shape[2:]).sum(1),
        "last.weight": np.concatenate([last[:12].reshape(3, 4, *last.shape[1:]).mean(0), last[12:]]),
        "last.bias": np.concatenate([bias[:12].reshape(3, 4).mean(0), bias[12:]]),
    }
    return state | fixed | ends


def _plain_to_grey(state):
    entry, head, last, bias = (
        state.get(name) for name in ("enc_conv0.weight", "dec_conv1a.weight", "nin_c.weight", "nin_c.bias")
    )
    if not all(isinstance(array, np.ndarray) and array.ndim == 4 for array in (entry, head, last)):
        return state
    if entry.shape[1] != 3 or len(last) != 3 or not isinstance(bias, np.ndarray) or bias.shape != (3,):
        return state
    image = head[:, -3:].sum(1, keepdims=True)  # the image itself, which the head gets beside the features
    return state | {
        "enc_conv0.weight": entry.sum(1, keepdims=True),
        "dec_conv1a.weight": np.concatenate([head[:, :-3], image], 1),
        "nin_c.weight": last.mean(0, keepdims=True),
        "nin_c.bias": bias.mean(keepdims=True),
    }


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
        sizes = [options["n_channel"], options["n_feature"]]
        sizes += [options[name] for name in ("n_input", "n_head") if options.get(name) is not None]
        # A layer of n features has n * n weights and more: a claim beyond the file's own size is not built.
        numbers = sum(array.size for array in state.values() if isinstance(array, np.ndarray))
        believable = all(type(n) is int and 0 < n and n * n <= numbers for n in sizes)
        if options["arch"] not in NETWORKS or options.get("norm", "none") not in NORMS or not believable:
            raise ValueError
        if not isinstance(options.get("noisetype", ""), str):
            raise ValueError
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path}: holds no network of this project") from None
    return options
