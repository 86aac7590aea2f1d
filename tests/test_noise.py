import numpy as np
import pytest

from noise import parse_noise

FLAT = np.full((300, 300, 3), 0.4, np.float32)


@pytest.mark.parametrize("strength", [5, 25, 50])
def test_gaussian_has_its_mean_and_deviation(strength):
    noisy = parse_noise(f"gauss{strength}").add(FLAT, np.random.default_rng(0))
    assert noisy.dtype == np.float32
    assert abs(noisy.mean() - 0.4) < 0.002
    assert abs(noisy.std() * 255 / strength - 1) < 0.01
    assert (noisy < 0).any() == (strength >= 25)  # not clipped


@pytest.mark.parametrize("peak", [5, 30])
def test_poisson_counts_have_equal_mean_and_variance(peak):
    counts = parse_noise(f"poisson{peak}").add(FLAT, np.random.default_rng(0)) * peak
    assert np.allclose(counts, counts.round(), atol=1e-4)
    assert abs(counts.mean() - 0.4 * peak) < 0.02 * peak
    assert abs(counts.var() / (0.4 * peak) - 1) < 0.02


def test_ranges_draw_a_strength_for_each_image():
    rng = np.random.default_rng(0)
    model = parse_noise("gauss5_50")
    deviations = [(model.add(FLAT, rng) - FLAT).std() * 255 for _ in range(60)]
    assert 4.9 < min(deviations) < 12
    assert 43 < max(deviations) < 50.1
    assert len(np.unique(np.round(deviations, 2))) > 50


def test_none_copies():
    image = FLAT.copy()
    noisy = parse_noise("none").add(image, np.random.default_rng(0))
    assert (noisy == image).all()
    assert noisy is not image


def test_published_noise_is_drawn_in_double_precision():
    noisy = parse_noise("gauss25").add(FLAT, np.random.RandomState(101))
    expected = FLAT + np.random.RandomState(101).normal(size=FLAT.shape) * (25 / 255)
    assert (noisy == expected.astype(np.float32)).all()


@pytest.mark.parametrize("text", ["", "gauss", "gauss-5", "gauss0", "gauss50_5", "gausss25", "25", "poisson", "NONE"])
def test_anything_else_is_refused_with_what_exists(text):
    with pytest.raises(ValueError, match=r"gaussA.*poissonA.*none"):
        parse_noise(text)
