import numpy as np
import paddle
import pytest

from arch_unet import PlainOps, build_network
from conftest import noisy_scene, scene
from denoising.data.validation import ValidationSet
from denoising.files import images
from denoising.imaging.metrics import psnr, ssim
from denoising.imaging.noise import parse_noise
from denoising.inference.denoiser import Denoiser, plan_tiles
from denoising.inference.evaluation import VALIDATION_SEED, evaluate


@pytest.fixture(scope="module")
def network():
    paddle.seed(3)
    network = build_network(n_feature=4)
    network.nin_c.weight.set_value(network.nin_c.weight * 10)
    network.eval()
    return network


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


def test_tiles_are_needed_as_large_as_the_margin_says(network):
    # The margin is no guess: half of it changes the result.
    image = noisy_scene(700, 532).astype(np.float32) / 255
    whole = Denoiser(network, tile=2000)(image)
    network.margin = 64
    try:
        assert np.abs(Denoiser(network, tile=320)(image) - whole).max() > 1e-5
    finally:
        del network.margin


@pytest.mark.parametrize(("height", "width"), [(32, 32), (4000, 6016), (32, 100_000), (10_016, 10_016)])
@pytest.mark.parametrize("pixels", [1024, 300_000, 4_000_000])
def test_tile_plans_cover_and_keep_to_the_budget(height, width, pixels):
    height, width = height // 32 * 32, width // 32 * 32
    rows, columns = plan_tiles(height, width, 32, 160, pixels)
    assert rows % 32 == 0
    assert columns % 32 == 0
    window = min(rows + 320, height) * min(columns + 320, width)
    assert window <= max(pixels, min(352, height) * min(352, width))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 3, None])
def test_the_same_kind_comes_back(network, dtype, channels):
    image_01 = noisy_scene(40, 50, channels or 1).astype(np.float32) / 255
    image = images.from_01(image_01 if channels else image_01[..., 0], dtype)
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


def test_a_grey_network_takes_each_channel_of_colour():
    paddle.seed(1)
    grey = build_network(n_channel=1, n_feature=4)
    grey.eval()
    image = noisy_scene(40, 50)
    result = Denoiser(grey)(image)
    assert (result[..., 1] == Denoiser(grey)(np.ascontiguousarray(image[..., 1]))).all()


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


def test_evaluation_is_the_published_one(network, folders):
    # Written out once more, image by image, in the words of the published script.
    validation_set = ValidationSet("Tiny", str(folders / "val" / "Tiny"), repeats=2)
    network.ops = PlainOps()
    scores = evaluate(Denoiser(network), validation_set, parse_noise("gauss25"))
    rng = np.random.RandomState(VALIDATION_SEED)
    expected = []
    for _ in range(2):
        for seed in (50, 51):
            clean = scene(45, 67, seed=seed)
            noisy = np.array(clean / np.float32(255) + rng.normal(size=clean.shape) * (25 / 255), np.float32)
            square = np.pad(noisy, [(0, 96 - 45), (0, 96 - 67), (0, 0)], "reflect")
            with paddle.no_grad():
                prediction = network(paddle.to_tensor(square.transpose(2, 0, 1)[None])).numpy()
            prediction = np.clip(prediction[0].transpose(1, 2, 0)[:45, :67], 0, 1)
            denoised = np.clip(prediction * 255.0 + 0.5, 0, 255).astype(np.uint8)
            expected.append((psnr(clean, denoised, 255), ssim(clean, denoised, 255)))
    found = [(score.psnr, score.ssim) for score in scores.scores]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert [score.name for score in scores.scores] == ["0.png", "1.png"] * 2
