"""Denoises an image, a folder tree or a glob; size, type, metadata and names are kept.

Examples:
  denoise --image_path photos/ --save_dir denoised/                      # weights are chosen by each image's noise
  denoise --image_path photos/ --save_dir denoised/ --keep_format --skip_existing --fast
  denoise --image_path noisy.png --model_path my_model.pdparams --save_dir denoised/
  python -m denoising --image_path "scans/*.tif" --save_dir out/ --strength 0.8 --detail 0.5
"""

import importlib.util
import sys

from denoising import cli


def main(argv=None):
    """Denoises all images; a broken one is reported, and the rest goes on."""
    # Who installs this project without its dependencies, for another Paddle, may not have one yet.
    absent = importlib.util.find_spec("paddle") is None
    cli.refuse((absent, "Paddle is not installed: pip install paddlepaddle (or paddlepaddle-gpu for an NVIDIA GPU)"))
    from denoising.inference import prediction
    from denoising.reports import trust_page
    from denoising.training import files_at_hand

    options = prediction.get_parser(__doc__).parse_args(argv)
    return prediction.run(options, files_at_hand.load, trust_page.of_prediction)


def command():
    """The entry point of `denoise`."""
    cli.run(main)


if __name__ == "__main__":
    sys.argv[0] = "denoise"  # help and refusals name the command, not this file
    command()
