"""How much of what a network removed stays removed: strength, fine texture, and colour apart from brightness.

    >>> result = mix(noisy, denoised, Amount(strength=1.0, detail=0.5, chroma=1.0))

The result depends on the noisy image and the denoised one alone, so that a program (a page in a browser, say) can ask
for the denoised image once and show every setting at once. All arithmetic is in float32, on values of 0..1:

    removed = noisy - denoised                                  of each channel
    luma    = 0.299 R + 0.587 G + 0.114 B                       of `removed`; of other than three channels, their mean
    colour  = removed - luma                                    of each channel
    texture = the sum of luma's bands after `shrunk`            one plane

    result  = denoised + (1 - strength) luma + (1 - strength chroma) colour + strength detail texture

and the last line is rounded half up to the image's own type and clipped: floor(255 x + 0.5) for 8 bits. It is linear in
each setting. With strength 0 it is the noisy image, with strength 1, detail 0 and chroma 1 the denoised one. Pictures
without colour have none to keep: `chroma` changes nothing there.

**Bands.** Luma is smoothed three times by the B3 spline (1, 4, 6, 4, 1) / 16, along rows and then along columns, whose
taps stand 1, 2 and 4 pixels apart. Past its borders the image goes on by reflection, its edge not repeated (c b a b c).
Band j is what the smoothing number j took away. What the third smoothing leaves is part of the texture in full, because
little noise is so coarse.

**Shrinking.** The strength of a band is s = median(|band|) / 0.6745, which noise decides nearly everywhere. Each of its
values x becomes sign(x) max(|x| - k s, 0), with the band's own k of THRESHOLDS: what stands out of the noise that was
removed is texture. The median is that of every fourth pixel of every fourth row, the first included.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from denoising.imaging.pixels import LUMA, from_01, to_01

SPLINE = np.array([1, 4, 6, 4, 1], np.float32) / 16
THRESHOLDS = (2.0, 1.5, 1.0)  # of the bands from fine to coarse, in units of their own strength (docs/predicting.md)
REACH = 2 * (1 + 2 + 4)  # pixels to each side on which a value of the texture depends
STRIP = 256  # rows that are computed at a time: the memory is that of so many, however large the image
GRID = 4  # of the pixels that the median is taken from


@dataclass(frozen=True)
class Amount:
    """How much of the noise is removed: each is 0..1."""

    strength: float = 1.0  # 0 keeps the noisy image
    detail: float = 0.0  # how much of the texture among what was removed is given back
    chroma: float = 1.0  # how much of the colour noise is removed

    def __post_init__(self):
        for name, value in vars(self).items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is 0..1, not {value}")

    @property
    def is_plain(self):
        """Whether the strength alone decides, pixel by pixel."""
        return self.detail == 0 and self.chroma == 1


def mix(noisy, denoised, amount):
    """The result for an image and its denoised form; both are HWC of one shape and type, uint8, uint16 or float32."""
    strength, detail, chroma = amount.strength, amount.detail, amount.chroma
    height = len(noisy)
    strengths = band_strengths(noisy, denoised) if detail * strength > 0 else None
    result = np.empty_like(denoised)
    for first in range(0, height, STRIP):
        last = min(first + STRIP, height)
        rows, inside = _with_reach(first, last, height)
        clean = to_01(denoised[first:last])
        removed = to_01(noisy[rows]) - to_01(denoised[rows])
        luma = luma_of(removed)
        texture = texture_of(luma, strengths)[inside] if strengths else 0.0
        removed, luma = removed[inside], luma[inside]
        back = np.float32(1 - strength) * luma + np.float32(strength * detail) * texture
        mixed = clean + back[..., None] + np.float32(1 - strength * chroma) * (removed - luma[..., None])
        result[first:last] = from_01(mixed, denoised.dtype)
    return result


def luma_of(removed):
    """The brightness in H x W x C."""
    if removed.shape[2] != 3:
        return removed.mean(axis=2, dtype=np.float32)
    return np.ascontiguousarray(removed @ np.array(LUMA, np.float32))


def bands(luma):
    """The three bands of a plane from fine to coarse, and what is left of it after them."""
    found = []
    for step in (1, 2, 4):
        smooth = _smoothed(luma, step)
        found.append(luma - smooth)
        luma = smooth
    return found, luma


def texture_of(luma, strengths):
    """What stands out of the noise in a plane of brightness that was removed."""
    found, texture = bands(luma)
    for band, k, strength in zip(found, THRESHOLDS, strengths, strict=True):
        texture = texture + shrunk(band, np.float32(k * strength))
    return texture


def shrunk(band, threshold):
    """Each value, nearer to zero by the threshold."""
    return band - np.clip(band, -threshold, threshold)


def band_strengths(noisy, denoised):
    """The strength of each band of what was removed, from the whole image."""
    height, samples = len(noisy), ([], [], [])
    for first in range(0, height, STRIP):  # a multiple of GRID
        last = min(first + STRIP, height)
        rows, inside = _with_reach(first, last, height)
        found, _ = bands(luma_of(to_01(noisy[rows]) - to_01(denoised[rows])))
        for sample, band in zip(samples, found, strict=True):
            sample.append(np.abs(band[inside][::GRID, ::GRID]).ravel())
    return [float(np.median(np.concatenate(sample))) / 0.6745 for sample in samples]


def _with_reach(first, last, height):
    """The rows that a strip of the texture depends on, and where the strip lies among them."""
    start, stop = max(first - REACH, 0), min(last + REACH, height)
    return slice(start, stop), slice(first - start, last - start)


def _smoothed(plane, step):
    kernel = np.zeros(4 * step + 1, np.float32)
    kernel[::step] = SPLINE
    return cv2.sepFilter2D(plane, -1, kernel, kernel, borderType=cv2.BORDER_REFLECT_101)
