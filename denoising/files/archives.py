"""Sources and targets of many files: folders, zip and tar; archives are untrusted."""

import functools
import os
import re
import stat
import tarfile
import zipfile
import zlib
from dataclasses import dataclass

from denoising.cli import UserError
from denoising.files import images

OWN_FOLDER = ".dataset_tool"  # hidden, so that no glob over the images meets it
MAX_ENTRY_BYTES = 1 << 29  # of one file in an archive
MAX_SMALL_BYTES = 1 << 24  # of one image in a compressed tar, which is held in memory
BROKEN = (OSError, ValueError, OverflowError, EOFError, zlib.error, zipfile.BadZipFile, tarfile.TarError)


class Skip(UserError):
    """A file that is left out, and why: a few words for the table, and details for the list."""

    def __init__(self, reason, detail=""):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


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


def list_entries(flag, path, leave_out=None, compressed=False):
    """Lists a folder's or archive's files in a fixed order; hidden ones are left out.

    Args:
        flag: that names the path, for refusals.
        path: a folder, a .zip or a .tar.
        leave_out: a folder below it that is not part of it.
        compressed: takes a compressed tar too, for small files; each is read at once, because such a
            tar has no way back.
    """
    if os.path.isdir(path):
        entries = _folder_entries(path, leave_out)
    elif not os.path.isfile(path):
        raise UserError(f"{flag}: {path} does not exist")
    elif zipfile.is_zipfile(path):
        entries = _zip_entries(flag, path)
    elif tarfile.is_tarfile(path):
        entries = _tar_entries(flag, path, compressed)
    else:
        raise UserError(f"{flag}: {path} is neither a folder, a .zip nor a .tar")
    # Hidden members have lost their name; of two of one name the last counts, as when unpacking.
    named = {entry.name: entry for entry in entries if entry.name}
    if not named:
        raise UserError(f"{flag}: {path} is empty")
    return [named[name] for name in sorted(named)]


def _folder_entries(path, leave_out):
    left_out = os.path.realpath(leave_out) if leave_out else None
    inside: dict = {}  # whether a folder is left out, asked once for all of its files
    entries = []
    for file in images.walk(path):
        folder = file.parent
        if folder not in inside:
            real = os.path.realpath(folder)
            inside[folder] = left_out is not None and os.path.commonpath((real, left_out)) == left_out
        status = None if inside[folder] else _status_of_file(file)
        if status:
            name = file.relative_to(path).as_posix()
            entries.append(Entry(name, status.st_size, status.st_mtime_ns, str(file)))
    return entries


def _status_of_file(path):
    """The status of a regular file; None of a broken link, a device, or what is gone."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def _zip_entries(flag, path):
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if not info.is_dir()]
    except BROKEN as error:
        raise UserError(f"{flag}: {path}: {error}") from None
    return [Entry(safe_name(i.filename), i.file_size, i.CRC, path, i.filename, i.compress_size) for i in members]


def _tar_entries(flag, path, compressed):
    entries = []
    try:
        with tarfile.open(path, "r:*" if compressed else "r:") as archive:
            for member in filter(tarfile.TarInfo.isfile, archive):
                place = member.offset_data
                if compressed and member.size <= MAX_SMALL_BYTES:
                    place = archive.extractfile(member).read()
                name, size = safe_name(member.name), member.size
                entries.append(Entry(name, size, int(member.mtime), path, place, size))
    except BROKEN as error:
        hint = "" if compressed else "; unpack a compressed .tar first"
        raise UserError(f"{flag}: {path}: {error}{hint}") from None
    return entries


def safe_name(name):
    """An archive member's name without roots, ".." and odd characters; "" if it is hidden."""
    parts = [re.sub(r'[\x00-\x1f<>:"|?*]', "_", part) for part in name.replace("\\", "/").split("/")]
    parts = [part for part in parts if part not in ("", ".", "..")]
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return "" if hidden else "/".join(parts)
