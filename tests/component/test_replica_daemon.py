"""The daemon as a process, over HTTP, with our own agent: start, serve, be killed, start again."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import http.server
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import wasmtime
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from hsm.bls import SecretKey, public_key_to_der
from hsm.signer import Algorithm, Signer
from nodeos.core.errors import NodeosError, UnreachableError
from nodeos.core.principal import Principal
from nodeos.core.protocol import NodeKeys, NodeRecord
from replica import candid, cbor
from replica.certificate import CertificateError
from replica.client import Agent, RejectedError
from replica.hashing import hash_of_map
from replica.server import Config, listen, load_identity

COUNTER = bytes(wasmtime.wat2wasm((Path(__file__).parents[2] / "replica/canisters/counter.wat").read_bytes()))
SPINNER = bytes(
    wasmtime.wat2wasm(
        """(module (import "ic0" "msg_reply" (func $reply))
          (func (export "canister_update spin") (loop $l (br $l)))
          (func (export "canister_query ping") (call $reply)))"""
    )
)
PRIVATE = bytes(
    wasmtime.wat2wasm('(module (@custom "icp:private secret" "hidden") (@custom "icp:public open" "seen"))')
)
NOTHING = candid.encode((), ())
PATIENCE = 60.0


class Ed25519Signer:
    def __init__(self) -> None:
        self.key = ed25519.Ed25519PrivateKey.generate()
        self.public_key = self.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    @property
    def algorithm(self) -> Algorithm:
        return Algorithm.ED25519

    def sign(self, message: bytes) -> bytes:
        return self.key.sign(message)

    @property
    def pem(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


class P256Signer:
    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.public_key = self.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    @property
    def algorithm(self) -> Algorithm:
        return Algorithm.ECDSA_P256

    def sign(self, message: bytes) -> bytes:
        r, s = decode_dss_signature(self.key.sign(message, ec.ECDSA(SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    @property
    def pem(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


class Node:
    """A node's files, and its daemon."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.committee = SecretKey.generate()
        self.operator = P256Signer()
        node = Ed25519Signer()
        self.committee.save(directory / "committee.hex")
        (directory / "node.pem").write_bytes(node.pem)
        keys = NodeKeys(signing=node.public_key, tls_certificate=b"", committee=self.committee.public_key)
        self.record = NodeRecord(
            node_id=keys.node_id,
            machine="00" * 32,
            data_center="test",
            operator=Principal.self_authenticating(self.operator.public_key),
            node_reward_type="type1",
            keys=keys,
            inducted_at=0,
        )
        (directory / "node.json").write_bytes(self.record.to_bytes())
        self.process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def command(self, *more: str) -> list[str]:
        files = {
            "state": "state",
            "node": "node.json",
            "committee-key": "committee.hex",
            "node-key": "node.pem",
        }
        options = [word for name, file in files.items() for word in (f"--{name}", str(self.directory / file))]
        return [
            *(sys.executable, "-m", "nodeos", "replica", "run", *options, "--listen", "127.0.0.1:0"),
            *more,
        ]

    def start(self, *more: str) -> None:
        """Start the daemon and wait until it tells the service manager that it is ready."""
        address = self.directory / "notify"
        address.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.bind(str(address))
            channel.settimeout(PATIENCE)
            with (self.directory / "log").open("wb") as log:
                self.process = subprocess.Popen(
                    self.command(*more), stderr=log, env={**os.environ, "NOTIFY_SOCKET": str(address)}
                )
            assert channel.recv(100) == b"READY=1"
        (line,) = [line for line in self.log().splitlines() if "listening on" in line]
        self.url = f"http://{line.split()[3]}"

    def log(self) -> str:
        return (self.directory / "log").read_text()

    def kill(self, number: int = signal.SIGKILL) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def agent(self, signer: Signer | None = None, *, root_key: bytes | None = None, url: str = "") -> Agent:
        key = self.committee.public_key if root_key is None else root_key
        return Agent(url or self.url, root_key=key, signer=signer, patience=PATIENCE)

    def raw(
        self, method: str, path: str, body: bytes | None = None
    ) -> tuple[int, bytes, http.client.HTTPMessage]:
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=PATIENCE)
        try:
            connection.request(method, path, body=body)
            answer = connection.getresponse()
            return answer.status, answer.read(), answer.headers
        finally:
            connection.close()


