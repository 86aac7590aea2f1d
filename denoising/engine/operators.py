"""A faster way to train and run the networks on CPUs: oneDNN, channels last, float32 or bfloat16.

    >>> ops, line = operators.choose("auto", "fp32")
    >>> print(line, file=sys.stderr)
    >>> network.ops = ops

The engine is a few operators in C++ (`ops.cc`) on the oneDNN library in Paddle's own wheel, compiled
on first use. Parameters, their gradients and the optimiser stay in float32 and in Paddle's hands.
"""

import paddle
from paddle.nn import functional as F

from arch_unet import SLOPE, PlainOps
from denoising import machine
from denoising.cli import UserError
from denoising.engine import build


class EngineOps:
    """The operations of a network on tensors that lie channels last: [batch, height, width, channels]."""

    def __init__(self, precision="fp32"):
        self.half = precision == "bf16"
        self.bytes_per_pixel = 950 if self.half else 1900  # working memory of one pass of the default network

    def enter(self, image):
        return _run("denoise_enter", image, self.half)

    def leave(self, image):
        return _run("denoise_leave", image, self.half)

    def conv(self, x, layer, slope=SLOPE):
        # Where no activation follows, the result is an image, or what is added to one: bfloat16 has too few shades.
        if slope == 1.0 and self.half and not paddle.is_grad_enabled():
            return _run("denoise_exact_conv", x, layer.weight, layer.bias, slope)
        return _run("denoise_conv", x, layer.weight, layer.bias, slope, not x.stop_gradient)

    def pool(self, x):
        return _run("denoise_pool", x)

    def upsample_cat(self, x, layer, skip):
        needs = not x.stop_gradient, not skip.stop_gradient
        return _run("denoise_upsample", x, layer.weight, layer.bias, skip, *needs)

    def enlarge_cat(self, x, skip):
        return _run("denoise_enlarge", x, skip)

    def unshuffle(self, x):
        if self.half:
            x = x.astype("bfloat16")  # if it is float32, see `conv`
        return _run("denoise_rearrange", x, True)

    def shuffle(self, x):
        return _run("denoise_rearrange", x, False)

    def add(self, x, y):
        return _run("denoise_add", x, y, not x.stop_gradient, not y.stop_gradient)

    def norm(self, x, layer, slope=SLOPE):
        # Paddle's layers want channels first; they see float32, as the statistics should.
        y = F.leaky_relu(layer(self.leave(x)), slope)
        return _run("denoise_enter", y, self.half)

    def calm(self, render):
        return _run("denoise_calm", render)

    def weigh(self, light, guide, precision, trust, groups, radius, dilation=1):
        return _run("denoise_weigh", light, guide, precision, trust, radius, dilation, list(groups))

    def orthogonalize(self, matrices):
        """See optimizers.py. The matrices are replaced."""
        matrices = [matrix.contiguous() for matrix in matrices]
        _run("denoise_orthogonalize", matrices)
        return matrices


def choose(engine="auto", precision="fp32"):
    """Returns a network's `ops` and one line that says what was chosen and why.

    Args:
        engine: "onednn", "paddle", or "auto" for the first of them that works here.
        precision: "fp32", "bf16" for activations in bfloat16 (the parameters stay in float32), or "auto" for bf16
            where the engine runs and the processor computes in it, else fp32.

    Raises:
        UserError: What was asked for by name cannot be had.
    """
    if engine == "paddle":
        if precision == "bf16":
            raise UserError("--precision bf16: needs the onednn engine, not --engine paddle")
        reason = "as asked"
    else:
        reason = _obstacle()
        if precision == "auto":
            precision = "bf16" if reason is None and "avx512_bf16" in machine.cpu_flags() else "fp32"
        if reason is None and precision == "bf16" and "avx512_bf16" not in machine.cpu_flags():
            raise UserError("--precision bf16: this CPU has no AVX512_BF16 instructions; use fp32")
        if reason is None:
            return EngineOps(precision), f"engine: onednn, {precision}"
        if engine == "onednn":
            raise UserError(f"--engine onednn: {reason}")
    if precision == "bf16":
        raise UserError(f"--precision bf16: needs the onednn engine, but: {reason}")
    return PlainOps(), f"engine: Paddle's own layers ({reason})"


def release_memory():
    """Gives the memory back to the system that the engine keeps for its next tensors, which may be of other sizes."""
    release = getattr(build.load, "release", None)
    if release:
        release()
    machine.trim_memory()


def _obstacle():
    """Why the engine cannot be used here, or None when it is loaded and computes correctly."""
    if paddle.device.get_device() != "cpu":
        return f"it is for CPUs, and {paddle.device.get_device()} is in use"
    try:
        build.load()
    except build.BuildError as error:
        return str(error)
    return None if _is_correct() else "its results differ from Paddle's on this machine"


def _is_correct():
    """Compares a small convolution and its gradients with Paddle's, in a blink."""
    layer = paddle.nn.Conv2D(4, 5, 3, padding=1)
    image = paddle.linspace(-1, 1, 2 * 4 * 6 * 7).reshape([2, 4, 6, 7])
    found = []
    for ops in (PlainOps(), EngineOps()):
        with paddle.enable_grad():  # whoever denoises may have turned gradients off
            result = ops.leave(ops.conv(ops.enter(image), layer))
            found.append([result, *paddle.grad((result * result).sum(), [layer.weight, layer.bias])])
    return all(bool(paddle.allclose(a, b, rtol=1e-3, atol=1e-3)) for a, b in zip(*found, strict=True))


def _run(operator, *arguments):
    # Paddle records a custom operator for backward even under no_grad, and with it keeps every activation of the
    # pass: what is detached leaves nothing to record.
    if not paddle.is_grad_enabled():
        arguments = [a.detach() if isinstance(a, paddle.Tensor) else a for a in arguments]
    # Paddle 3 has it at the first place, 2.6 at the second.
    if hasattr(paddle._C_ops, "_run_custom_op"):
        return paddle._C_ops._run_custom_op(operator, *arguments)[0]
    return paddle.base.core.eager._run_custom_op(operator, *arguments)[0]
