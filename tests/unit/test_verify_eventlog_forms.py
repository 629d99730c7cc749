"""Every form of a log that the standard allows, or that firmware is known to write."""

from __future__ import annotations

import hashlib
import struct

import pytest

from nodeos.core.wire import ParseError
from provisioning.verify.celog import parse_measure_log
from provisioning.verify.eventchecks import check_events, check_replay
from provisioning.verify.eventdata import describe, is_error, measured
from provisioning.verify.eventlog import (
    MAX_BYTES,
    MAX_EVENTS,
    Event,
    EventLog,
    parse_event_log,
    replay,
    replayable,
)
from provisioning.verify.tpm import Alg
from tests.support import evidence as ev

SIZES = {0x0004: 20, 0x000B: 32, 0x000C: 48}
HASHES = {0x0004: "sha1", 0x000B: "sha256", 0x000C: "sha384", 0x0027: "sha3_256"}
NO_ACTION, SEPARATOR, ACTION, DRIVER_CONFIG = 3, 4, 0x80000007, 0x80000001


def header(sizes: dict[int, int] = SIZES, note: bytes = b"", *, counted: bool = True) -> bytes:
    spec = b"Spec ID Event03\0" + struct.pack("<IBBBBI", 0, 0, 2, 106, 2, len(sizes))
    spec += b"".join(struct.pack("<HH", alg, size) for alg, size in sizes.items()) + bytes([len(note)])
    size = len(spec) + (len(note) if counted else 0)
    return struct.pack("<II", 0, NO_ACTION) + bytes(20) + struct.pack("<I", size) + spec + note


def event(pcr: int, kind: int, data: bytes, digests: dict[int, bytes] | None = None) -> bytes:
    if digests is None:
        digests = {alg: hashlib.new(HASHES[alg], data).digest() for alg in SIZES}
    parts = b"".join(struct.pack("<H", alg) + value for alg, value in digests.items())
    return struct.pack("<III", pcr, kind, len(digests)) + parts + struct.pack("<I", len(data)) + data


def sha1(data: bytes) -> bytes:
    return hashlib.new("sha1", data, usedforsecurity=False).digest()


def old_event(pcr: int, kind: int, data: bytes, digest: bytes | None = None) -> bytes:
    value = sha1(data) if digest is None else digest
    return struct.pack("<II", pcr, kind) + value + struct.pack("<I", len(data)) + data


def extended(bank: str, *data: bytes, start: bytes | None = None) -> bytes:
    value = bytes(hashlib.new(bank).digest_size) if start is None else start
    for part in data:
        value = hashlib.new(bank, value + hashlib.new(bank, part).digest()).digest()
    return value


def only(log: EventLog) -> Event:
    """The one event after the header."""
    (_, found) = log.events
    return found


def test_every_bank_is_replayed() -> None:
    banks, missing = replayable(parse_event_log(header() + event(0, 8, b"a") + event(4, SEPARATOR, bytes(4))))
    assert missing == ()
    assert banks == {
        alg: {0: extended(HASHES[alg], b"a"), 4: extended(HASHES[alg], bytes(4))} for alg in SIZES
    }


def test_digests_stand_in_any_order() -> None:
    digests = {alg: hashlib.new(HASHES[alg], b"a").digest() for alg in reversed(SIZES)}
    log = parse_event_log(header() + event(0, 8, b"a", digests))
    assert replay(log, 0x000C)[0] == extended("sha384", b"a")


def test_unknown_algorithm_has_its_size_from_the_header() -> None:
    sizes = {**SIZES, 0x00AA: 7}
    digests = {0x00AA: bytes(7), **{alg: hashlib.new(HASHES[alg], b"a").digest() for alg in SIZES}}
    log = parse_event_log(header(sizes) + event(0, 8, b"a", digests))
    banks, missing = replayable(log)
    assert banks[0x000B][0] == extended("sha256", b"a")
    assert 0x00AA not in banks
    assert missing == ("the bank 0x00aa can't be replayed: its hash is not known here",)
    with pytest.raises(ParseError, match="0x00aa can't be replayed"):
        replay(log, 0x00AA)
    assert check_replay(log, (), {0: bytes(7)}, (0,), 0x00AA)[0].code == "eventlog.bank"


