"""The HTTP side of tools/serve.py, from its start to its end. It needs aiohttp.

The event loop does nothing but HTTP: `routes.py` has the answers, `pipeline.py` computes them in threads,
`admission.py` turns away what is too much, `connections.py` ends what takes too long, and `metrics.py` counts.
"""

import asyncio
import signal
import traceback
from functools import partial

from aiohttp import web

from denoising import cli
from denoising.serving.admission import Admission
from denoising.serving.connections import Connection, error_response, is_loopback, naming_the_address, url_of
from denoising.serving.image_process import Refused
from denoising.serving.metrics import ServiceMetrics
from denoising.serving.pipeline import Pipeline
from denoising.serving.routes import Routes

IDLE_SECONDS = 60  # until a connection on which nothing happens is closed
# Nothing that is sent may be taken for something else, or load anything, or be put into another page's frame.
HEADERS = {
    "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", "Referrer-Policy": "no-referrer",
    "Server": "denoise", "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}  # fmt: skip


class Service:
    """Runs until it is told to stop, and sees each request from its first line to the last byte of its answer.

    Args:
        options: the flags of tools/serve.py.
        denoiser: a Denoiser, whose network is shared by all.
        processes: ImageProcesses.
    """

    def __init__(self, options, denoiser, processes):
        self.options = options
        self.stops = 0  # how often it was told to stop
        self.connections = set()
        self.admission = Admission(options.max_queue, int(options.max_mb * 1e6))
        self.metrics = ServiceMetrics(self.admission, self.connections, processes)
        self.pipeline = Pipeline(options, denoiser, processes)
        self.routes = Routes(options, self.pipeline, self.admission, self.metrics)

    # --- From start to end ---

    async def run(self, listener):
        """Serves until SIGTERM or Ctrl-C."""
        for name in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(name, self.stop)
        await self.serve(listener)

    def stop(self):
        """Lets the service finish what it has, and then end; told a second time, it ends at once."""
        self.stops += 1
        self.admission.stopping = True

    async def serve(self, listener):
        """Serves until it is told to stop."""
        self.loop = asyncio.get_running_loop()
        try:
            await self.loop.run_in_executor(None, self.pipeline.start, self.metrics.count_batch)
            http = web.Server(self.handle, handler_cancellation=True)
            with naming_the_address(listener.getsockname()[:2]):
                server = await self.loop.create_server(partial(Connection, http, self), sock=listener, backlog=512)
            sweep = asyncio.create_task(self._sweep())
            print(url_of(listener), flush=True)
            if not is_loopback(listener):
                cli.note("anyone who reaches this address can use it: there are no passwords and no TLS")
            while not self.admission.stopping:
                await asyncio.sleep(0.1)
            server.close()
            await self._finish()
            await http.shutdown(1)
            sweep.cancel()
        finally:
            self.pipeline.stop()

    async def _finish(self):
        """Waits for the requests in work, but not for too long, nor when it is told to stop again."""
        cli.note(f"stopping: {self.admission.queue} images are finished first")
        end = self.loop.time() + self.options.stop_timeout
        while self.stops == 1 and self.loop.time() < end and any(c.busy for c in self.connections):
            await asyncio.sleep(0.05)

    async def _sweep(self):
        """Ends connections on which nothing has happened for too long, in whatever state they are."""
        while True:
            await asyncio.sleep(1)
            now = self.loop.time()
            for connection in [connection for connection in self.connections if connection.deadline < now]:
                connection.abort()

    # --- Each request ---

    async def handle(self, request):
        """Answers any request, within bounded time."""
        connection, options = request.protocol, self.options
        start = self.loop.time()
        connection.busy = True
        connection.deadline = start + 2 * options.transfer_timeout + options.timeout + IDLE_SECONDS
        what, status, held = "other", "gone", 0
        response = web.Response()  # of a client that has gone before there was an answer
        try:
            try:
                what, answer = self.routes.find(request)
                response = await answer(request)
            except Refused as refusal:
                response = error_response(refusal)
            except ConnectionError:
                raise
            except Exception:  # noqa: BLE001 - a bug, which the log tells and no client
                cli.note(traceback.format_exc())
                response = error_response(Refused(500, "an error within the service; its log says more"))
            held = len(response.body)
            self.admission.held += held
            response.headers.update({name: value for name, value in HEADERS.items() if name not in response.headers})
            if self.admission.stopping or not request.content.is_eof():
                response.force_close()
            await asyncio.wait_for(self._send(request, response), options.transfer_timeout)
            status = str(response.status)
        except (asyncio.TimeoutError, ConnectionError):
            connection.abort()  # it does not read its answer, or has gone
        finally:
            # Also when the client has gone, which cancels all this.
            self.admission.held -= held
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
        self.metrics.requests.add(1, what, status)
        if self.options.access_log:
            cli.note(f"{connection.peer} {line[:200]} {status} {now - start:.3f} s")
