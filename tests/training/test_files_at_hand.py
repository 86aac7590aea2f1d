import cv2
import numpy as np
import pytest

import predict
from arch_unet import build_network
from conftest import noisy_scene, opened, refusal, save, scene
from denoising.cli import UserError
from denoising.files.images import read_image, write_image
from denoising.imaging import stripes
from denoising.imaging.pixels import from_01, to_01
from denoising.inference import checkpoint
from denoising.inference.denoiser import Denoiser
from denoising.training import adapting, files_at_hand


@pytest.fixture(autouse=True)
def _of_a_network_that_has_learnt_nothing(monkeypatch):
    monkeypatch.setattr(adapting, "RATE", 3e-3)


def run(folder, *flags, code=0):
    """Runs predict.py with --adapt on the images of a folder; what it wrote, by name."""
    flags = ["--image_path", folder / "in", "--save_dir", folder / "out", *flags]
    assert predict.main([str(flag) for flag in flags]) == code
    return {path.name: np.asarray(opened(path)) for path in sorted((folder / "out").iterdir())}


def adapted(folder, weights, *flags):
    return run(folder, "--model_path", weights, "--adapt_steps", "30", *flags)


def test_the_adapted_weights_are_used_and_kept(tmp_path, weights, capsys):
    save(tmp_path / "in" / "a.png", noisy_scene(192, 200))
    target = tmp_path / "deep" / "own.pdparams"
    found = adapted(tmp_path, weights, "--save_adapted", target)["a_denoise.png"]
    said = capsys.readouterr().err
    assert "--adapt: tiny, 1 image, 30 steps: +" in said
    assert f"the weights are in {target}" in said
    kept = Denoiser(str(target))
    assert kept.options["adapted_from"] == "tiny.pdparams"
    assert (kept.options["adapted_steps"], kept.options["noisetype"]) == (30, "gauss25")
    assert (kept(noisy_scene(192, 200)) == found).all()
    assert (Denoiser(str(weights))(noisy_scene(192, 200)) != found).any()


def test_minutes(tmp_path, weights, capsys):
    save(tmp_path / "in" / "a.png", noisy_scene(192, 200))
    run(tmp_path, "--model_path", weights, "--adapt", "0.02")
    assert "--adapt: tiny, 1 image, " in capsys.readouterr().err


def test_what_gains_nothing_is_neither_used_nor_kept(tmp_path, weights, capsys, monkeypatch):
    monkeypatch.setattr(adapting, "RATE", 0.0)
    save(tmp_path / "in" / "a.png", noisy_scene(192, 200))
    target = tmp_path / "own.pdparams"
    found = adapted(tmp_path, weights, "--save_adapted", target)["a_denoise.png"]
    assert "the weights stay as they were" in capsys.readouterr().err
    assert not target.exists()
    assert (Denoiser(str(weights))(noisy_scene(192, 200)) == found).all()


@pytest.mark.parametrize(
    ("image", "line"),
    [
        (scene(200, 220), "nothing is learnt from 1 image in which no noise can be measured"),
        (noisy_scene(60, 300), "nothing is learnt from 1 image smaller than 192x192 pixels"),
        (cv2.GaussianBlur(noisy_scene(250, 250, sigma=40), (0, 0), 1.0), "whose noise neighbouring pixels share"),
    ],
    ids=["no noise", "tiny", "camera"],
)
def test_images_with_nothing_to_learn_are_denoised_as_ever(tmp_path, weights, capsys, image, line):
    save(tmp_path / "in" / "a.png", image)
    found = adapted(tmp_path, weights)["a_denoise.png"]
    assert line in capsys.readouterr().err
    assert (Denoiser(str(weights))(image) == found).all()


def test_weights_for_mosaics_learn_nothing_from_pictures(tmp_path):
    network = build_network(arch="unet_raw", n_channel=1, n_input=2, n_feature=4)
    checkpoint.save_network(tmp_path / "r.pdparams", checkpoint.network_state(network), network.options)
    save(tmp_path / "in" / "a.png", noisy_scene(192, 200, 1))
    with pytest.raises(UserError, match=r"a\.png: the image has 1 channels, the network takes 2: a mosaic"):
        run(tmp_path, "--model_path", tmp_path / "r.pdparams", "--adapt_steps", "1")


def test_a_broken_image_ends_nothing(tmp_path, weights, capsys):
    save(tmp_path / "in" / "a.png", noisy_scene(192, 200))
    (tmp_path / "in" / "b.png").write_bytes(b"nothing")
    run(tmp_path, "--model_path", weights, "--adapt_steps", "2", code=1)
    assert "tiny, 1 image, 2 steps" in capsys.readouterr().err


