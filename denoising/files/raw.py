"""Raw files of cameras: what LibRaw reads, as the mosaic of the sensor; developed, or written back as DNG.

    >>> with raw.opened(path) as photo:
    ...     if photo.red is not None:
    ...         picture = photo.develop(denoise(photo.mosaic()))

LibRaw (through rawpy, an extra) parses the files within this process. They are untrusted: sizes are checked before
anything is unpacked, and whatever LibRaw refuses ends in a UserError that names the file.
"""

import contextlib
import io
from pathlib import Path

import numpy as np

from denoising.cli import UserError
from denoising.files import dng, images, tiff
from denoising.imaging.pixels import check_size

SUFFIXES = (
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".gpr", ".iiq", ".kdc", ".mef", ".mos",
    ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f",
)  # fmt: skip
BYTES_PER_PIXEL = 8  # that LibRaw takes of an image of four colours
CLIPS = 0.75  # of white; a sensor that reaches this and not white clips earlier than its file says, as LibRaw has it
SRGB = (2.4, 12.92)  # its curve, as LibRaw takes it
# LibRaw's number for how the camera was held, and that of TIFF; software may have mirrored the picture, too.
TURNS = {0: 1, 1: 2, 2: 4, 3: 3, 4: 5, 5: 8, 6: 6, 7: 7}


def is_raw(path):
    """Whether a file's name says that it is a raw file."""
    return Path(path).suffix.lower() in SUFFIXES


@contextlib.contextmanager
def opened(path, data=None):
    """Yields a RawFile, until the end of the block.

    Raises:
        UserError: rawpy is not installed, or LibRaw refuses the file.
    """
    try:
        import rawpy  # an extra
    except ImportError:
        raise UserError(f"{path}: raw files need rawpy: pip install -r requirements-raw.txt") from None
    data = images.read_bytes(path) if data is None else data
    with rawpy.RawPy() as libraw:
        with refusing(path):
            told = dng.tags(data)
            libraw.open_buffer(io.BytesIO(data))
            sizes = libraw.sizes
            check_size(path, data, [(sizes.raw_height, sizes.raw_width)], BYTES_PER_PIXEL)
            libraw.unpack()
            photo = RawFile(path, data, libraw, told)
        yield photo


@contextlib.contextmanager
def refusing(path):
    """Turns whatever LibRaw and others raise over a bad file into one line that names the file."""
    import rawpy

    with images.refusing(path):
        try:
            yield
        except rawpy.LibRawError as error:
            reason = error.args[0] if error.args else type(error).__name__
            reason = reason.decode(errors="replace") if isinstance(reason, bytes) else reason
            raise UserError(f"{path}: LibRaw cannot read it: {reason}") from None


class RawFile:
    """An unpacked raw file.

    Attributes:
        red: row and column, 0 or 1, of the first red pixel of a Bayer mosaic; None if the sensor has none.
        kind: what it has instead, for people.
        noise: (a, b), where the file tells it: the variance in 0..1 is a * brightness + b.
    """

    def __init__(self, path, data, libraw, told):
        self.path, self.libraw = path, libraw
        self.red, self.kind = _place_of_red(libraw)
        self.noise, self._matrix = dng.noise_profile(told), dng.matrix(told)
        self._brightest = 1.0
        self.exif = b""
        with contextlib.suppress(Exception):  # hostile bytes; texts are no more than an extra
            self.exif = tiff.texts(data)

    def mosaic(self):
        """The visible part of the sensor, H x W float32: black is 0, white 1, and noise goes below black."""
        black = np.array(self.libraw.black_level_per_channel, np.float32)
        mosaic = self.libraw.raw_image_visible.astype(np.float32)
        for row in (0, 1):
            for column in (0, 1):
                mosaic[row::2, column::2] -= black[_colour(self.libraw, row, column)]
        mosaic /= max(self.libraw.white_level - black.min(), np.float32(1))
        self._brightest = float(mosaic.max())
        return mosaic

    def develop(self, mosaic=None, **more):
        """The picture that LibRaw makes of the file, or of a mosaic in its place: H x W x 3 uint16, upright, in sRGB.

        The camera's white balance is taken. A mosaic comes from `mosaic` and has its size. In `more` are further
        options of rawpy's `postprocess`.
        """
        options = {"use_camera_wb": True, "output_bps": 16, "gamma": SRGB, **more}
        if mosaic is not None:
            # In finer steps than the camera's: without noise, those would show.
            span = dng.WHITE - dng.BLACK
            values = np.rint(dng.BLACK + mosaic * np.float32(span))
            self.libraw.raw_image_visible[:] = np.clip(values, 0, dng.WHITE)
            white = self._brightest if CLIPS < self._brightest < 1 else 1
            options |= {"user_black": dng.BLACK, "user_cblack": [0] * 4, "user_sat": round(span * white)}
        with refusing(self.path):
            return self.libraw.postprocess(**options)

    def as_dng(self, mosaic):
        """The bytes of a DNG with a mosaic in place of the file's own."""
        libraw = self.libraw
        choices = (np.array(found[:3], float) for found in (libraw.camera_whitebalance, libraw.daylight_whitebalance))
        balance = next((found for found in choices if np.isfinite(found).all() and (found > 0).all()), np.ones(3))
        matrix = libraw.rgb_xyz_matrix[:3] if self._matrix is None else self._matrix
        matrix = matrix if np.isfinite(matrix).all() and matrix.any() else dng.XYZ_TO_SRGB
        return dng.encode(mosaic, self.red, balance, matrix, TURNS.get(libraw.sizes.flip, 1), self.exif)


def _place_of_red(libraw):
    """Row and column of the first red pixel, and None; or None, and what the sensor is instead."""
    if libraw.raw_image.ndim != 2:
        return None, "all colours are there at each pixel"
    try:
        size = len(libraw.raw_pattern)
    except NotImplementedError:
        size = 0
    if size != 2:
        return None, {1: "the sensor sees no colours", 6: "an X-Trans mosaic"}.get(size, "no Bayer mosaic")
    first = "".join(chr(libraw.color_desc[_colour(libraw, row, column)]) for row in (0, 1) for column in (0, 1))
    for red in ((0, 0), (0, 1), (1, 0), (1, 1)):
        if first == "".join("RGB"[number] for number in dng.pattern(red).ravel()):
            return red, None
    return None, "a mosaic of other colours than red, green and blue"


def _colour(libraw, row, column):
    """The number of the colour at a place of the visible part."""
    sizes = libraw.sizes
    return libraw.raw_color(sizes.top_margin + row, sizes.left_margin + column)


def from_red(mosaic, red):
    """The mosaic, continued by reflection so that its first pixel is red and both sides are even."""
    ends = [(first, (first + side) % 2) for first, side in zip(red, mosaic.shape, strict=True)]
    return np.pad(mosaic, ends, "reflect") if np.any(ends) else mosaic
