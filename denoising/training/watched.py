"""The noisy images by which a training without clean ones is judged: what it would say of another frame of them."""

import itertools

import cv2
import numpy as np
import paddle

from denoising import cli
from denoising.data import noisy_frames, renders
from denoising.data.samples import evenly
from denoising.files import pair_files
from denoising.imaging import trust
from denoising.imaging.noise import parse_noise
from denoising.imaging.noise_analysis import analyse
from denoising.imaging.pixels import middle, to_01
from denoising.inference.estimate import estimate_error
from denoising.training.methods import SINGLE, tone_slope

COUNT, SIDE = 8, 256  # so many crops from the middle of images, so many pixels a side
SMOOTH = 9  # pixels


class Watched:
    """Crops of noisy images with what is known of their noise, or with a second frame of each."""

    def __init__(self, crops):
        self._crops = crops  # of (noisy 0..1, level, second 0..1 or None, where the noise is not cut off)

    def __len__(self):
        return len(self._crops)

    def score(self, denoise):
        """What a denoiser is worth on them, each image counting alike.

        Returns:
            The mean squared difference from another frame of the same scenes, which is the error and the noise of that
            frame; and the error alone. Of two denoisers the better one has less of both. Without second frames they
            are Stein's estimates.
        """
        errors, noises = [], []
        for noisy_01, level, second_01, where in self._crops:
            denoised_01 = np.clip(denoise(noisy_01), 0, 1)
            if second_01 is not None:
                noises.append(float(np.square(noisy_01 - second_01).mean()) / 2)
                errors.append(trust.error_of_pair(denoised_01, noisy_01, second_01))
            else:
                noises.append(trust.mean(level.variance(noisy_01), where))
                errors.append(estimate_error(denoise, noisy_01, denoised_01, level, where)[0])
        return float(np.mean(errors) + np.mean(noises)), float(np.mean(errors))


class WatchedRenders:
    """The same for renders of a view, whose errors are taken where the tone map shows them.

    Each in turn is what the others' mean, denoised, is compared with.
    """

    def __init__(self, frames):
        self._frames = frames
        # In linear light the mean of noise is zero; it is weighed by what all show together, smoothed.
        light = cv2.blur(renders.mean(frames).render, (SMOOTH, SMOOTH))
        self._slope = tone_slope(paddle.to_tensor(light)).numpy()
        pairs = itertools.combinations([frame.render for frame in frames], 2)
        self._noise = float(np.mean([self._distance(*pair) for pair in pairs]) / 2)

    def score(self, denoiser):
        """What a denoiser is worth, as a Watched says it."""
        errors = []
        for i, frame in enumerate(self._frames):
            others = renders.mean(self._frames[:i] + self._frames[i + 1 :])
            errors.append(self._distance(renders.denoise(denoiser, others), frame.render))
        return float(np.mean(errors)), float(np.mean(errors) - self._noise)

    def _distance(self, first, second):
        shown = np.abs(first - second) * self._slope
        within = np.minimum(shown, 1)  # as in --loss tone_mapped: a few fireflies are not to decide
        return float((within * (2 * shown - within)).mean(dtype=np.float64))


def watched(options):
    """The images to judge a training by that has noisy ones alone; None where it has others, or no noise is found."""
    folder, single = options.data_dir, options.method in SINGLE
    frames = options.method == "noise2noise" and options.pair_dir
    if options.noisetype != "none" or not folder or not (single or frames):
        return None
    if pair_files.is_pair_file(folder) or renders.is_folder(folder):
        return None
    files = noisy_frames.find("--data_dir", folder, "--pair_dir", frames)[: options.train_size]
    crops, why = [], "no noise can be measured in the images"
    for i in evenly(len(files), COUNT):
        try:
            noisy, second = noisy_frames.read(*files[i][1:], options.n_channel, "--pair_dir")
        except cli.UserError as error:
            why = error  # of a broken image the training says it too, and passes over it
            continue
        crop = _middle(noisy)
        level = None if frames else _level(noisy, options)
        if second is not None:
            crops.append((to_01(crop), None, to_01(_middle(second)), None))
        elif level is not None:
            crops.append((to_01(crop), level, None, trust.unclipped(crop, level)))
    if not crops:
        cli.note(f"best_model.pdparams will be the newest weights: {why}")
        return None
    return Watched(crops)


def _level(noisy, options):
    """The noise of an image: what --known_noise says of it, or what is measured."""
    if options.known_noise:
        return trust.known_level(parse_noise(options.known_noise), noisy.shape[2])
    return trust.level_of(analyse(noisy), noisy.shape[2])


def _middle(image):
    return np.ascontiguousarray(image[middle(image, SIDE)])
