"""The HTML report: a folder that opens in any browser, with the scores, pictures and settings."""

import html
import math
import re
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from denoising import cli
from denoising.files import images
from denoising.files.results import report_files
from denoising.reports import modules
from denoising.reports.montage import displayable
from denoising.reports.scores import decimals

FILES = {"noisy": "input", "denoised": "output", "clean": "label", "residual": "residual"}  # how pictures are called
ERROR_GAIN, REMOVED_GAIN = 4, 2  # how much a residual is amplified for the eye

# Shown of each image and set: measure, format, classes of the table cell.
COLUMNS = (
    ("psnr_noisy", ".2f", "number wide"),
    ("psnr", ".2f", "number main"),
    ("gain", "+.2f", "number"),
    ("ssim_noisy", ".4f", "number wide"),
    ("ssim", ".4f", "number main"),
)
FORMATS = {measure: form for measure, form, _ in COLUMNS}


class HtmlReport:
    """A folder with index.html and, beside it, the pictures 00000-input.png, -output, -label and -residual.

    Pictures are written as they come, so that memory stays flat; index.html is written last. Of several processes
    each writes the pictures of its images, and the first one the page.

    Args:
        settings: {name: value}, or {group: {name: value}}; the page lists all of them.
        pictures: how many images of each set are shown; all are listed.
        overwrite: replaces a report that is there.
        first: whether this is the first process; it clears the folder, which the others have to wait for.

    Raises:
        UserError: the folder holds a report or its pictures already.
    """

    def __init__(self, folder, title, settings, pictures=100, overwrite=False, first=True):
        self._folder, self._title, self._settings = Path(folder), title, settings
        self._limit = pictures
        if first:
            refuse_report(folder, overwrite)
            # The page goes first, so that it never stands beside pictures of another run.
            for path in report_files(folder):
                path.unlink()

    def add(self, score, clean, noisy, denoised):
        """Writes the pictures of an image, HWC or HW uint8, at its first repeat; `clean` may be None."""
        if score.repeat > 0 or score.index >= self._limit:
            return
        removed = clean is None
        residual = _amplified(noisy, denoised, REMOVED_GAIN) if removed else _amplified(denoised, clean, ERROR_GAIN)
        for kind, image in zip(FILES, (noisy, denoised, clean, residual), strict=True):
            if image is not None:
                images.write_image(self._folder / file_name(score.number, FILES[kind]), displayable(image))

    def _figures_of(self, number, name):
        """The HTML of an image's pictures, whichever process has written them."""
        files = {kind: file_name(number, file) for kind, file in FILES.items()}
        sources = {kind: file for kind, file in files.items() if (self._folder / file).exists()}
        if "denoised" not in sources:
            return ""
        return _figures(sources, as_text(name), *images.image_size(self._folder / sources["denoised"]))

    def close(self, results):
        """Writes the page for the `denoising.SetScores` of all sets; returns its path."""
        rows = _image_means(results)
        scored = sum(len(result.scores) for result in results)
        seconds = sum(result.seconds for result in results)
        megapixels = sum(result.megapixels for result in results)
        date = time.strftime("%Y-%m-%d %H:%M")
        took = f"{seconds:.1f}\u00a0s" if seconds < 120 else f"{seconds / 60:.1f}\u00a0min"
        subtitle = f"{date} \u00b7 {scored} images scored in {took}"
        if megapixels:
            subtitle += f" \u00b7 {seconds / megapixels:.2f}\u00a0s per megapixel"
        names = [as_text(result.name) for result in results]
        parts = {
            "title": as_text(self._title),
            "subtitle": subtitle,
            "scores": "\n".join(map(_set_row, results)),
            "plot": _psnr_plot(rows),
            "set_options": "".join(f'<option value="{name}">{name}</option>' for name in names),
            "images": "\n".join(
                _image_row(number, row, self._figures_of(number, row["name"])) for number, row in enumerate(rows)
            ),
            "settings": _settings_lists(self._settings),
        }
        cli.write_text(self._folder / "index.html", filled("page.html", parts))
        return str(self._folder / "index.html")


# --- Files ----------------------------------------------------------------------------------------


def file_name(number, kind):
    """What the pictures of an image are called."""
    return f"{number:05d}-{kind}.png"


def refuse_report(folder, overwrite):
    """Makes the folder of a report, and refuses one that holds a report, or its pictures, unless that may go."""
    cli.writable_folder("--report", folder)
    found = report_files(folder)
    if found and not overwrite:
        raise cli.UserError(f"--report: {found[0]} exists; --overwrite replaces the report and its pictures")


def _image_means(results):
    """One dict per image, in order: its key, and its measures averaged over the repeats."""
    collected = defaultdict(list)
    for result in results:
        for score in result.scores:
            collected[result.name, score.index].append(score)
    rows = []
    for (set_name, _), scores in collected.items():
        row = {"set": set_name, "name": scores[0].name}
        for measure in ("psnr_noisy", "psnr", "ssim_noisy", "ssim"):
            row[measure] = sum(getattr(score, measure) for score in scores) / len(scores)
        row["gain"] = row["psnr"] - row["psnr_noisy"]
        rows.append(row)
    return rows


def _amplified(image, reference, gain):
    """The difference around mid-grey, as uint8."""
    return np.clip(128 + gain * (image.astype(np.float32) - reference), 0, 255).astype(np.uint8)


# --- HTML -----------------------------------------------------------------------------------------


def filled(template, parts):
    """A page of this folder, with the viewer and these parts in the places that bear their names."""
    folder = Path(__file__).parent
    parts = parts | {
        "page_style": (folder / "page.css").read_text(encoding="utf-8"),
        "viewer_style": (modules.VIEWER / "viewer.css").read_text(encoding="utf-8"),
        "viewer_script": modules.joined(modules.VIEWER / "index.js"),
    }
    # In one pass, so that no name can pass for a placeholder.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], (folder / template).read_text(encoding="utf-8"))


