"""What the service refuses, in one line each: no images, bombs, wrong requests, and clients that are too slow."""

import io
import json
import re
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from conftest import broken_copies, noisy_scene

pytest.importorskip("aiohttp")

import servers
from servers import as_bytes, kinds_of_files

from denoising.serving import connections

server, png = servers.server, servers.png  # fixtures


def png_of_size(width, height, data=b""):
    """A PNG that claims a size."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_what_is_no_image_is_refused(server, png):
    refused = server.refuses
    assert "no image: the file is empty" in refused(400, b"")
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


def test_pages_of_other_sites_are_refused_what_costs_work(server, png):
    for path in ("/", "/denoise", "/analyse", "/judge"):
        assert "another site" in server.refuses(403, png, path, Sec_Fetch_Site="cross-site", Content_Type="text/plain")
    assert server.ask("DELETE", "/jobs/a", headers={"Sec-Fetch-Site": "cross-site"})[0] == 403
    assert server.ask("GET", "/", headers={"Sec-Fetch-Site": "cross-site"})[0] == 200  # a link to the page
    for own in ("same-origin", "none"):
        assert server.post(png, Sec_Fetch_Site=own)[0] == 200


def test_a_name_that_another_site_leads_here_is_refused(server, png):
    """Its page could read all answers: to a browser, they come from its own site."""
    browser = {"Accept-Language": "en"}
    for path in ("/", "/models", "/metrics", "/health", "/openapi.json", "/nowhere"):
        status, _, text = server.ask("GET", path, headers=browser | {"Host": "evil.example:8000"})
        assert (status, list(json.loads(text))) == (403, ["error"])
        assert b"--allowed_hosts" in text
    assert "evil.example" in server.refuses(403, png, Host="evil.example", Accept_Language="en")
    assert server.post(png, Host="any.example")[0] == 200  # a program's
    for own in (
        "localhost",
        "LOCALHOST.:80",
        "app.localhost:8000",
        "127.0.0.1",
        "192.168.1.20:8000",
        "[::1]:8000",
        "[::1]",
        "",
    ):
        assert server.ask("GET", "/models", headers=browser | {"Host": own})[0] == 200, own
    for other in ("localhost.evil.example", "127.0.0.1.evil.example", "notlocalhost", "[evil]", "::1:x", "1.2.3"):
        assert server.ask("GET", "/models", headers=browser | {"Host": other})[0] == 403, other
    assert server.raw(b"GET /health HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.0 200 ")  # without any Host


def test_names_that_are_allowed(weights):
    with servers.serving(
        "--model_path", weights, "--allowed_hosts", "denoise.example.org", "Other.Example:8443"
    ) as server:
        for host, status in (("denoise.example.org", 200), ("other.example", 200), ("a.example.org", 403)):
            assert server.ask("GET", "/models", headers={"Host": host})[0] == status, host


def test_where_other_machines_reach_the_service_any_name_is_right_unless_some_are_given(weights):
    for flags, status in (((), 200), (("--allowed_hosts", "a.example"), 403)):
        with servers.serving("--model_path", weights, "--host", "0.0.0.0", *flags) as server:
            assert server.ask("GET", "/models", headers={"Host": "b.example"})[0] == status


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
