"""One self-contained page on the noise of images: curves, correlation, spectrum, where it was measured, advice."""

import base64
from pathlib import Path

import cv2
import numpy as np

from denoising import cli
from denoising.files import images
from denoising.imaging.noise_blocks import SIZE
from denoising.imaging.pixels import from_01, to_01
from denoising.reports import montage
from denoising.reports.page import as_text, filled
from denoising.reports.plots import COLOURS

NAMES = {1: ("grey",), 3: ("red", "green", "blue"), 4: ("red", "green 1", "green 2", "blue")}
PAINT = {"grey": COLOURS[5], "red": COLOURS[3], "green": COLOURS[2], "green 1": COLOURS[2], "green 2": COLOURS[1]}
PICTURE_SIDE = 960  # of the picture with the places, at most


def channel_names(count):
    """What the channels of an image are called."""
    return NAMES.get(count) or tuple(f"channel {i}" for i in range(count))


def refuse_page(folder, overwrite):
    """Refuses a folder that has a page already, unless that may go."""
    path = Path(folder) / "index.html"
    cli.refuse((path.exists() and not overwrite, f"--report: {path} exists; --overwrite replaces it"))


def write_page(folder, title, summary, entries):
    """Writes index.html into a folder that is there and returns its path.

    Args:
        folder: a page in it is replaced (see `refuse_page`).
        title: of the page.
        summary: lines of text; the last one is a command.
        entries: (name, image H x W x C, its Analysis) of each image that is shown.
    """
    path = Path(folder) / "index.html"
    *lines, command = summary
    parts = {
        "title": as_text(title),
        "found": "\n".join(f'<p class="found">{as_text(line)}</p>' for line in lines),
        "command": as_text(command.removeprefix("next: ")),
        "images": "\n".join(_entry(*entry) for entry in entries),
    }
    cli.write_text(path, filled("noise_page.html", parts))
    return str(path)


def _entry(name, image, found):
    """The section of an image."""
    parts = [f"<h2>{as_text(name)}</h2>", f'<p class="note">{as_text(found.describe())}</p>', '<div class="row">']
    if found.kind != "none":
        parts += [_curve(found), _correlation(found), _spectrum(found)]
    parts.append(_places(image, found))
    return "\n".join([*parts, "</div>"])


