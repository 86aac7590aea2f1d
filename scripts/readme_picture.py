"""Draws docs/picture.png, the picture of the README: noisy, denoised and clean, with their PSNR.

python scripts/readme_picture.py best_model.pdparams docs/picture.png
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's root

from denoising.imaging.metrics import psnr
from denoising.inference.denoiser import Denoiser

ROOT = Path(__file__).resolve().parent.parent
CAPTION = 28


def main(weights, target):
    """Two rows of the validation images that ship, with Gaussian noise of 25."""
    denoise, rng, rows = Denoiser(weights), np.random.default_rng(25), []
    for name in ("astronaut_face", "chelsea"):
        clean = np.asarray(Image.open(ROOT / "validation" / "Sample" / f"{name}.png"))
        noisy = np.clip(clean + rng.normal(0, 25, clean.shape) + 0.5, 0, 255).astype(np.uint8)
        denoised = denoise(noisy)
        captions = [
            f"noisy, {psnr(clean, noisy, 255):.2f} dB",
            f"denoised, {psnr(clean, denoised, 255):.2f} dB",
            "clean",
        ]
        rows.append(np.hstack([_captioned(*pair) for pair in zip((noisy, denoised, clean), captions, strict=True)]))
    Image.fromarray(np.vstack(rows)).save(target, optimize=True)


def _captioned(image, text):
    height, width = image.shape[:2]
    canvas = Image.new("RGB", (width + 8, height + CAPTION), "white")
    canvas.paste(Image.fromarray(image), (4, 0))
    draw = ImageDraw.Draw(canvas)
    draw.text((4 + width / 2, height + CAPTION / 2), text, "black", ImageFont.load_default(15), anchor="mm")
    return np.asarray(canvas)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
