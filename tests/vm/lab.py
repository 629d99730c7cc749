"""Cases of the boot matrix: a copy of the demo's machine, a change to it, one boot, and what came of that.

The verdict is the guest's where there is one: evidence that its TPM signed and the registrar judged, or what an
attacker's system reports. Where nothing of ours gets as far as that, it is what the firmware, the kernel or the
initrd says on the console.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from image.measure import esp_of
from image.vm import Machine, Vm, copy_sparse, switch_on
from nodeos.core.gpt import Partition, Table
from nodeos.core.run import end, find_tool, run, scrubbed_environment

# Software emulation is slow, and a build machine may be busy: this is for what hangs, not for what is slow.
SECONDS = 420.0
_SETTLED = 5.0
_ASK_SECONDS = 4.0
# What is said where no registrar is there to judge: by the firmware and the boot loader about a signature, by
# dm-verity, by the state's program, by an agent that does not attest, and by what stands in for the emergency
# shell. The first that shows counts.
_SIGNS = {
    "firmware": rb"(?:Access [Dd]enied|Security [Vv]iolation)[^\r\n]*",
    "verity": rb"device-mapper: verity: [^\r\n]* is corrupted[^\r\n]*",
    "state": rb"nodeos: state: \xe2\x86\x92[^\r\n]*",
    "agent": rb"nodeos: failed: [^\r\n]*",
    "kernel": rb"Kernel panic[^\r\n]*",
    "emergency": rb"nodeos: the system could not start",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a boot ended: ``attested`` (``judgement`` is the registrar's), or one of the signs above."""

    kind: str
    words: str
    judgement: dict[str, Any] = field(default_factory=dict)

    @property
    def findings(self) -> set[str]:
        """The codes of all findings of the registrar."""
        return {
            finding["code"]
            for verdict in self.judgement.get("verdicts", ())
            for finding in verdict["findings"]
        }


@dataclass(slots=True, kw_only=True)
class Lab:
    """The demo's machine and registrar, and a folder for one case. ``verdicts`` collects lines for the table."""

    demo: Path
    directory: Path
    accelerator: str
    registrar: Path
    verdicts: list[tuple[str, str, float]]
    case: str

    @property
    def node(self) -> str:
        return str(json.loads((self.demo / "summary.json").read_text())["node"]["node_id"])

    @property
    def port(self) -> int:
        """The registrar's port, which the demo's site configuration names."""
        site = json.loads((self.demo / "site/site.json").read_text())
        return int(urlsplit(site["registrar"]["url"]).port or 0)

    def machine(self, name: str = "machine") -> Machine:
        """A copy of the demo's machine: enrolled, off, its state volume made."""
        return copy_machine(Machine(directory=self.demo / "machine"), self.directory / name)

    @property
    def token_environment(self) -> dict[str, str]:
        """What a process needs to use the operator's token."""
        return {"SOFTHSM2_CONF": str(self.demo / "token/softhsm2.conf")}

    def operator(self, *words: str | Path) -> Any:
        """A command of the demo's operator at this case's registrar."""
        command = [
            sys.executable, "-m", "nodeos", "--json", *words,
            "--registrar", f"https://127.0.0.1:{self.port}", "--ca", self.registrar / "ca.pem",
            "--identity", self.demo / "operator.json", "--pin-file", self.demo / "pin",
        ]  # fmt: skip
        output = run(command, what=f"nodeos {words[0]} {words[1]}", env=self.token_environment, timeout=120)
        return json.loads(output) if output.strip() else None

    def attestation(self) -> dict[str, Any]:
        """What the registrar made of the node's last evidence."""
        found: dict[str, Any] = self.operator("node", "show", self.node)["attestation"]
        return found

    def boot(
        self, machine: Machine, *, seconds: float = SECONDS, past: Collection[str] = (), **options: Any
    ) -> Outcome:
        """Switch on, wait for an outcome, switch off. See ``wait`` for ``past``."""
        began = time.monotonic()
        with switch_on(machine, accelerator=self.accelerator, **options) as vm:
            outcome = self.wait(vm, seconds=seconds, past=past)
            if outcome.kind == "attested":
                vm.power_button(seconds=240)
        self.tell(f"{outcome.kind}: {outcome.words}", time.monotonic() - began)
        return outcome

    def wait(self, vm: Vm, *, seconds: float = SECONDS, past: Collection[str] = ()) -> Outcome:
        """Wait until the registrar has judged new evidence, or the console shows that there will be none.

        Signs of the kinds ``past`` are expected to show, and the boot to go on.
        """
        before = self.attestation()["evidence"]
        found: list[Outcome] = []
        shown = asked = 0.0

        def over() -> bool:
            nonlocal shown, asked
            # Asking costs the guest processor time.
            if time.monotonic() - asked > _ASK_SECONDS:
                judgement = self.attestation()
                asked = time.monotonic()
                if judgement["evidence"] != before:
                    words = judgement["state"]
                    found.append(Outcome(kind="attested", words=words, judgement=judgement))
                    return True
            sign = read_sign(vm.machine, past)
            # What follows the first sign may tell more.
            if sign is not None:
                shown = shown or time.monotonic()
                if time.monotonic() - shown > _SETTLED:
                    found.append(read_sign(vm.machine, past) or sign)
            return bool(found)

        vm.wait_until(over, seconds=seconds, what=f"{self.case}: waiting for an outcome")
        return found[0]

    def tell(self, words: str, seconds: float) -> None:
        """A line of the table at the end."""
        self.verdicts.append((self.case, words, seconds))


