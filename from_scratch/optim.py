"""Optimisers: what a step does with the gradients. Their state is arrays, so that it can be saved and resumed.

>>> adam = Adam(list(net.parameters().values()), lr=1e-3)
>>> adam.step(gradients(loss, adam.weights))
"""

import numpy as np


class SGD:
    """v = momentum v + g,  w = w - lr v."""

    def __init__(self, weights, lr, momentum=0.0):
        self.weights, self.lr, self.momentum = weights, lr, momentum
        self.velocity = [np.zeros_like(w.data) for w in weights]

    def state(self):
        """What changes beside the weights, as arrays by name."""
        return {f"velocity.{i}": v for i, v in enumerate(self.velocity)}

    def step(self, gradients):
        for w, g, v in zip(self.weights, gradients, self.velocity, strict=True):
            v *= self.momentum
            v += g
            w.data -= self.lr * v


class Adam:
    """Kingma and Ba's Algorithm 1: m / (sqrt(v) + eps), both corrected for having started at zero."""

    def __init__(self, weights, lr, beta1=0.9, beta2=0.999, eps=1e-8):
        self.weights, self.lr, self.beta1, self.beta2, self.eps = weights, lr, beta1, beta2, eps
        self.steps = np.zeros((), np.int64)
        self.m = [np.zeros_like(w.data) for w in weights]
        self.v = [np.zeros_like(w.data) for w in weights]

    def state(self):
        moments = {"m": self.m, "v": self.v}
        return {"steps": self.steps} | {f"{n}.{i}": a for n, arrays in moments.items() for i, a in enumerate(arrays)}

    def step(self, gradients):
        self.steps += 1
        correction1, correction2 = (1 - beta ** int(self.steps) for beta in (self.beta1, self.beta2))
        for w, g, m, v in zip(self.weights, gradients, self.m, self.v, strict=True):
            m += (1 - self.beta1) * (g - m)
            v += (1 - self.beta2) * (g * g - v)
            # The epsilon stands outside of the root and after the correction.
            w.data -= self.lr * (m / correction1) / (np.sqrt(v / correction2) + self.eps)
