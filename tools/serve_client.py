"""Denoises an image, a folder tree or a glob by a service (tools/serve.py), on this machine or another.

Examples:
  python tools/serve_client.py --image_path photos/ --save_dir denoised/
  python tools/serve_client.py --image_path scan.tif --url http://192.168.1.20:8000 --save_dir . --strength 0.7

Results are NAME_denoise in the format that the image has. Where the service is too busy it is asked again after the
time that it names. In Python:

    from serve_client import denoise
    png = denoise("http://127.0.0.1:8000", Path("noisy.png").read_bytes())
"""

import http.client
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's root

from denoising import cli
from denoising.cli import UserError, number
from denoising.files import images

TIMEOUT = 600  # seconds without a sign of life; the service has a shorter one
PATIENCE = 600


def get_parser():
    """All flags."""
    parser = cli.Parser(__doc__)
    parser.add_argument("--image_path", required=True, help="an image, a folder (searched recursively), or a glob")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="of the service")
    parser.add_argument("--save_dir", default="./output/", help="where results go; created if needed")
    parser.add_argument(
        "--strength", type=number(float, 0, 1), default=1.0, help="0 keeps the input, 1 the full effect"
    )
    parser.add_argument("--jobs", type=number(int, 1, 64), default=4, help="images under way at once")
    parser.add_argument(
        "--patience", type=number(float, 0), default=PATIENCE, help="seconds to ask again while the service is busy"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace results that exist")
    return parser


def denoise(url, data, strength=1.0, patience=PATIENCE, name="the image"):
    """The bytes of an image file for those of another.

    Raises:
        UserError: the service cannot be reached, or refuses; the message names the image and says why.
    """
    end = time.monotonic() + patience
    while True:
        status, headers, body = _request(url, "POST", f"/denoise?strength={strength:g}", data)
        if status == 200:
            return body
        after = headers.get("Retry-After", "")
        wait = max(int(after), 1) if after.isdecimal() else 1
        if status != 503 or time.monotonic() + wait > end:
            raise UserError(f"{name}: {_reason(status, body)}")
        time.sleep(wait)


def _request(url, method, path, data=None):
    parts = urlsplit(url)
    kind = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}.get(parts.scheme)
    try:
        if kind is None or not parts.hostname:
            raise ValueError("an address is http://HOST:PORT")
        connection = kind(parts.hostname, parts.port, timeout=TIMEOUT)
        try:
            headers = {"Content-Type": "application/octet-stream"}
            connection.request(method, parts.path.rstrip("/") + path, body=data, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise UserError(f"--url: {url}: {getattr(error, 'strerror', None) or error or type(error).__name__}") from None


def _reason(status, body):
    try:
        return json.loads(body)["error"]
    except (ValueError, LookupError, TypeError):
        return f"the answer is {status} {http.client.responses.get(status, '')}".strip()


def plan(options):
    """Pairs of input and output; none is lost or replaced."""
    root, pairs = Path(options.image_path), []
    for path in images.find_images("--image_path", options.image_path):
        folder = path.parent.relative_to(root) if root.is_dir() else Path()
        target = Path(options.save_dir) / folder / f"{path.stem}_denoise{path.suffix}"
        if target.exists() and not options.overwrite:
            raise UserError(f"--save_dir: {target} exists; --overwrite replaces it")
        pairs.append((path, target))
    return pairs


def denoise_file(options, source, target):
    """One file; returns what went wrong, or None."""
    try:
        data = denoise(options.url, images.read_bytes(source), options.strength, options.patience, source)
        cli.writable_folder("--save_dir", target.parent)
        images.write_bytes(target, data)
    except UserError as error:
        return error
    return None


def main(argv=None):
    """Sends all, some at a time; what is refused is reported and the rest goes on."""
    options = get_parser().parse_args(argv)
    pairs = plan(options)
    cli.writable_folder("--save_dir", options.save_dir)
    status, _, body = _request(options.url, "GET", "/health")
    if status not in (200, 503) or not body.startswith(b"{"):
        raise UserError(f"--url: {options.url} is no service of tools/serve.py ({_reason(status, body)})")
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
