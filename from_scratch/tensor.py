"""Reverse-mode automatic differentiation: arrays that remember what they were made of.

    >>> w = Tensor([1.0, 2.0], trainable=True)
    >>> gradients((w * w).mean(), [w])
    [array([1., 2.])]

Each operation computes its result at once and leaves two things on it: the tensors it was made of, and a function that
turns the gradient of the result into theirs. `gradients` follows these notes from the loss back to the weights. So an
operation is written once, with its derivative beside it, and a network needs no backward of its own.
"""

import contextlib
import itertools

import numpy as np

_numbers = itertools.count()
_recording = True


@contextlib.contextmanager
def no_recording():
    """Inside of it nothing is remembered: for inference, which needs no intermediate result twice."""
    global _recording
    before, _recording = _recording, False
    try:
        yield
    finally:
        _recording = before


class Tensor:
    """An array, the tensors it was made of, and the way back to their gradients."""

    __slots__ = ("backward", "data", "number", "sources", "tracked")

    def __init__(self, data, sources=(), backward=None, trainable=False):
        self.data = np.asarray(data)
        self.number = next(_numbers)  # a result has a higher number than what it was made of
        self.tracked = trainable or (_recording and any(source.tracked for source in sources))
        self.sources, self.backward = (sources, backward) if self.tracked else ((), None)

    @property
    def shape(self):
        return self.data.shape

    def __add__(self, other):
        other = self._tensor(other)
        return Tensor(self.data + other.data, (self, other), lambda g: (_fit(g, self), _fit(g, other)))

    def __sub__(self, other):
        other = self._tensor(other)
        return Tensor(self.data - other.data, (self, other), lambda g: (_fit(g, self), _fit(-g, other)))

    def __mul__(self, other):
        other = self._tensor(other)
        a, b = self.data, other.data
        return Tensor(a * b, (self, other), lambda g: (_fit(g * b, self), _fit(g * a, other)))

    def __matmul__(self, other):
        a, b = self.data, other.data
        return Tensor(a @ b, (self, other), lambda g: (g @ b.T, a.T @ g))

    def abs(self):
        return Tensor(np.abs(self.data), (self,), lambda g: (g * np.sign(self.data),))

    def mean(self):
        return Tensor(self.data.mean(), (self,), lambda g: (np.full_like(self.data, g / self.data.size),))

    def _tensor(self, other):
        return other if isinstance(other, Tensor) else Tensor(np.asarray(other, self.data.dtype))


def _fit(gradient, tensor):
    """Sums a gradient over the axes along which broadcasting had repeated `tensor`."""
    while gradient.ndim > tensor.data.ndim:
        gradient = gradient.sum(axis=0)
    for axis, size in enumerate(tensor.shape):
        if size != gradient.shape[axis]:
            gradient = gradient.sum(axis=axis, keepdims=True)
    return gradient


def concat(tensors):
    """Joins tensors along the last axis, which is that of the channels: the skips of a U-Net."""
    ends = np.cumsum([tensor.shape[-1] for tensor in tensors])[:-1]
    data = np.concatenate([tensor.data for tensor in tensors], axis=-1)
    return Tensor(data, tuple(tensors), lambda g: np.split(g, ends, axis=-1))


def gradients(loss, wanted):
    """The gradients of a loss, which is one number, by the `wanted` tensors.

    What was made last is differentiated first: by then all that was made of it has handed back its part. Nothing is
    written into the tensors, so that several threads can differentiate by the same weights at once.
    """
    if loss.data.size != 1:
        raise ValueError(f"a loss is one number, not an array of shape {loss.shape}")
    pending, found = {loss: np.ones_like(loss.data)}, {}
    while pending:
        tensor = max(pending, key=lambda tensor: tensor.number)
        gradient = pending.pop(tensor)
        if tensor in wanted:
            found[tensor] = gradient
        if tensor.backward is not None:
            for source, part in zip(tensor.sources, tensor.backward(gradient), strict=True):
                if source.tracked:
                    pending[source] = pending[source] + part if source in pending else part
    return [found[tensor] if tensor in found else np.zeros_like(tensor.data) for tensor in wanted]
