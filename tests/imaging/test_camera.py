from dataclasses import replace

import cv2
import numpy as np
import pytest

from conftest import scene
from denoising.imaging import camera
from denoising.imaging.noise import parse_noise

SCENE = cv2.GaussianBlur(scene(96, 128, seed=3).astype(np.float32) / 255, (0, 0), 1.5)
FLAT = np.full((256, 256, 3), 0.4, np.float32)
PLAIN = replace(
    camera.draw_settings(np.random.default_rng(0), 5), blur=0, shot=0.0, read=0.0, chroma=0, smoothing="none",
    sharpening=0, scale=1.0, quality=0,
)  # fmt: skip


def psnr(first, second):
    return 10 * np.log10(1 / np.mean((first - second) ** 2))


def drawn(count, deviation=5):
    return [camera.draw_settings(np.random.default_rng(seed), deviation) for seed in range(count)]


# --- The camera without noise -------------------------------------------------------------------------------


@pytest.mark.parametrize(("how", "least"), [("bilinear", 34), ("malvar", 39), ("hamilton", 39)])
def test_without_noise_the_scene_comes_back(how, least):
    picture = camera.shoot(SCENE, replace(PLAIN, demosaicking=how), np.random.default_rng(0))
    assert psnr(picture, SCENE) > least
    assert np.abs((picture - SCENE).mean(axis=(0, 1))).max() < 0.3 / 255  # no colour shift


@pytest.mark.parametrize("how", camera.DEMOSAICKINGS)
def test_a_colour_stays_that_colour(how):
    for colour in ((0.9, 0.1, 0.1), (0.1, 0.8, 0.2), (0.1, 0.2, 0.9), (1, 1, 1), (0, 0, 0)):
        flat = np.broadcast_to(np.float32(colour), (10, 12, 3))
        assert (
            np.abs(camera.shoot(flat, replace(PLAIN, demosaicking=how), np.random.default_rng(0)) - flat).max() < 0.01
        )


def test_a_grey_camera_without_noise_changes_nothing():
    steps = np.rint(SCENE[..., 1] * 255) / np.float32(255)
    assert np.abs(camera.shoot(steps, PLAIN, np.random.default_rng(0)) - steps).max() < 1.5 / 255


def test_the_curves_are_inverse_to_each_other():
    values = np.linspace(0, 1, 256, dtype=np.float32)
    for contrast in (0.0, 0.5, 1.0):
        forward, backward = camera.curves(contrast)
        assert np.abs(camera.through(camera.through(values, backward), forward) - values).max() < 0.5 / 255
        assert (np.diff(forward) > 0).all()
    assert camera.through(np.float32([-1, 2]), forward).tolist() == [0, 1]


def test_a_table_is_linear_between_its_entries():
    table = (np.arange(camera.CURVE_STEPS) ** 2).astype(np.float32)
    assert camera.through(np.float32([2.5 / (camera.CURVE_STEPS - 1)]), table)[0] == pytest.approx(6.5, abs=0.01)


# --- The noise ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deviation", [0.5, 4, 16])
def test_the_sensors_noise_has_the_strength_of_its_name(deviation):
    shot, read = camera.sensor_noise((deviation / 255) ** 2)
    assert camera.GREY * shot + read == pytest.approx((deviation / 255) ** 2)
    assert read == pytest.approx(np.exp(2.18 * np.log(shot) + 1.20), rel=1e-3)
    settings = replace(PLAIN, shot=shot, read=read, signed=True)
    for light in (0.0 if deviation > 1 else 0.02, 0.05, camera.GREY, 0.5):  # in the dark, 14 bits are coarser than 0.5
        read_out = camera.sense(np.full((200, 200), light, np.float32), settings, np.random.default_rng(1))
        assert read_out.mean() == pytest.approx(light, abs=2e-3)
        assert read_out.std() == pytest.approx(np.sqrt(shot * light + read), rel=0.02)
    assert (
        camera.sense(np.zeros((9, 9), np.float32), replace(settings, signed=False), np.random.default_rng(1)).min() == 0
    )
    assert camera.sense(np.ones((99, 99), np.float32), settings, np.random.default_rng(1)).max() == 1


