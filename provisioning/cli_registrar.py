"""``nodeos registrar``: makes, fills and runs the enrolment service."""

from __future__ import annotations

from pathlib import Path

import click

from nodeos.cli import emit
from nodeos.core.daemon import parse_listen

_directory = click.option(
    "--dir",
    "directory",
    required=True,
    type=click.Path(path_type=Path),
    help="The registrar's directory.",
)
_file = click.Path(path_type=Path, dir_okay=False)


@click.group()
def commands() -> None:
    """The enrolment service."""


@commands.command()
@_directory
@click.option("--name", "names", required=True, multiple=True, help="A host name or address that nodes use.")
@click.pass_context
def init(ctx: click.Context, directory: Path, names: tuple[str, ...]) -> None:
    """Make a registrar: certificate authority, TLS certificate, database, settings."""
    from provisioning.registrar.directory import Directory

    made = Directory(directory)
    made.make(names)
    emit(
        ctx,
        {"directory": str(directory), "ca": str(made.ca), "names": list(names)},
        f"made {directory}; nodes and operators pin {made.ca}",
    )


@commands.command()
@_directory
@click.option("--name", "names", required=True, multiple=True, help="A host name or address that nodes use.")
@click.pass_context
def renew(ctx: click.Context, directory: Path, names: tuple[str, ...]) -> None:
    """Make a new TLS certificate from the same authority. Restart the server afterwards."""
    from provisioning.registrar.directory import Directory

    made = Directory(directory)
    made.settings()
    made.issue(names)
    emit(ctx, {"tls": str(made.tls), "names": list(names)}, f"made {made.tls}; restart the server")


@commands.command()
@_directory
@click.option("--listen", default="127.0.0.1:8443", show_default=True, help="HOST:PORT; [::] for IPv6.")
def serve(directory: Path, listen: str) -> None:
    """Run the service until SIGTERM. Says "listening" on standard error when it is ready."""
    import logging

    from provisioning.registrar import server
    from provisioning.registrar.app import make_app
    from provisioning.registrar.directory import Directory
    from provisioning.registrar.service import Service

    host, port = parse_listen(listen)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    here = Directory(directory)
    settings = here.settings()
    opened = server.listen(host, port)
    at = opened.getsockname()

    def ready() -> None:
        click.echo(f"listening on {at[0]} port {at[1]}", err=True)

    try:
        app = make_app(Service(here.open(), settings))
        seconds = settings.request_seconds
        server.serve(app, opened, certificate=here.tls, key=here.tls_key, seconds=seconds, ready=ready)
    finally:
        opened.close()


@commands.group()
def trust() -> None:
    """The TPM manufacturers whose endorsement certificates are accepted."""


@trust.command("add")
@_directory
@click.option("--pin-all", is_flag=True, help="Pin the intermediates too, as if they were roots.")
@click.argument("file", type=_file)
@click.pass_context
def trust_add(ctx: click.Context, directory: Path, pin_all: bool, file: Path) -> None:
    """Pin the root certificates of a PEM file.

    Certificates that are not self-issued are kept to find paths to a pinned root; alone they are not trusted.
    """
    from contextlib import closing

    from provisioning.registrar import admin
    from provisioning.registrar.directory import Directory

    with closing(Directory(directory).open()) as store:
        added = admin.add_trust(store, file, pin_all=pin_all)
    emit(
        ctx,
        [
            {"sha256": a.row.sha256, "kind": a.row.kind, "subject": a.certificate.subject_text, "new": a.new}
            for a in added
        ],
        "\n".join(
            f"{a.row.kind:12}  {a.certificate.subject_text}" + ("" if a.new else "  (was there)")
            for a in added
        ),
    )
    if not any(a.row.kind == "root" for a in added):
        click.echo("no root among them: nothing is trusted that was not before (see --pin-all)", err=True)


