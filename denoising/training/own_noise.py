"""What noise one's own images have, so that nothing needs to be known beforehand.

    >>> found = measure_folder("--data_dir", "my_images", n_channel=3)  # or measure(arrays)
    >>> found.kind, found.describe(), found.known_noise

A sample of the images is measured one by one (`imaging/noise_analysis.py`). Of white noise, the strength against
brightness of all of them together is told to Recorrupted-to-Recorrupted as a name that `parse_noise` reads, which is
kept with the weights.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from denoising import cli
from denoising.data.samples import evenly
from denoising.files import images as image_files
from denoising.imaging import noise_curve
from denoising.imaging.noise import parse_noise
from denoising.imaging.noise_analysis import Analysis, analyse
from denoising.imaging.pixels import as_channels, span_of, to_01

SAMPLE = 24  # images of a folder that are measured, a second of work for each eight megapixels
RANGES = 10  # of brightness, in which the strength is pooled
ALIKE = 1.3  # images are as noisy as their folder's curve says, if they differ from it by no more than this factor
CONCENTRATION = 0.7  # how closely values must lie at whole numbers of photons to be counts: rounding leaves 0.9
LEVELS_A_PHOTON = 2  # grey levels; of smaller photons the steps cannot be seen
ROUNDING = 0.29  # of one grey level: the deviation that whole numbers bring


@dataclass(frozen=True)
class OwnNoise:
    """The noise of a folder or of some images.

    Attributes:
        kind: "none", "gauss" (white), "poisson" (white, grows with brightness) or "correlated" (shared by neighbours).
        sigma: its typical deviation on 0..255; 0 where there is none.
        spread: how many times as noisy the noisiest image is as the quietest one, leaving out a tenth at either end.
        known_noise: its name for `parse_noise`, where it is white; else None.
        analyses: what was measured in each image of the sample that has this kind of noise.
        measured: how many images were measured in all.
        usual_side: the shorter side that three in four of the images have at least, in pixels.
        channels_share: whether most images' colours have much of it in common.
        is_grey: whether no image has colours, although it has several channels.
        step: between two values of the files, in 0..1; 0 where they are floats.
        reason: why there is none.
        width: how much of the range from black to white the images fill, usually; 1 where that is a quarter or more.
    """

    kind: str
    sigma: float
    spread: float
    known_noise: str | None
    analyses: tuple[Analysis, ...]
    measured: int
    usual_side: int
    channels_share: bool = False
    is_grey: bool = False
    step: float = 0.0
    reason: str = ""
    width: float = 1.0

    @property
    def is_white(self):
        """Whether it is independent from pixel to pixel."""
        return self.known_noise is not None

    @property
    def can_be_told(self):
        """Whether Recorrupted-to-Recorrupted can use the name: one strength for all images, which the files resolve."""
        one = self.is_white and self.spread <= ALIKE and not self.channels_share
        return one and parse_noise(self.known_noise).hides(self.step)

    def describe(self):
        """One line, for people."""
        sample = f"{len(self.analyses)} of {self.measured} images measured" if self.measured > 1 else "one image"
        if self.kind == "none":
            return f"no noise that can be measured: {self.reason}"
        differs = f", {self.spread:.1f} times as strong in some images as in others" if self.spread > ALIKE else ""
        if self.kind == "correlated":
            shared = np.mean([analysis.neighbour for analysis in self.analyses])
            return f"correlated noise of {self.sigma:.1f}{differs}; next pixels share {shared:.2f} ({sample})"
        grows = " that grows with brightness" if self.kind == "poisson" else ""
        shared = ", which the channels share" if self.channels_share else ""
        return f"white noise of {self.sigma:.1f}{grows}{shared}{differs}: {self.known_noise} ({sample})"


def measure_folder(flag, folder, n_channel, size=None):
    """Measures a sample of a folder's images, the first `size` by name, as a network of so many channels sees them."""
    paths = image_files.find_images(flag, folder)[:size]
    chosen = [paths[i] for i in evenly(len(paths), SAMPLE)]

    def read():
        for path in cli.progress(chosen, unit="image", label="measuring the noise"):
            try:
                yield as_channels(image_files.read_image(path).pages[0], n_channel, path)
            except cli.UserError as error:
                cli.note(f"{error}; it is not measured")

    found = measure(read())
    cli.refuse((not found.measured, f"{flag}: no image of {folder} can be read"))  # no other method would train either
    counts = "its floats are counts, which train nothing: divide them by what is to be white, which is 1"
    cli.refuse((found.sigma > 255, f"{flag}: {folder} has noise of {found.sigma / 255:.0f} times white: {counts}"))
    return found


