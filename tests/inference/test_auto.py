"""Which weights are taken for which noise."""

from types import SimpleNamespace

import numpy as np
import pytest

import predict
from arch_unet import build_network
from conftest import noisy_scene, refusal, save, scene, tiny_network
from denoising.cli import UserError
from denoising.files import images
from denoising.imaging.noise import parse_noise
from denoising.imaging.pixels import span_of
from denoising.imaging.second_look import no_more_than_noise
from denoising.inference import auto, checkpoint, prediction
from denoising.inference.auto import Shelf, Spread, Weights, fitting
from denoising.inference.denoiser import Denoiser


def weights_of(name, noise, n_channel=3, numbers=9):
    return Weights(name, None, parse_noise(noise), n_channel, n_channel, numbers)


ALL = [
    weights_of("best", "gauss25"), weights_of("other", "gauss25"), weights_of("broad", "gauss5_50"),
    weights_of("grey", "gauss25", 1), weights_of("photo", "camera"), weights_of("light", "camera", numbers=3),
    weights_of("photons", "poisson30"),
]  # fmt: skip

LIGHT = [weights_of("light_broad", "gauss5_50", numbers=3), *ALL]


def taken(
    kind,
    sigma=10.0,
    peak=0.0,
    channels=3,
    fast=False,
    able=ALL,
    certainty="sure",
    shared=False,
    little=False,
    clipped=0.0,
):
    analysis = SimpleNamespace(
        kind=kind,
        sigma=sigma,
        peak=peak,
        certainty=certainty,
        channels_share=shared,
        is_nearly_white=little,
        clipped=clipped,
    )
    found = fitting(able, analysis, channels, fast)
    return found and found.name


def test_each_noise_gets_its_weights():
    assert taken("correlated") == "photo"
    assert taken("correlated", fast=True) == "light"
    assert [taken("gauss", sigma) for sigma in (3, 12, 23, 25, 26.5, 28, 70)] == [
        "broad", "broad", "broad", "best", "best", "broad", "broad"
    ]  # fmt: skip
    assert taken("gauss", 25, channels=1) == "grey"
    # The light weights are for a range alone; beyond it, too, they are taken if asked for.
    assert [taken("gauss", sigma, fast=True, able=LIGHT) for sigma in (3, 12, 25, 70)] == ["light_broad"] * 4
    able = [*ALL, LIGHT[0]]
    assert [taken("gauss", sigma, able=able) for sigma in (3, 12, 25, 70)] == ["broad", "broad", "best", "broad"]
    # Networks for colours would take noise that is the same in all channels for a part of the image.
    assert [taken("gauss", sigma, channels=1, fast=True, able=LIGHT) for sigma in (12, 25)] == ["grey"] * 2
    assert taken("poisson", 20, 29, channels=1) == "grey"
    grey_broad = weights_of("grey_broad", "gauss5_50", 1, numbers=3)
    able = [grey_broad, *ALL]
    assert [taken("gauss", sigma, channels=1, able=able) for sigma in (12, 25)] == ["grey_broad", "grey"]
    assert taken("gauss", 25, channels=1, able=able, fast=True) == "grey_broad"
    assert taken("poisson", 20, 29, channels=1, able=able) == "grey_broad"
    assert taken("gauss", 12, channels=1, able=ALL[:3]) == "broad"
    assert taken("gauss", 25, fast=True) == "best"
    assert taken("poisson", 20, 29, fast=True, able=LIGHT) == "photons"
    assert [taken("poisson", 20, peak) for peak in (10, 29, 33, 60)] == ["broad", "photons", "photons", "broad"]
    able = [weights_of("few_or_many", "poisson5_50"), *ALL]
    assert [taken("poisson", 20, peak, able=able) for peak in (2, 3, 29, 90, 120)] == [
        "broad", "few_or_many", "few_or_many", "few_or_many", "broad"
    ]  # fmt: skip
    # Where none are for it, those that come next; where there are none at all, nothing.
    assert taken("correlated", able=ALL[:4]) == "broad"
    assert taken("gauss", 12, able=[ALL[0]]) == "best"
    assert taken("gauss", 12, able=[]) is None
    # Of white noise that was smoothed a little those for white noise know more; of a grey image those for cameras.
    assert [taken("correlated", channels=channels, little=True) for channels in (3, 1)] == ["broad", "photo"]
    # White noise that the channels share is none that the weights for white noise know.
    assert [taken(kind, 15, shared=True) for kind in ("gauss", "poisson")] == ["photo"] * 2
    assert taken("gauss", 15) == taken("gauss", 15, shared=True, able=ALL[:4]) == "broad"
    assert taken("gauss", 25, channels=1, shared=True) == "grey"
    # Noise that texture may hide is a camera's, if any.
    assert taken("none") is taken("none", certainty="likely") is taken("none", able=ALL[:4], certainty="guess") is None
    assert taken("none", certainty="guess") == "photo"
    assert taken("none", certainty="guess", fast=True) == "light"
    # Weights for a range know noise that is cut off, as in files.
    assert taken("gauss", 25, clipped=0.009) == "best"
    assert taken("gauss", 25, clipped=0.011) == "broad"
    assert taken("gauss", 25, clipped=0.5, able=ALL[:2]) == "best"
    # At their one strength, too, those that newer ones do better are not taken before these.
    able = [weights_of("grey_gauss25", "gauss25", 1), weights_of("newer", "gauss5_50", 1)]
    assert taken("gauss", 25, channels=1, able=able) == "newer"
    assert taken("gauss", 25, channels=1, able=able[:1]) == "grey_gauss25"


