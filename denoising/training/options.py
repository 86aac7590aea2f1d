"""The options of a training: its flags, what they refuse, and which of them a continuation may change."""

import json
import os

from arch_unet import NETWORKS, NORMS
from denoising import cli
from denoising.cli import UserError, number
from denoising.data import renders
from denoising.files import pair_files
from denoising.imaging.noise import list_of_noise, parse_noise
from denoising.inference import checkpoint, devices, distributed
from denoising.training.methods import LOSSES, METHODS, SINGLE, default_loss
from denoising.training.optimizers import KINDS as OPTIMIZERS
from denoising.training.state import STATE

# What may change between a run and its continuation; anything else would make it another run.
CHANGEABLE = {
    "n_epoch", "max_steps", "max_minutes", "log_iters", "n_snapshot", "save_minutes", "workers", "cache_gb",
    "val_repeats", "val_images", "val_dirs", "data_dir", "pair_dir", "plot_stats", "resume",
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
}  # fmt: skip


def get_parser(description=None):
    """The published flags under their published names, and ours."""
    parser = cli.Parser(description)
    parser.add_argument("--preset", choices=PRESETS, help="flags that go together, each of which may still be given")
    data = parser.add_argument_group("data")
    data.add_argument("--data_dir", help="folder of training images, searched recursively; or a pair file (.npz, .pkl)")
    data.add_argument(
        "--pair_dir",
        help="real pairs: the other capture (with --method supervised the clean image) of each file in --data_dir, "
        "by its name; without --data_dir, a folder for each scene with two frames or more",
    )
    data.add_argument(
        "--val_dirs", default="./validation", help="folder of clean validation sets, a pair file, or none"
    )
    data.add_argument("--train_size", type=number(int, 1), help="train on the first so many images only")
    data.add_argument("--noisetype", help=f"gauss25 unless there are pairs; {list_of_noise()}")
    data.add_argument("--val_noisetype", help="noise of the validation; as --noisetype unless given")
    data.add_argument(
        "--noise_protocol",
        default="fresh",
        choices=["fresh", "frozen"],
        help="new noise in each epoch, as published; or one realisation per image, as real files have",
    )
    data.add_argument(
        "--patchsize",
        type=number(int, 2, 8192),
        default=256,
        help="side of the training patches; even for neighbor2neighbor",
    )
    data.add_argument("--augment", action="store_true", help="flip and rotate the patches")
    data.add_argument(
        "--translate",
        type=number(int, 0, 8192),
        default=0,
        help="roll the patches by up to so many pixels: what leaves at one border comes in at the other",
    )
    data.add_argument("--workers", type=number(int, 1), default=min(os.cpu_count(), 8), help="loader threads")
    data.add_argument("--cache_gb", type=number(float, 0), help="memory for decoded images; a quarter of the free one")
    method = parser.add_argument_group("method")
    method.add_argument(
        "--method",
        default="neighbor2neighbor",
        choices=METHODS,
        help="the two first learn from single noisy images, the second one better, if the noise is Gaussian or Poisson "
        "and its strength known; then from two noisy ones of each scene; with clean targets",
    )
    method.add_argument(
        "--known_noise",
        help="what is in the images, for recorrupted2recorrupted with --noisetype none: gauss12 (of 255, whatever the "
        "files' depth), poisson500 (photons at white)",
    )
    method.add_argument(
        "--loss",
        choices=LOSSES,
        help="of the last two methods: mean, median, mode (annealed), mean without outliers, or relative, for renders; "
        "unless given robust for impulse, l1 for text, else l2",
    )
    model = parser.add_argument_group("model")
    model.add_argument("--arch", default="unet", choices=sorted(NETWORKS), help="the network")
    model.add_argument(
        "--norm", default="none", choices=sorted(NORMS), help="normalisation after the convolutions of unet_n2n"
    )
    model.add_argument("--n_feature", type=number(int, 1, 1024), default=48, help="its width")
    model.add_argument("--n_channel", type=int, default=3, choices=[1, 3, 4], help="1 grey, 3 RGB, 4 Bayer raw")
    model.add_argument("--pretrained", help="start from these .pdparams weights")
    plan = parser.add_argument_group("schedule")
    plan.add_argument("--n_epoch", type=number(int, 1, 10**9), help="length in epochs; 100 if no length is given")
    plan.add_argument("--max_steps", type=number(int, 1), help="length in steps, if that is shorter")
    plan.add_argument(
        "--max_minutes", type=number(float, 0.001), help="length in minutes, scoring not counted, if shorter"
    )
    plan.add_argument("--batchsize", type=number(int, 1), default=4, help="patches per step and process")
    plan.add_argument(
        "--optimizer",
        default="adam",
        choices=OPTIMIZERS,
        help="adam as published, or muon, which needs a fifth of the steps (with --lr 1e-3)",
    )
    plan.add_argument("--lr", type=number(float, 0), default=3e-4, help="Adam's learning rate")
    plan.add_argument(
        "--lr_schedule",
        default="step",
        choices=["step", "cosine"],
        help="times --gamma at 20, 40, 60 and 80 %% as published, or a cosine to zero",
    )
    plan.add_argument("--gamma", type=number(float, 0), default=0.5, help="factor of the step schedule")
    plan.add_argument("--warmup_steps", type=number(int, 0), default=0, help="steps of linear warm-up")
    plan.add_argument(
        "--Lambda1", type=number(float, 0), default=1.0, help="weight of neighbor2neighbor's reconstruction"
    )
    plan.add_argument("--Lambda2", type=number(float, 0), default=1.0, help="weight of neighbor2neighbor's regulariser")
    plan.add_argument("--increase_ratio", type=number(float, 0), default=2.0, help="what Lambda rises to")
    plan.add_argument(
        "--reg_start",
        type=number(float, 0, 1),
        default=0.0,
        help="share of the run before the regulariser, and its pass over the full image, start",
    )
    plan.add_argument(
        "--ema",
        type=number(float, 0, 0.99999),
        default=0.999,
        help="decay of the averaged weights, which are what is scored and saved; 0: none",
    )
    plan.add_argument("--clip_grad", type=number(float, 0), default=0.0, help="largest gradient norm; 0: unlimited")
    plan.add_argument("--seed", type=number(int, 0, 2**31 - 1), default=0, help="of all randomness")
    output = parser.add_argument_group("output")
    output.add_argument("--save_model_path", default="./results", help="where runs are written")
    output.add_argument("--log_name", default="unet_gauss25_b4e100r02", help="name of the run's folder")
    output.add_argument("--log_iters", type=number(int, 1), default=100, help="steps between log lines")
    output.add_argument(
        "--n_snapshot",
        type=number(int, 1),
        help="epochs between snapshots, 1 unless given; with another length, each tenth of it",
    )
    output.add_argument("--val_repeats", type=number(int, 1), help="repeats per validation set, instead of its own")
    output.add_argument(
        "--val_images", "--valid_size", type=number(int, 1), help="score only the first so many images of each set"
    )
    output.add_argument(
        "--plot_stats", action="store_true", help="as published; loss.png and psnr.png are always drawn"
    )
    output.add_argument("--save_minutes", type=number(float, 0), default=5, help="minutes between saved states")
    output.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="RUN_FOLDER",
        help="go on with a run; without a folder, with the latest of --log_name",
    )
    device = devices.add_flags(parser)
    device.add_argument("--parallel", action="store_true", help="as published; see paddle.distributed.launch")
    device.add_argument("--amp", action="store_true", help="mixed precision, on a GPU")
    device.add_argument("--to_static", action="store_true", help="run Paddle's own layers as a static graph")
    return parser  # fmt: skip


