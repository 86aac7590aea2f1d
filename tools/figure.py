"""Lays the pictures of a test run out in one figure: rows input, label and output, a column for each image.

Examples:
  python tools/figure.py --result_dir report
  python tools/figure.py --result_dir report --images 0 3 7 --save_path figure.png --overwrite
  python tools/figure.py --result_dir results/unet_gauss25_b4e100r02/2026-01-31-12-00/validation --show

It reads what val.py --save_dir, or train.py in RUN/validation, has written: 00000-input.png, -label and -output. No
picture is scaled.
"""

import os
import re
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's root

from denoising import cli
from denoising.cli import UserError, number
from denoising.files import images
from denoising.imaging.metrics import psnr
from denoising.imaging.pixels import from_01, to_01
from denoising.reports import montage

ROWS = ("input", "label", "output")


def get_parser():
    """The flags."""
    parser = cli.Parser(__doc__)
    add = parser.add_argument
    add("--result_dir", required=True, help="the folder with the pictures")
    add("--images", type=number(int, 0), nargs="+", metavar="N", help="their numbers; the first five unless given")
    add("--save_path", default="figure.png", help="where the figure goes")
    add("--show", action="store_true", help="open it on the screen too")
    add("--overwrite", action="store_true", help="replace a figure that exists")
    return parser


def columns(folder, wanted):
    """The pictures of each image: {number: {row: array}}."""
    taken = [re.fullmatch(r"(\d{5,})-input\.png", name) for name in os.listdir(folder)]
    there = sorted(int(match[1]) for match in taken if match)
    if not there:
        raise UserError(f"--result_dir: {folder} holds no 00000-input.png; val.py --save_dir writes such folders")
    absent = [place for place in wanted or [] if place not in there]
    if absent:
        raise UserError(f"--images: {folder} holds no image {absent[0]}; it has {there[0]} to {there[-1]}")
    found = {}
    for place in wanted or there[:5]:
        found[place] = {row: picture(os.path.join(folder, f"{place:05d}-{row}.png")) for row in ROWS}
    return found


def picture(path):
    """A picture's pixels, uint8 also if somebody has made it of 16 bits."""
    pixels = images.read_image(cli.existing_file("--result_dir", path)).pages[0]
    return from_01(to_01(pixels), np.uint8)


def caption(row, place, pictures):
    """What stands below a picture."""
    if row == "label":
        return f"{place:05d} label"
    try:
        return f"{place:05d} {row} {psnr(pictures['label'], pictures[row], 255):.2f} dB"
    except ValueError as error:
        raise UserError(f"--result_dir: {place:05d}-{row}.png: {error}") from None


def main(argv=None):
    """Writes the figure and says where it is."""
    options = get_parser().parse_args(argv)
    cli.existing_folder("--result_dir", options.result_dir)
    cli.writable_file("--save_path", options.save_path, options.overwrite)
    found = columns(options.result_dir, options.images)
    rows = [[(pictures[row], caption(row, place, pictures)) for place, pictures in found.items()] for row in ROWS]
    figure = montage.grid(rows)
    images.write_image(options.save_path, figure)
    print(options.save_path)
    if options.show:
        pyplot = montage.screen()
        if pyplot:
            montage.show(pyplot, [(options.save_path, figure)])
        else:
            cli.note("--show: there is no screen to show it on")
    return 0


if __name__ == "__main__":
    cli.run(main)
