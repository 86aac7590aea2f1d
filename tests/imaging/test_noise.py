import concurrent.futures
import io

import numpy as np
import paddle
import pytest
from PIL import Image

from conftest import scene
from denoising.cli import UserError
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
        assert left.min() == pytest.approx(0, abs=1e-6)  # the middle of a stroke hides what is below
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
    first, second = (model.add(FLAT, new_rng(seed)) - FLAT for seed in (1, 2))
    assert not (first == second).all()
    # Letters hang together, so that fewer of the pixels are independent.
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < (0.2 if "text" in text else 0.02)


@pytest.mark.parametrize("text", ["gauss25", "poisson30", "poisson500+gauss3"])
def test_the_deviation_of_what_a_recorruption_adds(text):
    model, rng = parse_noise(text), np.random.default_rng(0)
    for brightness in (0.0, 0.5, 1.0):
        clean = np.full((300, 300), brightness, np.float32)
        added = model.recorrupt(clean, rng, rng)[0] - clean
        assert added.std() == pytest.approx(model.recorruption_deviation(brightness), rel=0.02, abs=1e-9)


@pytest.mark.parametrize("text", ["gauss25", "gauss5_50", "poisson30", "poisson5_50"])
def test_recorruptions_add_a_little_noise_of_the_same_kind_and_strength(text):
    model, clean, ratios = parse_noise(text), np.full((300, 300, 3), 0.4, np.float32), []
    for seed in range(4):
        noisy = model.add(clean, np.random.default_rng(seed))
        pair = model.recorrupt(noisy, np.random.default_rng(seed), np.random.default_rng(100 + seed))
        assert [(image.shape, image.dtype) for image in pair] == [(noisy.shape, np.float32)] * 2
        for image in pair:
            added = image - noisy
            assert added.mean() == pytest.approx(0, abs=5 * added.std() / 500)
            ratios.append(added.var() / (noisy - clean).var())
            # The added noise and the image's own one do not know of each other.
            assert np.corrcoef(added.ravel(), (noisy - clean).ravel())[0, 1] == pytest.approx(0, abs=0.01)
    expected = noise.MORE_NOISE**2 / (1 - noise.MORE_NOISE**2 if "poisson" in text else 1)
    assert ratios == pytest.approx([expected] * 8, rel=0.02)


@pytest.mark.parametrize(
    "text",
    ["none", "speckle25", "text0.2", "impulse0.2", "jpeg30", "gauss5+poisson30", "poisson9_30+gauss5", "mri0.1"],
)
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


# --- Recorded -----------------------------------------------------------------------------------------------

# Three values of a small image, by each of the two generators in state 5.
RECORDED = {
    "gauss25": ([0.15935, 0.41487, 1.08384], [0.25949, 0.49526, 1.05365]),
    "gauss5_50": ([0.03466, 0.48453, 1.22494], [0.13813, 0.58404, 1.17741]),
    "poisson30": ([0.03333, 0.66667, 1.23333], [0.16667, 0.56667, 1.33333]),
    "poisson5_50": ([0.04851, 0.41237, 1.16434], [0.26685, 0.20014, 1.00069]),
    "speckle25": ([0.11009, 0.46913, 1.07615], [0.12054, 0.51177, 1.04176]),
    "bernoulli0.5": ([0.10435, 0.0, 0.0], [0.10435, 0.0, 1.13913]),
    "bernoulli0.1_0.9": ([0.10435, 0.0, 0.0], [0.10435, 0.53043, 1.13913]),
    "impulse0.3": ([0.10435, 0.23451, 0.84423], [0.10435, 0.53043, 1.13913]),
    "poisson30+gauss5": ([0.01239, 0.66201, 1.22508], [0.16255, 0.56558, 1.32926]),
}
SMALL = np.linspace(-0.2, 1.2, 24, dtype=np.float32).reshape(2, 4, 3)