@contextlib.contextmanager
def node_in(directory: Path, *options: str) -> Iterator[Node]:
    node = Node(directory)
    node.start(*options)
    try:
        yield node
    finally:
        if node.process is not None and node.process.poll() is None:
            node.kill()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A daemon that tests share: each makes its own canisters."""
    with node_in(tmp_path_factory.mktemp("node")) as node:
        yield node


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A daemon of a test's own, to kill."""
    with node_in(tmp_path) as made:
        yield made


def installed(node: Node, module: bytes = COUNTER) -> Principal:
    agent = node.agent(node.operator)
    canister = agent.create_canister()
    agent.install_code(canister, module)
    return canister


def value(reply: bytes) -> object:
    (only,) = candid.decode_any(reply)
    return only


# --- the life of a node ---


def test_killed_and_started_again(node: Node) -> None:
    canister = installed(node)
    anybody = node.agent()
    assert [value(anybody.call(canister, "increment", NOTHING)) for _ in range(3)] == [1, 2, 3]
    assert node.kill() == -signal.SIGKILL
    node.start()
    anybody = node.agent()
    assert value(anybody.query(canister, "read", NOTHING)) == 3
    assert value(anybody.call(canister, "increment", NOTHING)) == 4
    assert node.kill(signal.SIGTERM) == 0
    assert node.log().endswith("replica: ended\n")
    node.start()
    assert value(node.agent().query(canister, "read", NOTHING)) == 4


def test_killed_under_load(node: Node) -> None:
    """Whatever was acknowledged when the power went is there."""
    canister = installed(node)
    acknowledged: list[int] = []

    def increment() -> None:
        agent = node.agent()
        with contextlib.suppress(UnreachableError):
            while True:
                acknowledged.append(int(str(value(agent.call(canister, "increment", NOTHING)))))

    threads = [threading.Thread(target=increment) for _ in range(3)]
    for thread in threads:
        thread.start()
    while len(acknowledged) < 50:
        threads[0].join(0.01)
    node.kill()
    for thread in threads:
        thread.join()
    node.start()
    found = int(str(value(node.agent().query(canister, "read", NOTHING))))
    assert max(acknowledged) <= found <= max(acknowledged) + len(threads)
    assert sorted(acknowledged) == sorted(set(acknowledged))


def test_an_endless_update_holds_up_no_query_and_ends(tmp_path: Path) -> None:
    with node_in(tmp_path, "--update-instructions", "4000000000") as node:
        canister = installed(node, SPINNER)
        failures: list[NodeosError] = []

        def spin() -> None:
            try:
                node.agent().call(canister, "spin", NOTHING)
            except NodeosError as error:
                failures.append(error)

        thread = threading.Thread(target=spin)
        began = time.monotonic()
        thread.start()
        answered = 0
        while thread.is_alive():
            node.agent().query(canister, "ping", NOTHING)
            answered += 1
        spun = time.monotonic() - began
        assert answered > 5, f"only {answered} queries in {spun:.1f} s"
        (failure,) = failures
        assert isinstance(failure, RejectedError)
        assert failure.error_code == "IC0522"


def test_sigterm_ends_an_endless_update(node: Node) -> None:
    canister = installed(node, SPINNER)
    caught: list[NodeosError] = []

    def spin() -> None:
        try:
            node.agent().call(canister, "spin", NOTHING)
        except NodeosError as error:
            caught.append(error)

    thread = threading.Thread(target=spin)
    thread.start()
    # A query behind it in time: once it was answered often enough, the update surely runs.
    for _ in range(20):
        node.agent().query(canister, "ping", NOTHING)
    assert node.kill(signal.SIGTERM) == 0
    thread.join(PATIENCE)
    assert len(caught) == 1
    node.start()
    node.agent().query(canister, "ping", NOTHING)


def test_the_state_is_held_by_one_process(node: Node) -> None:
    second = subprocess.run(node.command(), capture_output=True, timeout=PATIENCE, check=False)
    assert second.returncode == 2
    assert b"another replica" in second.stderr


@pytest.mark.parametrize(
    ("file", "code"), [("committee.hex", "replica.committee-key"), ("node.pem", "replica.node-key")]
)
def test_foreign_keys_are_refused(tmp_path: Path, file: str, code: str) -> None:
    node = Node(tmp_path)
    path = tmp_path / file
    path.unlink()
    if file == "node.pem":
        path.write_bytes(Ed25519Signer().pem)
    else:
        SecretKey.generate().save(path)
    refused = subprocess.run([*node.command(), "--json"], capture_output=True, timeout=PATIENCE, check=False)
    assert refused.returncode == 3
    (finding,) = json.loads(refused.stdout)["error"]["findings"]
    assert finding["code"] == code


