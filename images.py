"""Bytes in, bytes out: image files of many formats, read into arrays and written back.

    >>> picture = read_image("scan.tif")
    >>> write_image("scan_denoise.tif", [denoise(page) for page in picture.pages], like=picture)

A page is an array of H x W x C in the file's own type: uint8, uint16 or float32. What belongs to
the pixels (transparency, EXIF, ICC profile, resolution, TIFF description) is handed on. Files are
untrusted: whatever is broken, cut short, far too large or no image ends in a UserError naming it.
"""

import contextlib
import glob
import io
import logging
import math
import os
import struct
import warnings
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import tifffile
from PIL import Image

import cli
from cli import UserError

IMAGE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".npy", ".gif",
    ".pgm", ".ppm", ".pnm",
)  # fmt: skip
PILLOW_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "PPM")
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MAX_PIXELS = 1 << 29  # of one page; beyond the largest cameras and most stitched panoramas
# What unpacks to more than this, and to more than so many times its own size, is a bomb.
BOMB_BYTES, BOMB_RATIO = 1 << 29, 200
MAX_NPY_CHANNELS = 16

ORIENTATION = 274
TIFF_TEXT = (271, 272, 305, 306, 315, 33432)  # Make, Model, Software, DateTime, Artist, Copyright
# What ImageJ and map software store beside the pixels: labels, look-up tables, place on the globe.
TIFF_EXTRA = (50838, 50839, 33550, 33922, 34264, 34735, 34736, 34737, 42112, 42113)

# The limit is ours (_check_size): Pillow's lies below what cameras deliver, and warns at first.
Image.MAX_IMAGE_PIXELS = None
# A hostile file is answered with one line of ours; the decoders' own remarks would come on top.
warnings.filterwarnings("ignore", module="PIL")
logging.getLogger("tifffile").setLevel(logging.CRITICAL)
(cv2.setLogLevel if hasattr(cv2, "setLogLevel") else cv2.utils.logging.setLogLevel)(0)


@dataclass
class Picture:
    """What a file holds: pixels, turned upright, and what is handed on to a file made from them."""

    pages: list  # of HWC arrays; one, unless the file is a stack
    alpha: list | None = (
        None  # one H x W array per page, of the same type: transparency is kept, never denoised
    )
    format: str = ""  # "PNG", "JPEG", "TIFF", "NPY", ...
    exif: bytes = b""  # without its rotation tag, which has been obeyed
    icc: bytes = b""
    dpi: tuple | None = None
    plain: bool = False  # 8-bit grey or RGB in the file too, and upright: any decoder gives these pixels
    tiff: dict = field(
        default_factory=dict
    )  # arguments for tifffile: descriptions, pixel size, tags, compression


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
        # "**" goes round rings of links until names get too long: of each file, the shortest name.
        matches = sorted(glob.glob(path, recursive=True), key=lambda match: (-len(match), match))
        found = {os.path.realpath(match): Path(match) for match in matches}.values()
    else:
        raise UserError(f"{flag}: {path} does not exist")
    found = sorted(file for file in found if file.name.lower().endswith(IMAGE_SUFFIXES) and file.is_file())
    if not found:
        raise UserError(f"{flag}: no image in {path} ({' '.join(IMAGE_SUFFIXES)})")
    return found


def walk(folder):
    """Yields the files below a folder that are not hidden; a ring of links is gone round once."""
    seen = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        if real not in seen:
            yield from (Path(root, name) for name in names if not name.startswith("."))
        seen.add(real)


# --- Reading --------------------------------------------------------------------------------------


def read_image(path, data=None):
    """Reads a file of any known format; its content decides which, not its name.

    Kept as they are: uint8, uint16, float32. Converted: 1 bit, palette and CMYK to uint8 (grey or
    RGB), int16 without negative values to uint16, float16 and float64 to float32. 10- to 14-bit
    samples keep their numbers in uint16. Refused: other integers, which have no agreed white, and
    animations.

    Args:
        path: the file, and its name in messages.
        data: its bytes, where they do not come from the disk.

    Raises:
        UserError: the file cannot be read, or holds NaN or infinite pixels.
    """
    data = read_bytes(path) if data is None else data
    with _refusing(path):
        picture = _reader(data)(data, path)
    for page in picture.pages:
        if page.dtype == np.float32 and not np.isfinite(page).all():
            raise UserError(f"{path}: holds NaN or infinite pixels")
    return picture


