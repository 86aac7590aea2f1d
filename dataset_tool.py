r"""Prepares training images: filters a tree by size, converts to RGB, and reports what it left out.

Examples:
  python dataset_tool.py --input_dir ILSVRC2012_img_val --save_dir Imagenet_val
  python dataset_tool.py --input_dir photos.zip --save_dir photos_512 --crop 512
  python dataset_tool.py --input_dir SIDD_Medium_Raw/Data --save_dir SIDD_sub512
  python dataset_tool.py --input_dir Imagenet_val --save_dir noisy --noise gauss25 --seed 7
  python dataset_tool.py --validation_set BSD300 --input_dir BSDS300-images.tgz \
      --save_dir validation
  python dataset_tool.py --input_dir photos --save_dir pairs --pairs 50000 --noise gauss30

Folders, .zip and .tar go in; a folder or, if its name ends so, a .zip comes out. Interrupted, the
same command goes on where it stopped; any number of workers writes the same bytes. The list of
skipped files and a record of the options lie in SAVE_DIR/.dataset_tool/.

With --pairs, SAVE_DIR gets two files of small patches for Noise2Noise: train.npz with two
independent corruptions of each (noisy1, noisy2: uint8, N x 3 x 32 x 32), and val.npz with
patches of other images, corrupted and clean (noisy, clean).

What becomes of unusual files:
  rotated by EXIF, grey, palette, CMYK, 1 bit    upright RGB
  transparent                                    laid over white
  16 bit                                         16-bit PNG, whatever --format
  float (TIFF, NPY)                              float32 NPY, whatever --format
  TIFF stack                                     one image per page
  animated, broken, truncated, NaN, too large    skipped and reported
  .mat raw frame (SIDD)                          512-pixel crops at half overlap, float32 NPY
"""

import argparse
import collections
import concurrent.futures
import contextlib
import functools
import hashlib
import json
import os
import zipfile

import cv2
import numpy as np

from denoising import cli, machine
from denoising.cli import UserError, number
from denoising.data import raw_frames, validation
from denoising.data.conversion import convert, image_pieces, plan_names
from denoising.data.targets import FolderTarget, ZipTarget, put
from denoising.files import images, pair_files
from denoising.files.archives import OWN_FOLDER, Skip, list_entries
from denoising.imaging.metrics import psnr
from denoising.imaging.noise import list_of_noise, noise_of_flag

BATCH = 16  # files per task: the cost of handing over is spread, and a crash loses little


def get_parser():
    """The published flags under their published names, and ours."""
    # fmt: off
    parser = cli.Parser(__doc__)
    add = parser.add_argument_group("data").add_argument
    add("--input_dir", required=True, help="a folder with all that is below it, a .zip or a .tar")
    add("--save_dir", required=True, help="a new folder, one that this command was filling before, or a .zip")
    add("--validation_set", choices=sorted(validation.PUBLISHED_SETS),
        help="instead of preparing training images, unpack this set from its owner's archive, --input_dir")
    add("--pairs", type=number(int, 1), help="write train.npz with this many noisy pairs, and val.npz")
    add("--val_pairs", type=number(int, 1), default=1000,
        help="how many pairs of noisy and clean patches, of other images, val.npz gets")
    add("--val_dir", help="the images of val.npz; without it, some of --input_dir are held out for them")
    add = parser.add_argument_group("filter").add_argument
    add("--min_size", type=number(int, 1), default=256, help="pixels that the shorter side must have")
    add("--max_size", type=number(int, 1), default=512, help="pixels that the longer side may have")
    add("--crop", type=number(int, 8), metavar="SIDE",
        help="cut what is larger than --max_size into squares of this side (a shorter side stays as it is); of --pairs "
        "the side, 32 unless given")
    add = parser.add_argument_group("output").add_argument
    add("--n_channel", type=int, default=3, choices=[1, 3], help="1 grey, 3 RGB")
    add("--format", default="keep", choices=["keep", "copy", "png", "jpeg"],
        help="keep: JPEG stays JPEG (quality 100, 4:4:4), the rest becomes PNG; copy: as keep, but JPEG that needs no "
        "change is copied byte for byte")
    add("--noise", default="none",
        help=f"write noisy copies, {list_of_noise()}: as float32 NPY, which loses "
        "nothing, or with --format png clipped to 8 bits as by a camera")
    add("--seed", type=number(int, 0), default=7, help="the same seed gives the same noise")
    add("--overwrite", action="store_true", help="start anew in a folder that is not empty, or replace a .zip")
    add("--workers", type=number(int, 1), default=machine.cores(), help="how many processes work at once")
    return parser


