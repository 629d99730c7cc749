from __future__ import annotations

import hashlib
import ipaddress
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeos.core.errors import Finding
from nodeos.core.principal import Principal
from nodeos.core.protocol import (
    QUOTED_PCRS,
    Challenge,
    Delivery,
    DeliveryState,
    EnrolmentState,
    Evidence,
    KeyProofs,
    NodeKeys,
    NodeRecord,
    Offer,
    Outcome,
    Poll,
    Request,
    Statement,
    StateVolume,
    UpdateStatus,
    machine_id,
    poll_proof,
    qualifying_data,
    secret_proof,
)
from nodeos.core.statereport import Mode
from nodeos.core.wire import ParseError

SHORT = st.binary(max_size=100)
DIGEST = st.binary(min_size=32, max_size=32)
NAME = st.text(max_size=16)
NUMBER = st.integers(0, 2**63 - 1)
KEYS = st.builds(
    NodeKeys, signing=SHORT, tls_certificate=SHORT, committee=st.binary(min_size=96, max_size=96)
)
PROOFS = st.builds(
    KeyProofs,
    signing=st.binary(min_size=64, max_size=64),
    tls=st.binary(min_size=64, max_size=64),
    committee=st.binary(min_size=48, max_size=48),
)
ADDRESS = st.integers(0x20010DB8 << 96, (0x20010DB9 << 96) - 1).map(ipaddress.IPv6Address)
VOLUMES = st.builds(
    StateVolume,
    mode=st.sampled_from(Mode),
    luks_uuid=NAME,
    made_this_boot=st.booleans(),
    policy_keys=st.lists(DIGEST, max_size=4).map(tuple),
    policy_pcrs=st.lists(st.integers(0, 23), max_size=4).map(tuple),
    floor=st.integers(0, 63),
    creation_proven=st.booleans(),
)


FINDINGS = st.lists(st.builds(Finding, code=NAME, message=NAME), max_size=3).map(tuple)
OFFERS = st.builds(Offer, number=NUMBER, version=NAME, manifest=DIGEST, url=NAME, rollback=st.booleans())
UPDATES = st.builds(
    UpdateStatus,
    running=NAME,
    blessed=st.booleans(),
    failed=st.none() | NAME,
    delivery=st.none()
    | st.builds(
        Delivery,
        number=NUMBER,
        version=NAME,
        state=st.sampled_from(DeliveryState),
        boot_id=NAME,
        findings=FINDINGS,
    ),
)


@st.composite
def records(draw: st.DrawFn) -> NodeRecord:
    keys = draw(KEYS)
    return NodeRecord(
        node_id=keys.node_id,
        machine=draw(NAME),
        data_center=draw(NAME),
        operator=Principal(draw(st.binary(max_size=29))),
        node_reward_type=draw(NAME),
        keys=keys,
        inducted_at=draw(NUMBER),
    )


@st.composite
def outcomes(draw: st.DrawFn) -> Outcome:
    state = draw(st.sampled_from(EnrolmentState))
    return Outcome(
        state=state,
        findings=draw(FINDINGS),
        poll_after=draw(st.integers(0, 86400)),
        node=draw(records()) if state is EnrolmentState.INDUCTED else None,
        offer=draw(st.none() | OFFERS) if state is EnrolmentState.INDUCTED else None,
    )


MESSAGES: dict[Any, st.SearchStrategy[Any]] = {
    Request: st.builds(
        Request,
        ek_public=SHORT,
        ek_certificates=st.lists(SHORT, max_size=8).map(tuple),
        ak_public=SHORT,
        site_document=SHORT,
        site_signature=st.binary(min_size=64, max_size=64),
    ),
    Challenge: st.builds(
        Challenge,
        session=NAME,
        credential_blob=SHORT,
        encrypted_secret=SHORT,
        nonce=DIGEST,
        seconds=st.integers(1, 86400),
    ),
    Statement: st.builds(
        Statement,
        boot_id=NAME,
        release=NAME,
        keys=KEYS,
        volume=VOLUMES,
        memory_encryption=NAME,
        fingerprint=SHORT,
        addresses=st.lists(ADDRESS, max_size=4).map(tuple),
        update=st.none() | UPDATES,
    ),
    Evidence: st.builds(
        Evidence,
        session=NAME,
        statement=SHORT,
        secret_proof=DIGEST,
        key_proofs=PROOFS,
        quote=SHORT,
        signature=SHORT,
        pcrs=st.fixed_dictionaries(dict.fromkeys(QUOTED_PCRS, DIGEST)),
        firmware_log=SHORT,
        userspace_log=SHORT,
    ),
    Poll: st.builds(Poll, session=NAME, counter=NUMBER, proof=DIGEST),
    Outcome: outcomes(),
}
KEYS_EXAMPLE = NodeKeys(signing=b"s", tls_certificate=b"t", committee=bytes(96))
RECORD = NodeRecord(
    node_id=KEYS_EXAMPLE.node_id,
    machine="m",
    data_center="d",
    operator=Principal(b"o"),
    node_reward_type="type1",
    keys=KEYS_EXAMPLE,
    inducted_at=1,
)


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_every_message_survives_a_round_trip(kind: Any, data: st.DataObject) -> None:
    message = data.draw(MESSAGES[kind])
    assert kind.parse(message.to_bytes()) == message


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
@given(data=st.binary(max_size=100))
def test_parsers_raise_nothing_but_parse_errors(kind: Any, data: bytes) -> None:
    with pytest.raises(ParseError):
        kind.parse(data)


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_no_field_may_be_left_out_or_added(kind: Any, data: st.DataObject) -> None:
    document = json.loads(data.draw(MESSAGES[kind]).to_bytes())
    name = data.draw(st.sampled_from(sorted(document)))
    less = {key: value for key, value in document.items() if key != name}
    optional = name in ("offer", "update") or (
        kind is Outcome and document["node"] is None and name == "node"
    )
    if not optional:
        with pytest.raises(ParseError):
            kind.parse(json.dumps(less).encode())
    with pytest.raises(ParseError, match="unknown field: zzz"):
        kind.parse(json.dumps({**document, "zzz": 1}).encode())


