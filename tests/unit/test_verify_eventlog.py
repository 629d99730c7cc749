"""Event logs: real machines' logs replayed, and every kind of tampering named."""

from __future__ import annotations

import contextlib
import hashlib
import re
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeos.core.wire import ParseError
from provisioning.verify.celog import parse_measure_log
from provisioning.verify.eventchecks import check_events, check_replay
from provisioning.verify.eventlog import Event, parse_event_log, replay
from provisioning.verify.evidence import REPLAYED_PCRS
from provisioning.verify.tpm import DIGEST_NAMES, Alg
from tests.support import evidence as ev
from tests.support.vectors import vectors

LOGS = (
    "arch-linux",
    "bootorder",
    "cos-101-amd-sev",
    "debian-10",
    "ebs-event-missing",
    "gce-ubuntu-2104-log",
    "option-rom",
    "postcode",
    "rhel8-uefi",
    "ubuntu-2104-no-secure-boot",
    "uefi-sha1-log",
)


def expected(path: Path) -> dict[str, dict[int, str]]:
    """The PCR values at the end of an expected file, by bank."""
    banks: dict[str, dict[int, str]] = {}
    bank = ""
    for line in path.read_text().partition("\npcrs:\n")[2].splitlines():
        if found := re.fullmatch(r"  (\w+):", line):
            bank = found[1]
            banks[bank] = {}
        elif found := re.fullmatch(r"    (\d+) *: 0x([0-9a-f]+)", line):
            banks[bank][int(found[1])] = found[2]
    return banks


@pytest.mark.parametrize(
    "name", ["arch-linux", "bootorder", "gce-ubuntu-2104-log", "postcode", "uefi-sha1-log"]
)
def test_replay_gives_the_expected_values_in_every_bank(name: str) -> None:
    folder = vectors("eventlogs")
    log = parse_event_log((folder / f"{name}.bin").read_bytes())
    banks = expected(folder / f"{name}.expected.yaml")
    assert banks
    for bank, values in banks.items():
        alg = next(alg for alg, text in DIGEST_NAMES.items() if text == bank)
        replayed = replay(log, alg)
        assert {index: replayed[index].hex() for index in values} == values


@pytest.mark.parametrize("name", LOGS)
def test_real_logs_are_read_and_found_whole(name: str) -> None:
    log = parse_event_log((vectors("eventlogs") / f"{name}.bin").read_bytes())
    assert check_events(log) == ()
    alg = Alg.SHA256 if Alg.SHA256 in log.algorithms else Alg.SHA1
    values = replay(log, alg)
    if alg == Alg.SHA256:
        assert check_replay(log, (), values, REPLAYED_PCRS) == ()
    else:
        assert [f.code for f in check_replay(log, (), values, REPLAYED_PCRS)] == ["eventlog.bank"]


@pytest.mark.parametrize(
    ("name", "pcr0", "pcr7"),
    [
        ("cos-101-amd-sev", "0f35c214608d93c7", "2bc6edaa921f953c"),
        ("rhel8-uefi", "24af52a4f429b71a", "5fd54361d580eb75"),
        ("ubuntu-2104-no-secure-boot", "24af52a4f429b71a", "0d8847bc5eca0645"),
    ],
)
def test_replay_agrees_with_tpm2_eventlog(name: str, pcr0: str, pcr7: str) -> None:
    """The beginnings of PCR 0 and 7 as tpm2-tools 5.4 prints them for these logs."""
    values = replay(parse_event_log((vectors("eventlogs") / f"{name}.bin").read_bytes()), Alg.SHA256)
    assert (values[0].hex()[:16], values[7].hex()[:16]) == (pcr0, pcr7)


def test_startup_locality_is_where_pcr_0_starts() -> None:
    log = parse_event_log((vectors("eventlogs") / "short-no-action.bin").read_bytes())
    assert log.locality == 3
    assert replay(log, Alg.SHA1)[0] == bytes(19) + b"\x03"


def quoted() -> dict[int, bytes]:
    return ev.boot_pcrs(b"")


PHASES = parse_measure_log(ev.userspace_log([(11, phase) for phase in ev.PHASES]), first=100)


def codes(firmware: bytes, more: Sequence[Event] = PHASES) -> list[str]:
    log = parse_event_log(firmware)
    found = (*check_events(log, more), *check_replay(log, more, quoted(), REPLAYED_PCRS))
    return [f.code for f in found]


def test_synthetic_log_is_whole() -> None:
    assert codes(ev.firmware_log()) == []


def test_changed_digest_names_pcr_event_found_and_expected() -> None:
    events = ev.firmware_events()
    other = hashlib.sha256(b"other").digest()
    raw = ev.log_header() + b"".join(ev.event(*e) for e in events[:-2])
    raw += ev.event(*events[-2], digest=other) + ev.event(*events[-1])
    log = parse_event_log(raw)
    (one,) = check_events(log)
    assert one.code == "eventlog.digest"
    for part in ("PCR 7", "EV_SEPARATOR", other.hex(), hashlib.sha256(bytes(4)).hexdigest()):
        assert part in one.message
    (two,) = check_replay(log, PHASES, quoted(), REPLAYED_PCRS)
    assert two.code == "eventlog.replay"
    assert "PCR 7" in two.message
    assert quoted()[7].hex() in two.message


