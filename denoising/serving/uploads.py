"""What a request to denoise brings: its parameter, its body, and the image in that body."""

import argparse
import email.message

from aiohttp import web

from denoising.cli import number
from denoising.serving.image_process import Refused


def strength_of(request):
    """The strength that is asked for, which is the only parameter."""
    for name in request.query:
        if name != "strength" or len(request.query.getall(name)) > 1:
            raise Refused(400, "the only parameter is strength, once")
    try:
        return number(float, 0, 1)(request.query.get("strength", "1"))
    except argparse.ArgumentTypeError as error:
        raise Refused(400, f"strength: {error}") from None


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
        raise Refused(400, "no image: POST one as the body, or as a file of a form")
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
