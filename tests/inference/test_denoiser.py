import numpy as np
import paddle
import pytest

from arch_unet import PlainOps, UNet, UNetN2N, build_network
from conftest import noisy_scene, tiny_network
from denoising import machine
from denoising.imaging.detail import Amount, mix
from denoising.imaging.pixels import from_01
from denoising.inference import denoiser
from denoising.inference.denoiser import Denoiser
from denoising.inference.windows import along, plan_windows


@pytest.fixture(scope="module")
def network():
    return tiny_network(3)


def by_hand(network, image_01):
    """Pads by numpy to multiples of 32, runs, crops: HWC float32."""
    height, width = image_01.shape[:2]
    padded = np.pad(image_01, [(0, -height % 32), (0, -width % 32), (0, 0)], "reflect")
    with paddle.no_grad():
        result = network(paddle.to_tensor(padded.transpose(2, 0, 1)[None])).numpy()
    return result[0].transpose(1, 2, 0)[:height, :width]


@pytest.mark.parametrize("size", [(64, 64), (45, 67), (33, 200), (7, 5), (1, 1), (1, 40)])
def test_any_size_is_padded_by_reflection(network, size):
    image = noisy_scene(*size).astype(np.float32) / 255
    assert np.abs(Denoiser(network)(image) - by_hand(network, image)).max() < 1e-6


@pytest.mark.parametrize("tile", [400, 500])
def test_tiles_equal_the_whole(network, tile):
    image = noisy_scene(420, 470).astype(np.float32) / 255
    whole = Denoiser(network, tile=2000)(image)
    assert np.abs(Denoiser(network, tile=tile)(image) - whole).max() < 1e-5


def in_stages(network, image, tile=320):
    """The result by stages, however the network is run else."""
    assert "deep" in Denoiser(network, tile=tile)._plan(*image.shape[:2])[0][1]
    return Denoiser(network, tile=tile)(image)


def in_windows(network, image, tile=320):
    """The result in windows of the whole network."""
    network.stages = {}
    try:
        return Denoiser(network, tile=tile)(image)
    finally:
        del network.stages


def test_the_margins_are_needed_as_large_as_they_are(network):
    image = noisy_scene(700, 532).astype(np.float32) / 255
    whole = Denoiser(network, tile=2000)(image)
    assert np.abs(in_stages(network, image) - whole).max() < 1e-5
    # The margins are no guess: smaller ones change the result.
    network.margin = 64
    try:
        assert np.abs(in_windows(network, image) - whole).max() > 1e-5
    finally:
        del network.margin
    tall = np.ascontiguousarray(image[:, :64])
    whole = Denoiser(network, tile=2000)(tall)
    for stage, margin, tile in (("encode", 0, 128), ("deep", 12, 24), ("decode", 16, 128)):
        assert np.abs(in_stages(network, tall, tile) - whole).max() < 1e-5
        network.stages = {**UNet.stages, stage: (UNet.stages[stage][0], margin)}
        try:
            assert np.abs(in_stages(network, tall, tile) - whole).max() > 1e-5, stage
        finally:
            del network.stages


def test_blocks_bound_what_is_kept_of_the_deep_part(network, monkeypatch):
    image = noisy_scene(700, 532).astype(np.float32) / 255
    whole = Denoiser(network, tile=2000)(image)
    monkeypatch.setattr(denoiser, "BLOCK_PIXELS", 300_000)
    plan = Denoiser(network, tile=200)._plan(700, 532)
    assert len(plan) > 1
    kept = np.zeros(image.shape[:2], int)
    for block, stages in plan:
        for window in stages["decode"]:
            kept[window.moved(block).kept_within(block, *kept.shape)[0]] += 1
    assert (kept == 1).all()
    assert np.abs(in_stages(network, image, 200) - whole).max() < 1e-5


def test_the_work_is_told_after_each_window(network):
    image, told = noisy_scene(420, 470), []
    for tta in (False, True):
        told.clear()
        network_of_windows = Denoiser(network, tile=320, tta=tta)
        network_of_windows.on_progress = lambda done, total: told.append((done, total))
        network_of_windows(image)
        done, totals = zip(*told, strict=True)
        assert list(done) == sorted(done)
        assert 0 < done[0] < done[-1]
        assert done[-1] == pytest.approx(totals[-1])
        assert len(set(totals)) == 1