def mutated(message: Any, change: Callable[[dict[str, Any]], None]) -> bytes:
    document = json.loads(message.to_bytes())
    change(document)
    return json.dumps(document).encode()


def evidence(**changes: Any) -> Evidence:
    values: dict[str, Any] = {
        "session": "s",
        "statement": b"{}",
        "secret_proof": bytes(32),
        "key_proofs": KeyProofs(signing=bytes(64), tls=bytes(64), committee=bytes(48)),
        "quote": b"q",
        "signature": b"s",
        "pcrs": dict.fromkeys(QUOTED_PCRS, bytes(32)),
        "firmware_log": b"",
        "userspace_log": b"",
    }
    return Evidence(**{**values, **changes})


def test_a_missing_pcr_is_refused() -> None:
    with pytest.raises(ParseError, match=r"evidence\.pcrs\.7: missing"):
        Evidence.parse(mutated(evidence(), lambda d: d["pcrs"].pop("7")))


def test_one_pcr_too_many_is_refused() -> None:
    with pytest.raises(ParseError, match=r"evidence\.pcrs: unknown field: 23"):
        Evidence.parse(mutated(evidence(), lambda d: d["pcrs"].update({"23": "00" * 32})))


def test_logs_have_a_limit() -> None:
    Evidence.parse(evidence(firmware_log=bytes(1 << 18)).to_bytes())
    with pytest.raises(ParseError):
        Evidence.parse(evidence(userspace_log=bytes((1 << 18) + 1)).to_bytes())


def test_a_record_must_be_of_its_own_key() -> None:
    outcome = Outcome(state=EnrolmentState.INDUCTED, findings=(), poll_after=0, node=RECORD)

    def other(document: dict[str, Any]) -> None:
        document["node"]["node_id"] = str(Principal(b"x"))

    with pytest.raises(ParseError, match="not the principal of the signing key"):
        Outcome.parse(mutated(outcome, other))


@pytest.mark.parametrize("state", EnrolmentState)
def test_a_record_comes_with_induction_only(state: EnrolmentState) -> None:
    inducted = state is EnrolmentState.INDUCTED
    wrong = Outcome(state=state, findings=(), poll_after=0, node=None if inducted else RECORD)
    with pytest.raises(ParseError, match="inducted"):
        Outcome.parse(wrong.to_bytes())


def test_an_unknown_state_is_refused() -> None:
    outcome = Outcome(state=EnrolmentState.PENDING, findings=(), poll_after=0, node=None)
    with pytest.raises(ParseError, match=r"outcome\.state"):
        Outcome.parse(mutated(outcome, lambda d: d.update(state="approved")))


def test_machine_id_is_the_digest_of_the_endorsement_key() -> None:
    assert machine_id(b"ek") == hashlib.sha256(b"ek").hexdigest()


@given(SHORT, SHORT)
def test_proofs_bind_what_they_must(one: bytes, other: bytes) -> None:
    nonce, secret = bytes(32), b"k" * 32
    same = one == other
    assert (qualifying_data(nonce, one) == qualifying_data(nonce, other)) == same
    assert qualifying_data(b"n" * 32, one) != qualifying_data(nonce, one)
    assert (secret_proof(secret, one) == secret_proof(secret, other)) == same
    assert secret_proof(b"l" * 32, one) != secret_proof(secret, one)


def test_poll_proofs_are_of_one_session_and_counter() -> None:
    proofs = {
        poll_proof(secret, session, counter)
        for secret in (b"a" * 32, b"b" * 32)
        for session in ("s", "t")
        for counter in (0, 1, 256)
    }
    assert len(proofs) == 12
