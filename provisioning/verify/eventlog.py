"""The firmware's boot event log, and what its events make of the PCRs.

Source: TCG "PC Client Platform Firmware Profile", 1.06, sections 9 and 10; the old form with SHA-1 alone is
TCG_PCClientPCREvent of section 10.2.1. The type of an event is not hashed into any PCR, and its data only for
some types: nothing is decided on them here. See ``eventdata`` for what an event's digest proves of its data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from nodeos.core.wire import ParseError
from provisioning.verify.reader import Reader
from provisioning.verify.tpm import Alg

EV_NO_ACTION, EV_SEPARATOR, EV_EFI_ACTION = 0x00000003, 0x00000004, 0x80000007
EV_EFI_VARIABLE_DRIVER_CONFIG = 0x80000001
EV_NAMES = {
    0x00000000: "EV_PREBOOT_CERT",
    0x00000001: "EV_POST_CODE",
    0x00000002: "EV_UNUSED",
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
    0x0000000E: "EV_IPL_PARTITION_DATA",
    0x0000000F: "EV_NONHOST_CODE",
    0x00000010: "EV_NONHOST_CONFIG",
    0x00000011: "EV_NONHOST_INFO",
    0x00000012: "EV_OMIT_BOOT_DEVICE_EVENTS",
    0x00000013: "EV_POST_CODE2",
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
    0x8000000D: "EV_EFI_GPT_EVENT2",
    0x80000010: "EV_EFI_HCRTM_EVENT",
    0x800000E0: "EV_EFI_VARIABLE_AUTHORITY",
    0x800000E1: "EV_EFI_SPDM_FIRMWARE_BLOB",
    0x800000E2: "EV_EFI_SPDM_FIRMWARE_CONFIG",
    0x800000E3: "EV_EFI_SPDM_DEVICE_POLICY",
    0x800000E4: "EV_EFI_SPDM_DEVICE_AUTHORITY",
}
# TPM_ALG_ID of every hash that a bank can have: its name and size in bytes (TCG Algorithm Registry, 1.34).
BANKS = {
    0x0004: ("sha1", 20),
    0x000B: ("sha256", 32),
    0x000C: ("sha384", 48),
    0x000D: ("sha512", 64),
    0x0012: ("sm3_256", 32),
    0x0027: ("sha3_256", 32),
    0x0028: ("sha3_384", 48),
    0x0029: ("sha3_512", 64),
}
_HASHLIB = {"sm3_256": "sm3"}
_SPEC_ID, _LOCALITY = b"Spec ID Event03\0", b"StartupLocality\0"
PCRS = 24
_NO_PCR = 0xFFFFFFFF
# Real logs have some hundred events. An event costs about half a kilobyte of memory.
MAX_EVENTS = 1 << 14
MAX_BYTES = 1 << 22
_MAX_DIGEST = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event. ``digests`` maps TPM_ALG_ID to the digest.

    ``number`` counts from 0 through both logs. ``name`` is the type for people; for an event of systemd's log
    ``data`` is the text that it says was measured, and ``firmware`` is False.
    """

    number: int
    pcr: int
    kind: int
    digests: Mapping[int, bytes]
    data: bytes
    name: str
    firmware: bool = True

    @property
    def words(self) -> str:
        """The event for people: its number and type."""
        return f"event {self.number} ({self.name})"

    @property
    def extends(self) -> bool:
        return self.kind != EV_NO_ACTION


@dataclass(frozen=True, slots=True, kw_only=True)
class EventLog:
    """A parsed log. ``algorithms`` are the banks it has; ``locality`` is where PCR 0 starts; ``padding`` bytes of
    zeroes or ones stood behind the last event."""

    algorithms: tuple[int, ...]
    events: tuple[Event, ...]
    locality: int = 0
    padding: int = 0


def bank_name(alg: int) -> str:
    """The bank's name; of an algorithm that is not known here, its number."""
    return BANKS[alg][0] if alg in BANKS else f"{alg:#06x}"


