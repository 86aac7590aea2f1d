"""The service spoken to over sockets: whatever is sent, it goes on serving."""

import asyncio
import base64
import contextlib
import http.client
import io
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

import export_model
import predict
import serve
import serve_client
from conftest import (
    ENVIRONMENT,
    ROOT,
    assert_user_error,
    broken_copies,
    noisy_scene,
    run_script,
    save,
    tiny_network,
)
from denoising import cli, machine
from denoising.engine import operators
from denoising.files import images
from denoising.imaging import trust
from denoising.imaging.noise import parse_noise
from denoising.imaging.noise_analysis import analyse
from denoising.inference import auto, checkpoint
from denoising.inference.denoiser import Denoiser
from denoising.inference.estimate import removed_of_drawn
from denoising.serving.image_process import ImageProcesses
from denoising.serving.jobs import Job

pytest.importorskip("aiohttp")

from denoising.serving import connections, models, openapi, pipeline, service, uploads


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


def as_bytes(array, kind, **options):
    file = io.BytesIO()
    Image.fromarray(array.squeeze()).save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def png():
    return as_bytes(noisy_scene(45, 67), "PNG")


# --- What comes back --------------------------------------------------------------------------------------


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


def test_each_kind_of_file_comes_back_as_predict_writes_it(server, weights, tmp_path):
    (tmp_path / "in").mkdir()
    paths = kinds_of_files(tmp_path / "in")
    flags = ("--image_path", tmp_path / "in", "--model_path", weights, "--save_dir", tmp_path / "out", "--keep_format")
    assert predict.main(flags) == 0
    assert len(paths) == 12
    for path in paths:
        status, headers, body = server.post(path.read_bytes())
        assert status == 200, (path, body)
        assert body == (tmp_path / "out" / f"{path.stem}_denoise{path.suffix}").read_bytes(), path
        kind = {".jpg": "jpeg", ".tif": "tiff", ".ppm": "x-portable-anymap"}.get(path.suffix, path.suffix[1:])
        assert headers["Content-Type"] == (f"image/{kind}" if kind != "npy" else "application/octet-stream")
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert body != path.read_bytes()
    assert images.read_image("alpha", server.post((tmp_path / "in" / "alpha.png").read_bytes())[2]).icc


def test_strength_is_that_of_predict(server, weights, png):
    denoise = Denoiser(str(weights), strength=0.3)
    result = images.read_image("answer", server.post(png, "/denoise?strength=0.3")[2]).pages[0]
    assert (result == denoise(noisy_scene(45, 67))).all()
    untouched = images.read_image("answer", server.post(png, "/?strength=0")[2]).pages[0]
    assert (untouched == noisy_scene(45, 67)).all()


def test_forms_chunks_and_other_ways_to_send_an_image(server, png):
    expected = server.post(png)[2]
    head = b'--x y\r\nContent-Disposition: form-data; name="image"; filename="../../a.png"\r\nContent-Type: image/png'
    form = head + b"\r\n\r\n" + png + b"\r\n--x y--\r\n"
    assert server.post(form, Content_Type='multipart/form-data; boundary="x y"')[::2] == (200, expected)
    chunks = (png[start : start + 1000] for start in range(0, len(png), 1000))
    assert server.post(chunks)[::2] == (200, expected)
    # What curl --data-binary says about it; what is in it decides.
    assert server.post(png, Content_Type="application/x-www-form-urlencoded")[::2] == (200, expected)
    assert server.post(png, "/")[::2] == (200, expected)
    length = b"Content-Length: %d\r\n\r\n" % len(png)
    answer = server.raw(b"POST / HTTP/1.0\r\n" + length + png)
    assert answer.startswith(b"HTTP/1.0 200 OK\r\n")
    assert answer.endswith(expected)
    head = b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nConnection: close\r\n"
    answer = server.raw(head + length, png, pause=0.2)
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")
    assert answer.endswith(expected)


def test_a_connection_serves_several_requests(server, png):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    with contextlib.closing(connection):
        for path, expected in [("/denoise", 200), ("/denoise?strength=2", 400), ("/denoise", 200), ("/no", 404)]:
            connection.request("POST", path, body=png)
            answer = connection.getresponse()
            assert answer.status == expected
            answer.read()
            # A refusal may come before the upload, and ends the connection then.
            assert connection.sock or expected != 200, "the connection was closed"


