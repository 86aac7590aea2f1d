"""What is minimised: Neighbor2Neighbor with its random neighbour sub-sampler, Recorrupted-to-Recorrupted, regression.

The two first learn from single noisy images: Huang et al., CVPR 2021; Pang et al., CVPR 2021.

A method is called with a network and the tensors of a batch. It returns the loss to differentiate, and what the
published log shows: loss1, loss2, Lambda.
"""

import numpy as np
import paddle

from denoising.imaging.noise import parse_noise


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


class Neighbor2Neighbor:
    """loss_rec + Lambda * loss_reg, from single noisy images."""

    target = "picks"  # what it needs beside the noisy image, of `dataset.TrainingImages`

    def __init__(self, Lambda1=1.0, Lambda2=1.0, increase_ratio=2.0):
        self.Lambda1, self.Lambda2, self.increase_ratio = Lambda1, Lambda2, increase_ratio

    def __call__(self, network, noisy, picks, ramp):
        """The loss of one batch.

        Args:
            network: the denoiser f.
            noisy: y, float tensor [N, C, H, W].
            picks: of `draw_picks`, for each image.
            ramp: 0..1, how far Lambda has risen; at 0 the regulariser and its pass over the full image are skipped.

        Returns:
            The loss to differentiate, loss1 and loss2 as published (loss2 contains Lambda), and Lambda.
        """
        Lambda = ramp * self.increase_ratio
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
        return self.Lambda1 * loss1 + self.Lambda2 * loss2, loss1, loss2, Lambda


class Recorrupted2Recorrupted:
    """Regression from single images whose noise is Gaussian or Poisson, and of known strength.

    With more noise z, as strong as that of y, y + a z and y - z / a are two noisy images of one scene whose noise is
    independent: a pair for Noise2Noise, of full resolution. Photons fall into two such images by lot. Here two
    recorruptions of y are used at once, and what is zero on average or does not depend on the network is left out: so
    the loss is hardly noisier than with y as target, however little noise is added.

    Args:
        noise: the model, which has a `recorrupt`.
    """

    target = "recorruptions"

    def __init__(self, noise):
        self.weight = noise.recorruption_weight

    def __call__(self, network, noisy, one, other, ramp=0.0):
        """The loss of one batch: an unbiased estimate of the mean squared error against the clean images.

        Args:
            network: the denoiser f.
            noisy: y, float tensor [N, C, H, W].
            one: a recorruption of it.
            other: another one.
            ramp: not used.
        """
        first, second = paddle.split(network(paddle.concat([one, other])), 2)
        distance = paddle.mean((first - noisy) ** 2 + (second - noisy) ** 2) / 2
        passed = self.weight * paddle.mean((first - second) * (one - other))  # how much of the noise comes through
        noise = self.weight / 2 * paddle.mean((one - other) ** 2)
        return distance + passed - noise, distance, passed, 1.0


class Regression:
    """The distance to a target: another noisy image (Noise2Noise, Lehtinen et al., ICML 2018), or the clean one.

    Args:
        target: "noisy" or "clean".
        loss: "l2" ends at the mean of all targets, "l1" at their median, "l0", which goes from the mean to it while
            the ramp rises, at their mode; "robust" ends at the mean of those that are near; "hdr" is L2 relative to the
            brightness, for renders.
        noise: of the input; what it has left of the clean image is put back into the output first.
    """

    def __init__(self, target="noisy", loss="l2", noise=None):
        self.target, self.loss, self.noise = target, loss, noise or parse_noise("none")

    def __call__(self, network, noisy, target, known=None, ramp=0.0):
        """The loss of one batch; pixels where `known` is 0 do not count.

        Args:
            network: the denoiser f.
            noisy: its input, float tensor [N, C, H, W].
            target: what the output is compared with, of the same size.
            known: float tensor [N, 1, H, W], or None where all pixels of the target are known.
            ramp: 0..1, how far the training is.
        """
        denoised = self.noise.restore_tensor(noisy, network(noisy))
        each = self._distance(denoised, target, ramp)
        if known is not None:
            # Divided by the share that is known, so that it does not matter for the size of the loss.
            each = each * (known / paddle.mean(known).clip(1e-6))
        loss = paddle.mean(each)
        return loss, loss, paddle.zeros_like(loss), 0.0

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
        return diff**2


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

    deviation, share = (squares.mean(axis=[1, 2, 3], keepdim=True) / channels).sqrt() / 2, 0.5
    for _ in range(EM_ROUNDS):
        weight = likely(deviation, share)
        share = weight.mean(axis=[1, 2, 3], keepdim=True).clip(0.05, 0.99)
        deviation = ((weight * squares).mean(axis=[1, 2, 3], keepdim=True) / (channels * share)).sqrt().clip(0.005)
    # Twice as wide: the output errs more on edges than elsewhere, and nothing there may pass for an impulse.
    return likely(2 * deviation, share)


EM_ROUNDS = 8
LOSSES = ("l2", "l1", "l0", "robust", "hdr")
METHODS = ("neighbor2neighbor", "recorrupted2recorrupted", "noise2noise", "supervised")
SINGLE = METHODS[:2]  # learn from single noisy images


def build_method(options):
    """The method that the flags of train.py describe."""
    if options.method == "neighbor2neighbor":
        return Neighbor2Neighbor(options.Lambda1, options.Lambda2, options.increase_ratio)
    if options.method == "recorrupted2recorrupted":
        return Recorrupted2Recorrupted(parse_noise(options.known_noise or options.noisetype))
    target = "noisy" if options.method == "noise2noise" else "clean"
    return Regression(target, options.loss, parse_noise(options.noisetype))


def default_loss(method, noisetype):
    """The loss whose optimum is the clean image."""
    if method == "noise2noise":
        for kind, loss in (("impulse", "robust"), ("text", "l1")):
            if kind in noisetype:
                return loss
    return "l2"


# The published order of the eight pairs; `picks_of_published` is for comparing with recorded cases.
PUBLISHED_PAIRS = np.array([[0, 1], [0, 2], [1, 3], [2, 3], [1, 0], [2, 0], [3, 1], [3, 2]])


def picks_of_published(index):
    """Turns published pair numbers 0..7, [H/2, W/2], into the bits of `draw_picks`."""
    first, second = PUBLISHED_PAIRS[index, 0], PUBLISHED_PAIRS[index, 1]
    return np.stack([first // 2 == 1, first % 2 == 1, first % 2 == second % 2])
