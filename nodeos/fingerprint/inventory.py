"""What the machine is made of, as the kernel and the firmware tell it. A source that is missing is data
("absent"), and so is one that can't be understood ("malformed"); neither is an error.

Serial numbers never leave the machine: they become keyed hashes, whose key is the machine's own, so that
lists of hashes from different machines can't be joined.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hsm.tpm.types import TpmIdentity
from nodeos.core.errors import UsageError
from nodeos.core.files import read_file
from nodeos.core.wire import ParseError
from nodeos.fingerprint import smbios

ABSENT = "absent"
MALFORMED = "malformed"
TEXT_LIMIT = 40
MOST_DIMMS = 32
MOST_DISKS = 24
MOST_NICS = 16

# The flags of /proc/cpuinfo that say what a machine can do for us; the rest only makes reports long.
FLAGS = frozenset(
    {"aes", "avx2", "avx512f", "bmi2", "constant_tsc", "hypervisor", "nonstop_tsc", "pclmulqdq", "rdrand"}
    | {"rdseed", "sev", "sev_es", "sev_snp", "sha_ni", "smap", "sme", "smep", "svm", "tdx_guest"}
    | {"tdx_host_platform", "tme", "vmx"}
)
_SERIAL_DOMAIN = b"nodeos-serial-v1\x00"
_NO_SERIALS = frozenset(
    {"", "0", "none", "n/a", "not specified", "not applicable", "default string", "system serial number"}
    | {"to be filled by o.e.m.", "0123456789", "123456789", "unknown", "empty", "chassis serial number"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where the kernel keeps what is read as files."""

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")

    @property
    def dmi(self) -> Path:
        return self.sys / "firmware/dmi/tables"


def take_inventory(
    *, machine: str | None, tpm: TpmIdentity | None, sources: Sources | None = None
) -> dict[str, Any]:
    """The ``inventory`` part of a report. ``machine`` is the machine id; without one, no serial is hashed."""
    where = sources or Sources()
    tables = read_tables(where.dmi)
    cpu = read_cpu(where.proc / "cpuinfo")
    return {
        "system": _system(tables, machine),
        "cpu": cpu,
        "memory": _memory(tables, where.proc / "meminfo"),
        "disks": read_disks()[:MOST_DISKS],
        "nics": read_nics()[:MOST_NICS],
        "tpm": _tpm(tpm),
        "virtualization": _virtualization(tables, cpu["flags"], where.sys),
    }


def read_tables(directory: Path) -> smbios.Tables | str:
    """The SMBIOS tables, ABSENT or MALFORMED."""
    try:
        entry_point = read_file(directory / "smbios_entry_point", "SMBIOS entry point", limit=1 << 10)
        table = read_file(directory / "DMI", "SMBIOS table", limit=1 << 21)
    except UsageError:
        return ABSENT
    try:
        return smbios.parse(entry_point, table)
    except ParseError:
        return MALFORMED


def serial_hash(machine: str, serial: str) -> bytes:
    """A keyed hash of a serial number, 16 bytes. The key is made of a constant and the machine id."""
    key = hashlib.sha256(_SERIAL_DOMAIN + machine.encode()).digest()
    return hmac.digest(key, serial.encode(), "sha256")[:16]


def clean(value: object) -> str:
    """A text as it goes into a report: printable ASCII, one space between words, at most TEXT_LIMIT long."""
    if not isinstance(value, str):
        return ABSENT
    text = " ".join("".join(c if " " <= c <= "~" else " " for c in value).split())[:TEXT_LIMIT]
    return text.strip() or ABSENT


def _system(tables: smbios.Tables | str, machine: str | None) -> dict[str, Any]:
    if isinstance(tables, str):
        return {"manufacturer": tables, "product": tables}
    system, board = tables.system, tables.board
    found: dict[str, Any] = {
        "manufacturer": clean(system and system.manufacturer),
        "product": clean(system and system.product),
    }
    for source in (system, board):
        serial = (source.serial or "").strip() if source is not None else ""
        if machine is not None and serial.lower() not in _NO_SERIALS:
            found["serial_hash"] = serial_hash(machine, serial)
            break
    return found


def read_cpu(path: Path) -> dict[str, Any]:
    """The processors of /proc/cpuinfo: 0 sockets, cores and threads where it can't be read."""
    try:
        text = read_file(path, "processors", limit=1 << 23).decode(errors="replace")
    except UsageError:
        return {"model": ABSENT, "sockets": 0, "cores": 0, "threads": 0, "flags": []}
    blocks = [_pairs(block) for block in text.split("\n\n") if block.strip()]
    processors = [block for block in blocks if "processor" in block]
    first = processors[0] if processors else {}
    # A machine that tells no topology has as many cores as processors, in one socket.
    sockets = {p.get("physical id", "0") for p in processors}
    cores = {(p.get("physical id", "0"), p.get("core id", p["processor"])) for p in processors}
    return {
        "model": clean(first.get("model name")),
        "sockets": len(sockets),
        "cores": len(cores),
        "threads": len(processors),
        "flags": sorted(FLAGS & set(first.get("flags", "").split())),
    }


