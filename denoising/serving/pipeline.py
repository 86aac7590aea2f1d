"""The way of one image through the service: decoded, denoised together with others, encoded.

Each image has a thread that waits for an image process to decode it, for the network, and for an image process to
encode it. There are twice as many threads as a batch has places: one batch is computed while the next is decoded.
What finds no thread waits as it came, undecoded.
"""

import argparse
import base64
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass

import cv2
import numpy as np
import paddle

from arch_unet import DenoisingNetwork
from denoising import cli, machine
from denoising.files import images
from denoising.imaging import pixels, trust
from denoising.imaging.noise_analysis import analyse
from denoising.inference import denoiser
from denoising.inference.estimate import removed_of_drawn
from denoising.serving import formats
from denoising.serving.batching import BatchedDenoiser, Batcher, Dropped, Ticket
from denoising.serving.image_process import Died, Refused
from denoising.serving.kept import Kept, key_of

MAP_PIXELS = 4 << 20
PLAIN = argparse.Namespace(strength=1.0, detail=0.0, chroma=1.0)
LARGE = 1 << 20  # pixels: after such an image, what the C library keeps of its memory is given back


@dataclass
class Answer:
    """A denoised file, and what is told beside it."""

    data: bytes
    format: str
    pixels: int  # that the network has computed, now or before
    model: str
    why: str


