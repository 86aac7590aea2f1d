"""A simulated camera: what its sensor sees of a scene, and what its software makes of that.

The scene is taken apart as by Brooks et al. (Unprocessing Images for Learned Raw Denoising, CVPR 2019): tone curve,
gamma, colours and white balance are undone. The sensor adds shot and read noise behind its mosaic of colours. Then the
camera's software does what makes the noise of photographs so unlike the sensor's: it fills in the mosaic, balances the
colours, smooths, sharpens and scales, rounds to 8 bits and compresses.

    >>> settings = draw_settings(np.random.default_rng(1), deviation=5)
    >>> shots = [shoot(scene, settings, np.random.default_rng(seed)) for seed in (2, 3)]  # differ in noise alone
"""

import functools
from dataclasses import dataclass, replace

import cv2
import numpy as np

GREY = 0.18  # what photographers call middle grey, in linear light
CURVE_STEPS = 4096
CLEANEST, NOISIEST = 1.5, 16.0  # deviations of the sensor at middle grey, of 255: base to highest sensitivity
# The share of files that were developed without noise reduction, as raw files often are by hand, and of these of those
# that were not compressed, either.
PLAIN, UNCOMPRESSED = 0.3, 0.7


@dataclass(frozen=True)
class Settings:
    """One camera, one exposure. All that does not differ between two shots of a scene."""

    blur: float  # radius of the lens's blur, in the sensor's pixels; 0: none
    shot: float  # variance of the sensor's noise per unit of light, white being 1
    read: float  # variance of the sensor's noise in the dark
    exposure: float  # how much of the sensor's range the scene takes
    gains: tuple  # of the white balance
    colours: np.ndarray  # 3x3, from the sensor's colours to those of the screen
    contrast: float  # 0..1, of the tone curve
    signed: bool  # whether the software keeps what lies below black until the end
    demosaicking: str
    chroma: float  # radius of the smoothing of colours; 0: none
    smoothing: str  # of brightness
    smoothing_amount: float
    sharpening: float
    sharpening_radius: float
    scale: float  # from the sensor's pixels to those of the file
    quality: int  # of the JPEG; 0: none
    sampling: int  # of its chroma
    corner: tuple  # where the image lies in the blocks of the JPEG


def draw_settings(rng, deviation):
    """Draws a camera whose sensor has noise of this deviation (of 255) at middle grey."""
    shot, read = sensor_noise((deviation / 255) ** 2, rng.normal() * 0.26)
    keep = rng.uniform(1.1, 1.8, 3)  # how much the software sets the colours apart, and from which of the others
    share = rng.uniform(0.3, 0.7, 3)
    off = 1 - keep
    colours = np.array(
        [
            [keep[0], off[0] * share[0], off[0] * (1 - share[0])],
            [off[1] * share[1], keep[1], off[1] * (1 - share[1])],
            [off[2] * (1 - share[2]), off[2] * share[2], keep[2]],
        ],
        np.float32,
    )
    scales = [1.0, rng.uniform(0.5, 0.95), rng.uniform(1.05, 1.6)]
    settings = Settings(
        blur=float(rng.uniform(0.4, 1.1)) * (rng.random() < 0.6),
        shot=shot,
        read=read,
        exposure=float(rng.uniform(0.5, 1.0)),
        gains=(float(rng.uniform(1.4, 2.4)), 1.0, float(rng.uniform(1.3, 2.2))),
        colours=colours,
        contrast=float(rng.uniform(0.2, 1.0)) * (rng.random() < 0.6),
        signed=bool(rng.random() < 0.5),
        demosaicking=str(rng.choice(["bilinear", "malvar", "hamilton"], p=[0.25, 0.35, 0.4])),
        chroma=float(np.exp(rng.uniform(np.log(1), np.log(8)))) * (rng.random() < 0.9),
        smoothing=str(rng.choice(["none", "gaussian", "bilateral", "median"], p=[0.2, 0.4, 0.3, 0.1])),
        smoothing_amount=float(rng.random()),
        sharpening=float(rng.uniform(0.2, 1.0)) * (rng.random() < 0.5),
        sharpening_radius=float(rng.uniform(0.6, 1.4)),
        scale=float(scales[rng.choice(3, p=[0.55, 0.2, 0.25])]),
        quality=int(rng.integers(75, 101)) if rng.random() < 0.9 else 0,
        sampling=int(rng.choice(list(SAMPLINGS))),
        corner=tuple(int(place) for place in rng.integers(0, 16, 2)),
    )
    if rng.random() < PLAIN:
        quality = 0 if rng.random() < UNCOMPRESSED else settings.quality
        settings = replace(settings, chroma=0.0, smoothing="none", sharpening=0.0, quality=quality)
    return settings


