"""Compares what is estimated without clean images with the truth: the error in dB, and the order of denoisers.

    python benchmarks/trust.py --val_dirs validation
    python benchmarks/trust.py --val_dirs validation --only gauss25 --accuracy_images 2 --order_images 2     # a look

The first table: of the weights made for a noise, the estimated PSNR against the true one, over whole images of
BSD300. The second: whether each measure puts thirteen denoisers, from identity to the best weights, in the order of
their true PSNR (Spearman's rank correlation), over crops. PolyU holds real noise, which is measured; its clean images
are means of many frames. What fails its bar ranks nothing in any other script.
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's root

import cv2
import numpy as np
import paddle
from scipy.stats import spearmanr

from denoising import cli
from denoising.cli import number
from denoising.data import validation
from denoising.engine import operators
from denoising.imaging import trust
from denoising.imaging.metrics import psnr
from denoising.imaging.noise import parse_noise
from denoising.imaging.noise_analysis import analyse
from denoising.imaging.pixels import from_01, to_01
from denoising.inference.denoiser import Denoiser
from denoising.inference.estimate import estimate_error, removed_of_drawn

ROOT = Path(__file__).resolve().parent.parent
SEED = 101
OWN = {"gauss25": "best_model", "poisson30": "models/poisson30"}
SETS = {"gauss25": "BSD300", "poisson30": "BSD300", "PolyU": "PolyU"}
BARS = {"gauss25": 0.95, "poisson30": 0.95, "PolyU": 0.8}
MEASURES = {
    "error": "Stein's estimate, the noise named",
    "measured": "Stein's estimate, the noise measured",
    "pair": "the error by a second frame",
    "half": "a quarter of the pixels against their neighbours",
    "held": "half of the pixels held out",
    "strength": "strength of what was removed, as far from 100 %",
    "shared": "correlation of what was removed, as far from the noise's",
    "lost": "structure that was lost",
}


def get_parser():
    parser = cli.Parser(__doc__)
    add = parser.add_argument
    add("--val_dirs", required=True, help="a folder with BSD300 and PolyU, as val.py takes it")
    add("--only", nargs="+", choices=[*SETS], default=[*SETS], help="these kinds of noise alone")
    add("--accuracy_images", type=number(int, 1), default=100, help="images of the first table")
    add("--order_images", type=number(int, 0), default=20, help="images of the second table; 0 leaves it out")
    add("--crop", type=number(int, 64), default=256, help="side of the crops of the second table")
    return parser


def denoisers(ops):
    """Thirteen of different quality, by name: each takes and gives H x W x C of 0..1."""

    def weights(name, disturbed=0.0):
        denoiser = Denoiser(str(ROOT / f"{name}.pdparams"), ops)
        paddle.seed(1)
        for parameter in denoiser.network.parameters() if disturbed else ():
            if parameter.ndim > 1:
                parameter.set_value(parameter + disturbed * parameter.std() * paddle.randn(parameter.shape))
        return lambda noisy: denoiser(np.ascontiguousarray(noisy, np.float32))

    def blur(width):
        return lambda noisy: cv2.GaussianBlur(noisy, (0, 0), width)

    best = weights("best_model")

    def mixed(share):
        return lambda noisy: noisy + np.float32(share) * (best(noisy) - noisy)

    return {
        "identity": lambda noisy: noisy, "blur 0.6": blur(0.6), "blur 1.2": blur(1.2), "blur 2.5": blur(2.5),
        "best_model": best, "best_model, strength 0.5": mixed(0.5), "best_model, strength 0.8": mixed(0.8),
        "gauss5_50": weights("models/gauss5_50"), "poisson30": weights("models/poisson30"),
        "neighbor2neighbor_gauss25": weights("models/neighbor2neighbor_gauss25"),
        "grey_gauss25": weights("models/grey_gauss25"), "best_model, disturbed by 3 %": weights("best_model", 0.03),
        "best_model, disturbed by 10 %": weights("best_model", 0.1),
    }  # fmt: skip


def pictures(options, kind, count):
    """Clean and noisy images, and a second frame where the noise is made, evenly spread over a set."""
    found = [s for s in validation.find_validation_sets(options.val_dirs)[0] if s.name == SETS[kind]]
    cli.refuse((not found, f"--val_dirs: there is no {SETS[kind]} under {options.val_dirs}"))
    made = kind in OWN
    noise, rng = parse_noise(kind if made else "none"), np.random.RandomState(SEED)
    total = len(found[0].paths())
    wanted = set(np.linspace(0, total - 1, min(count, total)).astype(int))
    if not made:
        for index, (_, clean, noisy) in enumerate(found[0].images(3, noise, rng)):
            if index in wanted:
                yield to_01(clean), noisy, None
        return
    for index, path in enumerate(found[0].paths()):
        if index in wanted:
            clean_01 = to_01(validation.read_clean(path, 3))
            yield clean_01, noise.add(clean_01, rng), noise.add(clean_01, rng)


def true_psnr(clean_01, denoised_01):
    return psnr(*(from_01(image, np.uint8) for image in (clean_01, denoised_01)), 255)


def accuracy(options, ops):
    """The first table."""
    print("| noise | how it is known | images | mean difference | mean absolute | within 0.5 dB | largest |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for kind in options.only:
        if kind not in OWN:
            continue
        denoise = Denoiser(str(ROOT / f"{OWN[kind]}.pdparams"), ops)
        differences = {"named": [], "measured": [], "a second frame": []}
        for clean, noisy, second in cli.progress(
            pictures(options, kind, options.accuracy_images), total=options.accuracy_images, label=kind
        ):
            denoised = np.clip(denoise(noisy), 0, 1)
            levels = trust.known_level(parse_noise(kind), 3), trust.level_of(analyse(noisy), noisy.shape[2])
            errors = [level and estimate_error(denoise, noisy, denoised, level)[0] for level in levels]
            errors.append(trust.error_of_pair(denoised, noisy, second))
            for name, error in zip(differences, errors, strict=True):
                if error is not None:
                    estimated = -10 * np.log10(max(error, 1e-6))
                    differences[name].append(estimated - true_psnr(clean, denoised))
        for name, values in differences.items():
            d = np.array(values)
            cells = f"{d.mean():+.3f} dB | {abs(d).mean():.3f} dB | {100 * (abs(d) <= 0.5).mean():.0f} %"
            print(f"| {kind} | {name} | {len(d)} | {cells} | {abs(d).max():.2f} dB |", flush=True)


def measured(kind, denoise, clean, noisy, second):
    """The true PSNR of a denoiser on an image, and what each measure says: less is better."""
    denoised = np.clip(denoise(noisy), 0, 1)
    level = trust.level_of(analyse(noisy), noisy.shape[2])
    known = trust.known_level(parse_noise(kind), 3) if kind in OWN else None
    found = {"true": true_psnr(clean, denoised)}
    if known:
        found["error"] = estimate_error(denoise, noisy, denoised, known)[0]
    if level:
        found["measured"] = estimate_error(denoise, noisy, denoised, level)[0]
        told = trust.compare(noisy, denoised, level, partial(removed_of_drawn, denoise, level))
        found |= {"strength": abs(1 - told.strength), "shared": abs(told.shared - told.expected), "lost": told.lost}
    if second is not None:
        found["pair"] = trust.error_of_pair(denoised, noisy, second)
    even = [side // 2 * 2 for side in noisy.shape[:2]]
    phases = noisy[: even[0], : even[1]]
    quarter = np.clip(denoise(phases[::2, ::2]), 0, 1)
    found["half"] = np.mean([np.square(quarter - phases[i::2, j::2]).mean() for i, j in ((0, 1), (1, 0))])
    out = (np.add.outer(*map(np.arange, noisy.shape[:2])) % 2 == 0)[..., None]
    around = cv2.filter2D(noisy, -1, np.float32([[0, 1, 0], [1, 0, 1], [0, 1, 0]]) / 4)
    guess = np.clip(denoise(np.where(out, around, noisy)), 0, 1)
    found["held"] = (out * np.square(guess - noisy)).mean()
    return found


def order(options, ops):
    """The second table, and the denoisers with what is true of them."""
    contenders, ranks, truths = denoisers(ops), {}, {}
    for kind in options.only:
        found = {name: [] for name in contenders}
        for clean, noisy, second in cli.progress(
            pictures(options, kind, options.order_images), total=options.order_images, label=kind
        ):
            place = tuple(slice(max(0, (s - options.crop) // 2), max(0, (s - options.crop) // 2) + options.crop)
                          for s in noisy.shape[:2])  # fmt: skip
            crops = [None if image is None else np.ascontiguousarray(image[place]) for image in (clean, noisy, second)]
            for name, denoise in contenders.items():
                found[name].append(measured(kind, denoise, *crops))
        means = {name: {key: np.mean([f[key] for f in rows if key in f] or [np.nan]) for key in ("true", *MEASURES)}
                 for name, rows in found.items()}  # fmt: skip
        truths[kind] = {name: row["true"] for name, row in means.items()}
        for key in MEASURES:
            values = [-row[key] for row in means.values()]
            ranks[kind, key] = np.nan if np.isnan(values).any() else spearmanr([*truths[kind].values()], values)[0]
    head = " | ".join(f"{kind} (bar {BARS[kind]})" for kind in options.only)
    print(f"\n| measure | {head} |\n| --- |{' --- |' * len(options.only)}")
    for key, name in MEASURES.items():
        cells = ("-" if np.isnan(ranks[kind, key]) else f"{ranks[kind, key]:.3f}" for kind in options.only)
        print(f"| {name} | {' | '.join(cells)} |")
    print(f"\n| denoiser, true PSNR | {' | '.join(options.only)} |\n| --- |{' --- |' * len(options.only)}")
    for name in contenders:
        print(f"| {name} | {' | '.join(f'{truths[kind][name]:.2f}' for kind in options.only)} |")


def main(argv=None):
    options = get_parser().parse_args(argv)
    ops = operators.choose("auto", "auto")[0]
    accuracy(options, ops)
    if options.order_images:
        order(options, ops)


if __name__ == "__main__":
    cli.run(main)