def _pairs(block: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in block.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _memory(tables: smbios.Tables | str, meminfo: Path) -> dict[str, Any]:
    """``bytes`` is what the kernel manages, ``dimms`` what the firmware says is fitted (a little more)."""
    devices = () if isinstance(tables, str) else tables.memory
    fitted = [device for device in devices if device.size]
    dimms = [
        {"size": device.size, "part": clean(device.part), "manufacturer": clean(device.manufacturer)}
        for device in fitted
    ]
    return {"bytes": _managed_memory(meminfo), "dimms": dimms[:MOST_DIMMS]}


def _managed_memory(meminfo: Path) -> int:
    try:
        pairs = _pairs(read_file(meminfo, "memory", limit=1 << 16).decode(errors="replace"))
        return int(pairs["MemTotal"].split()[0]) * 1024
    except (UsageError, KeyError, ValueError, IndexError):
        return 0


def read_disks() -> list[dict[str, Any]]:
    """Whole disks that udev knows and that have a device below them (no loop, RAM or mapped devices)."""
    disks = []
    for device in _devices("block", DEVTYPE="disk"):
        if device.parent is None or device.sys_name.startswith(("zram", "loop", "ram", "dm-", "md", "sr")):
            continue
        sectors = _attribute(device, "size")
        model = _attribute(device, "device/model") or device.properties.get("ID_MODEL")
        disks.append(
            {
                "model": clean(model),
                "bytes": int(sectors) * 512 if sectors and sectors.isdigit() else 0,
                "transport": _transport(device),
                "rotational": _attribute(device, "queue/rotational") == "1",
            }
        )
    return disks


def _transport(device: Any) -> str:
    if device.sys_name.startswith("nvme"):
        return "nvme"
    if device.sys_name.startswith("vd"):
        return "virtio"
    return clean(device.properties.get("ID_BUS") or device.parent.subsystem)


def read_nics() -> list[dict[str, Any]]:
    """Network cards: interfaces with a device below them. ``pci`` is its address, ``speed_mbit`` None while
    there is no link."""
    nics = []
    speeds = _speeds()
    for device in _devices("net"):
        parent = device.parent
        if parent is None:
            continue
        while parent.driver is None and parent.parent is not None:
            parent = parent.parent
        pci = device.find_parent("pci")
        nics.append(
            {
                "driver": clean(parent.driver),
                "speed_mbit": speeds.get(device.sys_name),
                "pci": clean(pci.sys_name if pci is not None else None),
            }
        )
    return nics


def _speeds() -> dict[str, int]:
    import psutil

    try:
        return {name: item.speed for name, item in psutil.net_if_stats().items() if item.speed > 0}
    except OSError:
        return {}


def _devices(subsystem: str, **match: str) -> list[Any]:
    """udev's devices, by name; none where there is no sysfs or no libudev."""
    try:
        import pyudev

        found = pyudev.Context().list_devices(subsystem=subsystem, **match)
        return sorted(found, key=lambda device: device.sys_name)
    except (ImportError, OSError):
        return []


def _attribute(device: Any, name: str) -> str | None:
    try:
        return bytes(device.attributes.get(name)).decode(errors="replace").strip()
    except (KeyError, OSError, TypeError):
        return None


def _tpm(identity: TpmIdentity | None) -> dict[str, str]:
    if identity is None:
        return {"manufacturer": ABSENT, "model": ABSENT, "firmware": ABSENT}
    return {
        "manufacturer": clean(identity.manufacturer),
        "model": clean(identity.model),
        "firmware": clean(identity.firmware),
    }


def _virtualization(tables: smbios.Tables | str, flags: list[str], sys: Path) -> str:
    """A hint, from the processor's flag and from who made the machine; it can be faked by who runs it."""
    try:
        return clean(read_file(sys / "hypervisor/type", "hypervisor", limit=64).decode(errors="replace"))
    except UsageError:
        pass
    makers = {
        "qemu": "qemu",
        "amazon ec2": "amazon",
        "google": "google",
        "vmware, inc.": "vmware",
        "microsoft corporation": "microsoft",
        "innotek gmbh": "virtualbox",
        "xen": "xen",
        "parallels": "parallels",
    }
    maker = ""
    if not isinstance(tables, str) and tables.system is not None:
        maker = (tables.system.manufacturer or "").strip().lower()
    if "hypervisor" in flags:
        return makers.get(maker, "unknown hypervisor")
    # QEMU can hide the flag; its name in the tables is still telling. Microsoft makes real machines too.
    return "qemu" if maker == "qemu" else "none"
