"""PSNR and SSIM as Neighbor2Neighbor evaluates them; the data range is always stated."""

import cv2
import numpy as np


def psnr(reference, image, data_range):
    """Peak signal-to-noise ratio in dB; infinite for equal images."""
    _check_shapes(reference, image)
    difference = np.asarray(reference, np.float64) - np.asarray(image, np.float64)
    error = np.mean(difference**2)
    return float("inf") if error == 0 else float(10.0 * np.log10(data_range**2 / error))


def ssim(reference, image, data_range):
    """Mean structural similarity: 11x11 Gaussian window of sigma 1.5, valid area, channels averaged; HW or HWC."""
    _check_shapes(reference, image)
    if min(reference.shape[:2]) < 11:
        raise ValueError(f"SSIM needs 11x11 pixels, the image has {reference.shape[0]}x{reference.shape[1]}")
    if reference.ndim == 2:
        return _ssim_of_channel(reference, image, data_range)
    channels = range(reference.shape[2])
    return float(np.mean([_ssim_of_channel(reference[..., c], image[..., c], data_range) for c in channels]))


def _ssim_of_channel(reference, image, data_range):
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    x, y = np.ascontiguousarray(reference, np.float64), np.ascontiguousarray(image, np.float64)

    def local_mean(values):
        # Separable: the same sums as with the 11x11 window, five times faster.
        window = cv2.getGaussianKernel(11, 1.5)
        return cv2.sepFilter2D(values, -1, window, window)[5:-5, 5:-5]

    mean_x, mean_y = local_mean(x), local_mean(y)
    variance_x = local_mean(x * x) - mean_x**2
    variance_y = local_mean(y * y) - mean_y**2
    covariance = local_mean(x * y) - mean_x * mean_y
    similarity = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    )
    return float(similarity.mean())


def _check_shapes(reference, image):
    if reference.shape != image.shape:
        raise ValueError(f"images of different shapes cannot be compared: {reference.shape} and {image.shape}")
