"""What the service counts about itself, for GET /metrics."""

from denoising.serving import prometheus

REQUEST_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)


class ServiceMetrics:
    """Counters and histograms that grow as requests are answered, and gauges that are read when somebody asks.

    Args:
        admission: whose queue and held bytes are shown.
        connections: the collection of open connections.
        processes: ImageProcesses.
    """

    def __init__(self, admission, connections, processes):
        self.requests = prometheus.Counter(
            "denoise_requests_total", "Requests by what was asked for and the answer's status.", "what", "status"
        )
        self.request_seconds = prometheus.Histogram(
            "denoise_request_seconds", "From the end of the upload to the denoised image.", REQUEST_SECONDS
        )
        self.batch_sizes = prometheus.Histogram(
            "denoise_batch_windows", "Windows that were computed at once.", BATCH_SIZES
        )
        self.network_seconds = prometheus.Counter("denoise_network_seconds_total", "Time that the network was at work.")
        self.megapixels = prometheus.Counter(
            "denoise_megapixels_total", "Denoised and answered, counted as padded to multiples of 32."
        )
        gauge = prometheus.Gauge
        self._all = [
            self.requests, self.request_seconds, self.batch_sizes, self.network_seconds, self.megapixels,
            gauge("denoise_queue", "Images that wait or are computed.", lambda: admission.queue),
            gauge("denoise_queue_limit", "How many there may be.", lambda: admission.max_queue),
            gauge("denoise_held_bytes", "Uploads and results in memory.", lambda: admission.held),
            gauge("denoise_connections", "Open connections.", lambda: len(connections)),
            gauge("denoise_image_process_deaths_total", "Image processes that had to be replaced.",
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
        return prometheus.render(self._all)
