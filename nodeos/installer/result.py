"""The result for people and machines: words and a QR code on the console, JSON at the registrar."""

from __future__ import annotations

import time
from collections.abc import Callable

from nodeos.core.errors import NodeosError, UnreachableError
from nodeos.core.http import Client
from nodeos.core.installation import PATH, Installation
from nodeos.core.site import SiteConfig

TRIES = 12
PAUSE = 10.0


def report(
    site: SiteConfig,
    installation: Installation,
    *,
    tell: Callable[[str], None],
    tries: int = TRIES,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Send the result to the registrar. True if it took it.

    What was installed is installed, whoever hears of it: nothing that goes wrong here is raised.
    """
    for left in reversed(range(tries)):
        try:
            client = Client(site.registrar_url, ca=site.registrar_ca)
            client.request("POST", PATH, installation.to_bytes())
        except UnreachableError as error:
            tell(f"{error.message}{'; trying again' if left else ''}")
            if left:
                sleep(PAUSE)
        except NodeosError as error:
            tell(str(error))
            return False
        else:
            return True
    return False


def picture(installation: Installation) -> str:
    """The QR code of the result as text for a console, two modules in the height of one character."""
    import io

    import segno

    out = io.StringIO()
    segno.make(installation.code, error="l", micro=False).terminal(out, border=2, compact=True)
    return out.getvalue().rstrip("\n")
