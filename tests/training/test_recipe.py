import json
from pathlib import Path

import numpy as np
import pytest
from test_own_noise import smoothed

import train
from conftest import noisy_scene, save, scene
from denoising.cli import UserError
from denoising.imaging.noise import parse_noise
from denoising.inference import devices
from denoising.inference.checkpoint import load_network
from denoising.training import recipe
from denoising.training.methods import build_method
from denoising.training.options import defaults, get_parser, parse_options


@pytest.fixture
def started(monkeypatch):
    """Weights to start from without a look at those that ship, on a CPU that computes in bf16."""
    monkeypatch.setattr(recipe, "nearest_weights", lambda found, options: "w.pdparams")
    monkeypatch.setattr(devices, "fastest_precision", lambda: "bf16")


@pytest.fixture
def white(tmp_path):
    for i in range(3):
        save(tmp_path / "white" / f"{i}.png", noisy_scene(110, 130, seed=i, sigma=20))
    return tmp_path / "white"


def options_of(folder, *flags):
    return parse_options(get_parser(), ["--data_dir", str(folder), *map(str, flags)])[0]


def test_no_other_flag_is_needed(white, started, capsys):
    options = options_of(white, "--noisetype", "none")
    assert (options.preset, options.optimizer, options.lr_schedule, options.augment) == ("auto", "muon", "cosine", True)
    assert (options.method, options.pretrained, options.precision) == ("recorrupted2recorrupted", "w.pdparams", "bf16")
    assert parse_noise(options.known_noise).low == pytest.approx(20, rel=0.06)
    assert (options.patchsize, options.max_minutes, options.lr) == (96, 6, 5e-4)
    said = capsys.readouterr().err
    assert "--preset auto: white noise of" in said
    assert "from w.pdparams, 6 minutes, patches of 96" in said
    assert "a flag beside --preset auto changes that one" in said


def test_what_is_given_stays(white, started):
    options = options_of(white, "--preset", "auto", "--max_minutes", 60, "--lr", 1e-3, "--method", "neighbor2neighbor")
    assert (options.noisetype, options.max_minutes, options.lr) == ("none", 60, 1e-3)
    assert (options.method, options.known_noise, options.batchsize) == ("neighbor2neighbor", None, 4)
    r2r = ("--noisetype", "none", "--method", "recorrupted2recorrupted", "--known_noise")
    options = options_of(white, *r2r, "gauss12")
    assert (options.preset, options.known_noise, options.batchsize) == ("auto", "gauss12", 2)
    assert options_of(white, *r2r, "auto").known_noise.startswith("gauss")
    assert options_of(white, *r2r[:-1]).known_noise.startswith("gauss")
    assert options_of(white, "--noisetype", "none", "--pretrained", "mine.pdparams").pretrained == "mine.pdparams"
    assert options_of(white, "--noisetype", "none", "--n_channel", 1).n_channel == 1
    assert options_of(white, "--preset", "auto", "--n_epoch", 20).max_minutes is None


@pytest.mark.parametrize(
    "flags",
    ["--noisetype none --max_minutes 60", "--noisetype none --n_epoch 100", "--noisetype none --optimizer adam",
     "--noisetype gauss25", "", "--preset lite --method noise2noise --noisetype gauss25",
     "--method noise2noise --pair_dir . --noisetype none"],
)  # fmt: skip
def test_published_commands_are_left_alone(white, flags):
    flags = flags.split()
    options = options_of(white, *flags)
    assert options.preset != "auto"
    if options.preset is None:
        given = {str(flag)[2:] for flag in flags if str(flag).startswith("--")} | {"data_dir", "noisetype", "loss"}
        published = defaults(get_parser())
        assert all(value == published[name] for name, value in vars(options).items() if name not in given)


def test_patches_are_as_large_as_most_images_allow(tmp_path, white, started):
    for i, side in enumerate((40, 20)):
        save(white / f"small{i}.png", noisy_scene(side, 90, seed=9 + i, sigma=20))
    assert options_of(white, "--noisetype", "none").patchsize == 32
    for i in range(4, 8):
        save(white / f"{i}.png", noisy_scene(110, 130, seed=i, sigma=20))
    assert options_of(white, "--noisetype", "none").patchsize == 96
    for i in range(6):
        save(tmp_path / "tiny" / f"{i}.png", noisy_scene(27, 90, seed=i, sigma=20))
    assert options_of(tmp_path / "tiny", "--noisetype", "none", "--method", "neighbor2neighbor").patchsize == 26


def test_grey_images_train_a_grey_network(tmp_path, started):
    save(tmp_path / "0.png", noisy_scene(110, 130, channels=1, sigma=20))
    options = options_of(tmp_path, "--noisetype", "none")
    assert (options.n_channel, options.method) == (1, "recorrupted2recorrupted")


def test_one_image_with_colours_trains_a_network_for_colours(tmp_path, started):
    for i, channels in enumerate((1, 1, 3)):
        save(tmp_path / f"{i}.png", noisy_scene(110, 130, channels=channels, seed=i, sigma=20))
    assert recipe.channels_of(tmp_path) == 3
    (tmp_path / "2.png").write_bytes(b"no image")
    assert recipe.channels_of(tmp_path) == 1


def test_without_weights_that_fit_it_takes_longer(white, monkeypatch):
    monkeypatch.setattr(recipe, "nearest_weights", lambda found, options: None)
    options = options_of(white, "--noisetype", "none")
    assert (options.pretrained, options.max_minutes, options.lr) == (None, 60, 1e-3)


