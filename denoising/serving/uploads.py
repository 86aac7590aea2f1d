"""What a request to denoise brings: its parameters, its body, and the image in that body."""

import argparse
import email.message
import re

from aiohttp import web

from denoising.cli import number
from denoising.serving.formats import KINDS
from denoising.serving.image_process import Refused

PARAMETERS = {
    "strength": (number(float, 0, 1), 1.0), "detail": (number(float, 0, 1), 0.0), "chroma": (number(float, 0, 1), 1.0),
    "model": (str, None), "fast": (number(int, 0, 1), 0), "format": (str, "own"), "quality": (number(int, 1, 100), 95),
    "job": (str, None),
}  # fmt: skip


def parameters_of(request, names):
    """What is asked for beside the image: a value for each of some names of PARAMETERS.

    Raises:
        Refused: another parameter, one that is given twice, or a value that it does not take.
    """
    for name in request.query:
        if name not in names or len(request.query.getall(name)) > 1:
            raise Refused(400, f"the parameters are {', '.join(names)}, each once")
    values = {}
    for name in names:
        kind, default = PARAMETERS[name]
        try:
            values[name] = kind(request.query[name]) if name in request.query else default
        except argparse.ArgumentTypeError as error:
            raise Refused(400, f"{name}: {error}") from None
    if values.get("format", "own") not in ("own", *KINDS):
        raise Refused(400, f"format: own, {', '.join(KINDS)}")
    job = values.get("job")
    if job is not None and not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", job):
        raise Refused(400, "job: 1 to 64 letters, digits, - and _")
    return argparse.Namespace(**values)


async def read_body(request, max_bytes, hold):
    """The body, if it is small enough and comes in one of the usual ways.

    Args:
        request: of aiohttp.
        max_bytes: larger bodies are refused, before they are read where their size is known.
        hold: told of the number of bytes whenever some have come.

    Raises:
        Refused: it is too large, empty, malformed or compressed.
    """
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Refused(415, "Content-Encoding: send the image as it is")
    too_large = Refused(413, f"the upload is larger than {max_bytes / 1e6:g} MB")
    if (request.content_length or 0) > max_bytes:
        raise too_large
    expected = request.headers.get("Expect", "").lower()
    if expected not in ("", "100-continue"):
        raise Refused(417, "Expect: only 100-continue is known")
    if expected and not request.content.is_eof():
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # of the answer itself nothing is sent yet
    body = bytearray()
    try:
        async for chunk in request.content.iter_any():
            body += chunk
            hold(len(chunk))
            if len(body) > max_bytes:
                raise too_large
    except (web.RequestPayloadError, web.PayloadAccessError, ValueError):
        raise Refused(400, "the request's body is malformed") from None
    if not body:
        raise Refused(400, "no image: the file is empty, or nothing was sent; POST one as the body, or in a form")
    return bytes(body)


def image_within(body, content_type):
    """The body itself, or the one file of a form.

    Raises:
        Refused: a form that holds anything else.
    """
    header = email.message.Message()
    header["Content-Type"] = content_type
    if header.get_content_maintype() != "multipart":
        return body
    boundary = header.get_param("boundary", "")
    if header.get_content_type() != "multipart/form-data" or not isinstance(boundary, str) or not boundary:
        raise Refused(400, "of multipart bodies, form-data with a boundary is known")
    # Each part stands between two boundaries, each at the start of a line; the last is followed by "--".
    parts = (b"\r\n" + body).split(b"\r\n--" + boundary.encode("utf-8", "surrogateescape"), 3)
    if len(parts) != 3 or not parts[2].startswith(b"--"):
        raise Refused(400, "a form holds one file and nothing else")
    head, blank, data = parts[1].partition(b"\r\n\r\n")
    part = email.message_from_bytes(head.lstrip() + b"\r\n\r\n")
    if not blank or "content-disposition" not in part or part.get("Content-Transfer-Encoding", "binary") != "binary":
        raise Refused(400, "the form is malformed")
    return data
