"""How truly the noise of images is measured: a table beside scikit-image's estimate_sigma.

    python benchmarks/noise_measures.py --images BSD300/test Kodak --real PolyU
    python benchmarks/noise_measures.py --images BSD300/test Kodak --every 8      # of the images, one in eight

Noise is added to clean images in float and not clipped; --clipped adds it and saves 8 bits. --real is a folder with
noisy/ and clean/, whose difference on flat places is what should be found. docs/inspecting.md has the table.
"""

import sys
import time
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's root

from denoising import cli
from denoising.cli import number
from denoising.files import images
from denoising.imaging.noise_analysis import analyse

GAUSS, POISSON = (5, 10, 15, 25, 50), (10, 30, 60)
BLURS, STRENGTHS = np.linspace(0, 1.5, 9), (5, 10, 20, 40)
WHITE = 0.1  # noise whose neighbours share less than this is white: of the blurs, the first three
SIDE = 16  # of a flat place in a real image


def get_parser():
    """The flags."""
    parser = cli.Parser(__doc__)
    add = parser.add_argument
    add("--images", nargs="+", required=True, metavar="DIR", help="clean images, to which noise is added")
    add("--real", metavar="DIR", help="a folder with noisy/ and clean/")
    add("--every", type=number(int, 1), default=1, help="takes one image in so many")
    add(
        "--blurs_every", type=number(int, 1), default=4, help="one in so many of those, for noise that neighbours share"
    )
    add("--clipped", action="store_true", help="noise is added as 8-bit files have it: rounded and clipped")
    return parser


def noise(shape, blur, seed):
    """Normal noise of deviation 1, blurred, and the correlation that its next pixels have."""
    values = np.random.default_rng(seed).standard_normal(shape)
    if blur == 0:
        return values, 0.0
    kernel = cv2.getGaussianKernel(2 * int(np.ceil(4 * blur)) + 1, blur)
    values = cv2.sepFilter2D(values, -1, kernel, kernel, borderType=cv2.BORDER_REFLECT).reshape(shape)
    return values / values.std(), float((kernel[1:] * kernel[:-1]).sum() / (kernel**2).sum())


def stored(image_255, clipped):
    """An image as a file holds it: floats, or 8 bits."""
    if clipped:
        return np.clip(np.rint(image_255), 0, 255).astype(np.uint8)
    return (image_255 / 255).astype(np.float32)


def row(name, errors, others=()):
    """A row of the table from relative errors: the median, and the share within a tenth; the same of scikit-image."""
    cells = [f"{np.median(np.abs(errors)):.1%}, {np.mean(np.abs(errors) <= 0.1):.0%}"]
    cells.append(f"{np.median(np.abs(others)):.1%}, {np.mean(np.abs(others) <= 0.1):.0%}" if len(others) else "")
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def estimate_sigma(image):
    """What scikit-image's function of this name computes, on 0..255, without PyWavelets, which that needs.

    It is the median of the finest diagonal details of the wavelet db2, over that of normal noise.
    """
    detail = np.array([-0.48296291, 0.83651630, -0.22414387, -0.12940952])
    details = cv2.sepFilter2D(image.astype(np.float64), -1, detail, detail)[::2, ::2]
    sigma = np.median(np.abs(details), axis=(0, 1)).mean() / 0.67448975
    return sigma * (255 if image.dtype.kind == "f" else 1)


def white(clean, clipped):
    """Rows for Gaussian and Poisson noise."""
    print("\n| noise | ours: median error, within 10 % | estimate_sigma |\n| --- | --- | --- |")
    for sigma in GAUSS:
        noisy = [stored(image + sigma * noise(image.shape, 0, i)[0], clipped) for i, image in enumerate(clean)]
        theirs = [estimate_sigma(image) / sigma - 1 for image in noisy]
        row(f"Gaussian {sigma}", [analyse(image).sigma / sigma - 1 for image in noisy], theirs)
    for peak in POISSON:
        gains = []
        for i, image in enumerate(clean):
            noisy = stored(np.random.default_rng(i).poisson(image / 255 * peak) / peak * 255, clipped)
            gains.append(np.mean([a for a, _ in analyse(noisy).curve]) * peak - 1)
        row(f"Poisson {peak}, gain", gains)


def shared(clean, clipped):
    """Rows for noise that neighbours share, a row for each blur."""
    print("\n| blur | neighbours share | white or not: right | correlation: median error, within 0.05 |")
    print("| --- | --- | --- | --- |")
    right, errors = [], []
    for blur in BLURS:
        first = len(right)
        for strength in STRENGTHS:
            for i, image in enumerate(clean):
                values, correlation = noise(image.shape, blur, i)
                found = analyse(stored(image + strength * values, clipped))
                right.append(found.kind in (("gauss", "poisson") if correlation < WHITE else ("correlated",)))
                errors.append(abs(found.neighbour - correlation))
        of_blur = errors[first:]
        cells = f"{np.mean(right[first:]):.0%} | {np.median(of_blur):.3f}, {np.mean(np.array(of_blur) < 0.05):.0%}"
        print(f"| {blur:.2f} | {correlation:.2f} | {cells} |", flush=True)
    print(f"| all | | {np.mean(right):.1%} | {np.median(errors):.3f}, {np.mean(np.array(errors) < 0.05):.0%} |")


