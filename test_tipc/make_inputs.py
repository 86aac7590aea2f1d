"""Made the stored pictures of test_tipc/inputs: crops of validation/Sample, clean and with noise of sigma 25.

    python test_tipc/make_inputs.py

The noise is stored because a chain that draws it anew certifies the generator, not the model. Sizes are odd, and two
are equal, so that a batch of two is one. PNG is rounded and clipped; the NPY file is float, where differences far
below a grey level show.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

SIGMA = 25
CROPS = {  # name: top, left, height, width
    "astronaut_face": (20, 60, 129, 127),
    "astronaut_suit": (0, 60, 112, 112),
    "chelsea": (40, 30, 131, 97),
    "coffee_cup": (90, 60, 112, 112),
    "coffee_table": (100, 20, 65, 144),
}
FLOAT = ("chelsea", (60, 110, 48, 61))


def crop(name, box):
    """A part of one of the validation pictures, uint8."""
    top, left, height, width = box
    path = Path("validation/Sample") / f"{name}.png"
    return np.asarray(Image.open(path))[top : top + height, left : left + width]


def main():
    """Writes clean and noisy pictures under the same names."""
    root = Path("test_tipc/inputs")
    for kind in ("clean", "noisy"):
        (root / kind).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(25)
    for name, box in CROPS.items():
        clean = crop(name, box)
        noisy = np.clip(clean + rng.normal(0, SIGMA, clean.shape) + 0.5, 0, 255).astype(np.uint8)
        Image.fromarray(clean).save(root / "clean" / f"{name}.png", optimize=True)
        Image.fromarray(noisy).save(root / "noisy" / f"{name}.png", optimize=True)
    name, box = FLOAT
    clean = (crop(name, box) / 255).astype(np.float32)
    noisy = (clean + rng.normal(0, SIGMA / 255, clean.shape)).astype(np.float32)
    np.save(root / "clean" / f"{name}_float.npy", clean)
    np.save(root / "noisy" / f"{name}_float.npy", noisy)
    return 0


if __name__ == "__main__":
    sys.exit(main())
