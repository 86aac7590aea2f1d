"""Noise, named by short strings: parsed once into a model that corrupts images.

    >>> model = parse_noise("gauss5_50")
    >>> noisy = model.add(clean_01, np.random.default_rng(seed))

Images are float32 in 0..1, H x W x C with any number of channels, or H x W; values outside 0..1 are accepted. Results
are float32 and not clipped. Fresh strength is drawn at each call for ranges. docs/noise.md shows them all.
"""

import dataclasses
import functools
import re
import string
import threading
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from denoising.cli import UserError
from denoising.imaging import camera, mri
from denoising.imaging.pixels import from_01, to_01

MIDDLE_GREY = 0.18  # of white
MORE_NOISE = 0.2  # of a recorruption, in units of the image's: its deviation is 1.02 times as large


@dataclass(frozen=True)
class NoiseModel:
    """What all models share: their published name, and whether they change the image at all."""

    name: str
    low: float = 0.0
    high: float = 0.0
    form: ClassVar[str] = ""
    example: ClassVar[str] = ""
    usual: ClassVar[tuple | None] = None  # the range of strengths where the name gives none
    highest: ClassVar[float] = 1e6  # strength; beyond it, numpy cannot draw Poisson counts
    recorruption_weight: ClassVar[float | None] = None  # None: there is no `recorrupt`

    @classmethod
    def allows(cls, low, high):
        """Whether these are strengths of this kind; a range may start at 0."""
        return 0 <= low <= high <= cls.highest and high > 0

    def add(self, image_01, rng):
        """Returns a corrupted float32 copy; `rng` is a numpy Generator, or a RandomState for published protocols."""
        raise NotImplementedError

    def shots(self, image_01, rng, second, other=None):
        """Two corruptions that are independent of each other; the second one, of `other` if given, from `second`."""
        return self.add(image_01, rng), self.add(image_01 if other is None else other, second)

    def known(self, shape, rng):
        """Where `add`, given a generator in this state, leaves the image as it was, if it does so at all: H x W x 1."""
        return None

    def recorrupt(self, noisy_01, rng, more):
        """Two images noisier by MORE_NOISE, from one made by `add` with a generator in this state.

        The mean of either, given the noisy image, is the noisy image. `more` is where the new noise is drawn.
        """
        raise NotImplementedError

    def recorruption_deviation(self, brightness):
        """The deviation of what `recorrupt` adds where the image is so bright; for one strength."""
        raise NotImplementedError

    def hides(self, step):
        """Whether a recorruption hides what was added to files whose values are steps of this size: else it is seen."""
        raise NotImplementedError

    def restore(self, noisy_01, denoised_01):
        """Puts back into a denoised image, H x W or H x W x C, what the noisy one still holds of the clean one."""
        return denoised_01

    def restore_tensor(self, noisy_01, denoised_01):
        """The same for tensors of N x C x H x W, differentiable."""
        return denoised_01

    def _strength(self, rng):
        """The fixed strength, or one drawn uniformly from the range."""
        return self.low if self.low == self.high else float(rng.uniform(self.low, self.high))


class NoNoise(NoiseModel):
    """For images that are noisy already."""

    form, example = "none", "none"

    def add(self, image_01, rng):
        return np.array(image_01, np.float32)


@dataclass(frozen=True)
class Chain(NoiseModel):
    """Several, each applied to what the one before it has made."""

    parts: tuple = ()

    def add(self, image_01, rng):
        for part in self.parts:
            image_01 = part.add(image_01, rng)
        return image_01

    def shots(self, image_01, rng, second, other=None):
        # Part by part: two shots of a camera are of the same camera, whatever comes before or after it.
        for part in self.parts:
            image_01, other = part.shots(image_01, rng, second, other)
        return image_01, other

    def restore(self, noisy_01, denoised_01):
        return self.parts[-1].restore(noisy_01, denoised_01)

    def restore_tensor(self, noisy_01, denoised_01):
        return self.parts[-1].restore_tensor(noisy_01, denoised_01)


