"""Where denoised images go: NAME_denoise.png, in the same sub-folder as their source; nothing is lost or replaced."""

import os
import re
from pathlib import Path

from denoising.cli import UserError
from denoising.files import raw

OF_REPORT = re.compile(r"index\.html|settings\.json|\d{5,}-(input|output|label|residual|montage|structure)\.png")
OWN_FORMAT = (".npy", ".tif", ".tiff", ".exr")  # hold what PNG cannot


def plan(flag, paths, root, save_dir, keep_format=False, overwrite=False, also_read=(), skip_existing=False):
    """The result's path for each image, or None where there is one and `skip_existing` is set.

    Args:
        flag: of the sources, for refusals.
        paths: of the images.
        root: the folder below which they were found, or the one image itself.
        save_dir: where results go.
        keep_format: keeps each image's own format, but of GIF, of raw files DNG; else it is PNG, which holds 8 and 16
            bits, and of raw files TIFF. None where the script has no such flag to recommend.
        overwrite: results that exist are replaced.
        also_read: other files that must be there until they have been read, such as the buffers of renders.
        skip_existing: images whose results exist are left out, and so are results that lie among the images.

    Raises:
        UserError: two results have one name, one exists, or one is itself a file to be read.
    """
    root, targets, owner = Path(root), [], {}
    sources = {os.path.realpath(path) for path in (*paths, *also_read)}
    paths = [Path(path) for path in paths]
    planned = [_target(path, root, save_dir, keep_format) for path in paths]
    # Of a batch that is continued where its images lie.
    results = {os.path.realpath(target) for target in planned} if skip_existing else set()
    for path, target in zip(paths, planned, strict=True):
        if os.path.realpath(path) in results:
            targets.append(None)
            continue
        if target in owner:  # a.jpg and a.png: the suffix tells them apart
            kept = {_target(pair, root, save_dir, True) for pair in (owner[target], path)}
            helps = "; --keep_format helps" if keep_format is False and len(kept) == 2 else ""
            raise UserError(f"{flag}: {owner[target]} and {path} would both become {target}{helps}")
        if skip_existing and os.path.lexists(target):
            owner[target] = path
            targets.append(None)
            continue
        if os.path.realpath(target) in sources:
            raise UserError(f"--save_dir: {target}, the result of {path}, is itself an image to denoise")
        # os.path knows no error: a name that is too long for the disk fails when it is written, and fails alone.
        if os.path.lexists(target) and not overwrite:
            raise UserError(f"--save_dir: {target} exists; --overwrite replaces it")
        owner[target] = path
        targets.append(target)
    return targets


def _target(path, root, save_dir, keep_format):
    folder = path.parent.relative_to(root) if root.is_dir() else Path()
    if raw.is_raw(path):
        suffix = ".dng" if keep_format else ".tif"
    else:
        suffix = path.suffix.lower()
        stays = suffix in OWN_FORMAT or (keep_format and suffix != ".gif")  # which has no more than 256 colours
        suffix = path.suffix if stays else ".png"
    return Path(save_dir) / folder / f"{path.stem}_denoise{suffix}"


def report_files(folder):
    """What a report has left in a folder, the page first."""
    found = [path for path in Path(folder).iterdir() if OF_REPORT.fullmatch(path.name)] if os.path.isdir(folder) else []
    return sorted(found, key=lambda path: (path.name[0].isdigit(), path.name))
