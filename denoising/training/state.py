"""A training between two steps: weights, their average, the optimizer, and how all of it is saved and restored."""

import json
import os

import numpy as np
import paddle

from arch_unet import build_network
from denoising.cli import UserError
from denoising.inference import checkpoint, distributed
from denoising.training.optimizers import Optimizer

STATE = "last_state.pdparams"


class Training:
    """The weights, their average, the optimizer, and where the run stands."""

    def __init__(self, options, ops, n_input=None, structure=None):
        """`structure` is that of the network where it is not what the options say, as in `Network.options`."""
        paddle.seed(options.seed)
        self.options = options
        structure = structure or _structure(options, n_input)
        self.network = build_network(**structure)
        distributed.broadcast_parameters(self.network)
        self.network.ops = ops
        self.network.train()
        if options.to_static:
            paddle.jit.to_static(self.network, full_graph=True)
        self.averaged = self.network
        if options.ema:
            self.averaged = build_network(**structure)
            self.averaged.set_state_dict(self.network.state_dict())
            self.averaged.ops = ops
            self.averaged.eval()
            for parameter in self.averaged.parameters():
                parameter.stop_gradient = True
        self.optimizer = Optimizer(self.network, options.optimizer, options.lr, options.clip_grad)
        self.scaler = paddle.amp.GradScaler(enable=options.amp)
        self.step, self.seconds, self.best_psnr = 0, 0.0, None
        self.waited = 0  # snapshots since the best one
        self.images = ""  # a digest of the training images' names, on which every step depends

    def start_from(self, path):
        """Begins with the weights of a file, in place of random ones."""
        state = checkpoint.read_weights(path)
        if self.options.n_channel == 1:
            state = checkpoint.to_grey(state)
        state = checkpoint.to_larger(self.network, state)
        checkpoint.set_weights(self.network, state, path)
        distributed.broadcast_parameters(self.network)
        if self.averaged is not self.network:
            self.averaged.set_state_dict(self.network.state_dict())

    def train_on(self, method, batch, rate, ramp):
        """One step; the returned losses stay on the device, because reading them would wait for it."""
        tensors = [paddle.to_tensor(array) for array in batch]
        with paddle.amp.auto_cast(enable=self.options.amp):
            loss, *parts = method(self.network, *tensors, ramp=ramp)
        self.scaler.scale(loss).backward()
        distributed.average_gradients(self.network.parameters())
        self.optimizer.step(rate, self.scaler)
        self.step += 1
        if self.averaged is not self.network:
            self._average()
        return loss, *parts

    @paddle.no_grad()
    def _average(self):
        # A young average forgets faster, so that it does not remember the first weights.
        decay = min(self.options.ema, (1 + self.step) / (10 + self.step))
        for average, weight in zip(self.averaged.parameters(), self.network.parameters(), strict=True):
            average.lerp_(weight.detach(), 1 - decay)

    def check_finite(self):
        """Keeps a run that has diverged from writing over the last good state.

        Raises:
            UserError: a weight is NaN or infinite.
        """
        if not all(np.isfinite(weight.numpy()).all() for weight in self.network.parameters()):
            raise UserError(f"the weights are not finite at step {self.step}: try a smaller --lr, or --clip_grad 1")

    def save_weights(self, path):
        """The averaged weights with what rebuilds the network."""
        self.check_finite()
        about = {
            name: getattr(self.options, name)
            for name in ("method", "loss", "noisetype", "known_noise", "noise_protocol", "patchsize")
        }
        options = {**self.network.options, **about, "step": self.step}
        checkpoint.save_network(path, checkpoint.network_state(self.averaged), options)

    def save_state(self, folder):
        """Everything that the next step depends on, in one atomic file."""
        self.check_finite()
        state = {f"network/{name}": array for name, array in checkpoint.network_state(self.network).items()}
        if self.averaged is not self.network:
            averaged = checkpoint.network_state(self.averaged)
            state |= {f"average/{name}": array for name, array in averaged.items()}
        state |= {f"optimizer/{name}": array for name, array in self.optimizer.state().items()}
        names = ("step", "seconds", "best_psnr", "waited", "images")
        where = {name: getattr(self, name) for name in names}
        scaler = {k: np.asarray(v).item() for k, v in self.scaler.state_dict().items()} if self.options.amp else {}
        state["@options"] = json.dumps({"training": vars(self.options), "where": where, "scaler": scaler})
        checkpoint.write_state(os.path.join(folder, STATE), state)

    def load_state(self, state, path):
        """The inverse of `save_state`."""
        about = json.loads(state["@options"])
        parts = {"network": {}, "average": {}, "optimizer": {}}
        for key, array in state.items():
            part, _, name = key.partition("/")
            parts.get(part, {})[name] = array
        checkpoint.set_weights(self.network, parts["network"], path)
        if self.averaged is not self.network:
            checkpoint.set_weights(self.averaged, parts["average"], path)
        where = about["where"]
        self.optimizer.set_state(parts["optimizer"], path, started=where["step"] > 0)
        if self.options.amp:
            self.scaler.load_state_dict(about["scaler"])
        self.step, self.seconds, self.best_psnr = where["step"], where["seconds"], where["best_psnr"]
        self.waited = where.get("waited", 0)


def _structure(options, n_input):
    """The arguments of `build_network`."""
    structure = {"arch": options.arch, "n_channel": options.n_channel, "n_feature": options.n_feature}
    if options.arch == "unet_n2n":
        structure["norm"] = options.norm
    if options.careful:
        structure["careful"] = True
    if n_input:
        structure["n_input"] = n_input
    return structure