def test_two_shots_differ_in_noise_alone():
    # The difference has no trace of the scene: it would be left over by whatever else had changed.
    for seed in range(12):
        noise = parse_noise("camera4")
        first, second = noise.shots(SCENE, np.random.default_rng(seed), np.random.default_rng(100 + seed))
        difference = (first - second).mean(axis=2)
        assert 0.1 < difference.std() * 255 < 20
        inside = SCENE.mean(axis=2)
        assert abs(np.corrcoef(difference.ravel(), inside.ravel())[0, 1]) < 0.06
        assert abs(difference.mean()) * 255 < 0.35


@pytest.mark.parametrize("name", ["camera4", "camera4+gauss1", "gauss1+camera4+gauss1"])
def test_two_shots_are_of_one_camera(name, monkeypatch):
    drawn, draw = [], camera.draw_settings
    monkeypatch.setattr(camera, "draw_settings", lambda *given: drawn.append(given) or draw(*given))
    first, second = parse_noise(name).shots(SCENE, np.random.default_rng(1), np.random.default_rng(2))
    assert len(drawn) == 1
    assert (first != second).mean() > 0.5


def test_the_mean_of_many_shots_is_the_shot_without_noise():
    for settings in drawn(6, deviation=2):
        rng = np.random.default_rng(1)
        clean = camera.shoot(SCENE, replace(settings, shot=0.0, read=0.0), rng)
        shots = [camera.shoot(SCENE, settings, rng) for _ in range(16)]
        assert psnr(np.mean(shots, axis=0), clean) > psnr(shots[0], clean) + 4


def test_neighbours_share_the_noise_as_in_photographs():
    # 0.53 to 0.65 in the middle nine tenths of a hundred real files, from cameras that smooth more or less.
    found = []
    for number, settings in enumerate(drawn(40)):
        noise = camera.shoot(FLAT, settings, np.random.default_rng(number))[..., 1]
        noise = noise - noise.mean()
        found.append((noise[:, 1:] * noise[:, :-1]).mean() / noise.var())
    assert 0.4 < np.median(found) < 0.7
    assert np.quantile(found, 0.1) < 0.3
    assert np.quantile(found, 0.9) > 0.65


def test_a_camera_smooths_colours_more_than_brightness():
    noisy = replace(PLAIN, shot=0.01, read=1e-5)
    luma, red = [], []
    for settings in (noisy, replace(noisy, chroma=3.0)):
        ycc = cv2.cvtColor(camera.shoot(FLAT, settings, np.random.default_rng(2)), cv2.COLOR_RGB2YCrCb)
        luma.append(ycc[..., 0].std())
        red.append(ycc[..., 1].std())
    assert luma[1] == pytest.approx(luma[0], rel=0.02)
    assert red[1] < 0.4 * red[0]


@pytest.mark.parametrize("kind", ["gaussian", "bilateral", "median"])
def test_each_smoothing_smooths(kind):
    noisy = replace(PLAIN, shot=0.01, read=1e-5, smoothing_amount=1.0)
    strengths = [
        camera.shoot(FLAT, replace(noisy, smoothing=s), np.random.default_rng(2)).std() for s in (kind, "none")
    ]
    assert strengths[0] < 0.8 * strengths[1]


@pytest.mark.parametrize("sampling", camera.SAMPLINGS)
def test_jpeg_leaves_its_blocks_where_the_corner_is(sampling):
    settings = replace(PLAIN, quality=30, sampling=sampling, corner=(3, 5))
    steps = np.abs(np.diff(camera.shoot(SCENE[..., 1], settings, np.random.default_rng(0)), axis=1))
    at = [steps[:, column::8].mean() for column in range(8)]
    assert np.argmax(at) == (8 - 5 - 1) % 8


def test_red_and_blue_keep_their_places_through_jpeg():
    flat = np.broadcast_to(np.float32([0.8, 0.3, 0.1]), (32, 32, 3))
    for sampling in camera.SAMPLINGS:
        shot = camera.shoot(flat, replace(PLAIN, quality=95, sampling=sampling), np.random.default_rng(0))
        assert np.abs(shot.mean(axis=(0, 1)) - [0.8, 0.3, 0.1]).max() < 0.01


