"""Noisy images without clean ones, and where there is one the second frame of each scene, under the same name."""

import os

import numpy as np

from denoising import cli
from denoising.files import images
from denoising.imaging.pixels import as_channels


def find(flag, source, pair_flag=None, pair_dir=None, leave_out=()):
    """The images of a folder, or that of a file, as (name, path, path of the second frame or None), by name."""
    paths = images.find_images(flag, source, leave_out=leave_out)
    root = source if os.path.isdir(source) else os.path.dirname(source)
    names = [os.path.relpath(path, root or ".") for path in paths]
    if not pair_dir:
        return [(name, path, None) for name, path in zip(names, paths, strict=True)]
    partners = images.by_name(pair_flag, pair_dir)
    stems = [os.path.splitext(name)[0] for name in names]
    for stem in stems:
        cli.refuse((stem not in partners, f"{pair_flag}: {pair_dir} has no other frame of {stem}"))
    return [(name, path, partners[stem]) for name, path, stem in zip(names, paths, stems, strict=True)]


def read(path, second, n_channel, pair_flag=None):
    """A noisy image, H x W x C as a network takes it, and its second frame or None."""
    first = as_channels(images.read_image(path).pages[0], n_channel, path)
    if second is None:
        return first, None
    other = as_channels(images.read_image(second).pages[0], n_channel, second)
    alike = (other.shape, other.dtype) == (first.shape, first.dtype)
    copy = np.array_equal(first, other) and np.ptp(first) > 0
    cli.refuse(
        (not alike, f"{pair_flag}: {second} and {path} differ in size or type"),
        (copy, f"{pair_flag}: {second} is the same image as {path}, and no other frame"),
    )
    return first, other
