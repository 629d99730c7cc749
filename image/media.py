"""Puts a site's signed configuration on a copy of the image: what an operator flashes."""

from __future__ import annotations

import tempfile
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from image.measure import esp_of
from image.vm import copy_sparse
from nodeos.core.errors import UsageError
from nodeos.core.files import read_file
from nodeos.core.run import find_tool, run
from nodeos.core.site import SIGNATURE_DOMAIN, SignedSite, SiteConfig


def load_site_key(path: Path) -> Ed25519PrivateKey:
    """The site key in a PEM file. Raises UsageError if it is none."""
    try:
        key = load_pem_private_key(read_file(path, "the site key"), None)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{path}: no private key in PEM: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{path}: not an Ed25519 key", hint="site keys come from `nodeos image keygen`")
    return key


def sign(site: SiteConfig, key: Ed25519PrivateKey) -> SignedSite:
    """The configuration with its signature."""
    document = site.to_bytes()
    return SignedSite(document=document, signature=key.sign(SIGNATURE_DOMAIN + document))


def make(image: Path, site: SignedSite, target: Path) -> None:
    """Write a copy of ``image`` to ``target`` with the site's configuration on its EFI system partition.

    A target that is there already is refused. If ``image`` is a medium itself, the new site takes the place of the
    old one in the copy.
    """
    if target.exists():
        raise UsageError(f"{target} is there already", hint="name another file; nothing is overwritten")
    mcopy = find_tool("mcopy", package="mtools")
    fresh = target.with_name(f".{target.name}.new")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        copy_sparse(image, fresh)
        esp = esp_of(fresh)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "nodeos"
            folder.mkdir()
            (folder / "site.json").write_bytes(site.document)
            (folder / "site.sig").write_bytes(site.signature)
            # -D o: overwrite what has the same name, and ask nobody.
            run(
                [mcopy, "-s", "-D", "o", "-i", esp, folder, "::"],
                what="writing the site configuration",
                stdin=b"",
            )
        fresh.rename(target)
    finally:
        fresh.unlink(missing_ok=True)
