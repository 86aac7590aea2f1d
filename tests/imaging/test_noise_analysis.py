"""What is measured of an image's noise."""

import dataclasses
import sys

import cv2
import numpy as np
import pytest

from conftest import ROOT
from denoising.files.images import write_image
from denoising.imaging import camera, noise_traces
from denoising.imaging.noise_analysis import analyse, sensor_curve
from denoising.imaging.pixels import from_01, pack_bayer
from denoising.imaging.trust import level_of
from denoising.training import own_noise

sys.path.append(str(ROOT / "benchmarks"))

import noise_measures


def scene(height=192, width=256, channels=3):
    """Smooth shading from dark to bright in 0..1, without any noise."""
    ramp = np.linspace(0.15, 0.85, width, dtype=np.float32)[None, :, None]
    return np.repeat(np.repeat(ramp, height, 0), channels, 2)


def with_noise(image_01, sigma, blur=0.0, seed=0):
    noise = np.random.default_rng(seed).standard_normal(image_01.shape).astype(np.float32)
    if blur:
        noise = cv2.GaussianBlur(noise, (0, 0), blur).reshape(noise.shape)
        noise /= noise.std()
    return image_01 + sigma / 255 * noise


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("sigma", [3, 25])
def test_white_noise(sigma, channels):
    found = analyse(with_noise(scene(channels=channels), sigma))
    assert found.kind == "gauss"
    assert found.sigma == pytest.approx(sigma, rel=0.05)
    assert len(found.curve) == len(found.correlation) == channels
    assert found.neighbour == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("stains", [[1], [0, 2]])
def test_colours_that_are_of_one_value_do_not_hide_the_noise_of_the_others(stains, kind):
    """A microscope's picture of one stain is green, say, and black in red and blue."""
    image = np.zeros((192, 256, 3), np.float32)
    image[..., stains] = with_noise(scene(), 12)[..., stains]
    found = analyse(from_01(image, kind))
    assert (found.kind, found.certainty, found.sigma) == ("gauss", "sure", pytest.approx(12, rel=0.05))
    assert [c for c, line in enumerate(found.curve) if any(line)] == stains
    assert {len(part) for part in (found.curve, found.points, found.correlation, found.spectrum)} == {3}
    assert found.noisy_points.shape[0] == len(stains)
    level = level_of(found, 3)
    assert level.draw(image, np.random.default_rng(0)).std((0, 1)) * 255 == pytest.approx(
        [12 * (c in stains) for c in range(3)], rel=0.05
    )


@pytest.mark.parametrize("deviation", [2, 8, 20])
def test_the_noise_of_a_sensor(deviation):
    """One line for all four planes, also where it is dark and noise goes below black."""
    shot, read = camera.sensor_noise((deviation / 255) ** 2)
    light = pack_bayer(np.float32([[0.4, 1.0], [1.0, 0.2]])[np.ix_(np.arange(512) % 2, np.arange(640) % 2)][..., None])
    light = light * np.linspace(0.02, 0.9, 320, dtype=np.float32)[:, None]
    noise = np.random.default_rng(0).standard_normal(light.shape, np.float32)
    a, b = sensor_curve(light + camera.deviation_at(light, shot, read) * noise)
    for level in (0.02, 0.18, 0.8):
        assert np.sqrt(a * level + b) == pytest.approx(np.sqrt(shot * level + read), rel=0.12 if level < 0.1 else 0.06)


def test_too_few_places_for_the_noise_of_a_sensor():
    assert sensor_curve(np.zeros((20, 200, 4), np.float32)) is None
    assert sensor_curve(np.full((64, 64, 4), 0.3, np.float32)) is None


def test_shot_noise_grows_with_brightness():
    noisy = np.random.default_rng(0).poisson(scene() * 30) / 30
    found = analyse(noisy.astype(np.float32))
    assert found.kind == "poisson"
    assert found.peak == pytest.approx(30, rel=0.1)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_noise_that_grows_is_found_where_the_quietest_places_are_of_one_brightness(seed):
    y, x = np.mgrid[:192, :256]
    texture = 0.1 * np.sin(0.8 * x) * np.sin(0.7 * y)
    light = np.where(x < 96, 0.3, np.linspace(0.1, 0.8, 256)[None] + texture).clip(0, 1)[..., None].repeat(3, 2)
    rng = np.random.default_rng(seed)
    counted = from_01(rng.poisson(30 * light) / 30 + 5 / 255 * rng.standard_normal(light.shape), np.uint8)
    found = analyse(counted)
    assert (found.kind, found.certainty) == ("poisson", "sure")
    assert found.peak == pytest.approx(30, rel=0.15)
    assert analyse(from_01(light + 25 / 255 * rng.standard_normal(light.shape), np.uint8)).kind == "gauss"


