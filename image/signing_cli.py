"""``nodeos image keygen``, ``rotate``, ``sign``, ``attach``, ``verify``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from nodeos.cli import emit
from nodeos.core.errors import UsageError
from nodeos.core.files import read_file
from nodeos.core.release import Release, Variant

_folder = click.Path(path_type=Path, file_okay=False)
_file = click.Path(path_type=Path, dir_okay=False)

_pin_file = click.option(
    "--pin-file", type=_file, help="Holds the PIN of the token, or the password, instead of asking for it."
)
_identities = click.option(
    "--identity", "identities", multiple=True, metavar="NAME=FILE",
    help="Take the key NAME from a token or a TPM, as this identity file says, instead of making one."
    " Can be given more than once.",
)  # fmt: skip


def register(group: click.Group) -> None:
    """Add the commands to ``nodeos image``."""
    for command in (keygen, rotate, sign, attach, verify):
        group.add_command(command)


def _parse_identities(given: Sequence[str]) -> dict[str, Path]:
    parsed = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise click.UsageError(f"--identity {text}: expected NAME=FILE")
        if name in parsed:
            raise click.UsageError(f"--identity {name} is given twice")
        parsed[name] = Path(path)
    return parsed


def _pin(pin_file: Path | None) -> Callable[[str], str]:
    """Asks for each key's PIN once."""
    from hsm.pin import read_pin

    known: dict[str, str] = {}

    def ask(name: str) -> str:
        if name not in known:
            if pin_file is None:
                click.echo(f"the key {name} needs its PIN", err=True)
            known[name] = read_pin(pin_file)
        return known[name]

    return ask


@click.command()
@click.argument("directory", type=_folder)
@click.option("--variant", type=click.Choice([str(item) for item in Variant]), default=str(Variant.RELEASE),
              show_default=True, help="What the keys sign: releases, or images with a root shell.")  # fmt: skip
@_identities
@_pin_file
@click.pass_context
def keygen(
    ctx: click.Context, directory: Path, variant: str, identities: tuple[str, ...], pin_file: Path | None
) -> None:
    """Make the keys of releases in DIRECTORY: PK, KEK, db, verity, pcr, release, site.

    Keys that are there already are never overwritten. A debug image has keys of its own: signed like a release it
    could open the state of a node.
    """
    from image import keys

    given = _parse_identities(identities)
    made = keys.generate(directory, Variant(variant), identities=given, pin=_pin(pin_file))
    files = sorted(path.name for path in made.directory.iterdir())
    emit(ctx, {"directory": str(directory), "files": files}, f"{directory}: {', '.join(files)}")


@click.command()
@click.argument("directory", metavar="KEYS", type=_folder)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--finish", is_flag=True, help="Put the next keys in the place of those in use, which are retired."
)
@_identities
@_pin_file
@click.pass_context
def rotate(  # noqa: PLR0917
    ctx: click.Context, directory: Path, names: tuple[str, ...], finish: bool, identities: tuple[str, ...],
    pin_file: Path | None,
) -> None:  # fmt: skip
    """Replace keys of KEYS: make next ones, and with --finish use them.

    NAME is KEK, db, verity, pcr, release or site. Build and sign a release before --finish, and let every machine
    take it: it is signed by the keys in use and carries the next ones. --finish can be interrupted and run again;
    no key is deleted.
    """
    from image import rotation
    from image.keys import KeySet

    keys = KeySet(directory=directory)
    if not keys.variant_file.is_file():
        raise UsageError(f"{directory} holds no keys", hint="make them with `nodeos image keygen`")
    if finish:
        if names or identities:
            raise click.UsageError("--finish takes no names: it finishes what was begun")
        done = rotation.finish(keys)
        emit(ctx, {"directory": str(directory), "in_use": done}, f"in use now: {', '.join(done)}")
        return
    rotation.begin(keys, names, identities=_parse_identities(identities), pin=_pin(pin_file))
    then = f"now build and sign a release; then: nodeos image rotate {directory} --finish"
    emit(ctx, {"directory": str(directory), "next": list(names)}, f"made: {', '.join(names)}\n{then}")


