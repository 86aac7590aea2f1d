"""PSNR against the clock: the preset `lite`, and the network and recipe that it is named after, on the same cores.

    python dataset_tool.py --input_dir cifar --save_dir pairs --pairs 50000 --noise gauss30
    python benchmarks/lite_race.py --pairs pairs --save_dir race --picture docs/lite.png    # ten minutes in all
    python benchmarks/lite_race.py --pairs pairs --save_dir race --minutes 0.2              # a look

Prints a table in Markdown, draws it, and leaves the weights of both. The sides run one after the other, each in a
process of its own; the clock of each stands still while it is scored, on all validation pairs.

Theirs is Noise2Noise Lite (EPFL, 2022) as its authors' code has it: a U-Net of 24 channels and five levels, which share
one convolution on the way down and one pair of them on the way up; ReLU; inputs standardised by channel; each epoch
sees all pairs once, and as many again flipped and turned; Adam at 0.006, halved when the validation has not improved
for two epochs; batches of 100. It is given this project's engine and its loader. Its transposed convolutions are 2x2
here and not 3x3, because the engine has those: that takes a few percent off its time.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's root

import numpy as np
import paddle

import dataset
import train
from arch_unet import DenoisingNetwork, UpsampleCat, conv
from denoising import cli
from denoising.files import pair_files
from denoising.imaging.pixels import from_01, to_01
from denoising.inference import checkpoint, devices
from denoising.inference.denoiser import Denoiser
from denoising.training.methods import build_method
from denoising.training.options import get_parser as get_training_parser
from denoising.training.options import parse_options
from denoising.training.schedule import Schedule
from denoising.training.state import Training

MARKS = (2, 5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 240, 360, 480, 600, 900, 1200, 1800)  # seconds


def get_parser():
    parser = cli.Parser(__doc__)
    add = parser.add_argument
    add("--pairs", required=True, help="folder with train.npz and val.npz of dataset_tool.py --pairs")
    add("--save_dir", required=True, help="where figures, plot and weights go")
    add("--picture", help="the plot (default: SAVE_DIR/lite_race.png)")
    add("--minutes", type=float, default=4.5, help="how long each side trains")
    add("--precision", choices=["fp32", "bf16"], help="of both sides (default: bf16 where the CPU has it)")
    add("--side", choices=["theirs", "ours"], help=argparse.SUPPRESS)
    return parser


# --- Theirs -------------------------------------------------------------------------------------------------


class TheirNetwork(DenoisingNetwork):
    """The U-Net with shared weights."""

    def __init__(self, mean, std, n=24):
        super().__init__(n_channel=3, n_feature=n)
        shape = [1, 3, 1, 1]
        self.register_buffer("mean", paddle.to_tensor(mean.reshape(shape)))
        self.register_buffer("std", paddle.to_tensor(std.reshape(shape)))
        relu = 0.0
        self.first, self.second = conv(3, n, slope=relu), conv(n, n, slope=relu)
        self.down, self.bottom = conv(n, n, slope=relu), conv(n, n, slope=relu)
        self.up_a, self.up_b, self.up_c = UpsampleCat(n, n), UpsampleCat(2 * n, 2 * n), UpsampleCat(2 * n, 2 * n)
        self.deep = paddle.nn.LayerList([conv(2 * n, 2 * n, slope=relu) for _ in range(2)])
        self.shared = paddle.nn.LayerList([conv(3 * n, 2 * n, slope=relu), conv(2 * n, 2 * n, slope=relu)])
        self.head = paddle.nn.LayerList([conv(2 * n + 3, 2 * n, slope=relu), conv(2 * n, 32, slope=relu)])
        self.last = conv(32, 3, slope=relu)
        for up in (self.up_a, self.up_b, self.up_c):
            # Their 3x3 ones at stride 2, by He's rule as PyTorch applies it, halve the variance.
            up.deconv.weight.set_value(up.deconv.weight * 0.5**0.5)

    def forward(self, x):
        return super().forward((x - self.mean) / self.std)

    def body(self, x):
        def through(x, layers):
            for layer in layers:
                x = self.ops.conv(x, layer, 0.0)
            return x

        up, pool = self.ops.upsample_cat, self.ops.pool
        skips = [x, pool(through(x, [self.first, self.second]))]
        for _ in range(4):
            skips.append(pool(through(skips[-1], [self.down])))
        x = through(skips.pop(), [self.bottom])
        x = through(up(x, self.up_a.deconv, skips.pop()), self.deep)
        x = through(up(x, self.up_b.deconv, skips.pop()), self.shared)
        for _ in range(2):
            x = through(up(x, self.up_c.deconv, skips.pop()), self.shared)
        x = through(up(x, self.up_c.deconv, skips.pop()), self.head)
        return self.ops.conv(x, self.last, 0.1)


class TheirPairs:
    """All pairs once upright, and five random fifths of them again, each fifth flipped and turned in one way."""

    def __init__(self, path, seed=23):
        halves, rng = pair_files.read(path, pair_files.TRAINING), np.random.default_rng(seed)
        parts = [[half] for half in halves]
        for _ in range(5):
            chosen = rng.permutation(len(halves[0]))[: len(halves[0]) // 5]
            turns, flips = rng.choice([0, 0, 0, 1, 2, 3]), rng.random(2) > 0.5
            for part, half in zip(parts, halves, strict=True):
                turned = np.rot90(half[chosen], turns, axes=(2, 3))
                part.append(turned[:, :, :: -1 if flips[0] else 1, :: -1 if flips[1] else 1])
        self.halves = [np.concatenate(part) for part in parts]
        sample = self.halves[0].astype(np.float32) / 255
        self.mean, self.std = sample.mean((0, 2, 3)), sample.std((0, 2, 3))

    def __len__(self):
        return len(self.halves[0])

    def batch(self, places):
        chosen = [index for _, index in places]
        return tuple(half[chosen].astype(np.float32) / 255 for half in self.halves)


class Theirs:
    """Their training: `step` makes one step, `denoiser` is what is scored."""

    def __init__(self, options, ops):
        pairs = TheirPairs(os.path.join(options.pairs, "train.npz"))
        paddle.seed(23)
        self.network = TheirNetwork(pairs.mean, pairs.std)
        self.network.ops = ops
        self.plateau = paddle.optimizer.lr.ReduceOnPlateau(0.006, factor=0.5, patience=2)
        self.adam = paddle.optimizer.Adam(self.plateau, parameters=self.network.parameters())
        self.batches = dataset.Batches(pairs, 100, 23)
        self.stream, self.steps = self.batches.starting_at(0), 0
        self.denoiser = Denoiser(self.network)
        self.plan = f"{len(pairs)} pairs and copies an epoch, {self.batches.steps_per_epoch} steps"

    def step(self, seconds):
        noisy, target = map(paddle.to_tensor, next(self.stream))
        loss = paddle.mean((self.network(noisy) - target) ** 2)
        loss.backward()
        self.adam.step()
        self.adam.clear_grad()
        self.steps += 1

    def scored(self, loss):
        """Told the error on the validation at the end of each of their epochs."""
        self.plateau.step(paddle.to_tensor(loss))

    def epoch_ends(self):
        return self.steps % self.batches.steps_per_epoch == 0

    def save(self, path):
        checkpoint.write_state(path, checkpoint.network_state(self.network))


# --- Ours ---------------------------------------------------------------------------------------------------


class Ours:
    """What `train.py --preset lite` does, step by step."""

    def __init__(self, options, ops):
        flags = ["--preset", "lite", "--data_dir", os.path.join(options.pairs, "train.npz")]
        flags += ["--max_minutes", options.minutes, "--precision", options.precision]
        recipe, _ = parse_options(get_training_parser(), flags)
        self.method = build_method(recipe)
        pairs = train.training_images(recipe, self.method)
        self.batches = dataset.Batches(pairs, recipe.batchsize, recipe.seed)
        self.schedule = Schedule(recipe, self.batches.steps_per_epoch)
        self.training = Training(recipe, ops)
        self.stream = self.batches.starting_at(0)
        self.denoiser = Denoiser(self.training.averaged)
        self.plan = f"{len(pairs)} pairs an epoch, {self.batches.steps_per_epoch} steps"

    @property
    def steps(self):
        return self.training.step

    def step(self, seconds):
        rate = self.schedule.learning_rate(self.training.step, seconds)
        self.training.train_on(self.method, next(self.stream), rate, 0.0)

    def epoch_ends(self):
        return False

    def save(self, path):
        self.training.save_weights(path)


# --- The race -----------------------------------------------------------------------------------------------


def errors_of(denoiser, noisy, clean):
    """The mean squared error of each image as 8-bit files have it, of white as 1."""
    errors = []
    for first in range(0, len(noisy), 100):
        part = slice(first, first + 100)
        denoised = from_01(denoiser.run_batch(to_01(noisy[part])), np.uint8)
        errors.append(np.mean((to_01(denoised) - to_01(clean[part])) ** 2, (1, 2, 3), np.float64))
    return np.concatenate(errors)


def mean_psnr(errors):
    """The mean over the images, as val.py and the course have it."""
    return float(np.mean(-10 * np.log10(errors)))


def run_side(options):
    """Trains one side and prints a line of JSON at each mark."""
    ops = devices.prepare(
        argparse.Namespace(device="cpu", gpu_devices=None, engine="auto", precision=options.precision)
    )
    validation = pair_files.read(os.path.join(options.pairs, "val.npz"), pair_files.VALIDATION)
    side = {"theirs": Theirs, "ours": Ours}[options.side](options, ops)
    parameters = sum(parameter.size for parameter in side.denoiser.network.parameters())
    noisy = mean_psnr(np.mean((to_01(validation[0]) - to_01(validation[1])) ** 2, (1, 2, 3), np.float64))
    print(json.dumps({"parameters": parameters, "plan": side.plan, "noisy": noisy}), flush=True)

    end = 60 * options.minutes
    marks = [mark for mark in MARKS if mark < end] + [end]
    seconds = 0.0
    while marks:
        start = time.perf_counter()
        side.step(seconds)
        seconds += time.perf_counter() - start
        if seconds < marks[0] and not side.epoch_ends():
            continue
        errors = errors_of(side.denoiser, *validation)
        if side.epoch_ends():
            side.scored(errors.mean())
        if seconds >= marks[0]:
            found = {"mark": marks.pop(0), "seconds": seconds, "steps": side.steps, "psnr": mean_psnr(errors)}
            print(json.dumps(found), flush=True)
    side.stream.close()
    side.save(os.path.join(options.save_dir, f"{options.side}.pdparams"))


def raced(options, side):
    """The lines of a side, run in a process of its own; the first one tells its size."""
    command = [sys.executable, "-W", "ignore", __file__, "--side", side, "--pairs", options.pairs]
    command += ["--save_dir", options.save_dir, "--minutes", str(options.minutes), "--precision", options.precision]
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("{"):
                lines.append(json.loads(line))
                if "mark" in lines[-1]:
                    cli.note(f"{side}: {lines[-1]['mark']:g} s, {lines[-1]['steps']} steps, {lines[-1]['psnr']:.2f} dB")
    if process.returncode:
        sys.exit(f"{side}: ended with {process.returncode}")
    return lines


def draw(path, found):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for side, colour in (("theirs", "#d9822b"), ("ours", "#2563a8")):
        points = found[side][1:]
        axes.plot([p["seconds"] for p in points], [p["psnr"] for p in points], "o-", label=side, color=colour)
    axes.set(xscale="log", xlabel="seconds of training", ylabel="PSNR, dB")
    axes.axhline(found["ours"][0]["noisy"], color="#6b7280", linestyle=":", label="noisy")
    marks = [p["mark"] for p in found["ours"][1:]]
    # A last mark that is near the one before it would be written over that.
    marks = [mark for mark, after in zip(marks, [*marks[1:], np.inf], strict=True) if after > 1.2 * mark]
    axes.set_xticks(marks, [f"{mark:g}" for mark in marks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    with cli.atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120)


def main(argv=None):
    options = get_parser().parse_args(argv)
    options.precision = options.precision or devices.fastest_precision()
    for name, names in (("train.npz", pair_files.TRAINING), ("val.npz", pair_files.VALIDATION)):
        pair_files.read(os.path.join(options.pairs, name), names)
    os.makedirs(options.save_dir, exist_ok=True)
    if options.side:
        return run_side(options)
    found = {side: raced(options, side) for side in ("theirs", "ours")}

    print(f"noisy: {found['ours'][0]['noisy']:.2f} dB, {options.precision}")
    for side in found:
        print(f"{side}: {found[side][0]['parameters']:,} parameters, {found[side][0]['plan']}")
    print(
        "\n| seconds | theirs: steps | theirs: dB | ours: steps | ours: dB | ours ahead by |\n|---|---|---|---|---|---|"
    )
    for a, b in zip(found["theirs"][1:], found["ours"][1:], strict=True):
        ahead = b["psnr"] - a["psnr"]
        row = f"{a['mark']:g}", a["steps"], f"{a['psnr']:.2f}", b["steps"], f"{b['psnr']:.2f}", f"{ahead:+.2f}"
        print("| " + " | ".join(map(str, row)) + " |")
    cli.write_json(os.path.join(options.save_dir, "lite_race.json"), found)
    draw(options.picture or os.path.join(options.save_dir, "lite_race.png"), found)
    return None


if __name__ == "__main__":
    cli.run(main)
