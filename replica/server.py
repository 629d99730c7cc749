"""The daemon: puts the parts together, listens, says when it is ready, ends cleanly."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from hsm.bls import SecretKey
from hsm.keys import public_der
from nodeos import __version__
from nodeos.core.daemon import notify
from nodeos.core.errors import Finding, NodeosError, RefusedError, UsageError
from nodeos.core.files import read_file
from nodeos.core.protocol import NodeRecord
from nodeos.core.wire import parse_json
from replica.chain import Chain
from replica.engine import Engine
from replica.execution import Executor, Limits, new_engine
from replica.modules import Modules
from replica.state_tree import Subnet
from replica.store import Store

Report = Callable[[str], None]
_TICK_SECONDS = 1.0
_MAX_CONNECTIONS = 1000
_DRAIN_SECONDS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What the daemon was told. ``limits`` bound the work of canisters."""

    state: Path
    record: Path
    committee_key: Path
    node_key: Path
    host: str
    port: int
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The node that runs here, once its keys were seen to be those of its record."""

    record: NodeRecord
    committee: SecretKey
    node: Ed25519PrivateKey

    @property
    def subnet(self) -> Subnet:
        return Subnet(public_key=self.record.keys.committee, node_key=self.record.keys.signing)


def load_identity(config: Config) -> Identity:
    """Read the node's record and keys. Raises UsageError, and RefusedError if they don't belong together."""
    record = NodeRecord.parse(parse_json(read_file(config.record, "node record"), str(config.record)))
    committee = SecretKey.load(config.committee_key)
    node = _load_node_key(config.node_key)
    findings: list[Finding] = []
    if public_der(node.public_key()) != record.keys.signing:
        findings.append(Finding(code="replica.node-key", message="it is not the key in the node's record"))
    if committee.public_key != record.keys.committee:
        findings.append(
            Finding(code="replica.committee-key", message="it is not the key in the node's record")
        )
    if findings:
        raise RefusedError(
            f"the keys are not those of node {record.node_id}",
            tuple(findings),
            hint="restore the keys, or enrol the machine again",
        )
    return Identity(record=record, committee=committee, node=node)


def _load_node_key(path: Path) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(read_file(path, "node key", limit=4096), password=None)
    except (ValueError, TypeError) as error:
        raise UsageError(f"node key {path}: not an unencrypted private key in PEM") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"node key {path}: not an Ed25519 key")
    return key


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises NodeosError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio sets TCP_NODELAY: else every answer on a kept connection is 40 ms late.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(256)
    except OSError as error:
        listener.close()
        raise NodeosError(
            f"can't listen on {host}:{port}: {error.strerror}", hint="is another replica running?"
        ) from error
    return listener


@contextlib.contextmanager
def open_chain(config: Config, identity: Identity, engine: Engine) -> Iterator[Chain]:
    """The chain on its state directory."""
    store = Store(config.state, identity.subnet.public_key)
    try:
        modules = Modules(engine, store)
        chain = Chain(
            store=store,
            modules=modules,
            executor=Executor(engine, config.limits),
            subnet=identity.subnet,
            key=identity.committee,
            operator=identity.record.operator,
        )
        modules.drop_unused()
        yield chain
    finally:
        store.close()


def serve(config: Config, report: Report) -> None:
    """Run until SIGTERM or SIGINT. ``report`` gets lines for people."""
    began = time.monotonic()
    identity = load_identity(config)
    engine = new_engine()
    with open_chain(config, identity, engine) as chain:
        listener = listen(config.host, config.port)
        with contextlib.closing(listener):
            port = listener.getsockname()[1]

            def ready() -> None:
                seconds = time.monotonic() - began
                report(f"node {identity.record.node_id}, subnet {chain.subnet.id}")
                report(f"listening on {config.host}:{port} after {seconds:.2f} s, height {chain.height}")
                notify("READY=1")

            asyncio.run(_serve(chain, identity, engine, listener, ready))
    report("ended")


async def _serve(
    chain: Chain, identity: Identity, engine: Engine, listener: socket.socket, ready: Callable[[], None]
) -> None:
    import uvicorn

    from replica.http import Application
    from replica.replica import Replica

    application = Application(Replica(chain, identity.node, f"nodeos {__version__}"))

    class Server(uvicorn.Server):
        """Leaves signals to us (uvicorn would raise them again at its end), and says when it is ready."""

        @contextlib.contextmanager
        def capture_signals(self) -> Generator[None, None, None]:
            yield

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            ready()

    server = Server(
        uvicorn.Config(
            application,  # type: ignore[arg-type, unused-ignore]
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=_MAX_CONNECTIONS,
            timeout_keep_alive=60,
            timeout_graceful_shutdown=_DRAIN_SECONDS,
        )
    )
    loop = asyncio.get_running_loop()

    def stop() -> None:
        # Interrupting what runs first lets the connections that wait for it end.
        engine.stop()
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    ticker = asyncio.create_task(_tick(engine))
    try:
        await server.serve(sockets=[listener])
    finally:
        notify("STOPPING=1")
        ticker.cancel()
        engine.stop()
        application.close()
        sys.stderr.flush()


async def _tick(engine: Engine) -> None:
    """The clock that bounds queries."""
    while True:
        await asyncio.sleep(_TICK_SECONDS)
        engine.tick()
