import io
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import paddle
import pytest

from arch_unet import build_network
from conftest import assert_user_error, broken_copies, run_script
from denoising.cli import UserError
from denoising.files import tensors
from denoising.inference import checkpoint

# --- Files as torch.save writes them, without PyTorch -------------------------------------------------------


class StandIn:
    """Pickled as PyTorch pickles a tensor: a call of `_rebuild_tensor_v2` on a reference to its storage."""

    def __init__(self, array, key="0", shape=None, strides=None, offset=0):
        self.array, self.key, self.offset = array, key, offset
        self.shape = array.shape if shape is None else shape
        steps = [step // array.itemsize for step in array.strides]
        self.strides = steps if strides is None else strides

    def __reduce__(self):
        storage = Reference(self.key, self.array)
        view = (storage, self.offset, tuple(self.shape), tuple(self.strides), False, OrderedDict())
        return sys.modules["torch._utils"]._rebuild_tensor_v2, view


class Reference:
    def __init__(self, key, array):
        self.key, self.array = key, array


@pytest.fixture
def fake_torch(monkeypatch):
    """Modules named as PyTorch's, which the pickler asks for the things it writes by name."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in ("FloatStorage", "ByteStorage", "LongStorage"):
        setattr(torch, name, type(name, (), {"__module__": "torch"}))

    def _rebuild_tensor_v2():
        pass

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    torch._utils = utils
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)
    return torch


def dump(torch, value):
    """The pickle of a structure with StandIns, and the storages it refers to."""
    storages, file = {}, io.BytesIO()
    types_ = {"float32": torch.FloatStorage, "uint8": torch.ByteStorage, "int64": torch.LongStorage}

    class Pickler(pickle.Pickler):
        def persistent_id(self, found):
            if not isinstance(found, Reference):
                return None
            storages[found.key] = found.array
            return ("storage", types_[str(found.array.dtype)], found.key, "cpu", found.array.size)

    Pickler(file, protocol=2).dump(value)
    return file.getvalue(), storages


def write_zip(path, torch, value, compression=zipfile.ZIP_STORED):
    content, storages = dump(torch, value)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/byteorder", "little")
        for key, array in storages.items():
            archive.writestr(f"archive/data/{key}", array.tobytes())
        archive.writestr("archive/version", "3\n")


def write_legacy(path, torch, value):
    content, storages = dump(torch, value)
    with open(path, "wb") as file:
        pickle.dump(0x1950A86A20F9469CFC6C, file, protocol=2)
        pickle.dump(1001, file, protocol=2)
        pickle.dump({"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}, file, protocol=2)
        file.write(content)
        pickle.dump(sorted(storages), file, protocol=2)
        for _, array in sorted(storages.items()):
            file.write(array.size.to_bytes(8, "little") + array.tobytes())


def official_state(network, prefix=""):
    """A state dict as the official training saves it: ordered, with PyTorch's table of versions hung on it."""
    state = OrderedDict(
        (prefix + name, StandIn(array, str(number)))
        for number, (name, array) in enumerate(checkpoint.network_state(network).items())
    )
    state._metadata = OrderedDict([("", {"version": 1}), ("enc_conv0", {"version": 1})])
    return state


# --- Weights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [write_zip, write_legacy])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_official_weights_are_converted(tmp_path, fake_torch, write, prefix):
    network = build_network(n_feature=4, n_head=96)  # the official head is of 96 at any width
    write(tmp_path / "official.pth", fake_torch, official_state(network, prefix))
    printed = run_script("tools/convert_weights.py", "--model_path", tmp_path / "official.pth", ok=0).stdout
    assert "4 features" in printed
    converted, options = checkpoint.load_network(tmp_path / "official.pdparams")
    assert options == {"arch": "unet", "n_channel": 3, "n_feature": 4, "n_head": 96}
    for name, tensor in network.state_dict().items():
        assert (converted.state_dict()[name].numpy() == tensor.numpy()).all()
    again = run_script("tools/convert_weights.py", "--model_path", tmp_path / "official.pth")
    assert_user_error(again, "--save_path", "official.pdparams", "--overwrite")
    named = run_script("tools/convert_weights.py", "--model_path", tmp_path / "official.pth", "--save_path", "x.txt")
    assert_user_error(named, "--save_path", "x.txt must end in .pdparams")


def test_weights_of_half_the_size(tmp_path, weights):
    half = tmp_path / "new" / "h.pdparams"
    run_script("tools/convert_weights.py", "--model_path", weights, "--save_path", half, "--half", ok=0)
    assert half.stat().st_size < 0.7 * Path(weights).stat().st_size
    (network, about), (halved, same) = map(checkpoint.load_network, (weights, half))
    assert about == same
    image = paddle.rand([1, 3, 32, 32])
    expected = network(image)
    assert 0 < float((expected - halved(image)).abs().max()) < 2e-3 * float(expected.abs().max())
    state = checkpoint.read_state(weights) | {"nin_c.bias": np.full(3, 1e5, np.float32)}
    checkpoint.write_state(tmp_path / "large.pdparams", state)
    message = run_script(
        "tools/convert_weights.py", "--model_path", tmp_path / "large.pdparams", "--half", "--overwrite"
    )
    assert_user_error(message, "--half")


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_pytorchs_own_files_give_pytorchs_own_outputs(tmp_path, kind):
    """With PyTorch, where it is installed: its initialisation, its torch.save, its forward pass."""
    torch = pytest.importorskip("torch")
    from torch.nn import functional as F

    torch.manual_seed(0)
    network = build_network(n_feature=8)
    state = OrderedDict()
    for name, tensor in network.state_dict().items():
        scale = 1.5 / np.sqrt(np.prod(tensor.shape[1:])) if name.endswith("weight") else 0.1
        state[name] = torch.randn(tensor.shape) * scale
    torch.save(state, tmp_path / "official.pth", _use_new_zipfile_serialization=kind == "zip")

    def conv(x, name, act=True):
        y = F.conv2d(x, state[name + ".weight"], state[name + ".bias"], padding="same")
        return F.leaky_relu(y, 0.2) if act else y

    x = noisy = torch.rand(1, 3, 64, 96)
    skips = [x]
    x = conv(x, "enc_conv0")
    for i in range(1, 6):
        x = F.max_pool2d(conv(x, f"enc_conv{i}"), 2)
        skips.append(x)
    x = conv(x, "enc_conv6")
    for i in range(5, 0, -1):
        x = F.conv_transpose2d(x, state[f"up{i}.deconv.weight"], state[f"up{i}.deconv.bias"], stride=2)
        x = conv(conv(torch.cat([x, skips[i - 1]], 1), f"dec_conv{i}a"), f"dec_conv{i}b")
    expected = conv(conv(conv(x, "nin_a"), "nin_b"), "nin_c", act=False).numpy()

    import paddle

    loaded, _ = checkpoint.load_network(tmp_path / "official.pth")
    found = loaded(paddle.to_tensor(noisy.numpy())).numpy()
    assert np.abs(expected).max() > 0.1
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_views_of_one_storage_in_a_tuple(tmp_path, fake_torch):
    # Two tensors of images in one file, as data sets are passed around; the second one transposed in memory.
    images = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 4, 5)
    turned = StandIn(images, shape=(2, 5, 4, 3), strides=(60, 1, 5, 20))
    part = StandIn(images, shape=(3, 4, 5), strides=(20, 5, 1), offset=60)
    write_zip(tmp_path / "pairs.pkl", fake_torch, (StandIn(images), turned, [part]))
    first, second, (third,) = tensors.read(tmp_path / "pairs.pkl")
    assert (first == images).all()
    assert (second == images.transpose(0, 3, 2, 1)).all()
    assert (third == images[1]).all()


