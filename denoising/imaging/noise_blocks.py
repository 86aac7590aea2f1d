"""Blocks of an image that are flat, and the spectrum of what varies in them.

A block of 16 x 16 pixels is transformed by a DCT. Blocks are chosen by one half of their frequencies and measured in
the other half: noise does not connect the two, so choosing the quietest blocks does not make the noise look quieter
than it is, while a block with texture has it in both halves and is left out.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np

from denoising.imaging.pixels import to_01

SIZE = 16  # of a block
MAX_BLOCKS = 8000  # of an image, whatever its size
LEAST = 0.7  # of 255
RANGES = 12  # of brightness
# Blocks in order of their energy: the quietest quarter of a percent, the next one, and so on.
SHARES = (0, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16)

_k = np.arange(SIZE)
DCT = np.sqrt(2 / SIZE) * np.cos(np.pi * (2 * _k[None] + 1) * _k[:, None] / (2 * SIZE))
DCT[0] /= np.sqrt(2)
DCT = DCT.astype(np.float32)
ORDER = _k[:, None] + _k[None]  # of each frequency, from 0 (the mean) to 30 (a checkerboard)
USED = ORDER > 2  # below it lies the shading of the scene
HALVES = ((ORDER % 2 == 0) & USED, (ORDER % 2 == 1) & USED)
HIGH, MIDDLE = ORDER >= SIZE, (ORDER >= 4) & (ORDER < SIZE)


@dataclass(frozen=True)
class Blocks:
    """The blocks of an image that can be measured.

    Attributes:
        corners: N x 2, the row and column of their first pixel.
        coefficients: N x C x 16 x 16, of the DCT of pixels on 0..255.
        energy: their squares.
        means_255: N x C.
        cut_off: N x C, the share of their pixels that are black or white.
        clipped: the same of all of the image.
        least: noise weaker than this is the rounding and compression of any file; of 16 bits and floats in proportion
            to the range that the image uses.
        of_pair: whether they are of the difference of two frames, which has no texture.
    """

    corners: np.ndarray
    coefficients: np.ndarray
    energy: np.ndarray
    means_255: np.ndarray
    cut_off: np.ndarray
    clipped: float
    least: float
    of_pair: bool = False

    def __len__(self):
        return len(self.corners)

    def only(self, chosen):
        """Those of a mask."""
        each = ("corners", "coefficients", "energy", "means_255", "cut_off")
        return dataclasses.replace(self, **{name: getattr(self, name)[chosen] for name in each})


def cut(image, second=None, drawn=True):
    """Blocks spread over an image, H x W x C, without those that are clipped or of one colour.

    Given a second frame of the same scene, they are of the difference of the two, over the root of two. Without what
    was drawn, blocks are left out of which one side is of one colour, as where a page begins, and its letters.
    """
    pixels, corners = _spread(image)
    black, white = _limits(image)
    clipped = ((pixels <= black) | (pixels >= white)).mean((2, 3))
    keep = (pixels.min((2, 3)) < pixels.max((2, 3))).all(1) & (clipped < 0.4).all(1)
    if not drawn:
        sides = pixels[..., 0, :], pixels[..., -1, :], pixels[..., 0], pixels[..., -1]
        keep &= np.all([(side.min(2) < side.max(2)).any(1) for side in sides], axis=0)
    keep[keep] = _unclipped(pixels[keep], clipped[keep].max(1))
    blocks_255 = to_01(pixels[keep]) * np.float32(255)
    means_255 = blocks_255.mean((2, 3))
    if second is not None:
        blocks_255 = (blocks_255 - to_01(_spread(second)[0][keep]) * np.float32(255)) / np.float32(np.sqrt(2))
    coefficients = DCT @ _level(blocks_255) @ DCT.T
    least = LEAST
    if image.dtype != np.uint8 and len(means_255):
        least *= float(np.clip(np.quantile(means_255, 0.99) / 255, 1e-4, 1))
    pair = second is not None
    return Blocks(
        corners[keep],
        coefficients,
        np.square(coefficients),
        means_255,
        clipped[keep],
        float(clipped.mean()),
        least,
        pair,
    )


def _level(blocks):
    """Blocks without their slope, which a DCT, unlike a curve, would find at all frequencies."""
    ramp = np.linspace(-1, 1, SIZE, dtype=np.float32)
    down = np.einsum("ncyx,y->nc", blocks, ramp) / (SIZE * np.square(ramp).sum())
    across = np.einsum("ncyx,x->nc", blocks, ramp) / (SIZE * np.square(ramp).sum())
    return blocks - down[..., None, None] * ramp[:, None] - across[..., None, None] * ramp


def _spread(image):
    """Up to MAX_BLOCKS blocks of pixels N x C x 16 x 16, and the row and column of the first pixel of each."""
    height, width = (side - SIZE + 1 for side in image.shape[:2])
    step = max(4, int(np.sqrt(height * width / MAX_BLOCKS)))
    while (-(-height // step)) * (-(-width // step)) > MAX_BLOCKS:
        step += 1
    views = np.lib.stride_tricks.sliding_window_view(image, (SIZE, SIZE), axis=(0, 1))[::step, ::step]
    rows, columns = np.mgrid[: views.shape[0], : views.shape[1]] * step
    return np.ascontiguousarray(views.reshape(-1, *views.shape[2:])), np.stack((rows.ravel(), columns.ravel()), 1)


def _limits(image):
    """The values at which an image is clipped."""
    if image.dtype.kind == "u":
        return 0, np.iinfo(image.dtype).max
    values = np.unique(image[:: 1 + len(image) // 300])
    if len(values) > 1 and np.diff(values).min() > 1 / 128:
        return -np.inf, np.inf  # so few photons that they can be counted: none at all is a measurement like any other
    return image.min(), image.max()


def _unclipped(blocks, clipped):
    """Which blocks are of a brightness whose noise hardly reaches black or white, as far as there are such.

    Leaving out single blocks, for what is clipped in them, would leave out those whose noise is strong by chance.
    """
    order = np.argsort(blocks.mean((1, 2, 3)))
    share = np.empty(len(blocks))
    for members in np.array_split(order, max(1, min(3 * RANGES, len(order) // 20))):
        share[members] = np.sum(clipped[members]) / max(len(members), 1)
    for most in (0.02, 0.05, 0.1, 0.2):
        keep = share < most
        if keep.sum() > max(200, 0.1 * len(blocks)):
            break
    return keep


def cut_short(share):
    """The part of a normal variance that is left when a share of the values, at one side, is cut off at a limit."""
    from scipy.special import ndtri  # slow to import

    below = np.clip(share, 1e-9, 0.5)
    limit = ndtri(below)
    density = np.exp(-(limit**2) / 2) / np.sqrt(2 * np.pi)
    return limit**2 * below + limit * density + 1 - below - (density + limit * below) ** 2


def band(blocks, mask):
    """The mean energy of the frequencies in a mask, of each half of them: two arrays of N x C."""
    return [blocks.energy[:, :, half & mask].mean(2) for half in HALVES]


def by_brightness(blocks, mask, share, restored=False):
    """The mean brightness and energy of the quietest blocks of each range of brightness: ranges x C each, on 0..255.

    `restored` computes back what was cut off at black and white.
    """
    halves = band(blocks, mask)
    levels, energies = [], []
    for members in brightness_ranges(blocks):
        picks = [members[lowest(half[members].sum(1), share)] for half in halves]
        both = np.concatenate(picks)
        left = cut_short(blocks.cut_off[both].mean(0)) if restored else 1
        levels.append(blocks.means_255[both].mean(0))
        energies.append(sum(other[pick].mean(0) for pick, other in zip(picks, halves[::-1], strict=True)) / 2 / left)
    return np.array(levels), np.array(energies)


def brightness_ranges(blocks):
    """The numbers of the blocks in each range of brightness, as many in each."""
    order = np.argsort(blocks.means_255.mean(1))
    return np.array_split(order, max(1, min(RANGES, len(order) // 250)))


def lowest(scores, share, least=5):
    """The numbers of the blocks with the lowest scores."""
    count = min(max(int(share * len(scores)), least), len(scores))
    return np.argpartition(scores, count - 1)[:count]


def profile(blocks, relative):
    """Mean spectra of ever less quiet blocks, shares x C x 16 x 16, and the two orders of the blocks.

    Args:
        blocks: those to put in order.
        relative: N x C, by which the energies are multiplied: what the noise is expected to be, inverted.
    """
    orders, result = [], np.zeros((len(SHARES) - 1, *blocks.energy.shape[1:]))
    for half, other in (HALVES, HALVES[::-1]):
        score = (blocks.energy[:, :, half].sum(2) * relative).sum(1)
        order = np.argsort(score)
        orders.append(order)
        edges = [int(share * len(order)) for share in SHARES]
        for i, (start, end) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
            pick = order[start : max(end, start + 1)]
            result[i] += np.einsum("nchw,nc->chw", blocks.energy[pick], relative[pick]) / len(pick) * other
    return result, orders
