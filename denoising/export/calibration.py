"""From a trained network and some images to a file that computes in 8 bits, measured against the float network.

>>> crops = read_crops("my_noisy_images", parse_noise("none"), 3)
>>> made = quantise(network, record, crops, method="kl", runtime="openvino")
>>> Path("model_int8.onnx").write_bytes(made.data)
"""

import contextlib
import itertools
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from denoising import cli
from denoising.cli import UserError
from denoising.export.onnx_graph import INPUT, multiplications, to_onnx, trace
from denoising.export.quantization import fit, observe, search_floats, sources
from denoising.export.writing import export
from denoising.files import images
from denoising.imaging.metrics import psnr
from denoising.imaging.pixels import as_channels
from denoising.runtimes import paddle_inference

CALIBRATE, MEASURE = 16, 8  # crops
SIDE = 192


@dataclass(frozen=True)
class Crop:
    """A noisy piece of an image, float32 NCHW with N = 1, and the clean one if noise was added here."""

    noisy: np.ndarray
    clean: np.ndarray | None


@dataclass(frozen=True)
class Quantised:
    """What `quantise` has made, and how far it is from the float network."""

    data: bytes | None  # the ONNX file
    floats: tuple  # names of the layers that stayed in float
    gains: dict  # dB that each layer would gain, alone in float
    decibels: float  # PSNR of its results against the float network's
    psnr_float: float | None  # of both against the clean crops, if there are any
    psnr: float | None
    engine: str  # what measured it


# --- Images -------------------------------------------------------------------------------------------------


def read_crops(flag, folder, noise, channels, seed=0, count=CALIBRATE + MEASURE):
    """Random crops of a folder's images: one of each as far as they last, then another of each."""
    paths = images.find_images(flag, folder)
    rng = np.random.default_rng(seed)
    crops, broken = [], set()
    for path in itertools.islice(itertools.cycle(rng.permutation(paths)), 2 * count + len(paths)):
        if len(crops) == count or len(broken) == len(paths):
            break
        if path in broken:
            continue
        try:
            pages = images.read_image(path).pages
            image = as_channels(pages[rng.integers(len(pages))], channels, path)
        except UserError as error:
            cli.note(f"{error}; passed over")
            broken.add(path)
            continue
        top, left = (rng.integers(0, max(size - SIDE, 0) + 1) for size in image.shape[:2])
        clean = images.to_01(image[top : top + SIDE, left : left + SIDE])
        noisy = clean if noise.name == "none" else noise.add(clean, rng)
        noisy = np.ascontiguousarray(noisy.transpose(2, 0, 1)[None], np.float32)
        crops.append(Crop(noisy, None if noise.name == "none" else clean))
    if not crops:
        raise UserError(f"{flag}: no image of {folder} can be read")
    return crops


# --- Quantising ---------------------------------------------------------------------------------------------


