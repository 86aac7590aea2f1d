"""Rendering with Mitsuba, tiny: independent noise, the same files after an interruption, and one core is enough."""

import os
import subprocess
import sys

import numpy as np
import pytest

import render_dataset
from conftest import ENVIRONMENT, ROOT, assert_user_error, run_script
from denoising.cli import UserError
from denoising.data import renders
from denoising.files import images

FLAGS = ["--n_scenes", 4, "--n_valid", 1, "--size", 32, "--spp", 1, "--reference_spp", 48, "--clean_targets"]
SCENE = """<scene version="3.0.0">
  <integrator type="direct"/>
  <sensor type="perspective"><film type="hdrfilm"><integer name="width" value="20"/><integer name="height" value="10"/>
    <string name="pixel_format" value="{pixels}"/></film></sensor>
  <sensor type="perspective"><film type="hdrfilm"><integer name="width" value="9"/><integer name="height" value="9"/>
    </film></sensor>
  <shape type="rectangle"><transform name="to_world"><translate z="3"/></transform></shape>
  <emitter type="constant"/>
</scene>
"""


def render(folder, *flags, **more):
    return run_script("tools/render_dataset.py", "--save_dir", folder, *flags, **more)


def tree(folder):
    return {path.relative_to(folder).as_posix(): path for path in folder.glob("*/*/*")}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """Four scenes of each kind, rendered by a process that may use one core only, where Mitsuba's own writer hangs."""
    pytest.importorskip("mitsuba")
    folder = tmp_path_factory.mktemp("renders")
    command = [sys.executable, ROOT / "tools/render_dataset.py", "--save_dir", folder, *FLAGS]
    core = hasattr(os, "sched_setaffinity") and min(os.sched_getaffinity(0))
    result = subprocess.run(
        [str(word) for word in command], env=ENVIRONMENT, capture_output=True, text=True, timeout=300,
        preexec_fn=lambda: core is not False and os.sched_setaffinity(0, {core}),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return folder


def read(path):
    return images.read_image(path).pages[0]


def test_files_and_their_content(rendered):
    found = tree(rendered)
    kinds = {"train": [*renders.BUFFERS, "target", "clean"], "valid": [*renders.BUFFERS, "target"]}
    names = {"train": [f"scene{i:05d}_{k}" for i in range(4) for k in (0, 1)], "valid": ["scene00000_0"]}
    assert set(found) == {f"{s}/{kind}/{name}.exr" for s in kinds for kind in kinds[s] for name in names[s]}
    for i in range(4):
        pages = {kind: read(found[f"train/{kind}/scene{i:05d}_0.exr"]) for kind in kinds["train"]}
        assert all(page.shape == (32, 32, 3) and np.isfinite(page).all() for page in pages.values())
        assert 0 <= pages["albedo"].min() < pages["albedo"].max() <= 1
        length = np.linalg.norm(pages["normal"], axis=2)
        assert ((length < 1.01) & (length >= 0)).all()
        assert np.median(length) > 0.9
        assert 0.1 < np.median(renders.tone_map(pages["clean"])) < 0.9  # neither night nor snow


def test_the_target_is_another_noisy_render(rendered):
    found = tree(rendered)
    for i in range(4):
        first, second = (read(found[f"train/render/scene{i:05d}_{k}.exr"]) for k in (0, 1))
        np.testing.assert_array_equal(read(found[f"train/target/scene{i:05d}_0.exr"]), second)
        np.testing.assert_array_equal(read(found[f"train/target/scene{i:05d}_1.exr"]), first)
        # Nearly all of what a step between neighbours has of noise is new in the other one. (Not all: at one sample per
        # pixel the tone map moves both the same way.)
        light = [first, second, read(found[f"train/clean/scene{i:05d}_0.exr"])]
        steps = [np.diff(renders.tone_map(render), axis=1) for render in light]
        noise = [(step - steps[2]).ravel() for step in steps[:2]]
        assert abs(np.corrcoef(*noise)[0, 1]) < 0.5
        assert np.std(noise[0]) > 0.02


def test_interrupted_it_goes_on_and_ends_with_the_same_files(rendered):
    found = tree(rendered)
    before = {name: path.read_bytes() for name, path in found.items()}
    gone = ["train/target/scene00001_0.exr", "train/clean/scene00003_1.exr", "valid/normal/scene00000_0.exr"]
    times = {name: path.stat().st_mtime_ns for name, path in found.items()}
    for name in gone:
        found[name].unlink()
    result = render(rendered, *FLAGS, ok=0)
    assert "2 of 5 scenes are there already" in result.stderr
    assert {name: path.read_bytes() for name, path in tree(rendered).items()} == before
    untouched = [name for name in times if "scene00000" in name and name.startswith("train")]
    assert untouched
    assert all(found[name].stat().st_mtime_ns == times[name] for name in untouched)
    assert_user_error(render(rendered, *FLAGS, "--spp", 2), "--save_dir", "spp 1")


def test_views_and_samples_vary(tmp_path):
    pytest.importorskip("mitsuba")
    flags = ["--n_scenes", 1, "--n_valid", 0, "--size", 16, "--views", 3, "--spp", 1, 32]
    render(tmp_path / "out", *flags, ok=0)
    found = tree(tmp_path / "out")
    names = [f"scene00000{view}_0" for view in ("", "v1", "v2")]
    assert {path.stem for path in found.values() if path.stem.endswith("_0")} == set(names)
    albedos = [read(found[f"train/albedo/{name}.exr"]) for name in names]
    assert min(np.abs(albedos[i] - albedos[j]).mean() for i, j in ((0, 1), (0, 2), (1, 2))) > 0.02
    pairs = [[read(found[f"train/{kind}/{name}.exr"]) for kind in ("render", "target")] for name in names]
    noise = [np.abs(renders.tone_map(first) - renders.tone_map(second)).mean() for first, second in pairs]
    assert noise[1] < 0.5 * min(noise[0], noise[2])
    assert_user_error(render(tmp_path / "out", *flags, "--views", 2), "--save_dir", "views 3")
    (tmp_path / "out" / render_dataset.RECORD).write_text("[1]")
    assert_user_error(render(tmp_path / "out", *flags), "--save_dir", "no record")


def planned(*flags):
    """The shots of a command line."""
    options = render_dataset.get_parser().parse_args(["--save_dir", "out", *map(str, flags)])
    return render_dataset.plan(options, {})


def test_no_validation_scene_is_a_training_scene():
    shots = planned("--n_scenes", 40, "--n_valid", 40, "--views", 2)
    places = [{shot.place for shot in shots if shot.folder.endswith(split)} for split in ("train", "valid")]
    assert [len(found) for found in places] == [40, 40]
    assert not places[0] & places[1]


def test_every_kind_of_scene_comes_with_every_number_of_samples():
    shots = planned("--n_scenes", 32, "--n_valid", 0, "--spp", 1, 2, 4, 8)
    assert len({(shot.source % 4, shot.spp) for shot in shots}) == 16
    assert {shot.spp for shot in planned()} == {8}


def test_scene_files_every_camera_is_a_scene(tmp_path):
    pytest.importorskip("mitsuba")
    (tmp_path / "a.xml").write_text(SCENE.format(pixels="rgba"))
    flags = ["--spp", 1, "--n_renders", 3, "--scenes", tmp_path / "a.xml"]
    render(tmp_path / "out", *flags, "--format", "png", ok=0)
    found = tree(tmp_path / "out")
    names = {path.name for path in found.values()}
    assert names == {f"a_camera{i}_{k}.png" for i in (0, 1) for k in range(3)}
    assert read(found["train/render/a_camera0_2.png"]).shape == (10, 20, 3)
    render(tmp_path / "small", *flags, "--size", 16, ok=0)
    assert read(tree(tmp_path / "small")["train/render/a_camera0_2.exr"]).shape == (16, 16, 3)
    # The black back of a rectangle before even light of radiance 1: the numbers are as the file says, not exposed anew.
    light = read(tree(tmp_path / "small")["train/render/a_camera0_2.exr"])
    assert (light[8, 8] == 0).all()
    assert 0.9 < light[0, 0].min() <= light.max() < 1.01


def test_the_scene_that_comes_with_mitsuba(tmp_path):
    pytest.importorskip("mitsuba")
    flags = ["--spp", 4, "--reference_spp", 4, "--size", 16]
    render(tmp_path, "--valid_scenes", render_dataset.OWN_SCENE, *flags, ok=0)
    found = tree(tmp_path)
    assert set(found) == {
        f"valid/{kind}/cornell_box_camera0_0.exr" for kind in ("render", "albedo", "normal", "target")
    }
    albedo = read(found["valid/albedo/cornell_box_camera0_0.exr"])
    left, right = albedo[8, 1], albedo[8, -2]
    assert left[0] > 5 * left[1]  # the red wall
    assert right[1] > 2 * right[0]  # the green one


def test_mistakes_are_one_line(tmp_path):
    pytest.importorskip("mitsuba")
    bad = tmp_path / "bad.xml"
    bad.write_text("<scene versio")
    assert_user_error(render(tmp_path / "out", "--scenes", bad), "--scenes", bad)
    bad.write_text('<scene version="3.0.0"><shape type="nosuch"/></scene>')
    assert_user_error(render(tmp_path / "out", "--scenes", bad), "--scenes", "nosuch")
    bad.write_text(SCENE.format(pixels="luminance"))
    assert_user_error(render(tmp_path / "out", "--scenes", bad, "--spp", 1), "pixel_format")
    for folder, flags, words in (
        ("fresh", ["--scenes", tmp_path / "none.xml"], r"--scenes: .*none\.xml does not exist"),
        ("fresh", ["--variant", "fast"], "--variant: fast is none of .*scalar_rgb"),
        (".", ["--n_scenes", 1], "--save_dir: .* not empty"),
    ):
        with pytest.raises(UserError, match=words):
            render_dataset.main(["--save_dir", tmp_path / folder, *flags])
    assert not (tmp_path / "fresh").exists()


def test_an_absent_renderer_is_asked_for(monkeypatch):
    monkeypatch.setattr(render_dataset.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install mitsuba"):
        render_dataset.check_variant("scalar_rgb")


def test_a_variant_that_this_machine_cannot_run_is_named_with_those_that_it_can(monkeypatch):
    pytest.importorskip("mitsuba")
    monkeypatch.setattr(render_dataset, "runs_here", lambda variant: not variant.startswith("cuda"))
    with pytest.raises(UserError, match=r"--variant: cuda_ad_rgb cannot run .* no NVIDIA GPU .*scalar_rgb.* can"):
        render_dataset.check_variant("cuda_ad_rgb")
    render_dataset.check_variant("scalar_rgb")
    monkeypatch.undo()
    assert render_dataset.runs_here("scalar_rgb")
