import concurrent.futures
import io

import numpy as np
import pytest
from PIL import Image

from conftest import scene
from denoising.imaging import noise
from denoising.imaging.noise import list_of_noise, parse_noise

FLAT = np.full((300, 300, 3), 0.4, np.float32)
# One of each kind, a range of each sort, and combinations.
ALL = [
    "gauss25", "gauss0_50", "poisson30", "poisson5_50", "speckle25", "text0.25", "text0_0.5", "bernoulli0.5",
    "bernoulli0.1_0.9", "impulse0.3", "jpeg30", "jpeg10_90", "poisson30+gauss5", "gauss25+text0.1", "gauss5+jpeg50",
]  # fmt: skip
NEW_GENERATOR = {"Generator": np.random.default_rng, "RandomState": np.random.RandomState}


@pytest.fixture(params=NEW_GENERATOR.values(), ids=NEW_GENERATOR)
def new_rng(request):
    return request.param


# --- The law of each ----------------------------------------------------------------------------------------


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


def test_speckle_grows_with_the_image(new_rng):
    for level in (0.0, 0.2, 0.8, 1.0):
        noisy = parse_noise("speckle25").add(np.full_like(FLAT, level), new_rng(0))
        assert abs(noisy.mean() - level) < 0.002
        assert abs(noisy.std() - level * 25 / 255) < 0.01 * level * 25 / 255 + 1e-9
    assert noisy.max() > 1.3  # not clipped


def test_bernoulli_blacks_out_whole_pixels_and_leaves_the_rest(new_rng):
    noisy = parse_noise("bernoulli0.3").add(FLAT, new_rng(0))
    black = (noisy == 0).all(axis=2)
    assert (noisy[~black] == FLAT[~black]).all()
    assert abs(black.mean() - 0.3) < 0.005
    # Neighbours know nothing of each other.
    assert abs(np.corrcoef(black[:, :-1].ravel(), black[:, 1:].ravel())[0, 1]) < 0.015
    assert (parse_noise("bernoulli1").add(FLAT, new_rng(0)) == 0).all()


def test_impulse_draws_whole_pixels_uniformly_and_leaves_the_rest(new_rng):
    noisy = parse_noise("impulse0.3").add(FLAT, new_rng(0))
    hit = (noisy != FLAT).any(axis=2)
    assert abs(hit.mean() - 0.3) < 0.005
    colours = noisy[hit]
    assert (colours != 0.4).all()
    assert colours.min() >= 0
    assert colours.max() <= 1
    assert np.abs(colours.mean(axis=0) - 1 / 2).max() < 0.01
    assert np.abs(colours.var(axis=0) - 1 / 12).max() < 0.002
    assert np.abs(np.corrcoef(colours.T) - np.eye(3)).max() < 0.03  # channels are drawn each by itself


@pytest.mark.parametrize("share", [0.01, 0.25, 0.9])
def test_text_touches_its_share_of_the_pixels(share, new_rng):
    clean = np.full((128, 128, 3), 0.4, np.float32)
    for seed in range(5):
        noisy = parse_noise(f"text{share}").add(clean, new_rng(seed))
        touched = (noisy != clean).any(axis=2).sum()
        # The last string ends with the column of pixels that reaches the share.
        assert 0 <= touched - share * 128 * 128 < max(noise.FONT_SIZES)
        assert noisy.min() >= 0
        assert noisy.max() <= 1


def test_all_of_the_image_can_be_text():
    noisy = parse_noise("text1").add(np.full((40, 30), -1, np.float32), np.random.default_rng(0))
    assert (noisy > -1).all()


def test_text_covers_the_borders_as_often_as_the_middle():
    clean, rng, model = np.full((64, 64, 1), 0.4, np.float32), np.random.default_rng(0), parse_noise("text0.25")
    often = np.mean([model.add(clean, rng) != clean for _ in range(500)], axis=0)
    for y in (0, 27, 54):
        for x in (0, 27, 54):
            assert abs(often[y : y + 10, x : x + 10].mean() - 0.25) < 0.06, (y, x)


def test_text_is_of_letters_in_one_colour_each():
    # A single string on black: each of its pixels is the colour, or at the rim of a letter a part of it.
    drawn = parse_noise("text0.002").add(np.zeros((256, 256, 3), np.float32), np.random.default_rng(3))
    pixels = drawn[drawn.any(axis=2)].astype(float)
    colour = pixels[pixels.sum(axis=1).argmax()]
    alpha = pixels @ colour / (colour @ colour)
    assert np.abs(pixels - alpha[:, None] * colour).max() < 1e-6
    assert (alpha > 0.99).mean() > 0.15  # strokes, not mist
    assert (alpha < 0.9).mean() > 0.15  # with smooth rims


