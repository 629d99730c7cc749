"""The public keys that an installation trusts, and the site configuration that one of them signed."""

from __future__ import annotations

import re
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from hsm.keys import public_der
from nodeos.core.errors import RefusedError, UsageError
from nodeos.core.files import read_file
from nodeos.core.site import SignedSite, SiteConfig

# The installer's own root carries both; on a host they are named.
RELEASE_KEYS = Path("/usr/lib/nodeos/release.pub.pem")
SITE_KEYS = Path("/usr/lib/nodeos/site.pub.pem")
_BLOCK = re.compile(rb"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----\n?", re.DOTALL)
_SIGNATURE_BYTES = 64


def read_keys(path: Path, what: str) -> tuple[bytes, ...]:
    """The public keys (DER) of a PEM file: the present one, and during a change of keys the next. Raises
    UsageError for a file without any."""
    try:
        keys = tuple(public_der(load_pem_public_key(block)) for block in _blocks(path, what))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(f"{what} {path}: not a public key in PEM") from error
    return keys


def read_site(directory: Path, keys: Path) -> tuple[SignedSite, SiteConfig]:
    """``site.json`` and ``site.sig`` of a folder. Raises RefusedError unless one of the site keys signed them."""
    site = SignedSite(
        document=read_file(directory / "site.json", "the site configuration", limit=1 << 16),
        signature=read_file(directory / "site.sig", "the site's signature", limit=1 << 10),
    )
    if len(site.signature) != _SIGNATURE_BYTES:
        raise UsageError(
            f"{directory / 'site.sig'}: {len(site.signature)} bytes, expected {_SIGNATURE_BYTES}"
        )
    refused: RefusedError | None = None
    for block in _blocks(keys, "the site key"):
        try:
            key = load_pem_public_key(block)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise UsageError(f"the site key {keys}: not a public key in PEM") from error
        if not isinstance(key, Ed25519PublicKey):
            raise UsageError(f"the site key {keys}: not an Ed25519 key")
        try:
            return site, site.verify(key)
        except RefusedError as error:
            refused = error
    if refused is None:
        raise UsageError(f"the site key {keys}: no public key in PEM")
    raise refused


def _blocks(path: Path, what: str) -> list[bytes]:
    found = _BLOCK.findall(read_file(path, what, limit=1 << 16))
    if not found:
        raise UsageError(f"{what} {path}: no public key in PEM", hint="name the .pub.pem file")
    return list(found)
