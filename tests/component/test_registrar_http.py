"""The registrar as operators and nodes meet it: a process, TLS, the command line, and SIGKILL."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import sqlite3
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from pathlib import Path

import pytest

from hsm.identity import FileSigner
from nodeos.core.errors import NodeosError, RefusedError, UnreachableError
from nodeos.core.http import Client
from nodeos.core.protocol import EnrolmentState
from provisioning.operator_auth import Asked, registrar_id, sign
from tests.support import evidence as ev
from tests.support.registrar import poll
from tests.support.served import Served, nodeos
from tests.support.softhsm import SoftToken


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registrar that was made once by the command line, and is copied for each test."""
    return Served.make(tmp_path_factory.mktemp("template")).folder


@pytest.fixture
def served(template: Path, tmp_path: Path) -> Iterator[Served]:
    folder = tmp_path / "served"
    shutil.copytree(template, folder)
    made = Served(folder=folder, identity=folder / "operator.json")
    made.start()
    yield made
    if made.process is not None:
        made.stop()


def test_whole_path_on_the_command_line(served: Served) -> None:
    assert served.cli("enroll", "list") == []
    machine = ev.Machine()
    challenge = served.challenge(machine)
    outcome = served.prove(machine, machine.answer(challenge).to_bytes())
    assert outcome.state is EnrolmentState.PENDING

    (listed,) = served.cli("enroll", "watch", "--timeout", "20")
    assert (listed["machine"], listed["state"], listed["data_center"]) == (machine.id, "pending", "dc1")
    shown = served.cli("enroll", "show", machine.id[:12])
    assert {v["result"] for v in shown["attestation"]["verdicts"]} == {"passed"}
    assert shown["fingerprint"]["inventory"]["cpu"]["sockets"] == 2

    error = served.cli("enroll", "approve", machine.id, code=2)
    assert "nobody can be asked" in error["error"]["message"]
    wrong = served.cli("enroll", "approve", machine.id, "--evidence", "00" * 32, code=3)
    assert [f["code"] for f in wrong["error"]["findings"]] == ["approval.evidence"]
    node = served.cli("enroll", "approve", machine.id, "--evidence", shown["evidence"])

    done = served.client.request(
        "POST",
        f"/v1/enrolments/{machine.id}/status",
        poll(challenge.session, machine.secret(challenge), 0),
    )
    assert json.loads(done)["node"]["node_id"] == node["node_id"]

    machine.reboot()
    assert served.attest(machine).state is EnrolmentState.INDUCTED
    for name in (node["node_id"], machine.id):
        found = served.cli("node", "show", name)
        assert found["attestation"]["state"] == "passed"
        assert [entry["reset_count"] for entry in found["attestation"]["history"]] == [2, 1]
    (summary,) = served.cli("node", "list")
    assert summary["node_id"] == node["node_id"]
    trail = nodeos("registrar", "audit", "--dir", served.directory, "--machine", machine.id)
    assert [row["event"] for row in trail] == [
        "evidence-accepted",
        "approved",
        "evidence-accepted",
        "recovery-escrowed",
        "requested",
    ]
    assert trail[1]["detail"]["signed"]["signature"]


def test_refusal_travels_with_its_findings(served: Served) -> None:
    machine = ev.Machine(site=ev.site(node_reward_type="type3"))
    with pytest.raises(RefusedError) as caught:
        served.challenge(machine)
    assert [f.code for f in caught.value.findings] == ["site.reward_type"]
    outcome = served.attest(ev.Machine(release="9.9.9"))
    assert outcome.state is EnrolmentState.REFUSED
    assert [f.code for f in outcome.findings] == ["release.unknown"]


def test_rejection_with_its_reason(served: Served) -> None:
    machine = ev.Machine()
    served.attest(machine)
    assert served.cli("enroll", "reject", machine.id, "--reason", "not ours")["state"] == "rejected"
    again = served.attest(machine)
    assert again.state is EnrolmentState.REJECTED


