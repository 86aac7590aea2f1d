"""Compares the time of a training step of from_scratch/ with that of other ways to convolve, on one U-Net and batch.

    python benchmarks/bench_from_scratch.py               # five rounds, some five minutes
    python benchmarks/bench_from_scratch.py --where       # where our own step spends its time
    python benchmarks/bench_from_scratch.py --rounds 1 --steps 2 --batch 4 --features 4     # does it run

What we want to beat is the classic way to write a convolution by hand: `unfold` the image, multiply by the weights,
`fold` the result. It is measured with Paddle's unfold, with PyTorch's where that is installed, and in NumPy by fancy
indexing. Before anything is timed, each contender's loss and gradients are compared with ours. Each measurement has a
process of its own, in turn with the others, so that a busy machine slows all of them alike.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's root

from contenders import measured, take_turns
from denoising import cli, machine
from denoising.cli import number

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "from_scratch"))  # whose modules are imported when the threads of BLAS are set
SIZE, RATE, SLOPE = 32, 1e-3, 0.1
CORES = machine.cores()
NAMES = {
    "ours": "from_scratch",
    "blas": "from_scratch, whole batch at once, threads of BLAS",
    "index": "NumPy, im2col by fancy indexing",
    "paddle-unfold": "Paddle, unfold and fold",
    "paddle-unfold-1": "Paddle, unfold and fold, one thread",
    "paddle": "Paddle's own layers",
    "paddle-1": "Paddle's own layers, one thread",
    "torch-unfold": "PyTorch, unfold and fold",
    "torch": "PyTorch's own layers",
}


def get_parser():
    parser = cli.Parser(__doc__)
    add = parser.add_argument
    add("--rounds", type=number(int, 1), default=5, help="how often each is measured")
    add("--steps", type=number(int, 1), default=10, help="steps that are timed in each measurement")
    add("--batch", type=number(int, 1), default=16, help="images in a batch")
    add("--features", type=number(int, 1), default=24, help="width of the U-Net")
    add("--only", nargs="+", choices=NAMES, default=list(NAMES), metavar="WHO", help="measure these contenders alone")
    add("--where", action="store_true", help="show instead where one thread of ours spends its time")
    add("--measure", choices=NAMES, help=argparse.SUPPRESS)
    return parser


# --- Ours ---------------------------------------------------------------------------------------------------


def batch_of(count):
    """A batch and its target, N x H x W x 3 around zero: the same for everyone."""
    import numpy as np

    rng = np.random.default_rng(0)
    return [rng.uniform(-0.5, 0.5, (count, SIZE, SIZE, 3)).astype(np.float32) for _ in range(2)]


def our_step(who, options):
    """A function that takes a step, and one that gives the loss and the gradients by name."""
    import numpy as np

    import threads
    from layers import mse
    from optim import Adam
    from tensor import Tensor, gradients
    from train import SHARD
    from unet import UNet

    if who == "index":
        index_convolutions()
    network = UNet(options.features)
    names, weights = zip(*network.parameters().items(), strict=True)
    adam = Adam(weights, RATE)
    noisy, target = batch_of(options.batch)
    shard = SHARD if who == "ours" else options.batch
    shards = [np.s_[i : i + shard] for i in range(0, options.batch, shard)]

    def part(where):
        loss = mse(network(Tensor(noisy[where])), Tensor(target[where])) * (len(noisy[where]) / options.batch)
        return float(loss.data), gradients(loss, weights)

    def differentiate():
        parts = list(threads.pool.map(part, shards))
        return sum(loss for loss, _ in parts), [sum(shares) for shares in zip(*(g for _, g in parts), strict=True)]

    def check():
        loss, found = differentiate()
        return loss, dict(zip(names, found, strict=True))

    return lambda: adam.step(differentiate()[1]), check


def index_convolutions():
    """Replaces our convolutions by the classic: N x C x H x W, indices of all windows, np.add.at to fold."""
    import numpy as np

    import convolution
    import layers

    def indices(channels, height, width, kh, kw, stride):
        rows, columns = (height - kh) // stride + 1, (width - kw) // stride + 1
        k = np.repeat(np.arange(channels), kh * kw)[:, None]
        i = np.tile(np.repeat(np.arange(kh), kw), channels)[:, None] + stride * np.repeat(np.arange(rows), columns)
        j = np.tile(np.arange(kw), kh * channels)[:, None] + stride * np.tile(np.arange(columns), rows)
        return k, i, j

    def unfolded(x, kh, kw, stride, padding):
        x = np.pad(x.transpose(0, 3, 1, 2), ((0, 0), (0, 0), (padding, padding), (padding, padding)))
        rows, columns = ((length - k) // stride + 1 for length, k in zip(x.shape[2:], (kh, kw), strict=True))
        cols = x[(slice(None), *indices(*x.shape[1:], kh, kw, stride))]  # N x (C kh kw) x (H' W')
        return cols.transpose(1, 2, 0).reshape(cols.shape[1], -1), (rows, columns)

    def matrix(weight):
        return weight.transpose(3, 2, 0, 1).reshape(weight.shape[3], -1)

    def correlate(x, weight, stride, padding, dilation, groups):
        cols, (rows, columns) = unfolded(x, *weight.shape[:2], stride, padding)
        return (matrix(weight) @ cols).reshape(-1, rows, columns, len(x)).transpose(3, 1, 2, 0)

    def weight_gradient(x, dy, size, stride, padding, dilation, groups):
        cols, _ = unfolded(x, *size, stride, padding)
        dw = dy.transpose(3, 1, 2, 0).reshape(dy.shape[3], -1) @ cols.T
        return dw.reshape(dy.shape[3], x.shape[3], *size).transpose(2, 3, 1, 0)

    def input_gradient(dy, weight, shape, stride, padding, dilation, groups):
        n, height, width, c = shape
        cols = matrix(weight).T @ dy.transpose(3, 1, 2, 0).reshape(dy.shape[3], -1)
        dx = np.zeros((n, c, height + 2 * padding, width + 2 * padding), dy.dtype)
        place = indices(*dx.shape[1:], *weight.shape[:2], stride)
        np.add.at(dx, (slice(None), *place), cols.reshape(len(cols), -1, n).transpose(2, 0, 1))
        return dx[:, :, padding : padding + height, padding : padding + width].transpose(0, 2, 3, 1)

    for function in (correlate, weight_gradient, input_gradient):
        assert hasattr(convolution, function.__name__)
        setattr(layers, function.__name__, function)


# --- Others -------------------------------------------------------------------------------------------------


def unet(weights, image, conv, up, relu, pool, concat):
    """from_scratch/unet.py in the operations of another framework; `weights` has its parameters by name."""

    def convs(x, name):
        for i in range(0, sum(key.startswith(f"{name}.") for key in weights), 2):
            x = relu(conv(x, weights[f"{name}.{i}.weight"], weights[f"{name}.{i}.bias"]))
        return x

    level0 = convs(image, "enc0")
    level1 = convs(pool(level0), "enc1")
    level2 = convs(pool(level1), "enc2")
    y = convs(concat([up(level2, weights["up1.weight"], weights["up1.bias"]), level1]), "dec1")
    y = convs(concat([up(y, weights["up0.weight"], weights["up0.bias"]), level0]), "dec0")
    return image + conv(y, weights["last.weight"], weights["last.bias"])


def other_step(who, options):
    """The same for Paddle and PyTorch: weights O x C x kh x kw, images N x C x H x W."""
    import numpy as np

    from unet import UNet

    start = {name: tensor.data for name, tensor in UNet(options.features).parameters().items()}
    start = {n: np.ascontiguousarray(a.transpose(3, 2, 0, 1)) if a.ndim == 4 else a for n, a in start.items()}
    images = [np.ascontiguousarray(image.transpose(0, 3, 1, 2)) for image in batch_of(options.batch)]
    framework = in_torch if who.startswith("torch") else in_paddle
    F, weights, (noisy, target), adam, own = framework(start, images)

    def conv(x, w, b):
        return F.conv2d(x, w, b, padding=w.shape[2] // 2)

    def unfolding_conv(x, w, b):
        cols = own["unfold"](x)  # N x (C kh kw) x (H W)
        y = w.reshape([w.shape[0], -1]) @ cols + b.reshape([-1, 1])
        return y.reshape([-1, w.shape[0], *x.shape[2:]])

    def folding_up(x, w, b):
        cols = w.reshape([w.shape[0], -1]).T @ x.reshape([x.shape[0], x.shape[1], -1])
        return own["fold"](cols, [2 * length for length in x.shape[2:]]) + b.reshape([-1, 1, 1])

    operations = {
        "conv": unfolding_conv if "unfold" in who else conv,
        "up": folding_up if "unfold" in who else own["up"],
        "relu": lambda x: F.leaky_relu(x, SLOPE),
        "pool": lambda x: F.max_pool2d(x, 2),
        "concat": own["concat"],
    }

    def differentiate():
        loss = F.mse_loss(unet(weights, noisy, **operations), target)
        loss.backward()
        return float(loss)

    def step():
        differentiate()
        adam.step()
        (adam.clear_grad if hasattr(adam, "clear_grad") else adam.zero_grad)()

    def check():
        loss = differentiate()
        found = {name: np.asarray(tensor.grad) for name, tensor in weights.items()}
        return loss, {n: g.transpose(2, 3, 1, 0) if g.ndim == 4 else g for n, g in found.items()}

    return step, check


def in_paddle(start, images):
    """Paddle's functions, weights, images, Adam, and the operations that PyTorch writes in another way."""
    import paddle
    from paddle.nn import functional as F

    weights = {n: paddle.base.framework.EagerParamBase.from_tensor(paddle.to_tensor(a)) for n, a in start.items()}
    own = {
        "up": lambda x, w, b: F.conv2d_transpose(x, w, b, stride=2),
        "concat": lambda tensors: paddle.concat(tensors, axis=1),
        "unfold": lambda x: F.unfold(x, 3, paddings=1),
        "fold": lambda cols, size: F.fold(cols, size, 2, strides=2),
    }
    adam = paddle.optimizer.Adam(RATE, parameters=list(weights.values()))
    return F, weights, [paddle.to_tensor(image) for image in images], adam, own


