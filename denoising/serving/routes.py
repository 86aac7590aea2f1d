"""What the service answers: the routes, and what stands behind each."""

import asyncio
import base64
import hashlib
import re
from pathlib import Path

from aiohttp import web

from denoising.serving import prometheus, uploads
from denoising.serving.batching import Dropped, Ticket
from denoising.serving.image_process import FORMATS, Refused


class Routes:
    """Finds what a request is about and answers it.

    Args:
        options: the flags of tools/serve.py.
        pipeline: a Pipeline.
        admission: an Admission.
        metrics: ServiceMetrics.
    """

    def __init__(self, options, pipeline, admission, metrics):
        self.options, self.pipeline, self.admission, self.metrics = options, pipeline, admission, metrics
        self.page, self.page_headers = read_page()

    def find(self, request):
        """What a request is about, by which it is counted, and what answers it.

        Raises:
            Refused: there is no such path, or it takes another method.
        """
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
        """A page on which one drops an image and sees it before and after."""
        return web.Response(text=self.page, content_type="text/html", headers=self.page_headers)

    async def get_health(self, request):
        """200 while images are taken, 503 before the end."""
        stopping = self.admission.stopping
        well = not stopping and self.pipeline.is_alive()
        state = "ok" if well else "stopping" if stopping else "the network's thread has ended"
        answer = {"status": state, "queue": self.admission.queue, "max_queue": self.admission.max_queue}
        return web.json_response(answer, status=200 if well else 503)

    async def get_metrics(self, request):
        """The counters, for Prometheus."""
        return web.Response(text=self.metrics.page(), headers={"Content-Type": prometheus.CONTENT_TYPE})

    async def denoise(self, request):
        """Takes an image and answers with the denoised one."""
        strength = uploads.strength_of(request)
        self.admission.check(self.metrics.seconds_per_image())
        with self.admission.holding() as hold:
            data = await self._upload(request, hold)
            self.admission.check(self.metrics.seconds_per_image())
            with self.admission.queued():
                start = asyncio.get_running_loop().time()
                result, kind, pixels = await self._denoised(data, strength)
        self.metrics.count_image(asyncio.get_running_loop().time() - start, pixels)
        return web.Response(body=result, headers={"Content-Type": FORMATS[kind][1]})

    async def _upload(self, request, hold):
        """The image's bytes, if all have come in time."""
        seconds = self.options.transfer_timeout
        try:
            body = await asyncio.wait_for(uploads.read_body(request, self.admission.max_bytes, hold), seconds)
        except asyncio.TimeoutError:
            raise Refused(408, f"no whole image within {seconds:g} s") from None
        return uploads.image_within(body, request.headers.get("Content-Type", ""))

    async def _denoised(self, data, strength):
        """The result's bytes, their format, and the pixels computed, if that is done in time."""
        ticket, pipeline, seconds = Ticket(), self.pipeline, self.options.timeout
        loop = asyncio.get_running_loop()
        try:
            work = loop.run_in_executor(pipeline.threads, pipeline.denoise, data, strength, ticket)
            return await asyncio.wait_for(work, seconds)
        except asyncio.TimeoutError:
            raise Refused(504, f"not done within {seconds:g} s") from None
        except Dropped:
            raise Refused(503, "the service is stopping") from None
        finally:
            # However it ended, nobody waits for the rest of the work: also if the client has gone.
            ticket.dropped = True


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
