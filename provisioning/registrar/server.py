"""Runs the application on uvicorn with TLS until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import resource
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from nodeos.core.errors import UsageError

GRACE_SECONDS = 10


class ImpatientProtocol(H11Protocol):
    """Closes a connection that has sent no whole request head in ``seconds``, so that idle ones
    don't pile up."""

    seconds: ClassVar[int]

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._deadline = self.loop.call_later(self.seconds, self._expire)

    def connection_lost(self, exc: Exception | None) -> None:
        self._deadline.cancel()
        super().connection_lost(exc)

    def _expire(self) -> None:
        if self.cycle is None:
            self.transport.abort()


class RegistrarServer(uvicorn.Server):
    """Says when it listens, and ends with exit code 0 when it is told to end."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's own raises the signal again once it has ended, which would be exit code -15."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)


def listen(host: str, port: int) -> socket.socket:
    """An open socket. Raises UsageError if the address can't be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        raise UsageError(
            f"can't listen on {host} port {port}: {error.strerror}", hint="name another --listen"
        ) from error


def serve(
    app: Starlette,
    opened: socket.socket,
    *,
    certificate: Path,
    key: Path,
    seconds: int,
    ready: Callable[[], None],
) -> None:
    """Serve until a signal comes; requests that are under way are finished.

    ``seconds`` is how long a new connection may take to send the head of its first request.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    config = uvicorn.Config(
        app,
        http=type("Protocol", (ImpatientProtocol,), {"seconds": seconds}),
        ws="none",
        loop="asyncio",
        ssl_certfile=str(certificate),
        ssl_keyfile=str(key),
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
        backlog=512,
    )
    config.load()
    if config.ssl is None:
        raise RuntimeError("the registrar serves over TLS only")
    # Nodes and operators all run this project's client; uvicorn's own list of TLS 1.2 ciphers is an old one.
    config.ssl.minimum_version = ssl.TLSVersion.TLSv1_3
    server = RegistrarServer(config, ready)
    try:
        server.run(sockets=[opened])
    finally:
        opened.close()
