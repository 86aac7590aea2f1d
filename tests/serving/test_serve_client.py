"""tools/serve_client.py: a tree of images goes through the service, and each mistake is one line."""

import http.server
import socket
import threading

import pytest

import serve_client
from conftest import assert_user_error, noisy_scene, run_script, save
from denoising import cli
from denoising.files import images
from denoising.inference.denoiser import Denoiser

pytest.importorskip("aiohttp")

import servers

server, slow_server = servers.server, servers.slow_server  # fixtures


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
            ({"--url": f"{server.url}/?strength=0.5"}, ["--url", "--strength"]),
            ({"--image_path": text}, ["text.png", "no image"]),
            ({"--image_path": tmp_path / "nowhere.png"}, ["--image_path"]),
        ):
            flags = {"--image_path": image, "--url": server.url, "--save_dir": tmp_path / "o", **changed}
            with pytest.raises(cli.UserError) as refusal:
                send(*[part for pair in flags.items() for part in pair])
            for word in words:
                assert word in str(refusal.value)
                assert "\n" not in str(refusal.value)


def test_name_and_password_of_the_address_are_sent(tmp_path):
    class Proxy(http.server.BaseHTTPRequestHandler):
        """Asks for a password, and hands back what it is sent."""

        def do_GET(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))) or b'{"status": "ok"}'
            known = self.headers["Authorization"] == "Basic bmFtZTpwQHNzOncjcmQ="  # name:p@ss:w#rd
            self.send_response(200 if known else 401)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

    image = save(tmp_path / "a.png", noisy_scene(40, 50))
    with http.server.HTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        host, flags = f"127.0.0.1:{proxy.server_port}", ("--image_path", image, "--save_dir", tmp_path / "out")
        with pytest.raises(cli.UserError, match="the answer is 401 Unauthorized"):
            send(*flags, "--url", f"http://{host}")
        assert send(*flags, "--url", f"http://name:p%40ss%3Aw%23rd@{host}/denoise") == 0
        proxy.shutdown()
    assert (tmp_path / "out" / "a_denoise.png").read_bytes() == image.read_bytes()


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
