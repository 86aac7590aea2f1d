"""Renders with buffers: what is read, learnt from, scored and written; mismatches are one line that names the files."""

import shutil

import numpy as np
import paddle
import pytest

import predict
from arch_unet import build_network
from conftest import ROOT, assert_user_error, run_script, save, scene
from dataset import TrainingRenders
from denoising.cli import UserError
from denoising.data import renders
from denoising.data.validation import ValidationRenders, find_validation_sets
from denoising.files import exr, images
from denoising.imaging.noise import parse_noise
from denoising.imaging.pixels import Picture, from_01
from denoising.inference import auto, checkpoint
from denoising.inference.denoiser import Denoiser
from denoising.training.methods import Noise2Noise, Supervised

RNG = np.random.default_rng(1)


def write_frame(folder, name, size=(40, 48), suffix=".exr", seed=0, **kinds):
    """Buffers of a made-up frame: its light, beyond white at places, with noise as heavy-tailed as that of paths."""
    rng = np.random.default_rng(seed)
    albedo = scene(*size, seed=seed).astype(np.float32) / 255
    light = albedo * 3
    normal = rng.normal(size=(*size, 3)).astype(np.float32)
    normal /= np.linalg.norm(normal, axis=2, keepdims=True)

    def noisy():
        return (light * rng.gamma(0.5, 2, light.shape)).astype(np.float32)

    made = {"render": noisy(), "albedo": albedo, "normal": normal, "target": noisy(), "clean": light} | kinds
    for kind, buffer in made.items():
        path = folder / kind / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        images.write_image(path, renders.as_picture(kind, buffer) if suffix == ".png" else buffer)
    return made


@pytest.fixture
def folder(tmp_path):
    for i in range(3):
        write_frame(tmp_path / "frames", f"scene{i}", seed=i)
    return tmp_path / "frames"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    network = build_network("unet_n2n", n_channel=3, n_feature=4, n_input=9)
    network.dec_conv1c.weight.set_value(network.dec_conv1c.weight * 10)
    path = tmp_path_factory.mktemp("weights") / "renders.pdparams"
    checkpoint.save_network(path, checkpoint.network_state(network), {**network.options, "noisetype": "none"})
    return path


# --- Light ----------------------------------------------------------------------------------------


def test_the_tone_map_is_reinhards_and_has_an_inverse():
    light = np.array([0, 0.01, 0.5, 1, 3, 50], np.float32)
    display = renders.tone_map(light)
    np.testing.assert_allclose(display, (light / (1 + light)) ** (1 / 2.2), rtol=1e-6)
    np.testing.assert_allclose(renders.untone(display), light, rtol=1e-3)
    np.testing.assert_allclose(renders.decode(renders.encode(light)), light, rtol=1e-5)
    assert renders.tone_map(np.float32(-1)) == renders.encode(np.float32(-1)) == 0
    assert np.isfinite(renders.untone(np.float32(1)))


def test_8_bit_buffers_come_back_in_the_units_of_exr(tmp_path):
    made = write_frame(tmp_path, "a", suffix=".png", render=np.full((40, 48, 3), 2.0, np.float32))
    (paths,) = renders.find_frames("--image_path", tmp_path)
    frame = renders.read_frame(paths)
    np.testing.assert_allclose(frame.render, 2.0, rtol=0.03)
    np.testing.assert_allclose(frame.albedo, made["albedo"], atol=0.5 / 255 + 1e-6)
    np.testing.assert_allclose(frame.normal, made["normal"], atol=1 / 255 + 1e-6)
    assert renders.as_stored(frame, frame.render).dtype == np.uint8


# --- Reading --------------------------------------------------------------------------------------


def test_frames_are_found_by_name_whatever_their_suffix(folder):
    (folder / "albedo" / "scene1.exr").unlink()
    images.write_image(folder / "albedo" / "scene1.npy", np.zeros((40, 48, 3), np.float32))
    frames = renders.find_frames("--data_dir", folder, "clean")
    assert [[path.parent.name for path in frame] for frame in frames] == [[*renders.BUFFERS, "clean"]] * 3
    assert frames[1][1].name == "scene1.npy"


