"""The published evaluation, written out once more and pinned by recorded numbers."""

import numpy as np
import paddle
import pytest

from conftest import save, scene, tiny_network
from denoising.cli import UserError
from denoising.data.validation import ValidationSet
from denoising.imaging.metrics import psnr, ssim
from denoising.imaging.noise import parse_noise
from denoising.inference import distributed
from denoising.inference.denoiser import Denoiser
from denoising.inference.evaluation import evaluate, evaluate_sets

GAUSS = parse_noise("gauss25")
RECORDED = [  # PSNR and SSIM of the noisy images of `folders`, two repeats, with the published seed 101
    (20.116411, 0.333875),
    (20.229800, 0.373637),
    (20.358857, 0.343345),
    (20.344479, 0.384064),
]


@pytest.fixture(scope="module")
def network():
    return tiny_network(3)


class Same:
    """Stands for a denoiser: returns what it is given, or what `change` makes of it."""

    n_channel = 3

    def __init__(self, network, change=None):
        self.network, self.change = network, change

    def __call__(self, image):
        return self.change(image) if self.change else image


@pytest.fixture
def tiny(folders):
    return ValidationSet("Tiny", str(folders / "val" / "Tiny"), repeats=2)


def test_evaluation_is_the_published_one(network, tiny):
    # Image by image, in the words of the published script; 101 is its seed.
    scores = evaluate(Denoiser(network), tiny, GAUSS)
    rng = np.random.RandomState(101)
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


def test_the_noise_is_the_recorded_one(network, tiny):
    # Of seed 101, one stream through images and repeats, anew for each set: numbers that no constant here follows.
    for result in evaluate_sets(Same(network), [tiny, tiny], GAUSS):
        found = [(score.psnr_noisy, score.ssim_noisy) for score in result.scores]
        np.testing.assert_allclose(found, RECORDED, atol=1e-6)
        # And what is scored is what came back, rounded and clipped like the noisy image.
        assert [(score.psnr, score.ssim) for score in result.scores] == found


def test_images_are_numbered_through_all_sets(network, tiny, tmp_path):
    save(tmp_path / "One" / "a.png", scene(20, 30))
    sets = [tiny, ValidationSet("One", str(tmp_path / "One")), tiny]
    scored = []
    results = list(evaluate_sets(Same(network), sets, GAUSS, on_image=lambda score, *_: scored.append(score)))
    assert [score.number for score in scored] == [0, 1, 0, 1, 2, 3, 4, 3, 4]
    assert [score.index for score in scored] == [0, 1, 0, 1, 0, 0, 1, 0, 1]
    assert [score for result in results for score in result.scores] == scored
    assert [(result.image_count, result.repeats) for result in results] == [(2, 2), (1, 1), (2, 2)]
    assert all(0 < result.seconds < 60 for result in results)
    for measure in ("psnr", "ssim", "psnr_noisy", "ssim_noisy"):
        column = ["psnr", "ssim", "psnr_noisy", "ssim_noisy"].index(measure)
        assert results[0].mean(measure) == pytest.approx(np.mean(RECORDED, 0)[column % 2], abs=1e-6)
    (limited,) = evaluate_sets(Same(network), [tiny], GAUSS, repeats=3, limit=1)
    assert (limited.image_count, limited.repeats) == (1, 3)


def test_pictures_are_those_that_are_scored(network, tiny):
    def check(score, clean, noisy, denoised):
        assert {picture.dtype for picture in (clean, noisy, denoised)} == {np.dtype(np.uint8)}
        assert score.psnr == psnr(clean, denoised, 255)
        assert score.ssim_noisy == ssim(clean, noisy, 255)
        seen.append(score)

    seen = []
    result = evaluate(Same(network, lambda image: image * np.float32(0.9)), tiny, GAUSS, on_image=check)
    assert seen == result.scores
    assert [score.number for score in seen] == [0, 1, 0, 1]
    assert result.megapixels == pytest.approx(4 * 45 * 67 / 1e6, rel=1e-9)


def test_an_image_too_small_to_score_is_a_mistake_of_the_folder(network, tmp_path):
    save(tmp_path / "a.png", scene(10, 30))
    with pytest.raises(UserError, match="^--val_dirs: SSIM needs 11x11 pixels, the image has 10x30$"):
        evaluate(Same(network), ValidationSet("Small", str(tmp_path)), GAUSS)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_result_that_is_not_finite_is_refused_and_not_scored(network, tiny, value):
    def spoil(image):
        image = image.copy()
        image[3, 4, 1] = value
        return image

    with pytest.raises(UserError, match="the result is not finite"):
        evaluate(Same(network, spoil), tiny, GAUSS)


def test_processes_share_the_images_and_lose_none(network, tiny, monkeypatch):
    monkeypatch.setattr(distributed, "WORLD_SIZE", 2)
    shares, alone = [], []
    monkeypatch.setattr(distributed, "gather", list)  # what the other process would bring is looked at apart
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "RANK", rank)
        shares.append(evaluate(Same(network), tiny, GAUSS).scores)
    monkeypatch.setattr(distributed, "WORLD_SIZE", 1)
    monkeypatch.setattr(distributed, "RANK", 0)
    alone = evaluate(Same(network), tiny, GAUSS).scores
    assert [len(share) for share in shares] == [2, 2]
    assert sorted(map(repr, sum(shares, []))) == sorted(map(repr, alone))
