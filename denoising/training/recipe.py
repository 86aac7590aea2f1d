"""What `train.py --data_dir my_images --noisetype none` does without any other flag: the recipe of --preset auto.

The noise is measured, and from it follow the method, the weights to start from, the patches and the minutes. A run
that starts near its goal takes minutes; one that starts from nothing takes an hour.
"""

import contextlib
import dataclasses
from pathlib import Path

import numpy as np
import paddle

from denoising import cli
from denoising.cli import UserError
from denoising.data import renders
from denoising.data.samples import evenly
from denoising.files import images, pair_files
from denoising.imaging import noise_traces
from denoising.imaging.noise import parse_noise
from denoising.imaging.pixels import is_grey, span_of
from denoising.inference import auto, devices, distributed
from denoising.training.checks import checked
from denoising.training.methods import SINGLE
from denoising.training.own_noise import measure_folder, with_known_noise

PATCH = 192  # pixels a side: smaller patches leave too few at the deepest level (docs/training.md)
FROM_WEIGHTS = {"max_minutes": 6.0, "lr": 5e-4, "warmup_steps": 50, "ema": 0.99}
FROM_NOTHING = {"max_minutes": 60.0, "lr": 1e-3, "warmup_steps": 200}
NARROW = 0.1  # of the range: counts of 12 bits in files of 16 ended 20 dB below the noisy images
LOOKED_AT = 9  # images, to see whether there are colours
LENGTHS = {"n_epoch", "max_steps", "max_minutes"}
ALL_THE_SAME = "--method neighbor2neighbor trains all the same"
INSIST = "a flag beside --preset auto changes that one; --n_epoch 100 instead of it trains as published"


def is_meant(given, schedule):
    """Whether a command line means --preset auto: noisy images of one's own, and no flag of the schedule."""
    if "preset" in given or given.get("noisetype") != "none" or not given.get("data_dir") or given.get("pair_dir"):
        return False
    if given.get("method", SINGLE[0]) not in SINGLE or schedule & set(given):
        return False
    return not (pair_files.is_pair_file(given["data_dir"]) or renders.is_folder(given["data_dir"]))


