"""The state machine, row by row, and an operator's signed requests."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import given
from hypothesis import strategies as st

from hsm.signer import Algorithm
from nodeos.core.errors import RefusedError
from nodeos.core.protocol import EnrolmentState as State
from provisioning import operator_auth
from provisioning.registrar.states import Event, advance
from tests.support import evidence as ev


class FileSigner:
    """A signer over a key in memory."""

    def __init__(self, key: ec.EllipticCurvePrivateKey | None = None) -> None:
        self._key = key

    @property
    def algorithm(self) -> Algorithm:
        return Algorithm.ED25519 if self._key is None else Algorithm.ECDSA_P256

    @property
    def public_key(self) -> bytes:
        return ev.spki(self._key or ev.OPERATOR)

    def sign(self, message: bytes) -> bytes:
        if self._key is None:
            return ev.OPERATOR.sign(message)
        r, s = decode_dss_signature(self._key.sign(message, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")


@given(st.lists(st.sampled_from([e for e in Event if e is not Event.APPROVED]), max_size=12))
def test_nothing_but_an_approval_inducts(events: list[Event]) -> None:
    state: State | None = None
    for event in events:
        try:
            state = advance(state, event)
        except RefusedError:
            continue
        assert state is not State.INDUCTED


@given(st.lists(st.sampled_from(list(Event)), max_size=8))
def test_inducted_stays_inducted(events: list[Event]) -> None:
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


def verify(headers: dict[str, str], **changes: object) -> operator_auth.Caller:
    told: dict[str, object] = {"method": "GET", "path": PATH, "body": b"{}", "at": AT, **changes}
    return operator_auth.verify(headers, **told)  # type: ignore[arg-type]


@pytest.mark.parametrize("curve", [None, ec.SECP256R1(), ec.SECP256K1()])
def test_signed_request_names_its_operator(curve: ec.EllipticCurve | None) -> None:
    signer = FileSigner(None if curve is None else ec.generate_private_key(curve))
    caller = verify(operator_auth.sign(signer, "GET", PATH, b"{}", AT))
    assert caller.public_key == signer.public_key


@pytest.mark.parametrize(
    ("code", "changes", "headers"),
    [
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
    code: str, changes: dict[str, object], headers: dict[str, str]
) -> None:
    signed = operator_auth.sign(FileSigner(), "GET", PATH, b"{}", AT)
    with pytest.raises(RefusedError) as caught:
        verify({**signed, **headers}, **changes)
    assert [f.code for f in caught.value.findings] == [code]


def test_keys_of_another_kind_are_refused() -> None:
    key = ec.generate_private_key(ec.SECP384R1())

    class Odd(FileSigner):
        def sign(self, message: bytes) -> bytes:
            return bytes(64)

    with pytest.raises(RefusedError, match=r"operator\.signature"):
        verify(operator_auth.sign(Odd(key), "GET", PATH, b"{}", AT))
