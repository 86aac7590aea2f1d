"""Shared by the tests of the service: one in this process or its own, what it is asked, and files to send to it."""

import asyncio
import contextlib
import http.client
import io
import json
import re
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

import serve
from conftest import ENVIRONMENT, ROOT, noisy_scene, save
from denoising.files import images
from denoising.serving.image_process import ImageProcesses

pytest.importorskip("aiohttp")

from denoising.serving import connections, pipeline, service


class Server:
    """What a service is asked, over its socket."""

    url: str
    errors: list[str]  # what it wrote to stderr

    @property
    def port(self):
        return urlsplit(self.url).port

    def ask(self, method, path, body=None, headers=None, timeout=60):
        """Status, headers and body of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        with contextlib.closing(connection):
            connection.request(method, path, body=body, headers=headers or {})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()

    def post(self, body, path="/denoise", **headers):
        return self.ask("POST", path, body, {name.replace("_", "-"): value for name, value in headers.items()})

    def refuses(self, status, body, path="/denoise", **headers):
        """Makes sure that an image is refused in one line of JSON, which is returned."""
        found, answer, text = self.post(body, path, **headers)
        assert (found, answer["Content-Type"]) == (status, "application/json; charset=utf-8"), text
        (line,) = json.loads(text).values()
        assert 0 < len(line) < 400
        for inside in ("Traceback", 'File "', ".py"):
            assert inside not in line
        return line

    def raw(self, *pieces, pause=0.0, timeout=30):
        """What comes back for bytes that no client would send, until the server closes or says nothing more."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as connection:
            with contextlib.suppress(ConnectionError):
                for piece in pieces:
                    connection.sendall(piece)
                    time.sleep(pause)
            received = b""
            with contextlib.suppress(ConnectionError, TimeoutError):
                while piece := connection.recv(65536):
                    received += piece
            return received

    def metrics(self):
        """Samples by name with labels."""
        status, headers, text = self.ask("GET", "/metrics")
        assert (status, headers["Content-Type"].split(";")[0]) == (200, "text/plain")
        lines = [line for line in text.decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    def health(self):
        return self.ask("GET", "/health")[0]


class ServerHere(Server):
    """A service in a thread of this process."""

    def __init__(self, *flags):
        self.options = serve.get_parser().parse_args(["--port", "0", *map(str, flags)])
        self.errors = []
        denoiser = serve.load(self.options, serve.check_model(self.options))
        self.processes = ImageProcesses(serve.IMAGE_PROCESSES, int(self.options.max_megapixels * 1e6))
        self.service = service.Service(self.options, denoiser, self.processes)
        self.listener = connections.bound_socket(self.options.host, 0)
        self.url = connections.url_of(self.listener)
        self.thread = threading.Thread(target=lambda: asyncio.run(self.service.serve(self.listener)))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdout", io.StringIO())  # it prints its address
            self.thread.start()
            wait_for(self.answers)

    def answers(self):
        with contextlib.suppress(ConnectionRefusedError):
            return self.health() == 200

    def stop(self):
        """Ends it."""
        self.service.stop()
        self.thread.join(60)
        assert not self.thread.is_alive()
        self.processes.end()
        self.listener.close()


class ServerProcess(Server):
    """tools/serve.py on a free port."""

    def __init__(self, *flags):
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tools/serve.py"), "--port", "0", *map(str, flags)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
        )  # fmt: skip
        self.errors = []
        self.reader = threading.Thread(target=lambda: self.errors.extend(self.process.stderr))
        self.reader.start()
        self.url = self.process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", self.url), self.errors

    def stop(self):
        """Ends it."""
        self.process.kill()
        self.process.wait(60)
        self.reader.join()
        self.process.stdout.close()
        self.process.stderr.close()


@contextlib.contextmanager
def serving(*flags, kind=ServerHere):
    """A service, which must have found no bug at its end."""
    notes = []
    with pytest.MonkeyPatch.context() as patch:
        for module in (service, pipeline):
            patch.setattr(module, "cli", SimpleNamespace(note=lambda line: notes.append(str(line))))
        server = kind(*flags)
        if kind is ServerHere:
            server.errors = notes
        try:
            yield server
        finally:
            server.stop()
    assert not [line for line in server.errors if "Traceback" in line], "".join(server.errors)


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def server(weights):
    """With small limits, so that the tests reach them."""
    limits = {"--max_mb": 1, "--max_megapixels": 0.5, "--transfer_timeout": 2, "--decode_timeout": 3}
    with serving("--model_path", weights, *[part for pair in limits.items() for part in pair]) as server:
        yield server
        # Whatever the tests have sent: no bug was found, and nothing is left behind.
        metrics = server.metrics()
        assert not [name for name in metrics if 'status="500"' in name]
        assert (metrics["denoise_queue"], metrics["denoise_held_bytes"], metrics["denoise_connections"]) == (0, 0, 1)
        assert server.health() == 200


@pytest.fixture(scope="module")
def slow_server():
    """The network that ships, and room for two."""
    flags = ("--max_queue", 2, "--max_batch", 1, "--max_connections", 20, "--timeout", 20, "--keep_mb", 0)
    with serving("--model_path", ROOT / "best_model.pdparams", *flags) as server:
        yield server


def as_bytes(array, kind, **options):
    file = io.BytesIO()
    Image.fromarray(array.squeeze()).save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def png():
    return as_bytes(noisy_scene(45, 67), "PNG")


def kinds_of_files(folder):
    """One file of each kind that is told apart: suffix, channels, depth, what lies beside the pixels."""
    deep = noisy_scene(40, 50).astype(np.uint16) * 257 + 3
    grey = noisy_scene(40, 50, 1)
    alpha = Image.fromarray(noisy_scene(40, 50)).convert("RGBA")
    alpha.putalpha(Image.fromarray(np.tile(np.arange(50, dtype=np.uint8) * 5, (40, 1))))
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Maker", 6
    save(folder / "colour.png", noisy_scene(45, 67))
    save(folder / "grey.png", grey)
    alpha.save(folder / "alpha.png", exif=exif, dpi=(300, 300), icc_profile=b"a profile of colours")
    images.write_image(folder / "deep.png", deep)
    Image.fromarray(noisy_scene(40, 50)).save(folder / "photo.jpg", exif=exif)
    save(folder / "photo.webp", noisy_scene(40, 50))
    save(folder / "photo.bmp", noisy_scene(40, 50))
    images.write_image(folder / "deep.tif", deep)
    images.write_image(folder / "deep_grey.tif", deep[..., :1])
    images.write_image(folder / "stack.tif", [noisy_scene(40, 50, 1, seed) for seed in range(3)])
    np.save(folder / "float.npy", noisy_scene(40, 50).astype(np.float32) / 40)
    images.write_image(folder / "deep.ppm", deep)
    return sorted(folder.iterdir())
