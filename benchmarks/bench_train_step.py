"""Compares the time of a training step on the CPU: by this project, by PyTorch, and by Paddle's own layers.

    python benchmarks/bench_train_step.py               # five rounds, some ten minutes
    python benchmarks/bench_train_step.py --no-stock    # without Paddle's own layers, which take longest
    python benchmarks/bench_train_step.py --cpu-time    # for a machine that is busy with other things

A step is what train.py does on a batch of four 256x256 images: it adds noise, splits them into sub-images, denoises the
whole images without gradient and the sub-images with it, computes both losses, differentiates, and moves the weights
by Adam. PyTorch runs at its best: channels last, bf16 by autocast. It is needed here only (pip install torch), and
left out where it is missing. Each measurement has a process of its own, in turn with the others, so that a busy
machine slows all of them alike.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's root

from contenders import measured, take_turns
from denoising import cli, machine
from denoising.cli import number

LAMBDA, RATE = 2.0, 3e-4
NAMES = {
    ("ours", "fp32"): "this project, fp32",
    ("torch", "fp32"): "PyTorch, channels last, fp32",
    ("stock", "fp32"): "Paddle's own layers, fp32",
    ("ours", "bf16"): "this project, bf16",
    ("torch", "bf16"): "PyTorch, channels last, bf16 autocast",
}


def get_parser():
    parser = cli.Parser(__doc__)
    add = parser.add_argument
    add("--rounds", type=number(int, 1), default=5, help="how often each is measured")
    add("--steps", type=number(int, 1), default=6, help="timed steps in each measurement, after two that are not timed")
    add("--batch", type=number(int, 1), default=4, help="images in a batch")
    add("--size", type=number(int, 32), default=256, help="side of the images, a multiple of 64")
    add("--no-stock", action="store_true", help="leave out Paddle's own layers")
    add("--cpu-time", action="store_true", help="measure the CPU time of one thread instead of wall time")
    add("--json", action="store_true", help="print all times in seconds instead of the table")
    add("--measure", nargs=2, metavar=("WHO", "PRECISION"), help=argparse.SUPPRESS)
    return parser


# --- One step -----------------------------------------------------------------------------------------------


def draw(rng, batch, size):
    """A batch with its noise and its choice of neighbours: the same work on all sides."""
    from denoising.imaging.noise import parse_noise  # imports no framework

    clean = np.zeros((size, size, 3), np.float32)
    picks = rng.integers(0, 2, (batch, 3, size // 2, size // 2), dtype=bool)
    model = parse_noise("gauss25")
    noisy = np.stack([model.add(clean, rng) for _ in range(batch)]).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(noisy), picks


def paddle_step(who, precision):
    import paddle

    from arch_unet import build_network
    from denoising.engine import operators
    from denoising.training.methods import Neighbor2Neighbor

    network, method = build_network(), Neighbor2Neighbor(increase_ratio=LAMBDA)
    network.ops, line = operators.choose("onednn" if who == "ours" else "paddle", precision)
    print(line, file=sys.stderr)
    optimizer = paddle.optimizer.Adam(RATE, parameters=network.parameters())

    def step(noisy, picks):
        loss, *_ = method(network, paddle.to_tensor(noisy), paddle.to_tensor(picks), ramp=1.0)
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        return float(loss)

    return step


def torch_step(precision):
    import torch
    from torch import nn
    from torch.nn import functional as F

    def conv(inputs, outputs, size=3):
        return nn.Conv2d(inputs, outputs, size, padding=size // 2)

    class UNet(nn.Module):
        """The same network, layer by layer."""

        def __init__(self, n=48):
            super().__init__()
            self.down = nn.ModuleList([conv(3, n)] + [conv(n, n) for _ in range(6)])
            widths = [n] + [2 * n] * 4
            self.up = nn.ModuleList([nn.ConvTranspose2d(width, width, 2, stride=2) for width in widths])
            self.a = nn.ModuleList([conv(width, 2 * n) for width in (2 * n, 3 * n, 3 * n, 3 * n, 2 * n + 3)])
            self.b = nn.ModuleList([conv(2 * n, 2 * n) for _ in range(5)])
            self.head = nn.ModuleList([conv(2 * n, 2 * n, 1), conv(2 * n, 2 * n, 1)])
            self.last = conv(2 * n, 3, 1)

        def forward(self, x):
            def act(x):
                return F.leaky_relu(x, 0.2, inplace=True)

            skips = [x]
            x = act(self.down[0](x))
            for layer in self.down[1:-1]:
                x = F.max_pool2d(act(layer(x)), 2)
                skips.append(x)
            skips.pop()
            x = act(self.down[-1](x))
            for up, a, b in zip(self.up, self.a, self.b, strict=True):
                x = act(b(act(a(torch.cat([up(x), skips.pop()], 1)))))
            for layer in self.head:
                x = act(layer(x))
            return self.last(x)

    def subimages(image, picks):
        row, column, down = picks[:, 0:1], picks[:, 1:2], picks[:, 2:3]
        top = torch.where(column, image[:, :, 0::2, 1::2], image[:, :, 0::2, 0::2])
        bottom = torch.where(column, image[:, :, 1::2, 1::2], image[:, :, 1::2, 0::2])
        top_across = torch.where(column, image[:, :, 0::2, 0::2], image[:, :, 0::2, 1::2])
        bottom_across = torch.where(column, image[:, :, 1::2, 0::2], image[:, :, 1::2, 1::2])
        across = torch.where(row, bottom_across, top_across)
        return torch.where(row, bottom, top), torch.where(down, torch.where(row, top, bottom), across)

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", machine.cores())))
    network = UNet().to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), RATE)

    def denoise(image):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return network(image.contiguous(memory_format=torch.channels_last)).float()

    def step(noisy, picks):
        noisy, picks = torch.from_numpy(noisy), torch.from_numpy(picks)
        sub1, sub2 = subimages(noisy, picks)
        diff = denoise(sub1) - sub2
        with torch.no_grad():
            denoised1, denoised2 = subimages(denoise(noisy), picks)
        loss = (diff**2).mean() + LAMBDA * ((diff - (denoised1 - denoised2)) ** 2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def measure(who, precision, options, clock):
    """Prints the seconds of each step as JSON."""
    step = torch_step(precision) if who == "torch" else paddle_step(who, precision)
    rng = np.random.default_rng(0)
    warm, seconds = 1 if who == "stock" else 2, []
    for i in range(warm + options.steps):
        start = clock()
        loss = step(*draw(rng, options.batch, options.size))
        if not np.isfinite(loss):
            raise RuntimeError(f"the loss is {loss}")
        if i >= warm:
            seconds.append(clock() - start)
    print(json.dumps(seconds))


# --- All of them in turn ------------------------------------------------------------------------------------


def run(who, precision, options):
    """Measures in a process of its own; None where the framework is not installed."""
    # Paddle's own layers take ten times as long, and their time varies less than the difference.
    steps = 1 if who == "stock" else options.steps
    flags = [who, precision, "--steps", steps, "--batch", options.batch, "--size", options.size]
    flags += ["--cpu-time"] if options.cpu_time else []
    environment = {"OMP_NUM_THREADS": "1"} if options.cpu_time else {}
    return measured(__file__, NAMES[who, precision], flags, environment)


def main(argv=None):
    options = get_parser().parse_args(argv)
    if options.measure:
        return measure(*options.measure, options, time.thread_time if options.cpu_time else time.perf_counter)

    bf16 = "avx512_bf16" in machine.cpu_flags()
    if not bf16:
        print("bf16 is left out: this CPU does not compute in it", file=sys.stderr)
    titles = {
        key: title
        for key, title in NAMES.items()
        if not (options.no_stock and key[0] == "stock") and (bf16 or key[1] == "fp32")
    }
    times = {}
    for key, seconds in take_turns(titles, options.rounds, lambda key: run(*key, options)):
        times.setdefault(key, []).extend(seconds)

    if options.json:
        print(json.dumps({" ".join(key): seconds for key, seconds in times.items()}))
        return 0
    medians = {key: statistics.median(seconds) for key, seconds in times.items()}
    print("| training step | median s | fastest s | times the speed of this project's |")
    print("|---|---|---|---|")
    for key, seconds in times.items():
        ratio = f"{medians['ours', key[1]] / medians[key]:.2f}" if ("ours", key[1]) in medians else ""
        print(f"| {NAMES[key]} | {medians[key]:.3f} | {min(seconds):.3f} | {ratio} |")
    return 0


if __name__ == "__main__":
    cli.run(main)
