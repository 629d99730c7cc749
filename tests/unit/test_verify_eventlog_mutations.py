"""Nothing done to a log makes it explain other registers, and no log crashes the parser."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from nodeos.core.wire import ParseError
from provisioning.verify.celog import parse_measure_log
from provisioning.verify.eventdata import describe, measured
from provisioning.verify.eventlog import EV_NO_ACTION, parse_event_log, replay
from provisioning.verify.evidence import REPLAYED_PCRS, UNLOGGED_PCRS, check_logs
from provisioning.verify.expected import parse_expected
from provisioning.verify.findings import Result
from provisioning.verify.replayed import replay_logs
from provisioning.verify.tpm import Alg
from tests.support import evidence as ev
from tests.support.vectors import vectors


class Record(NamedTuple):
    """An event before it is packed. The digest stays when the data is changed: only the note is another."""

    pcr: int
    kind: int
    data: bytes
    digest: bytes


def recorded(pcr: int, kind: int, data: bytes) -> Record:
    return Record(pcr, kind, data, hashlib.sha256(data).digest())


QUOTED = ev.boot_pcrs(b"")
PHASES = ev.userspace_log([(11, phase) for phase in ev.PHASES])
HONEST = [recorded(*one) for one in ev.firmware_events()]
KINDS = st.sampled_from([0, EV_NO_ACTION, 4, 0x0D, 0x80000001, 0x80000002, 0x80000007, 0x800000E0, 0x12345])
PCRS = st.integers(0, 15)
DATA = st.binary(max_size=12)


def packed(records: list[Record]) -> bytes:
    return ev.log_header() + b"".join(ev.event(*record) for record in records)


def registers(records: list[Record]) -> dict[int, bytes]:
    """What a TPM that was extended so would show in the quoted PCRs; the phases come after."""
    values = dict.fromkeys(range(24), bytes(32))
    for record in records:
        if record.kind != EV_NO_ACTION:
            values[record.pcr] = ev.extend(values[record.pcr], record.digest)
    for phase in ev.PHASES:
        values[11] = ev.extend(values[11], hashlib.sha256(phase).digest())
    return {**QUOTED, **{index: values[index] for index in REPLAYED_PCRS}}


@st.composite
def mutated(draw: st.DrawFn) -> list[Record]:
    """The honest log with events retyped, moved, swapped, dropped, doubled, appended, or with other data."""
    records = list(HONEST)
    for _ in range(draw(st.integers(1, 5))):
        at, other = (draw(st.integers(0, len(records) - 1)) for _ in range(2))
        match draw(st.sampled_from(["type", "data", "pcr", "swap", "drop", "double", "append"])):
            case "type":
                records[at] = records[at]._replace(kind=draw(KINDS))
            case "data":
                records[at] = records[at]._replace(data=draw(DATA))
            case "pcr":
                records[at] = records[at]._replace(pcr=draw(PCRS))
            case "swap":
                records[at], records[other] = records[other], records[at]
            case "drop":
                del records[at]
            case "double":
                records.insert(other, records[at])
            case _:
                records.append(recorded(draw(PCRS), draw(KINDS), draw(DATA)))
    return records


def test_honest_log_is_accepted() -> None:
    assert registers(HONEST) == QUOTED
    assert check_logs(packed(HONEST), PHASES, QUOTED).result is Result.PASSED


@given(mutated())
@settings(max_examples=400, deadline=None)
def test_no_mutation_explains_other_registers(records: list[Record]) -> None:
    """A log passes only where a TPM extended so would show these very values."""
    found = check_logs(packed(records), PHASES, QUOTED)
    if found.result is Result.PASSED:
        assert registers(records) == QUOTED
        assert not any(r.pcr in UNLOGGED_PCRS and r.kind != EV_NO_ACTION for r in records)


@given(mutated(), st.sampled_from(REPLAYED_PCRS))
@settings(max_examples=200, deadline=None)
def test_no_mutation_saves_a_machine_that_measured_something_else(records: list[Record], pcr: int) -> None:
    """Its log may be told as it will: the register holds what was measured, and that is of no honest log."""
    shown = {**QUOTED, pcr: ev.extend(QUOTED[pcr], hashlib.sha256(b"another kernel").digest())}
    assert check_logs(packed(records), PHASES, shown).result is Result.REFUSED


@given(st.integers(0, 1 << 20), st.integers(1, 255), st.sampled_from([0, 1]))
@settings(max_examples=300, deadline=None)
def test_changed_byte_is_refused_or_changes_no_register(at: int, change: int, which: int) -> None:
    logs = [bytearray(packed(HONEST)), bytearray(PHASES)]
    logs[which][at % len(logs[which])] ^= change
    firmware, userspace = map(bytes, logs)
    if check_logs(firmware, userspace, QUOTED).result is Result.PASSED:
        log = parse_event_log(firmware)
        values = replay(log, Alg.SHA256, parse_measure_log(userspace))
        assert {index: values[index] for index in REPLAYED_PCRS} == {
            index: QUOTED[index] for index in REPLAYED_PCRS
        }


@given(mutated())
@settings(max_examples=100, deadline=None)
def test_what_is_called_measured_was_hashed(records: list[Record]) -> None:
    for event in parse_event_log(packed(records)).events:
        part = measured(event)
        if part is not None:
            assert hashlib.sha256(part).digest() == event.digests[Alg.SHA256]


@given(st.binary(max_size=600), st.sampled_from([b"", ev.log_header(), packed(HONEST)]))
@settings(max_examples=500, deadline=None)
def test_nothing_but_parse_errors(data: bytes, before: bytes) -> None:
    with suppress(ParseError):
        found = replay_logs(before + data, b"", {Alg.SHA256: QUOTED})
        assert all(len(describe(event)) <= 100 for event, _ in found.events)
    with suppress(ParseError):
        replay_logs(packed(HONEST), b"\x1e" + data, {})
    for raw in (data, b'{"pcrs":' + data, b"pcrs:\n  sha256:\n" + data):
        with suppress(ParseError):
            parse_expected(raw, "x")


@given(
    st.sampled_from(["arch-linux", "rhel8-uefi", "uefi-sha1-log", "option-rom", "short-no-action"]),
    st.integers(0, 100_000),
    st.binary(max_size=8),
    st.integers(0, 8),
)
@settings(max_examples=300, deadline=None)
def test_damaged_real_logs(name: str, at: int, put: bytes, cut: int) -> None:
    raw = (vectors("eventlogs") / f"{name}.bin").read_bytes()
    at %= len(raw)
    with suppress(ParseError):
        found = replay_logs(raw[:at] + put + raw[at + cut :], b"", {})
        assert all(len(describe(event)) <= 100 for event, _ in found.events)


def test_log_of_another_boot_is_refused() -> None:
    """Every quoted PCR alone, and the two logs exchanged."""
    for pcr in REPLAYED_PCRS:
        found = check_logs(packed(HONEST), PHASES, {**QUOTED, pcr: b"\1" * 32})
        assert [one.code for one in found.findings] == ["eventlog.replay"]
        assert f"PCR {pcr}, " in found.findings[0].message
    swapped = ev.userspace_log([(11, phase) for phase in reversed(ev.PHASES)])
    assert check_logs(packed(HONEST), swapped, QUOTED).result is Result.REFUSED


def test_retyped_digest_is_no_way_to_hide_a_changed_note() -> None:
    """What a type hides from the check of its data is then not called measured, so nothing decides on it."""
    one = replace(parse_event_log(packed(HONEST)).events[9], data=b"\xff" * 4)
    assert measured(one) is None
    assert measured(replace(one, kind=0x12345)) is None
