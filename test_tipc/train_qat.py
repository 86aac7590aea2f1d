"""Trains with 8-bit rounding in the loop, and learns the range of every activation (PACT, Choi et al., 2018).

    python test_tipc/train_qat.py --pretrained=best_model.pdparams --engine=paddle --data_dir=images --n_epoch=1
    python test_tipc/export_qat.py --model_path=out/N2N_PACT/best_model.pdparams --save_dir=out

takes the flags of train.py. The weights file holds float weights, as any other, and beside them the ranges;
export_qat.py makes the 8-bit model of both.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's root

import paddle
from paddle.nn import functional as F

import train_for_tipc
from arch_unet import PlainOps
from denoising import cli
from denoising.training.state import Training

STEPS = 127  # on either side of zero


def rounded(x, step):
    """Multiples of a step; the gradient passes as if nothing were rounded."""
    return x + (paddle.round(x / step) * step - x).detach()


class PactOps(PlainOps):
    """Convolutions on rounded inputs with rounded weights; what Paddle leaves in float in 8-bit models stays float."""

    def __init__(self):
        self.names, self.ranges = {}, {}

    def watch(self, network):
        """Makes the layers of a network known; those of one name share a range."""
        self.names |= {id(layer): name for name, layer in network.named_sublayers()}

    def range_of(self, layer, x):
        """The learnt range of a layer's input, which starts at the largest number that it first sees."""
        name = self.names[id(layer)]
        if name not in self.ranges:
            start = paddle.nn.initializer.Constant(max(x.abs().max().item(), 1e-3))
            self.ranges[name] = paddle.create_parameter([1], "float32", default_initializer=start)
        return self.ranges[name]

    def conv(self, x, layer, slope=0.2):
        if slope == 1.0:  # the last one
            return super().conv(x, layer, slope)
        bound = self.range_of(layer, x)
        x = rounded(paddle.minimum(paddle.maximum(x, -bound), bound), bound.detach() / STEPS)
        step = layer.weight.detach().abs().max(axis=[1, 2, 3], keepdim=True).clip(1e-12) / STEPS
        y = F.conv2d(x, rounded(layer.weight, step), layer.bias, padding=layer.weight.shape[2] // 2)
        return F.leaky_relu(y, slope)


class PactTraining(Training):
    """A training whose ranges are learnt beside the weights."""

    def __init__(self, options, ops, *more):
        if not isinstance(ops, PlainOps):
            raise cli.UserError("--engine: the engine's operators do not round; --engine paddle does")
        super().__init__(options, PactOps(), *more)
        for network in (self.network, self.averaged):
            self.network.ops.watch(network)
        self.learner = None

    def train_on(self, method, batch, rate, ramp):
        """One step of the weights, and one of the ranges, which exist after the first look at a batch."""
        result = super().train_on(method, batch, rate, ramp)
        ranges = list(self.network.ops.ranges.values())
        if self.learner is None:
            # PACT draws the ranges together, as far as the loss lets it.
            self.learner = paddle.optimizer.Adam(1e-3, parameters=ranges, weight_decay=1e-4)
        self.learner.step()
        self.learner.clear_grad()
        return result

    def save_weights(self, path):
        """The weights with the ranges beside them."""
        ranges = {name: value.item() for name, value in self.network.ops.ranges.items()}
        self.network.options["ranges"] = ranges
        super().save_weights(path)


def main():
    """Trains with PactTraining in the place of Training."""
    return train_for_tipc.run(*train_for_tipc.read(), training_class=PactTraining)


if __name__ == "__main__":
    cli.run(main)