def test_frames_of_a_scene_learn_from_each_other(tmp_path, weights, capsys):
    for number, (down, right) in enumerate([(0, 0), (3, 1), (5, -4)]):
        clean = scene(240, 240, seed=3).astype(float)[10 + down : 220 + down, 10 + right : 220 + right]
        noise = np.random.default_rng(number).normal(0, 20, clean.shape)
        save(tmp_path / "in" / f"{number}.png", np.clip(clean + noise, 0, 255).astype(np.uint8))
    adapted(tmp_path, weights)
    said = capsys.readouterr().err
    assert "3 images with another frame of the scene beside them" in said
    assert "moved by up to 5 whole pixels" in said
    assert "tiny, 3 images, 30 steps: +" in said


def test_frames_whose_noise_is_cut_off_do_not_learn_from_each_other(tmp_path, weights, capsys):
    """Their mean is too bright in the dark, and so is what is learnt from it."""
    for number in range(2):
        noise = np.random.default_rng(number).normal(0, 60, (200, 220, 3))
        save(tmp_path / "in" / f"{number}.png", np.clip(scene(200, 220) / 2 + noise, 0, 255).astype(np.uint8))
    adapted(tmp_path, weights)
    said = capsys.readouterr().err
    assert "2 images with another frame of the scene beside them are taken alone: black and white cut" in said
    assert "learn from it" not in said


def test_images_of_one_size_that_show_different_scenes(tmp_path, weights, capsys):
    for number in range(2):
        save(tmp_path / "in" / f"{number}.png", noisy_scene(192, 200, seed=number))
    adapted(tmp_path, weights)
    said = capsys.readouterr().err
    assert "no two of them show one scene" in said
    assert "another frame" not in said


def test_a_stack_is_adapted_to_with_the_weights_that_denoise_it(tmp_path, capsys):
    """They are those of most of its pages, and not of the first one."""
    counted = np.random.default_rng(0).poisson(to_01(scene(192, 200, 1)) * 10) / 10
    pages = [noisy_scene(192, 200, 1), *[from_01(counted.astype(np.float32), np.uint8)] * 2]
    (tmp_path / "in").mkdir()
    write_image(tmp_path / "in" / "a.tif", pages)
    run(tmp_path, "--adapt_steps", "1", "--fast")
    said = capsys.readouterr().err
    assert "grey_poisson5_50_deep, trained on" in said
    assert "--adapt: grey_poisson5_50_deep, 1 image, 1 steps" in said


def test_stripes_are_taken_off(tmp_path, weights, capsys):
    striped = stripes.add(to_01(noisy_scene(256, 256)), (0.05, 0), np.random.default_rng(0))
    save(tmp_path / "in" / "a.png", from_01(striped, np.uint8))
    adapted(tmp_path, weights)
    assert "a.png: stripes of 1" in capsys.readouterr().err
    # Weights that ship are chosen by what is left; the file is no copy, though there is hardly any noise.
    clean = to_01(scene(256, 256))
    striped = from_01(stripes.add(clean, (0.05, 0), np.random.default_rng(0)), np.uint8)
    save(tmp_path / "in" / "a.png", striped)
    found = run(tmp_path, "--adapt_steps", "1", "--overwrite")["a_denoise.png"]
    assert np.square(to_01(found) - clean).mean() < np.square(to_01(striped) - clean).mean() / 2


def test_raw_files_are_left_out(tmp_path, capsys):
    seen = files_at_hand._Seen()
    assert not seen.pages(tmp_path / "a.dng")
    seen.tell()
    assert "nothing is learnt from raw files" in capsys.readouterr().err


