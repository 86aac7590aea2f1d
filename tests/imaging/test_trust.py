import dataclasses
import re

import cv2
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


def test_white_noise_that_channels_share_is_drawn_so():
    level = dataclasses.replace(trust.known_level(parse_noise("gauss25"), 3), between_channels=0.7)
    noise = level.draw(np.full((256, 256, 3), 0.5, np.float32), np.random.default_rng(0)) * 255 / 25
    assert noise.std() == pytest.approx(1, rel=0.03)
    assert (noise[:, 1:] * noise[:, :-1]).mean() == pytest.approx(0, abs=0.02)
    assert (noise[..., 0] * noise[..., 1]).mean() == pytest.approx(0.7, abs=0.03)


def removing(level, share=1.0):
    """What `removed_of_drawn` sees of a denoiser that removes this share of any noise."""
    rng = np.random.default_rng(9)
    return lambda noisy, denoised: share * level.draw(denoised, rng)


def test_what_was_removed_is_compared_with_the_noise():
    level, rng = correlated(), np.random.default_rng(1)
    clean = np.full((128, 128, 3), 0.5, np.float32)
    noise = level.draw(clean, rng)
    whole, half = (
        trust.compare(clean + noise, clean + (1 - share) * noise, level, removing(level, share)) for share in (1.0, 0.5)
    )
    assert (whole.strength, half.strength) == (pytest.approx(1, abs=0.05), pytest.approx(0.5, abs=0.03))
    assert whole.shared == pytest.approx(whole.expected, abs=0.03)
    assert whole.lost == half.lost == 0
    untouched = trust.compare(clean, clean, level, removing(level, 0))
    assert (untouched.strength, untouched.shared, untouched.lost) == (0, 0, 0)


def test_levels():
    found = trust.level_of(analyse(noisy_scene(160, 160)), 3)
    assert (found.kind, found.known) == ("gauss", False)
    poisson = trust.known_level(parse_noise("poisson30"), 1)
    assert poisson.variance(np.float32([[[0.6]]])) == pytest.approx(0.02)
    both = trust.known_level(parse_noise("poisson30+gauss5"), 1)
    assert both.variance(np.float32([[[0.6]]])) == pytest.approx(0.02 + (5 / 255) ** 2)
    for other in ("gauss5_50", "speckle25", "none", "poisson9_30+gauss5", "camera3"):
        assert trust.known_level(parse_noise(other), 3) is None


def test_where_structure_was_lost():
    structure = np.zeros((90, 90), np.float32)
    assert trust.worst_place(structure + 1) == "everywhere"
    structure[:20, 70:] = 1
    assert trust.worst_place(structure) == "most in the upper right"
    colour, opaque = trust.structure_picture(structure)
    assert (colour == trust.OVERLAY).all()
    assert set(np.unique(opaque)) == {0, 204}


def grass_lost_below(strength=0.6):
    """A noisy image with grass in its lower right corner, green and dark, and what a blur leaves of it."""
    rng = np.random.default_rng(3)
    clean = np.full((300, 400, 3), 0.6, np.float32)
    blades = cv2.GaussianBlur(rng.standard_normal((100, 150)).astype(np.float32), (0, 0), 1.2)
    clean[200:, 250:] = np.float32([0.15, 0.3, 0.15]) + strength * blades[..., None]
    noisy = clean + 0.06 * rng.standard_normal(clean.shape).astype(np.float32)
    denoised = clean.copy()
    denoised[200:, 250:] = np.float32([0.15, 0.3, 0.15])
    level = trust.known_level(parse_noise("gauss15.3"), 3)
    return noisy, denoised, level, removing(level)


def test_the_words_say_how_much_was_lost_and_where():
    found = trust.compare(*grass_lost_below())
    assert found.lost > 0.3
    inside = np.zeros(found.structure.shape, bool)
    inside[200 - 16 :, 250 - 16 :] = True
    assert (found.structure[~inside] > 0).mean() < 0.001, "no structure is seen where there is noise alone"
    assert (found.structure[200:, 250:] > 0).mean() > 0.5
    words = found.words()
    assert re.fullmatch(
        r"loses \d\d % of the structure, in 1?\d % of the image, most in the lower right, where it is dark and green",
        words,
    )
    assert trust.Loss(0.5, np.ones((30, 30), np.float32), "").words() == "loses 50 % of the structure, everywhere"
    assert trust.Loss(0.01, np.ones((30, 30), np.float32), "").words() is None


def test_a_colour_is_named_where_it_differs_from_elsewhere():
    image = np.full((60, 60, 3), 0.5, np.float32)
    image[:20] = 0.4, 0.6, 0.4
    there = np.zeros((60, 60), np.float32)
    there[:20] = 1
    assert trust._looks(image, there) == "where it is green"
    assert trust._looks(image[:20], there[:20]) == ""
    image[:20] = 0.1
    assert trust._looks(image, there) == "where it is dark"
    assert trust._looks(image[..., :1], there) == "where it is dark"
    image[:20] = 0.9
    assert trust._looks(image, there) == "where it is bright"


def test_the_map_is_as_sharp_as_the_edge_of_what_was_lost():
    """A single line that was removed is shown as a line, and not as a cloud as wide as the search for it."""
    rng = np.random.default_rng(4)
    denoised = np.full((200, 200, 3), 0.5, np.float32)
    noisy = denoised + 0.05 * rng.standard_normal(denoised.shape).astype(np.float32)
    noisy[:, 99:102] += 0.2
    level = trust.known_level(parse_noise("gauss12.75"), 3)
    structure = trust.lost_structure(noisy, denoised, level, removing(level)).structure
    profile = np.square(structure).mean(axis=0)
    assert profile[93:108].sum() > 0.85 * profile.sum()


def test_the_map_is_the_same_however_it_is_cut(monkeypatch):
    whole = trust.lost_structure(*grass_lost_below())
    monkeypatch.setattr(trust, "STRIP", 64)
    cut = trust.lost_structure(*grass_lost_below())
    assert cut.lost == pytest.approx(whole.lost, rel=0.02)  # other noise is drawn
    assert ((cut.structure > 0) == (whole.structure > 0)).mean() > 0.99


def test_texture_is_missed_where_a_network_leaves_noise():
    """What is removed has less energy than noise alone: only beside drawn noise does the lost texture show."""
    noisy, denoised, level, _ = grass_lost_below(0.13)
    denoised = denoised + 0.5 * (noisy - denoised)
    whole = trust.lost_structure(noisy, denoised, level, removing(level))
    local = trust.lost_structure(noisy, denoised, level, removing(level, 0.5))
    assert whole.lost == 0
    assert local.lost > trust.NOTICEABLE
    assert (local.structure[:150] > 0).mean() < 0.001
