import re

import numpy as np
import pytest
from PIL import Image

import predict
from conftest import assert_user_error, noisy_scene, opened, refusal, run_script, save
from denoising import cli
from denoising.cli import UserError
from denoising.files import images
from denoising.imaging.noise_analysis import analyse
from denoising.inference import checkpoint
from denoising.inference.denoiser import Denoiser


def run(*flags, code=0):
    assert predict.main([str(flag) for flag in flags]) == code


def test_the_published_command(tmp_path, weights):
    save(tmp_path / "demo" / "cat_noise.png", noisy_scene(45, 67))
    run_script(
        "predict.py", "--image_path", "demo/cat_noise.png", "--model_path", weights, "--save_dir", "./demo/",
        cwd=tmp_path, ok=0,
    )  # fmt: skip
    result = np.asarray(opened(tmp_path / "demo" / "cat_noise_denoise.png"))
    assert (result == Denoiser(str(weights))(noisy_scene(45, 67))).all()


def test_a_folder_tree_keeps_its_shape(tmp_path, weights):
    for name in ("a.png", "deep/er/b.jpg", "deep/a.bmp", "grey.png"):
        save(tmp_path / "in" / name, noisy_scene(40, 50, 1 if "grey" in name else 3))
    run("--image_path", tmp_path / "in", "--model_path", weights, "--save_dir", tmp_path / "out")
    found = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*"))
    assert found == ["a_denoise.png", "deep/a_denoise.png", "deep/er/b_denoise.png", "grey_denoise.png"]
    assert opened(tmp_path / "out" / "grey_denoise.png").mode == "L"


def test_a_glob_and_the_own_format(tmp_path, weights):
    for name in ("a.webp", "b.webp", "c.png"):
        save(tmp_path / name, noisy_scene(40, 50))
    run("--image_path", tmp_path / "*.webp", "--model_path", weights, "--save_dir", tmp_path / "o", "--keep_format")
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == ["a_denoise.webp", "b_denoise.webp"]


def test_a_name_that_cannot_hold_what_is_in_the_file_is_told_before_the_work(tmp_path, weights, monkeypatch, capsys):
    monkeypatch.setattr(Denoiser, "__call__", None)  # so that any use of it fails
    for colours, name in (("RGBA", "alpha.jpg"), ("RGBA", "alpha.bmp"), ("I;16", "deep.jpg")):
        image = Image.fromarray(noisy_scene(40, 50)).convert("RGBA") if colours == "RGBA" else Image.new("I;16", (9, 9))
        image.save(tmp_path / name, "PNG")
    flags = ("--image_path", tmp_path, "--model_path", weights, "--save_dir", tmp_path / "o", "--keep_format")
    run(*flags, code=1)
    told = capsys.readouterr().err
    assert told.count(" cannot hold ") == 3
    assert "3 of 3 images could not be denoised" in told


def test_sixteen_bits_and_floats_stay(tmp_path, weights):
    deep = noisy_scene(40, 50).astype(np.uint16) * 257 + 3
    images.write_image(tmp_path / "deep.png", deep)
    bright = noisy_scene(40, 50).astype(np.float32) / 40
    np.save(tmp_path / "bright.npy", bright)
    run("--image_path", tmp_path, "--model_path", weights, "--save_dir", tmp_path / "o")
    denoise = Denoiser(str(weights))
    assert (images.read_image(tmp_path / "o" / "deep_denoise.png").pages[0] == denoise(deep)).all()
    np.testing.assert_array_equal(np.load(tmp_path / "o" / "bright_denoise.npy"), denoise(bright))


def test_a_stack_is_denoised_page_by_page(tmp_path, weights):
    pages = [noisy_scene(40, 50, 1, seed) for seed in range(3)]
    images.write_image(tmp_path / "stack.tif", pages)
    run("--image_path", tmp_path / "stack.tif", "--model_path", weights, "--save_dir", tmp_path / "o")
    found = images.read_image(tmp_path / "o" / "stack_denoise.tif").pages
    denoise = Denoiser(str(weights))
    assert len(found) == 3
    assert all((page == denoise(source)).all() for page, source in zip(found, pages, strict=True))


