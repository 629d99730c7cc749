"""Started by nodeos-state.service in the initial RAM disk, with the verified root as its root directory."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from nodeos.core.errors import NodeosError
from nodeos.state.host import Host

# See the unit: systemd-stub's /.extra can't be shown in a read-only root at its own place.
EXTRA = Path("/run/nodeos/extra")


def main() -> None:
    """Exits with 1 if there is no state: the boot ends then, and the boot loader may take the earlier release."""
    os.environ["PATH"] = "/usr/sbin:/usr/bin:/sbin:/bin"
    host = Host()
    try:
        from hsm.tpm import Tpm
        from nodeos.state.booted import LIBRARY
        from nodeos.state.service import run_patiently

        run_patiently(host, Tpm, extra=EXTRA, library=LIBRARY)
    except NodeosError as error:
        for line in str(error).splitlines():
            host.say(line.strip())
        sys.exit(1)


if __name__ == "__main__":
    main()
