import json
import os
from pathlib import Path

import pytest

from denoising.cli import UserError
from denoising.inference import checkpoint, distributed
from denoising.training.checks import checked
from denoising.training.options import PRESETS, Options, find_run, get_parser, parse_options
from denoising.training.state import STATE


def options_of(*flags):
    options, stopped = parse_options(get_parser(), ["--data_dir", ".", *map(str, flags)])
    assert stopped is None
    return options


def test_options_are_a_value():
    options = options_of("--lr", 0.5)
    with pytest.raises(AttributeError, match="do not change"):
        options.lr = 1.0
    changed = options.but(lr=1.0)
    assert (options.lr, changed.lr, changed.seed) == (0.5, 1.0, options.seed)
    assert not {"help", "resume", "state", "run_folder"} & vars(options).keys()


def test_what_follows_from_other_options_is_filled_in():
    assert (options_of().noisetype, options_of().loss) == ("gauss25", None)
    assert options_of("--method", "noise2noise", "--noisetype", "impulse0.2").loss == "robust"
    pairs = options_of("--method", "noise2noise", "--pair_dir", ".")
    assert (pairs.noisetype, pairs.loss) == ("none", "l2")
    assert options_of("--to_static").engine == "paddle"
    assert options_of().engine == "auto"
    assert options_of().reg_full == 1.0


def test_the_command_line_is_read_once(monkeypatch):
    calls, read = [], type(get_parser()).parse_args

    def counted(parser, *arguments):
        calls.append(arguments)
        return read(parser, *arguments)

    monkeypatch.setattr(type(get_parser()), "parse_args", counted)
    options_of("--preset", "lite", "--method", "noise2noise", "--noisetype", "gauss25")
    assert len(calls) == 1


def test_a_preset_gives_flags_that_may_still_be_given():
    plain, preset = options_of(), options_of("--preset", "lite")
    assert plain.arch == "unet"
    assert all(getattr(preset, name) == value for name, value in PRESETS["lite"].items())
    given = options_of("--lr", 0.5, "--preset", "lite", "--batchsize", 3)
    assert (given.lr, given.batchsize, given.arch) == (0.5, 3, "unet_lite")
    # What is given counts, also where it is the default without the preset.
    assert options_of("--preset", "lite", "--batchsize", 4).batchsize == 4


def test_the_data_is_asked_for():
    with pytest.raises(UserError, match="--data_dir: the folder of training images is needed"):
        parse_options(get_parser(), [])


def test_help_says_what_each_flag_does():
    for action in get_parser()._actions:
        assert action.help, action.dest
        assert "as published; see" not in action.help
    assert Options(a=1) == Options(a=1)


PUBLISHED = {
    "val_dirs": "./validation", "noise_protocol": "fresh", "patchsize": 256, "translate": 0, "shrink": 1.0,
    "batchsize": 4,
    "method": "neighbor2neighbor", "arch": "unet", "norm": "none", "n_feature": 48, "n_channel": 3,
    "optimizer": "adam", "lr": 3e-4, "lr_schedule": "step", "gamma": 0.5, "warmup_steps": 0,
    "Lambda1": 1.0, "Lambda2": 1.0, "increase_ratio": 2.0, "reg_start": 0.0, "reg_full": 1.0, "ema": 0.999,
    "clip_grad": 0.0, "seed": 0, "save_model_path": "./results", "log_name": "unet_gauss25_b4e100r02",
    "log_iters": 100, "save_minutes": 5, "augment": False, "plot_stats": False,
    "parallel": False, "amp": False, "to_static": False, "device": "auto", "precision": "fp32",
}  # fmt: skip


def test_the_defaults_are_the_published_ones():
    options = vars(options_of())
    assert {name: options[name] for name in PUBLISHED} == PUBLISHED
    unset = {"n_epoch", "max_steps", "max_minutes", "n_snapshot", "train_size", "cache_gb", "pretrained", "pair_dir",
             "known_noise", "val_noisetype", "val_repeats", "val_images", "loss", "preset"}  # fmt: skip
    assert {options[name] for name in unset} == {None}
    assert options["workers"] == min(os.cpu_count(), 8)