# --- What is refused ----------------------------------------------------------------------------------------


class Attack:
    def __reduce__(self):
        return print, ("it ran",)


def test_hostile_torch_files_are_refused(tmp_path, fake_torch, capfd):
    array = np.zeros(8, np.float32)
    hostile = {
        "asks for": {"a": Attack()},
        "larger than its storage": {"a": StandIn(array, shape=(9,), strides=(1,))},
        "than its storage": {"a": StandIn(array, shape=(1000, 1000), strides=(0, 0))},
        "shape is none": {"a": StandIn(array, shape=(2,), strides=(-1,), offset=4)},
    }
    for message, value in hostile.items():
        for write in (write_zip, write_legacy):
            write(tmp_path / "a.pth", fake_torch, value)
            with pytest.raises(UserError, match=rf"a\.pth.*{message}"):
                tensors.read(tmp_path / "a.pth")
    write_zip(tmp_path / "a.pth", fake_torch, {"a": StandIn(array)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="compressed"):
        tensors.read(tmp_path / "a.pth")
    assert "it ran" not in capfd.readouterr().out


def test_many_views_of_one_storage_do_not_fill_the_memory(tmp_path, fake_torch):
    array = np.zeros(100_000, np.float32)
    write_zip(tmp_path / "a.pth", fake_torch, [StandIn(array) for _ in range(50)])
    with pytest.raises(UserError, match="larger than the file"):
        tensors.read(tmp_path / "a.pth")


def test_lists_that_repeat_each_other_are_refused_at_once(tmp_path):
    nested = ["x"]
    for _ in range(60):
        nested = [nested, nested]
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(nested))
    with pytest.raises(UserError, match="larger than the file"):
        tensors.read(tmp_path / "a.pkl")
    nested = []
    nested.append(nested)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(nested))
    with pytest.raises(UserError, match=r"larger than the file|nested without end"):
        tensors.read(tmp_path / "a.pkl")


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_truncated_and_damaged_files_end_in_one_line(tmp_path, fake_torch, write):
    path = tmp_path / "a.pth"
    write(path, fake_torch, official_state(build_network(n_feature=1)))
    broken = list(broken_copies(path.read_bytes(), 501))
    refused = 0
    for damaged in broken:
        path.write_bytes(damaged)
        try:
            checkpoint.load_network(path)
        except UserError as error:
            refused += "a.pth" in str(error)
    assert refused >= len(broken) - 200


