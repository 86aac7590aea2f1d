"""TIFF: pages of any size, planes, odd colours; and what other software stores beside the pixels.

tifffile decodes; what it leaves to a package that is seldom there, OpenCV does.
"""

import contextlib
import importlib.util
import io
import logging
import struct
import zlib

import cv2
import numpy as np
import tifffile
from PIL import Image

from denoising.cli import UserError
from denoising.imaging.pixels import ORIENTATION, Picture, check_size, from_01, known_dtype, swap_bgr, turned

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
TEXT = (271, 272, 305, 306, 315, 33432)  # Make, Model, Software, DateTime, Artist, Copyright
DNG_VERSION = 50706  # the tag of a camera's raw file
CANON = b"\x10\0\0\0CR\2\0"  # how a CR2 goes on behind the four bytes of every TIFF
EXTRA_SAMPLES = 338  # the tag that says what channels beyond the colours are
# What ImageJ and map software store beside the pixels: labels, look-up tables, place on the globe.
EXTRA = (50838, 50839, 33550, 33922, 34264, 34735, 34736, 34737, 42112, 42113)

# A hostile file is answered with one line of ours; the decoder's own remarks would come on top.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)


# --- Unpacking ------------------------------------------------------------------------------------


def _bounded(start):
    """A decoder for tifffile that unpacks no more than a strip or tile may hold, however much its bytes stand for."""

    def unpack(data, /, *, out):
        stream = start()
        unpacked = stream.decompress(data, out + 1)  # one more, so that the checksum behind the last byte is reached
        if not stream.eof and len(unpacked) <= out:
            raise ValueError("a strip or tile ends too soon")
        return unpacked[:out]

    return unpack


def _unpack_bits(data, /, *, out):
    """PackBits: a byte below 128 and one more than so many to copy, or one beyond and a byte to repeat."""
    unpacked, place = bytearray(), 0
    while place < len(data) and len(unpacked) < out:
        head, place = data[place], place + 1
        if head < 128:
            unpacked += data[place : place + head + 1]
            place += head + 1
        elif head > 128:
            unpacked += data[place : place + 1] * (257 - head)
            place += 1
    return bytes(unpacked[:out])


def _decoders():
    """By the number of the compression, all that tifffile unpacks without a large package that is seldom there."""
    inflate = _bounded(zlib.decompressobj)
    found = {8: inflate, 32946: inflate, 50013: inflate, 32773: _unpack_bits}
    for module, name, kinds in (
        ("lzma", "LZMADecompressor", (34925,)),
        ("compression.zstd", "ZstdDecompressor", (34926, 50000)),  # since Python 3.14
    ):
        with contextlib.suppress(ImportError):
            found |= dict.fromkeys(kinds, _bounded(getattr(importlib.import_module(module), name)))
    return found


# tifffile tells a decoder as `out` how much it needs. Those of the package stop there, its own trust a bomb to the end.
if importlib.util.find_spec("imagecodecs") is None:
    tifffile.TIFF.DECOMPRESSORS._codecs.update(_decoders())  # type: ignore[attr-defined]


# --- Reading --------------------------------------------------------------------------------------


def size(file):
    """Returns (height, width) of an open file's first page."""
    with tifffile.TiffFile(file, is_ome=False) as tif:
        return tif.pages.first.shaped[2:4]


def decode(data, path):
    """Returns all pages as a Picture; thumbnails and overviews are left out."""
    _follow_chain(data)
    # Not as OME: its XML may name other files, which tifffile would open. The XML itself is kept.
    with tifffile.TiffFile(io.BytesIO(data), is_ome=False) as tif:
        first = tif.pages.first
        # A preview with the sensor's values in a page below or behind it, or a mosaic that wants to be developed.
        if DNG_VERSION in first.tags or (first.is_reduced and first.subifds) or data[4:12] == CANON:
            raise UserError(f"{path}: is a camera's raw file: predict.py takes it by its name (.dng, .nef ...)")
        # A frame of a stack is a full page.
        every = [page.aspage() for page in tif.pages]
        chosen = [page for page in every if page is first or not page.is_reduced]
        # ImageJ describes only the first page of a large stack; the others just follow it.
        only_first = len(tif.pages) == 1 and len(tif.series) == 1 and tif.series[0].size > first.size
        if only_first:
            chosen *= tif.series[0].size // first.size
        _check_sizes(path, data, chosen)
        if only_first:
            blocks, by_opencv = tif.series[0].asarray().reshape(-1, *first.shaped), False
        else:
            blocks, by_opencv = _decode_pages(data, every, chosen, path)
        pages, alphas, descriptions = [], [], []
        for page, block in zip(chosen, blocks, strict=True):
            # (planes, depth, height, width, samples): a volume in one page is several images.
            for plane in np.moveaxis(block, 0, -2).reshape(*block.shape[1:4], -1):
                colour, alpha = _colours(page, turned(plane, _tag(page, ORIENTATION)), by_opencv, path)
                pages.append(known_dtype(colour, path))
                alphas.append(alpha if alpha is None else known_dtype(alpha, path))
                descriptions.append(page.description)
        if any(alpha is not None for alpha in alphas):
            alphas = [_opaque(page) if alpha is None else alpha for page, alpha in zip(pages, alphas, strict=True)]
        else:
            alphas = None
        return Picture(pages=pages, alpha=alphas, format="TIFF", **_metadata(chosen, descriptions))


