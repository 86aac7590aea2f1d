"""Makes up renders with their buffers: balls over a chequered floor, whose noise is as heavy-tailed as that of paths.

    python test_tipc/make_renders.py test_tipc/inputs/renders            made the three small ones that are stored
    python test_tipc/make_renders.py --train test_tipc/data/renders      what is trained on: twelve of 128x128

Mitsuba is not needed. A stored frame is a folder of render, albedo, normal and target (converged); in what is trained
on, the target is another noisy render, as Noise2Noise has it.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's root

from denoising import cli
from denoising.files import images
from denoising.imaging.pixels import Picture

STORED = {"frame0": (49, 63), "frame1": (64, 48), "frame2": (40, 56)}
TRAIN_COUNT, TRAIN_SIZE = 12, (128, 128)
SUN = np.array([0.5, -0.6, 0.62])  # points up, and away from who looks


def surfaces(rng, height, width):
    """Albedo and normals, H x W x 3, as seen from the front."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    chequers = ((x * 7).astype(int) + (y * 7).astype(int)) % 2 == 0
    albedo = np.where(chequers[..., None], rng.uniform(0.4, 0.9, 3), rng.uniform(0.1, 0.4, 3))
    normal = np.broadcast_to([0.0, 0.0, 1.0], (height, width, 3)).copy()
    for _ in range(6):
        middle, radius = rng.uniform(0, 1, 2), rng.uniform(0.08, 0.25)
        u, v = (x - middle[0]) / radius, (y - middle[1]) / radius
        inside = u**2 + v**2 < 1
        albedo[inside] = rng.uniform(0.1, 0.95, 3)
        normal[inside] = np.stack([u, v, np.sqrt(np.maximum(0, 1 - u**2 - v**2))], axis=2)[inside]
    return albedo, normal


def frame(rng, height, width):
    """{kind: buffer} of one frame: two noisy renders, the converged one, albedo and normals."""
    albedo, normal = surfaces(rng, height, width)
    sun = np.maximum(normal @ (SUN / np.linalg.norm(SUN)), 0)[..., None]
    light = albedo * (rng.uniform(0.1, 0.4) + rng.uniform(0.8, 2.5) * sun)

    def noisy():
        # Of a mean of one, and a variance as that of some eight samples.
        return light * rng.gamma(2.0, 0.5, light.shape)

    made = {"render": noisy(), "other": noisy(), "converged": light, "albedo": albedo, "normal": normal}
    return {kind: buffer.astype(np.float16).astype(np.float32) for kind, buffer in made.items()}


def write(folder, name, made, target):
    """Writes the buffers of a frame as half-float EXR, the target being one of what was made."""
    like = Picture([made["render"]], format="EXR", exr={"half": True})
    for kind, source in {"render": "render", "albedo": "albedo", "normal": "normal", "target": target}.items():
        path = folder / kind / f"{name}.exr"
        path.parent.mkdir(parents=True, exist_ok=True)
        images.write_image(path, made[source], like=like)


def main(argv=None):
    """Writes one kind of frames."""
    parser = cli.Parser(__doc__)
    parser.add_argument("--train", action="store_true", help="frames to learn from, in one folder")
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(argv)
    cli.writable_folder("FOLDER", options.folder)
    rng = np.random.default_rng(9 if options.train else 25)
    if options.train:
        for number in range(TRAIN_COUNT):
            write(options.folder, f"frame{number:02d}", frame(rng, *TRAIN_SIZE), "other")
        return 0
    for name, size in STORED.items():
        write(options.folder / name, name, frame(rng, *size), "converged")
    return 0


if __name__ == "__main__":
    cli.run(main)