def test_a_report_on_what_was_removed(tmp_path, weights, capsys):
    save(tmp_path / "in" / "a.png", noisy_scene(80, 90))
    save(tmp_path / "in" / "flat.png", np.full((80, 90, 3), 90, np.uint8))
    flags = ["--image_path", tmp_path / "in", "--model_path", weights, "--save_dir", tmp_path / "out"]
    run(*flags, "--report", tmp_path / "report", "--precision", "fp32")
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "% of the noise" in page
    assert "cannot be judged" in page
    names = [path.name for path in sorted((tmp_path / "report").glob("*.png"))]
    assert names == ["00000-input.png", "00000-output.png", "00000-residual.png", "00000-structure.png"] + [
        "00001-input.png", "00001-output.png", "00001-residual.png",
    ]  # fmt: skip
    saved, shown = opened(tmp_path / "out" / "a_denoise.png"), opened(tmp_path / "report" / "00000-output.png")
    assert np.array_equal(saved, shown)
    again = [*flags, "--save_dir", tmp_path / "other", "--report", tmp_path / "report"]
    assert refusal(predict.main, again, capsys).startswith("--report: ")
    assert (tmp_path / "report" / "index.html").read_text(encoding="utf-8") == page


def test_a_batch_that_is_continued_gets_its_report(tmp_path, weights, capsys):
    save(tmp_path / "in" / "a.png", noisy_scene(80, 90))
    flags = ["--image_path", tmp_path / "in", "--model_path", weights, "--save_dir", tmp_path / "out"]
    flags += ["--report", tmp_path / "report", "--skip_existing"]
    page = tmp_path / "report" / "index.html"
    run(*flags)
    first = page.read_text(encoding="utf-8")
    run(*flags)  # there is nothing new to tell
    assert page.read_text(encoding="utf-8") == first
    save(tmp_path / "in" / "b.png", noisy_scene(80, 90, seed=1))
    run(*flags)
    assert "b.png" in page.read_text(encoding="utf-8")
    assert "a.png" not in page.read_text(encoding="utf-8")
    # A page of somebody else's is not touched.
    page.write_text("<h1>mine</h1>")
    save(tmp_path / "in" / "c.png", noisy_scene(80, 90, seed=2))
    assert refusal(predict.main, flags, capsys).startswith(f"--report: {page} exists")
    assert page.read_text() == "<h1>mine</h1>"


