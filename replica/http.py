"""The HTTP interface as a bare ASGI application: routes, limits, and the threads that do the work.

Updates run in one thread, one after the other; queries and certificates in others, so that a long update
holds up no query. What can't be taken in is refused at once (429), never queued without bound.
"""

from __future__ import annotations

import asyncio
import sys
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from nodeos.core.principal import Principal
from nodeos.core.wire import ParseError
from replica import cbor
from replica.envelope import Call
from replica.errors import HttpError, RejectError
from replica.execution import StoppedError
from replica.replica import Replica, reject_fields
from replica.state import Reject, RequestStatus
from replica.store import StoreError

T = TypeVar("T")
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# Ingress messages are at most 2 MiB; the envelope around them and a signature fit in the rest.
MAX_BODY = (2 << 20) + (128 << 10)
_BODY_SECONDS = 30
# What all connections together may hold of bodies that aren't complete yet.
_MAX_BUFFERED = 64 << 20
_SYNC_SECONDS = 10
_MAX_UPDATES = 500
_MAX_READS = 500
_READ_THREADS = 3
_CORS = (
    (b"access-control-allow-origin", b"*"),
    (b"access-control-allow-methods", b"GET, HEAD, POST, OPTIONS"),
    (b"access-control-allow-headers", b"Accept, Authorization, Content-Type, User-Agent, X-Request-Id"),
    (b"access-control-max-age", b"600"),
)


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    body: bytes = b""
    kind: bytes = b"application/cbor"


class Application:
    """The ASGI application."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="update")
        self._readers = ThreadPoolExecutor(_READ_THREADS, thread_name_prefix="query")
        self._running: dict[bytes, asyncio.Future[RequestStatus]] = {}
        self._reads = 0
        self._buffered = 0

    def close(self) -> None:
        """Wait for what runs; what waits is dropped (it was never acknowledged)."""
        self._writer.shutdown(wait=True, cancel_futures=True)
        self._readers.shutdown(wait=True, cancel_futures=True)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"not HTTP: {scope['type']}")
        response = await self._respond(scope, receive)
        head = [(b"content-type", response.kind), (b"content-length", str(len(response.body)).encode())]
        head += [*_CORS, (b"x-content-type-options", b"nosniff")]
        body = b"" if scope["method"] == "HEAD" else response.body
        await send({"type": "http.response.start", "status": response.status, "headers": head})
        await send({"type": "http.response.body", "body": body})

    async def _respond(self, scope: Message, receive: Receive) -> Response:
        try:
            return await self._route(scope, receive)
        except HttpError as error:
            return _text(error.status, error.message)
        except ParseError as error:
            return _text(400, error.message)
        except (StoreError, StoppedError) as error:
            print(f"replica: {error}", file=sys.stderr)  # noqa: T201 — the daemon's log
            return _text(503, "the replica could not store this; nothing was done")
        except Exception:
            # A fault of this program: said in the log, not to strangers.
            traceback.print_exc(file=sys.stderr)
            return _text(500, "internal error")

    async def _route(self, scope: Message, receive: Receive) -> Response:
        method, path = scope["method"], scope["path"]
        if method == "OPTIONS":
            return Response(204)
        match path.strip("/").split("/"):
            case ["api", "v2", "status"]:
                _allow(method, "GET", "HEAD")
                return Response(200, self._replica.status())
            case ["api", "v2" | "v3" | "v4" as version, "canister" | "subnet" as kind, name, verb]:
                route = self._verb(version, kind, verb)
                _allow(method, "POST")
                effective = Principal.parse(name)
                if kind == "subnet" and effective != self._replica.chain.subnet.id:
                    raise HttpError(404, f"this node is not of subnet {name}")
                return await route(await self._read_body(receive), effective)
        raise HttpError(404, "there is nothing at this path")

    def _verb(self, version: str, kind: str, verb: str) -> Callable[[bytes, Principal], Awaitable[Response]]:
        match version, kind, verb:
            case "v2", "canister", "call":
                return partial(self._call, wait=False)
            case "v3" | "v4", "canister", "call":
                return partial(self._call, wait=True)
            case "v4", "subnet", "call":
                return partial(self._call, wait=True)
            case "v2" | "v3", "canister", "query":
                return self._query
            case "v2" | "v3", "canister", "read_state":
                return self._read_state
            case "v2" | "v3", "subnet", "read_state":
                return self._read_subnet
        raise HttpError(404, "there is nothing at this path")

    async def _read_body(self, receive: Receive) -> bytes:
        """The whole body, within limits of size, time and memory. Raises HttpError(408, 413 or 429)."""
        body = bytearray()
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise HttpError(400, "the connection ended early")
                    part = message.get("body", b"")
                    self._buffered += len(part)
                    body += part
                    if len(body) > MAX_BODY:
                        raise HttpError(413, f"a body of more than {MAX_BODY} bytes")
                    if self._buffered > _MAX_BUFFERED:
                        raise HttpError(429, "too many large requests at once; try again later")
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError as error:
            raise HttpError(408, f"the body took longer than {_BODY_SECONDS} seconds") from error
        finally:
            self._buffered -= len(body)

    async def _call(self, body: bytes, effective: Principal, *, wait: bool) -> Response:
        try:
            call = await self._read(self._replica.accept, body, effective)
        except RejectError as error:
            fields = reject_fields(
                Reject(code=error.code, error_code=error.error_code, message=error.message)
            )
            return Response(200, cbor.encode({"status": "non_replicated_rejection", **fields}))
        future = self._submit(call)
        if not wait:
            return Response(202)
        try:
            status = await asyncio.wait_for(asyncio.shield(future), _SYNC_SECONDS)
        except TimeoutError:
            return Response(202)
        return Response(200, await self._read(self._replica.call_answer, status))

    def _submit(self, call: Call) -> asyncio.Future[RequestStatus]:
        """Queue a call, or join the one that is queued already."""
        if call.id in self._running:
            return self._running[call.id]
        if len(self._running) >= _MAX_UPDATES:
            raise HttpError(429, "too many updates wait; try again later")
        future = asyncio.get_running_loop().run_in_executor(self._writer, self._replica.execute, call)
        self._running[call.id] = future
        future.add_done_callback(partial(self._finished, call.id))
        return future

    def _finished(self, raw: bytes, future: asyncio.Future[RequestStatus]) -> None:
        del self._running[raw]
        if not future.cancelled() and (error := future.exception()) is not None:
            print(f"replica: request {raw.hex()}: {error!r}", file=sys.stderr)  # noqa: T201 — the log

    async def _query(self, body: bytes, effective: Principal) -> Response:
        return Response(200, await self._read(self._replica.query, body, effective))

    async def _read_state(self, body: bytes, effective: Principal) -> Response:
        return Response(200, await self._read(self._replica.read_state, body, effective))

    async def _read_subnet(self, body: bytes, _effective: Principal) -> Response:
        return Response(200, await self._read(self._replica.read_state, body, None))

    async def _read(self, function: Callable[..., T], *arguments: object) -> T:
        """Run in a thread for readers, if there is room."""
        if self._reads >= _MAX_READS:
            raise HttpError(429, "too many requests; try again later")
        self._reads += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._readers, function, *arguments)
        finally:
            self._reads -= 1


def _text(status: int, message: str) -> Response:
    return Response(status, message.encode(), b"text/plain; charset=utf-8")


def _allow(method: str, *allowed: str) -> None:
    if method not in allowed:
        raise HttpError(405, f"use {' or '.join(allowed)}")