def test_colours_of_text_are_drawn_evenly(new_rng):
    black, model = np.zeros((64, 64, 3), np.float32), parse_noise("text0.5")
    colour, cover = np.zeros(3), np.zeros(3)
    for seed in range(100):
        drawn = model.add(black, new_rng(seed))
        left = model.add(black + 1, new_rng(seed)) - drawn  # what is seen of the image below
        colour += drawn.sum(axis=(0, 1))
        cover += (1 - left).sum(axis=(0, 1))
    assert np.abs(colour / cover - 0.5).max() < 0.05  # so size and length of the strings say nothing of their colour


def test_jpeg_is_what_a_jpeg_file_of_that_quality_holds():
    for channels in (1, 3):
        clean = scene(90, 70, channels)
        for quality in (5, 50, 95):
            file = io.BytesIO()
            Image.fromarray(clean.squeeze()).save(file, "JPEG", quality=quality)
            expected = np.asarray(Image.open(file)).reshape(clean.shape).astype(float)
            found = parse_noise(f"jpeg{quality}").add(clean / np.float32(255), np.random.default_rng(0)) * 255
            assert np.abs(found - expected).mean() < 0.3  # decoders round in their own ways
            assert np.abs(found - clean).mean() > 2 * np.abs(found - expected).mean()


def test_jpeg_clips_and_takes_four_channels_one_by_one():
    wide = (scene(40, 50, 4) / np.float32(255)) * 3 - 1
    model, rng = parse_noise("jpeg50"), np.random.default_rng(0)
    noisy = model.add(wide, rng)
    assert (noisy == model.add(np.clip(wide, 0, 1), rng)).all()
    for channel in range(4):
        assert (noisy[..., channel] == model.add(wide[..., channel], rng)).all()


def test_none_copies():
    image = FLAT.copy()
    noisy = parse_noise("none").add(image, np.random.default_rng(0))
    assert (noisy == image).all()
    assert noisy is not image


# --- Ranges and combinations --------------------------------------------------------------------------------


def test_ranges_draw_a_strength_for_each_image():
    rng = np.random.default_rng(0)
    model = parse_noise("gauss5_50")
    deviations = [(model.add(FLAT, rng) - FLAT).std() * 255 for _ in range(60)]
    assert 4.9 < min(deviations) < 12
    assert 43 < max(deviations) < 50.1
    assert len(np.unique(np.round(deviations, 2))) > 50


@pytest.mark.parametrize("kind", ["text", "bernoulli"])
def test_shares_are_drawn_too(kind, new_rng):
    rng, clean = new_rng(0), np.full((100, 100), 0.4, np.float32)
    shares = [(parse_noise(f"{kind}0_0.5").add(clean, rng) != clean).mean() for _ in range(80)]
    assert min(shares) < 0.06
    assert 0.44 < max(shares) < 0.53
    assert abs(np.mean(shares) - 0.25) < 0.06


def test_jpeg_draws_each_quality_of_its_range(new_rng):
    clean, rng = scene(40, 40) / np.float32(255), new_rng(0)
    each = {parse_noise(f"jpeg{quality}").add(clean, rng).tobytes() for quality in (20, 21, 22)}
    assert len(each) == 3
    assert {parse_noise("jpeg20_22").add(clean, rng).tobytes() for _ in range(60)} == each


def test_a_combination_applies_its_parts_from_left_to_right(new_rng):
    for names in (["poisson30", "gauss5"], ["gauss25", "text0.1"], ["text0.1", "gauss25"], ["gauss5"] * 3):
        rng, expected = new_rng(0), FLAT
        for name in names:
            expected = parse_noise(name).add(expected, rng)
        assert (parse_noise("+".join(names)).add(FLAT, new_rng(0)) == expected).all()


def test_variances_add_up():
    noisy = parse_noise("poisson30+gauss25").add(FLAT, np.random.default_rng(0))
    assert abs(noisy.mean() - 0.4) < 0.002
    assert abs(noisy.var() / (0.4 / 30 + (25 / 255) ** 2) - 1) < 0.02


# --- What holds for all -------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ALL)
def test_the_same_state_gives_the_same_result_in_every_layout(text, new_rng):
    model = parse_noise(text)
    for shape in ((33, 47), (33, 47, 1), (33, 47, 3), (33, 47, 4), (1, 1, 3)):
        clean = np.random.default_rng(1).random(shape, np.float32)
        before = clean.copy()
        noisy = model.add(clean, new_rng(5))
        assert noisy.shape == shape
        assert noisy.dtype == np.float32
        assert np.isfinite(noisy).all()
        assert (noisy == model.add(clean, new_rng(5))).all()
        assert (clean == before).all()
        assert not np.shares_memory(noisy, clean)
        # A rotated view is an image like any other.
        turned = np.rot90(clean)
        assert (model.add(turned, new_rng(5)) == model.add(turned.copy(), new_rng(5))).all()


