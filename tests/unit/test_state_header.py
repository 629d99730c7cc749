"""The LUKS2 header: one that is ours, and every change of it that must be refused."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsm.keys import public_der
from hsm.tpm.sealing import SealedSecret
from nodeos.core.errors import RefusedError
from nodeos.core.recovery import RecoveryBlob
from nodeos.state.header import parse
from tests.support.state_machine import KEY, NEW_KEY, fingerprint

UUID = "6a4e0f0e-52a5-4f0c-9e2c-111111111111"
KNOWN = {fingerprint(KEY), fingerprint(NEW_KEY)}


def slot(number: int) -> dict[str, Any]:
    return {
        "type": "luks2",
        "key_size": 64,
        "af": {"type": "luks1", "stripes": 4000, "hash": "sha256"},
        "area": {
            "type": "raw",
            "offset": str(32768 + number * 258048),
            "size": "258048",
            "encryption": "aes-xts-plain64",
            "key_size": 64,
        },
        "kdf": {"type": "pbkdf2", "hash": "sha256", "iterations": 1000, "salt": "AAAA"},
    }


def tpm_token(key: Any = KEY, slots: tuple[int, ...] = (0,)) -> dict[str, object]:
    sealed = SealedSecret(
        public=b"public", private=b"private", srk_public=b"srk", policy_key=public_der(key.public_key())
    )
    return sealed.to_json(slots)


def recovery_token(volume: str = UUID, keyslot: int = 1) -> Any:
    blob = RecoveryBlob(
        keyslot=keyslot, operator_key=bytes(32), machine="ab" * 32, volume=volume, box=b"\x01box"
    )
    return json.loads(blob.to_bytes())


def header() -> dict[str, Any]:
    return {
        "keyslots": {"0": slot(0), "1": slot(1)},
        "tokens": {"0": tpm_token(), "1": recovery_token()},
        "segments": {
            "0": {
                "type": "crypt",
                "offset": "16777216",
                "size": "dynamic",
                "iv_tweak": "0",
                "encryption": "aes-xts-plain64",
                "sector_size": 4096,
            }
        },
        "digests": {
            "0": {
                "type": "pbkdf2",
                "keyslots": ["0", "1"],
                "segments": ["0"],
                "hash": "sha256",
                "iterations": 1000,
                "salt": "AAAA",
                "digest": "AAAA",
            }
        },
        "config": {"json_size": "12288", "keyslots_size": "16744448"},
    }


def check(value: Any) -> None:
    parse(json.dumps(value).encode(), UUID, "/dev/sda8", known=KNOWN)


def test_header_that_is_ours() -> None:
    found = parse(json.dumps(header()).encode(), UUID, "/dev/sda8", known=KNOWN)
    assert found.policy_keys == (fingerprint(KEY),)
    assert found.recovery is not None
    assert found.areas == {0: (32768, 258048), 1: (290816, 258048)}
    both = header()
    both["tokens"]["2"] = tpm_token(NEW_KEY)
    check(both)
    del both["tokens"]["1"], both["keyslots"]["1"]
    both["digests"]["0"]["keyslots"] = ["0"]
    check(both)


def put(*path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(header: dict[str, Any]) -> None:
        for name in path[:-1]:
            header = header[name]
        header[path[-1]] = value

    return change


def drop(*path: str) -> Callable[[dict[str, Any]], None]:
    def change(header: dict[str, Any]) -> None:
        for name in path[:-1]:
            header = header[name]
        del header[path[-1]]

    return change


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("segment", put("segments", "0", "encryption", value="cipher_null-ecb")),
        ("segment", put("segments", "0", "encryption", value="aes-cbc-plain")),
        ("segment", put("segments", "0", "type", value="linear")),
        ("segment", put("segments", "0", "offset", value="0")),
        ("segment", put("segments", "0", "size", value="1048576")),
        ("segment", put("segments", "0", "flags", value=["backup-final"])),
        ("segment", put("segments", "0", "integrity", value={})),
        ("segment", put("segments", "1", value={})),
        ("config", put("config", "requirements", value={"mandatory": ["online-reencrypt"]})),
        ("config", put("config", "flags", value=["allow-discards"])),
        ("config", put("config", "keyslots_size", value="0")),
        ("form", put("more", value={})),
        ("form", drop("digests")),
        ("form", put("tokens", value=[])),
        ("keyslot", put("keyslots", "0", "area", "encryption", value="cipher_null-ecb")),
        ("keyslot", put("keyslots", "0", "area", "key_size", value=16)),
        ("keyslot", put("keyslots", "0", "area", "type", value="journal")),
        ("keyslot", put("keyslots", "0", "area", "offset", value="x")),
        ("keyslot", put("keyslots", "0", "key_size", value=32)),
        ("keyslot", put("keyslots", "0", "type", value="reencrypt")),
        ("keyslot", put("keyslots", "0", "af", "stripes", value=1)),
        ("keyslot", put("keyslots", "0", "kdf", "hash", value="sha1")),
        ("keyslot", put("keyslots", "0", "kdf", "type", value="none")),
        ("keyslot", put("keyslots", "0", "priority", value=2)),
        ("keyslot", put("keyslots", "0", value=7)),
        ("digest", put("digests", "0", "keyslots", value=["1"])),
        ("digest", put("digests", "0", "segments", value=[])),
        ("digest", put("digests", "0", "type", value="none")),
        ("digest", put("digests", "0", "hash", value="sha1")),
        ("digest", put("digests", "1", value={})),
        ("token", put("tokens", "2", value={"type": "systemd-tpm2", "keyslots": ["0"]})),
        ("token", put("tokens", "2", value=7)),
        ("token", put("tokens", "0", "public", value="?")),
        ("token", put("tokens", "0", value=tpm_token(slots=(0, 1)))),
        ("tokens", drop("tokens", "0")),
        ("tokens", put("tokens", "2", value=tpm_token())),
        ("policy_key", put("tokens", "2", value=tpm_token(NEW_KEY))),
        ("recovery", put("tokens", "1", value=recovery_token("7" + UUID[1:]))),
        ("recovery", put("tokens", "2", value=recovery_token())),
        ("keyslots", put("keyslots", "2", value=slot(2))),
        ("keyslots", drop("tokens", "1")),
        ("keyslots", put("tokens", "1", value=recovery_token(keyslot=0))),
    ],
)
def test_change_that_is_refused(code: str, change: Callable[[dict[str, Any]], None]) -> None:
    value = copy.deepcopy(header())
    change(value)
    known = {fingerprint(KEY)}
    with pytest.raises(RefusedError, match="not made by this system") as caught:
        parse(json.dumps(value).encode(), UUID, "/dev/sda8", known=known)
    assert f"state.{code}" in [finding.code for finding in caught.value.findings]


@given(
    st.binary(max_size=60)
    | st.recursive(
        st.none() | st.integers() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*header()]), inner),
    ).map(lambda value: json.dumps(value).encode())
)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(RefusedError):
        parse(data, UUID, "/dev/sda8")


@given(
    st.sampled_from([*header()]),
    st.dictionaries(
        st.sampled_from("012"),
        st.none()
        | st.integers()
        | st.text(max_size=2)
        | st.dictionaries(st.text(max_size=8), st.text(max_size=4), max_size=3),
        max_size=3,
    ),
)
def test_any_part_is_read_or_refused(part: str, content: dict[str, Any]) -> None:
    with contextlib.suppress(RefusedError):
        check({**header(), part: content})
