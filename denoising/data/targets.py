"""Where many images are written: a folder that can be resumed, a zip file, the place of a validation set."""

import json
import os
import re
import zipfile
from pathlib import Path, PurePosixPath

from denoising import cli
from denoising.cli import UserError
from denoising.files import images
from denoising.files.archives import MAX_SET_BYTES, OWN_FOLDER, VALIDATION_SETS, list_entries


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
