"""A virtual machine as near to a node as QEMU comes: UEFI with Secure Boot enforced, TPM 2.0, a disk.

A machine is a folder that keeps what real hardware keeps between boots: firmware variables, the TPM's state,
the disk. Starting it again is a power cycle.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from hsm.softtpm import ManufacturerCa, SoftTpm
from image import qmp
from nodeos.core.errors import ToolError, UsageError
from nodeos.core.run import end, find_tool, scrubbed_environment

FIRMWARE = Path("/usr/share/OVMF/OVMF_CODE_4M.secboot.fd")
BLANK_VARIABLES = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
DISK_SERIAL = "disk"
_KVM = Path("/dev/kvm")
_KVM_GET_API_VERSION = 0xAE00
_PROBE_SECONDS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The folder of one machine."""

    directory: Path

    @property
    def disk(self) -> Path:
        return self.directory / "disk.raw"

    @property
    def variables(self) -> Path:
        return self.directory / "firmware-variables.fd"

    @property
    def serial(self) -> Path:
        """Holds the machine's UUID, which the firmware shows in SMBIOS."""
        return self.directory / "uuid"

    @property
    def tpm(self) -> SoftTpm:
        return SoftTpm(self.directory / "tpm")

    @property
    def console(self) -> Path:
        return self.directory / "console.log"

    @classmethod
    def make(
        cls, directory: Path, *, ca: ManufacturerCa, image: Path | None = None, disk_bytes: int = 8 << 30
    ) -> Machine:
        """A new machine: firmware in setup mode, a TPM of ``ca``, an empty disk, or one with a copy of ``image``.

        A folder that is there already is left alone: UsageError.
        """
        if directory.exists():
            raise UsageError(f"{directory} is there already", hint="name another folder, or remove this one")
        if not BLANK_VARIABLES.is_file():
            raise ToolError(
                f"{BLANK_VARIABLES} is not there", hint="run `make setup`, or: apt-get install ovmf"
            )
        directory.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent.absolute()))
        try:
            machine = cls(directory=fresh)
            if image is not None:
                copy_sparse(image, machine.disk)
            else:
                with machine.disk.open("wb") as file:
                    file.truncate(disk_bytes)
            shutil.copyfile(BLANK_VARIABLES, machine.variables)
            machine.serial.write_text(str(uuid.uuid4()))
            machine.tpm.provision(ca)
            fresh.rename(directory)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        return cls(directory=directory.absolute())


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a disk image and leave its holes, and blocks of zeroes, out."""
    chunk = 1 << 20
    zero = bytes(chunk)
    with source.open("rb", buffering=0) as reader, target.open("wb") as writer:
        size = os.fstat(reader.fileno()).st_size
        writer.truncate(size)
        place = 0
        while (place := _next_data(reader.fileno(), place)) < size:
            reader.seek(place)
            data = reader.read(chunk)
            if data != zero[: len(data)]:
                writer.seek(place)
                writer.write(data)
            place += len(data)


def _next_data(descriptor: int, place: int) -> int:
    """Where the next data begin; beyond every file if there are none."""
    try:
        return os.lseek(descriptor, place, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return sys.maxsize
        raise


@dataclass(slots=True, kw_only=True)
class Vm:
    """A machine that is switched on."""

    machine: Machine
    process: subprocess.Popen[bytes]
    accelerator: str
    started: float = field(default_factory=time.monotonic)

    def wait_until(self, ready: Callable[[], bool], *, seconds: float, what: str) -> None:
        """Ask ``ready`` again and again until it says yes.

        Raises ToolError with the end of the console when the time is up or the machine is off.
        """
        deadline = time.monotonic() + seconds
        while not ready():
            if self.process.poll() is not None:
                raise ToolError(f"{what}: the virtual machine switched itself off{self._console_tail()}")
            if time.monotonic() > deadline:
                raise ToolError(
                    f"{what}: not within {seconds:.0f} s{self._console_tail()}",
                    hint=f"the whole console is {self.machine.console}",
                )
            time.sleep(0.5)

    def power_button(self, *, seconds: float = 120) -> None:
        """Press the power button and wait until the machine is off."""
        qmp.execute(self.machine.directory / "qmp.sock", "system_powerdown")
        self.wait_for_exit(seconds=seconds)

    def wait_for_exit(self, *, seconds: float) -> None:
        """Wait until the machine has switched itself off."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise ToolError(
                f"the virtual machine is still on after {seconds:.0f} s{self._console_tail()}",
                hint=f"the whole console is {self.machine.console}",
            ) from error

    def _console_tail(self) -> str:
        with suppress(OSError):
            lines = self.machine.console.read_bytes().decode(errors="replace").splitlines()[-15:]
            return "".join(f"\n  | {line.strip()[:160]}" for line in lines if line.strip())
        return ""


