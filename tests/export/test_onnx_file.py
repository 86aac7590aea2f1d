"""ONNX files that compute what the network computes, also after its channels are stretched for 8 bits."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from networks import (
    NETWORKS,
    RUNTIMES,
    graph_of,
    histograms_of,
    nchw,
    needs_openvino,
    needs_runtime,
    network_of,
    opened,
)

from denoising import cli, machine
from denoising.export import onnx_file, onnx_graph, quantization, writing

paddle = pytest.importorskip("paddle")
onnx = pytest.importorskip("onnx")


@needs_runtime
@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("kind", NETWORKS)
def test_an_onnx_file_computes_what_the_network_computes(kind, runtime, tmp_path):
    network = network_of(kind)
    record = writing.record_of(network, network.options)
    data = writing.write(network, tmp_path, "onnx", record).read_bytes()
    exported = opened(data, tmp_path, runtime)
    assert exported.channels == network.n_input
    assert exported.facts["convolutions"] == {
        "fp32": sum("conv" in n.op_type.lower() for n in graph_of(data).graph.node)
    }
    for batch, height, width in ((1, 1, 1), (2, 33, 57), (1, 64, 32), (3, 97, 2)):
        x = np.concatenate([nchw(height, width, exported.channels, seed) for seed in range(batch)])
        with paddle.no_grad():
            expected = network(paddle.to_tensor(x)).numpy()
        # The deepest tensors of small images have a few pixels, by whose deviation a normalisation divides.
        tolerance = 1e-3 if kind == "n2n, instance" else 2e-5
        np.testing.assert_allclose(exported(x), expected, atol=tolerance * max(1, np.abs(expected).max()))
    assert expected.std() > 0.01


def test_the_multiplications_are_counted():
    from denoising.inference.checkpoint import load_network

    def total(kind):
        return sum(onnx_graph.multiplications(onnx_graph.trace(network_of(kind)), 64, 32).values())

    # By hand: full size, then one, two, ... poolings; an upsampling belongs to the size that it makes.
    n, h = 6, 12
    full = 9 * (3 * n + n * n + (2 * n + 3) * h + h * h) + 2 * h * h + h * 3 + 4 * n * n
    deeper = [9 * (n * n + 3 * n * 2 * n + 4 * n * n) + 4 * n * n] * 3
    deepest = 9 * (n * n + 2 * n * 2 * n + 4 * n * n) + n * n
    total_by_hand = full + sum(c / 4 ** (i + 1) for i, c in enumerate(deeper)) + deepest / 4**4 + 9 * n * n / 4**5
    assert total("unet") == 64 * 32 * total_by_hand
    network, _ = load_network("best_model.pdparams")
    count = sum(onnx_graph.multiplications(onnx_graph.trace(network), 256, 256).values())
    assert round(count / 256**2, -3) == 297000  # as docs/engine.md has it


@needs_runtime
def test_a_wrong_slope_is_a_failed_export(weights, tmp_path, monkeypatch, capsys):
    import export_model

    right = writing.to_onnx

    def spoilt(*arguments, **more):
        # Garbage in LeakyRelu's alpha, as a converter once wrote it.
        model = graph_of(right(*arguments, **more))
        del model.metadata_props[:]
        for node in model.graph.node:
            if node.op_type == "LeakyRelu":
                node.attribute[0].f = 2e-43
        return model.SerializeToString()

    monkeypatch.setattr(writing, "to_onnx", spoilt)
    flags = ["--model_path", weights, "--save_dir", tmp_path / "out", "--format", "onnx"]
    assert export_model.main(flags) == 1
    assert "export failed" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []
    monkeypatch.undo()
    assert export_model.main(flags) == 0
    assert capsys.readouterr().out.count("largest difference from the network, ") == len(RUNTIMES)
    # The same weights again, but not others.
    assert export_model.main(flags) == 0
    (tmp_path / "out" / "model.onnx").write_bytes(b"mine")
    with pytest.raises(cli.UserError, match="--save_dir: .*model.onnx exists, made from other weights"):
        export_model.main(flags)


@needs_openvino
@pytest.mark.skipif("avx512_bf16" not in machine.cpu_flags(), reason="this CPU has no bfloat16")
def test_bf16_is_computed_in_bf16_and_centred(tmp_path):
    network = network_of("unet")
    data = writing.write(network, tmp_path, "onnx", {}).read_bytes()
    runtimes = {precision: opened(data, tmp_path, "openvino", precision) for precision in ("fp32", "bf16")}
    assert runtimes["bf16"].facts["convolutions"] == {"bf16": 25}
    x = nchw(64, 64, 3)
    results = {precision: runtime(x) for precision, runtime in runtimes.items()}
    assert 1e-4 < np.abs(results["fp32"] - results["bf16"]).max() < 0.1
    # The last layer's result is rounded around 0.5, where bfloat16 has a bit more than around 1.
    assert (np.ascontiguousarray(results["bf16"]).view(np.uint32) & 0xFFFF).any()


@needs_runtime
@pytest.mark.parametrize("kind", NETWORKS)
def test_stretched_channels_compute_the_same(kind, tmp_path):
    network = network_of(kind)
    nodes = writing.trace(network)
    crops = [nchw(64, 64, network.n_input, seed) for seed in range(2)]
    stretched, int8 = quantization.fit(nodes, histograms_of(network, nodes, crops, tmp_path), "kl")
    runtime = opened(writing.to_onnx(stretched, network, {}), tmp_path, RUNTIMES[0])
    with paddle.no_grad():
        expected = network(paddle.to_tensor(crops[0])).numpy()
    assert np.abs(runtime(crops[0]) - expected).max() < 1e-4 * np.abs(expected).max()
    # Something was stretched, and what is moved has one scale.
    weights = zip(nodes, stretched, strict=True)
    assert any(a.weight is not None and not np.allclose(a.weight, b.weight, rtol=0.1) for a, b in weights)
    for node in stretched:
        if node.kind in ("pool", "concat", "blocks", "double", "unshuffle"):
            assert {int8.scales[name] for name in node.inputs} == {int8.scales[node.name]}


def evaluated(data, x):
    """The file's result by ONNX's own evaluator, which computes as the standard says, with no runtime's tricks."""
    from onnx.reference import ReferenceEvaluator

    model = graph_of(data)
    model.opset_import[0].version = 19  # the first in which it knows how to quantise; nothing else has changed
    return ReferenceEvaluator(model).run(None, {"noisy": x})[0]


