"""What the noise of an image is: its strength against brightness, and what neighbouring pixels share of it.

    >>> found = analyse(image)  # H x W or H x W x C: uint8, uint16, or float32 in 0..1
    >>> found.kind, found.sigma, found.describe()

Only places without texture are looked at (`noise_blocks`). Their spectrum says whether the noise is white: then the
highest frequencies, where images have least, give its strength. Else all frequencies do.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np

from denoising.imaging import camera, noise_blocks, noise_curve, noise_traces
from denoising.imaging.noise_blocks import HIGH, MIDDLE, ORDER, SHARES, SIZE, USED
from denoising.imaging.pixels import pack_bayer, to_01

SHIFTS = 3  # of the autocorrelation, in each direction
KINDS = ("none", "gauss", "poisson", "correlated")
GRAIN = 2.0  # of 255: weaker noise that neighbours hardly share is the grain of a scanned film, a part of the picture
FAINT = 1.0  # of 255: weaker noise in a part of an image is not worth changing the others for
SMOOTH = 0.85  # correlation of next pixels, from which on what varies in a part of an image is more likely its shapes
SHARED = 0.5  # correlation of two channels, from which on they count as sharing their noise
A_LITTLE = 0.35  # correlation of next pixels, and of channels, up to which weights for white noise do better
WHITE = 1.25  # how much more of white noise may seem to lie at high frequencies than at the highest ones
REACH = 2.0**-6, 2.0**30  # of the brightest values of floats; noise of others would be lost among the least numbers
LEAST_READ = 0.5  # of what sensors with such shot noise usually have in the dark
LEAST_OF_A_PART = 100  # blocks
_CORNER, _NEXT = ORDER >= 22, (ORDER >= 15) & (ORDER < 20)


@dataclass(frozen=True)
class Analysis:
    """What has been measured.

    Attributes:
        kind: "none" (no noise that can be measured), "gauss" (white, hardly depending on brightness), "poisson" (white
            and growing with brightness) or "correlated" (shared by neighbours, as in a camera's JPEG).
        sigma: the typical standard deviation on 0..255, over brightness and channels; 0 where there is no noise.
        curve: for each channel (a, b): the variance in 0..1 is a * brightness + b.
        points: for each channel the measured points that it is fitted to, C x n x 2: brightness and variance in 0..1.
        peak: photons at white, 1 / a, where the kind is "poisson", else 0.
        correlation: C x 7 x 7, of the noise with itself that many pixels away; the centre is 1.
        neighbour: the mean correlation with the next pixel, to the right and below.
        between_channels: the mean correlation of two channels at the same pixel; 0 where there is one channel.
        spectrum: C x 16 x 16, of the noise: from shading to a checkerboard, its mean is 1.
        places: n x 2, the row and column of the first pixel of the blocks that were measured, 16 pixels a side.
        clipped: the share of the pixels that are black or white.
        certainty: "sure", "likely" or "guess".
        reason: why it is no surer, or why no noise can be measured.
    """

    kind: str
    sigma: float
    curve: tuple
    points: np.ndarray
    peak: float
    correlation: np.ndarray
    neighbour: float
    between_channels: float
    spectrum: np.ndarray
    places: np.ndarray
    clipped: float
    certainty: str
    reason: str

    @property
    def channels_share(self):
        """Whether the colours have much of their noise in common, as in JPEGs, which keep colour more coarsely."""
        return len(self.curve) == 3 and self.between_channels > SHARED

    @property
    def is_nearly_white(self):
        """Whether white noise has been smoothed a little, as where a picture was made smaller; no camera's is so."""
        little = max(self.neighbour, self.between_channels) < A_LITTLE
        return self.kind == "correlated" and len(self.curve) == 3 and little

    @property
    def noisy_points(self):
        """The points of those channels that have noise, which are not of one value."""
        return self.points[[any(line) for line in self.curve]]

    def describe(self):
        """One line, for people."""
        if self.kind == "none":
            return f"no noise that can be measured ({self.certainty}): {self.reason}"
        sigma = f"{self.sigma:.1f}" if self.sigma > 0.95 else f"{self.sigma:.2g}"
        what = {
            "gauss": f"white noise of {sigma}",
            "poisson": f"white noise of {sigma} that grows with brightness, {self.peak:.0f} photons at white",
            "correlated": f"correlated noise of {sigma}",
        }[self.kind]
        share = "share a little of it" if self.is_nearly_white else "share it, as in a camera's JPEG"
        why = self.reason or (f"neighbours {share}" if self.kind == "correlated" else "")
        return f"{what} ({self.certainty})" + (f": {why}" if why else "")


def analyse(image, second=None):
    """Measures the noise of an image, H x W or H x W x C, of uint8, uint16 or float32 in 0..1.

    A Bayer mosaic, H x W, is measured in its four phases, and the result has four channels.

    Args:
        image: its noise is measured on flat places, wherever they are.
        second: another frame of the same scene, of the same size and type: their difference is measured, which holds
            the noise alone, so that texture cannot be mistaken for it.
    """
    image, second = (frame[..., None] if frame is not None and frame.ndim == 2 else frame for frame in (image, second))
    if exponent := _exponent(image):
        frames = (frame if frame is None else np.ldexp(frame, exponent) for frame in (image, second))
        return _in_units(analyse(*frames), 2.0**exponent)
    if noise_traces.is_mosaic(image):
        return analyse(pack_bayer(image), second if second is None else pack_bayer(second))
    # In a microscope's picture of one stain the other colours are black.
    varies = np.array([np.ptp(plane[0]) > 0 or np.ptp(plane) > 0 for plane in np.moveaxis(image, 2, 0)])
    if varies.all() or not varies.any():
        return _measured(image, second)
    found = _measured(image[..., varies], second if second is None else second[..., varies])
    return _beside_one_value(found, varies)


def _measured(image, second):
    channels = image.shape[2]
    if min(image.shape[:2]) < 2 * SIZE:
        return _nothing(channels, "guess", f"{image.shape[1]}x{image.shape[0]} pixels are too few")
    blocks = noise_blocks.cut(image, second)
    if second is None and (peak := noise_traces.photons(image)):
        return _of_photons(image, peak, blocks)
    if len(blocks) < 20 and second is None and (sigma := _sigma_of_clipped(image)):
        curve = ((0.0, (sigma / 255) ** 2),) * channels
        nothing = _nothing(channels, "likely", "so strong that it is clipped nearly everywhere", blocks.clipped)
        points = [[(level, (sigma / 255) ** 2)] for level in to_01(image).mean((0, 1))]
        return dataclasses.replace(nothing, kind="gauss", sigma=sigma, curve=curve, points=np.array(points))
    if not len(blocks) and _is_drawn(image):
        return _nothing(channels, "sure", "all of it is black, white or of one colour", blocks.clipped)
    if len(blocks) < 20:
        reason = "there is hardly a place that is not clipped or of one colour"
        return _nothing(channels, "guess", reason, blocks.clipped)
    of_all = _as_white(blocks)
    if of_all and (of_all.kind != "none" or of_all.certainty != "sure"):
        return of_all
    of_part = _white_in_a_part(blocks, image.shape[:2])
    undrawn = blocks if second is not None else noise_blocks.cut(image, drawn=False)
    if second is None and (white := _white_beside_what_is_drawn(undrawn)):
        return of_part if of_part and of_part.sigma > white.sigma else white
    of_all = of_all or _as_correlated(blocks)
    if of_part and of_part.sigma > of_all.sigma:
        return of_part
    quiet = second is None and of_all.kind == "none" and of_all.certainty == "sure"
    return quiet and _correlated_elsewhere(undrawn, image.shape[:2]) or of_all


def _in_the_middle(blocks, size):
    """A mask of blocks."""
    return ((blocks.corners >= np.multiply(size, 0.25)) & (blocks.corners + SIZE <= np.multiply(size, 0.75))).all(1)


def _white_beside_what_is_drawn(undrawn):
    """The analysis of what was not drawn, if there is white noise in it, though not in the whole; else None.

    Where a noisy photograph is on a page, blocks of letters, and those across its edge, are quieter, and not white.
    """
    found = _as_white(undrawn) if len(undrawn) >= LEAST_OF_A_PART else None
    return _of_a_part(found) if found and found.sigma >= GRAIN and found.certainty != "guess" else None


def _correlated_elsewhere(undrawn, size):
    """The analysis of what was not drawn, its darker half or its middle, if the noise there is correlated; else None.

    The quietest places of an image say nothing about the others where they are a caption's, or a frame's, or where a
    camera takes what is bright to nearly one value, which leaves no noise there. What tells texture from noise, that
    the channels share it, is needed all the more in parts.
    """
    if undrawn.means_255.shape[1] != 3 or len(undrawn) < LEAST_OF_A_PART:
        return None
    brightness = undrawn.means_255.mean(1)
    parts = undrawn, undrawn.only(brightness <= np.median(brightness)), undrawn.only(_in_the_middle(undrawn, size))
    found = [_as_correlated(part) for part in parts if len(part) >= LEAST_OF_A_PART]
    noisy = [x for x in found if x.sigma >= FAINT and x.certainty != "guess" and x.neighbour < SMOOTH]
    strongest = max(noisy, key=lambda x: x.sigma, default=None)
    return strongest and _of_a_part(strongest)


def _white_in_a_part(blocks, size):
    """The analysis of the middle, or of one half, if there is white noise in it, though not in the whole; else None.

    A noisy photograph in a frame that was drawn, or beside its denoised version, has its quietest places elsewhere.
    What the channels share may be texture, which seen in parts more easily passes for noise.
    """
    if blocks.of_pair or blocks.means_255.shape[1] != 3:
        return None
    first, last = (blocks.corners / size).T, ((blocks.corners + SIZE) / size).T
    parts = [_in_the_middle(blocks, size), *(last <= 0.5), *(first >= 0.5)]
    found = [_as_white(blocks.only(part)) for part in parts if part.sum() >= LEAST_OF_A_PART]
    noisy = [x for x in found if x and x.kind != "none" and x.certainty != "guess" and not x.channels_share]
    strongest = max(noisy, key=lambda x: x.sigma, default=None)
    return strongest and _of_a_part(strongest)


def _of_a_part(found):
    return dataclasses.replace(found, certainty="likely", reason="in a part of the image alone")


def _of_photons(image, peak, blocks):
    """What is known of an image whose values are counted photons; the points are those of its brightness."""
    channels = image.shape[2]
    found = (_as_white(blocks) if len(blocks) >= 20 else None) or _nothing(channels, "sure", "", blocks.clipped)
    height, width = (side // SIZE * SIZE for side in image.shape[:2])
    parts = to_01(image[:height, :width]).reshape(height // SIZE, SIZE, width // SIZE, SIZE, channels).mean((1, 3))
    light = np.quantile(parts.reshape(-1, channels), np.linspace(0.05, 0.95, 8), axis=0).T
    sigma = 255 * float(np.sqrt(parts.mean() / peak))
    return dataclasses.replace(
        found, kind="poisson", sigma=sigma, curve=((1 / peak, 0.0),) * channels, peak=peak, certainty="sure", reason="",
        points=np.stack((light, light / peak), -1),
    )  # fmt: skip


def _exponent(image):
    """Of the power of two that takes floats of another order of magnitude to between 1/4 and 1/2; 0: they may stay."""
    if image.dtype.kind != "f":
        return 0
    bright = float(np.percentile(np.abs(image[::4, ::4]), 99.9))
    return 0 if bright == 0 or REACH[0] <= bright <= REACH[1] else -1 - int(np.frexp(bright)[1])


def _in_units(found, scale):
    """What was measured in an image that had been multiplied by this, in its own units."""
    curve = tuple((a / scale, b / scale**2) for a, b in found.curve)
    points, sigma = found.points / (scale, scale**2), found.sigma / scale
    return dataclasses.replace(found, sigma=sigma, curve=curve, points=points, peak=found.peak * scale)


def _beside_one_value(found, varies):
    """What was measured in some of the channels, for all of them: the others are of one value, and have no noise."""

    def whole(measured, others):
        result = np.repeat(others[None], len(varies), 0)
        result[varies] = measured
        return result

    return dataclasses.replace(
        found, curve=tuple(map(tuple, whole(found.curve, np.zeros(2)).tolist())),
        points=whole(found.points, np.zeros(found.points.shape[1:])),
        correlation=whole(found.correlation, found.correlation.mean(0)),
        spectrum=whole(found.spectrum, found.spectrum.mean(0)),
    )  # fmt: skip


def _sigma_of_clipped(image):
    """What is left of white noise, 0..255, in an image that it takes to black or white nearly everywhere; 0: none."""
    if _is_drawn(image):
        return 0.0
    pixels = 255 * to_01(image)
    sizes = pixels, noise_traces.halved(pixels)
    fine, next_ = (np.sqrt(np.square(noise_traces.differences(size)).mean()) for size in sizes)
    return 0.0 if next_ > 0.7 * fine else float(fine)  # texture is as strong at half the size, and a camera's noise


def _is_drawn(image):
    """Whether an image has few values, or changes in few places, as drawings and dithered pictures do."""
    changes = np.abs(noise_traces.differences(255 * to_01(image))) > 2
    return len(np.unique(image[:256, :256])) < 8 or changes.mean() < 0.5


def _nothing(channels, certainty, reason, clipped=0.0):
    """What is said of an image without noise."""
    flat = np.ones((channels, SIZE, SIZE))
    return Analysis(
        "none", 0.0, ((0.0, 0.0),) * channels, np.zeros((channels, 0, 2)), 0.0, _autocorrelation(flat), 0.0, 0.0,
        flat, np.zeros((0, 2), int), clipped, certainty, reason,
    )  # fmt: skip


def sensor_curve(planes):
    """The noise of a sensor, (a, b) for all of its colours: the variance in 0..1 is a * brightness + b.

    It is known to be white, and to grow with brightness along a line, which all colours share: so few places without
    texture are enough, of whatever colours.

    Args:
        planes: H x W x 4, of `pack_bayer`, float32: black is 0, and noise goes below.

    Returns:
        None where there are too few places without texture.
    """
    if min(planes.shape[:2]) < 2 * SIZE:
        return None
    blocks = noise_blocks.cut(planes)
    if len(blocks) < 20:
        return None
    levels, energies = noise_blocks.by_brightness(blocks, HIGH, 0.03)
    halves = noise_blocks.band(blocks, HIGH)
    curve = noise_curve.lower_line(levels.ravel() / 255, energies.ravel() / 255**2)
    for _ in range(2):
        expected = noise_curve.variance_of((curve,) * planes.shape[2], blocks.means_255)
        _, orders = noise_blocks.profile(blocks, 1 / expected)
        levels, energies = _chosen_points(blocks, halves, orders, SHARES[4])
        curve = noise_curve.lower_line(levels.ravel() / 255, energies.ravel() / 255**2)
    a, b = curve
    # Where nothing is quite dark, the line says little about the dark.
    return (a, max(b, LEAST_READ * float(camera.read_noise(a)))) if a > 0 else (a, b)


# --- White noise --------------------------------------------------------------------------------------------


def _as_white(blocks):
    """The analysis, if the noise is white; else None."""
    levels, energies = noise_blocks.by_brightness(blocks, HIGH, 0.03)
    curve = noise_curve.lines(noise_curve.lower_line, levels, energies)
    halves = noise_blocks.band(blocks, HIGH)
    for _ in range(3):
        spectra, orders = noise_blocks.profile(blocks, 1 / noise_curve.variance_of(curve, blocks.means_255))
        levels, energies = _chosen_points(blocks, halves, orders, SHARES[4])
        curve = noise_curve.lines(noise_curve.simplest_line, levels, energies)
    first = np.average(spectra[:3], axis=0, weights=(1, 1, 2))
    if first[:, _NEXT].mean() > WHITE**2 * first[:, _CORNER].mean():
        return None
    # Texture lifts the high frequencies of a block by a part of what it lifts the middle ones by.
    high, middle = (spectra[:, :, mask].mean((1, 2)) for mask in (HIGH, MIDDLE))
    part = _slope(middle[:6], high[:6])
    high, middle = first[:, HIGH].mean(), first[:, MIDDLE].mean()
    scale = max((high - part * middle) / (1 - part), 0.7 * high)
    texture = np.sqrt(middle / high)
    if clear := texture < 1.05:
        levels, energies, curve = _grown(blocks, levels, energies, curve)
    chosen = np.unique(np.concatenate([order[: max(int(SHARES[4] * len(order)), 3)] for order in orders]))
    curve = tuple((a * scale, b * scale) for a, b in curve)
    peak = 1 / np.mean(curve, 0)[0] if _grows(blocks, curve) else 0.0
    sigma = noise_curve.typical_deviation(noise_curve.variance_of(curve, blocks.means_255))
    if sigma < blocks.least:
        return _nothing(len(curve), "sure", f"flat places vary by {sigma:.1f} of 255", blocks.clipped)
    certainty = "sure" if texture < 1.15 else "likely" if texture < 1.5 else "guess"
    between = _between(blocks.coefficients[chosen], HIGH)
    if sigma < GRAIN and between > 0.5 and not blocks.of_pair:
        return _nothing(len(curve), "likely", f"fine grain of {sigma:.1f} of 255, as of film", blocks.clipped)
    neighbour = _slope_of_waves(spectra[: 6 if clear else 3].mean((0, 1)), USED if clear else HIGH)
    correlation = _autocorrelation(np.ones_like(first))
    correlation[:, (SHIFTS, SHIFTS, SHIFTS - 1, SHIFTS + 1), (SHIFTS - 1, SHIFTS + 1, SHIFTS, SHIFTS)] = neighbour
    points = np.stack((levels / 255, energies * scale / 255**2), -1).transpose(1, 0, 2)
    return Analysis(
        "poisson" if peak else "gauss", sigma, curve, points, float(peak), correlation,
        neighbour, between, first / first.mean(), blocks.corners[chosen], blocks.clipped,
        certainty, "" if certainty == "sure" else "there is hardly a place without texture",
    )  # fmt: skip


def _grows(blocks, curve):
    """Whether noise is much stronger in the bright places of an image than in the dark ones."""
    a, b = np.mean(curve, 0)
    dark, bright = np.quantile(blocks.means_255, (0.05, 0.95)) / 255
    return (a * bright + b) > 1.5 * (a * dark + b)


def _grown(blocks, levels, energies, curve):
    """The points and curve of the quietest blocks of each brightness, if the noise grows over these; else those given.

    The quietest blocks of all may be nearly of one brightness, and hide that noise grows; how strong it is, they tell.
    """
    wide_levels, wide_energies = noise_blocks.by_brightness(blocks, HIGH, 0.03, restored=True)
    wide = noise_curve.lines(noise_curve.simplest_line, wide_levels, wide_energies)
    if not _grows(blocks, wide):
        return levels, energies, curve
    expected = noise_curve.variance_of(wide, levels)
    factors = (energies / expected).mean(0)
    wide = tuple((a * factor, b * factor) for (a, b), factor in zip(wide, factors, strict=True))
    return wide_levels, wide_energies * factors, wide


def _slope_of_waves(spectrum, mask):
    """The correlation with the next pixel of noise that is nearly white, by the slope that it gives to a spectrum."""
    waves = np.cos(np.pi * np.arange(SIZE) / SIZE)
    slope, level = np.polyfit((waves[:, None] + waves[None])[mask], spectrum[mask], 1)
    return float(np.clip(slope / (2 * level), -0.25, 0.25))


def _chosen_points(blocks, halves, orders, share):
    """The mean brightness and energy of the quietest blocks, in up to eight groups by brightness: groups x C each."""
    count = max(int(share * len(blocks)), 16)
    picks = [order[:count] for order in orders]
    means = np.concatenate([blocks.means_255[pick] for pick in picks])
    energies = np.concatenate([other[pick] for pick, other in zip(picks, halves[::-1], strict=True)])
    cut_off = np.concatenate([blocks.cut_off[pick] for pick in picks])
    groups = np.array_split(np.argsort(means.mean(1)), min(8, len(means) // 8))
    left = np.array([noise_blocks.cut_short(cut_off[group].mean(0)) for group in groups])
    return np.array([means[group].mean(0) for group in groups]), np.array([energies[g].mean(0) for g in groups]) / left


def _slope(x, y):
    """The slope of y over x, as far as texture may explain it."""
    x, y = x - x.mean(), y - y.mean()
    return float(np.clip((x * y).sum() / max((x * x).sum(), 1e-12), 0, 0.5))


# --- Noise that neighbours share ----------------------------------------------------------------------------


def _as_correlated(blocks):
    """The analysis of noise that is not white, or of an image that has texture alone."""
    channels = blocks.means_255.shape[1]
    ratios = _evenness(blocks)
    evenness = float(np.median(ratios))
    quiet = noise_blocks.lowest(blocks.energy[:, :, USED].sum((1, 2)), 0.01, 20)
    # A scene's texture is the same in all channels; so may be the noise of a camera, but that is everywhere.
    shared = channels == 1 or _between(blocks.coefficients[quiet], MIDDLE) > 0.5
    even = blocks.of_pair or evenness < (3 if shared else 1.5)
    levels, energies = _texture_free(*noise_blocks.by_brightness(blocks, USED, 0.04), ratios)
    if even:
        expected = noise_curve.interpolated(levels, energies, blocks.means_255)
    else:
        curve = noise_curve.lines(noise_curve.lower_line, levels, energies)
        expected = noise_curve.variance_of(curve, blocks.means_255)
    spectra, orders = noise_blocks.profile(blocks, 1 / expected)
    count = 6 if blocks.of_pair or evenness < 1.5 else 2
    spectrum = np.average(spectra[:count], axis=0, weights=np.diff(SHARES)[:count])
    scale = 1 if even else spectrum[:, USED].mean()
    _extend(spectrum)
    scale *= spectrum.mean() / spectrum[:, USED].mean()
    sigma = noise_curve.typical_deviation(expected * scale)
    chosen = np.unique(np.concatenate([order[: max(int(SHARES[count] * len(order)), 3)] for order in orders]))
    between = _between(blocks.coefficients[chosen], MIDDLE)
    correlation = _autocorrelation(spectrum)
    neighbour = float((correlation[:, SHIFTS, SHIFTS + 1] + correlation[:, SHIFTS + 1, SHIFTS]).mean() / 2)
    nothing = _why_nothing(blocks, sigma, even, shared, neighbour, between, spectra[:3].mean((0, 1)))
    if nothing:
        return _nothing(channels, *nothing, blocks.clipped)
    fit = noise_curve.fair_line if even else noise_curve.lower_line
    curve = tuple((a * scale, b * scale) for a, b in noise_curve.lines(fit, levels, energies))
    points = np.stack((levels / 255, energies * scale / 255**2), -1).transpose(1, 0, 2)
    certainty = "sure" if blocks.of_pair or evenness < 2 else "likely" if even else "guess"
    return Analysis(
        "correlated", sigma, curve, points, 0.0, correlation, neighbour, between, spectrum / spectrum.mean(),
        blocks.corners[chosen], blocks.clipped, certainty,
        "" if certainty == "sure" else "there is hardly a place without texture",
    )  # fmt: skip


def _why_nothing(blocks, sigma, even, shared, neighbour, between, spectrum):
    """The certainty and reason for which what varies in an image is not called noise; else None."""
    if sigma < blocks.least:
        return "sure", f"flat places vary by {sigma:.1f} of 255"
    if blocks.of_pair:
        return None
    # The noise of a camera fades towards the highest frequencies; grain, and texture in all channels, do so less.
    fades = spectrum[(ORDER >= 8) & (ORDER < 11)].mean() / spectrum[ORDER >= 18].mean()
    if sigma < GRAIN and shared and neighbour < 0.6 and fades < 2.2**2:
        return "likely", f"fine grain of {sigma:.1f} of 255, as of film"
    texture = between > 0.9 and (sigma > 6 or fades < 3**2)
    if texture or (shared and not even):
        return "guess", f"there is texture everywhere, and noise below {sigma:.1f} of 255 would not show"
    return None


def _texture_free(levels, energies, ratios):
    """The points of brightness and energy, where a brightness that has texture alone is as noisy as those around it."""
    flat = (ratios < 2) | (ratios <= np.sort(ratios)[min(2, len(ratios) - 1)])
    around = noise_curve.interpolated(levels[flat], energies[flat], levels)
    return levels, np.where(flat[:, None], energies, np.minimum(energies, around))


def _extend(spectrum):
    """Continues a spectrum to the frequencies where shading lies, as the Gaussian that fits the next ones."""
    square = np.square(np.arange(SIZE))[:, None] + np.square(np.arange(SIZE))[None]
    near = (ORDER > 2) & (ORDER < 8)
    mean = np.maximum(spectrum.mean(0), 1e-12)
    slope = min(np.polyfit(square[near], np.log(mean[near]), 1)[0], 0)
    inner = (ORDER > 2) & (ORDER < 6)
    centre = np.log(mean[inner]).mean() - slope * square[inner].mean()
    spectrum[:, ~USED] = (
        np.exp(centre + slope * square[~USED]) * (spectrum[:, inner].mean(1) / mean[inner].mean())[:, None]
    )


def _evenness(blocks):
    """How much more the lower fifth of the blocks of each brightness vary than the quietest ones: 1 is noise."""
    distance = np.hypot(*np.mgrid[:SIZE, :SIZE])
    mask = (distance >= 2.5) & (distance < 9)
    halves = [half.mean(1) for half in noise_blocks.band(blocks, mask)]
    ratios = []
    for members in noise_blocks.brightness_ranges(blocks):
        a, b, c = (max(int(share * len(members)), 1) for share in (0.03, 0.1, 0.2))
        least = later = 0
        for half, other in (halves, halves[::-1]):
            order = members[np.argsort(half[members])]
            least += other[order[:a]].mean()
            later += other[order[b : max(c, b + 1)]].mean()
        ratios.append(later / max(least, 1e-9))
    return np.array(ratios)


def _autocorrelation(spectrum):
    """C x 7 x 7 from the energies of a DCT."""
    shifts = np.arange(-SHIFTS, SHIFTS + 1)
    waves = np.cos(np.pi * shifts[:, None] * np.arange(SIZE)[None] / SIZE)
    waves[:, 0] *= 0.5  # trapezoids: the first frequency stands for half a band,
    waves[:, -1] += 0.5 * np.cos(np.pi * shifts)  # and the last one also for the half band up to the highest of all
    result = np.einsum("yi,xj,cij->cyx", waves, waves, spectrum)
    return result / result[:, SHIFTS, SHIFTS, None, None]


def _between(coefficients, mask):
    """The mean correlation between two channels."""
    channels = coefficients.shape[1]
    if channels == 1:
        return 0.0
    values = coefficients[:, :, mask].transpose(1, 0, 2).reshape(channels, -1)
    matrix = values @ values.T
    scale = np.sqrt(np.maximum(np.diag(matrix), 1e-12))
    correlation = matrix / np.outer(scale, scale)
    return float((correlation.sum() - channels) / (channels * (channels - 1)))
