"""Convolution of plain arrays as a product of matrices, and the two products that differentiate it.

    correlate         y  = rows(x) W          a row is a window of x, a column of W is a filter
    weight_gradient   dW = rows(x)' dy
    input_gradient    dx = scatter(dy W')     what belongs to a window is added back to where the window was

A transposed convolution is `input_gradient` used forwards and `correlate` used backwards.

Images are N x H x W x C: the channels of a pixel lie side by side, so that a window is a few runs of memory.
Weights are kh x kw x C/groups x O. `x` and `dx` are on the wide side of the stride, `y` and `dy` on the narrow one.
"""

import numpy as np
from numpy.lib.stride_tricks import as_strided


def windows(x, size, stride=1, dilation=1):
    """All windows of some images, as a view that copies nothing: N x H' x W' x kh x kw x C."""
    (n, height, width, c), (sn, sh, sw, sc) = x.shape, x.strides
    across = [(length - dilation * (k - 1) - 1) // stride + 1 for length, k in zip((height, width), size, strict=True)]
    if min(across) < 1:
        raise ValueError(f"no window of {size}, dilation {dilation}, fits into {height} x {width} pixels")
    strides = (sn, stride * sh, stride * sw, dilation * sh, dilation * sw, sc)
    return as_strided(x, (n, *across, *size, c), strides)


def as_rows(view, groups):
    """Copies windows into the rows of a matrix, one matrix per group: groups x (N H' W') x (kh kw C/groups)."""
    n, height, width, kh, kw, c = view.shape
    view = view.reshape(n, height, width, kh, kw, groups, c // groups)
    return np.moveaxis(view, 5, 0).reshape(groups, n * height * width, kh * kw * c // groups)


def by_group(array, groups):
    """An array's last axis split into groups, which come first: groups x everything else x O/groups. A view."""
    return array.reshape(-1, groups, array.shape[-1] // groups).swapaxes(0, 1)


def pad(x, border):
    """Surrounds images with zeros."""
    if border == 0:
        return x
    n, height, width, c = x.shape
    padded = np.zeros((n, height + 2 * border, width + 2 * border, c), x.dtype)
    padded[:, border:-border, border:-border] = x
    return padded


def correlate(x, weight, stride=1, padding=0, dilation=1, groups=1):
    """What neural networks call a convolution: y, N x H' x W' x O."""
    view = windows(pad(x, padding), weight.shape[:2], stride, dilation)
    y = as_rows(view, groups) @ by_group(weight, groups)
    return y.swapaxes(0, 1).reshape(*view.shape[:3], -1)


def weight_gradient(x, dy, size, stride=1, padding=0, dilation=1, groups=1):
    """The gradient of the weights: kh x kw x C/groups x O."""
    view = windows(pad(x, padding), size, stride, dilation)
    dw = as_rows(view, groups).swapaxes(1, 2) @ by_group(dy, groups)
    return dw.swapaxes(0, 1).reshape(*size, -1, dy.shape[-1])


def input_gradient(dy, weight, shape, stride=1, padding=0, dilation=1, groups=1):
    """The gradient of the input, whose shape several sizes of y would fit: N x H x W x C."""
    n, height, width, c = shape
    kh, kw, _, out = weight.shape
    border = dilation * (kh - 1) - padding
    if stride == 1 and kh == kw and border >= 0:
        # Without a stride it is itself a convolution, by the filters turned around, and faster so.
        turned = weight[::-1, ::-1].reshape(kh, kw, -1, groups, out // groups).transpose(0, 1, 4, 3, 2)
        return correlate(dy, turned.reshape(kh, kw, -1, c), 1, border, dilation, groups)
    rows = by_group(dy, groups) @ by_group(weight, groups).swapaxes(1, 2)
    dx = np.zeros((n, height + 2 * padding, width + 2 * padding, c), dy.dtype)
    view = windows(dx, (kh, kw), stride, dilation)
    parts = np.moveaxis(rows.reshape(groups, *dy.shape[:3], kh, kw, -1), 0, 5).reshape(view.shape)
    for u, v in np.ndindex(kh, kw):
        view[:, :, :, u, v] += parts[:, :, :, u, v]
    return dx[:, padding : padding + height, padding : padding + width]