def measure(images):
    """Measures images, H x W x C each: uint8, uint16, or float32 in 0..1."""
    analyses, values, sides, widths, coloured = [], [], [], [], False
    for image in images:
        coloured = coloured or image.shape[2] == 1 or bool((image != image[..., :1]).any())
        sides.append(min(image.shape[:2]))
        low, high = span_of(image)
        widths.append(high - low)
        analyses.append(analyse(np.ascontiguousarray(image)))
        values.append(_some_values(image))
    width = float(np.median(widths)) if widths else 1.0
    usual_side = int(np.quantile(sides, 0.25, method="lower")) if sides else 0
    kinds = Counter(kind for kind in map(_wide_kind, analyses) if kind)
    kind = kinds.most_common(1)[0][0] if kinds else "none"
    alike = tuple(analysis for analysis in analyses if _wide_kind(analysis) == kind)
    if kind == "none":
        reasons = Counter(analysis.reason for analysis in analyses) or Counter(["no image can be read"])
        reason = reasons.most_common(1)[0][0]
        return OwnNoise("none", 0.0, 1.0, None, (), len(analyses), usual_side, reason=reason)
    sigmas = [analysis.sigma for analysis in alike]
    low, high = np.quantile(sigmas, (0.1, 0.9))
    sigma, spread = float(np.median(sigmas)), float(high / low)
    if kind == "correlated":
        return OwnNoise(kind, sigma, spread, None, alike, len(analyses), usual_side, width=width)
    a, b = pooled_curve(alike)
    step = max([1 / np.iinfo(part.dtype).max for part in values if part.dtype.kind == "u"], default=0.0)
    name = name_of_curve(a, b, step, np.concatenate([to_01(part) for part in values]))
    kind, spread = "poisson" if "poisson" in name else "gauss", _spread_about((a, b), alike)
    shared = np.mean([analysis.channels_share for analysis in alike]) > 0.5
    return OwnNoise(
        kind, sigma, spread, name, alike, len(analyses), usual_side, bool(shared), not coloured, step, width=width
    )


def with_known_noise(options, found=None):
    """The options with the noise that was measured, or is measured now, in place of --known_noise auto."""
    if options.known_noise != "auto":
        return options
    found = found or measure_folder("--data_dir", options.data_dir, options.n_channel, options.train_size)
    refuse_unknown(found)
    cli.note(f"--known_noise: {found.describe()}")
    if found.spread > ALIKE:
        cli.note("--known_noise: one strength is used for all; --method neighbor2neighbor needs to know none")
    return options.but(known_noise=found.known_noise)


def refuse_unknown(found):
    """Recorrupted-to-Recorrupted has to know the noise, and that it is the same for all pixels and channels."""
    better = "--n_channel 1, as all images are grey" if found.is_grey else "--method neighbor2neighbor"
    cli.refuse(
        (found.kind == "none", f"--known_noise: {found.describe()}; name it, if you know it: --known_noise gauss2"),
        (not found.is_white,
         f"--known_noise: {found.describe()}; recorrupted2recorrupted needs white noise (docs/own_data.md)"),
        (found.channels_share,
         f"--known_noise: {found.describe()}; recorrupted2recorrupted needs noise of each channel's own: "
         f"{better}"),
    )  # fmt: skip


def _wide_kind(analysis):
    """The kind of noise as far as a folder has one; nothing where texture may hide it."""
    if analysis.kind == "none":
        return None if analysis.certainty == "guess" else "none"
    return "correlated" if analysis.kind == "correlated" else "white"


def _some_values(image):
    """A few thousand values of an image, among which steps would show."""
    return image[::7, ::5].reshape(-1)[:20000]


def pooled_curve(analyses):
    """(a, b) of white noise from all points that were measured: the variance in 0..1 is a * brightness + b."""
    points = np.concatenate([analysis.noisy_points.reshape(-1, 2) for analysis in analyses])
    points = points[np.argsort(points[:, 0])]
    ranges = [part for part in np.array_split(points, RANGES) if len(part)]
    return noise_curve.simplest_line(*np.array([np.median(part, axis=0) for part in ranges]).T)


def _spread_about(curve, analyses):
    """How many times as noisy as the curve says the noisiest image is, compared with the quietest one."""
    ratios = []
    for analysis in analyses:
        levels, variances = analysis.noisy_points.reshape(-1, 2).T
        ratios.append(np.sqrt(variances.mean() / max((curve[0] * levels + curve[1]).mean(), 1e-12)))
    low, high = np.quantile(ratios, (0.1, 0.9))
    return float(high / max(low, 1e-6))


# --- The name -----------------------------------------------------------------------------------------------


def name_of_curve(a, b, step, values_01):
    """The name of white noise of a curve, in files whose values are steps of this size (0: they are floats)."""
    if a <= 0:
        return f"gauss{255 * np.sqrt(b):.2f}"
    photons = counted(1 / a, step, values_01)
    if photons:
        return f"poisson{photons:.2f}"
    read_out = max(np.sqrt(b), ROUNDING * step, 1e-4)
    return f"poisson{1 / a:.2f}+gauss{255 * read_out:.2f}"


def counted(peak, step, values_01):
    """The photons at white, if the values are seen to be whole numbers of them; else None.

    What was measured is near only; the steps between the values tell the number exactly.
    """
    peaks = peak * np.geomspace(0.6, 1.6, 2001)
    peaks = peaks[peaks * step * LEVELS_A_PHOTON <= 1]
    values, counts = np.unique(values_01[(values_01 > 0) & (values_01 < 1)], return_counts=True)
    if not len(peaks) or not len(values):
        return None
    closeness = np.array([np.cos(2 * np.pi * peak * values) @ counts for peak in peaks]) / counts.sum()
    return float(peaks[closeness.argmax()]) if closeness.max() > CONCENTRATION else None