# --- Work: batches in processes, one record per file ----------------------------------------------


def work(batch, options, folder):
    """Converts some files. Returns their records, and the files' bytes where `folder` is None.

    A source that cannot be read is skipped; a target that cannot be written ends the run.
    """
    done = []
    for entry, stem in batch:
        files, blobs = [], []
        record = {"name": entry.name, "size": entry.size, "stamp": entry.stamp, "stem": stem, "files": files}
        try:
            for name, data, pixels in convert(entry, stem, options):
                file = {"file": name, "bytes": len(data)}
                if options.noise != "none":
                    file["sha256"] = hashlib.sha256(pixels.tobytes()).hexdigest()
                files.append(file)
                if folder is None:
                    blobs.append((name, data))
                else:
                    put(folder, name, data)
        except Skip as skip:
            record |= {"skipped": skip.reason, "detail": skip.detail}
        done.append((record, blobs))
    return done


def start_worker():
    """The first thing that a process of the pool does: the cores belong to the processes, not to OpenCV's threads."""
    cli.start_worker()
    cv2.setNumThreads(1)


def run_batches(batches, options, folder):
    """Yields the results of the batches in their order, from as many processes as asked."""
    if options.workers == 1 or len(batches) < 2:
        yield from (work(batch, options, folder) for batch in batches)
        return
    waiting, threads = collections.deque(), cv2.getNumThreads()
    cv2.setNumThreads(1)  # before the processes fork: in them, OpenCV would wait for threads that did not come along
    pool = concurrent.futures.ProcessPoolExecutor(min(options.workers, len(batches)), initializer=start_worker)
    try:
        for batch in batches:
            with cli.interruptible_afterwards():
                waiting.append(pool.submit(work, batch, options, folder))
            if len(waiting) >= 4 * options.workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except concurrent.futures.BrokenExecutor:
        raise UserError(
            "--workers: a process was killed, probably for want of memory: start again with fewer"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
        cv2.setNumThreads(threads)


# --- Reports --------------------------------------------------------------------------------------


def settings_of(options):
    """What decides over the images: a folder holds those of one setting."""
    names = ("min_size", "max_size", "crop", "n_channel", "format", "noise", "seed")
    settings = {name: getattr(options, name) for name in names}
    return {"input_dir": os.path.realpath(options.input_dir), **settings}


def skipped_table(records):
    """The list of skipped files as CSV."""
    skipped = [(name, r["skipped"], r["detail"]) for name, r in sorted(records.items()) if "skipped" in r]
    return cli.csv_text([("file", "reason", "detail"), *(map(_printable, row) for row in skipped)])


def summarise(records, options):
    """The settings, and what came of them: counts, and hashes of what noise has made."""
    files = [file for record in records.values() for file in record["files"]]
    summary = {**settings_of(options), "images": len(files)}
    if options.noise != "none":
        digest = hashlib.sha256()
        for file in sorted(files, key=lambda file: file["file"]):
            digest.update(f"{_printable(file['file'])} {file['sha256']}\n".encode())
        summary["pixels_sha256"] = digest.hexdigest()
    phases = collections.Counter()
    for name, record in records.items():
        if name.lower().endswith(".mat") and record["files"]:
            phase = raw_frames.BAYER_PHASES.get(raw_frames.camera(name), "unknown")
            phases[phase] += len(record["files"])
    return summary | ({"bayer_phases": dict(phases)} if phases else {})


def _printable(text):
    return str(text).encode("utf-8", "backslashreplace").decode()


def print_summary(summary, records, fresh, save_dir):
    """The closing table, on stdout."""
    place = os.path.join(save_dir, OWN_FOLDER)
    earlier = f" ({summary['images'] - fresh} of them earlier)" if fresh < summary["images"] else ""
    print(f"{summary['images']} images in {save_dir}{earlier}, from {len(records)} files")
    skipped = [record for _, record in sorted(records.items()) if "skipped" in record]
    for reason, count in collections.Counter(record["skipped"] for record in skipped).most_common():
        first = next(record for record in skipped if record["skipped"] == reason)
        example = f", e.g. {first['name']}: {first['detail']}" if reason == "unreadable" else ""
        print(f"{count:8d} skipped: {reason}{_printable(example)}")
    if skipped:
        print(f"The list of skipped files: {place}/skipped.csv")
    if "bayer_phases" in summary:
        phases = ", ".join(f"{phase} {count}" for phase, count in summary["bayer_phases"].items())
        print(f"Bayer phase by the camera's code, not unified: {phases}")
    if "pixels_sha256" in summary:
        print(f"SHA-256 over the noisy pixels: {summary['pixels_sha256']} ({place}/record.json)")


def complain_of_nothing(records, options):
    """Says why there is nothing to write, and what to do about it."""
    reasons = collections.Counter(record["skipped"] for record in records.values())
    summary = "; ".join(f"{count} {reason}" for reason, count in reasons.most_common(4))
    larger = sum(count for reason, count in reasons.items() if reason.startswith("larger"))
    hint = ""
    if larger:
        hint = f": --crop {options.max_size} cuts large ones into pieces, --max_size takes them whole"
    elif any(reason.startswith("smaller") for reason in reasons):
        hint = ": --min_size takes smaller ones"
    raise UserError(f"--input_dir: nothing usable in {options.input_dir} ({summary}){hint}")


# --- Main -----------------------------------------------------------------------------------------


def main(argv=None):
    """Lists, plans, converts, reports."""
    options = get_parser().parse_args(argv)
    cli.refuse(
        (not os.path.exists(options.input_dir), f"--input_dir: {options.input_dir} does not exist"),
        (not options.save_dir, "--save_dir: is empty, the name of a folder or .zip is wanted"),
    )
    if options.validation_set:
        obeyed = {"input_dir", "save_dir", "validation_set", "overwrite", "workers"}
        others = changed_flags(options, set(vars(options)) - obeyed)
        copied = "has no meaning with --validation_set, whose images are copied as they are"
        cli.refuse((others, f"--{''.join(others[:1])}: {copied}"))
        validation.place(options.validation_set, options.input_dir, options.save_dir, options.overwrite)
        return 0
    check_options(options)
    if options.pairs:
        make_pairs(options)
        return 0
    entries = list_entries("--input_dir", options.input_dir, leave_out=options.save_dir)
    stems = plan_names([entry.name for entry in entries], options)
    if not options.save_dir.lower().endswith(".zip"):
        wanted = {entry.name: (entry.size, entry.stamp, stems[entry.name]) for entry in entries}
        target = FolderTarget(options.save_dir, settings_of(options), wanted, options.overwrite)
        make(target, entries, stems, options)
        return 0
    if os.path.exists(options.save_dir) and not options.overwrite:
        raise UserError(f"--save_dir: {options.save_dir} exists; --overwrite replaces it")
    with (
        cli.atomic_write(options.save_dir) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
    ):
        make(ZipTarget(archive), entries, stems, options)
    return 0


def changed_flags(options, names):
    """Those of the flags that do not have their defaults, in the order of --help."""
    parser = get_parser()
    return [name for name, value in vars(options).items() if name in names and value != parser.get_default(name)]


def check_options(options):
    """Refuses what cannot work before anything is read."""
    noise_of_flag("--noise", options.noise)
    noisy, save_dir = options.noise != "none", options.save_dir
    a_file = os.path.isfile(save_dir) and not save_dir.lower().endswith(".zip")
    same = os.path.realpath(options.input_dir) == os.path.realpath(save_dir)
    cli.refuse(
        (options.min_size > options.max_size, f"--min_size: {options.min_size} is more than --max_size"),
        (options.val_dir and not options.pairs, "--val_dir: belongs to --pairs"),
        (cli.lies_in(options.val_dir, options.input_dir),
         f"--val_dir: {options.val_dir} lies in --input_dir, so what is trained on would score, too"),
        (noisy and options.format in ("jpeg", "copy"),
         f"--format: {options.format} cannot hold noise; keep writes NPY, png 8-bit PNG"),
        (a_file, f"--save_dir: {save_dir} is a file, a folder or .zip is wanted"),
        (same, "--save_dir: is the same folder as --input_dir"),
    )  # fmt: skip
    if options.pairs:
        changed = changed_flags(options, ("min_size", "max_size", "format"))
        cli.refuse(
            (not noisy, "--pairs: two corruptions of each patch are wanted; --noise names their kind"),
            (changed,
             f"--{''.join(changed[:1])}: has no meaning with --pairs, whose patches are 8-bit and of side --crop"),
            (save_dir.lower().endswith((".zip", *pair_files.SUFFIXES)),
             f"--save_dir: {save_dir} is a file; --pairs writes two into a folder"),
        )  # fmt: skip


def make(target, entries, stems, options):
    """Converts what the target does not hold yet."""
    todo = [(entry, stems[entry.name]) for entry in entries if entry.name not in target.records]
    batches = [todo[start : start + BATCH] for start in range(0, len(todo), BATCH)]
    fresh = 0
    with (
        cli.progress(total=len(entries), initial=len(entries) - len(todo), unit="image") as bar,
        contextlib.closing(run_batches(batches, options, target.folder)) as results,
    ):
        for done in results:
            target.add(done)
            fresh += sum(len(record["files"]) for record, _ in done)
            bar.update(len(done))
    summary = summarise(target.records, options)
    target.finish({"skipped.csv": skipped_table(target.records), "record.json": json.dumps(summary, indent=2) + "\n"})
    if not summary["images"]:
        complain_of_nothing(target.records, options)
    print_summary(summary, target.records, fresh, options.save_dir)


# --- Pair files -----------------------------------------------------------------------------------


def make_pairs(options):
    """Cuts patches out of clean images, of which some are held out, and writes both pair files."""
    side, noise = options.crop or 32, noise_of_flag("--noise", options.noise)
    train, val = (os.path.join(options.save_dir, name) for name in ("train.npz", "val.npz"))
    for path in (train, val):
        if os.path.exists(path) and not options.overwrite:
            raise UserError(f"--save_dir: {path} exists; --overwrite replaces it")
    cli.writable_folder("--save_dir", options.save_dir)
    entries, val_entries = shuffled_images("--input_dir", options), shuffled_images("--val_dir", options)
    if not options.val_dir:
        held_out = min(options.val_pairs, len(entries) // 5)
        val_entries, entries = entries[:held_out], entries[held_out:]
    if not val_entries:
        raise UserError(f"--input_dir: {options.input_dir} has {len(entries)} images, too few to hold any out")

    # Each purpose has a stream of random numbers of its own: nothing of one corruption is in the other.
    skipped: dict = {}
    with cli.progress(total=len(entries) + len(val_entries), unit="image") as bar:
        read = functools.partial(whole_images, options=options, side=side, skipped=skipped)
        clean, sources = pair_files.cut(
            entries, read, options.pairs, side, np.random.default_rng([options.seed, 1]), bar.update
        )
        val_clean, val_sources = pair_files.cut(
            val_entries, read, options.val_pairs, side, np.random.default_rng([options.seed, 2]), bar.update
        )
    reasons = "; ".join(sorted(set(skipped.values())))
    for flag, patches in (("input_dir", clean), ("val_dir" if options.val_dir else "input_dir", val_clean)):
        lacking = f"too few images in {getattr(options, flag)} have patches of {side} pixels ({reasons})"
        cli.refuse((not len(patches), f"--{flag}: {lacking}"))
    noisy1, noisy2 = (pair_files.corrupt(clean, noise, options.seed, stream) for stream in (3, 4))
    val_noisy = pair_files.corrupt(val_clean, noise, options.seed, 5)
    pair_files.write(train, pair_files.TRAINING, (noisy1, noisy2))
    pair_files.write(val, pair_files.VALIDATION, (val_noisy, val_clean))

    for path, a, b, count in ((train, noisy1, clean, sources), (val, val_noisy, val_clean, val_sources)):
        level = np.mean([psnr(*pair, 255) for pair in zip(a, b, strict=True)])
        print(f"{path}: {len(a)} pairs of {side} x {side} pixels from {count} images, noisy {level:.2f} dB")
    for reason, count in collections.Counter(skipped.values()).most_common():
        print(f"{count:8d} skipped: {_printable(reason)}")
    if len(clean) < options.pairs or len(val_clean) < options.val_pairs:
        cli.note("there are no more: of images as small as a patch, each gives one")


def shuffled_images(flag, options):
    """The image files of --input_dir or --val_dir in random order; none of a flag that is not given."""
    path = getattr(options, flag[2:])
    if path is None:
        return []
    entries = list_entries(flag, path, leave_out=options.save_dir)
    entries = [entry for entry in entries if entry.name.lower().endswith(images.IMAGE_SUFFIXES)]
    cli.refuse((not entries, f"{flag}: no image in {path}"))
    return [entries[i] for i in np.random.default_rng([options.seed, 0]).permutation(len(entries))]


def whole_images(entry, options, side, skipped):
    """The images in a file that are large enough for a patch; why there are none goes into `skipped`."""
    any_size = argparse.Namespace(min_size=side, max_size=10**9, crop=None, n_channel=options.n_channel, format="png")
    try:
        return [pixels for _, pixels, _ in image_pieces(entry, any_size)]
    except Skip as skip:
        skipped[entry.name] = skip.reason
    except UserError:
        skipped[entry.name] = "unreadable"
    return []


if __name__ == "__main__":
    cli.run(main)
