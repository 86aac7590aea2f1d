"""Compares denoisers of path-traced renders: networks that learnt from noisy or from clean targets, and untrained ones.

    python tools/render_dataset.py --save_dir renders --clean_targets          # docs/rendering.md tells how long
    python benchmarks/render_comparison.py --data_dir renders --save_dir compared/          # twenty minutes, two cores
    python benchmarks/render_comparison.py --data_dir renders --save_dir compared/ --minutes 1         # a look
    python benchmarks/render_comparison.py --data_dir renders --save_dir compared/ --model_path models/renders.pdparams

It trains two networks for the same minutes and on the same scenes, and prints a table in Markdown: PSNR and SSIM of
the tone-mapped 8-bit picture against the converged render, as val.py scores; the relative error of linear light, the
mean of (f - y)^2 / (y^2 + 0.01) over all pixels but the worst thousandth, which are fireflies of the converged render
itself; and the seconds that a frame takes. A network that lies in --save_dir already is not trained again; with
--model_path none is trained. Intel's Open Image Denoise is in the table if its package is installed (pip install
pyoidn).
"""

import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's root

import cv2
from skimage.restoration import denoise_nl_means

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
    "--arch joint_bilateral --augment --colour_only 0.25 --batchsize 4 --patchsize 128 --optimizer muon --lr 1e-3 "
    "--lr_schedule cosine --warmup_steps 50 --clip_grad 1 --val_dirs none --log_iters 20"
)


def get_parser():
    parser = cli.Parser(__doc__)
    add = parser.add_argument
    add(
        "--data_dir",
        required=True,
        nargs="+",
        help="what tools/render_dataset.py --clean_targets wrote; of further folders only valid/ counts, and without "
        "it the mean of the renders of each scene in train/",
    )
    add("--save_dir", required=True, help="where the runs are kept")
    add("--minutes", type=number(float, 0), default=10, help="length of each training")
    add("--model_path", nargs="+", help="networks that have been trained already, which are compared instead")
    add("--flags", default="", help='further flags for train.py, e.g. "--precision bf16 --n_feature 32"')
    add("--colour_only", action="store_true", help="compare without albedo and normals")
    add("--picture", help="draw some frames in all versions into this PNG file")
    add("--pictured", type=number(int, 0), nargs="+", default=[0, 1, 2, 3], help="the numbers of these frames")
    return parser


def networks(options):
    """The paths of the networks to compare, by the names of their rows."""
    if options.model_path:
        names = [Path(path).name for path in options.model_path]
        names = names if len(set(names)) == len(names) else options.model_path  # all are best_model.pdparams
        return {
            f"ours, {name}" if len(names) > 1 else "ours": path
            for name, path in zip(names, options.model_path, strict=True)
        }
    methods = {"ours, noisy targets": "noise2noise", "ours, clean targets": "supervised"}
    return {name: weights_of(options, method) for name, method in methods.items()}


def weights_of(options, method):
    """Of the training with clean or noisy targets."""
    flags = [*RECIPE.split(), "--method", method, *options.flags.split(), "--max_minutes", options.minutes]
    flags += ["--data_dir", Path(options.data_dir[0]) / "train"]
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


def non_local_means(frame):
    """Averages neighbours whose surroundings look alike in the tone-mapped picture; it knows no albedo and normals."""
    shown = renders.tone_map(frame.render)
    steps = np.diff(np.diff(shown, axis=0), axis=1)  # of four independent pixels: twice their deviation
    sigma = float(np.median(np.abs(steps))) / 0.6745 / 2
    alike = {"patch_size": 5, "patch_distance": 6, "h": 0.8 * sigma, "sigma": sigma}
    return renders.untone(denoise_nl_means(shown, channel_axis=2, fast_mode=True, **alike))


