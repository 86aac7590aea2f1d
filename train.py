r"""Trains a denoiser from single noisy images (Neighbor2Neighbor), noisy pairs (Noise2Noise), or clean targets.

Examples:
  # The published training: ImageNet validation images, Gaussian noise of 25, 100 epochs.
  python -u train.py --data_dir=./Imagenet_val --val_dirs=./validation --noisetype=gauss25 \
      --save_model_path=./results --log_name=unet_gauss25_b4e100r02 --increase_ratio=2

  # Your own noisy images, twenty minutes.
  python train.py --data_dir=my_noisy_images --noisetype=none --max_minutes=20 --optimizer=muon --lr=1e-3 \
      --lr_schedule=cosine --warmup_steps=200 --patchsize=192 --reg_start=0.3 --augment

  # The same where their noise is known: Gaussian, 12 of 255.
  python train.py --method=recorrupted2recorrupted --data_dir=my_noisy_images --noisetype=none \
      --known_noise=gauss12 --max_minutes=20 --optimizer=muon --lr=1e-3 --lr_schedule=cosine --warmup_steps=200 \
      --patchsize=192 --augment

  # Noise2Noise: two corruptions of each image, or two captures of each scene under the same names.
  python train.py --method=noise2noise --noisetype=text0.25 --data_dir=my_images --max_minutes=20
  python train.py --method=noise2noise --data_dir=captures_a --pair_dir=captures_b --max_minutes=20

  # Small images in one file (dataset_tool.py --pairs): Noise2Noise Lite, docs/lite.md.
  python train.py --preset=lite --data_dir=pairs/train.npz --val_dirs=pairs/val.npz --max_minutes=5

  # Go on where the last run of that name stopped.
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
import signal
import time
from pathlib import Path

import numpy as np

import dataset
from dataset import PairFile, TrainingPairs
from denoising import cli
from denoising.cli import UserError
from denoising.data import renders, validation
from denoising.files import images, pair_files
from denoising.imaging.noise import parse_noise
from denoising.inference import devices, distributed
from denoising.inference.denoiser import Denoiser
from denoising.inference.evaluation import evaluate
from denoising.machine import free_memory
from denoising.reports import plots, run_log
from denoising.training.methods import build_method
from denoising.training.options import check_options, get_parser, parse_options
from denoising.training.schedule import Schedule
from denoising.training.state import STATE, Training

SHOWN = 5  # how many images of each set are kept as pictures


# --- Set-up -------------------------------------------------------------------------------------------------


def validation_sets(options):
    """The sets to score on, which may be none."""
    noisetype = options.val_noisetype or options.noisetype
    if options.val_dirs == "none":
        return [], None
    if noisetype == "none" and not (os.path.isdir(options.val_dirs) or pair_files.is_pair_file(options.val_dirs)):
        return [], None
    present, absent = validation.find_validation_sets(options.val_dirs)
    if noisetype == "none":
        present, absent = [one for one in present if one.own_noise], []
        if not present:
            cli.note("no scores: the images are noisy already; --val_noisetype gauss25 would score on clean ones")
    if absent and distributed.IS_MAIN:
        names = ", ".join(one.name for one in absent)
        cli.note(f"scores on {', '.join(one.name for one in present)}; not under {options.val_dirs}: {names}")
    return present, parse_noise(noisetype)


class StopRequest:
    """Ctrl-C or a polite kill: the step is finished and saved. A second one ends at once."""

    def __init__(self):
        self.signal = None

    def __enter__(self):
        self._before = {one: signal.signal(one, self._received) for one in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_):
        for one, handler in self._before.items():
            signal.signal(one, handler)

    def _received(self, number_, _):
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number_
        cli.note("stopping after this step; once more to stop at once")


def training_images(options, target):
    """The images or pairs to train on."""
    if pair_files.is_pair_file(options.data_dir or ""):
        shared = options.n_channel, options.patchsize, options.seed
        return PairFile(options.data_dir, *shared, options.augment, target, options.train_size)
    more = {
        "frozen": options.noise_protocol == "frozen",
        "augment": options.augment,
        "translate": options.translate,
        "cache_bytes": free_memory() / 4 if options.cache_gb is None else options.cache_gb * 2**30,
        "target": target,
        "known_noise": parse_noise(options.known_noise) if options.known_noise else None,
        "size": options.train_size,
    }
    shared = parse_noise(options.noisetype), options.n_channel, options.patchsize, options.seed
    if options.pair_dir:
        return TrainingPairs(options.data_dir, options.pair_dir, *shared, workers=options.workers, **more)
    kind = dataset.TrainingRenders if renders.is_folder(options.data_dir) else dataset.TrainingImages
    return kind(options.data_dir, *shared, **more)


def one_process(folder):
    """The lock of the run's folder, held by the process that writes there."""
    return cli.only_process_in(folder) if distributed.IS_MAIN else contextlib.nullcontext()


