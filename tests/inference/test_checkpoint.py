import json
import pickle
import subprocess
import sys
import time

import numpy as np
import paddle
import pytest

from arch_unet import build_network
from conftest import ROOT, broken_copies, leave
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


@pytest.mark.parametrize("more", [{}, {"careful": True}])
def test_light_weights_for_colours_start_a_grey_network(more):
    paddle.seed(3)
    colour, grey = (build_network("unet_lite", n_channel=channels, n_feature=6, **more) for channels in (3, 1))
    if more:
        leave(colour, 0.3)
    state = checkpoint.network_state(colour)
    checkpoint.set_weights(grey, checkpoint.to_grey(state), "a.pdparams")
    x = paddle.rand([1, 1, 32, 64])
    expected = colour(x.expand([1, 3, 32, 64])).mean(1, keepdim=True)
    assert float(abs(grey(x) - expected).max()) < 1e-5
    for change in (
        {"last.bias": np.zeros(4)},
        {"last.weight": state["last.weight"][:4]},
        {"enc_conv1a.weight": "text"},
    ):
        other = state | change
        assert checkpoint.to_grey(other) is other


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


def test_tensors_of_older_paddles_and_of_data_parallel_training_are_read(tmp_path):
    path, array = tmp_path / "a.pdparams", np.arange(6, dtype=np.float32).reshape(2, 3)
    held = {"module.a": ("linear_0.w_0", array), "b": array, "StructuredToParameterName@@": {"a": "linear_0.w_0"}}
    path.write_bytes(pickle.dumps({**held, "epoch": 3, "rate": 0.5, "text": "x"}, protocol=2))
    state = checkpoint.read_state(path)
    assert list(state) == ["a", "b", "epoch", "rate", "text"]
    assert (state["a"] == array).all()
    assert (state["b"] == array).all()
    assert (state["epoch"], state["rate"], state["text"]) == (3, 0.5, "x")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1.0], "holds a list and no weights by name"),
        ({"a": ("name", np.zeros(2), 1)}, "holds a tuple where a tensor"),
        ({"a": ("name", "text")}, "holds a tuple where a tensor"),
        ({"a": [np.zeros(2)]}, "holds a list where a tensor"),
        ({"a": None}, "holds a NoneType where a tensor"),
    ],
)
def test_what_holds_no_tensors_by_name_is_refused(content, words, tmp_path):
    path = tmp_path / "a.pdparams"
    path.write_bytes(pickle.dumps(content, protocol=4))
    with pytest.raises(UserError, match=rf"a\.pdparams: refused, it {words}"):
        checkpoint.read_state(path)


def test_what_is_written_is_read_by_every_paddle(tmp_path):
    checkpoint.write_state(tmp_path / "a.pdparams", {"a": np.zeros(2, np.float32)})
    assert (tmp_path / "a.pdparams").read_bytes()[:2] == b"\x80\x04"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state | {"more": np.zeros(2)}, "also has more"),
        (lambda state: state | {"nin_c.bias": np.zeros(4)}, r"nin_c\.bias is \(4,\), not \(3,\)"),
        (lambda state: state | {"nin_c.bias": "text"}, r"nin_c\.bias is \(\), not \(3,\)"),
        (lambda state: state | {"nin_c.bias": np.array([0, 1e39, 0])}, r"nin_c\.bias holds NaN or infinite"),
        (lambda state: state | {"nin_c.bias": np.array([0, -np.inf, 0])}, r"nin_c\.bias holds NaN or infinite"),
    ],
)
def test_weights_that_do_not_fit_leave_a_network_as_it_is(change, words, weights):
    network, _ = checkpoint.load_network(weights)
    before = checkpoint.network_state(network)
    others = change({name: array + 1 for name, array in before.items()})
    with pytest.raises(UserError, match=f"^a.pdparams: .*{words}"):
        checkpoint.set_weights(network, others, "a.pdparams")
    after = checkpoint.network_state(network)
    assert all((after[name] == array).all() for name, array in before.items())