@dataclass(frozen=True)
class PoissonGaussian(Chain):
    """Photons and read-out noise, each of one strength: the variance is a straight line over brightness."""

    recorruption_weight = 1 / (2 * MORE_NOISE**2)

    @property
    def line(self):
        """(a, b): the variance in 0..1 is a * brightness + b."""
        photons, read_out = self.parts
        return 1 / photons.low, (read_out.low / 255) ** 2

    def recorruption_deviation(self, brightness):
        a, b = self.line
        return MORE_NOISE * np.sqrt(a * np.maximum(brightness, 0) + b)

    def recorrupt(self, noisy_01, rng, more):
        deviation = self.recorruption_deviation(noisy_01)
        noise = (_normal(noisy_01.shape, 1.0, more) * deviation).astype(np.float32, copy=False)
        return noisy_01 + noise, noisy_01 - noise

    def hides(self, step):
        a, b = self.line
        return a * MIDDLE_GREY + b > (2.9 * step) ** 2


# --- Each value by itself -----------------------------------------------------------------------------------


class Gaussian(NoiseModel):
    """Additive, independent; the strength is the standard deviation on the 0..255 scale."""

    form, example = "gaussA", "gauss25"
    recorruption_weight = 1 / (2 * MORE_NOISE**2)

    def add(self, image_01, rng):
        noise = _normal(image_01.shape, self._strength(rng) / 255.0, rng)
        noise += image_01
        return noise.astype(np.float32, copy=False)

    def recorrupt(self, noisy_01, rng, more):
        noise = _normal(noisy_01.shape, MORE_NOISE * self._strength(rng) / 255.0, more)
        return noisy_01 + noise, noisy_01 - noise

    def recorruption_deviation(self, brightness):
        return MORE_NOISE * self.low / 255

    def hides(self, step):
        return self.low / 255 > 2.9 * step


class Poisson(NoiseModel):
    """Shot noise: counts whose mean is the strength times the image, divided by the strength again."""

    form, example = "poissonA", "poisson30"
    recorruption_weight = 1 / MORE_NOISE**2 - 1

    @classmethod
    def allows(cls, low, high):
        return low > 0 and super().allows(low, high)

    def add(self, image_01, rng):
        peak = self._strength(rng)
        return np.array(rng.poisson(np.maximum(peak * image_01, 0.0)) / peak, np.float32)

    def recorrupt(self, noisy_01, rng, more):
        # Gaussian noise would not do: beside the steps of a photon, a network sees how much was added.
        peak = self._strength(rng)
        photons = np.rint(np.clip(noisy_01, 0.0, 1e9) * peak).astype(np.int64)
        kept = 1 - MORE_NOISE**2
        return tuple((more.binomial(photons, kept) / (peak * kept)).astype(np.float32) for _ in range(2))

    def recorruption_deviation(self, brightness):
        return MORE_NOISE * np.sqrt(brightness / self.low / (1 - MORE_NOISE**2))

    def hides(self, step):
        return self.low * step < 1.1  # a photon is a step, or several


class Speckle(NoiseModel):
    """Multiplicative: x + x n, where n is Gaussian; at white it is as strong as Gaussian noise of the same number."""

    form, example = "speckleA", "speckle25"

    def add(self, image_01, rng):
        noise = _normal(image_01.shape, self._strength(rng) / 255.0, rng)
        noise += 1
        noise *= image_01
        return noise.astype(np.float32, copy=False)


def _normal(shape, deviation, rng):
    """Gaussian noise of mean 0."""
    if isinstance(rng, np.random.RandomState):
        # In float64, to be rounded once by the caller, which is what the published evaluation does.
        return rng.normal(size=shape) * deviation
    noise = rng.standard_normal(shape, dtype=np.float32)
    noise *= np.float32(deviation)
    return noise


