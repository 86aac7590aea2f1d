"""Compares what can be done about noise before and after a raw file is developed, on files of simulated sensors.

    python benchmarks/raw_comparison.py --image_dir validation/Kodak            # minutes, one core with bf16
    python benchmarks/raw_comparison.py --image_dir validation/Kodak --images 2 --strengths 8        # a look

Each image is taken apart into what a sensor sees of it, noise is added, and the result becomes a DNG. It prints a table
in Markdown: the PSNR of the mosaic, and that of the picture in 8 bits that LibRaw develops of it, in dB, against the
mosaic without noise and the picture developed of that; a column for each strength of the noise. LibRaw's other noise
reduction, by wavelets (noise_thr), crashes in rawpy 0.28 and is left out.
"""

import dataclasses
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's root

from denoising import cli
from denoising.cli import number
from denoising.engine import operators
from denoising.files import dng, images, raw
from denoising.imaging import camera
from denoising.imaging.metrics import psnr
from denoising.imaging.noise_analysis import sensor_curve
from denoising.imaging.pixels import pack_bayer, to_01
from denoising.inference import raw_prediction
from denoising.inference.denoiser import Denoiser
from denoising.reports import montage

ROOT = Path(__file__).resolve().parent.parent
DEVELOPED = {"no_auto_bright": True}  # or noise would change the exposure
RED = (0, 0)


def get_parser():
    parser = cli.Parser(__doc__)
    add = parser.add_argument
    add("--image_dir", required=True, help="a folder of clean images")
    add("--images", type=number(int, 1), help="how many of them, evenly spread (default: all)")
    add("--strengths", type=number(float, 0.1, 50), nargs="+", default=[1, 3, 8, 16],
        help="deviations of the sensor's noise at middle grey, of 255")  # fmt: skip
    add("--model_path", default=str(ROOT / "models/raw.pdparams"), help="the weights for mosaics")
    add("--photo_path", default=str(ROOT / "models/photo_deep.pdparams"), help="the weights for developed pictures")
    add("--picture", help="draw the first image in all versions into this PNG file, at the last strength")
    return parser


@dataclasses.dataclass
class Shot:
    """A simulated shot: the DNG of its mosaic, the mosaic without noise, the curve of the noise."""

    data: bytes
    clean: np.ndarray
    curve: tuple


def shoot(image_01, strength, seed):
    """The shot of an image, H x W x 3."""
    rng = np.random.default_rng(seed)
    drawn = camera.draw_settings(rng, strength)
    settings = dataclasses.replace(drawn, signed=True, exposure=0.9)
    clean = camera.on_mosaic(image_01[: len(image_01) // 2 * 2, : image_01.shape[1] // 2 * 2], settings)
    noisy = camera.sense(clean, settings, rng)
    matrix = np.linalg.inv(settings.colours) / np.array(settings.gains)[:, None] @ np.array(dng.XYZ_TO_SRGB)
    return Shot(dng.encode(noisy, RED, settings.gains, matrix), clean, (settings.shot, settings.read))


def versions(shot, of_mosaics, of_pictures):
    """Of each way its name, the mosaic or None, and the developed picture; first what all are compared with."""
    import rawpy

    with raw.opened("a simulated shot", shot.data) as photo:
        noisy = photo.mosaic()
        measured = sensor_curve(pack_bayer(noisy[..., None]))
        yield "no noise", shot.clean, photo.develop(shot.clean, **DEVELOPED)
        as_it_is = photo.develop(noisy, **DEVELOPED)
        yield "nothing is done", noisy, as_it_is
        for mode in (rawpy.FBDDNoiseReductionMode.Light, rawpy.FBDDNoiseReductionMode.Full):
            developed = photo.develop(noisy, fbdd_noise_reduction=mode, **DEVELOPED)
            yield f"LibRaw, FBDD {mode.name.lower()}", None, developed
        yield "developed, then photo_deep", None, of_pictures(as_it_is)
        for name, curve in (("raw, noise measured", measured), ("raw, noise known", shot.curve)):
            mosaic = raw_prediction.denoise(of_mosaics, noisy, RED, curve or (0, 0))
            yield name, mosaic, photo.develop(mosaic, **DEVELOPED)


def scores_of(shot, *denoisers):
    """PSNR of mosaic and picture by the name of the way, and the pictures."""
    (_, clean, target), *others = versions(shot, *denoisers)
    target = target >> 8
    scores = {}
    for name, mosaic, developed in others:
        of_mosaic = np.nan if mosaic is None else psnr(clean, np.clip(mosaic, 0, 1), 1)
        scores[name] = of_mosaic, psnr(target.astype(np.uint8), (developed >> 8).astype(np.uint8), 255)
    return scores, {name: developed for name, _, developed in others} | {"no noise": target << 8}


def main(argv=None):
    options = get_parser().parse_args(argv)
    paths = images.find_images("--image_dir", options.image_dir)
    paths = paths[:: max(1, len(paths) // (options.images or len(paths)))][: options.images]
    ops = operators.choose()[0]
    denoisers = [Denoiser(path, ops) for path in (options.model_path, options.photo_path)]
    means = {}
    for strength in options.strengths:
        found = []
        for seed, path in enumerate(cli.progress(paths, unit="image", label=f"{strength:g}")):
            image_01 = to_01(images.read_image(path).pages[0])
            scores, pictures = scores_of(shoot(image_01, strength, seed), *denoisers)
            found.append(scores)
            if seed == 0:
                shown = pictures, scores
        means[strength] = {name: np.mean([scores[name] for scores in found], axis=0) for name in found[0]}
    print_table(means, len(paths))
    if options.picture:
        pictures, scores = shown
        row = [((picture >> 8).astype(np.uint8), _caption(name, scores)) for name, picture in pictures.items()]
        images.write_image(options.picture, montage.grid([row]))


def print_table(means, count):
    """A row for each way, a column for each strength: PSNR of mosaic / picture."""
    print(f"| {count} images | " + " | ".join(f"{strength:g}" for strength in means) + " |")
    print("|---|" + "---|" * len(means))
    for name in next(iter(means.values())):
        pairs = [of_strength[name] for of_strength in means.values()]
        cells = [f"{'' if np.isnan(mosaic) else f'{mosaic:.2f} / '}{picture:.2f}" for mosaic, picture in pairs]
        print(f"| {name} | " + " | ".join(cells) + " |")


def _caption(name, scores):
    return f"{name} {scores[name][1]:.2f}" if name in scores else name


if __name__ == "__main__":
    cli.run(main)
