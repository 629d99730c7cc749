"""The operator's key in the signed site configuration on the boot partition."""

from __future__ import annotations

from pathlib import Path

from nodeos.core.errors import NodeosError, UsageError
from nodeos.core.site import SiteConfig
from nodeos.core.sitefiles import read_site as read_signed

SITE_KEY_FILE = "site.pub.pem"
_REMAKE = "put a site configuration on it that this release's site key signed; nothing was made yet"


def read_site(boot: Path, library: Path) -> SiteConfig:
    """The configuration in ``boot``/nodeos, signed by a site key of ``library``/site.pub.pem.

    Raises NodeosError: without it no volume is made, since its recovery key could not be kept for anyone.
    """
    try:
        _, config = read_signed(boot / "nodeos", library / SITE_KEY_FILE)
    except UsageError as error:
        raise NodeosError(
            f"no site configuration on the boot partition: {error.message}", hint=_REMAKE
        ) from error
    return config
