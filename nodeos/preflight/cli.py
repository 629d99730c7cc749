"""``nodeos preflight``: is this machine fit to become a node?"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nodeos.cli import emit

if TYPE_CHECKING:
    from nodeos.preflight.checks import Check

_REFUSED = 3
_WIDTH = 110
_MARKS = {"pass": "✓", "warn": "!", "fail": "✗"}


@click.command()
@click.option(
    "--profile", "profile_", required=True, metavar="NAME|FILE",
    help="What the machine must have: gen1, gen2, dev, or a file in TOML.",
)  # fmt: skip
@click.option(
    "--secure-boot-certificate", "certificates", multiple=True, type=click.Path(path_type=Path),
    help="Our certificate (PEM), if the keys are enrolled already. May be given more than once.",
)  # fmt: skip
@click.pass_context
def commands(ctx: click.Context, profile_: str, certificates: tuple[Path, ...]) -> None:
    """Check this machine against a hardware profile, before it is made a node. Reads only; wants root.

    Exit code 0 if nothing failed, 3 if something did. Warnings (!) are for your eye.
    """
    from nodeos.fingerprint.inventory import Sources
    from nodeos.preflight import checks, devices, machine, profile

    wanted = profile.load_profile(profile_)
    own = tuple(item for path in certificates for item in _certificates(path))
    facts = machine.read_facts(Sources(), devices.KernelDevices())
    made = checks.check(wanted, facts, own)
    good = checks.passed(made)
    value = {"profile": wanted.name, "passed": good, "checks": [item.to_json() for item in made]}
    emit(ctx, value, _table(wanted.name, made, good))
    # No RefusedError: its findings are the table, and under --json a second answer would follow the first.
    ctx.exit(0 if good else _REFUSED)


def _certificates(path: Path) -> list[bytes]:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    from nodeos.core.errors import UsageError
    from nodeos.core.files import read_file

    try:
        found = x509.load_pem_x509_certificates(read_file(path, "certificate", limit=1 << 16))
    except ValueError as error:
        raise UsageError(
            f"{path}: no certificate in PEM: {error}", hint="it is the .crt in the builder's folder of keys"
        ) from error
    return [certificate.public_bytes(Encoding.DER) for certificate in found]


def _table(name: str, made: tuple[Check, ...], good: bool) -> str:
    """A block for each check: what was found, what is needed, and what to do where it did not pass."""
    lines = []
    for item in made:
        rows = [("found", item.found), ("needed", item.needed), ("→", item.advice)]
        head = f"{_MARKS[item.status]} {item.code:<12}"
        for label, text in rows:
            if text is None or (label == "needed" and item.status == "pass"):
                continue
            start = f"{head}{label:<7} "
            lines += textwrap.wrap(text, _WIDTH, initial_indent=start, subsequent_indent=" " * len(start))
            head = " " * len(head)
    failed = [item.code for item in made if item.status == "fail"]
    verdict = "this machine is fit" if good else f"this machine is not fit: {', '.join(failed)}"
    return "\n".join([*lines, f"{name}: {verdict}"])
