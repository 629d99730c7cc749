"""The ASGI application with a replica that does as a test says: limits, and what strangers are told."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, cast

import pytest

from nodeos.core.principal import Principal
from replica import http
from replica.envelope import Call
from replica.errors import HttpError
from replica.execution import StoppedError
from replica.http import Application
from replica.replica import Replica
from replica.state import Reply, RequestStatus
from replica.store import StoreError

Message = MutableMapping[str, Any]
CALL = "/api/v4/canister/aaaaa-aa/call"
QUERY = "/api/v3/canister/aaaaa-aa/query"


class FakeReplica:
    """Takes any body for a call whose id is that body."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.executed: list[bytes] = []

    def accept(self, body: bytes, effective: Principal) -> Call:
        return Call(
            id=body,
            sender=Principal.anonymous(),
            expiry=0,
            nonce=None,
            canister=effective,
            method="",
            argument=b"",
        )

    def execute(self, call: Call) -> RequestStatus:
        self.gate.wait(10)
        if self.failure is not None:
            raise self.failure
        self.executed.append(call.id)
        return RequestStatus(
            id=call.id, sender=call.sender, canister=call.canister, expires=0, outcome=Reply(data=b"")
        )

    def call_answer(self, status: RequestStatus) -> bytes:
        return b"done " + status.id

    def query(self, body: bytes, effective: Principal) -> bytes:
        self.gate.wait(10)
        if self.failure is not None:
            raise self.failure
        return b"answer"


Ask = Callable[..., Awaitable[tuple[int, bytes]]]


def run(test: Callable[[Ask, FakeReplica], Awaitable[None]]) -> None:
    """Run a test with a way to send requests."""
    replica = FakeReplica()
    application = Application(cast("Replica", replica))

    async def ask(path: str, *parts: bytes, ended: bool = True) -> tuple[int, bytes]:
        messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
        if ended:
            messages.append({"type": "http.request", "body": b"", "more_body": False})
        sent: list[Message] = []

        async def receive() -> Message:
            if messages:
                return messages.pop(0)
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: Message) -> None:
            sent.append(message)

        await application({"type": "http", "method": "POST", "path": path}, receive, send)
        return sent[0]["status"], sent[1]["body"]

    async def whole() -> None:
        try:
            await test(ask, replica)
        finally:
            replica.gate.set()

    try:
        asyncio.run(whole())
    finally:
        application.close()


def test_the_same_request_runs_once() -> None:
    async def test(ask: Ask, replica: FakeReplica) -> None:
        replica.gate.clear()
        asked = [asyncio.ensure_future(ask(CALL, b"same")) for _ in range(3)]
        while (await asyncio.wait(asked, timeout=0.01))[0]:
            raise AssertionError("answered before it was executed")
        replica.gate.set()
        assert await asyncio.gather(*asked) == [(200, b"done same")] * 3
        assert replica.executed == [b"same"]

    run(test)


def test_a_slow_update_is_answered_with_202(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_SYNC_SECONDS", 0.01)

    async def test(ask: Ask, replica: FakeReplica) -> None:
        replica.gate.clear()
        assert await ask(CALL, b"x") == (202, b"")

    run(test)


def test_too_many_updates_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_MAX_UPDATES", 1)

    async def test(ask: Ask, replica: FakeReplica) -> None:
        replica.gate.clear()
        assert (await ask("/api/v2/canister/aaaaa-aa/call", b"x"))[0] == 202
        assert (await ask(CALL, b"y"))[0] == 429

    run(test)


def test_too_many_queries_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_MAX_READS", 1)

    async def test(ask: Ask, replica: FakeReplica) -> None:
        replica.gate.clear()
        first = asyncio.ensure_future(ask(QUERY, b"x"))
        await asyncio.sleep(0)  # let it begin
        assert (await ask(QUERY, b"y"))[0] == 429
        replica.gate.set()
        assert await first == (200, b"answer")

    run(test)


def test_a_body_that_does_not_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_BODY_SECONDS", 0.01)

    async def test(ask: Ask, _replica: FakeReplica) -> None:
        assert (await ask(QUERY, b"x", ended=False))[0] == 408

    run(test)


def test_a_body_in_parts_is_bounded() -> None:
    async def test(ask: Ask, _replica: FakeReplica) -> None:
        assert (await ask(QUERY, *[bytes(1 << 20)] * 3))[0] == 413
        assert await ask(QUERY, *[bytes(1 << 20)] * 2) == (200, b"answer")

    run(test)


def test_all_bodies_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_MAX_BUFFERED", 100)

    async def test(ask: Ask, _replica: FakeReplica) -> None:
        assert (await ask(QUERY, bytes(101)))[0] == 429
        for _ in range(3):  # what was refused or answered no longer counts
            assert (await ask(QUERY, bytes(100)))[0] == 200

    run(test)


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (HttpError(403, "said to the caller"), 403),
        (StoreError("secret path"), 503),
        (StoppedError("secret"), 503),
        (ZeroDivisionError("secret"), 500),
    ],
)
@pytest.mark.parametrize("path", [CALL, QUERY])
def test_failures(path: str, failure: Exception, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    async def test(ask: Ask, replica: FakeReplica) -> None:
        replica.failure = failure
        found, body = await ask(path, b"x")
        assert found == status
        assert b"secret" not in body

    run(test)
    assert ("secret" in capsys.readouterr().err) == ("secret" in str(failure))