def image_size(path, data=None):
    """Returns (height, width) of the first page before rotation, from the header alone."""
    if data is None:
        try:
            with open(path, "rb") as file:
                return _image_size(path, file, file.read(8))
        except OSError as error:
            raise UserError(f"{path}: {error.strerror or error}") from None
    return _image_size(path, io.BytesIO(data), data[:8])


def _image_size(path, file, magic):
    if not magic:
        raise UserError(f"{path}: is empty")
    file.seek(0)
    with _refusing(path):
        if magic[:4] in TIFF_MAGIC:
            with tifffile.TiffFile(file, is_ome=False) as tif:
                return tif.pages.first.shaped[2:4]
        if magic[:6] == b"\x93NUMPY":
            shape = _npy_header(file)[0]
            return shape[-3:-1] if len(shape) > 2 else shape
        with Image.open(file, formats=PILLOW_FORMATS) as image:
            return image.height, image.width


def read_bytes(path):
    """Returns a file's content.

    Raises:
        UserError: it cannot be read, or is empty.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    if not data:
        raise UserError(f"{path}: is empty")
    return data


@contextlib.contextmanager
def _refusing(path):
    """Tells what a decoder has to say about a bad file in one line that names it."""
    try:
        yield
    except (UserError, KeyboardInterrupt):
        raise
    except Image.UnidentifiedImageError:
        known = " ".join(IMAGE_SUFFIXES)
        raise UserError(f"{path}: no image, broken, or of a format that is not read ({known})") from None
    except MemoryError as error:
        raise UserError(f"{path}: too large for the free memory") from error
    except Exception as error:  # Decoders answer hostile bytes with nearly every kind of exception.
        raise UserError(f"{path}: broken or cut short: {str(error)[:200]}") from error


def _reader(data):
    if data[:4] in TIFF_MAGIC:
        return _read_tiff
    return _read_npy if data[:6] == b"\x93NUMPY" else _read_pillow


def _check_size(path, data, shapes, itemsize):
    """Refuses what would fill the memory, before it is decoded; `shapes` are those of all pages."""
    total = itemsize * sum(math.prod(shape) for shape in shapes)
    # A page's height and width are among the three largest of its dimensions; the rest are few.
    pixels = max((math.prod(sorted(shape)[-2:]) for shape in shapes), default=0)
    if pixels > MAX_PIXELS or (total > BOMB_BYTES and total > BOMB_RATIO * len(data)):
        raise UserError(
            f"{path}: would unpack to {pixels / 1e6:.0f} megapixels, {total / 1e9:.1f} GB: refused"
        )
    if total == 0:
        raise UserError(f"{path}: holds no pixels")


def _known_dtype(array, path):
    """Returns the array as uint8, uint16 or float32, or refuses it."""
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind == "b":
        return array.astype(np.uint8) * np.uint8(255)
    if kind == "f" and size <= 8:
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
            return np.ascontiguousarray(array, np.float32)
    if (kind == "i" and size == 2 and array.min() >= 0) or (kind == "u" and size == 2):
        return np.ascontiguousarray(array, np.uint16)
    if kind == "u" and size == 1:
        return np.ascontiguousarray(array)
    negative = " with negative values" if array.dtype == np.int16 else ""
    raise UserError(
        f"{path}: {array.dtype}{negative} has no agreed white: save it as uint8, uint16 or float32"
    )


def _read_pillow(data, path):
    image = Image.open(io.BytesIO(data), formats=PILLOW_FORMATS)
    _check_size(path, data, [(image.height, image.width, len(image.getbands()))], 1)
    # MPO is a JPEG with a preview or a second view behind the photo: the photo is meant.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise UserError(f"{path}: is an animation of {image.n_frames} frames: extract them first")
    exif, orientation = _exif(image)
    array, alpha = _pillow_pixels(image, data)
    dpi = tuple(map(float, image.info.get("dpi", ())))
    picture = Picture(
        pages=[_known_dtype(array, path)],
        alpha=alpha,
        format=image.format,
        exif=exif,
        # A profile of CMYK inks says nothing about RGB.
        icc=image.info.get("icc_profile", b"") if image.mode != "CMYK" else b"",
        dpi=dpi if len(dpi) == 2 and all(0 < value < 1e6 for value in dpi) else None,
        plain=image.mode in ("L", "RGB") and array.dtype == np.uint8 and alpha is None,
    )
    return _upright(picture, orientation)


def _pillow_pixels(image, data):
    """Decodes to an HWC array, and to alpha in a list of one, or None."""
    if image.format == "JPEG" and image.mode in ("L", "RGB"):
        # OpenCV gives the same pixels sooner; what it refuses, Pillow may say more about.
        colours = cv2.IMREAD_GRAYSCALE if image.mode == "L" else cv2.IMREAD_COLOR_RGB
        flags = colours | cv2.IMREAD_IGNORE_ORIENTATION
        array = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        if array is not None:
            return array.reshape(image.height, image.width, -1), None
    # Pillow cuts 16-bit colour down to 8 bits, OpenCV does not; but Pillow refuses more bad files.
    deep_png = image.format == "PNG" and data[24] == 16 and image.mode != "I;16"
    deep_pnm = image.format == "PPM" and image.mode in ("RGB", "I") and _maxval(data) > 255
    image.load()
    if deep_png:
        Image.open(io.BytesIO(data), formats=["PNG"]).verify()  # libpng would print about a bad checksum
    if deep_png or deep_pnm:
        array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if array is None:
            raise ValueError("the decoder gives up")
        # Both decoders blow grey with alpha (colour type 4) up to RGBA.
        return _split_alpha(_from_bgr(array), grey=deep_png and data[25] == 4)
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode in ("1", "L", "LA") else "RGBA")
    elif image.mode not in ("1", "L", "RGB", "F") and not image.mode.startswith("I;16"):
        image = image.convert("RGB")
    array = np.asarray(image)
    return _split_alpha(array if array.ndim == 3 else array[..., None], grey=False)


def _from_bgr(array):
    """OpenCV's channel order to RGB, HWC."""
    if array.ndim == 2:
        return array[..., None]
    return array[..., [2, 1, 0, 3][: array.shape[2]]] if array.shape[2] in (3, 4) else array


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


