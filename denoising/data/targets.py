"""Where many images are written: a folder that can be resumed, or a zip file."""

import contextlib
import json
import os
import zipfile
from pathlib import Path

from denoising import cli
from denoising.cli import UserError
from denoising.files.archives import OWN_FOLDER

TEMPORARY = ".tmp"  # how the names of images end that are not whole yet


def put(folder, name, data):
    """Writes an image into a FolderTarget's folder, whole or not at all.

    Until it is whole, it lies in the tool's own folder: what a kill leaves there is nobody else's.
    """
    temporary = os.path.join(folder, OWN_FOLDER, f"{os.getpid()}{TEMPORARY}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
        os.replace(temporary, os.path.join(folder, name))
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise UserError(f"--save_dir: {os.path.join(folder, name)}: {error.strerror or error}") from None


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
        for leftover in Path(self.own).glob(f"*{TEMPORARY}*"):
            leftover.unlink()
        self.records = {}
        for name, record in records.items():
            if not overwrite and not other and self._up_to_date(record, wanted.get(name)):
                self.records[name] = record
                continue
            for file in record["files"]:
                Path(folder, os.path.basename(file["file"])).unlink(missing_ok=True)
        self._write_manifest()

    def _refuse_foreign(self, earlier, other, records, wanted):
        gone = [name for name, record in records.items() if name not in wanted and record["files"]]
        strangers = earlier is None and os.path.isdir(self.folder) and set(os.listdir(self.folder)) - {OWN_FOLDER}
        has_images = any(record["files"] for record in records.values())
        where = f"--save_dir: {self.folder}"
        cli.refuse(
            (strangers, f"{where} is not empty and not made by this tool; --overwrite uses it all the same"),
            (other and has_images, f"{where} has another {', '.join(other)}; --overwrite starts anew"),
            (gone, f"{where} holds images whose source is gone ({len(gone)}, {gone[:1]}); --overwrite starts anew"),
        )

    def _read_manifest(self):
        settings, records = None, {}
        try:
            with open(self.manifest, encoding="utf-8") as file:
                settings = _object(file.readline(), set())
                for line in file:
                    record = _object(line, {"name", "size", "stamp", "stem", "files"})
                    records[record["name"]] = record
        except FileNotFoundError:
            pass
        except (ValueError, TypeError, RecursionError):
            pass  # A crash cut the last line short: the images that it listed are made again.
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


def _object(line, keys):
    """The JSON object that a line holds.

    Raises:
        ValueError: it holds something else, or the object lacks keys.
    """
    found = json.loads(line)
    if not isinstance(found, dict) or not keys <= found.keys():
        raise ValueError(line)
    return found


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
