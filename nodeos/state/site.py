"""The operator's key in the signed site configuration on the boot partition."""

from __future__ import annotations

import re
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from nodeos.core.errors import NodeosError, RefusedError, UsageError
from nodeos.core.files import read_file
from nodeos.core.site import SignedSite, SiteConfig
from nodeos.core.wire import ParseError

SITE_KEY_FILE = "site.pub.pem"
_PEM = re.compile(rb"-----BEGIN PUBLIC KEY-----.+?-----END PUBLIC KEY-----\n?", re.DOTALL)
_REMAKE = "put a site configuration on it that this release's site key signed; nothing was made yet"


def read_site(boot: Path, library: Path) -> SiteConfig:
    """The configuration in ``boot``/nodeos, signed by a site key of ``library``/site.pub.pem.

    Raises NodeosError: without it no volume is made, since its recovery key could not be kept for anyone.
    """
    try:
        keys = _keys(read_file(library / SITE_KEY_FILE, "the site key", limit=1 << 13))
        document = read_file(boot / "nodeos/site.json", "site configuration", limit=1 << 16)
        signature = read_file(boot / "nodeos/site.sig", "site signature", limit=1 << 10)
    except UsageError as error:
        raise NodeosError(
            f"no site configuration on the boot partition: {error.message}", hint=_REMAKE
        ) from error
    signed = SignedSite(document=document, signature=signature)
    for key in keys[:-1]:
        try:
            return signed.verify(key)
        except RefusedError:
            continue
    return signed.verify(keys[-1])


def _keys(data: bytes) -> list[Ed25519PublicKey]:
    try:
        keys = [load_pem_public_key(pem) for pem in _PEM.findall(data)]
    except ValueError as error:
        raise ParseError(f"{SITE_KEY_FILE}: not a public key in PEM") from error
    found = [key for key in keys if isinstance(key, Ed25519PublicKey)]
    if not found or len(found) != len(keys):
        raise ParseError(f"{SITE_KEY_FILE}: not Ed25519 keys")
    return found