@pytest.mark.parametrize(
    ("flag", "lowest", "below", "highest", "above"),
    [
        ("train_size", 1, 0, None, None), ("patchsize", 2, 1, 8192, 8193), ("translate", 0, -1, 8192, 8193),
        ("workers", 1, 0, None, None), ("cache_gb", 0, -0.1, None, None), ("n_feature", 1, 0, 1024, 1025),
        ("n_channel", 1, 2, 4, 5), ("n_epoch", 1, 0, 10**9, 10**9 + 1), ("max_steps", 1, 0, None, None),
        ("max_minutes", 0.001, 0.0005, None, None), ("batchsize", 1, 0, None, None), ("lr", 0, -1e-9, None, None),
        ("gamma", 0, -0.1, None, None), ("warmup_steps", 0, -1, None, None), ("Lambda1", 0, -0.1, None, None),
        ("Lambda2", 0, -0.1, None, None), ("increase_ratio", 0, -0.1, None, None), ("reg_start", 0, -0.1, 1, 1.1),
        ("reg_full", 0.001, 0.0005, 1, 1.1), ("ema", 0, -0.1, 0.99999, 0.999999), ("clip_grad", 0, -0.1, None, None),
        ("seed", 0, -1, 2**31 - 1, 2**31), ("log_iters", 1, 0, None, None), ("n_snapshot", 1, 0, None, None),
        ("val_repeats", 1, 0, None, None), ("val_images", 1, 0, None, None), ("save_minutes", 0, -0.1, None, None),
    ],
)  # fmt: skip
def test_the_bounds_of_each_number(flag, lowest, below, highest, above, capsys):
    for value in (lowest, highest):
        if value is not None:
            assert getattr(options_of(f"--{flag}={value}"), flag) == value
    for value in (below, above):
        if value is not None:
            with pytest.raises(SystemExit):
                options_of(f"--{flag}={value}")
            assert f"argument --{flag}" in capsys.readouterr().err
    whole = isinstance(getattr(options_of(f"--{flag}={lowest}"), flag), int)
    if whole:
        with pytest.raises(SystemExit):
            options_of(f"--{flag}=3.5")


# --- What is refused, and what is not ---------------------------------------------------------------------------


@pytest.fixture
def sources(tmp_path):
    """Folders of images, of renders, and the name of a pair file."""
    for name in ("images", "render", "albedo", "normal"):
        (tmp_path / name).mkdir()
    return {"D": tmp_path / "images", "R": tmp_path, "P": tmp_path / "pairs.npz"}


def options_from(sources, line):
    """The options of a command line in which D is a folder, R one of renders and P a pair file."""
    words = [str(sources.get(word, word)) for word in line.split()]
    if "--data_dir" not in words and "--pair_dir" not in words:
        words += ["--data_dir", str(sources["D"])]
    return parse_options(get_parser(), words)[0]


