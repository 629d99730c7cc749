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


class Client:
    """Talks to one service. ``ca`` is PEM text; ``timeout`` in seconds covers each socket operation."""

    def __init__(self, url: str, *, ca: str, timeout: float = 20) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme != "https" or not parts.hostname:
            raise UsageError(f"{url}: not an https:// address")
        self.url = url.rstrip("/")
        self.ca = ca
        self._host = parts.hostname
        self._port = parts.port or 443
        self._prefix = parts.path.rstrip("/")
        self._timeout = timeout
        try:
            self._context = ssl.create_default_context(cadata=ca)
        except ssl.SSLError as error:
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
