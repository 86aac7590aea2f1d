import types

import cv2
import numpy as np
import pytest

from conftest import noisy_scene, save, scene
from denoising.imaging.pixels import to_01
from denoising.training.watched import watched


def options(folder, **changes):
    values = {"data_dir": folder and str(folder), "pair_dir": None, "method": "neighbor2neighbor", "noisetype": "none",
              "known_noise": None, "n_channel": 3, "train_size": None} | changes  # fmt: skip
    return types.SimpleNamespace(**values)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("watched")
    for i in range(10):
        save(root / "a" / f"{i}.png", noisy_scene(140, 300, seed=i, sigma=20))
        rng = np.random.default_rng(i)
        save(
            root / "b" / f"{i}.png",
            np.clip(scene(140, 300, seed=i) + rng.normal(0, 20, (140, 300, 3)), 0, 255).astype(np.uint8),
        )
    return root


def blur(width):
    return lambda image: cv2.GaussianBlur(image, (0, 0), width)


@pytest.mark.parametrize(
    "changes",
    [{}, {"known_noise": "gauss20"}, {"method": "noise2noise", "pair_dir": "b"}],
    ids=["measured", "known", "pairs"],
)
def test_the_better_denoiser_scores_less(folder, changes):
    changes = changes | ({"pair_dir": str(folder / "b")} if "pair_dir" in changes else {})
    judged = watched(options(folder / "a", **changes))
    assert len(judged) == 8
    true, found = [], []
    for width in (0.4, 1.0, 2.0, 6.0):
        errors = []
        for i in (0, 1, 2, 3, 5, 6, 7, 9):
            image = to_01(noisy_scene(140, 300, seed=i, sigma=20))[:, 22:278]
            errors.append(np.square(blur(width)(image) - to_01(scene(140, 300, seed=i))[:, 22:278]).mean())
        true.append(np.mean(errors))
        found.append(judged.score(blur(width)))
    assert np.argsort([another for another, _ in found]).tolist() == np.argsort(true).tolist()
    assert all(another > error for another, error in found)


def test_a_broken_image_is_passed_over(tmp_path):
    for name in "abc":
        save(tmp_path / f"{name}.png", noisy_scene(140, 140, seed=ord(name)))
    (tmp_path / "b.png").write_bytes(b"no image")
    assert len(watched(options(tmp_path))) == 2


def test_who_is_not_judged(folder, tmp_path, capsys):
    assert watched(options(folder / "a", noisetype="gauss25")) is None
    assert watched(options(None, method="noise2noise", pair_dir=str(folder / "b"))) is None
    assert watched(options(folder / "a", method="supervised", pair_dir=str(folder / "b"))) is None
    save(tmp_path / "flat" / "0.png", np.full((80, 80, 3), 9, np.uint8))
    assert watched(options(tmp_path / "flat")) is None
    assert "newest weights: no noise can be measured" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    cv2.imwrite(str(tmp_path / "other" / "0.png"), np.zeros((80, 80, 3), np.uint16))
    pairs = {"method": "noise2noise", "pair_dir": str(tmp_path / "other")}
    assert watched(options(tmp_path / "flat", **pairs)) is None
    assert "0.png differ in size or type" in capsys.readouterr().err  # noise is not looked for
