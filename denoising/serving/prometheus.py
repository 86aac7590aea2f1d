"""Counters, gauges and histograms, in the text format that Prometheus reads.

>>> requests = Counter("denoise_requests_total", "Answers by status.", "status")
>>> requests.add(1, "200")
>>> print(render([requests]))
"""

import bisect
import threading

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Counter:
    """Numbers that only grow, one for each combination of labels; safe to use from several threads."""

    kind = "counter"

    def __init__(self, name, help_text, *labels):
        self.name, self.help_text, self.labels = name, help_text, labels
        self.values = {} if labels else {(): 0}
        self.lock = threading.Lock()

    def add(self, amount, *values):
        """Adds to the number of these values of the labels."""
        with self.lock:
            self.values[values] = self.values.get(values, 0) + amount

    @property
    def total(self):
        """The sum over all labels."""
        with self.lock:
            return sum(self.values.values())

    def lines(self):
        """The samples."""
        with self.lock:
            return [f"{self.name}{self._selector(values)} {value}" for values, value in sorted(self.values.items())]

    def _selector(self, values):
        pairs = (f'{label}="{value}"' for label, value in zip(self.labels, values, strict=True))
        return "{" + ",".join(pairs) + "}" if values else ""


class Gauge:
    """A number that is looked up when it is asked for; of kind "counter" if it only grows."""

    def __init__(self, name, help_text, read, kind="gauge"):
        self.name, self.help_text, self.read, self.kind = name, help_text, read, kind

    def lines(self):
        """The sample."""
        return [f"{self.name} {self.read()}"]


class Histogram:
    """How many values lay at or below each bound, how many there were, and their sum."""

    kind = "histogram"

    def __init__(self, name, help_text, bounds):
        self.name, self.help_text, self.bounds = name, help_text, bounds
        self.counts, self.sum = [0] * (len(bounds) + 1), 0.0
        self.lock = threading.Lock()

    def observe(self, value):
        """Counts a value."""
        with self.lock:
            self.counts[bisect.bisect_left(self.bounds, value)] += 1
            self.sum += value

    @property
    def total(self):
        """How many values there were."""
        with self.lock:
            return sum(self.counts)

    def lines(self):
        """The samples; each bucket holds those below it too."""
        with self.lock:
            total, result = 0, []
            for bound, count in zip([*self.bounds, "+Inf"], self.counts, strict=True):
                total += count
                result.append(f'{self.name}_bucket{{le="{bound}"}} {total}')
            return [*result, f"{self.name}_sum {self.sum}", f"{self.name}_count {total}"]


def render(metrics):
    """The page that Prometheus fetches."""
    lines = []
    for metric in metrics:
        lines += [f"# HELP {metric.name} {metric.help_text}", f"# TYPE {metric.name} {metric.kind}", *metric.lines()]
    return "\n".join(lines) + "\n"