def test_the_page_runs_its_own_script_and_nothing_else(server):
    status, headers, body = server.ask("GET", "/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert b"http://" not in body
    assert b"https://" not in body
    assert b" style=" not in body  # the policy would not let it pass
    assert server.ask("HEAD", "/")[::2] == (200, b"")
    assert json.loads(server.ask("GET", "/health")[2])["status"] == "ok"


def test_detail_and_chroma_are_those_of_predict(server, weights, png):
    amounts = {"strength": 0.9, "detail": 0.7, "chroma": 0.4}
    query = "&".join(f"{name}={value}" for name, value in amounts.items())
    status, headers, body = server.post(png, f"/denoise?{query}")
    assert (status, headers["Denoise-Model"]) == (200, "tiny")
    expected = Denoiser(str(weights), **amounts)(noisy_scene(45, 67))
    assert (images.read_image("answer", body).pages[0] == expected).all()


def test_a_picture_for_display_is_an_8_bit_png(server):
    deep = io.BytesIO()
    np.save(deep, noisy_scene(40, 50).astype(np.float32) / 200)
    status, headers, body = server.post(deep.getvalue(), "/denoise?strength=0&format=view")
    assert (status, headers["Content-Type"], headers["Denoise-Model"]) == (200, "image/png", "none")
    shown = images.read_image("answer", body).pages[0]
    assert shown.dtype == np.uint8
    assert np.abs(shown - np.clip(noisy_scene(40, 50) * (255 / 200), 0, 255)).max() <= 1


def test_results_in_other_formats(server, weights, png):
    """What was asked for, with what lies beside the pixels; of 8 bits a TIFF keeps what lies between their shades."""
    noisy, denoise = noisy_scene(45, 67), Denoiser(str(weights))
    status, headers, body = server.post(png, "/denoise?format=tiff")
    assert (status, headers["Content-Type"]) == (200, "image/tiff")
    assert (images.read_image("answer", body).pages[0] == denoise(noisy.astype(np.uint16) * 257)).all()
    clear = io.BytesIO()
    Image.fromarray(np.dstack([noisy, np.tile(np.arange(67, dtype=np.uint8), (45, 1))])).save(clear, "PNG")
    deep = images.read_image("answer", server.post(clear.getvalue(), "/denoise?format=tiff")[2])
    assert (deep.alpha[0] == np.arange(67) * 257).all()
    photo = io.BytesIO()
    Image.fromarray(noisy).save(photo, "JPEG", icc_profile=b"a profile of colours")
    as_png = images.read_image("answer", server.post(photo.getvalue(), "/denoise?format=png")[2])
    assert (as_png.format, as_png.pages[0].dtype, as_png.icc) == ("PNG", np.uint8, b"a profile of colours")
    bright = io.BytesIO()
    np.save(bright, noisy.astype(np.float32) / 255)
    assert images.read_image("answer", server.post(bright.getvalue(), "/?format=png")[2]).pages[0].dtype == np.uint16
    sizes = [len(server.post(png, f"/denoise?format=jpeg&quality={quality}")[2]) for quality in (30, 95)]
    assert sizes[0] < sizes[1]
    assert server.post(png, "/?format=jpeg")[2] == server.post(png, "/?format=jpeg&quality=95")[2]


def test_what_another_format_cannot_hold_is_refused_before_the_work(server):
    clear = io.BytesIO()
    Image.fromarray(noisy_scene(40, 50)).convert("RGBA").save(clear, "PNG")
    assert "cannot hold uint8 of 3 channel(s) with transparency" in server.refuses(
        422, clear.getvalue(), "/?format=jpeg"
    )
    stack = images.encode("a.tif", [noisy_scene(40, 50, 1, seed) for seed in range(3)])
    assert "3 pages" in server.refuses(422, stack, "/?format=png")
    assert server.post(stack, "/?format=view")[0] == 200  # its first page
    assert server.post(clear.getvalue(), "/?format=view")[0] == 200
    for query in ("format=gif", "format=", "quality=0", "quality=101", "quality=a", "quality=95&quality=95"):
        server.refuses(400, clear.getvalue(), f"/?{query}")


def test_the_curve_and_the_correlation_of_the_noise(server):
    rng = np.random.default_rng(0)
    scene = np.tile(np.linspace(40, 210, 200), (200, 1))[..., None].repeat(3, axis=2)
    noisy = np.clip(scene + rng.normal(0, 12, scene.shape), 0, 255).astype(np.uint8)
    found = json.loads(server.post(as_bytes(noisy, "PNG"), "/analyse")[2])
    assert [255 * (a / 2 + b) ** 0.5 for a, b in found["curve"]] == pytest.approx([12] * 3, rel=0.15)
    assert np.shape(found["correlation"]) == (7, 7)
    assert found["correlation"][3][3] == 1


def events(server, job, begun=None):
    """What is told of a job until its end."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    with contextlib.closing(connection):
        connection.request("GET", f"/jobs/{job}")
        if begun:
            begun.set()
        answer = connection.getresponse()
        assert (answer.status, answer.headers["Content-Type"]) == (200, "text/event-stream")
        lines = answer.read().decode().split("\n\n")
        return [json.loads(line.removeprefix("data: ")) for line in lines if line]


def test_lost_structure_is_told_from_what_is_kept(server, weights):
    noisy = noisy_scene(150, 200, sigma=12)
    data = as_bytes(noisy, "PNG")
    first = server.post(data, "/judge")
    hits = server.metrics()["denoise_kept_hits_total"]
    assert server.post(data)[0] == 200  # the network need not run for it
    status, headers, body = server.post(data, "/judge")
    assert (status, headers["Content-Type"]) == (200, "application/json; charset=utf-8")
    assert body == first[2]
    assert server.metrics()["denoise_kept_hits_total"] == hits + 2
    found = json.loads(body)
    level = trust.level_of(analyse(noisy), noisy.shape[2])
    denoise = Denoiser(str(weights))
    loss = trust.lost_structure(noisy, denoise(noisy), level, partial(removed_of_drawn, denoise, level))
    assert found["lost"] == pytest.approx(loss.lost, abs=1e-3)
    assert found["verdict"] == (loss.words() or "loses no structure that can be seen in what was removed")
    shown = images.read_image("map", base64.b64decode(found["map"]))
    assert (shown.pages[0] == trust.OVERLAY).all()
    assert (shown.alpha[0] == trust.structure_picture(loss.structure)[1]).all()
    flat = as_bytes(np.full((100, 100, 3), 90, np.uint8), "PNG")
    found = json.loads(server.post(flat, "/judge")[2])
    assert (found["lost"], found["map"]) == (None, None)
    assert found["verdict"].startswith("cannot be judged")
    assert server.post(data, "/judge?job=judged")[2] == body
    told = events(server, "judged")[-1]
    assert (told["state"], told["done"]) == ("done", told["total"])
    server.refuses(400, data, "/judge?strength=0.5")
    server.refuses(415, b"no image", "/judge")
    assert pipeline.smaller(np.ones((5000, 4000), np.float32)).size <= pipeline.MAP_PIXELS * 1.001


def test_progress_is_told_by_windows(weights, monkeypatch):
    monkeypatch.setattr(Denoiser, "_window_pixels", lambda self: 320**2)
    data, begun = as_bytes(noisy_scene(700, 500), "PNG"), threading.Event()
    with serving("--model_path", weights) as server, ThreadPoolExecutor(1) as pool:
        told = pool.submit(events, server, "a-1", begun)  # before there is such a job
        begun.wait(10)
        assert server.post(data, "/denoise?job=a-1")[0] == 200
        told = told.result(30)
        assert events(server, "a-1")[-1]["state"] == "done"  # and still after its end
        assert server.post(as_bytes(noisy_scene(40, 50), "PNG"), "/denoise?job=a-1")[0] == 200
    assert told[-1]["state"] == "done"
    assert told[-1]["done"] == told[-1]["total"] > 0.3
    assert told[-1]["model"] == "tiny"
    done = [event["done"] for event in told]
    assert done == sorted(done)


def test_a_job_is_cancelled(slow_server):
    data, begun = as_bytes(noisy_scene(1500, 1500), "PNG"), threading.Event()
    with ThreadPoolExecutor(2) as pool:
        told = pool.submit(events, slow_server, "b", begun)
        begun.wait(10)
        posted = pool.submit(slow_server.post, data, "/denoise?job=b")
        wait_for(lambda: (slow_server.service.jobs.by_name.get("b") or SimpleNamespace(done=0)).done > 0)
        assert "in work" in slow_server.refuses(409, as_bytes(noisy_scene(40, 50), "PNG"), "/denoise?job=b")
        start = time.monotonic()
        assert slow_server.ask("DELETE", "/jobs/b")[0] == 204
        status, _, body = posted.result(60)
        assert (status, json.loads(body)) == (409, {"error": "the job was cancelled"})
        assert time.monotonic() - start < 30
        assert told.result(30)[-1]["state"] == "cancelled"
    assert slow_server.ask("DELETE", "/jobs/b")[0] == 404
    wait_for(lambda: slow_server.metrics()["denoise_queue"] == 0)


def test_a_job_that_has_ended_enters_no_other_state():
    job = Job()
    job.enter("measuring")
    assert job.facts()["state"] == "measuring"
    job.cancel()
    job.enter("denoising")
    assert job.facts()["state"] == "cancelled"


def test_jobs_that_are_none(server, png, monkeypatch):
    monkeypatch.setattr(service, "JOB_SECONDS", 0.1)
    assert server.ask("GET", "/jobs/nothing")[0] == 404
    assert server.ask("DELETE", "/jobs/nothing")[0] == 404
    assert server.ask("GET", "/jobs/no%20name")[0] == 404
    assert server.ask("POST", "/jobs/a")[0] == 405
    for query in ("job=", "job=a/b", "job=" + "x" * 65, "format=gif", "fast=2", "model=other", "fast=1", "detail=2"):
        assert query.split("=")[0] in server.refuses(400, png, f"/denoise?{query}")


def test_the_interface_for_programs_is_that_of_the_routes(server):
    document = json.loads(server.ask("GET", "/openapi.json")[2])
    routes = {path: {method.lower() for method in methods} for path, methods in server.service.routes().items()}
    described = {path: set(about) - {"parameters"} for path, about in document["paths"].items()}
    assert described == routes
    for path, names in (("/", openapi.DENOISE), ("/denoise", openapi.DENOISE), ("/analyse", openapi.ANALYSE)):
        found = [parameter["name"] for parameter in document["paths"][path]["post"]["parameters"]]
        assert found == list(names)
    for name, (kind, default) in uploads.PARAMETERS.items():
        assert openapi.QUERY[name][1].get("default") == default, name
        assert kind(openapi.QUERY[name][1].get("default", "x")) is not None
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    for path in routes:
        assert path.replace("{id}", "ID") in text
    for name in uploads.PARAMETERS:
        assert f"| `{name}` |" in text


def weights_for(folder, **noises):
    """Tiny weights that say what noise they are for."""
    folder.mkdir(exist_ok=True)
    paths = []
    for name, noisetype in noises.items():
        network = tiny_network(len(paths))
        paths.append(folder / f"{name}.pdparams")
        options = {**network.options, "noisetype": noisetype}
        checkpoint.save_network(paths[-1], checkpoint.network_state(network), options)
    return paths


def test_several_models_are_chosen_by_the_noise_or_by_name(tmp_path, monkeypatch):
    paths = weights_for(tmp_path, broad="gauss5_50", narrow="gauss25")
    weights_for(tmp_path / "own", mine="camera")
    monkeypatch.setattr(auto, "shipped_weights", lambda flag: list(paths))
    image = noisy_scene(200, 200, sigma=12)
    clean = as_bytes(
        np.repeat(np.add.outer(np.arange(200), np.arange(200))[..., None] // 3, 3, axis=2).astype(np.uint8), "PNG"
    )
    with serving("--models", tmp_path / "own") as server:
        listed = json.loads(server.ask("GET", "/models")[2])
        assert listed["default"] == "auto"
        assert [row["name"] for row in listed["models"]] == ["auto", "broad", "narrow", "mine"]
        found = json.loads(server.post(as_bytes(image, "PNG"), "/analyse")[2])
        assert (found["kind"], found["model"]) == ("gauss", "broad")
        assert (found["height"], found["width"], found["channels"], found["bits"]) == (200, 200, 3, 8)
        assert found["sigma"] == pytest.approx(12, rel=0.2)
        status, headers, body = server.post(as_bytes(image, "PNG"))
        assert (status, headers["Denoise-Model"]) == (200, "broad")
        assert "12" in headers["Denoise-Why"] or "11" in headers["Denoise-Why"]
        assert (images.read_image("answer", body).pages[0] == Denoiser(str(paths[0]))(image)).all()
        assert server.post(as_bytes(image, "PNG"), "/denoise?model=narrow")[1]["Denoise-Model"] == "narrow"
        assert "narrow" in server.refuses(400, clean, "/denoise?model=none")
        status, headers, body = server.post(clean)
        assert (status, headers["Denoise-Model"], body) == (200, "none", clean)
        four = io.BytesIO()
        np.save(four, np.random.default_rng(0).random((64, 64, 4), dtype=np.float32))
        assert "4 channels" in server.refuses(422, four.getvalue())
        loaded = {row["name"] for row in json.loads(server.ask("GET", "/models")[2])["models"] if row["loaded"]}
        assert "mine" not in loaded


def test_memory_is_given_back_after_a_large_image(weights):
    small, large = (as_bytes(noisy_scene(side, side), "PNG") for side in (64, 2000))
    with serving("--model_path", weights, "--keep_minutes", 0.05) as server:
        server.post(small)
        before = machine.used_memory()
        assert server.post(large)[0] == 200
        # The engine keeps its blocks for the next window, and gives them back when none comes. So does the service with
        # the result that it keeps for who saves it.
        wait_for(lambda: machine.used_memory() - before < 100 << 20)


def exported(weights, folder):
    """A folder with the exported network of some weights."""
    assert export_model.main(["--model_path", weights, "--save_dir", folder]) == 0
    return folder


def test_an_exported_model_is_served_too(weights, tmp_path):
    image = noisy_scene(45, 67)
    with serving("--model_dir", exported(weights, tmp_path)) as server:
        status, _, body = server.post(as_bytes(image, "PNG"))
    assert status == 200
    result = images.read_image("answer", body).pages[0].astype(int)
    assert np.abs(result - Denoiser(str(weights), operators.choose()[0])(image)).max() <= 1


def test_an_exported_model_puts_the_known_frequencies_back(tmp_path):
    """The noise is told by what export_model.py wrote about the training."""
    import paddle

    from arch_unet import build_network
    from denoising.inference import checkpoint

    paddle.seed(7)
    network, noise = build_network(n_channel=1, n_feature=4), parse_noise("mri0.3")
    path = tmp_path / "slices.pdparams"
    checkpoint.save_network(path, checkpoint.network_state(network), {**network.options, "noisetype": noise.name})
    undersampled = noise.add(images.to_01(noisy_scene(64, 64, 1)), np.random.default_rng(0))
    sent = io.BytesIO()
    np.save(sent, undersampled)
    with serving("--model_dir", exported(path, tmp_path / "exported")) as server:
        status, _, body = server.post(sent.getvalue())
    assert status == 200, body
    result, denoised = (
        images.read_image("answer", body).pages[0],
        Denoiser(str(path), operators.choose()[0])(undersampled),
    )
    np.testing.assert_allclose(result, noise.restore(undersampled, denoised), atol=1e-4)
    assert np.abs(result - denoised).max() > 0.01


# --- What is refused --------------------------------------------------------------------------------------


def png_of_size(width, height, data=b""):
    """A PNG that claims a size."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_what_is_no_image_is_refused(server, png):
    refused = server.refuses
    assert "no image" in refused(400, b"")
    refused(415, b"no image at all")
    refused(415, b"<svg xmlns='http://www.w3.org/2000/svg'></svg>")
    refused(415, b"%PDF-1.4")
    refused(415, bytes(1000))
    gif = as_bytes(noisy_scene(40, 50), "GIF")
    assert "send PNG" in refused(415, gif)
    assert "cut short" in refused(422, png[: len(png) // 2])
    nan = io.BytesIO()
    np.save(nan, np.full((20, 20, 3), np.nan, np.float32))
    assert "NaN" in refused(422, nan.getvalue())
    pickled = io.BytesIO()
    np.save(pickled, np.array([{}, print], object), allow_pickle=True)
    assert "never loaded" in refused(415, pickled.getvalue())
    five = io.BytesIO()
    np.save(five, np.zeros((20, 20, 5), np.float32))
    assert "5 channels" in refused(422, five.getvalue())
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    webp = io.BytesIO()
    frames[0].save(webp, "WEBP", save_all=True, append_images=frames[1:])
    assert "animation of 2 frames" in refused(422, webp.getvalue())


def test_bombs_are_refused_before_they_are_unpacked(server):
    assert "megapixels" in server.refuses(413, png_of_size(50_000, 50_000, zlib.compress(bytes(10**6), 9)))
    assert "10.0 megapixels" in server.refuses(413, png_of_size(10_000_000, 1))
    # A line of pixels is small, until it is padded for the network.
    assert "16.0 when padded" in server.refuses(413, png_of_size(500_000, 1))
    bomb = io.BytesIO()
    Image.new("L", (3000, 3000)).save(bomb, "TIFF", compression="tiff_adobe_deflate")
    assert len(bomb.getvalue()) < 20_000
    server.refuses(413, bomb.getvalue())
    # Each page is small, all together are not; and a header that promises what is not there.
    stack = io.BytesIO()
    pages = [Image.new("L", (300, 300))] * 20
    pages[0].save(stack, "TIFF", compression="tiff_adobe_deflate", save_all=True, append_images=pages[1:])
    server.refuses(413, stack.getvalue())
    many = io.BytesIO()
    np.save(many, np.zeros((600, 4, 4, 3), np.uint8))
    assert "0.6 when padded" in server.refuses(413, many.getvalue())
    assert "Content-Encoding" in server.refuses(415, zlib.compress(bytes(10**6)), Content_Encoding="gzip")


def test_files_that_keep_a_decoder_busy_are_given_up(server):
    # A valid JPEG of 0.4 megapixels, whose last layer of detail comes over and over again.
    data = as_bytes(np.zeros((600, 640, 3), np.uint8), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    before = server.metrics()["denoise_image_process_deaths_total"]
    start = time.monotonic()
    assert "gives up" in server.refuses(422, data[:last] + data[last:-2] * 50_000 + data[-2:])
    assert time.monotonic() - start < 10
    assert server.metrics()["denoise_image_process_deaths_total"] == before + 1
    # A TIFF whose only page is followed by itself.
    page = struct.pack("<HHHIII", 1, 256, 3, 1, 1, 8)
    assert "circle" in server.refuses(422, b"II*\0" + struct.pack("<I", 8) + page)


def test_large_uploads_are_refused_before_they_are_read(server):
    assert "larger than 1 MB" in server.refuses(413, bytes(1_000_001))
    assert "larger than 1 MB" in server.refuses(413, (bytes(100_000) for _ in range(100)))
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999\r\n"
    assert server.raw(head + b"\r\n", timeout=1).startswith(b"HTTP/1.1 413 ")
    # With Expect, the client has not even begun.
    answer = server.raw(head + b"Expect: 100-continue\r\n\r\n", timeout=1)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"Connection: close" in answer


def test_paths_methods_and_parameters(server, png):
    for path in (
        "/no",
        "/../../etc/passwd",
        "/..%2f..%2fetc%2fpasswd",
        "//etc/passwd",
        "/serve.py",
        "/denoise/",
        "/%00",
    ):
        status, _, text = server.ask("GET", path)
        assert (status, list(json.loads(text))) == (404, ["error"]), path
    for method, path in [
        ("GET", "/denoise"),
        ("POST", "/health"),
        ("DELETE", "/"),
        ("PUT", "/denoise"),
        ("PATCH", "/"),
    ]:
        status, headers, text = server.ask(method, path)
        assert status == 405, (method, path)
        assert headers["Allow"] in ("POST", "GET", "GET, POST")
    for query in (
        "strength=2",
        "strength=-1",
        "strength=nan",
        "strength=",
        "strength=a",
        "strenght=1",
        "strength=1&strength=1",
    ):
        assert "strength" in server.refuses(400, png, f"/denoise?{query}")
    server.refuses(417, png, Expect="a-miracle")


def test_malformed_forms(server, png):
    def form(body, boundary="b"):
        return server.refuses(400, body, Content_Type=f"multipart/form-data; boundary={boundary}")

    part = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + png + b"\r\n"
    assert "one file" in form(png)
    assert "one file" in form(part)  # its end is missing
    assert "one file" in form(part + part + b"--b--\r\n")
    assert "one file" in form(b"--b\r\n" * 100_000)
    assert "malformed" in form(b"--b\r\n\r\n" + png + b"\r\n--b--\r\n")
    assert "malformed" in form(b"--b\r\nContent-Disposition: form-data\r\n--b--")
    encoded = part.replace(b"\r\n\r\n", b"\r\nContent-Transfer-Encoding: base64\r\n\r\n", 1)
    assert "malformed" in form(encoded + b"--b--\r\n")
    assert "boundary" in form(part + b"--b--", boundary="")
    assert "form-data" in server.refuses(400, part, Content_Type="multipart/mixed; boundary=b")
    assert "form-data" in server.refuses(400, part, Content_Type="multipart/form-data")


def test_what_is_no_http(server):
    for request in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50),  # TLS
        b"hello\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nno number\r\nabc\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\nabc\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 1000 + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nA\x00B: c\r\n\r\n",
    ):
        answer = server.raw(request)
        assert re.match(rb"HTTP/1\.[01] 400 ", answer), (request[:60], answer[:200])
        assert list(json.loads(answer.partition(b"\r\n\r\n")[2])) == ["error"]
    # More than was announced is taken for a second request.
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n"
    answer = server.raw(head + b"hello", b"and more\r\n\r\n", pause=0.3)
    assert re.findall(rb"HTTP/1\.[01] (\d+) ", answer) == [b"415", b"400"]


def test_slow_clients_are_cut_off(server, png, monkeypatch):
    monkeypatch.setattr(connections, "LINGER_SECONDS", 0.5)
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(png)
    start = time.monotonic()
    answer = server.raw(head + png[:100])  # less than was announced
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert 2 <= time.monotonic() - start < 20


def test_broken_files_of_all_kinds(server, tmp_path):
    """Cut off anywhere, and with bytes changed anywhere: an image or a 4xx, and never more than a line of it."""
    found = set()
    for path in kinds_of_files(tmp_path):
        for data in list(broken_copies(path.read_bytes(), 400))[::25]:
            status, _, body = server.post(data)
            found.add(status)
            assert status in (200, 400, 413, 415, 422), (path, status, body)
    assert found > {200, 415, 422}


# --- Many at a time ---------------------------------------------------------------------------------------


def test_what_waits_together_is_computed_together(weights):
    pictures = [noisy_scene(64, 96, 1 + 2 * (i % 2), seed=i) for i in range(24)]
    denoise = Denoiser(str(weights))
    with serving("--model_path", weights, "--max_wait_ms", 300) as server, ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(server.post, [as_bytes(picture, "PNG") for picture in pictures]))
        for picture, (status, _, body) in zip(pictures, answers, strict=True):
            assert status == 200
            assert (images.read_image("answer", body).pages[0] == denoise(picture)).all()
        metrics = server.metrics()
    assert metrics["denoise_batch_windows_sum"] == 24
    assert metrics["denoise_batch_windows_count"] <= 12
    assert metrics['denoise_requests_total{what="denoise",status="200"}'] == 24
    assert metrics["denoise_request_seconds_count"] == 24
    assert metrics['denoise_request_seconds_bucket{le="+Inf"}'] == 24
    assert metrics["denoise_megapixels_total"] == pytest.approx(24 * 64 * 96 / 1e6)


@pytest.fixture(scope="module")
def slow_server():
    """The network that ships, and room for two."""
    flags = ("--max_queue", 2, "--max_batch", 1, "--max_connections", 20, "--timeout", 20, "--keep_mb", 0)
    with serving("--model_path", ROOT / "best_model.pdparams", *flags) as server:
        yield server


def test_overload_is_answered_with_503_and_all_others_succeed(slow_server):
    data = as_bytes(noisy_scene(256, 256), "PNG")
    expected = slow_server.post(data)[2]
    before = slow_server.metrics()
    latencies = []

    def post(_):
        start = time.monotonic()
        status, headers, body = slow_server.post(data)
        if status == 503:
            latencies.append(time.monotonic() - start)
            assert int(headers["Retry-After"]) >= 1
            assert "try again" in json.loads(body)["error"]
        else:
            assert body == expected
        return status

    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(post, range(36)))
    after = slow_server.metrics()
    assert set(found) == {200, 503}
    for status in (200, 503):
        name = f'denoise_requests_total{{what="denoise",status="{status}"}}'
        assert after[name] - before.get(name, 0) == found.count(status)
    assert np.median(latencies) < 0.5
    assert slow_server.post(data)[::2] == (200, expected)


