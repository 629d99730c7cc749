"""The state machine, row by row, and an operator's signed requests."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from hsm.identity import FileSigner
from nodeos.core.errors import RefusedError, UsageError
from nodeos.core.protocol import EnrolmentState as State
from nodeos.core.wire import b64
from provisioning import operator_auth
from provisioning.operator_auth import Asked
from provisioning.registrar.states import Event, advance
from tests.support import evidence as ev

# What an operator signs. A recovery is answered by the operator before it can be used.
DECIDED = (Event.APPROVED, Event.RECOVERED)


@given(st.lists(st.sampled_from([e for e in Event if e not in DECIDED]), max_size=12))
def test_nothing_but_an_operators_decision_inducts(events: list[Event]) -> None:
    state: State | None = None
    for event in events:
        try:
            state = advance(state, event)
        except RefusedError:
            continue
        assert state is not State.INDUCTED


@given(st.lists(st.sampled_from([e for e in Event if e is not Event.MOVED_AWAY]), max_size=8))
def test_inducted_stays_inducted_until_its_node_moves_away(events: list[Event]) -> None:
    state = State.INDUCTED
    for event in events:
        try:
            state = advance(state, event)
        except RefusedError:
            continue
        assert state is State.INDUCTED


@pytest.mark.parametrize("state", [None, *State])
def test_a_request_changes_nothing_that_exists(state: State | None) -> None:
    for event in (Event.REQUESTED, Event.REQUEST_REFUSED):
        assert state is None or advance(state, event) is state


@pytest.mark.parametrize("state", [None, State.CHALLENGED, State.REFUSED, State.INDUCTED])
def test_only_pending_or_rejected_machines_are_approved(state: State | None) -> None:
    with pytest.raises(RefusedError, match=r"enrolment\.state"):
        advance(state, Event.APPROVED)


def test_a_node_is_not_rejected() -> None:
    with pytest.raises(RefusedError, match=r"enrolment\.state"):
        advance(State.INDUCTED, Event.REJECTED)


AT = 1_750_000_000
PATH = "/v1/operator/enrolments?state=pending"


ASKED = Asked(registrar="a" * 64, method="GET", path=PATH, body=b"{}")


def verify(headers: dict[str, str], **changes: Any) -> operator_auth.Caller:
    at = changes.pop("at", AT)
    return operator_auth.verify(headers, replace(ASKED, **changes), at)


@pytest.mark.parametrize("curve", [None, ec.SECP256R1(), ec.SECP256K1()])
def test_signed_request_names_its_operator(curve: ec.EllipticCurve | None) -> None:
    signer = FileSigner(ev.OPERATOR if curve is None else ec.generate_private_key(curve))
    caller = verify(operator_auth.sign(signer, ASKED, AT))
    assert caller.public_key == signer.public_key


@pytest.mark.parametrize(
    ("code", "changes", "headers"),
    [
        ("operator.signature", {"registrar": "b" * 64}, {}),
        ("operator.signature", {"method": "POST"}, {}),
        ("operator.signature", {"path": "/v1/operator/enrolments"}, {}),
        ("operator.signature", {"body": b"{ }"}, {}),
        ("operator.signature", {}, {operator_auth.TIMESTAMP: str(AT + 1)}),
        ("operator.signature", {}, {operator_auth.NONCE: "0" * 32}),
        ("operator.signature", {}, {operator_auth.SIGNATURE: "AAAA"}),
        ("operator.time", {"at": AT + 301}, {}),
        ("operator.time", {"at": AT - 301}, {}),
        ("operator.headers", {}, {operator_auth.NONCE: "x"}),
        ("operator.headers", {}, {operator_auth.TIMESTAMP: "-1"}),
        ("operator.headers", {}, {operator_auth.KEY: ""}),
        ("operator.headers", {}, {operator_auth.SIGNATURE: "!"}),
        ("operator.signature", {}, {operator_auth.KEY: "AAAA"}),
    ],
)
def test_each_part_of_a_request_is_signed(
    code: str, changes: dict[str, Any], headers: dict[str, str]
) -> None:
    signed = operator_auth.sign(FileSigner(ev.OPERATOR), ASKED, AT)
    with pytest.raises(RefusedError) as caught:
        verify({**signed, **headers}, **changes)
    assert [f.code for f in caught.value.findings] == [code]


def test_keys_of_another_kind_are_refused() -> None:
    key = ec.generate_private_key(ec.SECP384R1())

    signed = operator_auth.sign(FileSigner(ev.OPERATOR), ASKED, AT)
    with pytest.raises(RefusedError, match=r"operator\.signature"):
        verify({**signed, operator_auth.KEY: b64(ev.spki(key))})


def test_a_registrar_is_named_by_its_one_certificate() -> None:
    pem = ev.pem(ev.root().der).decode()
    assert operator_auth.registrar_id(pem) == hashlib.sha256(ev.root().der).hexdigest()
    assert operator_auth.registrar_id("\n" + pem + "\n") == operator_auth.registrar_id(pem)
    for other in ("", pem + pem, pem[:-40], ev.site_key_pem().decode(), pem.replace("M", "é", 1)):
        with pytest.raises(UsageError, match="must be one certificate in PEM"):
            operator_auth.registrar_id(other)
