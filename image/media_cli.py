"""``nodeos media``: what an operator flashes."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from pathlib import Path

import click

from nodeos.cli import emit
from nodeos.core.errors import UsageError
from nodeos.core.files import read_file
from nodeos.core.principal import Principal
from nodeos.core.site import MemoryPolicy, Network, SiteConfig


@click.group()
def commands() -> None:
    """Installation media with a site's signed configuration."""


@commands.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--site-key", type=click.Path(path_type=Path), required=True, help="The site key that signs.")
@click.option("--dc", required=True, help="The data centre's id, as the registrar knows it.")
@click.option("--registrar", required=True, help="The registrar's address, https://…")
@click.option(
    "--ca", type=click.Path(path_type=Path), required=True, help="The registrar's CA certificate (PEM)."
)
@click.option("--operator", required=True, help="The operator's principal.")
@click.option(
    "--operator-key",
    type=click.Path(path_type=Path),
    required=True,
    help="The operator's recovery key: the identity file of `nodeos operator init`, or a public key (PEM, DER).",
)
@click.option("--reward-type", required=True, help="The node reward type, such as type1.")
@click.option(
    "--disk", metavar="SERIAL", help="Install on the disk with this serial. [default: the largest empty disk]"
)
@click.option(
    "--memory-encryption", type=click.Choice([str(item) for item in MemoryPolicy]),
    default=str(MemoryPolicy.REPORT), show_default=True,
    help="What becomes of a machine whose memory is not seen to be encrypted: it is told, or refused.",
)  # fmt: skip
@click.option("--address", multiple=True, metavar="ADDRESS/PREFIX", help="A static address. [default: DHCP]")
@click.option("--gateway", multiple=True, help="A gateway for static addresses.")
@click.option("--dns", multiple=True, help="A name server for static addresses.")
@click.pass_context
def site(  # noqa: PLR0917 - click calls it by keyword
    ctx: click.Context,
    directory: Path,
    site_key: Path,
    dc: str,
    registrar: str,
    ca: Path,
    operator: str,
    operator_key: Path,
    reward_type: str,
    disk: str | None,
    memory_encryption: str,
    address: tuple[str, ...],
    gateway: tuple[str, ...],
    dns: tuple[str, ...],
) -> None:
    """Write the signed configuration of one site, site.json and site.sig, into DIRECTORY.

    With DHCP one configuration serves all machines of the site, with static addresses each machine has its own.
    Nothing is overwritten.
    """
    from hsm.identity import read_recovery_key
    from hsm.pin import read_pin
    from image import media

    config = SiteConfig(
        data_center=dc,
        registrar_url=registrar,
        registrar_ca=_certificates(ca),
        operator=Principal.parse(operator),
        operator_key=read_recovery_key(operator_key, lambda: read_pin(None)),
        node_reward_type=reward_type,
        network=_network(address, gateway, dns),
        install_disk=disk,
        memory_encryption=MemoryPolicy(memory_encryption),
    )
    # What the node would refuse is refused here, where it costs nothing.
    SiteConfig.parse(config.to_bytes(), "the site configuration")
    media.write_site(media.sign(config, media.load_site_key(site_key)), directory)
    emit(ctx, {"directory": str(directory), "data_center": dc}, f"{directory}: signed configuration for {dc}")


@commands.command()
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--release", type=click.Path(path_type=Path), required=True, help="A signed release directory.")
@click.option(
    "--site", "site_", type=click.Path(path_type=Path), required=True,
    help="The folder that `nodeos media site` made.",
)  # fmt: skip
@click.option(
    "--kind", type=click.Choice(["usb", "iso", "http"]), default="usb", show_default=True,
    help="A USB disk's image, an ISO image, or a folder for HTTP boot.",
)  # fmt: skip
@click.option(
    "--erase",
    type=click.Path(path_type=Path),
    help="A token that lets the installer erase one machine's disk.",
)
@click.pass_context
def make(  # noqa: PLR0917 - click calls it by keyword
    ctx: click.Context, target: Path, release: Path, site_: Path, kind: str, erase: Path | None
) -> None:
    """Write TARGET: an installer with the signed configuration of one site.

    Write a usb or iso medium to a stick (`nodeos flash`), or show the ISO image to a machine as a disc; serve an
    http folder as it is. The installer and what it installs are the same on all three. Nothing is overwritten.
    """
    from image import media

    token = None if erase is None else read_file(erase, "erase token", limit=1 << 16)
    signed = media.read_site(site_)
    center = SiteConfig.parse(signed.document, str(site_ / "site.json")).data_center
    click.echo(f"making the {kind} medium (some seconds)", err=True)
    content = media.Content.read(release, signed, erase=token)
    media.write(media.Kind(kind), content, target)
    value = {"medium": str(target), "kind": kind, "data_center": center, "release": content.release}
    emit(ctx, value, f"{target}: {kind} medium of release {content.release} for {center}")


def _network(addresses: tuple[str, ...], gateways: tuple[str, ...], dns: tuple[str, ...]) -> Network | None:
    """The static addresses, each checked here: on the node a wrong one costs a trip to the data centre."""
    if not addresses:
        if gateways or dns:
            raise UsageError(
                "--gateway and --dns are for static addresses", hint="give --address too, or neither"
            )
        return None
    for text in addresses:
        _check("--address", text, ipaddress.ip_interface)
        if "/" not in text:
            raise UsageError(f"--address {text}: the prefix length is missing", hint=f"such as {text}/64")
    for option, values in (("--gateway", gateways), ("--dns", dns)):
        for text in values:
            _check(option, text, ipaddress.ip_address)
    return Network(addresses=addresses, gateways=gateways, dns=dns)


def _check(option: str, text: str, parse: Callable[[str], object]) -> None:
    try:
        parse(text)
    except ValueError as error:
        raise UsageError(f"{option} {text}: {error}") from error


def _certificates(path: Path) -> str:
    """The CA certificates of a PEM file and nothing else that may be in it, such as a private key."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    try:
        found = x509.load_pem_x509_certificates(read_file(path, "the registrar's CA", limit=1 << 16))
    except ValueError as error:
        hint = "it is ca.pem in the registrar's folder"
        raise UsageError(f"{path}: no certificate in PEM: {error}", hint=hint) from error
    return "".join(certificate.public_bytes(Encoding.PEM).decode() for certificate in found)