def quantise(network, record, crops, method, runtime, floats="auto", budget=0.01, kind="onnx", folder=None):
    """Calibrates on the first crops and measures on the last.

    Args:
        network: a trained one.
        record: facts about it, of `record_of`.
        crops: of `read_crops`.
        method: of quantization.METHODS.
        runtime: which calibrates and measures: openvino or onnxruntime.
        floats: names of convolutions to leave in float, or "auto" for a search.
        budget: the part of all multiplications that the search may leave in float.
        kind: onnx, or pdmodel for Paddle Inference, which is written into `folder`.
        folder: of the pdmodel.
    """
    nodes = trace(network)
    chosen = crops[: max(len(crops) * 2 // 3, 1)]
    held = crops[len(chosen) :] or crops
    costs = multiplications(nodes, 256, 256)
    unknown = set(floats) - set(costs) if floats != "auto" else set()
    if unknown:
        raise UserError(f"--float_layers: there is no layer {min(unknown)}; there are {', '.join(costs)}")
    with tempfile.TemporaryDirectory(prefix="quantise-") as temporary:
        path = Path(temporary) / "model.onnx"

        def opened(data, precision):
            path.write_bytes(data)
            options = paddle_inference.engine_options(runtime=runtime, precision=precision, model_file=str(path))
            return paddle_inference.open_engine(options)

        names = [name for name in sources(nodes) if name != INPUT]
        looking = opened(to_onnx(nodes, network, record, also=names), "fp32")
        noisy = [crop.noisy for crop in chosen]
        seen = observe(lambda x: {INPUT: x} | dict(zip(names, looking.every(x)[1:], strict=True)), noisy, nodes)
        expected = [looking(crop.noisy) for crop in held]
        stretched, eight = fit(nodes, seen, method)

        def made_with(some):
            return to_onnx(stretched, network, record, replace(eight, floats=frozenset(some)))

        def measured(engine):
            return _decibels(expected, [engine(crop.noisy) for crop in held])

        gains = {}
        if kind == "pdmodel":
            laid_out = [node.inputs[0] for node in nodes if node.kind == "blocks"]
            floats = (*laid_out, [*costs][-1])
            write_pdmodel(network, stretched, chosen, folder)
            engine = paddle_inference.open_engine(
                paddle_inference.engine_options(model_dir=str(folder), precision="int8")
            )
        else:
            if floats == "auto":
                search = search_floats(costs, lambda some: measured(opened(made_with(some), "int8")), budget)
                floats, gains = search
            engine = opened(made_with(floats), "int8")
        results = [engine(crop.noisy) for crop in held]
        before, after = (_mean_psnr(held, each) for each in (expected, results))
        return Quantised(
            None if kind == "pdmodel" else path.read_bytes(),
            tuple(name for name in costs if name in floats), gains, _decibels(expected, results), before, after,
            engine.describe(),
        )  # fmt: skip


def _decibels(expected, results):
    """PSNR of all results together."""
    errors = [np.square(a.astype(np.float64) - b).ravel() for a, b in zip(expected, results, strict=True)]
    return float(-10 * np.log10(np.concatenate(errors).mean() + 1e-30))


def _mean_psnr(held, results):
    """As val.py scores: results rounded to 8 bits."""
    if held[0].clean is None:
        return None
    scores = []
    for crop, result in zip(held, results, strict=True):
        clean, image = (images.from_01(each, np.uint8) for each in (crop.clean, result[0].transpose(1, 2, 0)))
        scores.append(psnr(clean, image, 255))
    return float(np.mean(scores))


# --- Paddle's own -------------------------------------------------------------------------------------------


def write_pdmodel(network, nodes, crops, folder):
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
        # Static graphs and what else a process has loaded get into each other's way: it has one of its own.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context, initializer=cli.start_worker) as pool:
            pool.submit(_quantise_program, program, [crop.noisy for crop in crops], str(folder)).result()


def _quantise_program(program, crops, folder):
    """Paddle's quantisation of a float .pdmodel, all of whose convolutions but the last become 8-bit."""
    import paddle
    from paddle.base import core
    from paddle.static.quantization import PostTrainingQuantization

    description = core.ProgramDesc(program.read_bytes())
    block = description.block(0)  # lives as long as that
    operators = [block.op(index) for index in range(block.op_size())]
    last = [op.input("Input")[0] for op in operators if op.type() == "conv2d"][-1]
    (entry,) = [op.output("Out")[0] for op in operators if op.type() == "feed"]
    guard = paddle.pir_utils.OldIrGuard() if hasattr(paddle.pir_utils, "OldIrGuard") else contextlib.nullcontext()
    scope = paddle.static.Scope()
    # It talks on both streams and draws bars.
    with paddle_inference.captured(), guard, paddle.static.scope_guard(scope):
        paddle.enable_static()
        quantiser = PostTrainingQuantization(
            executor=paddle.static.Executor(paddle.CPUPlace()), scope=scope,
            model_dir=str(program.parent), model_filename=program.name, params_filename="model.pdiparams",
            data_loader=lambda: ({entry: crop} for crop in crops),
            batch_size=1, batch_nums=len(crops), algo="abs_max", onnx_format=True,
            quantizable_op_type=["conv2d"], skip_tensor_list=[last],
            weight_quantize_type="channel_wise_abs_max", activation_quantize_type="range_abs_max",
        )  # fmt: skip
        quantiser.quantize()
        quantiser.save_quantized_model(folder, model_filename=program.name, params_filename="model.pdiparams")
        paddle.disable_static()


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