def test_white_noise_of_a_picture_made_smaller_is_nearly_white():
    smaller = cv2.resize(with_noise(scene(384, 512), 40), None, fx=0.85, fy=0.85, interpolation=cv2.INTER_AREA)
    found = analyse(from_01(smaller.clip(0, 1), np.uint8))
    assert (found.kind, found.is_nearly_white) == ("correlated", True)
    assert "neighbours share a little of it" in found.describe()
    shared = analyse(with_noise(scene(), 10, blur=0.7))
    assert (shared.kind, shared.is_nearly_white) == ("correlated", False)
    assert not analyse(with_noise(scene(), 10)).is_nearly_white


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("photons", [3, 5, 12, 30, 60])
def test_photons_that_can_be_counted_in_eight_bits(photons, channels):
    """However many pixels are cut off at white, and though there are no more values than in a drawing."""
    counts = np.random.default_rng(photons).poisson(scene(channels=channels) * photons)
    found = analyse(from_01(np.clip(counts / photons, 0, 1), np.uint8))
    assert (found.kind, found.certainty) == ("poisson", "sure")
    assert found.peak == pytest.approx(photons, rel=0.01)
    assert found.sigma == pytest.approx(255 * np.sqrt(0.5 / photons), rel=0.05)
    assert own_noise.pooled_curve([found])[0] == pytest.approx(1 / photons, rel=0.02)


@pytest.mark.parametrize("channels", [1, 3])
def test_two_photons_at_white_are_noise(channels):
    """Files hold black, one value of grey and white then, as those of some drawings do."""
    counts = np.random.default_rng(0).poisson(scene(channels=channels) * 2)
    found = analyse(from_01(np.clip(counts / 2, 0, 1), np.uint8))
    assert (found.kind, found.certainty, found.peak) == ("poisson", "sure", pytest.approx(2, rel=0.03))


def test_counts_themselves():
    """A camera that counts photons may store their numbers as they are."""
    counts = np.random.default_rng(0).poisson(scene() * 12)
    assert analyse(counts.astype(np.uint16)).peak == pytest.approx(65535, rel=0.01)
    assert analyse(counts.astype(np.float32)).peak == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize("levels", [3, 5, 12, 30])
def test_steps_without_photons(levels):
    """A drawing, a dithered picture, and another noise that was rounded coarsely."""
    rng, smooth = np.random.default_rng(0), scene() * (levels - 1)
    dithered = smooth + rng.uniform(-0.5, 0.5, smooth.shape)
    pictures = [smooth, dithered]
    if levels > 20:
        pictures.append(smooth + rng.normal(0, 2, smooth.shape))
    for picture in pictures:
        steps = np.clip(np.rint(picture), 0, levels - 1) / (levels - 1)
        assert noise_traces.photons(from_01(steps, np.uint8)) == 0


def test_neighbours_that_share_their_noise():
    found = analyse(with_noise(scene(), 10, blur=0.7))
    assert found.kind == "correlated"
    assert found.sigma == pytest.approx(10, rel=0.1)
    assert found.neighbour == pytest.approx(0.6, abs=0.05)


@pytest.mark.parametrize("value", [0, 128, 255])
def test_one_colour_has_no_noise(value):
    found = analyse(np.full((64, 64, 3), value, np.uint8))
    assert (found.kind, found.sigma) == ("none", 0)
    assert "one colour" in found.describe()


def test_few_pixels():
    assert analyse(np.zeros((9, 1), np.float32)).certainty == "guess"


def test_two_frames_of_a_scene_hide_no_noise():
    texture = np.random.default_rng(5).random((160, 160, 3), np.float32) / 2 + 0.25
    found = analyse(with_noise(texture, 6, seed=1), with_noise(texture, 6, seed=2))
    assert found.kind == "gauss"
    assert found.sigma == pytest.approx(6, rel=0.05)


