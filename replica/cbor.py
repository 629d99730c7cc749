"""CBOR at the edge: one value, no duplicate keys, no tags but the self-describing one, bounded depth."""

from __future__ import annotations

import io
from typing import NoReturn

from nodeos.core.errors import NodeosError

_SELF_DESCRIBED = 55799
_MAGIC = b"\xd9\xd9\xf7"
_MAX_DEPTH = 64
# Tags that the library would turn into dates, patterns, shared references and so on.
_DECODED_TAGS = (
    0,
    1,
    2,
    3,
    4,
    5,
    25,
    28,
    29,
    30,
    35,
    36,
    37,
    52,
    54,
    100,
    256,
    258,
    260,
    261,
    1004,
    43000,
    _SELF_DESCRIBED,
)


class CborError(NodeosError):
    """Bytes that aren't the CBOR that is expected here."""


def encode(value: object) -> bytes:
    """Encode with the self-describing tag in front, as agents expect it."""
    import cbor2

    return _MAGIC + cbor2.dumps(value)


def decode(data: bytes) -> object:
    """Decode one value, with or without the self-describing tag. Raises CborError."""
    import cbor2

    file = io.BytesIO(data.removeprefix(_MAGIC))
    decoder = cbor2.CBORDecoder(
        file,
        max_depth=_MAX_DEPTH,
        allow_duplicate_keys=False,
        semantic_decoders=dict.fromkeys(_DECODED_TAGS, _refuse_tag),
        tag_hook=_refuse_tag,
        read_size=1,
    )
    try:
        value: object = decoder.decode()
    except (cbor2.CBORDecodeError, ValueError, OverflowError, MemoryError) as error:
        raise CborError(f"not valid CBOR: {error}") from error
    if file.read(1):
        raise CborError("not valid CBOR: bytes are left over behind the value")
    return value


def _refuse_tag(value: object, immutable: bool) -> NoReturn:
    raise ValueError("tags have no place here")


def fields(value: object, what: str, known: frozenset[str]) -> dict[str, object]:
    """A map with text keys, all of them known. Raises CborError."""
    if not isinstance(value, dict):
        raise CborError(f"{what}: expected a map")
    for key in value:
        if key not in known:
            raise CborError(f"{what}: unknown field {str(key)[:40]!r}")
    return value
