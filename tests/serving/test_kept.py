"""What the network made of an image is kept for a while: other amounts and formats follow from it bit for bit."""

import numpy as np
import pytest

import predict
from conftest import noisy_scene, tiny_network
from denoising import machine
from denoising.files import images
from denoising.inference import checkpoint
from denoising.inference.denoiser import Denoiser
from denoising.serving import kept

pytest.importorskip("aiohttp")

from servers import as_bytes, kinds_of_files, serving, wait_for

AMOUNTS = ((1, 0, 1), (0.6, 0, 1), (0.8, 0.5, 0.3))


@pytest.fixture
def taken():
    """What a model is taken for, as far as it matters here."""

    class Network:
        n_channel = 3

    class Taken:
        network = Network()

    return Taken()


def fill(store, key, taken, value=0, side=10):
    """Keeps an output of one array; returns whether there was room."""
    page = np.zeros((side, side, 3), np.uint8)
    with store.place(key, taken, [page]) as output:
        if output:
            list(output.pieces([(np.s_[:, :], np.full(page.shape, value, np.float32))], page.shape))
    return output is not None


def test_what_was_noted_down_is_handed_out_in_rows(taken):
    store, image = kept.Kept(10_000_000, 60), np.random.default_rng(0).random((600, 70, 3), np.float32)
    pieces = [(np.s_[:200, :], image[:200]), (np.s_[200:, :40], image[200:, :40]), (np.s_[200:, 40:], image[200:, 40:])]
    with store.place("key", taken, [image]) as output:
        assert len(list(output.pieces(pieces, image.shape))) == 3
    for _ in range(2):
        again, whole = store.get("key"), np.zeros_like(image)
        for place, piece in again.pieces(None, image.shape):
            whole[place] = piece
        assert (whole == image).all()
    assert (store.hits, store.get("other"), store.bytes) == (2, None, image.nbytes)


def test_the_bytes_are_bounded_and_the_longest_unused_goes_first(taken):
    store = kept.Kept(3 * 1200, 60)
    for key in "abc":
        assert fill(store, key, taken)
    store.get("a")
    assert fill(store, "d", taken)
    assert [key for key in "abcd" if store.get(key)] == ["a", "c", "d"]
    assert not fill(store, "large", taken, side=20)
    assert store.bytes == 3600
    with store.place("e", taken, [np.zeros((10, 10, 3))]), store.place("f", taken, [np.zeros((10, 10, 3))]):
        assert (store.bytes, len(store.entries)) == (3600, 1), "what is being computed counts"
        with store.place("g", taken, [np.zeros((20, 10, 3))]) as output:
            assert output is None
    assert not fill(kept.Kept(0, 60), "a", taken)


def test_what_fails_is_not_kept(taken):
    store = kept.Kept(10_000, 60)
    with pytest.raises(KeyError), store.place("a", taken, [np.zeros((10, 10, 3))]):
        raise KeyError
    assert (store.get("a"), store.bytes) == (None, 0)


def test_age_and_short_memory_drop_it(taken, monkeypatch):
    store = kept.Kept(10_000, 60)
    fill(store, "a", taken)
    store.sweep()
    assert store.get("a")
    now = kept.time.monotonic()
    monkeypatch.setattr(kept.time, "monotonic", lambda: now + 61)
    fill(store, "b", taken)
    store.sweep()
    assert (store.get("a"), bool(store.get("b"))) == (None, True)
    monkeypatch.setattr(machine, "free_memory", lambda: 256 << 20)
    assert not fill(store, "c", taken)
    store.sweep()
    assert store.bytes == 0


def test_all_amounts_and_formats_come_from_what_is_kept(weights, tmp_path, monkeypatch):
    """Colour, grey, 16 bits, several pages, floats: the second answer is predict.py's file, without the network."""
    (tmp_path / "in").mkdir()
    paths = kinds_of_files(tmp_path / "in")
    for number, amounts in enumerate(AMOUNTS):
        flags = [f"--{name}={value}" for name, value in zip(("strength", "detail", "chroma"), amounts, strict=True)]
        written = ("--model_path", weights, "--save_dir", tmp_path / str(number), "--keep_format")
        assert predict.main(["--image_path", tmp_path / "in", *written, *flags]) == 0
    with serving("--model_path", weights) as server:
        first = {path: server.post(path.read_bytes(), "/denoise?format=view")[0] for path in paths}
        assert set(first.values()) == {200}
        monkeypatch.setattr(server.service.pipeline.batcher, "run", None)  # a call would fail
        for path in paths:
            for number, amounts in enumerate(AMOUNTS):
                status, headers, body = server.post(
                    path.read_bytes(), "/denoise?strength={}&detail={}&chroma={}".format(*amounts)
                )
                assert (status, headers["Denoise-Model"]) == (200, "tiny")
                expected = tmp_path / str(number) / f"{path.stem}_denoise{path.suffix}"
                assert body == expected.read_bytes(), (path, amounts)
        noisy = noisy_scene(45, 67)
        deep = images.read_image("answer", server.post(as_bytes(noisy, "PNG"), "/denoise?format=tiff")[2]).pages[0]
        assert (deep == Denoiser(str(weights))(noisy.astype(np.uint16) * 257)).all()
        assert server.metrics()["denoise_kept_hits_total"] == len(paths) * len(AMOUNTS) + 1


def test_a_grey_network_is_kept_channel_by_channel(tmp_path):
    from arch_unet import build_network

    network = build_network(n_channel=1, n_feature=4)
    path = tmp_path / "grey.pdparams"
    checkpoint.save_network(path, checkpoint.network_state(network), {**network.options, "noisetype": "gauss25"})
    noisy = noisy_scene(50, 40)
    with serving("--model_path", path) as server:
        for strength in (1, 0.4):
            body = server.post(as_bytes(noisy, "PNG"), f"/denoise?strength={strength}")[2]
            assert (images.read_image("answer", body).pages[0] == Denoiser(str(path), strength=strength)(noisy)).all()
        assert server.metrics()["denoise_kept_hits_total"] == 1


def test_models_are_kept_apart(tmp_path, monkeypatch):
    for number, name in enumerate(("one", "two")):
        network = tiny_network(number)
        options = {**network.options, "noisetype": "gauss25"}
        checkpoint.save_network(tmp_path / f"{name}.pdparams", checkpoint.network_state(network), options)
    data = as_bytes(noisy_scene(40, 50), "PNG")
    with serving("--models", tmp_path) as server:
        answers = [server.post(data, f"/denoise?model={name}")[2] for name in ("one", "two", "one")]
        assert answers[0] == answers[2] != answers[1]
        assert server.metrics()["denoise_kept_hits_total"] == 1


def test_what_is_kept_is_told_and_given_back(weights):
    data = as_bytes(noisy_scene(400, 500), "PNG")
    with serving("--model_path", weights, "--keep_minutes", 0.02) as server:
        assert server.post(data)[0] == 200
        assert server.metrics()["denoise_kept_bytes"] in (0, 400 * 500 * 12)
        wait_for(lambda: server.metrics()["denoise_kept_bytes"] == 0)
    with serving("--model_path", weights, "--keep_mb", 0) as server:
        assert server.post(data)[2] == server.post(data)[2]
        assert (server.metrics()["denoise_kept_bytes"], server.metrics()["denoise_kept_hits_total"]) == (0, 0)