R2R, N2N = "--method recorrupted2recorrupted", "--method noise2noise"
RAW = f"--arch unet_raw --n_channel 1 {N2N} --val_dirs none"
ALLOWED = {
    "": ("gauss25", None, "auto"),
    "--data_dir P --method noise2noise": ("none", "l2", "auto"),
    "--data_dir P --method supervised --loss l1": ("none", "l1", "auto"),
    "--pair_dir D --method noise2noise --noisetype none": ("none", "l2", "auto"),
    "--data_dir D --pair_dir D --method supervised": ("none", "l2", "auto"),
    "--data_dir R --method noise2noise --arch unet_n2n": ("none", "hdr", "auto"),
    "--data_dir R --method noise2noise --arch joint_bilateral --colour_only 0.2": ("none", "tone_mapped", "auto"),
    "--data_dir R --method supervised --arch joint_bilateral --loss hdr": ("none", "hdr", "auto"),
    "--data_dir R --method supervised --arch unet_n2n --loss l2 --noisetype none": ("none", "l2", "auto"),
    "--noisetype camera --method noise2noise --shrink 2": ("camera", "l2", "auto"),
    "--arch unet_raw --n_channel 1 --method noise2noise --noisetype camera --val_dirs none": (
        "camera",
        "sigma",
        "auto",
    ),
    "--noisetype none --n_epoch 9": ("none", None, "auto"),
    f"{N2N} --noisetype mri0.1": ("mri0.1", "l2", "auto"),
    f"{N2N} --noisetype text0.2 --patchsize 33": ("text0.2", "l1", "auto"),
    f"{N2N} --noisetype bernoulli0.3": ("bernoulli0.3", "l2", "auto"),
    f"{N2N} --noisetype gauss5+bernoulli0.3 --loss l1": ("gauss5+bernoulli0.3", "l1", "auto"),
    f"{R2R} --noisetype none --known_noise gauss12 --patchsize 33 --lr 1e-3": ("none", "l2", "auto"),
    f"{R2R} --noisetype gauss5_50": ("gauss5_50", "l2", "auto"),
    f"{R2R} --noisetype poisson30 --noise_protocol frozen": ("poisson30", "l2", "auto"),
    f"{R2R} --noisetype poisson5_50 --loss psnr": ("poisson5_50", "psnr", "auto"),
    "--norm batch --arch unet_n2n": ("gauss25", None, "auto"),
    "--norm none --arch unet": ("gauss25", None, "auto"),
    "--to_static --engine paddle": ("gauss25", None, "paddle"),
    "--engine onednn": ("gauss25", None, "onednn"),
    "--optimizer muon": ("gauss25", None, "auto"),
    "--amp": ("gauss25", None, "auto"),
    "--val_noisetype gauss50": ("gauss25", None, "auto"),
}


@pytest.mark.parametrize("line", ALLOWED)
def test_what_goes_together(sources, line):
    options = options_from(sources, line)
    assert (options.noisetype, options.loss, options.engine) == ALLOWED[line]


