"""How images of one size become a batch for a network, and its results images again.

A grey network takes each channel of a colour image as an image of its own. A colour network takes a grey image as three
equal channels, and the mean of its result is the denoised grey image.
"""

import numpy as np


def nchw_shape(images, takes):
    """The shape of a batch of H x W x C images for a network that takes so many channels."""
    height, width, channels = images[0].shape
    per_image = channels if takes == 1 else 1
    return len(images) * per_image, takes, height, width


def to_nchw(images_01, takes):
    """The batch, contiguous."""
    shape = nchw_shape(images_01, takes)
    batch = np.stack(images_01).transpose(0, 3, 1, 2).reshape(shape[0], -1, *shape[2:])
    return np.ascontiguousarray(np.broadcast_to(batch, shape))


def from_nchw(batch, images, takes):
    """The results of a batch, N x H x W x C, with as many channels as the images had.

    Networks for renders take buffers beside the image, and give as many channels as the image alone has.
    """
    height, width, channels = images[0].shape
    if channels < takes:
        batch = batch.mean(axis=1, keepdims=True)
    gives = channels if takes == 1 or channels < takes else batch.shape[1]
    return batch.reshape(len(images), gives, height, width).transpose(0, 2, 3, 1)
