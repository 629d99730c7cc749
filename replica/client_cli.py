"""``nodeos canister``: create, install and call canisters, as the operator or as anybody."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import click

from nodeos.cli import emit
from nodeos.core.errors import UsageError
from nodeos.core.files import read_file
from nodeos.core.principal import Principal

_FILE = click.Path(path_type=Path, dir_okay=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    """Which replica, which key is trusted, who asks."""

    url: str
    root_key: bytes
    identity: Path | None
    pin_file: Path | None


def _options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that all commands share; they become one ``target``."""

    @click.option("--url", required=True, help="The replica, http://HOST:PORT.")
    @click.option("--root-key", help="The chain's public key: 96 bytes, or 133 bytes of DER, in hexadecimal.")
    @click.option("--node-record", type=_FILE, help="The node's record, which has the chain's public key.")
    @click.option("--identity", type=_FILE, help="The identity that signs; anonymous if not given.")
    @click.option("--pin-file", type=_FILE, help="File with the token's PIN; asked for if not given.")
    @wraps(command)
    def wrapped(
        *,
        url: str,
        root_key: str | None,
        node_record: Path | None,
        identity: Path | None,
        pin_file: Path | None,
        **rest: Any,
    ) -> None:
        key = _root_key(root_key, node_record)
        command(target=_Target(url=url, root_key=key, identity=identity, pin_file=pin_file), **rest)

    return wrapped


def _root_key(text: str | None, record: Path | None) -> bytes:
    from hsm.bls import PUBLIC_BYTES, BlsError, public_key_from_der
    from nodeos.core.protocol import NodeRecord
    from nodeos.core.wire import parse_json

    if (text is None) == (record is None):
        raise UsageError("the chain's key is not pinned", hint="give one of --root-key and --node-record")
    if record is not None:
        fields = parse_json(read_file(record, "node record"), str(record))
        if fields.has("attestation"):
            # What `nodeos node show --json` prints beside the record.
            fields.nested("attestation").items()
        return NodeRecord.parse(fields).keys.committee
    try:
        raw = bytes.fromhex(text or "")
        return raw if len(raw) == PUBLIC_BYTES else public_key_from_der(raw)
    except (ValueError, BlsError) as error:
        raise UsageError("--root-key: expected 96 or 133 bytes in hexadecimal") from error


@contextlib.contextmanager
def _agent(target: _Target) -> Iterator[Any]:
    from replica.client import Agent

    if target.identity is None:
        yield Agent(target.url, root_key=target.root_key)
        return
    from hsm.identity import open_identity
    from hsm.pin import read_pin

    with open_identity(target.identity, lambda: read_pin(target.pin_file)) as signer:
        yield Agent(target.url, root_key=target.root_key, signer=signer)


@click.group()
def commands() -> None:
    """Create, install and call canisters on a node. Answers are verified against the pinned key."""


@commands.command()
@_options
@click.pass_context
def create(ctx: click.Context, target: _Target) -> None:
    """Make an empty canister; only the node's operator may."""
    with _agent(target) as agent:
        canister = agent.create_canister()
    emit(ctx, {"canister": str(canister)}, str(canister))


@commands.command()
@click.argument("canister")
@click.argument("module", type=_FILE)
@click.option(
    "--mode",
    type=click.Choice(["install", "reinstall", "upgrade"]),
    default="install",
    show_default=True,
    help="install: into an empty canister; reinstall: drop its state; upgrade: keep stable memory.",
)
@click.option("--argument", metavar="HEX", help="Candid argument of canister_init or canister_post_upgrade.")
@_options
@click.pass_context
def install(
    ctx: click.Context, *, target: _Target, canister: str, module: Path, mode: str, argument: str | None
) -> None:
    """Install a WebAssembly module (.wasm, or its text form .wat) into a canister."""
    code = read_file(module, "module", limit=2 << 20)
    if module.suffix == ".wat":
        code = _assemble(code, module)
    raw = None if argument is None else _hex(argument)
    with _agent(target) as agent:
        agent.install_code(Principal.parse(canister), code, mode=mode, argument=raw)
    import hashlib

    digest = hashlib.sha256(code).hexdigest()
    emit(ctx, {"canister": canister, "mode": mode, "module_hash": digest}, f"{mode}: module {digest}")


def _assemble(text: bytes, path: Path) -> bytes:
    import wasmtime

    try:
        return bytes(wasmtime.wat2wasm(text))
    except wasmtime.WasmtimeError as error:
        raise UsageError(f"module {path}: {error}") from error


def _method_options(command: Callable[..., None]) -> Callable[..., None]:
    """A canister, a method and its argument; they become ``canister``, ``method`` and ``raw`` (Candid)."""

    @click.argument("canister")
    @click.argument("method")
    @click.argument("argument", metavar="[ARGHEX]", required=False)
    @click.option("--nat", type=click.IntRange(min=0), help="The argument, as one Candid nat.")
    @_options
    @wraps(command)
    def wrapped(*, canister: str, argument: str | None, nat: int | None, **rest: Any) -> None:
        command(canister=Principal.parse(canister), raw=_argument(argument, nat), **rest)

    return wrapped


@commands.command()
@_method_options
@click.pass_context
def call(ctx: click.Context, *, target: _Target, canister: Principal, method: str, raw: bytes) -> None:
    """Make an update call; prints the certified reply."""
    with _agent(target) as agent:
        _show(ctx, agent.call(canister, method, raw))


@commands.command()
@_method_options
@click.pass_context
def query(ctx: click.Context, *, target: _Target, canister: Principal, method: str, raw: bytes) -> None:
    """Make a query call; prints the reply, whose signature is verified."""
    with _agent(target) as agent:
        _show(ctx, agent.query(canister, method, raw))


@commands.command()
@click.argument("canister")
@_options
@click.pass_context
def status(ctx: click.Context, target: _Target, canister: str) -> None:
    """Show a canister's status; only its controllers may."""
    with _agent(target) as agent:
        found = agent.canister_status(Principal.parse(canister))
    value = {
        "canister": canister,
        "status": found["status"][0],
        "module_hash": None if found["module_hash"] is None else found["module_hash"].hex(),
        "controllers": [str(p) for p in found["settings"]["controllers"]],
        "memory_size": found["memory_size"],
        "cycles": found["cycles"],
        "version": found["version"],
    }
    emit(ctx, value, "\n".join(f"{name:12} {_words(item)}" for name, item in value.items()))


def _words(item: object) -> str:
    return " ".join(map(str, item)) if isinstance(item, list) else "-" if item is None else str(item)


def _argument(text: str | None, nat: int | None) -> bytes:
    from replica import candid

    if text is not None and nat is not None:
        raise UsageError("give either ARGHEX or --nat")
    if text is not None:
        return _hex(text)
    return candid.encode((), ()) if nat is None else candid.encode((candid.NAT,), (nat,))


def _hex(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise UsageError(f"{text[:40]!r} is not hexadecimal") from error


def _show(ctx: click.Context, reply: bytes) -> None:
    """Print a reply: decoded if it is Candid, and in hexadecimal."""
    from replica import candid

    try:
        values: list[object] | None = [_plain(value) for value in candid.decode_any(reply)]
    except candid.CandidError:
        values = None
    if values is None:
        text = reply.hex()
    else:
        text = "\n".join(value if isinstance(value, str) else repr(value) for value in values)
    emit(ctx, {"values": values, "reply": reply.hex()}, text)


def _plain(value: object) -> object:
    """A Candid value as JSON can hold it."""
    match value:
        case bytes():
            return value.hex()
        case dict():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case bool() | int() | float() | str() | None:
            return value
        case _:
            return str(value)
