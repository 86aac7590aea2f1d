"""Pictures side by side with captions: at full resolution into a file, or on the screen.

>>> write_image("montage.png", grid([[(noisy, "noisy 20.31 dB"), (denoised, "denoised 31.02 dB")]], "a title"))
"""

import functools
import itertools
import os
import sys

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from denoising import cli

PAPER, INK, GAP = (255, 255, 255), (32, 33, 36), 8  # colours; pixels between pictures and at the border
FONT_SHARE, LEAST_FONT = 1 / 24, 14  # of the widest picture, so that captions stay readable on a screen that shrinks it


def displayable(image):
    """What is neither grey nor RGB, such as packed raw, becomes the mean of its channels."""
    if image.ndim == 2 or image.shape[2] in (1, 3):
        return image
    return image.mean(axis=2).astype(np.uint8)


def in_colours(image):
    """The same as H x W x 3."""
    image = displayable(image)
    image = image if image.ndim == 3 else image[..., None]
    return np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))


def grid(rows, title=""):
    """Lays pictures out in rows and columns, none of them scaled, each with its caption below.

    Args:
        rows: lists of (image, caption); an image is HWC or HW uint8.
        title: stands above.

    Returns:
        H x W x 3 uint8.
    """
    rows = [[(in_colours(image), _printable(caption)) for image, caption in row] for row in rows]
    font = _font(max(LEAST_FONT, round(FONT_SHARE * max(image.shape[1] for row in rows for image, _ in row))))
    line = round(1.6 * font.size)
    # A row may be shorter than others.
    widths = [[max(image.shape[1], round(font.getlength(caption))) for image, caption in row] for row in rows]
    columns = [max(column) for column in itertools.zip_longest(*widths, fillvalue=0)]
    heights = [max(image.shape[0] for image, _ in row) for row in rows]
    top = GAP + (line if title else 0)
    size = GAP + sum(GAP + width for width in columns), top + sum(heights) + line * len(rows)
    canvas = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(canvas)
    if title:
        draw.text((GAP, top / 2), _shortened(_printable(title), font, canvas.width - 2 * GAP), INK, font, "lm")
    for row, height in zip(rows, heights, strict=True):
        left = GAP
        for (image, caption), width in zip(row, columns, strict=False):
            canvas.paste(Image.fromarray(image), (left, top))
            draw.text((left, top + image.shape[0] + line / 2), caption, INK, font, "lm")
            left += width + GAP
        top += height + line
    return np.asarray(canvas)


def _printable(text):
    return "".join(c if c.isprintable() else "\ufffd" for c in str(text))


@functools.cache
def _font(size):
    import matplotlib  # takes a tenth of a second, and pages need none of it

    # This font comes with it, and has more letters than Pillow's own.
    return ImageFont.truetype(os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)


def _shortened(text, font, width):
    """The text, or as much of it as there is room for."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "\u2026") > width:
        text = text[:-1]
    return text + "\u2026"


# --- The screen ---------------------------------------------------------------------------------------------


def screen():
    """What opens windows, `matplotlib.pyplot`; or None where there is no screen."""
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return None
    try:
        from matplotlib import pyplot

        figure = pyplot.figure()
    except ImportError:  # what MPLBACKEND asks for is not there
        return None
    opens = figure.canvas.required_interactive_framework is not None
    pyplot.close(figure)
    return pyplot if opens else None


def show(pyplot, pictures):
    """Opens a window for each (title, image), in which one can zoom, and waits until all are closed."""
    for title, image in pictures:
        height, width = image.shape[:2]
        scale = min(12 / width, 7 / height)  # inches: a window that a laptop's screen holds
        figure = pyplot.figure(figsize=(width * scale, height * scale))
        figure.canvas.manager.set_window_title(_printable(title))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.imshow(image)
    cli.note("close the windows to go on")
    pyplot.show()
