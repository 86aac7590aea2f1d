"""What the options of a training refuse, and what follows from them."""

from denoising import cli
from denoising.cli import refuse
from denoising.data import renders
from denoising.files import images, pair_files, results
from denoising.imaging.noise import Camera, noise_of_flag
from denoising.inference import distributed
from denoising.training.methods import NOBODY, SINGLE, default_loss, teachers

FOR_RENDERS = ("joint_bilateral", "unet_n2n")
STAYS = {  # noise that single images do not teach to remove, and why
    ("text", "jpeg", "camera"): "reaches over neighbours",
    ("bernoulli", "impulse"): "is wrong on average",
}


def is_right_on_average(noisetype):
    """Whether the mean of many noisy images is the clean one."""
    return noisetype != "none" and not any(kind in (noisetype or "") for kind in ("text", "impulse", "bernoulli"))


def checked(options):
    """Refuses what cannot work, before the first slow step.

    Returns:
        The options with those filled in that follow from others: noisetype, loss, engine.
    """
    refuse((not (options.data_dir or options.pair_dir), "--data_dir: the folder of training images is needed"))
    method, single = options.method, options.method in SINGLE
    pair_file = bool(options.data_dir) and pair_files.is_pair_file(options.data_dir)
    pairs = pair_file or options.pair_dir is not None
    buffers = bool(options.data_dir) and renders.is_folder(options.data_dir)
    adds_noise = options.noisetype not in (None, "none")
    mixture = options.noisetype if "+" in (options.noisetype or "") else ""
    refuse(
        # Where the images come from.
        (pair_file and single, "--method: a pair file is for noise2noise, one with clean images for supervised"),
        (pair_file and options.pair_dir, "--pair_dir: a pair file has both halves of its pairs"),
        (pair_file and options.translate, "--translate: the patches of a pair file are cut out, not rolled"),
        (pairs and single, f"--pair_dir: {method} learns from single images; --method noise2noise takes pairs"),
        (pairs and adds_noise, "--noisetype: real pairs have their own noise"),
        (pairs and method == "supervised" and not options.data_dir,
         "--data_dir: the noisy images are needed; --pair_dir has their clean ones"),
        (buffers and single, "--method: renders have targets: noise2noise learns from target/, supervised from clean/"),
        (buffers and pairs, "--pair_dir: renders have their targets beside them"),
        (buffers and adds_noise, "--noisetype: renders have their own noise"),
        (buffers and options.arch not in FOR_RENDERS,
         f"--arch: renders come with buffers, nine channels in all: {' and '.join(FOR_RENDERS)} take them"),
        (not buffers and options.arch == "joint_bilateral",
         "--arch: joint_bilateral is for renders; --data_dir has no render/ albedo/ normal/"),
        (options.colour_only and options.arch != "joint_bilateral",
         "--colour_only: it is for renders with --arch joint_bilateral"),
        (buffers and options.n_channel != 3, "--n_channel: renders have 3"),
        *mosaics(options),
        # The method and its noise.
        (options.loss and single and method != "recorrupted2recorrupted", f"--loss: {method} has its own"),
        (method == "recorrupted2recorrupted" and options.loss not in (None, "l2", "psnr"),
         f"--loss: {method} takes l2 and psnr"),
        (options.shrink != 1
         and (pairs or buffers or options.noisetype == "none" or options.noise_protocol == "frozen"),
         "--shrink: it would change the noise of these images; it is for fresh noise that is added (--noisetype)"),
        (single and "mri" in (options.noisetype or ""),
         "--noisetype: mri needs another sampling of the slice as target, or the clean one; --method noise2noise"),
        (options.known_noise and (method != "recorrupted2recorrupted" or options.noisetype != "none"),
         "--known_noise: it is for --method recorrupted2recorrupted with --noisetype none"),
        (method == "noise2noise" and not options.loss and "bernoulli" in mixture,
         f"--loss: which pixels are black is not known in {mixture}, and the mean is too dark; l1 errs least"),
        (options.noisetype == "none" and not (pairs or single or buffers),
         "--noisetype: without noise there is nothing to learn; real pairs go to --pair_dir"),
        (method == "recorrupted2recorrupted" and options.noisetype == "none" and not options.known_noise,
         "--known_noise: recorrupted2recorrupted must know the noise of the images: gauss25, say; auto measures it"),
        (method == "neighbor2neighbor" and options.patchsize % 2,
         f"--patchsize: {options.patchsize} is odd, and the sub-sampler halves it"),
        (method == "distillation" and not options.teacher,
         "--teacher: the weights to learn from are needed, such as models/photo.pdparams"),
        (set(teachers(options)) == {NOBODY}, "--teacher: nothing is learnt from none alone; name weights, too"),
        (options.teacher and method != "distillation", "--teacher: it is for --method distillation"),
        (options.clipped and single and method != "distillation",
         f"--clipped: {method} needs the whole noise; distillation, noise2noise and supervised learn what is cut off"),
        (options.clipped and (pairs or buffers or options.arch == "unet_raw"),
         "--clipped: it is for noise that is added to pictures"),
        (len(teachers(options)) > 1 and not is_right_on_average(options.noisetype),
         "--teacher: which of several is best is told by a second noisy image, whose noise is added and right on "
         f"average, not by {options.noisetype}"),
        # The network and how it is computed.
        (options.norm != "none" and options.arch != "unet_n2n",
         f"--norm: the network {options.arch} has no normalisation; --arch unet_n2n has"),
        (options.careful and options.arch not in ("unet_lite", "unet_deep"),
         f"--careful: the network {options.arch} paints the whole image; --arch unet_lite and unet_deep need not"),
        (options.careful and options.to_static, "--to_static: what --careful learns by has no static graph"),
        (options.to_static and options.engine == "onednn",
         "--to_static: the engine's operators have no static graph; --engine paddle has"),
        (options.amp and options.optimizer == "muon",
         "--optimizer: muon does not know --amp's scaled gradients; use adam with --amp"),
    )  # fmt: skip
    noisetype = options.noisetype or ("none" if pairs or buffers else "gauss25")
    check_noise(options, noisetype)
    if options.parallel and distributed.WORLD_SIZE == 1:
        cli.note("--parallel: one process; python -m paddle.distributed.launch --nproc_per_node N train.py starts N")
    usual = default_loss(method, noisetype)
    if buffers or options.arch == "unet_raw":
        usual = {"joint_bilateral": "tone_mapped", "unet_raw": "sigma"}.get(options.arch, "hdr")
    if single:
        usual = "l2" if method == "recorrupted2recorrupted" else None
    loss = options.loss or usual
    return options.but(noisetype=noisetype, loss=loss, engine="paddle" if options.to_static else options.engine)


