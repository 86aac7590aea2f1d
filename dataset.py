"""Training images as endless, resumable batches: read, cropped, augmented, and given what the method needs beside them.

A batch is a pure function of its number, because every random choice follows from the seed, its purpose, the epoch and
the image (`denoising.data.streams`).
"""

import concurrent.futures
import hashlib
import itertools
import os
import threading

import cv2
import numpy as np

from denoising import cli
from denoising.cli import UserError
from denoising.data import pairs, renders
from denoising.data.streams import CROP, ORDER, generator, streams
from denoising.files import images, pair_files
from denoising.imaging.noise import Sensor
from denoising.imaging.pixels import as_channels, to_01
from denoising.machine import free_memory

LOOKED_AT = 24  # images: where none of the first that can be read fits the options, others hardly do


class TrainingImages:
    """A folder of images, each delivered as a random patch: noisy, and what the method needs beside it.

    Args:
        frozen: whether each image has one noise realisation for good, as a camera's files have.
        cache_bytes: decoded images are kept up to this much memory; the rest are decoded each time.
        translate: the patches are rolled by up to so many pixels along each axis.
        shrink: patches are cut out so many times as large, and scaled down; below 1 they are scaled up.
    """

    n_input: int | None = None  # channels of what the network gets, where they are not those of the image

    def __init__(
        self, data_dir, method, noise, n_channel, patchsize, seed, frozen=False, augment=False, cache_bytes=0,
        size=None, translate=0, shrink=1,
    ):  # fmt: skip
        self.method, self.noise, self.n_channel, self.patchsize, self.seed = method, noise, n_channel, patchsize, seed
        self.frozen, self.augment, self.translate, self.shrink = frozen, augment, translate, shrink
        self._cache, self._cache_left, self._lock = {}, cache_bytes, threading.Lock()
        self.broken = set()
        self.groups = self._find(data_dir)[:size]
        # Frozen noise belongs to an image, wherever it stands in the list: its name is the seed.
        self.names = [os.path.relpath(group[0], data_dir) for group in self.groups]
        self._refuse_what_does_not_fit()

    def __len__(self):
        return len(self.groups)

    def _find(self, data_dir):
        """The files of each image."""
        return [[path] for path in images.find_images("--data_dir", data_dir)]

    def _refuse_what_does_not_fit(self):
        """Refuses images that do not fit the options before training starts: broken ones, too, where all are."""
        broken, wrong = [], []
        for index, group in enumerate(self.groups):
            errors = broken
            try:
                for path in group:
                    images.read_image(path)
                errors = wrong
                self._layers(index, generator(self.seed, CROP))
                return
            except UserError as error:
                errors.append(error)
            if len(wrong) == LOOKED_AT:
                break
        raise (wrong or broken)[0]

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
        self.method.check(path, picture.pages[0], image, self.patchsize, self.frozen)
        return image

    def _layers(self, index, rng):
        """The clean image alone, or the noisy one and what is cut out along with it, HWC of one size."""
        return self._cached(index, lambda: self._make_layers(index))

    def _make_layers(self, index):
        image = self._read(self.groups[index][0])
        if not self.frozen:
            return [image]
        digest = hashlib.sha256(os.fsencode(self.names[index])).digest()
        # Frozen noise is that of the whole image: no crop of it is drawn anew.
        return self._corrupt(to_01(image), int.from_bytes(digest[:8], "big"))

    def _corrupt(self, clean, *place):
        return self.method.corrupt(clean, self.noise, streams(self.seed, *place))

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
        """The noisy patch of one image in one epoch, CHW float32, and what the method needs beside it."""
        rng = generator(self.seed, CROP, epoch, index)
        patches = self._patches(self._layers_or_next(index, rng), rng)
        if len(patches) == 1 and not self.frozen:
            patches = self._corrupt(patches[0], epoch, index)
        patches = [np.ascontiguousarray(patch.transpose(2, 0, 1)) for patch in patches]
        return (*patches, *self.method.beside(patches[0], streams(self.seed, epoch, index)))

    def batch(self, places):
        """The samples of some (epoch, image), stacked."""
        samples = [self.sample(epoch, index) for epoch, index in places]
        return tuple(np.stack(part) for part in zip(*samples, strict=True))

    def _patches(self, layers, rng):
        """The same random patch of each layer, float32."""
        size = max(1, round(self.patchsize * self.shrink))
        height, width = layers[0].shape[:2]
        if height < size or width < size:
            pad = [(0, max(size - height, 0)), (0, max(size - width, 0)), (0, 0)]
            layers = [np.pad(layer, pad, "reflect" if min(height, width) > 1 else "edge") for layer in layers]
            height, width = layers[0].shape[:2]
        top, left = rng.integers(0, height - size + 1), rng.integers(0, width - size + 1)
        patches = [to_01(layer[top : top + size, left : left + size]) for layer in layers]
        if self.shrink != 1:
            wanted, way = (self.patchsize, self.patchsize), cv2.INTER_AREA if self.shrink > 1 else cv2.INTER_LANCZOS4
            patches = [np.clip(cv2.resize(patch, wanted, interpolation=way), 0, 1) for patch in patches]
            patches = [patch if patch.ndim == 3 else patch[..., None] for patch in patches]
        if self.augment:
            turns = rng.integers(4)
            patches = [np.rot90(patch, turns) for patch in patches]
            patches = [patch[:, ::-1] for patch in patches] if rng.integers(2) else patches
        if self.translate:
            by = rng.integers(-self.translate, self.translate + 1, 2)
            patches = [np.roll(patch, by, axis=(0, 1)) for patch in patches]
        return patches


