"""The networks, and nothing else.

    >>> network = build_network("unet", n_channel=3, n_feature=48)
    >>> denoised = network(noisy)  # NCHW float32, any height and width

A network states *what* is computed in terms of a few operations (convolution with activation, pooling,
upsampling with concatenation, normalisation, and the way in and out); `network.ops` decides *how*. `PlainOps` uses
Paddle's layers, runs on every device and is what gets exported. The engine for CPUs puts its own in its place.
"""

import itertools
import math
import warnings
from typing import NamedTuple

import paddle
from paddle import nn
from paddle.nn import functional as F

SLOPE = 0.2  # of the published network's leaky ReLU


class PlainOps:
    """Paddle's own layers, NCHW. Slopes are numbers here, because an export cannot see SLOPE."""

    bytes_per_pixel = 5100  # working memory of one pass, measured with the default network (make bench)

    def enter(self, image):
        return image

    def leave(self, image):
        return image

    def conv(self, x, layer, slope=0.2):
        """A convolution and a leaky ReLU; a slope of 1 is none."""
        x = layer(x)
        return x if slope == 1.0 else F.leaky_relu(x, slope)

    def pool(self, x):
        return F.max_pool2d(x, 2)

    def upsample_cat(self, x, layer, skip):
        """A 2x2 transposed convolution, with `skip` beside its result."""
        return paddle.concat([layer(x), skip], axis=1)

    def enlarge_cat(self, x, skip):
        """Each pixel four times, with `skip` beside the result."""
        return paddle.concat([F.interpolate(x, scale_factor=2, mode="nearest"), skip], axis=1)

    def unshuffle(self, x):
        """Half the size, with 2x2 pixels as channels."""
        # Not F.pixel_unshuffle, which cannot be exported for any size.
        quarters = [x[:, :, row::2, column::2] for row in (0, 1) for column in (0, 1)]
        return paddle.flatten(paddle.stack(quarters, axis=2), 1, 2)

    def shuffle(self, x):
        """The way back."""
        return F.pixel_shuffle(x, 2)

    def add(self, x, y):
        return x + y

    def norm(self, x, layer, slope=0.2):
        """A normalisation and a leaky ReLU."""
        return F.leaky_relu(layer(x), slope)

    def calm(self, render):
        """How a render [N, 3, H, W] looks without fireflies and noise, and how far its pixels are to be trusted.

        Light that is brighter than ten times the median around it, and 0.05, counts as that: first, tone-mapped and
        blurred, [N, 3, H, W]; then the logarithm of the share that this leaves to the channel that loses most,
        [N, 1, H, W]. Both go into one tensor [N, 4, H, W].
        """
        held = hold_fireflies(render)
        trust = paddle.log((held + 1e-6) / (render + 1e-6)).min(axis=1, keepdim=True)
        return paddle.concat([blur(tone_map(held)), trust], axis=1)

    def weigh(self, light, guide, precision, trust, groups, radius, dilation=1):
        """For each pixel p the mean of the light of its neighbours q, weighed by how alike they are.

        The logarithm of a weight is trust(q) minus half the sum over k of precision_k(p) (guide_k(p) - guide_k(q))^2,
        in which the distance of p and q, in steps, is the last of the guides. Guides of one group share a precision.

        Args:
            light: [N, C, H, W]; here and below NCHW float32, whatever the operations around it compute with.
            guide: [N, K, H, W].
            precision: [N, groups, H, W].
            trust: [N, 1, H, W], the logarithm of how much a pixel counts, whoever its neighbour is.
            groups: how many guides are in each; the last one is the distance's, 1.
            radius: in steps; there are (2 radius + 1)^2 neighbours, less those outside the image.
            dilation: the length of a step in pixels.
        """
        channels, reach = light.shape[1], radius * dilation
        shares = paddle.split(precision, len(groups), axis=1)
        precision = paddle.concat([x.expand([-1, n, -1, -1]) for x, n in zip(shares, groups, strict=True)], axis=1)
        around = F.pad(paddle.concat([light, guide], axis=1), [reach] * 4)
        trusts = F.pad(trust, [reach] * 4, value=-1e4)
        total, result = 0.0, 0.0
        for down in range(0, 2 * reach + 1, dilation):
            for right in range(0, 2 * reach + 1, dilation):
                rows, columns = slice(down, down - 2 * reach or None), slice(right, right - 2 * reach or None)
                there = around[:, :, rows, columns]
                distance = ((down - reach) ** 2 + (right - reach) ** 2) / dilation**2
                unlike = (precision[:, :-1] * (guide - there[:, channels:]) ** 2).sum(axis=1, keepdim=True)
                weight = paddle.exp(trusts[:, :, rows, columns] - 0.5 * (unlike + distance * precision[:, -1:]))
                total = total + weight
                result = result + weight * there[:, :channels]
        return result / total


