"""A small HTTPS client for JSON services whose certificate authority is pinned, on the standard library.

The node uses it too, where every import costs start-up time. TLS 1.2 or later, the given CA and no other,
host name checked. There is no way to switch verification off.
"""

from __future__ import annotations

import http.client
import ssl
import urllib.parse
from collections.abc import Mapping

from nodeos.core.errors import NodeosError, RefusedError, UnreachableError, UsageError
from nodeos.core.wire import ParseError, parse_finding, parse_json

MAX_BODY = 8 << 20


def split_url(url: str, scheme: str, port: int) -> tuple[str, int, str]:
    """Host, port (``port`` if it names none) and path of an address. Raises UsageError."""
    try:
        parts = urllib.parse.urlsplit(url)
        found = parts.port
    except ValueError as error:  # a port out of range, half a bracket
        raise UsageError(f"{url}: not an address: {error}") from error
    if "@" in parts.netloc:
        raise UsageError("an address here holds no user name or password")
    if parts.scheme != scheme or not parts.hostname:
        raise UsageError(
            f"{url}: not an {scheme}:// address", hint=f"for example {scheme}://192.0.2.7:{port}"
        )
    return parts.hostname, port if found is None else found, parts.path


def check_folder_url(url: str) -> tuple[str, str, int, str]:
    """Scheme (http or https), host, port and path (with a slash at its end) of a folder. Raises UsageError."""
    scheme = url.partition(":")[0]
    if scheme not in ("http", "https") or any(mark in url for mark in "?#") or not url.isprintable():
        raise UsageError(
            f"{url}: not the address of a folder", hint="for example http://192.0.2.7/releases/1.2.3"
        )
    host, port, path = split_url(url, scheme, 80 if scheme == "http" else 443)
    return scheme, host, port, path.rstrip("/") + "/"


class Client:
    """Talks to one service. ``ca`` is PEM text; ``timeout`` in seconds covers each socket operation."""

    def __init__(self, url: str, *, ca: str, timeout: float = 20) -> None:
        self._host, self._port, prefix = split_url(url, "https", 443)
        self.url = url.rstrip("/")
        self.ca = ca
        self._prefix = prefix.rstrip("/")
        self._timeout = timeout
        # Not create_default_context: with an empty ``ca`` it would trust the system's authorities.
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.verify_flags |= ssl.VERIFY_X509_STRICT
        try:
            self._context.load_verify_locations(cadata=ca)
        except (ssl.SSLError, ValueError, TypeError) as error:
            raise UsageError(f"{url}: the pinned certificate can't be read: {error}") from error
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> bytes:
        """Send one request and return the body of a 2xx answer.

        Raises UnreachableError when nobody answered or the service is busy (429, 503), RefusedError for a
        403 or 409 with its findings, NodeosError for other errors, all with the service's own words.
        """
        connection = http.client.HTTPSConnection(
            self._host, self._port, timeout=self._timeout, context=self._context
        )
        sent = {"Content-Type": "application/json", **(headers or {})}
        try:
            connection.request(method, self._prefix + path, body=body, headers=sent)
            answer = connection.getresponse()
            data = answer.read(MAX_BODY + 1)
        except ssl.SSLCertVerificationError as error:
            raise NodeosError(
                f"{self.url}: its certificate is not the pinned one: {error.verify_message}",
                hint="check the address, and the registrar's CA in the site configuration",
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise UnreachableError(
                f"{self.url}: {error}", hint="check the network and the address"
            ) from error
        finally:
            connection.close()
        if len(data) > MAX_BODY:
            raise NodeosError(f"{self.url}{path}: the answer is larger than {MAX_BODY} bytes")
        if 200 <= answer.status < 300:
            return data
        raise self._error(answer.status, path, data)

    def _error(self, status: int, path: str, data: bytes) -> NodeosError:
        where = f"{self.url}{path}"
        try:
            fields = parse_json(data, "error").nested("error")
            message = f"{where}: {fields.text('message')}"
            hint = fields.text("hint") if fields.has("hint") else None
            findings = fields.list_of("findings", parse_finding) if fields.has("findings") else ()
        except ParseError:
            message, hint, findings = f"{where}: answered with status {status}", None, ()
        if status in (429, 502, 503, 504):
            return UnreachableError(message, hint=hint)
        if status in (403, 409) and findings:
            return RefusedError(message, findings, hint=hint)
        return NodeosError(message, hint=hint)
