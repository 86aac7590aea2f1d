"""What `pip install .` installs: the library, its C++ sources and pages, weights, and the command `denoise`."""

import importlib.metadata
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from conftest import ENVIRONMENT, ROOT, assert_user_error, opened
from denoising.inference import auto
from denoising.inference.denoiser import Denoiser

SETUPTOOLS = int(importlib.metadata.version("setuptools").split(".")[0])


def pip(*arguments):
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy of what git knows, so that neither this folder nor an old build/ has a part in it."""
    folder = tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in tracked.split("\n"):
        if name.endswith((".py", ".toml", ".txt", ".cc", ".h", ".html", ".js", ".css", ".pdparams")) or name in (
            "LICENSE",
            "NOTICE",
        ):
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "source" / name)
    # requirements-dev.txt brings a setuptools that is new enough; where there is an older one, pip fetches its own.
    isolation = ["--no-build-isolation"] if SETUPTOOLS >= 77 else []
    pip("wheel", folder / "source", "--no-deps", *isolation, "--wheel-dir", folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """An environment of the installed wheel and nothing of this folder, and another folder to work in."""
    target, elsewhere = (tmp_path_factory.mktemp(name) for name in ("site", "elsewhere"))
    pip("install", "--no-deps", "--target", target, wheel)
    cache = tmp_path_factory.mktemp("cache")
    environment = {**ENVIRONMENT, "PYTHONPATH": str(target), "XDG_CACHE_HOME": str(cache)}

    def run(*command):
        return subprocess.run(
            list(map(str, command)), cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=300
        )

    run.target, run.elsewhere, run.cache = target, elsewhere, cache
    return run


def test_the_wheel_holds_the_library_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        about = {name.rpartition("/")[2]: name for name in archive.namelist() if ".dist-info/" in name}
        metadata = archive.read(about["METADATA"]).decode()
        entry_points = archive.read(about["entry_points.txt"]).decode()
    tracked = subprocess.run(
        ["git", "ls-files", "arch_unet.py", "denoising"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    weights = {name for name in held if name.endswith(".pdparams")}
    assert held - weights == set(tracked.stdout.split())
    assert {Path(name).parent.name for name in weights} == {"models"}
    shipped = {path.stem for path in auto.shipped_weights()} | {auto.FOR_MOSAICS, auto.FOR_RENDERS}
    shipped -= set(auto.SUPERSEDED)
    assert {Path(name).stem for name in weights} == shipped - {name for name in shipped if not is_tracked(name)}
    assert wheel.stat().st_size < 34e6
    pages = {"reports/page.html", "reports/page.css", "reports/viewer/viewer.js", "serving/app/index.html"}
    pages = {f"denoising/{page}" for page in pages}
    assert {"arch_unet.py", "denoising/engine/ops.cc", *pages} <= held
    assert "denoise = denoising.__main__:command" in entry_points
    # Each requirement of the files is one of the package, under the extra of the file's name if it is one.
    for extra in ("common", "cpu", "serve", "deploy", "render", "raw"):
        for line in (ROOT / f"requirements-{extra}.txt").read_text().splitlines():
            if line and not line.startswith("#"):
                name = re.match(r"[\w-]+", line)[0]
                (found,) = re.findall(rf"^Requires-Dist: {name}\b.*", metadata, re.MULTILINE)
                assert found.endswith(f'; extra == "{extra}"') == (extra not in ("common", "cpu")), found


def is_tracked(name):
    paths = [f"{name}.pdparams", f"models/{name}.pdparams"]
    return bool(subprocess.run(["git", "ls-files", *paths], cwd=ROOT, capture_output=True, check=True).stdout)


def test_the_installed_command_finds_its_weights(installed):
    """From another folder, without --model_path; the weights alone are asked for, which needs no Paddle to compute."""
    code = "from denoising.inference import auto\nprint([str(path) for path in auto.shipped_weights()])\n"
    result = installed(sys.executable, "-c", code)
    assert result.returncode == 0, result.stderr
    assert str(installed.target / "share") in result.stdout
    assert "gauss5_50" in result.stdout


USES_THE_LIBRARY = """
import sys
import numpy as np
from PIL import Image
import denoising
from denoising import Denoiser
from denoising.engine import operators
print(denoising.__file__)
print(operators.choose()[1])
noisy = np.asarray(Image.open(sys.argv[1]))[:100, :150]
np.save("denoised.npy", Denoiser(sys.argv[2])(noisy))
"""


@pytest.mark.slow
def test_the_library_denoises_from_elsewhere_and_compiles_its_engine(installed):
    image, weights = ROOT / "demo" / "chelsea_noise.png", ROOT / "best_model.pdparams"
    result = installed(sys.executable, "-c", USES_THE_LIBRARY, image, weights)
    assert result.returncode == 0, result.stderr
    where, engine = result.stdout.splitlines()[-2:]
    assert where == str(installed.target / "denoising" / "__init__.py")
    assert engine.startswith("engine: onednn"), engine
    assert list(installed.cache.rglob("*.so"))
    noisy = np.asarray(opened(image))[:100, :150]
    expected = Denoiser(str(weights))(noisy).astype(int)
    assert np.abs(np.load(installed.elsewhere / "denoised.npy") - expected).max() <= 1


@pytest.mark.slow
def test_both_forms_of_the_command_denoise(installed):
    forms = {"script": [installed.target / "bin" / "denoise"], "module": [sys.executable, "-m", "denoising"]}
    flags = ["--image_path", ROOT / "demo" / "chelsea_noise.png", "--model_path", ROOT / "best_model.pdparams"]
    for name, command in forms.items():
        result = installed(*command, *flags, "--save_dir", name)
        assert result.returncode == 0, result.stderr
        assert opened(installed.elsewhere / name / "chelsea_noise_denoise.png").size == (451, 300)
        refused = installed(*command, *flags, "--save_dir", name)
        assert_user_error(refused, "denoise: error: --save_dir", "--overwrite")


def test_without_paddle_one_line_says_what_to_install(installed):
    # As in an environment without it: nothing but what was asked for is on the path.
    code = (
        "import importlib.util, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'paddle' else find(name, *rest)\n"
        "sys.argv[0] = 'denoise'\n"
        "from denoising.__main__ import command\n"
        "command()\n"
    )
    result = installed(sys.executable, "-c", code, "--image_path", "a.png")
    assert_user_error(result, "denoise: error: Paddle is not installed: pip install paddlepaddle")
