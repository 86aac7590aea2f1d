"""What the service answers: the image that predict.py writes, in each format, by each model, however it was sent."""

import contextlib
import http.client
import io
import json

import numpy as np
import pytest
from PIL import Image

import export_model
import predict
from conftest import noisy_scene, tiny_network
from denoising import machine
from denoising.engine import operators
from denoising.files import images
from denoising.imaging import pixels
from denoising.imaging.noise import parse_noise
from denoising.imaging.pixels import Picture, to_01
from denoising.inference import auto, checkpoint
from denoising.inference.denoiser import Denoiser

pytest.importorskip("aiohttp")

import servers
from servers import as_bytes, kinds_of_files, serving, wait_for

server, png = servers.server, servers.png  # fixtures


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
    data = as_bytes(noisy_scene(40, 50), "PNG")
    gamma = bytes.fromhex("00000004 67414d41 000186a0 31e8965f")  # the chunk that says that light is linear
    body = server.post(data[:33] + gamma + data[33:], "/denoise?strength=0&format=view")[2]
    assert gamma in body


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


def linear(srgb):
    """Light, of what sRGB's curve has made of it."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def test_light_of_an_exr_is_not_shown_too_dark(server):
    light = np.linspace(-0.1, 1.2, 2000, dtype=np.float32).reshape(40, 50, 1).repeat(3, axis=2)
    data = images.encode("a.exr", light)
    for kind, step in (("png", 65535), ("view", 255), ("jpeg", 40)):
        found = images.read_image("answer", server.post(data, f"/denoise?strength=0&format={kind}")[2]).pages[0]
        np.testing.assert_allclose(linear(pixels.to_01(found)), np.clip(light, 0, 1), atol=1e-4 + 1.2 / step)
    found = images.read_image("answer", server.post(data, "/denoise?strength=0&format=tiff")[2]).pages[0]
    np.testing.assert_array_equal(found, light)


@pytest.mark.parametrize("suffix", [".tif", ".exr"])
def test_colours_multiplied_by_alpha_are_divided_where_the_format_wants_them_so(server, suffix):
    """As renderers write them. A PNG with the same numbers would be too dark where it is half transparent."""
    share = np.tile(np.linspace(0.2, 1, 50, dtype=np.float32), (40, 1))
    bright = noisy_scene(40, 50).astype(np.float32) / 255
    like = Picture([], alpha=[share], tiff={"alpha": 1})
    data = images.encode(f"a{suffix}", bright * share[..., None], like)
    for kind in ("png", "tiff"):
        found = images.read_image("answer", server.post(data, f"/denoise?strength=0&format={kind}")[2])
        (page,), (alpha,) = found.pages, found.alpha
        stays = kind == "tiff" and suffix == ".tif"
        assert found.tiff.get("alpha", 2) == (1 if stays else 2)
        found, expected = pixels.to_01(page), bright * share[..., None] if stays else bright
        found = linear(found) if (kind, suffix) == ("png", ".exr") else found
        np.testing.assert_allclose(found, expected, atol=1e-3)
        np.testing.assert_allclose(pixels.to_01(alpha), share, atol=1e-3)


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


# --- By which model ---------------------------------------------------------------------------------------


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
    undersampled = noise.add(to_01(noisy_scene(64, 64, 1)), np.random.default_rng(0))
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