SPLATTED = 0.25  # of the patches of renders: their samples count for several pixels, as many renderers' do


class TrainingRenders(TrainingImages):
    """A folder of buffers (renders.py): render, albedo and normal go in, another render of the scene is the target."""

    n_input = renders.N_INPUT

    def __init__(self, *options, relight=False, colour_only=0.0, **more):
        """With `relight` exposure and colours vary, and a quarter of the patches shares its noise among neighbours.

        A share of `colour_only` of the patches lacks its buffers.
        """
        self.relight, self.colour_only = relight, colour_only
        super().__init__(*options, **more)

    def _patches(self, layers, rng):
        code, target = super()._patches(layers, rng)
        if self.relight:
            code, target = renders.relit(code, target, rng)
            if rng.random() < SPLATTED:
                code, target = renders.splatted(code, target)
        if self.colour_only and rng.random() < self.colour_only:
            code = np.concatenate([code[..., :3], np.zeros_like(code[..., 3:])], axis=2)
        return [code, target]

    def _find(self, data_dir):
        return renders.find_frames("--data_dir", data_dir, "clean" if self.method.clean_targets else "target")

    def _make_layers(self, index):
        frame, target = renders.read_with_target(self.groups[index])
        return [frame.network_input(), target]


class TrainingMosaics(TrainingImages):
    """A folder of RGB images as the sensor of a simulated camera reads them: mosaic and deviation, another mosaic."""

    n_input = 2

    def __init__(self, data_dir, method, noise, n_channel, *options, **more):
        sensor = Sensor(noise.name, noise.low, noise.high)
        super().__init__(data_dir, method, sensor, 3, *options, **more)