def test_a_loaded_network_evaluates(tmp_path):
    network = build_network("unet_n2n", n_feature=4, norm="batch", n_input=5)
    path = tmp_path / "a.pdparams"
    checkpoint.save_network(path, checkpoint.network_state(network), network.options)
    loaded, options = checkpoint.load_network(path)
    assert not loaded.training
    assert options == network.options == loaded.options
    assert "@options" not in loaded.state_dict()


@pytest.mark.parametrize(
    "changes",
    [
        {"arch": "resnet"}, {"arch": ["unet"]}, {"norm": "group"}, {"noisetype": 25},
        {"n_channel": 0}, {"n_channel": -3}, {"n_channel": True}, {"n_channel": 3.0}, {"n_channel": "3"},
        {"n_head": 0}, {"n_head": 10**6}, {"n_input": 0}, {"n_input": 10**6}, {"n_feature": None},
    ],
)  # fmt: skip
def test_options_that_build_no_network_are_refused(changes, tmp_path, weights):
    state = checkpoint.read_state(weights)
    options = json.loads(state["@options"])
    for path, content in ((tmp_path / "a.pdparams", options | changes), (tmp_path / "b.pdparams", options)):
        checkpoint.save_network(path, {name: state[name] for name in state if name != "@options"}, content)
    with pytest.raises(UserError, match=r"a\.pdparams: holds no network of this project"):
        checkpoint.load_network(tmp_path / "a.pdparams")
    assert checkpoint.load_network(tmp_path / "b.pdparams")[1] == options


def test_a_number_that_a_network_does_not_have_is_refused(tmp_path):
    lite = build_network("unet_lite", n_feature=4)
    path = tmp_path / "a.pdparams"
    for change in ({"n_head": 4}, {"careful": True}, {"careful": 2}, {"careful": "yes"}, {"careful": [1]}):
        checkpoint.save_network(path, checkpoint.network_state(lite), lite.options | change)
        with pytest.raises(UserError, match=r"a\.pdparams: holds (no network of this project|another network)"):
            checkpoint.load_network(path)


@pytest.mark.parametrize("text", ["{", "[]", "3", "null", "{}", "[" * 100_000, 7, np.zeros(2)])
def test_options_that_are_none_are_refused(text, tmp_path, weights):
    checkpoint.write_state(tmp_path / "a.pdparams", checkpoint.read_state(weights) | {"@options": text})
    with pytest.raises(UserError, match=r"a\.pdparams: holds no network of this project"):
        checkpoint.load_network(tmp_path / "a.pdparams")


@pytest.mark.parametrize(("n", "fits"), [(10, True), (11, False)])
def test_a_claim_is_believed_up_to_the_files_own_size(n, fits):
    options = {"arch": "unet", "n_channel": 3, "n_feature": n}
    state = {"@options": json.dumps(options), "a": np.zeros((25, 2)), "b": np.zeros(50), "step": 1000}
    if fits:
        assert checkpoint._saved_options("a", state) == options
        assert "@options" not in state
    else:
        with pytest.raises(UserError, match="holds no network"):
            checkpoint._saved_options("a", state)


def test_only_colour_ends_are_taken_for_grey(weights):
    state = {name: array for name, array in checkpoint.read_state(weights).items() if name != "@options"}
    grey = checkpoint.to_grey(state)
    assert set(grey) == set(state)
    for name in ("enc_conv0.weight", "nin_c.weight", "nin_c.bias", "dec_conv1a.weight"):
        assert grey[name].shape != state[name].shape
        assert checkpoint.to_grey(part := {**state, name: "text"}) is part
    for change in (
        {"nin_c.bias": np.zeros(4)}, {"nin_c.weight": state["nin_c.weight"][:2]},
        {"enc_conv0.weight": state["enc_conv0.weight"][:, :1]}, {"dec_conv1a.weight": np.zeros((3, 3))},
    ):  # fmt: skip
        other = state | change
        assert checkpoint.to_grey(other) is other
