"""systemd's own measurement log, tpm2-measure.log: JSON texts, each after the byte 0x1E (RFC 7464).

Source: systemd's ``tpm2-util.c`` (tpm2_userspace_log) and the TCG Canonical Event Log format 1.0, CEL-JSON;
systemd writes no ``recnum``. A PCR index may be missing for an NV index (NvPCR); such records extend no PCR.
"""

from __future__ import annotations

from collections.abc import Mapping

from nodeos.core.wire import Fields, ParseError, parse_json
from provisioning.verify.eventlog import MAX_BYTES, PCRS, Event
from provisioning.verify.tpm import DIGEST_NAMES, digest_size

_ALGORITHMS = {name: alg for alg, name in DIGEST_NAMES.items()}
EV_USERSPACE = 0x0000000D  # EV_IPL, the type under which the boot stub measures too
# The boot's phases: the text in their record is what was measured.
PHASE = "systemd phase"
MAX_RECORDS = 1024


def parse_measure_log(data: bytes, *, first: int = 0) -> tuple[Event, ...]:
    """Parse the log; events are numbered from ``first``. Raises ParseError with record and field."""
    if not data:
        return ()
    if len(data) > MAX_BYTES:
        raise ParseError(f"userspace log: {len(data)} bytes, at most {MAX_BYTES} are allowed")
    if not data.startswith(b"\x1e") or data.count(b"\x1e") > MAX_RECORDS:
        raise ParseError(f"userspace log: not a JSON sequence of at most {MAX_RECORDS} records")
    records = data.split(b"\x1e")[1:]
    events = (_record(text, index, first + index) for index, text in enumerate(records))
    return tuple(event for event in events if event is not None)


def _record(text: bytes, index: int, number: int) -> Event | None:
    what = f"userspace log[{index}]"
    fields = parse_json(text, what)
    digests = fields.list_of("digests", _digest, limit=16)
    if not fields.has("pcr"):
        return None
    pcr = fields.integer("pcr", high=PCRS - 1)
    banks: Mapping[int, bytes] = {alg: value for alg, value in digests if alg}
    if len(banks) != sum(1 for alg, _ in digests if alg):
        raise ParseError(f"{what}.digests: a hash algorithm stands twice")
    name, said = _content(fields)
    return Event(
        number=number, pcr=pcr, kind=EV_USERSPACE, digests=banks, data=said, name=name, firmware=False
    )


def _content(fields: Fields) -> tuple[str, bytes]:
    """The record's type, and what it says was measured. Neither is hashed, so an odd one is no error."""
    origin = fields.text("content_type", limit=64) if fields.has("content_type") else "unknown"
    if not fields.has("content") or origin != "systemd":
        return origin, b""
    content = fields.nested("content")
    kind = content.text("eventType", limit=64) if content.has("eventType") else "record"
    said = content.text("string") if content.has("string") else ""
    return f"{origin} {kind}", said.encode()


def _digest(value: object, path: str) -> tuple[int, bytes]:
    """A digest with its algorithm; algorithm 0 for one that is not read here."""
    fields = Fields(value, path)
    name = fields.text("hashAlg", limit=16)
    digest = fields.hexadecimal("digest")
    fields.done()
    alg = _ALGORITHMS.get(name.lower(), 0)
    if alg and len(digest) != digest_size(alg):
        raise ParseError(f"{path}.digest: {len(digest)} bytes, {name} has {digest_size(alg)}")
    return alg, digest
