"""What the release that was booted says of the state's policy: its keys, its signed policies, its versions."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from hsm.keys import public_der
from nodeos.core.errors import NodeosError, UsageError
from nodeos.core.files import read_file
from nodeos.core.pem import parse_public_keys
from nodeos.core.statepolicy import HIGHEST_VERSION, PolicySignatures
from nodeos.core.wire import ParseError, parse_toml

# Where systemd-stub puts the sections .pcrpkey and .pcrsig of the UKI (systemd-stub(7)).
KEY_FILE, SIGNATURE_FILE = "tpm2-pcr-public-key.pem", "tpm2-pcr-signature.json"
# Below /run/nodeos: the two files as the boot found them, for the running system.
POLICY = "policy"
LIBRARY = Path("/usr/lib/nodeos")
RELEASE_FILE = "release.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Booted:
    """``policy_keys`` (P-256) are what the state is sealed to; ``signatures`` may be by older keys as well."""

    policy_keys: tuple[ec.EllipticCurvePublicKey, ...]
    signatures: PolicySignatures
    security_version: int
    rollback_floor: int

    @property
    def known(self) -> frozenset[bytes]:
        """The SHA-256 of every policy key that this release vouches for: both sections are signed with the UKI."""
        own = {fingerprint(key) for key in self.policy_keys}
        return frozenset(own | {item.key for item in self.signatures.signatures})


def fingerprint(key: ec.EllipticCurvePublicKey) -> bytes:
    return hashlib.sha256(public_der(key)).digest()


def read_booted(extra: Path, library: Path) -> Booted:
    """``extra`` is systemd-stub's directory, ``library`` the root's /usr/lib/nodeos.

    Raises NodeosError if the image is not a signed release.
    """
    try:
        keys = read_file(extra / KEY_FILE, "the state policy's key", limit=1 << 13)
        signatures = read_file(extra / SIGNATURE_FILE, "the state policy's signatures", limit=1 << 16)
        release = read_file(library / RELEASE_FILE, "the release's versions", limit=1 << 12)
    except UsageError as error:
        raise NodeosError(
            f"this image carries no state policy: {error.message}", hint="start or install a signed release"
        ) from error
    security_version, rollback_floor = _versions(release)
    return Booted(
        policy_keys=_policy_keys(keys),
        signatures=PolicySignatures.parse(signatures),
        security_version=security_version,
        rollback_floor=rollback_floor,
    )


def _policy_keys(data: bytes) -> tuple[ec.EllipticCurvePublicKey, ...]:
    keys = []
    for key in parse_public_keys(data, KEY_FILE):
        if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
            raise ParseError(f"{KEY_FILE}: a policy key is on the curve P-256")
        keys.append(key)
    if not 1 <= len(keys) <= 2:
        raise ParseError(f"{KEY_FILE}: {len(keys)} keys, not one or two")
    return tuple(keys)


def _versions(data: bytes) -> tuple[int, int]:
    fields = parse_toml(data, RELEASE_FILE)
    security = fields.integer("security_version", low=1, high=HIGHEST_VERSION)
    floor = fields.integer("rollback_floor", low=0, high=security)
    return security, floor
