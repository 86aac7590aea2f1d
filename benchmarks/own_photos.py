"""What a folder of noisy photographs teaches the weights that ship: methods for correlated noise, minutes equal.

    python benchmarks/own_photos.py --data_dir polyu_photos --pairs PolyU --save_dir own_photos --minutes 2
    python benchmarks/own_photos.py ... --only distant --lr 1e-3

All start from models/photo.pdparams and learn from the noisy files alone; noisy/ and clean/ under --pairs judge.
Minutes are those of one core's work, so that a busy machine changes no result. Prints a table in Markdown; what has
been trained lies in --save_dir, and is not trained again.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import paddle

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's root

from denoising import cli
from denoising.cli import number
from denoising.engine import operators
from denoising.files import images
from denoising.imaging import metrics, trust
from denoising.imaging.noise import parse_noise
from denoising.imaging.noise_analysis import analyse
from denoising.imaging.pixels import to_01
from denoising.inference import checkpoint, devices
from denoising.inference.denoiser import Denoiser
from denoising.training.methods import Neighbor2Neighbor, Regression, draw_picks
from denoising.training.options import Options, defaults
from denoising.training.options import get_parser as training_parser
from denoising.training.state import Training

WARM_UP = 10  # steps
CAMERA = parse_noise("camera0_16")  # as the weights were trained
MORE = 0.2  # how much noise a recorruption adds, in units of the image's own


# --- The contenders: a loss for a batch of patches, N x C x H x W, and the noise levels of their images -------------


def unchanged(training, noisy, levels, rng):
    """The weights that ship."""


def distant(training, noisy, levels, rng, stride=3):
    """Neighbor2Neighbor on every third pixel, where the noise is hardly shared any more."""
    side = noisy.shape[2] // (2 * stride) * 2
    parts = [noisy[:, :, y::stride, x::stride][:, :, :side, :side] for y in range(stride) for x in range(stride)]
    parts = np.concatenate(parts)
    picks = np.stack([draw_picks(rng, side, side) for _ in parts])
    return Neighbor2Neighbor()(training.network, paddle.to_tensor(parts), paddle.to_tensor(picks), ramp=0.5)[0]


def recorrupted(training, noisy, levels, rng, stronger=1.0):
    """Recorrupted-to-Recorrupted with each image's own curve and correlation, each image counting by its noise."""
    hwc = noisy.transpose(0, 2, 3, 1)
    drawn = [level.draw(patch, rng).transpose(2, 0, 1) for level, patch in zip(levels, hwc, strict=True)]
    drawn = np.float32(stronger) * np.stack(drawn)
    denoised1, denoised2 = paddle.split(
        training.network(paddle.to_tensor(np.concatenate([noisy + MORE * drawn, noisy - MORE * drawn]))), 2
    )
    target, drawn = paddle.to_tensor(noisy), paddle.to_tensor(drawn)
    distance = ((denoised1 - target) ** 2 + (denoised2 - target) ** 2).mean(axis=[1, 2, 3]) / 2
    passed = ((denoised1 - denoised2) * drawn).mean(axis=[1, 2, 3]) / MORE
    noise = (drawn**2).mean(axis=[1, 2, 3])
    return ((distance + passed) / (noise + 1e-6)).mean() * 1e-3


def recorrupted_stronger(training, noisy, levels, rng):
    """The same, the noise taken for a quarter stronger than it was measured."""
    return recorrupted(training, noisy, levels, rng, 1.25)


def rephotographed(training, noisy, levels, rng):
    """Noise2Noise on two simulated shots of what the weights that ship make of each photograph."""
    with paddle.no_grad():
        scenes = training.start(paddle.to_tensor(noisy)).numpy().clip(0, 1).transpose(0, 2, 3, 1)
    pairs = [CAMERA.shots(scene, *rng.spawn(2)) for scene in scenes]
    first, second = (paddle.to_tensor(np.stack(shots).transpose(0, 3, 1, 2)) for shots in zip(*pairs, strict=True))
    return Regression("psnr")(training.network, first, second)[0]


CONTENDERS = {f.__name__: f for f in (unchanged, distant, recorrupted, recorrupted_stronger, rephotographed)}


# --- A training -----------------------------------------------------------------------------------------------------


