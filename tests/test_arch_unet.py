import numpy as np
import paddle
import pytest

from arch_unet import NORMS, UNetPhotons, build_network, rooted, squared
from conftest import leave, noisy_scene, run_script, save
from denoising.inference import checkpoint
from denoising.inference.denoiser import Denoiser


def parameters(network):
    return sum(parameter.size for parameter in network.parameters())


def test_the_networks_have_the_papers_sizes():
    assert parameters(build_network("unet")) == 1_259_475  # Neighbor2Neighbor: 1.26 M
    network = build_network("unet_n2n")
    assert parameters(network) == 991_203
    # Noise2Noise, Table 2, layer by layer: name, outputs.
    table = {
        **{f"enc_conv{i}": 48 for i in range(7)},
        **{f"dec_conv{i}{letter}": 96 for i in (5, 4, 3, 2) for letter in "ab"},
        "dec_conv1a": 64, "dec_conv1b": 32, "dec_conv1c": 3,
    }  # fmt: skip
    inputs = {"dec_conv5a": 96, "dec_conv4a": 144, "dec_conv3a": 144, "dec_conv2a": 144, "dec_conv1a": 99}
    assert {name.split(".")[0] for name in network.state_dict()} == set(table)
    for name, outputs in table.items():
        weight = getattr(network, name).weight
        assert weight.shape[0] == outputs
        assert weight.shape[1] == inputs.get(name, weight.shape[1])


def test_no_two_layers_share_their_weights():
    network = build_network("unet_n2n", n_feature=4)
    places = [parameter.numpy().tobytes() for parameter in network.parameters() if parameter.ndim == 4]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize("norm", sorted(NORMS))
@pytest.mark.parametrize("size", [(32, 64), (37, 45), (1, 3)])
def test_any_size_and_number_of_inputs(norm, size):
    network = build_network("unet_n2n", n_channel=3, n_feature=4, n_input=9, norm=norm)
    network.eval()
    result = network(paddle.rand([2, 9, *size]))
    assert result.shape == [2, 3, *size]
    assert np.isfinite(result.numpy()).all()


@pytest.mark.parametrize("norm", sorted(NORMS))
def test_saved_and_loaded_it_is_the_same(tmp_path, norm):
    network = build_network("unet_n2n", n_feature=4, norm=norm)
    for _ in range(3):  # the counts of a batch normalisation are saved, too
        network(paddle.rand([2, 3, 64, 64]))
    network.eval()
    checkpoint.save_network(tmp_path / "a.pdparams", checkpoint.network_state(network), network.options)
    loaded, options = checkpoint.load_network(tmp_path / "a.pdparams")
    assert options["norm"] == norm
    image = paddle.rand([1, 3, 32, 32])
    assert (loaded(image).numpy() == network(image).numpy()).all()


def test_options_of_another_network_are_refused(tmp_path):
    network = build_network("unet", n_feature=4)
    for change in ({"norm": "batch"}, {"norm": "nope"}, {"arch": "unet_n2n"}, {"n_input": 10**6}):
        options = {**network.options, **change}
        checkpoint.save_network(tmp_path / "a.pdparams", checkpoint.network_state(network), options)
        with pytest.raises(checkpoint.UserError, match=r"a\.pdparams"):
            checkpoint.load_network(tmp_path / "a.pdparams")


def test_a_pixel_of_the_deep_network_depends_on_none_beyond_the_margin():
    network = build_network("unet_deep", n_feature=4)
    for parameter in network.parameters():
        parameter.set_value(0.1 * paddle.rand(parameter.shape))  # nothing cancels out, and blocks add something
    reach = 0
    for place in range(128, 136):
        x = paddle.rand([1, 3, 256, 256])
        x.stop_gradient = False
        (gradient,) = paddle.grad(network(x)[0, :, place, place].sum(), x)
        rows = np.nonzero(gradient.abs().sum([0, 1, 3]).numpy())[0]
        reach = max(reach, place - rows.min(), rows.max() - place)
    assert network.margin - 8 < reach <= network.margin


