"""The images that a client wants to watch or to cancel while they are in work, by the names that it gave them.

A job is written by the thread that computes it and read by the event loop: each change is one assignment.
"""

import time

from denoising.serving.batching import Ticket

KEPT_SECONDS = 30  # for which a job that has ended can still be asked for
ENDS = ("done", "failed", "cancelled")


class Job:
    """How far one image has come; `ticket` tells its windows whether somebody still waits for them."""

    def __init__(self):
        self.ticket = Ticket()
        self.state, self.model, self.why = "waiting", None, None
        self.done, self.total, self.started = 0.0, None, None
        self.ended = None

    def take(self, taken):
        """Says which model was taken."""
        self.model, self.why = taken.name, taken.why

    def progress(self, done, total):
        """Counts the network's work, in pixels."""
        if self.started is None:
            self.started = time.monotonic()
            self.before = done
        self.total, self.done = total, done

    def enter(self, state):
        """Says what is done now, unless it has ended."""
        if self.ended is None:
            self.state = state

    def cancel(self):
        """Drops what is left of the work."""
        self.ticket.dropped = True
        self.end("cancelled")

    def end(self, state):
        """Ends it once; what comes later changes nothing."""
        if self.ended is None:
            self.state, self.ended = state, time.monotonic()

    def facts(self):
        """What is told of it."""
        left = None
        if self.started is not None and self.done > self.before:
            rate = (time.monotonic() - self.started) / (self.done - self.before)
            left = round(rate * (self.total - self.done), 1)
        return {
            "state": self.state, "done": round(self.done / 1e6, 3),
            "total": self.total and round(self.total / 1e6, 3), "seconds_left": left,
            "model": self.model, "why": self.why,
        }  # fmt: skip


class Jobs:
    """Jobs by name; used by the event loop alone."""

    def __init__(self):
        self.by_name = {}

    def add(self, name):
        """A new job; one without a name can be neither watched nor cancelled. None if the name is in use."""
        now = time.monotonic()
        self.by_name = {n: job for n, job in self.by_name.items() if not job.ended or now < job.ended + KEPT_SECONDS}
        job = Job()
        if name is not None:
            if name in self.by_name and self.by_name[name].ended is None:
                return None
            self.by_name[name] = job
        return job
