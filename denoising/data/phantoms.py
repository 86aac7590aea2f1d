"""Heads that do not exist, to train MRI reconstruction on: Shepp and Logan's phantom, varied."""

import math

import cv2
import numpy as np

# Shepp and Logan's head (1974) with Toft's contrast: grey value, half axes, centre, degrees; the picture is -1..1.
HEAD = np.array([
    (1.0, 0.69, 0.92, 0.0, 0.0, 0.0),
    (-0.8, 0.6624, 0.874, 0.0, 0.0184, 0.0),
    (-0.2, 0.11, 0.31, 0.22, 0.0, 18.0),
    (-0.2, 0.16, 0.41, -0.22, 0.0, -18.0),
    (0.1, 0.21, 0.25, 0.0, -0.35, 0.0),
    (0.1, 0.046, 0.046, 0.0, -0.1, 0.0),
    (0.1, 0.046, 0.046, 0.0, 0.1, 0.0),
    (0.1, 0.046, 0.023, -0.08, 0.605, 0.0),
    (0.1, 0.023, 0.023, 0.0, 0.605, 0.0),
    (0.1, 0.023, 0.046, 0.06, 0.605, 0.0),
])  # fmt: skip


def phantom(size, rng, variety=1.0):
    """A slice of a head that does not exist, float32 [size, size] in 0..1.

    Shepp and Logan's, with everything in it moved, turned, stretched and shaded at random, more in it, bent so that
    no outline is an ellipse any more, with the texture of tissue and the uneven light of a receive coil.

    Args:
        size: side in pixels.
        rng: a numpy Generator; another state, another head.
        variety: how far it goes from Shepp and Logan's; 0 is theirs.
    """
    # Where each pixel lies in the head: turned, stretched and bent.
    x, y = np.meshgrid(*[(np.arange(size, dtype=np.float32) * 2 + 1) / size - 1] * 2)
    angle = variety * rng.uniform(-0.4, 0.4)
    turned = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    x, y = (
        (axis * np.float32(1 + variety * rng.uniform(-0.05, 0.25)) + np.float32(variety * rng.uniform(-0.08, 0.08)))
        + np.float32(variety) * (0.06 * _waves(size, rng, 0.25) + 0.012 * _waves(size, rng, 0.05))
        for axis in turned
    )

    # What lies in it: Shepp and Logan's ten ellipses, and as many smaller ones as chance will have.
    ellipses = HEAD.copy()
    few = len(HEAD) - 2  # the skull and the brain keep together
    ellipses[:, 0] *= 1 + variety * rng.uniform(-0.6, 0.6, len(HEAD)) * (np.arange(len(HEAD)) > 0)
    ellipses[1, 0] = -0.8 + variety * rng.uniform(0.0, 0.5)
    ellipses[2:, 1:3] *= np.exp(variety * rng.uniform(-0.4, 0.4, (few, 2)))
    ellipses[2:, 3:5] += variety * rng.uniform(-0.1, 0.1, (few, 2))
    ellipses[2:, 5] += variety * rng.uniform(-40, 40, few)
    more = round(variety * rng.integers(15, 50))
    radius, place = 0.8 * np.sqrt(rng.random(more)), rng.uniform(0, 2 * np.pi, more)
    ellipses = np.concatenate((ellipses, np.stack([
        rng.uniform(-0.25, 0.25, more),
        *np.exp(rng.uniform(math.log(0.01), math.log(0.15), (2, more))),
        0.6 * radius * np.cos(place), 0.8 * radius * np.sin(place), rng.uniform(0, 180, more),
    ], axis=1)))  # fmt: skip
    image = np.zeros((size, size), np.float32)
    for ellipse in ellipses:
        _add_ellipse(image, x, y, ellipse.astype(np.float32))

    # Tissue is not flat, and the coil not even; outside the head there is nothing to shade.
    texture = 0.06 * _waves(size, rng, 0.015) + 0.04 * _waves(size, rng, 0.004)
    light = 1 + np.float32(variety) * (texture + 0.12 * _waves(size, rng, 0.5))
    image = np.maximum(image, 0) * light
    return np.clip(image / max(1.0, float(image.max())), 0, 1)


def _add_ellipse(image, x, y, ellipse):
    """Adds a grey value inside an ellipse, with an edge one pixel wide."""
    grey, a, b, x0, y0, degrees = ellipse
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # Only the rows and columns that it can touch: most are small.
    near = np.maximum(np.abs(x - x0), np.abs(y - y0)) <= max(a, b)
    rows, columns = near.any(axis=1).nonzero()[0], near.any(axis=0).nonzero()[0]
    if not len(rows):
        return
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    u, v = x[box] - x0, y[box] - y0
    radius = np.hypot((u * cosine + v * sine) / a, (v * cosine - u * sine) / b)
    image[box] += grey * np.clip((1 - radius) * (min(a, b) * len(image) / 2) + 0.5, 0, 1)


def _waves(size, rng, scale):
    """Smooth noise of mean 0 and deviation about 1, whose blots are `scale` of the image wide."""
    # Drawn at four points a blot, and enlarged: cheap, however wide.
    points = min(size, max(4, round(4 / scale)))
    coarse = cv2.GaussianBlur(rng.standard_normal((points, points), np.float32), (0, 0), max(scale * points / 2, 0.5))
    coarse /= coarse.std()
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
