"""Paddle's own post-training quantisation: a model.pdmodel that Paddle Inference executes in 8 bits.

>>> write_pdmodel(network, nodes, crops, folder)  # nodes of quantization.fit, crops as NCHW arrays
"""

import contextlib
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from denoising import cli
from denoising.cli import UserError
from denoising.export.writing import export
from denoising.runtimes.paddle_inference import captured


def write_pdmodel(network, nodes, images, folder):
    """Writes an 8-bit model.pdmodel by Paddle's own quantisation of the stretched network.

    Its transposed convolutions stay in float, as Paddle's 8-bit ones fail, and so does the last layer. How ranges are
    chosen makes no difference here: Paddle knows only ranges that are symmetric, and those are wide enough for all.
    """
    if any(node.kind == "norm" for node in nodes) or network.options.get("norm", "none") != "none":
        raise UserError("--format: networks with normalisation are quantised as onnx only")
    saved = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    with tempfile.TemporaryDirectory(prefix="quantise-") as temporary:
        try:
            _set_weights(network, nodes)
            program = export(network, Path(temporary), "pdmodel")
        finally:
            network.set_state_dict(saved)
        quantise_program(program, images, folder)


def quantise_program(program, images, folder, ranges=None):
    """Quantises a float .pdmodel, all of whose convolutions but the last become 8-bit.

    Static graphs and what else a process has loaded get into each other's way: it has one of its own.

    Args:
        program: the path of model.pdmodel, beside its model.pdiparams.
        images: NCHW float32 arrays.
        folder: where the 8-bit program and weights go.
        ranges: the largest magnitude of each convolution's input, in the program's order; from the images by default.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=cli.start_worker) as pool:
        pool.submit(_quantise_here, program, images, str(folder), ranges).result()


def _quantise_here(program, images, folder, ranges):
    import paddle
    from paddle.base import core
    from paddle.static.quantization import PostTrainingQuantization

    class GivenRanges(PostTrainingQuantization):
        """The same with given ranges, where there are any; of the last convolution there is none."""

        def _update_program(self):
            self._quantized_threshold.update(zip(inputs, ranges or (), strict=False))
            super()._update_program()

    description = core.ProgramDesc(program.read_bytes())
    block = description.block(0)  # lives as long as that
    operators = [block.op(index) for index in range(block.op_size())]
    inputs = [op.input("Input")[0] for op in operators if op.type() == "conv2d"]
    (entry,) = [op.output("Out")[0] for op in operators if op.type() == "feed"]
    guard = paddle.pir_utils.OldIrGuard() if hasattr(paddle.pir_utils, "OldIrGuard") else contextlib.nullcontext()
    scope = paddle.static.Scope()
    # It prints to both streams and draws bars.
    with captured(), guard, paddle.static.scope_guard(scope):
        paddle.enable_static()
        quantiser = GivenRanges(
            executor=paddle.static.Executor(paddle.CPUPlace()), scope=scope,
            model_dir=str(program.parent), model_filename=program.name, params_filename="model.pdiparams",
            data_loader=lambda: ({entry: image} for image in images),
            batch_size=1, batch_nums=len(images), algo="abs_max", onnx_format=True,
            quantizable_op_type=["conv2d"], skip_tensor_list=inputs[-1:],
            weight_quantize_type="channel_wise_abs_max", activation_quantize_type="range_abs_max",
        )  # fmt: skip
        quantiser.quantize()
        quantiser.save_quantized_model(folder, model_filename=program.name, params_filename="model.pdiparams")


def _set_weights(network, nodes):
    """Puts the nodes' weights back into the network's layers: what `trace` has done, undone."""
    layers = dict(network.named_sublayers())
    unshuffled = {node.name for node in nodes if node.kind == "unshuffle"}
    for node in nodes:
        if node.kind == "conv":
            layer, weight, bias = layers[node.name], node.weight, node.bias
            if node.inputs[0] in unshuffled:
                weight = weight.reshape(len(bias), 4, -1, *weight.shape[2:]).swapaxes(1, 2).reshape(weight.shape)
            if list(layer.weight.shape) != list(weight.shape):
                # Four blocks of a 1x1 convolution were a transposed one.
                bias = bias[: len(bias) // 4]
                weight = weight.reshape(2, 2, len(bias), -1).transpose(3, 2, 0, 1)
            layer.weight.set_value(np.ascontiguousarray(weight))
            layer.bias.set_value(np.ascontiguousarray(bias))