def in_torch(start, images):
    """The same in PyTorch."""
    import torch
    from torch.nn import functional as F

    torch.set_num_threads(CORES)
    weights = {name: torch.nn.Parameter(torch.tensor(array)) for name, array in start.items()}
    own = {
        "up": lambda x, w, b: F.conv_transpose2d(x, w, b, stride=2),
        "concat": lambda tensors: torch.cat(tensors, dim=1),
        "unfold": lambda x: F.unfold(x, 3, padding=1),
        "fold": lambda cols, size: F.fold(cols, size, 2, stride=2),
    }
    return F, weights, [torch.from_numpy(image) for image in images], torch.optim.Adam(weights.values(), RATE), own


# --- All of them in turn ------------------------------------------------------------------------------------


def measure(who, options):
    """Prints the loss, a digest of each gradient, and the seconds of each step, as JSON."""
    import numpy as np

    step, check = (our_step if who in ("ours", "blas", "index") else other_step)(who, options)
    loss, found = check()
    # A number for each tensor to which each of its elements adds a part of its own.
    digest = {name: float((g * np.cos(np.arange(g.size).reshape(g.shape))).sum()) for name, g in found.items()}
    seconds = []
    warm = 2 if options.steps > 1 else 0
    for i in range(options.steps + warm):
        start = time.perf_counter()
        step()
        if i >= warm:
            seconds.append(time.perf_counter() - start)
    print(json.dumps({"loss": loss, "digest": digest, "seconds": seconds}))


