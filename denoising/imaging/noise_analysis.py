"""What the noise of an image is: its strength against brightness, and what neighbouring pixels share of it.

    >>> found = analyse(image)  # H x W or H x W x C: uint8, uint16, or float32 in 0..1
    >>> found.kind, found.sigma, found.describe()

Blocks of 16 x 16 pixels are transformed by a DCT. Those with the least energy are taken to be flat. Each is chosen by
one half of its frequencies and measured in the other half, which noise does not connect, so that choosing the
quietest blocks does not make the noise look quieter than it is.
"""

from dataclasses import dataclass

import numpy as np

from denoising.imaging.pixels import to_01

SIZE = 16  # of a block
MAX_BLOCKS = 8000  # of an image, whatever its size
FLAT = 0.01  # share of the blocks that are measured
SHIFTS = 3  # of the autocorrelation, in each direction
KINDS = ("none", "gauss", "poisson", "correlated")

_k = np.arange(SIZE)
_DCT = np.sqrt(2 / SIZE) * np.cos(np.pi * (2 * _k[None] + 1) * _k[:, None] / (2 * SIZE))
_DCT[0] /= np.sqrt(2)
_ORDER = _k[:, None] + _k[None]  # of each frequency, from 0 (the mean) to 30 (a checkerboard)
_HALVES = ((_ORDER % 2 == 0) & (_ORDER > 1), (_ORDER % 2 == 1) & (_ORDER > 1))
_HIGH, _MIDDLE = _ORDER >= SIZE, (_ORDER >= 4) & (_ORDER < SIZE)
_RADIUS = np.hypot(_k[:, None], _k[None])


@dataclass(frozen=True)
class Analysis:
    """What has been measured.

    Attributes:
        kind: "none" (no noise that can be measured), "gauss" (white, hardly depending on brightness), "poisson" (white
            and growing with brightness) or "correlated" (shared by neighbours, as in a camera's JPEG).
        sigma: the typical standard deviation on 0..255, over brightness and channels; 0 where there is no noise.
        curve: for each channel (a, b): the variance in 0..1 is a * brightness + b.
        peak: photons at white, 1 / a, where the kind is "poisson", else 0.
        correlation: C x 7 x 7, of the noise with itself that many pixels away; the centre is 1.
        neighbour: the mean correlation with the next pixel, to the right and below.
        between_channels: the mean correlation of two channels at the same pixel; 0 where there is one channel.
        certainty: "sure", "likely" or "guess".
        reason: why it is no surer, or why no noise can be measured.
    """

    kind: str
    sigma: float
    curve: tuple
    peak: float
    correlation: np.ndarray
    neighbour: float
    between_channels: float
    certainty: str
    reason: str

    def describe(self):
        """One line, for people."""
        if self.kind == "none":
            return f"no noise that can be measured ({self.certainty}): {self.reason}"
        what = {
            "gauss": f"white noise of {self.sigma:.1f}",
            "poisson": f"white noise of {self.sigma:.1f} that grows with brightness, {self.peak:.0f} photons at white",
            "correlated": f"correlated noise of {self.sigma:.1f}",
        }[self.kind]
        why = self.reason or {"correlated": "neighbours share it, as in a camera's JPEG"}.get(self.kind, "")
        return f"{what} ({self.certainty})" + (f": {why}" if why else "")


def analyse(image):
    """Measures the noise of an image, H x W or H x W x C, of uint8, uint16 or float32 in 0..1."""
    image = image if image.ndim == 3 else image[..., None]
    channels = image.shape[2]
    if min(image.shape[:2]) < 2 * SIZE:
        return _nothing(channels, "guess", f"{image.shape[1]}x{image.shape[0]} pixels are too few")
    blocks_255 = _blocks(image)
    if len(blocks_255) < 20:
        if not len(blocks_255):
            return _nothing(channels, "sure", "all of it is black, white or of one colour")
        return _nothing(channels, "guess", "there is hardly a place that is not clipped or of one colour")
    coefficients = _DCT.astype(np.float32) @ blocks_255 @ _DCT.T.astype(np.float32)
    means_255 = coefficients[:, :, 0, 0] / SIZE
    energy = np.square(coefficients)
    curve = _curve(energy, means_255)
    spectrum, chosen = _flat_spectrum(energy, means_255, curve)
    return _verdict(coefficients, means_255, spectrum, chosen, curve)


def _nothing(channels, certainty, reason):
    """What is said of an image without noise."""
    centre = np.zeros((channels, 2 * SHIFTS + 1, 2 * SHIFTS + 1))
    centre[:, SHIFTS, SHIFTS] = 1
    return Analysis("none", 0.0, ((0.0, 0.0),) * channels, 0.0, centre, 0.0, 0.0, certainty, reason)


