"""How weights follow their gradients: Adam as published, or Muon, which needs a fifth of the steps.

Muon (Jordan et al., 2024) takes a convolution's weights for a matrix of [outputs, inputs * kernel], and replaces its
momentum by the nearest matrix whose singular values are all one: directions that the gradient hardly shows are learnt
as fast as those that dominate it. Biases, and the two layers at the image, stay with Adam.
"""

import numpy as np
import paddle

from denoising.cli import UserError

KINDS = ("adam", "muon")
ADAM_MOMENTS = ("_moment1_0", "_moment2_0", "_beta1_pow_acc_0", "_beta2_pow_acc_0")  # as Paddle names them

# Found by short runs (docs/training.md).
RATE = 10.0  # Muon's rate in units of --lr, which stays Adam's
MOMENTUM = 0.95
DECAY = 0.1  # of the weights, per unit of Muon's rate: orthogonal steps never shrink by themselves
SMALLEST = 16  # inputs or outputs; below, a matrix has too few directions to gain


def orthogonalize(matrices):
    """The nearest matrices with singular values near one: five steps of Newton and Schulz's iteration.

    Its coefficients are Jordan's: they trade exactness (values end between 0.7 and 1.2) for speed.

    Args:
        matrices: float tensors [rows, columns], rows <= columns.
    """
    results = []
    for x in matrices:
        x = x / (paddle.sqrt(paddle.sum(x * x)) + 1e-12)
        for _ in range(5):
            square = paddle.matmul(x, x, transpose_y=True)
            x = 3.4445 * x + paddle.matmul(-4.7750 * square + 2.0315 * paddle.matmul(square, square), x)
        results.append(x)
    return results


class Optimizer:
    """The optimizer of a network's parameters, of a kind of KINDS; what it remembers is named by layers.

    Args:
        network: its `ops` may bring a faster `orthogonalize`.
        rate: Adam's learning rate, until `step` is given another.
        clip_grad: the largest norm of the gradients that Adam sees; 0 for no limit.
    """

    def __init__(self, network, kind="adam", rate=3e-4, clip_grad=0.0):
        # What a normalisation counts is among Paddle's parameters, and is not learnt.
        learnt = {name: p for name, p in network.named_parameters() if not p.stop_gradient}
        self.matrices = {name: p for name, p in learnt.items() if kind == "muon" and _is_matrix(p)}
        self.momenta = {name: paddle.zeros_like(p) for name, p in self.matrices.items()}
        self.others = {name: p for name, p in learnt.items() if name not in self.matrices}
        clip = paddle.nn.ClipGradByGlobalNorm(clip_grad) if clip_grad else None
        self.adam = paddle.optimizer.Adam(rate, parameters=list(self.others.values()), grad_clip=clip)
        self.orthogonalize = getattr(network.ops, "orthogonalize", orthogonalize)

    def step(self, rate, scaler):
        """Moves all parameters by their gradients and clears these; `scaler` is AMP's, for Adam."""
        self.adam.set_lr(rate)
        scaler.step(self.adam)
        scaler.update()
        self.adam.clear_grad()
        if self.matrices:
            self._step_matrices(rate * RATE)

    @paddle.no_grad()
    def _step_matrices(self, rate):
        wide = []
        for name, parameter in self.matrices.items():
            momentum, gradient = self.momenta[name], parameter.grad
            momentum.lerp_(gradient, 1 - MOMENTUM)
            ahead = paddle.lerp(gradient, momentum, MOMENTUM).reshape([parameter.shape[0], -1])  # Nesterov's
            wide.append(ahead if ahead.shape[0] <= ahead.shape[1] else ahead.T)
            parameter.clear_gradient()
        for parameter, update in zip(self.matrices.values(), self.orthogonalize(wide), strict=True):
            rows, columns = parameter.shape[0], parameter.size // parameter.shape[0]
            update = update if rows <= columns else update.T
            parameter.scale_(1 - rate * DECAY)
            parameter.subtract_(update.reshape(parameter.shape) * (rate * max(1.0, rows / columns) ** 0.5))

    def state(self):
        """What the next step depends on, as arrays by "layer:moment"."""
        moments, state = self.adam.state_dict(), {}
        for name, parameter in self.others.items():
            for key in moments:
                if key.startswith(parameter.name + "_"):
                    state[f"{name}:{key[len(parameter.name) :]}"] = np.asarray(moments[key].numpy())
        return state | {f"{name}:momentum": tensor.numpy() for name, tensor in self.momenta.items()}

    def set_state(self, state, path, started):
        """The inverse of `state`; `started` is whether that was after a step: before it, Adam has no moments.

        Raises:
            UserError: the state, which came from `path`, is not of this optimizer.
        """
        expected = {f"{name}:momentum": tensor.shape for name, tensor in self.momenta.items()}
        for name, parameter in self.others.items() if started else ():
            expected |= {f"{name}:{m}": parameter.shape if "moment" in m else [1] for m in ADAM_MOMENTS}
        for key, shape in expected.items():
            array = state.get(key)
            if not isinstance(array, np.ndarray) or list(array.shape) != list(shape) or not np.isfinite(array).all():
                raise UserError(f"{path}: the optimizer's {key} is missing, broken or of another network")
        if len(state) != len(expected):
            raise UserError(f"{path}: it is of another optimizer")
        for name, tensor in self.momenta.items():
            tensor.set_value(state[f"{name}:momentum"])
        if started:
            # Paddle names the moments after parameters, whose names count up within a process.
            self.adam.set_state_dict({
                parameter.name + m: paddle.to_tensor(state[f"{name}:{m}"])
                for name, parameter in self.others.items() for m in ADAM_MOMENTS
            })  # fmt: skip


def _is_matrix(parameter):
    return parameter.ndim == 4 and min(parameter.shape[:2]) >= SMALLEST
