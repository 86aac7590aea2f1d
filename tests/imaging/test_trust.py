import numpy as np
import pytest

from conftest import noisy_scene
from denoising.imaging import trust
from denoising.imaging.noise import parse_noise
from denoising.imaging.noise_analysis import SHIFTS, analyse


def correlated(value=0.5, between=0.4):
    shifts = np.abs(np.arange(-SHIFTS, SHIFTS + 1))
    correlation = np.tile(value ** (shifts[:, None] + shifts[None]), (3, 1, 1)).astype(float)
    return trust.Level("correlated", ((0.0, 0.01),) * 3, correlation, between)


def test_noise_is_drawn_as_it_was_measured():
    noise = correlated().draw(np.full((256, 256, 3), 0.5, np.float32), np.random.default_rng(0))
    assert noise.std() == pytest.approx(0.1, rel=0.03)
    assert (noise[:, 1:] * noise[:, :-1]).mean() / 0.01 == pytest.approx(0.5, abs=0.04)
    assert (noise[..., 0] * noise[..., 1]).mean() / 0.01 == pytest.approx(0.4, abs=0.04)


def test_what_was_removed_is_compared_with_the_noise():
    level, rng = correlated(), np.random.default_rng(1)
    clean = np.full((128, 128, 3), 0.5, np.float32)
    noise = level.draw(clean, rng)
    whole, half = (trust.compare(clean + noise, clean + (1 - share) * noise, level) for share in (1.0, 0.5))
    assert (whole.strength, half.strength) == (pytest.approx(1, abs=0.05), pytest.approx(0.5, abs=0.03))
    assert whole.shared == pytest.approx(whole.expected, abs=0.03)
    assert whole.lost < 0.1
    untouched = trust.compare(clean, clean, level)
    assert (untouched.strength, untouched.shared, untouched.lost) == (0, 0, 0)


def test_levels():
    found = trust.level_of(analyse(noisy_scene(160, 160)))
    assert (found.kind, found.known) == ("gauss", False)
    poisson = trust.known_level(parse_noise("poisson30"), 1)
    assert poisson.variance(np.float32([[[0.6]]])) == pytest.approx(0.02)
    for other in ("gauss5_50", "speckle25", "none", "poisson30+gauss5", "camera3"):
        assert trust.known_level(parse_noise(other), 3) is None


def test_where_structure_was_lost():
    structure = np.zeros((90, 90), np.float32)
    assert trust.worst_place(structure + 1) == "everywhere"
    structure[:20, 70:] = 1
    assert trust.worst_place(structure) == "most in the upper right"
    assert trust.structure_picture(structure).max() == 255