class Pipeline:
    """Threads, networks and image processes. It starts with `start` and must be ended with `stop`.

    Args:
        options: the flags of tools/serve.py.
        models: OneModel or ManyModels.
        processes: ImageProcesses.
    """

    def __init__(self, options, models, processes):
        self.options, self.models, self.processes = options, models, processes
        self.kept = Kept(int(options.keep_mb * 1e6), 60 * options.keep_minutes)

    def start(self, on_batch):
        """Starts the threads and runs the network once.

        A first window is slow, and what cannot run at all should show before anyone is let in.

        Args:
            on_batch: called as on_batch(number of windows, seconds) after each further pass of the network.
        """
        self.threads = ThreadPoolExecutor(2 * self.options.max_batch, "image")
        self.batcher = Batcher(denoiser.run, self.options.max_batch, self.options.max_wait_ms / 1e3)
        first = self.models.first()
        window = np.zeros((1, first.n_channel, 64, 64), np.float32)
        self.batcher(first, "whole", (window,), Ticket())
        self.batcher.on_batch = on_batch

    def stop(self):
        """Drops what waits, and returns when all threads have ended."""
        self.batcher.stop()
        self.threads.shutdown()

    def is_alive(self):
        """Whether the network's thread still runs."""
        return self.batcher.thread.is_alive()

    def denoise(self, data, asked, job):
        """A file's bytes for a file's bytes, in the thread that calls.

        Args:
            data: the upload.
            asked: the request's parameters.
            job: told how far the image has come; its ticket may be dropped.

        Raises:
            Refused: the image is at fault.
            Dropped: nobody waits for it any more, or the service ends.
        """
        try:
            return self._denoise(data, asked, job)
        except ValueError as error:
            raise Refused(422, f"image: {error}") from None

    def _denoise(self, data, asked, job):
        picture, work = self._decoded(data, job)
        key = key_of(data, asked)
        model, why = "none", "strength 0 leaves the image as it is"
        untouched = asked.strength == 0
        if not untouched:
            job.enter("measuring")
            output = self.kept.get(key)
            taken = output.taken if output else self.models.take(asked.model, picture, asked.fast)
            job.take(taken)
            model, why, untouched = taken.name, taken.why, taken.network is None
            if untouched and asked.format == "own":
                return Answer(data, picture.format, work, model, why)
        self._check_holds(picture, asked)
        pages = formats.prepared(picture.pages, asked.format)
        picture.pages = []  # only what is left beside the pixels is needed of the input
        if not untouched:
            job.enter("denoising")
            with nullcontext(output) if output else self.kept.place(key, taken, pages) as output:
                self._run(pages, taken, output, asked, job)
            del output  # so that it can be dropped while the result is written
        job.enter("writing")
        pages, picture = formats.converted(pages, picture, asked.format)
        if job.ticket.dropped:
            raise Dropped
        result = self.processes.call("encode", pages, picture, asked.quality, limit=self.options.timeout)
        del pages
        if work > LARGE:
            machine.trim_memory()
        return Answer(result, picture.format, work, model, why)

    def _run(self, pages, taken, output, asked, job):
        """Puts the denoised pages in the place of the noisy ones."""
        amounts = {name: getattr(asked, name) for name in ("strength", "detail", "chroma")}
        denoise = BatchedDenoiser(taken.network, self.batcher, job.ticket, output, tile=self.options.tile, **amounts)
        denoise.on_progress = job.progress
        for number, page in enumerate(pages):
            if spans := taken.span_of(number):
                denoise.span, denoise.bounded = spans
                pages[number] = taken.noise.restore(page, denoise(page))

    def analyse(self, data, asked, job):
        """What noise a file's image has, and what would be taken for it, as facts for JSON; raises as `denoise`."""
        picture, _ = self._decoded(data, job)
        page = picture.pages[0]
        try:
            taken = self.models.analyse(asked.model, picture, asked.fast)
        except ValueError as error:
            raise Refused(422, f"image: {error}") from None
        found = taken.analysis
        numbers = {name: round(float(getattr(found, name)), 4) for name in ("sigma", "peak", "neighbour")}
        height, width, channels = page.shape
        return {
            "kind": found.kind, **numbers, "certainty": found.certainty, "description": found.describe(),
            "model": taken.name, "why": taken.why, "height": height, "width": width, "channels": channels,
            "curve": [[round(float(number), 7) for number in line] for line in found.curve],
            "correlation": found.correlation.mean(axis=0).round(3).tolist(),
            "bits": 8 * page.itemsize, "format": picture.format, "pages": len(picture.pages),
        }  # fmt: skip

    def judge(self, data, asked, job):
        """How much structure the first page loses and where, in words and as a map, for JSON; raises as `denoise`."""
        picture, work = self._decoded(data, job)
        key, noisy = key_of(data, asked), picture.pages[0]
        try:
            output = self.kept.get(key)
            taken = output.taken if output else self.models.take(asked.model, picture, asked.fast)
            span, bounded = taken.span_of(0) or (None, False)
            # What is judged lies in 0..1, as the network sees it.
            noisy = pixels.seen_in(span or pixels.PLAIN_SPAN, noisy)
            measured = taken.analysis if span == pixels.PLAIN_SPAN and len(picture.pages) == 1 else None
            level = trust.level_of(measured or analyse(noisy), noisy.shape[2])
            if taken.network is None or level is None or not span:
                why = taken.why if span else "its first page has no noise"
                return {"verdict": f"cannot be judged: {why}", "lost": None, "map": None}
            with nullcontext(output) if output else self.kept.place(key, taken, picture.pages) as output:
                self._run(picture.pages, taken, output, PLAIN, job)
        except ValueError as error:
            raise Refused(422, f"image: {error}") from None
        job.enter("denoising")
        denoised = pixels.seen_in(span, picture.pages[0])
        loss = trust.lost_structure(noisy, denoised, level, self._probe(taken, level, noisy, job, bounded))
        colour, opaque = trust.structure_picture(smaller(loss.structure))
        png = images.encode("map.png", colour, pixels.Picture(pages=[], alpha=[opaque]))
        if work > LARGE:
            machine.trim_memory()
        return {
            "verdict": loss.words() or "loses no structure that can be seen in what was removed",
            "lost": round(loss.lost, 4), "map": base64.b64encode(png).decode(),
        }  # fmt: skip

    def _probe(self, taken, level, noisy, job, bounded):
        """Finds what the network removes of drawn noise in some rows after the other, and tells how far it is."""
        denoise = BatchedDenoiser(taken.network, self.batcher, job.ticket, tile=self.options.tile)
        denoise.bounded = bounded
        rows_done, (height, width, _) = 0, noisy.shape

        def probe(rows, clean):
            nonlocal rows_done
            job.progress(rows_done * width, height * width)
            removed = removed_of_drawn(denoise, level, rows, clean)
            rows_done = min(rows_done + trust.STRIP, height)
            job.progress(rows_done * width, height * width)
            return removed

        return probe

    def _check_holds(self, picture, asked):
        """Writes one pixel of what was asked for, to learn before all the work what that format cannot hold."""
        if asked.format == "own":
            return  # was tried by the decoder
        corner = np.s_[:1, :1]
        alpha = picture.alpha and [plane[corner] for plane in picture.alpha]
        like = pixels.Picture(pages=[], alpha=alpha, format=picture.format)
        pages = [page[corner] for page in formats.prepared(picture.pages, asked.format)]
        pages, like = formats.converted(pages, like, asked.format)
        self.processes.call("encode", pages, like, asked.quality, limit=self.options.timeout)

    def _decoded(self, data, job):
        """The picture in a file, and the pixels of work that it is."""
        if job.ticket.dropped:
            raise Dropped
        try:
            decoded = self.processes.call("decode", data, limit=self.options.decode_timeout)
        except Died as death:
            cli.note(f"an image of {len(data)} bytes was refused: its decoder died: {death}")
            raise Refused(422, "image: the decoder gives up on it") from None
        if job.ticket.dropped:
            raise Dropped
        return decoded


def smaller(structure):
    """A map of at most MAP_PIXELS: it is smooth, and lies over a picture of any size."""
    height, width = structure.shape
    scale = min(1, (MAP_PIXELS / (height * width)) ** 0.5)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(structure, size, interpolation=cv2.INTER_AREA) if scale < 1 else structure


class ExportedNetwork(DenoisingNetwork):
    """What a runtime computes, in the place of a network: so a Denoiser tiles and the service batches for it too."""

    def __init__(self, runtime):
        super().__init__(n_channel=runtime.channels)
        self.runtime = runtime

    def forward(self, x):
        return paddle.to_tensor(self.runtime(x.numpy()))
