"""What the certification wants of trainings: equal losses, a speed, pruned networks and 8 bits, at their places."""

import json
import re
import subprocess

import chains
import numpy as np
import pytest
from chains import BASH, needs_bash

import analysis
import extract_loss
import fpgm
from conftest import ENVIRONMENT, ROOT, assert_user_error, run_script

pytestmark = needs_bash
chain = chains.chain  # the fixture


# --- Losses and speeds --------------------------------------------------------------------------------------


def test_a_static_graph_has_the_same_losses_as_layers(folders, tmp_path):
    logs = {}
    for kind, more in (("dynamic", ["--engine=paddle"]), ("static", ["--to_static"])):
        result = run_script(
            "train.py", f"--data_dir={folders / 'data'}", "--val_dirs=none", "--patchsize=32", "--n_feature=4",
            "--max_steps=3", "--log_iters=1", f"--save_model_path={tmp_path}", f"--log_name={kind}", *more, ok=0,
        )  # fmt: skip
        assert ("static graph: 2 programs" in result.stdout) == (kind == "static")
        logs[kind] = tmp_path / kind / "log"
        logs[kind].write_text(result.stdout)
    assert extract_loss.main([str(logs["dynamic"]), str(logs["static"])]) == 0
    assert_user_error(run_script("train.py", "--data_dir=.", "--to_static", "--engine=onednn"), "--to_static")


def loss_log(path, *losses):
    lines = (f"0001 {i:05d} Loss1={x}, Lambda=1.0, Loss2={x}, Loss_Full={x}, Time={i}\n" for i, x in enumerate(losses))
    path.write_text("engine: onednn\n" + "".join(lines))
    return str(path)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (["0.5", "0.4", "0.3"], "3 losses are the same"),
        (["0.5", "0.4", "0.300001"], "3 and 3 losses, 1 of which differ"),
        (["0.5", "0.4"], "3 and 2 losses, 0 of which differ"),
        (["0.5", "0.4", "nan"], "a loss is not finite"),
        ([], "holds no losses"),
    ],
)
def test_losses_are_compared_to_the_last_digit(other, message, tmp_path, capsys):
    logs = [loss_log(tmp_path / "a", "0.5", "0.4", "0.3"), loss_log(tmp_path / "b", *other)]
    assert extract_loss.main(logs) == ("same" not in message)
    assert message in capsys.readouterr().out
    nan = loss_log(tmp_path / "c", "0.5", "nan", "0.3")
    assert extract_loss.main([nan, nan]) == 1


def test_dynamic_and_static_training_that_differ_are_red(chain):
    config = chain.config("test_tipc/configs/N2N/train_dy2static_python.txt")
    assert chain.run(config, "lite_train_lite_infer", script="test_train_dy2static_python.sh").returncode == 0
    assert ["--to_static" in words for words in chain.called("train_for_tipc.py")] == [False, True]
    run = {"mode": "lite_train_lite_infer", "script": "test_train_dy2static_python.sh"}
    chain.run(config, **run, FAULT="static differs")
    assert [row[1] for row in chain.rows] == ["successfully", "successfully", "failed"]
    result = chain.run(config, **run, FAULT="static is ignored")
    assert [row[1] for row in chain.rows] == ["successfully", "failed", "failed"]
    assert "the log shows nothing like 'static graph: [1-9]'" in result.stdout
    chain.run(config, **run, FAULT="train_for_tipc.py fails")
    assert [row[1] for row in chain.rows] == ["failed"] * 3
    text = config.read_text()
    config.write_text(text.replace("to_static_train:--to_static", "null:null"))
    assert "line 20 should be to_static_train" in chain.run(config, **run).stderr
    config.write_text(text + text.replace("base_train", "other_train"))
    assert chain.run(config, **run).returncode == 0
    assert len(chain.rows) == 6