def open_image_denoise():
    """Intel's denoiser with albedo and normals, or None where its package is not."""
    try:
        import pyoidn
    except ImportError:
        cli.note("without Open Image Denoise: pip install pyoidn")
        return None

    def denoise(frame):
        buffers = (np.clip(frame.albedo, 0, 1), frame.normal) if frame.normal.any() else ()
        return pyoidn.denoise(frame.render, *buffers, hdr=True)

    return denoise


# --- The frames ----------------------------------------------------------------------------------------------------


def frames_of(folder):
    """The frames of a folder and what they converge to; where it holds scenes to train on alone, the mean of each."""
    if (folder / "valid").exists():
        found = renders.find_frames("--data_dir", folder / "valid", "target")
        return [(renders.read_frame(paths), renders.read_buffer("target", target)[1]) for *paths, target in found]
    views = []
    for *paths, target in renders.find_frames("--data_dir", folder / "train", "clean"):
        frame = renders.read_frame(paths)
        if views and renders.same_view(views[-1][0][-1], frame):
            views[-1][0].append(frame)
        else:
            views.append(([frame], renders.read_buffer("target", target)[1]))
    return [(renders.mean(of_view), clean) for of_view, clean in views]


def without_buffers(frame):
    """The same, with nothing known but the light."""
    nothing = np.zeros_like(frame.render)
    return renders.Frame(frame.render, nothing, nothing, frame.picture)


# --- The table --------------------------------------------------------------------------------------------------


def scores_of(denoised, target):
    """PSNR and SSIM of the picture, and the relative error of linear light."""
    shown, clean = renders.as_picture("render", denoised), renders.as_picture("target", target)
    error = np.sort(((denoised - target) ** 2 / (target**2 + 0.01)).mean(axis=2), axis=None)
    return psnr(clean, shown, 255), ssim(clean, shown, 255), error[: -(error.size // 1000) or None].mean()


def main(argv=None):
    options = get_parser().parse_args(argv)
    for path in options.model_path or []:
        cli.existing_file("--model_path", path)
    found = [frames_of(Path(folder)) for folder in options.data_dir]
    if options.colour_only:
        found = [[(without_buffers(frame), target) for frame, target in of_folder] for of_folder in found]
    versions = {
        "noisy": lambda frame: frame.render,
        "joint bilateral filter": joint_bilateral,
        "non-local means": non_local_means,
    }
    for name, path in networks(options).items():
        denoiser = Denoiser(str(path), operators.choose()[0])
        versions[name] = lambda frame, denoiser=denoiser: renders.denoise(denoiser, frame)
    if intels := open_image_denoise():
        versions["Open Image Denoise"] = intels
    scores, seconds, rows = {name: [] for name in versions}, dict.fromkeys(versions, 0.0), []
    frames = [frame for folder in found for frame in folder]
    for index, (frame, target) in enumerate(frames):
        row = []
        for name, denoise in versions.items():
            start = time.perf_counter()
            denoised = denoise(frame)
            seconds[name] += time.perf_counter() - start
            scores[name].append(scores_of(denoised, target))
            row.append((renders.as_picture("render", denoised), f"{name} {scores[name][-1][0]:.2f}"))
        if index in options.pictured:
            rows.append([*row, (renders.as_picture("target", target), "converged")])
    end = 0
    for folder, of_folder in zip(options.data_dir, found, strict=True):
        start, end = end, end + len(of_folder)
        print_table(f"{len(of_folder)} frames of {Path(folder).name}", scores, slice(start, end), seconds, len(frames))
    if options.picture:
        images.write_image(options.picture, montage.grid(rows))


def print_table(title, scores, part, seconds, count):
    """The means over the frames of one folder; seconds are those of all."""
    print(f"| {title} | PSNR [dB] | SSIM | relative error | s a frame |")
    print("|---|---|---|---|---|")
    for name, of_frames in scores.items():
        means = np.mean(of_frames[part], axis=0)
        print(f"| {name} | {means[0]:.2f} | {means[1]:.3f} | {means[2]:.4f} | {seconds[name] / count:.2f} |")
    print()


if __name__ == "__main__":
    cli.run(main)