SIZES = [(32, 32), (4000, 6016), (32, 100_000), (10_016, 10_016), (352, 384), (512, 512)]


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("pixels", [1024, 352**2, 300_000, 4_000_000])
def test_windows_cover_the_image_and_keep_to_the_budget(height, width, pixels):
    sides = plan_windows(height, width, 32, 160, pixels)
    assert sides[0] * sides[1] <= max(pixels, min(352, height) * min(352, width))
    for length, side in zip((height, width), sides, strict=True):
        covered = 0
        for start, end, first, last in along(length, side, 160):
            assert start % 32 == side % 32 == 0
            assert end - start == side
            assert 0 <= start < end <= length
            assert first == covered < last
            # What is kept is out of reach of the window's edges, but for those that are the image's.
            assert start == 0 or first - start >= 160
            assert end == length or end - last >= 160
            covered = last
        assert covered == length


@pytest.mark.parametrize(
    ("height", "width", "pixels"), [(640, 960, 400 * 400), (1280, 640, 700_000), (96, 2080, 60_000)]
)
def test_no_other_windows_compute_less(height, width, pixels):
    def work(sides):
        count = [len(list(along(length, side, 160))) for length, side in zip((height, width), sides, strict=True)]
        return np.prod(count) * np.prod(sides)

    heights, widths = ({*range(352, length, 32), length} for length in (height, width))
    others = [(h, w) for h in heights for w in widths if h * w <= pixels]
    assert work(plan_windows(height, width, 32, 160, pixels)) == min(map(work, others))


@pytest.mark.parametrize(("side", "tile", "most"), [(512, 352, 18), (512, 448, 2.3), (4000, 1000, 2.1)])
def test_windows_do_not_compute_the_same_over_and_over(side, tile, most):
    # A margin at the image's border, where there is nothing to keep off, made 121 times the work of the first.
    sides = plan_windows(side, side, 32, 160, tile**2)
    count = [len(list(along(side, window, 160))) for window in sides]
    assert np.prod(count) * np.prod(sides) / side**2 <= most


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 3, None])
def test_the_same_kind_comes_back(network, dtype, channels):
    image_01 = noisy_scene(40, 50, channels or 1).astype(np.float32) / 255
    image = from_01(image_01 if channels else image_01[..., 0], dtype)
    before = image.copy()
    result = Denoiser(network)(image)
    assert result.shape == image.shape
    assert result.dtype == dtype
    assert (image == before).all()
    assert (result != image).any()


def test_float_images_are_not_clipped(network):
    image = noisy_scene(40, 50).astype(np.float32) / 255 * 9
    result = Denoiser(network)(image)
    assert result.max() > 1.5 or result.min() < -0.5


def test_a_colour_network_takes_grey_as_three_equal_channels(network):
    grey = noisy_scene(40, 50, 1).astype(np.float32) / 255
    expected = Denoiser(network)(np.repeat(grey, 3, axis=2)).mean(axis=2, keepdims=True)
    np.testing.assert_allclose(Denoiser(network)(grey), expected, atol=1e-6)


def test_the_bytes_of_an_image_may_stand_in_either_order(network):
    image = noisy_scene(40, 50).astype(np.uint16) * 257
    swapped = image.astype(image.dtype.newbyteorder())
    assert (Denoiser(network)(swapped) == Denoiser(network)(image)).all()


@pytest.mark.parametrize("options", [{"strength": 1.01}, {"strength": -0.1}, {"tile": 0}])
def test_options_out_of_range_are_refused(network, options):
    with pytest.raises(ValueError, match=r"strength is 0\.\.1 and tile a positive number"):
        Denoiser(network, **options)


def test_options_at_their_bounds_are_taken(network):
    image = noisy_scene(20, 30)
    whole = Denoiser(network)
    assert whole.options == {}
    assert np.abs(Denoiser(network, tile=1, strength=1)(image).astype(int) - whole(image)).max() <= 1
    pixel = np.full((1, 1), 0.25, np.float32)
    assert whole(pixel).shape == (1, 1)


def test_a_network_of_renders_takes_buffers_and_gives_light():
    paddle.seed(3)
    network = build_network("unet_n2n", n_feature=4, n_input=9)
    network.eval()
    buffers = np.concatenate([noisy_scene(40, 50, seed=seed) for seed in range(3)], axis=2).astype(np.float32) / 255
    expected = by_hand(network, buffers)
    for strength in (0, 0.5, 1):  # mixing is for who knows the light: renders.denoise
        result = Denoiser(network, strength=strength)(buffers)
        assert result.shape == (40, 50, 3)
        np.testing.assert_allclose(result, expected, atol=1e-5)
    for channels in (1, 3, 10):
        words = f"the image has {channels} channels, the network takes 9: a render with its albedo and normals"
        with pytest.raises(ValueError, match=words):
            Denoiser(network)(np.zeros((4, 4, channels), np.float32))