def sensor_noise(variance, deviation_of_read=0.0):
    """Shot and read noise that together have this variance at middle grey, in the proportion of real sensors."""
    shot = variance / GREY
    for _ in range(30):
        read = read_noise(shot, deviation_of_read)
        shot = variance / (GREY + read / shot)
    return float(shot), float(variance - GREY * shot)


def read_noise(shot, deviation=0.0):
    """The read noise of real sensors with such shot noise, which Brooks et al. found so, give or take 0.26."""
    return np.exp(2.18 * np.log(shot) + 1.20 + deviation)


def shoot(scene, settings, rng):
    """One shot of a scene, H x W x 3 or H x W (a monochrome camera), float32 in 0..1: the same shape, in 8-bit steps.

    With settings of no noise this is what the camera makes of the scene by itself.
    """
    height, width = scene.shape[:2]
    forward, backward = curves(settings.contrast)
    light = through(np.asarray(scene, np.float32), backward)
    if settings.scale != 1:
        size = [max(2, round(side / settings.scale / 2) * 2) for side in (width, height)]
        light = cv2.resize(light, size, interpolation=cv2.INTER_CUBIC if settings.scale < 1 else cv2.INTER_AREA)
    if settings.blur:
        light = cv2.GaussianBlur(light, (0, 0), settings.blur)
    colour = scene.ndim == 3
    rgb = sense_colours(light, settings, rng) if colour else sense(settings.exposure * light, settings, rng)
    rgb = through(rgb if colour else rgb / settings.exposure, forward)
    rgb = finish(rgb, settings)
    if settings.scale != 1:
        smaller = settings.scale < 1
        rgb = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)
    rgb = np.clip(rgb * 255 + 0.5, 0, 255).astype(np.uint8)
    return (through_jpeg(rgb, settings) if settings.quality else rgb).astype(np.float32) / 255


# --- The sensor ---------------------------------------------------------------------------------------------


def sense(light, settings, rng):
    """What the sensor's pixels read: with noise, and clipped at white, in 14 bits."""
    noisy = light + deviation_at(light, settings.shot, settings.read) * rng.standard_normal(light.shape, np.float32)
    noisy = np.rint(noisy * 16383) / np.float32(16383)
    return np.clip(noisy, -1 if settings.signed else 0, 1)


def deviation_at(light, shot, read):
    """The standard deviation of the sensor's noise at each pixel."""
    return np.sqrt(np.float32(shot) * np.maximum(light, 0) + np.float32(read))


def told_deviation(mosaic, shot, read):
    """The standard deviation of the noise as far as a noisy mosaic tells it, H x W.

    The light at a pixel is taken to be the mean of the nine nearest ones of its colour: by itself, a pixel that is dark
    by chance would pass for one without noise.
    """
    return deviation_at(filtered(mosaic, SAME_COLOUR), shot, read)


def on_mosaic(scene, settings):
    """The light of a scene, H x W x 3 in 0..1, that falls onto the pixels of the sensor: H x W, 1 is where they clip.

    H and W are even; the first row begins with red.
    """
    light = through(np.asarray(scene, np.float32), curves(settings.contrast)[1])
    if settings.blur:
        light = cv2.GaussianBlur(light, (0, 0), settings.blur)
    return np.clip(behind_filters(light, settings), 0, 1)