@trust.command("add-crl")
@_directory
@click.argument("file", type=_file)
@click.pass_context
def trust_add_crl(ctx: click.Context, directory: Path, file: Path) -> None:
    """Keep a revocation list (DER or PEM) of an authority that is known here.

    From then on its machines are refused if it names them, and also when it has ended: add the next one in time.
    """
    from contextlib import closing
    from datetime import UTC, datetime

    from provisioning.registrar import admin
    from provisioning.registrar.directory import Directory

    with closing(Directory(directory).open()) as store:
        added = admin.add_revocation_lists(store, file)
    emit(
        ctx,
        [
            {
                "issuer": crl.issuer_text,
                "this_update": f"{crl.this_update:%Y-%m-%dT%H:%M:%SZ}",
                "next_update": f"{crl.next_update:%Y-%m-%dT%H:%M:%SZ}" if crl.next_update else None,
                "revoked": len(crl.revoked),
                "new": new,
            }
            for crl, new in added
        ],
        "\n".join(
            f"{crl.issuer_text}: {len(crl.revoked)} revoked, holds until {crl.next_update:%Y-%m-%d}"
            + ("" if new else "  (was there)")
            for crl, new in added
        ),
    )
    for crl, _ in added:
        if crl.next_update is not None and crl.next_update < datetime.now(UTC):
            click.echo(
                f"the list of {crl.issuer_text} has ended: its machines are refused until a newer one",
                err=True,
            )


@trust.command("list")
@_directory
@click.pass_context
def trust_list(ctx: click.Context, directory: Path) -> None:
    """List pinned roots and known intermediates."""
    from contextlib import closing

    from provisioning.registrar.directory import Directory
    from provisioning.verify.der import parse_certificate

    with closing(Directory(directory).open()) as store, store.read() as tx:
        rows = [(row, parse_certificate(row.der).subject_text) for row in tx.trust()]
    emit(
        ctx,
        [{"sha256": r.sha256, "kind": r.kind, "subject": name, "added_at": r.added_at} for r, name in rows],
        "\n".join(f"{r.kind:12}  {r.sha256[:16]}  {name}" for r, name in rows) or "nothing is trusted yet",
    )


@commands.group()
def release() -> None:
    """The releases that machines may run."""


@release.command("add")
@_directory
@click.option("--allow-debug", is_flag=True, help="Accept a debug image, which has a shell.")
@click.option("--release-key", "release_keys", type=_file, multiple=True, required=True,
              help="The publisher's public key, release.pub.pem. Can be given more than once.")  # fmt: skip
@click.option("--signature", type=_file, help="[default: release.sig beside the manifest]")
@click.argument("file", type=_file)
@click.pass_context
def release_add(  # noqa: PLR0917
    ctx: click.Context, directory: Path, allow_debug: bool, release_keys: tuple[Path, ...],
    signature: Path | None, file: Path,
) -> None:  # fmt: skip
    """Accept machines that run the release of this manifest (release.json), which a release key has signed."""
    from contextlib import closing

    from provisioning.registrar import admin
    from provisioning.registrar.directory import Directory

    with closing(Directory(directory).open()) as store:
        added = admin.add_release(
            store, file, signature=signature, release_keys=release_keys, allow_debug=allow_debug
        )
    emit(ctx, {"release": added.version, "variant": added.variant}, f"accepted: {added.version}")


@release.command("withdraw")
@_directory
@click.argument("version")
@click.pass_context
def release_withdraw(ctx: click.Context, directory: Path, version: str) -> None:
    """Accept no more attestations of this release."""
    from contextlib import closing

    from provisioning.registrar import admin
    from provisioning.registrar.directory import Directory

    with closing(Directory(directory).open()) as store:
        admin.withdraw_release(store, version)
    emit(ctx, {"release": version, "withdrawn": True}, f"withdrawn: {version}")


@release.command("offer")
@_directory
@click.option("--dc", "center", required=True, help="The data centre whose nodes shall install it.")
@click.option("--url", help="Folder with the release's files, http or https, as the nodes reach it.")
@click.option("--rollback", is_flag=True, help="The release is older than what runs there, on purpose.")
@click.option("--withdraw", is_flag=True, help="Take the offer back: no node begins with it any more.")
@click.argument("version")
@click.pass_context
def release_offer(  # noqa: PLR0917
    ctx: click.Context, directory: Path, center: str, url: str | None, rollback: bool, withdraw: bool,
    version: str,
) -> None:  # fmt: skip
    """Have the nodes of a data centre install this release, which must be accepted already.

    Each node fetches it from the address, trusts nothing that its own release key didn't sign, installs it in its
    other slot and restarts. A node that failed tries again only if you offer it again.
    """
    from contextlib import closing

    from provisioning.registrar import admin
    from provisioning.registrar.directory import Directory

    if withdraw == (url is not None) or (withdraw and rollback):
        raise click.UsageError("give either --url (with or without --rollback) or --withdraw")
    with closing(Directory(directory).open()) as store:
        if url is None:
            admin.withdraw_offer(store, version, center)
            value: dict[str, object] = {"withdrawn": True}
            words = f"withdrawn: {version} is not offered to {center} any more"
        else:
            made = admin.offer_release(store, version, center, url, rollback=rollback)
            value = {"number": made.number, "url": url, "rollback": rollback}
            words = f"offered to {center}: {version}, offer {made.number}"
    emit(ctx, {"release": version, "data_center": center, **value}, words)


