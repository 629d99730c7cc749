"""Who sends: anonymous, or a public key whose signature of the request id holds.

Source: interface specification, section "Authentication". Ed25519, and ECDSA over SHA-256 on P-256 and
secp256k1. Delegations, WebAuthn and canister signatures are refused by name.
"""

from __future__ import annotations

from nodeos.core.principal import Principal
from replica.envelope import Envelope
from replica.errors import HttpError
from replica.hashing import REQUEST_DOMAIN


def authenticate(envelope: Envelope) -> Principal:
    """The sender, once proven. Raises HttpError(400 or 403) with what is wrong."""
    request, proof = envelope.request, envelope.credentials
    if proof.delegated:
        raise HttpError(403, "Invalid delegation: this replica does not accept delegations yet")
    if request.sender == Principal.anonymous():
        if proof.public_key is not None or proof.signature is not None:
            raise HttpError(400, "Invalid signature: an anonymous request carries no signature")
        return request.sender
    if proof.public_key is None or proof.signature is None:
        raise HttpError(403, "Missing signature: a sender that isn't anonymous must sign")
    if Principal.self_authenticating(proof.public_key) != request.sender:
        raise HttpError(403, "Invalid signature: the sender is not the principal of the public key")
    _verify(proof.public_key, proof.signature, REQUEST_DOMAIN + request.id)
    return request.sender


def _verify(public_key: bytes, signature: bytes, message: bytes) -> None:
    # Imported late: these take a third of the start-up time.
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        PublicFormat,
        load_der_public_key,
    )

    try:
        key = load_der_public_key(public_key)
        canonical = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise HttpError(403, "Invalid signature: a kind of key that this replica does not verify") from error
    if canonical != public_key:
        # One key, one principal: other encodings of it would be other senders.
        raise HttpError(403, "Invalid signature: the public key is not in the canonical DER form")
    try:
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, message)
        elif isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in ("secp256r1", "secp256k1"):
            if len(signature) != 64:
                raise InvalidSignature
            r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
            key.verify(encode_dss_signature(r, s), message, ec.ECDSA(SHA256()))
        else:
            raise HttpError(403, "Invalid signature: a kind of key that this replica does not verify")
    except InvalidSignature as error:
        raise HttpError(403, "Invalid signature: it does not hold for this request and key") from error