def test_what_was_acknowledged_survives_sigkill(served: Served) -> None:
    """Machines enrol while the server is killed again and again: what it said stays said."""
    machines = [ev.Machine(number=number, keys=ev.node_keys(number + 1)) for number in range(3)]
    for machine in machines:
        challenge = served.challenge(machine)
        assert served.stop(signal.SIGKILL) == -signal.SIGKILL
        served.start()
        outcome = served.prove(machine, machine.answer(challenge).to_bytes())
        assert outcome.state is EnrolmentState.PENDING
        assert served.stop(signal.SIGKILL) == -signal.SIGKILL
        served.start()
        node = served.cli("enroll", "approve", machine.id, "--yes")
        assert served.stop(signal.SIGKILL) == -signal.SIGKILL
        served.start()
        assert served.cli("node", "show", machine.id)["node_id"] == node["node_id"]
    assert len(served.cli("node", "list")) == 3
    with closing(sqlite3.connect(served.directory / "registrar.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_killed_in_the_middle_of_many_requests(served: Served) -> None:
    """Every challenge that was handed out before the kill can still be answered."""
    machine = ev.Machine()
    body = machine.request().to_bytes()
    got: list[bytes] = []
    first = threading.Event()

    def ask() -> None:
        while True:
            try:
                got.append(served.client.request("POST", "/v1/enrolments", body))
                first.set()
            except NodeosError:
                return

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert first.wait(30)
    served.stop(signal.SIGKILL)
    for thread in threads:
        thread.join(60)
    served.start()
    with closing(sqlite3.connect(served.directory / "registrar.db")) as database:
        known = {row[0] for row in database.execute("SELECT id FROM session")}
    assert {json.loads(answer)["session"] for answer in got} <= known


def test_sigterm_ends_cleanly(served: Served) -> None:
    assert served.stop(signal.SIGTERM) == 0


def test_idle_connections_stop_nobody(served: Served) -> None:
    context = ssl.create_default_context(cafile=str(served.ca))
    opened = []
    for number in range(40):
        raw = socket.create_connection(("127.0.0.1", served.port))
        half = context.wrap_socket(raw, server_hostname="127.0.0.1") if number % 2 else raw
        if number % 4 == 1:
            half.send(b"POST /v1/enrolments HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        opened.append(half)
    assert served.attest(ev.Machine()).state is EnrolmentState.PENDING
    assert served.health() == "ok"
    for connection in opened:
        connection.close()


def test_slow_sender_is_told(served: Served) -> None:
    served.stop()
    (served.directory / "registrar.toml").write_text("nonce_seconds = 600\nrequest_seconds = 1\n")
    served.start()
    context = ssl.create_default_context(cafile=str(served.ca))
    with (
        socket.create_connection(("127.0.0.1", served.port), timeout=20) as raw,
        context.wrap_socket(raw, server_hostname="127.0.0.1") as connection,
    ):
        connection.send(b"POST /v1/enrolments HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert connection.recv(64).startswith(b"HTTP/1.1 408")
    with (
        socket.create_connection(("127.0.0.1", served.port), timeout=20) as raw,
        context.wrap_socket(raw, server_hostname="127.0.0.1", suppress_ragged_eofs=True) as connection,
    ):
        connection.send(b"POST /v1/enrol")
        with suppress(ConnectionError):
            assert connection.recv(64) == b""


@pytest.mark.parametrize(
    ("method", "path", "body", "words"),
    [
        ("POST", "/v1/enrolments", b" " * 1_100_000, "larger than 1048576 bytes"),
        ("POST", "/v1/enrolments", b"{}", "request.version: missing"),
        ("POST", "/v1/enrolments", b"\xff", "not JSON"),
        ("POST", "/v1/enrolments/x/evidence", b"[]", "expected an object"),
        ("POST", "/v1/enrolments/x/status", b"{}", "poll.session: missing"),
        ("GET", "/v1/enrolments", None, "not with this method"),
        ("GET", "/v1/nothing", None, "nothing at this address"),
        ("GET", "/v1/operator/nodes", None, "refused"),
    ],
)
def test_malformed_requests_are_told_what_is_wrong(
    served: Served, method: str, path: str, body: bytes | None, words: str
) -> None:
    with pytest.raises(NodeosError, match=words):
        served.client.request(method, path, body)


def test_a_signature_is_for_the_path_that_is_routed(served: Served) -> None:
    """Frameworks have put addresses together with the Host header, which nobody signed."""
    signer = FileSigner(ev.OPERATOR)
    asked = Asked(
        registrar=registrar_id(served.ca.read_text()), method="GET", path="/v1/operator/nodes", body=b""
    )
    secret = "/v1/operator/enrolments"
    for path, host, code in (
        (asked.path, "127.0.0.1", None),
        (secret, "127.0.0.1", "operator.signature"),
        (secret, f"127.0.0.1{asked.path}#", "operator.signature"),
        (secret, f"127.0.0.1{asked.path}?", "operator.signature"),
        ("/v1/operator/enrolments/../nodes", "127.0.0.1", "not-found"),
        (asked.path + "?state=pending", "127.0.0.1", "operator.signature"),
    ):
        headers = sign(signer, asked, int(time.time()))
        answer = served.raw("GET", path, {**headers, "Host": host})
        found = answer.get("error", {})
        codes = [f["code"] for f in found.get("findings", [])] or [found.get("code")]
        assert codes == [code], (path, host, answer)


def test_old_versions_of_tls_are_refused(served: Served) -> None:
    for version, refused in ((ssl.TLSVersion.TLSv1_2, True), (ssl.TLSVersion.TLSv1_3, False)):
        context = ssl.create_default_context(cafile=str(served.ca))
        context.minimum_version = context.maximum_version = version
        expected: AbstractContextManager[object] = (
            pytest.raises((ssl.SSLError, ConnectionError)) if refused else nullcontext()
        )
        with socket.create_connection(("127.0.0.1", served.port), timeout=20) as raw, expected:
            context.wrap_socket(raw, server_hostname="127.0.0.1").close()


def test_other_authority_is_not_accepted(served: Served, tmp_path: Path) -> None:
    nodeos("registrar", "init", "--dir", tmp_path / "other", "--name", "127.0.0.1")
    other = Client(f"https://127.0.0.1:{served.port}", ca=(tmp_path / "other" / "ca.pem").read_text())
    with pytest.raises(NodeosError, match="is not the pinned one"):
        other.request("GET", "/v1/health")
    nodeos("registrar", "init", "--dir", tmp_path / "other", "--name", "127.0.0.1", code=2)


def test_renewed_certificate_is_of_the_same_authority(served: Served) -> None:
    served.stop()
    nodeos("registrar", "renew", "--dir", served.directory, "--name", "127.0.0.1")
    served.start()
    assert served.health() == "ok"


def test_taken_address_and_absent_server(served: Served) -> None:
    address = f"127.0.0.1:{served.port}"
    error = nodeos("registrar", "serve", "--dir", served.directory, "--listen", address, code=2)
    assert "can't listen" in error["error"]["message"]
    served.stop()
    with pytest.raises(UnreachableError):
        served.client.request("GET", "/v1/health")
    served.cli("enroll", "list", code=1)


@pytest.mark.hsm
def test_operator_with_a_token(served: Served, token: SoftToken, tmp_path: Path) -> None:
    identity = tmp_path / "token.json"
    words = ("--module", token.module, "--token", token.label, "--key", "op", "--pin-file", token.pin_file)
    made = nodeos("operator", "init", *words, "--out", identity)
    assert made["new_key"]
    assert nodeos("operator", "show", "--identity", identity)["principal"] == made["principal"]
    nodeos("operator", "init", *words, "--out", identity, code=2)
    again = nodeos("operator", "init", *words, "--out", tmp_path / "again.json")
    assert (again["new_key"], again["principal"]) == (False, made["principal"])

    served.add_center(identity, "dc2")
    machine = ev.Machine(site=ev.site(data_center="dc2", operator=_principal(made["principal"])))
    served.attest(machine)
    assert served.cli("enroll", "list") == []  # the other operator sees nothing of it
    served.identity, served.options = identity, ("--pin-file", token.pin_file)
    node = served.cli("enroll", "approve", machine.id, "--yes")
    assert node["operator"] == made["principal"]


def _principal(text: str) -> object:
    from nodeos.core.principal import Principal

    return Principal.parse(text)
