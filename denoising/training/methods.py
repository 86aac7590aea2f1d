"""What is minimised, and what that needs beside a noisy image: the methods of train.py.

Neighbor2Neighbor (Huang et al., CVPR 2021) and Recorrupted-to-Recorrupted (Pang et al., CVPR 2021) learn from single
noisy images, Noise2Noise (Lehtinen et al., ICML 2018) from two noisy images of each scene, and supervised training
from clean ones; distillation learns from what other weights make of single noisy images.
"""

import numpy as np
import paddle

from denoising.cli import UserError, refuse
from denoising.data.renders import GAMMA
from denoising.data.streams import MORE, NOISE, PICKS, TARGET
from denoising.imaging.noise import parse_noise
from denoising.inference.checkpoint import load_network


class Method:
    """What all methods share.

    A method is called with the network f, with a batch of what `corrupt` and `beside` return, in that order, and with
    the `ramp` of the step. The first tensor of the batch are the noisy images y, N x C x H x W. It returns the loss to
    differentiate, and what the published log shows: loss1, loss2, Lambda.
    """

    clean_targets = False  # whether the files beside the noisy ones are clean

    def check(self, path, page, image, patchsize, frozen):
        """Refuses a training image that the method cannot learn from.

        `page` is what the file holds, `image` the same in the channels of the network, and `frozen` whether its
        simulated noise stays the same in all epochs.
        """

    def corrupt(self, clean, noise, streams):
        """The noisy image, and what is cut out along with it, from a clean image or patch; all are HWC float32.

        `streams` gives the random generator of each purpose.
        """
        return [noise.add(clean, streams(NOISE))]

    def beside(self, noisy, streams):
        """What else the method draws at random for a noisy patch, CHW."""
        return ()

    def ramp(self, plan, step, seconds):
        """How far what changes in the loss during the training has come, 0..1; `plan` is the Schedule."""
        return plan.progress(step, seconds)


