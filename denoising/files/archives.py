"""Sources and targets of many files: folders, zip and tar; archives are untrusted."""

import functools
import json
import os
import re
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from denoising import cli
from denoising.cli import UserError
from denoising.files import images

OWN_FOLDER = ".dataset_tool"  # hidden, so that no glob over the images meets it
MAX_ENTRY_BYTES = 1 << 29  # of one file in an archive
MAX_SET_BYTES = 1 << 24  # of one image of a validation set
BROKEN = (OSError, ValueError, OverflowError, EOFError, zlib.error, zipfile.BadZipFile, tarfile.TarError)
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


# --- Sources --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """One file of the source."""

    name: str  # relative, with slashes
    size: int
    stamp: int  # changes when the file does
    container: str  # the file itself, or the archive
    place: str | int | bytes | None = None  # in the archive: name in a zip, offset in a tar, or its content
    packed: int = 0  # bytes in the archive

    def read(self):
        """Returns its bytes."""
        if self.place is None:
            return images.read_bytes(self.container)
        if self.size > min(MAX_ENTRY_BYTES, 200 * self.packed + 2**24):
            raise UserError(f"{self.name}: a bomb: {self.packed} bytes unpack to {self.size}")
        if isinstance(self.place, bytes):
            return self.place
        try:
            if isinstance(self.place, str):
                return _open_zip(self.container, os.getpid()).read(self.place)
            with open(self.container, "rb") as file:
                file.seek(self.place)
                return file.read(self.size)
        except Exception as error:  # Encrypted, damaged, of an unusual compression: nearly any exception.
            raise UserError(f"{self.name}: cannot be read from the archive: {error}") from error


@functools.lru_cache(maxsize=1)
def _open_zip(path, _process):
    """An open zip; each process has its own, since a shared file has one position for all."""
    return zipfile.ZipFile(path)


def list_entries(path, leave_out=None, compressed=False):
    """Lists a folder's or archive's files in a fixed order; hidden ones are left out.

    Args:
        path: a folder, a .zip or a .tar.
        leave_out: a folder below it that is not part of it.
        compressed: takes a compressed tar too, for small files; each is read at once, because such a
            tar has no way back.
    """
    if os.path.isdir(path):
        entries = _folder_entries(path, leave_out)
    elif not os.path.isfile(path):
        raise UserError(f"--input_dir: {path} does not exist")
    elif zipfile.is_zipfile(path):
        entries = _zip_entries(path)
    elif tarfile.is_tarfile(path):
        entries = _tar_entries(path, compressed)
    else:
        raise UserError(f"--input_dir: {path} is neither a folder, a .zip nor a .tar")
    # Hidden members have lost their name; of two of one name the last counts, as when unpacking.
    named = {entry.name: entry for entry in entries if entry.name}
    if not named:
        raise UserError(f"--input_dir: {path} is empty")
    return [named[name] for name in sorted(named)]


def _folder_entries(path, leave_out):
    outside = os.path.join(os.path.realpath(leave_out), "") if leave_out else None
    entries = []
    for file in images.walk(path):
        if file.is_file() and not (outside and os.path.realpath(file).startswith(outside)):
            status, name = file.stat(), file.relative_to(path).as_posix()
            entries.append(Entry(name, status.st_size, status.st_mtime_ns, str(file)))
    return entries


def _zip_entries(path):
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if not info.is_dir()]
    except BROKEN as error:
        raise UserError(f"--input_dir: {path}: {error}") from None
    return [Entry(safe_name(i.filename), i.file_size, i.CRC, path, i.filename, i.compress_size) for i in members]


def _tar_entries(path, compressed):
    entries = []
    try:
        with tarfile.open(path, "r:*" if compressed else "r:") as archive:
            for member in filter(tarfile.TarInfo.isfile, archive):
                place = member.offset_data
                if compressed and member.size <= MAX_SET_BYTES:
                    place = archive.extractfile(member).read()
                name, size = safe_name(member.name), member.size
                entries.append(Entry(name, size, int(member.mtime), path, place, size))
    except BROKEN as error:
        hint = "" if compressed else "; unpack a compressed .tar first"
        raise UserError(f"--input_dir: {path}: {error}{hint}") from None
    return entries


def safe_name(name):
    """An archive member's name without roots, ".." and odd characters; "" if it is hidden."""
    parts = [re.sub(r'[\x00-\x1f<>:"|?*]', "_", part) for part in name.replace("\\", "/").split("/")]
    parts = [part for part in parts if part not in ("", ".", "..")]
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return "" if hidden else "/".join(parts)


