"""``site.json`` and ``site.sig`` in a folder, held to the site keys of this system."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from nodeos.core.errors import RefusedError, UsageError
from nodeos.core.files import read_file
from nodeos.core.pem import parse_public_keys
from nodeos.core.site import SignedSite, SiteConfig

DOCUMENT, SIGNATURE = "site.json", "site.sig"
_SIGNATURE_BYTES = 64


def read_site(directory: Path, keys: Path, *, hint: str | None = None) -> tuple[SignedSite, SiteConfig]:
    """The configuration in ``directory``, signed by one of the Ed25519 keys in the PEM file ``keys``.

    Raises UsageError, with ``hint``, for what is missing or misshapen, RefusedError for a foreign signature.
    """
    try:
        document = read_file(directory / DOCUMENT, "site configuration", limit=1 << 16)
        signature = read_file(directory / SIGNATURE, "site signature", limit=1 << 10)
    except UsageError as error:
        raise UsageError(error.message, hint=hint or error.hint) from error
    if len(signature) != _SIGNATURE_BYTES:
        raise UsageError(
            f"site signature {directory / SIGNATURE}: {len(signature)} bytes, expected {_SIGNATURE_BYTES}",
            hint=hint,
        )
    signed = SignedSite(document=document, signature=signature)
    *others, last = read_site_keys(keys)
    for key in others:
        try:
            return signed, signed.verify(key)
        except RefusedError:
            continue
    return signed, signed.verify(last)


def read_site_keys(path: Path) -> tuple[Ed25519PublicKey, ...]:
    """The key that signs sites, and perhaps the next one. Raises UsageError for a file of other keys."""
    hint = "it is site.pub.pem; in an image that is damaged, install it again"
    keys = parse_public_keys(read_file(path, "site key", limit=1 << 16), f"site key {path}", hint=hint)
    found = tuple(key for key in keys if isinstance(key, Ed25519PublicKey))
    if len(found) != len(keys):
        raise UsageError(f"site key {path}: not an Ed25519 key", hint=hint)
    return found
