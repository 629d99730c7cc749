"""The firmware's boot event log, and what its events make of the PCRs.

Source: TCG "PC Client Platform Firmware Profile", 1.06, sections 9 and 10. The type of an event and, for
most types, its data are not hashed into any PCR: nothing is decided on them here. What an event's digest
must be is checked for the types whose data is what was measured.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nodeos.core.errors import Finding
from nodeos.core.wire import ParseError
from provisioning.verify.findings import finding
from provisioning.verify.reader import Reader
from provisioning.verify.tpm import DIGEST_NAMES, Alg, digest_size

EV_NO_ACTION, EV_SEPARATOR, EV_EFI_ACTION = 0x00000003, 0x00000004, 0x80000007
EV_EFI_VARIABLE_DRIVER_CONFIG = 0x80000001
EV_NAMES = {
    0x00000000: "EV_PREBOOT_CERT",
    0x00000001: "EV_POST_CODE",
    EV_NO_ACTION: "EV_NO_ACTION",
    EV_SEPARATOR: "EV_SEPARATOR",
    0x00000005: "EV_ACTION",
    0x00000006: "EV_EVENT_TAG",
    0x00000007: "EV_S_CRTM_CONTENTS",
    0x00000008: "EV_S_CRTM_VERSION",
    0x00000009: "EV_CPU_MICROCODE",
    0x0000000A: "EV_PLATFORM_CONFIG_FLAGS",
    0x0000000B: "EV_TABLE_OF_DEVICES",
    0x0000000C: "EV_COMPACT_HASH",
    0x0000000D: "EV_IPL",
    0x00000010: "EV_NONHOST_CODE",
    0x00000011: "EV_NONHOST_CONFIG",
    0x00000012: "EV_NONHOST_INFO",
    EV_EFI_VARIABLE_DRIVER_CONFIG: "EV_EFI_VARIABLE_DRIVER_CONFIG",
    0x80000002: "EV_EFI_VARIABLE_BOOT",
    0x80000003: "EV_EFI_BOOT_SERVICES_APPLICATION",
    0x80000004: "EV_EFI_BOOT_SERVICES_DRIVER",
    0x80000005: "EV_EFI_RUNTIME_SERVICES_DRIVER",
    0x80000006: "EV_EFI_GPT_EVENT",
    EV_EFI_ACTION: "EV_EFI_ACTION",
    0x80000008: "EV_EFI_PLATFORM_FIRMWARE_BLOB",
    0x80000009: "EV_EFI_HANDOFF_TABLES",
    0x8000000A: "EV_EFI_PLATFORM_FIRMWARE_BLOB2",
    0x8000000B: "EV_EFI_HANDOFF_TABLES2",
    0x8000000C: "EV_EFI_VARIABLE_BOOT2",
    0x800000E0: "EV_EFI_VARIABLE_AUTHORITY",
    0x800000E1: "EV_EFI_SPDM_FIRMWARE_BLOB",
    0x800000E2: "EV_EFI_SPDM_FIRMWARE_CONFIG",
}
_DATA_IS_MEASURED = (EV_SEPARATOR, EV_EFI_ACTION, EV_EFI_VARIABLE_DRIVER_CONFIG)
_SPEC_ID, _LOCALITY = b"Spec ID Event03\0", b"StartupLocality\0"
PCRS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event. ``number`` counts from 0 in its log; ``digests`` maps TPM_ALG_ID to the digest."""

    number: int
    pcr: int
    kind: int
    digests: Mapping[int, bytes]
    data: bytes

    @property
    def words(self) -> str:
        """The event for people: its number and type."""
        return f"event {self.number} ({EV_NAMES.get(self.kind, hex(self.kind))})"

    @property
    def extends(self) -> bool:
        return self.kind != EV_NO_ACTION


@dataclass(frozen=True, slots=True, kw_only=True)
class EventLog:
    """A parsed log. ``algorithms`` are the banks it has; ``locality`` is where PCR 0 starts."""

    algorithms: tuple[int, ...]
    events: tuple[Event, ...]
    locality: int = 0


def parse_event_log(data: bytes) -> EventLog:
    """Parse a crypto-agile log, or an old one with SHA-1 only. Raises ParseError."""
    reader = Reader(data, "firmware log", order="little")
    first = _old_event(reader, 0)
    if first.extends or not first.data.startswith(_SPEC_ID):
        events = [first]
        while reader.left:
            events.append(_old_event(reader, len(events)))
        return EventLog(algorithms=(Alg.SHA1,), events=tuple(events), locality=_locality(events))
    sizes = _spec_id(first.data)
    events = [first]
    while reader.left:
        events.append(_event(reader, len(events), sizes))
    return EventLog(algorithms=tuple(sizes), events=tuple(events), locality=_locality(events))


def _head(reader: Reader) -> tuple[int, int]:
    """PCR and type. An event that extends nothing may name no PCR (0xFFFFFFFF, as Windows' notes do)."""
    index, kind = reader.u32(), reader.u32()
    if index >= PCRS and not (index == 0xFFFFFFFF and kind == EV_NO_ACTION):
        raise reader.fail(f"there is no PCR {index}")
    return index, kind


def _old_event(reader: Reader, number: int) -> Event:
    pcr, kind = _head(reader)
    value = reader.take(20)
    data = reader.take(reader.u32())
    return Event(number=number, pcr=pcr, kind=kind, digests={Alg.SHA1: value}, data=data)


