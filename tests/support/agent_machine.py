"""What a booted node has around the agent, on a host: measurements, logs, a LUKS2 header, a real registrar.

The boot, the release and the manufacturer are those of ``tests.support.evidence``.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hsm.identity import FileSigner
from nodeos.agent.config import Config
from nodeos.agent.device import TpmDevice
from nodeos.core.http import Client
from nodeos.core.run import find_tool, run
from nodeos.core.site import SiteConfig
from provisioning.client import OperatorClient
from tests.support import evidence
from tests.support.agent_fakes import Site, make_config, make_site, state_report

UUID = "6a4e0f0e-52a5-4f0c-9e2c-111111111111"


def measure_boot(tpm: TpmDevice, config: Config, *, locked: bool = False) -> None:
    """What firmware, systemd and the initial RAM disk measure until "ready", and their logs."""
    for pcr, _, data in evidence.firmware_events():
        tpm.measure(pcr, data)
    for phase in evidence.PHASES:
        tpm.measure(11, phase)
    if not locked:
        tpm.measure(15, b"volume key")
    config.firmware_log.write_bytes(evidence.firmware_log())
    config.userspace_log.write_bytes(evidence.userspace_log([(11, phase) for phase in evidence.PHASES]))


def make_volume(path: Path, machine: str, operator_key: bytes) -> None:
    """A file with the LUKS2 header of a state partition. Its key protects nothing."""
    tool = find_tool("cryptsetup", package="cryptsetup-bin")
    with path.open("wb") as file:
        file.truncate(32 << 20)
    fast = ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--luks2-keyslots-size", "1M")
    command = [tool, "luksFormat", "--batch-mode", "--type", "luks2", "--uuid", UUID, *fast]
    run([*command, "--key-file", "-", path], what="make a LUKS2 header", stdin=b"no secret")
    blob = evidence.recovery_blob(machine, UUID, operator_key)
    # The recovery token names key slot 1.
    (path.parent / "slot0").write_bytes(b"no secret")
    add = (
        tool,
        "luksAddKey",
        "--batch-mode",
        "--key-slot",
        "1",
        "--key-file",
        path.parent / "slot0",
        *fast[:4],
    )
    run([*add, path, "-"], what="add a key slot", stdin=evidence.RECOVERY_KEY.value)
    run([tool, "token", "import", "--json-file", "-", path], what="import a token", stdin=blob)


@dataclass(slots=True)
class RegistrarProcess:
    """`nodeos registrar` in ``directory``, on a port that stays the same when it is started again."""

    directory: Path
    port: int

    @classmethod
    def make(
        cls, directory: Path, roots: Path, site_key: Path, operator: Path | None = None
    ) -> RegistrarProcess:
        """A registrar that knows the release, the maker of the TPM and the data centre zh1."""
        # Bound and let go: a port of our own that nobody has now. It is taken again in ``serve``.
        with socket.socket() as chosen:
            chosen.bind(("127.0.0.1", 0))
            port = int(chosen.getsockname()[1])
        here = cls(directory, port)
        release = directory.parent / "release.json"
        release_key = evidence.write_release(release, evidence.release())
        if operator is None:
            operator = directory.parent / "operator.pub.pem"
            public = evidence.OPERATOR.public_key()
            operator.write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        here.command("init", "--name", "127.0.0.1")
        here.command("trust", "add", str(roots))
        here.command("release", "add", "--release-key", str(release_key), str(release))
        center = ("--dc", "zh1", "--profile", "dev", "--reward-type", "type1")
        here.command(*("dc", "add", *center, "--operator-key", str(operator), "--site-key", str(site_key)))
        return here

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def ca(self) -> str:
        return (self.directory / "ca.pem").read_text()

    @property
    def operator(self) -> OperatorClient:
        return OperatorClient(Client(self.url, ca=self.ca), FileSigner(evidence.OPERATOR))

    def command(self, *words: str) -> bytes:
        verbs = 2 if words[0] in ("trust", "release", "dc") else 1
        command = (*words[:verbs], "--dir", self.directory, *words[verbs:])
        return run(
            [sys.executable, "-m", "nodeos", "registrar", *(str(word) for word in command)],
            what="set up the registrar",
            env=python_path(),
        )

    @contextmanager
    def serve(self) -> Iterator[None]:
        """Run it; the block begins when it listens."""
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "nodeos", "registrar", "serve"),
                *("--dir", str(self.directory), "--listen", f"127.0.0.1:{self.port}"),
            ],
            stderr=subprocess.PIPE,
            env={**os.environ, **python_path()},
        )
        assert process.stderr is not None
        try:
            said = b""
            while b"listening" not in said:
                line = process.stderr.readline()
                assert line, f"the registrar ended: {said.decode()}"
                said += line
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.stderr.read()
            process.stderr.close()
            process.wait(timeout=20)


def python_path() -> dict[str, str]:
    """Programs that a test starts must run the code under test."""
    return {"PYTHONPATH": str(Path(__file__).parents[2])}


def make_node(
    directory: Path, url: str, ca: str, machine: str, operator: SiteConfig | None = None
) -> tuple[Config, Site]:
    """A node's files; the boot is not measured yet."""
    config = make_config(directory)
    known = operator or evidence.site()
    made = make_site(url, ca, operator=known.operator).config
    site = Site(evidence.SITE_KEY, replace(made, operator_key=known.operator_key))
    site.write(config)
    config.os_release.write_text(f'ID=nodeos\nIMAGE_VERSION="{evidence.release().version}"\n')
    volume = directory / "volume.luks"
    make_volume(volume, machine, site.config.operator_key)
    set_volume(config, volume, made=True)
    return config, site


def set_volume(config: Config, volume: Path, *, made: bool) -> None:
    config.volume_report.write_bytes(state_report(str(volume), made=made))
