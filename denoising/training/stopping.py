"""Ctrl-C in a training: what has been learnt is not lost."""

import signal

from denoising import cli


class StopRequest:
    """Ctrl-C or a polite kill: the step is finished and `signal` set. A second one ends at once."""

    def __init__(self):
        self.signal = None

    def __enter__(self):
        self._before = {number: signal.signal(number, self._received) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _received(self, number, _):
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number
        cli.note("stopping after this step; once more to stop at once")
