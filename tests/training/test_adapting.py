import signal

import numpy as np
import paddle
import pytest

from conftest import noisy_scene, scene
from denoising.engine import operators
from denoising.imaging.pixels import to_01
from denoising.inference import checkpoint
from denoising.inference.denoiser import Denoiser
from denoising.training import adapting
from denoising.training.adapting import Length, LineNeighbours, Seen, Subject, adapt
from denoising.training.methods import Neighbor2Neighbor, Noise2Noise
from denoising.training.state import Training


@pytest.fixture(scope="module")
def ops():
    return operators.choose("auto", "fp32")[0]


@pytest.mark.parametrize("size", [(192, 192), (193, 900), (700, 300), (1500, 1400)])
def test_the_middle_is_not_learnt_from(size):
    noisy = noisy_scene(*size)
    subject = Subject.of(noisy)
    rows, columns = subject.judged
    assert min(rows.stop - rows.start, columns.stop - columns.start) >= 64
    # Every pixel says whether it is of the middle.
    marked = np.zeros_like(subject.noisy)
    marked[subject.judged] = 255
    marked = adapting.replace(subject, noisy=marked)
    seen = 0
    for step in range(20):
        patches, picks = marked.batch(0, step)
        assert patches.shape == (2, 3, subject.patch, subject.patch)
        assert picks.shape == (2, 3, subject.patch // 2, subject.patch // 2)
        assert not patches.any()
        seen += len(patches)
    assert seen == 40
    assert subject.patch in (64, 96, 128)


def test_what_cannot_be_learnt_from():
    assert Subject.of(noisy_scene(191, 300)) is None  # too small
    assert Subject.of(scene(200, 200)) is None  # no noise
    assert isinstance(Subject.of(noisy_scene(200, 200)).method, Neighbor2Neighbor)
    pair = Subject.of(noisy_scene(200, 200), noisy_scene(200, 200))
    assert isinstance(pair.method, Noise2Noise)
    first, second = pair.batch(0, 3)
    assert (first == second).all()  # the same place of both frames


@pytest.mark.parametrize(("axes", "shape"), [([2], (2, 1, 4, 8)), ([3], (2, 1, 8, 4)), ([2, 3], (2, 1, 4, 4))])
def test_lines_that_share_noise_are_told_apart(axes, shape):
    rows, columns = np.mgrid[:8, :8]
    image = paddle.to_tensor((10 * rows + columns)[None, None].astype(np.float32))
    halves = LineNeighbours(axes).halves(image).numpy()
    assert halves.shape == shape
    for axis, lines in ((2, halves // 10), (3, halves % 10)):
        first, second = (set(np.unique(half)) for half in lines)
        assert first.isdisjoint(second) == (axis in axes)


def test_line_neighbours_learn_that_stripes_go():
    rng = np.random.default_rng(0)
    stripes = paddle.to_tensor(rng.normal(0, 0.1, (1, 3, 64, 1)).astype(np.float32).repeat(64, 3))
    keeps, removes = (LineNeighbours([2])(f, stripes, ramp=0.0)[0] for f in (lambda x: x, lambda x: 0 * x))
    assert float(removes) < float(keeps)


@pytest.mark.parametrize(("of_network", "channels"), [(3, 3), (3, 1), (1, 3)])
def test_a_network_sees_images_as_a_denoiser_shows_them(of_network, channels):
    from arch_unet import build_network

    network = build_network(n_channel=of_network, n_feature=4)
    network.eval()
    noisy = to_01(noisy_scene(64, 64, channels))
    shown = []
    method = Seen(lambda f, image, ramp: shown.append(f(image)), channels)
    method(network, paddle.to_tensor(noisy.transpose(2, 0, 1)[None]), ramp=1.0)
    np.testing.assert_allclose(shown[0].numpy()[0].transpose(1, 2, 0), Denoiser(network)(noisy), atol=1e-5)


def test_it_gains_and_can_be_repeated(weights, ops, monkeypatch):
    monkeypatch.setattr(adapting, "RATE", 3e-3)  # the network has learnt nothing yet
    subjects = [Subject.of(noisy_scene(192, 192, seed=seed)) for seed in (1, 2)]
    results = [adapt(weights, subjects, ops, Length(steps=30), seed) for seed in (5, 5, 6)]
    states = [checkpoint.network_state(result.network) for result in results]
    assert all((states[0][name] == states[1][name]).all() for name in states[0])
    assert any((states[0][name] != states[2][name]).any() for name in states[0])
    first = results[0]
    assert first.kept
    assert first.gain > 0.1
    assert first.steps == 30
    assert first.describe().startswith("2 images, 30 steps: +")
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
