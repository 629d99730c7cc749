"""Recovery keys as text, and the form in which they are kept encrypted."""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeos.core.errors import RefusedError, UsageError
from nodeos.core.recovery import RecoveryBlob, RecoveryKey, recovery_context
from nodeos.core.wire import ParseError, b64, canonical_json

MODHEX = "cbdefghijklnrtuv"
MACHINE, VOLUME = "ab" * 32, "0b5f9c9e-5f0e-4c8e-9d4e-0a1b2c3d4e5f"
OPERATOR = hashlib.sha256(b"operator").digest()
BLOB = RecoveryBlob(keyslot=1, operator_key=OPERATOR, machine=MACHINE, volume=VOLUME, box=b"\x01box")
KEYS = st.binary(min_size=32, max_size=32)


def test_new_keys_differ() -> None:
    assert len({RecoveryKey.generate().value for _ in range(8)}) == 8


def test_form_of_the_text() -> None:
    text = RecoveryKey(value=bytes(range(32))).to_text()
    assert re.fullmatch(f"([{MODHEX}]{{8}}-){{8}}[{MODHEX}]{{8}}", text)
    assert text.startswith("cccbcdce-cfcgchci-")
    check = "".join(f"{MODHEX.index(letter):x}" for letter in text[-8:])
    assert int(check, 16) == zlib.crc32(bytes(range(32)))


@given(KEYS)
def test_text_round_trip(value: bytes) -> None:
    text = RecoveryKey(value=value).to_text()
    for typed in (text, text.upper(), text.replace("-", " "), text.replace("-", ""), f" {text}\r\n"):
        assert RecoveryKey.parse(typed).value == value


@given(KEYS, st.integers(0, 71), st.sampled_from(MODHEX))
def test_one_wrong_letter(value: bytes, at: int, letter: str) -> None:
    text = RecoveryKey(value=value).to_text().replace("-", "")
    typed = text[:at] + letter + text[at + 1 :]
    if typed == text:
        return
    with pytest.raises(ParseError, match="a letter is wrong"):
        RecoveryKey.parse(typed)


def test_every_wrong_letter_of_one_key() -> None:
    text = RecoveryKey.generate().to_text().replace("-", "")
    for at, right in enumerate(text):
        for letter in MODHEX.replace(right, ""):
            with pytest.raises(ParseError, match="a letter is wrong"):
                RecoveryKey.parse(text[:at] + letter + text[at + 1 :])


@given(KEYS, st.integers(0, 70))
def test_two_letters_in_the_wrong_order(value: bytes, at: int) -> None:
    text = RecoveryKey(value=value).to_text().replace("-", "")
    typed = text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    if typed == text:
        return
    with pytest.raises(ParseError, match="a letter is wrong"):
        RecoveryKey.parse(typed)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text[:-1], "71 letters, not 72"),
        (lambda text: text + "c", "73 letters, not 72"),
        (lambda text: "", "0 letters"),
        (lambda text: text[:9] + "a" + text[10:], "group 2 has a letter that is in no recovery key"),
        (lambda text: "ſ" + text[1:], "group 1 has a letter"),
    ],
)
def test_text_refused_without_telling_it(change: Any, words: str) -> None:
    key = RecoveryKey.generate()
    text = key.to_text()
    with pytest.raises(ParseError, match=words) as caught:
        RecoveryKey.parse(change(text))
    assert not any(group in f"{caught.value}{caught.value!r}" for group in text.split("-"))
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


@given(st.text(max_size=100))
def test_text_parser_says_no(text: str) -> None:
    with pytest.raises(ParseError):
        RecoveryKey.parse(text)


def test_secret_is_not_shown() -> None:
    key = RecoveryKey.generate()
    shown = f"{key!r} {key} {(key,)}"
    assert key.value.hex() not in shown
    assert repr(key.value) not in shown
    assert shown.startswith("RecoveryKey()")


@pytest.mark.parametrize("size", [0, 31, 33])
def test_size_of_the_key(size: int) -> None:
    with pytest.raises(ValueError, match="32 bytes") as caught:
        RecoveryKey(value=b"\x7e" * size)
    assert "~" not in str(caught.value)


def test_context_binds_machine_and_volume() -> None:
    context = recovery_context(machine=MACHINE, volume=VOLUME)
    assert context == b"nodeos-recovery-v1\0" + b"\xab" * 32 + bytes.fromhex(VOLUME.replace("-", ""))
    others = {
        recovery_context(machine="ac" * 32, volume=VOLUME),
        recovery_context(machine=MACHINE, volume=VOLUME[:-1] + "0"),
    }
    assert len(others | {context}) == 3