@release.command("list")
@_directory
@click.pass_context
def release_list(ctx: click.Context, directory: Path) -> None:
    """List accepted and withdrawn releases, and to whom they are offered."""
    from contextlib import closing

    from nodeos.core.release import Release
    from provisioning.registrar.directory import Directory

    with closing(Directory(directory).open()) as store, store.read() as tx:
        rows = [(row, Release.parse(row.document)) for row in tx.releases()]
        offers = [found for center in tx.centers() if (found := tx.offer(center.name))]
    emit(
        ctx,
        [
            {
                "release": r.version,
                "variant": r.variant,
                "root_hash": r.root_hash.hex(),
                "added_at": row.added_at,
                "withdrawn_at": row.withdrawn_at,
                "offered_to": [o.data_center for o in offers if o.version == r.version],
            }
            for row, r in rows
        ],
        "\n".join(
            f"{r.version}  {r.variant}  root {r.root_hash.hex()[:16]}"
            + ("  withdrawn" if row.withdrawn_at else "")
            + "".join(f"  offered to {o.data_center}" for o in offers if o.version == r.version)
            for row, r in rows
        )
        or "no release is accepted yet",
    )


@commands.group()
def dc() -> None:
    """The data centres whose machines may ask."""


@dc.command("add")
@_directory
@click.option("--dc", "name", required=True, help="The data centre's id, as in the site configuration.")
@click.option("--operator-key", required=True, type=_file, help="Public key (PEM, DER) or identity file.")
@click.option("--profile", required=True, type=click.Choice(["dev", "gen1"]), help="What machines must have.")
@click.option("--reward-type", required=True, help="The node reward type of its machines, such as type1.")
@click.option("--site-key", required=True, type=_file, help="Ed25519 key that signs its site configuration.")
@click.pass_context
def dc_add(  # noqa: PLR0917
    ctx: click.Context,
    directory: Path,
    name: str,
    operator_key: Path,
    profile: str,
    reward_type: str,
    site_key: Path,
) -> None:
    """Let machines of a data centre ask, and let its operator decide."""
    from contextlib import closing

    from provisioning.registrar import admin
    from provisioning.registrar.directory import Directory
    from provisioning.registrar.rows import CenterRow
    from provisioning.registrar.service import now

    key = admin.read_operator_key(operator_key)
    row = CenterRow(
        name=name,
        operator=str(admin.operator_principal(key)),
        operator_key=key,
        profile=profile,
        node_reward_type=reward_type,
        site_key=admin.read_site_key(site_key),
        added_at=now(),
    )
    with closing(Directory(directory).open()) as store:
        admin.add_center(store, row)
    emit(ctx, {"data_center": name, "operator": row.operator}, f"{name}: operator {row.operator}")


@dc.command("allow")
@_directory
@click.argument("name", metavar="DC")
@click.argument("prefixes", metavar="PREFIX...", nargs=-1, required=True)
@click.pass_context
def dc_allow(ctx: click.Context, directory: Path, name: str, prefixes: tuple[str, ...]) -> None:
    """Let boundary nodes and operators reach the replicas of a data centre.

    Its nodes open the replica's port 8080, and nothing else, to these prefixes (2001:db8::/48, 192.0.2.7) beside
    those that were allowed before. Nodes take the change within minutes.
    """
    _change_clients(ctx, directory, name, prefixes, withdraw=False)