def _upright(picture, orientation):
    """Turns the pixels as the rotation tag of EXIF and TIFF asks."""
    turns = {
        2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1), 6: lambda a: a.swapaxes(0, 1)[:, ::-1],
        7: lambda a: a.swapaxes(0, 1)[::-1, ::-1], 8: lambda a: a.swapaxes(0, 1)[::-1],
    }  # fmt: skip
    if orientation in turns:
        turn = turns[orientation]
        picture.plain = False
        picture.pages = [np.ascontiguousarray(turn(page)) for page in picture.pages]
        picture.alpha = picture.alpha and [np.ascontiguousarray(turn(alpha)) for alpha in picture.alpha]
        if orientation >= 5 and picture.dpi:
            picture.dpi = picture.dpi[::-1]
    return picture


def _npy_header(file):
    version = np.lib.format.read_magic(file)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    shape, _, dtype = read_header[version](file)
    if dtype.hasobject:
        raise ValueError("it holds pickled objects, which are never loaded")
    return shape, dtype


def _read_npy(data, path):
    file = io.BytesIO(data)
    shape, dtype = _npy_header(file)
    if math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise ValueError(f"shape {shape} does not fit the size of the file")
    if len(shape) not in (2, 3, 4) or (len(shape) == 3 and shape[2] > MAX_NPY_CHANNELS):
        raise UserError(
            f"{path}: shape {shape} is neither (H, W), nor (H, W, C) with up to "
            f"{MAX_NPY_CHANNELS} channels, nor a stack of (N, H, W, C)"
        )
    _check_size(path, data, [shape], dtype.itemsize)
    file.seek(0)
    array = np.load(file, allow_pickle=False)
    pages = array if array.ndim == 4 else [array if array.ndim == 3 else array[..., None]]
    return Picture([_known_dtype(page, path) for page in pages], format="NPY")


# --- TIFF: pages of any size, planes, odd photometrics --------------------------------------------