def run(who, options):
    """Measures in a process of its own; None if that fails, as where a framework is not installed."""
    flags = [who, f"--batch={options.batch}", f"--features={options.features}"]
    flags.append(f"--steps={1 if who == 'index' else options.steps}")  # that one takes seconds
    # Ours gives each of its threads one of BLAS. Paddle's operations are sometimes fastest on a single one.
    threads = 1 if who == "ours" or who.endswith("-1") else CORES
    environment = {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "OPENBLAS", "MKL")}
    return measured(__file__, NAMES[who], flags, environment)


def same(a, b):
    """Whether two contenders compute the same, up to the rounding of float32."""
    largest = max(map(abs, a["digest"].values()))
    gradients_agree = all(abs(value - b["digest"][name]) < 1e-3 * largest for name, value in a["digest"].items())
    return abs(a["loss"] - b["loss"]) < 1e-5 * a["loss"] and gradients_agree


KINDS = {
    "correlate": "products of matrices",
    "weight_gradient": "products of matrices",
    "input_gradient": "products of matrices",
    "as_rows": "copying windows into rows",
    "pad": "padding",
    "leaky_relu": "activations",
    "max_pool2d": "pooling",
    "concat": "joining and splitting skips",
    "conv2d": "adding biases and their gradients",
    "conv_transpose2d": "adding biases and their gradients",
}