def read_sign(machine: Machine, past: Collection[str] = ()) -> Outcome | None:
    """The first sign on the console that the boot is over, but for those of the kinds ``past``."""
    data = machine.console.read_bytes() if machine.console.exists() else b""
    matches = [(match.start(), kind, match.group()) for kind, sign in _SIGNS.items()
               if kind not in past for match in [re.search(sign, data)] if match]  # fmt: skip
    if not matches:
        return None
    _, kind, words = min(matches)
    return Outcome(kind=kind, words=words.decode(errors="replace"))


def copy_machine(machine: Machine, directory: Path) -> Machine:
    """A machine that is off, once more."""
    copy = Machine(directory=directory)
    copy.directory.mkdir(parents=True)
    for source in (machine.disk, machine.variables, machine.serial):
        copy_sparse(source, copy.directory / source.name)
    machine.tpm.copy(copy.directory / "tpm")
    return copy


@contextmanager
def serve(registrar: Path, port: int, log: Path) -> Iterator[None]:
    """The registrar in this folder as a process of its own."""
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "nodeos", "registrar", "serve", "--dir", registrar, "--listen",
             f"127.0.0.1:{port}"],
            stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=scrubbed_environment(),
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while b"listening" not in log.read_bytes():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield
    finally:
        end(process, seconds=15)


def copy_registrar(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


# Changes to a machine that is off


def table_of(disk: Path) -> Table:
    """The partition table of a disk image."""
    with disk.open("rb") as file:
        return Table.parse(lambda place, size: os.pread(file.fileno(), size, place), disk.stat().st_size, 512)


def read_at(disk: Path, place: int, size: int) -> bytes:
    with disk.open("rb") as file:
        return os.pread(file.fileno(), size, place)


def write_at(disk: Path, place: int, data: bytes) -> None:
    with disk.open("r+b") as file:
        os.pwrite(file.fileno(), data, place)


def flip(disk: Path, part: Partition, offset: int) -> None:
    """Change one bit of a partition."""
    place = part.start + offset
    write_at(disk, place, bytes([read_at(disk, place, 1)[0] ^ 1]))


def list_esp(disk: Path, folder: str) -> list[str]:
    """The files of a folder of the EFI system partition, as paths from its top."""
    listed = run(
        [find_tool("mdir", package="mtools"), "-b", "-i", esp_of(disk), f"::{folder}"], what="listing"
    )
    return [line.strip().removeprefix("::") for line in listed.decode().splitlines() if line.strip()]


def put_on_esp(disk: Path, name: str, data: bytes) -> None:
    """Write a file of the EFI system partition; one of that name is replaced, folders are made."""
    esp = esp_of(disk)
    parts = name.strip("/").split("/")
    for depth in range(1, len(parts)):
        # mmd fails for a folder that is there.
        command: Sequence[str | Path] = [find_tool("mmd", package="mtools"), "-D", "s", "-i", esp,
                                         f"::{'/'.join(parts[:depth])}"]  # fmt: skip
        run(command, what="making a folder", good=(0, 1))
    mcopy = find_tool("mcopy", package="mtools")
    run([mcopy, "-D", "o", "-i", esp, "-", f"::{name}"], what=f"writing {name}", stdin=data)


def change_on_esp(disk: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    """Replace a file of the EFI system partition by what ``change`` makes of it."""
    mcopy = find_tool("mcopy", package="mtools")
    data = run([mcopy, "-n", "-i", esp_of(disk), f"::{name}", "-"], what=f"reading {name}")
    put_on_esp(disk, name, change(data))
