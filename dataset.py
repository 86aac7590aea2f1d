"""Training images as endless, resumable batches; validation sets from one table.

Every random choice follows from (seed, purpose, epoch, image): a batch is a pure function of its number. So a
killed run resumes to the bit from a step number alone, and two processes see exactly what one with twice the
batch would.
"""

import concurrent.futures
import hashlib
import itertools
import os
import threading
from dataclasses import dataclass

import numpy as np

import cli
import images
from cli import UserError
from methods import draw_picks

ORDER, CROP, NOISE, PICKS = range(4)  # one stream of random numbers per purpose


def generator(seed, purpose, *numbers):
    """The random generator of one purpose and place in the training."""
    return np.random.default_rng([seed, purpose, *numbers])


# --- Channels -----------------------------------------------------------------------------------------------


def as_channels(array, n_channel, name):
    """Gives an HWC image the channels that the network takes: RGB to grey, grey to RGB, Bayer raw to four."""
    channels = array.shape[2]
    if channels == n_channel:
        return array
    if n_channel == 3 and channels == 1:
        return np.repeat(array, 3, axis=2)
    if n_channel == 1 and channels == 3:
        return images.to_grey(array)
    if n_channel == 4 and channels == 1:
        return pack_bayer(array)
    raise UserError(f"{name}: has {channels} channels, --n_channel is {n_channel}")


def pack_bayer(mosaic):
    """Packs an H x W x 1 Bayer mosaic into its four phases, H/2 x W/2 x 4 (an odd last row or column is dropped)."""
    height, width = mosaic.shape[0] // 2 * 2, mosaic.shape[1] // 2 * 2
    phases = [mosaic[i:height:2, j:width:2, 0] for i in (0, 1) for j in (0, 1)]
    return np.stack(phases, axis=2)


# --- Training -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """One step's work, as numpy arrays."""

    noisy: np.ndarray  # float32 [N, C, P, P], 0..1 is the display range
    picks: np.ndarray  # bool [N, 3, P/2, P/2]


class TrainingImages:
    """A folder of images, each delivered as a random noisy patch.

    Args:
        data_dir: searched recursively.
        noise: the model that corrupts the images.
        frozen: whether each image has one noise realisation for good, as a camera's files have.
        augment: whether patches are flipped and rotated by quarter turns.
        cache_bytes: decoded images are kept up to this much memory; the rest are decoded each time.
    """

    def __init__(self, data_dir, noise, n_channel, patchsize, seed, frozen=False, augment=False, cache_bytes=0):
        self.paths = images.find_images("--data_dir", data_dir)
        self.noise, self.n_channel, self.patchsize, self.seed = noise, n_channel, patchsize, seed
        self.frozen, self.augment = frozen, augment
        self._cache, self._cache_left, self._lock = {}, cache_bytes, threading.Lock()
        self.broken = set()
        # Frozen noise belongs to an image, wherever it stands in the list: its name is the seed.
        self.names = [os.path.relpath(path, data_dir) for path in self.paths]
        self._image(0)  # a folder that does not fit the options is told before training starts

    def __len__(self):
        return len(self.paths)

    def _image(self, index):
        """The decoded image, HWC; with frozen noise already noisy, in float32."""
        if index in self._cache:
            return self._cache[index]
        path = self.paths[index]
        picture = images.read_image(path)
        if len(picture.pages) != 1:
            raise UserError(f"--data_dir: {path} has {len(picture.pages)} pages; dataset_tool.py splits such files")
        image = as_channels(picture.pages[0], self.n_channel, path)
        if self.frozen:
            digest = hashlib.sha256(os.fsencode(self.names[index])).digest()
            rng = generator(self.seed, NOISE, int.from_bytes(digest[:8], "big"))
            image = self.noise.add(images.to_01(image), rng)
        with self._lock:
            if index not in self._cache and image.nbytes <= self._cache_left:
                self._cache[index] = image
                self._cache_left -= image.nbytes
        return image

    def _image_or_next(self, index):
        """The image, or the next one in the list if it is broken: one bad file must not end hours of training."""
        for place in range(index, index + len(self.paths)):
            place %= len(self.paths)
            try:
                return self._image(place)
            except UserError as error:
                if place not in self.broken:
                    self.broken.add(place)
                    cli.note(f"{error}; the next image is taken instead")
        raise UserError("--data_dir: no image can be read any more")

    def sample(self, epoch, index):
        """The noisy patch of one image in one epoch, CHW float32, and the picks of its sub-sampler."""
        size = self.patchsize
        rng = generator(self.seed, CROP, epoch, index)
        image = self._image_or_next(index)
        height, width = image.shape[:2]
        if height < size or width < size:
            pad = [(0, max(size - height, 0)), (0, max(size - width, 0)), (0, 0)]
            image = np.pad(image, pad, "reflect" if min(height, width) > 1 else "edge")
            height, width = image.shape[:2]
        top, left = rng.integers(0, height - size + 1), rng.integers(0, width - size + 1)
        patch = images.to_01(image[top : top + size, left : left + size])
        if self.augment:
            patch = np.rot90(patch, rng.integers(4))
            patch = patch[:, ::-1] if rng.integers(2) else patch
        if not self.frozen:
            patch = self.noise.add(patch, generator(self.seed, NOISE, epoch, index))
        patch = np.ascontiguousarray(patch.transpose(2, 0, 1))
        return patch, draw_picks(generator(self.seed, PICKS, epoch, index), size, size)


