"""``nodeos media``: what an operator flashes."""

from __future__ import annotations

from pathlib import Path

import click

from nodeos.cli import emit
from nodeos.core.files import read_file
from nodeos.core.principal import Principal
from nodeos.core.site import Network, SiteConfig


@click.group()
def commands() -> None:
    """Installation media with a site's signed configuration."""


@commands.command()
@click.argument("target", type=click.Path(path_type=Path))
@click.option(
    "--image",
    "image_",
    type=click.Path(path_type=Path, exists=True),
    required=True,
    help="The disk image of a release (nodeos.raw).",
)
@click.option("--site-key", type=click.Path(path_type=Path), required=True, help="The site key that signs.")
@click.option("--dc", required=True, help="The data centre's id, as the registrar knows it.")
@click.option("--registrar", required=True, help="The registrar's address, https://…")
@click.option(
    "--ca", type=click.Path(path_type=Path), required=True, help="The registrar's CA certificate (PEM)."
)
@click.option("--operator", required=True, help="The operator's principal.")
@click.option("--reward-type", required=True, help="The node reward type, such as type1.")
@click.option("--address", multiple=True, metavar="ADDRESS/PREFIX", help="A static address. [default: DHCP]")
@click.option("--gateway", multiple=True, help="A gateway for static addresses.")
@click.option("--dns", multiple=True, help="A name server for static addresses.")
@click.pass_context
def make(  # noqa: PLR0917 - click calls it by keyword
    ctx: click.Context,
    target: Path,
    image_: Path,
    site_key: Path,
    dc: str,
    registrar: str,
    ca: Path,
    operator: str,
    reward_type: str,
    address: tuple[str, ...],
    gateway: tuple[str, ...],
    dns: tuple[str, ...],
) -> None:
    """Write TARGET: a copy of the image with the signed configuration of one site.

    Flash it with `dd` to the boot disk of each machine of the site. Nothing is overwritten.
    """
    from image import media

    network = Network(addresses=address, gateways=gateway, dns=dns) if address else None
    site = SiteConfig(
        data_center=dc,
        registrar_url=registrar,
        registrar_ca=read_file(ca, "the registrar's CA", limit=8192).decode("ascii", "replace"),
        operator=Principal.parse(operator),
        node_reward_type=reward_type,
        network=network,
    )
    # What the node would refuse is refused here, where it costs nothing.
    SiteConfig.parse(site.to_bytes(), "the site configuration")
    media.make(image_, media.sign(site, media.load_site_key(site_key)), target)
    emit(ctx, {"medium": str(target), "data_center": dc}, f"{target}: medium for {dc}")