def test_work_for_a_client_that_has_gone_is_dropped(slow_server):
    # 16 windows of 352 pixels or fewer: without a client, most of them are never computed.
    data = as_bytes(noisy_scene(1200, 1200), "JPEG")
    with socket.create_connection(("127.0.0.1", slow_server.port)) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
        wait_for(lambda: slow_server.metrics()["denoise_queue"] == 1)
    wait_for(lambda: slow_server.metrics()["denoise_queue"] == 0, 1)
    # Another one leaves in the middle of its upload.
    with socket.create_connection(("127.0.0.1", slow_server.port)) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9999\r\n\r\nnot all")
        wait_for(lambda: slow_server.metrics()["denoise_held_bytes"] == 7)
    wait_for(lambda: slow_server.metrics()['denoise_requests_total{what="denoise",status="gone"}'] == 2, 5)
    assert slow_server.metrics()["denoise_held_bytes"] == 0
    assert not [name for name in slow_server.metrics() if 'status="500"' in name]


def test_connections_have_a_limit_and_idle_ones_an_end(slow_server, monkeypatch):
    monkeypatch.setattr(connections, "HEADER_SECONDS", 2)
    question = b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    start = time.monotonic()
    idle = [socket.create_connection(("127.0.0.1", slow_server.port)) for _ in range(20)]
    try:
        for connection in idle:
            connection.sendall(b"GET / HTTP/1.1\r\nX: ")
        wait_for(lambda: len(slow_server.service.connections) == 20)
        answer = slow_server.raw(question)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"too many connections" in answer

        def trickles():
            # A byte of a header now and then keeps no connection open for long.
            with contextlib.suppress(OSError):
                idle[0].sendall(b"a")
            return slow_server.raw(question).startswith(b"HTTP/1.1 200")

        wait_for(trickles)
        assert time.monotonic() - start >= 2
        wait_for(lambda: not slow_server.service.connections)
    finally:
        for connection in idle:
            connection.close()


