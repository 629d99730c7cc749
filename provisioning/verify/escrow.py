"""Is the recovery key that a node hands over one that its operator can use for this very volume? Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass

from nodeos.core.errors import RefusedError
from nodeos.core.recovery import RecoveryBlob
from nodeos.core.wire import ParseError
from provisioning.verify.findings import Verdict, finding, verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Escrow:
    """What an escrowed blob is held against. ``known`` are the machine's blobs of this very volume that the
    registrar has kept; ``operator_key`` is the DER key of the site's configuration."""

    machine: str
    luks_uuid: str
    operator_key: bytes
    known: Collection[bytes]


def check_escrow(recovery: bytes, expected: Escrow) -> Verdict:
    """The blob is for this machine, this volume and the site's operator, or one that was kept before.

    A kept one may name the machine's former TPM or the operator's former key: that was right once, and the
    volume's header is not made anew for it. A former key is for a person to look at.
    """
    try:
        blob = RecoveryBlob.parse(recovery, "recovery")
        if blob.to_bytes() != recovery:
            raise ParseError("recovery: not in the canonical form")
    except ParseError as error:
        return verdict("recovery", [finding("recovery.form", error.message)])
    digest = hashlib.sha256(expected.operator_key).digest()
    if recovery in expected.known:
        words = "the recovery key is encrypted to another key than the site's operator has now"
        watch = [] if blob.operator_key == digest else [finding("recovery.operator_key", words)]
        return verdict("recovery", (), watch)
    try:
        blob.context_for(machine=expected.machine, volume=expected.luks_uuid, operator_key=digest)
    except RefusedError as error:
        return verdict("recovery", error.findings)
    return verdict("recovery", ())
