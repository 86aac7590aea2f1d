import numpy as np
import pytest
from scipy import ndimage

from conftest import scene
from denoising.data import bursts

SIGMA = 12 / 255


def frame(down=0.0, right=0.0, seed=0, of=3):
    """A noisy frame of a scene that has moved."""
    moved = ndimage.shift(scene(300, 340, seed=of).astype(float), (down, right, 0), order=1, mode="nearest")
    moved = moved[20:-20, 20:-20] + np.random.default_rng(seed).normal(0, 255 * SIGMA, (260, 300, 3))
    return np.clip(moved + 0.5, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("shift", [(0, 0), (5, -3), (-9, 12)])
def test_whole_pixels_are_taken_off(shift):
    first, second, found = bursts.aligned(frame(), frame(*shift, seed=1), SIGMA)
    assert found == shift
    assert first.shape == second.shape == (260 - abs(shift[0]), 300 - abs(shift[1]), 3)
    # What is left between the two is their noise.
    difference = first.astype(float) - second
    assert difference.std() == pytest.approx(255 * SIGMA * np.sqrt(2), rel=0.1)


def test_how_much_of_two_frames_is_cut_off():
    clean = np.full((200, 200, 1), 0.1)
    clean[:, 100:] = 1.2  # white in both
    drawn = [clean + np.random.default_rng(seed).normal(0, 0.1, clean.shape) for seed in (0, 1)]
    whole = [frame.astype(np.float32) for frame in drawn]
    assert bursts.cut_off(*whole) < 1e-3
    of_8_bits = [np.clip(np.rint(frame * 255), 0, 255).astype(np.uint8) for frame in drawn]
    for frames in (of_8_bits, [frame.clip(0, 1) for frame in whole]):
        # A normal value is more than one deviation below in 0.159 of all cases; above the two in 0.023.
        assert bursts.cut_off(*frames) == pytest.approx(0.159 * 0.841 + 0.023 * 0.977, abs=0.01)
    # That there was no photon is no loss.
    counted = [np.random.default_rng(seed).poisson(clean[:, :100] * 20).astype(np.uint8) * 12 for seed in (0, 1)]
    assert np.mean(counted[0] == 0) > 0.1
    assert bursts.cut_off(*counted) == 0


OTHERS = {
    "another scene": frame(seed=1, of=4),
    "another exposure": frame(seed=1) // 8 * 7 + 20,
    "half a pixel": frame(3.5, 2, seed=1),
    "the same file": frame(),
    "another size": frame(seed=1)[:-2],
    "another type": frame(seed=1).astype(np.uint16),
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_does_not_belong_together(what):
    assert bursts.aligned(frame(), OTHERS[what], SIGMA) is None