@pytest.mark.parametrize("sigma", [10, 50])
def test_noise_that_is_clipped_is_measured_as_it_was(sigma):
    image = np.clip(np.rint(255 * with_noise(scene(320, 320), sigma)), 0, 255).astype(np.uint8)
    assert analyse(image).sigma == pytest.approx(sigma, rel=0.1)


def test_sixteen_bits_and_the_range_of_a_sensor():
    image_01 = with_noise(scene(), 10)
    assert analyse(from_01(image_01, np.uint16)).sigma == pytest.approx(10, rel=0.05)
    # 12 bits keep their numbers in 16, so that white is a sixteenth.
    found = analyse(np.rint(np.clip(image_01, 0, 1) * 4095).astype(np.uint16))
    assert (found.kind, found.sigma) == ("gauss", pytest.approx(10 / 16, rel=0.05))


@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1e-4, 1e6, 1e12, 3e38])
def test_floats_of_any_magnitude(scale):
    image_01 = np.clip(scene(), 0, 1)
    image_01 = np.random.default_rng(2).poisson(200 * image_01).astype(np.float32) / 200
    expected = analyse(image_01 * np.float32(100))
    with np.errstate(all="raise", under="ignore"):
        found = analyse(image_01 * np.float32(scale))
    assert (expected.kind, found.kind, found.certainty) == ("poisson", "poisson", expected.certainty)
    assert found.sigma == pytest.approx(expected.sigma * scale / 100, rel=0.02)
    assert found.peak == pytest.approx(expected.peak / scale * 100, rel=0.1)
    np.testing.assert_allclose(found.points[..., 0].max(), expected.points[..., 0].max() * scale / 100, rtol=0.05)
    np.testing.assert_allclose(np.array(found.curve)[:, 0], np.array(expected.curve)[:, 0] * scale / 100, rtol=0.1)


def test_graphics_and_text_have_no_noise():
    drawing = np.full((256, 384, 3), 255, np.uint8)
    cv2.rectangle(drawing, (30, 40), (150, 120), (200, 30, 60), -1)
    for row in range(140, 250, 20):
        cv2.putText(
            drawing, "no noise here at all", (20, row), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 0), 1, cv2.LINE_AA
        )
    assert analyse(drawing).sigma < 1.5


def test_texture_is_no_noise():
    rng = np.random.default_rng(3)
    octaves = [cv2.resize(rng.random((192 >> i, 192 >> i), np.float32), (192, 192)) * 2**i for i in range(6)]
    image = np.repeat((sum(octaves) / 63)[..., None], 3, axis=2)
    found = analyse(from_01(image, np.uint8))
    assert found.kind == "none"


@pytest.mark.parametrize("sigma", [8, 25])
@pytest.mark.parametrize("where", ["frame", "left", "right", "top", "bottom"])
def test_a_clean_part_of_an_image_does_not_hide_the_noise_of_the_rest(where, sigma):
    """A photograph in a drawn frame, or beside its denoised version."""
    noisy = scene(384, 512)
    rows, columns = {
        "frame": (slice(48, -48), slice(48, -48)), "left": (slice(None), slice(256)),
        "right": (slice(None), slice(256, None)), "top": (slice(192), slice(None)),
        "bottom": (slice(192, None), slice(None)),
    }[where]  # fmt: skip
    noisy[rows, columns] = with_noise(noisy, sigma)[rows, columns]
    found = analyse(from_01(noisy, np.uint8))
    assert (found.kind, found.certainty, found.sigma) == ("gauss", "likely", pytest.approx(sigma, rel=0.1))
    assert "in a part of the image" in found.describe()
    top, left = found.places.T
    inside = (top + 16 > (rows.start or 0)) & (left + 16 > (columns.start or 0))
    assert inside.all()
    assert analyse(from_01(scene(384, 512), np.uint8)).kind == "none"


