"""The formats in which a result is sent: the upload's own, one to be shown, or another to be kept."""

from dataclasses import replace

import numpy as np

from denoising.imaging import camera, pixels

SRGB = camera.curves(contrast=0)[0]  # from linear light
# What `format` may ask for beside the upload's own, and what it becomes.
KINDS = {"view": "PNG", "png": "PNG", "tiff": "TIFF", "jpeg": "JPEG"}


def prepared(pages, kind):
    """The pages that are denoised: for a TIFF in 16 bits, so that what lies between two shades of 8 bits is kept."""
    if kind == "tiff":
        return [page.astype(np.uint16) * 257 if page.dtype == np.uint8 else page for page in pages]
    return pages


def converted(pages, picture, kind):
    """The pages, and the picture beside them, as they are encoded; `view` is the first page, for any browser."""
    if kind == "own":
        return pages, picture
    is_light = picture.format == "EXR"
    if kind == "view":
        # Without alpha: what is transparent has noise too.
        picture = pixels.Picture(pages=[], format="PNG", icc=picture.icc, png=picture.png)
        pages = pages[:1]
    else:
        if picture.alpha and _is_multiplied(picture, kind):
            pages = [_divided(page, alpha) for page, alpha in zip(pages, picture.alpha, strict=True)]
        picture = replace(picture, format=KINDS[kind])
    # PNG holds no floating point, and JPEG 8 bits alone.
    if kind in ("view", "jpeg") or (kind == "png" and pages[0].dtype == np.float32):
        dtype = np.uint16 if kind == "png" else np.uint8
        if is_light:  # as neither of the two holds it: dark places would be too dark
            pages = [camera.through(page, SRGB) for page in pages]
        pages = [pixels.from_01(pixels.to_01(page), dtype) for page in pages]
        if picture.alpha:
            picture.alpha = [pixels.from_01(pixels.to_01(plane), dtype) for plane in picture.alpha]
    return pages, picture


def _is_multiplied(picture, kind):
    """Whether colours are multiplied by their alpha, as in EXR and some TIFF, and what they become has them apart."""
    return picture.format == "EXR" or (picture.tiff.get("alpha") == 1 and kind != "tiff")


def _divided(page, alpha):
    """The colours themselves; black where nothing is to be seen of them."""
    share = pixels.to_01(alpha)[..., None]
    colours = np.divide(pixels.to_01(page), share, out=np.zeros(page.shape, np.float32), where=share > 0)
    return pixels.from_01(colours, page.dtype)
