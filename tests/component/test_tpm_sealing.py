"""The sealed state key on a software TPM: every condition broken alone, and a listener on the bus."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from tpm2_pytss import ESAPI, ESYS_TR, TPM2_ALG, TPM2B_NV_PUBLIC, TPMA_NV, TPMS_NV_PUBLIC, TSS2_Exception

from hsm.errors import (
    TpmCreationError,
    TpmFloorError,
    TpmForeignKeyError,
    TpmPasswordError,
    TpmPcrError,
    TpmPolicyError,
    TpmRollbackError,
    TpmSealedError,
    TpmSignatureError,
    TpmStorageRootError,
)
from hsm.keys import public_der
from hsm.softtpm import ManufacturerCa, SoftTpm
from hsm.tpm import Tpm, floor, pcrs, sealing
from hsm.tpm.sealing import SealedSecret
from hsm.tpm.storage import STORAGE_ROOT_HANDLE
from nodeos.core import statepolicy
from nodeos.core.statepolicy import PolicySignature, PolicySignatures
from nodeos.core.wire import Fields, ParseError
from tests.support.recorder import recorded
from tests.support.tpm_tools import store_key

pytestmark = pytest.mark.tpm

KEY = ec.generate_private_key(ec.SECP256R1())
SECRET = hashlib.sha512(b"volume key").digest()
OWNER = hashlib.sha256(b"owner").digest()
ZERO = {pcr: bytes(32) for pcr in statepolicy.POLICY_PCRS}


def signed(
    version: int = 2,
    values: Mapping[int, bytes] = ZERO,
    key: ec.EllipticCurvePrivateKey = KEY,
    claimed: ec.EllipticCurvePrivateKey | None = None,
) -> PolicySignature:
    message = statepolicy.signed_message(statepolicy.approved_policy(values, version))
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256())))
    return PolicySignature(
        key=hashlib.sha256(public_der((claimed or key).public_key())).digest(),
        pcrs=values,
        version=version,
        signature=r.to_bytes(32, "big") + s.to_bytes(32, "big"),
    )


def release(*signatures: PolicySignature) -> PolicySignatures:
    return PolicySignatures(signatures=signatures or (signed(),))


@pytest.fixture
def tcti(soft_tpm: SoftTpm) -> Iterator[str]:
    with soft_tpm.serve() as where:
        yield where


@pytest.fixture
def tpm(tcti: str) -> Iterator[Tpm]:
    with Tpm(tcti) as opened:
        yield opened


@pytest.fixture
def sealed(tpm: Tpm) -> SealedSecret:
    srk = tpm.storage_root()
    tpm.define_floor(1, srk=srk)
    return tpm.seal(SECRET, KEY.public_key(), srk=srk)


def test_round_trip_again_and_again(tpm: Tpm, sealed: SealedSecret) -> None:
    for _ in range(8):  # leaks of handles would fill the TPM
        assert tpm.unseal(sealed, release()) == SECRET
    assert tpm.storage_root() == sealed.srk_public


def test_longest_secret(tpm: Tpm, sealed: SealedSecret) -> None:
    longest = SECRET * 2
    assert tpm.unseal(tpm.seal(longest, KEY.public_key()), release()) == longest
    for wrong in (b"", longest + b"x"):
        with pytest.raises(ValueError, match="1 to 128"):
            tpm.seal(wrong, KEY.public_key())


def test_token_round_trip(sealed: SealedSecret) -> None:
    token = json.loads(json.dumps(sealed.to_json((0, 3))))
    assert SealedSecret.parse(Fields(token, "token")) == (sealed, (0, 3))
    for change in ({"type": "systemd-tpm2"}, {"keyslots": [0]}, {"keyslots": ["x"]}, {"more": 1}):
        with pytest.raises(ParseError):
            SealedSecret.parse(Fields({**token, **change}, "token"))


@pytest.mark.parametrize("pcr", statepolicy.POLICY_PCRS)
def test_other_pcr(tpm: Tpm, sealed: SealedSecret, pcr: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tpm.measure(pcr, b"other")
    with pytest.raises(TpmPcrError, match=f"Different: {pcr} ") as caught:
        tpm.unseal(sealed, release())
    assert ";" not in caught.value.message
    # The TPM refuses by itself, without our look at the PCRs.
    monkeypatch.setattr(pcrs, "read", lambda connection, wanted: dict(ZERO))
    with pytest.raises(TpmPolicyError, match="TPM did not accept"):
        tpm.unseal(sealed, release())


def test_second_signed_value_of_pcr_7(tpm: Tpm, sealed: SealedSecret) -> None:
    tpm.measure(7, b"new db")
    values = {**ZERO, 7: tpm.read_pcrs([7])[7]}
    assert tpm.unseal(sealed, release(signed(), signed(values=values))) == SECRET


def test_floor(tpm: Tpm, sealed: SealedSecret, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = release(signed(2)), release(signed(3))
    assert tpm.unseal(sealed, old) == SECRET
    assert tpm.raise_floor(2) == 2
    assert tpm.unseal(sealed, old) == SECRET
    assert tpm.raise_floor(3) == 3
    with pytest.raises(TpmRollbackError, match="version is 2, and this machine's floor is 3"):
        tpm.unseal(sealed, old)
    assert tpm.unseal(sealed, new) == SECRET
    # An older release that is declared good: it is signed with a version at the floor.
    assert tpm.unseal(sealed, release(signed(2), signed(3))) == SECRET
    assert tpm.raise_floor(1) == tpm.raise_floor(3) == tpm.read_floor() == 3
    assert tpm.define_floor(1) == 3
    monkeypatch.setattr(floor, "read", lambda connection, **more: 0)
    with pytest.raises(TpmRollbackError, match="TPM refused"):
        tpm.unseal(sealed, old)


def test_signatures(tpm: Tpm, sealed: SealedSecret) -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(TpmSignatureError, match="no policy signature"):
        tpm.unseal(sealed, release(signed(key=other)))
    with pytest.raises(TpmSignatureError, match="is wrong"):
        tpm.unseal(sealed, release(signed(key=other, claimed=KEY)))
    with pytest.raises(TpmSignatureError, match="is wrong"):  # for another version
        tpm.unseal(sealed, release(replace(signed(2), version=3)))


def test_damage(tpm: Tpm, sealed: SealedSecret) -> None:
    flipped = sealed.private[:-1] + bytes([sealed.private[-1] ^ 1])
    other = public_der(ec.generate_private_key(ec.SECP256R1()).public_key())
    unique = sealed.public[:-1] + bytes([sealed.public[-1] ^ 1])
    for broken in (
        replace(sealed, private=flipped),
        replace(sealed, private=sealed.private[:-1]),
        replace(sealed, private=sealed.private + b"\0"),
        replace(sealed, public=unique),
        replace(sealed, public=b"\0"),
        replace(sealed, policy_key=other),
        replace(sealed, policy_key=b"no key"),
    ):
        with pytest.raises(TpmSealedError):
            tpm.unseal(broken, release())
    assert tpm.unseal(sealed, release()) == SECRET


@pytest.fixture
def proven(tpm: Tpm, sealed: SealedSecret) -> SealedSecret:
    return tpm.seal(SECRET, KEY.public_key(), srk=sealed.srk_public, under=signed())


def test_creation_is_proven(tpm: Tpm, proven: SealedSecret) -> None:
    tpm.check_creation(proven)
    token = json.loads(json.dumps(proven.to_json((0,))))
    assert SealedSecret.parse(Fields(token, "token")) == (proven, (0,))
    # Later, in another state, and under another release: what counts is the making.
    tpm.measure(11, b"running system")
    tpm.check_creation(proven)


def test_creation_without_proof(tpm: Tpm, sealed: SealedSecret) -> None:
    with pytest.raises(TpmCreationError, match="carries no proof"):
        tpm.check_creation(sealed)


@pytest.mark.parametrize("pcr", statepolicy.POLICY_PCRS)
def test_creation_in_another_state(tpm: Tpm, sealed: SealedSecret, pcr: int) -> None:
    tpm.measure(pcr, b"an attacker's system")
    planted = tpm.seal(SECRET, KEY.public_key(), srk=sealed.srk_public, under=signed())
    with pytest.raises(TpmCreationError, match="another state of the machine"):
        tpm.check_creation(planted)


def test_creation_with_other_pcrs(tpm: Tpm, sealed: SealedSecret, monkeypatch: pytest.MonkeyPatch) -> None:
    for selection in ("sha256:0,1,2", "sha256:7,11"):
        with monkeypatch.context() as patch:
            patch.setattr(sealing, "_SELECTION", selection)
            planted = tpm.seal(SECRET, KEY.public_key(), srk=sealed.srk_public, under=signed())
        with pytest.raises(TpmCreationError, match="with other PCRs"):
            tpm.check_creation(planted)


def test_creation_policy_by_another_key(tpm: Tpm, proven: SealedSecret) -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    assert proven.creation is not None
    for policy, words in (
        (signed(key=other), "by another key"),
        (signed(key=other, claimed=KEY), "wrong signature"),
        (replace(signed(2), version=3), "wrong signature"),
    ):
        with pytest.raises(TpmCreationError, match=words):
            tpm.check_creation(replace(proven, creation=replace(proven.creation, policy=policy)))


def test_creation_ticket_that_is_forged(tpm: Tpm, proven: SealedSecret, sealed: SealedSecret) -> None:
    assert proven.creation is not None
    ticket = proven.creation.ticket
    # The planter's own object, made elsewhere, with the creation data and ticket of an honest one.
    tpm.measure(7, b"no Secure Boot")
    planted = tpm.seal(b"known to the planter", KEY.public_key(), srk=sealed.srk_public)
    forged = [
        replace(planted, creation=proven.creation),
        replace(proven, creation=replace(proven.creation, ticket=ticket[:-1] + bytes([ticket[-1] ^ 1]))),
    ]
    for broken in forged:
        with pytest.raises(TpmCreationError, match="does not know the ticket"):
            tpm.check_creation(broken)
    for broken_ticket in (b"", ticket[:-1], ticket + b"\0"):
        broken = replace(proven, creation=replace(proven.creation, ticket=broken_ticket))
        with pytest.raises(TpmCreationError, match="malformed"):
            tpm.check_creation(broken)


def test_creation_data_that_were_changed(tpm: Tpm, sealed: SealedSecret) -> None:
    # Sealed in the planter's system, then the digest of an honest state written over that of its own.
    tpm.measure(7, b"no Secure Boot")
    planted = tpm.seal(SECRET, KEY.public_key(), srk=sealed.srk_public, under=signed())
    assert planted.creation is not None
    state = tpm.read_pcrs(statepolicy.POLICY_PCRS)
    theirs, ours = (hashlib.sha256(b"".join(values.values())).digest() for values in (state, ZERO))
    data = planted.creation.data.replace(theirs, ours)
    assert data != planted.creation.data
    with pytest.raises(TpmCreationError, match="does not know the ticket"):
        tpm.check_creation(replace(planted, creation=replace(planted.creation, data=data)))


def test_owner_password_is_told(tpm: Tpm) -> None:
    tpm.storage_root()
    assert not tpm.has_owner_auth()
    tpm.set_owner_auth(OWNER)
    assert tpm.has_owner_auth()


def test_policy_that_holds(tpm: Tpm, sealed: SealedSecret) -> None:
    der = public_der(KEY.public_key())
    assert tpm.choose_policy(der, release(signed(1), signed(2))).version == 2
    tpm.measure(7, b"new db")
    with pytest.raises(TpmPcrError, match="Different: 7 "):
        tpm.choose_policy(der, release())


def test_another_tpm(sealed: SealedSecret, manufacturer_ca: ManufacturerCa, tmp_path: Path) -> None:
    other = SoftTpm(tmp_path / "other")
    other.provision(manufacturer_ca)
    with other.serve() as tcti, Tpm(tcti) as tpm:
        with pytest.raises(TpmStorageRootError, match="no storage root key"):
            tpm.unseal(sealed, release())
        tpm.storage_root()
        tpm.define_floor(1)
        with pytest.raises(TpmStorageRootError, match="not the one"):
            tpm.unseal(sealed, release())
        # Told that its own key is the enrolled one, it still can't load the blob.
        with pytest.raises(TpmSealedError, match="another TPM"):
            tpm.unseal(replace(sealed, srk_public=tpm.storage_root()), release())


def test_cleared_tpm(soft_tpm: SoftTpm) -> None:
    with soft_tpm.serve() as tcti:
        with Tpm(tcti) as tpm:
            tpm.storage_root()
            tpm.define_floor(1)
            sealed = tpm.seal(SECRET, KEY.public_key())
        with ESAPI(tcti) as esys:
            esys.clear(ESYS_TR.LOCKOUT)
        with Tpm(tcti) as tpm:
            with pytest.raises(TpmStorageRootError, match="no storage root key"):
                tpm.unseal(sealed, release())
            assert tpm.storage_root() != sealed.srk_public
            with pytest.raises(TpmStorageRootError, match="not the one"):
                tpm.unseal(sealed, release())
            with pytest.raises(TpmFloorError, match="no rollback floor"):
                tpm.read_floor()


def test_foreign_key_in_the_storage_roots_place(tcti: str) -> None:
    with ESAPI(tcti) as esys:
        attributes = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign"
        store_key(esys, STORAGE_ROOT_HANDLE, attributes=attributes, hierarchy=ESYS_TR.OWNER)
    with Tpm(tcti) as tpm, pytest.raises(TpmForeignKeyError, match="no storage root key"):
        tpm.storage_root()


def test_foreign_index_in_the_floors_place(tpm: Tpm) -> None:
    tpm.storage_root()
    public = TPMS_NV_PUBLIC(
        nvIndex=statepolicy.FLOOR_INDEX,
        nameAlg=TPM2_ALG.SHA256,
        # An ordinary index: what is written can be written back.
        attributes=TPMA_NV.AUTHWRITE | TPMA_NV.AUTHREAD | TPMA_NV.NO_DA,
        dataSize=8,
    )
    tpm._connection.esys.nv_define_space(b"", TPM2B_NV_PUBLIC(nvPublic=public))
    uses: list[Callable[[], int]] = [
        lambda: tpm.define_floor(1),
        tpm.read_floor,
        lambda: tpm.raise_floor(2),
    ]
    for use in uses:
        with pytest.raises(TpmFloorError, match="not our rollback floor"):
            use()


def test_floor_that_was_defined_and_never_written(tpm: Tpm, monkeypatch: pytest.MonkeyPatch) -> None:
    tpm.storage_root()
    with monkeypatch.context() as patch:
        patch.setattr(floor, "_set_bits", lambda *arguments: None)
        with pytest.raises(TpmFloorError):
            tpm.define_floor(2)
    assert tpm.define_floor(2) == 2


def test_owner_password_keeps_the_floor(tpm: Tpm, tcti: str, sealed: SealedSecret) -> None:
    tpm.set_owner_auth(OWNER, srk=sealed.srk_public)
    with ESAPI(tcti) as esys:
        index = esys.tr_from_tpmpublic(statepolicy.FLOOR_INDEX)
        with pytest.raises(TSS2_Exception) as caught:
            esys.nv_undefine_space(index)
        assert caught.value.rc & 0xBF == 0xA2  # TPM_RC_BAD_AUTH
        esys.tr_set_auth(ESYS_TR.OWNER, OWNER)
        esys.nv_undefine_space(index)
    with pytest.raises(TpmPasswordError) as refused:
        tpm.define_floor(1, b"wrong" * 4)
    assert "wrong" not in str(refused.value)
    assert tpm.define_floor(1, OWNER) == 1
    assert tpm.unseal(sealed, release()) == SECRET
    with pytest.raises(ValueError, match="16 to 32"):
        tpm.set_owner_auth(b"short", old=OWNER)


def test_nothing_secret_on_the_bus(soft_tpm: SoftTpm) -> None:
    new = hashlib.sha256(b"another owner").digest()
    with soft_tpm.serve() as bare, recorded(bare) as (tcti, bus):
        with Tpm(tcti) as tpm:
            srk = tpm.storage_root()
            tpm.set_owner_auth(OWNER, srk=srk)
            tpm.define_floor(1, OWNER, srk=srk)
            tpm.set_owner_auth(new, old=OWNER, srk=srk)
            sealed = tpm.seal(SECRET, KEY.public_key(), srk=srk)
            assert tpm.unseal(sealed, release()) == SECRET
            assert bus.saw(sealed.public)  # the listener does hear what is not encrypted
        for secret in (SECRET, OWNER, new):
            assert not bus.saw(secret[:8])
            assert not bus.saw(secret[8:16])
        with ESAPI(tcti) as esys:  # and hears a password that is sent as such
            esys.tr_set_auth(ESYS_TR.OWNER, new)
            esys.hierarchy_change_auth(ESYS_TR.OWNER, OWNER)
        assert bus.saw(new)
        assert bus.saw(OWNER)
