"""The options of a training: its flags, and which of them may change when a run is gone on with."""

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path

from arch_unet import NETWORKS, NORMS
from denoising import cli
from denoising.cli import UserError, number
from denoising.imaging.noise import list_of_noise
from denoising.inference import checkpoint, devices
from denoising.training import recipe
from denoising.training.checks import check_given, checked
from denoising.training.methods import LOSSES, METHODS
from denoising.training.optimizers import KINDS as OPTIMIZERS
from denoising.training.own_noise import with_known_noise
from denoising.training.state import STATE

# What may change between a run and its continuation; anything else would make it another run.
CHANGEABLE = {
    "n_epoch", "max_steps", "max_minutes", "log_iters", "n_snapshot", "patience", "save_minutes", "workers", "cache_gb",
    "val_repeats", "val_images", "val_dirs", "data_dir", "pair_dir", "plot_stats", "parallel",
    "save_model_path", "log_name", "device", "gpu_devices",
}  # fmt: skip

# Flags that go together.
PRESETS = {
    # Small images, minutes on a CPU: docs/lite.md.
    "lite": {
        "arch": "unet_lite", "n_feature": 48, "method": "noise2noise", "augment": True, "batchsize": 32,
        "optimizer": "muon", "lr": 4e-3, "lr_schedule": "cosine", "warmup_steps": 10, "ema": 0.998,
        "log_name": "lite",
    },
    # Noisy images of one's own; recipe.py adds what depends on them: docs/own_data.md.
    "auto": {
        "noisetype": "none", "augment": True, "optimizer": "muon", "lr_schedule": "cosine", "log_name": "own_images",
    },
}  # fmt: skip


class Options(argparse.Namespace):
    """The options of a training: a value, which nothing changes once it is made."""

    def __init__(self, **values):
        vars(self).update(values)

    def __setattr__(self, name, value):
        raise AttributeError(f"{name}: options do not change; `but` makes others")

    def but(self, **changes):
        """The same options with some changed."""
        return Options(**{**vars(self), **changes})


@dataclass
class Stopped:
    """A run that is gone on with: its folder, and the state that it left there."""

    folder: str
    state: dict


# --- Flags ------------------------------------------------------------------------------------------------------


