"""Undersampled MRI (Noise2Noise, section 3.4): sampling of k-space, and the known frequencies.

    >>> undersampled = undersample(slice_01, 0.1, np.random.default_rng(seed))
    >>> restored = put_back_image(undersampled, network_output, 0.1)

A frequency k is measured with probability p(k) = exp(-Lambda |k|), where Lambda is such that the asked share of all is
measured, and is divided by p(k); the others are zero. So the expectation of the spectrum is the true spectrum, and
that of the image, its inverse Fourier transform, is the true image.

Slices are real, so that k and -k are one measurement: the arrays here hold half a plane, H x (W // 2 + 1), as
`np.fft.rfft2` orders it. The paper shifts its slices to -0.5..0.5. Here they are in 0..1 like all images, which
changes only the mean; the frequency 0 is always measured.
"""

import functools

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

    Both are H x W or H x W x C, as the result is, which is float32; `share` is that of `undersample`.

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