@dc.command("disallow")
@_directory
@click.argument("name", metavar="DC")
@click.argument("prefixes", metavar="PREFIX...", nargs=-1, required=True)
@click.pass_context
def dc_disallow(ctx: click.Context, directory: Path, name: str, prefixes: tuple[str, ...]) -> None:
    """Close the replicas of a data centre to prefixes that were allowed.

    Connections that are open stay open.
    """
    _change_clients(ctx, directory, name, prefixes, withdraw=True)


def _change_clients(
    ctx: click.Context, directory: Path, name: str, prefixes: tuple[str, ...], *, withdraw: bool
) -> None:
    from contextlib import closing

    from provisioning.registrar import admin
    from provisioning.registrar.directory import Directory

    with closing(Directory(directory).open()) as store:
        allowed = [str(p) for p in admin.allow_clients(store, name, prefixes, withdraw=withdraw)]
    words = (
        f"{name}: port 8080 is open to {', '.join(allowed)}" if allowed else f"{name}: no client is allowed"
    )
    emit(ctx, {"data_center": name, "clients": allowed}, words)


@dc.command("list")
@_directory
@click.pass_context
def dc_list(ctx: click.Context, directory: Path) -> None:
    """List data centres with their operators."""
    from contextlib import closing

    from provisioning.registrar.directory import Directory

    with closing(Directory(directory).open()) as store, store.read() as tx:
        rows = tx.centers()
        clients = {row.name: tx.clients(row.name) for row in rows}
    emit(
        ctx,
        [
            {
                "data_center": row.name,
                "operator": row.operator,
                "profile": row.profile,
                "node_reward_type": row.node_reward_type,
                "clients": clients[row.name],
            }
            for row in rows
        ],
        "\n".join(
            f"{row.name}  {row.profile}  {row.node_reward_type}  {row.operator}"
            + "".join(f"\n  clients from {prefix}" for prefix in clients[row.name])
            for row in rows
        )
        or "no data centre is known yet",
    )


@commands.command()
@_directory
@click.option("--machine", help="Only this machine's.")
@click.option(
    "--limit", default=50, show_default=True, type=click.IntRange(1, 100_000), help="Newest so many."
)
@click.pass_context
def audit(ctx: click.Context, directory: Path, machine: str | None, limit: int) -> None:
    """Show the audit trail, newest first."""
    from contextlib import closing
    from dataclasses import asdict
    from datetime import UTC, datetime

    from provisioning.registrar.directory import Directory

    with closing(Directory(directory).open()) as store, store.read() as tx:
        rows = tx.audit(machine, limit)
    emit(
        ctx,
        [asdict(row) for row in rows],
        "\n".join(
            f"{datetime.fromtimestamp(row.at, UTC):%Y-%m-%d %H:%M:%S}  {row.event:18}  "
            f"{row.before or '-'} -> {row.after or '-'}  {(row.machine or '')[:16]}  {row.actor}"
            for row in rows
        )
        or "nothing has happened yet",
    )


@commands.command()
@_directory
@click.option("--dc", "center", help="Only this data centre's.")
@click.option(
    "--limit", default=50, show_default=True, type=click.IntRange(1, 100_000), help="Newest so many."
)
@click.pass_context
def installations(ctx: click.Context, directory: Path, center: str | None, limit: int) -> None:
    """Show what installers reported, newest first. REPORTED, NOT PROVEN: anyone can send such a report.

    What a machine really runs shows when it asks to be enrolled.
    """
    import json
    from contextlib import closing
    from datetime import UTC, datetime

    from nodeos.core.installation import Installation
    from provisioning.registrar.directory import Directory

    with closing(Directory(directory).open()) as store, store.read() as tx:
        rows = [(row, Installation.parse(row.document)) for row in tx.installations(center, limit)]
    emit(
        ctx,
        [
            {"at": row.at, "source": row.source, "proven": False, "reported": json.loads(row.document)}
            for row, _ in rows
        ],
        "\n".join(
            f"{datetime.fromtimestamp(row.at, UTC):%Y-%m-%d %H:%M:%S}  {told.verdict:9}  {told.data_center}  "
            f"{told.release}  machine {(told.machine or '-')[:16]}  disk {told.disk or '-'}  from {row.source}"
            + "".join(f"\n  ✗ {item.code}: {item.message}" for item in told.findings)
            for row, told in rows
        )
        or "nothing was reported yet",
    )
    if rows:
        click.echo("reported by whoever reached the registrar, not proven", err=True)
