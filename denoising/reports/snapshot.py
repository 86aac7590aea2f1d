"""What a training leaves from time to time: its weights, their scores, pictures, and which of them were the best."""

import os
import time
from pathlib import Path

import numpy as np

from denoising.files import images
from denoising.inference import distributed
from denoising.inference.denoiser import Denoiser
from denoising.inference.evaluation import evaluate_sets
from denoising.reports import plots, run_log

SHOWN = 5  # how many images of each set are kept as pictures


def snapshot(training, sets, noise, folder, log, epoch, watched=None):
    """Saves the weights of a Training between two steps under the name of an epoch, and scores them.

    `sets` to score on may be none; `noise` is added to their images. `watched` are noisy images by which the weights
    are judged in their place (`training/watched.py`).
    """
    if distributed.IS_MAIN:
        path = os.path.join(folder, f"epoch_model_{epoch:03d}.pdparams")
        training.save_weights(path)
        log.line(f"Checkpoint saved to {path}")
    results = score(training, sets, noise, folder, log, epoch) if sets else []
    estimate = judge(training, watched, log) if watched and not sets else None
    keep_best(training, results, folder, log, epoch, estimate)
    if distributed.IS_MAIN:
        plots.plot_run(folder)
        run_log.write_stats(folder)


def score(training, sets, noise, folder, log, epoch):
    """The scores of each set, which also go to the log, the table of the run and its page with pictures."""
    options, denoiser, results = training.options, Denoiser(training.averaged), []
    page = run_log.run_page(folder, epoch, SHOWN, distributed.IS_MAIN)
    distributed.gather([])  # nobody writes pictures before those of the last snapshot are gone

    def save_pictures(score, clean, noisy, denoised):
        page.add(score, clean, noisy, denoised)
        if score.repeat == 0 and score.index < SHOWN:
            name = f"{score.set_name}_{score.index:03d}"
            for kind, picture in (("clean", clean), ("noisy", noisy), ("denoised", denoised)):
                images.write_image(os.path.join(folder, "validation", f"{name}-{epoch:03d}_{kind}.png"), picture)
                log.image(f"{name}/{kind}", picture, training.step)

    training.averaged.eval()
    for result in evaluate_sets(denoiser, sets, noise, options.val_repeats, options.val_images, save_pictures):
        psnr, ssim = result.mean("psnr"), result.mean("ssim")
        log.line(f"[EVAL] {result.name}: psnr:{psnr} ssim:{ssim}")
        log.scalars(training.step, {f"psnr/{result.name}": psnr, f"ssim/{result.name}": ssim})
        if distributed.IS_MAIN:
            run_log.append_score(os.path.join(folder, "validation"), result.name, epoch, psnr, ssim)
        results.append(result)
    training.averaged.train()
    if distributed.IS_MAIN:
        page.close(results)
    return results


def judge(training, watched, log):
    """How near the results are to another frame of the noisy images, in dB; every process computes the same."""
    start = time.perf_counter()
    training.averaged.eval()
    another, error = watched.score(Denoiser(training.averaged))
    training.averaged.train()
    psnr = float(-10 * np.log10(max(another, 1e-12)))
    took = time.perf_counter() - start
    log.line(f"[EVAL] without clean images: psnr:{psnr} against another noisy frame, error:{error}, {took:.1f} s")
    log.scalars(training.step, {"psnr/another_frame": psnr, "loss/another_frame": another, "loss/estimated": error})
    return psnr


def as_they_are(watched):
    """What `judge` would say of the noisy images themselves: weights that stay below it make them worse."""
    return float(-10 * np.log10(max(watched.score(lambda image: image)[0], 1e-12)))


def keep_best(training, results, folder, log, epoch, estimate=None):
    """Saves the weights as the best ones if they are; without any score, the newest are taken for the best.

    `estimate` is the PSNR that stands for that of the results where there are none.
    """
    mean = float(np.mean([result.mean("psnr") for result in results])) if results else estimate
    # The mean squared error of each image, of white as 1.
    losses = [10 ** (-score.psnr / 10) for result in results for score in result.scores]
    if losses:
        log.scalars(training.step, {"loss/valid": np.mean(losses)})
    if mean is not None and training.best_psnr is not None and not mean > training.best_psnr:
        training.waited += 1
        return
    training.best_psnr, training.waited = mean, 0
    if distributed.IS_MAIN:
        training.save_weights(os.path.join(folder, "best_model.pdparams"))
        for old in Path(folder).glob("best_epoch_*.pdparams"):
            old.unlink()
        if losses:  # the same under a name that tells its loss
            name = f"best_epoch_{epoch:03d}_loss_{np.mean(losses):.6f}.pdparams"
            training.save_weights(os.path.join(folder, name))