@cache
def hasher(alg: int) -> Callable[[bytes], bytes] | None:
    """The hash of a bank, or None if this program can't compute it."""
    if alg not in BANKS:
        return None
    name = _HASHLIB.get(BANKS[alg][0], BANKS[alg][0])
    if name not in hashlib.algorithms_available:
        return None
    empty = hashlib.new(name, usedforsecurity=False)

    def hashed(data: bytes) -> bytes:
        one = empty.copy()  # half the time of making it by name
        one.update(data)
        return one.digest()

    return hashed


def parse_event_log(data: bytes) -> EventLog:
    """Parse a crypto-agile log, or an old one with SHA-1 only. Raises ParseError.

    Behind the last event the log's area may be filled with zeroes or with 0xFF (as firmware leaves it in memory).
    """
    if len(data) > MAX_BYTES:
        raise ParseError(f"firmware log: {len(data)} bytes, at most {MAX_BYTES} are allowed")
    reader = Reader(data, "firmware log", order="little")
    end = min(len(data.rstrip(b"\0")), len(data.rstrip(b"\xff")))
    if data and not end:
        raise reader.fail("nothing but filling")
    first = _old_event(reader, 0)
    sizes: dict[int, int] | None = None
    if not first.extends and first.data.startswith(_SPEC_ID):
        sizes, uncounted = _spec_id(first.data)
        reader.take(uncounted)
    events = [first]
    while reader.left and reader.offset < end:
        if len(events) >= MAX_EVENTS:
            raise reader.fail(f"more than {MAX_EVENTS} events")
        number = len(events)
        events.append(_old_event(reader, number) if sizes is None else _event(reader, number, sizes))
    return EventLog(
        algorithms=tuple(sizes) if sizes is not None else (Alg.SHA1,),
        events=tuple(events),
        locality=_locality(events),
        padding=reader.left,
    )


def _head(reader: Reader, number: int) -> tuple[int, int, str]:
    """PCR, type and its name. An event that extends nothing may name no PCR: Windows' notes and NV indices do."""
    index, kind = reader.u32(), reader.u32()
    if index >= PCRS and kind != EV_NO_ACTION:
        raise reader.fail(f"event {number}: there is no PCR {index}")
    return index, kind, EV_NAMES.get(kind) or f"{kind:#010x}"


def _old_event(reader: Reader, number: int) -> Event:
    pcr, kind, name = _head(reader, number)
    value = reader.take(20)
    data = reader.take(reader.u32())
    return Event(number=number, pcr=pcr, kind=kind, digests={Alg.SHA1: value}, data=data, name=name)


def _event(reader: Reader, number: int, sizes: Mapping[int, int]) -> Event:
    """TCG_PCR_EVENT2. Its digests stand in any order; a bank may lack, and then has no value for that PCR."""
    pcr, kind, name = _head(reader, number)
    count = reader.u32()
    if count > len(sizes) or (not count and kind != EV_NO_ACTION):
        raise reader.fail(f"event {number} has {count} digests, the log's header names {len(sizes)}")
    digests: dict[int, bytes] = {}
    for _ in range(count):
        alg = reader.u16()
        if alg not in sizes or alg in digests:
            raise reader.fail(f"event {number}: digest {alg:#06x} is not in the header, or stands twice")
        digests[alg] = reader.take(sizes[alg])
    data = reader.take(reader.u32())
    return Event(number=number, pcr=pcr, kind=kind, digests=digests, data=data, name=name)


def _spec_id(data: bytes) -> tuple[dict[int, int], int]:
    """TCG_EfiSpecIDEvent: digest sizes by algorithm. Of one not known here the size is all that counts.

    The second is how many bytes of the maker's own note the event's size does not count: they follow it.
    """
    reader = Reader(data, "firmware log header", order="little")
    reader.take(16 + 4 + 4)  # signature, platform class, version, errata, size of UINTN
    count = reader.u32()
    if not 1 <= count <= 16:
        raise reader.fail(f"{count} algorithms")
    sizes: dict[int, int] = {}
    for _ in range(count):
        alg, size = reader.u16(), reader.u16()
        if alg in sizes or not 1 <= size <= _MAX_DIGEST or (alg in BANKS and size != BANKS[alg][1]):
            raise reader.fail(f"wrong digest size {size} of algorithm {alg:#06x}, or it stands twice")
        sizes[alg] = size
    note = reader.u8()
    inside = min(note, reader.left)
    reader.take(inside)
    reader.done()
    return sizes, note - inside