def test_a_report_among_the_images_is_none_of_them(tmp_path, weights, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--image_path", ".", "--model_path", weights, "--save_dir", "out", "--report", "report", "--skip_existing"]
    for seed, name in enumerate(("a", "b")):
        save(tmp_path / f"{name}.png", noisy_scene(40, 50, seed=seed))
        run(*flags)
        assert not (tmp_path / "out" / "report").exists()
        assert f"{name}.png" in (tmp_path / "report" / "index.html").read_text()


def test_a_report_on_what_looks_like_a_mosaic(tmp_path, weights):
    """Its noise is measured in four phases, but it is denoised and judged as one channel."""
    rng = np.random.default_rng(0)
    mosaic = 60 + np.tile(np.array([[0, 90], [90, 30]]), (64, 64)) + rng.normal(0, 8, (128, 128))
    assert len(analyse(mosaic.astype(np.uint8)).curve) == 4
    save(tmp_path / "a.png", mosaic.astype(np.uint8)[..., None])
    flags = ["--image_path", tmp_path / "a.png", "--model_path", weights, "--save_dir", tmp_path / "out"]
    run(*flags, "--report", tmp_path / "report")
    assert "% of the noise" in (tmp_path / "report" / "index.html").read_text(encoding="utf-8")


def test_amounts_for_images_are_refused_with_weights_for_renders(tmp_path):
    from arch_unet import build_network

    network = build_network("joint_bilateral", n_input=9, n_feature=4)
    checkpoint.save_network(tmp_path / "r.pdparams", checkpoint.network_state(network), network.options)
    save(tmp_path / "a.png", noisy_scene(32, 32))
    with pytest.raises(UserError, match="--detail, --chroma: are for images"):
        run("--image_path", tmp_path / "a.png", "--model_path", tmp_path / "r.pdparams", "--save_dir", tmp_path,
            "--detail", 0.5)  # fmt: skip


def test_alpha_exif_and_resolution_are_kept(tmp_path, weights):
    colour = Image.fromarray(noisy_scene(40, 50)).convert("RGBA")
    alpha = np.arange(2000, dtype=np.uint32).reshape(40, 50) % 256
    colour.putalpha(Image.fromarray(alpha.astype(np.uint8)))
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    exif[0x0112] = 6  # turned by a quarter
    colour.save(tmp_path / "a.png", exif=exif, dpi=(300, 300))
    run("--image_path", tmp_path / "a.png", "--model_path", weights, "--save_dir", tmp_path / "o")
    result = opened(tmp_path / "o" / "a_denoise.png")
    assert result.mode == "RGBA"
    assert result.size == (40, 50)  # upright
    assert (np.asarray(result)[..., 3] == np.rot90(alpha, -1)).all()
    assert result.getexif()[0x010F] == "Maker"
    assert result.getexif().get(0x0112, 1) == 1
    assert round(result.info["dpi"][0]) == 300


def test_nothing_is_overwritten_unasked(tmp_path, weights):
    save(tmp_path / "a.png", noisy_scene(40, 50))
    (tmp_path / "a_denoise.png").write_text("mine")
    flags = ("--image_path", tmp_path / "a.png", "--model_path", weights, "--save_dir", tmp_path)
    with pytest.raises(UserError, match=r"a_denoise\.png exists; --overwrite"):
        run(*flags)
    assert (tmp_path / "a_denoise.png").read_text() == "mine"
    run(*flags, "--overwrite")
    assert opened(tmp_path / "a_denoise.png").size == (50, 40)


def test_a_broken_file_is_reported_and_the_rest_goes_on(tmp_path, weights, capfd):
    for name in ("a.png", "c.png"):
        save(tmp_path / "in" / name, noisy_scene(40, 50))
    (tmp_path / "in" / "b.png").write_bytes(b"no image")
    nan = np.full((20, 20, 3), np.nan, np.float32)
    np.save(tmp_path / "in" / "d.npy", nan)
    run("--image_path", tmp_path / "in", "--model_path", weights, "--save_dir", tmp_path / "o", code=1)
    errors = capfd.readouterr().err
    assert "b.png" in errors
    assert "d.npy" in errors
    assert "2 of 4" in errors
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == ["a_denoise.png", "c_denoise.png"]


def test_no_source_is_overwritten_before_it_is_read(tmp_path, weights):
    for name in ("a.png", "a_denoise.png"):
        save(tmp_path / name, noisy_scene(40, 50))
    before = (tmp_path / "a_denoise.png").read_bytes()
    with pytest.raises(UserError, match=r"--save_dir: .*a_denoise\.png, the result of .*a\.png, is itself"):
        run("--image_path", tmp_path, "--model_path", weights, "--save_dir", tmp_path, "--overwrite")
    assert (tmp_path / "a_denoise.png").read_bytes() == before


def test_a_name_that_is_too_long_fails_alone(tmp_path, weights, capfd):
    for name in ("a", "n" * 245, "z"):
        save(tmp_path / "in" / f"{name}.png", noisy_scene(40, 50))
    run("--image_path", tmp_path / "in", "--model_path", weights, "--save_dir", tmp_path / "o", code=1)
    errors = capfd.readouterr().err
    assert re.search(r"n_denoise\.png: cannot be written: File name too long", errors)
    assert "1 of 3 images could not be denoised" in errors
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == ["a_denoise.png", "z_denoise.png"]


def test_a_result_that_is_not_finite_is_refused(tmp_path, weights, capfd):
    save(tmp_path / "in" / "a.png", noisy_scene(40, 50))
    np.save(tmp_path / "in" / "b.npy", np.full((40, 50, 3), 3e38, np.float32))
    run("--image_path", tmp_path / "in", "--model_path", weights, "--save_dir", tmp_path / "o", code=1)
    assert re.search(r"b\.npy: the result is not finite", capfd.readouterr().err)
    assert [path.name for path in (tmp_path / "o").iterdir()] == ["a_denoise.png"]


def test_names_that_would_collide_are_refused(tmp_path, weights):
    save(tmp_path / "in" / "a.png", noisy_scene(40, 50))
    save(tmp_path / "in" / "a.jpg", noisy_scene(40, 50))
    with pytest.raises(UserError, match=r"a\.jpg.*a\.png.*--keep_format"):
        run("--image_path", tmp_path / "in", "--model_path", weights, "--save_dir", tmp_path / "o")


def bad_flags(tmp_path, weights):
    """(what is wrong, changed flags, words of the message)."""
    garbage = tmp_path / "garbage.pdparams"
    garbage.write_bytes(b"no weights at all")
    truncated = tmp_path / "truncated.pdparams"
    truncated.write_bytes(weights.read_bytes()[:-100])
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "file").write_text("")
    yield "missing image", {"--image_path": tmp_path / "nowhere.png"}, ["--image_path", "nowhere.png"]
    yield "empty folder", {"--image_path": tmp_path / "empty"}, ["--image_path"]
    yield "no image", {"--image_path": tmp_path / "text.png"}, ["text.png"]
    yield "missing weights", {"--model_path": tmp_path / "nowhere.pdparams"}, ["--model_path", "nowhere"]
    yield "weights are a folder", {"--model_path": tmp_path / "empty"}, ["--model_path", "folder"]
    yield "garbage weights", {"--model_path": garbage}, ["garbage.pdparams"]
    yield "truncated weights", {"--model_path": truncated}, ["truncated.pdparams"]
    yield "save_dir is a file", {"--save_dir": tmp_path / "file"}, ["--save_dir"]
    yield "strength", {"--strength": 1.5}, ["--strength", "1.5"]
    yield "negative tile", {"--tile": -3}, ["--tile", "-3"]
    yield "unknown flag", {"--strenght": 1}, ["--strenght"]