def draw_picks(rng, height, width):
    """Draws, for every 2x2 cell, which pixel the first sub-image takes and which neighbour the second.

    Three fair bits make the eight ordered pairs of adjacent pixels equally likely: row and column of the first
    pick, and the direction (0 across, 1 down) in which its neighbour lies.

    Returns:
        bool array [3, height // 2, width // 2].
    """
    return rng.integers(0, 2, (3, height // 2, width // 2), dtype=bool)


def subimages(image, picks):
    """Splits images into two sub-images of half the size, whose pixels are neighbours in the original.

    Args:
        image: float tensor [N, C, H, W], H and W even.
        picks: bool tensor [N, 3, H/2, W/2] of `draw_picks`.
    """
    n, c, height, width = image.shape
    row, column, down = (picks[:, i] for i in range(3))
    # One gather per sub-image, by the flat places of the picks: no scatter, and nothing per channel.
    top = paddle.arange(0, height, 2, dtype="int32").unsqueeze(1)
    left = paddle.arange(0, width, 2, dtype="int32")
    pixels, subs = image.reshape([n, c, height * width]), []
    for r, q in ((row, column), (row ^ down, column ^ ~down)):
        place = (top + r.astype("int32")) * width + left + q.astype("int32")
        place = place.reshape([n, 1, -1]).expand([n, c, height * width // 4])
        sub = paddle.take_along_axis(pixels, place, axis=2)
        subs.append(sub.reshape([n, c, height // 2, width // 2]))
    return tuple(subs)


class Neighbor2Neighbor(Method):
    """Lambda1 * loss_rec + Lambda2 * Lambda * loss_reg, from single noisy images; Lambda rises to `increase_ratio`."""

    def __init__(self, Lambda1=1.0, Lambda2=1.0, increase_ratio=2.0):
        self.Lambda1, self.Lambda2, self.increase_ratio = Lambda1, Lambda2, increase_ratio

    def beside(self, noisy, streams):
        return (draw_picks(streams(PICKS), *noisy.shape[1:]),)

    def ramp(self, plan, step, seconds):
        return plan.ramp(step, seconds)

    def __call__(self, network, noisy, picks, ramp):
        Lambda = ramp * self.increase_ratio  # while it is 0, the regulariser and its pass over y are left out
        sub1, sub2 = subimages(noisy, picks)
        diff = network(sub1) - sub2  # f(g1(y)) - g2(y)
        loss1 = paddle.mean(diff**2)
        if Lambda * self.Lambda2 == 0:
            return self.Lambda1 * loss1, loss1, paddle.zeros_like(loss1), Lambda
        # The expected difference of the two sub-images, g1(f(y)) - g2(f(y)): no gradient flows through it.
        with paddle.no_grad():
            denoised1, denoised2 = subimages(network(noisy), picks)
            expected = denoised1 - denoised2
        loss2 = Lambda * paddle.mean((diff - expected) ** 2)
        return self.Lambda1 * loss1 + self.Lambda2 * loss2, loss1, loss2, Lambda  # as published, loss2 contains Lambda


class Recorrupted2Recorrupted(Method):
    """Regression from single images whose noise is Gaussian or Poisson, and of known strength.

    With more noise z, as strong as that of y, y + a z and y - z / a are two noisy images of one scene whose noise is
    independent: a pair for Noise2Noise, of full resolution. Photons fall into two such images by lot. Here two
    recorruptions of y are used at once, and what is zero on average or does not depend on the network is left out: so
    the loss is hardly noisier than with y as target, however little noise is added.

    Files cut noise off at black and white. What is near these values in a recorruption is mostly a pixel that was cut
    off, which tells a network how much was added; so such pixels do not count. Which ones they are is seen in what the
    network gets, so of all others it learns the same as before.

    Args:
        noise: the model, which has a `recorrupt`.
        in_files: whether the images have this noise already.
        loss: "l2", or "psnr" for the error in decibels, so that images with little noise count as much as the others.
    """

    def __init__(self, noise, in_files=False, loss="l2"):
        self.noise, self.in_files, self.weight, self.loss = noise, in_files, noise.recorruption_weight, loss

    def check(self, path, page, image, patchsize, frozen):
        # A recorruption's noise is independent from value to value and as fine as floats are: where that of the files
        # is not, a network can tell the one from the other.
        height, width, channels = image.shape
        whole_numbers = page.dtype.kind == "u"
        refuse(
            (self.in_files and channels not in (4, page.shape[2]),
             f"--n_channel: {path} has {page.shape[2]}, and its noise is known in these only"),
            ((self.in_files or frozen) and min(height, width) < patchsize,
             f"--patchsize: {path} has {width}x{height} pixels; padding would repeat its noise, of which each must be "
             "new"),
            (self.in_files and whole_numbers and not self.noise.hides(1 / np.iinfo(page.dtype).max),
             f"--known_noise: {path} has {page.dtype.itemsize * 8} bits, whose steps are too coarse for "
             f"{self.noise.name}"),
        )  # fmt: skip

    def beside(self, noisy, streams):
        # The noise is drawn with what made it, whose strength may be random.
        both = self.noise.recorrupt(noisy, streams(NOISE), streams(MORE))
        return (*both, *(self._intact(noisy, one) for one in both)) if self.in_files else both

    def _intact(self, noisy, recorrupted):
        """Where a recorruption is not near a value at which the noise of the file is cut off: 1, elsewhere 0."""
        black, white = (CUT_OFF * self.noise.recorruption_deviation(brightness) for brightness in (0.0, 1.0))
        # Where values lie beyond black or white, nothing was cut off there.
        low = black if noisy.min() >= 0 else -np.inf
        high = 1 - white if noisy.max() <= 1 else np.inf
        return ((recorrupted >= low) & (recorrupted <= high)).astype(np.float32)

    def __call__(self, network, noisy, first, second, intact1=1.0, intact2=1.0, ramp=0.0):
        """An unbiased estimate of the mean squared error against the clean images, from two recorruptions of y.

        Where files cut noise off it is only nearly that, because the noise of what counts is not quite as strong.
        """
        denoised1, denoised2 = paddle.split(network(paddle.concat([first, second])), 2)

        def each(values):
            return values.mean(axis=3).mean(axis=[1, 2])  # at once, float32 would lose a hundredth of the difference

        distance = each(intact1 * (denoised1 - noisy) ** 2 + intact2 * (denoised2 - noisy) ** 2) / 2
        added = first - second
        removed = intact1 * (first - denoised1) - intact2 * (second - denoised2)
        noise = self.weight / 4 * each((intact1 + intact2) * added**2)
        passed = 2 * noise - self.weight * each(removed * added)  # how much of the noise comes through
        loss = error = distance + passed - noise
        if self.loss == "psnr":
            # The estimate of a single image may be negative, so it has no logarithm. But of the best denoiser the error
            # is half of what passes, which is known far better; there the logarithm's tangent is taken. Of one that has
            # not learnt yet nearly nothing passes, and the error is large and well known.
            about = paddle.maximum(passed / 2, error / 4).detach().clip(0) + LEAST_ERROR
            loss = (about.log() + error / about - 1) * 10 / np.log(10)
        return *(paddle.mean(part) for part in (loss, distance, passed)), 1.0


class Distillation(Method):
    """Regression to what a teacher, a network that has learnt, makes of the same images.

    The teacher sees them turned, in one of eight ways: so the target is on average the mean of its eight results,
    which is better than each of them, as with --tta. It is hardly noisy, other than all targets with noise in them,
    so that a small network learns in minutes what a large one learnt in hours.

    Where noise of different strengths is added, some of the images stay as they are: what the teacher leaves alone the
    network is to leave alone, too, and fine texture is not to be taken for noise.

    Of several teachers each image is shown by the one that knows it best: whose result is nearest to another noisy
    image of the same scene. Its noise adds the same to the distance of all, on average, so the nearest has the least
    error. One of them may be nobody, who leaves images as they are: who knows best what has no noise.

    Args:
        teachers: networks, or `Nobody`.
        clipped: of so many images the network, and not the teacher, sees the noise cut off at black and white, as it is
            in files. So it learns from the whole noise what files have lost.
    """

    def __init__(self, *teachers, clipped=0.0):
        self.teachers, self.clipped = teachers, clipped

    def corrupt(self, clean, noise, streams):
        several, more = len(self.teachers) > 1, streams(TARGET)
        if noise.low < noise.high and more.random() < UNTOUCHED:
            return [clean] * (1 + several)
        return list(noise.shots(clean, streams(NOISE), more)) if several else super().corrupt(clean, noise, streams)

    def beside(self, noisy, streams):
        rng = streams(MORE)
        way = rng.integers(8)
        return way, rng.random() < self.clipped

    def __call__(self, network, noisy, *more, ramp=0.0):
        """The distance in decibels, so that images with little noise count as much as the others."""
        *others, way, clipped = more
        with paddle.no_grad():
            # One way for the whole batch, that of its first patch.
            target = self._shown(network.ops, noisy, *others, way=int(way[0]))
        if self.clipped:
            noisy = paddle.where(clipped.reshape([-1, 1, 1, 1]), noisy.clip(0.0, 1.0), noisy)
        each = ((network(noisy) - target) ** 2).mean(axis=[1, 2, 3])
        loss = paddle.mean((each + LEAST_DISTANCE).log()) * 10 / np.log(10)
        return loss, paddle.mean(each), paddle.zeros_like(loss), 0.0

    def _shown(self, ops, noisy, other=None, *, way):
        """What is learnt from: of each image the best teacher's result."""
        shown = []
        for teacher in self.teachers:
            teacher.ops = ops
            shown.append(turned(teacher, noisy, way))
        if other is None:
            return shown[0]
        far = paddle.stack([((result - other) ** 2).mean(axis=[1, 2, 3]) for result in shown])
        best = paddle.nn.functional.one_hot(far.argmin(axis=0), len(shown)).T  # teachers x images
        return sum(result * chosen.reshape([-1, 1, 1, 1]) for result, chosen in zip(shown, best, strict=True))


class Nobody:
    """The teacher `none`."""

    def __call__(self, images):
        return images


def turned(network, images, way):
    """Applies a network to square images that are turned by so many quarters, and flipped from four on."""
    images = paddle.rot90(images, way % 4, axes=[2, 3])
    images = network(images.flip(3) if way >= 4 else images)
    return paddle.rot90(images.flip(3) if way >= 4 else images, -(way % 4), axes=[2, 3])


class Regression(Method):
    """The distance of the output from a target, which is another image of the scene.

    Args:
        loss: "l2" ends at the mean of all targets, "l1" at their median, "l0", which goes from the mean to it while
            the ramp rises, at their mode; "robust" ends at the mean of those that are near; "hdr" is L2 relative to the
            brightness, for renders; "psnr" is L2 in decibels, so that the images with little noise count as much as the
            others; "tone_mapped" is L2 of the pictures of renders, which count equally, too; "sigma" is L2 in units of
            the deviation of the noise, which is told to the network as the last channel of its input.
        noise: of the input; what it has left of the clean image is put back into the output first.
        clipped: of so many images the network sees the noise cut off at black and white, as it is in files. The target
            is whole, so the network learns what files have lost.
    """

    def __init__(self, loss="l2", noise=None, clipped=0.0):
        self.loss, self.noise, self.clipped = loss, noise or parse_noise("none"), clipped

    def _seen(self, noisy, streams):
        """What the network sees of a noisy image."""
        return noisy.clip(0, 1) if self.clipped and streams(MORE).random() < self.clipped else noisy

    def __call__(self, network, noisy, target, known=None, ramp=0.0):
        """Pixels of the target where `known`, N x 1 x H x W, is 0 do not count."""
        denoised, *guesses = paddle.split(network(noisy), 1 + getattr(network, "guesses", False), axis=1)
        denoised = self.noise.restore_tensor(noisy, denoised)
        if self.loss == "sigma":
            # The deviation is told to the network, and hangs on nothing in the target: the optimum is still the mean.
            deviation = noisy[:, -1:].clip(1e-5)
            denoised, target = denoised / deviation, target / deviation
        distances = self._distance(denoised, target, ramp)
        for guess in guesses:
            distances = distances + GUESS * self._distance(guess, target, ramp)
        if known is not None:
            # Divided by the share that is known, so that it does not matter for the size of the loss.
            distances = distances * (known / paddle.mean(known).clip(1e-6))
        distance = loss = paddle.mean(distances)
        # The gradient of each image is divided by how far its target is, of which most is the target's own noise.
        if self.loss == "psnr":
            each = distances.mean(axis=[1, 2, 3])
            distance = loss = paddle.mean((each + LEAST_MSE).log()) * 10 / np.log(10)
        if self.loss == "tone_mapped":
            # Not by how far a few fireflies are, or images with fireflies would count for less.
            each = distances.detach().clip(max=1.0).mean(axis=[1, 2, 3], keepdim=True)
            loss = paddle.mean(distances / (each + LEAST_MSE))
        return loss, distance, paddle.zeros_like(loss), 0.0

    def _distance(self, denoised, target, ramp):
        diff = denoised - target
        if self.loss == "l1":
            return diff.abs()
        if self.loss == "l0":
            return (diff.abs() + 1e-8) ** (2 * (1 - ramp))  # its power falls from 2 to 0
        if self.loss == "robust":
            return diff**2 * intact(diff.detach())
        if self.loss == "hdr":
            # The brightness is a weight: were it differentiated, the mean would no longer be the optimum.
            return diff**2 / (denoised.detach().clip(0) + 0.01) ** 2
        if self.loss == "tone_mapped":
            # The slope is not differentiated for the same reason. Beyond the whole range from black to white an error
            # counts by itself and not by its square: else a few fireflies among the targets would drown all others.
            shown = (diff * tone_slope(denoised.detach())).abs()
            within = shown.clip(max=1.0)
            return within * (2 * shown - within)
        return diff**2


class Noise2Noise(Regression):
    """Regression to another noisy image of the same scene."""

    def corrupt(self, clean, noise, streams):
        noisy, target = noise.shots(clean, streams(NOISE), streams(TARGET))
        known = noise.known(clean.shape, streams(TARGET))
        return [self._seen(noisy, streams), target] + ([] if known is None else [known])


class Supervised(Regression):
    """Regression to the clean image."""

    clean_targets = True

    def corrupt(self, clean, noise, streams):
        return [self._seen(noise.add(clean, streams(NOISE)), streams), clean]


def tone_slope(light):
    """The derivative of `renders.tone_map`: how much a little more light shows in a picture.

    With it the error of light becomes that of the picture, as far as that is small; and the optimum is still the mean
    of all targets, which it would not be, were the targets tone-mapped.
    """
    light = light.clip(0) + 0.01
    return (light / (1 + light)) ** (1 / GAMMA) / (GAMMA * light * (1 + light))


def intact(diff):
    """How likely each pixel of the target has been spared by impulses: [N, 1, H, W].

    Its difference from the output, [N, C, H, W], is then Gaussian, and else uniform; the deviation and the share of
    the pixels spared are those of the likeliest mixture of both, for each image by itself.
    """
    channels = diff.shape[1]
    squares = (diff**2).sum(axis=1, keepdim=True)

    def likely(deviation, share):
        density = (-squares / (2 * deviation**2)).exp() / (deviation * np.sqrt(2 * np.pi)) ** channels
        return share * density / (share * density + 1 - share)

    deviation, share = ((squares.mean(axis=[1, 2, 3], keepdim=True) / channels).sqrt() / 2).clip(0.005), 0.5
    for _ in range(EM_ROUNDS):
        weight = likely(deviation, share)
        share = weight.mean(axis=[1, 2, 3], keepdim=True).clip(0.05, 0.99)
        deviation = ((weight * squares).mean(axis=[1, 2, 3], keepdim=True) / (channels * share)).sqrt().clip(0.005)
    # Twice as wide: the output errs more on edges than elsewhere, and nothing there may pass for an impulse.
    return likely(2 * deviation, share)


EM_ROUNDS = 8
LEAST_MSE = (5 / 255) ** 2  # below about this, --loss psnr takes images for equally good, and is L2
LEAST_ERROR = (2 / 255) ** 2  # below about this, recorrupted2recorrupted with --loss psnr is L2, too
CUT_OFF = 3.0  # deviations of a recorruption: what is nearer to black or white may have been cut off
NOBODY = "none"  # among the files of --teacher
UNTOUCHED = 0.2  # of the images that a teacher shows
GUESS = 0.1  # what a network's guess counts beside its result; as much as that, and the guess alone learns in the end
LEAST_DISTANCE = (0.5 / 255) ** 2  # from a teacher; below about this, all images are taken for equally near
LOSSES = ("l2", "l1", "l0", "robust", "hdr", "tone_mapped", "psnr", "sigma")
METHODS = ("neighbor2neighbor", "recorrupted2recorrupted", "distillation", "noise2noise", "supervised")
SINGLE = METHODS[:3]  # learn from single noisy images


def build_method(options):
    """The method that the flags of train.py describe."""
    noise = parse_noise(options.known_noise or options.noisetype)
    if options.method == "neighbor2neighbor":
        return Neighbor2Neighbor(options.Lambda1, options.Lambda2, options.increase_ratio)
    if options.method == "recorrupted2recorrupted":
        return Recorrupted2Recorrupted(noise, bool(options.known_noise), options.loss)
    if options.method == "distillation":
        shown_by = (load_teacher(path, options.n_channel) for path in teachers(options))
        return Distillation(*shown_by, clipped=options.clipped)
    return {"noise2noise": Noise2Noise, "supervised": Supervised}[options.method](options.loss, noise, options.clipped)


def teachers(options):
    """The files that --teacher names."""
    return options.teacher.split(",") if options.teacher else []


def load_teacher(path, n_channel):
    """The network of --teacher, which must take and give images of so many channels."""
    if path == NOBODY:
        return Nobody()
    teacher, _ = load_network(path)
    if teacher.n_channel != n_channel or not teacher.takes_images:
        what = f"images of {teacher.n_channel} channels" if teacher.takes_images else "no plain images"
        raise UserError(f"--teacher: {path} denoises {what}, and --n_channel is {n_channel}")
    return teacher


def default_loss(method, noisetype):
    """The loss whose optimum is the clean image."""
    if method == "noise2noise":
        for kind, loss in (("impulse", "robust"), ("text", "l1")):
            if kind in noisetype:
                return loss
    return "l2"
