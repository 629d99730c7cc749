"""Envelopes, request ids and senders: what is accepted, and each thing that is refused."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from nodeos.core.principal import Principal
from replica import cbor
from replica.authentication import authenticate
from replica.cbor import CborError
from replica.envelope import INGRESS_WINDOW, PERMITTED_DRIFT, Call, Kind, ReadState, check_expiry, parse
from replica.errors import HttpError
from replica.hashing import REQUEST_DOMAIN, hash_of_map, leb128, read_leb128

NOW = 1_700_000_000_000_000_000


def call_content(**changes: object) -> dict[str, object]:
    content: dict[str, object] = {
        "request_type": "call",
        "sender": b"\x04",
        "ingress_expiry": NOW,
        "canister_id": bytes.fromhex("00000000000004d2"),
        "method_name": "hello",
        "arg": b"DIDL\x00\xfd*",
        **changes,
    }
    return {key: value for key, value in content.items() if value is not None}


def envelope(content: dict[str, object], **more: object) -> bytes:
    return cbor.encode({"content": content, **more})


# --- request ids: the two examples of the interface specification ---


def test_request_id_examples() -> None:
    content: dict[str, object] = {
        "request_type": "call",
        "canister_id": bytes.fromhex("00000000000004d2"),
        "method_name": "hello",
        "arg": b"DIDL\x00\xfd*",
    }
    assert hash_of_map(content).hex() == "8781291c347db32a9d8c10eb62b710fce5a93be676474c42babc74c51858f94b"
    content |= {"sender": b"\x04", "ingress_expiry": 1685570400000000000}
    assert hash_of_map(content).hex() == "1d1091364d6bb8a6c16b203ee75467d59ead468f523eb058880ae8ec80e2b101"


def test_what_has_no_hash_is_refused() -> None:
    for value in (1.5, None, True):
        with pytest.raises(TypeError):
            hash_of_map({"key": value})


@given(st.integers(min_value=0, max_value=2**130))
def test_leb128_round_trip(number: int) -> None:
    assert read_leb128(leb128(number)) == number


@pytest.mark.parametrize("data", [b"", b"\x80", b"\x00\x00"])
def test_leb128_of_another_length_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not one"):
        read_leb128(data)


# --- CBOR ---


@pytest.mark.parametrize(
    "data",
    [
        pytest.param("a2616101616102", id="a key twice"),
        pytest.param("f6f6", id="two values"),
        pytest.param("", id="nothing"),
        pytest.param("c11a00000000", id="a date"),
        pytest.param("c24101", id="a big number"),
        pytest.param("81d9d9f7a0", id="a tag inside"),
        pytest.param("d81c80", id="a shared reference"),
        pytest.param("d8234161", id="a pattern"),
        pytest.param("5bffffffffffffffff", id="longer than it is"),
        pytest.param("61ff", id="not UTF-8"),
        pytest.param("81" * 200 + "00", id="too deep"),
    ],
)
def test_bad_cbor_is_refused(data: str) -> None:
    with pytest.raises(CborError):
        cbor.decode(bytes.fromhex(data))


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_are_refused(data: bytes) -> None:
    with contextlib.suppress(CborError):
        cbor.decode(data)


# --- envelopes ---


def test_call() -> None:
    request = parse(envelope(call_content(nonce=b"n")), Kind.CALL).request
    assert isinstance(request, Call)
    assert request.method == "hello"
    assert request.id == hash_of_map(call_content(nonce=b"n"))


def test_read_state() -> None:
    content: dict[str, object] = {
        "request_type": "read_state",
        "sender": b"\x04",
        "ingress_expiry": NOW,
        "paths": [[b"time"], [b"subnet", b"x"]],
    }
    request = parse(envelope(content), Kind.READ_STATE).request
    assert isinstance(request, ReadState)
    assert request.paths == ((b"time",), (b"subnet", b"x"))
    for paths in (None, [b"time"], [["time"]], [[b"time"]] * 1001, [[b"x"] * 128]):
        with pytest.raises(HttpError, match="paths"):
            parse(envelope({**content, "paths": paths}), Kind.READ_STATE)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"request_type": "query"}, "request_type"),
        ({"request_type": None}, "request_type"),
        ({"sender": b"\x04" * 30}, "sender"),
        ({"sender": "text"}, "sender"),
        ({"nonce": bytes(33)}, "nonce"),
        ({"nonce": 7}, "nonce"),
        ({"ingress_expiry": None}, "ingress_expiry"),
        ({"ingress_expiry": -1}, "ingress_expiry"),
        ({"ingress_expiry": 2**64}, "CBOR"),
        ({"ingress_expiry": True}, "ingress_expiry"),
        ({"method_name": b"hello"}, "method_name"),
        ({"method_name": "m" * 20_001}, "method_name"),
        ({"canister_id": bytes(30)}, "canister_id"),
        ({"arg": "text"}, "arg"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_bad_content_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(HttpError, match=words) as caught:
        parse(envelope(call_content(**changes)), Kind.CALL)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "body",
    [cbor.encode([]), cbor.encode({}), cbor.encode({"content": 1}), envelope(call_content(), extra=1)],
)
def test_bad_envelopes_are_refused(body: bytes) -> None:
    with pytest.raises(HttpError):
        parse(body, Kind.CALL)


@given(st.dictionaries(st.text(max_size=20), st.binary(max_size=20) | st.integers() | st.none(), max_size=8))
def test_any_content_parses_or_is_refused(content: dict[str, Any]) -> None:
    with contextlib.suppress(HttpError):
        parse(cbor2.dumps({"content": content}), Kind.CALL)


@pytest.mark.parametrize("expiry", [NOW - 1, NOW + INGRESS_WINDOW + PERMITTED_DRIFT + 1])
def test_expiry_outside_the_window_is_refused(expiry: int) -> None:
    # These words make the JavaScript agent look at the replica's clock.
    with pytest.raises(HttpError, match="Invalid request expiry: ") as caught:
        check_expiry(expiry, NOW)
    assert caught.value.status == 400


def test_expiry_inside_the_window() -> None:
    check_expiry(NOW, NOW)
    check_expiry(NOW + INGRESS_WINDOW, NOW)


# --- senders ---


class Key:
    """A sender of each kind: its DER key and how it signs."""

    def __init__(self, kind: str) -> None:
        self._sign: Callable[[bytes], bytes]
        key: Any
        if kind == "ed25519":
            key = ed25519.Ed25519PrivateKey.generate()
            self._sign = key.sign
        else:
            key = ec.generate_private_key({"p256": ec.SECP256R1(), "secp256k1": ec.SECP256K1()}[kind])
            self._sign = lambda m: b"".join(
                n.to_bytes(32, "big") for n in decode_dss_signature(key.sign(m, ec.ECDSA(SHA256())))
            )
        self.der = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.key = key

    def envelope(self, *, domain: bytes = REQUEST_DOMAIN, **more: object) -> bytes:
        content = call_content(sender=Principal.self_authenticating(self.der).raw)
        signature = self._sign(domain + hash_of_map(content))
        return envelope(content, **{"sender_pubkey": self.der, "sender_sig": signature, **more})


KINDS = pytest.mark.parametrize("kind", ["ed25519", "p256", "secp256k1"])


@KINDS
def test_signed(kind: str) -> None:
    key = Key(kind)
    assert authenticate(parse(key.envelope(), Kind.CALL)) == Principal.self_authenticating(key.der)


def test_anonymous() -> None:
    assert authenticate(parse(envelope(call_content()), Kind.CALL)) == Principal.anonymous()


def refused(body: bytes, words: str) -> None:
    with pytest.raises(HttpError, match=words) as caught:
        authenticate(parse(body, Kind.CALL))
    assert caught.value.status in (400, 403)


@KINDS
def test_signature_of_something_else_is_refused(kind: str) -> None:
    refused(Key(kind).envelope(domain=b"\x0aic-other!!"), "does not hold")


@KINDS
def test_signature_of_another_length_is_refused(kind: str) -> None:
    refused(Key(kind).envelope(sender_sig=bytes(63)), "does not hold")


def test_another_keys_principal_is_refused() -> None:
    refused(Key("ed25519").envelope(sender_pubkey=Key("ed25519").der), "not the principal")


def test_missing_signature_is_refused() -> None:
    content = call_content(sender=Principal.self_authenticating(Key("p256").der).raw)
    refused(envelope(content), "Missing signature")


def test_anonymous_with_a_signature_is_refused() -> None:
    refused(envelope(call_content(), sender_sig=bytes(64)), "anonymous")


def test_delegations_are_refused_by_name() -> None:
    refused(Key("ed25519").envelope(sender_delegation=[{"delegation": {}}]), "delegations")


def unsupported(der: bytes) -> bytes:
    content = call_content(sender=Principal.self_authenticating(der).raw)
    return envelope(content, sender_pubkey=der, sender_sig=bytes(64))


def test_other_kinds_of_keys_are_refused() -> None:
    keys: list[Any] = [rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())]
    for key in keys:
        der = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        refused(unsupported(der), "neither Ed25519, P-256 nor secp256k1")
    refused(unsupported(b"not a key"), "not a public key")


def test_another_encoding_of_a_key_is_refused() -> None:
    point = Key("p256").key.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    der = bytes.fromhex("3039301306072a8648ce3d020106082a8648ce3d030107032200") + point
    refused(unsupported(der), "canonical")
