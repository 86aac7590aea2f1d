"""From a source's file to training images: the size filter, RGB, crops, noise, and their names."""

import collections
import functools
import hashlib
import itertools
import os
import re
from pathlib import PurePosixPath

import numpy as np

from denoising.cli import UserError
from denoising.data import raw_frames
from denoising.files import images
from denoising.files.archives import Skip
from denoising.imaging.noise import parse_noise
from denoising.imaging.pixels import as_channels, from_01, to_01

JPEG_SUFFIXES = (".jpg", ".jpeg")
LARGE_FILE = 1 << 20  # bytes: a smaller one is as quickly read as opened twice


# --- Names ----------------------------------------------------------------------------------------


def plan_names(names, options):
    """Gives each file the stem of its output: its own, with its folders in front where two meet."""
    possible = {name: _possible_suffixes(name, options) for name in names}

    def claims(name, stem):
        return {(stem.casefold(), suffix) for suffix in possible[name]}

    wanted = collections.Counter(itertools.chain.from_iterable(claims(name, _stem(name)) for name in names))
    plain = {stem for stem, _ in wanted}

    stems, taken = {}, set()
    for name in names:
        stem = _stem(name)
        if any(wanted[claim] > 1 for claim in claims(name, stem)):
            stem = "__".join((*PurePosixPath(name).parts[:-1], stem))
        # The pieces of another file may come to be called like this one.
        piece = re.fullmatch(r"(.+)_[sp]\d{3,}", stem)
        meets_piece = piece and piece[1].casefold() in plain
        if claims(name, stem) & taken or meets_piece or len(stem.encode(errors="surrogateescape")) > 200:
            stem = f"{stem[:60]}_{_digest(name).hex()[:12]}"
        taken |= claims(name, stem)
        stems[name] = stem
    return stems


def _stem(name):
    stem, suffix = os.path.splitext(os.path.basename(name))
    # SIDD tells the camera, and with it the Bayer phase, by the folder alone.
    if suffix.lower() == ".mat" and raw_frames.camera(name) and not raw_frames.camera(stem + suffix):
        return f"{PurePosixPath(name).parent.name}__{stem}"
    return stem


def _possible_suffixes(name, options):
    suffix = os.path.splitext(name)[1].lower()
    if suffix == ".mat" or (options.noise != "none" and options.format != "png"):
        return (".npy",)
    if suffix in JPEG_SUFFIXES and options.format in ("keep", "copy"):
        return (suffix,)
    return (".png", ".npy") if options.format != "jpeg" else (".png", ".npy", ".jpg")


def _output_suffix(name, dtype, options):
    suffix = os.path.splitext(name)[1]
    if dtype == np.float32:
        return ".npy"
    if dtype == np.uint8 and suffix.lower() in JPEG_SUFFIXES and options.format in ("keep", "copy"):
        return suffix
    return ".jpg" if dtype == np.uint8 and options.format == "jpeg" else ".png"


def _digest(name):
    return hashlib.sha256(name.encode(errors="surrogateescape")).digest()


# --- One file in, any number of named byte strings out --------------------------------------------


def convert(entry, stem, options):
    """Yields (file name, bytes, pixels) for each image made from one file.

    Raises:
        Skip: it is left out. What writing the target raises is never a Skip.
    """
    try:
        yield from _convert(entry, stem, options)
    except Skip:
        raise
    except UserError as error:
        # The list of skipped files has the name in a column of its own.
        detail = str(error).removeprefix(f"{entry.container}: ").removeprefix(f"{entry.name}: ")
        raise Skip("unreadable", detail) from error


def _convert(entry, stem, options):
    suffix = os.path.splitext(entry.name)[1].lower()
    if suffix == ".mat":
        pieces = _crops(raw_frames.read_frame(entry), raw_frames.crop_starts, raw_frames.CROP)
    elif suffix in images.IMAGE_SUFFIXES:
        pieces = image_pieces(entry, options)
    else:
        raise Skip("no image by its name")
    noise = parse_noise(options.noise)
    made = False
    for mark, pixels, verbatim in pieces:
        made = True
        if options.noise != "none":
            number = int.from_bytes(_digest(entry.name + mark)[:8], "big")
            pixels = noise.add(to_01(pixels), np.random.default_rng([options.seed, number]))
            verbatim = None
            if options.format == "png" and suffix != ".mat":
                pixels = from_01(pixels, np.uint8)
        name = stem + mark + _output_suffix(entry.name, pixels.dtype, options)
        yield name, verbatim or images.encode(name, pixels, quality=100), pixels
    if not made:
        raise Skip("no page of the wanted size")


def image_pieces(entry, options):
    """Yields (mark, HWC pixels, the file's bytes if they can serve as they are) of the sizes that are asked for."""
    accept = functools.partial(_check_size, options=options)
    # Of a large file on disk no more is read than its header, if that tells that it is left out.
    if entry.place is None and entry.size > LARGE_FILE:
        accept(*images.image_size(entry.container))
    data = entry.read()
    picture = images.read_image(entry.name, data, accept)
    for index, page in enumerate(picture.pages):
        mark = f"_p{index + 1:03d}" if len(picture.pages) > 1 else ""
        try:
            accept(*page.shape[:2])
        except Skip:
            continue
        pixels = _to_channels(page, picture.alpha and picture.alpha[index], options.n_channel)
        if max(page.shape[:2]) > options.max_size:
            yield from _crops(pixels, lambda length: _tiles(length, options.crop), options.crop, mark)
        else:
            same = pixels is page and not mark and _usable_as_it_is(entry.name, picture, options)
            yield mark, pixels, data if same else None


def _check_size(height, width, options):
    if min(height, width) < options.min_size:
        raise Skip(f"smaller than {options.min_size} pixels a side", f"{width} x {height}")
    if max(height, width) > options.max_size and not options.crop:
        raise Skip(f"larger than {options.max_size} pixels a side", f"{width} x {height}")


def _usable_as_it_is(name, picture, options):
    """Whether the file holds the very pixels that would be written, in the format it would get.

    A PNG is the same before and after; a JPEG is not, and the published training set is made of
    re-encoded ones, so copying JPEG has to be asked for.
    """
    is_jpeg = os.path.splitext(name)[1].lower() in JPEG_SUFFIXES
    if not picture.plain or options.format == "jpeg":
        return False
    if picture.format == "JPEG":
        return is_jpeg and options.format == "copy"
    return picture.format == "PNG" and (not is_jpeg or options.format == "png")


def _to_channels(page, alpha, n_channel):
    """Lays transparent pixels over white, and gives grey or RGB."""
    if page.shape[2] not in (1, 3):
        raise Skip("neither grey nor RGB", f"{page.shape[2]} channels")
    if alpha is not None:
        opacity = to_01(alpha)[..., None]
        if opacity.min() < 1:
            page = from_01(to_01(page) * opacity + (1 - opacity), page.dtype)
    return as_channels(page, n_channel, "the page")


def _crops(pixels, starts, side, mark=""):
    """Yields pieces, as image_pieces does, at each of the starts along both axes."""
    height, width = pixels.shape[:2]
    for index, (top, left) in enumerate(itertools.product(starts(height), starts(width)), 1):
        yield f"{mark}_s{index:03d}", pixels[top : top + side, left : left + side], None


def _tiles(length, side):
    """Starts of the tiles along one axis: they do not overlap, and lie in the middle."""
    count = max(1, length // side)
    first = max(0, length - count * side) // 2
    return range(first, first + count * side, side)