def test_sha3_is_replayed() -> None:
    log = parse_event_log(header({0x0027: 32}) + event(1, 8, b"a", {0x0027: hashlib.sha3_256(b"a").digest()}))
    assert replay(log, 0x0027)[1] == extended("sha3_256", b"a")


def test_pcr_with_an_event_that_lacks_a_bank_has_no_value_there() -> None:
    short = event(4, ACTION, b"b", {0x0004: sha1(b"b")})
    log = parse_event_log(header() + event(0, 8, b"a") + short + event(4, 8, b"c"))
    banks, missing = replayable(log)
    assert set(banks[0x0004]) == {0, 4}
    assert set(banks[0x000B]) == {0}
    assert "PCR 4, event 2 (EV_EFI_ACTION): it has no digest of sha256" in missing
    (found,) = check_replay(log, (), {4: bytes(32)}, (4,))
    assert (found.code, "PCR 4, event 2 (EV_EFI_ACTION)" in found.message) == ("eventlog.bank", True)
    with pytest.raises(ParseError, match=r"PCR 4, event 2 .* no digest of sha256"):
        replay(log, Alg.SHA256)


@pytest.mark.parametrize("filling", [b"\0" * 100, b"\xff" * 100, b"\0", b"\xff" * 7])
@pytest.mark.parametrize("old", [False, True])
def test_filling_behind_the_last_event(filling: bytes, old: bool) -> None:
    raw = old_event(0, 8, b"a") if old else header() + event(0, 8, b"a")
    log = parse_event_log(raw + filling)
    assert log.padding == len(filling)
    assert replay(log, Alg.SHA1) == replay(parse_event_log(raw), Alg.SHA1)


def test_last_event_may_end_in_zeroes() -> None:
    for data in (bytes(4), b"\xff" * 4, b""):
        log = parse_event_log(header() + event(0, SEPARATOR, data) + bytes(50))
        assert (only(log).data, log.padding) == (data, 50)


@pytest.mark.parametrize(
    "tail", [b"\0" * 40 + b"\1", b"\xff" * 40 + b"\0", b"\0" * 40 + b"\xff" * 40, b"\0" * 50 + b"garbage"]
)
def test_garbage_behind_the_last_event_is_refused(tail: bytes) -> None:
    with pytest.raises(ParseError):
        parse_event_log(header() + event(0, 8, b"a") + tail)


@pytest.mark.parametrize("raw", [bytes(64), b"\xff" * 64])
def test_nothing_but_filling(raw: bytes) -> None:
    with pytest.raises(ParseError, match="nothing but filling"):
        parse_event_log(raw)


@pytest.mark.parametrize("locality", [0, 3, 4])
@pytest.mark.parametrize("old", [False, True])
def test_start_up_locality(locality: int, old: bool) -> None:
    data = b"StartupLocality\0" + bytes([locality])
    if old:
        raw = old_event(0, NO_ACTION, data, bytes(20)) + old_event(0, 8, b"a")
    else:
        raw = header() + event(0, NO_ACTION, data, {alg: bytes(n) for alg, n in SIZES.items()})
        raw += event(0, 8, b"a")
    start = bytes(19) + bytes([locality])
    assert replay(parse_event_log(raw), Alg.SHA1)[0] == extended("sha1", b"a", start=start)


def test_two_start_up_localities() -> None:
    def located(locality: int) -> bytes:
        return event(0, NO_ACTION, b"StartupLocality\0" + bytes([locality]), {})

    assert parse_event_log(header() + located(3) + event(0, 8, b"a") + located(3)).locality == 3
    with pytest.raises(ParseError, match=r"event 2 .* found the start-up locality 4, expected 3"):
        parse_event_log(header() + located(3) + located(4))


def test_start_up_locality_that_is_hashed_is_none() -> None:
    """A note that is extended, or of another PCR, says nothing of how the TPM was started."""
    data = b"StartupLocality\0\3"
    assert parse_event_log(header() + event(0, 8, data)).locality == 0
    assert parse_event_log(header() + event(1, NO_ACTION, data, {})).locality == 0


def test_notes_extend_nothing_whatever_pcr_and_digests_they_name() -> None:
    log = parse_event_log(header() + event(0xFFFFFFFF, NO_ACTION, b"x") + event(0, NO_ACTION, b"x"))
    banks, _ = replayable(log)
    assert banks == {alg: {} for alg in SIZES}


