"""train.py as the runners of Paddle's model repositories call it.

    python test_tipc/train_for_tipc.py --data_dir=images --save_model_path=out --log_name=N2N --n_epoch=2

takes all flags of train.py, and beside them what those runners add:

- the run's files are found under out/N2N itself, not only in the run's own folder there; nothing of an earlier run is;
- `--model_path`, by which they hand over weights, is --pretrained;
- `-o Global.print_mem_info=True` prints the most memory that the process had; `-o Global.log_ranks=0,1` is what
  train.py does anyway: each process has its own log.
"""

import os
import resource
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's root

import train
from denoising import cli
from denoising.inference import distributed
from denoising.training import options as training_options


def translate(argv):
    """The flags for train.py, and whether to tell the memory."""
    flags, tell = [], False
    words = iter(argv)
    for word in words:
        if word == "-o":
            name, _, value = next(words, "").partition("=")
            if name not in ("Global.print_mem_info", "Global.log_ranks"):
                raise cli.UserError(f"-o: {name} is no option here")
            tell |= name == "Global.print_mem_info" and value == "True"
        else:
            flags.append(word.replace("--model_path", "--pretrained", 1) if word.startswith("--model_path") else word)
    return flags, tell


def main(argv=None):
    """Trains, and puts links to the run's files where the runners look."""
    flags, tell = translate(sys.argv[1:] if argv is None else argv)
    options = training_options.get_parser().parse_args(flags)
    place = Path(options.save_model_path) / options.log_name
    before = set(place.iterdir()) if place.is_dir() else set()
    if distributed.IS_MAIN:
        for path in before:
            if path.is_symlink():
                path.unlink()
    code = train.main(flags)
    if distributed.IS_MAIN and code == 0:
        (folder,) = set(place.iterdir()) - before
        for path in folder.iterdir():
            if path.is_file() and not path.name.startswith("."):
                os.symlink(path.relative_to(place), place / path.name)
    if tell:
        print(f"max_mem_reserved: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MB")
    return code


if __name__ == "__main__":
    cli.run(main)