def test_what_does_not_match_is_named(folder):
    (folder / "normal" / "scene1.exr").unlink()
    with pytest.raises(UserError, match=r"--data_dir: .*render/scene1.exr has no partner in .*normal"):
        renders.find_frames("--data_dir", folder)
    (folder / "render" / "scene1.exr").unlink()
    with pytest.raises(UserError, match=r"albedo/scene1.exr has no partner in .*render"):
        renders.find_frames("--data_dir", folder)
    with pytest.raises(UserError, match=r"--val_dirs: .*nothing does not exist"):
        renders.find_frames("--val_dirs", folder, "nothing")


def test_sizes_that_differ_are_named(folder):
    images.write_image(folder / "albedo" / "scene0.exr", np.zeros((40, 50, 3), np.float32))
    paths = renders.find_frames("--image_path", folder)[0]
    with pytest.raises(UserError, match=r"albedo/scene0.exr is 50x40, but .*render/scene0.exr is 48x40"):
        renders.read_frame(paths)


def test_layers_of_one_file_are_a_frame(tmp_path, folder):
    frame = renders.read_frame(renders.find_frames("--image_path", folder)[0])
    layers = {f"View.Albedo.{c}": frame.albedo[..., i] for i, c in enumerate("RGB")}
    layers |= {f"View.Normal.{c}": frame.normal[..., i] for i, c in enumerate("XYZ")}
    picture = Picture([frame.render], format="EXR", exr={"layers": layers})
    images.write_image(tmp_path / "all.exr", frame.render, like=picture)
    again = renders.read_frame([tmp_path / "all.exr"])
    np.testing.assert_array_equal(again.network_input(), frame.network_input())
    images.write_image(tmp_path / "all.exr", frame.render)
    with pytest.raises(UserError, match="all.exr: the network takes renders with albedo and normals"):
        renders.read_frame([tmp_path / "all.exr"])


def test_buffers_of_odd_content_are_refused(folder):
    paths = renders.find_frames("--image_path", folder)[0]
    images.write_image(folder / "normal" / "scene0.npy", np.zeros((40, 48, 2), np.float32))
    with pytest.raises(UserError, match="scene0.npy: has 2 channels"):
        renders.read_buffer("normal", folder / "normal" / "scene0.npy")
    images.write_image(folder / "pages.tif", [np.zeros((40, 48, 3), np.uint8)] * 2)
    with pytest.raises(UserError, match=r"pages.tif: has 2 pages"):
        renders.read_frame([folder / "pages.tif"], needs_buffers=False)
    data = exr.encode(np.zeros((40, 48, 3), np.float32), Picture([]))
    paths[1].write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="albedo/scene0.exr: broken or cut short"):
        renders.read_frame(paths)


# --- Learning and scoring -------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "kind"), [(Noise2Noise(), "target"), (Supervised(), "clean")])
def test_patches_of_input_and_target_lie_on_one_another(folder, method, kind):
    training = TrainingRenders(folder, method, parse_noise("none"), 3, 16, 0, augment=True, cache_bytes=1 << 20)
    assert (len(training), training.n_input) == (3, 9)
    for index in range(3):
        noisy, wanted = training.sample(epoch=4, index=index)
        assert noisy.shape == (9, 16, 16)
        assert noisy.dtype == wanted.dtype == np.float32
        made = {name: images.read_image(folder / name / f"scene{index}.exr").pages[0] for name in ("albedo", kind)}
        # Where the patch is, its albedo tells: the target is that of the same place and turn.
        flat = made["albedo"].reshape(-1, 3)
        for row, column in ((0, 0), (3, 11), (15, 15)):
            place = np.abs(flat - noisy[3:6, row, column]).sum(1).argmin()
            candidates = np.abs(flat - noisy[3:6, row, column]).sum(1) == 0
            assert candidates[place]
            values = made[kind].reshape(-1, 3)[candidates]
            assert (np.abs(values - wanted[:, row, column]).sum(1) == 0).any()


