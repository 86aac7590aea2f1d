import pickle
import subprocess
import sys
import time

import numpy as np
import paddle
import pytest

from arch_unet import build_network
from conftest import ROOT, broken_copies
from denoising.cli import UserError
from denoising.inference import checkpoint


def test_round_trip_and_paddle_reads_it(tmp_path):
    network = build_network(n_feature=4, n_channel=1)
    path = tmp_path / "a.pdparams"
    checkpoint.save_network(path, checkpoint.network_state(network), {**network.options, "noisetype": "gauss25"})
    loaded, options = checkpoint.load_network(path)
    assert options["noisetype"] == "gauss25"
    assert options["n_channel"] == 1
    by_paddle = paddle.load(str(path))
    for name, tensor in network.state_dict().items():
        assert (loaded.state_dict()[name].numpy() == tensor.numpy()).all()
        assert (by_paddle[name].numpy() == tensor.numpy()).all()


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_files_of_paddle_save_are_read_and_the_network_told_by_its_shapes(tmp_path, protocol):
    network = build_network(n_feature=6)
    path = str(tmp_path / "published.pdparams")
    paddle.save(network.state_dict(), path, protocol=protocol)
    loaded, options = checkpoint.load_network(path)
    assert options == {"arch": "unet", "n_channel": 3, "n_feature": 6, "n_head": 12}
    x = paddle.rand([1, 3, 32, 32])
    network.eval()
    assert (loaded(x).numpy() == network(x).numpy()).all()


class _Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def attacks(mark):
    """Pickles that touch a file when unpickled, in several disguises."""
    array = np.zeros(3, np.float32)
    yield pickle.dumps({"enc_conv0.weight": _Attack(mark)})
    yield pickle.dumps({"enc_conv0.weight": array, "x": [_Attack(mark)]}, protocol=2)
    yield b"cos\nsystem\n(S'touch " + mark.encode() + b"'\ntR."
    yield b"cbuiltins\nexec\n(S'open(\"" + mark.encode() + b'", "w")\'\ntR.'
    # Attributes of what is granted, reached by a dotted name.
    yield b"\x80\x04\x8c\x05numpy\x8c\x15ndarray.__init_subclass__\x93."
    yield pickle.dumps({"a": np.array([_Attack(mark)], dtype=object)})


def test_a_malicious_file_is_refused_and_nothing_runs(tmp_path):
    mark = tmp_path / "it ran"
    for number, data in enumerate(attacks(str(mark))):
        path = tmp_path / f"{number}.pdparams"
        path.write_bytes(data)
        with pytest.raises(UserError, match=str(number)):
            checkpoint.load_network(path)
        assert not mark.exists()
    # The attack is a real one: the ordinary unpickler runs it.
    pickle.loads(next(attacks(str(mark))))["enc_conv0.weight"].close()
    assert mark.exists()


def test_files_that_would_keep_the_reader_busy_are_refused_at_once(tmp_path):
    path = tmp_path / "a.pdparams"
    # A tuple of two tuples of two tuples ...: small on disk, but its hash takes 2**60 steps.
    nested = b"\x80\x04})\x94" + b"".join(b"h" + bytes([i]) + b"\x86\x94" for i in range(60)) + b"K\x01s."
    for data in (nested, b"\x80\x04" + b"(" * 100_000 + b".", b"\x80\x04\x8b\xff\xff\xff\x7f."):
        path.write_bytes(data)
        start = time.perf_counter()
        with pytest.raises(UserError, match=r"a\.pdparams"):
            checkpoint.read_state(path)
        assert time.perf_counter() - start < 5


def test_arrays_that_share_a_buffer_do_not_fill_the_memory(tmp_path):
    array = np.zeros(100_000, np.float32)
    path = tmp_path / "a.pdparams"
    path.write_bytes(pickle.dumps({str(i): array for i in range(50)}, protocol=4))
    with pytest.raises(UserError, match="larger than the file"):
        checkpoint.read_state(path)


def test_every_truncation_and_many_corruptions_end_in_one_line(tmp_path):
    network = build_network(n_feature=1)
    path = tmp_path / "a.pdparams"
    checkpoint.save_network(path, checkpoint.network_state(network), network.options)
    broken = list(broken_copies(path.read_bytes(), 211))
    refused = 0
    for damaged in broken:
        path.write_bytes(damaged)
        try:
            checkpoint.load_network(path)
        except UserError as error:
            refused += "a.pdparams" in str(error)
    assert refused >= len(broken) - 200  # a flipped bit inside a weight is a weight


def test_another_network_is_named(tmp_path, weights):
    path = tmp_path / "a.pdparams"
    other = {"linear.weight": np.zeros((3, 3), np.float32)}
    checkpoint.write_state(path, other)
    with pytest.raises(UserError, match="no network of this project"):
        checkpoint.load_network(path)
    state = checkpoint.read_state(weights)
    state["nin_c.bias"] = np.array([0, np.nan, 0], np.float32)
    checkpoint.write_state(path, state)
    with pytest.raises(UserError, match="NaN"):
        checkpoint.load_network(path)
    del state["nin_c.bias"]
    checkpoint.write_state(path, state)
    with pytest.raises(UserError, match="lacks nin_c.bias"):
        checkpoint.load_network(path)


def test_colour_weights_start_a_grey_network(weights):
    colour, _ = checkpoint.load_network(weights)
    grey = build_network(n_channel=1, n_feature=4)
    checkpoint.set_weights(grey, checkpoint.to_grey(checkpoint.network_state(colour)), "a.pdparams")
    grey.eval()
    x = paddle.rand([1, 1, 32, 64])
    expected = colour(x.expand([1, 3, 32, 64])).mean(1, keepdim=True)
    assert float(abs(grey(x) - expected).max()) < 1e-5
    state = checkpoint.network_state(grey)
    assert checkpoint.to_grey(state) is state


def test_a_full_disk_leaves_the_old_file(tmp_path, weights, monkeypatch):
    path = tmp_path / "a.pdparams"
    path.write_bytes(b"old")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.pickle, "dump", full)
    with pytest.raises(UserError, match=r"a\.pdparams.*No space left"):
        checkpoint.write_state(path, {})
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.pdparams"]


def test_a_claim_of_a_huge_network_is_not_built(tmp_path, weights):
    state = checkpoint.read_state(weights)
    state["@options"] = '{"arch": "unet", "n_channel": 3, "n_feature": 4000, "n_head": 4000}'
    checkpoint.write_state(tmp_path / "a.pdparams", state)
    code = (
        "import resource, sys; sys.path.insert(0, '.')\n"
        "from denoising import cli\n"
        "from denoising.inference import checkpoint\n"
        "try: checkpoint.load_network(sys.argv[1])\n"
        "except cli.UserError as error: print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.pdparams")],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    message, megabytes = result.stdout.splitlines()[-2:]
    assert "no network" in message
    assert int(megabytes) < 1500
