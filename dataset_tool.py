r"""Prepares training images: filters a tree by size, converts to RGB, and reports what it left out.

Examples:
  python dataset_tool.py --input_dir ILSVRC2012_img_val --save_dir Imagenet_val
  python dataset_tool.py --input_dir photos.zip --save_dir photos_512 --crop 512
  python dataset_tool.py --input_dir SIDD_Medium_Raw/Data --save_dir SIDD_sub512
  python dataset_tool.py --input_dir Imagenet_val --save_dir noisy --noise gauss25 --seed 7
  python dataset_tool.py --validation_set BSD300 --input_dir BSDS300-images.tgz \
      --save_dir validation

Folders, .zip and .tar go in; a folder or, if its name ends so, a .zip comes out. Interrupted, the
same command goes on where it stopped; any number of workers writes the same bytes. The list of
skipped files and a record of the options lie in SAVE_DIR/.dataset_tool/.

What becomes of unusual files:
  rotated by EXIF, grey, palette, CMYK, 1 bit    upright RGB
  transparent                                    laid over white
  16 bit                                         16-bit PNG, whatever --format
  float (TIFF, NPY)                              float32 NPY, whatever --format
  TIFF stack                                     one image per page
  animated, broken, truncated, NaN, too large    skipped and reported
  .mat raw frame (SIDD)                          512-pixel crops at half overlap, float32 NPY
"""

import collections
import concurrent.futures
import contextlib
import csv
import dataclasses
import functools
import hashlib
import io
import json
import math
import multiprocessing
import multiprocessing.connection
import os
import re
import signal
import tarfile
import threading
import zipfile
import zlib
from pathlib import Path, PurePosixPath

import numpy as np

import cli
import images
from cli import UserError, number
from noise import list_of_noise, parse_noise

JPEG_SUFFIXES = (".jpg", ".jpeg")
OWN_FOLDER = ".dataset_tool"  # hidden, so that no glob over the images meets it
BATCH = 16  # files per task: the cost of handing over is spread, and a crash loses little
MAX_ENTRY_BYTES = 1 << 29  # of one file in an archive
MAX_SET_BYTES = 1 << 24  # of one image of a validation set
RAW_CROP = 512
# The camera's code in SIDD's folder names, and the phase of its sensor.
BAYER_PHASES = {"GP": "BGGR", "IP": "RGGB", "S6": "GRBG", "N6": "BGGR", "G4": "BGGR"}
# Where a set goes, how many images it has, and which of an archive's files belong to it.
VALIDATION_SETS = {
    "BSD300": ("BSD300/test", 100, r"(^|/)test/[^/]+$"),
    "Kodak": ("Kodak", 24, r"(^|/)[^/]+$"),
    "Set14": ("Set14", 14, r"(^|/)(image_SRF_2/[^/]*_HR[^/]*|(?!.*_SRF_)[^/]+)$"),
}