def sense_colours(light, settings, rng):
    """Linear light through the mosaic and back: the colours of the screen, still linear."""
    height, width = light.shape[:2]
    odd = [(0, height % 2), (0, width % 2), (0, 0)]
    light = np.pad(light, odd, "edge")
    gains = settings.gains
    noisy = sense(behind_filters(light, settings), settings, rng)
    red, green, blue = mosaic_masks(*light.shape[:2])
    # White is where the first of the colours clips, or highlights would turn pink.
    balanced = noisy * (gains[0] * red + gains[1] * green + gains[2] * blue) / np.float32(settings.exposure)
    rgb = DEMOSAICKINGS[settings.demosaicking](balanced, red, green, blue)
    return cv2.transform(rgb, settings.colours)[:height, :width]


def behind_filters(light, settings):
    """Linear light, H x W x 3, as the sensor's pixels get it, each through the filter of its own colour: H x W."""
    gains = np.array(settings.gains, np.float32)
    to_sensor = np.linalg.inv(settings.colours).astype(np.float32) * (settings.exposure / gains)[:, None]
    sensor = cv2.transform(light, to_sensor)
    red, green, blue = mosaic_masks(*light.shape[:2])
    return sensor[..., 0] * red + sensor[..., 1] * green + sensor[..., 2] * blue


@functools.lru_cache(32)
def mosaic_masks(height, width):
    """Where the sensor sees red, green and blue: 0 or 1, float32 of H x W. The first row begins with red."""
    red, green, blue = (np.zeros((height, width), np.float32) for _ in range(3))
    red[0::2, 0::2] = blue[1::2, 1::2] = 1
    green[0::2, 1::2] = green[1::2, 0::2] = 1
    return red, green, blue


# --- The software -------------------------------------------------------------------------------------------

CROSS = np.array([[0, 1, 0], [1, 4, 1], [0, 1, 0]], np.float32) / 4  # fills in green
SQUARE = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]], np.float32) / 4  # fills in red and blue
SAME_COLOUR = np.zeros((5, 5), np.float32)  # weights of the nine nearest pixels of one colour
SAME_COLOUR[::2, ::2] = SQUARE / 4
# Malvar, He and Cutler: High-quality linear interpolation for demosaicing of Bayer-patterned color images, 2004.
# fmt: off
GREEN_AT_OTHERS = np.array([
    [0, 0, -1, 0, 0], [0, 0, 2, 0, 0], [-1, 2, 4, 2, -1], [0, 0, 2, 0, 0], [0, 0, -1, 0, 0],
], np.float32) / 8
RED_IN_ITS_ROW = np.array([
    [0, 0, 0.5, 0, 0], [0, -1, 0, -1, 0], [-1, 4, 5, 4, -1], [0, -1, 0, -1, 0], [0, 0, 0.5, 0, 0],
], np.float32) / 8
RED_AT_BLUE = np.array([
    [0, 0, -1.5, 0, 0], [0, 2, 0, 2, 0], [-1.5, 0, 6, 0, -1.5], [0, 2, 0, 2, 0], [0, 0, -1.5, 0, 0],
], np.float32) / 8
# fmt: on


def filtered(plane, kernel):
    """The plane under a small kernel; reflection keeps the phase of the mosaic."""
    return cv2.filter2D(plane, -1, kernel, borderType=cv2.BORDER_REFLECT_101)


def bilinear(mosaic, red, green, blue):
    """Each colour is filled in by itself."""
    return np.dstack([filtered(mosaic * red, SQUARE), filtered(mosaic * green, CROSS), filtered(mosaic * blue, SQUARE)])


def malvar(mosaic, red, green, blue):
    """Linear too, with the other colours' second derivative."""
    across, down = filtered(mosaic, RED_IN_ITS_ROW), filtered(mosaic, np.ascontiguousarray(RED_IN_ITS_ROW.T))
    diagonal, others = filtered(mosaic, RED_AT_BLUE), red + blue
    green_by_red = np.zeros_like(green)
    green_by_red[0::2] = green[0::2]  # in rows with red
    green_by_blue = green - green_by_red
    return np.dstack(
        [
            mosaic * red + across * green_by_red + down * green_by_blue + diagonal * blue,
            mosaic * green + filtered(mosaic, GREEN_AT_OTHERS) * others,
            mosaic * blue + across * green_by_blue + down * green_by_red + diagonal * red,
        ]
    )