def _check_sizes(path, data, pages):
    """Refuses pages, or tiles of which only a corner belongs to a page, that would fill the memory."""
    itemsize = max(page.dtype.itemsize if page.dtype else 1 for page in pages)
    check_size(path, data, [page.shaped for page in pages], itemsize)
    for page in pages:
        check_size(path, data, [page.chunks], itemsize)


def _follow_chain(data):
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
    if offset:
        raise ValueError("its pages run in a circle")  # which tifffile would follow for ever


def _decode_pages(data, every, chosen, path):
    """Decodes to blocks of (planes, depth, height, width, samples); says whether OpenCV did it."""
    ycbcr = any(map(_left_in_ycbcr, chosen))
    try:
        if not ycbcr:
            return [page.asarray().reshape(page.shaped) for page in chosen], False
    except NotImplementedError as error:
        if "imagecodecs" not in str(error):
            raise
        raise UserError(f"{path}: samples of {chosen[0].bitspersample} bits need `pip install imagecodecs`") from None
    except (ValueError, ImportError) as error:
        if isinstance(error, ValueError) and "imagecodecs" not in str(error):
            raise
    # LZW, JPEG, fax and zstd need a large package that is seldom there; OpenCV reads the usual layouts, of every page.
    _check_sizes(path, data, every)
    ok, arrays = cv2.imdecodemulti(np.frombuffer(_as_it_lies(data, chosen), np.uint8), cv2.IMREAD_UNCHANGED)
    wanted = {page.index for page in chosen}
    arrays = [swap_bgr(array) for index, array in enumerate(arrays) if index in wanted]
    if not ok or len(arrays) != len(chosen) or not all(map(_same_layout, chosen, arrays)):
        if ycbcr:
            raise UserError(f"{path}: broken, or YCbCr of a layout that is not read: save it as RGB")
        name = getattr(chosen[0].compression, "name", chosen[0].compression)
        raise UserError(f"{path}: {name} compression of this layout needs `pip install imagecodecs`")
    return [array[None, None] for array in arrays], True


def _left_in_ycbcr(page):
    """Whether tifffile would hand out brightness and differences of colours; of JPEG it makes RGB, as OpenCV of all."""
    return page.photometric == 6 and page.compression not in (6, 7)


def _as_it_lies(data, pages):
    """The file without what OpenCV obeys by itself: it turns pages, and multiplies colours by alpha of kind 2."""
    data = bytearray(data)
    for page in pages:
        for tag in (page.tags[code] for code in (ORIENTATION, EXTRA_SAMPLES) if code in page.tags):
            data[tag.valueoffset : tag.valueoffset + 2] = struct.pack(page.parent.byteorder + "H", 1)
    return data


