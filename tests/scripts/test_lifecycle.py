"""The published commands, word for word, in the order in which a user runs them; also run under Paddle 2.6.2."""

import re
import shutil

import pytest

from conftest import ROOT, noisy_scene, opened, run_script, save, scene


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    """A user's folder: images as they come, a validation folder, a noisy picture."""
    root = tmp_path_factory.mktemp("user")
    for i in range(4):
        save(root / "raw" / f"{i}.JPEG", scene(300, 280 + i, seed=i))
    save(root / "raw" / "too_small.png", scene(100, 300))
    for i in range(3):
        save(root / "validation" / "BSD300" / "test" / f"{i}.jpg", scene(60, 45 + 20 * (i == 2), seed=9 + i))
    save(root / "demo" / "42012_noise.png", noisy_scene(61, 47))
    return root


def run(user, command, code=0):
    """Runs a command line as published, in the user's folder."""
    words = command.replace("\\\n", " ").split()
    assert words[0] == "python"
    words = words[2:] if words[1] == "-u" else words[1:]
    return run_script(*words, cwd=user, ok=code)


@pytest.mark.slow
def test_the_published_commands_in_order(user):
    result = run(user, "python dataset_tool.py --input_dir raw --save_dir Imagenet_val")
    assert "too_small" not in str(list((user / "Imagenet_val").iterdir()))
    assert len(list((user / "Imagenet_val").glob("*.JPEG"))) == 4

    result = run(
        user,
        "python -u train.py --data_dir=Imagenet_val --val_dirs=./validation --noisetype=gauss25"
        " --save_model_path=./results --log_name=unet_gauss25_b4e100r02 --increase_ratio=2"
        # Ours: small and short.
        " --n_feature 4 --patchsize 64 --n_epoch 2 --log_iters 1",
    )
    saved = re.findall(r"^Checkpoint saved to (\./results/unet_gauss25_b4e100r02/[-\d]+/epoch_model_\d{3}\.pdparams)$",
                       result.stdout, re.MULTILINE)  # fmt: skip
    assert [path[-12:-9] for path in saved] == ["001", "002"]
    assert re.search(r"^\[EVAL\] BSD300: psnr:[\d.]+ ssim:[-\d.]+$", result.stdout, re.MULTILINE)
    folder = (user / saved[-1]).parent
    assert (folder / "validation" / "A_log_BSD300.csv").exists()
    shutil.copy(folder / "best_model.pdparams", user)

    result = run(user, "python val.py --model_path best_model.pdparams")
    assert re.search(r"^\[EVAL\] BSD300: psnr:[\d.]+ ssim:[-\d.]+$", result.stdout, re.MULTILINE)
    assert re.search(r"^BSD300 +3 x 3 ", result.stdout, re.MULTILINE)

    run(user, "python predict.py --image_path demo/42012_noise.png --model_path best_model.pdparams --save_dir ./demo/")
    assert opened(user / "demo" / "42012_noise_denoise.png").size == (47, 61)

    run(user, "python export_model.py --model_path best_model.pdparams --save_dir ./output/")
    assert {"model.pdmodel", "model.pdiparams"} <= {path.name for path in (user / "output").iterdir()}

    infer = (
        "python infer.py --use_gpu=False --enable_mkldnn={} --cpu_threads=2 --model_file=output/model.pdmodel"
        " --batch_size=2 --input_file=validation/BSD300/test --enable_benchmark=True --precision=fp32"
        " --params_file=output/model.pdiparams --save_dir output/inference_img{}"
    )
    for mkldnn, more in ((False, ""), (True, " --overwrite")):
        result = run(user, infer.format(mkldnn, more))
        report = result.stdout + result.stderr
        for line in ("runtime_device: cpu", f"enable_mkldnn: {mkldnn}", "batch_size: 2", "preprocess_time(ms): "):
            assert line in report, line
        assert len(list((user / "output" / "inference_img").glob("*.png"))) == 3


@pytest.mark.slow
def test_the_published_seed_files_are_read(user, tmp_path):
    # Weights as the published port saves them: paddle.save of a state dict, nothing more.
    code = (
        "import sys, paddle; sys.path.insert(0, sys.argv[1]); from arch_unet import build_network\n"
        "paddle.save(build_network().state_dict(), 'epoch_model_100.pdparams')"
    )
    (tmp_path / "make.py").write_text(code)
    run_script(tmp_path / "make.py", ROOT, cwd=tmp_path, ok=0)
    flags = ("--model_path", "epoch_model_100.pdparams", "--val_dirs", user / "validation", "--val_images", 1)
    result = run_script("val.py", *flags, "--val_repeats", 1, "--n_feature", 48, cwd=tmp_path, ok=0)
    assert "[EVAL] BSD300" in result.stdout
