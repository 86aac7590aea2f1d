"""Pair files: many small images of one size in one file, each noisy twice, or noisy and clean.

    >>> noisy1, noisy2 = read("train.npz", TRAINING)  # uint8, N x C x H x W
    >>> noisy, clean = read("val.npz", VALIDATION)

A `.npz` names its two arrays so. A `.pkl` is what PyTorch's `torch.save` made of a tuple of two such tensors. Neither
can run code here, and neither unpacks to much more than its own size.
"""

import lzma
import os
import zipfile
import zlib

import numpy as np

from denoising import cli
from denoising.cli import UserError
from denoising.files import npy, tensors
from denoising.imaging.pixels import from_01, to_01

SUFFIXES = (".npz", ".pkl")
TRAINING, VALIDATION = ("noisy1", "noisy2"), ("noisy", "clean")
MAX_BYTES = 4 << 30  # of one array
MAX_RATIO = 100  # noise does not shrink by packing: what unpacks to more than this is no pair file
BROKEN = (
    OSError, ValueError, EOFError, RuntimeError, OverflowError, MemoryError, SyntaxError, NotImplementedError,
    zipfile.BadZipFile, zlib.error, lzma.LZMAError,
)  # fmt: skip


def is_pair_file(path):
    """Whether a path names a pair file, there or not."""
    return os.fspath(path).lower().endswith(SUFFIXES) and not os.path.isdir(path)


# --- Reading ------------------------------------------------------------------------------------------------


def read(path, names):
    """The two arrays of a file, uint8, N x C x H x W.

    Args:
        path: a .npz or .pkl.
        names: TRAINING or VALIDATION; a .pkl does not tell which it holds.

    Raises:
        UserError: missing, broken, or not two arrays of that kind of one shape.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path}: does not exist")
    arrays = _read_npz(path, names) if os.fspath(path).lower().endswith(".npz") else _read_tensors(path)
    for name, array in zip(names, arrays, strict=True):
        if array.dtype != np.uint8:
            raise UserError(f"{path}: {name} is of type {array.dtype}, uint8 is wanted")
        if array.ndim != 4 or array.shape[1] not in (1, 3) or array.size == 0:
            raise UserError(f"{path}: {name} has the shape {array.shape}, N x 3 x H x W (or N x 1) is wanted")
    if arrays[0].shape != arrays[1].shape:
        raise UserError(f"{path}: the halves differ: {names[0]} is {arrays[0].shape}, {names[1]} {arrays[1].shape}")
    return arrays


def _read_npz(path, names):
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {info.filename.removesuffix(".npy"): info.file_size for info in archive.infolist()}
            if not set(names) <= set(sizes):
                found = ", ".join(sorted(sizes))[:80] or "nothing"
                raise UserError(f"{path}: {names[0]} and {names[1]} are wanted, it holds {found}")
            largest = min(MAX_BYTES, MAX_RATIO * os.path.getsize(path))
            arrays = []
            for name in names:
                if sizes[name] > largest:
                    raise UserError(f"{path}: refused, {name} would unpack to {sizes[name]} bytes")
                with archive.open(f"{name}.npy") as file:
                    arrays.append(npy.read(file, sizes[name]))
    except BROKEN as error:
        raise UserError(f"{path}: broken or no pair file: {error or type(error).__name__}") from None
    return arrays


def _read_tensors(path):
    content = tensors.read(path)
    if not isinstance(content, tuple | list) or [type(item) for item in content] != [np.ndarray] * 2:
        raise UserError(f"{path}: refused, it does not hold two tensors")
    return list(content)


# --- Writing ------------------------------------------------------------------------------------------------


def write(path, names, arrays):
    """Writes a .npz atomically; equal arrays make equal files."""
    with cli.atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, array in zip(names, arrays, strict=True):
            # Without a time, a member has that of 1980, whenever it is written.
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def cut(sources, read_pages, count, side, rng, on_source=None):
    """Square patches from as many sources as possible, as evenly as possible, at random places.

    What is no larger than a patch gives one and no more; larger pictures give as many as are asked for. The sources are
    used in their order: `read_pages` gives the pictures of a source, HWC of any type, or none, and `on_source` is
    called after each.

    Returns:
        uint8, N x C x side x side, where N may be less than `count`; and how many sources they are from.
    """
    patches, used = [], set()
    while sources and len(patches) < count:
        larger = []
        for number, source in enumerate(sources):
            wanted = -(-(count - len(patches)) // (len(sources) - number))
            pages = [page for page in read_pages(source) if min(page.shape[:2]) >= side]
            if any(max(page.shape[:2]) > side for page in pages):
                larger.append(source)
            else:
                wanted = min(wanted, len(pages))
            for i in range(wanted):
                page = pages[i % len(pages)]
                top, left = (rng.integers(length - side + 1) for length in page.shape[:2])
                patch = page[top : top + side, left : left + side]
                patches.append(from_01(to_01(patch), np.uint8).transpose(2, 0, 1))
            if wanted > 0:
                used.add(source)
            if on_source:
                on_source()
            if len(patches) == count:
                break
        # A second round makes up for sources that had nothing to give.
        sources = larger
    return np.stack(patches) if patches else np.empty((0, 3, side, side), np.uint8), len(used)


def corrupt(clean, noise, *seed):
    """A noisy copy of each patch, as a camera gives it: rounded and clipped to 8 bits."""
    noisy = np.empty_like(clean)
    for i, patch in enumerate(clean):
        image = to_01(patch.transpose(1, 2, 0))
        noisy[i] = from_01(noise.add(image, np.random.default_rng([*seed, i])), np.uint8).transpose(2, 0, 1)
    return noisy