def hamilton(mosaic, red, green, blue):
    """Along edges, as Hamilton and Adams do: green in the direction that varies less, then differences of colours."""
    row = np.array([[-1, 2, 2, 2, -1]], np.float32) / 4
    slope = np.array([[-1, 0, 2, 0, -1]], np.float32)
    step = np.array([[0, -1, 0, 1, 0]], np.float32)
    estimates, variations = [], []
    for turned in (np.asarray, lambda kernel: np.ascontiguousarray(kernel.T)):
        estimates.append(filtered(mosaic, turned(row)))
        variations.append(np.abs(filtered(mosaic, turned(slope))) + np.abs(filtered(mosaic, turned(step))))
    interpolated = np.where(variations[0] < variations[1], *estimates)
    everywhere = np.where(green > 0, mosaic, interpolated)
    others = mosaic - everywhere
    return np.dstack(
        [everywhere + filtered(others * red, SQUARE), everywhere, everywhere + filtered(others * blue, SQUARE)]
    )


DEMOSAICKINGS = {"bilinear": bilinear, "malvar": malvar, "hamilton": hamilton}


def finish(rgb, settings):
    """Smoothing, of colours more than of brightness, and sharpening, as cameras do both."""
    if rgb.ndim == 3:
        ycc = cv2.cvtColor(rgb, cv2.COLOR_RGB2YCrCb)
        luma, chroma = np.ascontiguousarray(ycc[..., 0]), np.ascontiguousarray(ycc[..., 1:])
        if settings.chroma:
            chroma = cv2.GaussianBlur(chroma, (0, 0), settings.chroma)
    else:
        luma = rgb
    luma = smoothed(luma, settings)
    if settings.sharpening:
        blurred = cv2.GaussianBlur(luma, (0, 0), settings.sharpening_radius)
        luma = luma + np.float32(settings.sharpening) * (luma - blurred)
    return cv2.cvtColor(np.dstack([luma, chroma]), cv2.COLOR_YCrCb2RGB) if rgb.ndim == 3 else luma


def smoothed(luma, settings):
    """Brightness after the camera's own noise reduction."""
    amount = settings.smoothing_amount
    if settings.smoothing == "gaussian":
        return cv2.GaussianBlur(luma, (0, 0), 0.4 + 0.6 * amount)
    if settings.smoothing == "bilateral":
        # What differs by more than a few deviations of the noise is an edge.
        deviation = np.sqrt(settings.shot * GREY + settings.read)
        return cv2.bilateralFilter(luma, 5, float((1 + 3 * amount) * deviation), 1.5)
    if settings.smoothing == "median":
        return luma + np.float32(amount) * (cv2.medianBlur(luma, 3) - luma)
    return luma


def curves(contrast):
    """Tables of CURVE_STEPS numbers: from linear light to the file's values, and back."""
    light = np.linspace(0, 1, CURVE_STEPS)
    value = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    value = value + contrast * (3 * value**2 - 2 * value**3 - value)
    return value.astype(np.float32), np.interp(light, value, light).astype(np.float32)


def through(image, table):
    """Each value by a table, between its entries too: 0..1 goes from its first to its last."""
    place = np.clip(image, 0, 1) * np.float32(CURVE_STEPS - 1)
    below = np.minimum(place.astype(np.int32), CURVE_STEPS - 2)
    return table[below] + (place - below.astype(np.float32)) * (table[below + 1] - table[below])


# --- The file -----------------------------------------------------------------------------------------------

SAMPLINGS = {444: cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444, 422: cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
             420: cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420}  # fmt: skip


def through_jpeg(image, settings):
    """An 8-bit image as JPEG leaves it. A patch was cut out somewhere, so its blocks may begin anywhere."""
    top, left = settings.corner
    height, width = image.shape[:2]
    padded = cv2.copyMakeBorder(image, top, 0, left, 0, cv2.BORDER_REFLECT)
    return as_jpeg(padded, settings.quality, settings.sampling)[top : top + height, left : left + width]


def as_jpeg(image, quality, sampling):
    """The same of a whole image, H x W or H x W x 3."""
    flags = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, SAMPLINGS[sampling]]
    # OpenCV takes and gives colours in the other order.
    data = cv2.imencode(".jpg", image[..., ::-1] if image.ndim == 3 else image, flags)[1]
    decoded = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    return decoded[..., ::-1] if image.ndim == 3 else decoded
