"""Requests as they come over HTTP: a CBOR envelope around a call, a query or a read_state.

Source: interface specification, sections "Envelope", "Request: Call", "Request: Query call" and
"Request: Read state". Unknown fields are refused: they would be signed, but not understood.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from nodeos.core.principal import Principal
from nodeos.core.wire import ParseError
from replica import cbor
from replica.errors import HttpError
from replica.hashing import hash_of_map

MAX_NONCE = 32
MAX_METHOD_NAME = 20_000
MAX_PATHS = 1000
MAX_LABELS = 127
INGRESS_WINDOW = 5 * 60 * 10**9  # nanoseconds
# Clocks differ: a client that runs ahead by less than this isn't refused.
PERMITTED_DRIFT = 60 * 10**9

Path = tuple[bytes, ...]


class Kind(StrEnum):
    CALL = "call"
    QUERY = "query"
    READ_STATE = "read_state"


_COMMON = frozenset({"request_type", "sender", "nonce", "ingress_expiry"})
_FIELDS = {
    Kind.CALL: _COMMON | {"canister_id", "method_name", "arg"},
    Kind.QUERY: _COMMON | {"canister_id", "method_name", "arg"},
    Kind.READ_STATE: _COMMON | {"paths"},
}
_ENVELOPE = frozenset({"content", "sender_pubkey", "sender_sig", "sender_delegation"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What all requests share. ``id`` is the hash of the content, ``expiry`` in nanoseconds since 1970."""

    id: bytes
    sender: Principal
    expiry: int
    nonce: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Request):
    """A call of a method: an update or a query, as the endpoint says."""

    canister: Principal
    method: str
    argument: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadState(Request):
    """A question for parts of the certified state."""

    paths: tuple[Path, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What came beside the content to prove the sender."""

    public_key: bytes | None
    signature: bytes | None
    delegated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    request: Call | ReadState
    credentials: Credentials


def parse(body: bytes, kind: Kind) -> Envelope:
    """Parse an envelope whose content must be of ``kind``. Raises HttpError(400)."""
    try:
        envelope = cbor.fields(cbor.decode(body), "envelope", _ENVELOPE)
        content = cbor.fields(envelope.get("content"), "content", _FIELDS[kind])
        return Envelope(
            request=_content(content, kind),
            credentials=Credentials(
                public_key=_optional_blob(envelope, "sender_pubkey", 1024),
                signature=_optional_blob(envelope, "sender_sig", 1 << 16),
                delegated=envelope.get("sender_delegation") not in (None, []),
            ),
        )
    except (cbor.CborError, ParseError) as error:
        raise HttpError(400, error.message) from error


def check_expiry(expiry: int, now: int) -> None:
    """Refuse a request that has expired or lies too far ahead; the JS agent looks for the first words."""
    latest = now + INGRESS_WINDOW + PERMITTED_DRIFT
    if not now <= expiry <= latest:
        raise HttpError(
            400,
            "Invalid request expiry: Specified ingress_expiry not within expected range: "
            f"Minimum allowed expiry: {now}, maximum allowed expiry: {latest}, provided expiry: {expiry}",
        )


def _content(content: dict[str, object], kind: Kind) -> Call | ReadState:
    if content.get("request_type") != kind:
        raise HttpError(400, f"content.request_type: expected {kind.value!r}")
    sender = _blob(content, "sender", 29)
    nonce = _optional_blob(content, "nonce", MAX_NONCE)
    expiry = content.get("ingress_expiry")
    if not isinstance(expiry, int) or isinstance(expiry, bool) or not 0 <= expiry < 2**64:
        raise HttpError(400, "content.ingress_expiry: expected a natural of 64 bits")
    if kind is Kind.READ_STATE:
        paths = _paths(content.get("paths"))
        return ReadState(
            id=hash_of_map(content), sender=Principal(sender), expiry=expiry, nonce=nonce, paths=paths
        )
    method = content.get("method_name")
    if not isinstance(method, str) or len(method.encode()) > MAX_METHOD_NAME:
        raise HttpError(400, f"content.method_name: expected text of at most {MAX_METHOD_NAME} bytes")
    canister = _blob(content, "canister_id", 29)
    argument = _blob(content, "arg", 1 << 22)
    return Call(
        id=hash_of_map(content),
        sender=Principal(sender),
        expiry=expiry,
        nonce=nonce,
        canister=Principal(canister),
        method=method,
        argument=argument,
    )


def _paths(value: object) -> tuple[Path, ...]:
    if not isinstance(value, list) or len(value) > MAX_PATHS:
        raise HttpError(400, f"content.paths: expected a list of at most {MAX_PATHS} paths")
    for path in value:
        if not isinstance(path, list) or len(path) > MAX_LABELS:
            raise HttpError(400, f"content.paths: a path is a list of at most {MAX_LABELS} labels")
        if not all(isinstance(label, bytes) for label in path):
            raise HttpError(400, "content.paths: a label is a blob")
    return tuple(tuple(path) for path in value)


def _blob(fields: dict[str, object], key: str, limit: int) -> bytes:
    value = fields.get(key)
    if not isinstance(value, bytes) or len(value) > limit:
        raise HttpError(400, f"{key}: expected a blob of at most {limit} bytes")
    return value


def _optional_blob(fields: dict[str, object], key: str, limit: int) -> bytes | None:
    return None if key not in fields else _blob(fields, key, limit)