# --- Targets --------------------------------------------------------------------------------------


class FolderTarget:
    """A folder that can be resumed: a list of records grows with each batch that is written.

    Args:
        folder: new, or made by an earlier run with the same settings.
        settings: what decides over the images: a folder holds those of one setting.
        wanted: size, stamp and stem of each source, by its name.
        overwrite: start anew, whatever lies there.
    """

    def __init__(self, folder, settings, wanted, overwrite):
        self.folder, self.settings = folder, settings
        self.own = os.path.join(folder, OWN_FOLDER)
        self.manifest = os.path.join(self.own, "manifest.jsonl")
        earlier, records = self._read_manifest()
        other = [key for key, value in settings.items() if earlier and earlier.get(key) != value]
        if not overwrite:
            self._refuse_foreign(earlier, other, records, wanted)
        cli.writable_folder("--save_dir", self.own)
        for leftover in os.listdir(folder):
            if re.fullmatch(r"\..+\.\d+\.tmp(\.\w+)?", leftover):
                os.unlink(os.path.join(folder, leftover))
        self.records = {}
        for name, record in records.items():
            if not overwrite and not other and self._up_to_date(record, wanted.get(name)):
                self.records[name] = record
                continue
            for file in record["files"]:
                Path(folder, os.path.basename(file["file"])).unlink(missing_ok=True)
        self._write_manifest()

    def _refuse_foreign(self, earlier, other, records, wanted):
        why = None
        gone = [name for name, record in records.items() if name not in wanted and record["files"]]
        if earlier is None and os.path.isdir(self.folder) and set(os.listdir(self.folder)) - {OWN_FOLDER}:
            why = "is not empty and not made by this tool; --overwrite uses it all the same"
        elif other and any(record["files"] for record in records.values()):
            why = f"has another {', '.join(other)}; --overwrite starts anew"
        elif gone:
            why = f"holds images whose source is gone ({len(gone)}, first {gone[0]}); --overwrite starts anew"
        if why:
            raise UserError(f"--save_dir: {self.folder} {why}")

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
        return same and all(self._size(file["file"]) == file["bytes"] for file in record["files"])

    def _size(self, name):
        try:
            return os.path.getsize(os.path.join(self.folder, name))
        except OSError:
            return -1

    def _write_manifest(self):
        lines = [self.settings, *(self.records[name] for name in sorted(self.records))]
        cli.write_text(self.manifest, "".join(json.dumps(line) + "\n" for line in lines))

    def add(self, done):
        """Notes what a batch has written."""
        with open(self.manifest, "a", encoding="utf-8") as file:
            for record, _ in done:
                self.records[record["name"]] = record
                file.write(json.dumps(record) + "\n")

    def finish(self, texts):
        """Puts the list in order, and the reports beside it."""
        self._write_manifest()
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

    def finish(self, texts):
        """Adds the reports."""
        for name, text in texts.items():
            self._put(f"{OWN_FOLDER}/{name}", text.encode())

    def _put(self, name, data):
        # A fixed date: the same images make the same zip.
        self.archive.writestr(
            zipfile.ZipInfo(name.encode("utf-8", "backslashreplace").decode(), (1980, 1, 1, 0, 0, 0)), data
        )


# --- Validation sets ------------------------------------------------------------------------------


def place_validation_set(name, source, save_dir, overwrite):
    """Copies a validation set's images, byte for byte, to where val.py looks for them."""
    folder, count, pattern = VALIDATION_SETS[name]
    entries = [
        entry
        for entry in list_entries(source, compressed=True)
        if entry.size <= MAX_SET_BYTES and entry.name.lower().endswith(images.IMAGE_SUFFIXES)
    ]
    chosen = [entry for entry in entries if re.search(pattern, entry.name)]
    # A folder or archive of the test images alone has no folder "test".
    chosen = chosen or [entry for entry in entries if not re.search(r"(^|/)train/", entry.name)]
    if not chosen:
        raise UserError(f"--input_dir: no image of {name} in {source}")
    folder = cli.writable_folder("--save_dir", os.path.join(save_dir, folder))
    for entry in cli.progress(chosen, unit="image"):
        data = entry.read()
        images.read_image(entry.name, data)
        target = os.path.join(folder, PurePosixPath(entry.name).name)
        if os.path.exists(target) and images.read_bytes(target) != data and not overwrite:
            raise UserError(f"--save_dir: {target} is there with other content; --overwrite replaces it")
        images.write_bytes(target, data)
    print(f"{len(chosen)} images in {folder}")
    if len(chosen) != count:
        cli.note(f"{name} has {count} images, this is not the set as it was published")
