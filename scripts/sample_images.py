"""Writes the project's sample images from those in scikit-image's wheel: nothing is downloaded.

Only images that are public domain or CC0 are taken: astronaut (NASA), hubble_deep_field (NASA/ESA), rocket (SpaceX),
coffee (Rachel Michetti), chelsea (Stefan van der Walt), camera (Lav Varshney), retina (Mikael Häggström),
brick, grass and gravel (CC0 textures).

    python scripts/sample_images.py train data/sample/raw          clean images for a short training
    python scripts/sample_images.py validation validation/Sample   the validation set that ships
    python scripts/sample_images.py demo demo                      the noisy pictures that ship
    python scripts/sample_images.py graphics IMAGES/graphics       drawings with text, to train on beside photographs
    python scripts/sample_images.py graphics_validation validation/Drawings       others, to score
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from skimage import data

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's root

from denoising import cli

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
# Drawings by their seeds, and the size of each.
GRAPHICS, GRAPHICS_SIDE = range(64), 512
GRAPHICS_VALIDATION, GRAPHICS_VALIDATION_SIDE = range(1000, 1016), 256


def get_parser():
    """All flags."""
    parser = cli.Parser(__doc__)
    parser.add_argument("kind", choices=KINDS, help="which images")
    parser.add_argument("folder", help="where they go")
    return parser


def main(argv=None):
    """Writes images of one kind."""
    options = get_parser().parse_args(argv)
    folder = Path(cli.writable_folder("folder", options.folder))
    for name, image in KINDS[options.kind]():
        Image.fromarray(image).save(folder / f"{name}.png", optimize=options.kind == "validation")


def train_images():
    """Names with whole images."""
    return [(name, getattr(data, name)()) for name in TRAIN]


def validation_images():
    """Names with crops of 256x256."""
    for name, (source, top, left) in VALIDATION.items():
        yield name, getattr(data, source)()[top : top + 256, left : left + 256]


def demo_images():
    """Names with noisy images."""
    rng = np.random.default_rng(25)
    for name, source in DEMO.items():
        clean = getattr(data, source)()
        yield f"{name}_noise", np.clip(clean + rng.normal(0, SIGMA, clean.shape) + 0.5, 0, 255).astype(np.uint8)


def graphics_images(seeds=GRAPHICS, size=GRAPHICS_SIDE):
    """Names with drawings: text, lines, boxes and circles in flat colours; half of them in steps of two pixels."""
    for seed in seeds:
        drawing = drawn(size // (1 + seed % 2), np.random.default_rng(seed))
        yield f"graphics_{seed:02d}", np.asarray(drawing.resize((size, size), Image.Resampling.NEAREST))


def graphics_validation_images():
    """Names with drawings that nothing was trained on."""
    return graphics_images(GRAPHICS_VALIDATION, GRAPHICS_VALIDATION_SIDE)


def drawn(side, rng):
    """One drawing, on paper or on black."""
    ground = int(rng.choice([0, 24, 235, 255]))
    picture = Image.new("RGB", (side, side), (ground, ground, ground))
    draw = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(4, 12))):
        colour = tuple(int(value) for value in rng.integers(0, 256, 3))
        box = sorted(rng.integers(0, side, 2).tolist()), sorted(rng.integers(0, side, 2).tolist())
        corners = (box[0][0], box[1][0], box[0][1], box[1][1])
        shape = (draw.rectangle, draw.ellipse, draw.line)[rng.integers(3)]
        shape(corners, fill=colour, width=int(rng.integers(1, 5)))
    letters = [chr(code) for code in range(33, 127)]
    for row in range(0, side, side // 16):
        font = ImageFont.load_default(int(rng.integers(9, 28)))
        colour = (255 - ground,) * 3 if rng.random() < 0.6 else tuple(int(value) for value in rng.integers(0, 256, 3))
        words = ["".join(rng.choice(letters, rng.integers(2, 9))) for _ in range(12)]
        draw.text((int(rng.integers(0, side // 2)), row), " ".join(words), fill=colour, font=font)
    return picture


KINDS = {
    "train": train_images, "validation": validation_images, "demo": demo_images, "graphics": graphics_images,
    "graphics_validation": graphics_validation_images,
}  # fmt: skip

if __name__ == "__main__":
    cli.run(main)