# --- The run ------------------------------------------------------------------------------------------------


def snapshot(training, sets, noise, folder, log, epoch):
    """Saves the weights of an epoch and scores them."""
    path = os.path.join(folder, f"epoch_model_{epoch:03d}.pdparams")
    if distributed.IS_MAIN:
        training.save_weights(path)
        log.line(f"Checkpoint saved to {path}")
    denoiser, means, losses, results = Denoiser(training.averaged), [], [], []
    training.averaged.eval()
    page, first = None, 0  # how many images the sets before had
    if sets:
        page = run_log.run_page(folder, epoch, SHOWN, distributed.IS_MAIN)
        distributed.gather([])  # nobody writes pictures before those of the last snapshot are gone

    def save_pictures(score, clean, noisy, denoised):
        page.add(first + score.index, score, clean, noisy, denoised)
        if score.repeat == 0 and score.index < SHOWN:
            for kind, picture in (("clean", clean), ("noisy", noisy), ("denoised", denoised)):
                name = f"{score.set_name}_{score.index:03d}"
                images.write_image(os.path.join(folder, "validation", f"{name}-{epoch:03d}_{kind}.png"), picture)
                log.image(f"{name}/{kind}", picture, training.step)

    options = training.options
    for one in sets:
        scores = evaluate(denoiser, one, noise, options.val_repeats, options.val_images, save_pictures)
        psnr, ssim = scores.mean("psnr"), scores.mean("ssim")
        log.line(f"[EVAL] {one.name}: psnr:{psnr} ssim:{ssim}")
        log.scalars(training.step, {f"psnr/{one.name}": psnr, f"ssim/{one.name}": ssim})
        if distributed.IS_MAIN:
            run_log.append_score(os.path.join(folder, "validation"), one.name, epoch, psnr, ssim)
        means.append(psnr)
        losses += [10 ** (-score.psnr / 10) for score in scores.scores]  # the mean squared error, of white as 1
        results.append(scores)
        first += page.image_count(scores)
    if page and distributed.IS_MAIN:
        page.close(results)
    training.averaged.train()
    # Without anything to score on, the newest is taken for the best.
    if not means or training.best_psnr is None or np.mean(means) > training.best_psnr:
        training.best_psnr = float(np.mean(means)) if means else None
        if distributed.IS_MAIN:
            training.save_weights(os.path.join(folder, "best_model.pdparams"))
            for old in Path(folder).glob("best_epoch_*.pdparams"):
                old.unlink()
            if losses:  # the same under a name that tells its loss
                name = f"best_epoch_{epoch:03d}_loss_{np.mean(losses):.6f}.pdparams"
                training.save_weights(os.path.join(folder, name))
    if losses:
        log.scalars(training.step, {"loss/valid": np.mean(losses)})
    if distributed.IS_MAIN:
        plots.plot_run(folder)
        run_log.write_stats(folder)