def _read_tiff(data, path):
    _check_pages(data)
    # Not as OME: its XML may name other files, which tifffile would open. The XML itself is kept.
    with tifffile.TiffFile(io.BytesIO(data), is_ome=False) as tif:
        first = tif.pages.first
        # Thumbnails and overviews are left out. A frame of a stack is a full page.
        chosen = [
            page for page in (page.aspage() for page in tif.pages) if page is first or not page.is_reduced
        ]
        shapes = [page.shaped for page in chosen for _ in range(page.shaped[1])]
        if len(tif.pages) == 1 and len(tif.series) == 1 and tif.series[0].size > first.size:
            # ImageJ describes only the first page of a large stack; the others just follow it.
            shapes *= tif.series[0].size // first.size
            _check_size(path, data, shapes, first.dtype.itemsize)
            blocks, by_opencv = tif.series[0].asarray().reshape(-1, *first.shaped), False
            chosen *= len(blocks)
        else:
            _check_size(path, data, [page.shaped for page in chosen], first.dtype.itemsize)
            blocks, by_opencv = _decode_tiff(data, chosen, path)
        planes = [
            (page, plane)
            for page, block in zip(chosen, blocks, strict=True)
            for plane in _planes(page, block)
        ]
        split = [_tiff_colours(page, plane, by_opencv, path) for page, plane in planes]
        alphas = [alpha for _, alpha in split]
        picture = Picture(
            pages=[_known_dtype(colour, path) for colour, _ in split],
            alpha=[_known_dtype(alpha, path) for alpha in alphas]
            if all(a is not None for a in alphas)
            else None,
            format="TIFF",
            **_tiff_metadata(first, [page for page, _ in planes]),
        )
        return _upright(picture, _tag(first, ORIENTATION, 1))


def _check_pages(data):
    """Follows the chain of pages to its end: tifffile takes a torn chain for a short one."""
    order, big = "<" if data[:2] == b"II" else ">", data[2] == 43 or data[3] == 43
    count_form, offset_form, entry_size = ("Q", "Q", 20) if big else ("H", "I", 12)
    (offset,) = struct.unpack_from(order + offset_form, data, 8 if big else 4)
    seen = set()
    while offset and offset not in seen:
        seen.add(offset)
        (count,) = struct.unpack_from(order + count_form, data, offset)
        following = offset + struct.calcsize(order + count_form) + count * entry_size
        (offset,) = struct.unpack_from(order + offset_form, data, following)


