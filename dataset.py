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

from denoising import cli
from denoising.cli import UserError
from denoising.data import renders
from denoising.files import images, pair_files
from denoising.training.methods import draw_picks

ORDER, CROP, NOISE, PICKS, TARGET, MORE = range(6)  # one stream of random numbers per purpose


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


class TrainingImages:
    """A folder of images, each delivered as a random patch: noisy, and what the method compares its denoised one with.

    Args:
        data_dir: searched recursively.
        noise: the model that corrupts the images.
        target: "picks" of the sub-sampler, two "recorruptions", another "noisy" image, or the "clean" one.
        frozen: whether each image has one noise realisation for good, as a camera's files have.
        augment: whether patches are flipped and rotated by quarter turns.
        cache_bytes: decoded images are kept up to this much memory; the rest are decoded each time.
        size: only the first so many images.
        translate: the patches are rolled by up to so many pixels along each axis.
        known_noise: the model of what is in the images already, for recorruptions.
    """

    n_input: int | None = None  # channels of what the network gets, where they are not those of the image

    def __init__(
        self, data_dir, noise, n_channel, patchsize, seed, frozen=False, augment=False, cache_bytes=0, target="picks",
        size=None, translate=0, known_noise=None,
    ):  # fmt: skip
        self.noise, self.n_channel, self.patchsize, self.seed = noise, n_channel, patchsize, seed
        self.frozen, self.augment, self.target, self.translate = frozen, augment, target, translate
        self.known_noise = known_noise
        self._cache, self._cache_left, self._lock = {}, cache_bytes, threading.Lock()
        self.broken = set()
        self.groups = self._find(data_dir)[:size]
        # Frozen noise belongs to an image, wherever it stands in the list: its name is the seed.
        self.names = [os.path.relpath(group[0], data_dir) for group in self.groups]
        self._layers(0, generator(seed, CROP))  # a folder that does not fit the options is told before training starts

    def __len__(self):
        return len(self.groups)

    def _find(self, data_dir):
        """The files of each image."""
        return [[path] for path in images.find_images("--data_dir", data_dir)]

    def _cached(self, key, make):
        """What `make` returns, remembered as long as there is room."""
        if key in self._cache:
            return self._cache[key]
        layers = make()
        size = sum(layer.nbytes for layer in layers)
        with self._lock:
            if key not in self._cache and size <= self._cache_left:
                self._cache[key] = layers
                self._cache_left -= size
        return layers

    def _read(self, path):
        """The decoded image, HWC."""
        picture = images.read_image(path)
        if len(picture.pages) != 1:
            raise UserError(f"--data_dir: {path} has {len(picture.pages)} pages; dataset_tool.py splits such files")
        image = as_channels(picture.pages[0], self.n_channel, path)
        if self.target == "recorruptions":
            self._check_own_noise(path, picture.pages[0], image)
        return image

    def _check_own_noise(self, path, page, image):
        """Refuses an image whose own noise is not independent from value to value, or is weaker than the file's steps.

        A recorruption's is, and a network can tell it from the image's own where that is not.
        """
        if self.known_noise and page.shape[2] != image.shape[2] and self.n_channel != 4:
            raise UserError(f"--n_channel: {path} has {page.shape[2]}, and its noise is known in these only")
        if (self.known_noise or self.frozen) and min(image.shape[:2]) < self.patchsize:
            size = f"{image.shape[1]}x{image.shape[0]} pixels"
            raise UserError(
                f"--patchsize: {path} has {size}; padding would repeat its noise, of which each must be new"
            )
        if self.known_noise and page.dtype.kind == "u" and not self.known_noise.hides(1 / np.iinfo(page.dtype).max):
            bits = page.dtype.itemsize * 8
            raise UserError(
                f"--known_noise: {path} has {bits} bits, whose steps are too coarse for {self.known_noise.name}"
            )

    def _layers(self, index, rng):
        """The clean image alone, or the corrupted one, and its target if that is another, HWC of one size."""
        return self._cached(index, lambda: self._make_layers(index))

    def _make_layers(self, index):
        image = self._read(self.groups[index][0])
        if not self.frozen:
            return [image]
        digest = hashlib.sha256(os.fsencode(self.names[index])).digest()
        return self._corrupt(images.to_01(image), int.from_bytes(digest[:8], "big"))

    def _corrupt(self, clean, *place):
        """The noisy image, then what the method wants beside it, of the random numbers of a place."""
        layers = [self.noise.add(clean, generator(self.seed, NOISE, *place))]
        if self.target == "clean":
            layers.append(clean)
        elif self.target == "noisy":
            layers.append(self.noise.add(clean, generator(self.seed, TARGET, *place)))
            known = self.noise.known(clean.shape, generator(self.seed, TARGET, *place))
            layers += [] if known is None else [known]
        return layers

    def _layers_or_next(self, index, rng):
        """The image, or the next one in the list if it is broken: one bad file must not end hours of training."""
        for place in range(index, index + len(self)):
            place %= len(self)
            try:
                return self._layers(place, rng)
            except UserError as error:
                if place not in self.broken:
                    self.broken.add(place)
                    cli.note(f"{error}; the next image is taken instead")
        raise UserError("--data_dir: no image can be read any more")

    def sample(self, epoch, index):
        """The noisy patch of one image in one epoch, CHW float32, and what the method compares with."""
        rng = generator(self.seed, CROP, epoch, index)
        patches = self._patches(self._layers_or_next(index, rng), rng)
        if len(patches) == 1 and not self.frozen:
            patches = self._corrupt(patches[0], epoch, index)
        patches = [np.ascontiguousarray(patch.transpose(2, 0, 1)) for patch in patches]
        if self.target == "picks":
            size = self.patchsize
            patches.append(draw_picks(generator(self.seed, PICKS, epoch, index), size, size))
        elif self.target == "recorruptions":
            strength, more = (generator(self.seed, purpose, epoch, index) for purpose in (NOISE, MORE))
            patches += (self.known_noise or self.noise).recorrupt(patches[0], strength, more)
        return tuple(patches)

    def batch(self, places):
        """The samples of some (epoch, image), stacked."""
        samples = [self.sample(epoch, index) for epoch, index in places]
        return tuple(np.stack(part) for part in zip(*samples, strict=True))

    def _patches(self, layers, rng):
        """The same random patch of each layer, float32."""
        size = self.patchsize
        height, width = layers[0].shape[:2]
        if height < size or width < size:
            pad = [(0, max(size - height, 0)), (0, max(size - width, 0)), (0, 0)]
            layers = [np.pad(layer, pad, "reflect" if min(height, width) > 1 else "edge") for layer in layers]
            height, width = layers[0].shape[:2]
        top, left = rng.integers(0, height - size + 1), rng.integers(0, width - size + 1)
        patches = [images.to_01(layer[top : top + size, left : left + size]) for layer in layers]
        if self.augment:
            turns = rng.integers(4)
            patches = [np.rot90(patch, turns) for patch in patches]
            patches = [patch[:, ::-1] for patch in patches] if rng.integers(2) else patches
        if self.translate:
            by = rng.integers(-self.translate, self.translate + 1, 2)
            patches = [np.roll(patch, by, axis=(0, 1)) for patch in patches]
        return patches