@needs_runtime
@pytest.mark.parametrize(
    ("kind", "floats", "counted"),
    # Not those that stay in float, nor those whose result is for them alone; the last result always is float.
    [("unet", (), 25 - 1), ("unet", ("enc_conv0", "nin_c"), 25 - 2 - 1), ("lite", (), 10 - 1)],
)
def test_an_8_bit_file_computes_nearly_what_the_network_computes(kind, floats, counted, tmp_path):
    network = network_of(kind)
    nodes = writing.trace(network)
    x = nchw(32, 32, 3)
    stretched, int8 = quantization.fit(nodes, histograms_of(network, nodes, [x, nchw(32, 32, 3, 1)], tmp_path), "mse")
    data = writing.to_onnx(stretched, network, {"name": "mine"}, replace(int8, floats=frozenset(floats)))
    with paddle.no_grad():
        expected = network(paddle.to_tensor(x)).numpy()
    error = np.sqrt(np.mean((evaluated(data, x) - expected) ** 2))
    assert 1e-5 < error < 0.1 * expected.std()

    model = graph_of(data)
    assert (model.opset_import[0].version, model.ir_version) == (17, 9)
    record = json.loads({entry.key: entry.value for entry in model.metadata_props}["denoiser"])
    made = {name: node for node in model.graph.node for name in node.output}
    convolutions = [node.name for node in nodes if node.kind == "conv"]
    in_8_bits = {name for name in convolutions if f"{name}/weight" in made}
    assert in_8_bits == set(convolutions) - set(floats)
    assert record == {"name": "mine", "precision": "int8", "int8_convolutions": counted}
    # What an activation gets is rounded before it where its result is in 8 bits.
    activations = {node.name.removesuffix("/act"): node for node in model.graph.node if node.op_type == "LeakyRelu"}
    again = {node.input[0].removesuffix("/act") for node in model.graph.node if node.op_type == "QuantizeLinear"}
    assert len(again & set(activations)) > counted / 2
    for name in activations:
        rounded = made[activations[name].input[0]].name == f"{name}/before"
        assert rounded == (name in again & in_8_bits)


def test_a_float_file_names_its_precision_and_its_checksum(tmp_path):
    network = network_of("grey")
    data = writing.to_onnx(writing.trace(network), network, {"text": "x" * 300})
    model = graph_of(data)
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(facts["denoiser"]) == {"text": "x" * 300, "precision": "fp32"}
    seal = data.rindex(b"\x72")
    assert facts["sha256"] == hashlib.sha256(data[:seal]).hexdigest()
    assert [
        (end.name, [d.dim_param or d.dim_value for d in end.type.tensor_type.shape.dim])
        for end in (*model.graph.input, *model.graph.output)
    ] == [("noisy", ["n", 1, "h", "w"]), ("denoised", ["n", 1, "h", "w"])]
    for size in ((1, 1), (5, 33)):
        x = nchw(*size, 1)
        with paddle.no_grad():
            expected = network(paddle.to_tensor(x)).numpy()
        np.testing.assert_allclose(evaluated(data, x), expected, atol=1e-5 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("size", [0, 1, 100, 126, 127, 128, 129, 300, 70_000])
def test_records_of_any_length_are_read_again(size):
    data = onnx_file.sealed(b"", {"a": "x" * size})
    assert json.loads(onnx.load_from_string(data).metadata_props[0].value) == {"a": "x" * size}
