"""The networks, and nothing else.

    >>> network = build_network("unet", n_channel=3, n_feature=48)
    >>> denoised = network(noisy)  # NCHW float32, any height and width

A network states *what* is computed in terms of a few operations (convolution with activation, pooling,
upsampling with concatenation, normalisation, and the way in and out); `network.ops` decides *how*. `PlainOps` uses
Paddle's layers, runs on every device and is what gets exported. The engine for CPUs puts its own in its place.
"""

import math
import warnings

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

    def __init__(self, **options):
        super().__init__()
        self.options = options
        self.ops = PlainOps()

    def forward(self, x):
        # In eager mode a fitting image skips the gather; an exported graph always has it, for any size.
        height, width = x.shape[2], x.shape[3]
        if paddle.in_dynamic_mode() and height % self.multiple == 0 and width % self.multiple == 0:
            return self.ops.leave(self.body(self.ops.enter(x)))
        x = paddle.index_select(x, reflect_indices(height, self.multiple), axis=2)
        x = paddle.index_select(x, reflect_indices(width, self.multiple), axis=3)
        y = self.ops.leave(self.body(self.ops.enter(x)))
        return y[:, :, :height, :width]


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


def _same_for_each_channel(channels, kernel, bias):
    """A convolution that is given, for `channels` by themselves; [K, K]."""
    layer = conv(channels, channels, kernel.shape[0])
    layer.weight.set_value(paddle.eye(channels)[:, :, None, None] * kernel)
    nn.initializer.Constant(bias)(layer.bias)
    layer.weight.stop_gradient = layer.bias.stop_gradient = True
    return layer


class UNetLite(DenoisingNetwork):
    """A U-Net for small images and few minutes: 266,604 parameters at 48 features (docs/lite.md).

    The image is taken apart into one of half the size and four times the channels, where all that is learnt takes
    place, on three levels. What comes out is added to the blurred image, which is denoised in its way already; added
    to the noisy one, it would have to take the noise away first. A pixel costs an eleventh of what it does in `UNet`.
    """

    multiple = 8
    margin = 32
    slope = 0.1

    def __init__(self, in_nc=3, out_nc=3, n_feature=48):
        super().__init__(arch="unet_lite", n_channel=out_nc, n_input=in_nc, n_feature=n_feature)
        self.memory = 0.2 * n_feature / 48
        if in_nc != out_nc:
            raise ValueError(f"unet_lite adds to its input, which has {in_nc} channels and not {out_nc}")
        n, wide, widest = n_feature, (4 * n_feature + 2) // 3, 2 * n_feature
        widths = {
            "enc_conv1a": (4 * in_nc, n), "enc_conv1b": (n, n), "enc_conv2": (n, wide), "enc_conv3": (wide, widest),
            "dec_conv2": (2 * wide, wide), "dec_conv1": (2 * n, n),
        }  # fmt: skip
        for name, (inputs, outputs) in widths.items():
            self.add_sublayer(name, conv(inputs, outputs, slope=self.slope))
        self.up2 = UpsampleCat(widest, wide)
        self.up1 = UpsampleCat(wide, n)
        self.last = conv(n, 4 * out_nc, slope=1.0)
        self.last.weight.set_value(self.last.weight * 0.1)
        # Not learnt: the image around zero, and the blurred one, whose border is grey then and not black.
        binomial = paddle.to_tensor([0.25, 0.5, 0.25])
        self.centre = _same_for_each_channel(in_nc, paddle.ones([1, 1]), -0.5)
        self.blur = _same_for_each_channel(in_nc, paddle.outer(binomial, binomial), 0.5)

    def body(self, x):
        conv, pool, upsample_cat = self.ops.conv, self.ops.pool, self.ops.upsample_cat
        x = conv(x, self.centre, slope=1.0)
        blurred = conv(x, self.blur, slope=1.0)
        x = conv(self.ops.unshuffle(x), self.enc_conv1a, self.slope)
        skip1 = x = conv(x, self.enc_conv1b, self.slope)
        skip2 = x = conv(pool(x), self.enc_conv2, self.slope)
        x = conv(pool(x), self.enc_conv3, self.slope)
        x = conv(upsample_cat(x, self.up2.deconv, skip2), self.dec_conv2, self.slope)
        x = conv(upsample_cat(x, self.up1.deconv, skip1), self.dec_conv1, self.slope)
        return self.ops.add(self.ops.shuffle(conv(x, self.last, slope=1.0)), blurred)


NETWORKS = {"unet": UNet, "unet_n2n": UNetN2N, "unet_lite": UNetLite}


def build_network(arch="unet", n_channel=3, n_feature=48, n_input=None, **more):
    """Builds one of NETWORKS with freshly initialised weights.

    What goes in has as many channels as what comes out, unless `n_input` says otherwise: 9 for a render with albedo and
    normals. In `more` are what only one network has: `n_head` (unet), `norm` (unet_n2n).
    """
    return NETWORKS[arch](in_nc=n_input or n_channel, out_nc=n_channel, n_feature=n_feature, **more)
