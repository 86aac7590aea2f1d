r"""Trains a denoiser from single noisy images (Neighbor2Neighbor), noisy pairs (Noise2Noise), or clean targets.

Examples:
  # The published training: ImageNet validation images, Gaussian noise of 25, 100 epochs.
  python -u train.py --data_dir=./Imagenet_val --val_dirs=./validation --noisetype=gauss25 \
      --save_model_path=./results --log_name=unet_gauss25_b4e100r02 --increase_ratio=2

  # Your own noisy images: their noise is measured, and the recipe follows from it (docs/own_data.md).
  python train.py --data_dir=my_noisy_images --noisetype=none

  # The same from nothing, for twenty minutes.
  python train.py --data_dir=my_noisy_images --noisetype=none --max_minutes=20 --optimizer=muon --lr=1e-3 \
      --lr_schedule=cosine --warmup_steps=200 --patchsize=192 --reg_start=0.3 --augment

  # The same where their noise is known: Gaussian, 12 of 255 (auto: it is measured).
  python train.py --method=recorrupted2recorrupted --data_dir=my_noisy_images --noisetype=none \
      --known_noise=gauss12 --max_minutes=20 --optimizer=muon --lr=1e-3 --lr_schedule=cosine --warmup_steps=200 \
      --patchsize=192 --augment

  # Noise2Noise: two corruptions of each image, or two captures of each scene under the same names.
  python train.py --method=noise2noise --noisetype=text0.25 --data_dir=my_images --max_minutes=20
  python train.py --method=noise2noise --data_dir=captures_a --pair_dir=captures_b --max_minutes=20

  # A light network from what large weights make of the same images, whatever their noise (docs/training.md).
  python train.py --method=distillation --teacher=models/photo.pdparams --arch=unet_lite --noisetype=camera0_16 \
      --data_dir=my_images --max_minutes=20 --optimizer=muon --lr=1e-3 --lr_schedule=cosine --patchsize=128 --augment

  # Small images in one file (dataset_tool.py --pairs): Noise2Noise Lite, docs/lite.md.
  python train.py --preset=lite --data_dir=pairs/train.npz --val_dirs=pairs/val.npz --max_minutes=5

  # Go on where the last run stopped.
  python train.py --resume

A run writes results/LOG_NAME/TIMESTAMP: options.json, train.log, metrics.csv, stats.json, TensorBoard events, loss.png
and psnr.png, epoch_model_NNN.pdparams, best_model.pdparams (and the same as best_epoch_NNN_loss_L.pdparams, with its
mean squared error on the validation), last_state.pdparams (to resume), and in validation/ the first five pictures of
each snapshot and an index.html of the last one.
"""

import contextlib
import hashlib
import json
import os
import time

import dataset
from denoising import cli
from denoising.cli import UserError
from denoising.data import renders, validation
from denoising.files import pair_files
from denoising.imaging.noise import parse_noise
from denoising.inference import devices, distributed
from denoising.machine import free_memory
from denoising.reports import run_log
from denoising.reports.snapshot import as_they_are, snapshot
from denoising.training import recipe
from denoising.training.log_line import Pace, log_losses
from denoising.training.methods import build_method
from denoising.training.options import get_parser, parse_options
from denoising.training.schedule import Schedule
from denoising.training.state import STATE, Training
from denoising.training.stopping import StopRequest
from denoising.training.watched import watched

# --- Set-up -------------------------------------------------------------------------------------------------


