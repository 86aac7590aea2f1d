import argparse
import json

import numpy as np
import paddle
import pytest

from arch_unet import PlainOps, build_network
from denoising.cli import UserError
from denoising.inference import checkpoint, distributed
from denoising.training.methods import Supervised
from denoising.training.options import get_parser, parse_options
from denoising.training.state import STATE, Training


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


# --- Steps, and what is saved between them ------------------------------------------------------------------


def batch(seed=0):
    return [np.random.default_rng([seed, part]).random((2, 3, 32, 32), np.float32) for part in range(2)]


def stepped(made, steps=2):
    for step in range(steps):
        made.train_on(Supervised(), batch(step), 1e-3, 0.0)
    return made


def arrays_of(network):
    return [parameter.numpy() for parameter in network.parameters()]


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(arrays_of(one), arrays_of(other), strict=True))


def test_a_step_counts_moves_the_weights_and_returns_its_losses():
    made, still = stepped(training("--seed", 3), 1), training("--seed", 3)
    assert made.step == 1
    assert not same(made.network, still.network)
    assert same(training("--seed", 3).network, still.network)
    assert not same(training("--seed", 4).network, still.network)
    # After one step the average is 9/11 of the new weights, and the rest of the old ones.
    for average, new, old in zip(*map(arrays_of, (made.averaged, made.network, still.network)), strict=True):
        np.testing.assert_allclose(average, 9 / 11 * new + 2 / 11 * old, atol=1e-6)
    noisy, clean = map(paddle.to_tensor, batch())
    loss, loss1, loss2, Lambda = still.train_on(Supervised(), batch(), 0.0, 0.0)
    expected = float(((training("--seed", 3).network(noisy) - clean) ** 2).mean())
    assert (float(loss), float(loss1), float(loss2), Lambda) == (*[pytest.approx(expected, rel=1e-5)] * 2, 0, 0)


@pytest.mark.parametrize("ema", [0, 0.9])
def test_a_restored_training_goes_on_as_the_saved_one_does(tmp_path, ema):
    saved = stepped(training("--ema", ema, "--seed", 3))
    saved.seconds, saved.best_psnr, saved.waited, saved.images = 12.5, 31.25, 2, "digest"
    saved.save_state(tmp_path)
    state = checkpoint.read_state(tmp_path / STATE)
    about = json.loads(state["@options"])
    assert about["where"] == {
        "step": 2, "seconds": 12.5, "best_psnr": 31.25, "waited": 2, "images": "digest",
    }  # fmt: skip
    assert about["training"] == vars(saved.options)
    restored = training("--ema", ema, "--seed", 4)
    restored.load_state(state, "a.pdparams")
    assert (restored.step, restored.seconds, restored.best_psnr, restored.waited) == (2, 12.5, 31.25, 2)
    for made in (saved, restored):
        stepped(made)
    assert same(saved.network, restored.network)
    assert same(saved.averaged, restored.averaged)
    assert same(saved.averaged, saved.network) == (ema == 0)


@pytest.mark.filterwarnings("ignore:AmpScaler can only be enabled")
def test_what_scales_the_gradients_is_saved_and_restored(tmp_path):
    made, restored = training("--amp"), []
    made.scaler = argparse.Namespace(state_dict=lambda: {"scale": np.float32([8.0]), "count": 3})
    made.save_state(tmp_path)
    state = checkpoint.read_state(tmp_path / STATE)
    assert json.loads(state["@options"])["scaler"] == {"scale": 8.0, "count": 3}
    made.scaler = argparse.Namespace(load_state_dict=restored.append)
    made.load_state(state, "a.pdparams")
    assert restored == [{"scale": 8.0, "count": 3}]
    training().save_state(tmp_path)
    assert json.loads(checkpoint.read_state(tmp_path / STATE)["@options"])["scaler"] == {}


def test_saved_weights_are_the_average_and_say_what_they_are(tmp_path):
    made = stepped(training("--noisetype", "gauss30"))
    made.save_weights(tmp_path / "w.pdparams")
    state = checkpoint.read_state(tmp_path / "w.pdparams")
    about = json.loads(state.pop(checkpoint.OPTIONS_KEY))
    expected = checkpoint.network_state(made.averaged)
    assert state.keys() == expected.keys()
    assert all(np.array_equal(state[name], array) for name, array in expected.items())
    wanted = {"arch": "unet", "n_channel": 3, "n_feature": 2, "step": 2, "method": "neighbor2neighbor",
              "noisetype": "gauss30", "patchsize": 32, "noise_protocol": "fresh"}  # fmt: skip
    assert wanted.items() <= about.items()


def test_the_network_is_that_of_the_options():
    made = training("--arch", "unet_n2n", "--norm", "batch", "--n_channel", 1)
    assert [made.network.options[name] for name in ("arch", "norm", "n_channel", "n_input")] == [
        "unet_n2n", "batch", 1, 1
    ]  # fmt: skip
    options, _ = parse_options(get_parser(), ["--data_dir", ".", "--n_feature", "2", "--arch", "unet_n2n"])
    assert Training(options, PlainOps(), n_input=9).network.options["n_input"] == 9
    made = training()
    assert made.network.training
    assert not made.averaged.training
    assert made.network.ops is made.averaged.ops
    assert all(parameter.stop_gradient for parameter in made.averaged.parameters())
    assert (made.step, made.seconds, made.best_psnr, made.images) == (0, 0.0, None, "")
    assert same(made.averaged, made.network)