# --- Start and stop ---------------------------------------------------------------------------------------


def test_a_stop_finishes_what_is_in_work_and_a_second_one_ends_at_once():
    data = as_bytes(noisy_scene(384, 384), "PNG")
    flags = ("--model_path", ROOT / "best_model.pdparams", "--stop_timeout", 300)
    with serving(*flags, kind=ServerProcess) as server, ThreadPoolExecutor(1) as pool:
        kept = [http.client.HTTPConnection("127.0.0.1", server.port, timeout=30) for _ in range(2)]
        for connection in kept:
            connection.connect()
        unfinished = socket.create_connection(("127.0.0.1", server.port))
        unfinished.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9999\r\n\r\nnever the rest")
        running = pool.submit(server.post, data)
        wait_for(lambda: server.metrics()["denoise_queue"] == 1)
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: any("stopping" in line for line in server.errors))
        # Who is connected already is told; nobody else comes in.
        for connection, method, path in zip(kept, ("GET", "POST"), ("/health", "/denoise"), strict=True):
            connection.request(method, path, body=data if method == "POST" else None)
            answer = connection.getresponse()
            assert (answer.status, answer.headers["Connection"]) == (503, "close")
            answer.read()
        with pytest.raises(OSError, match="refused"):
            server.health()
        status, _, body = running.result()
        assert status == 200
        assert images.read_image("answer", body).pages[0].shape == (384, 384, 3)
        assert server.process.poll() is None, "it waits for the upload"
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(20) == 0
        unfinished.close()


