"""Draws docs/noise.png, each kind of noise on one crop, and measures how long each takes.

python scripts/noise_picture.py docs/noise.png
"""

import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's root

from denoising import cli
from denoising.cli import number
from denoising.files import images
from denoising.imaging.noise import parse_noise
from denoising.imaging.pixels import from_01, to_01
from denoising.reports import montage

ROOT = Path(__file__).resolve().parent.parent
SHOWN = (
    "none", "gauss25", "poisson30", "speckle50", "bernoulli0.5",
    "impulse0.3", "text0.25", "jpeg10", "poisson30+gauss5", "gauss25+text0.1", "camera4", "camera12",
)  # fmt: skip
SIDE, IN_A_ROW = 160, 6


def get_parser():
    """All flags."""
    parser = cli.Parser(__doc__)
    parser.add_argument("picture", help="the PNG file to draw")
    parser.add_argument("--calls", type=number(int, 1), default=200, help="how often each noise is timed")
    return parser


def main(argv=None):
    """Two rows of pictures; a table of milliseconds on stdout."""
    options = get_parser().parse_args(argv)
    clean = images.read_image(ROOT / "validation" / "Sample" / "astronaut_face.png").pages[0]
    crop = to_01(clean[40 : 40 + SIDE, 50 : 50 + SIDE])
    patch = np.ascontiguousarray(crop[:128, :128])
    pictures = []
    for name in SHOWN:
        noise = parse_noise(name)
        pictures.append((from_01(noise.add(crop, np.random.default_rng(7)), np.uint8), name))
        print(f"{name:18}{milliseconds(noise, patch, options.calls):6.2f} ms")
    rows = [pictures[start : start + IN_A_ROW] for start in range(0, len(pictures), IN_A_ROW)]
    images.write_image(options.picture, montage.grid(rows))


def milliseconds(noise, patch, calls):
    """The median time of a call."""
    rng, seconds = np.random.default_rng(0), []
    for _ in range(calls):
        start = time.perf_counter()
        noise.add(patch, rng)
        seconds.append(time.perf_counter() - start)
    return 1e3 * float(np.median(seconds))


if __name__ == "__main__":
    cli.run(main)