REFUSED = {
    "--arch joint_bilateral": "--arch: joint_bilateral is for renders",
    f"--data_dir R {N2N} --arch unet_lite": "--arch: .*joint_bilateral and unet_n2n take them",
    f"--data_dir R {N2N} --arch unet_n2n --colour_only 0.5": "--colour_only: ",
    f"{RAW} --noisetype gauss25": "--arch: unet_raw learns from two shots",
    f"{RAW} --noisetype camera --method neighbor2neighbor": "--arch: unet_raw learns from two shots",
    f"{RAW} --noisetype camera --method supervised": "--arch: unet_raw learns from two shots",
    f"{RAW} --noisetype camera --noise_protocol frozen": "--arch: unet_raw learns from two shots",
    f"{RAW} --noisetype camera --n_channel 3": "--n_channel: the mosaic",
    f"{RAW} --noisetype camera --patchsize 33": "--patchsize: 33 is odd",
    f"{RAW} --noisetype camera --translate 2": "--translate: ",
    f"{RAW} --noisetype camera --val_dirs D": "--val_dirs: none is needed",
    f"{N2N} --loss sigma": "--loss: sigma is for --arch unet_raw",
    "--data_dir P": "--method: a pair file",
    f"--data_dir P {R2R}": "--method: a pair file",
    f"--data_dir P --pair_dir D {N2N}": "--pair_dir: a pair file has both",
    f"--data_dir P {N2N} --translate 16": "--translate: ",
    "--pair_dir D": "--pair_dir: neighbor2neighbor learns from single images",
    f"--data_dir P {N2N} --noisetype gauss5": "--noisetype: real pairs",
    f"--pair_dir D {N2N} --noisetype gauss5": "--noisetype: real pairs",
    "--pair_dir D --method supervised": "--data_dir: the noisy images",
    "--data_dir R": "--method: renders",
    f"--data_dir R {R2R} --noisetype none --known_noise gauss5": "--method: renders",
    f"--data_dir R --pair_dir D {N2N} --arch unet_n2n": "--pair_dir: renders",
    f"--data_dir R --noisetype gauss5 {N2N} --arch unet_n2n": "--noisetype: renders",
    f"--data_dir R {N2N}": "--arch: renders",
    f"--data_dir R {N2N} --arch unet_n2n --n_channel 1": "--n_channel: renders",
    "--loss l2": "--loss: neighbor2neighbor has its own",
    f"{R2R} --loss l1": "--loss: recorrupted2recorrupted takes l2 and psnr",
    "--method distillation": "--teacher: the weights to learn from",
    "--method distillation --teacher none": "--teacher: nothing is learnt from none alone",
    "--method distillation --teacher t.pdparams,u.pdparams --noisetype none": "--teacher: which of several is best",
    "--method distillation --teacher t.pdparams,u.pdparams --noisetype text0.2": "--teacher: .* not by text0.2",
    "--clipped 0.5": "--clipped: neighbor2neighbor needs the whole noise",
    f"{R2R} --clipped 0.5": "--clipped: recorrupted2recorrupted needs the whole noise",
    f"--pair_dir D {N2N} --clipped 0.5": "--clipped: it is for noise that is added",
    "--teacher t.pdparams": "--teacher: it is for --method distillation",
    "--method distillation --teacher t.pdparams --loss l2": "--loss: distillation has its own",
    f"--pair_dir D {N2N} --shrink 2": "--shrink: ",
    "--noisetype none --shrink 1.5": "--shrink: ",
    "--noisetype none --shrink 0.5": "--shrink: ",
    "--noise_protocol frozen --shrink 1.5": "--shrink: ",
    "--noisetype mri0.1": "--noisetype: mri",
    f"{R2R} --noisetype mri0.1": "--noisetype: mri",
    "--known_noise gauss5 --noisetype none": "--known_noise: it is for",
    f"{R2R} --known_noise gauss5": "--known_noise: it is for",
    f"{R2R} --known_noise gauss5 --noisetype gauss5": "--known_noise: it is for",
    f"{N2N} --noisetype none": "--noisetype: without noise",
    f"{N2N} --noisetype gauss5+bernoulli0.3": "--loss: which pixels are black",
    "--method supervised --noisetype none": "--noisetype: without noise",
    "--patchsize 33": "--patchsize: 33 is odd",
    "--norm batch": "--norm: the network unet has",
    "--careful": "--careful: the network unet paints",
    "--careful --arch unet_lite --to_static": "--to_static: what --careful",
    "--to_static --engine onednn": "--to_static: the engine",
    "--amp --optimizer muon": "--optimizer: muon",
    "--noisetype fog": "--noisetype: unknown noise 'fog'",
    "--val_noisetype fog": "--val_noisetype: unknown noise 'fog'",
    f"{R2R} --noisetype none --known_noise fog": "--known_noise: unknown noise 'fog'",
    f"{R2R} --noisetype none --n_epoch 1": "--known_noise: recorrupted2recorrupted must know the noise of the images",
    f"{R2R} --noisetype speckle5": "--noisetype: recorrupted2recorrupted takes .* not speckle5",
    f"{R2R} --noisetype none --known_noise speckle5": "--known_noise: recorrupted2recorrupted takes .* not speckle5",
    f"{R2R} --noisetype gauss5_50 --noise_protocol frozen": "--noisetype: .* one number, not gauss5_50",
    f"{R2R} --noisetype none --known_noise gauss5_50": "--known_noise: .* one number, not gauss5_50",
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_does_not_go_together(sources, line):
    with pytest.raises(UserError, match=f"^{REFUSED[line]}"):
        options_from(sources, line)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ("--gamma 0.5 --lr_schedule cosine", "--gamma: is for --lr_schedule step"),
        (f"--gamma 0.9 --preset lite {N2N} --noisetype gauss25", "--gamma: is for --lr_schedule step"),
        (f"{N2N} --Lambda1 1", "--Lambda1: is for neighbor2neighbor, and does nothing with noise2noise"),
        (f"{R2R} --noisetype gauss5 --Lambda2 1", "--Lambda2: is for neighbor2neighbor"),
        ("--method supervised --increase_ratio 2", "--increase_ratio: is for neighbor2neighbor"),
        ("--val_dirs none --val_noisetype gauss25", "--val_noisetype: does nothing with --val_dirs none"),
        ("--val_dirs none --val_repeats 1", "--val_repeats: does nothing with --val_dirs none"),
        ("--val_dirs none --valid_size 5", "--val_images: does nothing with --val_dirs none"),
        (f"{N2N} --reg_start 0.3", "--reg_start: is for neighbor2neighbor, and does nothing with noise2noise"),
        ("--method supervised --reg_full 0.6 --max_steps 9", "--reg_full: is for neighbor2neighbor"),
        ("--reg_full 0.6", "--reg_full: is for a length in steps or minutes"),
        ("--noisetype none --n_epoch 1 --noise_protocol frozen", "--noise_protocol: is for noise that is added"),
        (f"--pair_dir D {N2N} --noise_protocol frozen", "--noise_protocol: is for noise that is added"),
        ("--Lambda2 1 --increase_ratio 2 --val_repeats 1 --reg_start 0.3 --noise_protocol frozen", ""),
        ("--reg_full 0.6 --max_minutes 1", ""),
        ("--reg_full 0.6 --max_steps 9", ""),
    ],
)
def test_flags_that_do_nothing_are_named(flags, line, sources, capsys):
    options_from(sources, flags)
    said = capsys.readouterr().err
    assert said.startswith(line)
    assert bool(said) == bool(line)