def test_fitting_keys_are_taken(tmp_path: Path) -> None:
    node = Node(tmp_path)
    config = Config(
        state=tmp_path / "state",
        record=tmp_path / "node.json",
        committee_key=tmp_path / "committee.hex",
        node_key=tmp_path / "node.pem",
        host="127.0.0.1",
        port=0,
    )
    assert load_identity(config).record == node.record


# --- who may do what ---


def test_only_the_operator_creates(shared: Node) -> None:
    for signer in (None, P256Signer(), Ed25519Signer()):
        with pytest.raises(RejectedError, match="operator") as caught:
            shared.agent(signer).create_canister()
        assert caught.value.error_code == "IC0406"


def test_only_controllers_install_and_look(shared: Node) -> None:
    canister = installed(shared)
    stranger = shared.agent(P256Signer())
    with pytest.raises(RejectedError, match="controllers"):
        stranger.install_code(canister, COUNTER, mode="reinstall")
    with pytest.raises(RejectedError, match="controllers"):
        stranger.canister_status(canister)
    assert shared.agent(shared.operator).canister_status(canister)["status"] == ("running", None)


def test_rejections(shared: Node) -> None:
    canister = installed(shared)
    agent = shared.agent(shared.operator)
    for call in (agent.call, agent.query):
        with pytest.raises(RejectedError) as caught:
            call(canister, "missing", NOTHING)
        assert caught.value.error_code == "IC0536"
        with pytest.raises(RejectedError) as caught:
            call(Principal.parse("ryjl3-tyaaa-aaaaa-aaaba-cai"), "read", NOTHING)
        assert caught.value.error_code == "IC0301"


def test_upgrade_over_http(shared: Node) -> None:
    canister = installed(shared)
    agent = shared.agent(shared.operator)
    agent.call(canister, "increment", NOTHING)
    agent.install_code(canister, COUNTER, mode="upgrade")
    assert value(agent.query(canister, "read", NOTHING)) == 0
    agent.set_running(canister, running=False)
    with pytest.raises(RejectedError, match="stopped"):
        agent.query(canister, "read", NOTHING)


# --- what the agent doesn't believe ---


def refused(code: str, call: Callable[[], object]) -> None:
    with pytest.raises(CertificateError) as caught:
        call()
    assert caught.value.code == code


def test_another_root_key_is_not_believed(shared: Node) -> None:
    canister = installed(shared)
    agent = shared.agent(root_key=SecretKey.generate().public_key)
    refused("certificate.signature", lambda: agent.call(canister, "increment", NOTHING))


Mutate = Callable[[dict[str, Any]], None]


