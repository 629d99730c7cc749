"""The HTTP face: reads bodies with a limit and a deadline, runs the service in threads, words the errors.

Machines and operators have a pool of threads each, so that a flood of machines can't keep an operator out.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from nodeos import __version__
from nodeos.core import installation
from nodeos.core.errors import NodeosError, RefusedError, UsageError
from nodeos.core.wire import canonical_json
from provisioning.operator_auth import Caller
from provisioning.registrar.installations import Installations
from provisioning.registrar.lookups import ConflictError, NotFoundError
from provisioning.registrar.operators import Operators
from provisioning.registrar.recoveries import Recoveries
from provisioning.registrar.service import Service
from provisioning.registrar.store import BusyError

T = TypeVar("T")
BODY_LIMIT = 1 << 20
OPERATOR_BODY_LIMIT = 1 << 14
DROPPED = 1 << 24
THREADS = 4
# Beyond this many waiting calls the answer is "busy": a queue that only grows helps nobody.
WAITING = 128
log = logging.getLogger("nodeos.registrar")


class _Message(Protocol):
    def to_bytes(self) -> bytes: ...


class TooLargeError(NodeosError):
    """A body over the limit."""


class SlowError(NodeosError):
    """A sender that does not get on with it."""


class Pool:
    """A few threads, and a bound on what waits for them."""

    def __init__(self, name: str) -> None:
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix=name)
        self._waiting = 0

    async def run(self, call: Callable[[], T]) -> T:
        if self._waiting >= WAITING:
            raise BusyError("the registrar is busy", hint="ask again in a few seconds")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, call)
        finally:
            self._waiting -= 1

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)


async def read_body(request: Request, limit: int, seconds: float) -> bytes:
    """The whole body. Raises TooLargeError or SlowError.

    Some of what is too much is read and dropped: a sender that is cut off while it sends never sees why.
    """
    parts, size = [], 0
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                size += len(part)
                if size > DROPPED:
                    break
                if size <= limit:
                    parts.append(part)
    except TimeoutError as error:
        raise SlowError(f"the body did not arrive within {seconds:.0f} s") from error
    if size > limit:
        raise TooLargeError(f"the body is larger than {limit} bytes")
    return b"".join(parts)


def make_app(service: Service) -> Starlette:
    """The application; closing its lifespan ends threads and store."""
    operators, recoveries = Operators(service), Recoveries(service)
    installations = Installations(service.store, service.clock)
    machines_pool, operators_pool = Pool("machine"), Pool("operator")
    seconds = service.settings.request_seconds

    async def health(_: Request) -> Response:
        def look() -> None:
            with service.store.read() as tx:
                tx.centers()

        await operators_pool.run(look)
        return _json({"status": "ok", "version": __version__})

    async def enrol(request: Request) -> Response:
        body = await read_body(request, BODY_LIMIT, seconds)
        challenge = await machines_pool.run(lambda: service.request(body))
        return Response(challenge.to_bytes(), media_type="application/json")

    def machine(answer: Callable[[str, bytes], _Message]) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            body = await read_body(request, BODY_LIMIT, seconds)
            name = machine_of(request)
            answered = await machines_pool.run(lambda: answer(name, body))
            return Response(answered.to_bytes(), media_type="application/json")

        return endpoint

    async def installed(request: Request) -> Response:
        body = await read_body(request, installation.LIMIT, seconds)
        source = request.client.host if request.client is not None else ""
        await machines_pool.run(lambda: installations.take(body, source))
        return _json({"kept": True})

    def operator(
        answer: Callable[[Caller, Request, bytes], dict[str, Any]],
    ) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            body = await read_body(request, OPERATOR_BODY_LIMIT, seconds)
            path = _requested(request)

            def work() -> dict[str, Any]:
                caller = operators.authenticate(request.headers, request.method, path, body)
                return answer(caller, request, body)

            return _json(await operators_pool.run(work))

        return endpoint

    def machine_of(request: Request) -> str:
        return str(request.path_params["machine"])

    def query(request: Request, name: str) -> str:
        return request.query_params.get(name, "")

    routes = [
        Route("/v1/health", health, methods=["GET"]),
        Route(installation.PATH, installed, methods=["POST"]),
        Route("/v1/enrolments", enrol, methods=["POST"]),
        Route("/v1/enrolments/{machine}/evidence", machine(service.evidence), methods=["POST"]),
        Route("/v1/enrolments/{machine}/status", machine(service.poll), methods=["POST"]),
        Route("/v1/enrolments/{machine}/access", machine(service.access), methods=["POST"]),
        Route("/v1/enrolments/{machine}/recovery", machine(recoveries.evidence), methods=["POST"]),
        Route("/v1/enrolments/{machine}/recovery/status", machine(recoveries.poll), methods=["POST"]),
        Route("/v1/operator/recoveries", operator(lambda c, _, __: recoveries.listed(c)), methods=["GET"]),
        Route(
            "/v1/operator/recoveries/{machine}",
            operator(lambda c, r, _: recoveries.details(c, machine_of(r))),
            methods=["GET"],
        ),
        Route(
            "/v1/operator/recoveries/{machine}/answer",
            operator(lambda c, r, body: recoveries.answer(c, machine_of(r), body)),
            methods=["POST"],
        ),
        Route(
            "/v1/operator/enrolments",
            operator(lambda c, r, _: operators.enrolments(c, query(r, "state") or None, query(r, "after"))),
            methods=["GET"],
        ),
        Route(
            "/v1/operator/enrolments/{machine}",
            operator(lambda c, r, _: operators.enrolment(c, machine_of(r))),
            methods=["GET"],
        ),
        Route(
            "/v1/operator/enrolments/{machine}/approve",
            operator(lambda c, r, body: operators.approve(c, machine_of(r), body)),
            methods=["POST"],
        ),
        Route(
            "/v1/operator/enrolments/{machine}/reject",
            operator(lambda c, r, body: operators.reject(c, machine_of(r), body)),
            methods=["POST"],
        ),
        Route(
            "/v1/operator/nodes",
            operator(lambda c, r, _: operators.nodes(c, query(r, "after"))),
            methods=["GET"],
        ),
        Route(
            "/v1/operator/nodes/{node}",
            operator(lambda c, r, _: operators.node(c, str(r.path_params["node"]))),
            methods=["GET"],
        ),
    ]

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        machines_pool.close()
        operators_pool.close()
        service.store.close()

    return Starlette(
        routes=routes,
        lifespan=lifespan,
        exception_handlers={
            NodeosError: _failed,
            HTTPException: _no_route,
            ClientDisconnect: _gone,
            Exception: _internal,
        },
    )


def _requested(request: Request) -> str:
    """Path and query as they were sent. ``request.url`` won't do: it is put together with the Host header,
    whose sender could make another path of it than the one that is routed."""
    query: bytes = request.scope["query_string"]
    raw: bytes = request.scope["raw_path"] + (b"?" + query if query else b"")
    return raw.decode("latin-1")


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(canonical_json(value), status, headers, media_type="application/json")


# The first class that fits gives the status and the code.
_STATUS: tuple[tuple[type[NodeosError], int, str], ...] = (
    (TooLargeError, 413, "too-large"),
    (SlowError, 408, "too-slow"),
    (NotFoundError, 404, "not-found"),
    (ConflictError, 409, "conflict"),
    (RefusedError, 403, "refused"),
    (BusyError, 503, "busy"),
    (UsageError, 400, "malformed"),
)


def _failed(_: Request, error: Exception) -> Response:
    for kind, status, code in _STATUS:
        if isinstance(error, kind):
            headers = {"Retry-After": "2"} if status == 503 else {}
            if status in (408, 413):
                headers["Connection"] = "close"
            findings = [f.to_json() for f in error.findings] if isinstance(error, RefusedError) else []
            # A refusal's message repeats its findings for terminals; here they have a place of their own.
            message = error.message.splitlines()[0]
            told = {"code": code, "message": message, "hint": error.hint, "findings": findings}
            return _json({"error": told}, status, headers)
    return _internal(_, error)


def _no_route(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 404
    words = {404: ("not-found", "there is nothing at this address"), 405: ("method", "not with this method")}
    code, message = words.get(status, ("http", f"status {status}"))
    return _json({"error": {"code": code, "message": message, "hint": None, "findings": []}}, status)


def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=400)


def _internal(_: Request, error: Exception) -> Response:
    incident = secrets.token_hex(4)
    log.error("incident %s", incident, exc_info=error)
    hint = f"tell the registrar's administrator: incident {incident} in its log"
    told = {"code": "internal", "message": "the registrar failed", "hint": hint, "findings": []}
    return _json({"error": told}, 500)
