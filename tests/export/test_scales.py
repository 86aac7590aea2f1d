"""Scales and zero points to the last step: against computations of their own, which a fault of 1 in 256 would miss."""

import math

import numpy as np
import pytest

import quantize_model
from conftest import noisy_scene, save
from denoising import cli, machine
from denoising.export import onnx_file, quantization, writing
from denoising.export.onnx_graph import INPUT, Int8Scales, Node
from denoising.export.quantization import BINS, Histograms

onnx = pytest.importorskip("onnx")


class Network:
    """What to_onnx asks of a network of one grey convolution."""

    multiple, dark = 1, None
    n_channel = n_input = 1
    options = {}


def histogram_of(values):
    """Of one channel, as `observe` counts."""
    largest = np.abs(values).max()
    return Histograms(np.array([largest]), np.histogram(values, BINS, (-largest, largest))[0][None].astype(float))


def simulated(values, scale, zero):
    """Through 8 bits and back."""
    return (np.clip(np.rint(values / scale) + zero, 0, 255) - zero) * scale


@pytest.mark.parametrize(
    ("low", "scale", "zero"),
    [
        # 1 is the step 255; below zero there are as many steps as the lowest number takes, or the next offer.
        (0.0, 1 / (255 - 43), 43),
        (-1.0, 1 / (255 - 128), 128),
        (-0.5, 1 / (255 - 85), 85),
    ],
)
def test_the_largest_numbers_are_the_outermost_steps(low, scale, zero):
    values = np.linspace(low, 1.0, 100_001)
    nodes = [Node("conv", "last", (INPUT,), 1, weight=np.ones((1, 1, 1, 1), np.float32), bias=np.zeros(1, np.float32))]
    histograms = {INPUT: histogram_of(values), "last": histogram_of(3 * values)}
    stretched, int8 = quantization.fit(nodes, histograms, "absmax")
    assert int8.scales[INPUT] == (pytest.approx(scale, rel=1e-3), zero)
    assert int8.scales["last"] == (pytest.approx(3 * scale, rel=1e-3), zero)
    np.testing.assert_array_equal(stretched[0].weight, nodes[0].weight)
    # No other offer of a zero rounds these numbers better.
    errors = {}
    for offer in quantization.ZEROS:
        step = max(1 / (255 - offer), -low / offer)
        errors[offer] = np.mean((simulated(values, step, offer) - values) ** 2)
    assert min(errors, key=errors.get) == zero


def test_channels_are_stretched_until_their_outermost_numbers_meet():
    high, low = np.linspace(-0.01, 1.0, 200_001), np.linspace(-3.0, 0.1, 200_001)
    both = [histogram_of(values) for values in (high, low)]
    histograms = {
        INPUT: histogram_of(high),
        "first": Histograms(*(np.concatenate([getattr(h, name) for h in both]) for name in ("largest", "counts"))),
        "last": histogram_of(high),
    }
    first = Node("conv", "first", (INPUT,), 2, weight=np.ones((2, 1, 1, 1), np.float32), bias=np.ones(2, np.float32))
    last = Node("conv", "last", ("first",), 1, weight=np.ones((1, 2, 1, 1), np.float32), bias=np.ones(1, np.float32))
    stretched, int8 = quantization.fit([first, last], histograms, "absmax")
    scale, zero = int8.scales["first"]
    factors = stretched[0].weight.ravel()
    # The first channel ends at the last step, the second at the first; but for the ten-thousandth that may be outside.
    assert factors[0] / factors[1] == pytest.approx(3.0 * (255 - zero) / zero, rel=1e-3)
    assert factors[0] / scale == pytest.approx(255 - zero, rel=2e-3)
    np.testing.assert_allclose(stretched[1].weight.ravel(), 1 / factors, rtol=1e-6)
    np.testing.assert_array_equal(stretched[0].bias, factors)


def two_layers(slope=1.0):
    """One channel in, two between, one out."""
    ones = np.ones(2, np.float32)
    first = Node("conv", "first", (INPUT,), 2, slope=slope, weight=ones.reshape(2, 1, 1, 1), bias=ones)
    return [first, Node("conv", "last", ("first",), 1, weight=ones.reshape(1, 2, 1, 1), bias=ones[:1])]


def joined(*channels):
    return Histograms(
        *(np.concatenate([getattr(channel, name) for channel in channels]) for name in ("largest", "counts"))
    )