def check_options(options):
    """Refuses what cannot work, before the first slow step; fills in what follows from other options."""
    if not (options.data_dir or options.pair_dir):
        raise UserError("--data_dir: the folder of training images is needed")
    pair_file = bool(options.data_dir) and pair_files.is_pair_file(options.data_dir)
    pairs, single = pair_file or options.pair_dir is not None, options.method in SINGLE
    buffers = bool(options.data_dir) and renders.is_folder(options.data_dir)
    refusals = {
        "--method: a pair file is learnt from by noise2noise, one with clean images by supervised":
            pair_file and single,
        "--pair_dir: a pair file has both halves of its pairs": pair_file and options.pair_dir,
        f"--pair_dir: {options.method} learns from single images; --method noise2noise takes pairs": pairs and single,
        "--noisetype: real pairs have their own noise": pairs and options.noisetype not in (None, "none"),
        "--method: renders have targets: noise2noise learns from target/, supervised from clean/": buffers and single,
        "--pair_dir: renders have their targets beside them": buffers and pairs,
        "--noisetype: renders have their own noise": buffers and options.noisetype not in (None, "none"),
        "--arch: renders come with buffers, nine channels in all: unet_n2n takes them":
            buffers and options.arch != "unet_n2n",
        "--n_channel: renders have 3": buffers and options.n_channel != 3,
        "--data_dir: the noisy images are needed, --pair_dir has their clean ones":
            pairs and options.method == "supervised" and not options.data_dir,
        f"--loss: {options.method} has its own": options.loss and single,
        "--noisetype: mri needs another sampling of the slice as target, or the clean one; --method noise2noise":
            single and "mri" in (options.noisetype or ""),
        "--known_noise: it is for --method recorrupted2recorrupted with --noisetype none":
            options.known_noise and (options.method != "recorrupted2recorrupted" or options.noisetype != "none"),
        "--noisetype: without noise there is nothing to learn; real pairs go to --pair_dir":
            options.noisetype == "none" and not (pairs or single or buffers),
    }  # fmt: skip
    for message, refused in refusals.items():
        if refused:
            raise UserError(message)
    options.noisetype = options.noisetype or ("none" if pairs or buffers else "gauss25")
    for flag in ("noisetype", "known_noise", "val_noisetype"):
        try:
            parse_noise(getattr(options, flag) or "none")
        except ValueError as error:
            raise UserError(f"--{flag}: {error}") from None
    if options.method == "recorrupted2recorrupted":
        check_known_noise(options)
    if not single:
        options.loss = options.loss or ("hdr" if buffers else default_loss(options.method, options.noisetype))
    if single and any(kind in options.noisetype for kind in ("text", "jpeg")):
        cli.note(f"--noisetype: {options.noisetype} reaches over neighbours; only --method noise2noise removes it")
    if options.method == "neighbor2neighbor" and options.patchsize % 2:
        raise UserError(f"--patchsize: {options.patchsize} is odd, the sub-sampler halves it")
    if options.norm != "none" and options.arch != "unet_n2n":
        raise UserError(f"--norm: the network {options.arch} has no normalisation; --arch unet_n2n has")
    if options.to_static:
        if options.engine == "onednn":
            raise UserError("--to_static: the engine's operators have no static graph; --engine paddle has")
        options.engine = "paddle"
    if options.parallel and distributed.WORLD_SIZE == 1:
        cli.note("--parallel: one process; python -m paddle.distributed.launch --nproc_per_node N train.py starts N")


