"""Bytes in, bytes out: image files of many formats, read into arrays and written back.

    >>> picture = read_image("scan.tif")
    >>> write_image("scan_denoise.tif", [denoise(page) for page in picture.pages], like=picture)

A page is an array of H x W x C in the file's own type: uint8, uint16 or float32. What belongs to
the pixels (transparency, EXIF, ICC profile, resolution, TIFF description) is handed on. Files are
untrusted: whatever is broken, cut short, far too large or no image ends in a UserError naming it.
"""

import contextlib
import fnmatch
import functools
import glob
import io
import os
import struct
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from denoising import cli
from denoising.cli import UserError
from denoising.files import exr, npy, pillow, png, tiff
from denoising.imaging.pixels import Picture, check_finite, check_size, from_01, known_dtype, to_01

IMAGE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".npy", ".exr", ".gif", ".pgm", ".ppm", ".pnm",
)  # fmt: skip
VOLUMES = (".nii", ".nii.gz")
NOT_READ = (".heic", ".heif", ".avif", ".jxl", ".jp2")  # photographs nevertheless
MAX_NPY_CHANNELS = 16


# --- Finding --------------------------------------------------------------------------------------


def find_images(flag, path, suffixes=IMAGE_SUFFIXES, leave_out=()):
    """Lists the images that a path stands for: itself, those of a folder tree, or a glob's matches.

    Hidden files are left out, and those of `leave_out`; links are followed. In folders and globs the suffix tells what
    an image is.

    Returns:
        A sorted list of Path.

    Raises:
        UserError: there is nothing; the message names the flag.
    """
    path = os.fspath(path)
    if os.path.isfile(path):
        return [Path(path)]
    if os.path.isdir(path):
        found = list(walk(path))
    elif glob.has_magic(path):
        found = list(_matches(path))
    else:
        raise UserError(f"{flag}: {path} does not exist")
    not_read = [file for file in found if file.name.lower().endswith(NOT_READ)]
    found = sorted(file for file in found if file.name.lower().endswith(suffixes) and file.is_file())
    if left_out := set(map(os.path.realpath, leave_out)):
        found = [file for file in found if os.path.realpath(file) not in left_out]
    if not_read:
        kinds = " ".join(sorted({file.suffix.lower() for file in not_read}))
        passed_over = (
            f"photographs of a kind that is not read ({kinds}: {len(not_read)}); save them as PNG or JPEG first"
        )
        if not found:
            raise UserError(f"{flag}: {path} holds {passed_over}")
        _tell_once(f"{flag}: {path} also holds {passed_over}")
    if not found:
        raise UserError(f"{flag}: no image in {path} ({' '.join(suffixes)})")
    return found


@functools.cache
def _tell_once(message):
    """A note, however often a training looks at its folder."""
    cli.note(message)


def by_name(flag, folder):
    """The images below a folder by their relative path without its suffix, sorted."""
    found = {}
    for path in find_images(flag, cli.existing_folder(flag, folder)):
        name = os.path.relpath(path.with_suffix(""), folder)
        if name in found:
            raise UserError(f"{flag}: {found[name]} and {path} have the same name")
        found[name] = path
    return found


def _matches(pattern):
    """Yields the files that a glob stands for; glob itself never comes to the end of "**" over rings of links."""
    parts = Path(pattern).parts
    if "**" not in parts:
        yield from map(Path, glob.glob(pattern))
        return
    first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    root = Path(*parts[:first])
    for file in walk(root):
        if _fits(file.relative_to(root).parts, parts[first:]):
            yield file


