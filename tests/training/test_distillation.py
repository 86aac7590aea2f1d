"""Distillation: what a teacher shows, of several the best, and what the network sees."""

from argparse import Namespace

import numpy as np
import paddle
import pytest

from arch_unet import build_network
from denoising.cli import UserError
from denoising.data.streams import NOISE, TARGET, generator, streams
from denoising.imaging.noise import parse_noise
from denoising.inference.checkpoint import save_network
from denoising.training.methods import LEAST_DISTANCE, Distillation, Nobody, build_method, turned

CLEAN = np.random.default_rng(2).random((12, 16, 3), np.float32)


def test_a_teacher_sees_eight_turns_and_its_results_are_turned_back():
    images, seen = paddle.rand([2, 3, 4, 4]), []
    for way in range(8):
        back = turned(lambda x: seen.append(x.numpy()) or x, images, way)
        assert (back.numpy() == images.numpy()).all()
    assert len({array.tobytes() for array in seen}) == 8
    # What is not the same in all turns is turned as well.
    down = turned(lambda x: paddle.roll(x, 1, axis=2), images, 1)
    assert (down.numpy() == paddle.roll(images, -1, axis=3).numpy()).all() or (
        down.numpy() == paddle.roll(images, 1, axis=3).numpy()
    ).all()


class Scaled(paddle.nn.Layer):
    """A network of one number."""

    ops = None

    def __init__(self, by):
        super().__init__()
        self.by = self.create_parameter([1], default_initializer=paddle.nn.initializer.Constant(by))

    def forward(self, images):
        return images * self.by


def test_distillation_ends_at_the_teacher_and_images_count_equally():
    noisy = paddle.rand([2, 3, 8, 8]) * paddle.to_tensor([1.0, 0.01]).reshape([2, 1, 1, 1])
    teacher, pupil = Scaled(0.5), Scaled(0.9)
    method = Distillation(teacher)
    way, _ = method.beside(noisy[0].numpy(), streams(3))
    assert way == method.beside(noisy[0].numpy(), streams(3))[0]
    for name, untouched in (("gauss5_50", 60), ("gauss25", 0)):
        drawn = [method.corrupt(CLEAN, parse_noise(name), streams(seed))[0] for seed in range(300)]
        assert sum(image is CLEAN for image in drawn) == pytest.approx(untouched, abs=untouched * 0.4)
    assert {int(method.beside(None, streams(seed))[0]) for seed in range(60)} == set(range(8))
    ways, whole = paddle.to_tensor(np.stack([way, way])), paddle.zeros([2], "bool")
    loss, distance, _, _ = method(pupil, noisy, ways, whole)
    each = 0.16 * (noisy**2).mean(axis=[1, 2, 3]).numpy()
    assert float(loss) == pytest.approx(np.mean(10 * np.log10(each + LEAST_DISTANCE)), rel=1e-4)
    assert float(distance) == pytest.approx(each.mean(), rel=1e-4)
    loss.backward()
    assert teacher.by.grad is None
    assert pupil.by.grad.item() > 0
    assert float(method(Scaled(0.5), noisy, ways, whole)[0]) == pytest.approx(10 * np.log10(LEAST_DISTANCE), abs=1e-3)