def test_another_zip_is_no_weights_file(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("picture.png", b"x")
    with pytest.raises(UserError, match=r"a\.zip.*not one of PyTorch"):
        tensors.read(tmp_path / "a.zip")


@pytest.mark.parametrize("name", sorted({f"{module}:{name}" for module, name in tensors._GRANTED | tensors._TORCH}))
def test_a_file_changes_nothing_that_later_files_are_read_with(tmp_path, name):
    """BUILD sets attributes: on what all files share, they would outlive the file."""
    module, name = name.split(":")
    if (module, name) in tensors._TORCH and not callable(tensors._TORCH[module, name]):
        pytest.skip("a storage's type is text")
    state = (None, {"granted": None, "value": None, "code": "x", "__defaults__": ("utf8",)})
    attack = pickle.dumps(state, protocol=2)[:-1]  # without the full stop
    path = tmp_path / "attack.pdparams"
    path.write_bytes(b"\x80\x02c" + f"{module}\n{name}\n".encode() + attack[2:] + b"b.")
    before = {key: vars(value).copy() for key, value in vars(tensors).items() if isinstance(value, type)}
    with pytest.raises(UserError, match="refused"):
        tensors.read(path)
    assert {key: vars(value).copy() for key, value in vars(tensors).items() if isinstance(value, type)} == before
    assert tensors._latin1.__defaults__ == ("latin1",)
    good = tmp_path / "good.pdparams"
    good.write_bytes(pickle.dumps({"a": np.arange(3.0)}, protocol=2))
    np.testing.assert_array_equal(tensors.read(good)["a"], np.arange(3.0))
