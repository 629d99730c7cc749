"""Who sends: anonymous, or a public key whose signature of the request id holds.

Source: interface specification, section "Authentication". Ed25519, and ECDSA over SHA-256 on P-256 and
secp256k1. Delegations, WebAuthn and canister signatures are refused by name.
"""

from __future__ import annotations

from hsm import keys
from nodeos.core.errors import UsageError
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
    try:
        keys.verify(public_key, message, signature)
    except (keys.SignatureError, UsageError) as error:
        raise HttpError(403, f"Invalid signature: {error.message}") from error
