"""Validation sets: the published ones by their names, and any other folder of clean images, pairs or renders."""

import os
import re
from dataclasses import dataclass

import numpy as np

from denoising import cli
from denoising.cli import UserError
from denoising.data import renders
from denoising.files import images, pair_files
from denoising.files.archives import MAX_SMALL_BYTES, list_entries
from denoising.imaging.pixels import as_channels, from_01, to_01


@dataclass(frozen=True)
class ValidationSet:
    """Clean images to score on, and how often the published protocol repeats them."""

    name: str
    folder: str
    repeats: int = 1
    origin: str = ""
    own_noise = False  # whether the noisy images come with the clean ones

    def paths(self, limit=None):
        """The clean images' files, or their numbers, in sorted order, which the published noise depends on."""
        return images.find_images("--val_dirs", self.folder)[:limit]

    def images(self, n_channel, noise, rng, limit=None):
        """Yields (name, clean image HWC uint8, noisy image HWC float32 of 0..1) in order.

        The noise is added here, unless the set has its own. What a render's network gets has nine channels.
        """
        for path in self.paths(limit):
            clean = read_clean(path, n_channel)
            yield os.path.relpath(path, self.folder), clean, noise.add(to_01(clean), rng)

    def shown(self, image_01):
        """What a network got or gave as it is scored, HWC uint8."""
        return from_01(image_01, np.uint8)


class ValidationPairs(ValidationSet):
    """A folder with the sub-folders noisy/ and clean/, whose files have the same names."""

    own_noise = True

    def paths(self, limit=None):
        return images.find_images("--val_dirs", os.path.join(self.folder, "clean"))[:limit]

    def images(self, n_channel, noise, rng, limit=None):
        partners = images.by_name("--val_dirs", os.path.join(self.folder, "noisy"))
        for path in self.paths(limit):
            name = os.path.relpath(path, os.path.join(self.folder, "clean"))
            partner = partners.get(os.path.splitext(name)[0])
            if partner is None:
                raise UserError(f"--val_dirs: {path} has no partner in {self.folder}/noisy")
            clean = read_clean(path, n_channel)
            noisy = to_01(as_channels(_read(partner), n_channel, partner))
            if noisy.shape != clean.shape:
                raise UserError(f"--val_dirs: {partner} and {path} differ in size")
            yield name, clean, noisy


class ValidationPairFile(ValidationSet):
    """A file of noisy and clean images (files/pair_files.py); `folder` is its path."""

    own_noise = True

    def _read(self, limit):
        return [half[:limit] for half in pair_files.read(self.folder, pair_files.VALIDATION)]

    def paths(self, limit=None):
        return range(len(self._read(limit)[0]))

    def images(self, n_channel, noise, rng, limit=None):
        for index, pair in enumerate(zip(*self._read(limit), strict=True)):
            noisy, clean = (as_channels(image.transpose(1, 2, 0), n_channel, self.folder) for image in pair)
            yield f"{index:05d}", clean, to_01(noisy)


class ValidationRenders(ValidationSet):
    """A folder of buffers with converged renders in target/, scored as they are seen: tone-mapped."""

    own_noise = True

    def paths(self, limit=None):
        return [frame[0] for frame in renders.find_frames("--val_dirs", self.folder, "target")[:limit]]

    def images(self, n_channel, noise, rng, limit=None):
        for paths in renders.find_frames("--val_dirs", self.folder, "target")[:limit]:
            frame, target = renders.read_with_target(paths)
            name = os.path.relpath(paths[0], os.path.join(self.folder, "render"))
            yield name, renders.as_picture("target", target), frame.network_input()

    def shown(self, image_01):
        """The first three channels that a network got are the render; what it gave is linear light."""
        light = renders.decode(image_01[..., :3]) if image_01.shape[2] == renders.N_INPUT else image_01
        return renders.as_picture("render", light)


@dataclass(frozen=True)
class Published:
    """A validation set of the literature, and what its owner's archive holds of it."""

    name: str
    folder: str  # below --val_dirs
    repeats: int  # in the published protocol
    count: int  # of its images
    members: str  # a pattern: which of an archive's files belong to it
    origin: str


