import argparse

import numpy as np
import paddle
import pytest

from arch_unet import PlainOps, build_network
from denoising.cli import UserError
from denoising.inference import checkpoint, distributed
from denoising.training.options import get_parser, parse_options
from denoising.training.state import Training


def training(*flags):
    flags = ["--data_dir", ".", "--n_feature", 2, "--patchsize", 32, *flags]
    options, _ = parse_options(get_parser(), flags)
    return Training(options, PlainOps())


def set_all(network, value):
    for parameter in network.parameters():
        parameter.set_value(paddle.full_like(parameter, value))


def test_a_young_average_forgets_its_first_weights():
    made = training("--ema", 0.9)
    set_all(made.averaged, 0.0)
    set_all(made.network, 1.0)
    expected = 0.0
    for step in range(1, 101):
        made.step = step
        made._average()
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + 1 - decay
        assert float(made.averaged.parameters()[0].mean()) == pytest.approx(expected, abs=1e-5)
        if step == 1:
            assert expected == pytest.approx(9 / 11)  # without the warm-up 0.1
    assert decay == 0.9


def test_without_an_average_the_network_itself_is_saved():
    made = training("--ema", 0)
    assert made.averaged is made.network


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_saved(tmp_path, wrong):
    made = training()
    weight = made.network.parameters()[-1]
    weight.set_value(paddle.full_like(weight, wrong))
    for save in (lambda: made.save_weights(tmp_path / "w.pdparams"), lambda: made.save_state(tmp_path)):
        with pytest.raises(UserError, match="not finite at step 0"):
            save()
    assert not list(tmp_path.iterdir())


def test_a_training_starts_from_weights_and_so_does_its_average(tmp_path):
    paddle.seed(11)
    network = build_network(n_feature=2)
    checkpoint.save_network(tmp_path / "w.pdparams", checkpoint.network_state(network), network.options)
    made = training()
    made.start_from(tmp_path / "w.pdparams")
    for started in (made.network, made.averaged):
        for a, b in zip(started.parameters(), network.parameters(), strict=True):
            assert np.array_equal(a.numpy(), b.numpy())


def test_gradients_are_averaged_over_processes_and_not_summed(monkeypatch):
    """Three processes of this one's gradients, and of those plus 3 and minus 6."""
    weights = [paddle.create_parameter([2, 3], "float32") for _ in range(2)]
    weights.append(paddle.create_parameter([4], "float32"))  # has no gradient
    given = [np.arange(6, dtype=np.float32).reshape(2, 3) + i for i in range(2)]
    sum(((weight * paddle.to_tensor(value)).sum() for weight, value in zip(weights, given, strict=False))).backward()

    def all_reduce(tensor):
        tensor.set_value(tensor + (tensor + 3) + (tensor - 6))

    monkeypatch.setattr(distributed, "WORLD_SIZE", 3)
    monkeypatch.setattr(distributed, "dist", argparse.Namespace(all_reduce=all_reduce))
    distributed.average_gradients(weights)
    for weight, value in zip(weights, given, strict=False):
        np.testing.assert_allclose(weight.grad.numpy(), value - 1, rtol=1e-6)
    assert weights[2].grad is None