class Batches:
    """The batches of one process from a given step on, prepared ahead by threads.

    Threads, not processes: decoding and numpy's generators release Python's lock, nothing is copied between
    processes, and a killed training leaves nobody behind.
    """

    def __init__(self, dataset, batchsize, seed, rank=0, world_size=1, workers=2, ahead=4):
        self.dataset, self.batchsize, self.seed = dataset, batchsize, seed
        self.rank, self.world_size, self.ahead = rank, world_size, ahead
        self.steps_per_epoch = max(1, len(dataset) // (batchsize * world_size))
        self._pool = concurrent.futures.ThreadPoolExecutor(workers, thread_name_prefix="loader")

    def batch(self, step):
        """The batch of a step, counted from 0 over all epochs."""
        epoch, position = divmod(step, self.steps_per_epoch)
        order = generator(self.seed, ORDER, epoch).permutation(len(self.dataset))
        first = (position * self.world_size + self.rank) * self.batchsize
        # Fewer images than one batch: they are used again, each time with another crop.
        places = [divmod(first + i, len(order)) for i in range(self.batchsize)]
        samples = [self.dataset.sample(epoch + again * 1_000_003, int(order[place])) for again, place in places]
        noisy, picks = zip(*samples, strict=True)
        return Batch(np.stack(noisy), np.stack(picks))

    def starting_at(self, step):
        """Yields the batches of `step`, `step + 1`, ... without end, a few of them ready ahead."""
        queue = [self._pool.submit(self.batch, step + i) for i in range(self.ahead)]
        try:
            for number in itertools.count(step + self.ahead):
                yield queue.pop(0).result()
                queue.append(self._pool.submit(self.batch, number))
        finally:
            for future in queue:
                future.cancel()


# --- Validation ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ValidationSet:
    """Clean images to score on, and how often the published protocol repeats them."""

    name: str
    folder: str
    repeats: int = 1
    origin: str = ""

    def paths(self, limit=None):
        """The image files in sorted order, which the published noise depends on."""
        return images.find_images("--val_dirs", self.folder)[:limit]


PUBLISHED_SETS = (
    ValidationSet("Kodak", "Kodak", 10, "the 24 PNG files of the Kodak Lossless True Color Image Suite"),
    ValidationSet("BSD300", "BSD300/test", 3, "the Berkeley Segmentation Dataset, BSDS300-images.tgz, images/test"),
    ValidationSet("Set14", "Set14", 20, "the Set14 archive of the super-resolution literature"),
)


def find_validation_sets(val_dirs):
    """The sets under a folder: the published ones by their names, any other sub-folder of images by its own.

    Returns:
        The sets that are there, and those published ones that are not.
    """
    present, absent = [], []
    for published in PUBLISHED_SETS:
        folder = os.path.join(val_dirs, published.folder)
        if published.name == "Kodak" and not os.path.isdir(folder):
            folder = os.path.join(val_dirs, "Kodak24")  # as its archives often name it
        found = ValidationSet(published.name, folder, published.repeats, published.origin)
        (present if os.path.isdir(folder) else absent).append(found)
    taken = {"Kodak24", *(published.folder.split("/")[0] for published in PUBLISHED_SETS)}
    for entry in sorted(os.scandir(val_dirs), key=lambda entry: entry.name):
        if entry.is_dir() and entry.name not in taken and not entry.name.startswith("."):
            try:
                images.find_images("--val_dirs", entry.path)
            except UserError as error:
                cli.note(f"{error}; passed over")
            else:
                present.append(ValidationSet(entry.name, entry.path))
    names = [entry.name.lower() for entry in os.scandir(val_dirs)]
    if not present and any(name.endswith(tuple(images.IMAGE_SUFFIXES)) for name in names):
        present.append(ValidationSet(os.path.basename(os.path.abspath(val_dirs)), str(val_dirs)))
    if not present:
        raise UserError(f"--val_dirs: {val_dirs} holds no images and none of the sets Kodak, BSD300/test, Set14")
    return present, absent


def clean_images(validation_set, n_channel, limit=None):
    """Yields (name, HWC uint8 image) of a set, in order."""
    for path in validation_set.paths(limit):
        array = images.read_image(path).pages[0]
        if array.dtype != np.uint8:
            array = images.from_01(images.to_01(array), np.uint8)
        yield os.path.relpath(path, validation_set.folder), as_channels(array, n_channel, path)
