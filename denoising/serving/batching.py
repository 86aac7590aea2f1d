"""One network for many requests: windows of one size that wait at the same time are computed together.

>>> batcher = Batcher(denoiser.run, max_batch=8)
>>> denoised = BatchedDenoiser(network, batcher, Ticket())(noisy)  # in any thread, many at a time

A batch holds not images but the windows that a Denoiser hands to its network, which are padded to multiples of 32 and
have three channels even if the image is grey. So a grey scan and a colour photo go together, and a small image waits
for one window of a large one, not for all of it. Each image gets the same bits as if it were computed alone.
"""

import collections
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from denoising.engine import operators
from denoising.inference.denoiser import Denoiser

# Larger batches gain nothing (docs/serving.md) and take memory. A single window may be larger.
BATCH_PIXELS = 1 << 19
IDLE_SECONDS = 5  # without work, until the memory that is kept for the next window is given back


class Dropped(Exception):
    """Nobody waits for this result any more."""


class Ticket:
    """Tells the windows of a request whether somebody still waits for them."""

    dropped = False


@dataclass(eq=False)
class _Window:
    network: object
    stage: str
    arrays: tuple  # each 1 x C x H x W
    ticket: Ticket
    arrived: float = field(default_factory=time.monotonic)
    result: Future = field(default_factory=Future)

    def fits(self, other):
        """Whether both can be computed together."""
        shapes = [array.shape for array in self.arrays]
        same = self.network is other.network and self.stage == other.stage
        return same and shapes == [array.shape for array in other.arrays]


class Batcher:
    """Runs windows from many threads through a network, in order of arrival, in a thread of its own.

    Args:
        run: called as run(network, stage, *arrays), of N x C x H x W, which it returns too.
        max_batch: the most windows that are computed at once.
        max_wait: seconds that the first window of a batch waits for others. Windows that come while a batch is
            computed wait together anyway.
        on_batch: called as on_batch(number of windows, seconds) after each batch.
    """

    def __init__(self, run, max_batch, max_wait=0.0, on_batch=lambda size, seconds: None):
        self.run, self.max_batch, self.max_wait, self.on_batch = run, max_batch, max_wait, on_batch
        self.waiting: collections.deque[_Window] = collections.deque()
        self.changed = threading.Condition()
        self.stopped = False
        self.thread = threading.Thread(target=self._work, name="network")
        self.thread.start()

    def __call__(self, network, stage, arrays, ticket):
        """The result of one window, 1 x C x H x W, when it is done.

        Raises:
            Dropped: the ticket was dropped, or the service has ended, before its turn came.
        """
        window = _Window(network, stage, arrays, ticket)
        with self.changed:
            if self.stopped:
                raise Dropped
            self.waiting.append(window)
            self.changed.notify()
        return window.result.result()

    def stop(self):
        """Drops what waits, and returns when the running batch has ended."""
        with self.changed:
            self.stopped = True
            self.changed.notify()
        self.thread.join()

    def _work(self):
        while True:
            with self.changed:
                batch = self._next()
            if batch is None:
                return
            start = time.monotonic()
            try:
                arrays = map(np.concatenate, zip(*(window.arrays for window in batch), strict=True))
                results = self.run(batch[0].network, batch[0].stage, *arrays)
            except Exception as error:  # noqa: BLE001 - it belongs to those who wait for it
                for window in batch:
                    window.result.set_exception(error)
                continue
            self.on_batch(len(batch), time.monotonic() - start)
            for window, result in zip(batch, results, strict=True):
                window.result.set_result(result[None])
            del batch, results, window, result  # not kept until the next batch comes

    def _next(self):
        """Waits for a batch and takes it from the queue; None when the service ends."""
        rested = False
        while True:
            for window in [window for window in self.waiting if window.ticket.dropped or self.stopped]:
                self.waiting.remove(window)
                window.result.set_exception(Dropped())
            if self.stopped:
                return None
            if not self.waiting:
                if not self.changed.wait(None if rested else IDLE_SECONDS) and not rested:
                    operators.release_memory()
                    rested = True
                continue
            first = self.waiting[0]
            height, width = first.arrays[0].shape[2:]
            size = min(self.max_batch, max(1, BATCH_PIXELS // (height * width)))
            batch = [window for window in self.waiting if window.fits(first)][:size]
            patience = first.arrived + self.max_wait - time.monotonic()
            if len(batch) == size or patience <= 0:
                for window in batch:
                    self.waiting.remove(window)
                return batch
            self.changed.wait(patience)


class BatchedDenoiser(Denoiser):
    """A Denoiser whose windows share batches with those of others.

    `output` may be a `kept.Output`, which is filled with what the network computes, or spares it that.
    """

    def __init__(self, network, batcher, ticket, output=None, **options):
        super().__init__(network, **options)
        self.batcher, self.ticket, self.output = batcher, ticket, output

    def _pieces(self, hwc, on_progress):
        pieces = super()._pieces(hwc, on_progress)
        return self.output.pieces(pieces, (*hwc.shape[:2], self.n_channel)) if self.output else pieces

    def run_stage(self, stage, *arrays):
        """One window, when its turn has come."""
        return self.batcher(self.network, stage, arrays, self.ticket)
