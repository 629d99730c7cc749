"""The state policy against a software TPM: the TPM computes what ``nodeos.core.statepolicy`` predicts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hsm.softtpm import ManufacturerCa, SoftTpm
from nodeos.core import statepolicy

pytestmark = pytest.mark.tpm


@pytest.fixture
def esys(tmp_path: Path) -> Iterator[Any]:
    from tpm2_pytss import ESAPI

    tpm = SoftTpm(tmp_path / "tpm")
    tpm.provision(ManufacturerCa.create(tmp_path / "ca"))
    with tpm.serve() as tcti:
        esys = ESAPI(tcti)
        yield esys
        esys.close()


def test_the_tpm_agrees(esys: Any) -> None:
    from tpm2_pytss import (
        ESYS_TR,
        TPM2_ALG,
        TPM2_EO,
        TPM2_SE,
        TPM2B_NV_PUBLIC,
        TPM2B_PUBLIC,
        TPMA_NV,
        TPMA_OBJECT,
        TPMS_NV_PUBLIC,
        TPMT_SIGNATURE,
        TPMT_SYM_DEF,
    )

    public = TPMS_NV_PUBLIC(
        nvIndex=statepolicy.FLOOR_INDEX,
        nameAlg=TPM2_ALG.SHA256,
        attributes=TPMA_NV(statepolicy.FLOOR_ATTRIBUTES),
        dataSize=8,
    )
    index = esys.nv_define_space(b"", TPM2B_NV_PUBLIC(nvPublic=public))
    esys.nv_set_bits(index, statepolicy.floor_bits(3), auth_handle=index)
    _, name = esys.nv_read_public(index)
    assert bytes(name) == statepolicy.floor_name()

    values = {pcr: bytes(32) for pcr in statepolicy.POLICY_PCRS}
    key = ec.generate_private_key(ec.SECP256R1())
    numbers = key.public_key().public_numbers()
    x, y = numbers.x.to_bytes(32, "big"), numbers.y.to_bytes(32, "big")
    policy = statepolicy.approved_policy(values, 3)
    r, s = decode_dss_signature(key.sign(statepolicy.signed_message(policy), ec.ECDSA(hashes.SHA256())))

    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    attributes = TPMA_OBJECT.USERWITHAUTH | TPMA_OBJECT.SIGN_ENCRYPT
    external = TPM2B_PUBLIC.from_pem(pem, objectAttributes=attributes, symmetric=None)
    loaded = esys.load_external(external, hierarchy=ESYS_TR.OWNER)
    _, key_name, _ = esys.read_public(loaded)
    assert bytes(key_name) == statepolicy.key_name(x, y)

    session = esys.start_auth_session(
        ESYS_TR.NONE, ESYS_TR.NONE, TPM2_SE.POLICY, TPMT_SYM_DEF(algorithm=TPM2_ALG.NULL), TPM2_ALG.SHA256
    )
    esys.policy_pcr(session, b"", "sha256:7,11,12,13,15")
    esys.policy_nv(index, index, session, statepolicy.floor_operand(3), TPM2_EO.BITCLEAR)
    assert bytes(esys.policy_get_digest(session)) == policy
    digest = hashlib.sha256(statepolicy.signed_message(policy)).digest()
    signature = TPMT_SIGNATURE(sigAlg=TPM2_ALG.ECDSA)
    signature.signature.ecdsa.hash = TPM2_ALG.SHA256
    signature.signature.ecdsa.signatureR = r.to_bytes(32, "big")
    signature.signature.ecdsa.signatureS = s.to_bytes(32, "big")
    ticket = esys.verify_signature(loaded, digest, signature)
    esys.policy_authorize(session, policy, key_name, ticket, statepolicy.POLICY_REF)
    assert bytes(esys.policy_get_digest(session)) == statepolicy.sealed_policy(statepolicy.key_name(x, y))