def test_the_speed_is_read_from_the_log(tmp_path, capsys):
    log, out = tmp_path / "log", tmp_path / "speed"
    flags = ["--filename", log, "--speed_log_file", out, "--model_name", "N2N_bs4_fp32_DP_N1C1", "--base_batch_size", 4]
    flags += ["--convergence_key", "Loss1=", "--skip_steps", 1]

    def analyse(*speeds, loss="0.25"):
        lines = [f"0001 00000 Loss1={loss}, avg_samples: 4, ips: {speed} images/s, eta: 0\n" for speed in speeds]
        log.write_text("LAUNCH INFO ips: None\n" + "".join(lines))
        out.unlink(missing_ok=True)
        return analysis.main(list(map(str, flags)))

    assert analyse(1, 10, 12, 14) == 0
    record = json.loads(out.read_text())
    assert record["ips"] == 12
    assert record["convergence_value"] == 0.25
    assert (record["batch_size"], record["device_num"], record["speed_unit"]) == (4, "N1C1", "images/s")
    assert re.fullmatch(r"[0-9a-f]{40}", record["frame_commit"])
    assert set(record) >= {"model_branch", "model_commit", "model_name", "fp_item", "run_mode", "frame_version"}
    for speeds in ((1, 10, 12), (1, 10, 12, 0), (1, 10, 12, "nan"), (1, 10, 12, -1), ()):
        assert analyse(*speeds) == 1
        assert not out.exists()
    assert analyse(1, 10, 12, 14, loss="nan") == 1
    capsys.readouterr()


def test_benchmarks_run_in_all_the_ways_that_are_asked_for(chain):
    run = {"mode": "benchmark_train", "script": "benchmark_train.sh"}
    result = chain.run(chain.config(), **run, checks=False, FACTS="cuda=0 gpus=0 tensorrt=0 bf16=1")
    assert result.returncode == 0, result.stdout + result.stderr
    names = [re.search(r"train_log/\w+?_(N2N_bs4_\w+)_log", row[3])[1] for row in chain.rows]
    wanted = [f"{fp}_DP_{n}{t}" for t in ("", "_d2sT") for fp in ("fp32", "bf16") for n in ("N1C1", "N1C2")]
    assert names == [f"N2N_bs4_{name}" for name in wanted]
    assert [row[1] for row in chain.rows] == ["successfully"] * 6 + ["skipped"] * 2
    trainings = chain.called("train_for_tipc.py")
    assert ["--to_static" in words for words in trainings] == [False] * 4 + [True] * 2
    assert ["--precision=bf16" in words for words in trainings] == [False, False, True, True, False, False]
    assert ["--nproc_per_node" in words for words in trainings] == [False, True] * 3

    config = chain.config()
    result = subprocess.run(
        [BASH, "test_tipc/benchmark_train.sh", config, "benchmark_train", "dynamic_bs2_fp32_DP_N1C2"], cwd=chain.root,
        capture_output=True, text=True,
        env={**ENVIRONMENT, "PYTHON": str(chain.python), "CALLS": str(chain.calls), "CHECKS": "1",
             "PYTHONPATH": str(ROOT), "BENCHMARK_LOG_DIR": str(chain.root)},
    )  # fmt: skip
    # Three steps are too few to speak of a speed, and so it is red.
    assert result.returncode == 1
    assert "analysis failed: " in result.stdout
    assert (
        "--batchsize=2"
        in (chain.root / "test_tipc" / "output" / "N2N" / "benchmark_train" / "results_benchmark.log").read_text()
    )
    assert not list((chain.root / "index").iterdir())
    for wrong in ("dynamic_fp32", "dynamic_bs2_fp64_DP_N1C1", "fast_bs2_fp32_DP_N1C1", "dynamic_bs2_fp32_DP_N2C3"):
        result = subprocess.run(
            [BASH, "test_tipc/benchmark_train.sh", config, "benchmark_train", wrong], cwd=chain.root,
            capture_output=True, text=True, env={**ENVIRONMENT, "PYTHON": str(chain.python), "CALLS": str(chain.calls)},
        )  # fmt: skip
        assert result.returncode == 2, result.stdout
        assert len(result.stderr.splitlines()) == 1
    for fault in ("ranks differ", "static is ignored"):
        result = chain.run(chain.config(fp_items="fp32"), **run, FAULT=fault)
        assert ("weights are expected" if "ranks" in fault else "nothing like 'static graph") in result.stdout
    log = chain.root / "train_log" / f"{chain.root.name}_N2N_bs4_fp32_DP_N1C1_log"
    (chain.root / "index" / f"{chain.root.name}_N2N_bs4_fp32_DP_N1C1_speed").write_text("of an earlier run")
    log.write_text("of an earlier run")
    chain.run(chain.config(fp_items="fp32"), **run, BENCHMARK_LOG_DIR=str(chain.root))
    assert "of an earlier run" not in log.read_text()
    assert not list((chain.root / "index").iterdir())


