import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import dataset
from conftest import ROOT, save, scene
from denoising.cli import UserError
from denoising.data.streams import CROP, ORDER, generator
from denoising.files import pair_files
from denoising.imaging import noise, pixels
from denoising.imaging.noise import parse_noise
from denoising.training.methods import Neighbor2Neighbor, Noise2Noise, Recorrupted2Recorrupted, Supervised


def patches_of(folder, noise="none", method=None, n_channel=3, patchsize=64, **options):
    method = method or Neighbor2Neighbor()
    return dataset.TrainingImages(str(folder), method, parse_noise(noise), n_channel, patchsize, seed=5, **options)


def images_of(folders, **options):
    return patches_of(folders / "data", **{"noise": "gauss25", **options})


def first_batches(patches, start, count, **options):
    batches = dataset.Batches(patches, seed=5, **{"batchsize": 2, **options})
    stream = batches.starting_at(start)
    found = [next(stream) for _ in range(count)]
    stream.close()
    return found


def same(a, b):
    return all((array == other).all() for array, other in zip(a, b, strict=True))


def test_a_batch_is_a_function_of_its_number(folders):
    ahead = first_batches(images_of(folders), 0, 9)
    resumed = first_batches(images_of(folders), 6, 3, workers=1, ahead=1)
    assert all(same(a, b) for a, b in zip(ahead[6:], resumed, strict=True))
    assert not same(ahead[0], ahead[1])
    assert ahead[0][0].shape == (2, 3, 64, 64)
    assert ahead[0][1].shape == (2, 3, 32, 32)


def test_two_processes_see_what_one_with_twice_the_batch_sees(folders):
    single = first_batches(images_of(folders), 0, 5, batchsize=4)
    halves = [first_batches(images_of(folders), 0, 5, rank=rank, world_size=2) for rank in (0, 1)]
    for whole, left, right in zip(single, *halves, strict=True):
        assert same(whole, [np.concatenate(parts) for parts in zip(left, right, strict=True)])


def test_every_image_once_per_epoch(folders):
    patches = images_of(folders)
    used = []
    patches.sample = lambda epoch, index: (used.append(index), (np.zeros(1), np.zeros(1)))[1]
    batches = dataset.Batches(patches, 2, seed=5)
    for step in range(batches.steps_per_epoch):
        batches.batch(step)
    assert sorted(used) == list(range(8))


def test_fewer_images_than_a_batch_are_used_again_with_other_crops(folders, tmp_path):
    save(tmp_path / "a.png", scene(80, 90))
    patches = patches_of(tmp_path)
    batch = dataset.Batches(patches, 3, seed=5).batch(0)
    assert not (batch[0][0] == batch[0][1]).all()


def test_fresh_noise_changes_each_epoch_and_frozen_never(folders, tmp_path):
    # An image of exactly the patch's size leaves only the noise to chance.
    clean = scene(64, 64)
    save(tmp_path / "a.png", clean)
    for frozen in (False, True):
        patches = patches_of(tmp_path, "gauss25", frozen=frozen)
        first, second = (patches.sample(epoch, 0)[0] for epoch in (0, 1))
        assert (first == second).all() == frozen
        deviation = (first - clean.transpose(2, 0, 1) / 255).std() * 255
        assert 24 < deviation < 26


@pytest.mark.parametrize("frozen", [False, True])
def test_noise_sees_pixels_not_planes(tmp_path, frozen):
    save(tmp_path / "a.png", np.full((64, 64, 3), 100, np.uint8))
    patches = patches_of(tmp_path, "bernoulli0.5", frozen=frozen)
    black = patches.sample(0, 0)[0] == 0
    assert (black == black[:1]).all()
    assert 0.4 < black.mean() < 0.6


def test_frozen_noise_belongs_to_the_image_not_to_the_crop(folders, tmp_path):
    flat = np.full((70, 70, 3), 100, np.uint8)
    save(tmp_path / "a.png", flat)
    patches = patches_of(tmp_path, "gauss25", frozen=True)
    (whole,) = patches._make_layers(0)
    for epoch in range(5):
        patch = patches.sample(epoch, 0)[0].transpose(1, 2, 0)
        places = [(y, x) for y in range(7) for x in range(7)]
        assert any((whole[y : y + 64, x : x + 64] == patch).all() for y, x in places)