class Skip(Exception):
    """A file that is left out, and why: a few words for the table, and details for the list."""

    def __init__(self, reason, detail=""):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def get_parser():
    """The published flags under their published names, and ours."""
    parser = cli.Parser(__doc__)
    data = parser.add_argument_group("data")
    data.add_argument("--input_dir", required=True, help="folder (with its folders), .zip or .tar")
    data.add_argument("--save_dir", required=True, help="new folder, own earlier one, or a .zip")
    data.add_argument(
        "--validation_set",
        choices=list(VALIDATION_SETS),
        help="unpack this set from its owner's archive into SAVE_DIR, as it is",
    )
    filters = parser.add_argument_group("filter")
    filters.add_argument("--min_size", type=number(int, 1), default=256, help="smallest side")
    filters.add_argument("--max_size", type=number(int, 1), default=512, help="largest side")
    filters.add_argument(
        "--crop",
        type=number(int, 8),
        metavar="SIDE",
        help="cut what is larger than --max_size into squares of this side",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--n_channel", type=int, default=3, choices=[1, 3], help="1 grey, 3 RGB")
    output.add_argument(
        "--format",
        default="keep",
        choices=["keep", "copy", "png", "jpeg"],
        help="keep: JPEG stays JPEG (quality 100, 4:4:4), the rest becomes PNG; "
        "copy: as keep, but JPEG that needs no change is copied byte for byte",
    )
    output.add_argument(
        "--noise",
        default="none",
        help=f"write noisy copies, {list_of_noise()}: as float32 NPY, which loses "
        "nothing, or with --format png clipped to 8 bits as by a camera",
    )
    output.add_argument("--seed", type=number(int, 0), default=7, help="of the noise")
    output.add_argument("--overwrite", action="store_true", help="start anew in a folder that is not empty")
    output.add_argument("--workers", type=number(int, 1), default=_cores(), help="processes")
    return parser


def _cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --- Sources: folders and archives ----------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Entry:
    """One file of the source."""

    name: str  # relative, with slashes
    size: int
    stamp: int  # changes when the file does
    container: str  # the file itself, or the archive
    place: str | int | None = None  # in the archive: name in a zip, offset in a tar
    packed: int = 0  # bytes in the archive

    def read(self):
        """Returns its bytes."""
        try:
            if self.place is None:
                return images.read_bytes(self.container)
            if isinstance(self.place, int):
                with open(self.container, "rb") as file:
                    file.seek(self.place)
                    return file.read(self.size)
            return _archive(self.container, os.getpid()).read(self.place)
        except (
            OSError,
            RuntimeError,
            zlib.error,
            ValueError,
            zipfile.BadZipFile,
            NotImplementedError,
            EOFError,
        ) as error:
            # RuntimeError: encrypted; NotImplementedError: an unusual compression.
            raise UserError(f"{self.name}: cannot be read from the archive: {error}") from error

    def image_size(self, data):
        """Height and width from the header; a file on disk is not read for that."""
        return images.image_size(self.container if data is None else self.name, data)


def list_entries(path, leave_out=None):
    """Lists a folder's or archive's files in a fixed order; hidden ones are left out.

    Args:
        path: a folder, a .zip or an uncompressed .tar.
        leave_out: a folder below it that is not part of it.
    """
    if os.path.isdir(path):
        outside = os.path.join(os.path.realpath(leave_out), "") if leave_out else None
        entries = []
        for file in images.walk(path):
            if outside and os.path.realpath(file).startswith(outside):
                continue
            if file.is_file():
                status = file.stat()
                name = file.relative_to(path).as_posix()
                entries.append(Entry(name, status.st_size, status.st_mtime_ns, str(file)))
    elif not os.path.isfile(path):
        raise UserError(f"--input_dir: {path} does not exist")
    elif zipfile.is_zipfile(path):
        entries = _zip_entries(path)
    elif tarfile.is_tarfile(path):
        entries = _tar_entries(path)
    else:
        raise UserError(f"--input_dir: {path} is neither a folder, a .zip nor a .tar")
    # Hidden members have lost their name; of two of one name the last counts, as when unpacking.
    named = {entry.name: entry for entry in entries if entry.name}
    entries = [named[name] for name in sorted(named)]
    if not entries:
        raise UserError(f"--input_dir: {path} is empty")
    return entries


@functools.lru_cache(maxsize=1)
def _archive(path, _process):
    """An open zip; each process has its own, since a shared file has one position for all."""
    return zipfile.ZipFile(path)


def _zip_entries(path):
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if not info.is_dir()]
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"--input_dir: {path}: {error}") from None
    return [
        Entry(safe_name(i.filename), i.file_size, i.CRC, path, i.filename, i.compress_size) for i in members
    ]


def _tar_entries(path):
    try:
        with tarfile.open(path, "r:") as archive:
            members = [member for member in archive if member.isfile()]
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"--input_dir: {path}: {error}; unpack a compressed .tar first") from None
    return [Entry(safe_name(m.name), m.size, int(m.mtime), path, m.offset_data, m.size) for m in members]