def test_divergence_clips_outliers_and_none_of_what_channels_were_stretched_to():
    values = np.random.default_rng(0).normal(0, 0.01, 200_000)
    values[:2] = 1.0, 0.9  # fewer than a ten-thousandth
    histograms = {INPUT: histogram_of(values), "first": joined(histogram_of(values), histogram_of(values))}
    histograms["last"] = histogram_of(values)
    for method, highest in (("kl", 0.25), ("absmax", 1.01)):
        stretched, int8 = quantization.fit(two_layers(), histograms, method)
        scale, zero = int8.scales["first"]
        threshold = scale * (255 - zero) / stretched[0].weight[0, 0, 0, 0]  # in the unit of the values
        assert 4 * 0.01 * 0.9 < threshold <= highest


def test_divergence_chooses_for_images_and_results_within_what_they_reach():
    values = np.abs(np.random.default_rng(0).normal(0, 0.1, 200_000))
    values[0] = 1.0
    histogram = histogram_of(values)
    histograms = {INPUT: histogram, "first": joined(histogram, histogram), "last": histogram}
    int8 = quantization.fit(two_layers(), histograms, "kl")[1]
    for name in (INPUT, "last"):
        scale, zero = int8.scales[name]
        assert 1 <= scale * (255 - zero) / np.quantile(values, 0.9999) < 1.5