def _fits(parts, pattern):
    """Whether a path's parts are what a pattern asks for, where "**" stands for any number of folders."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        if pattern[1:2] in ((), ("**",)):  # the last one stands for files, too; two in a row say no more than one
            return not pattern[1:] or _fits(parts, pattern[1:])
        return any(_fits(parts[i:], pattern[1:]) for i in range(len(parts)))
    return bool(parts) and fnmatch.fnmatch(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])


def walk(folder):
    """Yields the files below a folder that are not hidden; a ring of links is gone round once."""
    seen = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(root)
        identity = status.st_dev, status.st_ino
        folders[:] = [] if identity in seen else sorted(name for name in folders if not name.startswith("."))
        if identity not in seen:
            yield from (Path(root, name) for name in names if not name.startswith("."))
        seen.add(identity)


# --- Reading --------------------------------------------------------------------------------------


def read_image(path, data=None, accept=None):
    """Reads a file of any known format; its content decides which, not its name.

    Kept as they are: uint8, uint16, float32. Converted: 1 bit, palette and CMYK to uint8 (grey or
    RGB), int16 without negative values to uint16, float16 and float64 to float32. 10- to 14-bit
    samples keep their numbers in uint16, but in PGM and PPM, which say what white is. Refused: other
    integers, which have no agreed white, and animations.

    Args:
        path: the file, and its name in messages.
        data: its bytes, where they do not come from the disk.
        accept: called with the height and width of the first page, before rotation, when nothing has been
            decoded yet; whatever it raises is raised.

    Raises:
        UserError: the file cannot be read, or holds NaN or infinite pixels.
    """
    data = read_bytes(path) if data is None else data
    with refusing(path):
        decode = _decoder(data)
        if decode is pillow.decode:  # it asks by itself, because opening takes a tenth of the time of reading
            picture = decode(data, path, accept)
        else:
            if accept:
                accept(*image_size(path, data))
            picture = decode(data, path)
    for page in picture.pages:
        if page.dtype == np.float32:
            check_finite(path, page)
    return picture


def _decoder(data):
    """The function that reads a file, by how it begins."""
    if data[:4] in tiff.MAGIC:
        return tiff.decode
    if data.startswith(exr.MAGIC):
        return exr.decode
    return _read_npy if data.startswith(npy.MAGIC) else pillow.decode


def image_size(path, data=None):
    """Returns (height, width) of the first page before rotation, from the header alone."""
    with refusing(path), open(path, "rb") if data is None else io.BytesIO(data) as file:
        magic = file.read(8)
        file.seek(0)
        if not magic:
            raise UserError(f"{path}: is empty")
        if magic[:4] in tiff.MAGIC:
            return tiff.size(file)
        if magic.startswith(exr.MAGIC):
            return exr.size(file)
        if magic.startswith(npy.MAGIC):
            shape, _, _ = npy.header(file)
            if not 2 <= len(shape) <= 4:
                raise UserError(f"{path}: an array of shape {shape} is no image")
            return shape[-3:-1] if len(shape) > 2 else shape
        return pillow.size(file)


def read_bytes(path):
    """Returns a file's content.

    Raises:
        UserError: it cannot be read, or is empty.
    """
    with refusing(path):
        data = Path(path).read_bytes()
    if not data:
        raise UserError(f"{path}: is empty")
    return data


@contextlib.contextmanager
def refusing(path):
    """Turns whatever the disk or a decoder raises over a bad file into one line that names the file."""
    try:
        yield
    except UserError:
        raise
    except Image.UnidentifiedImageError:
        known = " ".join(IMAGE_SUFFIXES)
        if str(path).lower().endswith(VOLUMES):
            known = "a volume; tools/mri_dataset.py makes images of its slices"
        raise UserError(f"{path}: no image, broken, or of a format that is not read ({known})") from None
    except MemoryError as error:
        raise UserError(f"{path}: too large for the free memory") from error
    except Exception as error:  # Decoders answer hostile bytes with nearly every kind of exception.
        if isinstance(error, OSError) and error.strerror:
            raise UserError(f"{path}: {error.strerror}") from None
        raise UserError(f"{path}: broken or cut short: {str(error)[:200]}") from error


def _read_npy(data, path):
    array = npy.read(io.BytesIO(data), len(data))
    shape = array.shape
    if len(shape) not in (2, 3, 4) or (len(shape) == 3 and shape[2] > MAX_NPY_CHANNELS):
        raise UserError(
            f"{path}: shape {shape} is neither (H, W), nor (H, W, C) with up to "
            f"{MAX_NPY_CHANNELS} channels, nor a stack of (N, H, W, C)"
            f"{'; array[..., None] makes grey frames one' if len(shape) == 3 else ''}"
        )
    check_size(path, data, [shape], array.itemsize)
    pages = array if array.ndim == 4 else [array if array.ndim == 3 else array[..., None]]
    return Picture([known_dtype(page, path) for page in pages], format="NPY", axes=array.ndim)


# --- Writing --------------------------------------------------------------------------------------

# What a format holds: sample types, channels (None: any number), transparency, several pages.
HOLDS = {
    ".png": (("uint8", "uint16"), (1, 3), True, False),
    ".jpg": (("uint8",), (1, 3), False, False),
    ".webp": (("uint8",), (1, 3), True, False),
    ".bmp": (("uint8",), (1, 3), False, False),
    ".ppm": (("uint8", "uint16"), (1, 3), False, False),
    ".tif": (("uint8", "uint16", "float32"), None, True, True),
    ".npy": (("uint8", "uint16", "float32"), None, False, True),
    ".exr": (("float32",), (1, 3), True, False),
}
ALIASES = {".jpeg": ".jpg", ".tiff": ".tif", ".pgm": ".ppm", ".pnm": ".ppm"}


def write_image(path, pages, like=None, quality=95):
    """Writes a file, whole or not at all, in the format that its suffix names.

    Args:
        path: an existing file is replaced.
        pages: an array of H x W or H x W x C, or a list of them: uint8, uint16 or float32, which
            is never converted.
        like: the picture they were made from: its transparency, EXIF, ICC profile, resolution and
            TIFF description are carried over, as far as the format holds them.
        quality: of JPEG, which is written without chroma subsampling.

    Raises:
        UserError: the format cannot hold this (the message says which can), or writing fails.
    """
    write_bytes(path, encode(path, pages, like, quality))


def write_bytes(path, data):
    """Writes a file, whole or not at all."""
    with cli.atomic_write(path) as temporary:
        Path(temporary).write_bytes(data)


def encode(path, pages, like=None, quality=95):
    """Returns what `write_image` writes, as bytes."""
    pages = [pages] if isinstance(pages, np.ndarray) else list(pages)
    pages = [page if page.ndim == 3 else page[..., None] for page in pages]
    like = like or Picture(pages)
    suffix = check_holds(path, pages, like)
    if like.alpha:
        pages = [_with_alpha(page, alpha) for page, alpha in zip(pages, like.alpha, strict=True)]
    try:
        if suffix == ".tif":
            return tiff.encode(pages, like)
        if suffix == ".npy":
            return _encode_npy(pages, like.axes)
        if suffix == ".exr":
            return exr.encode(pages[0], like)
        if suffix == ".png":
            return png.encode(pages[0], like)
        return pillow.encode(suffix, pages[0], like, quality)
    except (OSError, ValueError, struct.error, cv2.error) as error:
        # For example JPEG ends at 65535 pixels a side, WebP at 16383.
        raise UserError(f"{path}: cannot be written as {suffix}: {error}") from error


def _with_alpha(page, alpha):
    """Alpha as the last channel; where the pixels have come to another type than it, it follows them."""
    if alpha.dtype != page.dtype:
        alpha = from_01(to_01(alpha), page.dtype)
    return np.concatenate((page, alpha[..., None]), axis=2)


def check_holds(path, pages, like):
    """Refuses what the format of a name cannot hold, and says which can; else returns the format's usual suffix."""
    suffix = os.path.splitext(path)[1].lower()
    suffix = ALIASES.get(suffix, suffix)
    kind, channels, alpha, many = pages[0].dtype.name, pages[0].shape[2], like.alpha is not None, len(pages) > 1
    able = [
        other
        for other, (kinds, counts, holds_alpha, holds_many) in HOLDS.items()
        if kind in kinds and channels in (counts or [channels]) and alpha <= holds_alpha and many <= holds_many
    ]
    if not able:
        raise ValueError(f"no format holds {(kind, channels, alpha, many)}")
    if suffix not in able:
        what = f"{kind} of {channels} channel(s){' with transparency' if alpha else ''}"
        what = f"{len(pages)} pages of {what}" if many else what
        raise UserError(f"{path}: {suffix or 'a name without suffix'} cannot hold {what}: use {' '.join(able)}")
    return suffix


def _encode_npy(pages, axes):
    """A single page is H x W or H x W x C unless the input had another axis, of length 1."""
    array = np.stack(pages) if len(pages) > 1 or axes == 4 else pages[0]
    array = array[..., 0] if array.shape[2:] == (1,) and axes != 3 else array
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(array), allow_pickle=False)
    return file.getvalue()
