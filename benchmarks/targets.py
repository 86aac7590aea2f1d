"""Puts the claim of Noise2Noise to the test, that noisy targets train as well as clean ones, beside a classical method.

    python benchmarks/targets.py --data_dir images/ --val_dirs validation/ --save_dir targets/ --minutes 10
    python benchmarks/targets.py ... --only text --minutes 1 --val_images 4                          # a look

It trains a network for each noise and each kind of target, scores all on the same noisy images, and prints a table in
Markdown. --picture draws crops of the first image of --val_dirs. Trainings that lie in --save_dir already are not
repeated. The shell decides on threads and cores: OMP_NUM_THREADS=1 taskset -c 1 measures one core.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's root

import cv2
import numpy as np
from skimage import restoration

from denoising import cli
from denoising.cli import number
from denoising.data import validation
from denoising.engine import operators
from denoising.files import images
from denoising.imaging.metrics import psnr, ssim
from denoising.imaging.noise import parse_noise
from denoising.imaging.pixels import from_01
from denoising.inference import devices
from denoising.inference.denoiser import Denoiser
from denoising.reports import montage
from trainings import trained

RECIPE = (
    "--arch unet_n2n --batchsize 4 --patchsize 128 --optimizer muon --lr 1e-3 --lr_schedule cosine --warmup_steps 100 "
    "--augment --ema 0.999 --val_dirs none --workers 1 --save_minutes 2"
)
SEED = 101
CROP = 192  # pixels a side, in the picture


def non_local_means(noisy):
    """For a sigma of 25, which it is told."""
    return restoration.denoise_nl_means(noisy, 5, 6, h=0.6 * 25 / 255, sigma=25 / 255, channel_axis=2)


def stabilised_non_local_means(noisy):
    """Behind Anscombe's transform, which makes Poisson noise Gaussian, for a peak of 30."""
    stable = 2 * np.sqrt(np.maximum(noisy * 30, 0) + 3 / 8)
    denoised = restoration.denoise_nl_means(stable, 5, 6, h=0.6, sigma=1.0, channel_axis=2)
    return ((denoised / 2) ** 2 - 1 / 8) / 30


def median(noisy):
    return cv2.medianBlur(np.clip(noisy, 0, 1).astype(np.float32), 5)


# Noise, the classical method and its name.
TASKS = {
    "gauss25": (non_local_means, "non-local means"),
    "poisson30": (stabilised_non_local_means, "Anscombe, non-local means"),
    "text0.25": (median, "median 5x5"),
    "impulse0.3": (median, "median 5x5"),
}
TARGETS = {"noise2noise": "noisy targets", "supervised": "clean targets"}


def get_parser():
    parser = cli.Parser(__doc__)
    add = parser.add_argument
    add("--data_dir", required=True, help="clean training images")
    add("--val_dirs", required=True, help="clean validation sets, as train.py takes them")
    add("--save_dir", required=True, help="where the runs are kept")
    add("--minutes", type=number(float, 0), default=10, help="length of each training")
    add("--only", nargs="+", choices=[*TASKS], default=[*TASKS], help="train for these kinds of noise alone")
    add("--val_images", type=number(int, 1), help="score only the first so many images of each set")
    add("--precision", choices=["fp32", "bf16"], help="precision of the trainings (default: what is fastest)")
    add("--picture", help="draw crops of the first image into this PNG or JPEG file")
    add("--train_only", choices=[*TARGETS], help="train with this kind of targets, and score nothing")
    return parser


def weights_of(options, noise, method):
    """Of the training for this noise, with clean or noisy targets."""
    flags = [*RECIPE.split(), "--noisetype", noise, "--method", method, "--precision", options.precision]
    flags += ["--max_minutes", options.minutes, "--data_dir", options.data_dir]
    return trained(options.save_dir, f"{noise}-{method}", *flags) / "best_model.pdparams"


def score(options, noise, denoisers, sets):
    """Mean PSNR and SSIM of each denoiser on each set, and the first image by each."""
    found, first = {}, {}
    for validation_set in sets:
        rng, set_name = np.random.RandomState(SEED), validation_set.name
        count = len(validation_set.paths(options.val_images))
        pictures = validation_set.images(3, parse_noise(noise), rng, options.val_images)
        for _, clean, noisy in cli.progress(pictures, total=count, label=f"{noise} {set_name}", unit="image"):
            for name, denoise in denoisers.items():
                result = from_01(np.asarray(denoise(noisy), np.float32), np.uint8)
                found.setdefault((set_name, name), []).append((psnr(clean, result, 255), ssim(clean, result, 255)))
                first.setdefault(name, result)
            first.setdefault("clean", clean)
    return {key: np.mean(values, axis=0) for key, values in found.items()}, first


def crops(noise, versions):
    """The middle of an image in all versions, each with a caption: the noise, or the PSNR of the whole image."""
    clean = versions["clean"]
    top, left = (max(0, (length - CROP) // 2) for length in clean.shape[:2])
    row = []
    for name, image in versions.items():
        caption = name if image is clean else f"{name} {psnr(clean, image, 255):.2f} dB"
        row.append((image[top : top + CROP, left : left + CROP], noise if name == "corrupted" else caption))
    return row


def main(argv=None):
    options = get_parser().parse_args(argv)
    options.precision = options.precision or devices.fastest_precision()
    if options.train_only:
        for noise in options.only:
            weights_of(options, noise, options.train_only)
        return
    sets, _ = validation.find_validation_sets(options.val_dirs)
    ops, rows = operators.choose("auto", "fp32")[0], []
    print("| noise | set | corrupted | noisy targets | clean targets | difference | classical | steps |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for noise in options.only:
        weights = {name: weights_of(options, noise, method) for method, name in TARGETS.items()}
        classical, its_name = TASKS[noise]
        denoisers = {"corrupted": lambda noisy: noisy}
        denoisers |= {name: Denoiser(path, ops) for name, path in weights.items()} | {its_name: classical}
        means, versions = score(options, noise, denoisers, sets)
        rows.append(crops(noise, versions))
        for set_name in (validation_set.name for validation_set in sets):
            cells = [f"{means[set_name, name][0]:.2f} / {means[set_name, name][1]:.3f}" for name in denoisers]
            difference = means[set_name, "noisy targets"][0] - means[set_name, "clean targets"][0]
            steps = " / ".join(str(denoisers[name].options["step"]) for name in weights)
            cells = [*cells[:3], f"{difference:+.2f}", f"{cells[3]} ({its_name})", steps]
            print(f"| `{noise}` | {set_name} | " + " | ".join(cells) + " |", flush=True)
    if options.picture:
        images.write_image(options.picture, montage.grid(rows), quality=90)


if __name__ == "__main__":
    cli.run(main)
