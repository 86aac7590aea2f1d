"""Draws docs/picture.png, the picture of the README: noisy, denoised and clean, with their PSNR.

python scripts/readme_picture.py best_model.pdparams docs/picture.png
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's root

from denoising import cli
from denoising.files import images
from denoising.imaging.metrics import psnr
from denoising.inference.denoiser import Denoiser
from denoising.reports import montage

ROOT = Path(__file__).resolve().parent.parent


def get_parser():
    """All flags."""
    parser = cli.Parser(__doc__)
    parser.add_argument("model_path", help="the weights")
    parser.add_argument("picture", help="the PNG file to draw")
    return parser


def main(argv=None):
    """Two rows of the validation images that ship, with Gaussian noise of 25."""
    options = get_parser().parse_args(argv)
    cli.existing_file("model_path", options.model_path)
    denoise, rng, rows = Denoiser(options.model_path), np.random.default_rng(25), []
    for name in ("astronaut_face", "chelsea"):
        clean = images.read_image(ROOT / "validation" / "Sample" / f"{name}.png").pages[0]
        noisy = np.clip(clean + rng.normal(0, 25, clean.shape) + 0.5, 0, 255).astype(np.uint8)
        denoised = denoise(noisy)
        rows.append([
            (noisy, f"noisy, {psnr(clean, noisy, 255):.2f} dB"),
            (denoised, f"denoised, {psnr(clean, denoised, 255):.2f} dB"),
            (clean, "clean"),
        ])  # fmt: skip
    images.write_image(options.picture, montage.grid(rows))


if __name__ == "__main__":
    cli.run(main)
