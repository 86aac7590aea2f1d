"""Reconstructs slices from a tenth of their k-space: by networks trained on undersampled or clean slices, and by none.

    python benchmarks/mri_comparison.py --save_dir mri/                    # half an hour on two cores
    python benchmarks/mri_comparison.py --save_dir mri/ --minutes 1 --phantoms 60 --scored 3 --size 96    # a look

It makes phantoms to train on and others to score (or takes those of --train_dir and --val_dir), trains both networks
for the same minutes, and prints a table in Markdown. All are scored as val.py scores, on the same undersampled slices.
What lies in --save_dir already is not made again. --picture draws the first scored slice in all versions.
"""

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's root

from skimage.restoration import denoise_tv_chambolle

from denoising import cli
from denoising.cli import UserError, number
from denoising.data.validation import ValidationSet
from denoising.engine import operators
from denoising.files import images
from denoising.imaging.noise import noise_of_flag
from denoising.inference.denoiser import Denoiser
from denoising.inference.evaluation import evaluate
from denoising.reports import montage
from trainings import trained

ROOT = Path(__file__).resolve().parent.parent
RECIPE = (
    "--n_channel 1 --translate 64 --augment --batchsize 4 --optimizer muon --lr 2e-3 --lr_schedule cosine "
    "--warmup_steps 50 --val_dirs none --log_iters 50"
)


def get_parser():
    parser = cli.Parser(__doc__)
    add = parser.add_argument
    add("--save_dir", required=True, help="where slices and runs are kept")
    add("--train_dir", help="slices to train on, instead of phantoms")
    add("--val_dir", help="slices to score on, instead of other phantoms")
    add("--share", default="0.1", help="share of the k-space that is measured")
    add("--minutes", type=number(float, 0), default=10, help="length of each training")
    add("--phantoms", type=number(int, 1), default=1000, help="how many phantoms to train on")
    add("--scored", type=number(int, 1), default=20, help="how many slices to score")
    add("--size", type=number(int, 1), default=256, help="side of the phantoms in pixels")
    add("--flags", default="", help='further flags for train.py, e.g. "--precision bf16 --n_feature 32"')
    add("--picture", help="draw the first scored slice in all versions into this PNG file")
    return parser


# --- What is compared -----------------------------------------------------------------------------


class WithoutNetwork:
    """A function from an undersampled slice to a reconstruction, in the place of a Denoiser."""

    n_channel, network = 1, SimpleNamespace(multiple=1)

    def __init__(self, function):
        self.function = function

    def __call__(self, undersampled):
        return self.function(undersampled)


def zero_filled(undersampled):
    """Nothing where nothing was measured: what was measured is put back by the evaluation."""
    return np.zeros_like(undersampled)


def total_variation(noise, rounds=120):
    """Projections onto what was measured and onto images of little variation, in turn (POCS), from strong to weak."""

    def reconstruct(undersampled):
        image = noise.restore(undersampled, zero_filled(undersampled))
        for weight in np.geomspace(0.2, 0.01, rounds):
            smooth = denoise_tv_chambolle(image[..., 0], weight, max_num_iter=50)[..., None]
            image = noise.restore(undersampled, smooth)
        return image

    return reconstruct


def slices(options, name, seed, count):
    """A folder of phantoms, made unless it is there already."""
    folder = Path(options.save_dir) / f"{name}_{options.size}_{count}"
    if not folder.exists():
        flags = ["--phantoms", count, "--seed", seed, "--size", options.size, "--save_dir", folder]
        command = [sys.executable, "-W", "ignore", ROOT / "tools/mri_dataset.py", *flags]
        result = subprocess.run([*map(str, command)], capture_output=True, text=True)
        if result.returncode != 0:
            raise UserError(f"tools/mri_dataset.py: {(result.stderr.strip() or result.stdout).splitlines()[-1]}")
    return folder


def weights_of(options, train_dir, method):
    """Of the training with clean or undersampled targets."""
    flags = [*RECIPE.split(), "--patchsize", options.size, *options.flags.split(), "--method", method]
    flags += ["--noisetype", f"mri{options.share}", "--max_minutes", options.minutes, "--data_dir", train_dir]
    name = f"{method}_{options.size}_{options.share}_{options.minutes:g}"
    return trained(options.save_dir, name, *flags) / "best_model.pdparams"


# --- Results --------------------------------------------------------------------------------------


def main(argv=None):
    options = get_parser().parse_args(argv)
    noise = noise_of_flag("--share", f"mri{options.share}")
    cli.writable_folder("--save_dir", options.save_dir)
    train_dir = options.train_dir or slices(options, "train", 0, options.phantoms)
    scored = ValidationSet("slices", str(options.val_dir or slices(options, "val", 1, options.scored)))
    compared = {
        "inverse FFT of what was measured, weighted by 1/p: the network's input": None,
        "inverse FFT of what was measured": WithoutNetwork(zero_filled),
        "total variation, 120 rounds": WithoutNetwork(total_variation(noise)),
    }
    for method, meaning in (("noise2noise", "undersampled targets"), ("supervised", "clean targets")):
        denoiser = Denoiser(weights_of(options, train_dir, method), operators.choose()[0])
        cli.note(f"{method}: {denoiser.options['step']} steps")
        compared[f"network, {meaning}"] = denoiser

    print("| reconstruction | PSNR | SSIM | s a slice |\n|---|---|---|---|")
    pictures = {}
    for name, reconstruct in compared.items():
        label = name.split(":")[0].split(", weighted")[0]

        def keep(score, clean, noisy, result, label=label, weighted=reconstruct is None):
            if score.index == 0:
                pictures.setdefault("fully sampled", clean)
                pictures["weighted by 1/p" if weighted else label] = noisy if weighted else result

        start = time.perf_counter()
        result = evaluate(reconstruct or WithoutNetwork(zero_filled), scored, noise, 1, options.scored, keep)
        seconds = (time.perf_counter() - start) / len(result.scores)
        kind, cost = ("_noisy", "") if reconstruct is None else ("", f"{seconds:.2f}")
        print(f"| {name} | {result.mean('psnr' + kind):.2f} | {result.mean('ssim' + kind):.3f} | {cost} |", flush=True)
    if options.picture:
        tiles = [(image, name) for name, image in pictures.items()]
        images.write_image(options.picture, montage.grid([tiles[:3], tiles[3:]]))


if __name__ == "__main__":
    cli.run(main)