class TrainingRenders(TrainingImages):
    """A folder of buffers (renders.py): render, albedo and normal go in, another render of the scene is the target."""

    n_input = renders.N_INPUT

    def _find(self, data_dir):
        return renders.find_frames("--data_dir", data_dir, "clean" if self.target == "clean" else "target")

    def _make_layers(self, index):
        *paths, target_path = self.groups[index]
        frame = renders.read_frame(paths)
        _, target = renders.read_buffer("target", target_path)
        renders.check_size(target_path, target, paths[0], frame.render)
        return [frame.network_input(), target]


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
        """The arrays of a step, counted from 0 over all epochs: noisy [N, C, P, P], then what the method needs."""
        epoch, position = divmod(step, self.steps_per_epoch)
        order = generator(self.seed, ORDER, epoch).permutation(len(self.dataset))
        first = (position * self.world_size + self.rank) * self.batchsize
        # Fewer images than one batch: they are used again, each time with another crop.
        places = [divmod(first + i, len(order)) for i in range(self.batchsize)]
        return self.dataset.batch([(epoch + again * 1_000_003, int(order[place])) for again, place in places])

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
    own_noise = False  # whether the noisy images come with the clean ones

    def paths(self, limit=None):
        """The image files in sorted order, which the published noise depends on."""
        return images.find_images("--val_dirs", self.folder)[:limit]

    def images(self, n_channel, noise, rng, limit=None):
        """Yields (name, clean image HWC uint8, noisy image HWC float32 of 0..1) in order."""
        for path in self.paths(limit):
            clean = read_clean(path, n_channel)
            yield os.path.relpath(path, self.folder), clean, noise.add(images.to_01(clean), rng)

    def shown(self, image_01):
        """What a network got or gave as it is scored, HWC uint8."""
        return images.from_01(image_01, np.uint8)


class ValidationPairs(ValidationSet):
    """A folder with the sub-folders noisy/ and clean/, whose files have the same names."""

    own_noise = True

    def paths(self, limit=None):
        """The clean files in sorted order."""
        return images.find_images("--val_dirs", os.path.join(self.folder, "clean"))[:limit]

    def images(self, n_channel, noise, rng, limit=None):
        """Yields (name, clean image HWC uint8, noisy image HWC float32 of 0..1) in order; no noise is added."""
        partners = images_by_name("--val_dirs", os.path.join(self.folder, "noisy"))
        for path in self.paths(limit):
            name = os.path.relpath(path, os.path.join(self.folder, "clean"))
            partner = partners.get(os.path.splitext(name)[0])
            if partner is None:
                raise UserError(f"--val_dirs: {path} has no partner in {self.folder}/noisy")
            clean = read_clean(path, n_channel)
            noisy = images.to_01(as_channels(images.read_image(partner).pages[0], n_channel, partner))
            if noisy.shape != clean.shape:
                raise UserError(f"--val_dirs: {partner} and {path} differ in size")
            yield name, clean, noisy


