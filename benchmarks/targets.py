"""The central claim of Noise2Noise: noisy targets train as well as clean ones. Both ways, beside a classical method.

    python benchmarks/targets.py --data_dir images/ --val_dirs validation/ --save_dir targets/ --minutes 10
    python benchmarks/targets.py ... --only text --minutes 1 --val_images 4                          # a look

Trains a network for each noise and each kind of target, scores all on the same noisy images, and prints a table in
Markdown; --picture draws crops of the first image of --val_dirs. Trainings that already lie in --save_dir are not
repeated. Threads and cores are those of the shell: OMP_NUM_THREADS=1 taskset -c 1 measures one core.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's root

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from skimage import restoration

from denoising import (
    cli,
)
from denoising.data import validation
from denoising.engine import operators
from denoising.files import images
from denoising.imaging.metrics import psnr, ssim
from denoising.imaging.noise import parse_noise
from denoising.inference.denoiser import Denoiser
from trainings import trained

RECIPE = (
    "--arch unet_n2n --batchsize 4 --patchsize 128 --optimizer muon --lr 1e-3 --lr_schedule cosine --warmup_steps 100 "
    "--augment --ema 0.999 --val_dirs none --workers 1 --save_minutes 2"
)
SEED = 101


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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data_dir", required=True, help="clean training images")
    parser.add_argument("--val_dirs", required=True, help="clean validation sets, as train.py takes them")
    parser.add_argument("--save_dir", required=True, help="where the runs are kept")
    parser.add_argument("--minutes", type=float, default=10, help="of each training (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=[*TASKS], default=[*TASKS], help="these noises alone")
    parser.add_argument("--val_images", type=int, help="only the first so many images of each set")
    parser.add_argument("--precision", default="bf16", choices=["fp32", "bf16"])
    parser.add_argument("--picture", help="PNG or JPEG file for crops of the first image")
    parser.add_argument("--train_only", choices=[*TARGETS], help="train this kind and score nothing")
    return parser


def weights_of(options, noise, method):
    """Of the training for this noise, with clean or noisy targets."""
    flags = [*RECIPE.split(), "--noisetype", noise, "--method", method, "--precision", options.precision]
    flags += ["--max_minutes", options.minutes, "--data_dir", options.data_dir]
    return trained(options.save_dir, f"{noise}-{method}", *flags) / "best_model.pdparams"


def score(options, noise, denoisers, sets):
    """Mean PSNR and SSIM of each denoiser on each set, and the first image by each."""
    found, first = {}, {}
    for one in sets:
        rng = np.random.RandomState(SEED)
        count = len(one.paths(options.val_images))
        pictures = one.images(3, parse_noise(noise), rng, options.val_images)
        for _, clean, noisy in cli.progress(pictures, total=count, label=f"{noise} {one.name}", unit="image"):
            for name, denoise in denoisers.items():
                result = images.from_01(np.asarray(denoise(noisy), np.float32), np.uint8)
                found.setdefault((one.name, name), []).append((psnr(clean, result, 255), ssim(clean, result, 255)))
                first.setdefault(name, result)
            first.setdefault("clean", clean)
    return {key: np.mean(values, axis=0) for key, values in found.items()}, first


def draw(path, rows):
    """A sheet of crops, a row for each noise, with the PSNR of the crop's image under it."""
    size, label = 192, 22
    width = max(len(row) for row in rows.values())
    sheet = Image.new("RGB", (width * (size + 6), len(rows) * (size + label + 6)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for r, (noise, row) in enumerate(rows.items()):
        clean = row["clean"]
        top, left = (clean.shape[0] - size) // 2, (clean.shape[1] - size) // 2
        for c, (name, image) in enumerate(row.items()):
            place = c * (size + 6), r * (size + label + 6)
            sheet.paste(Image.fromarray(image[top : top + size, left : left + size]), place)
            text = "clean" if image is clean else f"{name} {psnr(clean, image, 255):.2f} dB"
            pen.text((place[0], place[1] + size + 3), noise if name == "corrupted" else text, "black", font)
    with cli.atomic_write(path) as temporary:
        sheet.save(temporary, quality=90)


def main():
    options = get_parser().parse_args()
    if options.train_only:
        for noise in options.only:
            weights_of(options, noise, options.train_only)
        return
    sets, _ = validation.find_validation_sets(options.val_dirs)
    ops, rows = operators.choose("auto", "fp32")[0], {}
    print("| noise | set | corrupted | noisy targets | clean targets | difference | classical | steps |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for noise in options.only:
        weights = {name: weights_of(options, noise, method) for method, name in TARGETS.items()}
        classical, its_name = TASKS[noise]
        denoisers = {"corrupted": lambda noisy: noisy}
        denoisers |= {name: Denoiser(path, ops) for name, path in weights.items()} | {its_name: classical}
        means, rows[noise] = score(options, noise, denoisers, sets)
        for one in sets:
            cells = [f"{means[one.name, name][0]:.2f} / {means[one.name, name][1]:.3f}" for name in denoisers]
            difference = means[one.name, "noisy targets"][0] - means[one.name, "clean targets"][0]
            steps = " / ".join(str(denoisers[name].options["step"]) for name in weights)
            cells = [*cells[:3], f"{difference:+.2f}", f"{cells[3]} ({its_name})", steps]
            print(f"| `{noise}` | {one.name} | " + " | ".join(cells) + " |", flush=True)
    if options.picture:
        draw(options.picture, rows)


if __name__ == "__main__":
    main()
