"""Installation media on new machines, and on machines that must be left alone.

Verdicts: the installation report at the registrar, the bytes on the disk, and the registrar's judgement of the
machine once its disk was started. Where the installer refuses it tells nobody but the console.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hsm.softtpm import ManufacturerCa
from image import installer, media
from image.keys import KeySet
from image.release_dir import ReleaseDir
from image.vm import Machine, Vm, switch_on
from nodeos.core import layout
from nodeos.core.run import find_tool, run
from nodeos.core.site import SignedSite, SiteConfig
from tests.support.firmware import boot_from_url
from tests.vm.conftest import WORK, Demo
from tests.vm.lab import SECONDS, Lab, put_on_esp, read_at, table_of

pytestmark = pytest.mark.vm
MEMORY = 3072  # MiB: the installer has the whole release in memory
DISK = 5 << 30
_VOLUME_ID = (67, 6 * 512 + 67)  # in a FAT32's boot sector and in the copy of that


@pytest.fixture(scope="module")
def built(demo: Demo) -> ReleaseDir:
    assert demo.code == 0, demo.summary["error"]
    return ReleaseDir.read(WORK / "image/release/release")


@pytest.fixture(scope="module")
def content(built: ReleaseDir) -> media.Content:
    """What goes on a medium of the demo's site."""
    return media.Content.read(built.directory, media.read_site(WORK / "demo/site"))


