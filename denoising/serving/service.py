"""The HTTP side of tools/serve.py: who may come in, what is answered, and what is counted. It needs aiohttp.

The event loop does nothing but HTTP. Each image has a thread that waits for an image process to decode it, for the
network, and for an image process to encode it. There are twice as many threads as a batch has places: one batch is
computed while the next is decoded. What finds no thread waits as it came, undecoded.
"""

import argparse
import asyncio
import base64
import contextlib
import email.message
import hashlib
import re
import signal
import traceback
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from aiohttp import web

from denoising import cli
from denoising.cli import UserError, number
from denoising.imaging.noise import parse_noise
from denoising.serving import prometheus
from denoising.serving.batching import BatchedDenoiser, Batcher, Dropped, Ticket
from denoising.serving.connections import Connection, error_response, is_loopback, naming_the_address, url_of
from denoising.serving.image_process import FORMATS, Died, Refused

IDLE_SECONDS = 60  # until a connection on which nothing happens is closed
# Nothing that is sent may be taken for something else, or load anything, or be put into another page's frame.
HEADERS = {
    "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", "Referrer-Policy": "no-referrer",
    "Server": "denoise", "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}  # fmt: skip
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120)


class Service:
    """Answers requests.

    Args:
        options: the flags of tools/serve.py.
        denoiser: a Denoiser, whose network is shared by all.
        processes: ImageProcesses.
    """

    def __init__(self, options, denoiser, processes):
        self.options, self.denoiser, self.processes = options, denoiser, processes
        if denoiser.n_input != denoiser.n_channel:
            raise UserError("--model_path: this network takes buffers beside the image: use predict.py")
        try:
            self.noise = parse_noise(denoiser.options.get("noisetype", "none"))
        except ValueError as error:
            raise UserError(f"--model_path: {error}") from None
        self.max_bytes = int(options.max_mb * 1e6)
        self.stop_signals = 0
        self.queue = 0  # images that wait or are computed
        self.held = 0  # bytes of uploads and of results on their way
        self.connections = set()
        self.page, self.page_headers = read_page()
        self._measure()

    def _measure(self):
        self.requests = prometheus.Counter(
            "denoise_requests_total", "Requests by what was asked for and the answer's status.", "what", "status"
        )
        self.seconds = prometheus.Histogram(
            "denoise_request_seconds", "From the end of the upload to the denoised image.", SECONDS
        )
        self.batch_sizes = prometheus.Histogram(
            "denoise_batch_windows", "Windows that were computed at once.", (1, 2, 4, 8, 16, 32, 64)
        )
        self.network_seconds = prometheus.Counter("denoise_network_seconds_total", "Time that the network was at work.")
        self.megapixels = prometheus.Counter(
            "denoise_megapixels_total", "Denoised and answered, counted as padded to multiples of 32."
        )
        gauges = {
            "denoise_queue": ("Images that wait or are computed.", lambda: self.queue),
            "denoise_queue_limit": ("How many there may be.", lambda: self.options.max_queue),
            "denoise_held_bytes": ("Uploads and results in memory.", lambda: self.held),
            "denoise_connections": ("Open connections.", lambda: len(self.connections)),
        }
        self.metrics = [self.requests, self.seconds, self.batch_sizes, self.network_seconds, self.megapixels]
        self.metrics += [prometheus.Gauge(name, *rest) for name, rest in gauges.items()]
        deaths = "denoise_image_process_deaths_total", "Image processes that had to be replaced."
        self.metrics.append(prometheus.Gauge(*deaths, lambda: self.processes.deaths, kind="counter"))

    # --- From start to end ---

    @property
    def stopping(self):
        """Whether it takes no more images."""
        return self.stop_signals > 0

    async def run(self, listener):
        """Serves until SIGTERM or Ctrl-C, then finishes what it has; a second signal ends that too."""
        self.loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            self.loop.add_signal_handler(name, self._count_signal)
        self.threads = ThreadPoolExecutor(2 * self.options.max_batch, "image")
        self.batcher = Batcher(self.denoiser.run_batch, self.options.max_batch, self.options.max_wait_ms / 1e3)
        try:
            await self._warm_up()
            self.batcher.on_batch = self._count_batch
            http = web.Server(self.handle, handler_cancellation=True)
            with naming_the_address(listener.getsockname()[:2]):
                server = await self.loop.create_server(partial(Connection, http, self), sock=listener, backlog=512)
            sweep = asyncio.create_task(self._sweep())
            print(url_of(listener), flush=True)
            if not is_loopback(listener):
                cli.note("anyone who reaches this address can use it: there are no passwords and no TLS")
            while not self.stopping:
                await asyncio.sleep(0.1)
            server.close()
            cli.note(f"stopping: {self.queue} images are finished first")
            end = self.loop.time() + self.options.stop_timeout
            while self.stop_signals == 1 and self.loop.time() < end and any(one.busy for one in self.connections):
                await asyncio.sleep(0.05)
            await http.shutdown(1)
            sweep.cancel()
        finally:
            self.batcher.stop()
            self.threads.shutdown()

    async def _warm_up(self):
        """A first window is slow; and what cannot run at all should show before anyone is let in."""
        window = np.zeros((1, self.denoiser.n_channel, 64, 64), np.float32)
        await self.loop.run_in_executor(self.threads, self.batcher, window, Ticket())

    def _count_signal(self):
        self.stop_signals += 1

    async def _sweep(self):
        """Ends connections on which nothing has happened for too long, in whatever state they are."""
        while True:
            await asyncio.sleep(1)
            for connection in [one for one in self.connections if one.deadline < self.loop.time()]:
                connection.abort()

    def _count_batch(self, size, seconds):
        self.batch_sizes.observe(size)
        self.network_seconds.add(seconds)

    # --- Requests ---

    async def handle(self, request):
        """Answers any request, within bounded time."""
        connection, options = request.protocol, self.options
        start = self.loop.time()
        connection.busy = True
        connection.deadline = start + 2 * options.transfer_timeout + options.timeout + IDLE_SECONDS
        what, status, held = "other", "gone", 0
        response = web.Response()  # for those who have gone before there is one
        try:
            try:
                what, answer = self.route(request)
                response = await answer(request)
            except Refused as refusal:
                response = error_response(refusal)
            except ConnectionError:
                raise
            except Exception:  # noqa: BLE001 - a bug: told to the log, and to nobody else
                cli.note(traceback.format_exc())
                response = error_response(Refused(500, "an error within the service; its log says more"))
            held = len(response.body)
            self.held += held
            response.headers.update({name: value for name, value in HEADERS.items() if name not in response.headers})
            if self.stopping or not request.content.is_eof():
                response.force_close()
            await asyncio.wait_for(self._send(request, response), options.transfer_timeout)
            status = str(response.status)
        except (asyncio.TimeoutError, ConnectionError):
            connection.abort()  # it does not read its answer, or has gone
        finally:
            # Also when the client has gone, which cancels all this.
            self.held -= held
            self.count(connection, what, status, start, f"{request.method} {request.raw_path!r}")
        return response

    async def _send(self, request, response):
        await response.prepare(request)
        await response.write_eof()

    def count(self, connection, what, status, start, line):
        """Ends a request, whatever came of it."""
        now = self.loop.time()
        connection.busy = False
        connection.deadline = now + IDLE_SECONDS
        self.requests.add(1, what, status)
        if self.options.access_log:
            cli.note(f"{connection.peer} {line[:200]} {status} {now - start:.3f} s")

    def route(self, request):
        """What a request is about, by which it is counted, and what answers it."""
        routes = {
            "/": {"GET": ("page", self.get_page), "POST": ("denoise", self.denoise)},
            "/denoise": {"POST": ("denoise", self.denoise)},
            "/health": {"GET": ("health", self.get_health)},
            "/metrics": {"GET": ("metrics", self.get_metrics)},
        }
        methods = routes.get(request.path)
        if methods is None:
            raise Refused(404, f"there are {' '.join(routes)}")
        method = "GET" if request.method == "HEAD" else request.method
        if method not in methods:
            raise Refused(405, f"{request.path} takes {' and '.join(methods)}", {"Allow": ", ".join(methods)})
        return methods[method]

    async def get_page(self, request):
        """Where one drops an image and sees it before and after."""
        return web.Response(text=self.page, content_type="text/html", headers=self.page_headers)

    async def get_health(self, request):
        """200 while images are taken, 503 before the end."""
        well = not self.stopping and self.batcher.thread.is_alive()
        state = "ok" if well else "stopping" if self.stopping else "the network's thread has ended"
        answer = {"status": state, "queue": self.queue, "max_queue": self.options.max_queue}
        return web.json_response(answer, status=200 if well else 503)

    async def get_metrics(self, request):
        """For Prometheus."""
        return web.Response(text=prometheus.render(self.metrics), headers={"Content-Type": prometheus.CONTENT_TYPE})

    async def denoise(self, request):
        """An image for an image."""
        strength = strength_of(request)
        self.check_room()
        with self._holding() as hold:
            try:
                body = await asyncio.wait_for(self.upload(request, hold), self.options.transfer_timeout)
            except asyncio.TimeoutError:
                raise Refused(408, f"no whole image within {self.options.transfer_timeout:g} s") from None
            data = image_within(body, request.headers.get("Content-Type", ""))
            self.check_room()
            self.queue += 1
            start = self.loop.time()
            ticket = Ticket()
            try:
                work = self.loop.run_in_executor(self.threads, self.denoise_file, data, strength, ticket)
                result, kind, pixels = await asyncio.wait_for(work, self.options.timeout)
            except asyncio.TimeoutError:
                raise Refused(504, f"not done within {self.options.timeout:g} s") from None
            except Dropped:
                raise Refused(503, "the service is stopping") from None
            finally:
                # However it ended, nobody waits for the rest of the work: also if the client has gone.
                ticket.dropped = True
                self.queue -= 1
        self.seconds.observe(self.loop.time() - start)
        self.megapixels.add(pixels / 1e6)
        return web.Response(body=result, headers={"Content-Type": FORMATS[kind][1]})

    def check_room(self):
        """Turns requests away at once when there is no room, before their upload and again after it."""
        if self.stopping:
            raise Refused(503, "the service is stopping", {"Retry-After": "5"})
        full = self.queue >= self.options.max_queue
        if full or self.held >= self.options.max_queue * self.max_bytes:
            each = self.network_seconds.total / max(self.seconds.total, 1)
            wait = min(max(round(each * self.queue), 1), 60)
            raise Refused(503, "too many requests at a time: try again", {"Retry-After": str(wait)})

    @contextlib.contextmanager
    def _holding(self):
        """Counts the bytes of one request for as long as it keeps them."""
        held = 0

        def hold(count):
            nonlocal held
            held += count
            self.held += count

        try:
            yield hold
        finally:
            self.held -= held

    async def upload(self, request, hold):
        """The body, if it is small enough and comes in one of the usual ways."""
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise Refused(415, "Content-Encoding: send the image as it is")
        too_large = Refused(413, f"the upload is larger than {self.options.max_mb:g} MB")
        if (request.content_length or 0) > self.max_bytes:
            raise too_large
        expected = request.headers.get("Expect", "").lower()
        if expected not in ("", "100-continue"):
            raise Refused(417, "Expect: only 100-continue is known")
        if expected and not request.content.is_eof():
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0  # of the answer itself nothing is sent yet
        body = bytearray()
        try:
            async for chunk in request.content.iter_any():
                body += chunk
                hold(len(chunk))
                if len(body) > self.max_bytes:
                    raise too_large
        except (web.RequestPayloadError, web.PayloadAccessError, ValueError):
            raise Refused(400, "the request's body is malformed") from None
        if not body:
            raise Refused(400, "no image: POST one as the body, or as a file of a form")
        return bytes(body)

    def denoise_file(self, data, strength, ticket):
        """Bytes for bytes, in a thread; returns them with their format and the number of pixels."""
        if ticket.dropped:
            raise Dropped
        try:
            picture, pixels = self.processes.call("decode", data, limit=self.options.decode_timeout)
        except Died as death:
            cli.note(f"an image of {len(data)} bytes was refused: its decoder died: {death}")
            raise Refused(422, "image: the decoder gives up on it") from None
        if ticket.dropped:
            raise Dropped
        denoiser = BatchedDenoiser(
            self.denoiser.network, self.batcher, ticket, tile=self.options.tile, strength=strength
        )
        try:
            pages = [self.noise.restore(page, denoiser(page)) for page in picture.pages]
        except ValueError as error:
            raise Refused(422, f"image: {error}") from None
        # Only what is left beside the pixels is needed of the input.
        picture.pages = []
        return self.processes.call("encode", pages, picture, limit=self.options.timeout), picture.format, pixels