def test_a_stop_has_an_end(weights):
    with serving("--model_path", weights, "--stop_timeout", 0.5) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9999\r\n\r\nnever the rest")
            wait_for(lambda: server.service.held == 14)
            start = time.monotonic()
            server.service.stop()
            server.thread.join(30)
            assert 0.5 <= time.monotonic() - start < 20


def test_a_decoder_that_dies_is_replaced(server, png):
    """An image process is killed from outside, as the system does when memory ends."""
    before = server.metrics()["denoise_image_process_deaths_total"]
    decoders = [process.popen.pid for process in list(server.processes.idle.queue)]
    assert len(decoders) == 2
    for pid in decoders:
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda pid=pid: ") Z " in Path(f"/proc/{pid}/stat").read_text())
    for _ in range(4):
        assert server.post(png)[0] == 200
    assert server.metrics()["denoise_image_process_deaths_total"] >= before + 1


def test_image_processes_find_what_the_service_finds(png, tmp_path, monkeypatch):
    """PYTHONPATH may name the place where numpy itself lies."""
    (tmp_path / "sitecustomize.py").write_text(f"open({str(tmp_path / 'seen')!r}, 'w').close()")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    processes = ImageProcesses(1, 10**6)
    try:
        assert processes.call("decode", png, limit=60)[0].format == "PNG"
    finally:
        processes.end()
    assert (tmp_path / "seen").exists()


