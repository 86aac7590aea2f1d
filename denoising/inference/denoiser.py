"""The one path from a noisy image to a denoised one: pad or tile, run, crop.

>>> from denoising import Denoiser
>>> denoised = Denoiser("best_model.pdparams")(noisy)  # HWC or HW, uint8, uint16 or float32; the same kind back
"""

import math

import numpy as np
import paddle

from denoising import machine
from denoising.engine import operators
from denoising.files import images
from denoising.inference.checkpoint import load_network

TILE_BYTES = 4 << 30  # at most this much working memory is planned for one tile


class Denoiser:
    """Applies a network to images of any size and type.

    Args:
        network: a network, or the path of a .pdparams file.
        ops: how a network that is loaded computes, of `devices.prepare`; unless given, as fast as it can.
        tile: side in pixels of the largest square (by area) that is run at once; None plans it from free memory.
        strength: 0..1, how much of the denoised image goes into the result (of renders, `renders.denoise` mixes them).
        tta: averages the eight flips and rotations: eight times the work.
    """

    def __init__(self, network, ops=None, tile=None, strength=1.0, tta=False):
        self.options = {}
        if not isinstance(network, paddle.nn.Layer):
            network, self.options = load_network(network)
            network.ops = ops or operators.choose()[0]
        if not 0 <= strength <= 1 or (tile is not None and tile < 1):
            raise ValueError(f"strength is 0..1 and tile a positive number, not {strength} and {tile}")
        self.network, self.tile, self.strength, self.tta = network, tile, strength, tta
        self.n_channel = network.options["n_channel"]
        self.n_input = network.options.get("n_input") or self.n_channel

    def __call__(self, image):
        """Denoises an HWC or HW array: uint8, uint16, or float32 with 0..1 as display range, not clipped.

        Raises:
            ValueError: a type, shape or content that is no image for this network.
        """
        image = np.asarray(image)
        image = image.astype(image.dtype.newbyteorder("="), copy=False)
        if image.ndim not in (2, 3) or image.size == 0:
            raise ValueError(f"an image is an array of H x W or H x W x C, not {image.shape}")
        if image.dtype not in (np.uint8, np.uint16, np.float32):
            raise ValueError(f"an image is uint8, uint16 or float32, not {image.dtype}")
        if image.dtype == np.float32 and not np.isfinite(image).all():
            raise ValueError("the image holds NaN or infinite pixels")
        hwc = image if image.ndim == 3 else image[..., None]
        channels = hwc.shape[2]
        if channels == self.n_input:
            result = self._in_tiles(hwc)
        elif self.n_input != self.n_channel:
            wanted = "a render with its albedo and normals"
            raise ValueError(f"the image has {channels} channels, the network takes {self.n_input}: {wanted}")
        elif self.n_channel == 1:
            # A grey network takes each channel as an image of its own.
            result = np.concatenate([self._in_tiles(hwc[..., c : c + 1]) for c in range(channels)], axis=2)
        elif channels == 1 and self.n_channel == 3:
            result = self._in_tiles(hwc)
        else:
            raise ValueError(f"the image has {channels} channels, the network takes {self.n_channel}")
        return result if image.ndim == 3 else result[..., 0]

    # --- Tiles ---

    def _in_tiles(self, hwc):
        """Runs windows that overlap by the network's reach, so that the result equals that of the whole image."""
        height, width, channels = hwc.shape
        # The image is the input, but where buffers go in beside it.
        mixed = self.n_input == self.n_channel
        if self.strength == 0 and mixed:
            return hwc.copy()
        result = np.empty((height, width, channels if mixed else self.n_channel), hwc.dtype)
        for (y0, y1, top, bottom), (x0, x1, left, right) in self._windows(height, width):
            window = images.to_01(reflected(reflected(hwc, y0, y1, axis=0), x0, x1, axis=1))
            if channels < self.n_channel:
                window = np.repeat(window, self.n_channel, axis=2)
            denoised = self.run_batch(window.transpose(2, 0, 1)[None])[0].transpose(1, 2, 0)
            inside = np.s_[top - y0 : bottom - y0, left - x0 : right - x0]
            denoised, window = denoised[inside], window[inside]
            if self.strength < 1 and mixed:
                denoised = window + np.float32(self.strength) * (denoised - window)
            if channels < self.n_channel:
                denoised = denoised.mean(axis=2, keepdims=True)
            result[top:bottom, left:right] = images.from_01(finite(denoised), hwc.dtype)
        return result

    def _windows(self, height, width):
        """Pairs of what `along` yields for rows and columns. All windows have one size: their memory is taken once."""
        step, margin = self.network.multiple, self.network.margin
        padded = round_up(height, step), round_up(width, step)
        sides = plan_windows(*padded, step, margin, self._window_pixels())
        rows, columns = (list(along(size, side, margin)) for size, side in zip(padded, sides, strict=True))
        for y0, y1, top, bottom in rows:
            for x0, x1, left, right in columns:
                yield (y0, y1, top, min(bottom, height)), (x0, x1, left, min(right, width))

    def _window_pixels(self):
        if self.tile:
            return self.tile**2
        budget = min(TILE_BYTES, machine.free_memory() // 2)
        # Smaller windows than this would be little but margin: a hundred times the work.
        least = (2 * self.network.margin + 256) ** 2
        return max(budget // self.network.ops.bytes_per_pixel, least)

    # --- Running ---

    def run_batch(self, nchw_01):
        """NCHW float32 through the network, with the eight-fold average if asked."""
        x = paddle.to_tensor(np.ascontiguousarray(nchw_01))
        with paddle.no_grad():
            if not self.tta:
                return self.network(x).numpy()
            total = 0.0
            for turns in range(4):
                for flip in (False, True):
                    turned = paddle.rot90(x, turns, axes=[2, 3])
                    turned = paddle.flip(turned, axis=[3]) if flip else turned
                    y = self.network(turned)
                    y = paddle.flip(y, axis=[3]) if flip else y
                    total = total + paddle.rot90(y, -turns, axes=[2, 3])
            return (total / 8).numpy()


def finite(result):
    """The result, or a refusal of one that is not to be written or scored."""
    if not np.isfinite(result).all():
        raise ValueError("the result is not finite: the image's values are too large for the network")
    return result


def plan_windows(height, width, step, margin, window_pixels):
    """Height and width of the windows, multiples of `step`, that compute the fewest pixels within the budget.

    A window at the image's border needs no margin there. Where no window is within the budget, it is the smallest
    that keeps any of its result.
    """
    best = None
    least = 2 * margin + step
    for count in range(1, max(width // step, 1) + 1):
        window_width = window_side(width, count, step, margin)
        # The tallest window that the budget leaves, and then the lowest that needs no more of them.
        tallest = max(window_pixels // window_width // step * step, least)
        rows = window_count(height, tallest, margin)
        window_height = window_side(height, rows, step, margin)
        pixels = window_height * window_width
        work = rows * window_count(width, window_width, margin) * pixels
        key = (max(pixels - window_pixels, 0), work)
        if best is None or key < best[0]:
            best = key, (window_height, window_width)
        if window_width <= least:
            break
    return best[1]


def window_side(length, count, step, margin):
    """How long `count` windows must be that cover a length and overlap by two margins."""
    return min(round_up(math.ceil((length + 2 * margin * (count - 1)) / count), step), length)


def window_count(length, side, margin):
    """How many windows cover a length."""
    return 1 if side >= length else math.ceil((length - 2 * margin) / (side - 2 * margin))


def along(length, side, margin):
    """The windows along an axis: start and end of each, and between which lines its result is kept."""
    first = 0
    while first < length:
        start = max(min(first - margin, length - side), 0)
        last = length if start + side >= length else start + side - margin
        yield start, start + side, first, last
        first = last


def round_up(size, step):
    """The next multiple of `step`."""
    return (size + step - 1) // step * step


def reflected(array, start, stop, axis):
    """array[start:stop] along an axis, continued past its end by reflection."""
    size = array.shape[axis]
    if stop <= size:
        return array[(slice(None),) * axis + (slice(start, stop),)]
    period = max(2 * size - 2, 1)
    index = np.arange(start, stop) % period
    return np.take(array, np.minimum(index, period - index) if size > 1 else index * 0, axis=axis)