def _same_layout(page, array):
    """Whether OpenCV has kept the samples as they are, or turned a palette into colours."""
    channels = 3 if page.photometric == 3 else page.samplesperpixel
    return (
        array.shape == (page.imagelength, page.imagewidth, channels)
        and array.dtype.itemsize == max(1, page.bitspersample // 8)
        and (page.photometric in (0, 1, 2, 3) or (page.photometric == 6 and page.bitspersample == 8))
    )


def _colours(page, plane, by_opencv, path):
    """Returns grey, RGB or N channels, and alpha or None."""
    photometric, alpha, bits = page.photometric, None, page.bitspersample
    # Of 4 bits white is 15, which OpenCV would know.
    if plane.dtype == np.uint8 and bits in range(2, 8) and photometric != 3 and not by_opencv:
        plane = from_01(plane / np.float32((1 << bits) - 1), np.uint8)
    if _alpha_kind(page) and plane.shape[-1] == page.samplesperpixel > 1:
        plane, alpha = plane[..., :-1], plane[..., -1]
    if photometric == 0 and not (by_opencv and plane.dtype == np.uint8):  # white is zero; OpenCV inverts 8 bits
        if plane.dtype == np.uint16 and bits < 16:  # of 12 bits black is 4095
            plane = np.uint16((1 << bits) - 1) - plane
        else:
            plane = ~plane if plane.dtype.kind in "bu" else plane.max() - plane
    elif photometric == 3 and not by_opencv:
        plane = (page.colormap.T[plane[..., 0]] >> 8).astype(np.uint8)
    elif photometric == 5 and plane.dtype == np.uint8 and plane.shape[-1] == 4:
        plane = np.asarray(Image.fromarray(np.ascontiguousarray(plane), "CMYK").convert("RGB"))
    elif photometric not in (0, 1, 2, 3, 6, 32803, 34892) or (_left_in_ycbcr(page) and not by_opencv):
        raise UserError(f"{path}: colours of kind {getattr(photometric, 'name', photometric)} are not read")
    return plane, alpha


def _alpha_kind(page):
    """1 if the last channel is transparency by which colours are multiplied, 2 if they are not, 0 if it is data."""
    return int(page.extrasamples[-1]) if page.extrasamples and page.extrasamples[-1] in (1, 2) else 0


def _opaque(page):
    return from_01(np.ones(page.shape[:2], np.float32), page.dtype)


def _tag(page, code, default=None):
    tag = page.tags.get(code)
    return default if tag is None else tag.value


def texts(data):
    """Who made the first page of a file and with what, as EXIF; of what is no TIFF, nothing."""
    if data[:4] not in MAGIC:
        return b""
    with tifffile.TiffFile(io.BytesIO(data), is_ome=False) as tif:
        return _texts(tif.pages.first).tobytes()


def _texts(page):
    exif = Image.Exif()
    for code in TEXT:
        value = _tag(page, code)
        if isinstance(value, str) and value.strip():
            exif[code] = value.encode()  # Pillow would write a question mark for all beyond ASCII
    return exif


def _metadata(pages, descriptions):
    first = pages[0]
    exif = _texts(first)
    unit = int(_tag(first, 296, 2))
    ratios = [value for value in (_tag(first, 282), _tag(first, 283)) if isinstance(value, tuple) and value[1]]
    resolution = tuple(value[0] / value[1] for value in ratios)
    resolution = resolution if len(resolution) == 2 and all(0 < value < 1e9 for value in resolution) else None
    if resolution and _tag(first, ORIENTATION) in range(5, 9):
        resolution = resolution[::-1]  # lies on its side
    inches = {2: 1.0, 3: 2.54}.get(unit)
    extra = [first.tags[code] for code in EXTRA if code in first.tags]
    icc = _tag(first, 34675)
    return {
        "exif": exif.tobytes() if len(exif) else b"",
        "icc": icc if isinstance(icc, bytes) and first.photometric not in (3, 5) else b"",
        "dpi": tuple(value * inches for value in resolution) if resolution and inches else None,
        "tiff": {
            "descriptions": descriptions,
            "resolution": resolution,
            "resolutionunit": unit if unit in (1, 2, 3) else 1,
            "extratags": [(tag.code, int(tag.dtype), tag.count, tag.value, True) for tag in extra],
            "compressed": first.compression != 1,
            "alpha": next(filter(None, map(_alpha_kind, pages)), 2),
        },
    }


# --- Writing --------------------------------------------------------------------------------------


def encode(pages, like):
    """Returns the bytes of a file with the metadata of `like`; if that has transparency, it is the last channel."""
    kept = like.tiff or {"compressed": like.format not in ("NPY", "")}
    extratags = list(kept.get("extratags", []))
    if like.exif:
        exif = Image.Exif()
        exif.load(like.exif)
        texts = [(code, str(exif[code]).encode("latin-1") + b"\0") for code in TEXT if code in exif]
        extratags += [(code, 2, len(text), text, True) for code, text in texts]
    options = {"metadata": None, "software": False, "iccprofile": like.icc or None, "extratags": extratags}
    if kept.get("resolution"):
        options |= {"resolution": kept["resolution"], "resolutionunit": kept["resolutionunit"]}
    elif like.dpi:
        options |= {"resolution": like.dpi, "resolutionunit": 2}
    compressed = bool(kept.get("compressed"))
    descriptions = kept.get("descriptions") or [""]
    if len(descriptions) != len(pages):
        descriptions = [descriptions[0]] + [""] * (len(pages) - 1)
    alpha = [kept.get("alpha", 2)] if like.alpha else []
    file = io.BytesIO()
    total = sum(page.nbytes for page in pages)
    with tifffile.TiffWriter(file, bigtiff=total > (4 << 30) - (64 << 20)) as writer:
        for page, text in zip(pages, descriptions, strict=True):
            several = page.shape[2] > 1
            channels = page.shape[2] - len(alpha)
            writer.write(
                page if several else page[..., 0],
                photometric="rgb" if channels == 3 else "minisblack",
                planarconfig="contig" if several else None,
                extrasamples=[0] * (channels - (3 if channels == 3 else 1)) + alpha,
                description=text.encode() if text else None,
                compression="zlib" if compressed else None,
                predictor=compressed and page.dtype.kind == "u",
                contiguous=False,
                **options,
            )
    return file.getvalue()
