"""Noise against brightness: lines through what was measured, where texture may have lifted some of the points.

Brightness and variance are in 0..1 where a name does not say 255; a line (a, b) is the variance a * brightness + b.
"""

import numpy as np


def simplest_line(x, variance):
    """(a, b) of a constant, a proportion or a line a x + b: the simplest that fits nearly as well as any."""
    best = None
    for a, b in ((0.0, _mean(np.ones_like(x), variance)), (_mean(x, variance), 0.0), lower_line(x, variance)):
        line = np.maximum(a * x + b, 1e-12)
        misfit = np.sqrt(np.mean(np.minimum(np.abs(variance / line - 1), 0.5) ** 2))
        if best is None or misfit < 0.7 * best[0] - 0.01:
            best = misfit, (a, b)
    return best[1]


def _mean(shape, variance):
    """The factor that makes a shape fit to a variance."""
    return float((variance / np.maximum(shape, 1e-6)).mean()) if (shape > 1e-3).all() else 0.0


def lower_line(x, variance):
    """The line a x + b, a and b not negative, along the lower edge of points that texture lifts."""
    best = (0.0, float(variance.min()))
    if len(x) < 3:
        return best
    weight = 1 / np.maximum(variance, 1e-12)
    for _ in range(20):
        design = np.stack((x, np.ones_like(x)), 1) * weight[:, None]
        a, b = np.linalg.lstsq(design, variance * weight, rcond=None)[0]
        if b < 0:
            a, b = (weight**2 * x * variance).sum() / max((weight**2 * x * x).sum(), 1e-30), 0.0
        if a < 0:
            a, b = 0.0, (weight**2 * variance).sum() / (weight**2).sum()
        best = (float(a), float(b))
        line = np.maximum(a * x + b, 1e-12)
        above = np.maximum(variance / line - 1, 0)
        weight = 1 / (line * (1 + (above / 0.1) ** 2))
    return best


def typical_deviation(variances):
    """The deviation that half of the places exceed, a mean over the channels."""
    return float(np.sqrt(np.median(variances, axis=0).mean()))


def variance_of(curve, means_255):
    """The variance on 0..255 that a curve gives to each block and channel."""
    a, b = np.array(curve).T
    return np.maximum(a * np.maximum(means_255, 0) / 255 + b, 1e-9) * 255**2


def fair_line(x, variance):
    """The line a x + b, a and b not negative, through the middle of points."""
    if len(x) < 3:
        return 0.0, float(variance.mean())
    a, b = np.polyfit(x, variance, 1)
    if a < 0:
        return 0.0, float(variance.mean())
    return (float(a), float(b)) if b >= 0 else (float((x * variance).sum() / (x * x).sum()), 0.0)


def lines(fit, levels_255, energies):
    """(a, b) of each channel, by one of the fits above; the points are n x C, on 0..255."""
    return tuple(fit(x, y) for x, y in zip(levels_255.T / 255, energies.T / 255**2, strict=True))


def interpolated(levels, values, wanted):
    """The values at other levels, channel by channel, by straight lines between the measured points; n x C each."""
    channels = []
    for x, y, at in zip(levels.T, values.T, wanted.T, strict=True):
        order = np.argsort(x)
        channels.append(np.maximum(np.interp(at, x[order], y[order]), 1e-9))
    return np.stack(channels, 1)
