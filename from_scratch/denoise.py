r"""Denoises one picture with weights that train.py has written.

    python from_scratch/denoise.py --image demo/chelsea_noise.png --weights results/from_scratch/weights.npz \
        --out output/chelsea.png

8 bit, grey or colour, any size. Large pictures run in tiles, whose result is that of the whole.
"""

import threads  # isort: skip

import itertools
import os

import numpy as np
from PIL import Image, ImageOps

from files import Parser, UserError, atomic_write, load_into, new_file, read_arrays, run
from tensor import Tensor, no_recording
from unet import UNet

TILE = 128  # pixels a side; its work takes some 100 MB


def get_parser():
    """The flags."""
    parser = Parser(__doc__)
    parser.add_argument("--image", required=True, help="noisy picture")
    parser.add_argument("--weights", default="results/from_scratch/weights.npz", help="(default: %(default)s)")
    parser.add_argument("--out", required=True, help="file for the denoised picture; its suffix tells the format")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that exists")
    return parser


def load_network(path):
    """The network that a weights file is of; its width is read off the first layer."""
    arrays = read_arrays(path)
    first = arrays.get("enc0.0.weight")
    if first is None or first.ndim != 4:
        raise UserError(f"{path}: has no weights of this network")
    network = UNet(features=first.shape[-1])
    load_into(network.parameters(), arrays, path)
    return network


def denoise(network, images):
    """Denoises images of any size, N x H x W x 3 uint8."""
    m, margin = network.multiple, network.margin
    height, width = images.shape[1:3]
    padded = np.pad(images, ((0, 0), (0, -height % m), (0, -width % m), (0, 0)), mode="reflect")
    result = np.empty_like(padded)
    group = max(1, 4096 // (height * width))  # small images go together, as many as fit into a cache

    def work(corner):
        first, top, left = corner
        # A tile is denoised with all that its pixels depend on, which is then cut off.
        y, x = max(top - margin, 0), max(left - margin, 0)
        tile = padded[first : first + group, y : top + TILE + margin, x : left + TILE + margin]
        denoised = network(Tensor(tile.astype(np.float32) / 255 - 0.5)).data[:, top - y :, left - x :][:, :TILE, :TILE]
        target = result[first : first + group, top : top + TILE, left : left + TILE]
        target[...] = np.clip(np.rint((denoised + 0.5) * 255), 0, 255)

    corners = itertools.product(
        *(range(0, n, step) for n, step in zip(padded.shape, (group, TILE, TILE), strict=False))
    )
    with no_recording():
        list(threads.pool.map(work, corners))
    return result[:, :height, :width]


def read_picture(flag, path):
    """A picture as H x W x 3 uint8, and a function that makes such pixels a picture of the same kind."""
    if not os.path.isfile(path):
        raise UserError(f"{flag}: there is no file {path}")
    try:
        with Image.open(path) as opened:
            coding = str(opened.tile)  # Pillow reads colours of 16 bits as 8, and only this tells
            picture = ImageOps.exif_transpose(opened)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{flag}: {path} cannot be read as a picture: {error}") from None
    mode = picture.mode
    if mode not in ("L", "RGB") or ";16" in coding:
        kind = f"{mode}, of 16 bits" if ";16" in coding else mode
        raise UserError(f"{flag}: {path} has pixels of mode {kind}; 8-bit grey (L) and colour (RGB) are denoised")
    return np.asarray(picture.convert("RGB")), lambda pixels: Image.fromarray(pixels).convert(mode)


def main(argv=None):
    """Reads, denoises, writes."""
    args = get_parser().parse_args(argv)
    new_file("--out", args.out, args.overwrite)
    if Image.registered_extensions().get(os.path.splitext(args.out)[1].lower()) not in Image.SAVE:
        raise UserError(f"--out: {args.out} has no suffix of a picture, such as .png")
    network = load_network(args.weights)
    noisy, to_picture = read_picture("--image", args.image)
    with atomic_write(args.out) as temporary:
        to_picture(denoise(network, noisy[None])[0]).save(temporary)
    print(args.out)


if __name__ == "__main__":
    run(main)