def test_grey_trainings_start_from_the_weights_of_colours(tmp_path):
    network = build_network(n_feature=2)
    checkpoint.save_network(tmp_path / "w.pdparams", checkpoint.network_state(network), network.options)
    made = training("--n_channel", 1)
    made.start_from(tmp_path / "w.pdparams")
    first = made.network.parameters()[0].numpy()
    np.testing.assert_allclose(first[:, 0], network.parameters()[0].numpy().sum(axis=1), atol=1e-6)


def test_a_state_is_told_from_weights(tmp_path):
    made = training()
    made.save_state(tmp_path)
    for read in (made.start_from, checkpoint.load_network):
        with pytest.raises(UserError, match=rf"--resume {tmp_path} .*best_model\.pdparams"):
            read(tmp_path / STATE)


def test_the_deep_network_starts_from_light_weights(tmp_path):
    light = build_network("unet_lite", n_feature=4)
    checkpoint.save_network(tmp_path / "w.pdparams", checkpoint.network_state(light), light.options)
    made = training("--arch", "unet_deep", "--n_feature", 4)
    made.start_from(tmp_path / "w.pdparams")
    x = paddle.rand([1, 3, 32, 40])
    assert (made.network(x) - light(x)).abs().max() == 0
    other = build_network("unet", n_feature=4)
    checkpoint.save_network(tmp_path / "u.pdparams", checkpoint.network_state(other), other.options)
    with pytest.raises(UserError, match=r"u\.pdparams: holds another network"):
        made.start_from(tmp_path / "u.pdparams")


@pytest.mark.parametrize("arch", ["unet_lite", "unet_deep"])
def test_a_careful_network_starts_from_one_that_is_not(tmp_path, arch):
    light = build_network("unet_lite", n_feature=4)
    checkpoint.save_network(tmp_path / "w.pdparams", checkpoint.network_state(light), light.options)
    made = training("--arch", arch, "--n_feature", 4, "--careful", "--method", "supervised", "--lr", 1e-3)
    made.start_from(tmp_path / "w.pdparams")
    x = paddle.rand([1, 3, 32, 40])
    assert (made.network(x) - light(x)).abs().max() == 0
    clean = paddle.rand([2, 3, 32, 32])
    for _ in range(40):  # it learns to leave an image without noise as it is
        made.train_on(Supervised("l2"), (clean.numpy(), clean.numpy()), 1e-3, 0.0)
    share = made.network.body(clean)[:, -1:]
    assert share.mean() > 0.5


# --- Several processes as one -------------------------------------------------------------------------------


@pytest.fixture(params=[2, 3])
def count(request):
    """How many processes there seem to be."""
    return request.param


@pytest.fixture
def calls(monkeypatch, count):
    """This process as the second of several, all of which send what it sends; what it has called."""
    calls = []

    def all_reduce(tensor):
        calls.append("all_reduce")
        tensor.set_value(tensor * count)

    def all_gather_object(lists, items):
        lists.extend([["first"], items, ["third"]][:count])

    def broadcast(tensor, src):
        assert src == 0
        tensor.set_value(paddle.full_like(tensor, 5))

    sent = argparse.Namespace(
        all_reduce=all_reduce, all_gather_object=all_gather_object, broadcast=broadcast,
        init_parallel_env=lambda: calls.append("init"),
    )  # fmt: skip
    for name, value in {"dist": sent, "WORLD_SIZE": count, "RANK": 1, "IS_MAIN": False}.items():
        monkeypatch.setattr(distributed, name, value)
    return calls


def test_processes_tell_each_other_what_they_must_agree_on(calls, count, monkeypatch):
    distributed.start()
    assert calls == ["init"]
    assert distributed.mean(2.5) == 2.5
    assert distributed.mean(0.1) == pytest.approx(0.1, abs=1e-15)  # in double precision
    assert distributed.gather(["second"]) == ["first", "second", "third"][:count]
    assert distributed.from_main("mine") == "first"
    # Only the first process's clock counts; a signal at any of them stops all.
    assert distributed.agree(7.0, None) == (0.0, None)
    assert distributed.agree(7.0, 5)[1] == 5 * count
    monkeypatch.setattr(distributed, "IS_MAIN", True)
    assert distributed.agree(7.0, None) == (7.0 * count, None)  # a sum, as all of this test's processes are the first
    network = build_network(n_feature=2)
    distributed.broadcast_parameters(network)
    assert all((array == 5).all() for array in arrays_of(network))


def test_one_process_asks_nobody(monkeypatch):
    monkeypatch.setattr(distributed, "WORLD_SIZE", 1)
    monkeypatch.setattr(distributed, "dist", None)
    distributed.start()
    distributed.average_gradients([])
    distributed.broadcast_parameters(None)
    assert distributed.mean(0.5) == 0.5
    assert distributed.gather(iter([1, 2])) == [1, 2]
    assert distributed.from_main("mine") == "mine"
    assert distributed.agree(7.0, 2) == (7.0, 2)
