"""``nodeos installer``: what runs on a machine that was started from installation media."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from nodeos.agent.console import Console
    from nodeos.installer.program import Parts

RELEASE = Path("/run/nodeos/release")
_RUN = Path("/run/nodeos")


@click.group()
def commands() -> None:
    """What runs on a machine that was started from installation media."""


@commands.command()
def run() -> None:
    """Install the release that this system carries on this machine, then end the machine.

    Takes the site's signed configuration from what the machine was started from, checks the machine, chooses the
    disk, writes and reads back, and reports. A disk with data is left alone without the operator's permission.
    Only an installer can do this: anywhere else use `nodeos install`.
    """
    from nodeos.agent.console import Console
    from nodeos.core.errors import UsageError
    from nodeos.core.run import run as execute
    from nodeos.installer.program import run_installer

    if not (RELEASE / "release.json").is_file():
        raise UsageError(
            f"{RELEASE} holds no release: this system is no installer",
            hint="`nodeos install` installs a release directory from any Linux",
        )
    console = Console(status=_RUN / "installer.json", device=Path("/dev/console"))
    if run_installer(_parts(console), console):
        console.tell("done", "switching off: take the medium out, then switch the machine on")
        execute(["systemctl", "poweroff", "--no-block"], what="switching off")
    else:
        console.tell("done", "starting the installed system")
        execute(["systemctl", "reboot", "--no-block"], what="starting again")


def _parts(console: Console) -> Parts:
    from nodeos.agent import site as agent_site
    from nodeos.agent.config import Config
    from nodeos.fingerprint.inventory import Sources
    from nodeos.install import trust
    from nodeos.install.source import read_release
    from nodeos.installer import machine, result
    from nodeos.installer.boot_entry import Firmware
    from nodeos.installer.medium import find_medium
    from nodeos.installer.program import Parts, Release
    from nodeos.installer.target import MachineDisks
    from nodeos.preflight import checks, devices, profile
    from nodeos.preflight import machine as preflight_machine

    config = Config()
    source = read_release(RELEASE, trust.read_keys(trust.RELEASE_KEYS, "the release key"))
    own = machine.platform_keys(RELEASE / "PK.auth")
    return Parts(
        release=Release(version=source.version, root_hash=source.root_hash),
        find_medium=find_medium,
        read_site=lambda directory: trust.read_site(directory, trust.SITE_KEYS),
        site_directory=_RUN / "site",
        apply_network=lambda network: agent_site.apply_network(
            network, config.network_directory, agent_site.reload_networkd
        ),
        preflight=lambda name: checks.check(
            profile.load_profile(name),
            preflight_machine.read_facts(Sources(), devices.KernelDevices()),
            own,
        ),
        open_disks=lambda signed, site: MachineDisks(source, site=signed, operator=site.operator),
        start_next=lambda esp: Firmware().start_next(esp),
        machine=lambda: machine.identify(config.tcti),
        report=lambda site, installation: result.report(
            site, installation, tell=lambda words: console.tell("registrar", words)
        ),
        picture=result.picture,
    )