def _decode_tiff(data, chosen, path):
    """Decodes to blocks of (planes, depth, height, width, samples); says whether OpenCV did it."""
    try:
        return [page.asarray().reshape(page.shaped) for page in chosen], False
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
    # LZW, JPEG and fax need a large package that is seldom there; OpenCV reads the usual layouts.
    ok, arrays = cv2.imdecodemulti(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    wanted = {page.index for page in chosen}
    arrays = [_from_bgr(array) for index, array in enumerate(arrays) if index in wanted]
    if not ok or len(arrays) != len(chosen) or not all(map(_same_layout, chosen, arrays)):
        name = getattr(chosen[0].compression, "name", chosen[0].compression)
        raise UserError(f"{path}: {name} compression of this layout needs `pip install imagecodecs`")
    return [array[None, None] for array in arrays], True


def _same_layout(page, array):
    """Whether OpenCV has kept the samples as they are, or turned a palette into colours."""
    channels = 3 if page.photometric == 3 else page.samplesperpixel
    same = array.shape == (page.imagelength, page.imagewidth, channels)
    return (
        same
        and array.dtype.itemsize == max(1, page.bitspersample // 8)
        and page.photometric in (0, 1, 2, 3, 6)
    )


def _planes(page, block):
    """Yields HWC arrays from a block; a volume in one page has several."""
    return np.moveaxis(block, 0, -2).reshape(*block.shape[1:4], -1)


def _tiff_colours(page, plane, by_opencv, path):
    """Returns grey, RGB or N channels, and alpha or None."""
    photometric = page.photometric
    if photometric == 0 and not by_opencv:  # white is zero
        plane = ~plane if plane.dtype.kind in "bu" else plane.max() - plane
    elif photometric == 3 and not by_opencv:
        plane = (page.colormap.T[plane[..., 0]] >> 8).astype(np.uint8)
    elif photometric == 5 and plane.dtype == np.uint8 and plane.shape[-1] == 4:
        plane = np.asarray(Image.fromarray(plane, "CMYK").convert("RGB"))
    elif photometric not in (0, 1, 2, 3, 6, 32803, 34892):
        raise UserError(f"{path}: colours of kind {getattr(photometric, 'name', photometric)} are not read")
    # 1 is associated (premultiplied), 2 unassociated; others are channels of data.
    if plane.shape[-1] > 1 and any(kind in (1, 2) for kind in page.extrasamples[-1:]):
        return plane[..., :-1], np.ascontiguousarray(plane[..., -1])
    return plane, None


def _tag(page, code, default=None):
    tag = page.tags.get(code)
    return default if tag is None else tag.value


def _tiff_metadata(first, pages):
    exif = Image.Exif()
    for code in TIFF_TEXT:
        value = _tag(first, code)
        if isinstance(value, str) and value.strip():
            exif[code] = value
    unit = int(_tag(first, 296, 2))
    resolution = tuple(
        value[0] / value[1]
        for value in (_tag(first, 282), _tag(first, 283))
        if isinstance(value, tuple) and value[1]
    )
    resolution = resolution if len(resolution) == 2 and all(0 < value < 1e9 for value in resolution) else None
    inches = {2: 1.0, 3: 2.54}.get(unit)
    extra = [first.tags[code] for code in TIFF_EXTRA if code in first.tags]
    icc = _tag(first, 34675)
    return {
        "exif": exif.tobytes() if len(exif) else b"",
        "icc": icc if isinstance(icc, bytes) and first.photometric not in (3, 5) else b"",
        "dpi": tuple(value * inches for value in resolution) if resolution and inches else None,
        "tiff": {
            "descriptions": [page.description for page in pages],
            "resolution": resolution,
            "resolutionunit": unit if unit in (1, 2, 3) else 1,
            "extratags": [(tag.code, int(tag.dtype), tag.count, tag.value, True) for tag in extra],
            "compressed": first.compression != 1,
            "alpha": int(first.extrasamples[-1]) if first.extrasamples else 2,
        },
    }


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
    data = encode(path, pages, like, quality)
    with cli.atomic_write(path) as temporary:
        Path(temporary).write_bytes(data)


def encode(path, pages, like=None, quality=95):
    """Returns what `write_image` writes, as bytes."""
    pages = [pages] if isinstance(pages, np.ndarray) else list(pages)
    pages = [page if page.ndim == 3 else page[..., None] for page in pages]
    like = like or Picture(pages)
    suffix = Path(path).suffix.lower()
    suffix = ALIASES.get(suffix, suffix)
    content = (pages[0].dtype.name, pages[0].shape[2], like.alpha is not None, len(pages) > 1)
    if suffix not in HOLDS or not _holds(suffix, *content):
        able = " ".join(other for other in HOLDS if _holds(other, *content))
        if not able:
            raise ValueError(f"no format holds {content}")
        kind, channels, alpha, many = content
        what = f"{kind} of {channels} channel(s){' with transparency' if alpha else ''}"
        what = f"{len(pages)} pages of {what}" if many else what
        raise UserError(f"{path}: {suffix or 'a name without suffix'} cannot hold {what}: use {able}")
    if like.alpha:
        joined = zip(pages, like.alpha, strict=True)
        pages = [
            np.concatenate((page, alpha.astype(page.dtype)[..., None]), axis=2) for page, alpha in joined
        ]
    try:
        if suffix == ".tif":
            return _encode_tiff(pages, like)
        if suffix == ".npy":
            return _encode_npy(pages)
        if suffix == ".png":
            return _encode_png(pages[0], like)
        if pages[0].dtype == np.uint16:
            return _encode_pnm16(pages[0])
        return _encode_pillow(suffix, pages[0], like, quality)
    except (OSError, ValueError, struct.error, cv2.error) as error:
        # For example JPEG ends at 65535 pixels a side, WebP at 16383.
        raise UserError(f"{path}: cannot be written as {suffix}: {error}") from error


def _holds(suffix, kind, channels, alpha, many):
    kinds, counts, holds_alpha, holds_many = HOLDS[suffix]
    return (
        kind in kinds
        and (counts is None or channels in counts)
        and alpha <= holds_alpha
        and many <= holds_many
    )


def _encode_pillow(suffix, page, like, quality):
    name = {".jpg": "JPEG", ".webp": "WEBP", ".bmp": "BMP", ".ppm": "PPM"}[suffix]
    options = {"exif": like.exif or None, "icc_profile": like.icc or None, "dpi": like.dpi}
    options = {key: value for key, value in options.items() if value}
    options |= {".jpg": {"quality": quality, "subsampling": 0}, ".webp": {"lossless": True}}.get(suffix, {})
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(page[..., 0] if page.shape[2] == 1 else page)).save(
        file, name, **options
    )
    return file.getvalue()


def _encode_pnm16(page):
    header = f"P{5 if page.shape[2] == 1 else 6}\n{page.shape[1]} {page.shape[0]}\n65535\n"
    return header.encode() + page.astype(">u2").tobytes()


def _encode_npy(pages):
    array = np.stack(pages) if len(pages) > 1 else pages[0]
    file = io.BytesIO()
    np.save(
        file,
        array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array,
        allow_pickle=False,
    )
    return file.getvalue()


def _encode_png(page, like):
    """OpenCV's encoder: three times as fast as Pillow's, and writes 16-bit colour; no metadata."""
    if page.shape[2] == 2:
        data = _encode_grey_alpha_png(page)
    else:
        # The channel order is the same both ways.
        data = cv2.imencode(".png", _from_bgr(np.ascontiguousarray(page)))[1].tobytes()
    chunks = b""
    if like.icc:
        chunks += _png_chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(like.icc))
    if like.dpi:
        chunks += _png_chunk(b"pHYs", struct.pack(">IIB", *(round(value / 0.0254) for value in like.dpi), 1))
    if like.exif:
        chunks += _png_chunk(b"eXIf", like.exif.removeprefix(b"Exif\0\0"))
    end_of_header = 8 + 25
    return data[:end_of_header] + chunks + data[end_of_header:]


