"""Volumes of scanners: NIfTI-1 (`.nii`, `.nii.gz`) and `.npy`, read into D x H x W.

    >>> volume = read_volume("IXI002-Guys-0828-T1.nii.gz")

NIfTI is read here and not by nibabel, because all that is wanted of it are the numbers: a header of 348 bytes, and an
array behind it. Files are untrusted: whatever is broken, cut short or far too large ends in a UserError naming it.
"""

import gzip
import io
import math
import struct
import zlib

import numpy as np

from denoising.cli import UserError
from denoising.files import images, npy
from denoising.imaging.pixels import check_finite, check_size

VOLUME_SUFFIXES = (".nii", ".nii.gz", ".npy")
HEADER = 348  # bytes
# NIfTI's codes of the types that are numbers on a line; complex, RGB and long double are others.
TYPES = {
    2: "u1", 256: "i1", 4: "i2", 512: "u2", 8: "i4", 768: "u4", 1024: "i8", 1280: "u8", 16: "f4", 64: "f8",
}  # fmt: skip


def read_volume(path):
    """Reads a volume, or one slice as a volume of one, as float32 [D, H, W] in the file's own units.

    The slices of NIfTI lie across its third axis, which is the slowest in the file; its orientation is left as it is.

    Raises:
        UserError: the file cannot be read, is no volume of real numbers, or holds NaN or infinite values.
    """
    array = read_array(path) if str(path).lower().endswith(".npy") else _read_nifti(path)
    if array.dtype.kind not in "buif":
        what = "complex numbers" if array.dtype.kind == "c" else f"values of type {array.dtype}"
        raise UserError(f"{path}: holds {what}, a volume is of real ones")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
        volume = np.ascontiguousarray(array, np.float32)
    check_finite(path, volume)
    return volume


def read_array(path):
    """Reads a .npy of H x W or D x H x W, of any type, as D x H x W."""
    data = images.read_bytes(path)
    with images.refusing(path):
        array = npy.read(io.BytesIO(data), len(data))
    shape = array.shape
    if len(shape) not in (2, 3) or 0 in shape:
        raise UserError(f"{path}: shape {shape} is neither H x W nor D x H x W")
    if len(shape) == 3 and shape[2] in (3, 4):
        raise UserError(f"{path}: shape {shape} is that of a picture in colour, a volume is D x H x W")
    return array if len(shape) == 3 else array[None]


def _read_nifti(path):
    data = images.read_bytes(path)
    packed = data[:2] == b"\x1f\x8b"
    try:
        with gzip.open(io.BytesIO(data)) if packed else io.BytesIO(data) as file:
            shape, dtype, offset, slope, shift = _nifti_header(file.read(HEADER), path)
            check_size(path, data, [shape], dtype.itemsize)
            file.seek(offset)  # past extensions, which say nothing about the numbers
            size = math.prod(shape) * dtype.itemsize
            content = file.read(size)
            file.read(1)  # gzip checks its sum when it meets the end
    except (EOFError, OSError, zlib.error, struct.error) as error:
        raise UserError(f"{path}: broken or cut short: {error}") from error
    if len(content) != size:
        raise UserError(f"{path}: cut short: {len(content)} bytes of {size}")
    array = np.frombuffer(content, dtype).reshape(shape)
    # A slope of 0 or NaN means that the numbers are what they are.
    return array if slope == 0 or math.isnan(slope) else array * np.float64(slope) + shift


def _nifti_header(header, path):
    """Returns the shape (slowest first), the type, where the numbers start, and their scale."""
    if len(header) < HEADER:
        raise UserError(f"{path}: no NIfTI-1 volume, or cut short")
    order = next((order for order in "<>" if struct.unpack_from(f"{order}i", header)[0] == HEADER), None)
    if order is None or header[344:348] != b"n+1\0":
        raise UserError(f"{path}: no NIfTI-1 volume in one file (.nii or .nii.gz)")
    rank, *sizes = struct.unpack_from(f"{order}8h", header, 40)
    kind = struct.unpack_from(f"{order}h", header, 70)[0]
    offset, slope, shift = struct.unpack_from(f"{order}3f", header, 108)
    if not 2 <= rank <= 7 or min(sizes[:rank]) < 1 or max(sizes[3:rank], default=1) > 1:
        raise UserError(f"{path}: sizes {sizes[: max(0, rank)]} are not those of one volume")
    if kind not in TYPES:
        raise UserError(f"{path}: NIfTI's data type {kind} is not of real numbers")
    if not (HEADER + 4 <= offset <= 1 << 26 and offset.is_integer()) or math.isinf(slope):
        raise UserError(f"{path}: an offset of {offset} or a slope of {slope} makes no sense")
    width, height, depth = (*sizes[:rank], 1)[:3]
    return (depth, height, width), np.dtype(order + TYPES[kind]), int(offset), slope, shift
