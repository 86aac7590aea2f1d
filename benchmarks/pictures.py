"""The images that benchmarks/run.py works on, made from those in scikit-image's wheel: nothing is downloaded."""

import cv2
import numpy as np
from PIL import Image
from skimage import data

PICTURES = ("astronaut", "coffee", "chelsea", "rocket", "hubble_deep_field", "retina")


def make_photos(folder, count):
    """JPEG files of 300 to 500 pixels a side."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(getattr(data, name)()).convert("RGB") for name in PICTURES]
    for i in range(count):
        picture = pictures[i % len(pictures)]
        width, height = (int(side) for side in rng.integers(300, 501, 2))
        # A window of the picture's larger part, so that there is as much detail as in photos of this size.
        share = rng.uniform(0.6, 1.0)
        w, h = int(picture.width * share), int(picture.height * share)
        left, top = int(rng.integers(0, picture.width - w + 1)), int(rng.integers(0, picture.height - h + 1))
        window = picture.crop((left, top, left + w, top + h)).resize((width, height), Image.Resampling.LANCZOS)
        window.save(folder / f"{i:03d}.jpg", quality=92)


def make_noisy(path, height, width):
    """A noisy picture of any size, uint8 RGB, as PNG or NPY."""
    image = cv2.resize(data.astronaut(), (width, height), interpolation=cv2.INTER_CUBIC)
    rng = np.random.default_rng(0)
    for top in range(0, height, 512):  # in strips: noise in float takes four times the image's memory
        strip = image[top : top + 512]
        strip[...] = np.clip(strip + 25 * rng.standard_normal(strip.shape, np.float32) + 0.5, 0, 255)
    if path.suffix == ".npy":
        np.save(path, image)
    else:
        cv2.imwrite(str(path), image[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])