def _png_chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _encode_grey_alpha_png(page):
    """Grey with alpha, which OpenCV lacks: each row as its difference to the row above."""
    height, width, _ = page.shape
    rows = page.astype(page.dtype.newbyteorder(">")).reshape(height, -1).view(np.uint8)
    above = np.concatenate((np.zeros_like(rows[:1]), rows[:-1]))
    filtered = np.concatenate((np.full((height, 1), 2, np.uint8), rows - above), axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8 * page.itemsize, 4, 0, 0, 0)
    data = _png_chunk(b"IHDR", header) + _png_chunk(b"IDAT", zlib.compress(filtered.tobytes(), 4))
    return b"\x89PNG\r\n\x1a\n" + data + _png_chunk(b"IEND", b"")


def _encode_tiff(pages, like):
    tiff = like.tiff or {"compressed": like.format not in ("NPY", "")}
    extratags = list(tiff.get("extratags", []))
    if like.exif:
        exif = Image.Exif()
        exif.load(like.exif)
        texts = [(code, str(exif[code]).encode() + b"\0") for code in TIFF_TEXT if code in exif]
        extratags += [(code, 2, len(text), text, True) for code, text in texts]
    descriptions = tiff.get("descriptions", [])
    options = {"metadata": None, "software": False, "iccprofile": like.icc or None}
    if tiff.get("resolution"):
        options |= {"resolution": tiff["resolution"], "resolutionunit": tiff["resolutionunit"]}
    elif like.dpi:
        options |= {"resolution": like.dpi, "resolutionunit": 2}
    if tiff.get("compressed"):
        options |= {"compression": "zlib", "predictor": pages[0].dtype.kind == "u"}
    file = io.BytesIO()
    total = sum(page.nbytes for page in pages)
    with tifffile.TiffWriter(file, bigtiff=total > (4 << 30) - (64 << 20)) as writer:
        for index, page in enumerate(pages):
            channels = page.shape[2] - (like.alpha is not None)
            options["photometric"] = "rgb" if channels == 3 else "minisblack"
            extra = channels - (3 if channels == 3 else 1)
            options["extrasamples"] = [0] * extra + ([tiff.get("alpha", 2)] if like.alpha else [])
            text = (
                descriptions[index]
                if len(descriptions) == len(pages)
                else (descriptions or [""])[0] * (index == 0)
            )
            samples = page if page.shape[2] > 1 else page[..., 0]
            writer.write(
                samples, planarconfig="contig" if page.shape[2] > 1 else None, contiguous=False,
                description=text.encode() if text else None, extratags=extratags, **options,
            )  # fmt: skip
    return file.getvalue()


# --- Range ----------------------------------------------------------------------------------------


def to_01(array):
    """Maps uint8 and uint16 to float32 in 0..1; float passes, 0..1 being its display range."""
    if array.dtype.kind == "u":
        result = array.astype(np.float32)
        result /= np.iinfo(array.dtype).max
        return result
    return array.astype(np.float32, copy=False)


def from_01(array_01, dtype):
    """The way back: integers are rounded half up and clipped, float32 is left as it is."""
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        return array_01.astype(dtype, copy=False)
    top = np.iinfo(dtype).max
    result = array_01 * np.float32(top)
    result += np.float32(0.5)
    return np.clip(np.floor(result, out=result), 0, top, out=result).astype(dtype)


def to_grey(array):
    """Luma of Rec. 601 as H x W x 1, rounded to the image's own type."""
    luma = to_01(array) @ np.array([0.299, 0.587, 0.114], np.float32)
    return from_01(luma[..., None], array.dtype)
