"""What the network made of the last images: who saves one with other amounts or in another format need not wait.

>>> kept = Kept(max_bytes=1 << 30, seconds=600)
>>> with kept.place(key, taken, pages) as output:  # None: there is no room for it
...     for place, piece in output.pieces(compute, shape): ...
>>> output = kept.get(key)  # the same, without computing

The network's output is kept as it is, in float32: all amounts and depths follow from it, bit for bit.
"""

import collections
import contextlib
import hashlib
import threading
import time

import numpy as np

from denoising import machine

LOW_MEMORY = 512 << 20  # free; where there is less, nothing is kept
ROWS = 256  # that are handed out at a time


class Output:
    """What a network has made of an image: an array for each time that it went over a page, or a channel of one.

    Args:
        taken: the TakenModel.
        arrays: of H x W x C, float32; to be filled unless given.
    """

    def __init__(self, taken, arrays=None):
        self.taken, self.known = taken, arrays is not None
        self.arrays = arrays or []
        self._next = iter(self.arrays)

    def pieces(self, compute, shape):
        """Yields (place, piece) of one pass: as they are computed, which is when they are noted down, or as noted."""
        if self.known:
            array = next(self._next)
            for first in range(0, len(array), ROWS):
                rows = np.s_[first : first + ROWS, :]
                yield rows, array[rows]
            return
        array = np.empty(shape, np.float32)
        for place, piece in compute:
            array[place] = piece
            yield place, piece
        self.arrays.append(array)


class Kept:
    """Outputs by what was asked for; those that nobody has asked for the longest go first. Any thread may call.

    Args:
        max_bytes: of all together, those included that are being computed; 0 keeps nothing.
        seconds: since it was last asked for, after which an output is dropped.
    """

    def __init__(self, max_bytes, seconds):
        self.max_bytes, self.seconds = max_bytes, seconds
        self.entries = collections.OrderedDict()  # key: (taken, arrays, when); the last one was asked for last
        self.reserved = 0  # bytes of outputs that are being computed
        self.lock, self.hits = threading.Lock(), 0

    @property
    def bytes(self):
        """Of all that is kept, or will be."""
        with self.lock:
            return self._bytes()

    def get(self, key):
        """The output for a key, to be read; None if there is none."""
        with self.lock:
            if key not in self.entries:
                return None
            taken, arrays, _ = self.entries.pop(key)
            self.entries[key] = taken, arrays, time.monotonic()
            self.hits += 1
        return Output(taken, arrays)

    @contextlib.contextmanager
    def place(self, key, taken, pages):
        """An output that is filled within a `with`, and kept if that ends well; None where there is no room for it."""
        channels = max(pages[0].shape[2], taken.network.n_channel)
        size = 4 * channels * sum(page.shape[0] * page.shape[1] for page in pages)
        if not self._reserve(size):
            yield None
            return
        output = Output(taken)
        try:
            yield output
            with self.lock:
                self.entries[key] = taken, output.arrays, time.monotonic()
        finally:
            with self.lock:
                self.reserved -= size

    def _reserve(self, size):
        """Makes room by dropping others, if that is enough."""
        with self.lock:
            if self.reserved + size > self.max_bytes or machine.free_memory() < LOW_MEMORY + size:
                return False
            self.reserved += size
            while self._bytes() > self.max_bytes:
                self.entries.popitem(last=False)
            return True

    def sweep(self):
        """Drops what is too old, and all where memory is short."""
        oldest = time.monotonic() - self.seconds
        with self.lock:
            short = bool(self.entries) and machine.free_memory() < LOW_MEMORY
            dropped = [key for key, (_, _, when) in self.entries.items() if short or when < oldest]
            for key in dropped:
                del self.entries[key]
        if dropped:
            machine.trim_memory()

    def _bytes(self):
        return self.reserved + sum(array.nbytes for _, arrays, _ in self.entries.values() for array in arrays)


def key_of(data, asked):
    """What decides on a network's output: the file, and how its weights are chosen."""
    return hashlib.sha256(data).digest(), asked.model, asked.fast
