"""Where denoised images go: NAME_denoise.png, in the same sub-folder as their source; nothing is lost or replaced."""

import os
from pathlib import Path

from denoising.cli import UserError

OWN_FORMAT = (".npy", ".tif", ".tiff", ".exr")  # hold what PNG cannot


def plan(flag, paths, root, save_dir, keep_format=False, overwrite=False):
    """The result's path for each image.

    Args:
        flag: of the sources, for refusals.
        paths: of the images.
        root: the folder below which they were found, or the one image itself.
        save_dir: where results go.
        keep_format: keeps each image's own format; else it is PNG, which holds 8 and 16 bits. None where the script
            has no such flag to recommend.
        overwrite: results that exist are replaced.

    Raises:
        UserError: two results have one name, one exists, or one is itself an image to denoise.
    """
    root, targets, owner = Path(root), [], {}
    sources = {os.path.realpath(path) for path in paths}
    for path in map(Path, paths):
        folder = path.parent.relative_to(root) if root.is_dir() else Path()
        keep = keep_format or path.suffix.lower() in OWN_FORMAT
        target = Path(save_dir) / folder / f"{path.stem}_denoise{path.suffix if keep else '.png'}"
        if target in owner:  # a.jpg and a.png: the suffix tells them apart
            helps = "; --keep_format helps" if keep_format is False else ""
            raise UserError(f"{flag}: {owner[target]} and {path} would both become {target}{helps}")
        if os.path.realpath(target) in sources:
            raise UserError(f"--save_dir: {target}, the result of {path}, is itself an image to denoise")
        if os.path.lexists(target) and not overwrite:  # lexists: a name that is too long fails when it is written
            raise UserError(f"--save_dir: {target} exists; --overwrite replaces it")
        owner[target] = path
        targets.append(target)
    return targets
