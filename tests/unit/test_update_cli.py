"""``nodeos update``, and what the blessing asks the replica and the state volume."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import cbor2
import pytest
from click.testing import CliRunner

from nodeos.cli import root
from nodeos.core.errors import NodeosError, RefusedError
from nodeos.update import blessing, cli, machine
from nodeos.update.apply import run_sysupdate
from tests.support.update_machine import PCR_KEY, FakeTpm, Machine, make_release


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    found = Machine.make(tmp_path / "node")
    monkeypatch.setattr(cli, "_paths", lambda esp: found.paths)
    monkeypatch.setattr(
        cli, "_facts", lambda paths, tcti: machine.gather_facts(paths, lambda: FakeTpm(found.pcr7))
    )
    return found


def call(*words: str) -> Any:
    done = CliRunner().invoke(root, ["--json", "update", *words], catch_exceptions=False)
    assert done.exit_code == 0
    return json.loads(done.stdout)


def test_status(node: Machine, tmp_path: Path) -> None:
    esp = str(node.paths.esp)
    assert call("status", "--esp", esp) == {
        "running": "1.0",
        "blessed": True,
        "failed": None,
        "on_trial": False,
        "entries": [{"version": "1.0", "tries_left": None, "tries_done": 0}],
        "pending": None,
    }
    (node.linux / "nodeos_1.1+0-3.efi").write_bytes(b"")
    assert call("status", "--esp", esp)["failed"] == "1.1"
    plain = CliRunner().invoke(root, ["update", "status", "--esp", esp]).stdout
    assert "1.0 runs, blessed" in plain
    assert "1.1 was tried and given up" in plain


def test_check(node: Machine, tmp_path: Path) -> None:
    good = make_release(tmp_path / "good", "1.1", [node.pcr7])
    assert call("check", str(good)) == {"version": "1.1", "installable": True}
    bad = make_release(tmp_path / "bad", "1.1", [b"x" * 32])
    with pytest.raises(RefusedError, match=r"pcr7\.unsigned"):
        call("check", str(bad))
    assert node.ukis == ["nodeos_1.0.efi"]


def test_apply(node: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nodeos.update.apply.run_sysupdate", node.install)
    release = make_release(tmp_path / "release", "1.1", [node.pcr7])
    done = CliRunner().invoke(root, ["--json", "update", "apply", str(release)], catch_exceptions=False)
    assert json.loads(done.stdout) == {"version": "1.1", "rollback": False}
    assert "writing the other slot" in done.stderr
    assert node.installed == ["1.1"]


def test_what_sysupdate_is_told(node: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[list[str]] = []
    monkeypatch.setattr(
        "nodeos.update.apply.run", lambda command, **options: told.append([str(word) for word in command])
    )
    run_sysupdate(node.paths, "1.1")
    assert told[0][1:] == ["--definitions=/usr/lib/sysupdate.d", "--verify=no", "update", "1.1"]


def test_give_up(node: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[list[str]] = []
    monkeypatch.setattr("nodeos.core.run.run", lambda command, **options: told.append(command))
    done = CliRunner().invoke(root, ["update", "give-up"], catch_exceptions=False)
    assert "this boot stays" in done.stderr
    assert told == []
    (node.linux / "nodeos_1.1+2-1.efi").write_bytes(b"")
    node.run("1.1")
    node.count()
    done = CliRunner().invoke(root, ["update", "give-up"], catch_exceptions=False)
    assert "restarting" in done.stderr
    assert told == [["systemctl", "--no-block", "reboot"]]


@contextmanager
def replica(status: int, body: bytes) -> Iterator[tuple[str, int]]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/api/v2/status"
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield "127.0.0.1", server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (200, cbor2.dumps(cbor2.CBORTag(55799, {"replica_health_status": "healthy"})), "healthy"),
        (200, cbor2.dumps({"replica_health_status": "replica_is_behind"}), "replica_is_behind"),
        (503, b"", "status 503"),
        (200, b"\xff", "an answer that can't be read"),
        (200, b"", "an answer that can't be read"),
        (200, cbor2.dumps([1]), "an answer that can't be read"),
        (200, cbor2.dumps({}), "an answer that can't be read"),
    ],
)
def test_the_health_of_the_replica(status: int, body: bytes, words: str) -> None:
    with replica(status, body) as address:
        assert blessing.replica_health(address) == words


def test_no_replica() -> None:
    assert blessing.replica_health(("127.0.0.1", 1)).startswith("no answer")


def test_keys_that_the_release_no_longer_has_are_forgotten(
    node: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, bytes]] = []
    monkeypatch.setattr(
        "nodeos.state.recovery.forget_key", lambda device, key, *, host: told.append((device, key))
    )
    blessing.forget_keys_but(node.paths, [PCR_KEY])
    assert told == []
    blessing.forget_keys_but(node.paths, [bytes(32)])
    assert told == [("/dev/state", PCR_KEY)]


def test_a_system_that_is_no_node(tmp_path: Path) -> None:
    paths = machine.Paths(os_release=tmp_path / "os-release", library=tmp_path)
    paths.os_release.write_text("ID=debian\n")
    with pytest.raises(NodeosError, match="has no IMAGE_VERSION"):
        machine.running_version(paths)
    for text in (b"", b"-----BEGIN PUBLIC KEY-----\nAA\n"):
        paths.release_key.write_bytes(text)
        with pytest.raises(NodeosError, match="release key"):
            machine.trusted_release_keys(paths)
