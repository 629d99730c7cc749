"""The registrar as the agent sees it: the protocols' calls, and its failures told apart.

UnreachableError: nobody answered. RefusedError: a policy said no. RegistrarError: it answered, but with
something that is no use. The last says nothing about this machine, so the agent goes on and asks again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

from nodeos.core.access import AccessAnswer
from nodeos.core.errors import NodeosError, RefusedError, UnreachableError
from nodeos.core.protocol import AccessRequest, Challenge, Evidence, Outcome, Poll, Request
from nodeos.core.recovery_request import LockedEvidence, RecoveryOutcome

T = TypeVar("T")


class RegistrarError(NodeosError):
    """The registrar answered with an error of its own, or with what the protocol doesn't know."""


class Transport(Protocol):
    """The part of ``nodeos.core.http.Client`` that is used."""

    def request(self, method: str, path: str, body: bytes | None = None) -> bytes: ...


class Registrar:
    """Speaks protocol version 1 over ``transport``."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def challenge(self, request: Request) -> Challenge:
        return self._ask("/v1/enrolments", request.to_bytes(), Challenge.parse)

    def evidence(self, machine: str, evidence: Evidence) -> Outcome:
        return self._ask(f"/v1/enrolments/{machine}/evidence", evidence.to_bytes(), Outcome.parse)

    def poll(self, machine: str, poll: Poll) -> Outcome:
        return self._ask(f"/v1/enrolments/{machine}/status", poll.to_bytes(), Outcome.parse)

    def access(self, machine: str, request: AccessRequest) -> AccessAnswer:
        return self._ask(f"/v1/enrolments/{machine}/access", request.to_bytes(), AccessAnswer.parse)

    def recovery(self, machine: str, evidence: LockedEvidence) -> RecoveryOutcome:
        return self._ask(f"/v1/enrolments/{machine}/recovery", evidence.to_bytes(), RecoveryOutcome.parse)

    def recovery_poll(self, machine: str, poll: Poll) -> RecoveryOutcome:
        return self._ask(f"/v1/enrolments/{machine}/recovery/status", poll.to_bytes(), RecoveryOutcome.parse)

    def _ask(self, path: str, body: bytes, parse: Callable[[bytes], T]) -> T:
        with _as_registrar_error():
            return parse(self._transport.request("POST", path, body))


@contextmanager
def _as_registrar_error() -> Iterator[None]:
    try:
        yield
    except (UnreachableError, RefusedError):
        raise
    except NodeosError as error:
        raise RegistrarError(error.message, hint=error.hint) from error
