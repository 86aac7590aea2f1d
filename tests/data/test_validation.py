"""Validation sets: which are found in a folder, what they yield, and how archives of the published ones are placed."""

import zipfile

import numpy as np
import pytest

from conftest import save, scene
from denoising.cli import UserError
from denoising.data import renders, validation
from denoising.data.validation import (
    ValidationPairFile,
    ValidationPairs,
    ValidationRenders,
    ValidationSet,
    find_validation_sets,
)
from denoising.files import images, pair_files
from denoising.imaging.noise import parse_noise
from denoising.imaging.pixels import to_01, to_grey

GAUSS = parse_noise("gauss25")


def found_in(folder):
    """Kinds, names and repeats of the sets that are there, and the names of those that are not."""
    present, absent = find_validation_sets(str(folder))
    return [(type(held), held.name, held.repeats) for held in present], [missing.name for missing in absent]


def save_pairs(folder, names=("b", "a")):
    for name in names:
        save(folder / "clean" / f"{name}.png", scene(12, 14, seed=ord(name)))
        save(folder / "noisy" / f"{name}.png", scene(12, 14, seed=ord(name) + 9))


def save_frames(folder, names=("b", "a"), shape=(12, 14)):
    for name in names:
        for number, kind in enumerate((*renders.BUFFERS, "target")):
            save(folder / kind / f"{name}.png", scene(*shape, seed=ord(name) + number))


# --- Which sets there are -----------------------------------------------------------------------------------


def test_published_sets_come_first_in_their_order_and_others_by_name(tmp_path):
    for name in ("Zebra", "Set14", "Kodak24", "BSD300/test", "BSD300/train", "Apes", ".hidden"):
        save(tmp_path / name / "a.png", scene(12, 12))
    (tmp_path / "file.txt").write_text("no folder")
    kinds = [("Kodak", 10), ("BSD300", 3), ("Set14", 20), ("Apes", 1), ("Zebra", 1)]
    assert found_in(tmp_path) == ([(ValidationSet, *name_and_repeats) for name_and_repeats in kinds], [])
    # Where both stand, the folder of the published name is taken; the other is still no set of its own.
    save(tmp_path / "Kodak" / "k.png", scene(12, 12))
    present, _ = find_validation_sets(str(tmp_path))
    assert [path.name for path in present[0].paths()] == ["k.png"]
    assert [path.parent.name for path in present[1].paths()] == ["test"]
    assert [held.name for held in present].count("Kodak24") == 0


def test_images_beside_the_folders_of_sets_are_noted(tmp_path, capsys):
    save(tmp_path / "one.png", scene(12, 12))
    assert found_in(tmp_path)[0] == [(ValidationSet, tmp_path.name, 1)]
    assert capsys.readouterr().err == ""
    save(tmp_path / "sub" / "two.png", scene(12, 12))
    assert found_in(tmp_path)[0] == [(ValidationSet, "sub", 1)]
    assert f"--val_dirs: images beside the folders in {tmp_path} are not scored (1)" in capsys.readouterr().err


def test_absent_sets_tell_where_they_come_from(tmp_path):
    save(tmp_path / "Mine" / "a.png", scene(12, 12))
    present, absent = find_validation_sets(str(tmp_path))
    assert [missing.name for missing in absent] == ["Kodak", "BSD300", "Set14"]
    assert ["Kodak" in absent[0].origin, "Berkeley" in absent[1].origin, "Set14" in absent[2].origin] == [True] * 3
    assert [held.folder for held in present] == [str(tmp_path / "Mine")]
    save(tmp_path / "BSD300" / "test" / "b.png", scene(12, 12))
    assert found_in(tmp_path)[1] == ["Kodak", "Set14"]


def test_a_folder_of_images_alone_is_a_set_and_one_beside_sets_is_not(tmp_path):
    save(tmp_path / "mine" / "A.PNG", scene(12, 12))
    all_published = ["Kodak", "BSD300", "Set14"]
    assert found_in(tmp_path / "mine") == ([(ValidationSet, "mine", 1)], all_published)
    save(tmp_path / "mine" / "inner" / "b.png", scene(12, 12))
    assert found_in(tmp_path / "mine") == ([(ValidationSet, "inner", 1)], all_published)


