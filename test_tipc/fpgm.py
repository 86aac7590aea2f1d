"""Pruning by the geometric median (FPGM, He et al., CVPR 2019): the filters that the others can replace are dropped.

>>> small = prune(network, 36)  # of a network of 48 features; its weights are those of the filters that stayed

The result is the same kind of network with fewer features, so that everything that runs the one runs the other. Which
channels a layer gets is not written down for each network: its `ops` are replaced by some that hand on, instead of
pictures, the numbers of the channels that are kept, and cut each layer's weights by them.
"""

import numpy as np
from paddle import nn

from arch_unet import build_network


def kept_filters(weight, count):
    """The numbers of the `count` filters that are farthest from the others; weight is [filters, ...]."""
    filters = weight.reshape(len(weight), -1).astype(np.float64)
    distances = np.sqrt(((filters[:, None] - filters[None]) ** 2).sum(-1)).sum(1)
    return np.sort(np.argsort(-distances, kind="stable")[:count])


class Cutter:
    """A network's `ops` on arrays of channel numbers."""

    def __init__(self, network, small):
        self.names = {id(layer): name for name, layer in network.named_sublayers()}
        self.targets = dict(small.named_sublayers())

    def _cut(self, layer, inputs, axis):
        """Cuts a layer's weights to the kept inputs and its best filters, which lie along `axis`."""
        target = self.targets[self.names[id(layer)]]
        weight = np.moveaxis(layer.weight.numpy(), axis, 0)[:, inputs]
        count = np.moveaxis(target.weight.numpy(), axis, 0).shape[0]
        filters = kept_filters(weight, count)
        target.weight.set_value(np.ascontiguousarray(np.moveaxis(weight[filters], 0, axis)))
        target.bias.set_value(layer.bias.numpy()[filters])
        return filters

    def conv(self, x, layer, slope=0.2):
        return self._cut(layer, x[0], 0), layer.weight.shape[0]

    def pool(self, x):
        return x

    def upsample_cat(self, x, layer, skip):
        return self.enlarge_cat((self._cut(layer, x[0], 1), layer.weight.shape[1]), skip)

    def enlarge_cat(self, x, skip):
        return np.concatenate([x[0], x[1] + skip[0]]), x[1] + skip[1]


def prune(network, n_feature):
    """A network of fewer features with the weights of the filters that are kept.

    Raises:
        ValueError: a network with normalisations, whose statistics belong to all filters.
    """
    if any(isinstance(layer, nn.BatchNorm2D | nn.InstanceNorm2D) for layer in network.sublayers()):
        raise ValueError("networks with normalisations are not pruned")
    options = {name: value for name, value in network.options.items() if name != "n_head"}
    small = build_network(**options | {"n_feature": n_feature})
    ops, network.ops = network.ops, Cutter(network, small)
    try:
        network.body((np.arange(network.n_input), network.n_input))
    finally:
        network.ops = ops
    return small
