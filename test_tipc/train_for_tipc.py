"""train.py as the runners of Paddle's model repositories call it.

    python test_tipc/train_for_tipc.py --data_dir=images --save_model_path=out --log_name=N2N --n_epoch=2

takes all flags of train.py, and beside them what those runners add:

- the run's files are found under out/N2N itself, not only in the run's own folder there; nothing of an earlier run is;
- `--model_path`, by which they hand over weights, is --pretrained;
- `-o Global.print_mem_info=True` prints the most memory that the process had; `-o Global.log_ranks=0,1` is what
  train.py does anyway: each process has its own log.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's root

import train
from denoising import cli
from denoising.inference import distributed
from denoising.machine import peak_memory
from denoising.training.options import get_parser, parse_options
from denoising.training.state import Training


def translate(argv):
    """The flags for train.py, and whether to tell the memory."""
    flags, tell_memory = [], False
    words = iter(argv)
    for word in words:
        if word == "-o":
            name, _, value = next(words, "").partition("=")
            if name not in ("Global.print_mem_info", "Global.log_ranks"):
                raise cli.UserError(f"-o: {name} is no option here")
            tell_memory |= name == "Global.print_mem_info" and value == "True"
        else:
            flags.append(word.replace("--model_path", "--pretrained", 1) if word.startswith("--model_path") else word)
    return flags, tell_memory


def read(parser=None):
    """The command line: the options, the run to go on with, and whether to tell the memory."""
    flags, tell_memory = translate(sys.argv[1:])
    return *parse_options(parser or get_parser(__doc__), flags), tell_memory


def run(options, stopped, tell_memory, method=None, training_class=Training):
    """Trains, and puts links to the run's files where the runners look."""
    place = Path(options.save_model_path) / options.log_name
    if distributed.IS_MAIN and place.is_dir():
        for path in place.iterdir():
            if path.is_symlink():
                path.unlink()
    folder, finished = train.train(options, stopped, method, training_class)
    code = train.end(folder, finished)
    if distributed.IS_MAIN and finished:
        for path in Path(folder).iterdir():
            if path.is_file() and not path.name.startswith("."):
                os.symlink(os.path.relpath(path, place), place / path.name)
    if tell_memory:
        print(f"max_mem_reserved: {peak_memory() >> 20} MB")
    return code


def main():
    """Trains as train.py does."""
    return run(*read())


if __name__ == "__main__":
    cli.run(main)