def test_of_several_teachers_each_image_is_shown_by_the_best():
    """One doubles what it sees and one halves it; each is right about one of the two images."""
    scenes = [np.full((8, 8, 3), value, np.float32) for value in (0.3, 0.4)]
    method = Distillation(Scaled(1.0), Scaled(0.5))
    drawn = [method.corrupt(scene, parse_noise("gauss5"), streams(seed)) for seed, scene in enumerate(scenes)]
    assert [len(shots) for shots in drawn] == [2, 2]
    assert not any(np.array_equal(*shots) for shots in drawn)
    clean = paddle.to_tensor(np.stack([scene.transpose(2, 0, 1) for scene in scenes]))
    noisy = clean * paddle.to_tensor([1.0, 2.0]).reshape([2, 1, 1, 1])  # the second teacher is right about the second
    others = paddle.to_tensor(np.stack([shots[1].transpose(2, 0, 1) for shots in drawn]))
    ways, whole = paddle.zeros([2], "int64"), paddle.zeros([2], "bool")
    shown = method._shown(None, noisy, others, way=0)
    assert np.abs((shown - clean).numpy()).max() < 1e-6
    pupil = Scaled(1.0)
    distance = method(pupil, noisy, others, ways, whole)[1]
    assert float(distance) == pytest.approx(0.4**2 / 2, rel=1e-4)  # right about the first image, not about the second
    assert float(Distillation(Scaled(0.5))(pupil, noisy, ways, whole)[1]) > float(distance)
    untouched = [method.corrupt(CLEAN, parse_noise("gauss5_50"), streams(seed)) for seed in range(60)]
    assert any(first is CLEAN and second is CLEAN for first, second in untouched)


def test_of_some_images_the_noise_is_cut_off_for_the_network_alone():
    """Its teacher sees all of it."""
    noisy = paddle.to_tensor(np.stack([np.full((3, 8, 8), value, np.float32) for value in (1.5, 1.5, -0.25)]))
    method = Distillation(Scaled(1.0), clipped=0.7)
    cut = [bool(method.beside(None, streams(seed))[1]) for seed in range(100)]
    assert sum(cut) == pytest.approx(70, abs=14)
    assert not any(Distillation(Scaled(1.0)).beside(None, streams(seed))[1] for seed in range(100))
    batch = noisy, paddle.zeros([3], "int64"), paddle.to_tensor([True, False, True])
    assert float(method(Scaled(1.0), *batch)[1]) == pytest.approx((0.5**2 + 0.25**2) / 3, rel=1e-5)


def test_nobody_teaches_images_without_noise():
    """A teacher that makes images darker is followed where they are noisy, and not where they are clean."""
    clean = np.full((64, 64, 3), 0.5, np.float32)
    method = Distillation(Scaled(0.97), Nobody())
    shots = parse_noise("gauss25").shots(clean, generator(1, NOISE), generator(1, TARGET))
    noisy, other = (np.stack([clean, shot]).transpose(0, 3, 1, 2) for shot in shots)
    shown = method._shown(None, paddle.to_tensor(noisy), paddle.to_tensor(other), way=3).numpy()
    assert np.array_equal(shown[0], noisy[0])
    assert np.allclose(shown[1], 0.97 * noisy[1])


def test_several_teachers_see_two_shots_of_one_camera():
    """Else the difference of the cameras would count as an error."""
    method, texture = Distillation(Scaled(1.0), Nobody()), np.random.default_rng(0).random((32, 32, 3), np.float32)
    shots = [method.corrupt(texture, parse_noise("camera0.3"), streams(seed)) for seed in range(9)]
    assert np.mean([np.abs(first - second).mean() for first, second in shots]) < 0.01


def test_a_teacher_takes_the_images_of_the_network(tmp_path):
    def built(name, wanted, **structure):
        network = build_network(n_feature=2, **structure)
        save_network(tmp_path / name, {key: t.numpy() for key, t in network.state_dict().items()}, network.options)
        return build_method(Namespace(
            method="distillation", teacher=str(tmp_path / name), n_channel=wanted, known_noise=None, clipped=0.0,
            noisetype="text0.2",
        ))  # fmt: skip

    assert built("a.pdparams", 1, n_channel=1).teachers[0].options["n_channel"] == 1
    for name, structure, words in (
        ("b.pdparams", {"n_channel": 1}, "--teacher: .*b.pdparams denoises images of 1 channels"),
        ("c.pdparams", {"arch": "joint_bilateral", "n_input": 9}, "--teacher: .*c.pdparams denoises no plain images"),
    ):
        with pytest.raises(UserError, match=words):
            built(name, 3, **structure)