@contextlib.contextmanager
def man_in_the_middle(target: Node, where: str, mutate: Mutate) -> Iterator[str]:
    """A proxy that changes the answers of one kind of request."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status, answer, _ = target.raw("POST", self.path, body)
            if self.path.endswith(where):
                fields = cbor.decode(answer)
                assert isinstance(fields, dict)
                mutate(fields)
                answer = cbor.encode(fields)
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def change_reply(fields: dict[str, Any]) -> None:
    fields["reply"]["arg"] = candid.encode((candid.NAT,), (99,))


def change_signature(fields: dict[str, Any]) -> None:
    fields["signatures"][0]["signature"] = bytes(64)


def change_node(fields: dict[str, Any]) -> None:
    fields["signatures"][0]["identity"] = Principal.self_authenticating(b"x").raw


def change_time(fields: dict[str, Any]) -> None:
    fields["signatures"][0]["timestamp"] -= 10**12


def drop_signatures(fields: dict[str, Any]) -> None:
    fields["signatures"] = []


@pytest.mark.parametrize(
    ("mutate", "code"),
    [
        (change_reply, "query.signature"),
        (change_signature, "query.signature"),
        (change_node, "query.signature"),
        (drop_signatures, "query.signature"),
        (change_time, "query.time"),
    ],
)
def test_changed_query_answers_are_not_believed(shared: Node, mutate: Mutate, code: str) -> None:
    canister = installed(shared)
    with man_in_the_middle(shared, "/query", mutate) as url:
        agent = shared.agent(url=url)
        refused(code, lambda: agent.query(canister, "read", NOTHING))


def test_another_requests_certificate_is_not_believed(shared: Node) -> None:
    """A certificate that holds, but of an earlier call: the agent asks on until its patience ends."""
    canister = installed(shared)
    kept: list[bytes] = []

    def replay(fields: dict[str, Any]) -> None:
        kept.append(fields["certificate"])
        fields["certificate"] = kept[0]

    with man_in_the_middle(shared, "/call", replay) as url:
        agent = shared.agent(url=url)
        agent.call(canister, "increment", NOTHING)
        refused("certificate.path", lambda: agent.call(canister, "increment", NOTHING))


# --- HTTP ---


def test_status_and_cors(shared: Node) -> None:
    status, body, headers = shared.raw("GET", "/api/v2/status")
    answer = cbor.decode(body)
    assert isinstance(answer, dict)
    assert (status, answer["root_key"]) == (200, public_key_to_der(shared.committee.public_key))
    assert answer["replica_health_status"] == "healthy"
    assert headers["access-control-allow-origin"] == "*"
    assert headers["content-type"] == "application/cbor"
    assert "server" not in headers
    status, body, headers = shared.raw("OPTIONS", "/api/v3/canister/aaaaa-aa/query")
    assert (status, body) == (204, b"")
    assert "POST" in headers["access-control-allow-methods"]
    assert shared.raw("HEAD", "/api/v2/status")[:2] == (200, b"")


def test_answers_are_not_held_back() -> None:
    async def accepted() -> int:
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def look(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            peer = writer.get_extra_info("socket")
            found.set_result(peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        listener = listen("127.0.0.1", 0)
        async with await asyncio.start_server(look, sock=listener):
            _, writer = await asyncio.open_connection(*listener.getsockname())
            try:
                return await found
            finally:
                writer.close()
                await writer.wait_closed()

    assert asyncio.run(accepted()) != 0


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/", None, 404),
        ("GET", "/api/v2/canister/aaaaa-aa/call", None, 405),
        ("POST", "/api/v2/status", b"", 405),
        ("POST", "/api/v9/canister/aaaaa-aa/call", b"", 404),
        ("POST", "/api/v3/canister/aaaaa-aa/other", b"", 404),
        ("POST", "/api/v3/canister/not-a-principal/query", b"", 400),
        ("POST", "/api/v3/canister/aaaaa-aa/query", b"junk", 400),
        ("POST", "/api/v3/subnet/aaaaa-aa/read_state", b"", 404),
        ("POST", "/api/v3/canister/aaaaa-aa/query", bytes(3 << 20), 413),
    ],
)
def test_bad_requests(shared: Node, method: str, path: str, body: bytes | None, status: int) -> None:
    assert shared.raw(method, path, body)[0] == status


def anonymous(kind: str, **fields: object) -> dict[str, object]:
    return {
        "request_type": kind,
        "sender": b"\x04",
        "ingress_expiry": time.time_ns() + 10**11,
        "nonce": secrets.token_bytes(8),
        **fields,
    }


def post(node: Node, path: str, content: dict[str, object]) -> tuple[int, bytes]:
    return node.raw("POST", path, cbor.encode({"content": content}))[:2]


def test_expired_requests_are_refused_with_the_agents_words(shared: Node) -> None:
    canister = installed(shared)
    content = anonymous("call", canister_id=canister.raw, method_name="increment", arg=NOTHING)
    content["ingress_expiry"] = time.time_ns() - 10**9
    status, body = post(shared, f"/api/v4/canister/{canister}/call", content)
    assert status == 400
    assert b"Invalid request expiry: " in body


def test_another_canister_in_the_path_is_refused(shared: Node) -> None:
    canister = installed(shared)
    fields = {"canister_id": canister.raw, "method_name": "read", "arg": NOTHING}
    status, body = post(shared, "/api/v3/canister/aaaaa-aa/query", anonymous("query", **fields))
    assert (status, b"in the path" in body) == (400, True)
    status, body = post(shared, "/api/v4/canister/aaaaa-aa/call", anonymous("call", **fields))
    assert (status, b"in the path" in body) == (400, True)


def test_asynchronous_call(shared: Node) -> None:
    canister = installed(shared)
    content = anonymous("call", canister_id=canister.raw, method_name="increment", arg=NOTHING)
    path = (b"request_status", hash_of_map(content))
    assert post(shared, f"/api/v2/canister/{canister}/call", content) == (202, b"")
    while True:
        certificate = shared.agent().read_state([path], effective=canister)
        if certificate.find(*path) is not None:
            break
    assert certificate.lookup(*path, b"status") == b"replied"
    # The same request again is the same request, not another increment.
    assert post(shared, f"/api/v4/canister/{canister}/call", content)[0] == 200
    assert value(shared.agent().query(canister, "read", NOTHING)) == 1


def test_read_state_shows_no_strangers_requests(shared: Node) -> None:
    canister = installed(shared)
    content = anonymous("call", canister_id=canister.raw, method_name="increment", arg=NOTHING)
    assert post(shared, f"/api/v4/canister/{canister}/call", content)[0] == 200
    path = (b"request_status", hash_of_map(content))
    with pytest.raises(NodeosError, match="another sender"):
        shared.agent(P256Signer()).read_state([path], effective=canister)


@pytest.mark.parametrize(
    "paths",
    [
        pytest.param([()], id="everything"),
        pytest.param([(b"canister",)], id="all canisters"),
        pytest.param([(b"request_status",)], id="all requests"),
        pytest.param([(b"canister", b"other", b"controllers")], id="another canister"),
        pytest.param([(b"request_status", b"a"), (b"request_status", b"b")], id="two requests"),
    ],
)
def test_read_state_refuses_paths(shared: Node, paths: list[tuple[bytes, ...]]) -> None:
    canister = installed(shared)
    with pytest.raises(NodeosError, match="paths: "):
        shared.agent().read_state(paths, effective=canister)


def test_metadata(shared: Node) -> None:
    canister = installed(shared, PRIVATE)
    path = (b"canister", canister.raw, b"metadata")
    anybody, operator = shared.agent(), shared.agent(shared.operator)
    assert anybody.read_state([(*path, b"open")], effective=canister).lookup(*path, b"open") == b"seen"
    assert anybody.read_state([(*path, b"none")], effective=canister).lookup(*path, b"none") is None
    with pytest.raises(NodeosError, match="for controllers"):
        anybody.read_state([(*path, b"secret")], effective=canister)
    assert operator.read_state([(*path, b"secret")], effective=canister).lookup(*path, b"secret") == b"hidden"


def test_subnet_and_node_keys_are_certified(shared: Node) -> None:
    root = public_key_to_der(shared.committee.public_key)
    subnet = Principal.self_authenticating(root).raw
    certificate = shared.agent().read_state([(b"subnet",), (b"canister_ranges", subnet)])
    assert certificate.lookup(b"subnet", subnet, b"public_key") == root
    node = (b"subnet", subnet, b"node", shared.record.node_id.raw, b"public_key")
    assert certificate.lookup(*node) == shared.record.keys.signing
    ranges = certificate.lookup(b"subnet", subnet, b"canister_ranges")
    first = bytes(8) + b"\x01\x01"
    assert certificate.lookup(b"canister_ranges", subnet, first) == ranges


# --- the command line ---


def cli(node: Node, *words: str) -> subprocess.CompletedProcess[bytes]:
    record = str(node.directory / "node.json")
    command = [sys.executable, "-m", "nodeos", "canister", *words, "--url", node.url]
    if "--root-key" not in words:
        command += ["--node-record", record]
    return subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False)


def test_command_line(shared: Node) -> None:
    key = shared.directory / "operator.pem"
    if not key.exists():
        key.write_bytes(shared.operator.pem)
        key.chmod(0o600)
        (shared.directory / "operator.json").write_text('{"kind": "file", "key": "operator.pem"}')
    identity = ("--identity", str(shared.directory / "operator.json"))
    made = cli(shared, "create", *identity)
    assert made.returncode == 0, made.stderr
    canister = made.stdout.decode().strip()
    wat = str(Path(__file__).parents[2] / "replica/canisters/counter.wat")
    done = cli(shared, "install", canister, wat, *identity)
    assert done.returncode == 0, done.stderr
    assert cli(shared, "call", canister, "increment").stdout == b"1\n"
    root = ("--root-key", public_key_to_der(shared.committee.public_key).hex())
    assert cli(shared, "query", canister, "read", *root).stdout == b"1\n"
    answer = json.loads(cli(shared, "query", canister, "read", "--nat", "5", "--json").stdout)
    assert answer == {"values": [1], "reply": "4449444c00017d01"}
    shown = json.loads(cli(shared, "status", canister, *identity, "--json").stdout)
    assert shown["status"] == "running"
    assert shown["controllers"] == [str(shared.record.operator)]


def test_command_line_errors(shared: Node) -> None:
    canister = str(installed(shared))
    wrong_key = SecretKey.generate().public_key.hex()
    refusal = cli(shared, "call", canister, "increment", "--root-key", wrong_key)
    assert (refusal.returncode, b"certificate.signature" in refusal.stderr) == (1, True)
    assert cli(shared, "call", canister, "increment", "--root-key", "00").returncode == 2
    assert cli(shared, "call", canister, "increment", "zz").returncode == 2
    assert cli(shared, "call", "x", "increment").returncode == 2
    missing = cli(shared, "call", canister, "nope")
    assert (missing.returncode, b"IC0536" in missing.stderr) == (1, True)