def as_text(value):
    """Anything as HTML text or attribute; what cannot be printed, or changes the direction of writing, is replaced."""
    return html.escape("".join(c if c.isprintable() else "\ufffd" for c in str(value)))


def _set_row(result):
    means = {measure: result.mean(measure) for measure in FORMATS if measure != "gain"}
    means["gain"] = means["psnr"] - means["psnr_noisy"]
    count = f'<td class="number wide">{result.image_count} \u00d7 {result.repeats}</td>'
    return f"<tr><td>{as_text(result.name)}</td>{count}{_cells(means)}</tr>"


def _cells(means):
    cells = []
    for measure, form, classes in COLUMNS:
        number = decimals(means[measure], form).replace("-", "\u2212")
        cells.append(f'<td class="{classes}">{number}</td>')
    return "".join(cells)


def _image_row(number, row, figures):
    """A row of numbers and, under it, one of pictures, kept together by a tbody."""
    set_name, name = as_text(row["set"]), as_text(row["name"])
    data = f'data-name="{name}" data-set="{set_name}"'
    for measure in FORMATS:
        value = str(row[measure]).replace("nan", "").replace("inf", "Infinity")
        data += f' data-{measure.replace("_", "-")}="{value}"'
    lines = [
        f'<tbody id="image-{number}" {data}>',
        f'<tr class="score"><td class="name"><bdi>{name}</bdi></td>'
        f'<td class="set wide">{set_name}</td>{_cells(row)}<td class="rest"></td></tr>',
    ]
    if figures:
        lines.append(f'<tr class="pictures"><td colspan="8">{figures}</td></tr>')
    return "\n".join([*lines, "</tbody>"])


def _figures(sources, name, height, width):
    """An image's pictures, in pairs that stay together; the page's script opens them in the viewer."""
    caption = f"noisy \u2212 denoised, \u00d7{REMOVED_GAIN} around grey"
    if "clean" in sources:
        caption = f"denoised \u2212 clean, \u00d7{ERROR_GAIN} around grey"
    figures = []
    for kind in ("noisy", "denoised", "clean", "residual"):
        if kind in sources:
            figures.append(
                f'<figure><a href="{sources[kind]}"><img src="{sources[kind]}" width="{width}" height="{height}" '
                f'loading="lazy" draggable="false" alt="{name}: {kind}"></a>'
                f'<figcaption class="{kind}">{caption if kind == "residual" else kind}</figcaption></figure>'
            )
    data = "".join(f' data-{kind}="{source}"' for kind, source in sources.items())
    pairs = "".join(f"<div>{''.join(figures[i : i + 2])}</div>" for i in (0, 2))
    return f'<div class="figures"{data}>{pairs}</div>'


def _settings_lists(settings):
    groups = {"Options": {key: v for key, v in settings.items() if not isinstance(v, dict)}}
    groups |= {key: value for key, value in settings.items() if isinstance(value, dict)}
    lists = []
    for title, group in groups.items():
        pairs = "\n".join(
            f"<dt>{as_text(key)}</dt><dd>{as_text('-' if value is None else value)}</dd>"
            for key, value in group.items()
        )
        if pairs:
            lists.append(f"<div><h3>{as_text(title)}</h3><dl>\n{pairs}\n</dl></div>")
    return "\n".join(lists)


def _psnr_plot(rows):
    """Inline SVG: each image's PSNR before and after, a set's images in order of the latter."""
    sets = defaultdict(list)
    for number, row in enumerate(rows):
        if math.isfinite(row["gain"]):
            sets[row["set"]].append((row["psnr"], row["psnr_noisy"], number, row["name"]))
    values = [psnr for members in sets.values() for member in members for psnr in member[:2]]
    if not values:
        return "<p>No image has a finite PSNR.</p>"
    step = 5 if max(values) - min(values) > 8 else 1
    low = step * math.floor(min(values) / step)
    high = max(step * math.ceil(max(values) / step), low + step)
    width, height, left, top, bottom = 1000, 280, 34, 8, 30

    def y_of(psnr):
        return round(top + (height - top - bottom) * (high - psnr) / (high - low), 1)

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="PSNR of every image">']
    for tick in range(low, high + 1, step):
        y = y_of(tick)
        parts.append(
            f'<line class="grid" x1="{left}" x2="{width}" y1="{y}" y2="{y}"/>'
            f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{tick}</text>'
        )
    # One place for each image, and one between sets.
    pitch = (width - left) / (len(values) / 2 + len(sets))
    radius = round(min(3.5, max(1.5, 0.35 * pitch)), 1)
    x = left + pitch
    for set_name, members in sets.items():
        middle = x + pitch * (len(members) - 1) / 2
        parts.append(f'<text x="{middle:.1f}" y="{height - 6}" text-anchor="middle">{as_text(set_name)}</text>')
        for psnr, psnr_noisy, number, name in sorted(members):
            at, y, y_noisy = round(x, 1), y_of(psnr), y_of(psnr_noisy)
            parts.append(
                f'<a href="#image-{number}" tabindex="-1">'
                f"<title>{as_text(name)}: {psnr_noisy:.2f} \u2192 {psnr:.2f} dB</title>"
                f'<line class="gain" x1="{at}" x2="{at}" y1="{y_noisy}" y2="{y}"/>'
                f'<circle class="noisy" cx="{at}" cy="{y_noisy}" r="{radius}"/>'
                f'<circle class="denoised" cx="{at}" cy="{y}" r="{radius}"/></a>'
            )
            x += pitch
        x += pitch
    return "\n".join([*parts, "</svg>"])