# --- Each pixel by itself, all its channels together --------------------------------------------------------


class Bernoulli(NoiseModel):
    """Each pixel is black with the strength as its probability, and untouched otherwise."""

    form, example, highest = "bernoulliP", "bernoulli0.5", 1.0

    def add(self, image_01, rng):
        result = np.array(image_01, np.float32)
        result[~self._kept(result.shape, rng)] = 0
        return result

    def known(self, shape, rng):
        return self._kept(shape, rng)[..., None].astype(np.float32)

    def _kept(self, shape, rng):
        return rng.random(shape[:2]) >= self._strength(rng)


class Impulse(NoiseModel):
    """Each pixel has, with the strength as its probability, a colour that is drawn uniformly."""

    form, example, highest = "impulseP", "impulse0.3", 1.0

    def add(self, image_01, rng):
        result = np.array(image_01, np.float32)
        hit = rng.random(result.shape[:2]) < self._strength(rng)
        result[hit] = rng.random((np.count_nonzero(hit), *result.shape[2:]))
        return result


# --- Pixels together ----------------------------------------------------------------------------------------

LETTERS = string.ascii_letters + string.digits
FONT_SIZES = range(10, 33)  # in pixels
MAX_LETTERS = 24  # of one string
_font_lock = threading.Lock()  # FreeType is not made for two threads at once


