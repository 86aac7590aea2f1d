"""Trains a denoiser on pairs of noisy images (Noise2Noise, L2): no clean image is needed, two noisy ones teach as much.

    python from_scratch/make_pairs.py --images IMAGES --out data/pairs
    python from_scratch/train.py --train data/pairs/train.npz --val data/pairs/val.npz --out results/from_scratch
    python from_scratch/train.py --resume results/from_scratch/checkpoint.npz

--train has uint8 arrays noisy1 and noisy2, --val has noisy and clean, N x 3 x H x W. Into --out come weights.npz,
loss.png, pictures.png, and checkpoint.npz, from which a stopped training goes on to the same weights to the bit.
"""

import threads  # isort: skip

import json
import math
import os
import signal
import sys
import time

import numpy as np
from PIL import Image
from tqdm import tqdm

from denoise import denoise
from files import (
    Parser,
    UserError,
    atomic_write,
    load_into,
    new_file,
    not_negative,
    positive,
    read_arrays,
    read_images,
    run,
    write_arrays,
)  # fmt: skip
from layers import mse
from make_pairs import psnr
from optim import Adam
from tensor import Tensor, gradients
from unet import UNet

SHARD = 4  # images that a thread takes at a time: what they need fits into its cache
WARMUP = 200  # steps