def test_refusals(tmp_path, weights, capsys):
    save(tmp_path / "in" / "a.png", noisy_scene(192, 200))
    exported = tmp_path / "model.onnx"
    exported.write_bytes(b"model")
    for name in ("there", "several_photo_deep"):
        (tmp_path / f"{name}.pdparams").write_bytes(b"old")
    flags = {"--image_path": tmp_path / "in", "--save_dir": tmp_path / "out", "--model_path": weights}
    cases = [
        ({"--adapt": 0}, "--adapt"),
        ({"--adapt": -1}, "--adapt"),
        ({"--adapt": "long"}, "--adapt"),
        ({"--adapt": 1, "--adapt_steps": 5}, "--adapt_steps: takes the place of --adapt"),
        ({"--adapt": 1, "--model_path": exported}, "cannot be trained further"),
        ({"--save_adapted": tmp_path / "a.pdparams"}, "--save_adapted: needs --adapt"),
        ({"--adapt": 1, "--save_adapted": tmp_path / "a.bin"}, "a .pdparams file"),
        ({"--adapt": 1, "--save_adapted": tmp_path / "there.pdparams"}, "--overwrite replaces it"),
        (
            {"--adapt": 1, "--save_adapted": tmp_path / "several.pdparams", "--model_path": "auto"},
            "_photo_deep.pdparams exists",
        ),
        ({"--adapt": 0.01, "--save_adapted": "/proc/a.pdparams"}, "--save_adapted: cannot write to /proc"),
    ]
    for more, words in cases:
        assert words in refusal(predict.main, flags | more, capsys), more
    assert not (tmp_path / "out").exists()


def render_folder(folder, views, seeds, size=192):
    """render/ albedo/ normal/ of so many views, each of so many seeds."""
    for view in range(views):
        albedo = to_01(scene(size, size, seed=view))
        for seed in range(seeds):
            noise = np.random.default_rng([view, seed]).gamma(1.5, 1 / 1.5, (size, size, 1)).astype(np.float32)
            buffers = {"render": albedo * noise, "albedo": albedo, "normal": np.full_like(albedo, 0.5)}
            for kind, buffer in buffers.items():
                (folder / kind).mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(folder / kind / f"view{view}_{seed}.tif"), buffer[..., ::-1])


@pytest.fixture
def of_renders(tmp_path):
    """The weights of a small network for renders."""
    network = build_network(arch="joint_bilateral", n_input=9, n_feature=4)
    checkpoint.save_network(tmp_path / "r.pdparams", checkpoint.network_state(network), network.options)
    return tmp_path / "r.pdparams"


def test_renders_of_a_view_learn_from_each_other_and_become_one(tmp_path, of_renders, capsys, monkeypatch):
    monkeypatch.setattr(files_at_hand, "VIEWS", 1)
    render_folder(tmp_path / "in", views=2, seeds=3)
    flags = {"--image_path": tmp_path / "in", "--save_dir": tmp_path / "out", "--model_path": of_renders}
    assert predict.main([str(part) for pair in (flags | {"--adapt_steps": 4}).items() for part in pair]) == 0
    said = capsys.readouterr().err
    assert "6 renders show 2 views" in said
    assert "--adapt: r, 1 image, 4 steps" in said  # as many as are learnt from
    found = {path.name: read_image(path).pages[0] for path in sorted((tmp_path / "out").iterdir())}
    assert list(found) == ["view0_0_denoise.tif", "view1_0_denoise.tif"]
    for name, result in found.items():
        renders = [read_image(path).pages[0] for path in (tmp_path / "in" / "render").glob(f"{name[:5]}*")]
        mean = np.mean(renders, axis=0)
        assert abs(result.mean() / mean.mean() - 1) < 0.05, name
        albedo = read_image(tmp_path / "in" / "albedo" / f"{name[:7]}.tif").pages[0]
        assert np.square(result - albedo).mean() < np.square(mean - albedo).mean() / 2, name


def test_a_batch_of_views_cannot_be_continued(tmp_path, of_renders, capsys):
    render_folder(tmp_path / "in", views=1, seeds=3)
    flags = {"--image_path": tmp_path / "in", "--save_dir": tmp_path / "out", "--model_path": of_renders}
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "view0_0_denoise.tif").write_bytes(b"a result")
    # The two renders whose names have no result are of a view that has one.
    argv = [str(part) for pair in (flags | {"--adapt": 1}).items() for part in pair]
    with pytest.raises(UserError, match="--skip_existing: with --adapt"):
        predict.main([*argv, "--skip_existing"])


def test_renders_with_no_other_of_their_view(tmp_path, of_renders, capsys):
    render_folder(tmp_path / "in", views=2, seeds=1)
    flags = {"--image_path": tmp_path / "in", "--save_dir": tmp_path / "out", "--model_path": of_renders}
    line = refusal(predict.main, flags | {"--adapt": 1}, capsys)
    assert "--adapt: renders learn from each other: of 2 none shows the same view" in line
    for path in (tmp_path / "in").glob("*/view0_0.tif"):  # a copy has the same noise
        path.with_name("view1_0.tif").write_bytes(path.read_bytes())
    assert "of 2 none shows" in refusal(predict.main, flags | {"--adapt": 1}, capsys)
