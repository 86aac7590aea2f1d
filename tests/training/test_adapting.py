import signal

import numpy as np
import pytest

from conftest import noisy_scene, scene
from denoising.engine import operators
from denoising.imaging.pixels import to_01
from denoising.inference import checkpoint
from denoising.inference.denoiser import Denoiser
from denoising.training import adapting
from denoising.training.adapting import Length, adapt
from denoising.training.lessons import Subject
from denoising.training.state import Training


@pytest.fixture(scope="module")
def ops():
    return operators.choose("auto", "fp32")[0]


def test_it_gains_and_can_be_repeated(weights, ops, monkeypatch):
    monkeypatch.setattr(adapting, "RATE", 3e-3)  # the network has learnt nothing yet
    subjects = [Subject.of(noisy_scene(192, 192, seed=seed)) for seed in (1, 2)]
    results = [adapt(weights, subjects, ops, Length(steps=20), seed) for seed in (5, 5, 6)]
    states = [checkpoint.network_state(result.network) for result in results]
    assert all((states[0][name] == states[1][name]).all() for name in states[0])
    assert any((states[0][name] != states[2][name]).any() for name in states[0])
    first = results[0]
    assert first.kept
    assert first.gain > 0.1
    assert first.steps == 20
    assert first.describe().startswith("2 images, 20 steps: +")
    # The estimate is of what is true.
    network, _ = checkpoint.load_network(weights)
    errors = [np.square(to_01(Denoiser(n)(noisy_scene(192, 192, seed=1))) - to_01(scene(192, 192, seed=1))).mean()
              for n in (network, first.network)]  # fmt: skip
    assert errors[1] < errors[0]


def test_weights_that_gain_nothing_stay(weights, ops, monkeypatch):
    monkeypatch.setattr(adapting, "RATE", 0.0)
    result = adapt(weights, [Subject.of(noisy_scene(192, 192))], ops, Length(steps=2))
    assert not result.kept
    assert "1 image, 2 steps: the weights stay as they were (estimated" in result.describe()


def test_weights_that_diverge_are_not_kept(weights, ops, monkeypatch):
    monkeypatch.setattr(adapting, "RATE", 1e30)
    result = adapt(weights, [Subject.of(noisy_scene(192, 192))], ops, Length(steps=3))
    assert not result.kept


def test_ctrl_c_goes_on_with_what_there_is(weights, ops, monkeypatch, capsys):
    step = Training.train_on

    def interrupted(self, *arguments, **more):
        if self.step == 2:
            signal.raise_signal(signal.SIGINT)
        return step(self, *arguments, **more)

    monkeypatch.setattr(Training, "train_on", interrupted)
    before = signal.getsignal(signal.SIGINT)
    result = adapt(weights, [Subject.of(noisy_scene(192, 192))], ops, Length(minutes=60))
    assert result.steps == 3
    assert "stopping after this step" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) == before


def test_length():
    assert Length(steps=4).progress(1, 1e9) == 0.25
    assert Length(minutes=0.5).progress(10**6, 15) == 0.5
    assert Length(minutes=0.5).progress(0, 99) == 1


def test_a_kill_ends_the_program(weights, ops, monkeypatch):
    step = Training.train_on

    def killed(self, *arguments, **more):
        signal.raise_signal(signal.SIGTERM)
        return step(self, *arguments, **more)

    monkeypatch.setattr(Training, "train_on", killed)
    with pytest.raises(SystemExit, match="143"):
        adapt(weights, [Subject.of(noisy_scene(192, 192))], ops, Length(minutes=60))
