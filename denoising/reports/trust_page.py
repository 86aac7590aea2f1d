"""The page that judges denoised images without clean ones: pictures, the map of lost structure, and a verdict each."""

import copy
from pathlib import Path

import numpy as np

from denoising import cli
from denoising.data import renders
from denoising.files import images
from denoising.files.results import report_files
from denoising.imaging import trust
from denoising.imaging.pixels import PLAIN_SPAN, Picture, from_01, seen_in, span_of, to_01
from denoising.inference import distributed
from denoising.inference.estimate import judge
from denoising.reports.montage import displayable
from denoising.reports.page import REMOVED_GAIN, as_text, file_name, filled, refuse_report
from denoising.reports.scores import aligned

PICTURES = {
    "input": "noisy",
    "output": "denoised",
    "residual": f"removed, \u00d7{REMOVED_GAIN} around grey",
    "structure": "structure that was lost: the more opaque, the more; fully from half of the noise's strength on",
}
OF_PREDICTION = "What was removed from the images"  # the title of predict.py's page
HEAD = ("image", "noise", "removed", "strength", "shared", "expected", "lost", "error", "PSNR")


class TrustReport:
    """A folder with index.html and, beside it, the pictures of each image; they are written as they come.

    Raises:
        UserError: the folder holds a report already, and it may not be replaced.
    """

    def __init__(self, folder, title, pictures=100, overwrite=False):
        refuse_report(folder, overwrite)
        for path in report_files(folder):
            path.unlink()
        self._folder, self._title, self._limit, self._entries = Path(folder), title, pictures, []

    def add(self, name, noisy, denoised, found):
        """Takes an image, H x W x C of any type, its denoised one, and the `estimate.Trust` of the two."""
        number = len(self._entries)
        self._entries.append((name, found))
        if number >= self._limit:
            return
        span = span_of(noisy)
        noisy_01, denoised_01 = (to_01(seen_in(span, image)) for image in (noisy, denoised))
        residual = np.clip(128 + 255 * REMOVED_GAIN * (noisy_01 - denoised_01), 0, 255).astype(np.uint8)
        pictures = {
            "input": from_01(noisy_01, np.uint8),
            "output": from_01(denoised_01, np.uint8),
            "residual": residual,
        }
        for kind, picture in pictures.items():
            images.write_image(str(self._folder / file_name(number, kind)), displayable(picture))
        if found.found is not None:
            colour, opaque = trust.structure_picture(found.found.structure)
            like = Picture(pages=[], alpha=[opaque])
            images.write_image(str(self._folder / file_name(number, "structure")), colour, like)

    def judge(self, path, noisy, denoised, denoiser):
        """Judges an image that predict.py has denoised, and takes it."""
        if denoiser.span != PLAIN_SPAN:
            # All of it as the network sees it: what is judged lies in 0..1.
            noisy, denoised = (seen_in(denoiser.span, image) for image in (noisy, denoised))
            denoiser = copy.copy(denoiser)
            denoiser.span = PLAIN_SPAN
        self.add(str(path), noisy, denoised, judge(denoiser, noisy, denoised=denoised))

    def close(self):
        """Writes the page; returns its path."""
        rows = (f"<tr>{''.join(f'<td>{as_text(c)}</td>' for c in row)}</tr>" for row in rows_of(self._entries))
        parts = {
            "title": as_text(self._title),
            "head": "".join(f"<th>{name}</th>" for name in HEAD),
            "rows": "\n".join(rows),
            "images": "\n".join(self._section(number, *entry) for number, entry in enumerate(self._entries)),
        }
        cli.write_text(self._folder / "index.html", filled("trust_page.html", parts))
        if len(self._entries) > self._limit:
            cli.note(f"--report: it shows pictures of {self._limit} of {len(self._entries)} images")
        return str(self._folder / "index.html")

    def _section(self, number, name, found):
        """The verdict and the pictures of an image."""
        files = {kind: file_name(number, kind) for kind in PICTURES if number < self._limit}
        files = {kind: file for kind, file in files.items() if (self._folder / file).exists()}
        heading = f'<h2>{as_text(name)}</h2>\n<p class="verdict">{as_text(found.verdict())}</p>'
        if not files:
            return heading
        data = "".join(f' data-{kind}="{file}"' for kind, file in files.items())
        figures = "".join(_figure(kind, files, as_text(name)) for kind in files)
        data += f' data-name="{as_text(name)}" data-verdict="{as_text(found.verdict())}"'
        return f'{heading}\n<div class="row"{data}>{figures}</div>'


def _figure(kind, files, name):
    """One picture, or the map over the denoised one, with its caption."""
    image = f'<img src="{files[kind]}" loading="lazy" alt="{name}: {PICTURES[kind]}"'
    if kind == "structure":
        image = f'<img src="{files["output"]}" loading="lazy" alt="" class="under">{image} class="map"'
    link = f'<a href="{files[kind]}" data-kind="{kind}">{image}></a>'
    return f"<figure>{link}<figcaption>{PICTURES[kind]}</figcaption></figure>"


def of_prediction(options):
    """The report that --report of predict.py and `denoise` asks for."""
    cli.refuse(
        (distributed.WORLD_SIZE > 1, "--report: takes one process"),
        (renders.is_folder(options.image_path), "--report: is for images, not for renders"),
    )
    left = report_files(options.report)
    # A batch that is continued gets a page on its further images in place of that on the first ones.
    replaced = options.overwrite or (options.skip_existing and all(map(_is_of_prediction, left)))
    return TrustReport(options.report, OF_PREDICTION, overwrite=replaced)


def _is_of_prediction(path):
    """Whether what a report has left is predict.py's: a picture, or its page."""
    if path.name == "index.html":
        return f"<h1>{OF_PREDICTION}</h1>" in path.read_text(encoding="utf-8", errors="replace")
    return path.suffix == ".png"


def rows_of(entries):
    """The cells of the table: a row for each (name, Trust), and one of their means."""
    numbers = [_numbers(found) for _, found in entries]
    rows = [(name, *map(_cell, HEAD[1:], row)) for (name, _), row in zip(entries, numbers, strict=True)]
    if len(rows) > 1:
        columns = [[value for value in column if value is not None] for column in zip(*numbers, strict=True)]
        rows.append(("mean", *map(_cell, HEAD[1:], [np.mean(column) if column else None for column in columns])))
    return rows


def table(entries):
    """The same as text for a terminal."""
    return aligned([HEAD, *rows_of(entries)])


def _numbers(found):
    """The numbers of a Trust in the order of HEAD."""
    if found.level is None:
        return (None,) * (len(HEAD) - 1)
    told = found.found
    removed = 1 - found.kept
    return found.sigma, removed, told.strength, told.shared, told.expected, told.lost, found.error * 255**2, found.psnr


def _cell(name, value):
    """A number as it is shown."""
    if value is None:
        return "-"
    if name in ("removed", "lost", "strength"):
        return f"{100 * value:.0f} %"
    return f"{round(value, 2) + 0.0:.2f}"  # no -0.00


def as_dict(name, found):
    """What is known of an image, for JSON."""
    keys = ("sigma", "removed", "strength", "shared", "expected", "lost", "error", "psnr")
    values = {key: None if value is None else float(value) for key, value in zip(keys, _numbers(found), strict=True)}
    kind = found.level.kind if found.level else "none"
    return {"image": name, "noise": kind, **values, "verdict": found.verdict()}
