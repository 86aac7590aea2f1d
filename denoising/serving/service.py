"""The HTTP side of tools/serve.py, from its start to its end. It needs aiohttp.

The event loop does nothing but HTTP: `pipeline.py` computes the answers in threads, `uploads.py` finds the image in a
request, `connections.py` ends what takes too long, and `metrics.py` counts.
"""

import asyncio
import base64
import contextlib
import hashlib
import json
import re
import signal
import traceback
from functools import partial
from pathlib import Path

from aiohttp import web

from denoising import cli
from denoising.reports import modules
from denoising.serving import metrics, openapi, uploads
from denoising.serving.batching import Dropped
from denoising.serving.connections import (
    Connection,
    error_response,
    is_loopback,
    is_own,
    naming_the_address,
    url_of,
)
from denoising.serving.image_process import FORMATS, Refused
from denoising.serving.jobs import ENDS, Jobs
from denoising.serving.pipeline import Pipeline

JOB_SECONDS = 10  # for which a job is waited for that has not been sent yet
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
        models: OneModel or ManyModels, shared by all.
        processes: ImageProcesses.
    """

    def __init__(self, options, models, processes):
        self.options = options
        self.max_bytes = int(options.max_mb * 1e6)  # of one upload
        self.hosts = options.allowed_hosts  # by which it may be called beside localhost and addresses; None: by any
        self.stops = 0  # how often it was told to stop
        self.queue = 0  # images that wait or are computed
        self.held = 0  # bytes of uploads, and of results on their way
        self.connections = set()
        self.metrics = metrics.ServiceMetrics(self, processes)
        self.models, self.jobs = models, Jobs()
        self.pipeline = Pipeline(options, models, processes)
        self.page, self.page_headers = read_page()

    # --- From start to end ---

    async def run(self, listener):
        """Serves until SIGTERM or Ctrl-C."""
        for name in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(name, self.stop)
        await self.serve(listener)

    def stop(self):
        """Lets the service finish what it has, and then end; told a second time, it ends at once."""
        self.stops += 1

    async def serve(self, listener):
        """Serves until it is told to stop."""
        self.loop = asyncio.get_running_loop()
        try:
            await self.loop.run_in_executor(None, self.pipeline.start, self.metrics.count_batch)
            http = web.Server(self.handle, handler_cancellation=True)
            with naming_the_address(listener.getsockname()[:2]):
                server = await self.loop.create_server(partial(Connection, http, self), sock=listener, backlog=512)
            if self.hosts is None and is_loopback(listener):
                self.hosts = []
            sweep = asyncio.create_task(self._sweep())
            print(url_of(listener), flush=True)
            if not is_loopback(listener):
                cli.note("anyone who reaches this address can use it: there are no passwords and no TLS")
            while not self.stops:
                await asyncio.sleep(0.1)
            server.close()
            await self._finish()
            await http.shutdown(1)
            sweep.cancel()
        finally:
            self.pipeline.stop()

    async def _finish(self):
        """Waits for the requests in work, but not for too long, nor when it is told to stop again."""
        cli.note(f"stopping: {self.queue} images are finished first")
        end = self.loop.time() + self.options.stop_timeout
        while self.stops == 1 and self.loop.time() < end and any(c.busy for c in self.connections):
            await asyncio.sleep(0.05)

    async def _sweep(self):
        """Ends connections on which nothing has happened for too long, and drops outputs that nobody asks for."""
        while True:
            await asyncio.sleep(1)
            self.pipeline.kept.sweep()
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
                what, answer = self.find(request)
                response = await answer(request)
            except Refused as refusal:
                response = error_response(refusal)
            except ConnectionError:
                raise
            except Exception:  # noqa: BLE001 - a bug, which the log tells and no client
                cli.note(traceback.format_exc())
                response = error_response(Refused(500, "an error within the service; its log says more"))
            if response.prepared:  # events, which have been sent by now
                status = str(response.status)
                return response
            held = len(response.body or b"")
            self.held += held
            response.headers.update({name: value for name, value in HEADERS.items() if name not in response.headers})
            if self.stops or not request.content.is_eof():
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
        self.metrics.requests.add(1, what, status)
        if self.options.access_log:
            cli.note(f"{connection.peer} {line[:200]} {status} {now - start:.3f} s")

    # --- What is answered ---

    def find(self, request):
        """What a request is about, by which it is counted, and what answers it.

        Raises:
            Refused: there is no such path, it takes another method, or a page of another site asks.
        """
        host = request.headers.get("Host", "")
        # Programs may call it as they like, unless names are given; no page can leave Accept-Language out.
        strict = self.options.allowed_hosts is not None or "Accept-Language" in request.headers
        if strict and self.hosts is not None and not is_own(host, self.hosts):
            raise Refused(403, f"the service is not called {host[:100]} here: --allowed_hosts adds names")
        path = "/jobs/{id}" if re.fullmatch("/jobs/[A-Za-z0-9_-]{1,64}", request.path) else request.path
        routes = self.routes()
        methods = routes.get(path)
        if methods is None:
            raise Refused(404, f"there are {' '.join(routes)}")
        has_head = request.method == "HEAD" and path != "/jobs/{id}"
        method = "GET" if has_head else request.method
        if method not in methods:
            raise Refused(405, f"{request.path} takes {' and '.join(methods)}", {"Allow": ", ".join(methods)})
        # Browsers say so themselves, whatever name a proxy gives this service.
        if method != "GET" and request.headers.get("Sec-Fetch-Site") == "cross-site":
            raise Refused(403, "a page of another site may not ask for work")
        return methods[method]

    def routes(self):
        """By path and method: the name by which a request is counted, and what answers it."""
        return {
            "/": {"GET": ("page", self.get_page), "POST": ("denoise", self.denoise)},
            "/denoise": {"POST": ("denoise", self.denoise)},
            "/analyse": {"POST": ("analyse", self.analyse)},
            "/judge": {"POST": ("judge", self.judge)},
            "/models": {"GET": ("models", self.get_models)},
            "/jobs/{id}": {"GET": ("job", self.follow_job), "DELETE": ("job", self.cancel_job)},
            "/health": {"GET": ("health", self.get_health)},
            "/metrics": {"GET": ("metrics", self.get_metrics)},
            "/openapi.json": {"GET": ("openapi", self.get_openapi)},
        }

    async def get_page(self, request):
        """A page on which one drops an image and sees it before and after."""
        return web.Response(text=self.page, content_type="text/html", headers=self.page_headers)

    async def get_health(self, request):
        """200 while images are taken, 503 before the end."""
        well = not self.stops and self.pipeline.is_alive()
        state = "ok" if well else "stopping" if self.stops else "the network's thread has ended"
        answer = {"status": state, "queue": self.queue, "max_queue": self.options.max_queue}
        return web.json_response(answer, status=200 if well else 503)

    async def get_metrics(self, request):
        """The counters, for Prometheus."""
        return web.Response(text=self.metrics.page(), headers={"Content-Type": metrics.CONTENT_TYPE})

    async def get_openapi(self, request):
        """This interface, for programs."""
        return web.json_response(openapi.document())

    async def get_models(self, request):
        """The weights that are served, and which are the default."""
        return web.json_response({"default": self.models.default, "models": self.models.rows()})

    async def denoise(self, request):
        """Takes an image and answers with the denoised one."""
        asked = uploads.parameters_of(request, openapi.DENOISE)
        answer = await self._worked(request, asked, self.pipeline.denoise)
        why = answer.why.encode("ascii", "replace").decode()
        return web.Response(
            body=answer.data,
            headers={
                "Content-Type": FORMATS[answer.format][1], "Denoise-Model": answer.model, "Denoise-Why": why,
                "Access-Control-Expose-Headers": "Denoise-Model, Denoise-Why",
            },
        )  # fmt: skip

    async def analyse(self, request):
        """Takes an image and answers with what noise it has."""
        asked = uploads.parameters_of(request, openapi.ANALYSE)
        return web.json_response(await self._worked(request, asked, self.pipeline.analyse))

    async def judge(self, request):
        """Takes an image and answers with how much of its structure denoising loses, and where."""
        asked = uploads.parameters_of(request, openapi.JUDGE)
        return web.json_response(await self._worked(request, asked, self.pipeline.judge))

    async def _worked(self, request, asked, work):
        """What a method of the pipeline makes of the image in a request, if there is room and time for it."""
        self.models.check(asked.model, asked.fast)
        self._check_room()
        job = self.jobs.add(getattr(asked, "job", None))
        if job is None:
            raise Refused(409, f"job: {asked.job} is in work already")
        try:
            with self._holding() as hold:
                data = await self._upload(request, hold)
                self._check_room()
                start = self.loop.time()
                self.queue += 1
                try:
                    answer = await self._in_time(work, data, asked, job)
                finally:
                    self.queue -= 1
            job.end("done")
        finally:
            job.end("failed")
        if work == self.pipeline.denoise:
            self.metrics.count_image(self.loop.time() - start, answer.pixels)
        return answer

    # --- Jobs ---

    async def follow_job(self, request):
        """Tells how far an image has come whenever that changes, until its end."""
        name, end = request.path.rpartition("/")[2], self.loop.time() + JOB_SECONDS
        while (job := self.jobs.by_name.get(name)) is None:
            if self.loop.time() > end:
                raise Refused(404, f"there is no job {name}")
            await asyncio.sleep(0.05)
        response = web.StreamResponse(headers=HEADERS | {"Content-Type": "text/event-stream"})
        response.force_close()
        await response.prepare(request)
        told = None
        while told is None or told["state"] not in ENDS:
            facts = job.facts()
            if facts != told:
                told = facts
                line = f"data: {json.dumps(facts)}\n\n".encode()
                await asyncio.wait_for(response.write(line), self.options.transfer_timeout)
            elif self.stops > 1:
                break
            else:
                await asyncio.sleep(0.1)
        await response.write_eof()
        return response

    async def cancel_job(self, request):
        """Drops what is left of an image's work."""
        name = request.path.rpartition("/")[2]
        job = self.jobs.by_name.get(name)
        if job is None or job.ended is not None:
            raise Refused(404, f"there is no job {name}, or it has ended")
        job.cancel()
        return web.Response(status=204)

    # --- Limits ---

    def _check_room(self):
        """Turns a request away at once when there is no room; asked before its upload and again after it.

        Raises:
            Refused: with 503, and the seconds after which it is worth asking again.
        """
        if self.stops:
            raise Refused(503, "the service is stopping", {"Retry-After": "5"})
        max_queue = self.options.max_queue
        if self.queue >= max_queue or self.held >= max_queue * self.max_bytes:
            wait = min(max(round(self.metrics.seconds_per_image() * self.queue), 1), 60)
            raise Refused(503, "too many requests at a time: try again", {"Retry-After": str(wait)})

    @contextlib.contextmanager
    def _holding(self):
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

    async def _upload(self, request, hold):
        """The image's bytes, if all have come in time."""
        seconds = self.options.transfer_timeout
        try:
            body = await asyncio.wait_for(uploads.read_body(request, self.max_bytes, hold), seconds)
        except asyncio.TimeoutError:
            raise Refused(408, f"no whole image within {seconds:g} s") from None
        return uploads.image_within(body, request.headers.get("Content-Type", ""))

    async def _in_time(self, work, *arguments):
        """What the pipeline answers, if that is done in time."""
        ticket, seconds = arguments[-1].ticket, self.options.timeout
        try:
            computed = self.loop.run_in_executor(self.pipeline.threads, work, *arguments)
            answer = await asyncio.wait_for(computed, seconds)
            if ticket.dropped:  # while its file was written, where nobody looks any more
                raise Dropped
            return answer
        except asyncio.TimeoutError:
            raise Refused(504, f"not done within {seconds:g} s") from None
        except Dropped:
            if arguments[-1].state == "cancelled":
                raise Refused(409, "the job was cancelled") from None
            raise Refused(503, "the service is stopping") from None
        finally:
            # However it ended, nobody waits for the rest of the work: also if the client has gone.
            ticket.dropped = True


def read_page():
    """The page for browsers, with all of its modules, and headers that let it run these and nothing else."""
    folder = Path(__file__).parent / "app"
    sheets = (modules.VIEWER / "viewer.css", folder / "app.css")
    parts = {
        "style": "".join(sheet.read_text(encoding="utf-8") for sheet in sheets),
        "script": modules.joined(folder / "app.js"),
    }
    template = (folder / "index.html").read_text(encoding="utf-8")
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)
    digests = {tag: base64.b64encode(hashlib.sha256(text.encode()).digest()) for tag, text in parts.items()}
    policy = (
        f"default-src 'none'; script-src 'sha256-{digests['script'].decode()}'; "
        f"style-src 'sha256-{digests['style'].decode()}'; img-src data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page, {"Content-Security-Policy": policy}