def get_parser():
    """The flags."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--train", default="data/pairs/train.npz", help="training pairs (default: %(default)s)")
    add("--val", default="data/pairs/val.npz", help="validation images (default: %(default)s)")
    add("--out", default="results/from_scratch", help="folder for results (default: %(default)s)")
    add("--epochs", type=positive, default=3, help="passes over all pairs (default: %(default)s)")
    add("--batch", type=positive, default=16, help="pairs in a step (default: %(default)s)")
    add("--features", type=positive, default=24, help="width of the network (default: %(default)s)")
    add("--lr", type=not_negative, default=3e-3, help="highest learning rate (default: %(default)s)")
    add("--seed", type=positive, default=1, help="seed of the weights and of the order (default: %(default)s)")
    add("--val_every", type=positive, default=1000, help="steps from one score to the next (default: %(default)s)")
    add("--overwrite", action="store_true", help="start anew where a training has been")
    add("--resume", metavar="CHECKPOINT", help="go on with a stopped training, with its flags")
    return parser


class Training:
    """A network, its optimiser, its images, and how far it has come."""

    def __init__(self, options, pairs, val):
        self.options, self.pairs, self.val = options, pairs, val
        self.network = UNet(options.features, seed=options.seed)
        self.weights = self.network.parameters()
        # With the usual 0.999, a rare large gradient makes steps of several times the rate, and spoils a training.
        self.optimizer = Adam(list(self.weights.values()), options.lr, beta2=0.99)
        self.steps_per_epoch = -(-len(pairs[0]) // options.batch)
        self.total = options.epochs * self.steps_per_epoch
        self.step, self.seconds = np.zeros((), np.int64), np.zeros(())
        self.losses = np.zeros(self.total, np.float32)  # of each step
        self.scores = np.zeros(self.total, np.float32)  # PSNR after a step, 0 where it was not measured

    def state(self):
        """All that changes, as tensors by name; they share their memory with the training."""
        state = {"step": self.step, "seconds": self.seconds, "losses": self.losses, "scores": self.scores}
        state |= {f"optimizer.{name}": array for name, array in self.optimizer.state().items()}
        return self.weights | {f"training.{name}": Tensor(array) for name, array in state.items()}

    def take_step(self):
        """Learning rate, batch, its shards in parallel, the sum of their gradients."""
        step, options = int(self.step), self.options
        self.optimizer.lr = options.lr * rate(step, self.total)
        # Order and flips follow from the seed and the step alone, so that nothing random has to be saved.
        epoch, place = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng([options.seed, 0, epoch]).permutation(len(self.pairs[0]))
        chosen = np.sort(order[place * options.batch : (place + 1) * options.batch])
        inputs, targets = augment(*(half[chosen] for half in self.pairs), [options.seed, 1, step])
        shards = [np.s_[first : first + SHARD] for first in range(0, len(chosen), SHARD)]
        parts = list(threads.pool.map(lambda s: self.differentiate(inputs[s], targets[s], len(chosen)), shards))
        # They are added in the order of the shards, whichever thread was first.
        self.losses[step] = sum(loss for loss, _ in parts)
        if not np.isfinite(self.losses[step]):
            raise UserError(f"--lr: the loss of step {step} is no finite number; a smaller rate may help")
        self.optimizer.step([sum(shares) for shares in zip(*(share for _, share in parts), strict=True)])
        self.step += 1

    def differentiate(self, inputs, targets, batch):
        """What some images of the batch add to its loss and to the gradients."""
        loss = mse(self.network(as_tensor(inputs)), as_tensor(targets)) * (len(inputs) / batch)
        return float(loss.data), gradients(loss, self.optimizer.weights)

    def save(self, path):
        arrays = {name: tensor.data for name, tensor in self.state().items()}
        write_arrays(path, arrays | {"options": np.array(json.dumps(vars(self.options)))})


def as_tensor(image_255):
    """uint8 to values around zero."""
    return Tensor(image_255.astype(np.float32) / 255 - 0.5)


def rate(step, total):
    """Of the highest learning rate: rises for some steps, then falls along a cosine."""
    return min(1, (step + 1) / min(WARMUP, total / 10)) * 0.5 * (1 + math.cos(math.pi * step / total))


def augment(first, second, seed):
    """Mirrors the batch or not, and lets half of the pairs change roles: either of a pair can teach the other."""
    rng = np.random.default_rng(seed)
    swapped = (rng.random(len(first)) < 0.5)[:, None, None, None]
    first, second = np.where(swapped, second, first), np.where(swapped, first, second)
    rows, columns = (np.s_[:: int(way)] for way in rng.choice([-1, 1], 2))
    return first[:, rows, columns], second[:, rows, columns]


def train(training, checkpoint):
    """Steps, scores, checkpoints, until the end (True) or until somebody stops it (False)."""
    stopped = []  # between two steps, so that a step is done or not
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.append(True))
    training.save(checkpoint)
    interval = 0.2 if sys.stderr.isatty() else 30
    bar = tqdm(total=training.total, initial=int(training.step), unit="step", mininterval=interval, dynamic_ncols=True)
    with bar:
        while training.step < training.total and not stopped:
            started = time.perf_counter()
            training.take_step()
            step = int(training.step)
            if step % training.options.val_every == 0 or step == training.total:
                noisy, clean = training.val
                training.scores[step - 1] = psnr(denoise(training.network, noisy), clean)
            training.seconds += time.perf_counter() - started
            bar.update()
            if training.scores[step - 1]:
                loss = training.losses[max(0, step - training.options.val_every) : step].mean()
                score, minutes = training.scores[step - 1], training.seconds / 60
                tqdm.write(f"step {step}  loss {loss:.5f}  {score:.2f} dB  {minutes:.1f} minutes", file=sys.stdout)
                sys.stdout.flush()
                training.save(checkpoint)
    training.save(checkpoint)
    return training.step == training.total


def plot(training, noisy_db, path):
    """The loss and the PSNR over the steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    width = max(1, training.total // 200)
    means = training.losses[: training.total // width * width].reshape(-1, width).mean(axis=1)
    left.semilogy((np.arange(len(means)) + 0.5) * width, means)
    left.set(xlabel="step", ylabel="loss (L2 between the two noisy images)")
    steps = np.flatnonzero(training.scores)
    right.plot(steps + 1, training.scores[steps], marker=".")
    right.axhline(noisy_db, linestyle=":", color="grey")
    right.text(0, noisy_db, " noisy", va="bottom", color="grey")
    right.set(xlabel="step", ylabel="PSNR of the validation images, dB")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110)
    pyplot.close(figure)


def draw_pictures(training, path, count=10, scale=3):
    """Some validation images: noisy, denoised, clean."""
    noisy, clean = (images[:: max(1, len(images) // count)][:count] for images in training.val)
    rows = [np.hstack(list(images)) for images in (noisy, denoise(training.network, noisy), clean)]
    with atomic_write(path) as temporary:
        Image.fromarray(np.vstack(rows).repeat(scale, axis=0).repeat(scale, axis=1)).save(temporary, optimize=True)


def read_pairs(path, multiple):
    """The training pairs, cut to a size that the network's poolings divide."""
    pairs = read_images(path, ["noisy1", "noisy2"])
    height, width = (length // multiple * multiple for length in pairs[0].shape[1:3])
    if min(height, width) == 0:
        raise UserError(f"--train: images of {path} must be {multiple} pixels or more a side")
    if (height, width) != pairs[0].shape[1:3]:
        print(f"--train: {width}x{height} pixels of each image are used, multiples of {multiple}", file=sys.stderr)
    return [half[:, :height, :width] for half in pairs]


def read_options(parser, path):
    """The options and the arrays of a checkpoint."""
    arrays = read_arrays(path)
    try:
        options = json.loads(str(arrays.pop("options")))
        flags = [f"--{name}={value}" for name, value in options.items()]
    except (KeyError, ValueError, AttributeError):
        raise UserError(f"--resume: {path} is no checkpoint of this script") from None
    return parser.parse_args(flags), arrays


def main(argv=None):
    """Reads, trains, writes."""
    parser = get_parser()
    options, resumed = parser.parse_args(argv), {}
    if options.resume:
        path = options.resume
        if vars(options) != vars(parser.parse_args([f"--resume={path}"])):
            raise UserError("--resume: takes all other flags from the checkpoint; give it alone")
        options, resumed = read_options(parser, path)
    checkpoint = os.path.join(options.out, "checkpoint.npz")
    if not resumed:
        new_file("--out", checkpoint, options.overwrite)
    del options.overwrite, options.resume

    training = Training(options, read_pairs(options.train, UNet.multiple), read_images(options.val, ["noisy", "clean"]))
    if resumed:
        load_into(training.state(), resumed, path)
    noisy_db = psnr(*training.val)
    print(
        f"{len(training.pairs[0])} pairs, {training.total} steps of {options.batch}, {threads.CORES} threads; "
        f"{sum(weight.data.size for weight in training.weights.values())} weights; "
        f"{len(training.val[0])} validation images, noisy {noisy_db:.2f} dB",
        flush=True,
    )
    if not train(training, checkpoint):
        print(f"stopped; python from_scratch/train.py --resume {checkpoint} goes on", file=sys.stderr)
        return 130
    weights = os.path.join(options.out, "weights.npz")
    write_arrays(weights, {name: tensor.data for name, tensor in training.weights.items()})
    plot(training, noisy_db, os.path.join(options.out, "loss.png"))
    draw_pictures(training, os.path.join(options.out, "pictures.png"))
    score, minutes = training.scores[-1], training.seconds / 60
    print(f"{weights}: {score:.2f} dB (noisy {noisy_db:.2f} dB) after {minutes:.1f} minutes")
    return 0


if __name__ == "__main__":
    run(main)
