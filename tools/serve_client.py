"""Sends an image, a folder tree or a glob to a denoising service (tools/serve.py), on this machine or another.

Examples:
  python tools/serve_client.py --image_path photos/ --save_dir denoised/
  python tools/serve_client.py --image_path scan.tif --url http://192.168.1.20:8000 --save_dir . --strength 0.7
  python tools/serve_client.py --image_path photos/ --url https://name:password@example.org/denoise --save_dir denoised/

Each result is NAME_denoise in the format of its image. While the service is too busy, it is asked again after the time
that it names. From Python:

    from serve_client import denoise
    png = denoise("http://127.0.0.1:8000", Path("noisy.png").read_bytes())
"""

import base64
import http.client
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote, urlencode, urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's root

from denoising import cli
from denoising.cli import UserError, number
from denoising.files import images, results

TIMEOUT = 600  # seconds without a sign of life; the service gives up sooner
PATIENCE = 600
USUAL = {"detail": 0.0, "chroma": 1.0, "model": None, "fast": False}  # what is not sent: older services know none of it


def get_parser():
    """All flags."""
    parser = cli.Parser(__doc__)
    add = parser.add_argument
    add("--image_path", required=True, help="an image, a folder (searched recursively), or a glob")
    add("--url", default="http://127.0.0.1:8000", help="address of the service")
    add("--save_dir", default="./output/", help="where results go; created if needed")
    add("--strength", type=number(float, 0, 1), default=1.0, help="0 keeps the input, 1 the full effect")
    add("--detail", type=number(float, 0, 1), default=0.0,
        help="how much of the fine texture that went with the noise is given back")  # fmt: skip
    add("--chroma", type=number(float, 0, 1), default=1.0,
        help="how much of the colour noise is removed, apart from brightness")  # fmt: skip
    add("--model", help="one of the models that the service has; by default the service chooses by each image's noise, "
        "if it has several")  # fmt: skip
    add("--fast", action="store_true", help="where the service chooses: light weights, if there are some for the noise")
    add("--jobs", type=number(int, 1, 64), default=4, help="images sent at a time")
    add("--patience", type=number(float, 0), default=PATIENCE,
        help="how many seconds to go on asking while the service is busy")  # fmt: skip
    add("--overwrite", action="store_true", help="replace results that exist")
    return parser


def denoise(url, data, strength=1.0, patience=PATIENCE, name="the image", note=None, **more):
    """Sends the bytes of an image file, and returns those of the denoised one.

    `more` are further parameters of the request: detail, chroma, model, fast. `note`, if given, is called with a line
    that says which model the service took, and why.

    Raises:
        UserError: the service cannot be reached, or refuses; the message names the image and says why.
    """
    end = time.monotonic() + patience
    query = urlencode(
        {"strength": f"{strength:g}"} | {key: f"{value:g}" if key != "model" else value for key, value in more.items()}
    )
    while True:
        status, headers, body = _request(url, "POST", f"/denoise?{query}", data)
        if status == 200:
            if note and "Denoise-Why" in headers:
                note(f"{name}: {headers['Denoise-Model']}: {headers['Denoise-Why']}")
            return body
        after = headers.get("Retry-After", "")
        wait = max(int(after), 1) if after.isdecimal() else 1
        if status != 503 or time.monotonic() + wait > end:
            raise UserError(f"{name}: {_reason(status, body)}")
        time.sleep(wait)


def _request(url, method, path, data=None):
    kind, host, port, base, headers = address_of(url)
    try:
        connection = kind(host, port, timeout=TIMEOUT)
        try:
            headers["Content-Type"] = "application/octet-stream"
            connection.request(method, base + path, body=data, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise UserError(f"--url: {url}: {getattr(error, 'strerror', None) or error or type(error).__name__}") from None


def address_of(url):
    """The kind of connection, host, port and path that an address names, and the headers with its name and password.

    Raises:
        UserError: it is no address of a service.
    """
    try:
        # urlsplit drops line breaks without a word, and spaces would split the request's first line.
        if any(character.isspace() or not character.isprintable() for character in url):
            raise ValueError("it holds spaces or control characters")
        parts = urlsplit(url)
        kind = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}.get(parts.scheme)
        if kind is None or not parts.hostname:
            raise ValueError("an address is http://HOST:PORT")
        if parts.query or parts.fragment:
            raise ValueError("it ends with the path; --strength and other flags set the parameters")
        headers = {}
        if parts.username is not None:  # for a proxy before the service that asks for them
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        return kind, parts.hostname, parts.port, parts.path.rstrip("/"), headers
    except ValueError as error:
        raise UserError(f"--url: {url}: {error}") from None


def _reason(status, body):
    try:
        return json.loads(body)["error"]
    except (ValueError, LookupError, TypeError):
        return f"the answer is {status} {http.client.responses.get(status, '')}".strip()


def denoise_file(options, source, target):
    """Denoises one file; returns what went wrong, or None."""
    try:
        more = {name: getattr(options, name) for name, usual in USUAL.items() if getattr(options, name) != usual}
        data = denoise(options.url, images.read_bytes(source), options.strength, options.patience, source, **more)
        cli.writable_folder("--save_dir", target.parent)
        images.write_bytes(target, data)
    except UserError as error:
        return error
    return None


def main(argv=None):
    """Sends all images, some at a time; those that are refused are reported, and the rest go on."""
    options = get_parser().parse_args(argv)
    address_of(options.url)
    paths = images.find_images("--image_path", options.image_path)
    targets = results.plan(
        "--image_path", paths, options.image_path, options.save_dir, keep_format=True, overwrite=options.overwrite
    )
    pairs = list(zip(paths, targets, strict=True))
    cli.writable_folder("--save_dir", options.save_dir)
    status, _, body = _request(options.url, "GET", "/health")
    if status not in (200, 503) or not body.startswith(b"{"):
        raise UserError(f"--url: {options.url} does not answer as tools/serve.py does ({_reason(status, body)})")
    failed = 0
    with ThreadPoolExecutor(options.jobs) as pool, cli.progress(pairs, unit="image", disable=len(pairs) == 1) as bar:
        errors = pool.map(lambda pair: denoise_file(options, *pair), pairs)
        try:
            for (_, target), error in zip(bar, errors, strict=True):
                if error and len(pairs) == 1:
                    raise error
                failed += error is not None
                bar.write(str(error or target), file=sys.stderr if error else sys.stdout)
        finally:
            pool.shutdown(cancel_futures=True)  # after a Ctrl-C only those under way are waited for
    if failed:
        cli.note(f"{failed} of {len(pairs)} images could not be denoised")
    return 1 if failed else 0


if __name__ == "__main__":
    cli.run(main)
