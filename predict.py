"""Denoises an image, a folder tree or a glob; size, type, metadata and names are kept.

Examples:
  python predict.py --image_path photos/ --save_dir denoised/            # weights are chosen by each image's noise
  python predict.py --image_path photos/ --save_dir denoised/ --keep_format --skip_existing --fast
  python predict.py --image_path photo.jpg --save_dir out/ --strength 0.8 --detail 0.5 --chroma 1
  python predict.py --image_path demo/astronaut_noise.png --model_path best_model.pdparams --save_dir ./demo/
  python predict.py --image_path "scans/*.tif" --model_path best_model.pdparams --save_dir out/ --precision fp32
  python predict.py --image_path photos/ --save_dir denoised/ --report report     # what was removed: docs/trust.md
  python predict.py --image_path shots/ --save_dir denoised/ --keep_format        # raw files: DNG; without it TIFF
  python predict.py --image_path telescope/ --save_dir out/ --adapt 5      # trained on these images first
  python predict.py --image_path renders/valid --save_dir denoised/   # docs/rendering.md
"""

from denoising import cli
from denoising.inference import prediction
from denoising.reports import trust_page
from denoising.training import files_at_hand


def get_parser():
    """The published flags under their published names, and ours."""
    return prediction.get_parser(__doc__)


def main(argv=None):
    """Denoises all images; a broken one is reported, and the rest goes on."""
    options = get_parser().parse_args(argv)
    return prediction.run(options, files_at_hand.load, trust_page.of_prediction)


if __name__ == "__main__":
    cli.run(main)