def test_the_cache_changes_nothing_but_time(folders):
    cached = images_of(folders, cache_bytes=1 << 30)
    for _ in range(2):
        assert (cached.sample(0, 3)[0] == images_of(folders).sample(0, 3)[0]).all()
    small = images_of(folders, cache_bytes=30_000)
    for index in range(8):
        small.sample(0, index)
    assert sum(layer.nbytes for layers in small._cache.values() for layer in layers) <= 30_000


def test_augmented_patches_are_flips_and_rotations(tmp_path):
    clean = scene(64, 64)
    save(tmp_path / "a.png", clean)
    patches = patches_of(tmp_path, augment=True)
    expected = {
        np.ascontiguousarray(np.rot90(clean, turns)[:, ::flip]).tobytes() for turns in range(4) for flip in (1, -1)
    }
    found = {
        np.ascontiguousarray((patches.sample(epoch, 0)[0] * 255).round().astype(np.uint8).transpose(1, 2, 0)).tobytes()
        for epoch in range(80)
    }
    assert found == expected


def test_channels(tmp_path):
    colour, grey = scene(64, 64), scene(64, 64, 1)
    assert pixels.as_channels(grey, 3, "a").shape == (64, 64, 3)
    luma = pixels.as_channels(colour, 1, "a")[..., 0].astype(float)
    expected = colour @ [0.299, 0.587, 0.114]
    assert np.abs(luma - expected).max() <= 0.51
    mosaic = np.arange(24, dtype=np.float32).reshape(4, 6, 1)
    packed = pixels.as_channels(mosaic, 4, "a")
    assert packed[0, 0].tolist() == [0, 1, 6, 7]
    assert packed[1, 2].tolist() == [16, 17, 22, 23]
    with pytest.raises(UserError, match=r"a: has 5 channels"):
        pixels.as_channels(np.zeros((4, 4, 5)), 3, "a")


def test_raw_mosaics_train_four_channels(tmp_path):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).random((140, 150), np.float32))
    patches = patches_of(tmp_path, n_channel=4)
    assert patches.sample(0, 0)[0].shape == (4, 64, 64)


def test_mosaics_of_two_shots(folders):
    """What goes in are a mosaic and the deviation of its noise; the target is another mosaic of the scene."""
    options = Noise2Noise("sigma"), parse_noise("camera6"), 1, 64, 5
    patches = dataset.TrainingMosaics(str(folders / "data"), *options, augment=True)
    given, target = patches.batch([(epoch, index) for epoch in range(3) for index in range(8)])
    assert given.shape == (24, 2, 64, 64)
    assert target.shape == (24, 1, 64, 64)
    again = patches.batch([(0, 0)])
    assert np.array_equal(again[0], given[:1])
    noise = (given[:, :1] - target) / np.sqrt(2)
    # The greens are at the same places in all patches, whichever way these were turned.
    light = target[:, 0]
    assert light[:, 0::2, 1::2].mean() > 1.2 * max(light[:, 0::2, 0::2].mean(), light[:, 1::2, 1::2].mean())
    intact = (target < 0.95) & (given[:, :1] < 0.95)
    assert (noise / given[:, 1:])[intact].std() == pytest.approx(1, abs=0.06)