@pytest.mark.parametrize("text", [text for text in ALL if not text.startswith("jpeg")])
def test_two_draws_are_independent(text, new_rng):
    model = parse_noise(text)
    one, other = (model.add(FLAT, new_rng(seed)) - FLAT for seed in (1, 2))
    assert not (one == other).all()
    # Letters hang together, so that fewer of the pixels are independent.
    assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < (0.2 if "text" in text else 0.02)


@pytest.mark.parametrize("text", ["gauss25", "gauss5_50", "poisson30", "poisson5_50"])
def test_recorruptions_add_a_little_noise_of_the_same_kind_and_strength(text):
    model, clean, ratios = parse_noise(text), np.full((300, 300, 3), 0.4, np.float32), []
    for seed in range(4):
        noisy = model.add(clean, np.random.default_rng(seed))
        pair = model.recorrupt(noisy, np.random.default_rng(seed), np.random.default_rng(100 + seed))
        assert [(one.shape, one.dtype) for one in pair] == [(noisy.shape, np.float32)] * 2
        for one in pair:
            assert (one - noisy).mean() == pytest.approx(0, abs=5 * (one - noisy).std() / 500)
            ratios.append((one - noisy).var() / (noisy - clean).var())
            # The added noise and the image's own one do not know of each other.
            assert np.corrcoef((one - noisy).ravel(), (noisy - clean).ravel())[0, 1] == pytest.approx(0, abs=0.01)
    expected = noise.MORE_NOISE**2 / (1 - noise.MORE_NOISE**2 if "poisson" in text else 1)
    assert ratios == pytest.approx([expected] * 8, rel=0.02)


@pytest.mark.parametrize("text", ["none", "speckle25", "text0.2", "impulse0.2", "jpeg30", "poisson30+gauss5", "mri0.1"])
def test_other_noise_has_no_recorruptions(text):
    assert parse_noise(text).recorruption_weight is None


def test_values_outside_the_range_are_accepted():
    wide = np.linspace(-3, 4, 60 * 60 * 3, dtype=np.float32).reshape(60, 60, 3)
    for text in ALL:
        assert np.isfinite(parse_noise(text).add(wide, np.random.default_rng(0))).all()


def test_threads_draw_what_one_would():
    clean, model = np.full((64, 64, 3), 0.4, np.float32), parse_noise("text0.5")
    noise._letters.cache_clear()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda seed: model.add(clean, np.random.default_rng(seed)), range(24)))
    for seed, noisy in enumerate(found):
        assert (noisy == model.add(clean, np.random.default_rng(seed))).all()
    assert noise._letters.cache_info().currsize <= len(noise.FONT_SIZES)


def test_published_noise_is_drawn_in_double_precision():
    noisy = parse_noise("gauss25").add(FLAT, np.random.RandomState(101))
    expected = FLAT + np.random.RandomState(101).normal(size=FLAT.shape) * (25 / 255)
    assert (noisy == expected.astype(np.float32)).all()


# --- Names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "gauss", "gauss-5", "gauss0", "gauss50_5", "gausss25", "25", "poisson", "NONE"])
def test_anything_else_is_refused_with_what_exists(text):
    with pytest.raises(ValueError, match=r"gaussA.*poissonA.*none"):
        parse_noise(text)


@pytest.mark.parametrize(
    "text",
    [
        "text0", "text1.01", "text25", "bernoulli1.5", "impulse0.5_1.1", "jpeg0", "jpeg101", "jpeg0_50", "jpeg50.5",
        "jpeg50_40", "speckle0", "poisson0_30", "poisson0", "gauss1e3", "gauss1000001", "gauss" + "9" * 5000,
        "gaussnan", "gaussinf", "gauss\u0662\u0665", "gauss\uff12\uff15", "gauss25\n", " gauss25", "gauss 25",
        "gauss5_", "gauss5_6_7", "gauss25+", "+gauss25", "gauss25++text0.1", "+", "none+gauss5", "gauss5+none",
        "gauss25+text2", "gauss.5",
    ],
)  # fmt: skip
def test_bad_strengths_and_combinations_are_refused_in_one_line(text):
    with pytest.raises(ValueError, match=r"^unknown noise .*gaussA.*textP.*jpegQ.*none") as caught:
        parse_noise(text)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600


def test_a_bad_part_is_named():
    with pytest.raises(ValueError, match=r"^unknown noise 'text2' in 'gauss25\+text2'"):
        parse_noise("gauss25+text2")


def test_the_help_names_every_kind_and_its_examples_parse():
    listed = list_of_noise()
    assert len(listed) < 500
    for kind, model in noise.KINDS.items():
        assert model.form in listed
        assert parse_noise(model.example).name == model.example
        assert model.example.startswith(kind)