def test_where_noise_cannot_be_measured_the_weights_for_cameras_are_taken(shipped):
    choice = Shelf(shipped.values()).choose(scene(20, 20))  # too few pixels
    assert (choice.analysis.kind, choice.analysis.certainty, choice.name) == ("none", "guess", "photo")
    assert choice.why.endswith("photo, which changes little if so")


def test_an_image_in_colours_that_shows_none_is_grey(shipped, tmp_path):
    network = build_network(n_feature=4, n_channel=1)
    path = tmp_path / "grey.pdparams"
    options = {**network.options, "noisetype": "gauss5_50"}
    checkpoint.save_network(path, checkpoint.network_state(network), options)
    noisy = np.random.default_rng(0).normal(120, 12, (128, 128, 1)).astype(np.uint8)
    shelf = Shelf([*shipped.values(), path])
    assert shelf.choose(noisy).name == shelf.choose(np.repeat(noisy, 3, axis=2)).name == "grey"
    assert Denoiser(shelf.network("grey"))(np.repeat(noisy, 3, axis=2)).shape == (128, 128, 3)
    colours = np.random.default_rng(1).normal(120, 12, (128, 128, 3)).astype(np.uint8)
    assert shelf.choose(colours).name == "broad"
    # A picture of one stain is grey in one colour; what is black in it stays black.
    green = colours * np.uint8([0, 1, 0])
    assert shelf.choose(green).name == "grey"
    denoised = Denoiser(shelf.network("grey"))(green)
    assert (denoised[..., 1] != green[..., 1]).any()
    assert not denoised[..., ::2].any()


@pytest.mark.parametrize("kind", ["counts", "floats"])
def test_counts_of_a_sensor_are_seen_as_an_image(shipped, kind, tmp_path, capfd):
    """What fills a small part of 16 bits, or lies beyond 1, is denoised as the same in 8 bits is."""
    plain = noisy_scene(128, 160, sigma=12).astype(np.float32)
    counts = 300 + 8 * plain
    image = counts.astype(np.uint16 if kind == "counts" else np.float32)
    shelf = Shelf(shipped.values())
    choice = shelf.choose(image)
    top = 65535 if kind == "counts" else 1
    assert np.array(choice.span) * top == pytest.approx(300 + 8 * np.percentile(plain, (0.1, 99.9)), rel=0.02)
    assert choice.sigma == pytest.approx(12 * 255 / np.ptp(np.percentile(plain, (0.1, 99.9))), rel=0.1)
    assert "is taken for black and" in choice.why
    assert choice.name == shelf.choose(plain.astype(np.uint8)).name == "broad"
    low, high = np.array(choice.span) * top
    expected = Denoiser(shelf.network("broad"))((image.astype(np.float32) - np.float32(low)) / np.float32(high - low))
    np.save(tmp_path / "a.npy", image)
    run("--image_path", tmp_path / "a.npy", "--save_dir", tmp_path / "o", "--keep_format")
    found = Denoiser(shelf.network("broad"), span=choice.span)(image)
    np.testing.assert_array_equal(
        np.load(tmp_path / "o" / "a_denoise.npy"), no_more_than_noise(image, found, choice.span)
    )
    assert found.dtype == image.dtype
    expected = expected * (high - low) + low
    expected = np.clip(expected, 0, 65535) if kind == "counts" else expected
    assert np.abs(found - expected).max() < 0.02 * (high - low)
    half = Denoiser(shelf.network("broad"), span=choice.span, strength=0.5)(image)
    inside = (found > 0) & (found < 65535) if kind == "counts" else np.full(found.shape, True)
    np.testing.assert_allclose(half[inside], (image * 0.5 + found * 0.5)[inside], atol=1.5)