@pytest.mark.parametrize("counted", [True, False])
def test_makers_note_in_the_header(counted: bool) -> None:
    """Some firmware does not count it in the event's size; the note's own size tells."""
    log = parse_event_log(header(note=b"\xde\xad\xbe\xef", counted=counted) + event(0, 8, b"a"))
    assert replay(log, Alg.SHA256)[0] == extended("sha256", b"a")


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (header({}), "0 algorithms"),
        (header({0x000B: 20}), "wrong digest size 20"),
        (header({0x00AA: 0}), "wrong digest size 0"),
        (header({0x00AA: 129}), "wrong digest size 129"),
        (header(dict.fromkeys(range(256, 273), 1)), "17 algorithms"),
        (header(note=b"abc", counted=False)[:-1], "are needed"),
        (header() + event(0, 8, b"a", {}), "event 1 has 0 digests"),
        (header() + event(0, 8, b"a", {0x000D: bytes(64)}), "0x000d is not in the header"),
        (header() + struct.pack("<IIIH", 0, 8, 1, 0x000B) + bytes(31), "needed at offset"),
        (header() + event(0, 8, b"a")[:-1], "are needed"),
        (header() + event(0, 8, b"a")[:-5] + b"\xff\xff\xff\xffa", "4294967295 bytes are needed"),
        (bytes(MAX_BYTES + 1), "are allowed"),
        (header({0x00AA: 1}) + event(0, 8, b"", {0x00AA: b"x"}) * MAX_EVENTS, "more than 16384 events"),
    ],
)
def test_malformed(raw: bytes, words: str) -> None:
    with pytest.raises(ParseError, match=words):
        parse_event_log(raw)


def test_digest_that_stands_twice() -> None:
    twice = (struct.pack("<H", 0x000B) + bytes(32)) * 2
    raw = header() + struct.pack("<III", 0, 8, 2) + twice + struct.pack("<I", 0)
    with pytest.raises(ParseError, match="stands twice"):
        parse_event_log(raw)


def test_error_separator_is_refused_whatever_type_it_is_given() -> None:
    """The standard: the digest is of 1, the data says more of the error."""
    failed = {alg: hashlib.new(HASHES[alg], b"\1\0\0\0").digest() for alg in SIZES}
    for kind, data in ((SEPARATOR, b"no TPM key"), (SEPARATOR, b"\1\0\0\0"), (0x0D, b"\1\0\0\0"), (8, b"")):
        log = parse_event_log(header() + event(7, kind, data, failed))
        (found,) = check_events(log)
        assert found.code == "eventlog.separator"
        for words in ("PCR 7, event 1", (data.hex() or "nothing"), "expected a separator of 0"):
            assert words in found.message


def test_boot_order_of_these_bytes_is_no_error() -> None:
    order = b"\1\0\0\0"
    data = bytes(16) + struct.pack("<QQ", 9, 4) + "BootOrder".encode("utf-16-le") + order
    digests = {alg: hashlib.new(HASHES[alg], order).digest() for alg in SIZES}
    one = only(parse_event_log(header() + event(1, 0x80000002, data, digests)))
    assert not is_error(one)
    assert measured(one) == order
    assert describe(one) == "BootOrder 0001, 0000"
    assert is_error(only(parse_event_log(header() + event(7, 0x80000002, data, digests))))


def _hashed(kind: int, data: bytes, what: bytes) -> Event:
    digests = {alg: hashlib.new(HASHES[alg], what).digest() for alg in SIZES}
    return only(parse_event_log(header() + event(5, kind, data, digests)))


FILE_PATH = b"\4\4\x0c\0" + "\\a.e".encode("utf-16-le") + b"\x7f\xff\4\0"
LOAD_OPTION = (
    bytes(16)
    + struct.pack("<QQ", 8, 21)
    + "Boot0001".encode("utf-16-le")
    + bytes(6)
    + "Linux\0".encode("utf-16-le")
    + b"abc"
)
VARIABLE = bytes(16) + struct.pack("<QQ", 2, 3) + "PK".encode("utf-16-le") + b"abc"


