"""Bytes in, bytes out: image files of many formats, read into arrays and written back.

    >>> picture = read_image("scan.tif")
    >>> write_image("scan_denoise.tif", [denoise(page) for page in picture.pages], like=picture)

A page is an array of H x W x C in the file's own type: uint8, uint16 or float32. What belongs to
the pixels (transparency, EXIF, ICC profile, resolution, TIFF description) is handed on. Files are
untrusted: whatever is broken, cut short, far too large or no image ends in a UserError naming it.
"""

import contextlib
import fnmatch
import glob
import io
import logging
import os
import struct
import warnings
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from denoising import cli
from denoising.cli import UserError
from denoising.files import exr, npy, png, tiff
from denoising.imaging.pixels import (
    ORIENTATION,
    Picture,
    check_size,
    from_01,
    known_dtype,
    swap_bgr,
    to_01,
    to_grey,
    upright,
)

__all__ = [
    "IMAGE_SUFFIXES", "Picture", "encode", "find_images", "from_01", "image_size", "read_bytes",
    "read_image", "to_01", "to_grey", "walk", "write_bytes", "write_image",
]  # fmt: skip
IMAGE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".npy", ".exr", ".gif", ".pgm", ".ppm", ".pnm",
)  # fmt: skip
PILLOW_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "PPM")
MAX_NPY_CHANNELS = 16

# The limit is ours (check_size): Pillow's lies below what cameras deliver, and warns at first.
Image.MAX_IMAGE_PIXELS = None
# A hostile file is answered with one line of ours; the decoders' own remarks would come on top.
warnings.filterwarnings("ignore", module="PIL")
logging.getLogger("tifffile").setLevel(logging.CRITICAL)
(cv2.setLogLevel if hasattr(cv2, "setLogLevel") else cv2.utils.logging.setLogLevel)(0)


# --- Finding --------------------------------------------------------------------------------------


def find_images(flag, path):
    """Lists the images that a path stands for: itself, those of a folder tree, or a glob's matches.

    Hidden files are left out, links are followed.

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
    found = sorted(file for file in found if file.name.lower().endswith(IMAGE_SUFFIXES) and file.is_file())
    if not found:
        raise UserError(f"{flag}: no image in {path} ({' '.join(IMAGE_SUFFIXES)})")
    return found


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
    samples keep their numbers in uint16. Refused: other integers, which have no agreed white, and
    animations.

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
        if accept and decode is not _read_pillow:
            accept(*image_size(path, data))
        picture = decode(data, path) if decode is not _read_pillow else decode(data, path, accept)
    for page in picture.pages:
        if page.dtype == np.float32 and not np.isfinite(page).all():
            raise UserError(f"{path}: holds NaN or infinite pixels")
    return picture


def _decoder(data):
    """The function that reads a file, by how it begins."""
    if data[:4] in tiff.MAGIC:
        return tiff.decode
    if data.startswith(exr.MAGIC):
        return exr.decode
    return _read_npy if data.startswith(npy.MAGIC) else _read_pillow


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
        with Image.open(file, formats=PILLOW_FORMATS) as image:
            return image.height, image.width


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
        raise UserError(f"{path}: no image, broken, or of a format that is not read ({known})") from None
    except MemoryError as error:
        raise UserError(f"{path}: too large for the free memory") from error
    except Exception as error:  # Decoders answer hostile bytes with nearly every kind of exception.
        if isinstance(error, OSError) and error.strerror:
            raise UserError(f"{path}: {error.strerror}") from None
        raise UserError(f"{path}: broken or cut short: {str(error)[:200]}") from error


def _read_pillow(data, path, accept=None):
    image = Image.open(io.BytesIO(data), formats=PILLOW_FORMATS)
    if accept:  # asked here, because opening takes a tenth of the time of reading
        accept(image.height, image.width)
    check_size(path, data, [(image.height, image.width, len(image.getbands()))], 1)
    # MPO is a JPEG with a preview or a second view behind the photo: the photo is meant.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise UserError(f"{path}: is an animation of {image.n_frames} frames: extract them first")
    exif, orientation = _exif(image)
    array, alpha = _pillow_pixels(image, data)
    dpi = tuple(map(float, image.info.get("dpi", ())))
    picture = Picture(
        pages=[known_dtype(array, path)],
        alpha=alpha,
        format=image.format,
        exif=exif,
        # A profile of CMYK inks says nothing about RGB.
        icc=image.info.get("icc_profile", b"") if image.mode != "CMYK" else b"",
        dpi=dpi if len(dpi) == 2 and all(0 < value < 1e6 for value in dpi) else None,
        plain=image.mode in ("L", "RGB") and array.dtype == np.uint8 and alpha is None,
    )
    return upright(picture, orientation)


def _pillow_pixels(image, data):
    """Decodes to an HWC array, and to alpha in a list of one, or None."""
    if image.format == "JPEG" and image.mode in ("L", "RGB"):
        # OpenCV gives the same pixels sooner; what it refuses, Pillow may say more about.
        colours = cv2.IMREAD_GRAYSCALE if image.mode == "L" else cv2.IMREAD_COLOR_RGB
        array = cv2.imdecode(np.frombuffer(data, np.uint8), colours | cv2.IMREAD_IGNORE_ORIENTATION)
        if array is not None:
            return array.reshape(image.height, image.width, -1), None
    # Pillow cuts 16-bit colour down to 8 bits, OpenCV does not; but Pillow refuses more bad files.
    deep_png = image.format == "PNG" and data[24] == 16 and image.mode != "I;16"
    deep_pnm = image.format == "PPM" and image.mode in ("RGB", "I") and _maxval(data) > 255
    if image.format == "PNG":
        png.verify(data)
    image.load()
    if deep_png or deep_pnm:
        array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if array is None:
            raise ValueError("the decoder gives up")
        # Both decoders blow grey with alpha (colour type 4) up to RGBA.
        return _split_alpha(swap_bgr(array), grey=deep_png and data[25] == 4)
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode in ("1", "L", "LA") else "RGBA")
    elif image.mode not in ("1", "L", "RGB", "F") and not image.mode.startswith("I;16"):
        image = image.convert("RGB")
    array = np.asarray(image)
    return _split_alpha(array if array.ndim == 3 else array[..., None], grey=False)


def _split_alpha(array, grey):
    """Splits off an even channel's alpha; `grey` keeps one of three equal channels."""
    channels = array.shape[2]
    alpha = [np.ascontiguousarray(array[..., -1])] if channels in (2, 4) else None
    colour = array[..., : channels - (alpha is not None)]
    return np.ascontiguousarray(colour[..., :1] if grey else colour), alpha