def validation_sets(options):
    """The sets to score on, which may be none, and the noise that is added to their images."""
    noisetype = options.val_noisetype or options.noisetype
    if options.val_dirs == "none":
        return [], None
    # The folder of the default need not be there, where the images bring their own noise.
    usual = options.val_dirs == get_parser().get_default("val_dirs")
    if noisetype == "none" and usual and not os.path.isdir(options.val_dirs):
        return [], None
    present, absent = validation.find_validation_sets(options.val_dirs)
    if noisetype == "none":
        present, absent = [found for found in present if found.own_noise], []
        if not present:
            cli.note("no scores: the images are noisy already; --val_noisetype gauss25 would score on clean ones")
    if options.val_noisetype not in (None, "none") and all(one.own_noise for one in present) and distributed.IS_MAIN:
        cli.note(f"--val_noisetype: does nothing with {options.val_dirs}, whose images have their own noise")
    if distributed.IS_MAIN and cli.lies_in(options.val_dirs, options.data_dir):
        cli.note(f"--val_dirs: {options.val_dirs} lies in --data_dir, so what scores the training is trained on, too")
    if absent and distributed.IS_MAIN:
        names = [", ".join(found.name for found in sets) for sets in (present, absent)]
        cli.note(f"scores on {names[0]}; not under {options.val_dirs}: {names[1]}")
    for found in present:  # what cannot be scored is told now, and not after the first epoch
        for _ in found.images(options.n_channel, parse_noise("none"), None, options.val_images):
            pass
    return present, parse_noise(noisetype)


def training_images(options, method):
    """The images or pairs to train on."""
    if pair_files.is_pair_file(options.data_dir or ""):
        return dataset.PairFile(
            options.data_dir, options.n_channel, options.patchsize, options.seed, options.augment,
            method.clean_targets, options.train_size,
        )  # fmt: skip
    common = {
        "method": method,
        "noise": parse_noise(options.noisetype),
        "n_channel": options.n_channel,
        "patchsize": options.patchsize,
        "seed": options.seed,
        "frozen": options.noise_protocol == "frozen",
        "augment": options.augment,
        "translate": options.translate,
        "shrink": options.shrink,
        "cache_bytes": free_memory() / 4 if options.cache_gb is None else options.cache_gb * 2**30,
        "size": options.train_size,
    }
    if options.pair_dir:
        return dataset.TrainingPairs(options.data_dir, options.pair_dir, workers=options.workers, **common)
    if renders.is_folder(options.data_dir):
        relight = options.augment and options.arch == "joint_bilateral"
        return dataset.TrainingRenders(options.data_dir, relight=relight, colour_only=options.colour_only, **common)
    if options.arch == "unet_raw":
        return dataset.TrainingMosaics(options.data_dir, **common)
    recipe.warn_of_narrow(options.data_dir)
    return dataset.TrainingImages(options.data_dir, **common)


@contextlib.contextmanager
def run_folder(options, training, stopped):
    """Yields the folder of the run: a new one, or the old one, whose state the training takes over.

    Nothing is written where another process is at work, and none gets to work there until the end of the block.
    """
    if stopped:
        training.load_state(stopped.state, os.path.join(stopped.folder, STATE))
        if json.loads(stopped.state["@options"])["where"]["images"] != training.images:
            cli.note("the training images have changed: this is no exact continuation")
        folder = stopped.folder
    elif distributed.IS_MAIN:
        cli.writable_folder("--save_model_path", options.save_model_path)
        folder = cli.new_run_folder(options.save_model_path, options.log_name)
    else:
        folder = None
    folder = distributed.from_main(folder)
    with cli.only_process_in(folder) if distributed.IS_MAIN else contextlib.nullcontext():
        if distributed.IS_MAIN:
            os.makedirs(os.path.join(folder, "validation"), exist_ok=True)
            about = {"options": vars(options), "versions": devices.versions()}
            cli.write_json(os.path.join(folder, "options.json"), about)
        yield folder


def impatient(options, training):
    """Whether --patience has been given, and as many snapshots were no better than the best one."""
    return bool(options.patience) and training.waited >= options.patience


# --- The run ------------------------------------------------------------------------------------------------


