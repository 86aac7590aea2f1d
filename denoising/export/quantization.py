"""Post-training quantisation to 8 bits: what range each tensor gets, and which layers are better left in float.

>>> histograms = observe(run, images, nodes)       # for each channel of each tensor
>>> nodes, scales = fit(nodes, histograms, "kl")   # weights with equal ranges, and the scale of each tensor

A tensor has one scale for all its channels, whose ranges differ by orders of magnitude: most channels would be left
with a few of the 256 steps. But leaky ReLU, pooling, upsampling and concatenation commute with positive factors, so
that every channel can be stretched to the same range by the weights before it and shrunk again by those after it: the
network computes the same, and all channels use all steps. Against the float network this was worth 0.3 dB (kl) to 2 dB
(mse).
"""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from denoising.cli import UserError
from denoising.export.onnx_graph import INPUT, MOVES, Int8Scales, groups

METHODS = ("kl", "mse", "percentile", "absmax")
BINS = 4096
INSIDE = 0.9999  # of a channel's numbers are within the range to which it is stretched
TAIL = 1e-5  # of a tensor's numbers are clipped at either end by "percentile"
# Where zero may lie among the 256 steps: from tensors that are nearly positive to symmetric ones.
ZEROS = (43, 64, 85, 102, 115, 128)
LIMIT = 1e6  # of activations, where an image's white is 1; no weights that denoise come near it
FRACTIONS = np.linspace(0.2, 1.0, 81)  # of the largest number, tried as thresholds


@dataclass
class Histograms:
    """One of each channel of a tensor, over -largest .. largest of that channel."""

    largest: np.ndarray  # [C], the largest magnitude
    counts: np.ndarray  # [C, BINS]


# --- Looking ------------------------------------------------------------------------------------------------


def sources(nodes):
    """The tensors that choose their own range, each with the node that makes it (None: it is given).

    All others hold the numbers of these, moved. Where a convolution's channels are only laid out as pixels, that is
    looked at, because the four parts of a channel must have one range.
    """
    users = Counter(name for node in nodes for name in node.inputs)
    laid_out = {n.inputs[0]: n.name for n in nodes if n.kind in ("blocks", "shuffle") and users[n.inputs[0]] == 1}
    found = {INPUT: None}
    for node in nodes:
        if node.kind not in MOVES:
            found[laid_out.get(node.name, node.name)] = node if node.kind != "add" else None
    return found


def observe(run, images, nodes):
    """Runs the float network twice over images and counts.

    Args:
        run: takes NCHW float32 and returns a dict of tensors by name, of `sources`.
        images: a list of NCHW arrays.
        nodes: of the network.
    """
    names = sources(nodes)
    largest = {}
    for x in images:
        for name, y in run(x).items():
            largest[name] = np.maximum(largest.get(name, 0), np.abs(y).max((0, 2, 3)))
    for name, magnitudes in largest.items():
        if not magnitudes.max() < LIMIT:  # also true for NaN
            raise UserError(f"--model_path: activations grow to {magnitudes.max():.3g} in {name}: no image comes out")
    found = {name: Histograms(np.maximum(largest[name], 1e-12), np.zeros((len(largest[name]), BINS))) for name in names}
    for x in images:
        for name, y in run(x).items():
            histograms = found[name]
            place = y * (BINS / 2 / histograms.largest)[:, None, None].astype(np.float32) + np.float32(BINS / 2)
            place = np.clip(place.astype(np.int32), 0, BINS - 1)
            counts = histograms.counts
            place += np.arange(0, counts.size, BINS, dtype=np.int32)[:, None, None]
            counts += np.bincount(place.ravel(), minlength=counts.size).reshape(counts.shape)
    return found


# --- Thresholds ---------------------------------------------------------------------------------------------


