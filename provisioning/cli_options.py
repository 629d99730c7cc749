"""What the operator's commands have in common: where the registrar is, and who asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from provisioning.client import OperatorClient

if TYPE_CHECKING:
    from hsm.identity import OperatorKeys

_file = click.Path(path_type=Path, dir_okay=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """One registrar and one operator."""

    registrar: str
    ca: Path
    identity: Path
    pin_file: Path | None

    @contextmanager
    def operator(self) -> Iterator[tuple[OperatorClient, OperatorKeys]]:
        """Like ``client``, with the key that decrypts as well."""
        from hsm.identity import open_operator
        from hsm.pin import read_pin
        from nodeos.core.files import read_file
        from nodeos.core.http import Client

        ca = read_file(self.ca, "registrar's CA").decode("ascii", errors="replace")
        client = Client(self.registrar, ca=ca)
        with open_operator(self.identity, lambda: read_pin(self.pin_file)) as keys:
            yield OperatorClient(client, keys.signer), keys

    @contextmanager
    def client(self) -> Iterator[OperatorClient]:
        """An open identity and a client that signs with it."""
        from hsm.identity import open_identity
        from hsm.pin import read_pin
        from nodeos.core.files import read_file
        from nodeos.core.http import Client

        ca = read_file(self.ca, "registrar's CA").decode("ascii", errors="replace")
        client = Client(self.registrar, ca=ca)
        with open_identity(self.identity, lambda: read_pin(self.pin_file)) as signer:
            yield OperatorClient(client, signer)


def operator_options(command: Callable[..., None]) -> Callable[..., None]:
    """--registrar, --ca, --identity, --pin-file, handed on as ``where``; the environment can give each."""

    @wraps(command)
    def with_where(
        *args: Any, registrar: str, ca: Path, identity: Path, pin_file: Path | None, **rest: Any
    ) -> None:
        command(*args, where=Where(registrar=registrar, ca=ca, identity=identity, pin_file=pin_file), **rest)

    wrapped: Callable[..., None] = with_where
    for option in (
        click.option("--pin-file", type=_file, envvar="NODEOS_PIN_FILE", help="File with the token's PIN."),
        click.option(
            "--identity", required=True, type=_file, envvar="NODEOS_IDENTITY", help="The operator's identity."
        ),
        click.option(
            "--ca", required=True, type=_file, envvar="NODEOS_REGISTRAR_CA", help="The registrar's ca.pem."
        ),
        click.option(
            "--registrar", required=True, envvar="NODEOS_REGISTRAR", help="The registrar: https://HOST:PORT."
        ),
    ):
        wrapped = option(wrapped)
    return wrapped


def when(seconds: int) -> str:
    """A time for people."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"


def plain(text: str) -> str:
    """Text of a machine's making, for a terminal: control characters could move the cursor or hide lines."""
    return "\n".join(
        "".join(letter if letter.isprintable() else "?" for letter in line) for line in text.split("\n")
    )