def _event(reader: Reader, number: int, sizes: Mapping[int, int]) -> Event:
    pcr, kind = _head(reader)
    count = reader.u32()
    if count != len(sizes):
        raise reader.fail(f"event {number} has {count} digests, the log's header names {len(sizes)}")
    digests: dict[int, bytes] = {}
    for _ in range(count):
        alg = reader.u16()
        if alg not in sizes or alg in digests:
            raise reader.fail(f"event {number}: digest {alg:#06x} is not in the header, or stands twice")
        digests[alg] = reader.take(sizes[alg])
    data = reader.take(reader.u32())
    return Event(number=number, pcr=pcr, kind=kind, digests=digests, data=data)


def _spec_id(data: bytes) -> dict[int, int]:
    """TCG_EfiSpecIDEvent: digest sizes by algorithm."""
    reader = Reader(data, "firmware log header", order="little")
    reader.take(16 + 4 + 4)  # signature, platform class, version, errata, size of UINTN
    count = reader.u32()
    if not 1 <= count <= 16:
        raise reader.fail(f"{count} algorithms")
    sizes: dict[int, int] = {}
    for _ in range(count):
        alg, size = reader.u16(), reader.u16()
        if alg in sizes or size > 64 or (alg in DIGEST_NAMES and size != digest_size(alg)):
            raise reader.fail(f"wrong digest size {size} of algorithm {alg:#06x}")
        sizes[alg] = size
    reader.take(reader.u8())
    reader.done()
    return sizes


def _locality(events: Iterable[Event]) -> int:
    """The locality of TPM2_Startup: PCR 0 starts with it (Firmware Profile, 10.4.5.3)."""
    for event in events:
        if not event.extends and event.pcr == 0 and event.data.startswith(_LOCALITY):
            if len(event.data) != len(_LOCALITY) + 1 or event.data[-1] not in (0, 3, 4):
                raise ParseError(f"firmware log: {event.words}: wrong start-up locality")
            return event.data[-1]
    return 0


def extend(alg: int, value: bytes, digest: bytes) -> bytes:
    """PCR extend: the hash of the old value and the digest."""
    return hashlib.new(DIGEST_NAMES[Alg(alg)], value + digest, usedforsecurity=False).digest()


def initial(log: EventLog, alg: int) -> dict[int, bytes]:
    """PCRs 0-16 and 23 start at zero, 17-22 at ones; PCR 0 ends with the start-up locality."""
    size = digest_size(alg)
    values = {index: (b"\xff" if 17 <= index <= 22 else b"\0") * size for index in range(PCRS)}
    values[0] = bytes(size - 1) + bytes([log.locality])
    return values


def replay(log: EventLog, alg: int, more: Iterable[Event] = ()) -> dict[int, bytes]:
    """The value of every PCR after the log's events and then those of ``more``, in the bank ``alg``.

    Raises ParseError if the log lacks the bank.
    """
    values = initial(log, alg)
    for event in (*log.events, *more):
        if not event.extends:
            continue
        if alg not in event.digests:
            raise ParseError(f"firmware log: no digests of {DIGEST_NAMES.get(Alg(alg), hex(alg))}")
        values[event.pcr] = extend(alg, values[event.pcr], event.digests[alg])
    return values


def check_events(log: EventLog) -> tuple[Finding, ...]:
    """Events whose data is what was measured, and whose digest is another: the log was changed."""
    found = []
    for event in log.events:
        if event.kind not in _DATA_IS_MEASURED:
            continue
        for alg, value in event.digests.items():
            if alg not in DIGEST_NAMES:
                continue
            expected = hashlib.new(DIGEST_NAMES[Alg(alg)], event.data, usedforsecurity=False).digest()
            if value != expected:
                found.append(
                    finding(
                        "eventlog.digest",
                        f"PCR {event.pcr}, {event.words}: found {value.hex()}, expected {expected.hex()}",
                    )
                )
    return tuple(found)


def check_replay(
    log: EventLog, more: Iterable[Event], quoted: Mapping[int, bytes], covered: Iterable[int]
) -> tuple[Finding, ...]:
    """Refuses logs that do not give the quoted SHA-256 values of the PCRs ``covered``.

    A PCR without any event counts as never extended: an empty log explains nothing but zeros.
    """
    if Alg.SHA256 not in log.algorithms:
        return (finding("eventlog.bank", "the firmware log has no SHA-256 digests"),)
    events = (*log.events, *more)
    values = replay(log, Alg.SHA256, more)
    found = []
    for index in covered:
        if values[index] == quoted[index]:
            continue
        of_pcr = [event for event in events if event.pcr == index and event.extends]
        last = f"after its last of {len(of_pcr)}, {of_pcr[-1].words}" if of_pcr else "which has no event"
        place = _matches_earlier(log, more, index, quoted[index])
        found.append(
            finding(
                "eventlog.replay",
                f"PCR {index}, {last}: the log gives {values[index].hex()}, expected the quoted value "
                f"{quoted[index].hex()}{place}",
            )
        )
    return tuple(found)


def _matches_earlier(log: EventLog, more: Iterable[Event], index: int, quoted: bytes) -> str:
    """Words that name the first surplus event, where the log was only appended to."""
    value = initial(log, Alg.SHA256)[index]
    matched = value == quoted
    for event in (*log.events, *more):
        if event.pcr != index or not event.extends:
            continue
        if matched:
            return f"; the quote ends before {event.words}"
        value = extend(Alg.SHA256, value, event.digests[Alg.SHA256])
        matched = value == quoted
    return ""
