"""How many images and bytes the service takes in at a time, and who is turned away."""

import contextlib

from denoising.serving.image_process import Refused


class Admission:
    """Counts the images in work and the bytes in memory, against their limits.

    Args:
        max_queue: images that may wait or be computed at a time.
        max_bytes: of one upload.
    """

    def __init__(self, max_queue, max_bytes):
        self.max_queue, self.max_bytes = max_queue, max_bytes
        self.queue = 0  # images that wait or are computed
        self.held = 0  # bytes of uploads, and of results on their way
        self.stopping = False

    def check(self, seconds_per_image):
        """Turns a request away at once when there is no room; asked before its upload and again after it.

        Raises:
            Refused: with 503, and the seconds after which it is worth asking again.
        """
        if self.stopping:
            raise Refused(503, "the service is stopping", {"Retry-After": "5"})
        if self.queue >= self.max_queue or self.held >= self.max_queue * self.max_bytes:
            wait = min(max(round(seconds_per_image * self.queue), 1), 60)
            raise Refused(503, "too many requests at a time: try again", {"Retry-After": str(wait)})

    @contextlib.contextmanager
    def holding(self):
        """Yields a function that counts bytes, which are given back at the end."""
        total = 0

        def hold(count):
            nonlocal total
            total += count
            self.held += count

        try:
            yield hold
        finally:
            self.held -= total

    @contextlib.contextmanager
    def queued(self):
        """Counts an image as long as it waits or is computed."""
        self.queue += 1
        try:
            yield
        finally:
            self.queue -= 1
