"""Paddle's own 8 bits with ranges that were learnt in a training."""

import pytest

from denoising import cli, machine
from denoising.export import writing
from denoising.export.calibration import decibels
from denoising.export.paddle_quantization import quantise_program
from denoising.runtimes.choice import open_runtime, runtime_options

paddle = pytest.importorskip("paddle")


@pytest.mark.skipif(not machine.adds_bytes_exactly(), reason="8-bit sums overflow on this CPU")
def test_given_ranges_are_those_that_are_rounded_to(weights, tmp_path):
    network, _ = writing.load_exportable(weights)
    program = writing.export(network, tmp_path, "pdmodel")
    image = writing.noisy_pictures(1, 3, 64, 96)
    with paddle.no_grad():
        expected = network(paddle.to_tensor(image)).numpy()
    quality = {}
    for name, ranges in (("found", None), ("given", [0.1] * 19)):
        quantise_program(program, [image], tmp_path / name, ranges)
        options = runtime_options(model_dir=str(tmp_path / name), precision="int8")
        runtime = open_runtime(options, trusted=True)
        assert runtime.facts["convolutions"]["int8"] == 19
        quality[name] = decibels([expected], [runtime(image)])
    # Of the image's numbers up to 1, the given ranges clip most.
    assert quality["found"] > quality["given"] + 6


def test_a_cpu_that_would_round_the_weights_once_more_is_refused(weights, tmp_path, monkeypatch):
    network, _ = writing.load_exportable(weights)
    program = writing.export(network, tmp_path, "pdmodel")
    quantise_program(program, [writing.noisy_pictures(1, 3, 64, 96)], tmp_path / "int8")
    monkeypatch.setattr(machine, "cpu_flags", lambda: ["avx2"])
    with pytest.raises(cli.UserError, match="^--precision: int8 needs a CPU with VNNI instructions"):
        open_runtime(runtime_options(model_dir=str(tmp_path / "int8"), precision="int8"), trusted=True)