@pytest.mark.parametrize(
    ("kind", "data", "what"),
    [
        (SEPARATOR, bytes(4), bytes(4)),
        (ACTION, b"Exit\0", b"Exit"),
        (0x80000002, VARIABLE, b"abc"),
        (DRIVER_CONFIG, VARIABLE, VARIABLE),
        (6, struct.pack("<II", 7, 3) + b"abc", b"abc"),
        (0x0D, b"grub_cmd: linux /vmlinuz\0", b"linux /vmlinuz"),
        (0x0D, ".linux\0".encode("utf-16-le"), b".linux\0"),
    ],
)
def test_data_that_was_measured(kind: int, data: bytes, what: bytes) -> None:
    assert measured(_hashed(kind, data, what)) == what
    assert measured(_hashed(kind, data, what + b"x")) is None


def test_one_bank_of_another_content_is_not_measured() -> None:
    """An attacker who may choose one bank's digest does not choose what the data proves."""
    digests = {alg: hashlib.new(HASHES[alg], b"x").digest() for alg in SIZES}
    digests[0x0004] = sha1(b"other")
    log = parse_event_log(header() + event(5, ACTION, b"x", digests))
    assert measured(only(log)) is None
    (found,) = check_events(log)
    assert "sha1 found" in found.message


def test_note_is_never_measured() -> None:
    assert measured(only(parse_event_log(header() + event(5, NO_ACTION, b"x")))) is None


@pytest.mark.parametrize(
    ("kind", "data", "words"),
    [
        (ACTION, b"Calling EFI Application\x1b[2J", "27 bytes: 43616c6c696e6720454649204170706c"),
        (ACTION, b"Exit", "Exit"),
        (DRIVER_CONFIG, VARIABLE, "PK, 3 bytes"),
        (DRIVER_CONFIG, VARIABLE[:-1], f"{len(VARIABLE) - 1} bytes that are not of this type's form"),
        (1, struct.pack("<QQ", 0xFFA90000, 0x350000), "3473408 bytes at 0xffa90000"),
        (SEPARATOR, b"\xff" * 4, "0xffffffff"),
        (0x80000002, LOAD_OPTION, "Boot0001 'Linux'"),
        (0x80000006, bytes(92) + struct.pack("<Q", 7), "partition table of 7 partitions"),
        (0x80000006, bytes(92), "92 bytes that are not of this type's form"),
        (6, struct.pack("<II", 0x8F3B22EC, 13) + b"Linux initrd\0", "0x8f3b22ec Linux initrd"),
        (
            0x80000003,
            struct.pack("<QQQQ", 1, 2, 3, 20)
            + b"\4\4\x0c\0"
            + "\\a.e".encode("utf-16-le")
            + b"\x7f\xff\4\0"
            + b"\0" * 4,
            "\\a.e",
        ),
        (0x80000003, struct.pack("<QQQQ", 1, 2, 3, 0), "device path of 0 bytes"),
        (0x80000003, bytes(8), "8 bytes that are not of this type's form"),
    ],
)
def test_words(kind: int, data: bytes, words: str) -> None:
    assert describe(_hashed(kind, data, data)) == words


def test_words_are_one_line_of_bounded_length() -> None:
    assert len(describe(_hashed(ACTION, b"a" * 5000, b""))) == 100


def test_phase_that_is_not_what_was_hashed() -> None:
    """systemd's phases are hashed as they stand in the record; of its other records that is not so."""
    record = ev.userspace_log([(11, b"ready")]).replace(b'"string"', b'"eventType":"phase","string"')
    log = parse_event_log(header() + event(0, 8, b"a"))
    good = parse_measure_log(record, first=2)
    assert good[0].words == "event 2 (systemd phase)"
    assert measured(good[0]) == b"ready"
    assert check_events(log, good) == ()
    bad = parse_measure_log(record.replace(b'"ready"', b'"sysinit"'), first=2)
    (found,) = check_events(log, bad)
    assert found.message.startswith("PCR 11, event 2 (systemd phase): sha256 found")
    other = parse_measure_log(
        record.replace(b'"ready"', b'"x"').replace(b'"phase"', b'"volume-key"'), first=2
    )
    assert check_events(log, other) == ()


@pytest.mark.parametrize(
    "content",
    [b"", b',"content_type":"ima_template","content":{"x":1},"recnum":3', b',"content_type":"systemd"'],
)
def test_records_of_other_origins(content: bytes) -> None:
    digest = b'{"hashAlg":"sha256","digest":"' + b"0" * 64 + b'"}'
    (found,) = parse_measure_log(b'\x1e{"pcr":10,"digests":[' + digest + b"]" + content + b"}\n")
    assert (found.pcr, found.data, found.firmware) == (10, b"", False)
