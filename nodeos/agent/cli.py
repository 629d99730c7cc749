"""`nodeos agent`: what runs on a node at every boot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from nodeos.agent.config import Config
from nodeos.cli import emit
from nodeos.core.recovery import RecoveryKey

_DEFAULTS = Config()
F = TypeVar("F", bound=Callable[..., Any])


@click.group()
def commands() -> None:
    """What runs on a node at every boot."""


def _path_option(name: str, default: Path, words: str) -> Callable[[F], F]:
    return click.option(name, type=click.Path(path_type=Path), default=default, show_default=True, help=words)


@commands.command()
@_path_option("--state", _DEFAULTS.state, "Directory on the sealed state partition.")
@_path_option("--esp", _DEFAULTS.esp, "Directory with site.json and site.sig.")
@_path_option("--site-key", _DEFAULTS.site_key, "Public key that signs site configurations (PEM).")
@_path_option(
    "--volume-report", _DEFAULTS.volume_report, "What the initial RAM disk says of the state volume."
)
@click.option(
    "--tcti",
    default=_DEFAULTS.tcti,
    show_default=True,
    help="How to reach the TPM (TCTI name:configuration).",
)
@_path_option("--status", _DEFAULTS.status, "File that tells what the agent does, as JSON.")
@_path_option("--console", _DEFAULTS.console, "Device that people look at.")
@_path_option("--firmware-log", _DEFAULTS.firmware_log, "The firmware's measurement log.")
@_path_option("--userspace-log", _DEFAULTS.userspace_log, "systemd's measurement log.")
@_path_option("--os-release", _DEFAULTS.os_release, "The os-release file of the image.")
@_path_option("--network-directory", _DEFAULTS.network_directory, "Where a static network is configured.")
@_path_option("--attested", _DEFAULTS.attested, "File that is made once the node is attested in this boot.")
@_path_option("--ruleset", _DEFAULTS.ruleset, "Where the firewall's ruleset is put to be loaded.")
@_path_option(
    "--offer", _DEFAULTS.offer, "Where a release that the registrar offers is left for `agent update`."
)
@click.option(
    "--period",
    type=click.IntRange(1, 86400),
    default=_DEFAULTS.period,
    show_default=True,
    help="Seconds between attestations.",
)
@click.option(
    "--access-period",
    type=click.IntRange(1, 86400),
    default=_DEFAULTS.access_period,
    show_default=True,
    help="Seconds between questions who may reach the node.",
)
def run(**options: Any) -> None:
    """Enrol this machine, attest it, and attest it again until SIGTERM.

    Verifies the site's signed configuration and measures it, makes or loads the node's identity, takes the
    hardware fingerprint, and then speaks with the registrar, for as long as it takes.
    """
    from nodeos.agent import service, site, volume
    from nodeos.agent.console import Console
    from nodeos.agent.firewall import own_addresses
    from nodeos.agent.stop import Stop, StopRequested

    config = Config(**options)
    console = Console(status=config.status, device=config.console)
    parts = service.Parts(
        open_tpm=lambda: _open_tpm(config.tcti),
        read_header=volume.cryptsetup_header,
        reload_network=site.reload_networkd,
        collect_fingerprint=_collect_fingerprint,
        locked_volume=_LockedVolume(),
        reboot=_reboot,
        own_addresses=own_addresses,
        start_update=_start_update,
    )
    with Stop() as stop:
        try:
            service.run_agent(config, parts, console, stop)
        except StopRequested:
            console.tell("stopped", "told to stop")


@commands.command()
@_path_option("--state", _DEFAULTS.state, "Directory on the sealed state partition.")
@_path_option("--esp", _DEFAULTS.esp, "Directory with site.json and site.sig.")
@click.option(
    "--tcti",
    default=_DEFAULTS.tcti,
    show_default=True,
    help="How to reach the TPM (TCTI name:configuration).",
)
@_path_option("--console", _DEFAULTS.console, "Device that people look at.")
@_path_option("--offer", _DEFAULTS.offer, "The release that the registrar offers, as `agent run` leaves it.")
def update(state: Path, esp: Path, tcti: str, console: Path, offer: Path) -> None:
    """Fetch and install the release that the registrar offers, and restart the machine.

    Run by nodeos-update.service, which `agent run` starts. Trusts nothing but what a release key of this image
    signed; an interrupted run is gone on with.
    """
    import time

    from nodeos.agent import delivery, evidence, service, site
    from nodeos.agent.console import Console
    from nodeos.core.protocol import Offer
    from nodeos.update.machine import gather_facts
    from nodeos.update.source import WebFolder

    config = Config(state=state, esp=esp, console=console, tcti=tcti, offer=offer)
    paths = service.update_paths(config)
    _, settings = site.load_site(config.esp, config.site_key)

    def source(offer: Offer) -> WebFolder:
        return WebFolder(offer.url, ca=settings.registrar_ca)

    def gather() -> Any:
        with _open_tpm(config.tcti) as tpm:
            return gather_facts(paths, lambda: tpm)

    delivery.take(
        paths,
        config.offer,
        Console(status=config.offer.with_name("update-status.json"), device=config.console),
        delivery.Parts(source=source, gather=gather, wait=time.sleep, restart=_reboot),
        boot_id=evidence.boot_id(),
        node=_node_id(config),
    )


@commands.command()
@_path_option("--status", _DEFAULTS.status, "The status file of the agent.")
@click.pass_context
def status(ctx: click.Context, status: Path) -> None:
    """Show what the agent does."""
    from nodeos.core.files import read_file
    from nodeos.core.wire import parse_json

    value = dict(parse_json(read_file(status, "agent status", limit=1 << 20), status.name).items())
    emit(ctx, value, f"{value.get('step')}: {value.get('message')}")


class _LockedVolume:
    """The state volume of this machine. It stays closed: once it is sealed anew, the next boot opens it."""

    def recover(self, device: str, key: RecoveryKey) -> None:
        from nodeos.state.recovery import recover

        recover(device, key)


def _reboot() -> None:
    from nodeos.core.run import run

    run(["systemctl", "reboot"], what="restart the machine")


def _start_update() -> None:
    from nodeos.core.run import run

    run(["systemctl", "--no-block", "start", "nodeos-update.service"], what="start the update")


def _node_id(config: Config) -> str:
    from nodeos.core.files import read_file
    from nodeos.core.wire import parse_json

    return parse_json(read_file(config.node_record, "node record"), "node.json").text("node_id")


def _open_tpm(tcti: str) -> Any:
    from hsm.tpm import Tpm

    return Tpm(tcti)


def _collect_fingerprint(tpm: Any, machine: str) -> bytes:
    from nodeos.fingerprint.report import collect, encode

    return encode(collect(machine=machine, tpm=tpm.identity(), tpm_command=lambda: tpm.read_pcrs((0,))))