def _locality(events: Iterable[Event]) -> int:
    """The locality of TPM2_Startup: PCR 0 starts with it (Firmware Profile, 10.4.5.3).

    It counts wherever it stands: PCR 0 tells if it is true. Raises ParseError if two events differ.
    """
    found: int | None = None
    for event in events:
        if event.extends or event.pcr != 0 or not event.data.startswith(_LOCALITY):
            continue
        if len(event.data) != len(_LOCALITY) + 1 or event.data[-1] not in (0, 3, 4):
            raise ParseError(f"firmware log: {event.words}: wrong start-up locality")
        if found not in (None, event.data[-1]):
            raise ParseError(
                f"firmware log: {event.words}: found the start-up locality {event.data[-1]}, "
                f"expected {found} as before"
            )
        found = event.data[-1]
    return found or 0


def extend(alg: int, value: bytes, digest: bytes) -> bytes:
    """PCR extend: the hash of the old value and the digest. Raises ParseError for a hash not known here."""
    hashed = hasher(alg)
    if hashed is None:
        raise ParseError(f"the bank {bank_name(alg)} can't be replayed here")
    return hashed(value + digest)


def initial(log: EventLog, alg: int) -> dict[int, bytes]:
    """PCRs 0-16 and 23 start at zero, 17-22 at ones; PCR 0 ends with the start-up locality."""
    if alg not in BANKS:
        raise ParseError(f"the bank {bank_name(alg)} can't be replayed here")
    size = BANKS[alg][1]
    values = {index: (b"\xff" if 17 <= index <= 22 else b"\0") * size for index in range(PCRS)}
    values[0] = bytes(size - 1) + bytes([log.locality])
    return values


def replay(log: EventLog, alg: int, more: Iterable[Event] = ()) -> dict[int, bytes]:
    """The value of every PCR after the log's events and then those of ``more``, in the bank ``alg``.

    Raises ParseError, with the event, if the logs lack the bank.
    """
    values = initial(log, alg)
    hashed = hasher(alg)
    if hashed is None:
        raise ParseError(f"the bank {bank_name(alg)} can't be replayed here")
    for event in (*log.events, *more):
        if not event.extends:
            continue
        if alg not in event.digests:
            raise ParseError(f"PCR {event.pcr}, {event.words}: it has no digest of {bank_name(alg)}")
        values[event.pcr] = hashed(values[event.pcr] + event.digests[alg])
    return values


def replayable(
    log: EventLog, more: Iterable[Event] = ()
) -> tuple[dict[int, dict[int, bytes]], tuple[str, ...]]:
    """Values by bank and PCR, of every PCR that the logs say anything of; and why banks or PCRs are missing.

    A PCR one of whose events lacks the bank's digest has no value in that bank.
    """
    events = [event for event in (*log.events, *more) if event.extends]
    touched = {event.pcr for event in events} | ({0} if log.locality else set())
    banks: dict[int, dict[int, bytes]] = {}
    missing = []
    for alg in log.algorithms:
        hashed = hasher(alg)
        if hashed is None:
            missing.append(f"the bank {bank_name(alg)} can't be replayed: its hash is not known here")
            continue
        values = {index: value for index, value in initial(log, alg).items() if index in touched}
        for event in events:
            if event.pcr not in values:
                continue
            if alg not in event.digests:
                del values[event.pcr]
                missing.append(f"PCR {event.pcr}, {event.words}: it has no digest of {bank_name(alg)}")
                continue
            values[event.pcr] = hashed(values[event.pcr] + event.digests[alg])
        banks[alg] = values
    return banks, tuple(missing)