@pytest.mark.parametrize("file", ["page.png", "margin.jpg"])
def test_what_is_drawn_around_a_photograph_does_not_hide_its_noise(file, tmp_path):
    """Blocks of letters, and those across its edge, are quieter than it; in a JPEG channels share noise."""

    def around(photograph):
        page = np.full((480, 720, 3), 240, np.uint8)
        for row in range(40, 480, 30) if file == "page.png" else ():
            cv2.putText(page, "quiet blocks, some of them", (20, row), 0, 0.7, (20, 20, 20), 1, cv2.LINE_AA)
        page[150:406, 400:656] = from_01(photograph, np.uint8)
        cv2.imwrite(str(tmp_path / file), page, [cv2.IMWRITE_JPEG_QUALITY, 90])
        return cv2.imread(str(tmp_path / file))

    found = analyse(around(with_noise(scene(256, 256), 25)))
    assert (found.kind, found.certainty) == ("gauss", "likely")
    assert "in a part of the image" in found.describe()
    assert found.sigma == pytest.approx(25 if file == "page.png" else 14, rel=0.1)
    assert analyse(around(scene(256, 256))).kind == "none"


@pytest.mark.parametrize("what", ["caption", "gradient", "highlights"])
def test_quiet_places_do_not_hide_the_noise_of_a_camera_in_the_others(what):
    """A caption below a photograph, a drawn frame, or bright places that the camera takes to nearly one value."""

    def picture(sigma):
        image = scene(320, 480)
        noise = with_noise(image, sigma, 0.8) - image
        if what == "gradient":
            noise[:48] = noise[-48:] = noise[:, :48] = noise[:, -48:] = 0
        if what == "highlights":
            image[:, :] = np.linspace(0.3, 0.9, 320)[:, None, None]
            noise *= np.where(image < 0.45, 1, 0.1)
        pixels = from_01(image + noise, np.uint8)
        if what == "caption":
            pixels[-100:] = 30
            for row in (250, 280, 310):
                cv2.putText(pixels, "below it, some words in white", (10, row), 0, 0.8, (240, 240, 240), 2, cv2.LINE_AA)
            pixels = cv2.imdecode(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 95])[1], cv2.IMREAD_COLOR)
        return analyse(pixels)

    found = picture(4)
    assert (found.kind, found.certainty) == ("correlated", "likely")
    assert 2 < found.sigma < 5  # too low where blocks cross the edge of the quiet places
    assert "in a part of the image" in found.describe()
    assert picture(0).kind == "none"


def test_the_benchmark_in_its_smallest_form(tmp_path, capsys):
    for folder in ("clean", "real/clean", "real/noisy"):
        (tmp_path / folder).mkdir(parents=True)
        image = with_noise(scene(128, 128), 6, 0.8) if folder == "real/noisy" else scene(128, 128)
        write_image(tmp_path / folder / "a.png", from_01(image.clip(0, 1), np.uint8))
    assert noise_measures.main(["--images", str(tmp_path / "clean"), "--real", str(tmp_path / "real")]) == 0
    output = capsys.readouterr().out
    assert "no noise in 100%" in output
    assert "Gaussian 5" in output
    assert "correlated noise in 100% of 1" in output


def test_noise_that_is_clipped_nearly_everywhere_is_seen():
    rng, dark = np.random.default_rng(0), scene(160, 160).astype(float) / 8
    for sigma in (60, 90):
        found = analyse(np.clip(np.rint(dark + rng.normal(size=dark.shape) * sigma), 0, 255).astype(np.uint8))
        assert (found.kind, found.certainty) == ("gauss", "likely")
        assert 0.4 * sigma < found.sigma < sigma  # what is left of it
        assert found.points.shape == (3, 1, 2)
        assert own_noise.measure(
            [np.clip(dark + rng.normal(size=dark.shape) * sigma, 0, 255).astype(np.uint8)]
        ).is_white
    # What is drawn or dithered in black and white has no noise.
    for drawn in (dark > 12, dark > rng.random(dark.shape) * 30, dark < 0):
        assert analyse((drawn * 255).astype(np.uint8)).kind == "none"


def test_noise_of_a_camera_that_is_clipped_nearly_everywhere_is_not_denied():
    settings = dataclasses.replace(
        camera.draw_settings(np.random.default_rng(0), 60), demosaicking="malvar", blur=0.0, contrast=0.0, chroma=0.0,
        smoothing="none", sharpening=0.0, scale=1.0, quality=0,
    )  # fmt: skip
    noisy = camera.shoot(scene(160, 160) / 8, settings, np.random.default_rng(1))
    found = analyse(from_01(noisy, np.uint8))
    assert (found.kind, found.certainty) == ("none", "guess")  # so that weights for photographs are taken
