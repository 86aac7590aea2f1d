"""Files of pairs: made from folders, read without trust, trained on and scored on."""

import pickle
import zipfile

import numpy as np
import pytest
from test_tensors import StandIn, fake_torch, write_legacy, write_zip  # noqa: F401

import dataset
import dataset_tool
import train
import val
from conftest import assert_user_error, broken_copies, noisy_scene, run_script, save, scene
from denoising.cli import UserError
from denoising.files import pair_files
from denoising.files.pair_files import TRAINING, VALIDATION


def patches(count=6, side=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, side, side), dtype=np.uint8)


def write_npz(path, **arrays):
    np.savez(path, **arrays)
    return path


# --- Reading and writing ------------------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path):
    halves = patches(), patches(seed=1)
    for name in ("a.npz", "b.npz"):
        pair_files.write(tmp_path / name, TRAINING, halves)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    found = pair_files.read(tmp_path / "a.npz", TRAINING)
    assert all((half == wanted).all() for half, wanted in zip(found, halves, strict=True))
    with np.load(tmp_path / "a.npz") as by_numpy:
        assert (by_numpy["noisy2"] == halves[1]).all()


@pytest.mark.parametrize("pack", [np.savez, np.savez_compressed])
def test_numpys_own_files_are_read_in_any_layout(tmp_path, pack):
    first, second = patches(), np.asfortranarray(patches(seed=1))
    pack(tmp_path / "a.npz", clean=second, noisy=first, more=np.zeros(3))
    found = pair_files.read(str(tmp_path / "a.npz"), VALIDATION)
    assert (found[0] == first).all()
    assert (found[1] == second).all()


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_the_courses_pickles_are_read(tmp_path, fake_torch, write):  # noqa: F811
    first, second = patches(), patches(seed=1)
    write(tmp_path / "train_data.pkl", fake_torch, (StandIn(first, "0"), StandIn(second, "1")))
    found = pair_files.read(tmp_path / "train_data.pkl", TRAINING)
    assert (found[0] == first).all()
    assert (found[1] == second).all()