def test_relit_patches_are_one_scene_in_another_light(folder, monkeypatch):
    monkeypatch.setattr("dataset.SPLATTED", 0)
    plain = TrainingRenders(folder, Supervised(), parse_noise("none"), 3, 16, 0)
    other = TrainingRenders(folder, Supervised(), parse_noise("none"), 3, 16, 0, relight=True)
    gains = []
    for index in range(3):
        (noisy, wanted), (relit, changed) = (images.sample(epoch=1, index=index) for images in (plain, other))
        # The channels' order is that of the albedo, and light and target are as much brighter as one another.
        order = [min(range(3), key=lambda c, k=k: np.abs(noisy[3 + c] - relit[3 + k]).max()) for k in range(3)]
        assert sorted(order) == [0, 1, 2]
        np.testing.assert_array_equal(relit[3:6], noisy[3:6][order])
        gain = (changed / wanted[order]).mean(axis=(1, 2))
        np.testing.assert_allclose(changed, wanted[order] * gain[:, None, None], rtol=1e-4)
        lights = renders.decode(relit[:3]), renders.decode(noisy[:3])[order] * gain[:, None, None]
        np.testing.assert_allclose(*lights, rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose((relit[6:] ** 2).sum(0), (noisy[6:] ** 2).sum(0), rtol=1e-4)
        gains.append(gain)
    assert np.std(gains) > 0.1


def test_a_quarter_of_the_relit_patches_shares_its_noise_among_neighbours(folder, monkeypatch):
    target = np.random.default_rng(0).gamma(1, 1, (64, 64, 3)).astype(np.float32)
    code = np.concatenate([renders.encode(target), target, target], axis=2)
    for kind, result in zip(("light", "target"), renders.splatted(code, target), strict=True):
        light = renders.decode(result[..., :3]) if kind == "light" else result
        assert light.mean() == pytest.approx(target.mean(), rel=5e-3)
        neighbours = np.corrcoef(light[:, 1:].ravel(), light[:, :-1].ravel())[0, 1]
        assert neighbours == pytest.approx(0.26, abs=0.04)
    training = TrainingRenders(folder, Supervised(), parse_noise("none"), 3, 16, 0, relight=True)
    counted = []
    monkeypatch.setattr(renders, "splatted", lambda *patches: counted.append(1) or patches)
    for epoch in range(100):
        training.sample(epoch, 0)
    assert 12 < len(counted) < 40


def test_a_share_of_the_patches_lacks_its_buffers(folder):
    training = TrainingRenders(folder, Noise2Noise(), parse_noise("none"), 3, 16, 0, colour_only=0.5)
    bare = [not training.sample(epoch, 0)[0][3:].any() for epoch in range(40)]
    assert 10 < sum(bare) < 30
    assert all(training.sample(epoch, 0)[0][:3].any() for epoch in range(5))


def test_validation_scores_what_is_seen(folder):
    (found,), absent = find_validation_sets(folder)
    assert isinstance(found, ValidationRenders)
    assert not absent
    name, clean, noisy = next(found.images(3, None, None))
    assert name == "scene0.exr"
    target = images.read_image(folder / "target" / "scene0.exr").pages[0]
    np.testing.assert_array_equal(clean, from_01(renders.tone_map(target), np.uint8))
    np.testing.assert_array_equal(found.shown(target), clean)
    frame = renders.read_frame(renders.find_frames("--val_dirs", folder)[0])
    np.testing.assert_allclose(found.shown(noisy), renders.as_picture("render", frame.render), atol=1)
    (named,), _ = find_validation_sets(folder.parent)
    assert (named.name, type(named)) == ("frames", ValidationRenders)


def test_strength_mixes_light_and_tiles_equal_the_whole(folder, weights):
    frame = renders.read_frame(renders.find_frames("--image_path", folder)[0])
    whole = renders.denoise(Denoiser(weights), frame)
    assert whole.min() >= 0
    assert whole.shape == frame.render.shape
    half = renders.denoise(Denoiser(weights, strength=0.5), frame)
    np.testing.assert_allclose(half, (whole + frame.render) / 2, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(renders.denoise(Denoiser(weights, strength=0), frame), frame.render)
    large = {kind: np.tile(getattr(frame, kind), (8, 9, 1)) for kind in renders.BUFFERS}
    large = renders.Frame(**large, picture=frame.picture)
    tiled = renders.denoise(Denoiser(weights, tile=352), large)
    np.testing.assert_allclose(tiled, renders.denoise(Denoiser(weights), large), rtol=1e-3, atol=1e-4)


# --- The scripts ----------------------------------------------------------------------------------


def test_train_val_predict(tmp_path, folder):
    arguments = ["--data_dir", folder, "--val_dirs", folder, "--arch", "unet_n2n", "--n_feature", 4, "--batchsize", 2]
    arguments += ["--patchsize", 32, "--max_steps", 2, "--save_model_path", tmp_path / "runs", "--log_iters", 1]
    for method in ("noise2noise", "supervised"):
        run_script("train.py", "--method", method, "--log_name", method, *arguments, ok=0)
    (model,) = (tmp_path / "runs" / "noise2noise").glob("*/best_model.pdparams")
    result = run_script("val.py", "--model_path", model, "--val_dirs", folder, ok=0)
    assert "frames   3 x 1" in result.stdout
    run_script("predict.py", "--image_path", folder, "--model_path", model, "--save_dir", tmp_path / "out", ok=0)
    names = [f"scene{i}_denoise.exr" for i in range(3)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    page = images.read_image(tmp_path / "out" / names[0]).pages[0]
    frame = renders.read_frame(renders.find_frames("--image_path", folder)[0])
    np.testing.assert_allclose(page, renders.denoise(Denoiser(model), frame), rtol=1e-3, atol=1e-4)


def test_mistakes_are_one_line(tmp_path, folder, weights):
    def train(*more):
        return run_script("train.py", "--data_dir", folder, "--val_dirs", "none", "--max_steps", 1, *more)

    assert_user_error(train(), "--method", "noise2noise")
    assert_user_error(train("--method", "noise2noise"), "--arch", "unet_n2n")
    n2n = ["--method", "noise2noise", "--arch", "unet_n2n"]
    assert_user_error(train(*n2n, "--noisetype", "gauss25"), "--noisetype", "own noise")
    predict = ["predict.py", "--save_dir", tmp_path / "out", "--model_path"]
    assert_user_error(run_script(*predict, weights, "--image_path", "demo/astronaut_noise.png"), "albedo and normals")
    assert_user_error(run_script(*predict, "best_model.pdparams", "--image_path", folder), "--model_path", "renders")
    val = ["val.py", "--val_images", 1, "--model_path"]
    assert_user_error(run_script(*val, weights, "--val_dirs", "validation"), "takes 9")
    assert_user_error(run_script(*val, "best_model.pdparams", "--val_dirs", folder), "takes 3")
    assert_user_error(run_script("export_model.py", "--model_path", weights, "--save_dir", tmp_path), "--model_path")


def test_the_network_that_weighs_neighbours_trains_and_needs_no_buffers(tmp_path, folder):
    arguments = ["--data_dir", folder, "--val_dirs", folder, "--arch", "joint_bilateral", "--n_feature", 4]
    arguments += ["--batchsize", 2, "--patchsize", 32, "--max_steps", 2, "--save_model_path", tmp_path / "runs"]
    arguments += ["--augment", "--colour_only", 0.5, "--log_name", "a", "--method", "noise2noise", "--log_iters", 1]
    run_script("train.py", *arguments, ok=0)
    (model,) = (tmp_path / "runs" / "a").glob("*/best_model.pdparams")
    assert "frames   3 x 1" in run_script("val.py", "--model_path", model, "--val_dirs", folder, ok=0).stdout
    predict = ["predict.py", "--model_path", model, "--image_path"]
    run_script(*predict, folder, "--save_dir", tmp_path / "with", ok=0)
    run_script(*predict, folder / "render", "--save_dir", tmp_path / "without", ok=0)
    shown = renders.as_picture("render", images.read_image(folder / "render" / "scene0.exr").pages[0])
    images.write_image(tmp_path / "shown.png", shown)
    run_script(*predict, tmp_path / "shown.png", "--save_dir", tmp_path / "shown", ok=0)
    whole, alone = (images.read_image(tmp_path / name / "scene0_denoise.exr").pages[0] for name in ("with", "without"))
    assert whole.dtype == alone.dtype == np.float32
    assert np.abs(whole - alone).max() > 0.01
    seen = images.read_image(tmp_path / "shown" / "shown_denoise.png").pages[0].astype(float)
    assert np.abs(seen - renders.as_picture("render", alone)).mean() < 5
    assert_user_error(
        run_script("export_model.py", "--model_path", model, "--save_dir", tmp_path / "export"), "--model_path"
    )
    frame = renders.read_frame(renders.find_frames("--image_path", folder)[0])
    assert (renders.denoise(Denoiser(model), frame) >= 0).all()


def test_weights_for_renders_are_found_where_there_are_buffers(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(auto, "_shelves", lambda: [tmp_path])

    def denoise(path, *flags):
        predict.main(["--image_path", str(path), "--save_dir", str(tmp_path / f"{path.stem}_out"), *flags])

    for flags, words in (([], "--model_path: there are no weights for renders"), (["--fast"], "--fast: ")):
        with pytest.raises(UserError, match=words):
            denoise(folder, *flags)
    made = build_network("joint_bilateral", n_channel=3, n_feature=4, n_input=9)
    checkpoint.save_network(tmp_path / "renders.pdparams", checkpoint.network_state(made), made.options)
    denoise(folder)
    results = sorted((tmp_path / "frames_out").iterdir())
    assert len(results) == 3
    # One file with layers is a render, too.
    frame = renders.read_frame(renders.find_frames("--image_path", folder)[0])
    layers = {f"{name}.{c}": getattr(frame, name)[..., i] for name in ("albedo", "normal") for i, c in enumerate("RGB")}
    like = Picture([frame.render], format="EXR", exr={"layers": layers})
    images.write_image(tmp_path / "shot.exr", frame.render, like=like)
    denoise(tmp_path / "shot.exr")
    (result,) = (tmp_path / "shot_out").iterdir()
    expected = images.read_image(results[0]).pages[0]
    np.testing.assert_allclose(images.read_image(result).pages[0], expected, rtol=1e-2, atol=1e-3)
    # So is a folder of them, though one be broken; beside other images they are images.
    (tmp_path / "shots").mkdir()
    (tmp_path / "shots" / "a.exr").write_bytes(b"nothing")
    shutil.copy(tmp_path / "shot.exr", tmp_path / "shots" / "b.exr")
    denoise(tmp_path / "shots")
    (again,) = (tmp_path / "shots_out").iterdir()
    assert (images.read_image(again).pages[0] == images.read_image(result).pages[0]).all()
    save(tmp_path / "shots" / "c.png", scene(32, 32))
    with pytest.raises(UserError, match="auto finds no weights"):  # for images
        denoise(tmp_path / "shots", "--overwrite")


def test_clean_targets_that_are_absent_are_asked_for(tmp_path):
    write_frame(tmp_path, "a")
    (tmp_path / "clean" / "a.exr").unlink()
    (tmp_path / "clean").rmdir()
    with pytest.raises(UserError, match="clean does not exist; tools/render_dataset.py --clean_targets makes them"):
        TrainingRenders(tmp_path, Supervised(), parse_noise("none"), 3, 16, 0)


def test_an_empty_network_blurs_the_light_and_keeps_the_texture():
    network = build_network("unet_n2n", n_channel=3, n_feature=4, n_input=9)
    network.dec_conv1c.weight.set_value(network.dec_conv1c.weight * 0)
    albedo = scene(32, 40).astype(np.float32) / 255
    light = np.full((32, 40, 3), 3, np.float32)
    light[16, 20] *= 50  # a firefly
    frame = renders.Frame((albedo + 0.05) * light, albedo, np.zeros_like(albedo), Picture([]))
    x = paddle.to_tensor(frame.network_input().transpose(2, 0, 1)[None])
    with paddle.no_grad():
        denoised = network(x).numpy()[0].transpose(1, 2, 0)
    expected = np.full((32, 40, 1), 3.0)
    expected[11:22, 15:26] += (20 - 3) / 121
    np.testing.assert_allclose(denoised / (albedo + 0.05), np.broadcast_to(expected, albedo.shape), rtol=0.01)


def test_the_comparison_prints_a_table(tmp_path, monkeypatch):
    for split in ("train", "valid"):
        for i in range(2):
            write_frame(tmp_path / "data" / split, f"scene{i}", seed=i)
    compare = ["benchmarks/render_comparison.py", "--save_dir", tmp_path / "runs", "--data_dir", tmp_path / "data"]
    result = run_script(
        *compare, "--flags", "--n_feature 4 --batchsize 1 --patchsize 32 --max_steps 2",
        "--picture", tmp_path / "a.png", ok=0,
    )  # fmt: skip
    (table,) = tables_of(result)
    assert table[0][0] == "2 frames of data"
    scores = {row[0]: [float(cell) for cell in row[1:]] for row in table[2:]}
    assert set(scores) >= {
        "noisy", "joint bilateral filter", "non-local means", "ours, noisy targets", "ours, clean targets"
    }  # fmt: skip
    assert scores["joint bilateral filter"][0] > scores["noisy"][0] + 1
    assert scores["joint bilateral filter"][2] < scores["noisy"][2]
    assert images.read_image(tmp_path / "a.png").pages[0].shape[1] > 6 * 48
    # Networks that exist are compared on several folders, of which these need no training part.
    write_frame(tmp_path / "own" / "valid", "box")
    (model,) = (tmp_path / "runs" / "noise2noise").glob("*/best_model.pdparams")
    result = run_script(*compare, tmp_path / "own", "--model_path", model, ok=0)
    first, second = tables_of(result)
    assert second[0][0] == "1 frames of own"
    # Of scenes to train on the renders of each are taken together.
    one = write_frame(tmp_path / "views" / "train", "scene_0")
    other = (one["clean"] * np.random.default_rng(9).gamma(0.5, 2, one["clean"].shape)).astype(np.float32)
    write_frame(tmp_path / "views" / "train", "scene_1", render=other)
    write_frame(tmp_path / "views" / "train", "scene_2", seed=5)
    with monkeypatch.context() as patched:
        patched.syspath_prepend(str(ROOT / "benchmarks"))
        from render_comparison import frames_of
    frames = frames_of(tmp_path / "views")
    assert len(frames) == 2
    np.testing.assert_allclose(frames[0][0].render, (one["render"] + other) / 2, rtol=1e-3)
    row = next(row for row in first if row[0] == "ours")
    assert [float(cell) for cell in row[1:4]] == scores["ours, noisy targets"][:3]
    (without,) = tables_of(run_script(*compare, "--colour_only", "--model_path", model, ok=0))
    assert without[2] == table[2]  # the noisy render is the same
    assert without[3] != table[3]  # and the filter knows less
    assert_user_error(run_script(*compare, "--model_path", tmp_path / "none.pdparams"), "--model_path")


def tables_of(result):
    """The cells of each Markdown table."""
    parts = result.stdout.strip().split("\n\n")
    return [[[cell.strip() for cell in line.split("|")[1:-1]] for line in part.splitlines()] for part in parts]