@pytest.mark.parametrize("text", RECORDED)
def test_noise_of_a_seed_never_changes(text):
    """Trainings are repeated, and validation sets compared, by their seeds."""
    for new_rng, wanted in zip(NEW_GENERATOR.values(), RECORDED[text], strict=True):
        noisy = parse_noise(text).add(SMALL, new_rng(5))
        assert [noisy[0, 1, 2], noisy[1, 0, 0], noisy[1, 3, 1]] == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("text0.25", [(775, 19.46, 33.96), (770, 20.15, 28.37)]),
        ("text0_0.5", [(1245, 26.31, 30.35), (342, 15.99, 28.44)]),
    ],
)
def test_text_of_a_seed_never_changes(text, wanted):
    """How many pixels it covers, and where their middle is; nearly, as FreeType may round rims in another way."""
    blank = np.full((48, 64, 3), -1, np.float32)
    for new_rng, expected in zip(NEW_GENERATOR.values(), wanted, strict=True):
        rows, columns = np.nonzero((parse_noise(text).add(blank, new_rng(5)) != blank).any(axis=2))
        assert len(rows) == pytest.approx(expected[0], abs=15)
        assert [rows.mean(), columns.mean()] == pytest.approx(expected[1:], abs=0.5)


def test_one_quality_draws_nothing(new_rng):
    rng = new_rng(5)
    parse_noise("jpeg50").add(scene(8, 8) / np.float32(255), rng)
    assert rng.random() == new_rng(5).random()


def test_a_jpegs_quality_of_a_seed_never_changes():
    clean = scene(40, 40) / np.float32(255)
    for new_rng, quality in zip(NEW_GENERATOR.values(), (75, 27), strict=True):
        found = parse_noise("jpeg10_90").add(clean, new_rng(5))
        assert np.array_equal(found, parse_noise(f"jpeg{quality}").add(clean, new_rng(0)))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("gauss25", [0.11987, 0.50893, 1.12718]), ("gauss5_50", [0.12995, 0.49497, 1.11943]),
        ("poisson30", [0.10417, 0.55556, 1.07639]),
    ],
)  # fmt: skip
def test_recorruptions_of_a_seed_never_change(text, wanted):
    one_way, other_way = parse_noise(text).recorrupt(SMALL, np.random.default_rng(5), np.random.default_rng(6))
    assert [one_way[0, 1, 2], other_way[1, 0, 0], other_way[1, 3, 1]] == pytest.approx(wanted, abs=1e-5)


def test_photons_with_read_out_noise_are_recorrupted_by_their_line(new_rng):
    model, levels = parse_noise("poisson30+gauss5"), np.float32([0, 0.2, 0.9])
    noisy = np.broadcast_to(levels, (400, 400, 3))
    one_way, other_way = model.recorrupt(noisy, new_rng(0), new_rng(1))
    assert np.allclose(one_way + other_way, 2 * noisy, atol=1e-6)
    variances = (one_way - noisy).var((0, 1)) / noise.MORE_NOISE**2
    assert variances == pytest.approx(levels / 30 + (5 / 255) ** 2, rel=0.03)
    assert model.recorruption_weight == parse_noise("gauss5").recorruption_weight
    assert one_way.dtype == np.float32
    assert (model.hides(1 / 255), parse_noise("poisson4000+gauss0.5").hides(1 / 255)) == (True, False)


def test_weights_and_sizes_of_recorruptions():
    assert noise.MORE_NOISE == 0.2
    assert parse_noise("gauss25").recorruption_weight == pytest.approx(12.5)
    assert parse_noise("poisson30").recorruption_weight == pytest.approx(24)


# --- Neighbours, values below zero, what is known -----------------------------------------------------------


