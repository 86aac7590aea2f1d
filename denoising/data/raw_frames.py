"""SIDD's raw frames: .mat files of MATLAB 5 and 7.3, each a Bayer mosaic, read as float32."""

import io
import math
import re

import numpy as np

from denoising.cli import UserError
from denoising.files.archives import Skip
from denoising.imaging.pixels import MAX_PIXELS, to_01

CROP = 512
# The camera's code in SIDD's folder names, and the phase of its sensor.
BAYER_PHASES = {"GP": "BGGR", "IP": "RGGB", "S6": "GRBG", "N6": "BGGR", "G4": "BGGR"}


def camera(name):
    """Returns the camera's code in a file's or folder's name, or None."""
    codes = [code for code in re.split(r"[_/]", name) if code in BAYER_PHASES]
    return codes[-1] if codes else None


def crop_starts(length):
    """Where crops at half overlap start along one axis: even, or the Bayer phase would change."""
    last = (length - CROP) // 2 * 2
    return sorted({*range(0, last + 1, CROP // 2), last})


def read_frame(entry):
    """Returns a file's frame, float32 H x W x 1, in MATLAB's orientation for both formats.

    Raises:
        Skip: it is none, is broken, or is smaller than a crop.
    """
    if re.search(r"(^|[_/])(GT|METADATA)_", entry.name, re.IGNORECASE):
        raise Skip("no noisy raw frame", "clean frame or metadata of SIDD")
    data = entry.read()
    is_hdf5 = b"MATLAB 7.3" in data[:128] or b"\x89HDF" in data[:1024]
    try:
        frame = np.asarray((_read_hdf5 if is_hdf5 else _read_mat)(io.BytesIO(data)))
    except UserError:
        raise
    except Exception as error:  # A hostile file is answered with nearly any kind of exception.
        raise Skip("unreadable", f"no MATLAB file, or broken: {error}") from error
    if frame.ndim != 2 or frame.dtype.kind not in "fu":
        raise Skip("no raw frame", f"{frame.dtype} of shape {frame.shape}")
    frame = np.ascontiguousarray(to_01(frame))
    if not np.isfinite(frame).all():
        raise Skip("unreadable", "holds NaN or infinite pixels")
    height, width = frame.shape
    if min(height, width) < CROP:
        raise Skip(f"smaller than {CROP} pixels a side", f"{width} x {height}")
    return frame[..., None]


def _read_mat(file):
    import scipy.io  # slow to import, and only raw frames need it

    shapes = {name: shape for name, shape, _ in scipy.io.whosmat(file)}
    flat = [name for name, shape in shapes.items() if len(shape) == 2]
    name = "x" if "x" in shapes or not flat else flat[0]
    _check_size(shapes.get(name, ()))
    return scipy.io.loadmat(file, variable_names=[name])[name]


def _read_hdf5(file):
    try:
        import h5py
    except ImportError:
        raise Skip("needs h5py", "a MATLAB 7.3 file: pip install h5py") from None
    with h5py.File(file, "r") as variables:
        variable = variables["x" if "x" in variables else next(iter(variables))]
        _check_size(variable.shape)
        return variable[()].T  # HDF5 has MATLAB's columns as rows


def _check_size(shape):
    if math.prod(shape) > MAX_PIXELS:
        raise Skip("too large", f"{shape}")
