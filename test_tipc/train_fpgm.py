"""Prunes trained weights by FPGM, and trains what is left.

    python test_tipc/train_fpgm.py --pretrained=best_model.pdparams --n_feature=36 --data_dir=images --n_epoch=1

takes the flags of train.py; --pretrained are the weights to prune, --n_feature how many features stay.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's root

import train_for_tipc
from denoising import cli
from denoising.inference import checkpoint
from fpgm import prune


def size(network):
    """How many numbers a network has."""
    return sum(parameter.size for parameter in network.parameters())


def main():
    """Writes the pruned weights beside the run, and trains from them."""
    options, *more = train_for_tipc.read()
    network, about = checkpoint.load_network(cli.existing_file("--pretrained", options.pretrained or ""))
    before = network.options["n_feature"]
    cli.refuse((options.n_feature >= before, f"--n_feature: {options.n_feature} prunes nothing of {before}"))
    small = prune(network, options.n_feature)
    path = os.path.join(cli.writable_folder("--save_model_path", options.save_model_path), "pruned.pdparams")
    checkpoint.save_network(path, checkpoint.network_state(small), about | small.options)
    print(f"pruned: {size(network)} to {size(small)} parameters; {path}")
    return train_for_tipc.run(options.but(pretrained=path), *more)


if __name__ == "__main__":
    cli.run(main)