class ValidationPairFile(ValidationSet):
    """A file of noisy and clean images (pair_files.py); `folder` is its path."""

    own_noise = True

    def _read(self):
        return pair_files.read(self.folder, pair_files.VALIDATION)

    def paths(self, limit=None):
        """A number for each image."""
        return list(range(len(self._read()[0])))[:limit]

    def images(self, n_channel, noise, rng, limit=None):
        """Yields (number, clean image HWC uint8, noisy image HWC float32 of 0..1) in order; no noise is added."""
        for index, pair in enumerate(zip(*self._read(), strict=True)):
            if limit and index >= limit:
                return
            noisy, clean = (as_channels(image.transpose(1, 2, 0), n_channel, self.folder) for image in pair)
            yield f"{index:05d}", clean, images.to_01(noisy)


class ValidationRenders(ValidationSet):
    """A folder of buffers with converged renders in target/, scored as they are seen: tone-mapped."""

    own_noise = True

    def paths(self, limit=None):
        """The noisy renders in sorted order."""
        return [frame[0] for frame in renders.find_frames("--val_dirs", self.folder, "target")[:limit]]

    def images(self, n_channel, noise, rng, limit=None):
        """Yields (name, tone-mapped target HWC uint8, the nine channels of a network) in order; no noise is added."""
        for *paths, target_path in renders.find_frames("--val_dirs", self.folder, "target")[:limit]:
            frame = renders.read_frame(paths)
            _, target = renders.read_buffer("target", target_path)
            renders.check_size(target_path, target, paths[0], frame.render)
            name = os.path.relpath(paths[0], os.path.join(self.folder, "render"))
            yield name, renders.as_picture("target", target), frame.network_input()

    def shown(self, image_01):
        """The first three channels that a network got are the render; what it gave is linear light."""
        light = renders.decode(image_01[..., :3]) if image_01.shape[2] == renders.N_INPUT else image_01
        return renders.as_picture("render", light)


def images_by_name(flag, folder):
    """The images below a folder by their relative path without its suffix, sorted."""
    found = {}
    for path in images.find_images(flag, cli.existing_folder(flag, folder)):
        name = os.path.relpath(path.with_suffix(""), folder)
        if name in found:
            raise UserError(f"{flag}: {found[name]} and {path} have the same name")
        found[name] = path
    return found


PUBLISHED_SETS = (
    ValidationSet("Kodak", "Kodak", 10, "the 24 PNG files of the Kodak Lossless True Color Image Suite"),
    ValidationSet("BSD300", "BSD300/test", 3, "the Berkeley Segmentation Dataset, BSDS300-images.tgz, images/test"),
    ValidationSet("Set14", "Set14", 20, "the Set14 archive of the super-resolution literature"),
)


def find_validation_sets(val_dirs):
    """The sets under a folder: the published ones by their names, any other sub-folder of images by its own.

    A folder that holds noisy/ and clean/ is a set of pairs, one with render/ albedo/ normal/ a set of renders; the
    given one too.

    Returns:
        The sets that are there, and those published ones that are not.
    """
    if pair_files.is_pair_file(val_dirs):
        one = ValidationPairFile(os.path.splitext(os.path.basename(val_dirs))[0], str(val_dirs))
        one.paths()  # a file that cannot be read is told now
        return [one], []
    kind = _kind_of(cli.existing_folder("--val_dirs", val_dirs))
    if kind is not ValidationSet:
        return [kind(os.path.basename(os.path.abspath(val_dirs)), str(val_dirs))], []
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
                present.append(_kind_of(entry.path)(entry.name, entry.path))
    names = [entry.name.lower() for entry in os.scandir(val_dirs)]
    if not present and any(name.endswith(tuple(images.IMAGE_SUFFIXES)) for name in names):
        present.append(ValidationSet(os.path.basename(os.path.abspath(val_dirs)), str(val_dirs)))
    if not present:
        raise UserError(f"--val_dirs: {val_dirs} holds no images and none of the sets Kodak, BSD300/test, Set14")
    return present, absent


def _kind_of(folder):
    """The class of the validation set that a folder holds."""
    if renders.is_folder(folder):
        return ValidationRenders
    pairs = all(os.path.isdir(os.path.join(folder, name)) for name in ("noisy", "clean"))
    return ValidationPairs if pairs else ValidationSet


def read_clean(path, n_channel):
    """A clean image as it is scored: HWC uint8."""
    array = images.read_image(path).pages[0]
    if array.dtype != np.uint8:
        array = images.from_01(images.to_01(array), np.uint8)
    return as_channels(array, n_channel, path)
