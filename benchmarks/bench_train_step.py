"""The time of a training step on the CPU: this project, PyTorch, and Paddle's own layers.

    python benchmarks/bench_train_step.py               # five rounds, some ten minutes
    python benchmarks/bench_train_step.py --no-stock    # without Paddle's own layers, which take longest
    python benchmarks/bench_train_step.py --cpu-time    # for a machine that is busy with other things

A step is what train.py does on a batch of four 256x256 images: add noise, split into sub-images, denoise
the whole images without gradient and the sub-images with it, both losses, backward, Adam. PyTorch runs at
its best: channels last, bf16 by autocast. It is needed here only (pip install torch). Each measurement is a
process of its own, in turn with the others, so that a busy machine slows all of them alike.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
BATCH, SIZE, LAMBDA, RATE = 4, 256, 2.0, 3e-4
NAMES = {
    ("ours", "fp32"): "this project, fp32",
    ("torch", "fp32"): "PyTorch, channels last, fp32",
    ("stock", "fp32"): "Paddle's own layers, fp32",
    ("ours", "bf16"): "this project, bf16",
    ("torch", "bf16"): "PyTorch, channels last, bf16 autocast",
}


def get_parser():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each")
    parser.add_argument("--steps", type=int, default=6, help="timed steps in each, after two that are not")
    parser.add_argument("--no-stock", action="store_true", help="leave out Paddle's own layers")
    parser.add_argument("--cpu-time", action="store_true", help="CPU time of one thread instead of wall time")
    parser.add_argument("--json", action="store_true", help="print all times in seconds instead of the table")
    parser.add_argument("--measure", nargs=2, metavar=("WHO", "PRECISION"), help=argparse.SUPPRESS)
    return parser


# --- One step -----------------------------------------------------------------------------------------------


def draw(rng):
    """A batch with its noise and its choice of neighbours: the same work on all sides."""
    from denoising.imaging.noise import parse_noise  # imports no framework

    clean = np.zeros((SIZE, SIZE, 3), np.float32)
    picks = rng.integers(0, 2, (BATCH, 3, SIZE // 2, SIZE // 2), dtype=bool)
    model = parse_noise("gauss25")
    noisy = np.stack([model.add(clean, rng) for _ in range(BATCH)]).transpose(0, 3, 1, 2)
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

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0)))))
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
        return float(loss)

    return step


def measure(who, precision, steps, clock):
    """Prints the seconds of each step as JSON."""
    step = torch_step(precision) if who == "torch" else paddle_step(who, precision)
    rng = np.random.default_rng(0)
    warm, seconds = 1 if who == "stock" else 2, []
    for i in range(warm + steps):
        start = clock()
        loss = step(*draw(rng))
        if not np.isfinite(loss):
            sys.exit(f"the loss is {loss}")
        if i >= warm:
            seconds.append(clock() - start)
    print(json.dumps(seconds))


# --- All of them in turn ------------------------------------------------------------------------------------


def run(who, precision, steps, cpu_time):
    command = [sys.executable, "-W", "ignore", __file__, "--measure", who, precision, "--steps", str(steps)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if cpu_time:
        command.append("--cpu-time")
        environment["OMP_NUM_THREADS"] = "1"
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        print(f"{NAMES[who, precision]}: not measured: {lines[-1] if lines else 'no message'}", file=sys.stderr)
        return None
    return json.loads(done.stdout)


def main(argv=None):
    options = get_parser().parse_args(argv)
    clock = time.thread_time if options.cpu_time else time.perf_counter
    if options.measure:
        return measure(*options.measure, options.steps, clock)

    times = {key: [] for key in NAMES if not (options.no_stock and key[0] == "stock")}
    for i in range(options.rounds):
        for who, precision in list(times):
            print(f"round {i + 1} of {options.rounds}: {NAMES[who, precision]}", file=sys.stderr)
            # Paddle's own layers take ten times as long, and their time varies less than the difference.
            seconds = run(who, precision, 1 if who == "stock" else options.steps, options.cpu_time)
            if seconds is None:
                del times[who, precision]
            else:
                times[who, precision] += seconds

    if options.json:
        print(json.dumps({" ".join(key): seconds for key, seconds in times.items()}))
        return None
    medians = {key: statistics.median(seconds) for key, seconds in times.items()}
    print("| training step | median s | fastest s | times the speed of this project's |")
    print("|---|---|---|---|")
    for key, seconds in times.items():
        ratio = f"{medians['ours', key[1]] / medians[key]:.2f}" if ("ours", key[1]) in medians else ""
        print(f"| {NAMES[key]} | {medians[key]:.3f} | {min(seconds):.3f} | {ratio} |")
    return None


if __name__ == "__main__":
    main()