BAD = {
    "another kind": ({"noisy": patches(), "clean": patches()}, "noisy1 and noisy2 are wanted, it holds clean, noisy"),
    "one half": ({"noisy1": patches()}, "noisy1 and noisy2 are wanted"),
    "nothing": ({}, "it holds nothing"),
    "unequal": ({"noisy1": patches(6), "noisy2": patches(5)}, "the halves differ"),
    "other sizes": ({"noisy1": patches(side=8), "noisy2": patches(side=9)}, "the halves differ"),
    "floats": ({"noisy1": patches() / 255, "noisy2": patches()}, "noisy1 is of type float64"),
    "channels last": ({"noisy1": patches().transpose(0, 2, 3, 1), "noisy2": patches()}, "N x 3 x H x W"),
    "one image": ({"noisy1": patches()[0], "noisy2": patches()[0]}, "N x 3 x H x W"),
    "empty": ({"noisy1": patches(0), "noisy2": patches(0)}, "N x 3 x H x W"),
    "numbers": ({"noisy1": np.uint8(3), "noisy2": patches()}, "N x 3 x H x W"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_pair_file_is_refused(tmp_path, case):
    arrays, reason = BAD[case]
    path = write_npz(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=reason) as refused:
        pair_files.read(path, TRAINING)
    assert str(path) in str(refused.value)


class Evil:
    ran = False

    def __reduce__(self):
        return exec, ("import test_pair_files; test_pair_files.Evil.ran = True",)


def test_no_code_of_a_file_runs(tmp_path):
    objects = np.empty(2, object)
    objects[:] = [Evil(), Evil()]
    np.savez(tmp_path / "a.npz", noisy1=objects, noisy2=objects)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps((patches(), Evil())))
    (tmp_path / "b.pkl").write_bytes(pickle.dumps({"noisy1": patches()}))
    (tmp_path / "c.pkl").write_bytes(pickle.dumps((patches(), [patches()])))
    for name in ("a.npz", "a.pkl", "b.pkl", "c.pkl"):
        with pytest.raises(UserError, match=name):
            pair_files.read(tmp_path / name, TRAINING)
    assert not Evil.ran
    with open(tmp_path / "a.pkl", "rb") as file:
        pickle.load(file)
    assert Evil.ran  # it would have


def test_what_unpacks_without_end_is_refused(tmp_path):
    bomb = np.zeros((50, 3, 256, 256), np.uint8)
    np.savez_compressed(tmp_path / "a.npz", noisy1=bomb, noisy2=bomb)
    with pytest.raises(UserError, match="would unpack to"):
        pair_files.read(tmp_path / "a.npz", TRAINING)
    # A header that promises more than there is.
    header = str({"descr": "|u1", "fortran_order": False, "shape": (10**6, 3, 1000, 1000)}).encode()
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        for name in TRAINING:
            archive.writestr(f"{name}.npy", content)
    with pytest.raises(UserError, match="does not fit the size of the file"):
        pair_files.read(tmp_path / "b.npz", TRAINING)


def test_broken_files_end_in_one_line(tmp_path):
    whole = write_npz(tmp_path / "whole.npz", noisy1=patches(2), noisy2=patches(2)).read_bytes()
    refused = 0
    for data in broken_copies(whole, 40):
        (tmp_path / "a.npz").write_bytes(data)
        try:
            halves = pair_files.read(tmp_path / "a.npz", TRAINING)
        except UserError:
            refused += 1
        else:
            assert halves[0].shape == halves[1].shape == (2, 3, 8, 8)
    assert refused > 100
    with pytest.raises(UserError, match="does not exist"):
        pair_files.read(tmp_path / "none.npz", TRAINING)


# --- Making them --------------------------------------------------------------------------------------------


def make(source, target, *flags):
    return dataset_tool.main(["--input_dir", source, "--save_dir", target, "--noise", "gauss25", *flags])


def test_dataset_tool_makes_both_files(tmp_path, capsys):
    for i in range(10):
        save(tmp_path / "in" / f"{i}.png", np.full((60, 50 + i, 3), 70 + 12 * i, np.uint8))
    save(tmp_path / "in" / "small.png", scene(20, 90))
    (tmp_path / "in" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    flags = "--pairs", 50, "--val_pairs", 7
    assert make(tmp_path / "in", tmp_path / "out", *flags) == 0
    printed = capsys.readouterr().out
    assert "train.npz: 50 pairs of 32 x 32 pixels" in printed
    assert "skipped: unreadable" in printed
    noisy1, noisy2 = pair_files.read(tmp_path / "out" / "train.npz", TRAINING)
    noisy, clean = pair_files.read(tmp_path / "out" / "val.npz", VALIDATION)
    assert noisy1.shape == (50, 3, 32, 32)
    assert noisy.shape == (7, 3, 32, 32)
    # Noise of 25 in each, and the two have nothing in common.
    assert 24 < (noisy.astype(float) - clean).std() < 26
    assert 34 < (noisy1.astype(float) - noisy2).std() < 37
    # Two pictures are held out, and none of them is among the others.
    colours = 70 + 12 * np.arange(10)
    trained = {colours[np.abs(colours - patch.mean()).argmin()] for patch in noisy1}
    assert len(trained) == 8
    assert set(np.unique(clean)) == set(colours) - trained
    assert make(tmp_path / "in", tmp_path / "again", *flags) == 0
    assert (tmp_path / "again" / "train.npz").read_bytes() == (tmp_path / "out" / "train.npz").read_bytes()
    assert make(tmp_path / "in", tmp_path / "other", *flags, "--seed", 8) == 0
    assert (tmp_path / "other" / "train.npz").read_bytes() != (tmp_path / "out" / "train.npz").read_bytes()


def test_images_as_small_as_a_patch_are_taken_once(tmp_path, capsys):
    for i in range(20):
        save(tmp_path / "in" / f"{i}.png", np.full((16, 16, 3), 10 * i, np.uint8))
    flags = "--crop", 16, "--noise", "bernoulli0.01"
    assert make(tmp_path / "in", tmp_path / "out", "--pairs", 100, *flags) == 0
    assert "there are no more" in capsys.readouterr().err
    levels = [np.median(pair_files.read(tmp_path / "out" / name, names)[1], (1, 2, 3)).tolist()
              for name, names in (("train.npz", TRAINING), ("val.npz", VALIDATION))]  # fmt: skip
    assert [len(medians) for medians in levels] == [16, 4]
    assert sorted(levels[0] + levels[1]) == [10.0 * i for i in range(20)]


def test_what_dataset_tool_refuses(tmp_path):
    for i in range(6):
        save(tmp_path / "in" / f"{i}.png", scene(40, 40, seed=i))
    for flags, words in (
        (["--pairs", 9], ["--pairs", "--noise"]),
        (["--pairs", 9, "--noise", "gauss25", "--format", "png"], ["--format"]),
        (["--pairs", 0, "--noise", "gauss25"], []),
    ):
        result = run_script("dataset_tool.py", "--input_dir", tmp_path / "in", "--save_dir", tmp_path / "out", *flags)
        assert result.returncode == 2
        assert all(word in result.stderr for word in words), result.stderr
    with pytest.raises(UserError, match=r"have patches of 64 pixels \(smaller than 64 pixels a side\)"):
        make(tmp_path / "in", tmp_path / "out", "--pairs", 9, "--crop", 64)
    assert make(tmp_path / "in", tmp_path / "out", "--pairs", 9) == 0
    with pytest.raises(UserError, match="train.npz exists; --overwrite"):
        make(tmp_path / "in", tmp_path / "out", "--pairs", 9)
    assert make(tmp_path / "in", tmp_path / "out", "--pairs", 9, "--overwrite") == 0
    save(tmp_path / "few" / "a.png", scene(40, 40))
    with pytest.raises(UserError, match="has 1 images, too few"):
        make(tmp_path / "few", tmp_path / "out2", "--pairs", 9)
    with pytest.raises(UserError, match="--val_dir: .*nowhere does not exist"):
        make(tmp_path / "in", tmp_path / "out2", "--pairs", 9, "--val_dir", tmp_path / "nowhere")
    (tmp_path / "nothing").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("no image")
    save(tmp_path / "small" / "a.png", scene(20, 20))
    for name, words in (("nothing", "nothing is empty"), ("text", "no image in .*text"), ("small", "patches of 32")):
        with pytest.raises(UserError, match=f"^--val_dir: .*{words}"):
            make(tmp_path / "in", tmp_path / "out2", "--pairs", 9, "--val_dir", tmp_path / name)
        with pytest.raises(UserError, match="^--input_dir: "):
            make(tmp_path / name, tmp_path / "out2", "--pairs", 9, "--val_dir", tmp_path / "in")
    for within in (tmp_path / "in", tmp_path / "in" / "val"):  # whose images would be trained on as well
        with pytest.raises(UserError, match="--val_dir: .* lies in --input_dir"):
            make(tmp_path / "in", tmp_path / "out2", "--pairs", 9, "--val_dir", within)


def test_validation_can_have_a_folder_of_its_own(tmp_path, capsys):
    save(tmp_path / "in" / "a.png", np.full((40, 40, 3), 100, np.uint8))
    save(tmp_path / "val" / "b.png", np.full((40, 40, 3), 150, np.uint8))
    flags = "--pairs", 9, "--val_pairs", 3, "--val_dir", tmp_path / "val"
    assert make(tmp_path / "in", tmp_path / "out", *flags) == 0
    assert "val.npz: 3 pairs of 32 x 32 pixels from 1 images" in capsys.readouterr().out
    assert 95 < pair_files.read(tmp_path / "out" / "train.npz", TRAINING)[0].mean() < 105
    assert (pair_files.read(tmp_path / "out" / "val.npz", VALIDATION)[1] == 150).all()


# --- Training on them ---------------------------------------------------------------------------------------


def pair_file(folder, names=TRAINING, count=12, height=20, width=24):
    halves = np.random.default_rng(3).integers(0, 256, (2, count, 3, height, width), dtype=np.uint8)
    pair_files.write(folder / "pairs.npz", names, halves)
    return folder / "pairs.npz", halves


def test_pairs_of_a_file_are_cut_and_turned_alike(tmp_path):
    path, halves = pair_file(tmp_path)
    # A second half that tells where each of its pixels is from.
    pair_files.write(path, TRAINING, (halves[0], 255 - halves[0]))
    data = dataset.PairFile(path, 3, 16, seed=1, augment=True)
    found = set()
    for epoch in range(40):
        (noisy,), (target,) = data.batch([(epoch, 5)])
        assert noisy.shape == (3, 16, 16)
        assert np.allclose(noisy + target, 1)
        found.add(noisy.tobytes())
    assert len(found) > 30


def test_all_orientations_and_both_orders_come(tmp_path):
    image = np.arange(3 * 4 * 4, dtype=np.uint8).reshape(1, 3, 4, 4)
    pair_files.write(tmp_path / "a.npz", TRAINING, (image, image + 100))
    data = dataset.PairFile(tmp_path / "a.npz", 3, 4, seed=0, augment=True)
    seen = {tuple(np.round(255 * part[0]).astype(int).ravel()) for e in range(200) for part in data.batch([(e, 0)])[:1]}
    expected = {
        tuple((flip(np.rot90(image[0], turns, (1, 2))).astype(int) + add).ravel())
        for turns in range(4) for flip in (lambda a: a, lambda a: a[..., ::-1]) for add in (0, 100)
    }  # fmt: skip
    assert seen == expected
    upright = dataset.PairFile(tmp_path / "a.npz", 3, 4, seed=0)
    assert {part[0, 0, 0, 0] for e in range(50) for part in upright.batch([(e, 0)])} == {0, np.float32(100 / 255)}


def test_a_batch_of_a_file_is_a_function_of_its_number(tmp_path):
    path, _ = pair_file(tmp_path)
    data = dataset.PairFile(path, 3, 16, seed=1, augment=True)
    whole = [dataset.Batches(data, 4, seed=5).batch(step) for step in range(6)]
    again = dataset.Batches(data, 4, seed=5, workers=1).starting_at(3)
    assert all((a == b).all() for step in (3, 4, 5) for a, b in zip(whole[step], next(again), strict=True))
    again.close()
    for rank in (0, 1):
        half = dataset.Batches(data, 2, seed=5, rank=rank, world_size=2).batch(4)
        assert all((a[2 * rank : 2 * rank + 2] == b).all() for a, b in zip(whole[4], half, strict=True))


def test_clean_targets_of_a_file_stay_targets(tmp_path):
    path, halves = pair_file(tmp_path, VALIDATION)
    data = dataset.PairFile(path, 3, 256, seed=1, clean_targets=True, size=7)
    assert len(data) == 7
    for epoch in range(5):
        noisy, clean = data.batch([(epoch, 2)])
        assert noisy.shape == (1, 3, 20, 20)
        assert np.isin(np.round(255 * clean[0, 0, :, :1]), halves[1][2, 0]).all()
    with pytest.raises(UserError, match="--n_channel is 1"):
        dataset.PairFile(path, 1, 256, seed=1, clean_targets=True)


def test_a_file_scores_as_its_pictures_do(tmp_path, weights, capsys):
    clean = np.stack([scene(32, 32, seed=i).transpose(2, 0, 1) for i in range(3)])
    noisy = np.stack([noisy_scene(32, 32, seed=i).transpose(2, 0, 1) for i in range(3)])
    pair_files.write(tmp_path / "night.npz", VALIDATION, (noisy, clean))
    for i in range(3):
        save(tmp_path / "sets" / "night" / "clean" / f"{i}.png", clean[i].transpose(1, 2, 0))
        save(tmp_path / "sets" / "night" / "noisy" / f"{i}.png", noisy[i].transpose(1, 2, 0))
    lines = []
    for where in (tmp_path / "night.npz", tmp_path / "sets"):
        val.main(["--model_path", str(weights), "--val_dirs", str(where)])
        lines.append(capsys.readouterr().out.splitlines()[0])
    assert lines[0] == lines[1]
    assert lines[0].startswith("[EVAL] night: psnr:")
    pair_files.write(tmp_path / "grey.npz", VALIDATION, (noisy[:, :1], clean[:, :1]))
    assert val.main(["--model_path", str(weights), "--val_dirs", str(tmp_path / "grey.npz"), "--val_images", "2"]) == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--method", "neighbor2neighbor"], ["--method", "pair file"]),
        (["--method", "noise2noise", "--pair_dir", "."], ["--pair_dir"]),
        (["--method", "noise2noise", "--noisetype", "gauss25"], ["--noisetype"]),
        (["--method", "supervised"], ["pairs.npz", "noisy and clean are wanted"]),
        (["--method", "noise2noise", "--val_dirs", "no.npz"], ["no.npz", "does not exist"]),
        (["--method", "noise2noise", "--n_channel", 1], ["--n_channel"]),
    ],
)
def test_what_training_on_a_file_refuses(tmp_path, flags, words):
    path, _ = pair_file(tmp_path)
    with pytest.raises(UserError) as refused:
        train.main(["--data_dir", path, "--save_model_path", tmp_path / "runs", *flags])
    assert all(word in str(refused.value) for word in words)
    assert not (tmp_path / "runs").exists()


def test_a_mistake_is_one_line(tmp_path):
    path, _ = pair_file(tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    result = run_script("train.py", "--preset", "lite", "--data_dir", path, "--save_model_path", tmp_path / "runs")
    assert_user_error(result, path, "broken or no pair file")