def test_what_weights_do_not_know_is_bounded_by_the_noise(shipped, tmp_path):
    """Stars in a frame of floats, whose noise is far weaker than the weights', are not taken for it."""
    shelf = Shelf(shipped.values())
    assert not shelf.choose(noisy_scene(128, 160, sigma=12)).bounded
    assert shelf.choose(noisy_scene(128, 160, sigma=12).astype(np.uint16) * 20).bounded  # has a span of its own
    sky = np.random.default_rng(0).normal(0.2, 0.001, (128, 160)).astype(np.float32)
    sky[60:64, 30:34] += 0.7
    sky[100:104, ::40] += 0.3
    choice = shelf.choose(sky[..., None])
    assert (choice.name, choice.span, choice.bounded) == ("broad", (0, 1), True)
    np.save(tmp_path / "sky.npy", sky)
    run("--image_path", tmp_path / "sky.npy", "--save_dir", tmp_path / "o")
    denoised = Denoiser(shelf.network("broad"))(sky[..., None])
    expected = no_more_than_noise(sky[..., None], denoised, choice.span)[..., 0]
    np.testing.assert_array_equal(np.load(tmp_path / "o" / "sky_denoise.npy"), expected)
    half = Denoiser(shelf.network("broad"), strength=0.5)
    half.bounded = True
    np.testing.assert_allclose(half(sky), (sky + expected) / 2, atol=1e-5)


