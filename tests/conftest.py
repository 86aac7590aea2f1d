"""Shared by the tests: small images, a small network, and the scripts run as users run them."""

import csv
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image

import forks
from denoising import cli
from forks import ENVIRONMENT as ENVIRONMENT
from forks import ROOT as ROOT

# What these modules assert for the tests of their folders shows its values, as a test does.
pytest.register_assert_rewrite("chains", "servers")

needs_rawpy = pytest.mark.skipif(find_spec("rawpy") is None, reason="raw files need rawpy (requirements-raw.txt)")


def scene(height, width, channels=3, seed=0):
    """A smooth picture with edges, uint8: something that a denoiser can tell from noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    image = np.zeros((height, width, channels))
    for c in range(channels):
        a, b, shift = rng.uniform(0.02, 0.15, 3)
        image[..., c] = 128 + 60 * np.sin(a * x + shift) * np.cos(b * y)
    for _ in range(6):
        top, left = rng.integers(0, height), rng.integers(0, width)
        box = np.s_[top : top + height // 4, left : left + width // 4]
        image[box] = rng.uniform(20, 235, channels)
    return np.clip(image, 0, 255).astype(np.uint8)


def noisy_scene(height, width, channels=3, seed=0, sigma=25):
    """The same with Gaussian noise, rounded to uint8."""
    rng = np.random.default_rng(seed + 1000)
    noisy = scene(height, width, channels, seed) + rng.normal(0, sigma, (height, width, channels))
    return np.clip(noisy + 0.5, 0, 255).astype(np.uint8)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.squeeze()).save(path)
    return path


def rows_of(path, kind=csv.DictReader):
    """The rows of a CSV file."""
    with open(path, encoding="utf-8", newline="") as file:
        return list(kind(file))


def opened(path):
    """A picture whose file is closed again."""
    with Image.open(path) as image:
        image.load()
        return image


def run_script(name, *arguments, ok=None, **options):
    """Runs a script in a process of its own (see forks.run); with `ok`, checks its exit code."""
    result = forks.run(name, *arguments, **options)
    if ok is not None:
        assert result.returncode == ok, result.stdout + result.stderr
    return result


def refusal(main, flags, capsys):
    """What a script's main, called here, says of a user's mistake: the one line that its process would end with."""
    words = [word for pair in flags.items() for word in pair] if isinstance(flags, dict) else flags
    try:
        code = main([str(word) for word in words])
    except cli.UserError as error:
        return str(error)
    except SystemExit as end:  # of the parser
        code = end.code
    lines = [line for line in capsys.readouterr().err.splitlines() if ": error: " in line]
    assert (code, len(lines)) == (2, 1), f"not refused: {flags}"
    return lines[0]


def assert_user_error(result, *words):
    """Exit code 2 and one line on stderr that names the flag or file; other lines are notes, not tracebacks."""
    assert result.returncode == 2, result.stdout + result.stderr
    errors = [line for line in result.stderr.splitlines() if ": error: " in line]
    assert len(errors) == 1, result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert str(word) in errors[0], errors[0]


def broken_copies(data, step):
    """A file's bytes cut off at each `step`, and with eight of them changed, 200 times."""
    rng = np.random.default_rng(0)
    for length in range(0, len(data) - 1, step):
        yield data[:length]
    for _ in range(200):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), 8):
            damaged[place] = rng.integers(256)
        yield bytes(damaged)


# --- What a selection leaves out is told, also where several processes share the tests ----------------------


class LeftOut:
    """How many tests were collected and not run."""

    count = 0

    def pytest_deselected(self, items):
        self.count += len(items)

    def pytest_sessionfinish(self, session):
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["left_out"] = self.count

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node):
        self.count = max(self.count, getattr(node, "workeroutput", {}).get("left_out", 0))

    def pytest_terminal_summary(self, terminalreporter):
        if self.count:
            terminalreporter.write_line(f"{self.count} tests were left out; make test-all runs all of them")


def pytest_configure(config):
    config.pluginmanager.register(LeftOut())


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """data/ with eight noisy-able images, val/ with one small validation set."""
    root = tmp_path_factory.mktemp("images")
    for i in range(8):
        save(root / "data" / f"{i}.png", scene(80 + 3 * i, 96, seed=i))
    for i in range(2):
        save(root / "val" / "Tiny" / f"{i}.png", scene(45, 67, seed=50 + i))
    return root


def leave(network, share):
    """Makes a careful network leave this share of an image everywhere."""
    weight, bias = network.last.weight.numpy(), network.last.bias.numpy()
    weight[-4:], bias[-4:] = 0, share  # at the four places of 2x2 pixels
    network.last.weight.set_value(weight)
    network.last.bias.set_value(bias)


def tiny_network(seed):
    """A network of four features; its last layer is scaled so that outputs look like images."""
    import paddle

    from arch_unet import build_network

    paddle.seed(seed)
    network = build_network(n_feature=4)
    network.nin_c.weight.set_value(network.nin_c.weight * 10)
    network.eval()
    return network


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """The weights file of a tiny network."""
    from denoising.inference import checkpoint

    network = tiny_network(7)
    path = tmp_path_factory.mktemp("weights") / "tiny.pdparams"
    options = {**network.options, "noisetype": "gauss25"}
    checkpoint.save_network(path, checkpoint.network_state(network), options)
    return path
