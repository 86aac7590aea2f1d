import cv2
import numpy as np
import pytest

from conftest import noisy_scene, save, scene
from denoising.cli import UserError
from denoising.imaging.noise import parse_noise
from denoising.imaging.pixels import from_01, to_01
from denoising.training import own_noise, recipe
from denoising.training.options import get_parser, parse_options

R2R = ("--method", "recorrupted2recorrupted", "--noisetype", "none", "--known_noise", "auto")


def images_of(text, kind=np.uint8, count=6):
    """Scenes that are not so bright that much is cut off."""
    model = parse_noise(text)
    for i in range(count):
        noisy = model.add(0.8 * to_01(scene(160, 200, seed=i)), np.random.default_rng(i))
        yield noisy if kind is np.float32 else from_01(noisy, kind)


def smoothed(i):
    """A scene with noise that neighbours share."""
    noise = cv2.GaussianBlur(np.random.default_rng(i).normal(0, 30, (160, 200, 3)), (0, 0), 0.8)
    return np.clip(scene(160, 200, seed=i) + noise, 0, 255).astype(np.uint8)


def test_white_noise_is_named():
    found = own_noise.measure(images_of("gauss20"))
    assert (found.kind, found.is_white, found.can_be_told, found.measured) == ("gauss", True, True, 6)
    assert parse_noise(found.known_noise).low == pytest.approx(20, rel=0.05)
    assert found.known_noise in found.describe()


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_counted_photons_are_counted_exactly(kind):
    found = own_noise.measure(images_of("poisson30", kind))
    assert "+" not in found.known_noise
    assert parse_noise(found.known_noise).low == pytest.approx(30, rel=0.01)


def test_photons_that_cannot_be_counted_have_read_out_noise():
    found = own_noise.measure(images_of("poisson60+gauss9", np.uint16))
    photons, read_out = (part.low for part in parse_noise(found.known_noise).parts)
    variance = 0.4 / photons + (read_out / 255) ** 2
    assert variance == pytest.approx(0.4 / 60 + (9 / 255) ** 2, rel=0.1)
    assert photons == pytest.approx(60, rel=0.4)
    assert found.can_be_told


def test_noise_that_cannot_be_told_by_one_name():
    noisy = [noisy_scene(160, 200, seed=i, sigma=sigma) for i, sigma in enumerate([8, 8, 16, 16, 30, 30])]
    found = own_noise.measure(noisy)
    assert found.is_white
    assert not found.can_be_told
    assert found.spread > 2
    assert "times as strong" in found.describe()
    shared = own_noise.measure(map(smoothed, range(4)))
    assert (shared.kind, shared.is_white, shared.can_be_told) == ("correlated", False, False)


def test_noise_that_channels_share():
    def images(i):
        noise = np.random.default_rng(i).normal(0, 20, (160, 200, 1))
        return np.clip(scene(160, 200, seed=i) + noise, 0, 255).astype(np.uint8)

    found = own_noise.measure(map(images, range(4)))
    assert (found.kind, found.is_white, found.channels_share, found.can_be_told) == ("gauss", True, True, False)
    assert "which the channels share" in found.describe()
    assert recipe.best_method(found) == "neighbor2neighbor"
    with pytest.raises(UserError, match="needs noise of each channel's own: --method neighbor2neighbor$"):
        own_noise.refuse_unknown(found)
    thrice = own_noise.measure(images(i)[..., :1].repeat(3, axis=2) for i in range(4))
    with pytest.raises(UserError, match="needs noise of each channel's own: --n_channel 1, as all images are grey$"):
        own_noise.refuse_unknown(thrice)
    grey = own_noise.measure(images(i)[..., :1] for i in range(4))
    assert not grey.channels_share


def test_the_commonest_kind_counts():
    found = own_noise.measure([*images_of("gauss20", count=4), smoothed(0), scene(160, 200)])
    assert (found.kind, len(found.analyses), found.measured) == ("gauss", 4, 6)
    nothing = own_noise.measure([scene(160, 200)] * 3)
    assert (nothing.kind, nothing.known_noise, nothing.sigma) == ("none", None, 0)


def test_known_noise_auto(tmp_path, capsys):
    for i, image in enumerate(images_of("gauss20", count=3)):
        save(tmp_path / f"{i}.png", image)
    (tmp_path / "broken.png").write_bytes(b"no image")
    options, _ = parse_options(get_parser(), ["--data_dir", str(tmp_path), *R2R])
    assert parse_noise(options.known_noise).low == pytest.approx(20, rel=0.05)
    said = capsys.readouterr().err
    assert "--known_noise: white noise of " in said
    assert options.known_noise in said
    assert "broken.png" in said


def test_known_noise_auto_is_refused(tmp_path):
    def refused(*flags):
        with pytest.raises(UserError) as error:
            parse_options(get_parser(), ["--data_dir", str(tmp_path), *flags])
        return str(error.value)

    save(tmp_path / "0.png", scene(160, 200))
    assert refused(*R2R).startswith("--known_noise: no noise that can be measured")
    save(tmp_path / "0.png", smoothed(0))
    assert "needs white noise" in refused(*R2R)
    assert refused("--noisetype", "none", "--known_noise", "auto").startswith("--known_noise: it is for --method")
    assert "unknown noise 'auto'" in refused(*R2R[:2], "--noisetype", "auto")


def test_counts_in_floats_are_refused(tmp_path):
    (image,) = images_of("gauss20", np.float32, count=1)
    np.save(tmp_path / "a.npy", image)
    assert own_noise.measure_folder("--data_dir", tmp_path, 3).kind == "gauss"
    np.save(tmp_path / "a.npy", image * 4095)
    with pytest.raises(UserError, match="--data_dir: .* has noise of 3[0-9]{2} times white: its floats are counts"):
        own_noise.measure_folder("--data_dir", tmp_path, 3)