def test_only_colour_networks_take_grey():
    four = build_network(n_channel=4, n_feature=4)
    four.eval()
    for channels in (1, 3):
        with pytest.raises(ValueError, match=f"the image has {channels} channels, the network takes 4$"):
            Denoiser(four)(np.zeros((4, 4, channels), np.float32))


def test_a_loaded_network_computes_as_it_is_told(weights):
    ops = PlainOps()
    assert Denoiser(str(weights), ops).network.ops is ops
    assert Denoiser(str(weights)).network.ops is not ops


def test_windows_are_planned_from_half_of_the_free_memory(network, monkeypatch):
    plain = Denoiser(network)
    taken = network.ops.bytes_per_pixel
    in_one = UNetN2N(n_feature=48)  # cannot be run in stages
    for of, free, budget in (
        (plain, 800 << 20, 400 << 20), (plain, 1 << 40, 512 << 20),
        (Denoiser(in_one), 6 << 30, 3 << 30), (Denoiser(in_one), 1 << 40, 4 << 30),
    ):  # fmt: skip
        monkeypatch.setattr(machine, "free_memory", lambda free=free: free)
        assert of._window_pixels() == int(budget / (taken * of.network.memory))
    # However little there is, a window keeps enough of its result.
    monkeypatch.setattr(machine, "free_memory", lambda: 8 << 20)
    assert plain._window_pixels() == (2 * 24 + 256) ** 2
    assert Denoiser(in_one)._window_pixels() == (2 * 160 + 256) ** 2


def test_a_grey_network_takes_each_channel_of_colour():
    paddle.seed(1)
    grey = build_network(n_channel=1, n_feature=4)
    grey.eval()
    image = noisy_scene(40, 50)
    result = Denoiser(grey)(image)
    assert (result[..., 1] == Denoiser(grey)(np.ascontiguousarray(image[..., 1]))).all()
    # What is given back is of the brightness or the colours of the picture, not of each channel.
    for amount in (Amount(detail=0.7), Amount(chroma=0), Amount(0.5, 0.3, 0.6)):
        expected = mix(image, result, amount)
        assert (expected != result).any()
        assert (Denoiser(grey, **vars(amount))(image) == expected).all()


@pytest.mark.parametrize(
    ("image", "word"),
    [
        (np.zeros((4, 4, 5), np.uint8), "5 channels"),
        (np.zeros((4, 4, 3), np.int64), "int64"),
        (np.zeros(4, np.uint8), "H x W"),
        (np.zeros((0, 4, 3), np.uint8), "H x W"),
        (np.full((4, 4, 3), np.nan, np.float32), "NaN"),
    ],
)
def test_what_is_no_image_is_refused(network, image, word):
    with pytest.raises(ValueError, match=word):
        Denoiser(network)(image)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("options", [{}, {"strength": 0.5}, {"tta": True}])
def test_a_result_that_is_not_finite_is_refused(dtype, options):
    broken = build_network(n_feature=4)
    broken.nin_c.bias.set_value(paddle.to_tensor([0.0, np.inf, 0.0]))
    broken.eval()
    with pytest.raises(ValueError, match="the result is not finite"):
        Denoiser(broken, **options)(from_01(scene_01(), dtype))


def test_values_too_large_for_the_network_are_refused(network):
    with pytest.raises(ValueError, match="values are too large"):
        Denoiser(network)(scene_01() * np.float32(3e38))


def scene_01():
    return noisy_scene(40, 50).astype(np.float32) / 255


def test_strength_blends(network):
    image = noisy_scene(40, 50).astype(np.float32) / 255
    full = Denoiser(network)(image)
    assert (Denoiser(network, strength=0)(image) == image).all()
    half = Denoiser(network, strength=0.5)(image)
    np.testing.assert_allclose(half, (image + full) / 2, atol=1e-6)


def test_tta_is_the_mean_over_flips_and_rotations(network):
    image = noisy_scene(64, 96).astype(np.float32) / 255
    results = []
    for turns in range(4):
        for flip in (1, -1):
            turned = np.rot90(image, turns)[:, ::flip]
            result = by_hand(network, np.ascontiguousarray(turned))
            results.append(np.rot90(result[:, ::flip], -turns))
    np.testing.assert_allclose(Denoiser(network, tta=True)(image), np.mean(results, 0), atol=1e-5)