# --- Pruning ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["unet", "unet_n2n"])
def test_pruning_drops_the_filters_that_others_can_replace(arch):
    import paddle

    from arch_unet import build_network

    paddle.seed(3)
    network = build_network(arch, n_feature=6)
    image = paddle.rand([1, 3, 32, 64])
    same = fpgm.prune(network, 6)
    assert np.array_equal(same(image).numpy(), network(image).numpy())
    small = fpgm.prune(network, 4)
    assert small.options["n_feature"] == 4
    assert small(image).shape == [1, 3, 32, 64]
    assert sum(p.size for p in small.parameters()) < sum(p.size for p in network.parameters())
    # The two filters in the middle of six are the ones that go.
    weight = np.array([[9.0, 0], [0, 9], [0.1, 0.1], [-9, 0], [0, -9], [0, 0]])
    assert fpgm.kept_filters(weight, 4).tolist() == [0, 1, 3, 4]
    with pytest.raises(ValueError, match="normalisations"):
        fpgm.prune(build_network("unet_n2n", n_feature=4, norm="batch"), 2)


def test_pruning_filters_that_do_nothing_changes_nothing():
    import paddle

    from arch_unet import build_network

    # A third of all filters have no weight; all zeros lie in the middle of the others, which are drawn around zero.
    paddle.seed(4)
    network = build_network(n_feature=6)
    for layer in network.sublayers():
        if isinstance(layer, paddle.nn.Conv2D | paddle.nn.Conv2DTranspose):
            weight, axis = layer.weight.numpy(), int(isinstance(layer, paddle.nn.Conv2DTranspose))
            if weight.shape[axis] > 3:
                np.moveaxis(weight, axis, 0)[::3] = 0
                layer.weight.set_value(weight)
    image = paddle.rand([1, 3, 32, 32])
    small = fpgm.prune(network, 4)
    np.testing.assert_allclose(small(image).numpy(), network(image).numpy(), atol=1e-6)


# --- 8 bits in training, the official runner's places -------------------------------------------------------


def test_8_bits_are_rounded_in_training_and_ranges_are_learnt():
    import paddle

    import train_qat
    from arch_unet import build_network

    x = paddle.to_tensor([0.26, -0.9, 0.5], stop_gradient=False)
    y = train_qat.rounded(x, paddle.to_tensor(0.25))
    assert y.numpy().tolist() == [0.25, -1.0, 0.5]
    y.sum().backward()
    assert x.grad.numpy().tolist() == [1.0, 1.0, 1.0]

    paddle.seed(6)
    network = build_network(n_feature=4)
    image = paddle.rand([1, 3, 32, 32])
    expected = network(image).numpy()
    network.ops = ops = train_qat.PactOps()
    ops.watch(network)
    result = network(image)
    difference = np.abs(result.numpy() - expected).max()
    assert 0 < difference < 0.05 * np.abs(expected).max()
    convolutions = [name for name, layer in network.named_sublayers() if type(layer) is paddle.nn.Conv2D]
    assert set(ops.ranges) == set(convolutions) - {"nin_c"}
    result.sum().backward()
    assert all(bound.grad is not None for bound in ops.ranges.values())
    # A range that cuts something off learns from it: half of what the first layer has seen.
    network.clear_gradients()
    bound = next(iter(ops.ranges.values()))
    bound.clear_gradient()
    bound.set_value(bound / 2)
    network(image).sum().backward()
    assert np.abs(bound.grad.numpy()).sum() > 0
    assert_user_error(
        run_script("test_tipc/export_qat.py", f"--model_path={ROOT / 'best_model.pdparams'}"), "no ranges"
    )


def test_a_runs_files_are_where_the_official_runner_looks(folders, tmp_path):
    words = [
        f"--data_dir={folders / 'data'}", "--val_dirs=none", "--patchsize=32", "--n_feature=4", "--max_steps=1",
        f"--save_model_path={tmp_path}", "--log_name=N2N", "--engine=paddle",
    ]  # fmt: skip
    result = run_script("test_tipc/train_for_tipc.py", *words, "-o", "Global.print_mem_info=True", ok=0)
    assert "max_mem_reserved: " in result.stdout
    assert (tmp_path / "N2N" / "best_model.pdparams").is_file()
    assert "Loss1=" in (tmp_path / "N2N" / "train.log").read_text()
    # A run that fails leaves nothing of the one before it there.
    assert_user_error(
        run_script("test_tipc/train_for_tipc.py", *words, "--lr=1e30", "--max_steps=9", "--log_iters=1"), "--lr"
    )
    assert not (tmp_path / "N2N" / "best_model.pdparams").exists()
    assert not (tmp_path / "N2N" / "train.log").exists()
    assert_user_error(run_script("test_tipc/train_for_tipc.py", *words, "-o", "Global.epochs=2"), "Global.epochs")
