"""Undersampled MRI (Noise2Noise, section 3.4): sampling of k-space, the known frequencies, phantoms to train on.

    >>> undersampled = undersample(slice_01, 0.1, np.random.default_rng(seed))
    >>> restored = put_back_image(undersampled, network_output, 0.1)

A frequency k is measured with probability p(k) = exp(-Lambda |k|), where Lambda is such that the asked share of all is
measured, and is divided by p(k); the others are zero. So the expectation of the spectrum is the true spectrum, and
that of the image, its inverse Fourier transform, is the true image.

Slices are real, so that k and -k are one measurement: all is said of half a plane, H x (W // 2 + 1), as `np.fft.rfft2`
orders it. The paper shifts its slices to -0.5..0.5. Here they are in 0..1 like all images, which changes but the mean;
the frequency 0 is always measured.
"""

import functools
import math

import cv2
import numpy as np

from denoising.cli import UserError

# --- Sampling -----------------------------------------------------------------------------------------------


def distances(height, width):
    """|k| of each frequency in half a plane; 1 at the edge, half a cycle a pixel, whatever the size."""
    down, across = np.fft.fftfreq(height), np.fft.rfftfreq(width)
    return 2 * np.hypot(down[:, None], across)


@functools.lru_cache(16)
def density(height, width, share):
    """p(k) as float32 [H, W // 2 + 1], such that `share` of the whole plane is measured on average.

    Raises:
        UserError: the image is so small that its mean alone, which is always measured, is more than the share.
    """
    if share == 1:
        return np.ones((height, width // 2 + 1), np.float32)
    k = distances(height, width)
    # Columns that stand for their mirror images too count twice.
    weights = np.where(np.arange(width // 2 + 1) * 2 % width == 0, 1.0, 2.0) / (height * width)
    if share <= 1.5 / (height * width):
        raise UserError(f"noise mri{share:g}: an image of {height} x {width} has too few frequencies for that share")
    # Newton's method: the share that a Lambda leaves is convex and falling, so from 0 it climbs to the root.
    Lambda = 0.0
    for _ in range(100):
        p = np.exp(-Lambda * k) * weights
        excess = p.sum() - share
        if abs(excess) < 1e-9:
            break
        Lambda += excess / (p * k).sum()
    result = np.exp(-Lambda * k).astype(np.float32)
    result.setflags(write=False)
    return result


def draw_mask(p, width, rng):
    """Which frequencies are measured, bool [H, W // 2 + 1]: each with its probability, k and -k together."""
    draws = rng.random(p.shape)
    # The columns that hold both k and -k: the lower half takes the draws of the upper one.
    for column in {0, width // 2} if width % 2 == 0 else {0}:
        draws[1:, column] = np.where(
            np.arange(1, len(draws)) * 2 <= len(draws), draws[1:, column], draws[:0:-1, column]
        )
    return draws < p


def undersample(image, share, rng):
    """What is seen of an H x W or H x W x C image when a share of its frequencies is measured; float32.

    All channels are measured at the same frequencies. `rng` is a numpy Generator or RandomState.
    """
    planes = _planes(np.asarray(image, np.float64))
    height, width = planes.shape[1:]
    p = density(height, width, share)
    spectrum = np.where(draw_mask(p, width, rng), np.fft.rfft2(planes) / p, 0)
    return _image_like(np.fft.irfft2(spectrum, s=(height, width)), image)


def from_kspace(kspace, share):
    """What `undersample` makes of a slice, from what a scanner has measured of it.

    Args:
        kspace: complex [H, W], the frequency 0 first; 0 where nothing was measured. Of k and -k one is enough.
        share: of the frequencies that are measured on average, with the `density` that follows from it.

    Raises:
        ValueError: the content is no such measurement, or that of an image that is not real.
    """
    height, width = kspace.shape
    if not np.isfinite(kspace).all():
        raise ValueError("the k-space holds NaN or infinite values")
    mirrored = np.conj(np.roll(kspace[::-1, ::-1], 1, axis=(0, 1)))
    known, known_mirrored = kspace != 0, mirrored != 0
    apart = np.abs(kspace - mirrored)[known & known_mirrored]
    if not known.any():
        raise ValueError("the k-space is empty")
    if np.linalg.norm(apart) > 1e-3 * np.linalg.norm(kspace):
        raise ValueError("k and -k do not mirror each other: the slice is not real")
    if np.abs(kspace).max() > 1.001 * abs(kspace[0, 0]):
        raise ValueError("the largest value of the k-space is not the first: numpy.fft.ifftshift puts it there")
    found = (known | known_mirrored).mean()
    if not share / 2 <= found <= 2 * share:
        raise ValueError(f"{found:.1%} of the k-space are known, not about {share:.1%}")
    half = np.where(known, kspace, mirrored)[:, : width // 2 + 1]
    return np.fft.irfft2(half / density(height, width, share), s=(height, width)).astype(np.float32)


# --- Known frequencies --------------------------------------------------------------------------------------

# Rounding to float32 leaves some 3e-8 of an image's norm in each frequency that was not measured.
TOLERANCE = 1e-6


def put_back_image(undersampled, denoised, share):
    """Gives a denoised image the frequencies that were measured: those that are not zero in the undersampled one.

    Args:
        undersampled: of `undersample`, H x W or H x W x C.
        denoised: of the same shape.
        share: of the frequencies, as it was undersampled with.

    Returns:
        float32, of the same shape.

    Raises:
        ValueError: the undersampled image is none, or of another shape.
    """
    if undersampled.shape != denoised.shape:
        raise ValueError(f"undersampled {undersampled.shape} and denoised {denoised.shape} are of different shapes")
    if undersampled.dtype.kind != "f":
        raise ValueError(f"undersampled slices are float32: in {undersampled.dtype} no frequency is as measured")
    # Twice the precision, so that what comes out is what was measured.
    planes, others = (_planes(image.astype(np.float64)) for image in (undersampled, denoised))
    measured, known = _known(planes, np)
    if known.mean() > 2 * share:
        raise ValueError(
            f"{known.mean():.0%} of the frequencies are not zero: that is no slice sampled with mri{share:g}"
        )
    return _image_like(_put_back(measured, known, others, density(*planes.shape[1:], share), np), denoised)


def put_back_tensor(undersampled, denoised, share):
    """The same for tensors of N x C x H x W; a projection, whose gradient has none of the known frequencies."""
    import paddle  # here, so that whoever only makes slices does not wait for it

    p = paddle.to_tensor(density(*undersampled.shape[2:], share).astype(np.complex64))
    return _put_back(*_known(undersampled, paddle), denoised.astype("float32"), p, paddle)


# Of arrays or tensors of ... x H x W, with the module that they belong to.


def _known(undersampled, xp):
    """The spectrum, and where it is not zero."""
    measured = xp.fft.rfft2(undersampled)
    norm = xp.sqrt(xp.sum(xp.sum(undersampled**2, -1), -1))[..., None, None]
    return measured, xp.abs(measured) > TOLERANCE * norm


def _put_back(measured, known, denoised, p, xp):
    spectrum = xp.fft.rfft2(denoised)
    # A product and no `where`, which Paddle 2.6 lacks for complex numbers.
    spectrum = spectrum + known.astype("complex64") * (measured * p - spectrum)
    return xp.fft.irfft2(spectrum, s=list(denoised.shape[-2:]))


def _planes(image):
    return image[None] if image.ndim == 2 else image.transpose(2, 0, 1)


def _image_like(planes, image):
    result = planes[0] if image.ndim == 2 else planes.transpose(1, 2, 0)
    return np.ascontiguousarray(result, np.float32)


# --- Phantoms -----------------------------------------------------------------------------------------------

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
        (one * np.float32(1 + variety * rng.uniform(-0.05, 0.25)) + np.float32(variety * rng.uniform(-0.08, 0.08)))
        + np.float32(variety) * (0.06 * _waves(size, rng, 0.25) + 0.012 * _waves(size, rng, 0.05))
        for one in turned
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
