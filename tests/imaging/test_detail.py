import numpy as np
import pytest

from conftest import noisy_scene, scene
from denoising.imaging import detail
from denoising.imaging.detail import Amount, mix
from denoising.imaging.pixels import from_01, to_01

NOISY, CLEAN = noisy_scene(300, 90, sigma=12), scene(300, 90)


def mixed(noisy=NOISY, denoised=CLEAN, **amounts):
    return mix(noisy, denoised, Amount(**amounts))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_the_ends_are_the_two_images(dtype):
    noisy, clean = (from_01(to_01(image), dtype) for image in (NOISY, CLEAN))
    tolerance = 1e-6 if dtype == np.float32 else 0
    assert np.abs(mix(noisy, clean, Amount()).astype(float) - clean).max() <= tolerance
    kept = mix(noisy, clean, Amount(strength=0, detail=0.7, chroma=0.3))
    assert np.abs(kept.astype(float) - noisy).max() <= tolerance
    assert kept.dtype == dtype


def test_strength_is_linear_in_what_was_removed():
    noisy, clean = to_01(NOISY), to_01(CLEAN)
    np.testing.assert_allclose(mixed(noisy, clean, strength=0.3), clean + 0.7 * (noisy - clean), atol=1e-6)


def test_chroma_leaves_brightness_alone():
    noisy, clean = to_01(NOISY), to_01(CLEAN)
    result = mixed(noisy, clean, chroma=0)
    np.testing.assert_allclose(detail.luma_of(result), detail.luma_of(clean), atol=1e-6)
    removed = noisy - result
    np.testing.assert_allclose(removed, np.repeat(removed[..., :1], 3, axis=2), atol=1e-6)  # grey
    assert np.abs(result - clean).max() > 0.01
    grey = clean[..., :1]
    np.testing.assert_array_equal(mixed(noisy[..., :1], grey, chroma=0), grey)


def test_texture_comes_back_and_noise_does_not():
    rng, flat = np.random.default_rng(0), np.full((256, 256, 1), 0.5, np.float32)
    noise = rng.normal(0, 0.03, flat.shape).astype(np.float32)
    weave = np.zeros_like(flat)
    weave[100:140, 100:140] = 0.15 * (-1) ** np.add.outer(np.arange(40), np.arange(40))[..., None]
    back = mixed(flat + noise + weave, flat, detail=1) - flat
    assert back[:90].std() < 0.25 * noise.std()
    inside = back[110:130, 110:130] * np.sign(weave[110:130, 110:130])
    assert inside.mean() > 0.08


def test_strips_are_those_of_the_whole(monkeypatch):
    whole = mixed(detail=0.8, chroma=0.5, strength=0.9)
    monkeypatch.setattr(detail, "STRIP", 32)
    assert (mixed(detail=0.8, chroma=0.5, strength=0.9) == whole).all()


def test_the_arithmetic_is_that_of_the_docstring():
    """Written out plainly, as a program that shows the settings at once would have it."""
    noisy, clean = NOISY[:60].astype(np.float32) / 255, CLEAN[:60].astype(np.float32) / 255
    removed = noisy - clean
    luma = removed @ np.array([0.299, 0.587, 0.114], np.float32)
    left, texture = luma, 0
    for step, k in zip((1, 2, 4), detail.THRESHOLDS, strict=True):
        smooth = left
        for axis in (0, 1):
            padded = np.pad(smooth, [(2 * step, 2 * step) if a == axis else (0, 0) for a in (0, 1)], "reflect")
            size = smooth.shape[axis]
            shifts = [np.take(padded, np.arange(size) + i * step, axis=axis) for i in range(5)]
            smooth = sum(w * shift for w, shift in zip((1, 4, 6, 4, 1), shifts, strict=True)) / 16
        band, left = left - smooth, smooth
        s = np.median(np.abs(band[::4, ::4])) / 0.6745
        texture = texture + np.sign(band) * np.maximum(np.abs(band) - k * s, 0)
    texture = texture + left
    plain = clean + 0.2 * luma[..., None] + (1 - 0.8 * 0.4) * (removed - luma[..., None])
    plain = plain + 0.8 * 0.6 * texture[..., None]
    expected = np.clip(np.floor(255 * plain + 0.5), 0, 255)
    found = mixed(NOISY[:60], CLEAN[:60], strength=0.8, detail=0.6, chroma=0.4).astype(int)
    assert np.abs(found - expected).max() <= 1
    assert (found == expected).mean() > 0.99


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 2)])
def test_images_smaller_than_the_reach(size):
    noisy, clean = noisy_scene(*size, seed=3), np.full((*size, 3), 99, np.uint8)
    assert mixed(noisy, clean, detail=1).shape == noisy.shape


def test_amounts_out_of_range_are_refused():
    for name in ("strength", "detail", "chroma"):
        with pytest.raises(ValueError, match=f"{name} is 0..1, not 1.5"):
            Amount(**{name: 1.5})