def check_known_noise(options):
    """Refuses noise that Recorrupted-to-Recorrupted cannot remove, or whose strength nobody knows."""
    source = "known_noise" if options.noisetype == "none" else "noisetype"
    name = getattr(options, source) or "none"
    noise = parse_noise(name)
    if noise.recorruption_weight is None:
        raise UserError(f"--{source}: {options.method} takes gauss25 or poisson30, of any numbers, not {name}")
    if noise.low != noise.high and (options.noisetype == "none" or options.noise_protocol == "frozen"):
        raise UserError(f"--{source}: {options.method} must know the strength: one number, not {name}")


# --- Read, for a new run or for one that goes on ----------------------------------------------------------------


def parse_options(parser, argv):
    """Reads the flags; with --resume the options of the run, of which only those in CHANGEABLE may change."""
    options = parser.parse_args(argv)
    if options.preset:
        parser.set_defaults(**PRESETS[options.preset])
        options = parser.parse_args(argv)
    if options.resume is None:
        options.run_folder, options.state = None, None
        return options
    options.run_folder = find_run(options)
    options.state = checkpoint.read_state(os.path.join(options.run_folder, STATE))
    saved = saved_options(parser, options)
    # A namespace that holds marks tells which flags were given.
    mark = object()
    given = parser.parse_args(argv, type(options)(**dict.fromkeys(saved, mark)))
    for name, value in saved.items():
        if getattr(given, name) is mark:
            setattr(options, name, value)
        elif getattr(given, name) != value and name not in CHANGEABLE:
            raise UserError(f"--{name}: the run was started with {value}; --resume goes on with that")
    return options


def saved_options(parser, options):
    """The options in a state, checked by the parser as if they had been typed."""
    try:
        about = json.loads(options.state["@options"])
        saved, where = dict(about["training"]), about["where"]
        flags = [f"--{name}" if value is True else f"--{name}={value}" for name, value in saved.items()
                 if value is not None and value is not False]  # fmt: skip
        step, best = where["step"], where["best_psnr"]
        if type(step) is not int or step < 0 or not isinstance(best, float | None):
            raise ValueError
        if type(where["images"]) is not str or not 0 <= float(where["seconds"]) < 1e12:
            raise ValueError
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        raise UserError(f"--resume: {options.run_folder}/{STATE} is no state of a training") from None
    checked = vars(parser.parse_args(flags))
    return {name: checked[name] for name in saved if name in checked}


def find_run(options):
    """The folder of the run to resume."""
    if options.resume:
        cli.existing_file("--resume", os.path.join(options.resume, STATE))
        return options.resume
    parent = os.path.join(options.save_model_path, options.log_name)
    runs = [entry.path for entry in os.scandir(parent)] if os.path.isdir(parent) else []
    runs = [run for run in runs if os.path.isfile(os.path.join(run, STATE))]
    if not runs:
        raise UserError(f"--resume: no run to go on with under {parent}")
    return max(runs, key=lambda run: os.path.getmtime(os.path.join(run, STATE)))