def test_mistakes_at_the_start_are_one_line(server, weights, tmp_path):
    (tmp_path / "garbage.pdparams").write_bytes(b"no weights")
    flags = {"--model_path": weights, "--port": 0}
    for changed, words in (
        ({"--port": server.port}, ["--port", "in use"]),
        ({"--host": "no.such.host.invalid"}, ["--host: no.such.host.invalid"]),
        ({"--host": "203.0.113.7"}, ["--host", "203.0.113.7"]),
        ({"--host": ""}, ["--host"]),
        ({"--model_path": tmp_path / "nowhere"}, ["--model_path", "nowhere"]),
        ({"--model_path": tmp_path / "garbage.pdparams"}, ["garbage.pdparams"]),
        ({"--model_dir": tmp_path}, ["--model_path", "one of"]),
        ({"--models": tmp_path}, ["--model_path", "one of"]),
        ({"--precision": "int8"}, ["--precision", "bf16"]),
        ({"--runtime": "openvino"}, ["--runtime"]),
    ):
        with pytest.raises(cli.UserError) as refusal:
            serve.main([part for pair in {**flags, **changed}.items() for part in pair])
        for word in words:
            assert word in str(refusal.value)
            assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("noisetype", ["mystery9", 5, ["gauss25"]])
def test_a_model_of_unknown_noise_is_refused(noisetype):
    denoiser = SimpleNamespace(n_input=3, n_channel=3, options={"noisetype": noisetype})
    with pytest.raises(cli.UserError, match="--model_dir: unknown noise"):
        models.OneModel("exported", denoiser, "--model_dir")


