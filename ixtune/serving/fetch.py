"""Load a file from a public http or https URL, with bounds on redirects and bytes; private networks are refused.

Each hop's name is resolved once and the connection goes to the address that was checked, so a name that changes its
address between the check and the connection is no risk.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import time
import urllib.parse
from contextlib import suppress

from ixtune.serving.errors import ApiError, bad_request

MAX_REDIRECTS = 3
SECONDS = 15.0
"""Maximum time of a whole download, redirects included."""
_BLOCK = 64 << 10
_ACCEPT = "image/*,application/pdf;q=0.9"
_REDIRECTS = (301, 302, 303, 307, 308)


def fetch(url: str, max_bytes: int, param: str) -> bytes:
    """Return the content of a URL.

    Args:
        url: An http or https URL.
        max_bytes: Maximum size of the content.
        param: Its place in the request, for error messages.

    Raises:
        ApiError: The URL is not public, the server fails, or the content is too large.
    """
    deadline = time.monotonic() + SECONDS
    try:
        for _ in range(MAX_REDIRECTS + 1):
            found = _get(url, max_bytes, deadline, param)
            if isinstance(found, bytes):
                return found
            url = found
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        raise _failed("the image's server cannot be reached, or answers too slowly", param) from error
    raise _failed(f"more than {MAX_REDIRECTS} redirects", param)


def _get(url: str, max_bytes: int, deadline: float, param: str) -> bytes | str:
    """Return the content of a URL, or the redirect's target."""
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise bad_request("the image's URL is malformed", param, "bad_image_field") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise bad_request("the image's URL is malformed", param, "bad_image_field")
    address = public_address(parts.hostname, port, param)
    connection = _Pinned(parts.hostname, port, address, parts.scheme == "https", _left(deadline))
    # a socket's timeout starts anew with every byte
    timer = threading.Timer(_left(deadline), connection.abort)
    timer.daemon = True
    timer.start()
    try:
        target = urllib.parse.quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._") + (
            f"?{urllib.parse.quote(parts.query, safe='/%:@!$&()*+,;=~-._?')}" if parts.query else ""
        )
        connection.request("GET", target, headers={"Accept": _ACCEPT, "User-Agent": "ixtune", "Connection": "close"})
        response = connection.getresponse()
        if response.status in _REDIRECTS:
            return urllib.parse.urljoin(url, response.getheader("Location") or "")
        if response.status != 200:  # noqa: PLR2004
            raise _failed(f"the image's server answers {response.status}", param)
        return _body(response, max_bytes, deadline, param)
    finally:
        timer.cancel()
        connection.close()


def public_address(host: str, port: int, param: str) -> str:
    """Return an address of a host, after checking that all its addresses are public.

    Raises:
        ApiError: There is none, or one of them is in a private network, or is this machine.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise _failed("the image's server cannot be resolved", param) from error
    addresses = [str(one[4][0]) for one in found]
    for address in addresses:
        if not _is_public(address):
            raise bad_request(
                "the image's URL points into a private network or to this machine", param, "private_address"
            )
    return addresses[0]


def _is_public(address: str) -> bool:
    one = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(one, ipaddress.IPv6Address):
        inner = one.ipv4_mapped or one.sixtofour or (one.teredo[1] if one.teredo else None)
        if inner is not None and not _is_public(str(inner)):
            return False
        if one in ipaddress.ip_network("64:ff9b::/96") and not _is_public(
            str(ipaddress.IPv4Address(int(one) & 0xFFFFFFFF))
        ):
            return False
    return one.is_global and not one.is_multicast


class _Pinned(http.client.HTTPConnection):
    """Connection to one checked address under the host's name."""

    def __init__(self, host: str, port: int, address: str, secure: bool, timeout: float) -> None:
        super().__init__(host, port, timeout=timeout)
        self._address, self._secure = address, secure
        self._open: socket.socket | None = None  # while a body is read, `sock` is the response's and None here

    def connect(self) -> None:
        """Connect to the checked address, and verify the host's name if it is https."""
        self.sock = socket.create_connection((self._address, self.port), self.timeout)
        if self._secure:
            self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.host)
        self._open = self.sock

    def abort(self) -> None:
        """End the connection from another thread."""
        if self._open is not None:
            with suppress(OSError):
                self._open.shutdown(socket.SHUT_RDWR)


def _body(response: http.client.HTTPResponse, max_bytes: int, deadline: float, param: str) -> bytes:
    parts, size = [], 0
    while True:
        part = response.read1(_BLOCK)
        _left(deadline)
        if not part:
            break
        size += len(part)
        if size > max_bytes:
            raise ApiError(
                413, f"the image is larger than {max_bytes >> 20} MiB; scale it down", param=param,
                code="picture_too_large",
            )  # fmt: skip
        parts.append(part)
    if response.length:
        raise _failed("the image's server ended the download early", param)
    return b"".join(parts)


def _left(deadline: float) -> float:
    """Return the seconds that are left.

    Raises:
        TimeoutError: None.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _failed(what: str, param: str) -> ApiError:
    return bad_request(f"{what}; send the image as a data: URL", param, "picture_remote")
