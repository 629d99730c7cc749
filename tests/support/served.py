"""A registrar as a process of its own, and the real command line against it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nodeos.core.http import Client
from nodeos.core.protocol import Challenge, Outcome
from nodeos.core.wire import parse_json
from tests.support import evidence as ev
from tests.support.registrar import write_files, write_identity

ROOT = Path(__file__).resolve().parents[2]


def nodeos(*arguments: str | Path, code: int = 0) -> Any:
    """Run the command line with --json and return what it printed. Fails on another exit code."""
    done = subprocess.run(
        [sys.executable, "-m", "nodeos", "--json", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, f"exit code {done.returncode}: {done.stdout!r} {done.stderr!r}"
    return json.loads(done.stdout) if done.stdout else None


@dataclass(kw_only=True)
class Served:
    """A registrar's directory, its process while it runs, and what an operator needs."""

    folder: Path
    identity: Path
    port: int = 0
    process: subprocess.Popen[str] | None = None
    options: tuple[str | Path, ...] = ()

    @classmethod
    def make(cls, folder: Path) -> Served:
        """Everything by the command line; the operator's key is a file."""
        directory = folder / "registrar"
        nodeos("registrar", "init", "--dir", directory, "--name", "127.0.0.1", "--name", "localhost")
        roots, release = write_files(folder)
        site_key = folder / "site.pub.pem"
        site_key.write_bytes(ev.site_key_pem())
        identity = write_identity(folder)
        nodeos("registrar", "trust", "add", "--dir", directory, roots)
        key = release.with_name("release.pub.pem")
        nodeos("registrar", "release", "add", "--dir", directory, "--release-key", key, release)
        served = cls(folder=folder, identity=identity)
        served.add_center(identity)
        return served

    @property
    def directory(self) -> Path:
        return self.folder / "registrar"

    @property
    def ca(self) -> Path:
        return self.directory / "ca.pem"

    @property
    def client(self) -> Client:
        return Client(f"https://127.0.0.1:{self.port}", ca=self.ca.read_text(), timeout=30)

    def add_center(self, key: Path, name: str = "dc1") -> None:
        site_key = self.folder / "site.pub.pem"
        words = ("--operator-key", key, "--profile", "gen1", "--reward-type", "type1", "--site-key", site_key)
        nodeos("registrar", "dc", "add", "--dir", self.directory, "--dc", name, *words)

    def start(self) -> None:
        """Returns once the server listens."""
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "nodeos", "registrar", "serve"),
                *("--dir", self.directory, "--listen", f"127.0.0.1:{self.port}"),
            ],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        assert line.startswith("listening on 127.0.0.1 port "), line + self.process.stderr.read()
        self.port = int(line.rpartition(" ")[2])

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        process, self.process = self.process, None
        assert process is not None
        process.send_signal(number)
        code = process.wait(30)
        assert process.stderr is not None
        process.stderr.close()
        return code

    def challenge(self, machine: ev.Machine) -> Challenge:
        answer = self.client.request("POST", "/v1/enrolments", machine.request().to_bytes())
        return Challenge.parse(answer)

    def prove(self, machine: ev.Machine, body: bytes) -> Outcome:
        return Outcome.parse(self.client.request("POST", f"/v1/enrolments/{machine.id}/evidence", body))

    def attest(self, machine: ev.Machine) -> Outcome:
        return self.prove(machine, machine.answer(self.challenge(machine)).to_bytes())

    def raw(self, method: str, path: str, headers: dict[str, str]) -> Any:
        """The JSON of one answer, of whatever status, to exactly these headers."""
        context = ssl.create_default_context(cafile=str(self.ca))
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=30, context=context)
        try:
            connection.request(method, path, headers=headers)
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    def cli(self, noun: str, verb: str, *arguments: str | Path, code: int = 0) -> Any:
        """An operator's command."""
        words: list[str | Path] = ["--registrar", f"https://127.0.0.1:{self.port}", "--ca", self.ca]
        words += ["--identity", self.identity, *self.options, *arguments]
        return nodeos(noun, verb, *words, code=code)

    def health(self) -> str:
        return parse_json(self.client.request("GET", "/v1/health"), "health").text("status")
