"""Real pairs: captures of the same scene under independent noise.

They lie in two folders, in a folder for each scene, or all in one file. Two frames that show the scene shifted would
train a network to blur: they are found and refused.
"""

import concurrent.futures
import hashlib
import itertools

import cv2
import numpy as np

from dataset import CROP, TrainingImages, generator, images_by_name
from denoising import cli
from denoising.cli import UserError
from denoising.files import images, pair_files

CHECKED = 512  # side of the middle part in which a shift is looked for
WORTH = 0.8  # a shift counts if moving one frame back leaves less than this share of their difference


class TrainingPairs(TrainingImages):
    """Pairs of files in place of simulated noise; what is drawn anew in each epoch is which frame is the input.

    Args:
        pair_dir: holds a file of the same name, whatever its suffix, for each one of `data_dir`. Without `data_dir`
            it holds a folder for each scene, with two frames or more.
        options: those of `TrainingImages`; with the target "clean" the files of `pair_dir` are the clean images.
    """

    def __init__(self, data_dir, pair_dir, *options, workers=2, **more):
        self.pair_dir = pair_dir
        super().__init__(data_dir or pair_dir, *options, **more)
        self._check(workers)

    def _find(self, data_dir):
        if data_dir == self.pair_dir:
            return find_scenes(self.pair_dir)
        return find_pairs(data_dir, self.pair_dir)

    def _layers(self, index, rng):
        group = self.groups[index]
        first, second = (0, 1) if self.target == "clean" else rng.choice(len(group), 2, replace=False)
        layers = [self._cached(group[i], lambda i=i: [self._read(group[i])])[0] for i in (first, second)]
        if layers[0].shape != layers[1].shape:
            raise _unequal(group[first], layers[0].shape, group[second], layers[1].shape)
        return layers

    def _check(self, workers):
        """Refuses all groups whose frames differ in size or are shifted, before training starts."""
        pairs = [(group[0], other) for group in self.groups for other in group[1:]]
        with (
            concurrent.futures.ThreadPoolExecutor(workers) as pool,
            cli.progress(total=len(pairs), unit="pair", label="checking pairs") as bar,
        ):
            for _ in pool.map(lambda pair: self._check_pair(*pair), pairs):
                bar.update()

    def _check_pair(self, first, second):
        pages = [self._cached(path, lambda path=path: [self._read(path)])[0] for path in (first, second)]
        if pages[0].shape != pages[1].shape:
            raise _unequal(first, pages[0].shape, second, pages[1].shape)
        down, right = shift_between(*pages)
        if down or right:
            raise UserError(f"--pair_dir: {second} shows the scene of {first} moved by {down} down, {right} right")


class PairFile:
    """The pairs of a file (pair_files.py), a batch at once, which takes a fifth of the time of one patch after another.

    What is drawn anew in each epoch is the place of the patch in its image, its orientation, and which of two noisy
    images is the input.

    Args:
        path: a .npz or .pkl.
        n_channel: that the images must have.
        patchsize: side of the patches; images that are no larger are taken whole.
        seed: of all randomness.
        augment: whether patches are flipped and rotated by quarter turns.
        target: "noisy" or "clean", what the file holds beside its first noisy images.
        size: only the first so many pairs.
    """

    n_input = None  # channels of what the network gets, where they are not those of the image

    def __init__(self, path, n_channel, patchsize, seed, augment=False, target="noisy", size=None):
        names = pair_files.VALIDATION if target == "clean" else pair_files.TRAINING
        self.halves = [half[:size] for half in pair_files.read(path, names)]
        count, channels, height, width = self.halves[0].shape
        if channels != n_channel:
            raise UserError(f"--data_dir: {path} has {channels} channels, --n_channel is {n_channel}")
        self.size, self.room = min(patchsize, height, width), (height, width)
        self.seed, self.augment, self.swap, self.count = seed, augment, target == "noisy", count
        self.names = [hashlib.sha256(half.tobytes()).hexdigest() for half in self.halves]

    def __len__(self):
        return self.count

    def batch(self, places):
        """The arrays of some (epoch, pair): noisy [N, C, P, P] float32, and what the method compares with."""
        epochs, indices = map(np.array, zip(*places, strict=True))
        tops, lefts, ways = np.empty((3, len(places)), int)
        for epoch in set(epochs.tolist()):
            # Drawn for all pairs, so that it does not matter which of them share a batch.
            rng, now = generator(self.seed, CROP, epoch), epochs == epoch
            for drawn, choices in zip((tops, lefts), self.room, strict=True):
                drawn[now] = rng.integers(0, choices - self.size + 1, self.count)[indices[now]]
            ways[now] = rng.integers(0, 16, self.count)[indices[now]]
        corners = list(zip(indices, tops, lefts, strict=True))
        parts = [
            np.stack([half[i, :, top : top + self.size, left : left + self.size] for i, top, left in corners])
            for half in self.halves
        ]
        if self.swap:
            other = (ways >= 8)[:, None, None, None]
            parts = [np.where(other, parts[1 - i], parts[i]) for i in (0, 1)]
        if self.augment:
            parts = [_oriented(part, ways % 8) for part in parts]
        return tuple(images.to_01(part) for part in parts)


def _oriented(patches, ways):
    """Square patches [N, C, P, P], each turned by so many quarters, and flipped from four on."""
    result = np.empty_like(patches)
    for way in range(8):
        turned = np.rot90(patches[ways == way], way % 4, axes=(2, 3))
        result[ways == way] = turned[..., ::-1] if way >= 4 else turned
    return result


def _unequal(first, shape, second, other):
    sizes = [f"{width}x{height}" for height, width, _ in (shape, other)]
    return UserError(f"--pair_dir: {first} is {sizes[0]}, but {second} is {sizes[1]}")


def find_pairs(data_dir, pair_dir):
    """The pairs of files with the same name below two folders, or an error that names the first without a partner."""
    first, second = images_by_name("--data_dir", data_dir), images_by_name("--pair_dir", pair_dir)
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


def shift_between(first, second):
    """How many whole pixels (down, right) the second image shows the scene of the first displaced; (0, 0) if in place.

    Both are HWC images of one size.
    """
    first, second = (_middle(image).mean(axis=2, dtype=np.float32) for image in (first, second))
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


def _middle(image):
    height, width = image.shape[:2]
    top, left = max(height - CHECKED, 0) // 2, max(width - CHECKED, 0) // 2
    return image[top : top + CHECKED, left : left + CHECKED]
