"""What the service counts about itself, in the text format that Prometheus reads from GET /metrics."""

import bisect
import threading

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
REQUEST_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)


class ServiceMetrics:
    """Counters and histograms that grow as requests are answered, and gauges that are read when somebody asks.

    Args:
        service: a Service, whose queue, held bytes and connections are shown.
        processes: ImageProcesses.
    """

    def __init__(self, service, processes):
        self.requests = Counter(
            "denoise_requests_total", "Requests by what was asked for and the answer's status.", "what", "status"
        )
        self.request_seconds = Histogram(
            "denoise_request_seconds", "From the end of the upload to the denoised image.", REQUEST_SECONDS
        )
        self.batch_sizes = Histogram("denoise_batch_windows", "Windows that were computed at once.", BATCH_SIZES)
        self.network_seconds = Counter("denoise_network_seconds_total", "Time that the network was at work.")
        self.megapixels = Counter(
            "denoise_megapixels_total", "Denoised and answered, counted as padded to multiples of 32."
        )
        self._all = [
            self.requests, self.request_seconds, self.batch_sizes, self.network_seconds, self.megapixels,
            Gauge("denoise_queue", "Images that wait or are computed.", lambda: service.queue),
            Gauge("denoise_queue_limit", "How many there may be.", lambda: service.options.max_queue),
            Gauge("denoise_held_bytes", "Uploads and results in memory.", lambda: service.held),
            Gauge("denoise_kept_bytes", "Outputs of the network that are kept for later requests.",
                  lambda: service.pipeline.kept.bytes),
            Gauge("denoise_kept_hits_total", "Images for which such an output was taken.",
                  lambda: service.pipeline.kept.hits, kind="counter"),
            Gauge("denoise_connections", "Open connections.", lambda: len(service.connections)),
            Gauge("denoise_image_process_deaths_total", "Image processes that had to be replaced.",
                  lambda: processes.deaths, kind="counter"),
        ]  # fmt: skip

    def count_batch(self, size, seconds):
        """Counts a pass of the network over this many windows."""
        self.batch_sizes.observe(size)
        self.network_seconds.add(seconds)

    def count_image(self, seconds, pixels):
        """Counts a denoised image."""
        self.request_seconds.observe(seconds)
        self.megapixels.add(pixels / 1e6)

    def seconds_per_image(self):
        """How long the network has worked for an image, on average."""
        return self.network_seconds.total / max(self.request_seconds.total, 1)

    def page(self):
        """All of it as Prometheus reads it."""
        lines = []
        for metric in self._all:
            head = f"# HELP {metric.name} {metric.help_text}", f"# TYPE {metric.name} {metric.kind}"
            lines += [*head, *metric.lines()]
        return "\n".join(lines) + "\n"


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
