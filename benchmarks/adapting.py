"""What `predict.py --adapt` gains on one image at a time, and that it leaves alone what the weights know already.

    python benchmarks/adapting.py --val_dirs validation
    python benchmarks/adapting.py --val_dirs validation --images 1 --steps 10 --only poisson5     # a look

Each image of Kodak (evenly chosen) gets noise, the weights that ship for it denoise it, and then again after so many
steps on this one noisy image. The estimate is what decides; the truth is what the clean image says.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's root

import numpy as np

from denoising import cli
from denoising.cli import number
from denoising.data import validation
from denoising.data.samples import evenly
from denoising.engine import operators
from denoising.imaging import stripes
from denoising.imaging.metrics import psnr
from denoising.imaging.noise import parse_noise
from denoising.imaging.pixels import from_01, middle, to_01
from denoising.inference import auto
from denoising.inference.denoiser import Denoiser
from denoising.training.adapting import Length, adapt
from denoising.training.lessons import Subject

SEED = 101
STRIPES = "stripes"
WORDS = {
    "speckle50": "speckle, 20 % of the brightness",
    STRIPES: "stripes of 12 along rows, and white noise of 10",
    "poisson5": "5 photons at white",
    "gauss25": "white noise of 25",
    "poisson30": "30 photons at white",
    "camera": "cameras, simulated",
}


def get_parser():
    parser = cli.Parser(__doc__)
    add = parser.add_argument
    add("--val_dirs", required=True, help="a folder with Kodak, as val.py takes it")
    add("--only", nargs="+", choices=WORDS, default=[*WORDS], help="these kinds of noise alone")
    add("--images", type=number(int, 1), default=3, help="how many of them")
    add("--steps", type=number(int, 1), default=40, help="steps on each image, a third of a second of a core each")
    add("--crop", type=number(int, 192), default=1024, help="side of the middle part that is taken")
    return parser


def noisy_of(kind, clean_01, rng):
    """The image with noise; that of cameras is in 8 bits, the others are neither rounded nor cut off."""
    if kind == STRIPES:
        return stripes.add(parse_noise("gauss10").add(clean_01, rng), (12 / 255, 0), rng)
    noisy_01 = parse_noise(kind).add(clean_01, rng)
    return from_01(noisy_01, np.uint8) if kind == "camera" else noisy_01


def measured(shelf, clean_01, noisy, steps):
    """What is true of one image before and after, and what was estimated."""
    choice = shelf.choose(noisy)
    before = _psnr(clean_01, Denoiser(shelf.network(choice.name))(noisy) if choice.name else noisy)
    row = {"weights": choice.name or "none", "noisy": _psnr(clean_01, noisy), "before": before}
    row |= {"after": before, "estimate": 0.0, "used": before, "kept": False, "seconds": 0.0}
    # As predict.py does, stripes are taken off first, and what is left decides on the weights.
    noisy, _ = stripes.take_off(noisy)
    choice = shelf.choose(noisy)
    row["used"] = row["after"] = _psnr(clean_01, Denoiser(shelf.network(choice.name))(noisy) if choice.name else noisy)
    subject = Subject.of(noisy, analysis=choice.analysis) if choice.name else None
    if subject is None:
        return row
    start = time.process_time()
    result = adapt(shelf.weights[choice.name].path, [subject], shelf.ops, Length(steps=steps), SEED)
    seconds = time.process_time() - start
    after = _psnr(clean_01, Denoiser(result.network)(noisy))
    used = after if result.kept else row["used"]
    return row | {"after": after, "estimate": result.gain, "used": used, "kept": result.kept, "seconds": seconds}


def _psnr(clean_01, image):
    return psnr(*(from_01(to_01(part), np.uint8) for part in (clean_01, image)), 255)


def main(argv=None):
    options = get_parser().parse_args(argv)
    found = [s for s in validation.find_validation_sets(options.val_dirs)[0] if s.name == "Kodak"]
    cli.refuse((not found, f"--val_dirs: there is no Kodak under {options.val_dirs}"))
    paths = found[0].paths()
    chosen = evenly(len(paths), options.images)
    shelf = auto.Shelf(auto.shipped_weights(), operators.choose("auto", "auto")[0])
    print("| noise | weights | noisy | as shipped | adapted | estimated gain | kept | result | least gain | core s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for kind in options.only:
        rows = []
        for index in chosen:
            clean = to_01(validation.read_clean(paths[index], 3))
            clean = np.ascontiguousarray(clean[middle(clean, options.crop)])
            noisy = noisy_of(kind, clean, np.random.default_rng([SEED, index]))
            rows.append(measured(shelf, clean, noisy, options.steps))
            cli.note(f"{paths[index].name} {kind}: {rows[-1]}")
        mean = {key: np.mean([row[key] for row in rows]) for key in rows[0] if key != "weights"}
        names = ", ".join(sorted({row["weights"] for row in rows}))
        cells = [f"{mean[key]:.2f}" for key in ("noisy", "before", "after")]
        cells += [f"{mean['estimate']:+.2f}", f"{sum(row['kept'] for row in rows)} of {len(rows)}"]
        cells += [f"{mean['used']:.2f}", f"{min(row['used'] - row['before'] for row in rows):+.2f}"]
        print(f"| {WORDS[kind]} | {names} | {' | '.join(cells)} | {mean['seconds']:.0f} |", flush=True)


if __name__ == "__main__":
    cli.run(main)