def unharmed(clean):
    """A row for images as they are."""
    found = [analyse(image.astype(np.uint8)) for image in clean]
    nothing, weak = np.mean([one.kind == "none" for one in found]), np.mean([one.sigma < 1.5 for one in found])
    print(f"\nClean images: no noise in {nothing:.0%}, less than 1.5 of 255 in {weak:.0%}")


def real(folder, every):
    """A row for real pairs: strength and correlation on the places that are flat in the clean image."""
    strengths, correlations, kinds = [], [], []
    pairs = images.by_name("--real", Path(folder) / "clean")
    for name, path in list(images.by_name("--real", Path(folder) / "noisy").items())[::every]:
        noisy, clean = images.read_image(path).pages[0], images.read_image(pairs[name]).pages[0]
        found = analyse(noisy)
        levels, deviation, correlation = difference(noisy, clean)
        kinds.append(found.kind == "correlated")
        if found.kind != "none":
            curves = zip(levels.T / 255, found.points, strict=True)
            variances = [np.interp(x, *points[np.argsort(points[:, 0])].T) for x, points in curves]
            strengths.append(255 * np.sqrt(np.mean(variances)) / deviation - 1)
            correlations.append(found.neighbour - correlation)
    within = np.mean(np.abs(strengths) < 0.2), np.mean(np.abs(correlations) < 0.1)
    print(f"\nReal pairs: correlated noise in {np.mean(kinds):.0%} of {len(kinds)}; of those with noise:")
    print(f"strength: median error {np.median(np.abs(strengths)):.1%}, within 20 % {within[0]:.0%}")
    print(f"correlation: median error {np.median(np.abs(correlations)):.3f}, within 0.1 {within[1]:.0%}")


def difference(noisy, clean):
    """Of the flattest tenth of places: their brightness, the deviation of the difference, and its correlation.

    A quadratic is taken off the difference, whose light and shift are not noise, for the deviation in places of 16
    pixels; for the correlation a plane, in places of 40 pixels, because less than that bends it.
    """
    steps = np.linspace(-1, 1, SIDE)
    y, x = np.meshgrid(steps, steps, indexing="ij")
    quadratic = [np.ones_like(y), y, x, y * x, y * y, x * x]
    flat, levels = _flat_difference(noisy, clean, SIDE, quadratic)
    deviation = np.sqrt(np.mean(flat**2) / (1 - 6 / SIDE**2))
    steps = np.linspace(-1, 1, 40)
    y, x = np.meshgrid(steps, steps, indexing="ij")
    wide, _ = _flat_difference(noisy, clean, 40, [np.ones_like(y), y, x])
    products = (wide[..., 1:] * wide[..., :-1]).mean() + (wide[..., 1:, :] * wide[..., :-1, :]).mean()
    return levels, deviation, products / 2 / np.mean(wide**2)


def _flat_difference(noisy, clean, side, shapes):
    basis = np.linalg.qr(np.stack(shapes, -1).reshape(side * side, -1))[0]

    def cut(image):
        views = np.lib.stride_tricks.sliding_window_view(image.astype(np.float32), (side, side), axis=(0, 1))
        return views[::8, ::8].reshape(-1, image.shape[2], side * side)

    def bare(places):
        return places - (places @ basis) @ basis.T

    noisy, clean = cut(noisy), cut(clean)
    whole = ((noisy > 0) & (noisy < 255)).mean((1, 2)) > 0.98
    noisy, clean = noisy[whole], clean[whole]
    flat = np.argsort(bare(clean).var((1, 2)))[: max(len(clean) // 10, 1)]
    rest = bare(noisy[flat] - clean[flat])
    return rest.reshape(*rest.shape[:2], side, side), noisy[flat].mean(2)


def speed():
    """Megapixels in a second, on a 24-megapixel image."""
    image = np.random.default_rng(0).integers(0, 256, (4000, 6000, 3), np.uint8)
    start = time.process_time()
    analyse(image)
    print(f"\nSpeed: {24 / (time.process_time() - start):.0f} megapixels a second of one core, on 24 megapixels")


def main(argv=None):
    """Prints the tables."""
    options = get_parser().parse_args(argv)
    paths = [path for folder in options.images for path in images.find_images("--images", folder)[:: options.every]]
    clean = [images.read_image(path).pages[0].astype(np.float32) for path in paths]
    saved = "rounded and clipped to 8 bits" if options.clipped else "in float, not clipped"
    print(f"{len(clean)} images; noise is {saved}")
    unharmed(clean)
    white(clean, options.clipped)
    shared(clean[:: options.blurs_every], options.clipped)
    if options.real:
        real(options.real, options.every)
    speed()
    return 0


if __name__ == "__main__":
    cli.run(main)