def train(options, stopped=None, method=None, training_class=Training):
    """Runs the training that the options describe.

    Args:
        options: of `parse_options`.
        stopped: the run to go on with, if it is not a new one.
        method: what is minimised, unless the one that the options name.
        training_class: what makes the steps, and is saved between them.

    Returns:
        The run's folder, and whether it reached its end.
    """
    # Sets, method, data.
    sets, noise = validation_sets(options)
    method = method or build_method(options)
    patches = training_images(options, method)
    judged = None if sets else watched(options)
    unscored = options.patience and not (sets or judged)
    cli.refuse((unscored, "--patience: nothing scores this run; --val_dirs has clean images for that"))
    batches = dataset.Batches(
        patches, options.batchsize, options.seed, distributed.RANK, distributed.WORLD_SIZE, options.workers
    )
    plan = Schedule(options, batches.steps_per_epoch)

    # The network, its optimizer, and where the run stands.
    ops = devices.prepare(options)
    if options.amp and not devices.on_gpu():
        raise UserError(
            "--amp: on a CPU Paddle computes mixed precision in fp32 all the same; --precision bf16 is real, "
            "on CPUs with AVX512_BF16"
        )
    # On a CPU each feature takes several numbers for each pixel of a patch, whatever the network.
    batches.check_memory(bytes_per_pixel=0 if devices.on_gpu() else 4 * options.n_feature)
    training = training_class(options, ops, patches.n_input)
    training.images = hashlib.sha256("\0".join(patches.names).encode(errors="surrogateescape")).hexdigest()
    if options.pretrained and not stopped:
        training.start_from(options.pretrained)
    with (
        run_folder(options, training, stopped) as folder,
        run_log.RunLog(folder, training.step if stopped else None, enabled=distributed.IS_MAIN) as log,
        contextlib.closing(batches.starting_at(training.step)) as stream,
        StopRequest() as stop,
    ):
        log.line(f"{len(patches)} images, {plan.steps_per_epoch} steps per epoch, {plan}; {folder}")
        if stopped:
            log.line(f"resumed at step {training.step}")
        elif distributed.IS_MAIN:
            training.save_state(folder)  # a run can be resumed from its first moment on
        pace, last_saved, stopping = Pace(), time.perf_counter(), None
        while plan.progress(training.step, training.seconds) < 1 and not (stopping or impatient(options, training)):
            start = time.perf_counter()
            # Rate.
            rate = plan.learning_rate(training.step, training.seconds)
            ramp = method.ramp(plan, training.step, training.seconds)

            # Step.
            losses = training.train_on(method, pace.next(stream), rate, ramp)

            # Log: the only place that reads the losses, because that waits for the device.
            if plan.log_due(training.step - 1):
                log_losses(log, plan, training, losses, rate, pace)
            before = training.seconds
            training.seconds += time.perf_counter() - start
            # A signal that comes from here on counts at the next step, for all processes alike.
            training.seconds, stopping = distributed.agree(training.seconds, stop.signal)

            # Save and score; the clock of the training stands still meanwhile.
            finished = plan.progress(training.step, training.seconds) >= 1
            scored = finished or plan.snapshot_due(training.step, before, training.seconds)
            if scored:
                epoch = -(-training.step // plan.steps_per_epoch)
                snapshot(training, sets, noise, folder, log, epoch, judged)
                pace.restart()
            due = scored or time.perf_counter() - last_saved > 60 * options.save_minutes
            if distributed.IS_MAIN and (due or stopping):
                training.save_state(folder)
                last_saved = time.perf_counter()
        if impatient(options, training):
            log.line(f"stopped early: {training.waited} snapshots since the best one")
        if judged and not stopping and training.best_psnr is not None:
            own = as_they_are(judged)
            if training.best_psnr <= own:
                log.line(f"the best weights make the images worse by this estimate: as they are they have psnr:{own}")
        if options.to_static:
            log.line(f"static graph: {len(training.network.forward.program_cache)} programs")  # one for each size
    if distributed.WORLD_SIZE > 1:
        # In each process's own log: equal weights on all ranks can be seen there.
        digest = hashlib.sha256(b"".join(p.numpy().tobytes() for p in training.network.parameters()))
        print(f"weights of rank {distributed.RANK}: {digest.hexdigest()[:16]}")
    return folder, not stopping


def end(folder, finished):
    """Says where the results are; returns the exit code."""
    if not finished:
        cli.note(f"stopped; go on with: python train.py --resume {cli.quoted(folder)}")
        return 130
    if distributed.IS_MAIN:
        best = os.path.join(folder, "best_model.pdparams")
        print(f"done: {best if os.path.exists(best) else folder}")
    return 0


def main(argv=None):
    """Trains."""
    return end(*train(*parse_options(get_parser(__doc__), argv)))


if __name__ == "__main__":
    cli.run(main)
