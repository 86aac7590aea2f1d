"""Image files that others wrote, in all their layouts: they are read as their makers meant them."""

import importlib.util
import io
import struct
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image
from samples import BLOCKS, chunk, noise, read, retagged, saved, tiff

from denoising.cli import UserError
from denoising.files import dng, images, png
from denoising.imaging.pixels import ORIENTATION


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


def few_bits(bits, photometric=1):
    """A TIFF with every value that so many bits hold, in one row."""
    values = np.arange(1 << bits, dtype=">u2")
    row = np.packbits(np.unpackbits(values.view(np.uint8).reshape(-1, 2), axis=1)[:, 16 - bits :])
    data = tiff(np.zeros((1, len(values)), np.uint8), metadata=None)
    data = retagged(retagged(retagged(data, 258, bits), 262, photometric), 279, len(row))
    with tifffile.TiffFile(io.BytesIO(data)) as tif:
        (place,) = tif.pages.first.dataoffsets
    return data[:place] + row.tobytes()


def unpack(data, dtype, width, runlen):
    """What imagecodecs does."""
    values = np.unpackbits(np.frombuffer(data, np.uint8)).reshape(-1, width) @ (1 << np.arange(width)[::-1])
    return values.astype(dtype)


@pytest.mark.parametrize("bits", [2, 4])
def test_tiff_of_few_bits_has_its_own_white(bits, monkeypatch):
    """The package unpacks them to whole numbers: 15 is white, which of 8 bits would be nearly black."""
    if importlib.util.find_spec("imagecodecs") is None:
        with pytest.raises(UserError, match=rf"^it\.bin: samples of {bits} bits need `pip install imagecodecs`$"):
            read(few_bits(bits))
        monkeypatch.setattr(tifffile.tifffile.imagecodecs, "packints_decode", unpack)
    shades = np.round(np.linspace(0, 255, 1 << bits)).astype(np.uint8)
    np.testing.assert_array_equal(read(few_bits(bits)).pages[0].ravel(), shades)
    np.testing.assert_array_equal(read(few_bits(bits, photometric=0)).pages[0].ravel(), shades[::-1])


def test_tiff_of_12_bits_whose_white_is_zero_keeps_its_range(monkeypatch):
    if importlib.util.find_spec("imagecodecs") is None:
        monkeypatch.setattr(tifffile.tifffile.imagecodecs, "packints_decode", unpack)
    for photometric, values in ((1, np.arange(4096)), (0, np.arange(4096)[::-1])):
        (page,) = read(few_bits(12, photometric)).pages
        assert page.dtype == np.uint16
        np.testing.assert_array_equal(page.ravel(), values)


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