def test_noise_that_files_have_cut_off_is_not_to_be_cut_off_again(tmp_path):
    flags = ("--method", "distillation", "--teacher", "t.pdparams", "--clipped", 0.5, "--n_epoch", 1, "--data_dir")
    (tmp_path / "a.png").write_bytes(b"")
    assert options_of(*flags, tmp_path, "--noisetype", "gauss25").clipped == 0.5
    with pytest.raises(UserError, match=r"^--clipped: is for noise that is added"):
        options_of(*flags, tmp_path, "--noisetype", "none")
    (tmp_path / "b.tif").write_bytes(b"")  # which may hold what lies beyond black and white
    assert options_of(*flags, tmp_path, "--noisetype", "none").clipped == 0.5


def test_notes_on_noise_that_single_images_keep_and_on_lone_processes(capsys, monkeypatch):
    for kind in ("text0.2", "jpeg30", "gauss5+camera5"):
        options_of("--noisetype", kind)
        assert f"--noisetype: {kind} reaches over neighbours" in capsys.readouterr().err
    for kind in ("bernoulli0.2", "impulse0.2+gauss5"):
        options_of("--noisetype", kind)
        assert f"--noisetype: {kind} is wrong on average" in capsys.readouterr().err
    for kind in ("text0.2", "camera5", "bernoulli0.2"):
        options_of("--noisetype", kind, "--method", "noise2noise")
    options_of()
    assert capsys.readouterr().err == ""
    options_of("--parallel")
    assert "--parallel: one process" in capsys.readouterr().err
    monkeypatch.setattr(distributed, "WORLD_SIZE", 2)
    options_of("--parallel")
    assert capsys.readouterr().err == ""


# --- A run that goes on -----------------------------------------------------------------------------------------


def stopped_run(folder, where=None, **changes):
    """A folder with the state of a run; its arrays are not looked at here."""
    options = vars(options_of("--batchsize", 3, "--augment")) | changes
    where = {"step": 5, "seconds": 1.5, "best_psnr": None, "images": ""} | (where or {})
    folder.mkdir(parents=True)
    checkpoint.write_state(folder / STATE, {"@options": json.dumps({"training": options, "where": where})})
    return folder


def resumed(folder, *flags):
    return parse_options(get_parser(), ["--resume", str(folder), *map(str, flags)])


def test_a_run_goes_on_with_its_own_options_but_for_those_that_may_change(tmp_path):
    folder = stopped_run(tmp_path / "run", ema=0.5)
    options, stopped = resumed(folder)
    assert (options.batchsize, options.augment, options.ema, options.noisetype) == (3, True, 0.5, "gauss25")
    assert (stopped.folder, set(stopped.state)) == (str(folder), {"@options"})
    options, _ = resumed(folder, "--max_steps", 9, "--batchsize", 3, "--workers", 1, "--device", "cpu")
    assert (options.max_steps, options.batchsize, options.workers, options.device) == (9, 3, 1, "cpu")
    for flag, value, before in (("batchsize", 4, 3), ("ema", 0.6, 0.5), ("seed", 1, 0), ("method", "supervised", "n")):
        with pytest.raises(UserError, match=f"^--{flag}: the run was started with {before}"):
            resumed(folder, f"--{flag}", value)


