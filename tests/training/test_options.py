import pytest

from denoising.cli import UserError
from denoising.training.options import PRESETS, Options, get_parser, parse_options


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
    assert (options_of().reg_full, options_of().all_neighbors) == (1.0, False)


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
