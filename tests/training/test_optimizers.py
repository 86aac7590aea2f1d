import shutil

import numpy as np
import paddle
import pytest

from arch_unet import build_network
from denoising.cli import UserError
from denoising.engine import operators
from denoising.training.optimizers import DECAY, MOMENTUM, RATE, SMALLEST, Optimizer, orthogonalize

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


def test_the_gradients_that_adam_sees_are_clipped_by_their_norm():
    gradients = some_gradients()
    norm = sum(float((gradient**2).sum()) for gradient in gradients.values()) ** 0.5
    for limit, share in ((0.0, 1.0), (2 * norm, 1.0), (norm / 4, 0.25)):
        network = build_network(n_feature=32)
        optimizer = Optimizer(network, "adam", 0.01, limit)
        loss = sum((p * paddle.to_tensor(gradients[name])).sum() for name, p in network.named_parameters())
        loss.backward()
        optimizer.step(0.01, SCALER)
        # The first moment after one step is a tenth of the gradient.
        for name, gradient in gradients.items():
            moment = optimizer.state()[f"{name}:_moment1_0"]
            np.testing.assert_allclose(moment, 0.1 * share * gradient, rtol=1e-3, atol=1e-5)


def test_muon_follows_nesterovs_momentum_and_lets_weights_decay():
    """Two steps of one matrix, computed again with NumPy."""
    network = build_network(n_feature=32)
    optimizer, name = Optimizer(network, "muon"), "enc_conv1.weight"
    optimizer.orthogonalize = lambda matrices: [matrix * 1 for matrix in matrices]  # keeps what it is given
    parameter = optimizer.matrices[name]
    expected, momentum = parameter.numpy(), 0.0
    for step, rate in enumerate((0.002, 0.001)):
        gradients = {n: g * (step + 1) for n, g in some_gradients().items()}
        sum((p * paddle.to_tensor(gradients[n])).sum() for n, p in network.named_parameters()).backward()
        optimizer.step(rate, SCALER)
        momentum = 0.95 * momentum + 0.05 * gradients[name]
        ahead = 0.05 * gradients[name] + 0.95 * momentum
        stretch = max(1, len(expected) / (expected.size / len(expected))) ** 0.5
        expected = expected * (1 - rate * RATE * DECAY) - rate * RATE * stretch * ahead
        np.testing.assert_allclose(parameter.numpy(), expected, rtol=1e-4, atol=1e-6)
        assert all(p.grad is None or not p.grad.numpy().any() for p in network.parameters())


def test_the_rates_that_were_found_never_change():
    assert (RATE, MOMENTUM, DECAY, SMALLEST) == (10.0, 0.95, 0.1, 16)
    shapes = {name: p.shape for name, p in build_network(n_feature=16).named_parameters()}
    matrices = Optimizer(build_network(n_feature=16), "muon").matrices
    assert set(matrices) == {name for name, shape in shapes.items() if len(shape) == 4 and min(shape[:2]) >= 16}
    assert Optimizer(build_network(n_feature=16)).matrices == {}
    assert Optimizer(build_network(n_feature=15), "muon").matrices.keys() < matrices.keys()


def test_a_tall_matrix_is_turned_for_the_iteration_and_back():
    paddle.seed(0)
    network = paddle.nn.Sequential(paddle.nn.Conv2D(16, 64, 1), paddle.nn.Conv2D(64, 16, 1))
    network.ops = None
    optimizer, before = Optimizer(network, "muon"), network[0].weight.numpy()
    gradient = np.random.default_rng(0).normal(size=before.shape).astype(np.float32)
    (network[0].weight * paddle.to_tensor(gradient)).sum().backward()
    (network[1].weight.sum() + network[0].bias.sum() + network[1].bias.sum()).backward()
    optimizer.step(0.01, SCALER)
    wanted = orthogonalize([paddle.to_tensor(gradient.reshape(64, 16).T)])[0].numpy().T.reshape(before.shape)
    moved = before * (1 - 0.01 * RATE * DECAY) - wanted * 0.01 * RATE * 2  # twice: 64 rows on 16 columns
    np.testing.assert_allclose(network[0].weight.numpy(), moved, atol=1e-4)


@pytest.mark.parametrize("broken", ["missing", "shape", "nan", "text", "more"])
@pytest.mark.parametrize(
    "key", ["enc_conv1.weight:momentum", "enc_conv1.bias:_moment1_0", "nin_c.bias:_beta1_pow_acc_0"]
)
def test_a_state_that_is_not_whole_is_refused(broken, key):
    _, _, optimizer = one_step("muon", some_gradients())
    state = optimizer.state()
    optimizer.set_state(state, "a.pdparams", started=True)
    array = state.pop(key)
    if broken != "missing":
        state[key] = {"shape": array[..., None], "nan": array * np.nan, "text": "0", "more": array}[broken]
    if broken == "more":
        state["another:momentum"] = array
    with pytest.raises(UserError, match=r"^a.pdparams: it is of another" if broken == "more" else f"optimizer's {key}"):
        optimizer.set_state(state, "a.pdparams", started=True)


def test_before_the_first_step_there_are_no_moments_to_restore():
    _, _, started = one_step("muon", some_gradients())
    fresh = Optimizer(build_network(n_feature=32), "muon")
    state = fresh.state()
    assert {key.partition(":")[2] for key in state} == {"momentum"}
    fresh.set_state(state, "a.pdparams", started=False)
    with pytest.raises(UserError, match="missing, broken or of another network"):
        fresh.set_state(state, "a.pdparams", started=True)
    with pytest.raises(UserError, match="it is of another optimizer"):
        fresh.set_state(started.state(), "a.pdparams", started=False)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to build the engine with")
def test_the_engines_matrices_equal_paddles():
    ops, _ = operators.choose("onednn", "fp32")
    matrices = random_matrices((32, 288), (33, 95), (64, 64), (96, 864), (48, 49))
    expected = orthogonalize(matrices)
    for found, wanted in zip(ops.orthogonalize(matrices), expected, strict=True):
        assert found.shape == wanted.shape
        assert np.abs(found.numpy() - wanted.numpy()).max() < 1e-4
