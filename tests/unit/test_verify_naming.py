"""Findings name what the logs say of a register."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeos.core.errors import RefusedError
from provisioning.verify.eventlog import Event
from provisioning.verify.evidence import verify_evidence
from provisioning.verify.naming import events_of, named
from tests.support import evidence as ev
from tests.unit.test_verify_evidence import evidence, expected

EV_IPL, EV_EVENT_TAG, EV_APPLICATION = 0x0D, 0x06, 0x80000003


def utf16(text: str) -> bytes:
    return (text + "\0").encode("utf-16-le")


def image_load(path: str) -> bytes:
    node = struct.pack("<BBH", 4, 4, 4 + len(utf16(path))) + utf16(path)
    nodes = struct.pack("<BBHQ", 1, 1, 12, 0) + node + struct.pack("<BBH", 0x7F, 0xFF, 4)
    return struct.pack("<QQQQ", 0, 0, 0, len(nodes)) + nodes


def events(*items: tuple[int, int, bytes]) -> tuple[Event, ...]:
    return events_of(ev.log_header() + b"".join(ev.event(*item) for item in items), b"")


@pytest.mark.parametrize(
    ("kind", "data", "words"),
    [
        (EV_IPL, utf16("Credentials initrd"), 'event 1 (EV_IPL) "Credentials initrd"'),
        (EV_IPL, b"grub_cmd: x\0", 'event 1 (EV_IPL) "grub_cmd: x"'),
        (EV_IPL, b'{"content":{"string":"sysext"}}', 'event 1 (EV_IPL) "sysext"'),
        (EV_IPL, b"{broken", "event 1 (EV_IPL)"),
        (EV_EVENT_TAG, struct.pack("<II", 1, 4) + utf16("ab"), 'event 1 (EV_EVENT_TAG) "ab"'),
        (
            EV_APPLICATION,
            image_load("\\EFI\\BOOT\\BOOTX64.EFI"),
            'event 1 (EV_EFI_BOOT_SERVICES_APPLICATION) "\\EFI\\BOOT\\BOOTX64.EFI"',
        ),
        (0x01, b"x", "event 1 (EV_POST_CODE)"),
    ],
)
def test_an_event_in_words(kind: int, data: bytes, words: str) -> None:
    assert named(events((12, kind, data), (5, EV_IPL, b"elsewhere")), 12) == f"; the log names {words}"


def test_separators_and_other_registers_are_left_out() -> None:
    assert named(events((4, 0x04, bytes(4)), (4, 0x03, b"x"), (5, EV_IPL, b"x")), 4) == ""


def test_many_and_long_events_are_cut() -> None:
    words = named(events(*[(12, EV_IPL, utf16("x" * 500))] * 9), 12)
    assert words.endswith("and 3 more")
    assert len(words) < 800


@given(st.sampled_from([EV_IPL, EV_EVENT_TAG, EV_APPLICATION]), st.binary(max_size=80))
def test_anything_is_one_printable_line(kind: int, data: bytes) -> None:
    assert named(events((12, kind, data)), 12).isprintable()


def test_logs_that_cannot_be_read_name_nothing() -> None:
    assert events_of(b"", b"x") == ()


@pytest.mark.parametrize("place", ["firmware", "userspace"])
def test_a_credential_is_named_in_the_finding(place: str) -> None:
    machine = ev.Machine()
    added = b"cpio archive"
    digest = hashlib.sha256(added).digest()
    pcr12 = ev.extend(ev.extend(bytes(32), digest), hashlib.sha256(ev.site().to_bytes()).digest())
    honest = evidence(machine)
    firmware, userspace = honest.firmware_log, honest.userspace_log
    if place == "firmware":
        firmware += ev.event(12, EV_IPL, utf16("Credentials initrd"), digest)
    else:
        userspace += ev.userspace_log([(12, b"Credentials initrd")])
    # The quote does not cover the logs.
    given = replace(
        evidence(machine, pcrs={**machine.pcrs, 12: pcr12}), firmware_log=firmware, userspace_log=userspace
    )
    with pytest.raises(RefusedError) as caught:
        verify_evidence(given, expected(machine))
    [found] = [item for item in caught.value.findings if item.code == "pcr.12"]
    assert found.message.endswith(' "Credentials initrd"')