def test_values_that_fill_the_range_stay(shipped):
    dark = noisy_scene(96, 96, sigma=12)
    for image in (dark, dark // 9, dark.astype(np.uint16) * 100, dark.astype(np.float32) / 255 * 1.2 - 0.1):
        assert span_of(image) == (0, 1)
    assert span_of(np.full((64, 64, 1), 7, np.uint16)) == (0, 1)  # nothing to tell


def test_the_names_of_the_noise_stand_in_the_weights_that_ship():
    shelf = Shelf(auto.shipped_weights())
    noises = {name: weights.noise.name for name, weights in shelf.weights.items()}
    expected = {"best_model": "gauss25", "gauss5_50": "gauss5_50", "poisson30": "poisson30"}
    expected |= {"poisson5_50_deep": "poisson5_50"}
    assert expected.items() <= noises.items()
    assert not shelf.loaded


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """Tiny weights in the place of those that ship."""
    paths = []
    for name, noise in (("best", "gauss25"), ("broad", "gauss5_50"), ("photo", "camera"), ("light", "camera")):
        network = tiny_network(len(paths))
        paths.append(tmp_path / "weights" / f"{name}.pdparams")
        paths[-1].parent.mkdir(exist_ok=True)
        checkpoint.save_network(paths[-1], checkpoint.network_state(network), {**network.options, "noisetype": noise})
    monkeypatch.setattr(auto, "shipped_weights", lambda flag="": paths)
    return {path.stem: path for path in paths}


def blurred(image, sigma=1.0):
    import cv2

    return cv2.GaussianBlur(image, (0, 0), sigma)


def run(*flags, code=0):
    assert predict.main([str(flag) for flag in flags]) == code


def test_a_folder_of_all_kinds(tmp_path, shipped, capfd):
    rng, smooth = np.random.default_rng(0), np.full((256, 256, 3), 120.0)
    white = np.clip(smooth + rng.normal(0, 1, smooth.shape) * 12, 0, 255).astype(np.uint8)
    camera = np.clip(smooth + blurred(rng.normal(0, 1, smooth.shape)) * 20, 0, 255).astype(np.uint8)
    clean = np.repeat(np.add.outer(np.arange(256), np.arange(256))[..., None] // 3, 3, axis=2).astype(np.uint8)
    for name, image in (("a_white.png", white), ("b_camera.png", camera), ("c_clean.png", clean)):
        save(tmp_path / "in" / name, image)
    from PIL import Image

    Image.fromarray(clean).save(tmp_path / "in" / "d_clean.bmp")
    run("--image_path", tmp_path / "in", "--save_dir", tmp_path / "o")
    out, errors = capfd.readouterr()
    assert len(out.splitlines()) == 4
    for name, word in (("a_white", "broad, trained on gauss5_50"), ("b_camera", "photo, trained on camera")):
        (line,) = [line for line in errors.splitlines() if name in line]
        assert word in line
    assert len([line for line in errors.splitlines() if "stays as it is" in line]) == 2
    result = images.read_image(tmp_path / "o" / "a_white_denoise.png").pages[0]
    assert (result == Denoiser(str(shipped["broad"]))(white)).all()
    # Without noise: the same bytes if the format stays, else the same pixels.
    assert (tmp_path / "o" / "c_clean_denoise.png").read_bytes() == (tmp_path / "in" / "c_clean.png").read_bytes()
    assert (images.read_image(tmp_path / "o" / "d_clean_denoise.png").pages[0] == clean).all()
    run("--image_path", tmp_path / "in" / "b_camera.png", "--save_dir", tmp_path / "fast", "--fast")


def test_what_takes_long_says_once_what_takes_less(tmp_path, shipped, capfd, monkeypatch):
    light = build_network("unet_lite", n_feature=2)
    options = {**light.options, "noisetype": "camera"}
    checkpoint.save_network(shipped["light"], checkpoint.network_state(light), options)
    noise = blurred(np.random.default_rng(0).normal(0, 1, (400, 400, 3))) * 20
    for name in ("a", "b"):
        save(tmp_path / "in" / f"{name}.png", np.clip(120 + noise, 0, 255).astype(np.uint8))
    flags = ("--image_path", tmp_path / "in", "--tile", 352)
    hint = "--fast takes light instead"
    run(*flags, "--save_dir", tmp_path / "soon")
    assert hint not in capfd.readouterr().err
    monkeypatch.setattr(prediction, "LONG", -1.0)
    run(*flags, "--save_dir", tmp_path / "late")
    assert capfd.readouterr().err.count(hint) == 1
    run(*flags, "--save_dir", tmp_path / "light", "--fast")
    assert hint not in capfd.readouterr().err


def test_a_batch_is_continued(tmp_path, shipped, capfd):
    for name in ("a", "b"):
        save(tmp_path / f"{name}.png", noisy_scene(64, 64, sigma=12))
    save(tmp_path / "a_denoise.png", scene(9, 9))
    mine = (tmp_path / "a_denoise.png").read_bytes()
    flags = ("--image_path", tmp_path, "--save_dir", tmp_path, "--skip_existing")
    run(*flags)
    assert "have their results already" in capfd.readouterr().err
    assert (tmp_path / "a_denoise.png").read_bytes() == mine
    assert (tmp_path / "b_denoise.png").exists()
    run(*flags)  # nothing is left, and no result is taken for an image
    assert sorted(path.name for path in tmp_path.glob("*.png")) == [
        "a.png", "a_denoise.png", "b.png", "b_denoise.png"
    ]  # fmt: skip


def test_the_pages_of_a_stack(shipped, tmp_path, capfd):
    """A first page without noise decides nothing, and each page is seen in its own span."""
    rng = np.random.default_rng(0)
    pages = [np.zeros((128, 128, 1), np.uint16)]
    pages += [(level * rng.normal(1000, 40, (128, 128, 1))).astype(np.uint16) for level in (1, 8)]
    images.write_image(tmp_path / "stack.tif", pages)
    run("--image_path", tmp_path / "stack.tif", "--save_dir", tmp_path / "o", "--report", tmp_path / "r")
    assert "broad, trained on gauss5_50" in (said := capfd.readouterr().err)
    assert "2 of 3 pages have noise, the others stay as they are" in said
    found = images.read_image(tmp_path / "o" / "stack_denoise.tif").pages
    assert (found[0] == pages[0]).all()
    for number in (1, 2):
        images.write_image(tmp_path / "alone.tif", pages[number])
        run("--image_path", tmp_path / "alone.tif", "--save_dir", tmp_path / "o", "--overwrite")
        alone = images.read_image(tmp_path / "o" / "alone_denoise.tif").pages[0]
        np.testing.assert_array_equal(found[number], alone)
        assert (alone != pages[number]).any()
    assert "% of the noise" in (tmp_path / "r" / "index.html").read_text(encoding="utf-8")  # of a page that has some


def test_pages_whose_noise_shows_decide_for_those_where_texture_may_hide_it(shipped):
    textured = np.random.default_rng(1).integers(0, 2, (20, 20, 3), dtype=np.uint8) * 90  # too small to be measured
    white = np.random.default_rng(0).normal(120, 12, (128, 128, 3)).astype(np.uint8)
    shelf = Shelf(shipped.values())
    choice, spans = shelf.choose_for_pages([textured, textured, white])
    assert [shelf.choose(page).name for page in (textured, white)] == ["photo", "broad"]
    assert (choice.name, None in spans) == ("broad", False)


def test_an_image_without_memory_for_it_fails_alone(shipped, tmp_path, capfd, monkeypatch):
    for name in "abc":
        save(tmp_path / "in" / f"{name}.png", noisy_scene(128, 128, seed=ord(name)))
    calls, whole = [], Denoiser.__call__

    def failing(self, image):
        calls.append(image)
        if len(calls) == 2:
            raise MemoryError("Unable to allocate 8 GiB")
        return whole(self, image)

    monkeypatch.setattr(Denoiser, "__call__", failing)
    run("--image_path", tmp_path / "in", "--save_dir", tmp_path / "o", code=1)
    assert "b.png: more memory is needed than there is: Unable to allocate 8 GiB" in capfd.readouterr().err
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == ["a_denoise.png", "c_denoise.png"]


def test_noise_that_differs_tenfold_is_told_once():
    spread = Spread()
    assert [spread.note(sigma) for sigma in (2.0, 19.0, 0.0)] == [None] * 3
    assert "2.0 to 20.0" in spread.note(20.0)
    assert spread.note(90.0) is None


def test_mistakes_are_one_line(tmp_path, shipped, weights, capsys, monkeypatch):
    image = save(tmp_path / "a.png", noisy_scene(64, 64))
    np.save(tmp_path / "four.npy", np.random.default_rng(0).random((64, 64, 4), dtype=np.float32))
    good = {"--image_path": image, "--save_dir": tmp_path / "o"}
    for flags, word in (
        ([*_words(good), "--skip_existing", "--overwrite"], "--skip_existing"),
        ([*_words(good), "--fast", "--model_path", weights], "--fast"),
        (_words({**good, "--image_path": tmp_path / "four.npy"}), "4 channels"),
        (_words({**good, "--detail": 2}), "--detail"),
        (_words({**good, "--chroma": -1}), "--chroma"),
        (_words({**good, "--precision": "int8"}), "--precision"),
    ):
        message = refusal(predict.main, flags, capsys)
        assert word in message
        assert "\n" not in message
    monkeypatch.undo()
    monkeypatch.setattr(auto, "SHIPPED", ("nothing",) * 2)
    assert "auto finds no weights" in refusal(predict.main, good, capsys)
    with pytest.raises(UserError, match="of that name"):
        Shelf([weights, weights])


def _words(flags):
    return [word for pair in flags.items() for word in pair]


def test_networks_are_loaded_once_and_dropped_where_memory_is_short(shipped, monkeypatch):
    shelf = Shelf(shipped.values())
    first = shelf.network("best")
    assert shelf.network("best") is first
    shelf.network("broad")
    assert set(shelf.loaded) == {"best", "broad"}
    monkeypatch.setattr(auto.machine, "free_memory", lambda: 1 << 20)
    shelf.network("photo")
    assert set(shelf.loaded) == {"photo"}