def thresholds(counts, method, zero, least=0.0):
    """The best threshold of a histogram over -1 .. 1, and its squared error.

    The range that it stands for is -zero/(255-zero) .. 1 times it.

    Args:
        counts: [BINS].
        method: one of METHODS.
        zero: which of the 256 steps is zero.
        least: a threshold below which divergence may not go.
    """
    share = counts / counts.sum()
    down = zero / (255 - zero)
    if method in ("kl", "mse"):
        cost = {"kl": _divergence, "mse": _squared_error}[method]
        # How far off the clipped numbers are is nothing to a divergence: what is left to it would cost 1 dB.
        tried = FRACTIONS[FRACTIONS >= min(least, 1.0)] if method == "kl" else FRACTIONS
        fraction = tried[int(np.argmin([cost(share, fraction, down, zero) for fraction in tried]))]
    else:
        low, high = _percentiles(share[None], TAIL if method == "percentile" else 0.0)
        fraction = max(high[0], -low[0] / down, 1e-3)
    # Divergences of different ranges do not compare: where zero lies is always chosen by the error.
    return fraction, _squared_error(share, fraction, down, zero)


def _middles(count):
    return (np.arange(count) + 0.5) / count * 2 - 1


def _squared_error(share, fraction, down, zero):
    """Of rounding within the range and clipping outside, relative to the mean square."""
    x = _middles(len(share))
    outside = np.maximum(x - fraction, 0) ** 2 + np.maximum(-down * fraction - x, 0) ** 2
    step = fraction / (255 - zero)
    error = outside + np.where(outside == 0, step**2 / 12, 0)
    return float(share @ error / (share @ x**2 + 1e-30))


