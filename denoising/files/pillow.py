"""The formats that everybody has: PNG, JPEG, BMP, WebP, GIF and PPM, by Pillow, and by OpenCV where it is better."""

import io
import struct
import warnings

import cv2
import numpy as np
from PIL import Image, PngImagePlugin

from denoising.cli import UserError
from denoising.files import png
from denoising.imaging.pixels import ORIENTATION, Picture, check_size, from_01, known_dtype, swap_bgr, upright

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "PPM")
EXIF_PARTS = (0x8769, 0x8825)  # of the exposure, and of the place

# The limit is ours (check_size): Pillow's lies below what cameras deliver, and warns at first.
Image.MAX_IMAGE_PIXELS = None
# Of a PNG's profile Pillow refuses what is above a megabyte; in a JPEG it may have 16, as of a scanner.
PngImagePlugin.MAX_TEXT_CHUNK = 16 << 20
# A hostile file is answered with one line of ours; Pillow's own remarks would come on top.
warnings.filterwarnings("ignore", module="PIL")
(cv2.setLogLevel if hasattr(cv2, "setLogLevel") else cv2.utils.logging.setLogLevel)(0)


# --- Reading ------------------------------------------------------------------------------------------------


def size(file):
    """Returns (height, width) of an open file."""
    with Image.open(file, formats=FORMATS) as image:
        return image.height, image.width


def decode(data, path, accept=None):
    """Returns the image as a Picture; `accept` is called with its height and width before it is decoded."""
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    if accept:
        accept(image.height, image.width)
    check_size(path, data, [(image.height, image.width, len(image.getbands()))], 1)
    # MPO is a JPEG with a preview or a second view behind the photo: the photo is meant.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise UserError(f"{path}: is an animation of {image.n_frames} frames: extract them first")
    exif, orientation = _exif(image)
    array, alpha = _pixels(image, data)
    dpi = tuple(map(float, image.info.get("dpi", ())))
    picture = Picture(
        pages=[known_dtype(array, path)],
        alpha=alpha,
        format=image.format,
        exif=exif,
        # A profile of CMYK inks says nothing about RGB.
        icc=image.info.get("icc_profile", b"") if image.mode != "CMYK" else b"",
        dpi=dpi if len(dpi) == 2 and all(0 < value < 1e6 for value in dpi) else None,
        png=png.light(data) if image.format == "PNG" else b"",
        plain=image.mode in ("L", "RGB") and array.dtype == np.uint8 and alpha is None,
    )
    return upright(picture, orientation)


def quantization(data):
    """The table by which a JPEG's brightness was rounded, 64 numbers; None if the bytes are no JPEG."""
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            return list(image.quantization[0])
    except (OSError, KeyError, ValueError, SyntaxError, struct.error):
        return None


def _pixels(image, data):
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
        if deep_pnm and _maxval(data) < 65535:  # its header says what white is, and it is written with another
            array = from_01(np.minimum(array / np.float32(_maxval(data)), 1), np.uint16)
        # Both decoders blow grey with alpha (colour type 4) up to RGBA.
        return _split_alpha(swap_bgr(array), grey=deep_png and data[25] == 4)
    if image.format == "PNG" and data[25] == 0 and "transparency" in image.info:
        return _keyed_grey(image, data[24])
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode in ("1", "L", "LA") else "RGBA")
    elif image.mode not in ("1", "L", "RGB", "F") and not image.mode.startswith("I;16"):
        image = image.convert("RGB")
    array = np.asarray(image)
    return _split_alpha(array if array.ndim == 3 else array[..., None], grey=False)


def _keyed_grey(image, depth):
    """Grey of which one shade is transparent: a PNG names it in as many bits as its samples have."""
    array = np.asarray(image.convert("L") if depth == 1 else image)
    shade = (image.info["transparency"] & ((1 << depth) - 1)) * {1: 255, 2: 85, 4: 17}.get(depth, 1)
    alpha = np.full_like(array, np.iinfo(array.dtype).max)
    alpha[array == shade] = 0
    return array[..., None], [alpha]


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
        for part in (exif, *(exif.get_ifd(code) for code in EXIF_PARTS if code in exif)):
            part.update({code: _Text(value) for code, value in part.items() if isinstance(value, str)})
        return exif.tobytes() if len(exif) else b"", orientation
    except Exception:  # noqa: BLE001 - hostile EXIF raises nearly anything, and the pixels are good without it
        return b"", 1


class _Text(str):
    """A text of EXIF as it was: names are in UTF-8, and Pillow writes a question mark for all beyond ASCII."""

    __slots__ = ()

    def encode(self, *_):
        return super().encode("latin-1")  # which Pillow has decoded it by


# --- Writing ------------------------------------------------------------------------------------------------


def encode(suffix, page, like, quality):
    """Returns the bytes of a JPEG, WebP, BMP or PPM file; `suffix` says which."""
    if page.dtype == np.uint16:
        return _encode_pnm16(page)
    options = {"exif": like.exif, "icc_profile": like.icc, "dpi": like.dpi}
    options = {key: value for key, value in options.items() if value}
    if suffix == ".jpg" and not options:
        return _encode_jpeg(page, quality)
    own = {".jpg": {"quality": quality, "subsampling": 0}, ".webp": {"lossless": True, "exact": True}}
    options |= own.get(suffix, {})
    file = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(page[..., 0] if page.shape[2] == 1 else page))
    image.save(file, {".jpg": "JPEG", ".webp": "WEBP", ".bmp": "BMP", ".ppm": "PPM"}[suffix], **options)
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
