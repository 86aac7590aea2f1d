r"""Converts the official PyTorch weights of Neighbor2Neighbor to .pdparams, or any weights to half the size.

Examples:
  python tools/convert_weights.py --model_path model_gauss25_b4e100r02.pth --save_path gauss25.pdparams
  python val.py --model_path gauss25.pdparams
  python tools/convert_weights.py --model_path results/a/best_model.pdparams --save_path mine.pdparams --half

The file is read without PyTorch and without running anything in it; every format of `torch.save` is known. All
scripts take such a file for --model_path and --pretrained as it is: converting makes it loadable by Paddle alone.

With --half the numbers are stored as float16. Networks compute with them as before, in float32 or bfloat16, and scores
differ by some ten-thousandths of a decibel.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's root

import numpy as np

from denoising import cli
from denoising.cli import UserError
from denoising.inference import checkpoint

LARGEST = float(np.finfo(np.float16).max)


def get_parser():
    """The flags."""
    parser = cli.Parser(__doc__)
    parser.add_argument("--model_path", required=True, help="weights, as torch.save or train.py wrote them")
    parser.add_argument("--save_path", help=".pdparams file to write (default: the same name beside the original)")
    parser.add_argument("--half", action="store_true", help="store the numbers as float16: half the size")
    parser.add_argument("--overwrite", action="store_true", help="replace --save_path")
    return parser


def main(argv=None):
    """Converts one file."""
    options = get_parser().parse_args(argv)
    cli.existing_file("--model_path", options.model_path)
    target = options.save_path or os.path.splitext(options.model_path)[0] + ".pdparams"
    if not target.endswith(".pdparams"):
        raise UserError(f"--save_path: {target} must end in .pdparams")
    cli.writable_file("--save_path", target, options.overwrite)
    network, about = checkpoint.load_network(options.model_path)
    state = checkpoint.network_state(network)
    if options.half:
        largest = max(float(abs(array).max()) for array in state.values())
        if largest > LARGEST:
            raise UserError(f"--half: {options.model_path} holds {largest:.3g}, and float16 ends at {LARGEST:.3g}")
        state = {name: array.astype(np.float16) for name, array in state.items()}
    checkpoint.save_network(target, state, about)
    numbers = sum(parameter.size for parameter in network.parameters())
    sizes = f"{about['n_channel']} channels, {about['n_feature']} features, {numbers} parameters"
    print(f"{target}: {about['arch']}, {sizes}")
    return 0


if __name__ == "__main__":
    cli.run(main)