def _maxval(data):
    """The largest sample value that a PGM or PPM header states."""
    words = b" ".join(line.partition(b"#")[0] for line in data[:512].split(b"\n")).split()
    return int(words[3])


def _exif(image):
    """Returns the EXIF block without rotation, and the rotation; a broken block is dropped."""
    try:
        exif = image.getexif()
        orientation = exif.pop(ORIENTATION, 1)
        return exif.tobytes() if len(exif) else b"", orientation
    except Exception:  # noqa: BLE001 - hostile EXIF raises nearly anything, and the pixels are good without it
        return b"", 1


def _read_npy(data, path):
    array = npy.read(io.BytesIO(data), len(data))
    shape = array.shape
    if len(shape) not in (2, 3, 4) or (len(shape) == 3 and shape[2] > MAX_NPY_CHANNELS):
        raise UserError(
            f"{path}: shape {shape} is neither (H, W), nor (H, W, C) with up to "
            f"{MAX_NPY_CHANNELS} channels, nor a stack of (N, H, W, C)"
        )
    check_size(path, data, [shape], array.itemsize)
    pages = array if array.ndim == 4 else [array if array.ndim == 3 else array[..., None]]
    return Picture([known_dtype(page, path) for page in pages], format="NPY")


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
    suffix = os.path.splitext(path)[1].lower()
    suffix = ALIASES.get(suffix, suffix)
    _check_holds(path, suffix, pages, like)
    if like.alpha:
        joined = zip(pages, like.alpha, strict=True)
        pages = [np.concatenate((page, alpha.astype(page.dtype)[..., None]), axis=2) for page, alpha in joined]
    try:
        if suffix == ".tif":
            return tiff.encode(pages, like)
        if suffix == ".npy":
            return _encode_npy(pages)
        if suffix == ".exr":
            return exr.encode(pages[0], like)
        if suffix == ".png":
            return png.encode(pages[0], like)
        if pages[0].dtype == np.uint16:
            return _encode_pnm16(pages[0])
        return _encode_pillow(suffix, pages[0], like, quality)
    except (OSError, ValueError, struct.error, cv2.error) as error:
        # For example JPEG ends at 65535 pixels a side, WebP at 16383.
        raise UserError(f"{path}: cannot be written as {suffix}: {error}") from error


def _check_holds(path, suffix, pages, like):
    """Refuses what a format cannot hold, and names those that can."""
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


def _flat(array):
    """Without the channel axis where there is but one channel."""
    return np.ascontiguousarray(array[..., 0] if array.shape[-1] == 1 else array)


def _encode_pillow(suffix, page, like, quality):
    name = {".jpg": "JPEG", ".webp": "WEBP", ".bmp": "BMP", ".ppm": "PPM"}[suffix]
    options = {"exif": like.exif, "icc_profile": like.icc, "dpi": like.dpi}
    options = {key: value for key, value in options.items() if value}
    if suffix == ".jpg" and not options:
        return _encode_jpeg(page, quality)
    options |= {".jpg": {"quality": quality, "subsampling": 0}, ".webp": {"lossless": True}}.get(suffix, {})
    file = io.BytesIO()
    Image.fromarray(_flat(page)).save(file, name, **options)
    return file.getvalue()


def _encode_jpeg(page, quality):
    """JPEG by OpenCV: the same bytes as from Pillow, sooner, but without metadata."""
    full_chroma = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)
    page = np.ascontiguousarray(page)
    page = cv2.cvtColor(page, cv2.COLOR_RGB2BGR) if page.shape[2] == 3 else page  # sooner than swap_bgr
    ok, data = cv2.imencode(".jpg", page, (cv2.IMWRITE_JPEG_QUALITY, quality, *full_chroma))
    if not ok:
        raise ValueError("the encoder gives up")
    return data.tobytes()


def _encode_pnm16(page):
    header = f"P{5 if page.shape[2] == 1 else 6}\n{page.shape[1]} {page.shape[0]}\n65535\n"
    return header.encode() + page.astype(">u2").tobytes()


def _encode_npy(pages):
    file = io.BytesIO()
    np.save(file, np.stack(pages) if len(pages) > 1 else _flat(pages[0]), allow_pickle=False)
    return file.getvalue()
