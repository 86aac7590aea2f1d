"""What a file's history has left in it: a grid of JPEG blocks, a comb in its histogram, hot pixels.

Images are H x W x C of uint8, uint16 or float32 in 0..1; strengths are on 0..255.
"""

import cv2
import numpy as np

from denoising.imaging.pixels import middle, to_01

# The table of the JPEG standard for brightness at quality 50, of which encoders take multiples; row by row.
_STANDARD = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29,
    51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121, 120,
    101, 72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip
MAX_SIDE = 2048  # of the middle of an image that is looked at
FEW = 1.9, 128.0  # photons in the brightest pixel: a single one might be dithering
COUNTED = 0.8  # how closely values must lie at whole numbers of photons: rounding to 8 bits leaves 0.9 of 64


def jpeg_quality(table):
    """The quality, 1 to 100, whose multiple of the standard's table comes nearest to a table of quantization."""
    scale = 100 * np.sum(table) / np.sum(_STANDARD)
    return int(np.clip(round((200 - scale) / 2 if scale <= 100 else 5000 / scale), 1, 100))


def jpeg_grid(image):
    """Where the 8 x 8 blocks of a JPEG begin, (row, column), and how much stronger steps are there; None: no grid."""
    grey = _middle(image).mean(2)
    found = []
    for axis in (0, 1):
        steps = np.abs(np.diff(grey, n=2, axis=axis)).mean(1 - axis)
        steps = steps[: len(steps) // 8 * 8]
        if len(steps) < 32:
            return None
        # The second difference straddles an edge between blocks twice: at the last pixel of one, the first of the next.
        phases = steps.reshape(-1, 8)
        mean = phases.mean(0)
        pair = mean + np.roll(mean, -1)
        at = int(pair.argmax())
        others = np.delete(mean, [at, (at + 1) % 8])
        error = phases.std(0).mean() / np.sqrt(len(phases))
        excess = (pair[at] / 2 - others.mean()) / max(error, 1e-9)
        found.append(((at + 2) % 8, excess, pair[at] / 2 / max(others.mean(), 1e-9)))
    if min(excess for _, excess, _ in found) < 3:
        return None
    return found[0][0], found[1][0], float(np.mean([ratio for *_, ratio in found]))


def is_mosaic(image):
    """Whether an image of one channel is a Bayer mosaic: next neighbours differ more than those two apart."""
    if image.shape[2] != 1 or min(image.shape[:2]) < 64:
        return False
    picture = _middle(image)[..., 0]
    next_, second = (
        np.median(np.abs(picture[step:] - picture[:-step])) + np.median(np.abs(picture[:, step:] - picture[:, :-step]))
        for step in (1, 2)
    )
    return bool(next_ > 1.3 * second > 0)


def levels(image):
    """(bits that are used, share of empty levels inside the histogram); of floats (0, 0.0).

    Empty levels are a comb: contrast was raised after the image had been rounded.
    """
    if image.dtype.kind == "f":
        return 0, 0.0
    counts = np.bincount(image.ravel(), minlength=2)
    used = np.flatnonzero(counts)
    step = int(np.gcd.reduce(used)) if used.any() else 1
    top = np.iinfo(image.dtype).max
    bits = int(np.ceil(np.log2(top // step + 1)))
    if image.dtype == np.uint16 and used[-1] < 1 << 15:
        bits = max(int(used[-1]).bit_length(), 1)  # 10 to 14 bits keep their numbers
    low, high = np.quantile(image, (0.05, 0.95)).astype(int) // step
    inner = counts[::step][low : high + 1]
    # Of 16 bits, an image has too few pixels to fill all levels.
    comb = float((inner == 0).mean()) if len(inner) > 16 and image.size > 50 * len(inner) else 0.0
    return bits, comb


def photons(image):
    """Photons at white of an image whose values are whole numbers of them, and vary as such do; 0: they are not.

    Where so few are counted, many pixels of a bright place are cut off at white, which hides how the noise grows; the
    steps between the values tell exactly. A drawing has steps as well, but no noise.
    """
    every = 1 + int(np.sqrt(image.size / 20000))
    values, counts = np.unique(to_01(image[::every, ::every]), return_counts=True)
    brightest = float(values[-1])
    inside = (values > 0) & ((values < brightest) | (brightest != 1))
    values, counts = values[inside].astype(np.float64), counts[inside]
    if not 0 < len(values) < FEW[1]:
        return 0.0
    # Of twice as many photons all values are whole numbers, too: the fewest that fit are right.
    peaks = np.geomspace(*FEW, 2000) / brightest
    closeness = np.cos(2 * np.pi * peaks[:, None] * values) @ counts / counts.sum()
    fitting = np.flatnonzero(closeness > COUNTED)
    if not len(fitting):
        return 0.0
    near = slice(fitting[0], np.searchsorted(peaks, 1.1 * peaks[fitting[0]]))
    peak = float(peaks[near][closeness[near].argmax()])
    return peak if _vary_as_counts(_middle(image) * np.float32(peak / 255), peak * brightest) else 0.0


def _vary_as_counts(counts, most):
    """Whether whole numbers of photons vary by as much as there are, from pixel to pixel, nearly everywhere."""
    height, width = (side // 8 * 8 for side in counts.shape[:2])
    counts = counts[:height, :width]
    variance, next_, mean = (
        x.reshape(height // 8, side, width // 8, side, -1).mean((1, 3))
        for x, side in ((differences(counts) ** 2, 4), (differences(halved(counts)) ** 2, 2), (counts, 8))
    )
    low, high = (most / 4, most / 2) if most < 3 else (1, 0.6 * most)
    seen = (mean > low) & (mean < high)  # where hardly any is cut off
    if seen.sum() < 20:
        return False
    ratio, order = variance[seen] / mean[seen], np.argsort(mean[seen], kind="stable")
    halves = [np.median(half) for half in np.array_split(ratio[order], 2)]
    # Noise that does not grow with the light is far stronger than counts vary, where there is little.
    grows = np.quantile(ratio, 0.2) > 0.4 and 0.6 < min(halves) and max(halves) < min(2, 1.6 * min(halves))
    # What neighbours share is left in the mean of four of them; of noise that is white, a quarter is.
    quiet = [np.quantile(x[seen], 0.3) for x in (next_, variance)]
    return grows and quiet[0] < 0.35 * quiet[1]


def differences(pixels):
    """Across each 2x2 pixels; of white noise their deviation is that of the noise."""
    pixels = pixels[: len(pixels) // 2 * 2, : pixels.shape[1] // 2 * 2]
    return (pixels[::2, ::2] - pixels[1::2, ::2] - pixels[::2, 1::2] + pixels[1::2, 1::2]) / 2


def halved(pixels):
    """Half the size, each pixel the mean of four."""
    pixels = pixels[: len(pixels) // 2 * 2, : pixels.shape[1] // 2 * 2]
    return (pixels[::2, ::2] + pixels[1::2, ::2] + pixels[::2, 1::2] + pixels[1::2, 1::2]) / 4


def _middle(image):
    """The middle of an image on 0..255, float32."""
    return to_01(np.ascontiguousarray(image[middle(image, MAX_SIDE)])) * np.float32(255)


# --- Over several images ------------------------------------------------------------------------------------


class FixedPattern:
    """Collects images of one size: what their residuals share at the same place is the sensor's."""

    def __init__(self):
        self.count = 0
        self._halves = [None, None]

    def add(self, image):
        """Takes an image; all must have the size of the first one."""
        picture = to_01(image) * np.float32(255)
        residual = picture - cv2.medianBlur(np.ascontiguousarray(picture), 5).reshape(picture.shape)
        np.clip(residual, -100, 100, out=residual)
        half = self.count % 2
        self._halves[half] = residual if self._halves[half] is None else self._halves[half] + residual
        self.count += 1

    def result(self):
        """(strength of the fixed pattern, rows and columns of hot pixels n x 2), or None of fewer than four images."""
        if self.count < 4:
            return None
        first, second = self._halves[0] / ((self.count + 1) // 2), self._halves[1] / (self.count // 2)
        shared = float(np.mean((first - first.mean()) * (second - second.mean())))
        both = np.minimum(first, second).max(2)
        spread = 1.4826 * np.median(np.abs(first - np.median(first)))
        hot = np.argwhere(both > max(6 * spread, 8))
        return float(np.sqrt(max(shared, 0))), hot