@pytest.fixture(scope="module")
def expected(built: ReleaseDir, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """What `nodeos install` makes of an empty disk by hand."""
    disk, keys = tmp_path_factory.mktemp("by-hand") / "disk.raw", KeySet(directory=WORK / "keys")
    command: Sequence[str | Path] = [
        sys.executable, "-m", "nodeos", "install", built.directory, "--file", disk, "--size", str(DISK),
        "--site", WORK / "demo/site", "--site-key", keys.public_file("site"),
        "--release-key", keys.public_file("release"),
    ]  # fmt: skip
    run(command, what="nodeos install", timeout=300)
    found = describe(disk)
    disk.unlink()
    return found


def describe(disk: Path) -> list[object]:
    """All of a disk but what is random: its partitions, and the SHA-256 of the content of ESP and slots."""
    table = table_of(disk)
    found: list[object] = []
    for part in table.partitions:
        digest = hashlib.sha256()
        blank = read_at(disk, part.start, 1 << 20), read_at(disk, part.end - (1 << 20), 1 << 20)
        if part != layout.state(table):
            esp = part == layout.esp(table)
            for offset in range(0, part.size, 1 << 20):
                data = bytearray(read_at(disk, part.start + offset, 1 << 20))
                for place in _VOLUME_ID if esp and not offset else ():
                    data[place : place + 4] = bytes(4)
                digest.update(data)
        else:
            assert not any(blank[0]) and not any(blank[1])
        found.append((part.number, part.type, part.label, part.start, part.size, digest.hexdigest()))
    return found


def digest_of(disk: Path) -> str:
    with disk.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def new_machine(lab: Lab, *, enrolled: bool = True) -> Machine:
    """Never used: an empty disk; firmware with our keys (which saves a restart), or in setup mode."""
    ca = ManufacturerCa.create(WORK / "demo/manufacturer")
    machine = Machine.make(lab.directory / "new", ca=ca, disk_bytes=DISK)
    if enrolled:
        shutil.copyfile(lab.demo / "machine/firmware-variables.fd", machine.variables)
    return machine


def make_medium(lab: Lab, content: media.Content, kind: media.Kind = media.Kind.USB) -> Path:
    medium = lab.directory / ("medium.iso" if kind is media.Kind.ISO else "medium.raw")
    medium.unlink(missing_ok=True)
    media.write(kind, content, medium)
    return medium


def console(machine: Machine) -> str:
    data = machine.console.read_bytes() if machine.console.exists() else b""
    return data.decode(errors="replace").replace("\r\n", "\n")


def wait_for(vm: Vm, words: str, *, seconds: float = SECONDS) -> None:
    """Wait for words on the console. An installer that gave up ends the test."""
    deadline = time.monotonic() + seconds
    while words not in (text := console(vm.machine)):
        ended = re.search(
            r"nodeos: (?:refused: |failed: |the system could not start)|No bootable option", text
        )
        assert ended is None, text[ended.start() :] if ended else ""
        assert vm.process.poll() is None, text[-2000:]
        assert time.monotonic() < deadline, text[-2000:]
        time.sleep(0.05)


@contextmanager
def started(lab: Lab, machine: Machine, medium: Path | None) -> Iterator[Vm]:
    """The machine with the medium in it, for as long as this takes."""
    began = time.monotonic()
    with switch_on(machine, accelerator=lab.accelerator, medium=medium, memory_mib=MEMORY) as vm:
        yield vm
        lab.tell(_last_words(machine), time.monotonic() - began)


def _last_words(machine: Machine) -> str:
    lines = [line for line in console(machine).splitlines() if line.startswith("nodeos: ")]
    return lines[-1].removeprefix("nodeos: ") if lines else ""


def finish(lab: Lab, vm: Vm) -> dict[str, Any]:
    """Wait until the machine has installed and switched itself off. Gives the report at the registrar."""
    wait_for(vm, "nodeos: done: ")
    vm.wait_for_exit(seconds=120)
    return reports(lab)[0]


def reports(lab: Lab) -> list[dict[str, Any]]:
    command: Sequence[str | Path] = [
        sys.executable,
        "-m",
        "nodeos",
        "--json",
        "registrar",
        "installations",
        "--dir",
        lab.registrar,
    ]
    return [row["reported"] for row in json.loads(run(command, what="nodeos registrar installations"))]


def wait_for_request(lab: Lab, vm: Vm, machine: str) -> None:
    """Wait until the registrar has verified the machine's evidence, and lists its request."""
    found: list[str] = []

    def asked() -> bool:
        time.sleep(3)
        requests = lab.operator("enroll", "list")
        found[:] = [item["state"] for item in requests if item["machine"] == machine]
        return found in (["pending"], ["refused"])

    vm.wait_until(asked, seconds=SECONDS, what="waiting for the machine's request")
    assert found == ["pending"]


def check_report(report: dict[str, Any], built: ReleaseDir, *, source: str) -> None:
    told = {key: report[key] for key in ("verdict", "release", "root_hash", "source", "disk", "findings")}
    assert told == {
        "verdict": "installed", "release": built.release.version, "root_hash": built.release.root_hash.hex(),
        "source": source, "disk": "disk", "findings": [],
    }  # fmt: skip


def test_usb_stick(lab: Lab, content: media.Content, built: ReleaseDir, expected: list[object]) -> None:
    """A new machine: keys enrolled, installed, off by itself; its disk starts, and it asks to be enrolled."""
    machine = new_machine(lab, enrolled=False)
    with started(lab, machine, make_medium(lab, content)) as vm:
        report = finish(lab, vm)
    check_report(report, built, source="disk")
    root = layout.slots(table_of(machine.disk))[0].root
    assert root.uuid.bytes == built.release.root_hash[:16]
    assert describe(machine.disk) == expected
    with started(lab, machine, None) as vm:
        wait_for_request(lab, vm, report["machine"])


@pytest.mark.matrix
def test_iso_image(lab: Lab, content: media.Content, built: ReleaseDir, expected: list[object]) -> None:
    machine = new_machine(lab)
    with started(lab, machine, make_medium(lab, content, media.Kind.ISO)) as vm:
        report = finish(lab, vm)
    check_report(report, built, source="disc")
    assert describe(machine.disk) == expected


@pytest.mark.matrix
def test_http_boot(lab: Lab, content: media.Content, built: ReleaseDir) -> None:
    """Firmware in setup mode fetches the installer from a URL; the machine goes on with its disk by itself."""
    machine, folder = new_machine(lab, enrolled=False), lab.directory / "http"
    media.write(media.Kind.HTTP, content, folder)
    with serve_folder(folder) as port:
        url = f"http://10.0.2.2:{port}/"
        boot_from_url(machine.variables, url + installer.NAME)
        with started(lab, machine, None) as vm:
            wait_for(vm, "nodeos: done: ")
            report = reports(lab)[0]
            wait_for_request(lab, vm, report["machine"])
    check_report(report, built, source=url)


@contextmanager
def serve_folder(folder: Path) -> Iterator[int]:
    """A plain web server; gives its port."""

    class Quiet(SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.matrix
def test_data_need_the_operator(lab: Lab, content: media.Content, built: ReleaseDir) -> None:
    """A disk with data waits for a token, which comes on the stick while the machine runs."""
    machine, medium = new_machine(lab), make_medium(lab, content)
    mkfs = find_tool("mkfs.ext4", package="e2fsprogs")
    run([mkfs, "-q", "-F", "-L", "BACKUP", machine.disk], what="making somebody's file system")
    before = digest_of(machine.disk)
    with started(lab, machine, medium) as vm:
        wait_for(vm, "put what it writes on the")
        [challenge] = re.findall(r"put this in a file: (\{.*\})", console(machine))
        assert '"serial":"disk"' in challenge
        put_on_esp(
            medium,
            "nodeos/erase.json",
            sign_token(lab, challenge.replace('"serial":"disk"', '"serial":"disc"')),
        )
        wait_for(vm, "✗ erase.serial: ")
        assert digest_of(machine.disk) == before
        put_on_esp(medium, "nodeos/erase.json", sign_token(lab, challenge))
        report = finish(lab, vm)
    check_report(report, built, source="disk")


def sign_token(lab: Lab, challenge: str) -> bytes:
    """What `nodeos operator allow-erase` makes of the text on the console."""
    asked, token = lab.directory / "challenge.json", lab.directory / "token.json"
    asked.write_text(challenge)
    token.unlink(missing_ok=True)
    command: Sequence[str | Path] = [
        sys.executable, "-m", "nodeos", "operator", "allow-erase", asked, "--out", token,
        "--identity", lab.demo / "operator.json", "--pin-file", lab.demo / "pin",
    ]  # fmt: skip
    run(command, what="allow-erase", env=lab.token_environment)
    return token.read_bytes()


@pytest.mark.matrix
@pytest.mark.parametrize("whose", ["nobody", "another"])
def test_unsigned_or_foreign_site(lab: Lab, content: media.Content, whose: str) -> None:
    document = content.site.document
    site = (
        SignedSite(document=document, signature=bytes(64))
        if whose == "nobody"
        else media.sign(SiteConfig.parse(document), Ed25519PrivateKey.generate())
    )
    machine = new_machine(lab)
    before = digest_of(machine.disk)
    with started(lab, machine, make_medium(lab, replace(content, site=site))) as vm:
        vm.wait_until(lambda: "nodeos: code: " in console(machine), seconds=SECONDS, what="the refusal")
        vm.power_button(seconds=240)
    assert "nodeos: refused: " in console(machine)
    assert "nodeos: preflight: " not in console(machine)
    assert digest_of(machine.disk) == before
    # A foreign configuration could name any registrar: none is told.
    assert reports(lab) == []


@pytest.mark.matrix
def test_five_power_cuts(lab: Lab, content: media.Content, built: ReleaseDir, expected: list[object]) -> None:
    machine, medium = new_machine(lab), make_medium(lab, content)
    cuts = ("writing: 0 %", "writing: 50 %", "writing: 90 %", "reading back: 0 %", "reading back: 50 %")
    for count, words in enumerate(cuts):
        with started(lab, machine, medium) as vm:
            wait_for(vm, words)
            vm.process.kill()
            assert ("(unfinished)" in console(machine)) == (count > 0)
    with started(lab, machine, medium) as vm:
        report = finish(lab, vm)
    assert "(unfinished)" in console(machine)
    check_report(report, built, source="disk")
    assert describe(machine.disk) == expected


@pytest.mark.matrix
def test_installer_on_a_node(lab: Lab, content: media.Content, built: ReleaseDir) -> None:
    """The state of a node is closed to an installer: nothing is opened, and nothing erased without a token."""
    values = set(installer.pcr11(content.installer).values())
    assert not values & set(built.release.pcr11["sha256"].values())
    machine = lab.machine()
    before = digest_of(machine.disk)
    with started(lab, machine, make_medium(lab, content)) as vm:
        wait_for(vm, "put what it writes on the")
    assert "holds data and is left alone" in console(machine)
    assert "state: opened" not in console(machine)
    assert digest_of(machine.disk) == before
    assert reports(lab) == []
