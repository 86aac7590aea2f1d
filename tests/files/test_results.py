"""Where results go: none lost, none replaced unasked, and no source written over before it is read."""

import os
from pathlib import Path

import pytest

from denoising.cli import UserError
from denoising.files import results


def planned(paths, root, save_dir="out", **options):
    return [str(target) for target in results.plan("--image_path", paths, root, save_dir, **options)]


def test_a_tree_keeps_its_shape_and_formats_that_png_cannot_hold(tmp_path):
    names = ["a.png", "deep/er/b.jpg", "c.tif", "d.npy", "e.EXR", "f.g.webp"]
    paths = [tmp_path / name for name in names]
    expected = ["a_denoise.png", "deep/er/b_denoise.png", "c_denoise.tif", "d_denoise.npy", "e_denoise.EXR"]
    assert planned(paths, tmp_path) == [f"out/{name}" for name in [*expected, "f.g_denoise.png"]]
    kept = planned(paths, tmp_path, keep_format=True)
    assert [Path(path).suffix for path in kept] == [Path(name).suffix for name in names]
    # No result has so few colours that a GIF could hold it.
    assert planned([tmp_path / "g.GIF"], tmp_path, keep_format=True) == ["out/g_denoise.png"]


def test_a_glob_or_one_image_has_no_folders(tmp_path):
    assert planned([tmp_path / "x" / "a.png"], tmp_path / "*" / "a.png") == ["out/a_denoise.png"]
    assert planned([tmp_path / "x" / "a.png"], tmp_path / "x" / "a.png") == ["out/a_denoise.png"]


def test_two_results_of_one_name_are_refused(tmp_path):
    paths = [tmp_path / "a.jpg", tmp_path / "a.png"]
    with pytest.raises(
        UserError, match=r"^--image_path: .*a\.jpg and .*a\.png would both become .*--keep_format helps"
    ):
        planned(paths, tmp_path)
    assert len(set(planned(paths, tmp_path, keep_format=True))) == 2
    folders = [tmp_path / "x" / "a.png", tmp_path / "y" / "a.png"]
    for keep_format in (True, False):  # which would help neither these nor two raw files
        with pytest.raises(UserError, match=r"would both become out/a_denoise\.png$"):
            planned(folders, tmp_path / "*" / "a.png", keep_format=keep_format)
    with pytest.raises(UserError, match=r"a\.CR2 and .*a\.dng would both become out/a_denoise\.tif$"):
        planned([tmp_path / "a.CR2", tmp_path / "a.dng"], tmp_path)


def test_what_exists_is_replaced_only_when_asked(tmp_path):
    taken = tmp_path / "out" / "a_denoise.png"
    taken.parent.mkdir()
    taken.symlink_to("nowhere")  # writing would go through a dangling link, too
    with pytest.raises(UserError, match=r"^--save_dir: .*a_denoise\.png exists; --overwrite"):
        planned([tmp_path / "a.png"], tmp_path, taken.parent)
    assert planned([tmp_path / "a.png"], tmp_path, taken.parent, overwrite=True) == [str(taken)]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_source_is_never_a_result(tmp_path, overwrite):
    paths = [tmp_path / name for name in ("a.png", "a_denoise.png")]
    for path in paths:
        path.touch()
    (tmp_path / "link").symlink_to(tmp_path)
    for save_dir in (tmp_path, tmp_path / "link", os.path.relpath(tmp_path)):
        with pytest.raises(UserError, match=r"^--save_dir: .*a_denoise\.png.* is itself an image to denoise"):
            planned(paths, tmp_path, save_dir, overwrite=overwrite)
    with pytest.raises(UserError, match="is itself"):
        planned(paths[:1], tmp_path, tmp_path, overwrite=overwrite, also_read=paths[1:])


def test_a_name_that_is_too_long_is_planned_and_left_to_fail_alone(tmp_path):
    path = tmp_path / f"{'n' * 245}.png"
    path.touch()
    assert planned([path], tmp_path, tmp_path) == [str(tmp_path / f"{'n' * 245}_denoise.png")]