def reflect_indices(size, multiple):
    """Indices that extend 0..size-1 to a multiple by reflection, however much longer than `size` that is.

    `size` is an int, or a scalar tensor in a graph of dynamic size. The formula is a triangle wave; its |x| is
    written with clip because `paddle.abs` and `minimum` break in Paddle 3.3's legacy graphs.
    """
    padded = (size + multiple - 1) // multiple * multiple
    period = max(2 * size - 2, 1) if isinstance(size, int) else paddle.clip(2 * size - 2, min=1)
    offset = size - 1 - paddle.arange(padded, dtype="int64") % period
    return size - 1 - paddle.clip(offset, min=0) - paddle.clip(-offset, min=0)


class DenoisingNetwork(nn.Layer):
    """What all networks share: any size in, the same size out, and the numbers to build the same one again."""

    multiple = 32  # height and width that the pooling pyramid divides
    margin = 160  # a pixel's result depends on no input farther away than this (rounded up to `multiple`)
    memory = 1.0  # working memory of one pass for each pixel, in units of UNet's with 48 features
    # Of each stage of `run_stage`: what its windows' sides are multiples of, and its own margin, in its own pixels.
    # Empty where the network can only be run as a whole.
    stages: dict[str, tuple[int, int]] = {}
    needs_large_windows = False  # whether of those of half a gigabyte a third and more would be overlap
    paints = True  # whether the pixels of the result come out of its layers, as exact as these are
    dark: float | None = None  # below which the square root that its layers see becomes a line, if they see one
    guesses = False  # whether a second image follows the result while it trains, which learns from the target, too
    needs_buffers = True  # whether one that takes nine channels does so in any case: a render, its albedo and normals

    def __init__(self, **options):
        super().__init__()
        self.options = options
        self.ops = PlainOps()

    @property
    def n_channel(self):
        """How many channels come out."""
        return self.options["n_channel"]

    @property
    def n_input(self):
        """How many channels go in."""
        return self.options.get("n_input") or self.n_channel

    @property
    def takes_images(self):
        """Whether an image alone goes in: no mosaic with the deviation of its noise, no render with its buffers."""
        return self.n_input == self.n_channel

    def forward(self, x):
        # In eager mode a fitting image skips the gather; an exported graph always has it, for any size.
        image, height, width = x, x.shape[2], x.shape[3]
        if paddle.in_dynamic_mode() and height % self.multiple == 0 and width % self.multiple == 0:
            return self.result(self.ops.leave(self.body(self.ops.enter(x))), image)
        x = paddle.index_select(x, reflect_indices(height, self.multiple), axis=2)
        x = paddle.index_select(x, reflect_indices(width, self.multiple), axis=3)
        y = self.ops.leave(self.body(self.ops.enter(x)))
        return self.result(y[:, :, :height, :width], image)

    def result(self, y, image):
        """What is made of the layers' output and the image in the end, NCHW float32."""
        return y


