"""Raw files in predict.py: the mosaic is denoised, and then developed by LibRaw, or written back as DNG.

Before the colours are filled in, noise is what it is in theory: each pixel has its own, and it grows with the light.
The network is told how strong it is. A sensor without a Bayer mosaic is developed first, and its picture denoised.
"""

import numpy as np

from denoising import cli
from denoising.cli import UserError
from denoising.files import images, raw
from denoising.imaging.camera import deviation_at, told_deviation
from denoising.imaging.noise_analysis import sensor_curve
from denoising.imaging.pixels import Picture, pack_bayer
from denoising.inference.denoiser import finite

ARCH = "unet_raw"  # of the networks for mosaics


def check(options, paths):
    """Refuses flags that have no meaning for the raw files among these paths, before any slow step."""
    first = next((path for path in paths if raw.is_raw(path)), None)
    cli.refuse(
        (first and options.report, f"--report: is for images, and {first} is a raw file"),
        (first and options.tta, f"--tta: would turn the mosaic of {first}, whose colours have their places"),
        (first and (options.detail, options.chroma) != (0, 1),
         f"--detail, --chroma: are for images, and {first} is a raw file"),
    )  # fmt: skip


def denoise_file(weights, path, target, note):
    """Denoises one raw file and writes the result.

    Args:
        weights: of `prediction.load`.
        path: of the raw file.
        target: the result's path: a TIFF for the developed picture, a DNG for the mosaic.
        note: what tells what was done, and why.
    """
    with raw.opened(path) as photo:
        as_mosaic = target.suffix.lower() == ".dng"
        denoiser = weights.of_mosaics() if photo.red else None
        if denoiser is None:
            why = photo.kind or "these weights are for developed pictures"
            cli.refuse((as_mosaic, f"--keep_format: {path} cannot become a DNG: {why}"))
            note(f"{path}: {why}: it is developed first, and denoised then")
            pages = [_denoise_developed(weights, path, photo, note)]
        else:
            mosaic = _denoise_mosaic(denoiser, path, photo, note)
            data = photo.as_dng(mosaic) if as_mosaic else None
            pages = [] if as_mosaic else [photo.develop(mosaic)]
    cli.writable_folder("--save_dir", target.parent)
    if as_mosaic:
        images.write_bytes(target, data)
    else:
        images.write_image(target, pages, like=Picture(pages, format="TIFF", exif=photo.exif))


def _denoise_developed(weights, path, photo, note):
    picture = Picture([photo.develop()])
    try:
        taken = weights.take(picture)
        if taken.why:
            note(f"{path}: {taken.why}")
        denoiser = taken.at(0)
        return picture.pages[0] if denoiser is None else finite(denoiser(picture.pages[0]))
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def _denoise_mosaic(denoiser, path, photo, note):
    mosaic = photo.mosaic()
    curve = photo.noise or sensor_curve(pack_bayer(raw.from_red(mosaic, photo.red)[..., None]))
    if curve is None:
        note(f"{path}: the noise cannot be measured: it is developed as it is")
        return mosaic
    source = "as its DNG says" if photo.noise else "measured"
    grey = 255 * float(deviation_at(np.float32(0.18), *curve))
    note(f"{path}: the sensor's noise is {grey:.2f} of 255 at middle grey, {source}")
    try:
        return finite(denoise(denoiser, mosaic, photo.red, curve))
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def denoise(denoiser, mosaic, red, curve):
    """A mosaic without its noise.

    Args:
        denoiser: a Denoiser with a network for mosaics.
        mosaic: H x W float32; black is 0 and white 1.
        red: row and column of the first red pixel.
        curve: (a, b) of the noise, whose variance is a * brightness + b.
    """
    height, width = mosaic.shape
    whole = raw.from_red(mosaic, red)
    denoised = denoiser(np.stack([whole, told_deviation(whole, *curve)], axis=-1))[..., 0]
    denoised = denoised[red[0] : red[0] + height, red[1] : red[1] + width]
    return mosaic + np.float32(denoiser.amount.strength) * (denoised - mosaic)
