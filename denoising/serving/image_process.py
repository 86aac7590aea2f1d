"""Reads and writes image files in processes of their own, so that the harm a hostile file does ends there.

>>> processes = ImageProcesses(2, max_pixels=25_000_000)
>>> picture, pixels = processes.call("decode", data, limit=10)
>>> data = processes.call("encode", pages, picture, limit=60)

A decoder that crashes, hangs or wants all the memory ends its process and not the service: a new process takes its
place, and `Died` says why. These processes have neither Paddle nor a network, and start within a second.
"""

import contextlib
import os
import queue
import signal
import subprocess
import sys
import traceback
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

import numpy as np

from denoising import machine
from denoising.cli import UserError
from denoising.files import images
from denoising.imaging import pixels

START_SECONDS = 60
MULTIPLE = 32  # the networks' work is counted in squares of this side

# The format in which each format that is read is answered, and its name in HTTP.
FORMATS = {
    "PNG": (".png", "image/png"),
    "JPEG": (".jpg", "image/jpeg"),
    "MPO": (".jpg", "image/jpeg"),
    "BMP": (".bmp", "image/bmp"),
    "WEBP": (".webp", "image/webp"),
    "TIFF": (".tif", "image/tiff"),
    "PPM": (".ppm", "image/x-portable-anymap"),
    "EXR": (".exr", "image/x-exr"),
    "NPY": (".npy", "application/octet-stream"),
}


class Refused(Exception):
    """What is answered with a status and one line, instead of an image."""

    def __init__(self, status, message, headers=None):
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers or {}


class Died(Exception):
    """An image process has crashed, or was ended because it took too long."""


class ImageProcesses:
    """A number of processes that each do one thing at a time; any thread may call.

    Args:
        count: of processes.
        max_pixels: larger images are refused before they are decoded.
    """

    def __init__(self, count, max_pixels):
        self.max_pixels = max_pixels
        self.deaths = 0
        self.idle = queue.LifoQueue()
        for _ in range(count):
            self.idle.put(_Process(max_pixels))

    def call(self, name, *arguments, limit):
        """Runs `decode` or `encode` of this file in a process that is free, or waits for one.

        Raises:
            Refused: the image is at fault.
            Died: the process has died over it, or has not answered within `limit` seconds.
        """
        process = self.idle.get()
        try:
            if process.popen.poll() is not None:  # it was ended from outside, and this image is not to blame
                process = self._replaced(process)
            kind, answer = process.call(name, arguments, limit)
        except Died:
            process = self._replaced(process)
            raise
        finally:
            self.idle.put(process)
        if kind == "refused":
            raise Refused(*answer)
        if kind == "bug":
            raise RuntimeError(answer)
        return answer

    def _replaced(self, process):
        self.deaths += 1
        process.end()
        return _Process(self.max_pixels)

    def end(self):
        """Ends all processes, which must be idle."""
        while not self.idle.empty():
            self.idle.get().end()


class _Process:
    def __init__(self, max_pixels):
        self.connection, theirs = Pipe()
        # Our package is found first, and what the service itself was told to look for after it.
        places = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH")]
        with theirs:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", __spec__.name, str(theirs.fileno()), str(max_pixels)],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places))}, pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            )  # fmt: skip
        self.ready = False

    def call(self, name, arguments, limit):
        try:
            if not self.ready:
                self._receive(START_SECONDS)
                self.ready = True
            self.connection.send((name, arguments))
            return self._receive(limit)
        except (EOFError, OSError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.popen.wait(5)
            raise Died(f"it crashed with code {self.popen.returncode}") from None

    def _receive(self, limit):
        if not self.connection.poll(limit):
            raise Died(f"not done within {limit:g} s")
        return self.connection.recv()

    def end(self):
        self.connection.close()
        self.popen.kill()
        self.popen.wait()


# --- Within the process -----------------------------------------------------------------------------------


def main(descriptor, max_pixels):
    """Answers until the other end is closed."""
    # A Ctrl-C reaches all processes of a terminal: the service ends its own when it has finished.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    pixels.MAX_PIXELS = max_pixels
    # Four channels of float32, or fewer pixels of more; however well they are compressed.
    pixels.BOMB_BYTES, pixels.BOMB_RATIO = 16 * max_pixels, 0
    limit_memory(max_pixels)
    # What libraries have to say about a file would fill the service's log; its errors go the other way.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    # The service closes its end, or has ended.
    with Connection(descriptor) as connection, contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        connection.send("ready")
        while True:
            name, arguments = connection.recv()
            connection.send(answer({"decode": decode, "encode": encode}[name], arguments, max_pixels))
            del arguments  # an image is not kept until the next one comes
            machine.trim_memory()


def answer(function, arguments, max_pixels):
    """What goes back: ("done", the result), ("refused", (status, line)) or ("bug", a traceback)."""
    try:
        return "done", function(*arguments, max_pixels)
    except Refused as refusal:
        return "refused", (refusal.status, refusal.message)
    except pixels.TooLarge as error:
        return "refused", (413, str(error))
    except UserError as error:
        return "refused", (422, str(error))
    except MemoryError:
        return "refused", (413, "image: needs more memory than one image is given")
    except Exception:  # noqa: BLE001 - the service logs it and tells nobody else
        return "bug", traceback.format_exc()


def decode(data, max_pixels):
    """The picture in a file, and how many pixels the network will have to compute for it.

    Raises:
        Refused: no image, too large, or a format that cannot hold the result.
    """
    try:
        height, width = images.image_size("image", data)
    except pixels.TooLarge:
        raise
    except UserError as error:
        raise Refused(415, str(error)) from None
    _check_work([(height, width)], max_pixels)
    picture = images.read_image("image", data)
    work = _check_work([page.shape[:2] for page in picture.pages], max_pixels)
    if picture.format not in FORMATS:
        raise Refused(415, f"image: {picture.format} is read, but not written: send PNG")
    # One pixel is written, to learn before all the work what this format cannot hold.
    corner = np.s_[:1, :1]
    alpha = picture.alpha and [plane[corner] for plane in picture.alpha]
    like = pixels.Picture(pages=[], alpha=alpha, format=picture.format)
    encode([page[corner] for page in picture.pages], like, 95, max_pixels)
    return picture, work


def _check_work(shapes, max_pixels):
    """Counts what is computed: each page is padded to whole squares, which makes a line 32 times as large."""
    work = sum(-(-height // MULTIPLE) * -(-width // MULTIPLE) * MULTIPLE**2 for height, width in shapes)
    # A photo of just the allowed size is padded too.
    if work > max_pixels * 1.02 + MULTIPLE**2:
        plain = sum(height * width for height, width in shapes) / 1e6
        padded = f" ({work / 1e6:.1f} when padded to multiples of {MULTIPLE})" if work > 1.02e6 * plain else ""
        raise Refused(413, f"image: {plain:.1f} megapixels{padded}, the limit is {max_pixels / 1e6:g}")
    return work


def encode(pages, picture, quality, max_pixels):
    """A file of the picture's own format, with its metadata; the quality is that of a JPEG."""
    return images.encode("image" + FORMATS[picture.format][0], pages, picture, quality)


def limit_memory(max_pixels):
    """Bounds this process: a gigabyte, and a few copies of the largest image, beyond what it has after its imports."""
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            size = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (ImportError, OSError):
        return  # not Linux: the limits on the number of pixels remain
    limit = size + (1 << 30) + 96 * max_pixels
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
