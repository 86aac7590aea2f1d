"""From a trained network and some images to a file that computes in 8 bits, measured against the float network.

>>> crops = read_crops("--images", "my_noisy_images", parse_noise("none"), 3)
>>> made = quantise(network, record, crops, method="kl", runtime="openvino")
>>> Path("model_int8.onnx").write_bytes(made.data)
"""

import itertools
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from denoising import cli
from denoising.cli import UserError
from denoising.export.onnx_file import to_onnx
from denoising.export.onnx_graph import multiplications, trace
from denoising.export.paddle_quantization import write_pdmodel
from denoising.export.quantization import fit, observe, search_floats, sources
from denoising.files import images
from denoising.imaging.metrics import psnr
from denoising.imaging.pixels import as_channels, from_01, to_01
from denoising.runtimes import choice

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
    measured_by: str  # one line on the runtime


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
        clean = to_01(image[top : top + SIDE, left : left + SIDE])
        noisy = clean if noise.name == "none" else noise.add(clean, rng)
        if noise.name != "none" and len(crops) % 2:
            noisy = noisy.clip(0, 1)  # as files have it; the published protocol has the whole noise
        noisy = np.ascontiguousarray(noisy.transpose(2, 0, 1)[None], np.float32)
        crops.append(Crop(noisy, None if noise.name == "none" else clean))
    if not crops:
        raise UserError(f"{flag}: no image of {folder} can be read")
    return crops


# --- Quantising ---------------------------------------------------------------------------------------------


def quantise(network, record, crops, method, runtime, floats="auto", budget=0.01, kind="onnx", folder=None):
    """Calibrates on the first two thirds of the crops and measures on the others.

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

        def opened(data, precision):
            path = Path(temporary) / "model.onnx"
            path.write_bytes(data)
            options = choice.runtime_options(runtime=runtime, precision=precision, model_file=str(path))
            return choice.open_runtime(options, trusted=True)

        histograms, expected = _run_float(network, nodes, record, chosen, held, opened)
        stretched, scales = fit(nodes, histograms, method)

        def opened_int8(layers):
            int8 = replace(scales, floats=frozenset(layers))
            return opened(to_onnx(stretched, network, record, int8), "int8")

        data, gains = None, {}
        if kind == "pdmodel":
            floats = {*(node.inputs[0] for node in nodes if node.kind == "blocks"), [*costs][-1]}
            write_pdmodel(network, stretched, [crop.noisy for crop in chosen], folder)
            options = choice.runtime_options(model_dir=str(folder), precision="int8")
            measuring = choice.open_runtime(options, trusted=True)
        else:
            if floats == "auto":

                def measure(layers):
                    return decibels(expected, _denoised(opened_int8(layers), held))

                floats, gains = search_floats(costs, measure, budget)
            measuring = opened_int8(floats)
            data = measuring.path.read_bytes()
        results = _denoised(measuring, held)
    return Quantised(
        data, tuple(name for name in costs if name in floats), gains, decibels(expected, results),
        _mean_psnr(held, expected), _mean_psnr(held, results), measuring.describe(),
    )  # fmt: skip


def _run_float(network, nodes, record, chosen, held, opened):
    """What the float network does: histograms of its tensors on some crops, and its results on others."""
    names = [*sources(nodes)]
    runtime = opened(to_onnx(nodes, network, record, also=names), "fp32")

    def run(x):
        return dict(zip(names, runtime.every(x)[1:], strict=True))

    return observe(run, [crop.noisy for crop in chosen], nodes), _denoised(runtime, held)


def _denoised(runtime, crops):
    return [runtime(crop.noisy) for crop in crops]


def decibels(expected, results):
    """PSNR of all results together against those expected, where white is 1."""
    errors = [np.square(a.astype(np.float64) - b).ravel() for a, b in zip(expected, results, strict=True)]
    return float(-10 * np.log10(np.concatenate(errors).mean() + 1e-30))


def _mean_psnr(held, results):
    """As val.py scores: results rounded to 8 bits."""
    if held[0].clean is None:
        return None
    scores = []
    for crop, result in zip(held, results, strict=True):
        clean, image = (from_01(picture, np.uint8) for picture in (crop.clean, result[0].transpose(1, 2, 0)))
        scores.append(psnr(clean, image, 255))
    return float(np.mean(scores))
