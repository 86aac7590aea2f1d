"""DNG: the mosaic of a sensor as a file that raw converters read, and what such a file says of its noise.

    >>> Path("a.dng").write_bytes(encode(mosaic, red=(0, 0), white_balance=(2.0, 1.0, 1.5)))

A DNG is a TIFF with tags of its own. The files are untrusted, and what they say is checked.
"""

import io

import numpy as np
import tifffile
from PIL import Image

from denoising.files.tiff import DNG_VERSION, MAGIC, TEXT

BLACK, WHITE = 4096, 65535  # of the files that are written: noise has room below black
CAMERA, MAKE, MODEL = 50708, 271, 272  # tags
MATRICES, ILLUMINANTS, NOISE_PROFILE = (50721, 50722), (50778, 50779), 51041
READ = (*MATRICES, *ILLUMINANTS, NOISE_PROFILE)
CFA = 32803  # photometric: a mosaic
BYTE, ASCII, SHORT, LONG, RATIONAL, SRATIONAL = 1, 2, 3, 4, 5, 10
D65 = 21  # daylight, as the tag for a matrix's light names it
# From XYZ to the colours of sRGB, which is taken for a sensor's where its own are not known.
XYZ_TO_SRGB = ((3.2406, -1.5372, -0.4986), (-0.9689, 1.8758, 0.0415), (0.0557, -0.2040, 1.0570))


def pattern(red):
    """The colours of the first two rows and columns, 0 red, 1 green, 2 blue, of a mosaic with the first red there."""
    row, column = red
    return np.roll([[0, 1], [1, 2]], (row, column), (0, 1))


def encode(mosaic_01, red, white_balance, matrix=XYZ_TO_SRGB, orientation=1, exif=b""):
    """Returns the bytes of a file with a Bayer mosaic.

    Args:
        mosaic_01: H x W float, black is 0 and white 1.
        red: row and column, 0 or 1, of the first red pixel.
        white_balance: what red, green and blue are multiplied by, so that grey is grey.
        matrix: 3 x 3, from XYZ to the colours of the sensor.
        orientation: the tag of TIFF that says how the camera was held.
        exif: of whose texts the make and model of the camera and others are taken.
    """
    values = np.clip(np.rint(BLACK + np.asarray(mosaic_01) * np.float32(WHITE - BLACK)), 0, WHITE).astype(np.uint16)
    texts = Image.Exif()
    texts.load(exif)
    texts = {code: str(texts[code]).encode("latin-1") for code in TEXT if code in texts}  # as Pillow decodes them
    name = b" ".join(texts[code] for code in (MAKE, MODEL) if code in texts) or b"Bayer mosaic"
    neutral = 1 / np.array(white_balance, float)
    tags = [
        (274, SHORT, 1, orientation),
        (33421, SHORT, 2, (2, 2)),  # CFARepeatPatternDim
        (33422, BYTE, 4, bytes(pattern(red).ravel().tolist())),  # CFAPattern
        (DNG_VERSION, BYTE, 4, bytes((1, 4, 0, 0))),
        (50707, BYTE, 4, bytes((1, 1, 0, 0))),  # DNGBackwardVersion
        (CAMERA, ASCII, len(name) + 1, name),
        (50710, BYTE, 3, bytes((0, 1, 2))),  # CFAPlaneColor
        (50711, SHORT, 1, 1),  # CFALayout: rectangular
        (50714, LONG, 1, BLACK),
        (50717, LONG, 1, WHITE),
        (MATRICES[0], SRATIONAL, 9, _ratios(matrix)),
        (50728, RATIONAL, 3, _ratios(neutral / neutral.max())),  # AsShotNeutral
        (ILLUMINANTS[0], SHORT, 1, D65),
        *((code, ASCII, len(text) + 1, text) for code, text in texts.items()),
    ]
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(values, photometric="cfa", metadata=None, software=False, extratags=[(*tag, True) for tag in tags])
    return file.getvalue()


def _ratios(values):
    """Numbers as ratios of whole ones, one after the other."""
    return tuple(int(number) for value in np.ravel(values) for number in (round(float(value) * 10000), 10000))


# --- Reading what LibRaw does not tell ------------------------------------------------------------------------


def tags(data):
    """The numbers of a DNG's tags by their codes, of the page that holds the mosaic before those of the first one.

    Of what is no DNG, nothing.

    Raises:
        ValueError: the file ends before its pixels do.
    """
    if data[:4] not in MAGIC:
        return {}
    with tifffile.TiffFile(io.BytesIO(data), is_ome=False) as tif:
        first = tif.pages.first
        pages = [first, *(page.aspage() for page in first.pages or [])]
        if DNG_VERSION not in first.tags:
            return {}
        for page in pages:
            ends = map(sum, zip(page.dataoffsets, page.databytecounts, strict=True))
            if max(ends, default=0) > len(data):
                raise ValueError("cut short")
        pages.sort(key=lambda page: page.photometric == CFA)
        return {tag.code: tag.value for page in pages for tag in page.tags if tag.code in READ}


def noise_profile(found):
    """The noise that a DNG says its camera has, (a, b): the variance in 0..1 is a * brightness + b.

    Of several colours it is the mean. None if the file does not tell.
    """
    try:
        a, b = np.reshape(np.array(found[NOISE_PROFILE], float), (-1, 2)).mean(0)
    except (KeyError, ValueError, TypeError):
        return None
    return (float(a), float(b)) if 0 < a < 1 and 0 <= b < 1 else None


def matrix(found):
    """From XYZ to the colours of the sensor, 3 x 3, in daylight where the file tells that; None if it does not."""
    second = MATRICES[1] in found and found.get(ILLUMINANTS[1]) == D65
    try:
        ratios = np.reshape(np.array(found[MATRICES[second]], float), (3, 3, 2))
        result = ratios[..., 0] / ratios[..., 1]
    except (KeyError, ValueError, TypeError):
        return None
    return result if np.isfinite(result).all() and result.any() else None
