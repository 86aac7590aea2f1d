"""predict.py on raw files: those that these tests write themselves, and one that a camera wrote."""

import dataclasses
import os
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import predict
import val
from arch_unet import build_network
from conftest import needs_rawpy, noisy_scene, refusal, save, scene
from denoising.cli import UserError
from denoising.engine import operators
from denoising.files import dng, images, raw
from denoising.imaging import camera
from denoising.imaging.noise_analysis import sensor_curve
from denoising.imaging.pixels import pack_bayer
from denoising.inference import auto, checkpoint, raw_prediction
from denoising.inference.denoiser import Denoiser

SETTINGS = dataclasses.replace(
    camera.draw_settings(np.random.default_rng(0), 8), exposure=0.9, signed=True, contrast=0.0, blur=0.0
)
CURVE = SETTINGS.shot, SETTINGS.read


def run(*flags, code=0):
    assert predict.main([str(flag) for flag in flags]) == code


@pytest.fixture(scope="module")
def for_mosaics(tmp_path_factory):
    """Weights of a tiny network for mosaics."""
    network = build_network("unet_raw", n_channel=1, n_input=2, n_feature=4)
    path = tmp_path_factory.mktemp("raw") / "tiny_raw.pdparams"
    checkpoint.save_network(path, checkpoint.network_state(network), {**network.options, "noisetype": "camera0.4_20"})
    return path


