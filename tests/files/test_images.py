"""Files of every kind, whole and broken: what is read is what was written, or one line says why."""

import contextlib
import importlib.util
import io
import itertools
import lzma
import os
import struct
import tracemalloc
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from denoising.cli import UserError
from denoising.files import dng, images, npy, png
from denoising.imaging.pixels import ORIENTATION

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


def read(data):
    return images.read_image("it.bin", data)


# --- What is written is what is read --------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("suffix", "dtypes"),
    [
        (".png", "uint8 uint16"), (".tif", "uint8 uint16 float32"),
        (".npy", "uint8 uint16 float32"),
        (".ppm", "uint8 uint16"), (".pgm", "uint8 uint16"), (".bmp", "uint8"),
    ],
)  # fmt: skip
def test_round_trip_keeps_type_channels_and_every_pixel(tmp_path, suffix, dtypes, channels):
    for dtype in dtypes.split():
        for height, width in ((21, 33), (1, 1), (1, 9), (9, 1)):
            pixels = noise(dtype, height, width, channels)
            path = tmp_path / f"a{suffix}"
            images.write_image(path, pixels)
            (page,) = images.read_image(path).pages
            assert page.dtype == pixels.dtype
            np.testing.assert_array_equal(page, pixels)
            assert images.image_size(path) == (height, width)
            assert os.listdir(tmp_path) == [path.name]


