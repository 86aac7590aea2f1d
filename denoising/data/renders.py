"""Renders of Monte Carlo path tracers with what denoisers get beside them: albedo and normals, in folders.

A folder of buffers holds render/ albedo/ normal/ with a file of the same name for each frame, of any format; to learn
from or to score with also target/ (another noisy render, or the converged one) or clean/ (the converged one). A frame
may also be one EXR file whose layers are called so. Renders are linear light; 8-bit files hold it tone-mapped.
"""

import contextlib
import os
from dataclasses import dataclass

import cv2
import numpy as np

from denoising.cli import UserError
from denoising.files import exr, images
from denoising.imaging.pixels import Picture, check_finite, from_01, to_01

BUFFERS = ("render", "albedo", "normal")
N_INPUT = 9  # channels: three of each
GAMMA = 2.2
BLOCK = 16  # pixels
CHANGED = 0.002  # of the blocks of two renders of one view, at most, differ by more than noise
LEAST_CHANGE = 1e-3  # of white: what rounding does to files of 8 bits


# --- Light ----------------------------------------------------------------------------------------------------


def tone_map(light):
    """Reinhard's global operator with a display's gamma, as in Noise2Noise: [0, inf) to [0, 1)."""
    light = np.maximum(light, 0)
    return (light / (1 + light)) ** np.float32(1 / GAMMA)


def untone(display):
    """The inverse of `tone_map`; what had been rounded up to white is half a step of 8 bits below it."""
    ratio = np.minimum(display, np.float32(254.5 / 255)) ** np.float32(GAMMA)
    return ratio / (1 - ratio)


def encode(light):
    """Light as a network gets it: its logarithm, from 1 % of white on, so that dark parts count as bright ones do."""
    return np.log1p(np.maximum(light, 0) / np.float32(0.01)) / np.float32(5)


def decode(code):
    """The inverse of `encode`."""
    return np.expm1(code * np.float32(5)) * np.float32(0.01)


def as_picture(kind, buffer):
    """A buffer as HWC uint8: renders tone-mapped, normals from -1..1 to 0..1."""
    if kind == "normal":
        buffer = 0.5 + 0.5 * buffer
    elif kind != "albedo":
        buffer = tone_map(buffer)
    return from_01(buffer.astype(np.float32), np.uint8)


# --- Folders --------------------------------------------------------------------------------------------------


def is_folder(path):
    """Whether a folder holds buffers."""
    return all(os.path.isdir(os.path.join(path, name)) for name in BUFFERS)


def are_frames(paths):
    """Whether all files are EXR images, and the first one that can be read holds albedo and normals as layers."""
    if not all(path.suffix.lower() == ".exr" for path in paths):
        return False
    for path in paths:
        with contextlib.suppress(UserError):  # what is broken is reported when it is denoised
            picture = images.read_image(path)
            return all(exr.layer(picture, kind) is not None for kind in BUFFERS[1:])
    return False


def find_frames(flag, folder, target=None):
    """The files of each frame, render first: [[render, albedo, normal(, target)], ...] sorted by name.

    Raises:
        UserError: a folder is missing, or a file has no partner of its name in another one.
    """
    kinds = [*BUFFERS, *([target] if target else [])]
    found = {}
    for kind in kinds:
        where = os.path.join(folder, kind)
        if not os.path.isdir(where):
            hint = "; tools/render_dataset.py --clean_targets makes them" if kind == "clean" else ""
            raise UserError(f"{flag}: {where} does not exist{hint}")
        found[kind] = images.by_name(flag, where)
    names = sorted(found["render"])
    for kind in kinds[1:]:
        for here, there in (("render", kind), (kind, "render")):
            lonely = sorted(set(found[here]) - set(found[there]))
            if lonely:
                raise UserError(f"{flag}: {found[here][lonely[0]]} has no partner in {os.path.join(folder, there)}")
    return [[found[kind][name] for kind in kinds] for name in names]


# --- Reading --------------------------------------------------------------------------------------------------


@dataclass
class Frame:
    """One render and its buffers, H x W x 3 float32; `picture` is the file of the render."""

    render: np.ndarray
    albedo: np.ndarray
    normal: np.ndarray
    picture: Picture

    def part(self, where):
        """A part of it, of rows and columns."""
        buffers = [np.ascontiguousarray(buffer[where]) for buffer in (self.render, self.albedo, self.normal)]
        return Frame(*buffers, self.picture)

    def network_input(self):
        """What a network gets, H x W x 9; what it gives is linear light."""
        return np.concatenate([encode(self.render), np.clip(self.albedo, 0, 1), self.normal], axis=2)


