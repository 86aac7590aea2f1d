import shutil

import numpy as np
import paddle
import pytest

from arch_unet import build_network
from denoising.cli import UserError
from denoising.engine import operators
from denoising.training.optimizers import RATE, Optimizer, orthogonalize

SCALER = paddle.amp.GradScaler(enable=False)


def random_matrices(*shapes):
    rng = np.random.default_rng(0)
    return [paddle.to_tensor(rng.normal(size=shape).astype(np.float32)) for shape in shapes]


def test_orthogonalized_matrices_keep_their_directions_and_lose_their_strengths():
    (x,) = random_matrices((40, 200))
    x = x * paddle.linspace(0.1, 10, 40).unsqueeze(1)  # strengths of all sizes
    left, before, right = np.linalg.svd(x.numpy(), full_matrices=False)
    assert before.max() / before.min() > 50
    inner = left.T @ orthogonalize([x])[0].numpy() @ right.T
    after = np.diag(inner)
    assert (after > 0.6).all()
    assert (after < 1.3).all()
    assert np.abs(inner - np.diag(after)).max() < 1e-4


def one_step(kind, gradients, rate=0.01):
    """A network after one step along the given gradients, and the one before."""
    paddle.seed(3)
    network = build_network(n_feature=32)
    before = {name: p.numpy() for name, p in network.named_parameters()}
    optimizer = Optimizer(network, kind, rate)
    loss = sum((p * paddle.to_tensor(gradients[name])).sum() for name, p in network.named_parameters())
    loss.backward()
    optimizer.step(rate, SCALER)
    return before, {name: p.numpy() for name, p in network.named_parameters()}, optimizer


def some_gradients(scale=1.0):
    rng = np.random.default_rng(1)
    network = build_network(n_feature=32)
    return {name: (scale * rng.normal(size=p.shape)).astype(np.float32) for name, p in network.named_parameters()}


def test_muon_moves_matrices_by_its_rate_whatever_the_gradients_size():
    before, after, optimizer = one_step("muon", some_gradients())
    _, tiny, _ = one_step("muon", some_gradients(1e-6))
    assert "enc_conv1.weight" in optimizer.matrices
    assert "nin_c.weight" not in optimizer.matrices  # three rows
    assert "enc_conv1.bias" not in optimizer.matrices
    for name in optimizer.matrices:
        step = (after[name] - before[name]).reshape(len(before[name]), -1)
        strengths = np.linalg.svd(step, compute_uv=False)
        expected = 0.01 * RATE * max(1, step.shape[0] / step.shape[1]) ** 0.5
        assert 0.6 * expected < np.median(strengths)
        assert strengths.max() < 1.4 * expected
        assert np.abs(after[name] - tiny[name]).max() < 1e-3 * np.abs(step).max() + 1e-6
    # The rest moves as with Adam alone.
    _, adam, _ = one_step("adam", some_gradients())
    assert (after["nin_c.weight"] == adam["nin_c.weight"]).all()
    assert (after["enc_conv1.bias"] == adam["enc_conv1.bias"]).all()


@pytest.mark.parametrize("kind", ["adam", "muon"])
def test_a_saved_state_goes_on_to_the_bit(kind):
    gradients = some_gradients()
    _, _, optimizer = one_step(kind, gradients)
    state = optimizer.state()
    assert any("momentum" in name for name in state) == (kind == "muon")
    _, _, other = one_step(kind, some_gradients(3.0))
    other.set_state(state, "a.pdparams", started=True)
    assert {k: v.tobytes() for k, v in other.state().items()} == {k: v.tobytes() for k, v in state.items()}
    del state["nin_c.weight:_moment1_0"]
    with pytest.raises(UserError, match=r"a\.pdparams.*nin_c.weight"):
        other.set_state(state, "a.pdparams", started=True)


def test_the_counts_of_a_normalisation_are_not_learnt():
    network = build_network("unet_n2n", n_feature=4, norm="batch")
    optimizer = Optimizer(network)
    network(paddle.rand([1, 3, 32, 32])).sum().backward()
    optimizer.step(1e-3, SCALER)
    optimizer.set_state(optimizer.state(), "a.pdparams", started=True)
    assert not [name for name in optimizer.state() if "_mean" in name]


def test_a_state_of_the_other_optimizer_is_refused():
    _, _, adam = one_step("adam", some_gradients())
    _, _, muon = one_step("muon", some_gradients())
    for mine, theirs in ((adam, muon), (muon, adam)):
        with pytest.raises(UserError, match="optimizer"):
            mine.set_state(theirs.state(), "a.pdparams", started=True)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to build the engine with")
def test_the_engines_matrices_equal_paddles():
    ops, _ = operators.choose("onednn", "fp32")
    matrices = random_matrices((32, 288), (33, 95), (64, 64), (96, 864), (48, 49))
    expected = orthogonalize(matrices)
    for found, wanted in zip(ops.orthogonalize(matrices), expected, strict=True):
        assert found.shape == wanted.shape
        assert np.abs(found.numpy() - wanted.numpy()).max() < 1e-4
