"""PNG as OpenCV cannot write or check it: with metadata, with grey and alpha, and with its checksums verified."""

import struct
import zlib

import cv2
import numpy as np

from denoising.imaging.pixels import swap_bgr

MAGIC = b"\x89PNG\r\n\x1a\n"
LIGHT = {b"cICP": 4, b"gAMA": 4, b"cHRM": 32, b"sRGB": 1}  # chunks that say which light a number is, and their bytes


def verify(data):
    """Checks the sum of every chunk, which Pillow leaves out for those that hold the pixels.

    Raises:
        ValueError: the content of a chunk is not what was written.
    """
    view = memoryview(data)
    for kind, place, end in _chunks(view):
        if end + 4 <= len(data) and zlib.crc32(view[place + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise ValueError(f"the checksum of its part {kind!r} is wrong")


def light(data):
    """The chunks of a file, as they are, that say which light its numbers stand for: gamma, primaries, transfer."""
    found = {}
    for kind, place, end in _chunks(memoryview(data)):
        if kind == b"IDAT":
            break
        if end - place - 8 == LIGHT.get(kind):
            found[kind] = data[place : end + 4]
    return b"".join(found.values())


def _chunks(view):
    """Yields the kind of each chunk, where it starts, and where its content ends; behind that is its checksum."""
    place = len(MAGIC)
    while place + 12 <= len(view):  # a chunk: length, kind, content, checksum
        end = place + 8 + int.from_bytes(view[place : place + 4], "big")
        kind = bytes(view[place + 4 : place + 8])
        yield kind, place, end
        if kind == b"IEND":
            return
        place = end + 4


def encode(page, like):
    """A picture of uint8 or uint16 as PNG, with the metadata of the picture that it was made from.

    OpenCV's encoder is three times as fast as Pillow's, and writes 16-bit colour; it writes no metadata.
    """
    if page.shape[2] == 2:
        data = _encode_grey_alpha(page)
    else:
        ok, array = cv2.imencode(".png", swap_bgr(np.ascontiguousarray(page)))
        if not ok:
            raise ValueError("the encoder gives up")
        data = array.tobytes()
    chunks = like.png
    if like.icc:
        chunks += _chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(like.icc))
    if like.dpi:
        chunks += _chunk(b"pHYs", struct.pack(">IIB", *(round(value / 0.0254) for value in like.dpi), 1))
    if like.exif:
        chunks += _chunk(b"eXIf", like.exif.removeprefix(b"Exif\0\0"))
    end_of_header = len(MAGIC) + 25
    return data[:end_of_header] + chunks + data[end_of_header:]


def _chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _encode_grey_alpha(page):
    """Grey with alpha, which OpenCV lacks: each row as its difference to the row above."""
    height, width, _ = page.shape
    rows = page.astype(page.dtype.newbyteorder(">")).reshape(height, -1).view(np.uint8)
    above = np.concatenate((np.zeros_like(rows[:1]), rows[:-1]))
    filtered = np.concatenate((np.full((height, 1), 2, np.uint8), rows - above), axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8 * page.itemsize, 4, 0, 0, 0)
    data = _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(filtered.tobytes(), 4))
    return MAGIC + data + _chunk(b"IEND", b"")
