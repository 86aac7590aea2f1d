"""Makes pairs of noisy images from a folder of clean ones: Noise2Noise trains on two corruptions of the same image.

    python from_scratch/make_pairs.py --out data/pairs
    python from_scratch/make_pairs.py --images cifar --out data/cifar_pairs
    python from_scratch/make_pairs.py --images photos --val_images validation/Sample --out data/photo_pairs

Writes train.npz (noisy1, noisy2) and val.npz (noisy, clean): uint8, N x 3 x 32 x 32. Images as small as a patch are
taken whole, from larger ones patches are cut at random; all as often as --count needs, each time with other noise.
Without --val_images some images are held out.
"""

import os

import numpy as np
from PIL import Image

from files import Parser, UserError, natural, new_file, not_negative, positive, run, write_arrays

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".tif", ".tiff")


def get_parser():
    """The flags."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--images", default="validation/Sample", help="folder of clean images (default: %(default)s)")
    add("--val_images", help="folder of images to validate on (default: some of --images)")
    add("--out", required=True, help="folder for train.npz and val.npz")
    add("--count", type=positive, default=50000, help="training pairs (default: %(default)s)")
    add("--val_count", type=positive, default=1000, help="validation images (default: %(default)s)")
    add("--size", type=positive, default=32, help="side of a patch in pixels (default: %(default)s)")
    add("--sigma", type=not_negative, default=25, help="sigma of the noise, white being 255 (default: %(default)s)")
    add("--seed", type=natural, default=0, help="seed of patches and noise (default: %(default)s)")
    add("--overwrite", action="store_true", help="replace files that exist")
    return parser


def find_images(flag, folder):
    """All images in a folder and the folders in it, sorted."""
    if not os.path.isdir(folder):
        raise UserError(f"{flag}: {folder} is no folder")
    found = [os.path.join(where, name) for where, _, names in os.walk(folder) for name in names]
    found = sorted(path for path in found if path.lower().endswith(SUFFIXES))
    if not found:
        raise UserError(f"{flag}: {folder} has no images ({' '.join(SUFFIXES)})")
    return found


def hold_out(paths, count):
    """Splits off `count` images, a fifth at most: evenly spread over the sorted list, for all of its folders."""
    count = min(count, len(paths) // 5)
    if count == 0:
        raise UserError(f"--images: {len(paths)} images are too few to hold one out; name --val_images")
    held_out = [paths[(2 * i + 1) * len(paths) // (2 * count)] for i in range(count)]
    return sorted(set(paths) - set(held_out)), held_out


def read_image(path):
    """An image's pixels in RGB; a broken file is a mistake to be told, whichever way it breaks its decoder."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except Exception as error:  # noqa: BLE001 - decoders raise a dozen kinds, and files come from anywhere
        raise UserError(f"{path}: cannot be read: {error or type(error).__name__}") from None


def cut_patches(paths, count, size, rng):
    """`count` patches, N x 3 x size x size: as many from each image, in random order, at random places."""
    patches = np.empty((count, 3, size, size), np.uint8)
    paths = [paths[i] for i in rng.permutation(len(paths))][:count]
    for i, path in enumerate(paths):
        pixels = read_image(path)
        if min(pixels.shape[:2]) < size:
            raise UserError(f"{path}: {pixels.shape[1]}x{pixels.shape[0]} pixels, patches need {size}x{size}")
        for place in range(i, count, len(paths)):
            top, left = (rng.integers(length - size + 1) for length in pixels.shape[:2])
            patches[place] = pixels[top : top + size, left : left + size].transpose(2, 0, 1)
    return patches


def corrupt(clean, sigma, rng):
    """Adds Gaussian noise to uint8 images, rounds and clips; in blocks, for noise takes four times the memory."""
    noisy = np.empty_like(clean)
    for block in range(0, len(clean), 1000):
        part = clean[block : block + 1000]
        values = part + rng.standard_normal(part.shape, np.float32) * np.float32(sigma)
        noisy[block : block + 1000] = np.clip(np.rint(values), 0, 255)
    return noisy


def psnr(a, b):
    """Of uint8 images, over all pixels of all of them."""
    return 10 * np.log10(255**2 / max(np.mean((a.astype(np.float32) - b) ** 2), 1e-12))


def main(argv=None):
    """Cuts, corrupts, writes."""
    args = get_parser().parse_args(argv)
    targets = [new_file("--out", os.path.join(args.out, name), args.overwrite) for name in ("train.npz", "val.npz")]
    images = find_images("--images", args.images)
    if args.val_images:
        held_out = find_images("--val_images", args.val_images)
    else:
        images, held_out = hold_out(images, args.val_count)

    # A generator for each purpose: the two corruptions share nothing.
    rngs = [np.random.default_rng(seed) for seed in np.random.SeedSequence(args.seed).spawn(5)]
    clean = cut_patches(images, args.count, args.size, rngs[0])
    noisy1, noisy2 = (corrupt(clean, args.sigma, rng) for rng in rngs[1:3])
    write_arrays(targets[0], {"noisy1": noisy1, "noisy2": noisy2})
    print(f"{targets[0]}: {args.count} pairs from {len(images)} images, noisy {psnr(noisy1, clean):.2f} dB")
    clean = cut_patches(held_out, args.val_count, args.size, rngs[3])
    noisy = corrupt(clean, args.sigma, rngs[4])
    write_arrays(targets[1], {"noisy": noisy, "clean": clean})
    print(f"{targets[1]}: {args.val_count} images from {len(held_out)} others, noisy {psnr(noisy, clean):.2f} dB")


if __name__ == "__main__":
    run(main)
