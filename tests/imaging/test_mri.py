import gzip
import json
import re
import struct

import numpy as np
import paddle
import pytest
from skimage.data import shepp_logan_phantom

import export_model
import infer
import mri_dataset
import predict
import train
import val
from conftest import broken_copies, refusal, scene
from dataset import TrainingImages
from denoising.cli import UserError
from denoising.data import phantoms
from denoising.files import nifti
from denoising.files.images import read_image
from denoising.imaging import mri
from denoising.imaging.metrics import psnr
from denoising.imaging.noise import parse_noise
from denoising.inference.denoiser import Denoiser
from denoising.training.methods import Noise2Noise, Supervised

SIZES = [(64, 64), (33, 47), (40, 31), (31, 40)]


def slice_of(height, width, seed=0):
    """A float image with something at every frequency."""
    return np.random.default_rng(seed).random((height, width), np.float32)


def whole(half, width):
    """The whole plane of frequencies from half of it."""
    height = half.shape[0]
    column = np.arange(width)
    return half[np.where(column <= width // 2, np.arange(height)[:, None], -np.arange(height)[:, None] % height),
                np.minimum(column, width - column)]  # fmt: skip


# --- Sampling -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("share", [0.05, 0.1, 0.5, 1.0])
def test_the_density_is_the_papers_and_keeps_the_share(height, width, share):
    p = mri.density(height, width, share)
    assert whole(p, width).mean() == pytest.approx(share, rel=1e-4)
    assert p[0, 0] == 1
    # p = exp(-Lambda |k|) of one Lambda; |k| is 1 at half a cycle a pixel along either axis.
    k = np.hypot(np.fft.fftfreq(height)[:, None], np.arange(width // 2 + 1) / width) * 2
    Lambda = -np.log(p.astype(float))[1:] / k[1:]
    assert np.ptp(Lambda) < 1e-4 * max(1, Lambda.max())


def test_the_density_of_the_reference_code():
    # It samples 255 x 255 with a probability of 0.025 at the edge, and says that some 10.5 % are kept.
    reference = 0.025 ** (np.hypot(*np.mgrid[-127:128, -127:128]) / 127)
    assert reference.mean() == pytest.approx(0.105, abs=0.001)
    p = whole(mri.density(255, 255, reference.mean()), 255)
    np.testing.assert_allclose(np.fft.fftshift(p), reference, rtol=1e-4)


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("new_rng", [np.random.default_rng, np.random.RandomState])
def test_each_frequency_is_measured_with_its_probability_and_with_its_mirror_image(height, width, new_rng):
    p, rng, rounds = mri.density(height, width, 0.2), new_rng(0), 1000
    masks = [whole(mri.draw_mask(p, width, rng), width) for _ in range(rounds)]
    for mask in masks[:20]:
        assert (mask == np.roll(mask[::-1, ::-1], 1, axis=(0, 1))).all()
    found, wanted = np.mean(masks, axis=0), whole(p, width)
    deviation = np.sqrt(wanted * (1 - wanted) / rounds)
    assert (np.abs(found - wanted) <= 5 * deviation + 1e-6).all()
    assert found.mean() == pytest.approx(0.2, abs=0.004)
    # Rings of growing |k| hold ever less.
    k = whole(mri.distances(height, width), width)
    rings = [found[(k >= low) & (k < low + 0.25)].mean() for low in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert rings == sorted(rings, reverse=True)


def test_two_draws_know_nothing_of_each_other():
    p = mri.density(64, 64, 0.3)
    rng = np.random.default_rng(0)
    draws = np.array([mri.draw_mask(p, 64, rng) for _ in range(2000)], float) - p
    first, second = draws[::2], draws[1::2]
    assert abs((first * second).sum() / (first**2).sum()) < 5 / np.sqrt((p * (1 - p)).size * 1000)


@pytest.mark.parametrize(("height", "width"), [(32, 24), (25, 24), (24, 33)])
def test_the_mean_of_undersampled_slices_is_the_slice(height, width):
    clean, rng, rounds = slice_of(height, width), np.random.default_rng(1), 2000
    spectra = [np.fft.rfft2(mri.undersample(clean, 0.3, rng).astype(float)) for _ in range(rounds)]
    error = np.mean(spectra, axis=0) - np.fft.rfft2(clean)
    # The variance of a draw that is F / p with probability p, and 0 otherwise.
    deviation = np.abs(np.fft.rfft2(clean)) * np.sqrt((1 / mri.density(height, width, 0.3) - 1) / rounds)
    assert (np.abs(error) <= 5 * deviation + 1e-3).all()
    assert np.abs(error).mean() == pytest.approx(np.sqrt(2 / np.pi) * deviation.mean(), rel=0.1)


def test_undersampling_keeps_shape_and_channels_together():
    image = slice_of(32, 48 * 3).reshape(32, 48, 3)
    noisy = mri.undersample(image, 0.2, np.random.default_rng(0))
    assert noisy.shape == image.shape
    assert noisy.dtype == np.float32
    masks = [np.abs(np.fft.rfft2(noisy[..., c])) > 1e-3 for c in range(3)]
    assert (masks[0] == masks[1]).all()
    assert (masks[0] == masks[2]).all()
    assert (mri.undersample(image[..., 1], 0.2, np.random.default_rng(0)) == noisy[..., 1]).all()
    np.testing.assert_allclose(mri.undersample(image, 1.0, np.random.default_rng(0)), image, atol=1e-6)


def test_too_small_an_image_for_the_share_is_refused():
    with pytest.raises(UserError, match="4 x 4"):
        mri.undersample(slice_of(4, 4), 0.05, np.random.default_rng(0))


# --- Known frequencies --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [*SIZES, (256, 256)])
@pytest.mark.parametrize("make", [slice_of, lambda *size: scene(*size)[..., 0] / np.float32(255)])
def test_measured_frequencies_are_put_back_exactly_and_the_others_left(height, width, make):
    clean, denoised, rng = make(height, width), slice_of(height, width, 7), np.random.default_rng(3)
    p = mri.density(height, width, 0.2)
    mask = mri.draw_mask(p, width, np.random.default_rng(3))
    restored = mri.put_back_image(mri.undersample(clean, 0.2, rng), denoised, 0.2)
    wanted = np.where(mask, np.fft.rfft2(clean), np.fft.rfft2(denoised))
    np.testing.assert_allclose(np.fft.rfft2(restored), wanted, atol=1e-5 * np.abs(wanted).max())
    # What is right already stays as it is.
    again = mri.put_back_image(mri.undersample(clean, 0.2, np.random.default_rng(3)), clean, 0.2)
    np.testing.assert_allclose(again, clean, atol=1e-5)


def test_tensors_get_what_arrays_get():
    noisy = np.stack([mri.undersample(slice_of(31, 40, i), 0.3, np.random.default_rng(i)) for i in range(4)])
    denoised = np.stack([slice_of(31, 40, 9 + i) for i in range(4)])
    expected = [mri.put_back_image(a, b, 0.3) for a, b in zip(noisy, denoised, strict=True)]
    tensors = [paddle.to_tensor(array.reshape(2, 2, 31, 40)) for array in (noisy, denoised)]
    found = mri.put_back_tensor(*tensors, 0.3)
    assert found.dtype == paddle.float32
    np.testing.assert_allclose(found.numpy().reshape(4, 31, 40), expected, atol=2e-6)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 9)])
def test_gradients_lose_the_known_frequencies(height, width):
    noisy = mri.undersample(slice_of(height, width), 0.4, np.random.default_rng(0))
    denoised, weight = slice_of(height, width, 5), slice_of(height, width, 6)
    tensor = paddle.to_tensor(denoised[None, None], stop_gradient=False)
    restored = mri.put_back_tensor(paddle.to_tensor(noisy[None, None]), tensor, 0.4)
    (restored * paddle.to_tensor(weight)).sum().backward()
    gradient = tensor.grad.numpy()[0, 0]

    # The step is linear in the denoised image, so that differences are exact however wide.
    def weighted(image):
        return float((mri.put_back_image(noisy, image, 0.4).astype(float) * weight).sum())

    differences = np.zeros((height, width))
    for place in np.ndindex(height, width):
        nudge = np.zeros((height, width))
        nudge[place] = 0.5
        differences[place] = weighted(denoised + nudge) - weighted(denoised - nudge)
    np.testing.assert_allclose(gradient, differences, atol=1e-5)
    assert np.abs(differences).max() > 0.1
    known = np.abs(np.fft.rfft2(noisy)) > 1e-4
    assert 0.2 < known.mean() < 0.7
    assert np.abs(np.fft.rfft2(gradient))[known].max() < 1e-4


def test_what_is_no_undersampled_slice_of_that_size_is_refused():
    for noisy, denoised, word in (
        (np.zeros((32, 32), np.uint8), np.zeros((32, 32), np.float32), "uint8"),
        (np.zeros((32, 32), np.float32), np.zeros((32, 30), np.float32), "different shapes"),
        (slice_of(32, 32), slice_of(32, 32), "100% of the frequencies"),
    ):
        with pytest.raises(ValueError, match=word):
            mri.put_back_image(noisy, denoised, 0.3)


# --- Measured k-space ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_kspace_becomes_what_undersampling_makes(height, width):
    clean = slice_of(height, width)
    expected = mri.undersample(clean, 0.3, np.random.default_rng(4))
    mask = whole(mri.draw_mask(mri.density(height, width, 0.3), width, np.random.default_rng(4)), width)
    kspace = np.fft.fft2(clean) * mask
    np.testing.assert_allclose(mri.from_kspace(kspace, 0.3), expected, atol=1e-5)
    # Of k and -k one is enough.
    one_sided = kspace.copy()
    one_sided[:, width // 2 + 1 :] = 0
    np.testing.assert_allclose(mri.from_kspace(one_sided, 0.3), expected, atol=1e-5)


def test_kspace_of_something_else_is_refused():
    clean = slice_of(32, 32)
    mask = whole(mri.draw_mask(mri.density(32, 32, 0.3), 32, np.random.default_rng(4)), 32)
    good = np.fft.fft2(clean) * mask
    for kspace, word in (
        (np.fft.fft2(clean * np.exp(1j * clean)) * mask, "not real"),
        (np.fft.fftshift(good), "not the first"),
        (good * 0, "empty"),
        (np.fft.fft2(clean), "100.0%"),
        (good * np.nan, "NaN"),
    ):
        with pytest.raises(ValueError, match=word):
            mri.from_kspace(kspace, 0.3)


def test_kspace_of_another_share_is_refused():
    p = mri.density(64, 64, 0.2)
    kspace = np.fft.fft2(slice_of(64, 64)) * whole(mri.draw_mask(p, 64, np.random.default_rng(4)), 64)
    for share in (0.12, 0.2, 0.35):
        assert np.isfinite(mri.from_kspace(kspace, share)).all()
    for share in (0.08, 0.5):
        with pytest.raises(ValueError, match=rf"of the k-space are known, not about {share:.1%}"):
            mri.from_kspace(kspace, share)


def test_what_is_remembered_of_a_density_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        mri.density(16, 16, 0.5)[0, 0] = 0


# --- Phantoms -----------------------------------------------------------------------------------------------


def test_a_phantom_without_variety_is_shepp_and_logans():
    ours, theirs = phantoms.phantom(400, np.random.default_rng(0), variety=0), shepp_logan_phantom()
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.97
    assert np.median(np.abs(ours - theirs)) < 0.005


@pytest.mark.parametrize("size", [32, 63, 256])
def test_phantoms_follow_from_their_seed_and_differ(size):
    first, again, other = (phantoms.phantom(size, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert (first == again).all()
    assert first.shape == (size, size)
    assert first.dtype == np.float32
    assert first.min() == 0
    assert 0.7 < first.max() <= 1
    assert np.abs(first - other).mean() > 0.05


def test_phantoms_are_no_two_alike_and_leave_air_around_the_head():
    heads = np.stack([phantoms.phantom(64, np.random.default_rng([0, i])) for i in range(40)])
    assert 0.2 < (heads == 0).mean() < 0.75
    flat = heads.reshape(40, -1)
    likeness = np.corrcoef(flat)[~np.eye(40, dtype=bool)]
    assert likeness.max() < 0.97
    assert likeness.mean() < 0.85


# --- Volumes ------------------------------------------------------------------------------------------------


def nifti_bytes(array, order="<", slope=0.0, shift=0.0, extension=b"", **changed):
    """The bytes of a NIfTI-1 file of [D, H, W]."""
    codes = {"u1": 2, "i1": 256, "i2": 4, "u2": 512, "i4": 8, "u4": 768, "f4": 16, "f8": 64, "c8": 32}
    fields = {
        "size": ("i", 0, 348), "rank": ("h", 40, 3), "width": ("h", 42, array.shape[2]),
        "height": ("h", 44, array.shape[1]), "depth": ("h", 46, array.shape[0]), "time": ("h", 48, 1),
        "kind": ("h", 70, codes[array.dtype.str[1:]]), "offset": ("f", 108, 352 + len(extension)),
        "slope": ("f", 112, slope), "shift": ("f", 116, shift),
    }  # fmt: skip
    header = bytearray(352)
    header[344:348] = changed.pop("magic", b"n+1\0")
    for name, (kind, place, value) in fields.items():
        struct.pack_into(order + kind, header, place, changed.pop(name, value))
    assert not changed
    return bytes(header) + extension + array.astype(array.dtype.newbyteorder(order)).tobytes()


@pytest.mark.parametrize("kind", ["u1", "i1", "i2", "u2", "i4", "u4", "f4", "f8"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("packed", [False, True])
def test_nifti_of_every_type_is_read(kind, order, packed, tmp_path):
    array = (np.random.default_rng(0).random((5, 6, 7)) * 100).astype(kind)
    data = nifti_bytes(array, order, extension=bytes(32))
    path = tmp_path / "a.nii"  # the content tells whether it is packed
    path.write_bytes(gzip.compress(data) if packed else data)
    volume = nifti.read_volume(path)
    assert volume.dtype == np.float32
    np.testing.assert_array_equal(volume, array.astype(np.float32))


def test_niftis_scale_is_obeyed_unless_it_is_none(tmp_path):
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    for slope, shift, wanted in ((0.5, -3, array * 0.5 - 3), (0, 7, array), (float("nan"), 7, array)):
        (tmp_path / "a.nii").write_bytes(nifti_bytes(array, slope=slope, shift=shift))
        np.testing.assert_allclose(nifti.read_volume(tmp_path / "a.nii"), wanted)


GOOD = np.arange(1, 25, dtype=np.float32).reshape(2, 3, 4)
BAD = {
    "cut short": (nifti_bytes(GOOD)[:-1], "cut short"),
    "a header cut short": (nifti_bytes(GOOD)[:200], "NIfTI-1"),
    "packed and cut short": (gzip.compress(nifti_bytes(GOOD))[:-9], "cut short"),
    "packed with a wrong sum": (gzip.compress(nifti_bytes(GOOD))[:-8] + bytes(8), "broken"),
    "empty": (b"", "empty"),
    "no NIfTI": (b"x" * 1000, "NIfTI-1"),
    "a header without its numbers": (nifti_bytes(GOOD, magic=b"ni1\0"), "one file"),
    "NIfTI-2": (struct.pack("<i", 540) + bytes(600), "NIfTI-1"),
    "complex": (nifti_bytes(GOOD.astype(np.complex64)), "data type 32"),
    "four dimensions": (nifti_bytes(GOOD, rank=4, time=3), "one volume"),
    "negative sizes": (nifti_bytes(GOOD, width=-4), "one volume"),
    "no dimensions": (nifti_bytes(GOOD, rank=0), "one volume"),
    "a bomb": (gzip.compress(nifti_bytes(GOOD, width=32767, height=32767, depth=32767)), "refused"),
    "an offset into the header": (nifti_bytes(GOOD, offset=10.0), "offset"),
    "an offset that is none": (nifti_bytes(GOOD, offset=float("nan")), "offset"),
    "an infinite slope": (nifti_bytes(GOOD, slope=float("inf")), "slope"),
    "NaN": (nifti_bytes(np.full_like(GOOD, np.nan)), "NaN"),
    "nothing above zero": (nifti_bytes(GOOD * 0), "above 0"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_nifti_is_refused(what, tmp_path):
    data, word = BAD[what]
    (tmp_path / "bad.nii.gz").write_bytes(data)
    with pytest.raises(UserError, match=word) as refusal:
        mri_dataset.main(["--data", tmp_path / "bad.nii.gz", "--save_dir", tmp_path / "out"])
    assert "bad.nii.gz" in str(refusal.value)
    assert not any((tmp_path / "out").iterdir())


@pytest.mark.parametrize("packed", [False, True])
def test_damaged_volumes_are_read_or_refused(packed, tmp_path):
    good = nifti_bytes(np.arange(1, 721, dtype=np.int16).reshape(9, 8, 10), slope=0.5)
    path, messages = tmp_path / "a.nii", []
    for data in broken_copies(gzip.compress(good) if packed else good, 40):
        path.write_bytes(data)
        try:
            nifti.read_volume(path)  # with other numbers in it, if that is all that is damaged
        except UserError as error:
            messages.append(str(error))
    assert len(messages) > 40
    assert all(message.startswith(str(path)) for message in messages)


# --- The script ---------------------------------------------------------------------------------------------


def test_phantoms_are_written_and_the_same_again(tmp_path, capsys):
    for folder in ("a", "b"):
        assert mri_dataset.main(["--phantoms", 3, "--size", 48, "--seed", 5, "--save_dir", tmp_path / folder]) == 0
    assert "3 slices" in capsys.readouterr().out
    names = [f"phantom5_{i:05d}.png" for i in range(3)]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    page = read_image(tmp_path / "a" / names[0]).pages[0]
    assert page.shape == (48, 48, 1)
    assert page.dtype == np.uint8


def test_volumes_become_slices_of_one_size(tmp_path):
    volume = np.zeros((4, 40, 70))
    volume[1:, 10:30, 20:50] = np.array([50, 100, 200])[:, None, None]  # the first slice is empty
    np.save(new(tmp_path / "volumes" / "a.npy"), volume)
    np.save(new(tmp_path / "volumes" / "deep" / "b.npy"), volume[3].astype(np.int16) - 7)  # one slice, below 0 too
    (tmp_path / "volumes" / "c.NII").write_bytes(nifti_bytes(volume.astype(np.uint8)))
    flags = ["--data", tmp_path / "volumes", "--size", 56, "--save_dir", tmp_path / "out"]
    assert mri_dataset.main(flags) == 0
    found = {path.name: read_image(path).pages[0][..., 0] for path in (tmp_path / "out").iterdir()}
    assert sorted(found) == ["a_001.png", "a_002.png", "a_003.png", "c_001.png", "c_002.png", "c_003.png",
                             "deep__b_000.png"]  # fmt: skip
    assert {page.shape for page in found.values()} == {(56, 56)}
    # 70 pixels become 56: scaled by 0.8, in the middle.
    middle = found["a_001.png"][12 + 10 : 12 + 22, 18:38]
    assert (middle == round(255 / 4)).all()
    assert (found["a_002.png"][22:34, 18:38] == round(255 / 2)).all()
    assert found["a_003.png"][22:34, 18:38].min() == 255
    assert found["a_001.png"][:18].max() == 0
    assert (found["a_003.png"] == found["c_003.png"]).all()
    # Only some, of one file, and smaller ones in the middle of black.
    flags = ["--data", tmp_path / "volumes" / "a.npy", "--size", 80, "--slices", 2, 3, "--save_dir", tmp_path / "some"]
    assert mri_dataset.main(flags) == 0
    assert sorted(path.name for path in (tmp_path / "some").iterdir()) == ["a_002.png", "a_003.png"]
    page = read_image(tmp_path / "some" / "a_003.png").pages[0][..., 0]
    np.testing.assert_array_equal(np.nonzero(page.any(axis=1))[0], np.arange(30, 50))
    np.testing.assert_array_equal(np.nonzero(page.any(axis=0))[0], np.arange(25, 55))


def test_only_some_slices_of_kspace(tmp_path):
    planes = np.fft.fft2(np.stack([slice_of(32, 32) * (i + 1) for i in range(4)]))
    np.save(tmp_path / "k.npy", planes)
    flags = ["--data", tmp_path / "k.npy", "--kspace_share", 1, "--save_dir", tmp_path / "out"]
    assert mri_dataset.main([*flags, "--slices", 1, 2]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["k_001.npy", "k_002.npy"]
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "k_002.npy"), mri.from_kspace(planes[2], 1))
    with pytest.raises(UserError, match="--slices: from 3 to 4, but .*k.npy has 0 to 3"):
        mri_dataset.main([*flags, "--overwrite", "--slices", 3, 4])


def new(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_a_broken_volume_among_several_is_told_and_passed_over(tmp_path, capsys):
    np.save(tmp_path / "a.npy", np.ones((2, 40, 40)))
    np.save(tmp_path / "b.npy", np.full((2, 40, 40), np.nan))
    assert mri_dataset.main(["--data", tmp_path, "--save_dir", tmp_path / "out"]) == 1
    assert len(list((tmp_path / "out").iterdir())) == 2
    err = capsys.readouterr().err
    assert "b.npy: holds NaN" in err
    assert "1 of 2" in err


def test_mistakes_are_one_line(tmp_path):
    arrays = {
        "complex": np.ones((32, 32), complex), "nan": np.full((32, 32), np.nan), "row": np.ones(9),
        "four": np.ones((2, 2, 3, 3)), "text": np.array([["a"]]), "objects": np.array([[None]], object),
        "black": np.zeros((3, 8, 8)), "good": np.ones((3, 40, 40)), "rgb": np.ones((9, 9, 3)),
        "none": np.ones((0, 4, 4)), "kspace": np.fft.fft2(slice_of(32, 32)),
    }  # fmt: skip
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array, allow_pickle=name == "objects")
    (tmp_path / "cut.npy").write_bytes((tmp_path / "good.npy").read_bytes()[:-8])
    (tmp_path / "empty").mkdir()
    (tmp_path / "twice").mkdir()
    for suffix in (".npy", ".nii"):
        (tmp_path / "twice" / f"a{suffix}").write_bytes(b"x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    for flags, words in (
        (["--data", "complex.npy"], ["complex.npy", "complex"]),
        (["--data", "nan.npy"], ["nan.npy", "NaN"]),
        (["--data", "row.npy"], ["row.npy", "(9,)"]),
        (["--data", "four.npy"], ["four.npy", "D x H x W"]),
        (["--data", "rgb.npy"], ["rgb.npy", "colour"]),
        (["--data", "text.npy"], ["text.npy", "U1"]),
        (["--data", "objects.npy"], ["objects.npy", "pickled"]),
        (["--data", "black.npy"], ["black.npy", "above 0"]),
        (["--data", "none.npy"], ["none.npy", "(0, 4, 4)"]),
        (["--data", "cut.npy"], ["cut.npy", "cut short"]),
        (["--data", "good.npy", "--slices", 1, 3], ["--slices", "good.npy"]),
        (["--data", "empty"], ["--data", "empty"]),
        (["--data", "nowhere"], ["--data", "nowhere"]),
        (["--data", "twice"], ["--data", "a.npy", "a.nii"]),
        (["--data", "good.npy", "--save_dir", "full"], ["--save_dir", "--overwrite"]),
        (["--data", "good.npy", "--kspace_share", 0.1], ["--kspace_share", "good.npy"]),
        (["--data", "kspace.npy", "--kspace_share", 0.1], ["kspace.npy", "100.0%"]),
        (["--phantoms", 1, "--kspace_share", 0.1], ["--kspace_share"]),
    ):
        flags = [str(tmp_path / flag) if f"{flag}".endswith(".npy") else flag for flag in flags]
        flags = [str(tmp_path / flag) if flag in ("empty", "nowhere", "twice", "full") else flag for flag in flags]
        with pytest.raises(UserError) as refusal:
            mri_dataset.main([*([] if "--save_dir" in flags else ["--save_dir", tmp_path / "out"]), *flags])
        assert "\n" not in str(refusal.value)
        for word in words:
            assert word in str(refusal.value), refusal.value
    assert not any((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--data", "cut.nii"], ["cut.nii", "cut short"]),
        (["--data", "cut.nii", "--phantoms", 2], ["--phantoms"]),
        (["--phantoms", 0], ["--phantoms"]),
        (["--data", "cut.nii", "--kspace_share", 1.5], ["--kspace_share", "1.5"]),
        ([], ["--phantoms", "--data"]),
    ],
)
def test_mistakes_in_flags_name_them(flags, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cut.nii").write_bytes(nifti_bytes(GOOD)[:-4])
    line = refusal(mri_dataset.main, [*flags, "--save_dir", "out"], capsys)
    assert all(word in line for word in words), line


# --- Training, scores, reconstruction -----------------------------------------------------------------------


def test_the_noise_is_named_by_its_share():
    model = parse_noise("mri0.2")
    clean = slice_of(32, 48)[..., None]
    noisy = model.add(clean, np.random.default_rng(0))
    assert (noisy == mri.undersample(clean, 0.2, np.random.default_rng(0))).all()
    # Noise of the measurement comes first; what is put back is as measured, noise and all.
    chain = parse_noise("gauss25+mri0.2")
    measured = parse_noise("gauss25").add(clean, np.random.default_rng(3))
    rng = np.random.default_rng(3)
    noisy = chain.add(clean, rng)
    np.testing.assert_allclose(chain.restore(noisy, measured), measured, atol=1e-5)
    assert np.abs(chain.restore(noisy, clean) - clean).max() > 0.01
    for wrong in ("mri0", "mri1.1", "mri0.1_0.2", "mri"):
        with pytest.raises(ValueError, match=r"^unknown noise .*mriP"):
            parse_noise(wrong)
    with pytest.raises(ValueError, match="mri comes last"):
        parse_noise("mri0.2+gauss25")


def test_the_loss_is_of_what_has_its_known_frequencies():
    clean = slice_of(32, 32)[None, None]
    noise, rng = parse_noise("mri0.4"), np.random.default_rng(0)
    noisy, target = (noise.add(clean[0, 0], rng)[None, None] for _ in range(2))
    denoised = slice_of(32, 32, 3)
    loss = Noise2Noise(noise=noise)(
        lambda x: paddle.to_tensor(denoised[None, None]), paddle.to_tensor(noisy), paddle.to_tensor(target), ramp=0.0
    )[0]
    wanted = np.mean((noise.restore(noisy[0, 0], denoised) - target[0, 0]) ** 2)
    assert loss.item() == pytest.approx(wanted, rel=1e-4)
    assert loss.item() != pytest.approx(np.mean((denoised - target) ** 2), rel=1e-2)


def test_source_and_target_are_two_samplings_of_one_translated_slice(slices):
    patches = TrainingImages(slices / "train", Noise2Noise(), parse_noise("mri0.3"), 1, 64, seed=0, translate=20)
    plain = TrainingImages(slices / "train", Supervised(), parse_noise("none"), 1, 64, seed=0)
    overlaps, shifts = [], set()
    for epoch in range(12):
        source, target = patches.sample(epoch, 0)
        clean = plain.sample(epoch, 0)[1][0]
        spectra = [np.fft.rfft2(patch[0].astype(float)) for patch in (source, target)]
        known = [np.abs(spectrum) > 1e-3 for spectrum in spectra]
        p = mri.density(64, 64, 0.3)
        overlaps.append(((known[0] - p) * (known[1] - p)).sum() / (p * (1 - p)).sum())
        # What both have measured is the spectrum of the slice, rolled by what maximises their correlation.
        rolled = np.fft.irfft2(spectra[0] * p * np.conj(np.fft.rfft2(clean)), s=(64, 64))
        shift = np.unravel_index(rolled.argmax(), rolled.shape)
        shifts.add(shift)
        moved = np.fft.rfft2(np.roll(clean, shift, axis=(0, 1)))
        for spectrum, mask in zip(spectra, known, strict=True):
            np.testing.assert_allclose((spectrum * p)[mask], moved[mask], atol=1e-3)
    assert abs(np.mean(overlaps)) < 0.05
    assert len(shifts) > 8
    assert all(min(side, 64 - side) <= 20 for shift in shifts for side in shift)


@pytest.fixture(scope="module")
def slices(tmp_path_factory):
    """train/ and val/Phantoms/ of small slices."""
    folder = tmp_path_factory.mktemp("slices")
    for name, seed, count in (("train", 0, 4), ("val/Phantoms", 1, 2)):
        flags = ["--phantoms", count, "--size", 64, "--seed", seed, "--save_dir", folder / name]
        assert mri_dataset.main(flags) == 0
    return folder


@pytest.fixture(scope="module", params=["noise2noise", "supervised"])
def trained(slices, tmp_path_factory, request):
    """The weights of two steps of a tiny network, by either method."""
    results = tmp_path_factory.mktemp("results")
    flags = ["--method", request.param, "--noisetype", "mri0.3", "--n_channel", 1, "--n_feature", 2, "--max_steps", 2]
    flags += ["--batchsize", 2, "--patchsize", 64, "--translate", 16, "--log_iters", 1, "--save_model_path", results]
    flags += ["--data_dir", slices / "train", "--val_dirs", slices / "val"]
    assert train.main(flags) == 0
    return next(results.rglob("best_model.pdparams"))


def test_scores_are_of_what_has_its_known_frequencies(slices, trained, tmp_path):
    flags = ["--model_path", trained, "--val_dirs", slices / "val", "--json", tmp_path / "scores.json"]
    assert val.main(flags) == 0
    (found,) = json.loads((tmp_path / "scores.json").read_text())["sets"]
    rng, wanted = np.random.RandomState(101), []
    denoiser, noise = Denoiser(trained), parse_noise("mri0.3")
    for path in sorted((slices / "val" / "Phantoms").iterdir()):
        clean = read_image(path).pages[0]
        noisy = noise.add(clean / np.float32(255), rng)
        restored = mri.put_back_image(noisy, denoiser(noisy), 0.3)
        wanted.append(psnr(clean, np.clip(np.floor(restored * 255 + 0.5), 0, 255), 255))
    assert found["psnr"] == pytest.approx(np.mean(wanted), abs=1e-3)


def test_measured_kspace_is_reconstructed(slices, trained, tmp_path):
    clean = read_image(slices / "val" / "Phantoms" / "phantom1_00000.png").pages[0][..., 0] / 255
    mask = whole(mri.draw_mask(mri.density(64, 64, 0.3), 64, np.random.default_rng(0)), 64)
    kspace = np.fft.fft2(clean) * mask
    np.save(tmp_path / "scan.npy", kspace)
    flags = ["--data", tmp_path / "scan.npy", "--kspace_share", 0.3, "--save_dir", tmp_path / "measured"]
    assert mri_dataset.main(flags) == 0
    flags = ["--image_path", tmp_path / "measured", "--model_path", trained, "--save_dir", tmp_path / "out"]
    assert predict.main(flags) == 0
    found = np.load(tmp_path / "out" / "scan_000_denoise.npy")
    assert found.shape == (64, 64)
    np.testing.assert_allclose(np.fft.fft2(found.astype(float))[mask], kspace[mask], atol=2e-3)


def test_an_exported_network_scores_the_same(slices, trained, tmp_path, capsys):
    export_model.main(["--model_path", trained, "--save_dir", tmp_path / "model"])
    flags = ["--model_file", tmp_path / "model" / "model.pdmodel", "--params_file"]
    flags += [tmp_path / "model" / "model.pdiparams", "--input_file", slices / "val", "--noise", "mri0.3"]
    capsys.readouterr()
    assert infer.main([*flags, "--save_dir", tmp_path / "out", "--use_gpu", "False"]) == 0
    denoiser, noise, wanted = Denoiser(trained), parse_noise("mri0.3"), []
    for index, path in enumerate(sorted((slices / "val" / "Phantoms").iterdir())):
        clean = read_image(path).pages[0]
        noisy = noise.add(clean / np.float32(255), np.random.default_rng([0, index, 0]))
        restored = noise.restore(noisy, denoiser(noisy))
        wanted.append(psnr(clean, np.clip(np.floor(restored * 255 + 0.5), 0, 255), 255))
    found = re.search(r"^Metric psnr: (\S+)$", capsys.readouterr().out, re.MULTILINE)
    assert float(found[1]) == pytest.approx(np.mean(wanted), abs=2e-3)


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--noisetype", "mri0.1"], "--method noise2noise"),
        (["--noisetype", "mri1.5", "--method", "noise2noise"], "mri1.5"),
    ],
)
def test_training_refuses_what_cannot_be_sampled(slices, tmp_path, flags, word):
    data = ["--data_dir", slices / "train", "--val_dirs", "none", "--n_channel", 1, "--patchsize", 64]
    with pytest.raises(UserError, match=word):
        train.main([*data, "--n_feature", 2, "--max_steps", 1, "--save_model_path", tmp_path, *flags])


def test_rounded_slices_cannot_be_reconstructed(slices, trained, tmp_path):
    path = slices / "val" / "Phantoms" / "phantom1_00000.png"
    with pytest.raises(UserError, match="float32") as refusal:
        predict.main(["--image_path", path, "--model_path", trained, "--save_dir", tmp_path])
    assert str(path) in str(refusal.value)
    assert not any(tmp_path.iterdir())
