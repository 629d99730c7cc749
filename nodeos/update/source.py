"""A folder of files on a web server. What comes is checked by who asks, so plain http is as safe as https, but for
being overheard. Over https the server must show a certificate of the registrar's authority: a node trusts no
other."""

from __future__ import annotations

import http.client
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

from nodeos.core.errors import NodeosError, UnreachableError
from nodeos.core.http import check_folder_url
from nodeos.update.fetch import Answer

_CHUNK = 1 << 18
_RANGE = re.compile(r"bytes ([0-9]{1,15})-[0-9]{1,15}/(?:[0-9]{1,15}|\*)", re.ASCII)


class WebFolder:
    """``ca`` is PEM text; ``timeout`` in seconds covers each socket operation. Redirections are not followed."""

    def __init__(self, url: str, *, ca: str, timeout: float = 30) -> None:
        scheme, self._host, self._port, self._path = check_folder_url(url)
        self._timeout = timeout
        self._context: ssl.SSLContext | None = None
        if scheme == "https":
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            self._context.verify_flags |= ssl.VERIFY_X509_STRICT
            self._context.load_verify_locations(cadata=ca)
            self._context.minimum_version = ssl.TLSVersion.TLSv1_2

    def _connection(self) -> http.client.HTTPConnection:
        if self._context is None:
            return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout)
        return http.client.HTTPSConnection(
            self._host, self._port, timeout=self._timeout, context=self._context
        )

    @contextmanager
    def open(self, name: str, start: int) -> Iterator[Answer]:
        """The file from byte ``start`` on, if the server can."""
        where, connection = f"{self._host}:{self._port}{self._path}{name}", self._connection()
        try:
            connection.request(
                "GET", self._path + quote(name), headers={"Range": f"bytes={start}-"} if start else {}
            )
            answer = connection.getresponse()
            if answer.status == 206 and start:
                found = _RANGE.fullmatch(answer.getheader("Content-Range", ""))
                if found is None:
                    raise NodeosError(f"{where}: a part of a file that doesn't say which")
                yield Answer(start=int(found[1]), parts=_parts(answer))
            elif answer.status == 200:
                yield Answer(start=0, parts=_parts(answer))
            elif answer.status in (429, 500, 502, 503, 504):
                raise UnreachableError(f"{where}: answered with status {answer.status}")
            else:
                raise NodeosError(
                    f"{where}: answered with status {answer.status}",
                    hint="see what lies at the offered address",
                )
        except ssl.SSLCertVerificationError as error:
            raise NodeosError(f"{where}: its certificate is not of the registrar's authority") from error
        except (OSError, http.client.HTTPException) as error:
            raise UnreachableError(f"{where}: {error}", hint="check the network and the address") from error
        finally:
            connection.close()


def _parts(answer: http.client.HTTPResponse) -> Iterator[bytes]:
    try:
        while data := answer.read(_CHUNK):
            yield data
    except http.client.IncompleteRead as error:
        yield error.partial
