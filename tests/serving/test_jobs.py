"""The service's jobs: what is told of one, its end and its cancelling, and the interface that describes them."""

import base64
import contextlib
import http.client
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from conftest import ROOT, noisy_scene
from denoising.files import images
from denoising.imaging import trust
from denoising.imaging.noise_analysis import analyse
from denoising.inference.denoiser import Denoiser
from denoising.inference.estimate import removed_of_drawn
from denoising.serving.jobs import Job

pytest.importorskip("aiohttp")

import servers
from servers import as_bytes, serving, wait_for

from denoising.serving import openapi, pipeline, service, uploads

server, slow_server, png = servers.server, servers.slow_server, servers.png  # fixtures


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


def test_a_job_is_cancelled_while_its_file_is_written(server, png, monkeypatch):
    processes = server.service.pipeline.processes
    call = processes.call

    def cancelling(name, *arguments, limit):
        if name == "encode":
            assert server.ask("DELETE", "/jobs/c")[0] == 204
        return call(name, *arguments, limit=limit)

    monkeypatch.setattr(processes, "call", cancelling)
    assert server.refuses(409, png, "/denoise?job=c") == "the job was cancelled"


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