def read_frame(paths, needs_buffers=True):
    """Reads a frame of `find_frames` (its render, albedo and normal), or one EXR file with these layers.

    Without `needs_buffers` it may also be an image alone, of any format; what is not there is zero.
    """
    picture, render = read_buffer("render", paths[0])
    if len(paths) > 1:
        others = [read_buffer(kind, path)[1] for kind, path in zip(BUFFERS[1:], paths[1:3], strict=True)]
    else:
        others = [exr.layer(picture, kind) for kind in BUFFERS[1:]]
        if not needs_buffers and all(layer is None for layer in others):
            others = [np.zeros_like(render) for _ in others]
        if any(layer is None for layer in others):
            raise UserError(
                f"{paths[0]}: the network takes renders with albedo and normals: an EXR file that has such layers, "
                "or a folder that holds render/ albedo/ normal/"
            )
    for path, layer in zip(paths[1:3] or [paths[0]] * 2, others, strict=True):
        check_size(path, layer, paths[0], render)
        check_finite(path, layer)
    return Frame(render, *others, picture)


def same_view(first, second):
    """Whether two frames are independent renders of one view.

    Then no mean over 16x16 pixels differs by much more than its own noise: in renders of 4 samples none of 3,000 did by
    four deviations, and two in a hundred where the camera had moved by a third of a pixel.
    """
    if first.render.shape != second.render.shape or np.array_equal(first.render, second.render):
        return False
    shown = (tone_map(first.render), tone_map(second.render))
    for one, other in (shown, (first.albedo, second.albedo), (first.normal, second.normal)):
        height, width = (side // BLOCK for side in one.shape[:2])
        blocks = (one - other)[: height * BLOCK, : width * BLOCK].reshape(height, BLOCK, width, BLOCK, 3)
        noise = blocks.std(axis=(1, 3)) / BLOCK
        unlike = np.abs(blocks.mean(axis=(1, 3))) > 4 * noise + LEAST_CHANGE
        if unlike.mean() > CHANGED:
            return False
    return True


def mean(frames):
    """The mean of renders of one view, as if its paths had been traced for as long as theirs together."""
    names = ("render", "albedo", "normal")
    buffers = [np.mean([getattr(frame, name) for frame in frames], axis=0, dtype=np.float32) for name in names]
    return Frame(*buffers, frames[0].picture)


def read_with_target(paths):
    """Reads a frame and its target: what `read_frame` returns, and H x W x 3 float32 in the units of EXR."""
    *paths, target_path = paths
    frame = read_frame(paths)
    _, target = read_buffer("target", target_path)
    check_size(target_path, target, paths[0], frame.render)
    return frame, target


def read_buffer(kind, path):
    """The Picture of a file, and its pixels as H x W x 3 float32 in the units of EXR."""
    picture = images.read_image(path)
    page = picture.pages[0]
    if len(picture.pages) > 1:
        raise UserError(f"{path}: has {len(picture.pages)} pages; a buffer has one")
    if page.shape[2] not in (1, 3):
        raise UserError(f"{path}: has {page.shape[2]} channels; a buffer has 3")
    pixels = np.repeat(page, 3, axis=2) if page.shape[2] == 1 else page
    if pixels.dtype.kind == "u":
        pixels = to_01(pixels)
        pixels = {"albedo": lambda x: x, "normal": lambda x: 2 * x - 1}.get(kind, untone)(pixels)
    return picture, pixels


def check_size(path, array, other_path, other):
    """Refuses two buffers of one frame that differ in size."""
    if array.shape != other.shape:
        sizes = [f"{a.shape[1]}x{a.shape[0]}" for a in (array, other)]
        raise UserError(f"{path} is {sizes[0]}, but {other_path} is {sizes[1]}")


# --- Training -------------------------------------------------------------------------------------------------


def relit(code, target, rng):
    """What a network gets and a target, H x W x 9 and 3, in another exposure and other colours.

    Light and albedo of the channels change places, each becomes brighter or darker, and the world is turned by a
    quarter or mirrored, of which only the normals tell.
    """
    order, axes = rng.permutation(3), rng.permutation(3)
    gain = (2 ** (rng.uniform(-1.5, 1.5) + rng.uniform(-0.5, 0.5, 3))).astype(np.float32)
    signs = rng.choice(np.array([-1, 1], np.float32), 3)
    render, albedo, normal = np.split(code, 3, axis=2)
    parts = [encode(decode(render[..., order]) * gain), albedo[..., order], normal[..., axes] * signs]
    return np.concatenate(parts, axis=2), target[..., order] * gain


def splatted(code, target):
    """The same, as by a renderer whose samples count for several pixels, which then share their noise.

    Mitsuba's default is a Gaussian of half a pixel; what has one sample for one pixel is convolved with it.
    """
    light, guides = np.split(code, [3], axis=2)
    light, guides, target = (cv2.GaussianBlur(part, (5, 5), 0.5) for part in (decode(light), guides, target))
    return np.concatenate([encode(light), guides], axis=2), target


# --- Denoising ------------------------------------------------------------------------------------------------


def denoise(denoiser, frame):
    """The denoised render in linear light, H x W x 3 float32."""
    denoised = np.maximum(denoiser(frame.network_input()), 0)
    strength = np.float32(denoiser.amount.strength)
    return frame.render + strength * (denoised - frame.render)


def as_stored(frame, denoised):
    """A denoised render in the type and units of its file: tone-mapped integers, or linear light."""
    dtype = frame.picture.pages[0].dtype
    return from_01(tone_map(denoised), dtype) if dtype.kind == "u" else denoised