def test_mistakes_are_one_line(tmp_path, weights, capsys):
    image = save(tmp_path / "good.png", noisy_scene(40, 50))
    good = {"--image_path": image, "--model_path": weights, "--save_dir": tmp_path / "o"}
    for what, changed, words in bad_flags(tmp_path, weights):
        message = refusal(predict.main, {**good, **changed}, capsys)
        assert all(word in message for word in words), message
        assert not list((tmp_path / "o").glob("*")), what
    # In a process of its own once: one line, exit code 2.
    result = run_script("predict.py", *[part for pair in {**good, "--tile": -3}.items() for part in pair])
    assert_user_error(result, "predict.py: error: argument --tile", "-3")


def test_dashes_are_taken_for_underscores(tmp_path, weights):
    image = save(tmp_path / "a.png", noisy_scene(40, 50))
    run("--image-path", image, f"--model-path={weights}", "--save-dir", tmp_path / "o", "--keep-format")
    assert (tmp_path / "o" / "a_denoise.png").exists()


def test_a_full_disk_is_one_line(tmp_path, weights, monkeypatch):
    image = save(tmp_path / "a.png", noisy_scene(40, 50))

    def full(*_, **__):
        raise OSError(28, "No space left on device", "a_denoise.png")

    monkeypatch.setattr(cli.os, "replace", full)
    with pytest.raises(UserError, match="No space left"):
        run("--image_path", image, "--model_path", weights, "--save_dir", tmp_path / "o")
    assert not list((tmp_path / "o").glob("*"))