def train(options):
    """Runs the training that the options describe; returns the run folder, and whether it reached its end."""
    check_options(options)
    sets, noise = validation_sets(options)
    method = build_method(options)
    patches = training_images(options, method.target)
    batches = dataset.Batches(
        patches, options.batchsize, options.seed, distributed.RANK, distributed.WORLD_SIZE, options.workers
    )
    plan = Schedule(options, batches.steps_per_epoch)
    ops = devices.prepare(options)
    if options.amp and not devices.on_gpu():
        raise UserError(
            "--amp: on a CPU Paddle computes mixed precision in fp32 all the same; --precision bf16 is real"
        )
    if options.amp and options.optimizer == "muon":
        raise UserError("--optimizer: muon does not know --amp's scaled gradients; use adam with --amp")
    training = Training(options, ops, patches.n_input)
    training.images = hashlib.sha256("\0".join(patches.names).encode(errors="surrogateescape")).hexdigest()

    # The run folder: a new one, or the old one as it was when the state was saved.
    folder = options.run_folder
    if options.state:
        training.load_state(options.state, os.path.join(folder, STATE))
        if json.loads(options.state["@options"])["where"]["images"] != training.images:
            cli.note("the training images have changed: this is no exact continuation")
    elif distributed.IS_MAIN:
        cli.writable_folder("--save_model_path", options.save_model_path)
        folder = cli.new_run_folder(options.save_model_path, options.log_name)
    folder = distributed.from_main(folder)
    log = run_log.RunLog(folder, training.step if options.state else None, enabled=distributed.IS_MAIN)
    if distributed.IS_MAIN:
        os.makedirs(os.path.join(folder, "validation"), exist_ok=True)
        shown = {k: v for k, v in vars(options).items() if k not in ("state", "run_folder", "resume")}
        cli.write_json(os.path.join(folder, "options.json"), {"options": shown, "versions": devices.versions()})
    log.line(f"{len(patches)} images, {plan.steps_per_epoch} steps per epoch, {plan.total_steps} steps; {folder}")
    if options.state:
        log.line(f"resumed at step {training.step}")
    elif distributed.IS_MAIN:
        training.save_state(folder)  # a run can be resumed from its first moment on

    window_start, window_step, waited = time.perf_counter(), training.step, 0.0
    last_saved = time.perf_counter()
    stream = batches.starting_at(training.step)
    with StopRequest() as stop, one_process(folder):
        while plan.progress(training.step, training.seconds) < 1 and not stop.signal:
            start = time.perf_counter()
            batch = next(stream)
            waited += time.perf_counter() - start
            step = training.step
            rate = plan.learning_rate(step, training.seconds)
            ramp = (plan.ramp if method.target == "picks" else plan.progress)(step, training.seconds)
            loss, loss1, loss2, Lambda = training.train_on(method, batch, rate, ramp)

            # Log: the only place that reads the losses.
            epoch, iteration = step // plan.steps_per_epoch + 1, step % plan.steps_per_epoch
            # As published within an epoch; epochs that are shorter than the interval count through.
            if (iteration if plan.steps_per_epoch >= options.log_iters else step) % options.log_iters == 0:
                values = [distributed.mean(value.item()) for value in (loss1, loss2, loss)]
                if not np.isfinite(values).all():
                    where = f"at step {step} (--lr {options.lr})"
                    raise UserError(f"the loss is not finite {where}: try a smaller --lr, or --clip_grad 1")
                count = training.step - window_step
                cost, reader = (time.perf_counter() - window_start) / count, waited / count
                ips = options.batchsize * distributed.WORLD_SIZE / cost
                eta = plan.remaining(training.step, training.seconds, cost)
                log.line(
                    f"{epoch:04d} {iteration:05d} Loss1={values[0]:.6f}, Lambda={Lambda}, Loss2={values[1]:.6f}, "
                    f"Loss_Full={values[2]:.6f}, Time={cost:.4f} avg_reader_cost: {reader:.5f} sec, avg_batch_cost: "
                    f"{cost:.5f} sec, avg_samples: {options.batchsize}, ips: {ips:.5f} images/s, eta: {eta}"
                )
                log.scalars(training.step, {
                    "loss/rec": values[0], "loss/reg": values[1], "loss/full": values[2],
                    "schedule/lr": rate, "schedule/Lambda": Lambda, "speed/ips": ips,
                })  # fmt: skip
                window_start, window_step, waited = time.perf_counter(), training.step, 0.0
            before = training.seconds
            training.seconds += time.perf_counter() - start
            training.seconds, stop.signal = distributed.agree(training.seconds, stop.signal)

            # Save and score; the clock of the training stands still meanwhile.
            finished = plan.progress(training.step, training.seconds) >= 1
            if finished or plan.snapshot_due(training.step, before, training.seconds):
                snapshot(training, sets, noise, folder, log, -(-training.step // plan.steps_per_epoch))
                window_start, window_step, waited = time.perf_counter(), training.step, 0.0
                last_saved = -float("inf")
            due = time.perf_counter() - last_saved > 60 * options.save_minutes
            if distributed.IS_MAIN and (due or finished or stop.signal):
                training.save_state(folder)
                last_saved = time.perf_counter()
    stream.close()
    if options.to_static:
        log.line(f"static graph: {len(training.network.forward.program_cache)} programs")  # one for each size
    log.close()
    if distributed.WORLD_SIZE > 1:
        # In each process's own log: equal weights on all ranks can be seen there.
        digest = hashlib.sha256(b"".join(p.numpy().tobytes() for p in training.network.parameters()))
        print(f"weights of rank {distributed.RANK}: {digest.hexdigest()[:16]}")
    return folder, not stop.signal


def main(argv=None):
    """Trains, and says where the results are."""
    options = parse_options(get_parser(__doc__), argv)
    folder, finished = train(options)
    if not finished:
        cli.note(f"stopped; go on with: python train.py --resume {folder}")
        return 130
    if distributed.IS_MAIN:
        best = os.path.join(folder, "best_model.pdparams")
        print(f"done: {best if os.path.exists(best) else folder}")
    return 0


if __name__ == "__main__":
    cli.run(main)
