"""What a registrar, an attacker or a firmware's set-up does to a TPM, for tests."""

from __future__ import annotations

from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from tpm2_pytss import ESAPI, ESYS_TR, TPM2_CAP, TPM2B_PUBLIC, TPMA_OBJECT, TPMT_PUBLIC
from tpm2_pytss.utils import make_credential

from hsm.softtpm import SoftTpm


def clear(soft: SoftTpm) -> None:
    """TPM2_Clear, as a firmware's set-up does it. The TPM must not be running."""
    with soft.serve() as tcti, ESAPI(tcti) as esys:
        esys.clear(ESYS_TR.PLATFORM)


def name_of(public: bytes) -> bytes:
    """The name of a TPMT_PUBLIC."""
    area, _ = TPMT_PUBLIC.unmarshal(public)
    return bytes(TPM2B_PUBLIC(publicArea=area).get_name())


def credential(endorsement: bytes, name: bytes, secret: bytes) -> tuple[bytes, bytes]:
    """A credential for the key ``name`` on the TPM with that endorsement key, marshalled."""
    area, _ = TPMT_PUBLIC.unmarshal(endorsement)
    blob, encrypted = make_credential(TPM2B_PUBLIC(publicArea=area), secret, name)
    return bytes(blob.marshal()), bytes(encrypted.marshal())


def certified_key(certificate: bytes) -> bytes:
    """The public key in a certificate, DER."""
    return (
        x509.load_der_x509_certificate(certificate)
        .public_key()
        .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def key_of(public: bytes) -> bytes:
    """The public key in a TPMT_PUBLIC, DER."""
    area, _ = TPMT_PUBLIC.unmarshal(public)
    return bytes(TPM2B_PUBLIC(publicArea=area).to_der())


def handles(esys: Any, first: int) -> list[int]:
    """The handles of one kind that the TPM holds, from ``first`` on."""
    _, capability = esys.get_capability(TPM2_CAP.HANDLES, first, 128)
    found = capability.data.handles
    return [int(found[i]) for i in range(len(found))]


def store_key(esys: ESAPI, handle: int, *, attributes: str, hierarchy: Any = ESYS_TR.ENDORSEMENT) -> bytes:
    """Store a P-256 signing primary with these attributes; returns its TPMT_PUBLIC."""
    template = TPM2B_PUBLIC.parse("ecc256:ecdsa-sha256:null", objectAttributes=TPMA_OBJECT.parse(attributes))
    key, public, *_ = esys.create_primary(None, template, hierarchy)
    esys.evict_control(ESYS_TR.OWNER, key, handle)
    esys.flush_context(key)
    return bytes(public.publicArea.marshal())
