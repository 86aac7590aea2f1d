"""The steps of predict.py and of the command `denoise`: flags, plan, weights, one image after the other, report."""

import sys
from pathlib import Path

from denoising import cli
from denoising.cli import UserError, number
from denoising.data import renders
from denoising.files import images, results
from denoising.imaging.noise import noise_of_flag
from denoising.inference import devices, distributed
from denoising.inference.denoiser import Denoiser, finite


def get_parser(doc):
    """The published flags under their published names, and ours."""
    # fmt: off
    parser = cli.Parser(doc)
    add = parser.add_argument
    add("--image_path", required=True, help="an image, a folder (searched recursively), or a glob")
    add("--model_path", required=True, help="the .pdparams weights")
    add("--save_dir", default="./output/", help="where results go; created if needed")
    add("--keep_format", action="store_true", help="write each image in its own format, not PNG")
    add("--strength", type=number(float, 0, 1), default=1.0, help="0 keeps the input, 1 the full effect")
    devices.add_window_flags(parser)
    add("--overwrite", action="store_true", help="replace results that exist")
    devices.add_flags(parser)
    return parser


def plan(options):
    """Finds the images and says where each result goes, before any slow step.

    Returns:
        For each image the files that it is read from (one; or the three buffers of a render) and the result's path.
    """
    root = Path(options.image_path)
    if renders.is_folder(root):
        sources, root = renders.find_frames("--image_path", root), root / "render"
    else:
        sources = [[path] for path in images.find_images("--image_path", root)]
    cli.existing_file("--model_path", options.model_path)
    firsts, others = [files[0] for files in sources], [path for files in sources for path in files[1:]]
    flags = options.save_dir, options.keep_format, options.overwrite
    targets = results.plan("--image_path", firsts, root, *flags, also_read=others)
    cli.writable_folder("--save_dir", options.save_dir)
    return list(zip(sources, targets, strict=True))


def load(options):
    """The denoiser, and the noise that its network was trained on, which may know pixels that are to be kept."""
    ops = devices.prepare(options)
    denoiser = Denoiser(options.model_path, ops, tile=options.tile, strength=options.strength, tta=options.tta)
    if renders.is_folder(options.image_path) and denoiser.n_input != renders.N_INPUT:
        raise UserError(f"--model_path: {options.model_path} takes images, {options.image_path} holds renders")
    noisetype = denoiser.options.get("noisetype", "none")
    return denoiser, noise_of_flag(f"--model_path: {options.model_path}", noisetype)


def denoise_file(denoiser, noise, files, target):
    """Denoises one image, page by page; or a render, which is read from the files of its buffers."""
    frame = renders.read_frame(files) if denoiser.n_input == renders.N_INPUT else None
    picture = frame.picture if frame else images.read_image(files[0])
    try:
        if frame:
            pages = [finite(renders.as_stored(frame, renders.denoise(denoiser, frame)))]
        else:
            pages = [finite(noise.restore(page, denoiser(page))) for page in picture.pages]
    except ValueError as error:
        raise UserError(f"{files[0]}: {error}") from None
    cli.writable_folder("--save_dir", target.parent)
    images.write_image(target, pages, like=picture)


def denoise_files(denoiser, noise, planned):
    """Denoises this process's share; a broken image is reported and the rest goes on. Returns how many failed."""
    failed = 0
    mine = planned[distributed.RANK :: distributed.WORLD_SIZE]
    with cli.progress(mine, unit="image", disable=len(planned) == 1 or not distributed.IS_MAIN) as bar:
        for files, target in bar:
            try:
                denoise_file(denoiser, noise, files, target)
            except UserError as error:
                if len(planned) == 1:
                    raise
                failed += 1
                bar.write(f"{error}", file=sys.stderr)
            else:
                bar.write(f"{target}")
    return sum(distributed.gather([failed]))


def report(failed, planned):
    """Says how many images failed, and returns the exit code."""
    if failed and distributed.IS_MAIN:
        cli.note(f"{failed} of {len(planned)} images could not be denoised")
    return 1 if failed else 0
