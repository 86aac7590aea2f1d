"""Which images a folder or a pattern names, and what is said of those that are not read."""

import os

import pytest
from samples import BLOCKS

from denoising.cli import UserError
from denoising.files import images


def test_find_images(tmp_path):
    for name in ("b.PNG", "a.jpg", "sub/c.tif", ".hidden.png", ".cache/d.png", "notes.txt", "x[1].png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "sub" / "ring").symlink_to(tmp_path)

    def names(path):
        return [str(file.relative_to(tmp_path)) for file in images.find_images("--flag", path)]

    assert names(tmp_path) == ["a.jpg", "b.PNG", "sub/c.tif", "x[1].png"]
    assert names(tmp_path / "x[1].png") == ["x[1].png"]
    assert names(tmp_path / "*.jpg") == ["a.jpg"]
    assert names(str(tmp_path) + "/**/*.tif") == ["sub/c.tif"]
    left_out = [os.path.relpath(tmp_path / "b.PNG"), tmp_path / "absent"]
    assert "b.PNG" not in [file.name for file in images.find_images("--flag", tmp_path, leave_out=left_out)]
    (tmp_path / "none").mkdir()
    for path in ("none", "absent", "*.bmp"):
        with pytest.raises(UserError, match=r"^--flag: "):
            images.find_images("--flag", tmp_path / path)


def test_a_glob_over_rings_of_links_ends(tmp_path):
    for name in ("a", "b", "c/d"):
        (tmp_path / name).mkdir(parents=True)
        images.write_image(tmp_path / name / "x.png", BLOCKS)
        for other in range(6):  # each link doubles the ways round
            (tmp_path / name / f"ring{other}").symlink_to(tmp_path)
    images.write_image(tmp_path / "y.jpg", BLOCKS)
    (tmp_path / ".hidden").mkdir()
    images.write_image(tmp_path / ".hidden" / "x.png", BLOCKS)

    def names(pattern):
        return [path.relative_to(tmp_path).as_posix() for path in images.find_images("--data_dir", tmp_path / pattern)]

    assert names("**") == ["a/x.png", "b/x.png", "c/d/x.png", "y.jpg"]
    assert names("**/*.png") == ["a/x.png", "b/x.png", "c/d/x.png"]
    assert names("**/**/x.*") == ["a/x.png", "b/x.png", "c/d/x.png"]
    through_rings = names("c/**")
    assert "c/d/x.png" in through_rings
    assert len({os.path.realpath(tmp_path / name) for name in through_rings}) == len(through_rings)
    assert names("[ab]/**/*") == ["a/x.png", "b/x.png"]
    assert names("**/d/**") == ["c/d/x.png"]
    assert names("*/x.png") == ["a/x.png", "b/x.png"]
    with pytest.raises(UserError, match="--data_dir: no image in"):
        images.find_images("--data_dir", tmp_path / "**" / "*.bmp")


def test_who_gives_a_volume_is_told_what_makes_images_of_it(tmp_path):
    for name in ("brain.nii", "brain.nii.gz"):
        (tmp_path / name).write_bytes(b"a header and voxels")
        with pytest.raises(UserError, match=rf"{name}: .*a volume; tools/mri_dataset\.py makes images of its slices"):
            images.read_image(tmp_path / name)


def test_photographs_that_are_not_read_are_told(tmp_path, capsys):
    (tmp_path / "a.heic").touch()
    with pytest.raises(UserError, match=r"--image_path: .* holds .*\(\.heic: 1\); save them as PNG"):
        images.find_images("--image_path", tmp_path)
    for name in ("b.HEIC", "c.avif", "d.png", "notes.txt"):
        (tmp_path / name).touch()
    for _ in range(2):  # as a training does, which first measures the noise
        assert images.find_images("--image_path", tmp_path) == [tmp_path / "d.png"]
    told = capsys.readouterr().err
    assert told.count("also holds photographs of a kind that is not read (.avif .heic: 3); save") == 1
