"""Attestation key, credentials, quotes and measurements, on a real software TPM."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_public_key
from tpm2_pytss import (
    ESAPI,
    ESYS_TR,
    TPM2B_PUBLIC,
    TPM2B_SENSITIVE_CREATE,
    TPMA_OBJECT,
    TPMS_ATTEST,
    TPMS_SENSITIVE_CREATE,
    TPMT_PUBLIC,
    TPMT_SIGNATURE,
    TSS2_Exception,
)

from hsm.errors import TpmCredentialError, TpmError, TpmForeignKeyError, TpmLockoutError, TpmPasswordError
from hsm.softtpm import ManufacturerCa, SoftTpm
from hsm.tpm import ATTESTATION_HANDLE, Tpm, pcrs
from nodeos.core.errors import UsageError
from tests.support.tpm_tools import credential, handles, key_of, name_of, store_key

pytestmark = pytest.mark.tpm

_OURS = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|sign"


def test_key_has_the_attributes_that_attestation_needs(soft_tpm: SoftTpm) -> None:
    with soft_tpm.serve() as tcti, Tpm(tcti) as tpm:
        public = tpm.attestation_key()
    area, used = TPMT_PUBLIC.unmarshal(public)
    assert used == len(public)
    assert area.objectAttributes == TPMA_OBJECT.parse(_OURS)
    assert int(area.parameters.eccDetail.curveID) == 0x0003
    assert int(area.parameters.eccDetail.scheme.scheme) == 0x0018
    assert int(area.parameters.eccDetail.scheme.details.ecdsa.hashAlg) == 0x000B


def test_key_is_the_same_again_after_it_was_removed(soft_tpm: SoftTpm) -> None:
    with soft_tpm.serve() as tcti:
        with Tpm(tcti) as tpm:
            first = tpm.attestation_key()
            assert tpm.attestation_key() == first
        with ESAPI(tcti) as esys:
            esys.evict_control(ESYS_TR.OWNER, esys.tr_from_tpmpublic(ATTESTATION_HANDLE), ATTESTATION_HANDLE)
        with Tpm(tcti) as tpm:
            assert tpm.attestation_key() == first


def test_key_outlives_a_clear(soft_tpm: SoftTpm) -> None:
    """What a reinstallation may do: the endorsement seed stays, so the machine keeps its name."""
    with soft_tpm.serve() as tcti:
        with Tpm(tcti) as tpm:
            first = tpm.attestation_key()
        with ESAPI(tcti) as esys:
            esys.clear(ESYS_TR.LOCKOUT)
            assert ATTESTATION_HANDLE not in handles(esys, 0x81000000)
        with Tpm(tcti) as tpm:
            assert tpm.attestation_key() == first


def test_another_tpm_has_another_key(
    soft_tpm: SoftTpm, manufacturer_ca: ManufacturerCa, tmp_path: Path
) -> None:
    other = SoftTpm(tmp_path / "other")
    other.provision(manufacturer_ca)
    keys = []
    for machine in (soft_tpm, other):
        with machine.serve() as tcti, Tpm(tcti) as tpm:
            keys.append(tpm.attestation_key())
    assert keys[0] != keys[1]


@pytest.mark.parametrize(
    ("attributes", "hierarchy"),
    [
        ("fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign", ESYS_TR.ENDORSEMENT),
        ("fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign", ESYS_TR.ENDORSEMENT),
        (_OURS, ESYS_TR.OWNER),
    ],
    ids=["unrestricted", "lockable", "owner-hierarchy"],
)
def test_foreign_key_is_refused_and_left_alone(soft_tpm: SoftTpm, attributes: str, hierarchy: Any) -> None:
    with soft_tpm.serve() as tcti:
        with ESAPI(tcti) as esys:
            foreign = store_key(esys, ATTESTATION_HANDLE, attributes=attributes, hierarchy=hierarchy)
        with Tpm(tcti) as tpm:
            for use in (
                tpm.attestation_key,
                lambda: tpm.quote(b"n", [0]),
                lambda: tpm.activate(b"\0\0", b"\0\0"),
            ):
                with pytest.raises(TpmForeignKeyError, match="foreign key at 0x81010002") as caught:
                    use()
                assert "tpm2_evictcontrol" in (caught.value.hint or "")
        with ESAPI(tcti) as esys:
            public, _, _ = esys.read_public(esys.tr_from_tpmpublic(ATTESTATION_HANDLE))
            assert bytes(public.publicArea.marshal()) == foreign


def test_storage_key_at_the_handle_is_refused(soft_tpm: SoftTpm) -> None:
    with soft_tpm.serve() as tcti:
        with ESAPI(tcti) as esys:
            key, *_ = esys.create_primary(None, "rsa2048")
            esys.evict_control(ESYS_TR.OWNER, key, ATTESTATION_HANDLE)
        with Tpm(tcti) as tpm, pytest.raises(TpmForeignKeyError):
            tpm.attestation_key()


@pytest.mark.parametrize("hierarchy", [ESYS_TR.ENDORSEMENT, ESYS_TR.OWNER], ids=["endorsement", "owner"])
def test_hierarchy_password(soft_tpm: SoftTpm, hierarchy: Any) -> None:
    with soft_tpm.serve() as tcti:
        with ESAPI(tcti) as esys:
            esys.hierarchy_change_auth(hierarchy, b"stranger")
        with Tpm(tcti) as tpm, pytest.raises(TpmPasswordError) as caught:
            tpm.attestation_key()
        # A session's HMAC fails with AUTH_FAIL, a password with BAD_AUTH.
        assert (caught.value.response_code or 0) & 0xBF in (0x8E, 0xA2)
        assert "tpm2_changeauth" in (caught.value.hint or "")
        with ESAPI(tcti) as esys:
            assert ATTESTATION_HANDLE not in handles(esys, 0x81000000)
            assert handles(esys, 0x80000000) == []


# Credentials


def test_credential_round_trip(soft_tpm: SoftTpm) -> None:
    with soft_tpm.serve() as tcti, Tpm(tcti) as tpm:
        endorsement, key = tpm.endorsement(), tpm.attestation_key()
        secret = hashlib.sha256(b"secret").digest()
        assert tpm.activate(*credential(endorsement.public, name_of(key), secret)) == secret


def test_credential_for_another_name_is_refused(soft_tpm: SoftTpm) -> None:
    with soft_tpm.serve() as tcti, Tpm(tcti) as tpm:
        tpm.attestation_key()
        other = b"\x00\x0b" + hashlib.sha256(b"another key").digest()
        with pytest.raises(TpmCredentialError, match="not made for this TPM") as caught:
            tpm.activate(*credential(tpm.endorsement().public, other, b"secret"))
    assert caught.value.response_code == 0x1DF


def test_credential_for_another_tpm_is_refused(
    soft_tpm: SoftTpm, manufacturer_ca: ManufacturerCa, tmp_path: Path
) -> None:
    other = SoftTpm(tmp_path / "other")
    other.provision(manufacturer_ca)
    with other.serve() as tcti, Tpm(tcti) as tpm:
        endorsement = tpm.endorsement()
    with soft_tpm.serve() as tcti, Tpm(tcti) as tpm:
        sealed = credential(endorsement.public, name_of(tpm.attestation_key()), b"secret")
        with pytest.raises(TpmCredentialError):
            tpm.activate(*sealed)


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("damage", ["cut", "longer", "flipped"])
def test_damaged_credential_is_refused(soft_tpm: SoftTpm, part: int, damage: str) -> None:
    with soft_tpm.serve() as tcti, Tpm(tcti) as tpm:
        parts = list(credential(tpm.endorsement().public, name_of(tpm.attestation_key()), b"secret"))
        data = parts[part]
        parts[part] = {
            "cut": data[:-1],
            "longer": data + b"\0",
            "flipped": data[:-1] + bytes([data[-1] ^ 1]),
        }[damage]
        with pytest.raises(TpmCredentialError):
            tpm.activate(*parts)


def test_activation_without_a_key(soft_tpm: SoftTpm) -> None:
    with soft_tpm.serve() as tcti, Tpm(tcti) as tpm, pytest.raises(TpmError, match="no attestation key"):
        tpm.activate(b"\0\0", b"\0\0")


# Quotes


def _verify(key: bytes, attest: bytes, signature: bytes) -> None:
    public = load_der_public_key(key_of(key))
    assert isinstance(public, ec.EllipticCurvePublicKey)
    parsed, used = TPMT_SIGNATURE.unmarshal(signature)
    assert used == len(signature)
    r, s = bytes(parsed.signature.ecdsa.signatureR), bytes(parsed.signature.ecdsa.signatureS)
    public.verify(
        encode_dss_signature(int.from_bytes(r, "big"), int.from_bytes(s, "big")),
        attest,
        ec.ECDSA(hashes.SHA256()),
    )


def test_quote_is_over_exactly_the_pcrs(soft_tpm: SoftTpm) -> None:
    with soft_tpm.serve() as tcti, Tpm(tcti) as tpm:
        key = tpm.attestation_key()
        tpm.measure(11, b"one")
        quote = tpm.quote(b"nonce" * 6, [11, 0, 7, 11])
    assert list(quote.pcrs) == [0, 7, 11]
    assert quote.pcrs[11] == hashlib.sha256(bytes(32) + hashlib.sha256(b"one").digest()).digest()
    _verify(key, quote.attest, quote.signature)
    attest, used = TPMS_ATTEST.unmarshal(quote.attest)
    assert used == len(quote.attest)
    assert bytes(attest.extraData) == b"nonce" * 6
    selection = attest.attested.quote.pcrSelect
    assert bytes(selection.marshal()).hex() == "00000001" + "000b" + "03" + "810800"
    digest = hashlib.sha256(b"".join(quote.pcrs[pcr] for pcr in (0, 7, 11))).digest()
    assert bytes(attest.attested.quote.pcrDigest) == digest


def test_quote_over_all_pcrs(soft_tpm: SoftTpm) -> None:
    with soft_tpm.serve() as tcti, Tpm(tcti) as tpm:
        tpm.attestation_key()
        assert list(tpm.quote(b"", range(24)).pcrs) == list(range(24))


@pytest.mark.parametrize("pcrs", [[], [24], [-1], [0, 99]])
def test_impossible_pcrs_are_refused(soft_tpm: SoftTpm, pcrs: list[int]) -> None:
    with soft_tpm.serve() as tcti, Tpm(tcti) as tpm:
        tpm.attestation_key()
        with pytest.raises(UsageError, match="PCR"):
            tpm.quote(b"n", pcrs)
        with pytest.raises(UsageError, match="PCR"):
            tpm.read_pcrs(pcrs)
        for pcr in pcrs[-1:]:
            with pytest.raises(UsageError, match="there is no PCR"):
                tpm.measure(pcr, b"data")


def test_long_qualifying_data_is_refused(soft_tpm: SoftTpm) -> None:
    with soft_tpm.serve() as tcti, Tpm(tcti) as tpm, pytest.raises(UsageError, match="at most 32"):
        tpm.quote(bytes(33), [0])


def test_quote_without_a_key(soft_tpm: SoftTpm) -> None:
    with soft_tpm.serve() as tcti, Tpm(tcti) as tpm, pytest.raises(TpmError, match="enrol") as caught:
        tpm.quote(b"n", [0])
    assert "no attestation key" in caught.value.message


def test_quote_is_repeated_when_a_pcr_changes(soft_tpm: SoftTpm, monkeypatch: pytest.MonkeyPatch) -> None:
    with soft_tpm.serve() as tcti, Tpm(tcti) as tpm:
        tpm.attestation_key()
        read, changes = tpm.read_pcrs, [b"first", b"second"]

        def read_and_be_overtaken(pcrs: list[int]) -> dict[int, bytes]:
            values = read(pcrs)
            if changes:
                tpm.measure(12, changes.pop())
            return values

        monkeypatch.setattr(tpm, "read_pcrs", read_and_be_overtaken)
        quote = tpm.quote(b"n", [12])
        assert not changes
        assert quote.pcrs == read([12])


def test_quote_gives_up_when_the_pcrs_never_rest(soft_tpm: SoftTpm, monkeypatch: pytest.MonkeyPatch) -> None:
    with soft_tpm.serve() as tcti, Tpm(tcti) as tpm:
        tpm.attestation_key()
        monkeypatch.setattr(tpm, "read_pcrs", lambda pcrs: dict.fromkeys(pcrs, bytes(31) + b"\1"))
        with pytest.raises(TpmError, match="changed during each"):
            tpm.quote(b"n", [12])


# Measurements


def test_measure_extends_every_active_bank(soft_tpm: SoftTpm) -> None:
    with soft_tpm.serve() as tcti:
        with Tpm(tcti) as tpm:
            digests = tpm.measure(13, b"data" * 1000)
        with ESAPI(tcti) as esys:
            for bank in ("sha1", "sha256", "sha384"):
                _, _, values = esys.pcr_read(f"{bank}:13")
                digest = hashlib.new(bank, b"data" * 1000).digest()
                assert digests[bank] == digest
                start = bytes(len(digest))
                assert bytes(values[0]) == hashlib.new(bank, start + digest).digest()
    assert set(digests) == {"sha1", "sha256", "sha384"}


def test_only_active_banks_are_extended(manufacturer_ca: ManufacturerCa, tmp_path: Path) -> None:
    machine = SoftTpm(tmp_path / "one-bank")
    machine.provision(manufacturer_ca, banks=("sha256",))
    with machine.serve() as tcti, Tpm(tcti) as tpm:
        assert set(tpm.measure(13, b"data")) == {"sha256"}


def test_bank_that_cannot_be_hashed_is_an_error_and_nothing_is_extended(
    soft_tpm: SoftTpm, monkeypatch: pytest.MonkeyPatch
) -> None:
    with soft_tpm.serve() as tcti, Tpm(tcti) as tpm:
        monkeypatch.delitem(pcrs._BANKS, 0x000C)
        with pytest.raises(TpmError, match="0xc"):
            tpm.measure(13, b"data")
        assert tpm.read_pcrs([13]) == {13: bytes(32)}


def test_missing_sha256_bank(manufacturer_ca: ManufacturerCa, tmp_path: Path) -> None:
    machine = SoftTpm(tmp_path / "old")
    machine.provision(manufacturer_ca, banks=("sha1",))
    with machine.serve() as tcti, Tpm(tcti) as tpm, pytest.raises(TpmError, match="no SHA-256") as caught:
        tpm.read_pcrs([7])
    assert "SHA-256 PCR bank" in (caught.value.hint or "")


def test_pcr_of_another_locality(soft_tpm: SoftTpm) -> None:
    with soft_tpm.serve() as tcti, Tpm(tcti) as tpm, pytest.raises(TpmError, match="can't be changed"):
        tpm.measure(18, b"data")


# Lasting


def test_nothing_is_left_behind(soft_tpm: SoftTpm) -> None:
    """A plain TPM has room for three keys and a few sessions: one leak per round would fill it at once."""
    with soft_tpm.serve() as tcti:
        with Tpm(tcti) as tpm:
            endorsement = tpm.endorsement()
            for number in range(12):
                key = tpm.attestation_key()
                secret = number.to_bytes(4, "big")
                assert tpm.activate(*credential(endorsement.public, name_of(key), secret)) == secret
                with pytest.raises(TpmCredentialError):
                    tpm.activate(*credential(endorsement.public, b"\x00\x0b" + bytes(32), secret))
                tpm.quote(secret, [0, 7])
                tpm.measure(12, secret)
            assert handles(tpm._connection.esys, 0x80000000) == []
            assert handles(tpm._connection.esys, 0x02000000) == []
            assert handles(tpm._connection.esys, 0x03000000) == []
        for _ in range(6):
            with Tpm(tcti) as tpm:
                tpm.endorsement()


def test_power_cuts_after_quotes_do_not_lock_the_key(soft_tpm: SoftTpm) -> None:
    """Each would count as a wrong guess if the key were under dictionary attack protection."""
    for _ in range(6):
        with soft_tpm.serve() as tcti, Tpm(tcti) as tpm:
            tpm.attestation_key()
            tpm.quote(b"n", [0])


def test_lockout(soft_tpm: SoftTpm) -> None:
    template = TPM2B_PUBLIC.parse(
        "ecc256:ecdsa-sha256:null",
        objectAttributes=TPMA_OBJECT.parse(
            "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign"
        ),
    )
    with soft_tpm.serve() as tcti:
        with ESAPI(tcti) as esys:
            esys.dictionary_attack_parameters(1, 1000, 1000)
            key, *_ = esys.create_primary(
                TPM2B_SENSITIVE_CREATE(TPMS_SENSITIVE_CREATE(userAuth=b"password")),
                template,
                ESYS_TR.ENDORSEMENT,
            )
            esys.tr_set_auth(key, b"wrong")
            with pytest.raises(TSS2_Exception):
                esys.quote(key, "sha256:0", b"n")
            esys.flush_context(key)
        with Tpm(tcti) as tpm:
            with (
                pytest.raises(TpmLockoutError, match="locked out") as caught,
                tpm._connection.answers("signing"),
            ):
                other, *_ = tpm._connection.esys.create_primary(None, template, ESYS_TR.ENDORSEMENT)
                try:
                    tpm._connection.esys.quote(other, "sha256:0", b"n")
                finally:
                    tpm._connection.esys.flush_context(other)
            # Attestation itself goes on.
            tpm.attestation_key()
            assert tpm.quote(b"n", [0]).pcrs
    assert caught.value.response_code == 0x921
    assert "recovery time" in (caught.value.hint or "")