def test_without_aiohttp_it_is_one_line(weights, tmp_path):
    (tmp_path / "aiohttp.py").write_text("raise ImportError(name='aiohttp')")
    result = run_script("tools/serve.py", "--model_path", weights, PYTHONPATH=str(tmp_path))
    assert_user_error(result, "aiohttp", "pip install")


# --- The client -------------------------------------------------------------------------------------------


def send(*flags):
    """What tools/serve_client.py ends with."""
    return serve_client.main([*map(str, flags)])


def test_the_client_denoises_a_tree(server, weights, tmp_path, capsys):
    for name in ("a.png", "deep/b.jpg", "deep/broken.png"):
        save(tmp_path / "in" / name, noisy_scene(40, 50))
    (tmp_path / "in" / "deep" / "broken.png").write_bytes(b"no image")
    flags = ("--image_path", tmp_path / "in", "--url", server.url, "--save_dir", tmp_path / "out")
    assert send(*flags) == 1
    errors = capsys.readouterr().err
    assert "broken.png" in errors
    assert "1 of 3" in errors
    found = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*"))
    assert found == ["a_denoise.png", "deep/b_denoise.jpg"]
    denoised = images.read_image(tmp_path / "out" / "a_denoise.png").pages[0]
    assert (denoised == Denoiser(str(weights))(noisy_scene(40, 50))).all()
    with pytest.raises(cli.UserError, match=r"a_denoise\.png exists; --overwrite"):
        send(*flags)


