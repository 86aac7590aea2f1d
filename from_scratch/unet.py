"""A small U-Net, after Noise2Noise's: two poolings, skips, and the input added to the output."""

import numpy as np

from layers import Conv2d, ConvTranspose2d, LeakyReLU, MaxPool2d, Module, Sequential
from tensor import concat


class UNet(Module):
    """N x H x W x 3 in and out, values around 0; height and width must be multiples of 4.

    It learns what to add to the noisy image rather than the image: then its first guess is the noisy image itself.
    """

    multiple = 4
    margin = 32  # a pixel of the result depends on no pixel farther away (28 would do)

    def __init__(self, features=32, channels=3, seed=0):
        rng = np.random.default_rng(seed)
        n, act = features, LeakyReLU(0.1)

        def convs(*widths):
            pairs = zip(widths, widths[1:], strict=False)
            return Sequential(*(m for i, o in pairs for m in (Conv2d(i, o, 3, padding=1, rng=rng), act)))

        self.enc0 = convs(channels, n, n)
        self.enc1 = convs(n, 2 * n, 2 * n)
        self.enc2 = convs(2 * n, 3 * n, 3 * n)
        self.up1 = ConvTranspose2d(3 * n, 2 * n, 2, stride=2, rng=rng)
        self.dec1 = convs(4 * n, 2 * n, 2 * n)
        self.up0 = ConvTranspose2d(2 * n, n, 2, stride=2, rng=rng)
        self.dec0 = convs(2 * n, n, n)
        self.last = Conv2d(n, channels, 3, padding=1, rng=rng)
        self.last.weight.data *= 0.1
        self.pool = MaxPool2d(2)

    def forward(self, x):
        level0 = self.enc0(x)
        level1 = self.enc1(self.pool(level0))
        level2 = self.enc2(self.pool(level1))
        y = self.dec1(concat([self.up1(level2), level1]))
        y = self.dec0(concat([self.up0(y), level0]))
        return x + self.last(y)