class Photos:
    """Noisy images with their measured noise, of which patches are cut."""

    def __init__(self, folder, patchsize):
        self.images, self.levels, self.patchsize = [], [], patchsize
        for path in cli.progress(images.find_images("--data_dir", folder), unit="image", label="measuring the noise"):
            image = images.read_image(path).pages[0]
            level = trust.level_of(analyse(image), image.shape[2])
            if level is not None:
                self.images.append(image)
                self.levels.append(level)

    def batch(self, count, rng):
        """Patches, N x C x H x W, turned and flipped at random, and the levels of their images."""
        chosen = rng.integers(0, len(self.images), count)
        patches = []
        for image in (self.images[i] for i in chosen):
            top, left = (rng.integers(0, side - self.patchsize + 1) for side in image.shape[:2])
            patch = np.rot90(image[top : top + self.patchsize, left : left + self.patchsize], rng.integers(4))
            patches.append(to_01(patch[:, :: rng.choice((-1, 1))]).transpose(2, 0, 1))
        return np.stack(patches), [self.levels[i] for i in chosen]


def trained(loss_of, photos, options, ops):
    """The network after so many minutes from the weights, and its steps."""
    flags = {"optimizer": "muon", "lr": options.lr, "ema": 0.98}
    training = Training(Options(**{**defaults(training_parser()), **flags}), ops)
    training.start_from(options.model_path)
    training.start, _ = checkpoint.load_network(options.model_path)
    training.start.ops = ops
    rng, start, budget = np.random.default_rng(0), time.process_time(), 60 * options.minutes
    while loss_of is not unchanged and (done := (time.process_time() - start) / budget) < 1:
        loss = loss_of(training, *photos.batch(options.batchsize, rng), rng)
        loss.backward()
        warm_up = min(1.0, (training.step + 1) / WARM_UP)
        training.optimizer.step(options.lr * warm_up * 0.5 * (1 + np.cos(np.pi * done)), training.scaler)
        training.step += 1
        training._average()
    return training.averaged, training.step


def judged(network, ops, pairs):
    """The mean PSNR of the pairs, as predict.py would write them."""
    denoise, found = Denoiser(network, ops), []
    network.eval()
    for name in sorted(os.listdir(pairs / "noisy")):
        clean, noisy = (images.read_image(str(pairs / kind / name)).pages[0] for kind in ("clean", "noisy"))
        found.append(metrics.psnr(clean, denoise(noisy), 255))
    return float(np.mean(found))


def get_parser():
    parser = cli.Parser(__doc__)
    parser.add_argument("--data_dir", required=True, help="noisy photographs")
    parser.add_argument("--pairs", required=True, help="a folder with noisy/ and clean/ under the same names")
    parser.add_argument("--save_dir", required=True, help="where the results are kept")
    parser.add_argument("--model_path", default="models/photo.pdparams", help="the weights to start from")
    parser.add_argument("--minutes", type=number(float, 0.001), default=2, help="of one core, for each contender")
    parser.add_argument("--lr", type=number(float, 0), default=2e-4, help="learning rate")
    parser.add_argument("--batchsize", type=number(int, 1), default=4, help="patches a step")
    parser.add_argument("--patchsize", type=number(int, 32), default=160, help="side of the patches in pixels")
    parser.add_argument(
        "--precision", choices=["fp32", "bf16"], help="precision of all trainings (default: what is fastest)"
    )
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), help="train these alone")
    return parser


def main(argv=None):
    options = get_parser().parse_args(argv)
    options.precision = options.precision or devices.fastest_precision()
    save_dir, pairs = Path(cli.writable_folder("--save_dir", options.save_dir)), Path(options.pairs)
    paddle.set_device("cpu")
    ops, photos = operators.choose("auto", options.precision)[0], None
    print("| from the noisy files alone | steps | PSNR |\n| --- | --- | --- |", flush=True)
    for name in options.only:
        kept = save_dir / f"{name}-{options.minutes:g}-{options.lr:g}.json"
        if not kept.exists():
            photos = photos or Photos(options.data_dir, options.patchsize)
            network, steps = trained(CONTENDERS[name], photos, options, ops)
            cli.write_json(kept, {"steps": steps, "psnr": judged(network, ops, pairs)})
        result = json.loads(kept.read_text(encoding="utf-8"))
        meaning = " ".join(CONTENDERS[name].__doc__.split()).rstrip(".")
        print(f"| {name}: {meaning} | {result['steps']} | {result['psnr']:.2f} |", flush=True)


if __name__ == "__main__":
    cli.run(main)