def with_recipe(options, given):
    """The options of --preset auto with what follows from the images; what has been given stays."""
    cli.refuse(
        (options.noisetype != "none", "--preset: auto is for images that are noisy already (--noisetype none)"),
        (options.method not in SINGLE or options.pair_dir, "--preset: auto learns from single images, without pairs"),
    )
    if options.method == "recorrupted2recorrupted" and not options.known_noise:
        options = options.but(known_noise="auto")
    options = checked(options)
    if "n_channel" not in given:
        options = options.but(n_channel=channels_of(options.data_dir))
    found = measure_folder("--data_dir", options.data_dir, options.n_channel, options.train_size)
    options = with_known_noise(options, found)
    instead = f"predict.py --image_path {cli.quoted(options.data_dir)}"
    # None of the weights that ship takes a mosaic that is no raw file.
    as_they_are = "" if options.n_channel == 4 else f"{instead} takes them as they are; "
    cli.refuse(
        ("method" not in given and found.kind == "none", f"--data_dir: {found.describe()}; {ALL_THE_SAME}"),
        ("method" not in given and found.kind == "correlated",
         f"--data_dir: {found.describe()}; nothing that was tried on such files alone improved on "
         f"the weights that ship: {instead} takes those that fit; {ALL_THE_SAME}"),
        ("method" not in given and found.width < NARROW,
         f"--data_dir: the images of {options.data_dir} fill {found.width:.2g} of the range from black to white, and "
         "in such dark ones networks learn to make them worse: multiply the values first; "
         f"{as_they_are}{ALL_THE_SAME}"),
    )  # fmt: skip
    method = given.get("method") or best_method(found)
    recipe = {"method": method, "batchsize": 4, "reg_start": 0.3}
    if method == "recorrupted2recorrupted":
        recipe |= {"known_noise": options.known_noise or found.known_noise, "batchsize": 2}  # two whole patches a step
    # A few small images are not to make all patches small. Of images below 32 pixels the whole is taken.
    side = found.usual_side
    recipe["patchsize"] = min(PATCH, side // 32 * 32 or max(side // 2 * 2, 2))
    start = options.pretrained or nearest_weights(found, options)
    recipe |= {"pretrained": start, **(FROM_WEIGHTS if start else FROM_NOTHING)}
    if LENGTHS & set(given):
        del recipe["max_minutes"]
    if given.get("engine") != "paddle" and not options.to_static and not paddle.device.is_compiled_with_cuda():
        recipe["precision"] = devices.fastest_precision()
    options = options.but(**{name: value for name, value in recipe.items() if name not in given})
    if distributed.IS_MAIN:
        cli.note(f"--preset auto: {found.describe()}")
        cli.note(f"--preset auto: {in_words(options)}; {INSIST}")
    return options


def channels_of(folder):
    """The --n_channel for the images of a folder, by some of them: 3 if one has colours, 4 if all are mosaics."""
    found = set()
    for image in _some_images(folder):
        mosaic = image.shape[2] == 1 and noise_traces.is_mosaic(image)
        found.add(4 if mosaic else 1 if is_grey(image) else 3)
    return 3 if 3 in found or not found else min(found)


def warn_of_narrow(folder):
    """Says where images fill so little of their range that a training is nearly in vain, whatever its method."""
    widths = [high - low for low, high in map(span_of, _some_images(folder))]
    if widths and np.median(widths) < NARROW and distributed.IS_MAIN:
        cli.note(
            f"--data_dir: the images of {folder} fill {np.median(widths):.2g} of the range from black to white; "
            "networks hardly learn from such dark ones: multiply the values first"
        )


def _some_images(folder):
    """The first pages of LOOKED_AT images of a folder, as far as they can be read."""
    paths = images.find_images("--data_dir", folder)
    for i in evenly(len(paths), LOOKED_AT):
        with contextlib.suppress(UserError):
            yield images.read_image(paths[i]).pages[0]


def best_method(found):
    """The method that learns best from images of this noise."""
    return "recorrupted2recorrupted" if found.can_be_told else "neighbor2neighbor"


def in_words(options):
    """What the recipe chose, in one line."""
    start = f"from {Path(options.pretrained).name}" if options.pretrained else "from nothing"
    length = f"{options.max_minutes:g} minutes" if options.max_minutes else "for the length that was given"
    colours = {1: "grey", 3: "colour", 4: "Bayer"}[options.n_channel]
    return (
        f"{options.method}, {colours}, {start}, {length}, patches of {options.patchsize}, {options.precision}, "
        f"{options.optimizer}"
    )


def nearest_weights(found, options):
    """The path of the weights that ship and are for noise that comes nearest; None where none fit the network."""
    try:
        shelf = auto.Shelf(auto.shipped_weights("--pretrained"))
    except UserError:
        return None
    able = []
    for weights in shelf.weights.values():
        own = shelf.network(weights.name).options
        same = own["arch"] == options.arch and own["n_feature"] == options.n_feature and own.get("n_head") in (None, 96)
        same = same and (options.careful or not own.get("careful"))
        # Weights for colours are a start for grey images too.
        if same and (weights.n_channel == options.n_channel or (weights.n_channel, options.n_channel) == (3, 1)):
            able.append(weights)
    if not found.analyses:
        return next((str(weights.path) for weights in able if weights.noise.low < weights.noise.high), None)
    counted = parse_noise(found.known_noise or "none").low if found.kind == "poisson" else 0.0
    usual = dataclasses.replace(found.analyses[0], kind=found.kind, sigma=found.sigma, peak=counted)
    taken = auto.fitting(able, usual, options.n_channel)
    return str(taken.path) if taken else None
