"""Compares denoisers of path-traced renders: networks that learnt from noisy or from clean targets, and untrained ones.

    python tools/render_dataset.py --save_dir renders --clean_targets          # docs/rendering.md tells how long
    python benchmarks/render_comparison.py --data_dir renders --save_dir compared/          # twenty minutes, two cores
    python benchmarks/render_comparison.py --data_dir renders --save_dir compared/ --minutes 1         # a look

It trains two networks for the same minutes and on the same scenes, and prints a table in Markdown: PSNR and SSIM of
the tone-mapped 8-bit picture against the converged render, as val.py scores. A network that lies in --save_dir already
is not trained again. Intel's Open Image Denoise is in the table if its package is installed (pip install pyoidn).
"""

import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's root

import cv2

from denoising import cli
from denoising.cli import number
from denoising.data import renders
from denoising.engine import operators
from denoising.files import images
from denoising.imaging.metrics import psnr, ssim
from denoising.inference.denoiser import Denoiser
from denoising.reports import montage
from trainings import trained

RECIPE = (
    "--arch unet_n2n --augment --batchsize 4 --patchsize 128 --optimizer muon --lr 1e-3 --lr_schedule cosine "
    "--warmup_steps 50 --clip_grad 1 --val_dirs none --log_iters 20"
)


def get_parser():
    parser = cli.Parser(__doc__)
    add = parser.add_argument
    add("--data_dir", required=True, help="what tools/render_dataset.py --clean_targets wrote")
    add("--save_dir", required=True, help="where the runs are kept")
    add("--minutes", type=number(float, 0), default=10, help="length of each training")
    add("--flags", default="", help='further flags for train.py, e.g. "--precision bf16 --n_feature 32"')
    add("--picture", help="draw some frames in all versions into this PNG file")
    add("--pictured", type=number(int, 0), nargs="+", default=[0, 1, 2, 3], help="the numbers of these frames")
    return parser


def weights_of(options, method):
    """Of the training with clean or noisy targets."""
    flags = [*RECIPE.split(), "--method", method, *options.flags.split(), "--max_minutes", options.minutes]
    flags += ["--data_dir", Path(options.data_dir) / "train"]
    return trained(options.save_dir, method, *flags) / "best_model.pdparams"


# --- Denoisers that need no training ----------------------------------------------------------------------------


def joint_bilateral(frame, radius=6, deviation=4.0, albedo=0.1, normal=0.3, colour=0.05, firefly=10.0):
    """Averages neighbours that are alike in albedo, normal and blurred colour.

    Pixels much brighter than the median around them count less: a firefly would fill its whole window. The deviations
    are those that did best on eleven training scenes.
    """
    height, width = frame.render.shape[:2]

    def moved(padded, down, right):
        return padded[radius + down : radius + down + height, radius + right : radius + right + width]

    def padded(array, mode="constant"):
        return np.pad(array, [(radius, radius), (radius, radius), (0, 0)], mode)

    light = np.maximum(frame.render, 0)
    around = padded(light, "edge")
    around = [moved(around, down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    held = np.minimum(light, firefly * np.median(around, axis=0) + 0.05)
    trust = ((held + 1e-6) / (light + 1e-6)).min(axis=2, keepdims=True)
    # What lies outside the image counts for nothing, here and below.
    inside = cv2.GaussianBlur(np.ones((height, width), np.float32), (13, 13), 1.5, borderType=cv2.BORDER_CONSTANT)
    blurred = cv2.GaussianBlur(renders.tone_map(held), (13, 13), 1.5, borderType=cv2.BORDER_CONSTANT)
    guide = np.concatenate([frame.albedo / albedo, frame.normal / normal, blurred / inside[..., None] / colour], axis=2)
    lights, guides, trusts = padded(light), padded(guide), padded(trust)
    total, weights = np.zeros_like(light), np.zeros((height, width, 1), np.float32)
    for down in range(-radius, radius + 1):
        for right in range(-radius, radius + 1):
            unlike = ((moved(guides, down, right) - guide) ** 2).sum(axis=2, keepdims=True)
            weight = np.exp(-0.5 * (unlike + (down**2 + right**2) / deviation**2)) * moved(trusts, down, right)
            total += weight * moved(lights, down, right)
            weights += weight
    return total / weights


def open_image_denoise():
    """Intel's denoiser with albedo and normals, or None where its package is not."""
    try:
        import pyoidn
    except ImportError:
        cli.note("without Open Image Denoise: pip install pyoidn")
        return None
    return lambda frame: pyoidn.denoise(frame.render, np.clip(frame.albedo, 0, 1), frame.normal, hdr=True)


# --- The table --------------------------------------------------------------------------------------------------


def main(argv=None):
    options = get_parser().parse_args(argv)
    by_noisy, by_clean = (
        Denoiser(str(weights_of(options, method)), operators.choose()[0]) for method in ("noise2noise", "supervised")
    )
    versions = {
        "noisy": lambda frame: frame.render,
        "joint bilateral filter": joint_bilateral,
        "ours, noisy targets": lambda frame: renders.denoise(by_noisy, frame),
        "ours, clean targets": lambda frame: renders.denoise(by_clean, frame),
        "Open Image Denoise": open_image_denoise(),
    }
    versions = {name: denoise for name, denoise in versions.items() if denoise}
    frames = renders.find_frames("--data_dir", Path(options.data_dir) / "valid", "target")
    scores, seconds, rows = {name: [] for name in versions}, dict.fromkeys(versions, 0.0), []
    for index, (*paths, target_path) in enumerate(frames):
        frame, target = renders.read_frame(paths), renders.read_buffer("target", target_path)[1]
        clean, row = renders.as_picture("target", target), []
        for name, denoise in versions.items():
            start = time.perf_counter()
            denoised = denoise(frame)
            seconds[name] += time.perf_counter() - start
            shown = renders.as_picture("render", denoised)
            scores[name].append((psnr(clean, shown, 255), ssim(clean, shown, 255)))
            row.append((shown, f"{name} {scores[name][-1][0]:.2f}"))
        if index in options.pictured:
            rows.append([*row, (clean, "converged")])
    print(f"| {len(frames)} frames | PSNR [dB] | SSIM | s a frame |")
    print("|---|---|---|---|")
    for name, of_frames in scores.items():
        means = np.mean(of_frames, axis=0)
        print(f"| {name} | {means[0]:.2f} | {means[1]:.4f} | {seconds[name] / len(frames):.2f} |")
    if options.picture:
        images.write_image(options.picture, montage.grid(rows))


if __name__ == "__main__":
    cli.run(main)