def get_parser(description=None):
    """The published flags under their published names, and ours."""
    # fmt: off
    parser = cli.Parser(description)
    add = parser.add_argument
    add("--preset", choices=PRESETS,
        help="a set of flags for one purpose, any of which may still be given: lite (docs/lite.md), or auto, which "
        "measures noisy images of one's own and chooses what fits them (docs/own_data.md); auto is meant where "
        "--noisetype none is given and no flag of the schedule")
    add = parser.add_argument_group("data").add_argument
    add("--data_dir", help="folder of training images, searched recursively; or a pair file (.npz, .pkl)")
    add("--pair_dir",
        help="real pairs: a folder with another capture (with --method supervised: the clean image) of each file in "
        "--data_dir, under the same name; without --data_dir, a folder that holds a folder of frames for each scene")
    add("--val_dirs", default="./validation", help="folder of clean validation sets, a pair file, or none")
    add("--train_size", type=number(int, 1), help="train only on this many images, the first by name")
    add("--noisetype",
        help=f"the noise that is added to the images (gauss25 unless there are pairs): {list_of_noise()}")
    add("--val_noisetype", help="the noise that is added for validation (default: that of --noisetype)")
    add("--noise_protocol", default="fresh", choices=["fresh", "frozen"],
        help="fresh: new noise in each epoch, as published; frozen: each image keeps its noise, as real files do")
    add("--patchsize", type=number(int, 2, 8192), default=256,
        help="side of the training patches in pixels; even for neighbor2neighbor")
    add("--augment", action="store_true",
        help="flip and rotate the patches at random; for joint_bilateral also change their exposure and colours")
    add("--translate", type=number(int, 0, 8192), default=0,
        help="roll the patches at random by up to this many pixels; what leaves at one border comes in at the other")
    add("--shrink", type=number(float, 0.25, 16), default=1.0,
        help="cut the patches so many times as large and scale them down, which frees the images of noise and JPEG "
        "artefacts of their own before noise is added; 0.5 enlarges them, so that the sub-images of neighbor2neighbor "
        "look like the images that are denoised later")
    add("--colour_only", type=number(float, 0, 1), default=0.0,
        help="share of the patches of renders, 0..1, that joint_bilateral sees without albedo and normals, so that it "
        "denoises images that have none")
    add("--workers", type=number(int, 1), default=min(os.cpu_count(), 8), help="threads that prepare the batches")
    add("--cache_gb", type=number(float, 0), help="memory for decoded images (default: a quarter of what is free)")
    add = parser.add_argument_group("method").add_argument
    add("--method", default="neighbor2neighbor", choices=METHODS,
        help="the first two learn from single noisy images (the second one better, where the noise is Gaussian or "
        "Poisson and of known strength), distillation from what --teacher makes of them, noise2noise from two noisy "
        "images of each scene, supervised from clean ones")
    add("--teacher", metavar="FILE[,FILE]",
        help="weights that distillation learns from, for a light network of one's own (.pdparams); of several, each "
        "image is shown by the one that knows it best, and none among them leaves it as it is (for clean images)")
    add("--clipped", type=number(float, 0.0, 1.0), default=0.0, metavar="SHARE",
        help="of the patches, whose noise the network sees cut off at black and white, as files cut it off, while what "
        "it learns from is whole: the teacher's input in distillation, the target in noise2noise and supervised")
    add("--known_noise",
        help="the noise that the images have already, for recorrupted2recorrupted with --noisetype none: gauss12 (a "
        "deviation of 12 on the scale of 0..255, whatever the files' depth), poisson500 (500 photons at white), "
        "poisson500+gauss3 (with read-out noise), or auto, which measures it in the images")
    add("--loss", choices=LOSSES,
        help="the loss of noise2noise and supervised: l2 (ends at the mean of all targets), l1 (median), l0 (mode), "
        "robust (mean without outliers), hdr (relative, for renders), psnr (l2 in decibels, so that images with "
        "little noise count as much as others; recorrupted2recorrupted takes it, too), tone_mapped (likewise, of the "
        "pictures of renders), sigma (l2 in units of the noise, for unet_raw); by default robust for impulse noise, l1 "
        "for text, for renders hdr or with joint_bilateral tone_mapped, with unet_raw sigma, else l2")
    add = parser.add_argument_group("model").add_argument
    add("--arch", default="unet", choices=sorted(NETWORKS), help="the network")
    add("--norm", default="none", choices=sorted(NORMS), help="normalisation after the convolutions of unet_n2n")
    add("--careful", action="store_true",
        help="unet_lite and unet_deep say of each pixel, too, which share of it stays as it is: so they change next to "
        "nothing where there is no noise")
    add("--n_feature", type=number(int, 1, 1024), default=48, help="how many features the network has")
    add("--n_channel", type=int, default=3, choices=[1, 3, 4], help="1: grey, 3: RGB, 4: Bayer raw")
    add("--pretrained", help="weights to start from (.pdparams)")
    add = parser.add_argument_group("schedule").add_argument
    add("--n_epoch", type=number(int, 1, 10**9), help="length in epochs (100 unless any length is given)")
    add("--max_steps", type=number(int, 1), help="length in steps; the shortest length counts")
    add("--max_minutes", type=number(float, 0.001),
        help="length in minutes without those of scoring; the shortest length counts")
    add("--batchsize", type=number(int, 1), default=4, help="patches per step and process")
    add("--optimizer", default="adam", choices=OPTIMIZERS,
        help="adam as published, or muon, which needs a fifth of the steps or fewer (use --lr 1e-3)")
    add("--lr", type=number(float, 0), default=3e-4, help="learning rate of Adam; Muon's follows from it")
    add("--lr_schedule", default="step", choices=["step", "cosine"],
        help="step: the rate is multiplied by --gamma at 20, 40, 60 and 80 %% of the run, as published; cosine: it "
        "falls smoothly to zero")
    add("--gamma", type=number(float, 0), default=0.5, help="factor of the step schedule")
    add("--warmup_steps", type=number(int, 0), default=0, help="steps in which the rate rises")
    add("--Lambda1", type=number(float, 0), default=1.0, help="weight of neighbor2neighbor's reconstruction loss")
    add("--Lambda2", type=number(float, 0), default=1.0, help="weight of its regulariser")
    add("--increase_ratio", type=number(float, 0), default=2.0, help="what the regulariser's factor Lambda rises to")
    add("--reg_start", type=number(float, 0, 1), default=0.0,
        help="share of the run, 0..1, after which the regulariser and its pass over the whole patch start")
    add("--reg_full", type=number(float, 0.001, 1), default=1.0,
        help="share of the run, 0..1, after which Lambda has its full value, where the length is given in steps or "
        "minutes; in a run of epochs it rises to the end, as published")
    add("--ema", type=number(float, 0, 0.99999), default=0.999,
        help="decay of the running average of the weights, which is what is scored and saved; 0 for no average")
    add("--clip_grad", type=number(float, 0), default=0.0, help="largest norm of the gradients; 0 for no limit")
    add("--seed", type=number(int, 0, 2**31 - 1), default=0, help="seed of all randomness")
    add = parser.add_argument_group("output").add_argument
    add("--save_model_path", default="./results", help="folder for the runs")
    add("--log_name", default="unet_gauss25_b4e100r02", help="name of this run's folder there")
    add("--log_iters", type=number(int, 1), default=100, help="steps between log lines")
    add("--n_snapshot", type=number(int, 1),
        help="epochs between snapshots, which save and score the weights (default: 1; a tenth of the run where its "
        "length is given in steps or minutes)")
    add("--patience", type=number(int, 1), metavar="N",
        help="stop when N snapshots in a row were no better than the best one (docs/trust.md)")
    add("--val_repeats", type=number(int, 1),
        help="how often each validation set is scored, with other noise each time (default: as published for it)")
    add("--val_images", "--valid_size", type=number(int, 1), help="score only this many images of each set")
    add("--plot_stats", action="store_true", help="accepted and ignored: loss.png and psnr.png are always drawn")
    add("--save_minutes", type=number(float, 0), default=5,
        help="minutes between saved states, from which --resume goes on")
    add("--resume", nargs="?", const="", metavar="RUN_FOLDER",
        help="go on with a run where it stopped (without a folder: the latest run, of --log_name if that is given)")
    add = devices.add_flags(parser).add_argument
    add("--parallel", action="store_true",
        help="accepted and ignored: python -m paddle.distributed.launch --nproc_per_node N train.py ... trains in N "
        "processes")
    add("--amp", action="store_true", help="mixed precision on a GPU")
    add("--to_static", action="store_true", help="run Paddle's own layers as a static graph")
    return parser