@pytest.mark.parametrize(
    ("machine", "volume", "words"),
    [
        (MACHINE.upper(), VOLUME, "machine: not a machine id"),
        (MACHINE[:-2], VOLUME, "machine: not a machine id"),
        (MACHINE + "\n", VOLUME, "machine: not a machine id"),
        (MACHINE, VOLUME.upper(), "volume: not a UUID"),
        (MACHINE, VOLUME.replace("-", ""), "volume: not a UUID"),
        (MACHINE, VOLUME + "\n", "volume: not a UUID"),
    ],
)
def test_context_of_other_forms(machine: str, volume: str, words: str) -> None:
    with pytest.raises(ParseError, match=words):
        recovery_context(machine=machine, volume=volume)


BLOBS = st.builds(
    RecoveryBlob,
    keyslot=st.integers(0, 31),
    operator_key=KEYS,
    machine=KEYS.map(bytes.hex),
    volume=st.uuids().map(str),
    box=st.binary(min_size=1, max_size=1024),
)


@given(BLOBS)
def test_blob_round_trip(blob: RecoveryBlob) -> None:
    assert RecoveryBlob.parse(blob.to_bytes()) == blob


def test_blob_as_cryptsetup_writes_it() -> None:
    """It keeps values but not white space and order."""
    document = dict(reversed(json.loads(BLOB.to_bytes()).items()))
    assert RecoveryBlob.parse(json.dumps(document, indent=2).encode()) == BLOB


def test_blob_is_a_luks_token() -> None:
    document = json.loads(BLOB.to_bytes())
    assert (document["type"], document["keyslots"]) == ("nodeos-recovery", ["1"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 2}, r"\.version"),
        ({"version": True}, r"\.version"),
        ({"type": "systemd-recovery"}, r"\.type"),
        ({"keyslots": []}, r"\.keyslots"),
        ({"keyslots": ["1", "2"]}, r"\.keyslots"),
        ({"keyslots": ["32"]}, r"\.keyslots"),
        ({"keyslots": [1]}, r"\.keyslots"),
        ({"keyslots": ["01"]}, "canonical"),
        ({"operator_key": "ab"}, r"\.operator_key"),
        ({"operator_key": OPERATOR.hex().upper()}, "canonical"),
        ({"machine": "AB" * 32}, r"\.machine"),
        ({"machine": "ab" * 31}, r"\.machine"),
        ({"volume": VOLUME.upper()}, r"\.volume"),
        ({"box": ""}, r"\.box: empty"),
        ({"box": b64(bytes(1025))}, r"\.box"),
        ({"box": "AWJveC=="}, r"\.box|canonical"),
        ({"box": "AX=="}, "canonical"),
        ({"more": 1}, "unknown field: more"),
    ],
)
def test_each_field_of_the_blob_is_checked(change: dict[str, Any], words: str) -> None:
    document = {**json.loads(BLOB.to_bytes()), **change}
    with pytest.raises(ParseError, match=words):
        RecoveryBlob.parse(canonical_json(document))


@pytest.mark.parametrize("name", list(json.loads(BLOB.to_bytes())))
def test_each_field_of_the_blob_is_needed(name: str) -> None:
    document = json.loads(BLOB.to_bytes())
    del document[name]
    with pytest.raises(ParseError, match=f"{name}: missing"):
        RecoveryBlob.parse(canonical_json(document))


@given(st.binary(max_size=300))
def test_blob_parser_on_any_bytes(data: bytes) -> None:
    with pytest.raises(UsageError):
        RecoveryBlob.parse(data)


@given(at=st.integers(0, len(BLOB.to_bytes()) - 1), byte=st.integers(0, 255))
def test_blob_parser_on_damage(at: int, byte: int) -> None:
    data = bytearray(BLOB.to_bytes())
    data[at] = byte
    try:
        found = RecoveryBlob.parse(bytes(data))
    except UsageError:
        return
    assert (found == BLOB) == (bytes(data) == BLOB.to_bytes())


def test_context_of_a_blob() -> None:
    context = BLOB.context_for(machine=MACHINE, volume=VOLUME, operator_key=OPERATOR)
    assert context == recovery_context(machine=MACHINE, volume=VOLUME)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"machine": "ac" * 32}, "recovery.machine"),
        ({"volume": VOLUME[:-1] + "0"}, "recovery.volume"),
        ({"operator_key": bytes(32)}, "recovery.operator_key"),
    ],
)
def test_blob_of_something_else_is_refused(change: dict[str, Any], code: str) -> None:
    expected: dict[str, Any] = {"machine": MACHINE, "volume": VOLUME, "operator_key": OPERATOR, **change}
    with pytest.raises(RefusedError) as caught:
        BLOB.context_for(**expected)
    assert [finding.code for finding in caught.value.findings] == [code]


def test_refusal_holds_every_reason() -> None:
    with pytest.raises(RefusedError) as caught:
        BLOB.context_for(machine="ac" * 32, volume=VOLUME[:-1] + "0", operator_key=bytes(32))
    assert len(caught.value.findings) == 3
