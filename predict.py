"""Denoises an image, a folder tree or a glob; size, type, metadata and names are kept.

Examples:
  python predict.py --image_path demo/astronaut_noise.png --model_path best_model.pdparams --save_dir ./demo/
  python predict.py --image_path photos/ --model_path best_model.pdparams --save_dir denoised/ --keep_format
  python predict.py --image_path "scans/*.tif" --model_path best_model.pdparams --save_dir out/ --strength 0.7
  python predict.py --image_path renders/valid --model_path renders.pdparams --save_dir denoised/   # docs/rendering.md
"""

import sys
from pathlib import Path

from denoising import cli
from denoising.cli import UserError, number
from denoising.data import renders
from denoising.files import images
from denoising.imaging.noise import parse_noise
from denoising.inference import devices, distributed
from denoising.inference.denoiser import Denoiser


def get_parser():
    """The published flags under their published names, and ours."""
    parser = cli.Parser(__doc__)
    parser.add_argument("--image_path", required=True, help="an image, a folder (searched recursively), or a glob")
    parser.add_argument("--model_path", required=True, help="the .pdparams weights")
    parser.add_argument("--save_dir", default="./output/", help="where results go; created if needed")
    parser.add_argument("--keep_format", action="store_true", help="write each image in its own format, not PNG")
    parser.add_argument(
        "--strength", type=number(float, 0, 1), default=1.0, help="0 keeps the input, 1 the full effect"
    )
    parser.add_argument("--tta", action="store_true", help="average eight flips and rotations: eight times the work")
    parser.add_argument(
        "--tile", type=number(int, 352), help="side of the largest window; from the free memory unless given"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace results that exist")
    devices.add_flags(parser)
    return parser  # fmt: skip


def output_path(path, options):
    """NAME_denoise.png, in the same sub-folder as under the input folder."""
    root = Path(options.image_path)
    root = root / "render" if renders.is_folder(root) else root
    folder = path.parent.relative_to(root) if root.is_dir() else Path()
    # PNG holds 8 and 16 bits; what it cannot hold stays in its own format.
    keep = options.keep_format or path.suffix.lower() in (".npy", ".tif", ".tiff", ".exr")
    return Path(options.save_dir) / folder / f"{path.stem}_denoise{path.suffix if keep else '.png'}"


def plan(sources, options):
    """Pairs of input and output, after making sure that no two results share a name and none is lost."""
    pairs = [(source, output_path(source[0], options)) for source in sources]
    owner = {}
    for (path, *_), target in pairs:
        if target in owner:
            # a.jpg and a.png: the suffix tells them apart.
            raise UserError(f"--image_path: {owner[target]} and {path} would both become {target}; --keep_format helps")
        owner[target] = path
        if target.exists() and not options.overwrite:
            raise UserError(f"--save_dir: {target} exists; --overwrite replaces it")
    return pairs


def denoise_file(denoiser, noise, source, target):
    """Denoises one file, page by page; or a render, whose source is the files of its buffers too."""
    frame = renders.read_frame(source) if denoiser.n_input == renders.N_INPUT else None
    picture = frame.picture if frame else images.read_image(source[0])
    try:
        if frame:
            pages = [renders.as_stored(frame, renders.denoise(denoiser, frame))]
        else:
            pages = [noise.restore(page, denoiser(page)) for page in picture.pages]
    except ValueError as error:
        raise UserError(f"{source[0]}: {error}") from None
    cli.writable_folder("--save_dir", target.parent)
    images.write_image(target, pages, like=picture)


def main(argv=None):
    """Denoises all; what is broken is reported and the rest goes on."""
    options = get_parser().parse_args(argv)
    buffers = renders.is_folder(options.image_path)
    if buffers:
        sources = renders.find_frames("--image_path", options.image_path)
    else:
        sources = [[path] for path in images.find_images("--image_path", options.image_path)]
    cli.existing_file("--model_path", options.model_path)
    pairs = plan(sources, options)
    cli.writable_folder("--save_dir", options.save_dir)
    ops = devices.prepare(options)
    denoiser = Denoiser(options.model_path, ops, tile=options.tile, strength=options.strength, tta=options.tta)
    if buffers and denoiser.n_input != renders.N_INPUT:
        raise UserError(f"--model_path: {options.model_path} takes images, {options.image_path} holds renders")
    try:
        noise = parse_noise(denoiser.options.get("noisetype", "none"))
    except ValueError as error:
        raise UserError(f"--model_path: {options.model_path}: {error}") from None

    failed = 0
    mine = pairs[distributed.RANK :: distributed.WORLD_SIZE]
    with cli.progress(mine, unit="image", disable=len(pairs) == 1 or not distributed.IS_MAIN) as bar:
        for source, target in bar:
            try:
                denoise_file(denoiser, noise, source, target)
            except UserError as error:
                if len(pairs) == 1:
                    raise
                failed += 1
                bar.write(f"{error}", file=sys.stderr)
            else:
                bar.write(f"{target}")
    failed = sum(distributed.gather([failed]))
    if distributed.IS_MAIN and failed:
        cli.note(f"{failed} of {len(pairs)} images could not be denoised")
    return 1 if failed else 0


if __name__ == "__main__":
    cli.run(main)