def test_a_first_image_that_is_broken_is_passed_over_as_later_ones_are(tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(b"\x89PNG nothing more")
    with pytest.raises(UserError, match=r"a\.png"):  # there is no other
        patches_of(tmp_path)
    save(tmp_path / "b.png", scene(64, 64))
    patches = patches_of(tmp_path)
    assert (patches.sample(0, 0)[0] == patches.sample(0, 1)[0]).all()
    assert capsys.readouterr().err.count("a.png") == 1


def test_a_first_image_that_does_not_fit_is_passed_over_as_later_ones_are(tmp_path, capsys):
    known = Recorrupted2Recorrupted(parse_noise("gauss12"), in_files=True)
    for i in range(dataset.LOOKED_AT + 1):
        save(tmp_path / f"{i:02d}.png", scene(40, 40))
    save(tmp_path / "99.png", scene(64, 64))
    with pytest.raises(UserError, match=r"^--patchsize: .*00\.png has 40x40 pixels"):
        patches_of(tmp_path, method=known)  # so many are none by chance
    (tmp_path / "00.png").unlink()
    (tmp_path / "01.png").unlink()
    patches = patches_of(tmp_path, method=known)
    assert (patches.sample(0, 0)[0] == patches.sample(0, len(patches) - 1)[0]).all()
    assert "02.png has 40x40 pixels; padding would repeat its noise" in capsys.readouterr().err


def test_frozen_noise_stays_when_other_images_come(tmp_path):
    save(tmp_path / "m.png", scene(64, 64))
    alone = patches_of(tmp_path, "gauss25", frozen=True)
    save(tmp_path / "a.png", scene(64, 64, seed=1))
    both = patches_of(tmp_path, "gauss25", frozen=True)
    assert (alone._make_layers(0)[0] == both._make_layers(1)[0]).all()


def test_an_image_that_breaks_later_is_passed_over_with_a_note(tmp_path, capsys):
    for name in ("a", "b", "c"):
        save(tmp_path / f"{name}.png", scene(64, 64, seed=ord(name)))
    (tmp_path / "b.png").write_bytes(b"no image")
    patches = patches_of(tmp_path)
    for _ in range(2):
        assert (patches.sample(0, 1)[0] == patches.sample(0, 2)[0]).all()
    assert capsys.readouterr().err.count("b.png") == 1


@pytest.mark.parametrize("frozen", [False, True])
def test_noisy_targets_are_independent_of_the_noisy_image(tmp_path, frozen):
    save(tmp_path / "a.png", np.full((128, 128, 3), 100, np.uint8))
    patches = patches_of(tmp_path, "gauss25", Noise2Noise(), patchsize=128, frozen=frozen)
    noisy, target = (part * 255 - 100 for part in patches.sample(3, 0))
    assert abs(noisy.std() - 25) < 0.5
    assert abs(target.std() - 25) < 0.5
    assert abs(np.corrcoef(noisy.ravel(), target.ravel())[0, 1]) < 0.02
    again = patches.sample(4, 0)[1] * 255 - 100
    assert (again == target).all() == frozen


@pytest.mark.parametrize("n_channel", [1, 3])
def test_recorruptions_are_as_strong_as_the_noise_and_independent_of_it(tmp_path, n_channel, capsys):
    # The second image is broken: the third one is taken in its place.
    for name in ("a", "b", "c"):
        save(tmp_path / f"{name}.png", np.full((192, 192, n_channel), 100, np.uint8))
    (tmp_path / "b.png").write_bytes(b"no image")
    patches = patches_of(
        tmp_path, "gauss5_50", Recorrupted2Recorrupted(parse_noise("gauss5_50")), n_channel, 192, augment=True
    )
    strengths = []
    for epoch in range(4):
        noisy, first, second = (part * 255 - 100 for part in patches.sample(epoch, 1))
        strengths.append(noisy.std())
        assert (first - noisy).std() / noisy.std() == pytest.approx(noise.MORE_NOISE, rel=0.03)
        np.testing.assert_allclose(first + second, 2 * noisy, atol=1e-3)
        assert abs(np.corrcoef((first - noisy).ravel(), noisy.ravel())[0, 1]) < 0.03
    assert np.ptp(strengths) > 3
    assert "b.png" in capsys.readouterr().err


def test_noise_of_the_files_own_must_be_what_recorruptions_assume(tmp_path):
    def train_on(image, known, n_channel=3, size=64, frozen=False):
        save(tmp_path / "a.png", image)
        method = Recorrupted2Recorrupted(parse_noise(known or "gauss25"), in_files=bool(known))
        return patches_of(tmp_path, "none" if known else "gauss25", method, n_channel, size, frozen=frozen)

    grey, colour = np.full((64, 64), 100, np.uint8), np.full((64, 64, 3), 100, np.uint8)
    train_on(colour, "gauss12")
    train_on(grey, "gauss12", n_channel=1)
    train_on(grey, None)  # noise is added to what the network gets
    train_on(colour, None, size=128)
    train_on(grey.astype(np.uint16) * 257, "gauss2", n_channel=1)
    train_on(colour, "poisson255")
    for flag, *wrong in (
        ("--n_channel", grey, "gauss12", 3),
        ("--n_channel", colour, "gauss12", 1),
        ("--patchsize", colour, "gauss12", 3, 128),
        ("--patchsize", colour, None, 3, 128, True),
        ("--known_noise", colour, "gauss2"),
        ("--known_noise", colour, "gauss2", 3, 64, True),
        ("--known_noise", colour, "poisson1000"),
    ):
        with pytest.raises(UserError, match=f"^{flag}: .*a.png has "):
            train_on(*wrong)


@pytest.mark.parametrize("frozen", [False, True])
def test_clean_targets_show_the_same_patch(tmp_path, frozen):
    save(tmp_path / "a.png", scene(100, 90))
    patches = patches_of(tmp_path, "gauss10", Supervised(), frozen=frozen, augment=True)
    for epoch in range(4):
        noisy, clean = (part * 255 for part in patches.sample(epoch, 0))
        assert (clean == clean.round()).all()
        assert 9 < (noisy - clean).std() < 11


def test_black_pixels_of_a_bernoulli_target_are_known_to_be_missing(tmp_path):
    save(tmp_path / "a.png", scene(64, 64) // 2 + 50)
    patches = patches_of(tmp_path, "bernoulli0.4", Noise2Noise())
    noisy, target, known = patches.sample(0, 0)
    assert ((target > 0).all(axis=0) == (known[0] == 1)).all()
    assert 0.5 < known.mean() < 0.7
    assert ((noisy > 0).all(axis=0) != (known[0] == 1)).any()


def test_train_size_takes_the_first_images(folders):
    assert len(images_of(folders, size=3)) == 3


@pytest.mark.parametrize(("height", "width"), [(64, 150), (150, 64), (100, 90)])
def test_crops_reach_every_part_of_an_image(tmp_path, height, width):
    down, right = np.mgrid[:height, :width].astype(np.uint8)
    save(tmp_path / "a.png", np.stack([down, right, down], axis=2))
    patches, corners = patches_of(tmp_path), []
    for epoch in range(400):
        patch = (patches.sample(epoch, 0)[0] * 255).round().astype(int)
        corners.append(patch[:2, 0, 0])
    for found, room in zip(np.transpose(corners), (height - 64, width - 64), strict=True):
        assert (found.min(), found.max()) == (0, room)
        # Each place as likely as any other: the mean lies within four deviations.
        assert abs(found.mean() - room / 2) <= 4 * room / 12**0.5 / 20


def test_crops_of_a_pair_file_reach_every_part_of_an_image(tmp_path):
    down, right = np.mgrid[:20, :26].astype(np.uint8)
    images = np.stack([down, right, down])[None]
    pair_files.write(tmp_path / "a.npz", pair_files.TRAINING, (images, images))
    patches = dataset.PairFile(tmp_path / "a.npz", 3, 16, seed=1)
    corners = [(patches.batch([(epoch, 0)])[0][0, :2, 0, 0] * 255).round() for epoch in range(300)]
    assert {tuple(corner) for corner in np.array(corners, int).tolist()} == {
        (y, x) for y in range(5) for x in range(11)
    }


def test_batches_that_cannot_be_loaded_are_refused(folders, monkeypatch):
    monkeypatch.setattr(dataset, "free_memory", lambda: 64 << 20)
    patches = images_of(folders)
    loaded = 5 * sum(array.nbytes for array in patches.batch([(0, 0)]))
    for bytes_per_pixel in (0, 200):
        fitting = (64 << 20) // (loaded + bytes_per_pixel * 64 * 64)
        dataset.Batches(patches, fitting, seed=5).check_memory(bytes_per_pixel)
        message = f"^--batchsize: {fitting + 1} patches do not fit into memory; at most {fitting} of this size do"
        with pytest.raises(UserError, match=message):
            dataset.Batches(patches, fitting + 1, seed=5).check_memory(bytes_per_pixel)


def test_loading_needs_no_paddle():
    code = "import sys, dataset; sys.exit('paddle' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# --- Which images a batch has -------------------------------------------------------------------------------


class Places:
    """In place of images: a batch is the list of its (epoch, image)."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def batch(self, places):
        return list(places)


def test_the_images_of_a_batch_follow_from_its_number():
    batches = dataset.Batches(Places(11), 2, seed=5, rank=1, world_size=2)
    assert batches.steps_per_epoch == 2
    for step in range(5):
        order = generator(5, ORDER, step // 2).permutation(11)
        first = (step % 2 * 2 + 1) * 2
        assert batches.batch(step) == [(step // 2, order[first]), (step // 2, order[first + 1])]
    # Those that are used again in a step count as of a far epoch: they are cropped anew.
    few = dataset.Batches(Places(2), 5, seed=5)
    assert few.steps_per_epoch == 1
    order = generator(5, ORDER, 3).permutation(2)
    far = [3, 3, 3 + 1_000_003, 3 + 1_000_003, 3 + 2_000_006]
    assert few.batch(3) == list(zip(far, order[[0, 1, 0, 1, 0]], strict=True))


def test_a_few_batches_are_ready_ahead_and_no_more():
    asked = []

    class Slow(dataset.Batches):
        def batch(self, step):
            asked.append(step)
            return step

    stream = Slow(Places(8), 2, seed=5, workers=1, ahead=3).starting_at(7)
    assert [next(stream) for _ in range(4)] == [7, 8, 9, 10]
    stream.close()
    assert asked == list(range(7, 7 + len(asked)))
    assert len(asked) <= 4 + 3


def test_one_patch_is_tried_however_little_memory_there_is(folders, monkeypatch):
    monkeypatch.setattr(dataset, "free_memory", lambda: 1)
    dataset.Batches(images_of(folders), 1, seed=5).check_memory(10**6)
    with pytest.raises(UserError, match="at most 0 of this size do"):
        dataset.Batches(images_of(folders), 2, seed=5).check_memory(10**6)


# --- Read once, cut at random -------------------------------------------------------------------------------


def test_what_is_kept_is_not_read_again_and_what_has_no_room_is(tmp_path):
    for name in ("a", "b", "c"):
        save(tmp_path / f"{name}.png", scene(64, 64))
    for room, reads in (
        (2 * 64 * 64 * 3, [0, 1, 2, 2]),
        (2 * 64 * 64 * 3 - 1, [0, 1, 2, 1, 2]),
        (0, [0, *[0, 1, 2] * 2]),
    ):
        patches, read = patches_of(tmp_path, cache_bytes=room), [0]
        make = patches._make_layers
        patches._make_layers = lambda index, read=read, make=make: (read.append(index), make(index))[1]
        for index in (0, 1, 2) * 2:
            patches.sample(0, index)
        assert read == reads


def test_a_folder_of_broken_images_ends_the_run_and_the_last_one_is_followed_by_the_first(tmp_path, capsys):
    for name in ("a", "b"):
        save(tmp_path / f"{name}.png", scene(64, 64, seed=ord(name)))
    patches = patches_of(tmp_path)
    (tmp_path / "b.png").write_bytes(b"no image")
    assert (patches.sample(0, 1)[0] == patches.sample(0, 0)[0]).all()
    assert "b.png" in capsys.readouterr().err
    assert patches.broken == {1}
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="^--data_dir: no image can be read any more"):
        patches.sample(1, 0)


def test_patches_are_cut_at_the_recorded_places(tmp_path):
    """A run that is gone on with sees what it would have seen."""
    down, right = np.mgrid[:100, :90].astype(np.uint8)
    save(tmp_path / "a.png", np.stack([down, right, down], axis=2))
    patches = patches_of(tmp_path)
    for epoch in range(4):
        rng = generator(5, CROP, epoch, 0)
        top, left = rng.integers(0, 37), rng.integers(0, 27)
        assert (patches.sample(epoch, 0)[0][:2, 0, 0] * 255).round().tolist() == [top, left]


@pytest.mark.parametrize(("height", "width"), [(50, 60), (50, 90), (70, 1), (1, 70), (64, 40)])
def test_small_images_are_padded_at_the_end_only(tmp_path, height, width):
    image = scene(max(height, 2), max(width, 2))[:height, :width]
    np.save(tmp_path / "a.npy", image)
    padding = [(0, max(64 - height, 0)), (0, max(64 - width, 0)), (0, 0)]
    whole = np.pad(image, padding, "edge" if 1 in (height, width) else "reflect")
    corners = [(y, x) for y in range(whole.shape[0] - 63) for x in range(whole.shape[1] - 63)]
    patches = patches_of(tmp_path)
    for epoch in range(8):
        found = (patches.sample(epoch, 0)[0] * 255).round().transpose(1, 2, 0)
        assert any((found == whole[y : y + 64, x : x + 64]).all() for y, x in corners)


def test_patches_are_rolled_both_ways_by_no_more_than_asked(tmp_path):
    clean = scene(64, 64)
    save(tmp_path / "a.png", clean)
    patches = patches_of(tmp_path, translate=1)
    rolled = {np.roll(clean, (y, x), (0, 1)).tobytes(): (y, x) for y in range(-3, 4) for x in range(-3, 4)}
    found = set()
    for epoch in range(120):
        patch = (patches.sample(epoch, 0)[0] * 255).round().astype(np.uint8).transpose(1, 2, 0)
        found.add(rolled[np.ascontiguousarray(patch).tobytes()])
    assert found == {(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)}
    still = patches_of(tmp_path)
    assert all((still.sample(epoch, 0)[0] == still.sample(0, 0)[0]).all() for epoch in range(3))


@pytest.mark.parametrize("shrink", [1.5, 2])
def test_patches_are_cut_larger_and_scaled_down(tmp_path, shrink):
    # A ramp of slope 1 becomes one of slope `shrink`; noise of its own loses as much of its strength.
    ramp = np.broadcast_to(np.arange(200, dtype=np.float32)[:, None, None] / 255, (200, 200, 3))
    np.save(tmp_path / "a.npy", ramp + np.random.default_rng(0).normal(0, 0.01, ramp.shape).astype(np.float32))
    patch = patches_of(tmp_path, shrink=shrink).sample(0, 0)[0]
    assert patch.shape == (3, 64, 64)
    assert np.diff(patch.mean(axis=(0, 2)) * 255).mean() == pytest.approx(shrink, rel=0.02)
    noise = np.diff(patch, axis=2)
    assert 0.007 / shrink < noise.std() / np.sqrt(2) < 0.0105 / shrink


def test_patches_are_enlarged(tmp_path):
    ramp = np.broadcast_to(np.arange(200, dtype=np.float32)[:, None, None] / 255, (200, 200, 3))
    np.save(tmp_path / "a.npy", np.where(ramp < 100 / 255, ramp, np.round(ramp)))  # the step at 128 rings when enlarged
    patches = [patches_of(tmp_path, shrink=0.5).sample(epoch, 0)[0] for epoch in range(30)]
    assert {patch.shape for patch in patches} == {(3, 64, 64)}
    assert min(patch.min() for patch in patches) >= 0
    assert max(patch.max() for patch in patches) <= 1
    slopes = [np.diff(patch.mean(axis=(0, 2))[4:-4] * 255) for patch in patches if patch.max() < 95 / 255]
    assert len(slopes) > 3
    assert np.allclose(slopes, 0.5, atol=0.04)  # Lanczos's window leaves a ripple


def test_grey_patches_are_scaled_down_too(tmp_path):
    save(tmp_path / "a.png", scene(128, 128))
    assert patches_of(tmp_path, shrink=2, n_channel=1).sample(0, 0)[0].shape == (1, 64, 64)
    assert patches_of(tmp_path, shrink=0.25, patchsize=2).sample(0, 0)[0].shape == (3, 2, 2)


def test_files_of_several_pages_are_refused(tmp_path):
    pages = [Image.fromarray(scene(64, 64, seed=seed)) for seed in range(2)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(UserError, match=r"^--data_dir: .*a.tif has 2 pages; dataset_tool.py splits such files"):
        patches_of(tmp_path)


# --- Pairs in a file ----------------------------------------------------------------------------------------


def numbered_pairs(folder, names=pair_files.TRAINING, count=3, height=20, width=26):
    """Pairs whose channels are the row, the column, and the number of the pair, plus 100 in the second half."""
    down, right = np.mgrid[:height, :width].astype(np.uint8)
    halves = [
        np.stack([np.stack([down, right, np.full_like(down, number + more)]) for number in range(count)])
        for more in (0, 100)
    ]
    pair_files.write(folder / "a.npz", names, halves)
    return folder / "a.npz"


def test_both_halves_of_a_pair_are_of_one_place_and_either_is_the_input(tmp_path):
    data = dataset.PairFile(numbered_pairs(tmp_path), 3, 16, seed=1)
    orders = set()
    for epoch in range(30):
        noisy, target = (np.round(part * 255) for part in data.batch([(epoch, 0), (epoch, 2)]))
        assert noisy.dtype == np.float32
        assert (noisy[:, :2] == target[:, :2]).all()
        for number, first, second in zip((0, 2), noisy[:, 2, 0, 0], target[:, 2, 0, 0], strict=True):
            assert {first, second} == {number, number + 100}
            orders.add(first < second)
    assert orders == {True, False}
    clean = dataset.PairFile(numbered_pairs(tmp_path, pair_files.VALIDATION), 3, 16, seed=1, clean_targets=True)
    assert {clean.batch([(epoch, 0)])[0][0, 2, 0, 0] for epoch in range(20)} == {0}


def test_places_in_a_file_do_not_depend_on_the_batch(tmp_path):
    data = dataset.PairFile(numbered_pairs(tmp_path), 3, 16, seed=1, augment=True)
    places = [(0, 2), (1, 0), (0, 0), (1, 2)]
    whole = data.batch(places)
    for number, place in enumerate(places):
        assert same([part[number] for part in whole], [part[0] for part in data.batch([place])])
    for epoch in (0, 1):
        upright, rng = dataset.PairFile(numbered_pairs(tmp_path), 3, 16, seed=1), generator(1, CROP, epoch)
        corners = [rng.integers(0, room, 3)[2] for room in (5, 11)]
        assert (upright.batch([(epoch, 2)])[0][0, :2, 0, 0] * 255).round().tolist() == corners


def test_all_eight_orientations_of_a_file_come(tmp_path):
    image = np.arange(3 * 4 * 4, dtype=np.uint8).reshape(1, 3, 4, 4)
    pair_files.write(tmp_path / "a.npz", pair_files.VALIDATION, (image, image))
    data = dataset.PairFile(tmp_path / "a.npz", 3, 4, seed=0, augment=True, clean_targets=True)
    found = {(data.batch([(e, 0)])[0][0] * 255).round().astype(np.uint8).tobytes() for e in range(100)}
    turned = [np.rot90(image[0], turns, (1, 2)) for turns in range(4)]
    assert found == {view.tobytes() for way in turned for view in (way, way[..., ::-1])}


def test_the_sizes_of_a_file_and_its_names(tmp_path):
    path = numbered_pairs(tmp_path)
    data = dataset.PairFile(path, 3, 16, seed=1, size=2)
    assert (len(data), data.size, len(data.names)) == (2, 16, 2)
    assert data.names != dataset.PairFile(path, 3, 16, seed=1).names  # a run knows when its images change
    assert dataset.PairFile(path, 3, 256, seed=1).batch([(0, 0)])[0].shape == (1, 3, 20, 20)
    with pytest.raises(UserError, match=r"^--data_dir: .*a.npz has 3 channels, --n_channel is 1"):
        dataset.PairFile(path, 1, 16, seed=1)