def check_given(options, given):
    """Names flags that do nothing, of those that were given: presets and recipes fill in some, too.

    Published commands may stand beside another method, so these are not refused; --clipped for nothing is.
    """
    method = options.method
    elsewhere = method != "neighbor2neighbor" and f"is for neighbor2neighbor, and does nothing with {method}"
    in_epochs = not (options.max_steps or options.max_minutes)
    idle = {
        "gamma": options.lr_schedule == "cosine"
        and "is for --lr_schedule step; with cosine the rate falls smoothly to 0",
        **dict.fromkeys(("Lambda1", "Lambda2", "increase_ratio", "reg_start"), elsewhere),
        "reg_full": elsewhere
        or (in_epochs and "is for a length in steps or minutes; in a run of epochs Lambda rises to the end"),
        "noise_protocol": options.noisetype == "none" and "is for noise that is added, and does nothing without",
        **dict.fromkeys(
            ("val_noisetype", "val_repeats", "val_images"),
            options.val_dirs == "none" and "does nothing with --val_dirs none, where nothing is scored",
        ),
    }
    for name in given:
        if distributed.IS_MAIN and idle.get(name):
            cli.note(f"--{name}: {idle[name]}")
    refuse(
        (options.clipped and options.noisetype == "none" and not _may_be_float(options.data_dir),
         "--clipped: is for noise that is added; what these files hold is cut off at black and white already"),
    )  # fmt: skip


def _may_be_float(folder):
    return any(path.suffix.lower() in results.OWN_FORMAT for path in images.find_images("--data_dir", folder))


def mosaics(options):
    """What --arch unet_raw refuses, which learns from the mosaics of simulated sensors alone; for `cli.refuse`."""
    if options.arch != "unet_raw":
        return [(options.loss == "sigma", "--loss: sigma is for --arch unet_raw, which is told the deviation")]
    noise = noise_of_flag("--noisetype", options.noisetype)
    return [
        (not isinstance(noise, Camera) or options.method != "noise2noise" or options.noise_protocol == "frozen",
         "--arch: unet_raw learns from two shots of a simulated sensor: --method noise2noise --noisetype camera0.4_20"),
        (options.n_channel != 1, "--n_channel: the mosaic that unet_raw denoises has 1"),
        (options.patchsize % 2, f"--patchsize: {options.patchsize} is odd, and a mosaic repeats every two pixels"),
        (options.translate, "--translate: is not for mosaics"),
        (options.val_dirs != "none",
         "--val_dirs: none is needed for unet_raw, which benchmarks/raw_comparison.py scores"),
    ]  # fmt: skip


def check_noise(options, noisetype):
    """Refuses noise that does not exist, or that the method cannot remove, or whose strength nobody knows."""
    noise = noise_of_flag("--noisetype", noisetype)
    to_be_measured = options.known_noise == "auto" and noisetype == "none"
    known_noise = noise_of_flag("--known_noise", None if to_be_measured else options.known_noise)
    noise_of_flag("--val_noisetype", options.val_noisetype)
    unlearnable = options.method in SINGLE and options.method != "distillation"
    for kinds, why in STAYS.items():
        if unlearnable and any(kind in noisetype for kind in kinds):
            cli.note(f"--noisetype: {noisetype} {why}, so {options.method} cannot remove it (docs/noise.md)")
    if options.method != "recorrupted2recorrupted" or to_be_measured:
        return
    flag, noise = ("--known_noise", known_noise) if noisetype == "none" else ("--noisetype", noise)
    drawn_once = noisetype == "none" or options.noise_protocol == "frozen"
    refuse(
        (noise.recorruption_weight is None,
         f"{flag}: {options.method} takes gauss25 or poisson30, of any numbers, or both joined by +, not {noise.name}"),
        (drawn_once and noise.low != noise.high,
         f"{flag}: {options.method} must know the strength: one number, not {noise.name}"),
    )  # fmt: skip