def where(options):
    """Prints what share of a step of one thread each kind of work takes, without what it calls of other kinds."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    import convolution
    import layers
    import unet
    from tensor import Tensor, gradients
    from train import SHARD

    spent, inner = dict.fromkeys(KINDS.values(), 0.0), [0.0]

    def timed(kind, function):
        def wrapper(*args, **kwargs):
            inner.append(0.0)
            start = time.thread_time()
            result = function(*args, **kwargs)
            whole = time.thread_time() - start
            spent[kind] += whole - inner.pop()
            inner[-1] += whole
            return result

        return wrapper

    for module in (convolution, layers, unet):
        for name, kind in KINDS.items():
            if hasattr(module, name):
                setattr(module, name, timed(kind, getattr(module, name)))
    record = Tensor.__init__

    def record_timed(tensor, data, sources=(), backward=None, trainable=False):
        kind = KINDS.get(backward.__qualname__.split(".")[0]) if backward else None
        record(tensor, data, sources, timed(kind, backward) if kind else backward, trainable)

    Tensor.__init__ = record_timed
    network = unet.UNet(options.features)
    weights = list(network.parameters().values())
    noisy, target = (Tensor(image) for image in batch_of(SHARD))
    for i in range(options.steps + 2):
        if i == 2:
            spent.update(dict.fromkeys(spent, 0.0))
            start = time.thread_time()
        gradients(layers.mse(network(noisy), target), weights)
    total = time.thread_time() - start
    spent["everything else, most of it Python"] = total - sum(spent.values())
    print(
        f"One thread, U-Net of {options.features} features, {SHARD} images: {1e3 * total / options.steps:.1f} ms a step"
    )
    print("| work | share |")
    print("|---|---|")
    for kind, seconds in sorted(spent.items(), key=lambda item: -item[1]):
        print(f"| {kind} | {100 * seconds / total:.0f} % |")


def main(argv=None):
    options = get_parser().parse_args(argv)
    if options.measure:
        return measure(options.measure, options)
    if options.where:
        return where(options)

    results = {}
    titles = {who: NAMES[who] for who in options.only}
    for who, result in take_turns(titles, options.rounds, lambda who: run(who, options)):
        results.setdefault(who, []).append(result)
        first = next(iter(results.values()))[0]
        if not same(first, result):
            raise RuntimeError(f"{NAMES[who]}: another loss or other gradients than {NAMES[options.only[0]]}")

    times = {who: [second for result in rounds for second in result["seconds"]] for who, rounds in results.items()}
    bar = statistics.median(times["ours"]) if "ours" in times else None
    print(
        f"{CORES} cores; U-Net of {options.features} features, {options.batch} images of {SIZE}x{SIZE}: a step of Adam"
    )
    print("| training step | median ms | fastest ms | times ours |")
    print("|---|---|---|---|")
    for who, seconds in times.items():
        median = statistics.median(seconds)
        ratio = f"{median / bar:.2f}" if bar else ""
        print(f"| {NAMES[who]} | {1e3 * median:.1f} | {1e3 * min(seconds):.1f} | {ratio} |")
    return 0


if __name__ == "__main__":
    cli.run(main)
