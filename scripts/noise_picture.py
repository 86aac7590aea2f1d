"""Draws docs/noise.png, each kind of noise on one crop, and measures how long each takes.

python scripts/noise_picture.py docs/noise.png
"""

import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's root

from denoising.files.images import from_01, to_01
from denoising.imaging.noise import parse_noise

ROOT = Path(__file__).resolve().parent.parent
SHOWN = (
    "none", "gauss25", "poisson30", "speckle50", "bernoulli0.5",
    "impulse0.3", "text0.25", "jpeg10", "poisson30+gauss5", "gauss25+text0.1",
)  # fmt: skip
SIDE, CAPTION, IN_A_ROW = 160, 22, 5


def main(target):
    """Two rows of five pictures; a table of milliseconds on stdout."""
    clean = np.asarray(Image.open(ROOT / "validation" / "Sample" / "astronaut_face.png"))
    crop = to_01(clean[40 : 40 + SIDE, 50 : 50 + SIDE])
    patch = np.ascontiguousarray(crop[:128, :128])
    pictures = []
    for name in SHOWN:
        model = parse_noise(name)
        pictures.append(_captioned(from_01(model.add(crop, np.random.default_rng(7)), np.uint8), name))
        print(f"{name:18}{_milliseconds(lambda rng, model=model: model.add(patch, rng)):6.2f} ms")
    rows = [np.hstack(pictures[start : start + IN_A_ROW]) for start in range(0, len(pictures), IN_A_ROW)]
    Image.fromarray(np.vstack(rows)).save(target, optimize=True)


def _milliseconds(function, calls=200):
    """The median of many calls."""
    rng, seconds = np.random.default_rng(0), []
    for _ in range(calls):
        start = time.perf_counter()
        function(rng)
        seconds.append(time.perf_counter() - start)
    return 1e3 * float(np.median(seconds))


def _captioned(image, text):
    canvas = Image.new("RGB", (SIDE + 6, SIDE + CAPTION), "white")
    canvas.paste(Image.fromarray(image), (3, 0))
    place = ((SIDE + 6) / 2, SIDE + CAPTION / 2)
    ImageDraw.Draw(canvas).text(place, text, "black", ImageFont.load_default(14), anchor="mm")
    return np.asarray(canvas)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
