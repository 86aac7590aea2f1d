"""The service with many clients at a time, and its start and stop: whatever happens, it goes on serving."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import serve
from conftest import ROOT, assert_user_error, noisy_scene, run_script
from denoising import cli
from denoising.files import images
from denoising.inference.denoiser import Denoiser
from denoising.serving.image_process import ImageProcesses

pytest.importorskip("aiohttp")

import servers
from servers import ServerProcess, as_bytes, serving, wait_for

from denoising.serving import connections, models

server, slow_server, png = servers.server, servers.slow_server, servers.png  # fixtures


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


@pytest.mark.parametrize("name", ["auto", "none"])
def test_a_model_is_not_called_as_answers_without_one_are(name, weights, tmp_path):
    shutil.copy(weights, tmp_path / f"{name}.pdparams")
    for flags in (("--models", tmp_path), ("--model_path", tmp_path / f"{name}.pdparams")):
        with pytest.raises(cli.UserError, match=f"^{flags[0]}: .*{name}.pdparams: .* rename the file"):
            serve.load(serve.get_parser().parse_args(flags), None)


@pytest.mark.parametrize("noisetype", ["mystery9", 5, ["gauss25"]])
def test_a_model_of_unknown_noise_is_refused(noisetype):
    denoiser = SimpleNamespace(n_input=3, n_channel=3, options={"noisetype": noisetype})
    with pytest.raises(cli.UserError, match="--model_dir: unknown noise"):
        models.OneModel("exported", denoiser, "--model_dir")


def test_without_aiohttp_it_is_one_line(weights, tmp_path):
    (tmp_path / "aiohttp.py").write_text("raise ImportError(name='aiohttp')")
    result = run_script("tools/serve.py", "--model_path", weights, PYTHONPATH=str(tmp_path))
    assert_user_error(result, "aiohttp", "pip install")