def test_a_folder_without_images_is_passed_over_and_said(tmp_path, capsys):
    save(tmp_path / "Mine" / "a.png", scene(12, 12))
    (tmp_path / "Empty").mkdir()
    assert [name for _, name, _ in found_in(tmp_path)[0]] == ["Mine"]
    assert "Empty" in (line := capsys.readouterr().err)
    assert line.endswith("passed over\n")
    with pytest.raises(UserError, match="--val_dirs: .*Empty holds no images and none of the sets Kodak, BSD300"):
        find_validation_sets(str(tmp_path / "Empty"))
    with pytest.raises(UserError, match="--val_dirs"):
        find_validation_sets(str(tmp_path / "nowhere"))


def test_pairs_and_renders_are_known_by_their_folders(tmp_path):
    save_pairs(tmp_path / "pairs")
    save_frames(tmp_path / "frames")
    save(tmp_path / "half" / "noisy" / "a.png", scene(12, 12))
    kinds = [(ValidationRenders, "frames", 1), (ValidationSet, "half", 1), (ValidationPairs, "pairs", 1)]
    assert found_in(tmp_path) == (kinds, ["Kodak", "BSD300", "Set14"])
    # The given folder may be such a one itself: then nothing else is looked for.
    assert found_in(tmp_path / "pairs") == ([(ValidationPairs, "pairs", 1)], [])
    assert found_in(f"{tmp_path / 'frames'}/") == ([(ValidationRenders, "frames", 1)], [])


