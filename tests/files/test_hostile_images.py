"""Image files cut short, damaged, or made to do harm: one line says why each is refused."""

import contextlib
import io
import itertools
import lzma
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image
from samples import BLOCKS, chunk, noise, read, retagged, saved, tiff

from denoising.cli import UserError
from denoising.files import images, png

# --- Hostile files --------------------------------------------------------------------------------


def every_kind():
    image = Image.fromarray(BLOCKS)
    yield from (saved(image, kind) for kind in ("PNG", "JPEG", "BMP", "WEBP", "GIF", "PPM"))
    yield saved(image.convert("P"), "PNG")
    yield saved(image.convert("CMYK"), "JPEG")
    yield saved(image, "TIFF", compression="tiff_lzw")
    yield tiff(noise("uint16", 5, 20, 30), imagej=True)
    yield tiff(BLOCKS, compression="zlib", predictor=True)
    yield images.encode("a.png", BLOCKS.astype(np.uint16) * 257)
    yield images.encode("a.ppm", BLOCKS.astype(np.uint16) * 257)
    yield images.encode("a.npy", BLOCKS.astype(np.float32))


@pytest.mark.parametrize("data", every_kind(), ids=itertools.count())
def test_a_file_cut_short_is_refused_and_a_damaged_one_never_crashes(data):
    for length in (9, len(data) // 3, len(data) - 64):
        with pytest.raises(UserError, match=r"^it\.bin: "):
            read(data[:length])
    rng = np.random.default_rng(1)
    for _ in range(40):
        damaged = bytearray(data)
        for place in rng.integers(8, min(len(data), 300), 3):
            damaged[place] = rng.integers(256)
        for function in (images.read_image, images.image_size):
            with contextlib.suppress(UserError):
                function("it.bin", bytes(damaged))


def test_no_image_at_all(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").touch()
    for name in ("text.png", "empty.png", "absent.png", "."):
        with pytest.raises(UserError, match=str(tmp_path / name).removesuffix("/.")):
            images.read_image(tmp_path / name)


def test_animations_are_refused():
    frames = [Image.fromarray(BLOCKS), Image.fromarray(255 - BLOCKS)]
    for kind in ("GIF", "PNG", "WEBP"):
        with pytest.raises(UserError, match="animation of 2 frames"):
            read(saved(frames[0], kind, save_all=True, append_images=frames[1:]))


def test_decompression_bombs_are_refused_before_they_go_off():
    picture = bytearray(saved(Image.new("L", (8, 8)), "PNG"))
    picture[16:24] = struct.pack(">II", 60000, 60000)
    picture[29:33] = struct.pack(">I", zlib.crc32(picture[12:29]))
    array = images.encode("a.npy", BLOCKS).replace(b"(32, 40, 3)", b"(99999, 99999, 3)")
    bomb = tiff(np.zeros((64, 1), np.uint8))
    with tifffile.TiffFile(io.BytesIO(bomb)) as tif:
        offsets = [tif.pages[0].tags[name].valueoffset for name in ("ImageWidth", "ImageLength")]
    bomb = bytearray(bomb)
    for offset in offsets:
        bomb[offset : offset + 4] = struct.pack("<I", 60000)
    for data in (picture, array, bomb):
        with pytest.raises(UserError, match=r"refused|does not fit|broken"):
            read(bytes(data))


def pack_bits(data):
    """Each byte as a literal, but zeros at the end, of which it takes a multiple of 128, repeated."""
    start = data.rstrip(b"\0")
    return b"".join(b"\0%c" % byte for byte in start) + b"\x81\0" * ((len(data) - len(start)) // 128)


def one_strip(compression, packed, height, width):
    """A TIFF of 8-bit grey whose only strip holds these bytes."""
    data = tiff(np.frombuffer(packed, np.uint8)[:, None])
    for code, value in ((259, compression), (256, width), (257, height), (278, height)):
        data = retagged(data, code, value)
    return data


def pack_xz(data):
    return lzma.compress(data, preset=0)  # with a small dictionary


@pytest.mark.parametrize(
    ("compression", "pack"),
    [(8, zlib.compress), (32946, zlib.compress), (34925, pack_xz), (32773, pack_bits)],
)
def test_a_tiff_strip_is_unpacked_only_as_far_as_its_page_reaches(compression, pack):
    pixels = noise("uint8", 10, 12) | np.uint8(1)
    bomb = one_strip(compression, pack(pixels.tobytes() + bytes(1 << 24)), 10, 12)
    assert len(bomb) < 1 << 19
    tracemalloc.start()
    (page,) = read(bomb).pages
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(page[..., 0], pixels)
    assert peak < 1 << 22
    np.testing.assert_array_equal(read(one_strip(compression, pack(pixels.tobytes()), 10, 12)).pages[0], page)
    with pytest.raises(UserError, match=r"^it\.bin: broken or cut short"):
        read(one_strip(compression, pack(pixels.tobytes())[:-1], 10, 12))


def test_a_tiff_that_is_small_but_for_its_tile_or_a_thumbnail_is_refused():
    tile = tiff(np.zeros((64, 64), np.uint8), tile=(16, 16), compression="zlib")
    small = Image.fromarray(BLOCKS)
    options = {"save_all": True, "append_images": [small], "compression": "tiff_lzw", "tiffinfo": {254: 1}}
    thumbnail = saved(small, "TIFF", **options)
    assert len(read(thumbnail).pages) == 1
    for data, codes, page in ((tile, (322, 323), 0), (thumbnail, (256, 257), 1)):
        for code in codes:
            data = retagged(data, code, 65520, page)
        with pytest.raises(UserError, match=r"^it\.bin: would unpack to 4293 megapixels"):
            read(data)


def test_nan_infinity_frames_and_pickles():
    for bad in (np.nan, np.inf, -np.inf):
        pixels = np.zeros((4, 4, 1), np.float32)
        pixels[1, 2] = bad
        for name in ("a.npy", "a.tif"):
            with pytest.raises(UserError, match=r"NaN or infinite pixels \(1 of 16\): .* numpy\.where"):
                read(images.encode(name, pixels))
    frames = io.BytesIO()
    np.save(frames, np.zeros((5, 40, 50), np.uint8))
    with pytest.raises(UserError, match=r"shape \(5, 40, 50\) .*; array\[\.\.\., None\] makes grey frames one"):
        read(frames.getvalue())
    file = io.BytesIO()
    np.save(file, np.array([{}], object), allow_pickle=True)
    with pytest.raises(UserError, match="pickled"):
        read(file.getvalue())


@pytest.mark.parametrize(
    ("array", "wanted"),
    [
        (np.ones((4, 5), bool), np.full((4, 5, 1), 255, np.uint8)),
        (np.full((4, 5), 7, np.int16), np.full((4, 5, 1), 7, np.uint16)),
        (np.full((4, 5), 0.25, np.float64), np.full((4, 5, 1), 0.25, np.float32)),
        (np.full((4, 5), 0.25, ">f2"), np.full((4, 5, 1), 0.25, np.float32)),
        (np.full((4, 5), 258, ">u2"), np.full((4, 5, 1), 258, np.uint16)),
    ],
)
def test_other_types_are_converted(array, wanted):
    file = io.BytesIO()
    np.save(file, array)
    (page,) = read(file.getvalue()).pages
    assert page.dtype == wanted.dtype
    np.testing.assert_array_equal(page, wanted)


@pytest.mark.parametrize(
    "array", [np.zeros((4, 5), np.int32), np.full((4, 5), -1, np.int16), np.zeros((4, 5), complex),
              np.zeros((3, 40, 50), np.uint8), np.zeros(7, np.uint8), np.zeros((0, 4), np.uint8)],
)  # fmt: skip
def test_what_has_no_meaning_is_refused(array):
    file = io.BytesIO()
    np.save(file, array)
    with pytest.raises(UserError, match=r"it\.bin: "):
        read(file.getvalue())


# --- Checksums ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_png_with_a_wrong_checksum_is_refused(dtype):
    """Unpacked pixels, so that any other byte makes another picture, which nothing but the sums can tell."""
    rows = np.zeros((32, 1 + 3 * 40 * np.dtype(dtype).itemsize), np.uint8)
    header = struct.pack(">IIBBBBB", 40, 32, 8 * np.dtype(dtype).itemsize, 2, 0, 0, 0)
    packed = zlib.compress(rows.tobytes(), 0)
    pieces = [png.MAGIC, chunk(b"IHDR", header), chunk(b"IDAT", packed), chunk(b"IEND", b"")]
    assert read(b"".join(pieces)).pages[0].shape == (32, 40, 3)
    damaged = bytearray(b"".join(pieces))
    damaged[200] ^= 1
    with pytest.raises(UserError, match=r"it\.bin: broken or cut short: the checksum of its part b'IDAT' is wrong"):
        read(bytes(damaged))
    # What follows the end belongs to nobody.
    assert read(b"".join([*pieces, b"\0\0\0\1text"])).pages[0].shape == (32, 40, 3)


def test_the_size_is_asked_for_before_anything_is_decoded():
    class Unwanted(UserError):
        pass

    def refuse(height, width):
        raise Unwanted(f"{height} x {width}")

    for name in ("a.png", "a.jpg", "a.npy", "a.tif"):
        data = images.encode(name, BLOCKS)
        with pytest.raises(Unwanted, match="32 x 40"):
            images.read_image(name, data[: len(data) - 40] if name in ("a.png", "a.jpg") else data, refuse)
        sizes = []
        images.read_image(name, data, lambda *size: sizes.append(size))  # noqa: B023 - called at once
        assert sizes == [(32, 40)]
