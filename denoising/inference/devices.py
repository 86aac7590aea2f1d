"""Where to compute and how: the device flags of train.py, val.py and predict.py, and what they lead to."""

import contextlib
import platform
import subprocess
from pathlib import Path

import numpy as np
import paddle

from denoising import cli
from denoising.cli import UserError, number
from denoising.engine import operators
from denoising.inference import distributed


def add_window_flags(parser):
    """How a Denoiser goes over an image."""
    # fmt: off
    add = parser.add_argument
    add("--tta", action="store_true", help="average eight flips and rotations: eight times the work")
    add("--tile", type=number(int, 352),
        help="side of the largest window in pixels, which bounds the memory; unless given, such that a window takes "
        "half a gigabyte, or half of what is free")


FASTEST = ("auto", "fp32", "bf16")  # the precisions of what denoises, where the loss by bf16 cannot be seen


def add_flags(parser, precisions=("fp32", "bf16"), precision_note=""):
    """Adds and returns the group of flags that every script which runs a network has.

    `precisions` is what --precision takes, the first by default, and `precision_note` what its help says more.
    """
    # fmt: off
    group = parser.add_argument_group("device")
    add = group.add_argument
    add("--device", default="auto", choices=["auto", "cpu", "gpu"], help="where to compute")
    add("--gpu_devices", help="the number of the GPU to compute on, e.g. 0")
    add("--engine", default="auto", choices=["auto", "onednn", "paddle"],
        help="on a CPU: the fast convolutions of denoising/engine, or Paddle's own")
    chosen = "; auto takes it there" if "auto" in precisions else ""
    add("--precision", default=precisions[0], choices=precisions,
        help="of the engine's activations; bf16 halves the time on CPUs that have it" + chosen + precision_note)
    return group


def prepare(options):
    """Sets the device, joins the other processes, chooses the engine and says so; returns the networks' `ops`."""
    found = paddle.device.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0
    cli.refuse(
        (not found and options.device == "gpu", "--device: no GPU that this Paddle can use"),
        (not found and options.gpu_devices, "--gpu_devices: no GPU that this Paddle can use"),
    )
    if found and options.device != "cpu":
        asked_for = (options.gpu_devices or "0").split(",")[0]
        paddle.set_device(f"gpu:{distributed.LOCAL_DEVICE if distributed.WORLD_SIZE > 1 else asked_for}")
    else:
        paddle.set_device("cpu")
    distributed.start()
    ops, line = operators.choose(options.engine, options.precision)
    if distributed.IS_MAIN:
        cli.note(line)
    return ops


def on_gpu():
    """Whether the device in use is a GPU."""
    return paddle.device.get_device().startswith("gpu")


def fastest_precision():
    """The --precision that takes the least time on this machine."""
    try:
        operators.choose("auto", "bf16")
    except UserError:
        return "fp32"
    return "bf16"


def versions():
    """What the run was made with."""
    root, commit = Path(__file__).resolve().parents[2], "unknown"
    # Where the package is installed, a repository around it is somebody else's.
    if (root / ".git").exists():
        with contextlib.suppress(OSError):  # git is not installed
            done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
            commit = done.stdout.strip() or commit
    python = platform.python_version()
    return {"python": python, "paddle": paddle.__version__, "numpy": np.__version__, "commit": commit}
