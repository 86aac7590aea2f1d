"""The one path from a noisy image to a denoised one: pad or tile, run, crop.

>>> from denoising import Denoiser
>>> denoised = Denoiser("best_model.pdparams")(noisy)  # HWC or HW, uint8, uint16 or float32; the same kind back
"""

import numpy as np
import paddle

from denoising import machine
from denoising.engine import operators
from denoising.imaging.detail import Amount, mix
from denoising.imaging.pixels import PLAIN_SPAN, from_01, seen_in, to_01
from denoising.imaging.second_look import no_more_than_noise
from denoising.inference.checkpoint import load_network
from denoising.inference.windows import reflected, round_up, windows

# The working memory that is planned for one window at most: on a CPU, and on a GPU or where small windows would be
# nearly all overlap (`needs_large_windows`).
WINDOW_BYTES, WHOLE_BYTES = 512 << 20, 4 << 30
BLOCK_PIXELS = 32 << 20  # for so many the deep part is kept in memory, 9 bytes each with 48 features
WORK = {"encode": 0.1, "deep": 1.0, "decode": 1.0, "whole": 1.0}  # of a pixel in each stage, for the progress


class Denoiser:
    """Applies a network to images of any size and type.

    `on_progress(done, total)` may be set: it is called after each window with the work done, in pixels. `bounded` may
    be set where the network does not know such an image: no more is removed anywhere than there is noise.

    Args:
        network: a network, or the path of a .pdparams file.
        ops: how a network that is loaded computes, of `devices.prepare`; unless given, as fast as it can.
        tile: side in pixels of the largest square (by area) that is run at once; None plans it from free memory.
        strength: 0..1, how much of the denoised image goes into the result (of renders, `renders.denoise` mixes them).
        tta: averages the eight flips and rotations: eight times the work.
        detail: 0..1, how much of the fine texture that went with the noise is given back (`imaging/detail.py`).
        chroma: 0..1, how much of the colour noise is removed, apart from brightness.
        span: which values of 0..1 the network sees as black and white, where the image's lie elsewhere.
    """

    def __init__(self, network, ops=None, tile=None, strength=1.0, tta=False, detail=0.0, chroma=1.0, span=PLAIN_SPAN):
        self.options = {}
        if not isinstance(network, paddle.nn.Layer):
            network, self.options = load_network(network)
            precision = "fp32" if needs_fp32(network, self.options) else "auto"
            network.ops = ops or operators.choose("auto", precision)[0]
        if not 0 <= strength <= 1 or (tile is not None and tile < 1):
            raise ValueError(f"strength is 0..1 and tile a positive number, not {strength} and {tile}")
        self.amount = Amount(strength, detail, chroma)
        self.network, self.tile, self.tta = network, tile, tta
        self.span, self.bounded = span, False
        self.n_channel, self.n_input, self.takes_images = network.n_channel, network.n_input, network.takes_images
        if not self.takes_images and not self.amount.is_plain:
            raise ValueError("detail and chroma are for images, not for mosaics or renders with their buffers")
        self.on_progress = lambda done, total: None

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
        if not self.takes(channels):
            of_two = "a mosaic and the deviation of its noise"
            of_nine = "a render with its albedo and normals"
            wanted = f": {of_two if self.n_input == 2 else of_nine}" if not self.takes_images else ""
            raise ValueError(f"the image has {channels} channels, the network takes {self.n_input}{wanted}")
        if self.n_input == 1 < channels:
            # A grey network takes each channel as an image of its own; one of a single value has no noise.
            planes = [hwc[..., c : c + 1] for c in range(channels)]
            result = np.concatenate([self._denoised(p) if np.ptp(p) > 0 else p for p in planes], axis=2)
        else:
            result = self._denoised(hwc)
        if self.bounded and self.amount.strength > 0:
            result = no_more_than_noise(hwc, result, self.span)
        # Colour and brightness are those of all channels together, also where a network takes one after the other.
        if self.mixes_later and 0 < self.amount.strength and self.amount != Amount():
            result = mix(hwc, result, self.amount)
        return result if image.ndim == 3 else result[..., 0]

    def takes(self, channels):
        """Whether an image may have so many channels: for colours grey ones are taken too, for grey ones any."""
        others = self.n_channel == 1 or (channels, self.n_channel) == (1, 3)
        return channels == self.n_input or (self.takes_images and others)

    @property
    def mixes_later(self):
        """Whether the whole result is needed before some of the input is mixed in again."""
        return self.bounded or not self.amount.is_plain

    # --- One image of the network's channels, or a grey one ---

    def _denoised(self, hwc):
        height, width, channels = hwc.shape
        if self.amount.strength == 0 and self.takes_images:
            return hwc.copy()
        strength = np.float32(1 if self.mixes_later else self.amount.strength)
        result = np.empty((height, width, channels if self.takes_images else self.n_channel), hwc.dtype)
        for place, denoised in self._turned_pieces(hwc) if self.tta else self._pieces(hwc, self.on_progress):
            if self.span != PLAIN_SPAN:
                denoised = denoised * np.float32(self.span[1] - self.span[0]) + np.float32(self.span[0])
            if strength < 1 and self.takes_images:
                noisy = to_01(hwc[place])
                denoised = noisy + strength * (denoised - noisy)
            if channels < self.n_channel:
                denoised = denoised.mean(axis=2, keepdims=True)
            result[place] = from_01(finite(denoised), hwc.dtype)
        return result

    def _turned_pieces(self, hwc):
        """Like `_pieces`, averaged over the eight flips and rotations."""
        total = np.zeros((*hwc.shape[:2], self.n_channel), np.float32)
        for turn in range(8):
            turns, flip = turn // 2, (1, -1)[turn % 2]
            sums = np.rot90(total, turns)[:, ::flip]

            def on_progress(done, work, turn=turn):
                self.on_progress(done + turn * work, 8 * work)

            for place, denoised in self._pieces(np.rot90(hwc, turns)[:, ::flip], on_progress):
                sums[place] += denoised
        for first in range(0, len(total), 256):
            rows = np.s_[first : first + 256, :]
            yield rows, total[rows] / 8

    def _pieces(self, hwc, on_progress):
        """Yields where each part of the result belongs, and the part: rows x columns x channels, float32.

        Windows overlap by the network's reach, so that together the parts are the result of the whole image.
        """
        plan = self._plan(*hwc.shape[:2])
        progress = _Progress(plan, on_progress)
        for block, stages in plan:
            deep = self._deep(hwc, block, stages, progress) if "deep" in stages else None
            last = "whole" if deep is None else "decode"
            for window in stages[last]:
                image = self._image(hwc, window.moved(block))
                if deep is None:
                    denoised = self.run_batch(image)
                else:
                    denoised = self.run_stage("decode", image, _cut(deep, window.scaled(self.network.scale)))
                progress.add(last, window)
                kept, inside = window.moved(block).kept_within(block, *hwc.shape[:2])
                yield kept, denoised[0].transpose(1, 2, 0)[inside]
        if len(plan) > 1 or any(len(cut) > 1 for cut in plan[0][1].values()):
            operators.release_memory()

    def _deep(self, hwc, block, stages, progress):
        """What the network's deep part makes of a block, C x H x W at its scale."""
        scale = self.network.scale
        height, width = (end - start for start, end in (block.rows, block.columns))

        def assembled(stage, compute, scale_here):
            whole = None
            for window in stages[stage]:
                part = compute(window)[0]
                progress.add(stage, window)
                if whole is None:
                    whole = np.empty((len(part), height // scale, width // scale), np.float32)
                window = window.scaled(scale_here)
                whole[(slice(None), *window.kept)] = part[(slice(None), *window.inside)]
            operators.release_memory()  # the next stage takes blocks of other sizes
            return whole

        def encode(window):
            return self.run_stage("encode", self._image(hwc, window.moved(block)))

        entered = assembled("encode", encode, scale)
        return assembled("deep", lambda window: self.run_stage("deep", _cut(entered, window)), 1)

    def _plan(self, height, width):
        """Blocks of the image and, for each, the windows of each stage, in the block's own coordinates."""
        network, pixels = self.network, self._window_pixels()
        step, margin = network.multiple, network.margin
        height, width = round_up(height, step), round_up(width, step)
        if not network.stages or height * width <= pixels:
            (block,) = windows(height, width, step, margin, height * width)
            return [(block, {"whole": windows(height, width, step, margin, pixels)})]
        plan = []
        for block in windows(height, width, step, margin, BLOCK_PIXELS):
            sides = [end - start for start, end in (block.rows, block.columns)]
            small = [side // network.scale for side in sides]
            cut = {
                stage: windows(*(small if stage == "deep" else sides), *network.stages[stage], pixels)
                for stage in ("encode", "deep", "decode")
            }
            plan.append((block, cut))
        return plan

    def _window_pixels(self):
        if self.tile:
            return self.tile**2
        network = self.network
        per_pixel = network.ops.bytes_per_pixel * network.memory
        small = paddle.device.get_device() == "cpu" and not network.needs_large_windows
        budget = min(WINDOW_BYTES if small else WHOLE_BYTES, machine.free_memory() // 2)
        # Smaller windows than this would be little but margin: a hundred times the work.
        margin = max(margin for _, margin in network.stages.values()) if network.stages else network.margin
        return max(int(budget / per_pixel), (2 * margin + 256) ** 2)

    def _image(self, hwc, window):
        """A window of the image as the network takes it, 1 x C x H x W; past the image's end it is reflected."""
        around = reflected(reflected(hwc, *window.rows, axis=0), *window.columns, axis=1)
        window_01 = to_01(seen_in(self.span, around))
        if window_01.shape[2] < self.n_channel:
            window_01 = np.repeat(window_01, self.n_channel, axis=2)
        return np.ascontiguousarray(window_01.transpose(2, 0, 1)[None])

    # --- Running ---

    def run_batch(self, nchw_01):
        """NCHW float32 through the network."""
        return self.run_stage("whole", np.ascontiguousarray(nchw_01))

    def run_stage(self, stage, *arrays):
        """The whole network, or one of its stages (`UNet.run_stage`), on NCHW float32."""
        return run(self.network, stage, *arrays)


def run(network, stage, *arrays):
    """What `Denoiser.run_stage` does, for who has the network alone."""
    with paddle.no_grad():
        tensors = map(paddle.to_tensor, arrays)
        return (network(*tensors) if stage == "whole" else network.run_stage(stage, *tensors)).numpy()


class _Progress:
    """Counts the work of a plan, and tells it after each window."""

    def __init__(self, plan, on_progress):
        self.on_progress, self.done = on_progress, 0.0
        self.total = sum(WORK[stage] * w.pixels for _, stages in plan for stage, cut in stages.items() for w in cut)

    def add(self, stage, window):
        self.done += WORK[stage] * window.pixels
        self.on_progress(self.done, self.total)


def _cut(features, window):
    """A window of C x H x W as a batch of one."""
    return np.ascontiguousarray(features[(slice(None), *window.taken)][None])


def needs_fp32(network, options):
    """Whether bfloat16 would show: in renders and in MRI, whose numbers span far more than those of a picture."""
    return (network.paints and not network.takes_images) or "mri" in str(options.get("noisetype"))


def finite(result):
    """The result, or a refusal of one that is not to be written or scored."""
    if not np.isfinite(result).all():
        raise ValueError("the result is not finite: the image's values are too large for the network")
    return result