def test_a_channel_without_numbers_is_not_stretched_without_end():
    channel = histogram_of(np.linspace(-0.5, 1.0, 100_001))
    dead = Histograms(np.array([1e-12]), np.bincount([BINS // 2], [100_001], BINS)[None])
    histograms = {INPUT: channel, "first": joined(channel, dead), "last": channel}
    stretched, _ = quantization.fit(two_layers(), histograms, "absmax")
    factors = stretched[0].weight.ravel()
    assert factors[1] / factors[0] == pytest.approx(1e4, rel=1e-3)


def test_only_what_an_activation_gets_has_a_scale_of_its_own():
    channel = histogram_of(np.linspace(-0.2, 1.0, 100_001))
    histograms = {INPUT: channel, "first": joined(channel, channel), "last": channel}
    assert quantization.fit(two_layers(), histograms, "absmax")[1].before_activation == {}
    int8 = quantization.fit(two_layers(0.2), histograms, "absmax")[1]
    assert list(int8.before_activation) == ["first"]
    assert int8.floats == frozenset()
    (step, zero), (scale, after) = int8.before_activation["first"], int8.scales["first"]
    # One threshold above, and all of what becomes -0.2 by a fifth, -1, below.
    assert step * (255 - zero) == pytest.approx(scale * (255 - after), rel=1e-12)
    assert zero / (255 - zero) == pytest.approx(1.0, abs=0.05)


def test_numbers_about_zero_still_have_a_range():
    counts = np.zeros(BINS)
    counts[BINS // 2 - 1 : BINS // 2 + 1] = 1
    assert quantization.thresholds(counts, "percentile", 128)[0] == 1e-3


def test_each_channel_is_counted_over_its_own_range():
    images = [np.random.default_rng(seed).normal(size=(1, 2, 30, 40)).astype(np.float32) for seed in range(3)]
    images[1][0, 1] *= 50
    images = [np.concatenate([image, 0 * image[:, :1]], axis=1) for image in images]
    nodes = [Node("conv", "last", (INPUT,), 1, weight=np.ones((1, 3, 1, 1), np.float32), bias=np.zeros(1, np.float32))]
    found = quantization.observe(lambda x: {INPUT: x, "last": x[:, :1]}, images, nodes)
    assert sorted(found) == ["last", INPUT]
    for channel in range(2):
        values = np.concatenate([image[0, channel].ravel() for image in images])
        largest = np.abs(values).max()
        assert found[INPUT].largest[channel] == largest
        counts = np.histogram(values, BINS, (-largest, largest))[0]
        # Rounding may put a number at an edge into the bin beside it.
        assert np.abs(found[INPUT].counts[channel] - counts).sum() <= 4
        assert found[INPUT].counts[channel].sum() == len(values)
    # A channel of nothing but zeros has a range all the same.
    assert 0 < found[INPUT].largest[2] <= 1e-9
    assert found[INPUT].counts[2, BINS // 2] == len(values)


def test_bins_are_known_by_their_middles():
    np.testing.assert_array_equal(quantization._middles(4), [-0.75, -0.25, 0.25, 0.75])


def test_rounding_costs_a_twelfth_of_a_squared_step():
    counts = np.ones(BINS)
    for zero in (128, 64):
        fraction, error = quantization.thresholds(counts, "absmax", zero)
        assert fraction == pytest.approx(max(1, (255 - zero) / zero), rel=1e-6)
        # Of the evenly spread numbers from -1 to 1, whose mean square is a third.
        assert error == pytest.approx((fraction / (255 - zero)) ** 2 / 12 / (1 / 3), rel=1e-4)


def test_divergence_is_that_of_its_definition():
    share = np.random.default_rng(0).gamma(0.3, size=BINS)
    share[::7] = 0
    share /= share.sum()
    fraction, zero = 0.6, 100
    down = zero / (255 - zero)
    start, stop = int((1 - down * fraction) / 2 * BINS), math.ceil((1 + fraction) / 2 * BINS)
    bins = share[start:stop].tolist()
    steps = [[] for _ in range(256)]
    for place in range(len(bins)):  # the step i starts at the bin i * n // 256
        steps[next(i for i in reversed(range(256)) if i * len(bins) // 256 <= place)].append(place)
    rounded = [0.0] * len(bins)
    for places in steps:
        filled = [place for place in places if bins[place] > 0]
        for place in filled:
            rounded[place] = sum(bins[place] for place in places) / len(filled)
    total = sum(rounded)
    clipped = list(bins)
    clipped[0] += share[:start].sum()
    clipped[-1] += share[stop:].sum()
    expected = sum(p * math.log(p / max(q / total, 1e-10)) for p, q in zip(clipped, rounded, strict=True) if p > 0)
    assert quantization._divergence(share, fraction, down, zero) == pytest.approx(expected, rel=1e-9)


def test_what_an_activation_gets_is_rounded_as_well_as_can_be():
    rng = np.random.default_rng(2)
    before = rng.normal(0.2, 0.5, 20_000)
    after = np.where(before > 0, before, 0.2 * before)
    threshold = float(after.max())
    x = ((np.arange(BINS) + 0.5) / BINS * 2 - 1)[None] * threshold
    share = np.histogram(after, BINS, (-threshold, threshold))[0][None] / after.size
    step, zero = quantization._before_activation(x, share, threshold, 0.2)
    assert step * (255 - zero) == pytest.approx(threshold, rel=1e-12)

    def error(step, zero):
        rounded = simulated(before, step, zero)
        return np.mean((np.where(rounded > 0, rounded, 0.2 * rounded) - after) ** 2)

    best = min(error(threshold / (255 - offer), offer) for offer in range(30, 226, 5))
    assert error(step, zero) <= 1.03 * best


def test_a_zero_before_an_activation_is_that_of_its_definition():
    rng = np.random.default_rng(3)
    x = ((np.arange(256) + 0.5) / 256 * 2 - 1)[None]
    for _ in range(200):
        slope, threshold = rng.uniform(0.2, 1), rng.uniform(0.3, 1)
        share = rng.gamma(0.5, size=x.shape) * np.exp(-rng.uniform(1, 20) * np.abs(x))
        share /= share.sum()
        errors = {}
        for zero in range(30, 226, 5):
            step = threshold / (255 - zero)
            # Rounded before the activation, and clipped there, at `zero` steps below nothing.
            lost = slope * np.maximum(-x / slope - zero * step, 0)
            rounding = np.where(x >= 0, 1, slope) ** 2 * step**2 / 12
            errors[zero] = (share * (rounding + np.where(x >= 0, 0, lost**2))).sum()
        best = min(errors, key=errors.get)
        step, zero = quantization._before_activation(x, share, threshold, slope)
        assert (zero, step) == (best, pytest.approx(threshold / (255 - best), rel=1e-12))


def test_the_file_holds_weights_and_scales_to_the_step():
    rng = np.random.default_rng(1)
    weight, bias = rng.normal(size=(1, 1, 3, 3)).astype(np.float32), np.float32([0.3])
    node = Node("conv", "last", (INPUT,), 1, weight=weight, bias=bias)
    scales = {INPUT: (0.0047, 43), "last": (0.006, 64)}
    data = onnx_file.to_onnx([node], Network, {}, Int8Scales(scales, {}, frozenset()))
    graph = onnx.load_from_string(data).graph
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    largest = float(np.abs(weight).max())
    assert held["last.weight.scale"].tolist() == [pytest.approx(largest / 127, rel=1e-6)]
    assert held["last.weight"].dtype == np.int8
    exact = weight.astype(np.float64) * 127 / largest
    assert np.abs(held["last.weight"] - exact).max() <= 0.5001
    assert np.abs(held["last.weight"]).max() == 127
    # The bias counts in products of a step of the image and one of the weights; the result is centred on mid-grey.
    unit = largest / 127 * 0.0047
    assert held["last.bias.scale"].tolist() == [pytest.approx(unit, rel=1e-6)]
    assert held["last.bias"].tolist() == [round((float(bias[0]) - 0.5) / unit)]
    for kind in ("QuantizeLinear", "DequantizeLinear"):
        (inputs,) = [n.input for n in graph.node if n.op_type == kind and n.input[0] in (f"{INPUT}/u8", "noisy") or
                     n.op_type == kind and n.output[0] == f"{INPUT}/u8"]  # fmt: skip
        assert held[inputs[1]] == np.float32(0.0047)
        assert (held[inputs[2]].dtype, held[inputs[2]]) == (np.uint8, 43)


def counts_of(values):
    return np.histogram(values, quantization.BINS, (-1, 1))[0].astype(float)


def test_thresholds_do_what_their_names_say():
    rng = np.random.default_rng(0)
    y = np.clip(rng.laplace(0, 0.03, 200_000), -1, 1)
    y[:3] = 0.9, -0.8, 1.0
    found = {method: quantization.thresholds(counts_of(y), method, 128)[0] for method in quantization.METHODS}
    assert found["absmax"] == pytest.approx(1.0, abs=0.01)
    # All but those three are within a third of the range; squared errors mind them more.
    assert 0.2 < found["percentile"] < 0.5
    assert 0.2 < found["kl"] < 0.5
    assert 0.3 < found["mse"] < 0.9

    def error(threshold):
        step = threshold / 127
        return np.mean((np.clip(np.rint(y / step), -128, 127) * step - y) ** 2)

    tried = np.linspace(0.2, 1, 81)
    best = tried[np.argmin([error(t) for t in tried])]
    assert error(found["mse"]) < 1.02 * error(best)
    assert quantization.thresholds(counts_of(y), "mse", 128)[1] * np.mean(y**2) == pytest.approx(
        error(found["mse"]), rel=0.1
    )
    high = np.quantile(y, 1 - quantization.TAIL)
    assert found["percentile"] == pytest.approx(max(high, -np.quantile(y, quantization.TAIL) * 127 / 128), abs=2e-3)


def test_a_range_that_reaches_below_zero_covers_both_sides():
    y = np.random.default_rng(1).uniform(-0.2, 1, 100_000)
    threshold, error = quantization.thresholds(counts_of(y), "absmax", 43)
    assert threshold == pytest.approx(1.0, abs=0.02)
    # Half of the steps would be wasted on a symmetric range.
    assert quantization.thresholds(counts_of(y), "absmax", 128)[1] > 2 * error


def test_the_search_keeps_what_gains_much_and_costs_little():
    gain = {"first": 0.02, "middle": 9.0, "last": 3.0, "small": 0.5}
    costs = {"first": 1, "middle": 90, "last": 2, "small": 7}
    tried = []

    def measure(floats):
        tried.append(set(floats))
        return 40 + sum(gain[name] for name in floats)

    floats, gains = quantization.search_floats(costs, measure, 0.05)
    assert floats == {"last"}
    assert gains == pytest.approx({"first": 0.02, "last": 3.0})
    assert not any("middle" in layers for layers in tried)
    assert quantization.search_floats(costs, measure, 0.02)[0] == {"last"}  # to the last multiplication
    assert quantization.search_floats(costs, measure, 0.0)[0] == frozenset()
    assert quantization.search_floats(costs, measure, 1.0)[0] == {"middle", "last", "small"}


@pytest.mark.skipif(not writing.installed_runtimes(), reason="neither onnxruntime nor openvino is installed")
@pytest.mark.parametrize("factor", [1e3, 1e20, 1e38])
def test_weights_that_overflow_are_refused(factor, weights, tmp_path, monkeypatch):
    from denoising.inference.checkpoint import load_network, network_state, save_network

    monkeypatch.setattr(machine, "adds_bytes_exactly", lambda: True)  # they are refused before anything is 8-bit
    network, options = load_network(weights)
    for tensor in network.parameters():
        tensor.set_value(np.clip(tensor.numpy().astype(np.float64) * factor, -3e38, 3e38).astype(np.float32))
    save_network(tmp_path / "huge.pdparams", network_state(network), options)
    picture = save(tmp_path / "noisy" / "0.png", noisy_scene(90, 130))
    flags = ["--model_path", tmp_path / "huge.pdparams", "--images", picture, "--save_dir", tmp_path / "out"]
    with pytest.raises(cli.UserError, match=r"--model_path: activations grow to \S+ in enc_conv"):
        quantize_model.main([*flags, "--crops", 3])
    assert list((tmp_path / "out").iterdir()) == []
