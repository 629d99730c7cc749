"""What the running system can see of memory encryption: "active", "absent" or "unknown".

It is a claim, not proof. "active": the kernel said so in this boot, or the processor's register does
(AMD TSME). "absent": the whole kernel log was read, says nothing of the kind, and the processor offers none.
Everything else is "unknown": transparent encryption may be on without the system seeing it.
"""

from __future__ import annotations

import os
from pathlib import Path

from nodeos.core.errors import NodeosError
from nodeos.core.site import MemoryPolicy

# arch/x86/mm/mem_encrypt.c and arch/x86/kernel/cpu/intel.c of the kernel, from 5.x to 6.12.
_ACTIVE = (b"Memory Encryption Features active:", b"x86/tme: enabled by BIOS")
_CAPABLE = frozenset({"sme", "sev", "sev_es", "sev_snp", "tme", "tdx_guest", "tdx_host_platform"})


def memory_encryption(
    *,
    cpuinfo: Path = Path("/proc/cpuinfo"),
    kernel_log: Path = Path("/dev/kmsg"),
    pci: Path = Path("/sys/bus/pci/devices"),
) -> str:
    """The claim. Whatever can't be read only makes it weaker."""
    lines, whole = _kernel_lines(kernel_log)
    statuses = _tsme_statuses(pci)
    if any(mark in line for line in lines for mark in _ACTIVE) or "1" in statuses:
        return "active"
    flags = _cpu_flags(cpuinfo)
    if whole and flags is not None and not flags & _CAPABLE and not statuses:
        return "absent"
    return "unknown"


def require(policy: MemoryPolicy, claim: str) -> None:
    """Raises NodeosError if the site wants encrypted memory and the system doesn't see that it is."""
    if policy is MemoryPolicy.REQUIRE and claim != "active":
        raise NodeosError(
            f"this site requires encrypted memory, and it is not seen to be encrypted here ({claim})",
            hint="turn on memory encryption in the firmware's setup (AMD: SME or TSME), then restart",
        )


def _kernel_lines(path: Path) -> tuple[list[bytes], bool]:
    """The records of /dev/kmsg, and whether its beginning is still there (record 0)."""
    lines: list[bytes] = []
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return lines, False
    try:
        while True:
            try:
                record = os.read(descriptor, 8192)
            except BrokenPipeError:  # records were overwritten while we read
                continue
            except OSError:  # EAGAIN: the end; anything else: no more than this
                break
            if not record:
                break
            lines += record.splitlines()
    finally:
        os.close(descriptor)
    whole = bool(lines) and lines[0].split(b",")[1:2] == [b"0"]
    return [line for line in lines if _is_kernels(line)], whole


def _is_kernels(record: bytes) -> bool:
    """True for facility 0: what user space writes into the log gets another one (printk's devkmsg_write)."""
    priority = record.split(b",", 1)[0]
    return priority.isdigit() and int(priority) >> 3 == 0


def _tsme_statuses(pci: Path) -> set[str]:
    found = set()
    for path in pci.glob("*/tsme_status"):
        try:
            found.add(path.read_text().strip())
        except OSError:
            found.add("unreadable")
    return found


def _cpu_flags(path: Path) -> frozenset[str] | None:
    try:
        with path.open() as file:
            for line in file:
                name, _, value = line.partition(":")
                if name.strip() == "flags":
                    return frozenset(value.split())
    except OSError:
        return None
    return None