def _blocks(image):
    """Blocks N x C x 16 x 16 on 0..255, spread over the image, that are neither clipped nor of one value."""
    height, width = (side - SIZE + 1 for side in image.shape[:2])
    step = 4
    while (height // step + 1) * (width // step + 1) > MAX_BLOCKS:
        step += 1
    views = np.lib.stride_tricks.sliding_window_view(image, (SIZE, SIZE), axis=(0, 1))[::step, ::step]
    blocks = views.reshape(-1, *views.shape[2:])
    low, high = (0, np.iinfo(image.dtype).max) if image.dtype.kind == "u" else (image.min(), image.max())
    clipped = ((blocks <= low) | (blocks >= high)).mean((2, 3)).max(1)
    varied = (blocks.max((2, 3)) > blocks.min((2, 3))).all(1)
    keep = varied & (clipped < 0.02)
    return to_01(blocks[keep]) * np.float32(255)


def _chosen(scores, count):
    """The numbers of the blocks with the lowest scores."""
    count = min(max(count, 5), len(scores))
    return np.argpartition(scores, count - 1)[:count]


def _curve(energy, means_255):
    """(a, b) of each channel, from the quietest blocks of each range of brightness."""
    count, channels = means_255.shape
    ranges = np.array_split(np.argsort(means_255.mean(1)), max(1, min(12, count // 250)))
    half_energy = [(energy * half).sum((1, 2, 3)) for half in _HALVES]
    points = []
    for members in ranges:
        picked = [members[_chosen(half[members], int(3 * FLAT * len(members)))] for half in half_energy]
        high = [
            energy[pick][:, :, other & _HIGH].mean((0, 2))
            for pick, other in zip(picked, reversed(_HALVES), strict=True)
        ]
        points.append((means_255[np.concatenate(picked)].mean(0), np.mean(high, 0), len(picked[0])))
    x_01 = np.array([point[0] for point in points]) / 255
    variance = np.array([point[1] for point in points]) / 255**2
    return tuple(_lower_line(x_01[:, c], variance[:, c]) for c in range(channels))


def _lower_line(x, variance):
    """The line a x + b, a and b not negative, along the lower edge of points that texture lifts."""
    if len(x) < 3:
        return 0.0, float(variance.min())
    weight = 1 / np.maximum(variance, 1e-12)
    best = (0.0, float(variance.min()))
    for _ in range(20):
        design = np.stack((x, np.ones_like(x)), 1) * weight[:, None]
        a, b = np.linalg.lstsq(design, variance * weight, rcond=None)[0]
        if b < 0:
            a, b = (weight**2 * x * variance).sum() / (weight**2 * x * x).sum(), 0.0
        if a < 0:
            a, b = 0.0, (weight**2 * variance).sum() / (weight**2).sum()
        best = (float(a), float(b))
        line = np.maximum(a * x + b, 1e-12)
        above = np.maximum(variance / line - 1, 0)
        weight = 1 / (line * (1 + (above / 0.1) ** 2))
    return best


def _line(curve, means_255):
    """The variance on 0..255 that a curve gives to each block and channel."""
    a, b = np.array(curve).T
    return np.maximum(a * np.maximum(means_255, 0) / 255 + b, 1e-9) * 255**2


def _flat_spectrum(energy, means_255, curve):
    """The mean energy of each frequency, C x 16 x 16, in units of the curve; and the blocks that it is from."""
    relative = 1 / _line(curve, means_255)
    spectrum, chosen = np.zeros(energy.shape[1:]), []
    for half, other in (_HALVES, _HALVES[::-1]):
        score = np.einsum("nchw,nc,hw->n", energy, relative, half.astype(np.float32), optimize=True)
        pick = _chosen(score, max(int(FLAT * len(score)), 40))
        spectrum += (energy[pick] * relative[pick][:, :, None, None]).mean(0) * other
        chosen.append(pick)
    low = _ORDER < 3  # shading lies there: continued from the frequencies next to them
    spectrum[:, low] = spectrum[:, (_ORDER >= 3) & (_ORDER < 6)].mean(1, keepdims=True)
    return spectrum, np.concatenate(chosen)


def _verdict(coefficients, means_255, spectrum, chosen, curve):
    """The analysis, from the spectrum of the flat blocks and the curve that it is relative to."""
    variance = _line(curve, means_255)[chosen]
    high, middle = spectrum[:, _HIGH].mean(), spectrum[:, _MIDDLE].mean()
    steep = float(np.sqrt(middle / max(high, 1e-12)))
    corner = float(np.sqrt(spectrum[:, (_ORDER >= 16) & (_ORDER < 20)].mean() / spectrum[:, _ORDER >= 21].mean()))
    white = steep < 1.2 or corner < 1.08
    scale = high if white else spectrum.mean()
    sigma = float(np.sqrt((variance * scale).mean()))
    curve = tuple((a * scale, b * scale) for a, b in curve)
    correlation = _autocorrelation(np.ones_like(spectrum) if white else spectrum)
    neighbour = float(correlation[:, SHIFTS, SHIFTS + 1].mean() + correlation[:, SHIFTS + 1, SHIFTS].mean()) / 2
    between = _between(coefficients[chosen], _HIGH if white else _MIDDLE | _HIGH)
    if sigma < 1.0:
        return _nothing(len(curve), "sure", f"flat places vary by {sigma:.1f} of 255")
    a, b = np.mean(curve, 0)
    grows = a * 0.5 > b
    kind = "correlated" if not white else "poisson" if grows else "gauss"
    certainty = "sure" if steep < 1.1 or corner > 1.2 else "likely"
    reason = "" if certainty == "sure" else "hardly a place without texture"
    peak = float(1 / a) if kind == "poisson" else 0.0
    return Analysis(kind, sigma, curve, peak, correlation, neighbour, between, certainty, reason)


def _autocorrelation(spectrum):
    """C x 7 x 7 from the energies of a DCT."""
    shifts = np.arange(-SHIFTS, SHIFTS + 1)
    waves = np.cos(np.pi * shifts[:, None] * _k[None] / SIZE)
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
