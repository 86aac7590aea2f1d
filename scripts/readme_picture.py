"""Draws docs/picture.png, the picture of the README: before and after, of noise that cameras make.

python scripts/readme_picture.py models/photo_deep.pdparams docs/picture.png
"""

import sys
from pathlib import Path

import numpy as np
from skimage import data

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's root

from denoising import cli
from denoising.files import images
from denoising.imaging.metrics import psnr
from denoising.imaging.noise import parse_noise
from denoising.imaging.pixels import from_01, to_01
from denoising.inference.denoiser import Denoiser
from denoising.reports import montage

ROOT = Path(__file__).resolve().parent.parent
SKY = np.s_[320:576, 340:596]  # of the Hubble deep field: a real photograph, in the public domain
AMPLIFIED = 8


def get_parser():
    """All flags."""
    parser = cli.Parser(__doc__)
    parser.add_argument("model_path", help="the weights")
    parser.add_argument("picture", help="the PNG file to draw")
    return parser


def main(argv=None):
    """A real photograph with what was removed from it, and a simulated shot beside its scene."""
    options = get_parser().parse_args(argv)
    cli.existing_file("model_path", options.model_path)
    denoise = Denoiser(options.model_path)
    sky = data.hubble_deep_field()
    denoised = denoise(sky)
    removed = np.clip(128 + AMPLIFIED * (sky.astype(int) - denoised), 0, 255).astype(np.uint8)
    rows = [[
        (sky[SKY], "a real photograph (Hubble)"), (denoised[SKY], "denoised"),
        (removed[SKY], f"what was removed, x{AMPLIFIED}"),
    ]]  # fmt: skip
    scene = images.read_image(ROOT / "validation" / "Sample" / "astronaut_face.png").pages[0]
    shot = from_01(parse_noise("camera6").add(to_01(scene), np.random.default_rng(11)), np.uint8)
    denoised = denoise(shot)
    rows.append([
        (shot, f"a simulated shot, {psnr(scene, shot, 255):.2f} dB"),
        (denoised, f"denoised, {psnr(scene, denoised, 255):.2f} dB"), (scene, "its scene"),
    ])  # fmt: skip
    images.write_image(options.picture, montage.grid(rows))


if __name__ == "__main__":
    cli.run(main)