def conv(in_channels, out_channels, size=3, slope=SLOPE):
    """A convolution with He initialisation for the leaky ReLU that follows, and zero bias."""
    deviation = math.sqrt(2.0 / (1 + slope**2) / (in_channels * size * size))
    layer = nn.Conv2D(in_channels, out_channels, size, padding=size // 2)
    nn.initializer.Normal(0.0, deviation)(layer.weight)
    nn.initializer.Constant(0.0)(layer.bias)
    return layer


class UpsampleCat(nn.Layer):
    """Doubles the size by a 2x2 transposed convolution; its forward is `ops.upsample_cat`."""

    def __init__(self, in_nc, out_nc):
        super().__init__()
        self.deconv = nn.Conv2DTranspose(in_nc, out_nc, kernel_size=2, stride=2)
        nn.initializer.Normal(0.0, math.sqrt(1.0 / in_nc))(self.deconv.weight)
        nn.initializer.Constant(0.0)(self.deconv.bias)


class UNet(DenoisingNetwork):
    """The U-Net of Neighbor2Neighbor (1.26 M parameters at 48 features; layer names as published)."""

    # The deep part, with five sixths of the reach, sees an eighth of the size: so a large image need not be computed
    # in windows that overlap by 320 pixels, but by 48 alone, once the deep part is known.
    stages = {"encode": (8, 8), "deep": (4, 20), "decode": (8, 24)}
    scale = 8  # of the deep part

    def __init__(self, in_nc=3, out_nc=3, n_feature=48, n_head=None):
        # The published network has a head of 96 channels at its 48 features: twice the features, here at any size.
        n, head = n_feature, n_head or 2 * n_feature
        super().__init__(arch="unet", n_channel=in_nc, n_feature=n, n_head=head)
        self.memory = max(n, head / 2) / 48

        # Encoder
        self.enc_conv0 = conv(in_nc, n)
        self.enc_conv1 = conv(n, n)
        self.enc_conv2 = conv(n, n)
        self.enc_conv3 = conv(n, n)
        self.enc_conv4 = conv(n, n)
        self.enc_conv5 = conv(n, n)
        self.enc_conv6 = conv(n, n)

        # Decoder
        self.up5 = UpsampleCat(n, n)
        self.dec_conv5a = conv(2 * n, 2 * n)
        self.dec_conv5b = conv(2 * n, 2 * n)
        self.up4 = UpsampleCat(2 * n, 2 * n)
        self.dec_conv4a = conv(3 * n, 2 * n)
        self.dec_conv4b = conv(2 * n, 2 * n)
        self.up3 = UpsampleCat(2 * n, 2 * n)
        self.dec_conv3a = conv(3 * n, 2 * n)
        self.dec_conv3b = conv(2 * n, 2 * n)
        self.up2 = UpsampleCat(2 * n, 2 * n)
        self.dec_conv2a = conv(3 * n, 2 * n)
        self.dec_conv2b = conv(2 * n, 2 * n)
        self.up1 = UpsampleCat(2 * n, 2 * n)

        # Head
        self.dec_conv1a = conv(2 * n + in_nc, head)
        self.dec_conv1b = conv(head, head)
        self.nin_a = conv(head, head, size=1)
        self.nin_b = conv(head, head, size=1)
        self.nin_c = conv(head, out_nc, size=1)
        # A small last layer starts the output near zero: without it the first steps only shrink it.
        self.nin_c.weight.set_value(self.nin_c.weight * 0.1)

    def body(self, x):
        skips = self.encode(x)
        return self.decode(skips, self.deep(skips[-1]))

    def run_stage(self, stage, x, deep=None):
        """One part of `forward`, on NCHW float32 of fitting sizes: image -> "encode" -> "deep" -> "decode" -> image.

        "decode" takes the image again, and what "deep" made of it.
        """
        enter, leave = self.ops.enter, self.ops.leave
        if stage == "encode":
            return leave(self.encode(enter(x))[-1])
        if stage == "deep":
            return leave(self.deep(enter(x)))
        return leave(self.decode(self.encode(enter(x)), enter(deep)))

    def encode(self, x):
        """The image and its three reductions, the last of which is what the deep part sees."""
        conv, pool = self.ops.conv, self.ops.pool
        pool0 = x
        x = conv(x, self.enc_conv0)
        x = conv(x, self.enc_conv1)
        pool1 = x = pool(x)
        pool2 = x = pool(conv(x, self.enc_conv2))
        pool3 = pool(conv(x, self.enc_conv3))
        return [pool0, pool1, pool2, pool3]

    def deep(self, pool3):
        """All that takes place at an eighth of the size and below."""
        conv, pool, upsample_cat = self.ops.conv, self.ops.pool, self.ops.upsample_cat
        pool4 = x = pool(conv(pool3, self.enc_conv4))
        x = pool(conv(x, self.enc_conv5))
        x = conv(x, self.enc_conv6)

        x = upsample_cat(x, self.up5.deconv, pool4)
        x = conv(conv(x, self.dec_conv5a), self.dec_conv5b)
        x = upsample_cat(x, self.up4.deconv, pool3)
        return conv(conv(x, self.dec_conv4a), self.dec_conv4b)

    def decode(self, skips, x):
        """The denoised image, from the deep part's result and what the encoder has kept."""
        conv, upsample_cat = self.ops.conv, self.ops.upsample_cat
        pool0, pool1, pool2 = skips[:3]
        # One layer a line: within conv(conv(x)) the first input would stay in memory until the second is done.
        x = upsample_cat(x, self.up3.deconv, pool2)
        x = conv(x, self.dec_conv3a)
        x = conv(x, self.dec_conv3b)
        x = upsample_cat(x, self.up2.deconv, pool1)
        x = conv(x, self.dec_conv2a)
        x = conv(x, self.dec_conv2b)
        x = upsample_cat(x, self.up1.deconv, pool0)
        x = conv(x, self.dec_conv1a)
        x = conv(x, self.dec_conv1b)
        x = conv(x, self.nin_a)
        x = conv(x, self.nin_b)
        return conv(x, self.nin_c, slope=1.0)


# Paddle warns of this at each step of a batch normalisation, though it is what we want.
warnings.filterwarnings("ignore", "When training, we now always track global mean and variance")

NORMS = {"none": None, "batch": nn.BatchNorm2D, "instance": nn.InstanceNorm2D}


class UNetN2N(DenoisingNetwork):
    """The U-Net of Noise2Noise, Table 2 of its paper: 991,203 parameters at 48 features and 3 channels.

    Nearest-neighbour upsampling, a slope of 0.1 after every convolution but the last, which is linear. With `norm`
    a normalisation stands between each convolution and its activation, as in pytorch-noise2noise.

    With nine inputs, the buffers of a render (renders.py), what comes out is light: the render is divided by albedo,
    blurred, multiplied by the exponential of what the network says, and by albedo again. So it starts where light is
    already smooth and textures are in place, and neither dark nor bright parts dominate a relative loss.
    """

    slope = 0.1
    needs_large_windows = True

    def __init__(self, in_nc=3, out_nc=3, n_feature=48, norm="none"):
        n = n_feature
        super().__init__(arch="unet_n2n", n_channel=out_nc, n_input=in_nc, n_feature=n, norm=norm)
        self.memory = n / 48
        widths = {"enc_conv0": (in_nc, n)} | {f"enc_conv{i}": (n, n) for i in range(1, 7)}
        for level in (5, 4, 3, 2):
            widths[f"dec_conv{level}a"] = (2 * n if level == 5 else 3 * n, 2 * n)
            widths[f"dec_conv{level}b"] = (2 * n, 2 * n)
        wide, narrow = (4 * n + 2) // 3, (2 * n + 2) // 3  # 64 and 32 at the paper's 48
        widths |= {"dec_conv1a": (2 * n + in_nc, wide), "dec_conv1b": (wide, narrow)}
        for name, (inputs, outputs) in widths.items():
            self.add_sublayer(name, conv(inputs, outputs, slope=self.slope))
            if norm != "none":
                self.add_sublayer(f"norm_{name}", NORMS[norm](outputs))
        self.dec_conv1c = conv(narrow, out_nc, slope=1.0)
        # As in UNet: the first steps need not shrink the output.
        self.dec_conv1c.weight.set_value(self.dec_conv1c.weight * 0.1)

    def forward(self, x):
        y = super().forward(x)
        if self.options["n_input"] != 9:
            return y
        surface = x[:, 3:6] + 0.05
        # The code of renders.py undone, and the texture; a firefly counts as twenty times white at most.
        light = (0.01 * paddle.expm1(5.0 * x[:, :3]) / surface).clip(0.0, 20.0)
        around = F.avg_pool2d(light, 11, stride=1, padding=5, exclusive=True)
        # Clipped to 12000 times white at most, so that an untrained network cannot overflow.
        return 0.01 * paddle.exp((paddle.log1p(around / 0.01) + 2.0 * y).clip(-5.0, 14.0)) * surface

    def _conv(self, x, name):
        if self.options["norm"] == "none":
            return self.ops.conv(x, getattr(self, name), self.slope)
        x = self.ops.conv(x, getattr(self, name), slope=1.0)
        return self.ops.norm(x, getattr(self, f"norm_{name}"), self.slope)

    def body(self, x):
        pools = [x]
        x = self._conv(x, "enc_conv0")
        for i in range(1, 6):
            x = self.ops.pool(self._conv(x, f"enc_conv{i}"))
            pools.append(x)
        pools.pop()  # the deepest goes on, it is no skip
        x = self._conv(x, "enc_conv6")
        for level in (5, 4, 3, 2, 1):
            x = self.ops.enlarge_cat(x, pools.pop())
            x = self._conv(self._conv(x, f"dec_conv{level}a"), f"dec_conv{level}b")
        return self.ops.conv(x, self.dec_conv1c, slope=1.0)


def _same_for_each_channel(channels, kernel, bias, more=0):
    """A convolution that is given, for `channels` by themselves; [K, K]. There may be more outputs, which are 0."""
    layer = conv(channels, channels + more, kernel.shape[0])
    layer.weight.set_value(paddle.eye(channels + more, channels)[:, :, None, None] * kernel)
    layer.bias.set_value(paddle.concat([paddle.full([channels], bias), paddle.zeros([more])]))
    layer.weight.stop_gradient = layer.bias.stop_gradient = True
    return layer


class HalfSizeUNet(DenoisingNetwork):
    """What `UNetLite`, `UNetRaw` and `JointBilateral` share: a U-Net of three levels on an image of half the size.

    The image is taken apart into one of half the size and four times the channels, where all that is learnt happens.
    """

    multiple = 8
    slope = 0.1
    blocks: dict[str, int] = {}  # how many residual blocks follow a layer

    def add_layers(self, in_nc, outputs, size, n_feature):
        """The layers of `at_half_size`, which gives so many channels of the full size."""
        n, wide, widest = n_feature, (4 * n_feature + 2) // 3, 2 * n_feature
        widths = {
            "enc_conv1a": (4 * in_nc, n), "enc_conv1b": (n, n), "enc_conv2": (n, wide), "enc_conv3": (wide, widest),
            "dec_conv2": (2 * wide, wide), "dec_conv1": (2 * n, n),
        }  # fmt: skip
        for name, (inputs, outgoing) in widths.items():
            self.add_sublayer(name, conv(inputs, outgoing, slope=self.slope))
            for block in self._blocks_of(name):
                first, second = (conv(outgoing, outgoing, slope=self.slope) for _ in range(2))
                second.weight.set_value(paddle.zeros_like(second.weight))  # so it adds nothing until it has learnt to
                self.add_sublayer(f"{block}a", first)
                self.add_sublayer(f"{block}b", second)
        self.up2 = UpsampleCat(widest, wide)
        self.up1 = UpsampleCat(wide, n)
        self.last = conv(n, 4 * outputs, size=size, slope=1.0)

    def at_half_size(self, x):
        """The U-Net: N x in_nc x H x W to N x outputs x H x W."""
        pool, upsample_cat = self.ops.pool, self.ops.upsample_cat
        x = self._layer(self.ops.unshuffle(x), "enc_conv1a")
        skip1 = x = self._layer(x, "enc_conv1b")
        skip2 = x = self._layer(pool(x), "enc_conv2")
        x = self._layer(pool(x), "enc_conv3")
        x = self._layer(upsample_cat(x, self.up2.deconv, skip2), "dec_conv2")
        x = self._layer(upsample_cat(x, self.up1.deconv, skip1), "dec_conv1")
        return self.ops.shuffle(self.ops.conv(x, self.last, slope=1.0))

    def _layer(self, x, name):
        """A convolution, and the residual blocks that follow it."""
        x = self.ops.conv(x, getattr(self, name), self.slope)
        for block in self._blocks_of(name):
            inner = self.ops.conv(x, getattr(self, f"{block}a"), self.slope)
            x = self.ops.add(x, self.ops.conv(inner, getattr(self, f"{block}b"), self.slope))
        return x

    def _blocks_of(self, name):
        return [f"{name}_block{index}" for index in range(self.blocks.get(name, 0))]


class UNetLite(HalfSizeUNet):
    """A U-Net for small images and few minutes: 266,604 parameters at 48 features (docs/lite.md).

    What the U-Net gives is added to the blurred image, which is denoised in its way already; added to the noisy one, it
    would have to take the noise away first. A pixel costs an eleventh of what it does in `UNet`.

    A careful network also says of each pixel which share of it stays as it is. So where there is no noise, nothing is
    lost, though all fine detail of the result would have to come through the layers.
    """

    arch = "unet_lite"
    margin = 32
    memory = 0.2

    def __init__(self, in_nc=3, out_nc=3, n_feature=48, careful=False):
        options = {"careful": True} if careful else {}
        super().__init__(arch=self.arch, n_channel=out_nc, n_input=in_nc, n_feature=n_feature, **options)
        self.memory *= n_feature / 48
        if in_nc != out_nc:
            raise ValueError(f"{self.arch} adds to its input, which has {in_nc} channels and not {out_nc}")
        shares = 1 if careful else 0
        self.add_layers(in_nc, out_nc + shares, 3, n_feature)
        self.last.weight.set_value(self.last.weight * 0.1)
        # Not learnt: the image around zero, and the blurred one, whose border is grey then and not black.
        binomial = paddle.to_tensor([0.25, 0.5, 0.25])
        self.centre = _same_for_each_channel(in_nc, paddle.ones([1, 1]), -0.5)
        self.blur = _same_for_each_channel(in_nc, paddle.outer(binomial, binomial), 0.5, more=shares)

    def result(self, y, image):
        if "careful" not in self.options:
            return y
        painted, share = y[:, :-1], y[:, -1:]
        share = limited(share, 0.0, 1.0) if self.training else share.clip(0.0, 1.0)
        return painted + share * (image - painted)

    def body(self, x):
        x = self.ops.conv(x, self.centre, slope=1.0)
        blurred = self.ops.conv(x, self.blur, slope=1.0)
        return self.ops.add(self.at_half_size(x), blurred)


class UNetDeep(UNetLite):
    """`UNetLite` with residual blocks, most of them where the image is small and they cost little.

    They begin by adding nothing, so the weights of a `UNetLite` are a start for this network: it computes the same.
    """

    arch = "unet_deep"
    margin = 88
    memory = 0.29
    blocks = {"enc_conv2": 1, "enc_conv3": 2, "dec_conv2": 1, "dec_conv1": 1}


class UNetPhotons(UNetDeep):
    """`UNetDeep` on square roots, in which the noise of photons is about equally strong everywhere.

    What it has to learn is nearly what a network for Gaussian noise knows, so weights of `UNetDeep` are a good start.
    """

    arch = "unet_photons"
    dark = 0.04

    def forward(self, x):
        return squared(super().forward(rooted(x, self.dark)), self.dark)


def rooted(x, dark):
    """The square root, but below about `dark` a line through black, on which read-out noise keeps its sign."""
    return x / (dark / 2 + (dark**2 / 4 + x * x) ** 0.5) ** 0.5


def squared(x, dark):
    """The way back."""
    return x * (x * x + dark) ** 0.5


class UNetRaw(HalfSizeUNet):
    """A U-Net for the mosaic of a sensor, which is told how strong the noise is (docs/models/raw.md).

    Two channels go in: the mosaic, whose first row begins with red, and the standard deviation of the noise at each of
    its pixels. What comes out is the mosaic without its noise. At half the size each colour of the mosaic is a channel
    of its own.

    The network sees detail in units of the noise and says in the same units what is to be taken away. So one network
    fits all sensitivities, what it can spoil is never more than a few deviations, and a smaller deviation than the true
    one removes less.
    """

    margin = 40
    paints = False  # the mosaic itself does not go through the layers

    def __init__(self, in_nc=2, out_nc=1, n_feature=48):
        super().__init__(arch="unet_raw", n_channel=out_nc, n_input=in_nc, n_feature=n_feature)
        self.memory = 0.25 * n_feature / 48
        if (in_nc, out_nc) != (2, 1):
            raise ValueError(f"unet_raw takes 2 channels and gives 1, not {in_nc} and {out_nc}")
        self.add_layers(4, 1, 3, n_feature)
        self.last.weight.set_value(self.last.weight * 0.1)

    def body(self, x):
        return self.at_half_size(x)

    def forward(self, x):
        mosaic, deviation = x[:, :1], x[:, 1:].clip(1e-5)
        near = same_colour_mean(mosaic, 2)
        far = same_colour_mean(near, 4)
        # Beyond a few deviations it hardly matters how far something is above the noise: the arsinh is half logarithm.
        detail = [paddle.asinh(0.5 * (finer - coarser) / deviation) for finer, coarser in ((mosaic, near), (near, far))]
        seen = paddle.concat([*detail, far.clip(0.0).sqrt(), 0.25 * paddle.log(deviation / 0.02)], axis=1)
        return mosaic - deviation * super().forward(seen)


def same_colour_mean(mosaic, step):
    """The mean of the nine pixels that lie so many apart, the nearer the more; at the border, of those that exist."""
    binomial = paddle.to_tensor([0.25, 0.5, 0.25])
    kernel = paddle.outer(binomial, binomial)[None, None]
    total, share = (F.conv2d(x, kernel, padding=step, dilation=step) for x in (mosaic, paddle.ones_like(mosaic)))
    return total / share


class Round(NamedTuple):
    """A pass of `JointBilateral`, and how it is before the first step."""

    radius: int
    dilation: int
    share: float  # how much of its result is taken
    deviations: tuple  # by which the GROUPS may differ


class JointBilateral(HalfSizeUNet):
    """A joint bilateral filter that learns whom to average: the network for renders (docs/rendering.md).

    Each pixel's light becomes a mean of its neighbours', whose weights follow from how alike they are in albedo,
    normal, colour and features that are learnt. So constant light stays constant, light is never negative, and nothing
    can appear in the picture that is not in the render.
    The plain filter of benchmarks/render_comparison.py comes first. A U-Net at half the size (as in `UNetLite`) sees
    the render, its buffers and the filter's result, and paints that result anew. The painting is not shown. It tells
    which pixels are alike, better than the noisy render does, and while the network trains it is compared with the
    target, too, which the features and all else learn from faster than from the filtered light alone.
    For each pixel the U-Net also tells the features, how much of a difference counts, how far light is fetched from,
    and how far its own is to be trusted. All this is nearly zero before the first step, and the result the filter's.

    Several rounds follow one another, each on the light of the one before, which it is mixed with. Linear light is
    averaged, as it is and divided by the albedo; the U-Net tells which of them, where textures were divided out, is
    taken. Where a lens is out of focus or an edge moves, albedo and normals are noisy themselves: a round of their own,
    in a small window, comes before all others.
    """

    margin = 72  # 32 of the U-Net, and the reach of the filter and of all rounds
    memory = 1.0  # nearly all of it numbers of the full size, however many features there are
    needs_large_windows = True
    paints = False  # light is averaged in float32 whatever the layers compute with
    needs_buffers = False  # where albedo and normal are zero, colour alone decides
    guesses = True
    N_LEARNT = 4  # features of a round
    GROUPS = (3, 3, 3, N_LEARNT, 1)  # channels that share a factor of their precision: of albedo, normal, ..., distance
    FIRST = Round(6, 1, 1.0, (0.1, 0.3, 0.05, 1.0, 4.0))
    SECOND = Round(4, 4, 0.0, FIRST.deviations)
    OF_BUFFERS = Round(1, 1, 0.0, (0.6, 2.0, 0.1, 1.0, 0.6))

    def __init__(self, in_nc=9, out_nc=3, n_feature=48):
        super().__init__(arch="joint_bilateral", n_channel=out_nc, n_input=in_nc, n_feature=n_feature)
        if (in_nc, out_nc) != (9, 3):
            raise ValueError(f"joint_bilateral takes 9 channels and gives 3, not {in_nc} and {out_nc}")
        # Of a round: its features, the logarithms of the groups' factors, trust, and the shares of the painting and of
        # the round. Of all: both rounds, the share of light without albedo, the painting, and the buffers' round.
        n = self.N_LEARNT + len(self.GROUPS) + 3
        sizes = {"first": n, "second": n, "divided": 1, "painting": 3, "of_buffers": n}
        ends = itertools.accumulate(sizes.values())
        self.parts = {name: slice(end - size, end) for (name, size), end in zip(sizes.items(), ends, strict=True)}
        self.add_layers(in_nc + 3, sum(sizes.values()), 1, n_feature)
        # Only the features begin at random: without any differences between them they would never learn.
        is_feature = [size == n and channel < self.N_LEARNT for size in sizes.values() for channel in range(size)]
        scale = paddle.to_tensor([0.01 * begins for begins in is_feature for _ in range(4)])
        self.last.weight.set_value(self.last.weight * scale[:, None, None, None])

    def body(self, x):
        return self.at_half_size(x)

    def forward(self, x):
        code, buffers = paddle.split(x, [3, 6], axis=1)
        render = 0.01 * paddle.expm1(5.0 * code)  # the code of renders.py undone
        # Where there is no surface, or nobody knows it, light is not divided.
        unknown = (buffers.abs().sum(axis=1, keepdim=True) == 0).astype("float32")
        surface = 0.05 + 0.95 * unknown
        divisor = buffers[:, :3] + surface
        colour, trust = paddle.split(self.ops.calm(render), [3, 1], axis=1)

        filtered = self.filtered(render, paddle.concat([buffers, colour], axis=1), trust)
        guidance = super().forward(paddle.concat([x, paddle.log1p(100.0 * filtered) / 5.0], axis=1))

        def told(name):  # only when it is needed: all of it is most of what a large frame takes
            return guidance[:, self.parts[name]]

        painted = filtered * limited(told("painting"), -4.0, 4.0).exp()
        shown, equal = tone_map(painted), paddle.zeros_like(trust)
        buffers = self.round(self.OF_BUFFERS, buffers, buffers, colour, shown, equal, told("of_buffers"))
        light = paddle.concat([render, render / divisor], axis=1)
        light = self.round(self.FIRST, light, buffers, colour, shown, trust, told("first"))
        # What was left of fireflies is spread already.
        light = self.round(self.SECOND, light, buffers, tone_map(light[:, :3]), shown, equal, told("second"))
        result = mixed(light[:, :3], light[:, 3:] * (buffers[:, :3] + surface), told("divided"))
        return paddle.concat([result, painted], axis=1) if self.training else result

    def filtered(self, render, guide, trust):
        """The plain filter: the first round as it would be without a U-Net."""
        *of_buffers, _, of_distance = [deviation**-2.0 for deviation in self.FIRST.deviations]
        precision = [paddle.full_like(trust, value) for value in (*of_buffers, of_distance)]
        precision = paddle.concat(precision, axis=1)
        return self.ops.weigh(render, guide, precision, trust, (3, 3, 3, 1), self.FIRST.radius, self.FIRST.dilation)

    def round(self, kind, values, buffers, colour, shown, trust, guidance):
        """One pass over light, or over the buffers; `guidance` is what the U-Net gives for it."""
        learnt, factors = guidance[:, : self.N_LEARNT], limited(guidance[:, self.N_LEARNT : -3], -8.0, 8.0).exp()
        starts = paddle.to_tensor([deviation**-2.0 for deviation in kind.deviations]).reshape([1, -1, 1, 1])
        guide = paddle.concat([buffers, mixed(colour, shown, guidance[:, -2:-1]), learnt], axis=1)
        trust = trust + limited(guidance[:, -3:-2], -8.0, 8.0)
        result = self.ops.weigh(values, guide, starts * factors, trust, self.GROUPS, kind.radius, kind.dilation)
        return mixed(values, result, kind.share + guidance[:, -1:])


# --- Light, as JointBilateral sees it ---------------------------------------------------------------------------


def tone_map(light):
    """As in renders.py; its gradient is finite at black."""
    return (light / (1.0 + light)).clip(1e-8) ** (1 / 2.2)


def mixed(first, second, share):
    """From the first, at a share of 0 and below, to the second, at 1 and above."""
    return first + limited(share, 0.0, 1.0) * (second - first)


def limited(value, low, high):
    """Clipped, but a gradient that leads back within the limits passes: what has reached one would else stay there."""
    within = value.clip(low, high)
    if value.stop_gradient:
        return within
    beyond = (value - within).detach()
    result = value - beyond
    result.register_hook(lambda gradient: gradient * (gradient * beyond >= 0).astype(gradient.dtype))
    return result


def hold_fireflies(light):
    """Light that is at most ten times the median around it, and a little."""
    around = F.pad(light, [1, 1, 1, 1], mode="replicate")
    rows = [around[:, :, i : i - 2 or None] for i in range(3)]
    median = median9([row[:, :, :, i : i - 2 or None] for row in rows for i in range(3)])
    return paddle.minimum(light, 10.0 * median + 0.05)


def median9(values):
    """The median of nine tensors, by comparing pairs (the network of Devillard, 1998)."""
    values = list(values)
    pairs = "12 45 78 01 34 67 12 45 78 03 58 47 36 14 25 47 42 64 42"
    for low, high in pairs.split():
        a, b = values[int(low)], values[int(high)]
        values[int(low)], values[int(high)] = paddle.minimum(a, b), paddle.maximum(a, b)
    return values[4]


def blur(image, deviation=1.5, radius=6):
    """The Gaussian mean of what is in the image around each pixel."""
    places = [-0.5 * (place / deviation) ** 2 for place in range(-radius, radius + 1)]
    kernel = paddle.exp(paddle.to_tensor(places))
    channels = image.shape[1]
    image = paddle.concat([image, paddle.ones_like(image[:, :1])], axis=1)
    for shape, padding in (([-1, 1], [radius, 0]), ([1, -1], [0, radius])):
        weight = kernel.reshape([1, 1, *shape]).tile([channels + 1, 1, 1, 1])
        image = F.conv2d(image, weight, padding=padding, groups=channels + 1)
    return image[:, :channels] / image[:, channels:]


NETWORKS = {
    "unet": UNet,
    "unet_n2n": UNetN2N,
    "unet_lite": UNetLite,
    "unet_deep": UNetDeep,
    "unet_photons": UNetPhotons,
    "unet_raw": UNetRaw,
    "joint_bilateral": JointBilateral,
}


def build_network(arch="unet", n_channel=3, n_feature=48, n_input=None, **more):
    """Builds one of NETWORKS with freshly initialised weights.

    What goes in has as many channels as what comes out, unless `n_input` says otherwise: 9 for a render with albedo and
    normals, 2 for a mosaic with the deviation of its noise. In `more` are what only one network has: `n_head` (unet),
    `norm` (unet_n2n), `careful` (unet_lite, unet_deep).
    """
    return NETWORKS[arch](in_nc=n_input or n_channel, out_nc=n_channel, n_feature=n_feature, **more)