@pytest.mark.parametrize("text", ["gauss25", "poisson30", "speckle25", "impulse0.3"])
def test_pixels_know_nothing_of_their_neighbours(text, new_rng):
    added = (parse_noise(text).add(FLAT, new_rng(0)) - FLAT).astype(float)
    for a, b in ((added[1:], added[:-1]), (added[:, 1:], added[:, :-1])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.01
    if "impulse" not in text:
        assert np.abs(np.corrcoef(added.reshape(-1, 3).T) - np.eye(3)).max() < 0.02


def test_strengths_are_drawn_uniformly_from_their_range(new_rng):
    rng = new_rng(0)
    deviations = [(parse_noise("gauss10_50").add(FLAT[:60, :60], rng) - 0.4).std() * 255 for _ in range(600)]
    counts, _ = np.histogram(deviations, 4, (10, 50))
    assert (np.abs(counts - 150) < 50).all()
    rng = new_rng(0)
    model = parse_noise("poisson10_40")
    assert {10 <= model._strength(rng) <= 40 for _ in range(500)} == {True}
    peaks = [model._strength(rng) for _ in range(2000)]
    assert np.mean(peaks) == pytest.approx(25, abs=0.7)
    assert np.std(peaks) == pytest.approx(30 / np.sqrt(12), abs=0.4)


def test_there_are_no_photons_below_black():
    assert (parse_noise("poisson30").add(np.full((50, 50), -0.3, np.float32), np.random.default_rng(0)) == 0).all()


def test_bernoulli_knows_what_it_left(new_rng):
    model, clean = parse_noise("bernoulli0.1_0.9"), np.full((40, 50, 3), 0.4, np.float32)
    known = model.known(clean.shape, new_rng(3))
    assert known.shape == (40, 50, 1)
    assert known.dtype == np.float32
    assert ((model.add(clean, new_rng(3)) > 0) == known).all()
    assert all(parse_noise(text).known((4, 4, 3), new_rng(0)) is None for text in ("none", "gauss25", "poisson30"))


def test_recorruptions_hide_noise_only_where_it_is_coarser_than_the_files_steps():
    step = 1 / 255
    for text, hidden in {"gauss2.895": False, "gauss2.905": True, "poisson280": True, "poisson281": False}.items():
        assert parse_noise(text).hides(step) == hidden, text
    assert parse_noise("gauss2_50").hides(step) is False  # the weakest of a range counts
    assert parse_noise("gauss0.02").hides(1 / 65535)


def test_only_undersampling_puts_anything_back():
    noisy, denoised = np.zeros((4, 4), np.float32), np.ones((4, 4), np.float32)
    for text in ("none", "gauss25", "poisson30+gauss5", "text0.1+gauss5"):
        assert parse_noise(text).restore(noisy, denoised) is denoised
        assert parse_noise(text).restore_tensor(noisy, denoised) is denoised
    clean = np.random.default_rng(0).random((32, 32), np.float32)
    for text in ("mri0.3", "gauss5+mri0.3"):
        model = parse_noise(text)
        undersampled = model.add(clean, np.random.default_rng(0))
        found = model.restore(undersampled, np.zeros_like(clean))
        np.testing.assert_allclose(found, noise.mri.put_back_image(undersampled, np.zeros_like(clean), 0.3))
        assert np.abs(found).max() > 0.1
        tensors = [paddle.to_tensor(image[None, None]) for image in (undersampled, np.zeros_like(clean))]
        np.testing.assert_allclose(model.restore_tensor(*tensors).numpy()[0, 0], found, atol=1e-5)


def test_the_very_bounds_of_strengths_are_accepted():
    for text in ("gauss1000000", "gauss0_1", "text1", "text0_1", "bernoulli1", "impulse1", "jpeg1", "jpeg100",
                 "jpeg1_100", "mri1", "poisson0.1_0.1"):  # fmt: skip
        assert parse_noise(text).name == text
    for text in ("mri0.1_0.2", "mri0", "mri1.01", "poisson1000001", "mri0.1+gauss5"):
        with pytest.raises(ValueError, match="mri"):
            parse_noise(text)


def test_a_flag_is_named_where_its_noise_is_refused():
    assert noise.noise_of_flag("--noise", "gauss25").low == 25
    assert noise.noise_of_flag("--noise", None).name == "none"
    for text in ("gauss", ""):
        with pytest.raises(UserError, match=f"^--noise: unknown noise '{text}'"):
            noise.noise_of_flag("--noise", text)


def test_jpeg_refuses_what_jpeg_cannot_hold():
    with pytest.raises(UserError, match="noise jpeg50: JPEG holds 65500 pixels a side, the image has 65501"):
        parse_noise("jpeg50").add(np.zeros((65501, 1), np.float32), np.random.default_rng(0))
    assert parse_noise("jpeg50").add(np.zeros((65500, 1), np.float32), np.random.default_rng(0)).shape == (65500, 1)


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