@click.command()
@click.argument("unsigned", type=_folder)
@click.option("--keys", "keys_", type=_folder, required=True, help="The keys, from `image keygen`.")
@click.option(
    "--out", type=_folder, required=True, help="The folder of the release; an earlier one is replaced."
)
@click.option(
    "--pcr7", type=_file, help="Further PCR 7 values to sign for: a JSON list of {name, sha256, sha384}."
)
@_pin_file
@click.option(
    "--allow-drift", is_flag=True,
    help="Sign a build of other packages than the locked ones: for demonstrations, not for a network.",
)  # fmt: skip
@click.pass_context
def sign(  # noqa: PLR0917
    ctx: click.Context,
    unsigned: Path,
    keys_: Path,
    out: Path,
    pcr7: Path | None,
    allow_drift: bool,
    pin_file: Path | None,
) -> None:
    """Sign the build in UNSIGNED: make the signatures and attach them.

    The signatures alone are in OUT/signatures: with them anybody who builds the same commit makes the same release
    with `image attach`.
    """
    from image import sign as signing
    from image.keys import KeySet
    from image.unsigned import Unsigned

    further = signing.read_pcr7(pcr7) if pcr7 else []
    click.echo("checking and signing the build", err=True)
    made = signing.sign(
        Unsigned.read(unsigned),
        KeySet(directory=keys_),
        out,
        pin=_pin(pin_file),
        pcr7=further,
        allow_drift=allow_drift,
    )
    emit(ctx, _summary(out, made.release), _words(out, made.release))


@click.command()
@click.argument("unsigned", type=_folder)
@click.argument("signatures", type=_folder)
@click.option(
    "--out", type=_folder, required=True, help="The folder of the release; an earlier one is replaced."
)
@click.pass_context
def attach(ctx: click.Context, unsigned: Path, signatures: Path, out: Path) -> None:
    """Make a release of the build in UNSIGNED and the detached SIGNATURES. Needs no key.

    Every signature is checked; the result is the same, byte for byte, as that of the publisher.
    """
    from image import sign as signing
    from image.unsigned import Unsigned

    click.echo("checking the build and attaching signatures", err=True)
    made = signing.attach(Unsigned.read(unsigned), signatures, out)
    emit(ctx, _summary(out, made.release), _words(out, made.release))


@click.command()
@click.argument("directory", type=_folder)
@click.option("--release-key", "release_keys", type=_file, multiple=True, required=True,
              help="The publisher's public key, release.pub.pem. Can be given more than once.")  # fmt: skip
@click.pass_context
def verify(ctx: click.Context, directory: Path, release_keys: tuple[Path, ...]) -> None:
    """Check the downloaded release in DIRECTORY completely: exit code 3 if anything is wrong.

    Checks who signed it, every file, the hash tree of the root, the policies of the state volume, and the
    measurements. Needs no TPM, builds nothing, and starts nothing.
    """
    from hsm.keys import parse_publics
    from image import verify as verification

    hint = "get release.pub.pem from the publisher, by another way than the release"
    trusted = [
        key
        for path in release_keys
        for key in parse_publics(
            read_file(path, "release key", limit=1 << 16), f"release key {path}", hint=hint
        )
    ]
    release = verification.verify(directory, trusted, lambda words: click.echo(f"checking {words}", err=True))
    emit(ctx, {**_summary(directory, release), "verified": True}, _words(directory, release, "verified"))


def _summary(directory: Path, release: Release) -> dict[str, Any]:
    return {
        "directory": str(directory),
        "release": release.version,
        "variant": str(release.variant),
        "root_hash": release.root_hash.hex(),
        "security_version": release.security_version,
        "rollback_floor": release.rollback_floor,
        "accepted_pcr7": [item.name for item in release.accepted_pcr7],
        "release_key": release.keys.release.hex(),
        "source_commit": release.source_commit,
    }


def _words(directory: Path, release: Release, done: str = "signed") -> str:
    return "\n".join(
        [
            f"{done}: release {release.version} ({release.variant}) in {directory}",
            f"commit       {release.source_commit}",
            f"root hash    {release.root_hash.hex()}",
            f"release key  {release.keys.release.hex()}",
            f"security version {release.security_version}, rollback floor {release.rollback_floor}",
            *(f"starts with  {item.name}" for item in release.accepted_pcr7),
        ]
    )