def _curve(found):
    """The deviation at each brightness: points as measured, and lines as fitted where the noise is white."""
    is_line = found.kind != "correlated"  # a camera's tone curve bends it
    width, height, left, bottom, top = 480, 260, 40, 34, 10
    deepest = max(float(np.sqrt(found.points[..., 1].max()) * 255), found.sigma)
    power = 10.0 ** np.floor(np.log10(max(deepest, 0.5) / 6))  # floats may be counts: any number
    step = next(s for s in power * np.array((0.5, 1, 2, 5, 10, 20)) if 1.1 * deepest <= 6 * s)
    high = step * np.ceil(1.1 * deepest / step)
    brightest = max(1e-6, float(found.points[..., 0].max()))
    wide = 255 if brightest > 0.3 else 255 * brightest * 1.05

    def at(x, y):
        return (
            round(left + (width - left - 8) * x / wide, 1),
            round(height - bottom - (height - bottom - top) * y / high, 1),
        )

    parts = [f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="noise at each brightness">']
    for y in np.arange(0, high + step / 2, step):
        (x0, y0), (x1, _) = at(0, y), at(wide, y)
        parts.append(f'<line class="grid" x1="{x0}" x2="{x1}" y1="{y0}" y2="{y0}"/>')
        parts.append(f'<text x="{x0 - 6}" y="{y0 + 4}" text-anchor="end">{y:g}</text>')
    for x in np.linspace(0, wide, 6):
        parts.append(f'<text x="{at(x, 0)[0]}" y="{height - 18}" text-anchor="middle">{x:.3g}</text>')
    parts.append(f'<text x="{(left + width) / 2}" y="{height - 3}" text-anchor="middle">brightness of 255</text>')
    for name, points, (a, b) in zip(channel_names(len(found.curve)), found.points, found.curve, strict=True):
        colour = PAINT.get(name, COLOURS[0])
        if is_line:
            xs = np.linspace(0, wide / 255, 60)
            ys = np.sqrt(np.maximum(a * xs + b, 0)) * 255
            line = " ".join("{},{}".format(*at(x * 255, min(y, high))) for x, y in zip(xs, ys, strict=True))
            parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5" opacity="0.7"/>')
        for x, variance in points:
            cx, cy = at(x * 255, np.sqrt(max(variance, 0)) * 255)
            parts.append(f'<circle cx="{cx}" cy="{cy}" r="3" fill="{colour}"><title>{as_text(name)}</title></circle>')
    text = "Standard deviation against brightness, as measured"
    text += "; the lines are a x + b (of the variance) as fitted." if is_line else "."
    return f"<figure>{''.join(parts)}</svg><figcaption>{text}</figcaption></figure>"


def _correlation(found):
    """7 x 7 numbers on a ground that is the deeper, the more pixels have in common."""
    mean = found.correlation.mean(0)
    rows = []
    for row in mean:
        cells = []
        for value in row:
            share = int(round(100 * min(abs(value), 1)))
            ground = f"color-mix(in srgb, {COLOURS[0] if value >= 0 else COLOURS[3]} {share}%, transparent)"
            ink = "; color: #fff" if share > 55 else ""
            cells.append(f'<td style="background: {ground}{ink}">{value:.2f}'.replace("-0.00", "0.00") + "</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    text = "What the noise shares with pixels up to three away: 1 is all, 0 nothing. White noise has the centre alone."
    return f'<figure><table class="map">{"".join(rows)}</table><figcaption>{text}</figcaption></figure>'


def _spectrum(found):
    """The DCT's energies as 16 x 16 squares, logarithmic, shading at the top left."""
    level = np.log10(np.maximum(found.spectrum.mean(0), 1e-3))
    grey_01 = np.clip((level + 2) / 3, 0, 1)[..., None]
    source = _data_uri(from_01(grey_01.astype(np.float32), np.uint8))
    text = "Its spectrum: slow changes at the top left, a checkerboard at the bottom right; three decades are shown."
    return f'<figure><img class="pixels" src="{source}" alt="spectrum"><figcaption>{text}</figcaption></figure>'


def _places(image, found):
    """The image, made smaller, with a frame around each block that was measured."""
    picture = montage.in_colours(_visible(image))
    # A mosaic's places are on its phases, which are half as large.
    unit = 2 if image.shape[2] == 1 and len(found.curve) == 4 else 1
    scale = min(1.0, PICTURE_SIDE / max(picture.shape[:2]))
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    picture = np.ascontiguousarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA))
    for row, column in found.places * unit:
        corner = round(column * scale), round(row * scale)
        end = round((column + SIZE * unit) * scale), round((row + SIZE * unit) * scale)
        cv2.rectangle(picture, corner, end, (255, 190, 0), 1)
    text = (
        f"Where it was measured: {len(found.places)} blocks of 16 x 16 pixels." if len(found.places) else "The image."
    )
    source = _data_uri(picture)
    return (
        f'<figure><img src="{source}" width="{size[0]}" height="{size[1]}" alt="where it was measured">'
        f"<figcaption>{text}</figcaption></figure>"
    )


def _visible(image):
    """The image as uint8; a dark one, as raw files are, is brightened for the eye."""
    image_01 = np.clip(to_01(image), 0, 1)
    top = float(np.quantile(image_01, 0.995))
    return from_01(image_01 if top > 0.4 else (image_01 / max(top, 1e-6)).clip(0, 1) ** np.float32(0.45), np.uint8)


def _data_uri(picture):
    """A PNG as the address of a picture that stands in the page itself."""
    return "data:image/png;base64," + base64.b64encode(images.encode("picture.png", picture)).decode()