def test_a_pair_file_is_a_set_and_a_broken_one_is_refused_at_once(tmp_path):
    arrays = np.random.default_rng(0).integers(0, 256, (2, 3, 3, 12, 14), np.uint8)
    pair_files.write(str(tmp_path / "mine.npz"), pair_files.VALIDATION, arrays)
    assert found_in(tmp_path / "mine.npz") == ([(ValidationPairFile, "mine", 1)], [])
    (tmp_path / "broken.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"broken\.npz"):
        find_validation_sets(str(tmp_path / "broken.npz"))


# --- What they yield ----------------------------------------------------------------------------------------


def test_clean_images_get_seeded_noise_one_after_the_other(tmp_path):
    pictures = {f"{name}.png": scene(12, 14, seed=ord(name)) for name in "cab"}
    for name, picture in pictures.items():
        save(tmp_path / name, picture)
    held = ValidationSet("Mine", str(tmp_path))
    assert not held.own_noise
    assert [path.name for path in held.paths()] == ["a.png", "b.png", "c.png"]
    assert [path.name for path in held.paths(2)] == ["a.png", "b.png"]
    rng = np.random.RandomState(101)
    found = list(held.images(3, GAUSS, np.random.RandomState(101), 2))
    assert [name for name, _, _ in found] == ["a.png", "b.png"]
    for name, clean, noisy in found:
        assert (clean == pictures[name]).all()
        assert (noisy == GAUSS.add(pictures[name].astype(np.float32) / 255, rng)).all()
        assert noisy.max() > 1 or noisy.min() < 0 or noisy.dtype == np.float32
    assert held.shown(np.float32([[[-1, 0.5, 2]]])).tolist() == [[[0, 128, 255]]]


def test_clean_images_of_other_types_and_channels_are_scored_in_8_bits(tmp_path):
    picture = scene(12, 14)
    np.save(tmp_path / "a.npy", picture.astype(np.uint16) * 257 + 100)
    for n_channel, expected in ((3, picture), (1, to_grey(picture.astype(np.uint16) * 257 + 100) / 257)):
        clean = validation.read_clean(str(tmp_path / "a.npy"), n_channel)
        assert clean.dtype == np.uint8
        assert clean.shape == (12, 14, n_channel)
        assert np.abs(clean.astype(float) - expected).max() <= (0 if n_channel == 3 else 1)
    with pytest.raises(UserError, match=r"a\.npy: has 3 channels"):
        validation.read_clean(str(tmp_path / "a.npy"), 4)


def test_stacks_are_refused_rather_than_scored_by_their_first_page(tmp_path):
    stack = np.stack([scene(12, 14, seed=seed) for seed in range(3)])
    for kind in ("clean", "noisy"):
        (tmp_path / kind).mkdir()
        np.save(tmp_path / kind / "a.npy", stack[: 3 if kind == "noisy" else 1])
    with pytest.raises(UserError, match=r"^--val_dirs: .*a\.npy has 3 pages; dataset_tool.py splits such files"):
        validation.read_clean(str(tmp_path / "noisy" / "a.npy"), 3)
    (pairs,), _ = validation.find_validation_sets(str(tmp_path))
    with pytest.raises(UserError, match=r"^--val_dirs: .*noisy/a\.npy has 3 pages"):
        list(pairs.images(3, GAUSS, np.random.default_rng(0)))


def test_pairs_come_with_the_noise_that_they_have(tmp_path):
    save_pairs(tmp_path)
    held = ValidationPairs("pairs", str(tmp_path))
    assert held.own_noise
    found = list(held.images(3, None, None))
    assert [name for name, _, _ in found] == ["a.png", "b.png"]
    for name, clean, noisy in found:
        assert (clean == scene(12, 14, seed=ord(name[0]))).all()
        assert (noisy == to_01(scene(12, 14, seed=ord(name[0]) + 9))).all()
    assert [name for name, _, _ in held.images(3, None, None, 1)] == ["a.png"]
    assert [path.name for path in held.paths(1)] == ["a.png"]
    assert {array.shape[2] for _, *arrays in held.images(1, None, None) for array in arrays} == {1}


def test_pairs_that_do_not_match_are_refused(tmp_path):
    save_pairs(tmp_path)
    held = ValidationPairs("pairs", str(tmp_path))
    save(tmp_path / "noisy" / "b.png", scene(12, 15))
    with pytest.raises(UserError, match=r"noisy/b\.png and .*clean/b\.png differ in size"):
        list(held.images(3, None, None))
    (tmp_path / "noisy" / "b.png").unlink()
    with pytest.raises(UserError, match=r"clean/b\.png has no partner in .*/noisy"):
        list(held.images(3, None, None))


def test_a_pair_file_yields_its_images_by_number(tmp_path):
    noisy, clean = np.random.default_rng(0).integers(0, 256, (2, 3, 3, 12, 14), np.uint8)
    pair_files.write(str(tmp_path / "mine.npz"), pair_files.VALIDATION, (noisy, clean))
    held = ValidationPairFile("mine", str(tmp_path / "mine.npz"))
    assert (list(held.paths()), list(held.paths(2)), held.own_noise) == ([0, 1, 2], [0, 1], True)
    found = list(held.images(3, None, None))
    assert [name for name, _, _ in found] == ["00000", "00001", "00002"]
    for index, (_, wanted, given) in enumerate(found):
        assert (wanted == clean[index].transpose(1, 2, 0)).all()
        assert (given == to_01(noisy[index].transpose(1, 2, 0))).all()
    assert [name for name, _, _ in held.images(3, None, None, 2)] == ["00000", "00001"]
    assert next(held.images(1, None, None))[1].shape == (12, 14, 1)


def test_renders_are_scored_as_they_are_seen(tmp_path):
    save_frames(tmp_path)
    held = ValidationRenders("frames", str(tmp_path))
    assert held.own_noise
    assert [path.name for path in held.paths()] == ["a.png", "b.png"]
    assert [path.name for path in held.paths(1)] == ["a.png"]
    found = list(held.images(3, None, None))
    assert [name for name, _, _ in found] == ["a.png", "b.png"]
    for name, clean, noisy in found:
        assert np.abs(clean.astype(int) - scene(12, 14, seed=ord(name[0]) + 3)).max() <= 1
        assert noisy.shape == (12, 14, 9)
        seen = scene(12, 14, seed=ord(name[0]))
        # What a network got holds the render in its first three channels; what it gave is light.
        assert np.abs(held.shown(noisy).astype(int) - seen).max() <= 1
        assert np.abs(held.shown(renders.decode(noisy[..., :3])).astype(int) - seen).max() <= 1
    assert [name for name, _, _ in held.images(3, None, None, 1)] == ["a.png"]
    save_frames(tmp_path / "other", ["a"], (12, 15))
    (tmp_path / "other" / "target" / "a.png").rename(tmp_path / "target" / "a.png")
    with pytest.raises(UserError, match=r"target/a\.png is 15x12, but .*render/a\.png is 14x12"):
        list(held.images(3, None, None))


# --- Archives of the published ones -------------------------------------------------------------------------


def archive_of(path, names, data):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, data)
    return str(path)


