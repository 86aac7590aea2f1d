"""Shared by the tests of image files: noise, blocks of colour, and the bytes of files that hold them."""

import io
import struct
import zlib

import numpy as np
import tifffile

from denoising.files import images

RNG = np.random.default_rng(5)
BLOCKS = np.kron(RNG.integers(0, 256, (4, 5, 3)), np.ones((8, 8, 1))).astype(np.uint8)  # 32 x 40


def noise(dtype, *shape):
    if np.dtype(dtype).kind == "f":
        return RNG.normal(size=shape).astype(dtype)
    return RNG.integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def saved(image, name, **options):
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


def tiff(array, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def retagged(data, code, value, page=0):
    """The bytes of a little-endian TIFF in which a page's tag holds another number."""
    with tifffile.TiffFile(io.BytesIO(data)) as tif:
        tag = tif.pages[page].aspage().tags[code]
    number = struct.pack("<I" if tag.dtype == 4 else "<H", value)
    return data[: tag.valueoffset] + number + data[tag.valueoffset + len(number) :]


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def read(data):
    return images.read_image("it.bin", data)
