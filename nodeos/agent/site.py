"""The signed site configuration on the node: verified, measured into PCR 12, and its network applied."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Callable
from pathlib import Path

from nodeos.agent.device import TpmDevice
from nodeos.core.errors import NodeosError, UsageError
from nodeos.core.files import write_atomic
from nodeos.core.site import PCR, Network, SignedSite, SiteConfig
from nodeos.core.sitefiles import read_site
from nodeos.core.wire import ParseError

NETWORK_FILE = "10-nodeos.network"
_REMAKE = "make the medium again with `nodeos media make`"


def load_site(esp: Path, site_key: Path) -> tuple[SignedSite, SiteConfig]:
    """``site.json`` and ``site.sig`` below ``esp``, verified.

    Raises UsageError for what is missing or misshapen, RefusedError for a foreign signature.
    """
    if not esp.is_dir():
        raise UsageError(
            f"{esp} is not there: the EFI system partition is not mounted, or holds no site configuration",
            hint=f"{_REMAKE} and write it to the disk",
        )
    return read_site(esp, site_key, hint=_REMAKE)


def measure_site(tpm: TpmDevice, site: SignedSite) -> bool:
    """Extend PCR 12 with the document, once per boot. True if this call did it.

    The service may start more than once in a boot; the register itself tells whether it was done. Raises
    NodeosError if the register holds something else: then this boot can't be attested.
    """
    zero = bytes(32)
    expected = hashlib.sha256(zero + site.digest).digest()
    found = tpm.read_pcrs((PCR,))[PCR]
    if found == expected:
        return False
    if found != zero:
        raise NodeosError(
            f"PCR {PCR} holds {found.hex()}, which is neither zero nor this site configuration's value",
            hint="something else was measured in this boot (a changed site configuration, kernel arguments, "
            "credentials on the EFI system partition): remove it and restart the machine",
        )
    tpm.measure(PCR, site.document)
    extended = tpm.read_pcrs((PCR,))[PCR]
    if extended != expected:
        raise NodeosError(
            f"PCR {PCR} holds {extended.hex()} after the measurement, expected {expected.hex()}",
            hint="something else measures into it at the same time: restart the machine",
        )
    return True


def network_unit(network: Network) -> str:
    """The systemd.network(5) file for static addresses on the machine's physical Ethernet.

    The addresses are parsed and written anew, so that nothing else can get into the file.
    """
    lines = ["[Match]", "Type=ether", "Kind=!*", "", "[Network]", "DHCP=no", "IPv6AcceptRA=no"]
    try:
        if not network.addresses:
            raise ValueError("no address is given")
        lines += [f"Address={ipaddress.ip_interface(text)}" for text in network.addresses]
        lines += [f"Gateway={ipaddress.ip_address(text)}" for text in network.gateways]
        lines += [f"DNS={ipaddress.ip_address(text)}" for text in network.dns]
    except ValueError as error:
        raise ParseError(f"site.json.network: {error}", hint=_REMAKE) from error
    return "\n".join(lines) + "\n"


def apply_network(network: Network, directory: Path, reload: Callable[[], None]) -> None:
    """Write the network file and have systemd-networkd read it. Done anew at every start: it costs little,
    and an earlier start may have been cut off between the two."""
    write_atomic(directory / NETWORK_FILE, network_unit(network).encode())
    reload()


def reload_networkd() -> None:
    """Have systemd-networkd read its files again, if it runs. systemctl needs no message bus for that."""
    from nodeos.core.run import run

    run(
        ["systemctl", "try-reload-or-restart", "systemd-networkd.service"],
        what="reload the network's configuration",
        hint="see the journal of systemd-networkd",
    )
