"""Writes the project's sample images from those in scikit-image's wheel: nothing is downloaded.

Only images that are public domain or CC0 are taken: astronaut (NASA), hubble_deep_field (NASA/ESA), rocket (SpaceX),
coffee (Rachel Michetti), chelsea (Stefan van der Walt), camera (Lav Varshney), retina (Mikael Häggström),
brick, grass and gravel (CC0 textures).

    python scripts/sample_images.py train data/sample/raw          clean images for a short training
    python scripts/sample_images.py validation validation/Sample   the validation set that ships
    python scripts/sample_images.py demo demo                      the noisy pictures that ship
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data

# Nothing that is trained on is scored on.
TRAIN = ("rocket", "hubble_deep_field", "retina", "camera", "brick", "grass", "gravel")
VALIDATION = {
    "astronaut_face": ("astronaut", 0, 90),
    "astronaut_suit": ("astronaut", 250, 200),
    "chelsea": ("chelsea", 20, 100),
    "coffee_cup": ("coffee", 60, 130),
    "coffee_table": ("coffee", 140, 340),
}
DEMO = {"astronaut": "astronaut", "chelsea": "chelsea"}
SIGMA = 25


def main(kind, folder):
    """Writes one kind of images."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "train":
        for name in TRAIN:
            Image.fromarray(getattr(data, name)()).save(folder / f"{name}.png")
    elif kind == "validation":
        for name, (source, top, left) in VALIDATION.items():
            crop = getattr(data, source)()[top : top + 256, left : left + 256]
            Image.fromarray(crop).save(folder / f"{name}.png", optimize=True)
    elif kind == "demo":
        rng = np.random.default_rng(25)
        for name, source in DEMO.items():
            clean = getattr(data, source)()
            noisy = np.clip(clean + rng.normal(0, SIGMA, clean.shape) + 0.5, 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / f"{name}_noise.png")
    else:
        sys.exit(f"sample_images.py: error: {kind} is none of train, validation, demo")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