def test_findings_of_a_forged_log_are_bounded() -> None:
    raw = ev.log_header() + ev.event(0, 0x00000004, b"x", bytes(32)) * 3000
    found = check_events(parse_event_log(raw))
    assert len(found) == 17
    assert "2984 more" in found[-1].message


def test_missing_event_is_refused() -> None:
    assert codes(ev.firmware_log(ev.firmware_events()[1:])) == ["eventlog.replay"]


def test_appended_event_is_named() -> None:
    events = [*ev.firmware_events(), (5, 0x80000007, b"Exit Boot Services")]
    log = parse_event_log(ev.firmware_log(events))
    (finding,) = check_replay(log, PHASES, quoted(), REPLAYED_PCRS)
    assert "PCR 5" in finding.message
    assert f"the quote ends before event {len(events)} (EV_EFI_ACTION)" in finding.message


def test_swapped_events_are_refused() -> None:
    events = ev.firmware_events()
    events[2], events[10] = events[10], events[2]
    assert codes(ev.firmware_log(events)) == ["eventlog.replay"]


def test_empty_log_explains_nothing() -> None:
    untouched = sum(1 for index in REPLAYED_PCRS if not any(quoted()[index]))
    assert codes(ev.log_header(), ()) == ["eventlog.replay"] * (len(REPLAYED_PCRS) - untouched)


def test_event_hidden_as_no_action_is_refused() -> None:
    """The type is not hashed: an event retyped so that it extends nothing changes the replay."""
    events = ev.firmware_events()
    events[0] = (0, 0x00000003, events[0][2])
    assert codes(ev.firmware_log(events)) == ["eventlog.replay"]


def test_userspace_log_continues_the_firmwares() -> None:
    extra = parse_measure_log(ev.userspace_log([(5, b"x")]))
    assert codes(ev.firmware_log(), (*PHASES, *extra)) == ["eventlog.replay"]
    assert codes(ev.firmware_log(), PHASES[:-1]) == ["eventlog.replay"]
    log = parse_event_log(ev.firmware_log())
    more = parse_measure_log(ev.userspace_log([(11, phase) for phase in ev.PHASES]))
    assert replay(log, Alg.SHA256, more)[11] == quoted()[11]


def test_log_without_sha256_is_refused() -> None:
    old = struct.pack("<II", 0, 8) + bytes(20) + struct.pack("<I", 0)
    assert codes(old) == ["eventlog.bank"]


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "needed at offset 0"),
        (ev.log_header() + ev.event(24, 1, b"x"), "there is no PCR 24"),
        (ev.log_header() + ev.event(0, 1, b"x") + b"\0\1", "are left"),
        (ev.log_header() + ev.event(0xFFFFFFFF, 1, b"x"), "there is no PCR"),
        (ev.log_header() + struct.pack("<III", 0, 1, 2), "2 digests, the log's header names 1"),
        (ev.log_header() + ev.event(0, 3, b"StartupLocality\0\x07"), "wrong start-up locality"),
    ],
)
def test_malformed_logs(raw: bytes, words: str) -> None:
    with pytest.raises(ParseError, match=words):
        parse_event_log(raw)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"{}", "not a JSON sequence"),
        (b"\x1e{}", r"userspace log\[0\].digests: missing"),
        (b'\x1e{"digests":[],"pcr":24}', r"userspace log\[0\].pcr: 24"),
        (b'\x1e{"digests":[{"hashAlg":"sha256","digest":"00"}],"pcr":1}', "sha256 has 32"),
        (b"\x1e" * 2000, "at most 1024"),
    ],
)
def test_malformed_userspace_logs(raw: bytes, words: str) -> None:
    with pytest.raises(ParseError, match=words):
        parse_measure_log(raw)


def test_record_of_an_nv_index_extends_no_pcr() -> None:
    digest = f'{{"hashAlg":"sha256","digest":"{"0" * 64}"}}'
    assert parse_measure_log(f'\x1e{{"digests":[{digest}],"nv_index":1}}\n'.encode()) == ()


@given(st.binary(max_size=500))
@settings(max_examples=300, deadline=None)
def test_parsers_raise_nothing_but_parse_errors(data: bytes) -> None:
    for raw in (data, ev.log_header() + data):
        try:
            log = parse_event_log(raw)
            check_events(log)
            check_replay(log, (), quoted(), REPLAYED_PCRS)
        except ParseError:
            pass
    with contextlib.suppress(ParseError):
        parse_measure_log(b"\x1e" + data)


@given(st.integers(0, 100_000), st.integers(0, 255))
@settings(max_examples=200, deadline=None)
def test_damaged_real_logs(at: int, value: int) -> None:
    raw = bytearray((vectors("eventlogs") / "arch-linux.bin").read_bytes())
    raw[at % len(raw)] = value
    try:
        log = parse_event_log(bytes(raw))
        check_events(log)
        if Alg.SHA256 in log.algorithms:
            replay(log, Alg.SHA256)
    except ParseError:
        pass
