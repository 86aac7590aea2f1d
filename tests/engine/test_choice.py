"""Which operations a network gets, and why: by name, by machine, and by the engine's check of itself."""

import shutil
from types import SimpleNamespace

import paddle
import pytest

from arch_unet import PlainOps
from denoising import machine
from denoising.cli import UserError
from denoising.engine import build, operators

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to build the engine with")


def wrong_result(result):
    return result * 1.01


def wrong_gradients(result):
    return result + 0.01 * (result - result.detach())


def not_a_number(result):
    return result * float("nan")


def one_wrong_number(result):
    spoilt = paddle.zeros_like(result)
    spoilt[0, 0, 0, 0] = 0.1
    return result + spoilt


@needs_compiler
@pytest.mark.parametrize("fault", [wrong_result, wrong_gradients, not_a_number, one_wrong_number])
def test_an_engine_that_computes_wrongly_is_not_taken(fault, monkeypatch):
    assert isinstance(operators.choose("onednn")[0], operators.EngineOps)
    right = operators.EngineOps.conv
    monkeypatch.setattr(operators.EngineOps, "conv", lambda ops, *arguments: fault(right(ops, *arguments)))
    ops, line = operators.choose("auto")
    assert isinstance(ops, PlainOps)
    assert line == "engine: Paddle's own layers (its results differ from Paddle's on this machine)"
    with pytest.raises(UserError, match="--engine onednn: its results differ"):
        operators.choose("onednn")


@needs_compiler
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_an_engine_with_one_wrong_gradient_is_not_taken(name, monkeypatch):
    right = operators.EngineOps.conv

    def conv(ops, x, layer):
        given = {"weight": layer.weight, "bias": layer.bias}
        given[name] = given[name] + 0.02 * (given[name] - given[name].detach())  # the same, but for its gradient
        return right(ops, x, SimpleNamespace(**given))

    monkeypatch.setattr(operators.EngineOps, "conv", conv)
    assert isinstance(operators.choose("auto")[0], PlainOps)


@needs_compiler
def test_an_engine_that_computes_rightly_is_taken():
    for name in ("auto", "onednn"):
        ops, line = operators.choose(name)
        assert (type(ops), ops.half, ops.bytes_per_pixel) == (operators.EngineOps, False, 1900)
        assert line == "engine: onednn, fp32"


def test_what_hinders_the_engine_is_told(monkeypatch):
    def load():
        raise build.BuildError("there is none")

    monkeypatch.setattr(build, "load", load)
    monkeypatch.setattr(machine, "cpu_flags", lambda: ["avx512_bf16"])
    ops, line = operators.choose()
    assert isinstance(ops, PlainOps)
    assert line == "engine: Paddle's own layers (there is none)"
    with pytest.raises(UserError, match="^--engine onednn: there is none$"):
        operators.choose("onednn", "bf16")
    with pytest.raises(UserError, match="^--precision bf16: needs the onednn engine, but: there is none$"):
        operators.choose("auto", "bf16")


def test_bf16_is_taken_where_the_cpu_has_it(monkeypatch):
    monkeypatch.setattr(operators, "_obstacle", lambda: None)
    monkeypatch.setattr(machine, "cpu_flags", lambda: ["avx512_bf16"])
    ops, line = operators.choose("auto", "bf16")
    assert (ops.half, ops.bytes_per_pixel, line) == (True, 950, "engine: onednn, bf16")


def test_auto_takes_bf16_where_it_can(monkeypatch):
    monkeypatch.setattr(operators, "_obstacle", lambda: None)
    for flags, precision in ((["avx512_bf16"], "bf16"), (["avx2"], "fp32")):
        monkeypatch.setattr(machine, "cpu_flags", lambda flags=flags: flags)
        assert operators.choose("auto", "auto")[1] == f"engine: onednn, {precision}"
    monkeypatch.setattr(machine, "cpu_flags", lambda: ["avx512_bf16"])
    assert isinstance(operators.choose("paddle", "auto")[0], PlainOps)
    monkeypatch.setattr(operators, "_obstacle", lambda: "there is none")
    assert isinstance(operators.choose("auto", "auto")[0], PlainOps)


@needs_compiler
def test_the_engine_is_chosen_where_gradients_are_off():
    with paddle.no_grad():
        assert operators.choose("onednn")[1] == "engine: onednn, fp32"


@needs_compiler
def test_without_gradients_nothing_is_kept_for_them():
    ops = operators.choose("onednn")[0]
    layer = paddle.nn.Conv2D(1, 2, 3, padding=1)
    with paddle.no_grad():
        assert ops.conv(ops.enter(paddle.ones([1, 1, 4, 4])), layer).stop_gradient
    assert not ops.conv(ops.enter(paddle.ones([1, 1, 4, 4])), layer).stop_gradient


def test_an_older_paddle_has_custom_operators_at_another_place(monkeypatch):
    calls = []
    monkeypatch.delattr(paddle._C_ops, "_run_custom_op", raising=False)
    eager = paddle.base.core.eager
    monkeypatch.setattr(
        eager, "_run_custom_op", lambda *given: calls.append(given) or ["result", "more"], raising=False
    )
    assert operators._run("denoise_pool", 1, 2) == "result"
    assert calls == [("denoise_pool", 1, 2)]


def test_bf16_on_a_cpu_without_it_is_refused(monkeypatch):
    monkeypatch.setattr(machine, "cpu_flags", lambda: ["avx2"])
    with pytest.raises(UserError, match="bf16"):
        operators.choose("auto", "bf16")


def test_on_a_gpu_paddles_layers_are_taken(monkeypatch):
    monkeypatch.setattr(paddle.device, "get_device", lambda: "gpu:0")
    ops, line = operators.choose("auto")
    assert isinstance(ops, PlainOps)
    assert "gpu:0" in line
    with pytest.raises(UserError, match="gpu:0"):
        operators.choose("onednn")


def test_paddles_layers_can_be_asked_for():
    ops, line = operators.choose("paddle")
    assert isinstance(ops, PlainOps)
    assert "as asked" in line
    with pytest.raises(UserError, match="^--precision bf16: needs the onednn engine, not --engine paddle$"):
        operators.choose("paddle", "bf16")
