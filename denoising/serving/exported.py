"""An exported model in the place of a network, so that a Denoiser tiles and the service batches for it too."""

import paddle

from arch_unet import DenoisingNetwork


class ExportedNetwork(DenoisingNetwork):
    """What a runtime computes, as a network.

    Args:
        runtime: of `choice.open_runtime`.
    """

    def __init__(self, runtime):
        super().__init__(n_channel=runtime.channels)
        self.runtime = runtime

    def forward(self, x):
        return paddle.to_tensor(self.runtime(x.numpy()))
