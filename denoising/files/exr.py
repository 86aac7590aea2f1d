"""OpenEXR: linear light of any range in 16- or 32-bit floats, with further layers (albedo, depth) beside the image.

The official library decodes: every compression, tiles too; of several parts the first. It answers a broken file with
no parts, or an exception, and with remarks of its own on stderr, which are taken away.
"""

import contextlib
import io
import numbers
import os
import tempfile
import threading

import numpy as np

from denoising.cli import UserError
from denoising.imaging.pixels import Picture, check_size, known_dtype

MAGIC = b"\x76\x2f\x31\x01"
# Where the image may lie: at the top, as most programs have it, or in a layer that is called so (Blender, Mitsuba).
IMAGE_LAYERS = ("", "combined", "beauty", "render", "img")
HALF_MAX = 65504.0
# What a header may tell beside the pixels: owner, comments, colours, camera, place in the whole frame.
PLAIN = (str, numbers.Real, tuple, list, np.ndarray)
OF_THE_FILE = ("channels", "chunkCount", "version")  # of no other file than the one that was read
REMARKS = (b"<python_buffer>", b"Warning: Exception raised reading pixel data")
_stderr = threading.Lock()


def size(file):
    """Returns (height, width) of an open file."""
    return _extent(_open(file, "the file", header_only=True).header())


def decode(data, path):
    """Returns the image as a Picture of float32; its other layers are kept in `exr`.

    Raises:
        UserError: deep or subsampled pixels, or no image among the channels.
    """
    header = _open(io.BytesIO(data), path, header_only=True).header()
    if header["type"].name.startswith("deep"):
        raise UserError(f"{path}: deep images, of several depths per pixel, are not read")
    if any(channel.xSampling != 1 or channel.ySampling != 1 for channel in header["channels"]):
        raise UserError(f"{path}: subsampled channels (luminance and chroma) are not read; save it as RGB")
    check_size(path, data, [(*_extent(header), len(header["channels"]))], 4)
    channels = {name: channel.pixels for name, channel in _open(io.BytesIO(data), path).channels().items()}
    names = _image_names(list(channels), path)
    image = [channels.pop(name) for name in names]
    half = all(plane.dtype == np.float16 for plane in image)
    image = [known_dtype(plane, path) for plane in image]
    return Picture(
        pages=[np.stack(image[: 1 if len(image) < 3 else 3], axis=2)],
        alpha=[image[-1]] if len(image) in (2, 4) else None,
        format="EXR",
        exr={"half": half, "layers": channels, "attributes": _attributes(header), "within": _within(names[0])},
    )


def layer(picture, name):
    """The layer of three channels whose name ends so, H x W x 3 float32, e.g. "albedo"; None if there is none.

    Where a program writes several pictures into a file, it is that of the image.
    """
    found = {}
    for channel, plane in picture.exr.get("layers", {}).items():
        where, _, component = channel.rpartition(".")
        if where.lower().endswith(name) and where.startswith(picture.exr.get("within", "")):
            found.setdefault(where, {})[component.upper()] = plane
    for planes in found.values():
        for components in ("RGB", "XYZ"):
            if all(component in planes for component in components):
                return np.stack([planes[component] for component in components], axis=2).astype(np.float32)
    return None


def encode(page, like):
    """Returns the bytes of a scanline file, losslessly compressed; `page` is H x W x 1, 2, 3 or 4, float32."""
    library = _library()
    about = like.exr if like.format == "EXR" else {}
    # What came as 16-bit floats goes as such, unless its values have grown too large for them.
    half = about.get("half") and np.abs(page).max() <= HALF_MAX
    names = {1: "Y", 2: "YA", 3: "RGB", 4: "RGBA"}[page.shape[2]]
    planes = {name: page[..., i].astype(np.float16 if half else np.float32) for i, name in enumerate(names)}
    planes |= {name: plane for name, plane in about.get("layers", {}).items() if plane.shape == page.shape[:2]}
    planes = {name: np.ascontiguousarray(plane) for name, plane in planes.items()}
    header = {"compression": library.ZIP_COMPRESSION, "type": library.scanlineimage}
    attributes = about.get("attributes", {})
    if attributes and _extent(attributes) != page.shape[:2]:  # its place in the frame is another now
        attributes = {name: value for name, value in attributes.items() if name not in ("dataWindow", "displayWindow")}
    try:
        return _written(library.File(attributes | header, planes, num_threads=0))
    except (RuntimeError, TypeError, ValueError):  # an attribute that is not of its name's kind is read, not written
        return _written(library.File(header, planes, num_threads=0))


def _written(image):
    file = io.BytesIO()
    image.write(file)
    return file.getvalue()


def _attributes(header):
    """What can be handed to another process and written again; previews and the like show what was there before."""
    return {name: value for name, value in header.items() if isinstance(value, PLAIN) and name not in OF_THE_FILE}


def _extent(header):
    (left, top), (right, bottom) = header["dataWindow"]
    return int(bottom) - int(top) + 1, int(right) - int(left) + 1


def _within(name):
    """What a channel's name has before its layer: "ViewLayer." of "ViewLayer.Combined.R"."""
    return "".join(name.rpartition(".")[0].rpartition(".")[:2])


def _image_names(names, path):
    """The channels of the image: R G B, R G B A, Y or Y A of the first layer that has them."""
    layers = {}
    for name in names:
        where, _, component = name.rpartition(".")
        layers.setdefault(where, {})[component] = name
    for wanted in IMAGE_LAYERS:
        for found in (layers[where] for where in layers if where.lower().rpartition(".")[2] == wanted):
            for components in ("RGB", "Y"):
                if all(component in found for component in components):
                    return [found[component] for component in (*components, "A") if component in found]
    listed = " ".join(sorted(names)[:12]) or "none"
    raise UserError(f"{path}: no channels R G B or Y, its channels are: {listed}")


# --- The library ------------------------------------------------------------------------------------------


def _library():
    try:
        import OpenEXR
    except ImportError:
        raise UserError("EXR files need a package: pip install OpenEXR") from None
    return OpenEXR


def _open(file, path, header_only=False):
    library = _library()
    with _without_remarks():
        opened = library.File(file, separate_channels=True, header_only=header_only, num_threads=0)
    if not opened.parts:
        raise UserError(f"{path}: broken or cut short")
    return opened


@contextlib.contextmanager
def _without_remarks():
    """Takes the library's lines from what is written to stderr meanwhile; other lines come a moment later."""
    with _stderr, tempfile.TemporaryFile() as caught:
        try:
            before = os.dup(2)
        except OSError:  # there is no stderr
            yield
            return
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(before, 2)
            os.close(before)
            caught.seek(0)
            others = [line for line in caught if not line.startswith(REMARKS)]
            if others:
                os.write(2, b"".join(others))
