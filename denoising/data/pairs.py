"""Real pairs: captures of the same scene under independent noise.

They lie in two folders, in a folder for each scene, or all in one file. Two frames that show the scene shifted would
train a network to blur: they are found and refused.
"""

import itertools

import cv2
import numpy as np

from denoising import cli
from denoising.cli import UserError
from denoising.files import images
from denoising.imaging.pixels import middle

CHECKED = 512  # side of the middle part in which a shift is looked for
SEEN = 0.03  # deviation of a coarse scene, white being 1, that noise alone does not reach
ALIKE = 0.5  # correlation of two coarse frames of one scene: more; that of two scenes is rarely above 0.4
WORTH = 0.8  # a shift counts if moving one frame back leaves less than this share of their difference


def unequal(first, shape, second, other):
    """The error for two frames of different size."""
    sizes = [f"{width}x{height}" for height, width, _ in (shape, other)]
    return UserError(f"--pair_dir: {first} is {sizes[0]}, but {second} is {sizes[1]}")


def find_pairs(data_dir, pair_dir):
    """The pairs of files with the same name below two folders, or an error that names the first without a partner."""
    first, second = images.by_name("--data_dir", data_dir), images.by_name("--pair_dir", pair_dir)
    for here, there, folder in ((first, second, pair_dir), (second, first, data_dir)):
        for name, path in here.items():
            if name not in there:
                raise UserError(f"--pair_dir: {path} has no partner {name} in {folder}")
    return [[path, second[name]] for name, path in first.items()]


def find_scenes(pair_dir):
    """The frames of each scene: each folder that holds images is one."""
    paths = images.find_images("--pair_dir", cli.existing_folder("--pair_dir", pair_dir))
    groups = [list(group) for _, group in itertools.groupby(sorted(paths), key=lambda path: path.parent)]
    for group in groups:
        if len(group) < 2:
            raise UserError(
                f"--pair_dir: {group[0].parent} holds one frame, {group[0].name}; a scene needs two or more"
            )
    return groups


def unlike(first, second):
    """Whether two HWC images of one size have nothing in common, which flat ones and noise alone do not show."""
    first, second = (image[middle(image, CHECKED)].mean(axis=2, dtype=np.float32) for image in (first, second))
    first, second = (cv2.GaussianBlur(grey, (0, 0), 4.0) for grey in (first, second))
    deviations = first.std(), second.std()
    if min(deviations) < SEEN or min(first.shape) < 32:
        return False
    return np.mean((first - first.mean()) * (second - second.mean())) < ALIKE * np.prod(deviations)


def shift_between(first, second):
    """How many whole pixels (down, right) the second image shows the scene of the first displaced; (0, 0) if in place.

    Both are HWC images of one size.
    """
    first, second = (image[middle(image, CHECKED)].mean(axis=2, dtype=np.float32) for image in (first, second))
    height, width = first.shape
    if min(height, width) < 32:
        return 0, 0
    # Phase correlation of the coarser half of the frequencies: the finer ones are mostly noise.
    window = np.outer(np.hanning(height), np.hanning(width))
    spectra = [np.fft.rfft2((grey - grey.mean()) * window) for grey in (first, second)]
    cross = spectra[1] * spectra[0].conj()
    squared = np.fft.fftfreq(height)[:, None] ** 2 + np.fft.rfftfreq(width) ** 2
    likely = np.fft.irfft2(cross / np.maximum(np.abs(cross), 1e-12) * np.exp(-squared / (2 * 0.1**2)), first.shape)
    down, right = np.unravel_index(np.argmax(likely), likely.shape)
    down, right = int(down + height // 2) % height - height // 2, int(right + width // 2) % width - width // 2
    # Noise can make any peak: only a shift that brings the images together is one.
    here = np.s_[max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)]
    there = np.s_[max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)]
    first, second = (cv2.GaussianBlur(grey, (0, 0), 2.0) for grey in (first, second))
    moved_back, as_is = (np.mean((first[here] - second[place]) ** 2) for place in (there, here))
    return (down, right) if moved_back < WORTH * as_is else (0, 0)
