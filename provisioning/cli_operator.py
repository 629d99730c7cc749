"""``nodeos operator``: the operator's key on a PKCS#11 token, and its principal."""

from __future__ import annotations

from pathlib import Path

import click

from nodeos.cli import emit
from provisioning.cli_options import plain

_file = click.Path(path_type=Path, dir_okay=False)


@click.group()
def commands() -> None:
    """The operator's key and principal."""


@commands.command()
@click.option("--module", required=True, type=_file, help="The token's PKCS#11 library.")
@click.option("--token", required=True, help="The token's label.")
@click.option("--key", required=True, help="The key's label. A key that is there is used, else one is made.")
@click.option(
    "--recovery-key",
    help="The label of the key that nodes' recovery keys are encrypted to; used or made too. "
    "[default: KEY-recovery]",
)
@click.option("--pin-file", type=_file, envvar="NODEOS_PIN_FILE", help="File with the token's PIN.")
@click.option("--out", required=True, type=_file, help="The identity file to write. It holds no secret.")
@click.pass_context
def init(  # noqa: PLR0917
    ctx: click.Context,
    module: Path,
    token: str,
    key: str,
    recovery_key: str | None,
    pin_file: Path | None,
    out: Path,
) -> None:
    """Make an operator's identity from two keys on a token (P-256; they never leave it).

    One signs, and its principal is the operator. The other decrypts what a node needs after its TPM was cleared:
    if it is lost, so are those nodes' states.
    """
    from hsm.identity import RecoveryPart, TokenIdentity, write_identity
    from hsm.pin import read_pin
    from hsm.pkcs11 import open_token
    from nodeos.core.errors import UsageError
    from nodeos.core.principal import Principal
    from nodeos.core.wire import b64

    if out.exists():
        raise UsageError(f"{out} is there already", hint="show it with `nodeos operator show`")
    with open_token(module.absolute(), token, lambda: read_pin(pin_file)) as opened:
        labels = {found.label for found in opened.keys()}  # noqa: SIM118
        made = key not in labels
        public_key = opened.generate(key).public_key if made else opened.signer(key).public_key
        label = recovery_key or f"{key}-recovery"
        recovery_public = (
            opened.agreement(label) if label in {*labels, key} else opened.generate(label)
        ).public_key
    recovery = RecoveryPart(key=label, public_key=recovery_public)
    identity = TokenIdentity(
        module=module.absolute(), token=token, key=key, public_key=public_key, recovery=recovery
    )
    write_identity(out, identity)
    principal = Principal.self_authenticating(public_key)
    click.echo(f"{'made a new key' if made else 'using the key that is there'}: {key}", err=True)
    emit(
        ctx,
        {
            "principal": str(principal),
            "identity": str(out),
            "new_key": made,
            "recovery_key": b64(recovery_public),
            "new_recovery_key": label not in {*labels, key},
        },
        f"operator {principal}, identity {out}",
    )


@commands.command("allow-erase")
@click.argument("challenge", type=_file)
@click.option(
    "--identity", required=True, type=_file, envvar="NODEOS_IDENTITY", help="The operator's identity file."
)
@click.option("--pin-file", type=_file, envvar="NODEOS_PIN_FILE", help="File with the token's PIN.")
@click.option(
    "--hours", type=click.IntRange(1, 168), default=4, show_default=True, help="How long it is good for."
)
@click.option("--out", required=True, type=_file, help="The erase token to write. It holds no secret.")
@click.pass_context
def allow_erase(  # noqa: PLR0917
    ctx: click.Context, challenge: Path, identity: Path, pin_file: Path | None, hours: int, out: Path
) -> None:
    """Permit an installer to erase the disk of CHALLENGE, once.

    CHALLENGE is the file that `nodeos install` makes when it refuses a disk with data on it. Look at the disk that
    it names: all of its content will be lost.
    """
    import time

    from hsm.identity import open_identity
    from hsm.pin import read_pin
    from nodeos.core.erase import DOMAIN, Challenge, EraseToken
    from nodeos.core.files import read_file, write_new

    asked = Challenge.parse(read_file(challenge, "the erase challenge", limit=1 << 14), str(challenge))
    document = asked.permission(expires=int(time.time()) + hours * 3600)
    with open_identity(identity, lambda: read_pin(pin_file)) as signer:
        token = EraseToken(
            document=document, public_key=signer.public_key, signature=signer.sign(DOMAIN + document)
        )
    write_new(out, token.to_bytes(), mode=0o644)
    disk = asked.disk
    told = plain(f"model {disk.model!r}, serial {disk.serial!r}, {disk.size} bytes")
    emit(
        ctx,
        {"token": str(out), "disk": disk.to_json(), "hours": hours},
        f"{out}: good for {hours} hours to erase, once, the disk {told}",
    )


@commands.command()
@click.option(
    "--identity", required=True, type=_file, envvar="NODEOS_IDENTITY", help="The operator's identity file."
)
@click.option("--pin-file", type=_file, envvar="NODEOS_PIN_FILE", help="For an encrypted key file only.")
@click.pass_context
def show(ctx: click.Context, identity: Path, pin_file: Path | None) -> None:
    """Show an identity's principal and public key. A token need not be plugged in."""
    from hsm.identity import public_key_of, recovery_key_of
    from hsm.pin import read_pin
    from nodeos.core.errors import UsageError
    from nodeos.core.principal import Principal
    from nodeos.core.wire import b64

    key = public_key_of(identity, lambda: read_pin(pin_file))
    principal = Principal.self_authenticating(key)
    try:
        recovery = b64(recovery_key_of(identity, lambda: read_pin(pin_file)))
    except UsageError:  # an Ed25519 key, or one in a TPM: it signs only
        recovery = None
    emit(
        ctx,
        {"principal": str(principal), "public_key": b64(key), "recovery_key": recovery},
        f"operator      {principal}\npublic key    {b64(key)}\nrecovery key  "
        + (recovery or "none; make one with `nodeos operator init`"),
    )