# --- Requests and answers ---------------------------------------------------------------------------------


def strength_of(request):
    """The only thing that can be asked for."""
    for name in request.query:
        if name != "strength" or len(request.query.getall(name)) > 1:
            raise Refused(400, "the only parameter is strength, once")
    try:
        return number(float, 0, 1)(request.query.get("strength", "1"))
    except argparse.ArgumentTypeError as error:
        raise Refused(400, f"strength: {error}") from None


def image_within(body, content_type):
    """The body, or the one file of a form."""
    header = email.message.Message()
    header["Content-Type"] = content_type
    if header.get_content_maintype() != "multipart":
        return body
    boundary = header.get_param("boundary", "")
    if header.get_content_type() != "multipart/form-data" or not isinstance(boundary, str) or not boundary:
        raise Refused(400, "of multipart bodies, form-data with a boundary is known")
    # Each part stands between two boundaries, each at the start of a line; the last is followed by "--".
    parts = (b"\r\n" + body).split(b"\r\n--" + boundary.encode("utf-8", "surrogateescape"), 3)
    if len(parts) != 3 or not parts[2].startswith(b"--"):
        raise Refused(400, "a form holds one file and nothing else")
    head, blank, data = parts[1].partition(b"\r\n\r\n")
    part = email.message_from_bytes(head.lstrip() + b"\r\n\r\n")
    if not blank or "content-disposition" not in part or part.get("Content-Transfer-Encoding", "binary") != "binary":
        raise Refused(400, "the form is malformed")
    return data


def read_page():
    """The page for browsers, and headers that let it run its own script and nothing else."""
    page = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    digests = {
        tag: base64.b64encode(hashlib.sha256(re.search(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)[1].encode()).digest())
        for tag in ("script", "style")
    }
    policy = (
        f"default-src 'none'; script-src 'sha256-{digests['script'].decode()}'; "
        f"style-src 'sha256-{digests['style'].decode()}'; img-src blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page, {"Content-Security-Policy": policy}