def safe_name(name):
    """An archive member's name without roots, ".." and odd characters; "" if it is hidden."""
    parts = [re.sub(r'[\x00-\x1f<>:"|?*]', "_", part) for part in name.replace("\\", "/").split("/")]
    parts = [part for part in parts if part not in ("", ".", "..")]
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return "" if hidden else "/".join(parts)


# --- Names ----------------------------------------------------------------------------------------


def plan_names(names, options):
    """Gives each file the stem of its output: its own, with its folders in front where two meet."""
    possible = {name: _possible_suffixes(name, options) for name in names}
    wanted = collections.Counter()
    for name in names:
        wanted.update((_stem(name).casefold(), suffix) for suffix in possible[name])
    plain = {stem for stem, _ in wanted}

    stems, taken = {}, set()
    for name in names:
        stem = _stem(name)
        if any(wanted[stem.casefold(), suffix] > 1 for suffix in possible[name]):
            stem = "__".join((*PurePosixPath(name).parts[:-1], stem))
        # The pieces of another file may come to be called like this one.
        piece = re.fullmatch(r"(.+)_[sp]\d{3,}", stem)
        claims = {(stem.casefold(), suffix) for suffix in possible[name]}
        if claims & taken or (piece and piece[1].casefold() in plain) or len(os.fsencode(stem)) > 200:
            stem = f"{stem[:60]}_{hashlib.sha256(_bytes(name)).hexdigest()[:12]}"
            claims = {(stem.casefold(), suffix) for suffix in possible[name]}
        taken |= claims
        stems[name] = stem
    return stems


def _stem(name):
    path = PurePosixPath(name)
    camera = _camera(name) if path.suffix.lower() == ".mat" else None
    # SIDD tells the camera, and with it the Bayer phase, by the folder alone.
    return f"{path.parent.name}__{path.stem}" if camera and not _camera(path.name) else path.stem


def _camera(name):
    codes = [code for code in re.split(r"[_/]", name) if code in BAYER_PHASES]
    return codes[-1] if codes else None


def _possible_suffixes(name, options):
    suffix = PurePosixPath(name).suffix.lower()
    if suffix == ".mat" or (options.noise != "none" and options.format != "png"):
        return (".npy",)
    if suffix in JPEG_SUFFIXES and options.format in ("keep", "copy"):
        return (suffix,)
    return (".png", ".npy") if options.format != "jpeg" else (".png", ".npy", ".jpg")


def _bytes(name):
    return name.encode("utf-8", "surrogateescape")


# --- Conversion: one file in, any number of named byte strings out --------------------------------


def convert(entry, stem, options):
    """Yields (file name, bytes, pixels) for each image made from one file.

    Raises:
        Skip: it is left out.
    """
    suffix = PurePosixPath(entry.name).suffix.lower()
    if suffix != ".mat" and suffix not in images.IMAGE_SUFFIXES:
        raise Skip("no image by its name")
    if entry.place is not None and entry.size > min(MAX_ENTRY_BYTES, 200 * entry.packed + 2**24):
        raise Skip("unreadable", f"a bomb: {entry.packed} bytes unpack to {entry.size}")
    if suffix == ".mat":
        pieces = _raw_crops(entry)
    else:
        pieces = _image_pieces(entry, options)
    noise = parse_noise(options.noise)
    made = False
    for mark, pixels, verbatim in pieces:
        made = True
        if options.noise != "none":
            rng = np.random.default_rng([options.seed, _number(entry.name + mark)])
            pixels, verbatim = noise.add(images.to_01(pixels), rng), None
            if options.format == "png" and suffix != ".mat":
                pixels = images.from_01(pixels, np.uint8)
        name = stem + mark + _output_suffix(entry.name, pixels, options)
        yield name, verbatim or images.encode(name, pixels, quality=100), pixels
    if not made:
        raise Skip("no page of the wanted size")


