"""Shared by the tests of exports: one small network of each kind, its pictures, and its file opened again."""

import numpy as np
import pytest

from conftest import leave, noisy_scene
from denoising.export import quantization, writing
from denoising.runtimes import choice

paddle = pytest.importorskip("paddle")
onnx = pytest.importorskip("onnx")
RUNTIMES = writing.installed_runtimes()
needs_runtime = pytest.mark.skipif(not RUNTIMES, reason="neither onnxruntime nor openvino is installed")
needs_openvino = pytest.mark.skipif("openvino" not in RUNTIMES, reason="openvino is not installed")

NETWORKS = {
    "unet": {"arch": "unet", "n_feature": 6},
    "grey": {"arch": "unet", "n_channel": 1, "n_feature": 5},
    "n2n": {"arch": "unet_n2n", "n_feature": 6},
    "n2n, 5 inputs": {"arch": "unet_n2n", "n_input": 5, "n_feature": 6},
    "n2n, batch": {"arch": "unet_n2n", "n_feature": 6, "norm": "batch"},
    "n2n, instance": {"arch": "unet_n2n", "n_feature": 6, "norm": "instance"},
    "lite": {"arch": "unet_lite", "n_feature": 8},
    "careful": {"arch": "unet_lite", "n_feature": 6, "careful": True},
    "deep": {"arch": "unet_deep", "n_feature": 6},
    "photons": {"arch": "unet_photons", "n_feature": 6},
}


def network_of(kind):
    """A network whose output looks like an image, and whose normalisations and blocks do something."""
    from arch_unet import build_network

    paddle.seed(3)
    network = build_network(**NETWORKS[kind])
    last = [layer for layer in network.sublayers() if isinstance(layer, paddle.nn.Conv2D)][-1]
    last.weight.set_value(last.weight * 10)
    if "careful" in network.options:
        leave(network, 0.4)
    for name, parameter in network.named_parameters():
        if "_block" in name and name.endswith("b.weight"):  # zero at the start
            parameter.set_value(0.1 * paddle.randn(parameter.shape))
    for layer in network.sublayers():
        if isinstance(layer, paddle.nn.BatchNorm2D):
            for tensor in (layer._mean, layer._variance, layer.weight, layer.bias):
                tensor.set_value(paddle.rand(tensor.shape) + 0.5)
    network.eval()
    return network


def nchw(height, width, channels, seed=0):
    """A noisy picture as networks get it; more than three channels are pictures beside each other."""
    pictures = [noisy_scene(height, width, 3, seed + i) for i in range(-(-channels // 3))]
    return (np.concatenate(pictures, 2)[..., :channels] / 255).astype(np.float32).transpose(2, 0, 1)[None]


def opened(data, folder, runtime, precision="fp32", trusted=True):
    path = folder / f"{precision}.onnx"
    path.write_bytes(data)
    options = choice.runtime_options(runtime=runtime, precision=precision, model_file=str(path), cpu_threads=1)
    return choice.open_runtime(options, trusted)


def graph_of(data):
    return onnx.load_from_string(data)


def histograms_of(network, nodes, crops, folder):
    names = [name for name in quantization.sources(nodes) if name != "noisy"]
    data = writing.to_onnx(nodes, network, {}, also=names)
    runtime = opened(data, folder, RUNTIMES[0])
    return quantization.observe(
        lambda x: {"noisy": x} | dict(zip(names, runtime.every(x)[1:], strict=True)), crops, nodes
    )
