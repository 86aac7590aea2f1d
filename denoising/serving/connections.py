"""The service's connections, their number and their deadlines, and the address that it listens on."""

import contextlib
import ipaddress
import re
import socket

from aiohttp import web

from denoising.cli import UserError
from denoising.serving.image_process import Refused

HEADER_SECONDS = 10  # in which the first line and the headers of a request must have come
LINGER_SECONDS = 5  # for which an upload is still read after its answer: a client that is writing sees no answer before
TOO_MANY = b'{"error": "too many connections"}\n'


class Connection(web.RequestHandler):
    """A connection of aiohttp with a deadline whatever its state, a limit to their number, and errors as JSON."""

    def __init__(self, http, service):
        options = {"access_log": None, "auto_decompress": False, "lingering_time": LINGER_SECONDS}
        super().__init__(http, loop=service.loop, **options)
        self.service, self.busy, self.peer = service, False, "?"

    def connection_made(self, transport):
        """Counts the connection, or turns it away."""
        self.wire = transport
        self.peer = (transport.get_extra_info("peername") or "?")[0]
        self.deadline = self.service.loop.time() + HEADER_SECONDS
        super().connection_made(transport)
        if len(self.service.connections) >= self.service.options.max_connections:
            self.service.metrics.requests.add(1, "other", "503")
            transport.write(
                b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\n"
                b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(TOO_MANY), TOO_MANY)
            )
            self.force_close()
        self.service.connections.add(self)

    def connection_lost(self, exc):
        """Forgets the connection."""
        self.service.connections.discard(self)
        super().connection_lost(exc)

    def abort(self):
        """Ends the connection at once, even if the other side reads nothing."""
        self.force_close()
        self.wire.abort()

    def handle_error(self, request, status=500, exc=None, message=None):
        """Answers what is no HTTP."""
        self.service.count(self, "other", str(status), self.service.loop.time(), "malformed")
        response = error_response(Refused(status, "this is no valid HTTP request"))
        response.force_close()
        return response


def error_response(refusal):
    """The answer to what was refused: its line as JSON, with its status and headers."""
    return web.json_response({"error": refusal.message}, status=refusal.status, headers=refusal.headers)


# --- Addresses --------------------------------------------------------------------------------------------


def bound_socket(host, port):
    """A socket that has the address but does not listen yet: a mistake shows before the network is loaded."""
    with naming_the_address((host, port)):
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    return listener


@contextlib.contextmanager
def naming_the_address(address):
    """Turns what the system reports about an address into a refusal of one line."""
    host, port = address
    try:
        yield
    except (socket.gaierror, UnicodeError) as error:
        raise UserError(f"--host: {host}: {getattr(error, 'strerror', error)}") from None
    except OSError as error:
        raise UserError(f"--host, --port: {host}, {port}: {error.strerror or error}") from None


def url_of(listener):
    """The address as one types it."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def is_loopback(listener):
    """Whether only this machine reaches the address."""
    host = listener.getsockname()[0]
    return host.startswith("127.") or host == "::1"


def is_own(host, names):
    """Whether a Host header calls the service by an address, as localhost or by one of these names, or is empty.

    A page of another site can make its own name lead to this machine, and read the answers; but it calls it by that
    name. Only names can be led elsewhere.
    """
    name = _name_in(host)
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name in ("", "localhost", *map(_name_in, names)) or name.endswith(".localhost")
    return True


def _name_in(host):
    """A Host header without its port, the brackets of IPv6 and a dot at its end."""
    return re.sub(r":\d*$", "", host).strip("[]").rstrip(".").lower()
