"""Signing keys in a TPM: what goes wrong with them, on a real software TPM."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tpm2_pytss import ESAPI, ESYS_TR

from hsm import keys
from hsm.errors import TpmForeignKeyError, TpmKeyMissingError, TpmKeyPasswordError, TpmLockoutError
from hsm.identity import TpmKeyIdentity, open_identity, write_identity
from hsm.signer import Algorithm
from hsm.softtpm import SoftTpm
from hsm.tpm import signing
from hsm.tpm.storage import STORAGE_ROOT_HANDLE
from nodeos.core.errors import UsageError
from tests.support.tpm_tools import handles, store_key

pytestmark = pytest.mark.tpm

HANDLE = 0x81000100
P256 = Algorithm.ECDSA_P256


@pytest.fixture
def tcti(soft_tpm: SoftTpm) -> Iterator[str]:
    with soft_tpm.serve() as address:
        yield address


def _no_pin() -> str:
    raise AssertionError("asked for the password")


def _sign(tcti: str, pin: Callable[[], str] = _no_pin, public_key: bytes | None = None) -> bytes:
    with signing.open_tpm_key(tcti, HANDLE, pin, public_key=public_key) as signer:
        return signer.sign(b"message")


def test_nothing_stays_in_the_tpm_but_the_key(tcti: str) -> None:
    with ESAPI(tcti) as esys:
        before = handles(esys, 0x81000000)
    public_key = signing.generate(tcti, HANDLE, P256, "password")
    keys.verify(public_key, b"message", _sign(tcti, lambda: "password"))
    with ESAPI(tcti) as esys:
        assert sorted(handles(esys, 0x81000000)) == sorted([*before, HANDLE])
        for first in (0x80000000, 0x02000000, 0x03000000):  # transient keys, sessions
            assert handles(esys, first) == []


def test_storage_primary_that_is_stored_is_used(tcti: str) -> None:
    with ESAPI(tcti) as esys:
        if STORAGE_ROOT_HANDLE not in handles(esys, 0x81000000):
            key, *_ = esys.create_primary(None, "rsa2048:aes128cfb")
            esys.evict_control(ESYS_TR.OWNER, key, STORAGE_ROOT_HANDLE)
            esys.flush_context(key)
        _, parent, _ = esys.read_public(esys.tr_from_tpmpublic(STORAGE_ROOT_HANDLE))
    signing.generate(tcti, HANDLE, P256, "password")
    assert len(_sign(tcti, lambda: "password")) == 64
    import hashlib

    with ESAPI(tcti) as esys:
        # TPM 2.0 Library, Part 1, "Qualified Name": of the hierarchy, then the parent, then the key.
        _, name, qualified = esys.read_public(esys.tr_from_tpmpublic(HANDLE))
        above = b"\x00\x0b" + hashlib.sha256(bytes.fromhex("40000001") + bytes(parent)).digest()
        assert bytes(qualified) == b"\x00\x0b" + hashlib.sha256(above + bytes(name)).digest()


def test_occupied_handle_is_left_as_it_is(tcti: str) -> None:
    first = signing.generate(tcti, HANDLE, P256)
    with pytest.raises(TpmForeignKeyError, match="0x81000100 already"):
        signing.generate(tcti, HANDLE, P256)
    keys.verify(first, b"message", _sign(tcti, public_key=first))


def test_missing_key(tcti: str) -> None:
    with pytest.raises(TpmKeyMissingError, match="no key at 0x81000100"):
        _sign(tcti)


def test_wrong_password_and_then_lockout(tcti: str) -> None:
    public_key = signing.generate(tcti, HANDLE, P256, "password")
    with pytest.raises(TpmKeyPasswordError, match="wrong") as caught:
        _sign(tcti, lambda: "guess")
    assert "guess" not in str(caught.value)
    keys.verify(public_key, b"message", _sign(tcti, lambda: "password"))
    with pytest.raises(TpmLockoutError):
        for _ in range(40):
            with pytest.raises(TpmKeyPasswordError):
                _sign(tcti, lambda: "guess")


def test_key_of_another_kind(tcti: str) -> None:
    with ESAPI(tcti) as esys:
        store_key(
            esys,
            HANDLE,
            attributes="fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign",
            hierarchy=ESYS_TR.OWNER,
        )
    with pytest.raises(TpmForeignKeyError, match="not a signing key that this project makes"):
        _sign(tcti)


def test_key_of_another_identity(tcti: str, tmp_path: Path) -> None:
    signing.generate(tcti, HANDLE, P256)
    other = signing.generate(tcti, HANDLE + 1, P256)
    write_identity(tmp_path / "i.json", TpmKeyIdentity(tcti=tcti, handle=HANDLE, public_key=other))
    with (
        pytest.raises(TpmForeignKeyError, match="not the one of this identity"),
        open_identity(tmp_path / "i.json", _no_pin),
    ):
        pass


@pytest.mark.parametrize("handle", [0x81000001, 0x810000FF, 0x81010000, 0x81010001, 0x80000000])
def test_handles_of_others_are_refused(handle: int) -> None:
    with pytest.raises(UsageError, match="no place"):
        signing.generate("device:/absent", handle, P256)
    with pytest.raises(UsageError, match="no place"):
        signing.parse_handle(f"0x{handle:08x}", "handle")


def test_secp256k1_is_not_made() -> None:
    with pytest.raises(UsageError, match="not made in TPMs"):
        signing.generate("device:/absent", HANDLE, Algorithm.ECDSA_SECP256K1)


@pytest.mark.parametrize("password", ["", "a" * 33, "a\0"])
def test_passwords_that_a_tpm_cannot_keep(password: str) -> None:
    with pytest.raises(UsageError, match="1 to 32 bytes"):
        signing.generate("device:/absent", HANDLE, P256, password)