@pytest.mark.parametrize(
    "where",
    [
        {"step": -1}, {"step": 10**15}, {"step": 5.0}, {"step": True}, {"best_psnr": "x"}, {"waited": "x"},
        {"images": None}, {"seconds": -0.1}, {"seconds": 1e12}, {"seconds": "x"}, {"seconds": None},
    ],
)  # fmt: skip
def test_a_state_that_cannot_be_is_refused(tmp_path, where):
    with pytest.raises(UserError, match="no state of a training"):
        resumed(stopped_run(tmp_path / "run", where))


def test_the_bounds_of_a_state_are_accepted(tmp_path):
    for number, where in enumerate(({"step": 0, "seconds": 0}, {"step": 10**15 - 1}, {"best_psnr": 30.5})):
        assert resumed(stopped_run(tmp_path / str(number), where))[0].batchsize == 3


def test_a_state_without_options_or_with_others_is_refused(tmp_path):
    folder = stopped_run(tmp_path / "run", nonsense=1, others=2)
    with pytest.raises(UserError, match="has an option that this script has not: 'nonsense'"):
        resumed(folder)
    checkpoint.write_state(folder / STATE, {})
    with pytest.raises(UserError, match="no state of a training"):
        resumed(folder)


def test_an_older_state_gets_what_it_lacks(tmp_path):
    folder = stopped_run(tmp_path / "run")
    about = json.loads(checkpoint.read_state(folder / STATE)["@options"])
    del about["training"]["clip_grad"]
    checkpoint.write_state(folder / STATE, {"@options": json.dumps(about)})
    assert resumed(folder)[0].clip_grad == 0
    assert resumed(folder, "--clip_grad", 2)[0].clip_grad == 2


def test_the_run_to_go_on_with_is_the_latest_or_the_named_one(tmp_path):
    for age, name in enumerate("bca"):
        state = stopped_run(tmp_path / "log" / name) / STATE
        os.utime(state, (1000 - age, 1000 - age))
    (tmp_path / "log" / "z").mkdir()  # was not saved
    assert find_run("", str(tmp_path), "log") == str(tmp_path / "log" / "b")
    assert find_run(str(tmp_path / "log" / "c"), "nowhere", "") == str(tmp_path / "log" / "c")
    for path, name in ((tmp_path, "none"), (tmp_path / "log", "z")):
        with pytest.raises(UserError, match="^--resume: no run to go on with under .*" + name):
            find_run("", str(path), name)
    with pytest.raises(UserError, match="^--resume: .* does not exist"):
        find_run(str(tmp_path / "log" / "z"), "", "")
    options, stopped = parse_options(get_parser(), ["--resume", "--save_model_path", str(tmp_path), "--log_name=log"])
    assert (stopped.folder, options.log_name) == (str(tmp_path / "log" / "b"), "log")


def test_without_a_name_the_latest_run_of_any_name_goes_on(tmp_path):
    def latest(*flags):
        return parse_options(get_parser(), ["--resume", "--save_model_path", str(tmp_path), *flags])[1].folder

    default = get_parser().get_default("log_name")
    for age, (name, preset) in enumerate((("own_images", "auto"), (default, None))):
        state = stopped_run(tmp_path / name / "time", preset=preset, log_name=name) / STATE
        os.utime(state, (1000 - age, 1000 - age))
    own, published = (str(tmp_path / name / "time") for name in ("own_images", default))
    assert latest() == own
    assert latest("--data_dir", "elsewhere") == own
    assert latest(f"--log_name={default}") == published
    os.utime(Path(published, STATE), (2000, 2000))
    assert (latest(), latest("--preset", "auto")) == (published, own)
    with pytest.raises(UserError, match=f"^--resume: no run to go on with under {tmp_path / 'none'}$"):
        parse_options(get_parser(), ["--resume", "--save_model_path", str(tmp_path / "none")])


def test_options_are_checked_again_when_a_run_goes_on(tmp_path):
    with pytest.raises(UserError, match="^--patchsize: 33 is odd"):
        resumed(stopped_run(tmp_path / "run", patchsize=33))
    assert checked(options_of()) == options_of()