def shot(red=(0, 0), height=160, width=192):
    """A clean mosaic with red there, and a noisy one."""
    smooth = cv2.GaussianBlur(scene(height + 2, width + 2, seed=4).astype(np.float32) / 255, (0, 0), 2)
    clean = camera.on_mosaic(smooth[: (height + 2) // 2 * 2, : (width + 2) // 2 * 2], SETTINGS)
    noisy = camera.sense(clean, SETTINGS, np.random.default_rng(1))
    part = np.s_[red[0] : red[0] + height, red[1] : red[1] + width]
    return clean[part], noisy[part]


def write(path, red=(0, 0), **size):
    path.parent.mkdir(parents=True, exist_ok=True)
    _, noisy = shot(red, **size)
    path.write_bytes(dng.encode(noisy, red, SETTINGS.gains))
    return noisy


# --- Mosaics ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("red", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_the_network_sees_red_first(red):
    """Whatever the order of the colours, and however odd the size, a mosaic is denoised as a part of a whole one."""
    _, whole = shot((0, 0), 162, 194)
    network = build_network("unet_raw", n_channel=1, n_input=2, n_feature=4)
    network.eval()
    denoiser = Denoiser(network)
    expected = raw_prediction.denoise(denoiser, whole, (0, 0), CURVE)
    part = np.s_[red[0] : red[0] + 157, red[1] : red[1] + 191]
    found = raw_prediction.denoise(denoiser, whole[part], red, CURVE)
    assert found.shape == (157, 191)
    inner = np.s_[48:-48, 48:-48]
    np.testing.assert_allclose(found[inner], expected[part][inner], atol=2e-5)
    assert np.abs(found - whole[part]).max() > 1e-3


def test_strength_and_no_noise():
    network = build_network("unet_raw", n_channel=1, n_input=2, n_feature=4)
    network.eval()
    _, noisy = shot()
    full, half, none = (
        raw_prediction.denoise(Denoiser(network, strength=strength), noisy, (0, 0), CURVE) for strength in (1, 0.5, 0)
    )
    np.testing.assert_allclose(half, (full + noisy) / 2, atol=1e-6)
    assert np.array_equal(none, noisy)
    quiet = raw_prediction.denoise(Denoiser(network), noisy, (0, 0), (0.0, 0.0))
    np.testing.assert_allclose(quiet, noisy, atol=1e-3)  # the less noise, the less can be taken away


def test_tiny_mosaics():
    network = build_network("unet_raw", n_channel=1, n_input=2, n_feature=4)
    network.eval()
    for size in ((2, 2), (3, 5), (22, 31)):
        mosaic = np.random.default_rng(0).random(size, np.float32)
        found = raw_prediction.denoise(Denoiser(network), mosaic, (1, 1), CURVE)
        assert found.shape == size
        assert np.isfinite(found).all()


def test_windows_give_what_the_whole_gives():
    network = build_network("unet_raw", n_channel=1, n_input=2, n_feature=4)
    network.eval()
    _, noisy = shot(height=300, width=340)
    whole = raw_prediction.denoise(Denoiser(network), noisy, (0, 0), CURVE)
    windowed = raw_prediction.denoise(Denoiser(network, tile=128), noisy, (0, 0), CURVE)
    np.testing.assert_allclose(windowed, whole, atol=2e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_engine_computes_the_same(precision):
    """In bfloat16 too: what is subtracted is rounded, and not the mosaic."""
    network = build_network("unet_raw", n_channel=1, n_input=2, n_feature=8)
    network.eval()
    _, noisy = shot()
    plain = raw_prediction.denoise(Denoiser(network), noisy, (0, 0), CURVE)
    try:
        network.ops = operators.choose("onednn", precision)[0]
    except UserError as error:
        pytest.skip(str(error))
    found = raw_prediction.denoise(Denoiser(network), noisy, (0, 0), CURVE)
    assert np.abs(plain - noisy).max() > 1e-3
    np.testing.assert_allclose(found, plain, atol=1e-5 if precision == "fp32" else 2e-3)


def test_a_picture_is_not_taken_for_a_mosaic(for_mosaics, tmp_path):
    save(tmp_path / "a.png", noisy_scene(40, 50))
    with pytest.raises(UserError, match=r"a\.png: .*a mosaic and the deviation of its noise"):
        run("--image_path", tmp_path / "a.png", "--model_path", for_mosaics, "--save_dir", tmp_path / "o")


# --- A camera's file ----------------------------------------------------------------------------------------


def by_itself(plane):
    """The deviation of the noise of each block of 8x8 pixels, of differences that no slope reaches, and its mean."""
    height, width = (side // 8 * 8 for side in plane.shape)
    blocks = plane[:height, :width].reshape(height // 8, 8, width // 8, 8).transpose(0, 2, 1, 3)
    crossed = blocks[:, :, :-1, :-1] - blocks[:, :, 1:, :-1] - blocks[:, :, :-1, 1:] + blocks[:, :, 1:, 1:]
    return np.sqrt((crossed**2).mean((2, 3))) / 2, blocks.mean((2, 3))


@needs_rawpy
@pytest.mark.skipif("CAMERA_RAW_FILE" not in os.environ, reason="CAMERA_RAW_FILE names no raw file (CONTRIBUTING.md)")
def test_a_file_that_a_camera_wrote():
    """Nothing in it was simulated: the noise in its sky is measured rightly, and what is removed looks like noise."""
    with raw.opened(Path(os.environ["CAMERA_RAW_FILE"])) as photo:
        mosaic = photo.mosaic()
        assert photo.red == (0, 0)
        assert photo.noise is None  # a CR2 does not tell
        packed = pack_bayer(mosaic[..., None])
        curve = sensor_curve(packed)
        sky = packed[:500]
        for colour in range(4):
            deviation, brightness = by_itself(sky[..., colour])
            flat = np.median(deviation), np.median(camera.told_deviation(brightness, *curve))
            assert flat[0] == pytest.approx(flat[1], rel=0.08)
        part = np.s_[1000:1512, 1000:1512]  # woods, clouds and a mast
        denoiser = Denoiser(str(auto.weights_for_mosaics()))
        denoised = raw_prediction.denoise(denoiser, mosaic[part], photo.red, curve)
        assert denoised.mean() == pytest.approx(mosaic[part].mean(), rel=1e-3)
        removed = pack_bayer((mosaic[part] - denoised)[..., None])
        removed /= camera.told_deviation(packed[500:756, 500:756], *curve)
        assert 0.85 < removed.std() < 1.0
        for beside in (removed[:, 1:] * removed[:, :-1], removed[1:] * removed[:-1]):
            assert abs(beside.mean()) < 0.1
        mosaic[part] = denoised
        before, after = photo.develop(no_auto_bright=True), photo.develop(mosaic, no_auto_bright=True)
    assert after.shape == before.shape == (2348, 3522, 3)
    inner = np.s_[1010:1502, 1010:1502]
    np.testing.assert_allclose(after[inner].mean((0, 1)), before[inner].mean((0, 1)), rtol=0.01)
    outside = np.s_[:900]
    assert np.abs(after[outside].astype(int) - before[outside]).mean() < 100


# --- Files --------------------------------------------------------------------------------------------------


@needs_rawpy
def test_a_raw_file_becomes_a_picture(tmp_path, for_mosaics, capsys):
    noisy = write(tmp_path / "a.dng", (1, 0), height=161, width=193)
    run("--image_path", tmp_path / "a.dng", "--model_path", for_mosaics, "--save_dir", tmp_path / "o")
    picture = images.read_image(tmp_path / "o" / "a_denoise.tif").pages[0]
    assert picture.dtype == np.uint16
    assert picture.shape == (161, 193, 3)
    line = capsys.readouterr().err
    measured = float(line.split("noise is ")[1].split()[0])
    assert abs(measured - 8) < 0.8
    with raw.opened(tmp_path / "a.dng") as photo:
        curve = sensor_curve(pack_bayer(raw.from_red(noisy, (1, 0))[..., None]))
        mosaic = raw_prediction.denoise(Denoiser(str(for_mosaics)), photo.mosaic(), (1, 0), curve)
        assert np.abs(photo.develop(mosaic).astype(int) - picture).mean() < 100


@needs_rawpy
def test_a_raw_file_stays_one_and_libraw_reads_it_again(tmp_path, for_mosaics):
    for index, red in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        noisy = write(tmp_path / "in" / f"{index}.dng", red)
        flags = ["--image_path", tmp_path / "in" / f"{index}.dng", "--model_path", for_mosaics, "--strength", "0"]
        run(*flags, "--save_dir", tmp_path / "o", "--keep_format")
        with raw.opened(tmp_path / "o" / f"{index}_denoise.dng") as photo:
            assert photo.red == red
            np.testing.assert_allclose(photo.mosaic(), noisy, atol=2e-5)
            with raw.opened(tmp_path / "in" / f"{index}.dng") as before:
                difference = photo.develop().astype(int) - before.develop()
    assert np.median(np.abs(difference)) < 20


@needs_rawpy
def test_the_noise_that_a_dng_tells_is_taken(tmp_path, for_mosaics, capsys, monkeypatch):
    write(tmp_path / "a.dng")
    monkeypatch.setattr(dng, "noise_profile", lambda found: (1e-3, 1e-6))
    run("--image_path", tmp_path / "a.dng", "--model_path", for_mosaics, "--save_dir", tmp_path / "o")
    assert "3.43 of 255 at middle grey, as its DNG says" in capsys.readouterr().err


@needs_rawpy
def test_a_folder_of_raw_files_and_pictures(tmp_path, weights, for_mosaics, monkeypatch, capfd):
    """Each gets the weights that ship for it; a broken file is said, and the rest goes on."""
    write(tmp_path / "in" / "a.dng")
    write(tmp_path / "in" / "deep" / "b.DNG")
    save(tmp_path / "in" / "c.png", noisy_scene(90, 100))
    (tmp_path / "in" / "d.nef").write_bytes(b"no raw file " * 50)
    monkeypatch.setattr(auto, "weights_for_mosaics", lambda: for_mosaics)
    run("--image_path", tmp_path / "in", "--save_dir", tmp_path / "o", code=1)
    found = sorted(str(path.relative_to(tmp_path / "o")) for path in (tmp_path / "o").rglob("*.*"))
    assert found == ["a_denoise.tif", "c_denoise.png", "deep/b_denoise.tif"]
    errors = capfd.readouterr().err
    assert "d.nef: LibRaw cannot read it" in errors
    assert "1 of 4 images could not be denoised" in errors


@needs_rawpy
def test_other_weights_denoise_what_was_developed(tmp_path, weights, capsys):
    write(tmp_path / "a.dng")
    flags = ["--image_path", tmp_path / "a.dng", "--model_path", weights, "--save_dir", tmp_path / "o"]
    run(*flags)
    assert "developed first, and denoised then" in capsys.readouterr().err
    with raw.opened(tmp_path / "a.dng") as photo:
        expected = Denoiser(str(weights))(photo.develop())
    assert np.array_equal(images.read_image(tmp_path / "o" / "a_denoise.tif").pages[0], expected)
    assert "a.dng cannot become a DNG" in refusal(predict.main, [*flags, "--keep_format"], capsys)


@needs_rawpy
def test_a_sensor_without_a_bayer_mosaic(tmp_path, for_mosaics, monkeypatch, capsys, weights):
    write(tmp_path / "a.dng")
    monkeypatch.setattr(raw, "_place_of_red", lambda libraw: (None, "an X-Trans mosaic"))
    run("--image_path", tmp_path / "a.dng", "--model_path", weights, "--save_dir", tmp_path / "o")
    assert "a.dng: an X-Trans mosaic: it is developed first, and denoised then" in capsys.readouterr().err


@needs_rawpy
def test_too_small_to_measure(tmp_path, for_mosaics, capsys):
    write(tmp_path / "a.dng", height=40, width=44)
    run("--image_path", tmp_path / "a.dng", "--model_path", for_mosaics, "--save_dir", tmp_path / "o")
    assert "a.dng: the noise cannot be measured: it is developed as it is" in capsys.readouterr().err
    with raw.opened(tmp_path / "a.dng") as photo:
        expected = photo.develop(photo.mosaic())
    assert np.array_equal(images.read_image(tmp_path / "o" / "a_denoise.tif").pages[0], expected)


def test_flags_that_are_for_pictures(tmp_path, for_mosaics, capsys):
    (tmp_path / "a.nef").write_bytes(b"never read")
    flags = ["--image_path", tmp_path / "a.nef", "--model_path", for_mosaics, "--save_dir", tmp_path / "o"]
    for more, words in {
        ("--report", "r"): "--report: ",
        ("--tta",): "--tta: ",
        ("--detail", "1"): "--detail, ",
    }.items():
        line = refusal(predict.main, [*flags, *more], capsys)
        assert line.startswith(words)
        assert "a.nef" in line


def test_without_rawpy(tmp_path, for_mosaics, monkeypatch, capsys):
    (tmp_path / "a.nef").write_bytes(b"never read")
    monkeypatch.setitem(sys.modules, "rawpy", None)
    flags = ["--image_path", tmp_path / "a.nef", "--model_path", for_mosaics, "--save_dir", tmp_path / "o"]
    assert "a.nef: raw files need rawpy: pip install -r requirements-raw.txt" in refusal(predict.main, flags, capsys)


def test_val_scores_no_weights_for_mosaics(tmp_path, for_mosaics, capsys):
    save(tmp_path / "set" / "a.png", scene(32, 32))
    line = refusal(val.main, ["--model_path", for_mosaics, "--val_dirs", tmp_path], capsys)
    assert line.startswith(f"--model_path: {for_mosaics} is for raw files; predict.py")
