r"""Makes slices to train the reconstruction of undersampled MRI on: of phantoms, or of a scanner's volumes.

Examples:
  # Heads that do not exist, to train on and others to score on.
  python tools/mri_dataset.py --phantoms 1000 --save_dir slices/train
  python tools/mri_dataset.py --phantoms 40 --seed 1 --save_dir slices/val/Phantoms

  # Volumes: NIfTI, or .npy of D x H x W; of each the slices 25 to 124. Other people's heads for the scores.
  python tools/mri_dataset.py --data IXI-T1/train/ --slices 25 124 --save_dir slices/train
  python tools/mri_dataset.py --data IXI-T1/val/ --slices 25 124 --save_dir slices/val/IXI

  # What was measured: k-space of which a tenth is known becomes images for predict.py.
  python tools/mri_dataset.py --data kspace.npy --kspace_share 0.1 --save_dir measured/

  # Then train on pairs of undersampled slices, score, and reconstruct.
  python train.py --method noise2noise --noisetype mri0.1 --n_channel 1 --data_dir slices/train --val_dirs slices/val
  python predict.py --image_path measured/ --model_path best_model.pdparams --save_dir reconstructed/

Slices are 8-bit grey PNG of --size x --size pixels, 0 for nothing and 255 for the brightest value of the volume, as in
the paper: smaller ones lie in the middle of black, larger ones are made smaller. Slices without anything in them are
left out. docs/mri.md tells the rest.
"""

import os
import re
import sys
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's root

from denoising import cli
from denoising.cli import UserError, number
from denoising.data import phantoms
from denoising.files import images, nifti
from denoising.imaging import mri
from denoising.imaging.pixels import from_01

# Below this share of the volume's brightest value a slice is taken for empty, as by the paper's preparation.
EMPTY = 1 / 255


def get_parser():
    """All flags."""
    parser = cli.Parser(__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--phantoms", type=number(int, 1, 10**6), metavar="N", help="make so many slices of phantoms")
    source.add_argument(
        "--data", metavar="PATH", help=f"a volume or a folder of them: {' '.join(nifti.VOLUME_SUFFIXES)}"
    )
    add = parser.add_argument
    add("--save_dir", required=True, help="new or empty folder for the slices")
    add("--size", type=number(int, 32, 4096), default=256, help="side of the slices in pixels")
    add("--seed", type=number(int, 0, 2**31 - 1), default=0, help="another seed makes phantoms of other heads")
    add("--slices", nargs=2, type=number(int, 0), metavar=("FIRST", "LAST"), help="only these of each volume, from 0")
    add(
        "--kspace_share",
        type=number(float, 0.0001, 1),
        metavar="P",
        help="--data holds k-space (complex .npy of H x W or D x H x W, frequency 0 first, 0 where nothing was "
        "measured), sampled with the density of --noisetype mriP; float32 .npy come out, of its own size",
    )
    add("--overwrite", action="store_true", help="write into a folder that is not empty")
    return parser


def find_volumes(path):
    """Pairs of file and name for its slices, in sorted order."""
    root = Path(path)
    if root.is_dir():
        files = sorted(file for file in images.walk(path) if file.name.lower().endswith(nifti.VOLUME_SUFFIXES))
        if not files:
            raise UserError(f"--data: no volume in {path} ({' '.join(nifti.VOLUME_SUFFIXES)})")
    else:
        files, root = [Path(cli.existing_file("--data", path))], root.parent
    owner = {}
    for file in files:
        name = re.sub(r"\.(npy|nii|nii\.gz)$", "", "__".join(file.relative_to(root).parts), flags=re.IGNORECASE)
        if name in owner:
            raise UserError(f"--data: the slices of {owner[name]} and {file} would have the same names")
        owner[name] = file
    return [(file, name) for name, file in owner.items()]


# --- One source in, its slices with the ends of their names out ---------------------------------------------


def phantom_slice(number_, options):
    """The one slice of a phantom."""
    picture = phantoms.phantom(options.size, np.random.default_rng([options.seed, number_]))
    return [(".png", from_01(picture, np.uint8))]


def numbers_of(path, count, options):
    """The numbers of the slices that --slices asks for, of `count` in a file."""
    first, last = options.slices or (0, count - 1)
    if not first <= last < count:
        raise UserError(f"--slices: from {first} to {last}, but {path} has 0 to {count - 1}")
    return range(first, last + 1)


def volume_slices(path, options):
    """The slices of a volume that are not empty, 8 bits."""
    volume = nifti.read_volume(path)
    brightest = volume.max()
    if brightest <= 0:
        raise UserError(f"{path}: holds nothing above 0")
    slices = ((i, np.clip(volume[i] / brightest, 0, 1)) for i in numbers_of(path, len(volume), options))
    return [
        (f"_{index:03d}.png", from_01(fitted(slice_01, options.size), np.uint8))
        for index, slice_01 in slices
        if slice_01.max() > EMPTY
    ]


def fitted(slice_01, size):
    """The slice in the middle of a black square; made smaller first if it is larger."""
    scale = size / max(slice_01.shape)
    if scale < 1:
        height, width = (max(1, round(scale * side)) for side in slice_01.shape)
        slice_01 = cv2.resize(slice_01, (width, height), interpolation=cv2.INTER_AREA)
    height, width = slice_01.shape
    top, left = (size - height) // 2, (size - width) // 2
    return np.pad(slice_01, ((top, size - height - top), (left, size - width - left)))


def measured_slices(path, options):
    """The images of measured k-space, float32."""
    array = nifti.read_array(path)
    if array.dtype.kind != "c":
        raise UserError(f"--kspace_share: {path} holds values of type {array.dtype}, k-space is complex")
    numbers = numbers_of(path, len(array), options)
    try:
        return [(f"_{i:03d}.npy", mri.from_kspace(array[i], options.kspace_share)) for i in numbers]
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


# --- The run ------------------------------------------------------------------------------------------------


def main(argv=None):
    """Writes the slices; what is broken is reported and the rest goes on."""
    options = get_parser().parse_args(argv)
    if options.phantoms and (options.slices or options.kspace_share):
        raise UserError(f"--{'slices' if options.slices else 'kspace_share'}: goes with --data, phantoms have none")
    if options.phantoms:
        make, sources = phantom_slice, [(i, f"phantom{options.seed}_{i:05d}") for i in range(options.phantoms)]
    else:
        make, sources = measured_slices if options.kspace_share else volume_slices, find_volumes(options.data)
    cli.writable_folder("--save_dir", options.save_dir)
    if os.listdir(options.save_dir) and not options.overwrite:
        raise UserError(f"--save_dir: {options.save_dir} is not empty; --overwrite writes into it all the same")

    made = failed = 0
    with cli.progress(sources, unit="phantom" if options.phantoms else "volume", disable=len(sources) == 1) as bar:
        for source, name in bar:
            try:
                slices = make(source, options)
            except UserError as error:
                if len(sources) == 1:
                    raise
                failed += 1
                bar.write(f"{error}", file=sys.stderr)
                continue
            for end, array in slices:
                images.write_image(os.path.join(options.save_dir, name + end), array)
            made += len(slices)
    if failed:
        cli.note(f"{failed} of {len(sources)} volumes could not be read")
    if not made:
        raise UserError(f"--data: {options.data} gave no slice with anything in it")
    print(f"{made} slices in {options.save_dir}")
    return 1 if failed else 0


if __name__ == "__main__":
    cli.run(main)