def _number(name):
    return int.from_bytes(hashlib.sha256(_bytes(name)).digest()[:8], "big")


def _output_suffix(name, pixels, options):
    if pixels.dtype == np.float32:
        return ".npy"
    suffix = PurePosixPath(name).suffix
    if pixels.dtype == np.uint8 and suffix.lower() in JPEG_SUFFIXES and options.format in ("keep", "copy"):
        return suffix
    return ".jpg" if pixels.dtype == np.uint8 and options.format == "jpeg" else ".png"


def _image_pieces(entry, options):
    """Yields (mark, HWC pixels, the file's bytes if they can serve as they are)."""
    data = None if entry.place is None else entry.read()
    # The header alone tells the size of most files that are left out.
    height, width = entry.image_size(data)
    _check_size(height, width, options)
    data = entry.read() if data is None else data
    picture = images.read_image(entry.name, data)
    for index, page in enumerate(picture.pages):
        mark = f"_p{index + 1:03d}" if len(picture.pages) > 1 else ""
        height, width = page.shape[:2]
        try:
            _check_size(height, width, options)
        except Skip:
            continue
        pixels = to_channels(page, picture.alpha and picture.alpha[index], options.n_channel)
        if options.crop and max(height, width) > options.max_size:
            crops = [
                (top, left) for top in _tiles(height, options.crop) for left in _tiles(width, options.crop)
            ]
            for number_, (top, left) in enumerate(crops, 1):
                yield (
                    f"{mark}_s{number_:03d}",
                    pixels[top : top + options.crop, left : left + options.crop],
                    None,
                )
        else:
            same = pixels is page and not mark and _usable_as_it_is(entry.name, picture, options)
            yield mark, pixels, data if same else None


def _check_size(height, width, options):
    if min(height, width) < options.min_size:
        raise Skip(f"smaller than {options.min_size} pixels a side", f"{width} x {height}")
    if max(height, width) > options.max_size and not options.crop:
        raise Skip(f"larger than {options.max_size} pixels a side", f"{width} x {height}")


def _usable_as_it_is(name, picture, options):
    """Whether the file holds the very pixels that would be written, in the format it would get.

    A PNG is the same before and after; a JPEG is not, and the published training set is made of
    re-encoded ones, so copying JPEG has to be asked for.
    """
    is_jpeg = PurePosixPath(name).suffix.lower() in JPEG_SUFFIXES
    if not picture.plain or options.format == "jpeg":
        return False
    if picture.format == "JPEG":
        return is_jpeg and options.format == "copy"
    return picture.format == "PNG" and (not is_jpeg or options.format == "png")


def to_channels(page, alpha, n_channel):
    """Lays transparent pixels over white, and gives grey or RGB."""
    if page.shape[2] not in (1, 3):
        raise Skip("neither grey nor RGB", f"{page.shape[2]} channels")
    if alpha is not None:
        opacity = images.to_01(alpha)[..., None]
        if opacity.min() < 1:
            page = images.from_01(images.to_01(page) * opacity + (1 - opacity), page.dtype)
    if page.shape[2] == n_channel:
        return page
    return np.repeat(page, 3, axis=2) if n_channel == 3 else images.to_grey(page)