class Text(NoiseModel):
    """Strings over the image until they touch the strength's share of its pixels: the last one ends where they do.

    Letters, length, size, colour and place are random, and each place is as likely as any other, the borders too.
    """

    form, example, highest = "textP", "text0.25", 1.0

    def add(self, image_01, rng):
        result = np.array(image_01, np.float32)
        pixels = result if result.ndim == 3 else result[..., None]
        height, width, channels = pixels.shape
        missing = self._strength(rng) * height * width
        bare = np.ones((height, width), bool)
        while missing > 0:
            # All that is random in one call, the one that Generator and RandomState share.
            draws = rng.random(4 + MAX_LETTERS + channels)
            line = _line(draws[4 : 5 + int(draws[0] * MAX_LETTERS)], FONT_SIZES[int(draws[1] * len(FONT_SIZES))])
            top, rows = _overlap(draws[2], line.shape[0], height)
            left, columns = _overlap(draws[3], line.shape[1], width)
            line = line[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
            reached = np.cumsum(np.count_nonzero(bare[rows, columns] & (line > 0), axis=0))  # column by column
            end = int(np.searchsorted(reached, missing)) + 1
            line, columns = line[:, :end], slice(columns.start, min(columns.start + end, columns.stop))
            part = pixels[rows, columns]
            part += (line * np.float32(1 / 255))[..., None] * (draws[4 + MAX_LETTERS :].astype(np.float32) - part)
            bare[rows, columns] &= line == 0
            missing -= reached[min(end, len(reached)) - 1]
        return result


def _overlap(draw, length, extent):
    """Where a line starts along one axis, outside the image too, and the part of the image that it overlaps."""
    start = int(draw * (extent + length - 1)) - length + 1
    return start, slice(max(start, 0), min(start + length, extent))


def _line(draws, size):
    """The mask of a string, uint8, with one letter for each number in 0..1."""
    letters = [_letters(size)[int(draw * len(LETTERS))] for draw in draws]
    line = np.zeros((letters[0].shape[0], sum(letter.shape[1] - 2 for letter in letters) + 2), np.uint8)
    left = 0
    for letter in letters:
        area = line[:, left : left + letter.shape[1]]
        np.maximum(area, letter, out=area)
        left += letter.shape[1] - 2
    return line


@functools.lru_cache(len(FONT_SIZES))
def _letters(size):
    """The masks of all letters, as high as the font and two pixels wider than the step to the next letter.

    Drawn once per size and kept, half a megabyte in all. The font lies within Pillow, so it is the same everywhere.
    """
    with _font_lock:
        font = ImageFont.load_default(size)
        height = sum(font.getmetrics())
        masks = []
        for letter in LETTERS:
            image = Image.new("L", (round(font.getlength(letter)) + 2, height))
            ImageDraw.Draw(image).text((1, 0), letter, 255, font)
            masks.append(np.asarray(image))
    return masks


class Jpeg(NoiseModel):
    """What JPEG of a quality leaves of the image, clipped to 0..1 and in 8 bits; nothing in it is random but the range.

    Three channels are compressed as RGB with halved chroma, which is common; of any other number, each is a grey image.
    """

    form, example = "jpegQ", "jpeg30"

    @classmethod
    def allows(cls, low, high):
        return 1 <= low <= high <= 100 and low.is_integer() and high.is_integer()

    def add(self, image_01, rng):
        quality = int(self.low)
        if self.high > self.low:
            quality += int(rng.random() * (self.high - self.low + 1))
        image = from_01(np.asarray(image_01, np.float32), np.uint8)
        if max(image.shape) > 65500:
            raise UserError(f"noise jpeg{quality}: JPEG holds 65500 pixels a side, the image has {max(image.shape)}")
        if image.ndim == 3 and image.shape[2] == 3:
            return to_01(camera.as_jpeg(image, quality, 420))
        planes = np.atleast_3d(image).transpose(2, 0, 1)
        return to_01(np.stack([camera.as_jpeg(p, quality, 420) for p in planes], axis=-1).reshape(image.shape))


class Mri(NoiseModel):
    """Undersampled k-space: the strength is the share of the frequencies that is measured (see mri.py)."""

    form, example, highest = "mriP", "mri0.1", 1.0

    @classmethod
    def allows(cls, low, high):
        return low == high and super().allows(low, high)  # the share must be known to put frequencies back

    def add(self, image_01, rng):
        return mri.undersample(image_01, self.low, rng)

    def restore(self, noisy_01, denoised_01):
        return mri.put_back_image(noisy_01, denoised_01, self.low)

    def restore_tensor(self, noisy_01, denoised_01):
        return mri.put_back_tensor(noisy_01, denoised_01, self.low)


class Camera(NoiseModel):
    """What a simulated camera makes of a scene (see camera.py): each image by another one, in 8 bits.

    The strength is the deviation of the sensor's noise at middle grey, on the scale of 0..255, before the camera's
    software has smoothed it. A range is drawn from so that each doubling is as likely as any other. Where it starts at
    0, one image of UNTOUCHED is left as it is, so that a network learns this too, and for the others it starts where
    real cameras do.
    """

    UNTOUCHED: ClassVar[int] = 16

    form, example, highest = "cameraA", "camera5", 100.0
    usual = (camera.CLEANEST, camera.NOISIEST)

    @classmethod
    def allows(cls, low, high):
        return super().allows(low, high) and (low > 0 or high > camera.CLEANEST)

    def add(self, image_01, rng):
        if isinstance(rng, np.random.RandomState):
            rng = np.random.default_rng(rng.randint(2**31))
        return self._shoot(image_01, self._settings(rng), rng)

    def shots(self, image_01, rng, second, other=None):
        settings, other = self._settings(rng), image_01 if other is None else other
        return self._shoot(image_01, settings, rng), self._shoot(other, settings, second)

    def _settings(self, rng):
        low, high = np.log([self.low or camera.CLEANEST, self.high])
        settings = camera.draw_settings(rng, float(np.exp(rng.uniform(low, high))))
        return None if self.low == 0 and rng.integers(self.UNTOUCHED) == 0 else settings

    def _shoot(self, image_01, settings, rng):
        image_01 = np.asarray(image_01, np.float32)
        if settings is None:
            return image_01.copy()
        if image_01.ndim == 2 or image_01.shape[2] == 3:
            return camera.shoot(image_01, settings, rng)
        # Each of any other number of channels is a sensor without colours.
        planes = [camera.shoot(plane, settings, rng) for plane in image_01.transpose(2, 0, 1)]
        return np.stack(planes, axis=-1)


class Sensor(Camera):
    """What the sensor of such a camera reads, before its software: shots of an RGB image are mosaics (`unet_raw`).

    The light is drawn too, because raw files are dark where they are not exposed to their end, and clip where they are
    exposed beyond it.
    """

    LIGHT: ClassVar[tuple] = (0.1, 1.5)  # what falls onto the sensor, of what a camera would let in

    def shots(self, image_01, rng, second, other=None):
        """The mosaic of one shot with the deviation of its noise as that shot tells it, H x W x 2, and another shot."""
        settings = self._settings(rng)
        light = float(np.exp(rng.uniform(*np.log(self.LIGHT))))
        settings = dataclasses.replace(settings, signed=True, exposure=light * settings.exposure)
        mosaic = camera.on_mosaic(image_01, settings)
        first, other = (camera.sense(mosaic, settings, generator) for generator in (rng, second))
        deviation = camera.told_deviation(first, settings.shot, settings.read)
        return np.stack([first, deviation], axis=-1), other[..., None]


# --- Names --------------------------------------------------------------------------------------------------

KINDS = {
    "gauss": Gaussian,
    "poisson": Poisson,
    "speckle": Speckle,
    "text": Text,
    "bernoulli": Bernoulli,
    "impulse": Impulse,
    "jpeg": Jpeg,
    "camera": Camera,
    "mri": Mri,
}
NUMBER = r"([0-9]+(?:\.[0-9]+)?)"


def parse_noise(text):
    """Turns "gauss25", "gauss5_50", "text0.25", "poisson30+gauss5", ... or "none" into its model.

    Raises:
        ValueError: the text is none of them; the message lists what exists.
    """
    if text == "none":
        return NoNoise(text)
    parts, names = [], text.split("+")
    for name in names:
        match = re.fullmatch(rf"({'|'.join(KINDS)})(?:{NUMBER}(?:_{NUMBER})?)?", name)
        low, high = strengths(match) if match else (0.0, 0.0)
        if not match or not KINDS[match[1]].allows(low, high):
            where = f" in {text[:80]!r}" if name != text else ""
            raise ValueError(f"unknown noise {name[:80]!r}{where}: it is one of {list_of_noise()}")
        if match[1] == "mri" and name is not names[-1]:
            raise ValueError(f"{text[:80]!r}: mri comes last, because what follows would touch the known frequencies")
        parts.append(KINDS[match[1]](name, low, high))
    return parts[0] if len(parts) == 1 else _joined(text, tuple(parts))


def _joined(text, parts):
    """The model of several kinds of noise, one after the other."""
    single = all(part.low == part.high for part in parts)
    if single and [type(part) for part in parts] == [Poisson, Gaussian]:
        return PoissonGaussian(text, parts=parts)
    return Chain(text, parts=parts)


def strengths(match):
    """The range of strengths that a name gives; none at all is (0, 0), which no kind allows."""
    if match[2]:
        return float(match[2]), float(match[3] or match[2])
    return KINDS[match[1]].usual or (0.0, 0.0)


def noise_of_flag(flag, text):
    """The model that a flag names, or a refusal that names the flag; where the flag is not given there is no noise."""
    try:
        return parse_noise("none" if text is None else text)
    except ValueError as error:
        raise UserError(f"{flag}: {error}") from None


def list_of_noise():
    """What exists, for help texts and refusals."""
    forms = [f"{kind.form} (e.g. {kind.example})" for kind in KINDS.values()]
    rules = (
        "P is at most 1, Q from 1 to 100; A_B draws from A to B for each image, not of mri; "
        "+ joins: poisson30+gauss5, mri last"
    )
    return ", ".join([*forms, "none"]) + "; " + rules