def test_noise_that_neighbours_share_is_left_to_the_weights_that_ship(tmp_path, started):
    save(tmp_path / "my photos" / "0.png", smoothed(0))
    with pytest.raises(UserError) as error:
        options_of(tmp_path / "my photos", "--noisetype", "none")
    said = str(error.value)
    assert said.startswith("--data_dir: correlated noise of")
    assert f"predict.py --image_path '{tmp_path}/my photos' takes those that fit" in said
    options = options_of(tmp_path / "my photos", "--noisetype", "none", "--method", "neighbor2neighbor")
    assert (options.preset, options.method, options.known_noise) == ("auto", "neighbor2neighbor", None)


def test_counts_that_fill_little_of_their_range_are_refused(tmp_path, started, capsys):
    for i in range(3):
        image = noisy_scene(110, 130, channels=1, seed=i, sigma=20)
        save(tmp_path / "12 bits" / f"{i}.png", image.astype(np.uint16) * 16)  # as cameras write them
        save(tmp_path / "14bits" / f"{i}.png", image.astype(np.uint16) * 64)
    with pytest.raises(UserError) as error:
        options_of(tmp_path / "12 bits", "--noisetype", "none")
    said = str(error.value)
    assert "12 bits fill 0.05" in said
    assert f"predict.py --image_path '{tmp_path}/12 bits' takes them as they are" in said
    with pytest.raises(UserError, match=r"multiply the values first; --method neighbor2neighbor trains all the same$"):
        options_of(tmp_path / "12 bits", "--noisetype", "none", "--n_channel", 4)  # which predict.py has no weights for
    assert options_of(tmp_path / "12 bits", "--noisetype", "none", "--method", "neighbor2neighbor").preset == "auto"
    assert options_of(tmp_path / "14bits", "--noisetype", "none").preset == "auto"
    capsys.readouterr()
    for folder, warned in (("12 bits", True), ("14bits", False)):
        flags = ("--noisetype", "none", "--n_epoch", 1, "--n_channel", 1, "--patchsize", 64)
        options = options_of(tmp_path / folder, *flags)
        train.training_images(options, build_method(options))
        assert ("12 bits fill 0.05" in capsys.readouterr().err) is warned


def test_weights_that_come_nearest(tmp_path, white):
    assert Path(options_of(white, "--noisetype", "none").pretrained).name == "gauss5_50.pdparams"
    save(tmp_path / "shared" / "0.png", smoothed(0))
    shared = options_of(tmp_path / "shared", "--noisetype", "none", "--method", "neighbor2neighbor")
    assert Path(shared.pretrained).name == "photo.pdparams"
    assert options_of(white, "--noisetype", "none", "--n_feature", 8).pretrained is None
    # A careful network may start from any, and others from what is not careful.
    deep = ["--method", "neighbor2neighbor", "--arch", "unet_deep", "--n_feature", 72]
    for careful, name in (((), "gauss5_50_deep"), (("--careful",), "photo_deep")):
        assert Path(options_of(tmp_path / "shared", *deep, *careful, "--noisetype", "none").pretrained).stem == name


def test_refusals(tmp_path, started):
    save(tmp_path / "0.png", scene(160, 200))

    def refused(*flags):
        with pytest.raises(UserError) as error:
            options_of(tmp_path, *flags)
        return str(error.value)

    said = refused("--noisetype", "none")
    assert said.startswith("--data_dir: no noise that can be measured")
    assert "--method neighbor2neighbor trains all the same" in said
    assert options_of(tmp_path, "--noisetype", "none", "--method", "neighbor2neighbor").preset == "auto"
    assert refused("--preset", "auto", "--noisetype", "gauss25").startswith("--preset: auto is for images that are")
    assert refused("--preset", "auto", "--method", "noise2noise").startswith("--preset: auto learns from single")
    assert refused("--noisetype", "none", "--method", "recorrupted2recorrupted").startswith("--known_noise:")
    (tmp_path / "0.png").write_bytes(b"broken")
    for flags in ("--noisetype none", "--preset auto --method recorrupted2recorrupted --known_noise auto"):
        assert refused(*flags.split()) == f"--data_dir: no image of {tmp_path} can be read"


def test_what_was_measured_is_kept_with_the_weights(white, tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "PATCH", 32)
    where = ["--save_model_path", tmp_path / "runs", "--log_name", "own", "--val_dirs", "none", "--workers", 1]
    flags = ["--preset", "auto", "--max_steps", 2, "--n_feature", 4, "--device", "cpu", "--engine", "paddle"]
    folder, finished = train.train(*parse_options(get_parser(), list(map(str, ["--data_dir", white, *flags, *where]))))
    assert finished
    _, about = load_network(Path(folder) / "best_model.pdparams")
    kept = json.loads((Path(folder) / "options.json").read_text())["options"]
    assert about["known_noise"] == kept["known_noise"]
    assert about["known_noise"].startswith("gauss")
    assert (about["method"], kept["preset"]) == ("recorrupted2recorrupted", "auto")
    # A run that goes on does not measure anew.
    flags = ["--resume", folder, "--max_steps", "3", "--known_noise", "auto"]
    options, stopped = parse_options(get_parser(), flags)
    assert stopped.folder == folder
    assert (options.known_noise, options.method) == (kept["known_noise"], "recorrupted2recorrupted")