def test_webp_is_lossless_and_jpeg_nearly(tmp_path):
    images.write_image(tmp_path / "a.webp", BLOCKS)
    np.testing.assert_array_equal(images.read_image(tmp_path / "a.webp").pages[0], BLOCKS)
    images.write_image(tmp_path / "a.jpg", BLOCKS)
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.layer[0][1:3] == (1, 1)  # no chroma subsampling
    error = images.read_image(tmp_path / "a.jpg").pages[0].astype(int) - BLOCKS
    assert np.abs(error).max() < 16


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_alpha_is_kept_apart(tmp_path, suffix, dtype, channels):
    pixels, alpha = noise(dtype, 7, 9, channels), noise(dtype, 7, 9)
    images.write_image(tmp_path / f"a{suffix}", pixels, like=images.Picture([pixels], [alpha]))
    picture = images.read_image(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(picture.pages[0], pixels)
    np.testing.assert_array_equal(picture.alpha[0], alpha)


@pytest.mark.parametrize(("dtype", "white"), [("uint8", 255), ("uint16", 65535), ("float32", 1)])
def test_alpha_follows_the_pixels_to_another_depth(dtype, white):
    pixels = noise(dtype, 1, 3, 3)
    for alpha in (np.uint8([[0, 51, 255]]), np.uint16([[0, 13107, 65535]]), np.float32([[0, 0.2, 1]])):
        written = read(images.encode("a.tif", pixels, like=images.Picture([], [alpha])))
        np.testing.assert_array_equal(written.pages[0], pixels)
        np.testing.assert_allclose(written.alpha[0], [[0, white / 5, white]], rtol=1e-6)


@pytest.mark.parametrize("suffix", [".tif", ".npy"])
def test_stacks_and_many_channels(tmp_path, suffix):
    pages = [noise("float32", 8, 9, 5) for _ in range(3)]
    images.write_image(tmp_path / f"a{suffix}", pages)
    np.testing.assert_array_equal(images.read_image(tmp_path / f"a{suffix}").pages, pages)


@pytest.mark.parametrize(
    ("name", "pages", "able"),
    [
        ("a.png", np.zeros((4, 4, 3), np.float32), ".tif .npy"),
        ("a.jpg", np.zeros((4, 4, 3), np.uint16), ".png .ppm .tif .npy"),
        ("a.png", np.zeros((4, 4, 4), np.uint8), ".tif .npy"),
        ("a.png", [np.zeros((4, 4, 1), np.uint8)] * 2, ".tif .npy"),
        ("a.gif", np.zeros((4, 4, 3), np.uint8), ".png"),
        ("a", np.zeros((4, 4, 3), np.uint8), ".png"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_with_those_that_can(tmp_path, name, pages, able):
    with pytest.raises(UserError, match=f"{name}.*{able}"):
        images.write_image(tmp_path / name, pages)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(("name", "length"), [("a.png", 1_000_001), ("a.jpg", 65_536), ("a.webp", 16_384)])
def test_what_an_encoder_refuses_is_told(name, length):
    with pytest.raises(UserError, match=f"{name}: cannot be written as"):
        images.encode(name, np.zeros((length, 1, 3), np.uint8))


def test_a_stack_of_several_types():
    pages = [noise("uint16", 8, 9, 1), noise("float32", 5, 6, 3)]
    like = images.Picture(pages, format="TIFF")
    for page, again in zip(pages, read(images.encode("a.tif", pages, like=like)).pages, strict=True):
        assert again.dtype == page.dtype
        np.testing.assert_array_equal(again, page)


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    images.write_image(path, BLOCKS)
    before = path.read_bytes()

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(images.Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"a\.png: cannot be written: No space left"):
        images.write_image(path, BLOCKS // 2)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.png"]


# --- Files by others ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "kind", "options", "wanted"),
    [
        ("RGB", "PNG", {}, "RGB"), ("L", "PNG", {}, "L"), ("P", "PNG", {}, "RGB"),
        ("1", "PNG", {}, "L"),
        ("P", "GIF", {}, "RGB"), ("L", "JPEG", {}, "L"), ("RGB", "BMP", {}, "RGB"),
        ("L", "PPM", {}, "L"),
        ("RGB", "TIFF", {}, "RGB"), ("P", "TIFF", {}, "RGB"), ("1", "TIFF", {}, "L"),
        ("CMYK", "TIFF", {}, "RGB"), ("RGB", "TIFF", {"compression": "tiff_lzw"}, "RGB"),
        ("P", "TIFF", {"compression": "tiff_lzw"}, "RGB"),
        ("1", "TIFF", {"compression": "group4"}, "L"),
        ("L", "TIFF", {"compression": "packbits"}, "L"),
    ],
)  # fmt: skip
def test_pillow_sees_the_same_pixels(mode, kind, options, wanted):
    image = Image.fromarray(BLOCKS).convert(mode)
    data = saved(image, kind, **options)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert(wanted))
    (page,) = read(data).pages
    np.testing.assert_array_equal(page, expected.reshape(32, 40, -1))
    assert images.image_size("it.bin", data) == (32, 40)


def test_cmyk_jpeg_with_adobes_inversion_becomes_rgb():
    picture = read(saved(Image.fromarray(BLOCKS).convert("CMYK"), "JPEG", quality=100))
    assert np.abs(picture.pages[0].astype(int) - BLOCKS).mean() < 8
    assert not picture.plain


def test_transparent_palette_and_colour_key():
    palette = Image.fromarray(BLOCKS).convert("P")
    picture = read(saved(palette, "PNG", transparency=int(np.asarray(palette)[0, 0])))
    assert picture.alpha[0][0, 0] == 0
    assert picture.alpha[0].max() == 255
    keyed = read(saved(Image.fromarray(BLOCKS), "PNG", transparency=tuple(map(int, BLOCKS[0, 0]))))
    assert keyed.alpha[0][0, 0] == 0


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_shade_of_grey_is_kept_in_every_depth(depth):
    """Pillow makes white of 16-bit shades beyond 255, and looks for those of 2 and 4 bits among 8-bit ones."""
    shades = np.arange(8, dtype=np.uint16) % 4 * 21845 >> 16 - depth
    bits = "".join(f"{shade:0{depth}b}" for shade in shades)
    row = b"\0" + int(bits, 2).to_bytes(depth, "big")
    header, key = struct.pack(">IIBBBBB", 8, 2, depth, 0, 0, 0, 0), struct.pack(">H", shades[1])
    pieces = {b"IHDR": header, b"tRNS": key, b"IDAT": zlib.compress(row * 2), b"IEND": b""}
    picture = read(png.MAGIC + b"".join(chunk(kind, content) for kind, content in pieces.items()))
    white = 65535 if depth == 16 else 255
    assert picture.pages[0].dtype == picture.alpha[0].dtype == (np.uint16 if depth == 16 else np.uint8)
    np.testing.assert_array_equal(picture.pages[0][..., 0], [shades.astype(int) * white // ((1 << depth) - 1)] * 2)
    np.testing.assert_array_equal(picture.alpha[0], [np.where(shades == shades[1], 0, white)] * 2)


@pytest.mark.parametrize("white", [15, 255, 1000, 4095, 65535])
@pytest.mark.parametrize("kind", [5, 6])
def test_the_white_of_a_pnm_is_that_of_its_header(kind, white):
    values = np.array([[0, white // 3, white]]).repeat(3 if kind == 6 else 1, 0).T.ravel()
    data = f"P{kind}\n# 1 2 3\n3 1\n{white}\n".encode() + values.astype(">u2" if white > 255 else "u1").tobytes()
    page = read(data).pages[0]
    top = np.iinfo(page.dtype).max
    assert (top == 65535) == (white > 255)
    np.testing.assert_allclose(page.ravel() / top, values / white, atol=0.51 / top)


def test_16_bit_colour_png_stays_16_bit():
    pixels = noise("uint16", 9, 11, 3)
    data = cv2.imencode(".png", pixels)[1].tobytes()
    np.testing.assert_array_equal(read(data).pages[0], pixels[..., ::-1])


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_tiff_layouts(compression, byteorder, tile):
    pixels = noise("uint16", 21, 33, 3)
    options = {"photometric": "rgb", "compression": compression, "byteorder": byteorder, "tile": tile}
    np.testing.assert_array_equal(read(tiff(pixels, **options)).pages[0], pixels)
    planar = tiff(np.moveaxis(pixels, 2, 0), planarconfig="separate", **options)
    np.testing.assert_array_equal(read(planar).pages[0], pixels)


def test_tiff_lzw_of_16_bits_and_float():
    for pixels in (noise("uint16", 21, 33, 3), noise("float32", 21, 33, 1)):
        data = cv2.imencode(".tif", pixels, [cv2.IMWRITE_TIFF_COMPRESSION, 5])[1].tobytes()
        np.testing.assert_array_equal(read(data).pages[0], pixels[..., ::-1])


def test_tiff_of_a_compression_that_needs_a_package_says_so():
    data = saved(Image.fromarray(BLOCKS), "TIFF", compression="zstd")
    if importlib.util.find_spec("imagecodecs") or importlib.util.find_spec("compression"):
        np.testing.assert_array_equal(read(data).pages[0], BLOCKS)
    else:
        with pytest.raises(UserError, match="pip install imagecodecs"):
            read(data)


def test_a_raw_file_under_another_name_is_not_taken_for_its_preview():
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:  # as of a Nikon or a Sony
        writer.write(BLOCKS[:8, :9], photometric="rgb", subfiletype=1, subifds=1)
        writer.write(noise("uint16", 32, 40), photometric="cfa")
    mosaic = dng.encode(noise("float32", 32, 40), (0, 0), (2, 1, 1.5))
    # Of a Canon the preview is the first page, and is not said to be one.
    preview = [(256, 6), (257, 5), (258, 8), (259, 1), (262, 1), (273, 106), (279, 30)]
    page = struct.pack("<H", 7) + b"".join(struct.pack("<HHII", code, 4, 1, number) for code, number in preview)
    canon = b"II*\0" + struct.pack("<I4sI", 16, b"CR\2\0", 0) + page + bytes(4 + 30)
    assert read(canon.replace(b"CR", b"--")).pages[0].shape == (5, 6, 1)
    for data in (file.getvalue(), mosaic, canon):
        with pytest.raises(UserError, match="raw file"):
            read(data)
    # Smaller versions below a page make it no raw file.
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(BLOCKS, photometric="rgb", subifds=1)
        writer.write(BLOCKS[::2, ::2], photometric="rgb", subfiletype=1)
    np.testing.assert_array_equal(read(file.getvalue()).pages, [BLOCKS])


def retagged(data, code, value, page=0):
    """The bytes of a little-endian TIFF in which a page's tag holds another number."""
    with tifffile.TiffFile(io.BytesIO(data)) as tif:
        tag = tif.pages[page].aspage().tags[code]
    number = struct.pack("<I" if tag.dtype == 4 else "<H", value)
    return data[: tag.valueoffset] + number + data[tag.valueoffset + len(number) :]


@pytest.mark.parametrize("pixels", [noise("uint8", 8, 9), noise("uint16", 8, 9)])
def test_tiff_lzw_obeys_the_same_tags_as_others(pixels):
    """OpenCV, which unpacks it, inverts 8 bits and not 16, and turns pages by itself."""
    exif = Image.Exif()
    for orientation in range(1, 9):
        exif[ORIENTATION] = orientation
        raw, lzw = (
            retagged(saved(Image.fromarray(pixels), "TIFF", compression=kind, exif=exif), 262, 0)
            for kind in ("raw", "tiff_lzw")
        )
        np.testing.assert_array_equal(read(lzw).pages[0], read(raw).pages[0])


def test_tiff_lzw_colours_are_not_multiplied_by_alpha():
    pixels = noise("uint8", 8, 9, 4)
    data = saved(Image.fromarray(pixels), "TIFF", compression="tiff_lzw")
    for kind in (1, 2):
        picture = read(retagged(data, 338, kind))
        np.testing.assert_array_equal(np.dstack([picture.pages[0], picture.alpha[0]]), pixels)
        assert picture.tiff["alpha"] == kind


@pytest.mark.parametrize("compression", ["raw", "tiff_deflate", "tiff_adobe_deflate", "packbits", "tiff_lzw", "jpeg"])
def test_tiff_ycbcr_becomes_rgb(compression):
    options = {"quality": 100} if compression == "jpeg" else {}
    data = saved(Image.fromarray(BLOCKS).convert("YCbCr"), "TIFF", compression=compression, **options)
    (page,) = read(data).pages
    assert np.abs(page.astype(int) - BLOCKS).max() <= 4


def test_tiff_ycbcr_of_halved_colours_becomes_rgb_and_what_cannot_is_refused():
    ycbcr = np.asarray(Image.fromarray(BLOCKS).convert("YCbCr"))
    # Of two pixels, the brightness of each and the colours of one; then as much as is left of the strip.
    units = np.dstack([ycbcr[:, ::2, 0], ycbcr[:, 1::2, 0], ycbcr[:, ::2, 1:]])
    data = retagged(tiff(np.resize(units, ycbcr.shape), photometric="ycbcr"), 530, 2)
    assert np.abs(read(data).pages[0].astype(int) - BLOCKS).max() <= 4
    for refused in (ycbcr.astype(np.uint16), ycbcr.astype(np.float32)):
        with pytest.raises(UserError, match=r"^it\.bin: .*YCbCr of a layout that is not read: save it as RGB$"):
            read(tiff(refused, photometric="ycbcr"))


def test_tiff_white_is_zero():
    pixels = noise("uint8", 8, 9)
    np.testing.assert_array_equal(read(tiff(pixels, photometric="miniswhite")).pages[0][..., 0], 255 - pixels)


def test_tiff_alpha_is_not_inverted_with_white_is_zero():
    pixels = noise("uint8", 8, 9, 2)
    picture = read(tiff(pixels, photometric="miniswhite", planarconfig="contig", extrasamples=[2]))
    np.testing.assert_array_equal(picture.pages[0][..., 0], 255 - pixels[..., 0])
    np.testing.assert_array_equal(picture.alpha[0], pixels[..., 1])


@pytest.mark.parametrize(("dtype", "white"), [("uint16", 65535), ("float32", 1)])
@pytest.mark.parametrize("first", ["transparent", "opaque", "data"])
def test_a_tiff_page_without_alpha_beside_others_is_opaque(dtype, white, first):
    transparent, opaque = noise(dtype, 8, 9, 4), noise(dtype, 5, 6, 3)
    pages = {"transparent": (transparent, [1]), "opaque": (opaque, []), "data": (transparent[:7], [0])}
    pages = {first: pages[first], **pages}
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for page, extra in pages.values():
            writer.write(page, photometric="rgb", extrasamples=extra, metadata=None)
    picture = read(file.getvalue())
    again = read(images.encode("a.tif", picture.pages, like=picture))
    assert again.tiff["alpha"] == 1
    for found in (picture, again):
        for kind, page, alpha in zip(pages, found.pages, found.alpha, strict=True):
            np.testing.assert_array_equal(page, pages[kind][0][..., : 3 if kind == "transparent" else None])
            np.testing.assert_array_equal(alpha, transparent[..., 3] if kind == "transparent" else white)
            assert alpha.dtype == dtype


@pytest.mark.parametrize("options", [{"imagej": True}, {"ome": True}, {}, {"imagej": True, "truncate": False}])
def test_tiff_stacks_keep_description_and_pixel_size(tmp_path, options):
    stack = noise("uint16", 6, 20, 30)
    metadata = {"axes": "ZYX", "unit": "um", "spacing": 0.3}
    picture = read(tiff(stack, resolution=(3.5, 3.5), metadata=metadata, **options))
    np.testing.assert_array_equal(np.stack(picture.pages)[..., 0], stack)
    images.write_image(tmp_path / "out.tif", picture.pages, like=picture)
    again = images.read_image(tmp_path / "out.tif")
    assert again.tiff == picture.tiff
    with tifffile.TiffFile(tmp_path / "out.tif") as tif:
        assert tif.asarray().shape == stack.shape
        if options.get("imagej"):
            assert tif.imagej_metadata["unit"] == "um"
            assert tif.series[0].axes == "ZYX"
        if options.get("ome"):
            assert tif.is_ome


def test_a_stack_of_which_only_the_first_page_is_described_is_read_whole():
    stack = noise("uint16", 6, 20, 30)
    np.testing.assert_array_equal(np.stack(read(tiff(stack, truncate=True)).pages)[..., 0], stack)


def test_ome_xml_opens_no_other_file(tmp_path):
    other = tmp_path / "other.ome.tif"
    tifffile.imwrite(other, noise("uint16", 2, 20, 30), metadata={"axes": "ZYX"})
    elsewhere = f'<UUID FileName="{other.name}">urn:uuid:1</UUID></TiffData>'
    xml = tifffile.tiffcomment(other).replace('PlaneCount="2"/>', 'PlaneCount="2">' + elsewhere)
    assert elsewhere in xml
    path = tmp_path / "it.ome.tif"
    tifffile.imwrite(path, noise("uint16", 20, 30), description=xml, metadata=None)
    assert len(images.read_image(path).pages) == 1


# --- Metadata -------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotation_is_obeyed_and_its_tag_reset(tmp_path, orientation):
    exif = Image.Exif()
    exif[ORIENTATION], exif[271] = orientation, "Maker"
    exif.get_ifd(0x8769)[33434] = 0.5
    for kind in ("PNG", "JPEG", "WEBP", "TIFF"):
        data = saved(Image.fromarray(BLOCKS), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
        picture = read(data)
        expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        np.testing.assert_array_equal(picture.pages[0], np.asarray(expected))
        assert picture.plain == (orientation == 1 and kind != "TIFF")
        for suffix in (".png", ".jpg", ".webp"):
            images.write_image(tmp_path / f"a{suffix}", picture.pages, like=picture)
            with Image.open(tmp_path / f"a{suffix}") as written:
                tags = written.getexif()
                assert ORIENTATION not in tags
                assert tags[271] == "Maker"
                if kind != "TIFF":
                    assert float(tags.get_ifd(0x8769)[33434]) == 0.5


@pytest.mark.parametrize("target", [".png", ".jpg", ".webp", ".tif"])
def test_names_beyond_ascii_are_carried_over(target):
    """Cameras and software write them in UTF-8; every byte is kept."""
    exif = Image.Exif()
    exif[315], exif[33432], exif[ORIENTATION] = "José".encode(), "© Müller".encode(), 6
    exif.get_ifd(0x8769)[42036] = "Zeiß 50 mm"
    lens, owners = "Zeiß 50 mm".encode("latin-1"), ("José".encode(), "© Müller".encode())
    jpeg = saved(Image.fromarray(BLOCKS), "JPEG", exif=exif).replace(b"Zei? 50 mm", lens)
    assert lens in jpeg
    names = [(code, 2, len(name) + 1, name, True) for code, name in zip((315, 33432), owners, strict=True)]
    for data, wanted in ((jpeg, (*owners, lens)), (tiff(BLOCKS, photometric="rgb", extratags=names), owners)):
        picture = read(data)
        written = images.encode(f"a{target}", picture.pages, picture)
        assert all(name + b"\0" in written for name in wanted[: 2 if target == ".tif" else 3])


def test_each_page_of_a_tiff_is_turned_by_its_own_tag(tmp_path):
    lying, standing = noise("uint8", 10, 20), noise("uint8", 20, 10)
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for page, orientation in ((lying, 6), (standing, 1), (lying, 3)):
            tags = [(ORIENTATION, 3, 1, orientation, True)]
            writer.write(page, extratags=tags, resolution=(204, 98), resolutionunit=2, metadata=None)
    picture = read(file.getvalue())
    for page, wanted in zip(picture.pages, (np.rot90(lying, -1), standing, lying[::-1, ::-1]), strict=True):
        np.testing.assert_array_equal(page[..., 0], wanted)
    assert picture.dpi == (98, 204)
    images.write_image(tmp_path / "a.tif", picture.pages, like=picture)
    assert images.read_image(tmp_path / "a.tif").dpi == (98, 204)


@pytest.mark.parametrize("source", [".png", ".jpg", ".tif", ".webp"])
@pytest.mark.parametrize("target", [".png", ".jpg", ".tif", ".webp"])
def test_profile_and_resolution_are_carried_over(tmp_path, source, target):
    exif = Image.Exif()
    exif[33432] = "Somebody"
    like = images.Picture([BLOCKS], exif=exif.tobytes(), icc=b"\0" * 200, dpi=(300.0, 150.0))
    images.write_image(tmp_path / f"a{source}", BLOCKS, like=like)
    first = images.read_image(tmp_path / f"a{source}")
    images.write_image(tmp_path / f"b{target}", first.pages, like=first)
    second = images.read_image(tmp_path / f"b{target}")
    assert second.icc == b"\0" * 200
    assert Image.Exif().load(second.exif) is None
    assert b"Somebody" in second.exif
    if ".webp" not in (source, target):  # has no field for it
        assert second.dpi == pytest.approx((300, 150), abs=0.1)


def test_files_do_not_grow(tmp_path):
    images.write_image(tmp_path / "a.tif", BLOCKS, like=images.Picture([BLOCKS], format="PNG"))
    assert (tmp_path / "a.tif").stat().st_size < BLOCKS.nbytes / 2
    raw = tiff(noise("uint16", 64, 64))
    images.write_image(tmp_path / "b.tif", read(raw).pages, like=read(raw))
    assert (tmp_path / "b.tif").stat().st_size < len(raw) + 500


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


def test_nan_infinity_and_pickles():
    for bad in (np.nan, np.inf, -np.inf):
        pixels = np.zeros((4, 4, 1), np.float32)
        pixels[1, 2] = bad
        for name in ("a.npy", "a.tif"):
            with pytest.raises(UserError, match="NaN or infinite"):
                read(images.encode(name, pixels))
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


# --- Finding, range -------------------------------------------------------------------------------


def test_find_images(tmp_path):
    for name in ("b.PNG", "a.jpg", "sub/c.tif", ".hidden.png", ".cache/d.png", "notes.txt", "x[1].png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "sub" / "ring").symlink_to(tmp_path)

    def names(path):
        return [str(file.relative_to(tmp_path)) for file in images.find_images("--flag", path)]

    assert names(tmp_path) == ["a.jpg", "b.PNG", "sub/c.tif", "x[1].png"]
    assert names(tmp_path / "x[1].png") == ["x[1].png"]
    assert names(tmp_path / "*.jpg") == ["a.jpg"]
    assert names(str(tmp_path) + "/**/*.tif") == ["sub/c.tif"]
    (tmp_path / "none").mkdir()
    for path in ("none", "absent", "*.bmp"):
        with pytest.raises(UserError, match=r"^--flag: "):
            images.find_images("--flag", tmp_path / path)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_range_there_and_back_is_identity(dtype):
    every = np.arange(np.iinfo(dtype).max + 1, dtype=dtype).reshape(1, -1, 1)
    unit = images.to_01(every)
    assert unit.dtype == np.float32
    assert unit.min() == 0
    assert unit.max() == 1
    np.testing.assert_array_equal(images.from_01(unit, dtype), every)


def test_rounding_half_up_clipping_and_hdr():
    values = np.array([-1, 0.5 / 255, 1.5 / 255, 2], np.float32)
    np.testing.assert_array_equal(images.from_01(values, np.uint8), [0, 1, 2, 255])
    np.testing.assert_array_equal(images.from_01(values, np.float32), values)
    np.testing.assert_array_equal(images.to_01(values), values)
    assert images.to_grey(np.full((2, 2, 3), 200, np.uint8)).tolist() == [[[200], [200]], [[200], [200]]]


# --- Checksums --------------------------------------------------------------------------------------------------


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


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


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_has_the_bytes_that_pillow_writes(channels):
    pixels = BLOCKS[..., :channels]
    expected = saved(Image.fromarray(pixels.squeeze()), "JPEG", quality=93, subsampling=0)
    assert images.encode("a.jpg", pixels, quality=93) == expected


# --- NPY --------------------------------------------------------------------------------------------------------


def npy_file(array, version=None):
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version)
    return file.getvalue()


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_npy_is_read_in_both_orders_of_its_axes(version):
    array = np.arange(24.0).reshape(2, 3, 4)
    for written in (array, np.asfortranarray(array)):
        data = npy_file(written, version)
        found = npy.read(io.BytesIO(data), len(data))
        np.testing.assert_array_equal(found, array)
        shape, fortran, dtype = npy.header(io.BytesIO(data))
        assert (shape, fortran, dtype) == ((2, 3, 4), written is not array, np.float64)


@pytest.mark.parametrize("shape", [(8, 9), (8, 9, 1), (8, 9, 3), (1, 8, 9, 3), (1, 8, 9, 1), (2, 8, 9, 1)])
def test_npy_keeps_its_axes(shape):
    array = noise("uint16", *shape)
    picture = read(npy_file(array))
    data = images.encode("a.npy", picture.pages, like=picture)
    np.testing.assert_array_equal(npy.read(io.BytesIO(data), len(data)), array, strict=True)


def test_npy_that_is_no_array_of_numbers_is_refused():
    good = npy_file(np.arange(12.0).reshape(3, 4))
    objects = io.BytesIO()
    np.save(objects, np.array([{}]), allow_pickle=True)
    for data, words in {
        good[:-1]: "does not fit", good + b"\0": "does not fit", good.replace(b"(3, 4), ", b"(-3,-4),"):
        "unknown dimension",
        objects.getvalue(): "objects",
        npy_file(np.zeros(3), (3, 0)): "version",
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=words):
            npy.read(io.BytesIO(data), len(data))


# --- Globs ------------------------------------------------------------------------------------------------------


def test_a_glob_over_rings_of_links_ends(tmp_path):
    for name in ("a", "b", "c/d"):
        (tmp_path / name).mkdir(parents=True)
        images.write_image(tmp_path / name / "x.png", BLOCKS)
        for other in range(6):  # each link doubles the ways round
            (tmp_path / name / f"ring{other}").symlink_to(tmp_path)
    images.write_image(tmp_path / "y.jpg", BLOCKS)
    (tmp_path / ".hidden").mkdir()
    images.write_image(tmp_path / ".hidden" / "x.png", BLOCKS)

    def names(pattern):
        return [path.relative_to(tmp_path).as_posix() for path in images.find_images("--data_dir", tmp_path / pattern)]

    assert names("**") == ["a/x.png", "b/x.png", "c/d/x.png", "y.jpg"]
    assert names("**/*.png") == ["a/x.png", "b/x.png", "c/d/x.png"]
    assert names("**/**/x.*") == ["a/x.png", "b/x.png", "c/d/x.png"]
    through_rings = names("c/**")
    assert "c/d/x.png" in through_rings
    assert len({os.path.realpath(tmp_path / name) for name in through_rings}) == len(through_rings)
    assert names("[ab]/**/*") == ["a/x.png", "b/x.png"]
    assert names("**/d/**") == ["c/d/x.png"]
    assert names("*/x.png") == ["a/x.png", "b/x.png"]
    with pytest.raises(UserError, match="--data_dir: no image in"):
        images.find_images("--data_dir", tmp_path / "**" / "*.bmp")


def test_photographs_that_are_not_read_are_told(tmp_path, capsys):
    (tmp_path / "a.heic").touch()
    with pytest.raises(UserError, match=r"--image_path: .* holds .*\(\.heic: 1\); save them as PNG"):
        images.find_images("--image_path", tmp_path)
    for name in ("b.HEIC", "c.avif", "d.png", "notes.txt"):
        (tmp_path / name).touch()
    for _ in range(2):  # as a training does, which first measures the noise
        assert images.find_images("--image_path", tmp_path) == [tmp_path / "d.png"]
    told = capsys.readouterr().err
    assert told.count("also holds photographs of a kind that is not read (.avif .heic: 3); save") == 1
