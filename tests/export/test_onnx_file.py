"""ONNX files that compute what the network computes, also after its channels are stretched for 8 bits."""

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
from denoising.export import onnx_graph, quantization, writing

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
    assert exported.channels == writing.channels_in(network)
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
    crops = [nchw(64, 64, writing.channels_in(network), seed) for seed in range(2)]
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