PUBLISHED_SETS = {
    published.name: published
    for published in (
        Published("Kodak", "Kodak", 10, 24, r"(^|/)[^/]+$",
                  "the 24 PNG files of the Kodak Lossless True Color Image Suite"),
        Published("BSD300", "BSD300/test", 3, 100, r"(^|/)test/[^/]+$",
                  "the Berkeley Segmentation Dataset, BSDS300-images.tgz, images/test"),
        Published("Set14", "Set14", 20, 14, r"(^|/)(image_SRF_2/[^/]*_HR[^/]*|(?!.*_SRF_)[^/]+)$",
                  "the Set14 archive of the super-resolution literature"),
    )
}  # fmt: skip


def place(name, source, save_dir, overwrite):
    """Copies the images of a published set, byte for byte, to where `find_validation_sets` looks for them."""
    published = PUBLISHED_SETS[name]
    entries = [entry for entry in list_entries("--input_dir", source, compressed=True)
               if entry.size <= MAX_SMALL_BYTES and entry.name.lower().endswith(images.IMAGE_SUFFIXES)]  # fmt: skip
    chosen = [entry for entry in entries if re.search(published.members, entry.name)]
    # A folder or archive of the test images alone has no folder "test".
    chosen = chosen or [entry for entry in entries if not re.search(r"(^|/)train/", entry.name)]
    if not chosen:
        raise UserError(f"--input_dir: no image of {name} in {source}")
    folder = cli.writable_folder("--save_dir", os.path.join(save_dir, published.folder))
    for entry in cli.progress(chosen, unit="image"):
        data = entry.read()
        images.read_image(entry.name, data)
        target = os.path.join(folder, os.path.basename(entry.name))
        if os.path.exists(target) and images.read_bytes(target) != data and not overwrite:
            raise UserError(f"--save_dir: {target} is there with other content; --overwrite replaces it")
        images.write_bytes(target, data)
    print(f"{len(chosen)} images in {folder}")
    if len(chosen) != published.count:
        cli.note(f"{name} has {published.count} images: this is not the set as it was published")


def find_validation_sets(val_dirs):
    """The sets under a folder: the published ones by their names, any other sub-folder of images by its own.

    A folder that holds noisy/ and clean/ is a set of pairs, one with render/ albedo/ normal/ a set of renders; the
    given one too.

    Returns:
        The sets that are there, and those published ones that are not.
    """
    if pair_files.is_pair_file(val_dirs):
        pairs = ValidationPairFile(os.path.splitext(os.path.basename(val_dirs))[0], str(val_dirs))
        pairs.paths()  # refuses a file that cannot be read before anything slow begins
        return [pairs], []
    kind = _kind_of(cli.existing_folder("--val_dirs", val_dirs))
    if kind is not ValidationSet:
        return [kind(os.path.basename(os.path.abspath(val_dirs)), str(val_dirs))], []
    present, absent = [], []
    for published in PUBLISHED_SETS.values():
        folder = os.path.join(val_dirs, published.folder)
        if published.name == "Kodak" and not os.path.isdir(folder):
            folder = os.path.join(val_dirs, "Kodak24")  # as its archives often name it
        found = ValidationSet(published.name, folder, published.repeats, published.origin)
        (present if os.path.isdir(folder) else absent).append(found)
    taken = {"Kodak24", *(published.folder.split("/")[0] for published in PUBLISHED_SETS.values())}
    for entry in sorted(os.scandir(val_dirs), key=lambda entry: entry.name):
        if entry.is_dir() and entry.name not in taken and not entry.name.startswith("."):
            try:
                images.find_images("--val_dirs", entry.path)
            except UserError as error:
                cli.note(f"{error}; passed over")
            else:
                present.append(_kind_of(entry.path)(entry.name, entry.path))
    beside = [name for name in os.listdir(val_dirs) if name.lower().endswith(images.IMAGE_SUFFIXES)]
    if present and beside:
        cli.note(f"--val_dirs: images beside the folders in {val_dirs} are not scored ({len(beside)})")
    elif beside:
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
    array = _read(path)
    if array.dtype != np.uint8:
        array = from_01(to_01(array), np.uint8)
    return as_channels(array, n_channel, path)


def _read(path):
    pages = images.read_image(path).pages
    cli.refuse((len(pages) > 1, f"--val_dirs: {path} has {len(pages)} pages; dataset_tool.py splits such files"))
    return pages[0]