@contextmanager
def switch_on(
    machine: Machine,
    *,
    accelerator: str,
    forward: dict[int, int] | None = None,
    memory_mib: int = 2048,
    processors: int = 2,
    port: Path | None = None,
    medium: Path | None = None,
    extra: Sequence[str] = (),
) -> Iterator[Vm]:
    """Start a machine; on leaving it is off, whatever happened.

    ``forward`` maps TCP ports of this host's loopback to ports of the guest, which reaches this host at
    10.0.2.2. ``port``, where given, receives what the guest writes to its virtio port ``nodeos.verdict``.
    ``medium`` is what the firmware tries first: an ISO image (by its name's ending) in a drive, anything else as a
    USB stick. ``extra`` is put behind QEMU's other arguments.
    """
    qemu = find_tool("qemu-system-x86_64", package="qemu-system-x86")
    if not FIRMWARE.is_file():
        raise ToolError(f"{FIRMWARE} is not there", hint="run `make setup`, or: apt-get install ovmf")
    directory = machine.directory
    forwards = "".join(f",hostfwd=tcp:127.0.0.1:{host}-:{guest}" for host, guest in (forward or {}).items())
    with ExitStack() as stack:
        tpm = stack.enter_context(machine.tpm.serve_vm())
        command = [
            qemu, *firmware_options(accelerator, machine.variables),
            "-uuid", machine.serial.read_text(), "-smp", str(processors), "-m", str(memory_mib),
            "-serial", f"file:{machine.console}",
            "-qmp", f"unix:{directory / 'qmp.sock'},server=on,wait=off",
            "-chardev", f"socket,id=tpm,path={tpm}", "-tpmdev", "emulator,id=tpm0,chardev=tpm",
            "-device", "tpm-crb,tpmdev=tpm0",
            "-drive", f"if=none,id=disk,format=raw,discard=unmap,file={machine.disk}",
            "-device", f"virtio-blk-pci,drive=disk,bootindex=2,serial={DISK_SERIAL}",
            "-netdev", f"user,id=net{forwards}", "-device", "virtio-net-pci,netdev=net,romfile=",
            "-device", "virtio-rng-pci",
        ]  # fmt: skip
        if port is not None:
            command += [
                "-device", "virtio-serial-pci",
                "-chardev", f"file,id=verdict,path={port}",
                "-device", "virtserialport,chardev=verdict,name=nodeos.verdict",
            ]  # fmt: skip
        if medium is not None:
            command += medium_options(medium)
        command += extra
        log = stack.enter_context((directory / "qemu.log").open("ab"))
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=scrubbed_environment()
        )
        stack.callback(end, process)
        yield Vm(machine=machine, process=process, accelerator=accelerator)


def medium_options(medium: Path) -> list[str]:
    """A drive with a disc, or a USB stick, that the firmware starts before the disk."""
    if medium.suffix == ".iso":
        return [
            "-drive", f"if=none,id=medium,format=raw,media=cdrom,readonly=on,file={medium}",
            "-device", "ide-cd,drive=medium,bus=ide.0,bootindex=1",
        ]  # fmt: skip
    return [
        "-device", "qemu-xhci", "-drive", f"if=none,id=medium,format=raw,file={medium}",
        "-device", "usb-storage,drive=medium,removable=on,bootindex=1",
    ]  # fmt: skip


def firmware_options(accelerator: str, variables: Path) -> list[str]:
    processor = "host" if accelerator == "kvm" else "max"
    return [
        "-machine", f"q35,smm=on,accel={accelerator}", "-cpu", processor,
        "-nodefaults", "-display", "none", "-vga", "none",
        # Only code in system management mode may write the firmware's variables.
        "-global", "driver=cfi.pflash01,property=secure,value=on",
        "-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={FIRMWARE}",
        "-drive", f"if=pflash,format=raw,unit=1,file={variables}",
    ]  # fmt: skip


def choose_accelerator(scratch: Path, *, device: Path = _KVM) -> str:
    """``kvm`` if it can run the firmware here, else ``tcg``.

    A host can have /dev/kvm and fail at the firmware's system management mode, so the firmware is started for
    real, without a disk, until it says its first word.
    """
    try:
        with device.open("rb+", buffering=0) as file:
            fcntl.ioctl(file, _KVM_GET_API_VERSION)
    except OSError:
        return "tcg"
    return "kvm" if firmware_speaks(scratch, "kvm") else "tcg"


def firmware_speaks(scratch: Path, accelerator: str, *, seconds: float = _PROBE_SECONDS) -> bool:
    """Start the firmware without a disk, and tell whether it gets as far as looking for one."""
    scratch.mkdir(parents=True, exist_ok=True)
    variables, console = scratch / "probe.fd", scratch / "probe.log"
    shutil.copyfile(BLANK_VARIABLES, variables)
    console.unlink(missing_ok=True)
    qemu = find_tool("qemu-system-x86_64", package="qemu-system-x86")
    process = subprocess.Popen(
        [qemu, *firmware_options(accelerator, variables), "-m", "512", "-serial", f"file:{console}"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=scrubbed_environment(),
    )  # fmt: skip
    try:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            running = process.poll() is None
            if console.exists() and b"BdsDxe" in console.read_bytes():
                return True
            if not running:
                return False
            time.sleep(0.2)
        return False
    finally:
        end(process)