class TrainingPairs(TrainingImages):
    """Pairs of files in place of simulated noise; what is drawn anew in each epoch is which frame is the input.

    Args:
        pair_dir: holds a file of the same name, whatever its suffix, for each one of `data_dir`: the clean image, where
            the method has clean targets. Without `data_dir` it holds a folder for each scene, with two frames or more.
        workers: the threads that compare the pairs before training starts.
    """

    def __init__(self, data_dir, pair_dir, *options, workers=2, **more):
        self.pair_dir = pair_dir
        same = bool(data_dir) and os.path.realpath(data_dir) == os.path.realpath(pair_dir)
        cli.refuse((same, f"--pair_dir: {pair_dir} is --data_dir itself, and holds no other frames"))
        super().__init__(data_dir or pair_dir, *options, **more)
        self._check(workers)

    def _find(self, data_dir):
        if data_dir == self.pair_dir:
            return pairs.find_scenes(self.pair_dir)
        return pairs.find_pairs(data_dir, self.pair_dir)

    def _layers(self, index, rng):
        group = self.groups[index]
        first, second = (0, 1) if self.method.clean_targets else rng.choice(len(group), 2, replace=False)
        return self._read_pair(group[first], group[second])

    def _read_pair(self, first, second):
        pair = [self._cached(path, lambda path=path: [self._read(path)])[0] for path in (first, second)]
        if pair[0].shape != pair[1].shape:
            raise pairs.unequal(first, pair[0].shape, second, pair[1].shape)
        return pair

    def _check(self, workers):
        """Refuses frames that differ in size or are shifted, and tells of unlike ones, before training starts."""
        firsts, others = zip(*[(group[0], other) for group in self.groups for other in group[1:]], strict=True)
        with (
            concurrent.futures.ThreadPoolExecutor(workers) as pool,
            cli.progress(total=len(firsts), unit="pair", label="checking pairs") as bar,
        ):
            strangers = []
            for pair, unlike in pool.map(self._check_pair, firsts, others):
                if unlike:
                    strangers.append(pair)
                bar.update()
        if len(strangers) > len(firsts) / 2:
            first, second = strangers[0]
            cli.note(
                f"--pair_dir: {len(strangers)} of {len(firsts)} pairs have nothing in common, such as {first} and "
                f"{second}: do both show the same scene?"
            )

    def _check_pair(self, first, second):
        pair = self._read_pair(first, second)
        # A target without noise may be what it belongs to; a second frame of one colour has nothing to teach.
        if not self.method.clean_targets and np.array_equal(*pair) and np.ptp(pair[0]):
            raise UserError(f"--pair_dir: {second} is the same image as {first}, and no other frame")
        down, right = pairs.shift_between(*pair)
        if down or right:
            raise UserError(f"--pair_dir: {second} shows the scene of {first} moved by {down} down, {right} right")
        return (first, second), pairs.unlike(*pair)


class PairFile:
    """The pairs of a file (pair_files.py), a batch at once, which takes a fifth of the time of one patch after another.

    What is drawn anew in each epoch is the place of the patch in its image, its orientation, and which of two noisy
    images is the input.

    Args:
        patchsize: side of the patches; images that are no larger are taken whole.
        clean_targets: whether the file holds clean images beside the noisy ones, or other noisy ones.
    """

    n_input = None

    def __init__(self, path, n_channel, patchsize, seed, augment=False, clean_targets=False, size=None):
        names = pair_files.VALIDATION if clean_targets else pair_files.TRAINING
        self.halves = [half[:size] for half in pair_files.read(path, names)]
        count, channels, height, width = self.halves[0].shape
        if channels != n_channel:
            raise UserError(f"--data_dir: {path} has {channels} channels, --n_channel is {n_channel}")
        self.size, self.room = min(patchsize, height, width), (height, width)
        self.seed, self.augment, self.swap, self.count = seed, augment, not clean_targets, count
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
        return tuple(to_01(part) for part in parts)


def _oriented(patches, ways):
    """Square patches [N, C, P, P], each turned by so many quarters, and flipped from four on."""
    result = np.empty_like(patches)
    for way in range(8):
        turned = np.rot90(patches[ways == way], way % 4, axes=(2, 3))
        result[ways == way] = turned[..., ::-1] if way >= 4 else turned
    return result


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

    def check_memory(self, bytes_per_pixel=0):
        """Refuses batches that cannot fit; `bytes_per_pixel` is what the network takes of this memory at least."""
        sample = self.dataset.batch([(0, 0)])
        loaded = sum(array.nbytes for array in sample) * (self.ahead + 1)  # one more is in use
        fitting = int(free_memory() // (loaded + bytes_per_pixel * sample[0][0, 0].size))
        if self.batchsize > max(fitting, 1):
            raise UserError(
                f"--batchsize: {self.batchsize} patches do not fit into memory; at most {fitting} of this size do"
            )

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
