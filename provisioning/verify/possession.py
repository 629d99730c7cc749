"""Does the node hold the secret keys of the public keys that it states?

The quote shows that this machine states these keys, not that it has them. Without a proof a machine could
claim the keys of a node that is about to be enrolled elsewhere, and keep it out (keys are unique in the
registry), or make a committee key from those of others (a rogue key).
"""

from __future__ import annotations

from collections.abc import Callable

from cryptography import x509

from hsm import bls, keys
from nodeos.core.errors import NodeosError
from nodeos.core.protocol import KeyProofs, NodeKeys, possession_message
from provisioning.verify.findings import Verdict, finding, verdict
from provisioning.verify.policy import check_key_forms


def check_possession(stated: NodeKeys, proofs: KeyProofs, qualifying: bytes) -> Verdict:
    """Each key signed for this attestation. A key of a wrong form is refused elsewhere and not looked at."""
    message = possession_message(qualifying)
    checks: dict[str, Callable[[], None]] = {
        "signing": lambda: keys.verify(stated.signing, message, proofs.signing),
        "tls_certificate": lambda: keys.verify(_tls_key(stated), message, proofs.tls),
        "committee": lambda: bls.verify(stated.committee, message, proofs.committee),
    }
    malformed = {f.code for f in check_key_forms(stated)}
    refused = []
    for name, check in checks.items():
        if f"keys.{name}" in malformed:
            continue
        try:
            check()
        except NodeosError as error:
            words = f"the node did not show that it holds its key {name!r}: {error.message}"
            refused.append(finding(f"possession.{name}", words))
    return verdict("possession", refused)


def _tls_key(stated: NodeKeys) -> bytes:
    return keys.public_der(x509.load_der_x509_certificate(stated.tls_certificate).public_key())
