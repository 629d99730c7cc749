"""The public keys that an installation trusts, and the site configuration that one of them signed."""

from __future__ import annotations

from pathlib import Path

from hsm.keys import public_der
from nodeos.core.files import read_file
from nodeos.core.pem import parse_public_keys
from nodeos.core.sitefiles import read_site

__all__ = ["RELEASE_KEYS", "SITE_KEYS", "read_keys", "read_site"]

# The installer's own root carries both; on a host they are named.
RELEASE_KEYS = Path("/usr/lib/nodeos/release.pub.pem")
SITE_KEYS = Path("/usr/lib/nodeos/site.pub.pem")


def read_keys(path: Path, what: str) -> tuple[bytes, ...]:
    """The public keys (DER) of a PEM file: the present one, and during a change of keys the next. Raises
    UsageError for a file without any."""
    data = read_file(path, what, limit=1 << 16)
    keys = parse_public_keys(data, f"{what} {path}", hint="name the .pub.pem file")
    return tuple(public_der(key) for key in keys)