def test_the_network_on_square_roots():
    """Noise of photons becomes equally strong, signs are kept, and the way back is one."""
    x = paddle.to_tensor(np.linspace(-0.5, 1.5, 201, dtype=np.float32))
    root = rooted(x, UNetPhotons.dark)
    assert np.abs((squared(root, UNetPhotons.dark) - x).numpy()).max() < 1e-6
    assert ((root > 0) == (x > 0)).all()
    rng, deviations = np.random.default_rng(0), []
    for brightness in (0.1, 0.3, 0.9):
        photons = (rng.poisson(30 * brightness, 20000) / 30).astype(np.float32)
        deviations.append(rooted(paddle.to_tensor(photons), UNetPhotons.dark).numpy().std())
    assert max(deviations) < 1.2 * min(deviations)
    deep, network = (build_network(arch, n_feature=4) for arch in ("unet_deep", "unet_photons"))
    network.set_state_dict(deep.state_dict())
    image = paddle.to_tensor(noisy_scene(40, 50).transpose(2, 0, 1)[None].astype(np.float32) / 255)
    expected = squared(deep(rooted(image, network.dark)), network.dark)
    assert np.abs((network(image) - expected).numpy()).max() < 1e-6


@pytest.mark.parametrize("size", [(24, 40), (21, 35)])
@pytest.mark.parametrize("arch", ["unet_lite", "unet_deep"])
def test_a_careful_network_says_how_much_of_the_image_stays(arch, size):
    network = build_network(arch, n_feature=4, careful=True)
    plain = build_network(arch, n_feature=4)
    state = checkpoint.network_state(network)
    for name in ("last.weight", "last.bias", "blur.weight", "blur.bias"):
        state[name] = state[name][: len(plain.state_dict()[name])]
    plain.set_state_dict(state)
    image = paddle.rand([2, 3, *size])
    painted = plain(image)
    for training in (True, False):
        (network.train if training else network.eval)()
        for share, expected in ((0.25, 0.25), (-1.0, 0.0), (2.0, 1.0)):
            leave(network, share)
            difference = network(image) - (expected * image + (1 - expected) * painted)
            assert difference.abs().max() < 1e-6


@pytest.mark.parametrize(("arch", "mebibytes"), [("unet", 512), ("unet_deep", 512), ("unet_n2n", 4096)])
def test_a_window_takes_half_a_gigabyte_at_most_unless_it_were_nearly_all_overlap(arch, mebibytes, monkeypatch):
    """A photograph of 24 megapixels took 4.6 GB with photo_deep."""
    monkeypatch.setattr("denoising.machine.free_memory", lambda: 1 << 40)
    network = build_network(arch, n_feature=72 if arch == "unet_deep" else 48)
    pixels = Denoiser(network)._window_pixels()
    assert pixels * network.ops.bytes_per_pixel * network.memory == pytest.approx(mebibytes << 20, rel=0.01)


@pytest.mark.parametrize("options", [{"arch": "unet_n2n"}, {"arch": "unet_deep", "careful": True}])
def test_tiles_equal_the_whole(options):
    paddle.seed(1)
    network = build_network(**options, n_feature=4)
    last = network.last if "careful" in options else network.dec_conv1c
    last.weight.set_value(last.weight * 10)
    network.eval()
    image = noisy_scene(420, 470).astype(np.float32) / 255
    assert np.abs(Denoiser(network, tile=400)(image) - Denoiser(network, tile=2000)(image)).max() < 1e-5


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_it_trains_predicts_and_exports(folders, tmp_path, norm):
    flags = ["--arch", "unet_n2n", "--norm", norm, "--n_feature", 8, "--patchsize", 32, "--batchsize", 2]
    where = ["--data_dir", folders / "data", "--val_dirs", folders / "val", "--save_model_path", tmp_path / "runs"]
    run_script("train.py", *flags, *where, "--max_steps", 6, "--log_name", "a", "--lr", 1e-3, ok=0)
    (weights,) = (tmp_path / "runs").glob("a/*/best_model.pdparams")
    noisy = save(tmp_path / "noisy.png", noisy_scene(45, 67))
    run_script("predict.py", "--image_path", noisy, "--model_path", weights, "--save_dir", tmp_path / "out", ok=0)
    assert list((tmp_path / "out").glob("noisy*"))
    run_script("export_model.py", "--model_path", weights, "--save_dir", tmp_path / "export", ok=0)
    run_script(
        "infer.py", "--use_gpu=False", "--model_file", tmp_path / "export/model.pdmodel",
        "--params_file", tmp_path / "export/model.pdiparams", "--input_file", tmp_path / "noisy.png",
        "--save_dir", tmp_path / "inferred", ok=0,
    )  # fmt: skip
    assert list((tmp_path / "inferred").glob("*noisy*"))