# --- Read, for a new run or for one that goes on ----------------------------------------------------------------


def parse_options(parser, argv):
    """Reads and checks the flags of train.py.

    Returns:
        Options, and for --resume the Stopped run, else None.
    """
    given = given_flags(parser, argv)
    if "resume" in given:
        return _of_stopped(parser, given.pop("resume"), given)
    if recipe.is_meant(given, names_of(parser, "schedule")):
        given["preset"] = "auto"
    options = Options(**_with_preset(parser, given))
    if options.preset == "auto":
        options = recipe.with_recipe(options, given)
    else:
        options = with_known_noise(checked(options))
    check_given(options, given)
    return options, None


def _with_preset(parser, given):
    """All options by name: those of the preset where they are not given, and else the defaults."""
    return defaults(parser) | PRESETS.get(given.get("preset"), {}) | given


def _of_stopped(parser, resume, given):
    """The same for --resume: the options of the run that stopped, of which only those in CHANGEABLE may change."""
    options = _with_preset(parser, given)
    # Presets name their runs themselves, so the default name is not that of every run.
    named = "log_name" in given or "preset" in given
    folder = find_run(resume, options["save_model_path"], options["log_name"] if named else None)
    stopped = Stopped(folder, checkpoint.read_state(os.path.join(folder, STATE)))
    saved = saved_options(parser, stopped)
    if given.get("known_noise") == "auto":
        del given["known_noise"]  # the run has what was measured when it began
    for name, value in given.items():
        if name in saved and value != saved[name] and name not in CHANGEABLE:
            raise UserError(f"--{name}: the run was started with {saved[name]}; --resume goes on with that")
    return checked(Options(**{**options, **saved, **given})), stopped


def given_flags(parser, argv):
    """The flags that stand on the command line by name, without those that have their defaults."""
    absent = object()  # argparse leaves alone what the namespace has already
    namespace = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(defaults(parser), absent), resume=absent))
    return {name: value for name, value in vars(namespace).items() if value is not absent}


def defaults(parser):
    """Each option with its default; --help and --resume are no options of a training."""
    names = {action.dest for action in parser._actions} - {"help", "resume"}
    return {name: parser.get_default(name) for name in names}


def names_of(parser, group):
    """The names of the options in a group of --help."""
    actions = next(found for found in parser._action_groups if found.title == group)._group_actions
    return {action.dest for action in actions}


def saved_options(parser, stopped):
    """The options in a state, checked by the parser as if they had been typed."""
    try:
        about = json.loads(stopped.state["@options"])
        saved, where = dict(about["training"]), about["where"]
        step, best = where["step"], where["best_psnr"]
        if type(step) is not int or not 0 <= step < 10**15 or not isinstance(best, float | None):
            raise ValueError
        if type(where.get("waited", 0)) is not int:
            raise ValueError
        if type(where["images"]) is not str or not 0 <= float(where["seconds"]) < 1e12:
            raise ValueError
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        raise UserError(f"--resume: {stopped.folder}/{STATE} is no state of a training") from None
    options = defaults(parser)
    unknown = sorted(set(saved) - set(options))
    if unknown:
        raise UserError(f"--resume: {stopped.folder}/{STATE} has an option that this script has not: {unknown[0]!r}")
    flags = [f"--{name}" if value is True else f"--{name}={value}" for name, value in saved.items()
             if value is not None and value is not False]  # fmt: skip
    checked_by_parser = options | given_flags(parser, flags)
    return {name: checked_by_parser[name] for name in saved}


def find_run(folder, save_model_path, log_name):
    """The folder of the run to resume: the one that is named, or the latest one, of any name where that is None."""
    if folder:
        cli.existing_file("--resume", os.path.join(folder, STATE))
        return folder
    parent = Path(save_model_path, log_name or "")
    states = list(parent.glob(f"*/{STATE}" if log_name is not None else f"*/*/{STATE}"))
    if not states:
        raise UserError(f"--resume: no run to go on with under {parent}")
    return str(max(states, key=lambda state: state.stat().st_mtime).parent)
