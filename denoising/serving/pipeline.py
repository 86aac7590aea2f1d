"""The way of one image through the service: decoded, denoised together with others, encoded.

Each image has a thread that waits for an image process to decode it, for the network, and for an image process to
encode it. There are twice as many threads as a batch has places: one batch is computed while the next is decoded.
What finds no thread waits as it came, undecoded.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import paddle

from arch_unet import DenoisingNetwork
from denoising import cli
from denoising.cli import UserError
from denoising.imaging.noise import noise_of_flag
from denoising.serving.batching import BatchedDenoiser, Batcher, Dropped, Ticket
from denoising.serving.image_process import Died, Refused


class Pipeline:
    """Threads, network and image processes. It starts with `start` and must be ended with `stop`.

    Args:
        options: the flags of tools/serve.py.
        denoiser: a Denoiser, whose network is shared by all images.
        processes: ImageProcesses.

    Raises:
        UserError: this is no network for single images.
    """

    def __init__(self, options, denoiser, processes):
        self.options, self.denoiser, self.processes = options, denoiser, processes
        if denoiser.n_input != denoiser.n_channel:
            raise UserError("--model_path: this network takes buffers beside the image: use predict.py")
        # What the noise has left of an image is put back: the measured frequencies of an MRI slice.
        flag = next(f"--{name}" for name in ("model_path", "model_dir", "model_file") if getattr(options, name))
        noisetype = denoiser.options.get("noisetype")
        self.noise = noise_of_flag(flag, noisetype and str(noisetype))

    def start(self, on_batch):
        """Starts the threads and runs the network once.

        A first window is slow, and what cannot run at all should show before anyone is let in.

        Args:
            on_batch: called as on_batch(number of windows, seconds) after each further pass of the network.
        """
        self.threads = ThreadPoolExecutor(2 * self.options.max_batch, "image")
        self.batcher = Batcher(self.denoiser.run_batch, self.options.max_batch, self.options.max_wait_ms / 1e3)
        self.batcher(np.zeros((1, self.denoiser.n_channel, 64, 64), np.float32), Ticket())
        self.batcher.on_batch = on_batch

    def stop(self):
        """Drops what waits, and returns when all threads have ended."""
        self.batcher.stop()
        self.threads.shutdown()

    def is_alive(self):
        """Whether the network's thread still runs."""
        return self.batcher.thread.is_alive()

    def denoise(self, data, strength, ticket):
        """A file's bytes for a file's bytes, in the thread that calls; returns them, their format, and the pixels.

        Raises:
            Refused: the image is at fault.
            Dropped: nobody waits for it any more, or the service ends.
        """
        if ticket.dropped:
            raise Dropped
        try:
            picture, pixels = self.processes.call("decode", data, limit=self.options.decode_timeout)
        except Died as death:
            cli.note(f"an image of {len(data)} bytes was refused: its decoder died: {death}")
            raise Refused(422, "image: the decoder gives up on it") from None
        if ticket.dropped:
            raise Dropped
        network, tile = self.denoiser.network, self.options.tile
        denoiser = BatchedDenoiser(network, self.batcher, ticket, tile=tile, strength=strength)
        try:
            pages = [self.noise.restore(page, denoiser(page)) for page in picture.pages]
        except ValueError as error:
            raise Refused(422, f"image: {error}") from None
        # Only what is left beside the pixels is needed of the input.
        picture.pages = []
        return self.processes.call("encode", pages, picture, limit=self.options.timeout), picture.format, pixels


class ExportedNetwork(DenoisingNetwork):
    """What a runtime computes, in the place of a network: so a Denoiser tiles and the service batches for it too."""

    def __init__(self, runtime):
        super().__init__(n_channel=runtime.channels)
        self.runtime = runtime

    def forward(self, x):
        return paddle.to_tensor(self.runtime(x.numpy()))