def _tiles(length, side):
    """Starts of the tiles along one axis: they do not overlap, and lie in the middle."""
    count = max(1, length // side)
    first = max(0, length - count * side) // 2
    return range(first, first + count * side, side)


# --- SIDD's raw frames ----------------------------------------------------------------------------


def _raw_crops(entry):
    """Yields 512-pixel crops of a Bayer mosaic at half overlap, from even rows and columns."""
    if re.search(r"(^|[_/])(GT|METADATA)_", entry.name, re.IGNORECASE):
        raise Skip("no noisy raw frame", "clean frame or metadata of SIDD")
    frame = read_mat(entry)
    height, width = frame.shape
    if min(height, width) < RAW_CROP:
        raise Skip(f"smaller than {RAW_CROP} pixels a side", f"{width} x {height}")
    tops, lefts = _raw_starts(height), _raw_starts(width)
    for index, (top, left) in enumerate(((top, left) for top in tops for left in lefts), 1):
        crop = np.ascontiguousarray(frame[top : top + RAW_CROP, left : left + RAW_CROP])
        yield f"_s{index:03d}", crop[..., None], None


def _raw_starts(length):
    last = (length - RAW_CROP) // 2 * 2  # even, or the Bayer phase would change
    return sorted({*range(0, last + 1, RAW_CROP // 2), last})


def read_mat(entry):
    """Returns a .mat file's raw frame, float32 H x W, in MATLAB's orientation for both formats."""
    data = entry.read()
    if b"MATLAB 7.3" in data[:128] or b"\x89HDF" in data[:1024]:
        return _checked_frame(_read_hdf5(data))
    import scipy.io  # slow to import, and only raw frames need it

    try:
        shapes = {name: shape for name, shape, _ in scipy.io.whosmat(io.BytesIO(data))}
        name = (
            "x" if "x" in shapes else next((name for name, shape in shapes.items() if len(shape) == 2), "x")
        )
        if math.prod(shapes.get(name, ())) > images.MAX_PIXELS:
            raise Skip("too large", f"{shapes[name]}")
        return _checked_frame(scipy.io.loadmat(io.BytesIO(data), variable_names=[name])[name])
    except (Skip, UserError):
        raise
    except Exception as error:  # A hostile file is answered with nearly any kind of exception.
        raise Skip("unreadable", f"no MATLAB file, or broken: {error}") from error


def _read_hdf5(data):
    try:
        import h5py
    except ImportError:
        raise Skip("needs h5py", "a MATLAB 7.3 file: pip install h5py") from None
    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            name = "x" if "x" in file else next(iter(file))
            if math.prod(file[name].shape) > images.MAX_PIXELS:
                raise Skip("too large", f"{file[name].shape}")
            return file[name][()].T  # HDF5 has MATLAB's columns as rows
    except (OSError, KeyError, StopIteration, AttributeError, TypeError, ValueError) as error:
        raise Skip("unreadable", f"no MATLAB file, or broken: {error}") from error


def _checked_frame(frame):
    frame = np.asarray(frame)
    if frame.ndim != 2 or frame.dtype.kind not in "fu":
        raise Skip("no raw frame", f"{frame.dtype} of shape {frame.shape}")
    frame = images.to_01(frame) if frame.dtype.kind == "u" else frame.astype(np.float32)
    if not np.isfinite(frame).all():
        raise Skip("unreadable", "holds NaN or infinite pixels")
    return frame


# --- Work: batches in processes, one record per file ----------------------------------------------


def work(batch, options, folder):
    """Converts some files. Returns their records, and the files' bytes where `folder` is None.

    A source that cannot be read is skipped; a target that cannot be written ends the run.
    """
    done = []
    for entry, stem in batch:
        record = {
            "name": entry.name,
            "size": entry.size,
            "stamp": entry.stamp,
            "stem": stem,
            "files": [],
        }
        blobs = []
        try:
            for name, data, pixels in _converted(entry, stem, options):
                file = {"file": name, "bytes": len(data)}
                if options.noise != "none":
                    file["sha256"] = hashlib.sha256(pixels.tobytes()).hexdigest()
                record["files"].append(file)
                if folder is None:
                    blobs.append((name, data))
                    continue
                with cli.atomic_write(os.path.join(folder, name)) as temporary:
                    Path(temporary).write_bytes(data)
        except Skip as skip:
            record |= {"skipped": skip.reason, "detail": skip.detail}
        done.append((record, blobs))
    return done


def _converted(entry, stem, options):
    """As convert; an unreadable source becomes a Skip, which tells it from an unwritable target."""
    try:
        yield from convert(entry, stem, options)
    except UserError as error:
        # The file's name is told already.
        told = str(error).removeprefix(f"{entry.container}: ").removeprefix(f"{entry.name}: ")
        raise Skip("unreadable", told) from error


def run_batches(batches, options, folder):
    """Yields the results of the batches in their order, from as many processes as asked."""
    if options.workers == 1 or len(batches) < 2:
        yield from (work(batch, options, folder) for batch in batches)
        return
    waiting = collections.deque()
    pool = concurrent.futures.ProcessPoolExecutor(
        min(options.workers, len(batches)), initializer=_start_worker
    )
    try:
        for batch in batches:
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


def _start_worker():
    # Ctrl-C is the parent's to handle; and if the parent is killed, no process stays behind.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process().sentinel

    def follow():
        multiprocessing.connection.wait([parent])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


# --- Targets --------------------------------------------------------------------------------------


class FolderTarget:
    """A folder that can be resumed: a list of records grows with each batch that is written."""

    def __init__(self, folder, options, entries, stems):
        self.folder, self.own = folder, os.path.join(folder, OWN_FOLDER)
        self.manifest = os.path.join(self.own, "manifest.jsonl")
        settings, records = self._read_manifest()
        if options.overwrite:
            _delete(folder, records)
            records = {}
        elif settings is None and os.path.isdir(folder) and set(os.listdir(folder)) - {OWN_FOLDER}:
            raise UserError(
                f"--save_dir: {folder} is not empty and not made by this tool; "
                "--overwrite uses it all the same"
            )
        elif _other(settings, options) and any(record["files"] for record in records.values()):
            raise UserError(
                f"--save_dir: {folder} has another {', '.join(_other(settings, options))}; "
                "--overwrite starts anew"
            )
        wanted = {entry.name: (entry.size, entry.stamp, stems[entry.name]) for entry in entries}
        gone = [name for name, record in records.items() if name not in wanted and record["files"]]
        if gone:
            raise UserError(
                f"--save_dir: {folder} holds images whose source is gone ({len(gone)}, first "
                f"{gone[0]}); --overwrite starts anew"
            )
        cli.writable_folder("--save_dir", self.own)
        for leftover in os.listdir(folder):
            if re.fullmatch(r"\..+\.\d+\.tmp(\.\w+)?", leftover):
                os.unlink(os.path.join(folder, leftover))
        if _other(settings, options):
            records = {}
        self.records = {
            name: record for name, record in records.items() if self._up_to_date(record, wanted.get(name))
        }
        _delete(folder, {name: record for name, record in records.items() if name not in self.records})
        self._write_manifest(_settings(options))

    def _read_manifest(self):
        settings, records = None, {}
        try:
            with open(self.manifest, encoding="utf-8") as file:
                settings = json.loads(file.readline())
                for line in file:
                    record = json.loads(line)
                    records[record["name"]] = record
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError):
            pass  # The last line was cut short by a crash: what it told of is made again.
        except OSError as error:
            raise UserError(f"--save_dir: {self.manifest}: {error.strerror}") from None
        return settings, records

    def _up_to_date(self, record, wanted):
        same = wanted == (record["size"], record["stamp"], record["stem"])
        sizes = {file["file"]: file["bytes"] for file in record["files"]}
        return same and all(_size(os.path.join(self.folder, name)) == size for name, size in sizes.items())

    def _write_manifest(self, settings):
        lines = [settings, *(self.records[name] for name in sorted(self.records))]
        cli.write_text(self.manifest, "".join(json.dumps(line) + "\n" for line in lines))

    def add(self, done):
        """Notes what a batch has written."""
        with open(self.manifest, "a", encoding="utf-8") as file:
            for record, _ in done:
                self.records[record["name"]] = record
                file.write(json.dumps(record) + "\n")

    def finish(self, options, texts):
        """Puts the list in order, and the reports beside it."""
        self._write_manifest(_settings(options))
        for name, text in texts.items():
            cli.write_text(os.path.join(self.own, name), text)


class ZipTarget:
    """A zip file, complete or not there at all; the images are stored, being compressed already."""

    folder = None

    def __init__(self, archive):
        self.archive, self.records = archive, {}

    def add(self, done):
        """Appends a batch's files."""
        for record, blobs in done:
            self.records[record["name"]] = record
            for name, data in blobs:
                self._put(name, data)

    def finish(self, options, texts):
        """Adds the reports."""
        for name, text in texts.items():
            self._put(f"{OWN_FOLDER}/{name}", text.encode())

    def _put(self, name, data):
        # A fixed date: the same images make the same zip.
        self.archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data)


def _settings(options):
    """What decides over the images: a folder holds those of one setting."""
    names = ("min_size", "max_size", "crop", "n_channel", "format", "noise", "seed")
    return {
        "input_dir": os.path.realpath(options.input_dir),
        **{name: getattr(options, name) for name in names},
    }


def _other(settings, options):
    """Names the options that differ from those that a folder was made with."""
    return [key for key, value in _settings(options).items() if settings and settings.get(key) != value]


def _delete(folder, records):
    for record in records.values():
        for file in record["files"]:
            Path(folder, os.path.basename(file["file"])).unlink(missing_ok=True)


def _size(path):
    try:
        return os.path.getsize(path)
    except OSError:
        return -1


# --- Reports --------------------------------------------------------------------------------------


def reports(records, options):
    """Returns the skipped list as CSV, and the record of options and hashes as JSON."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["file", "reason", "detail"])
    for name in sorted(records):
        if "skipped" in records[name]:
            record = records[name]
            writer.writerow(_printable(text) for text in (name, record["skipped"], record["detail"]))
    files = sorted(
        (file for record in records.values() for file in record["files"]),
        key=lambda file: file["file"],
    )
    summary = {**_settings(options), "images": len(files)}
    if options.noise != "none":
        digest = hashlib.sha256()
        for file in files:
            digest.update(f"{_printable(file['file'])} {file['sha256']}\n".encode())
        summary["pixels_sha256"] = digest.hexdigest()
    phases = collections.Counter(
        BAYER_PHASES.get(_camera(name) or "", "unknown")
        for name, record in records.items()
        if name.lower().endswith(".mat")
        for _ in record["files"]
    )
    if phases:
        summary["bayer_phases"] = dict(phases)
    return {"skipped.csv": table.getvalue(), "record.json": json.dumps(summary, indent=2) + "\n"}


def _printable(text):
    return str(text).encode("utf-8", "backslashreplace").decode()


def print_summary(records, fresh, options, texts):
    """The closing table, on stdout."""
    summary = json.loads(texts["record.json"])
    place = os.path.join(options.save_dir, OWN_FOLDER)
    earlier = f" ({summary['images'] - fresh} of them earlier)" if fresh < summary["images"] else ""
    print(f"{summary['images']} images in {options.save_dir}{earlier}, from {len(records)} files")
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
    told = "; ".join(f"{count} {reason}" for reason, count in reasons.most_common(4))
    larger = sum(count for reason, count in reasons.items() if reason.startswith("larger"))
    hint = ""
    if larger:
        hint = f": --crop {options.max_size} cuts large ones into pieces, --max_size takes them whole"
    elif any(reason.startswith("smaller") for reason in reasons):
        hint = ": --min_size takes smaller ones"
    raise UserError(f"--input_dir: nothing usable in {options.input_dir} ({told}){hint}")


# --- Validation sets ------------------------------------------------------------------------------


def place_validation_set(options):
    """Copies a validation set's images, byte for byte, to where val.py looks for them."""
    folder, count, pattern = VALIDATION_SETS[options.validation_set]
    members = [
        (name, read)
        for name, read in _members(options.input_dir)
        if name.lower().endswith(images.IMAGE_SUFFIXES)
    ]
    chosen = [(name, read) for name, read in members if re.search(pattern, name)]
    # A folder or archive of the test images alone has no folder "test".
    chosen = chosen or [(name, read) for name, read in members if not re.search(r"(^|/)train/", name)]
    if not chosen:
        raise UserError(f"--input_dir: no image of {options.validation_set} in {options.input_dir}")
    folder = cli.writable_folder("--save_dir", os.path.join(options.save_dir, folder))
    for name, read in cli.progress(chosen, unit="image"):
        data = read()
        images.read_image(name, data)
        target = os.path.join(folder, PurePosixPath(name).name)
        if os.path.exists(target) and images.read_bytes(target) != data and not options.overwrite:
            raise UserError(f"--save_dir: {target} is there with other content; --overwrite replaces it")
        with cli.atomic_write(target) as temporary:
            Path(temporary).write_bytes(data)
    print(f"{len(chosen)} images in {folder}")
    if len(chosen) != count:
        cli.note(f"{options.validation_set} has {count} images, this is not the set as it was published")


def _members(path):
    """Lists (name, function that reads it) of a folder or archive, compressed tar included."""
    if os.path.isfile(path) and not zipfile.is_zipfile(path) and tarfile.is_tarfile(path):
        try:
            with tarfile.open(path, "r:*") as archive:
                # Read at once, because a compressed tar has no way back. These sets are small.
                return [
                    (
                        safe_name(member.name),
                        functools.partial(bytes, archive.extractfile(member).read()),
                    )
                    for member in archive
                    if member.isfile() and safe_name(member.name) and member.size <= MAX_SET_BYTES
                ]
        except (OSError, EOFError, zlib.error, tarfile.TarError, ValueError) as error:
            raise UserError(f"--input_dir: {path}: {error}") from None
    return [(entry.name, entry.read) for entry in list_entries(path) if entry.size <= MAX_SET_BYTES]


# --- Main -----------------------------------------------------------------------------------------


def main(argv=None):
    """Lists, plans, converts, reports."""
    options = get_parser().parse_args(argv)
    if not os.path.exists(options.input_dir):
        raise UserError(f"--input_dir: {options.input_dir} does not exist")
    if options.validation_set:
        place_validation_set(options)
        return 0
    check_options(options)
    entries = list_entries(options.input_dir, leave_out=options.save_dir)
    stems = plan_names([entry.name for entry in entries], options)
    if not options.save_dir.lower().endswith(".zip"):
        make(FolderTarget(options.save_dir, options, entries, stems), entries, stems, options)
        return 0
    if os.path.exists(options.save_dir) and not options.overwrite:
        raise UserError(f"--save_dir: {options.save_dir} exists; --overwrite replaces it")
    with (
        cli.atomic_write(options.save_dir) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
    ):
        make(ZipTarget(archive), entries, stems, options)
    return 0


def check_options(options):
    """Refuses what cannot work before anything is read."""
    if options.min_size > options.max_size:
        raise UserError(f"--min_size: {options.min_size} is more than --max_size {options.max_size}")
    try:
        parse_noise(options.noise)
    except ValueError as error:
        raise UserError(f"--noise: {error}") from None
    if options.noise != "none" and options.format in ("jpeg", "copy"):
        raise UserError(f"--format: {options.format} cannot hold noise; keep writes NPY, png 8-bit PNG")
    if os.path.isfile(options.save_dir) and not options.save_dir.lower().endswith(".zip"):
        raise UserError(f"--save_dir: {options.save_dir} is a file, a folder or .zip is wanted")
    if os.path.realpath(options.input_dir) == os.path.realpath(options.save_dir):
        raise UserError("--save_dir: is the same folder as --input_dir")


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
    texts = reports(target.records, options)
    target.finish(options, texts)
    if not any(record["files"] for record in target.records.values()):
        complain_of_nothing(target.records, options)
    print_summary(target.records, fresh, options, texts)


if __name__ == "__main__":
    cli.run(main)