def test_the_client_keeps_results_apart_and_sources_whole(server, tmp_path):
    paths = [save(tmp_path / folder / "a.png", noisy_scene(40, 50)) for folder in ("one", "two")]
    with pytest.raises(cli.UserError, match=r"--image_path: .* would both become"):
        send("--image_path", tmp_path / "*" / "a.png", "--url", server.url, "--save_dir", tmp_path / "out")
    source = save(paths[0].with_name("a_denoise.png"), noisy_scene(30, 30))
    before = source.read_bytes()
    with pytest.raises(cli.UserError, match="is itself an image to denoise"):
        send("--image_path", source.parent, "--url", server.url, "--save_dir", source.parent, "--overwrite")
    assert source.read_bytes() == before


def test_the_client_waits_until_there_is_room(slow_server, tmp_path):
    for index in range(6):
        save(tmp_path / "in" / f"{index}.png", noisy_scene(128, 128, seed=index))
    flags = ("--image_path", tmp_path / "in", "--url", slow_server.url, "--save_dir", tmp_path / "out", "--jobs", 6)
    refused = 'denoise_requests_total{what="denoise",status="503"}'
    before = slow_server.metrics().get(refused, 0)
    assert send(*flags) == 0
    assert slow_server.metrics()[refused] > before
    assert len(list((tmp_path / "out").iterdir())) == 6


def test_the_client_s_mistakes_are_one_line(server, tmp_path):
    image = save(tmp_path / "a.png", noisy_scene(40, 50))
    text = tmp_path / "text.png"
    text.write_text("no image")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{unused.getsockname()[1]}"
        for changed, words in (
            ({"--url": closed}, ["--url", closed, "refused"]),
            ({"--url": f"{server.url}/elsewhere"}, ["--url", "elsewhere"]),
            ({"--image_path": text}, ["text.png", "no image"]),
            ({"--image_path": tmp_path / "nowhere.png"}, ["--image_path"]),
        ):
            flags = {"--image_path": image, "--url": server.url, "--save_dir": tmp_path / "o", **changed}
            with pytest.raises(cli.UserError) as refusal:
                send(*[part for pair in flags.items() for part in pair])
            for word in words:
                assert word in str(refusal.value)
                assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("url", [
    "http://[::1", "http://[zz]:80", "http://host:99999", "http://host:x", "http://host:-1", "http://", "http://:80",
    "", "ftp://127.0.0.1", "127.0.0.1:8000", "http://a b", "http://127.0.0.1/a b", "http://a\nb", "http://a\tb", "http://\x00",
    "http://a..b", f"http://{'a' * 300}", "http://127.0.0.1:1/\u00e9",
])  # fmt: skip
def test_addresses_that_are_none(url, tmp_path):
    image = save(tmp_path / "a.png", noisy_scene(40, 50))
    with pytest.raises(cli.UserError, match="^--url: "):
        send("--image_path", image, "--url", url, "--save_dir", tmp_path / "out")


def test_an_address_that_is_none_ends_with_one_line(tmp_path):
    image = save(tmp_path / "a.png", noisy_scene(40, 50))
    result = run_script("tools/serve_client.py", "--image_path", image, "--url", "http://[::1", "--save_dir", tmp_path)
    assert_user_error(result, "--url: http://[::1: ")