# --- As a kind of noise -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape", [(1, 1, 3), (2, 1, 3), (1, 7, 3), (5, 4, 3), (17, 33, 3), (1, 1), (2, 3), (9, 9, 1), (6, 7, 2), (8, 8, 4)]
)
def test_any_size_and_any_number_of_channels(shape):
    noise = parse_noise("camera0_16")
    image = np.random.default_rng(0).random(shape, np.float32)
    for seed in range(40):
        for shot in noise.shots(image, np.random.default_rng(seed), np.random.default_rng(seed + 1)):
            assert (shot.shape, shot.dtype) == (shape, np.float32)
            assert np.isfinite(shot).all()
            assert shot.min() >= 0
            assert shot.max() <= 1


def test_strengths_are_drawn_so_that_each_doubling_is_as_likely(monkeypatch):
    deviations = []
    monkeypatch.setattr(camera, "draw_settings", lambda rng, deviation: deviations.append(deviation))
    noise, rng = parse_noise("camera1_16"), np.random.default_rng(0)
    for _ in range(4000):
        noise._settings(rng)
    assert np.allclose(np.histogram(np.log2(deviations), [0, 1, 2, 3, 4])[0] / 4000, 0.25, atol=0.03)


def test_a_range_from_zero_leaves_some_images_alone():
    noise, untouched = parse_noise("camera0_16"), 0
    for seed in range(320):
        first, second = noise.shots(FLAT[:8, :8], np.random.default_rng(seed), np.random.default_rng(seed + 500))
        same = (first == FLAT[:8, :8]).all()
        untouched += same and (second == first).all()
    assert 10 <= untouched <= 32  # a sixteenth, 20
    shots = [parse_noise("camera").add(FLAT[:64, :64], np.random.default_rng(seed)) for seed in range(60)]
    assert all((shot != FLAT[:64, :64]).any() for shot in shots)


def test_names():
    usual = parse_noise("camera")
    assert (usual.low, usual.high) == (camera.CLEANEST, camera.NOISIEST)
    assert parse_noise("camera5").low == 5
    for wrong in ("camera0", "camera5_2", "camera101", "camera0_0.4", "camera_5", "gauss", "poisson", "text"):
        with pytest.raises(ValueError, match="unknown noise"):
            parse_noise(wrong)


def test_both_of_numpys_generators():
    noise = parse_noise("camera5")
    for new in (np.random.default_rng, np.random.RandomState):
        shots = [noise.add(SCENE, new(seed)) for seed in (1, 1, 2)]
        assert (shots[0] == shots[1]).all()
        assert (shots[0] != shots[2]).any()


# --- The mosaic by itself -----------------------------------------------------------------------------------


def test_the_mosaic_is_what_the_sensor_sees_of_the_scene():
    settings = replace(PLAIN, exposure=0.5, contrast=0.0, colours=np.eye(3, dtype=np.float32), gains=(2.0, 1.0, 4.0))
    mosaic = camera.on_mosaic(np.ones((6, 8, 3), np.float32), settings)
    assert mosaic.shape == (6, 8)
    np.testing.assert_allclose(mosaic[:2, :2], [[0.25, 0.5], [0.5, 0.125]], atol=1e-6)
    bright = camera.on_mosaic(np.ones((6, 8, 3), np.float32), replace(settings, exposure=4.0))
    assert bright.max() == 1  # where it clips


def test_the_deviation_that_a_shot_tells():
    """It is that of the light, and not that of what a pixel happens to read."""
    settings = replace(PLAIN, shot=0.01, read=1e-4, signed=True)
    light = np.tile(np.float32([[0.2, 0.6], [0.6, 0.05]]), (64, 64))
    noisy = camera.sense(light, settings, np.random.default_rng(0))
    told = camera.told_deviation(noisy, settings.shot, settings.read)
    true = camera.deviation_at(light, settings.shot, settings.read)
    for row, column in ((0, 0), (0, 1), (1, 1)):
        phase = np.s_[row::2, column::2]
        assert abs(told[phase].mean() / true[phase].mean() - 1) < 0.02
        assert (np.abs(told[phase] / true[phase] - 1) < 0.4).all()
    assert ((noisy - light)[1::2, 1::2].std() / true[1, 1]) == pytest.approx(1, abs=0.03)