@pytest.mark.parametrize(
    ("name", "members", "placed"),
    [
        ("Kodak", ["a/kodim01.png", "kodim02.PNG", "readme.txt"], ["Kodak/kodim01.png", "Kodak/kodim02.PNG"]),
        ("BSD300", ["x/train/1.png", "x/test/2.png"], ["BSD300/test/2.png"]),
        ("BSD300", ["1.png", "train/2.png"], ["BSD300/test/1.png"]),
        ("Set14", ["baboon.png", "image_SRF_2/c_SRF_2_LR.png"], ["Set14/baboon.png"]),
        ("Set14", ["image_SRF_2/c_SRF_2_HR.png", "image_SRF_4/c_SRF_4_HR.png"], ["Set14/c_SRF_2_HR.png"]),
    ],
)
def test_the_images_of_a_published_set_are_chosen_by_name(name, members, placed, tmp_path, capsys):
    png = images.encode("a.png", scene(12, 12))
    validation.place(name, archive_of(tmp_path / "a.zip", members, png), str(tmp_path / "out"), False)
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert sorted(str(path.relative_to(tmp_path / "out")) for path in files) == placed
    assert {path.read_bytes() for path in files} == {png}
    out, err = capsys.readouterr()
    assert out.startswith(f"{len(placed)} images in ")
    assert "this is not the set as it was published" in err


def test_a_whole_set_is_placed_without_a_warning(tmp_path, capsys):
    png = images.encode("a.png", scene(12, 12))
    names = [f"kodim{number:02d}.png" for number in range(1, 25)]
    validation.place("Kodak", archive_of(tmp_path / "a.zip", names, png), str(tmp_path / "out"), False)
    assert capsys.readouterr() == (f"24 images in {tmp_path / 'out' / 'Kodak'}\n", "")


def test_what_is_there_with_other_content_is_replaced_when_asked(tmp_path):
    png = images.encode("a.png", scene(12, 12))
    source, there = archive_of(tmp_path / "a.zip", ["a.png"], png), tmp_path / "Kodak" / "a.png"
    there.parent.mkdir()
    there.write_bytes(b"mine")
    with pytest.raises(UserError, match=r"--save_dir: .*Kodak/a\.png is there with other content; --overwrite"):
        validation.place("Kodak", source, str(tmp_path), False)
    assert there.read_bytes() == b"mine"
    for overwrite in (True, False):  # the second time it is the same
        validation.place("Kodak", source, str(tmp_path), overwrite)
        assert there.read_bytes() == png


def test_what_holds_no_image_of_a_set_is_refused_before_a_folder_is_made(tmp_path):
    source = archive_of(tmp_path / "a.zip", ["readme.txt", "train/1.png"], b"text")
    with pytest.raises(UserError, match=r"--input_dir: no image of BSD300 in .*a\.zip"):
        validation.place("BSD300", source, str(tmp_path / "out"), False)
    broken = archive_of(tmp_path / "b.zip", ["1.png"], b"no picture")
    with pytest.raises(UserError, match=r"1\.png"):
        validation.place("Kodak", broken, str(tmp_path / "out"), False)
    assert [path for path in tmp_path.rglob("out/**/*") if path.is_file()] == []