def _divergence(share, fraction, down, zero):
    """Kullback-Leibler, of the clipped histogram from the same in 256 steps (TensorRT's calibration)."""
    start = max(int((1 - down * fraction) / 2 * len(share)), 0)
    stop = min(-int(-(1 + fraction) / 2 * len(share) // 1), len(share))
    inside = share[start:stop]
    clipped = inside.copy()
    clipped[0] += share[:start].sum()
    clipped[-1] += share[stop:].sum()
    edges = np.unique(np.arange(256) * len(inside) // 256)
    step_of = np.searchsorted(edges, np.arange(len(inside)), side="right") - 1
    there = inside > 0
    # Each step's share, spread evenly over those of its bins that hold anything.
    mean = np.add.reduceat(inside, edges) / np.maximum(np.add.reduceat(there, edges), 1)
    in_steps = np.where(there, mean[step_of], 0)
    in_steps /= max(in_steps.sum(), 1e-30)
    filled = clipped > 0
    return float(np.sum(clipped[filled] * np.log(clipped[filled] / np.maximum(in_steps[filled], 1e-10))))


def _percentiles(share, tail):
    """Between which numbers all but a tail at either end of each row lies."""
    summed = np.cumsum(share, axis=1)
    edges = np.linspace(-1, 1, share.shape[1] + 1)
    # Sums of floats: a little slack keeps the outermost bin that holds anything.
    low = edges[np.argmax(summed > tail + 1e-12, axis=1)]
    high = edges[np.argmax(summed >= 1 - tail - 1e-12, axis=1) + 1]
    return low, high


# --- Fitting ------------------------------------------------------------------------------------------------


def fit(nodes, histograms, method):
    """Stretches all channels to equal ranges and finds the scales.

    Args:
        nodes: of the network.
        histograms: of `observe`.
        method: how the range of a tensor is chosen: one of METHODS.

    Returns:
        Nodes that compute the same in float, and Int8Scales without float layers.
    """
    made_by = sources(nodes)
    # What is added to something else or normalised, and what comes out, keeps its unit.
    fixed = {name for node in nodes if node.kind in ("add", "norm") for name in node.inputs} | {nodes[-1].name}
    origin = {name: {name} for name in made_by}
    for node in nodes:
        if node.name not in origin:
            origin[node.name] = set().union(*(origin.get(name, set()) for name in node.inputs))
    fixed = {name for moved in fixed for name in origin[moved]} | {name for name, node in made_by.items() if not node}

    factors, scales, before = {}, {}, {}
    for group in groups(nodes):
        members = [name for name in group if name in made_by]
        counts = {name: histograms[name].counts for name in members}
        shares = {name: count / count.sum(1, keepdims=True) for name, count in counts.items()}
        candidates = [_fit_group(members, shares, histograms, fixed, method, zero) for zero in ZEROS]
        _, zero, threshold, stretched = min(candidates, key=lambda candidate: candidate[0])
        factors |= stretched
        scales |= dict.fromkeys(group, (threshold / (255 - zero), zero))
        for name in members:
            node = made_by[name]
            if node and node.slope != 1.0:
                x = _middles(BINS) * (histograms[name].largest * factors[name])[:, None]
                before[node.name] = _before_activation(x, shares[name], threshold, node.slope)
    return _stretched(nodes, factors), Int8Scales(scales, before, frozenset())


def _fit_group(members, shares, histograms, fixed, method, zero):
    """For tensors of one scale with zero at a given step: cost, zero, threshold, and each channel's factor."""
    down = zero / (255 - zero)
    factors = {}
    for name in members:
        low, high = _percentiles(shares[name], 1 - INSIDE)
        reach = np.maximum(high, -low / down) * histograms[name].largest
        factors[name] = 1 / np.maximum(reach, 1e-4 * reach.max())
    given = [factors[name].min() for name in members if name in fixed]
    if given:
        factors = {name: factor / min(given) for name, factor in factors.items()}
    factors |= {name: np.ones_like(factors[name]) for name in members if name in fixed}

    # One histogram of all channels as they are stretched.
    largest = {name: histograms[name].largest * factors[name] for name in members}
    widest = max(magnitudes.max() for magnitudes in largest.values())
    counts = np.zeros(BINS)
    for name in members:
        x = _middles(BINS) * largest[name][:, None]
        counts += np.histogram(x, BINS, (-widest, widest), weights=histograms[name].counts)[0]
    within = 1 / min(given) if given else 1.0  # to what all but the outermost numbers of each channel were stretched
    fraction, cost = thresholds(counts, method, zero, within / widest)
    return cost, zero, float(fraction * widest), factors


def _before_activation(x, share, threshold, slope):
    """The scale of what a leaky ReLU gets, chosen by the error after it: `x` are its results, shares their numbers."""
    best = None
    for zero in range(30, 226, 5):
        step = threshold / (255 - zero)
        lowest = -zero * step * slope
        error = np.where(x >= 0, step**2 / 12, (slope * step) ** 2 / 12 + np.maximum(lowest - x, 0) ** 2)
        error = float((share * error).sum())
        if best is None or error < best[0]:
            best = error, (step, zero)
    return best[1]


def _stretched(nodes, factors):
    """The same network with every source's channels multiplied by their factors."""
    by_tensor, stretched = {INPUT: factors[INPUT]}, []
    laid_out = {node.inputs[0]: node for node in nodes if node.kind in ("blocks", "shuffle")}
    for node in nodes:
        taken = [by_tensor[name] for name in node.inputs]
        if node.kind in ("conv", "norm"):
            own = factors.get(node.name)
            if own is None:
                after = laid_out[node.name]
                parts = factors[after.name]
                own = np.tile(parts, 4) if after.kind == "blocks" else np.repeat(parts, 4)
            by_tensor[node.name] = own
            if node.kind == "conv":
                weight = node.weight * own[:, None, None, None] / taken[0][:, None, None]
            else:
                weight = node.weight * own
            node = replace(node, weight=weight.astype(np.float32), bias=(node.bias * own).astype(np.float32))
        elif node.kind == "concat":
            by_tensor[node.name] = np.concatenate(taken)
        elif node.kind in ("blocks", "shuffle"):
            by_tensor[node.name] = taken[0][: node.channels] if node.kind == "blocks" else taken[0][::4]
        elif node.kind == "unshuffle":
            by_tensor[node.name] = np.tile(taken[0], 4)
        else:
            by_tensor[node.name] = taken[0]
        stretched.append(node)
    return stretched


# --- Float layers -------------------------------------------------------------------------------------------

LEAST_GAIN = 0.1  # dB, for which a layer stays in float


def search_floats(costs, measure, budget):
    """Which convolutions to leave in float: those that gain most, as long as they are a small part of the work.

    Args:
        costs: multiplications of each convolution, by name.
        measure: takes a set of names and returns how near the result is to the float network's, in dB.
        budget: the part of all multiplications that may stay in float.

    Returns:
        The names, and for each layer that was tried alone what it gained in dB.
    """
    allowed = budget * sum(costs.values())
    floats, best = set(), measure(set())
    gains = {name: measure({name}) - best for name in costs if costs[name] <= allowed}
    for name in sorted(gains, key=gains.get, reverse=True):
        if gains[name] < LEAST_GAIN or sum(costs[layer] for layer in floats | {name}) > allowed:
            continue
        result = measure(floats | {name})
        if result >= best + LEAST_GAIN:
            floats, best = floats | {name}, result
    return frozenset(floats), gains
