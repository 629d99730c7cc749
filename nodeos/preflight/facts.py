"""What was found on a machine. None always means: it could not be found out, and never counts as a yes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """The processors, as the kernel tells them; zeros where it tells nothing."""

    model: str
    sockets: int
    threads: int
    flags: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes of memory: ``fitted`` by the firmware's tables, ``managed`` by the kernel (a little less)."""

    fitted: int | None
    managed: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """NVMe's SMART log (NVM Express Base Specification 2.0, figure 207). Spares and use in per cent."""

    critical_warning: int
    spare: int
    spare_threshold: int
    used: int
    media_errors: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A whole disk that can't be pulled out. ``pci`` are the PCI functions on the way to it, outermost first."""

    name: str
    model: str
    size: int
    transport: str
    pci: tuple[str, ...]
    health: Health | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """A network port with hardware below it. ``speed_mbit`` is the most that it can do."""

    name: str
    driver: str | None
    speed_mbit: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Firmware:
    """``platform_keys`` are the certificates in PK (DER)."""

    uefi: bool
    secure_boot: bool | None
    setup_mode: bool | None
    platform_keys: tuple[bytes, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything that is checked. ``raid_controllers`` are PCI functions; ``tpm_major`` is 0 without a TPM."""

    cpu: Cpu
    memory: Memory
    disks: tuple[Disk, ...]
    raid_controllers: tuple[str, ...] | None
    tpm_major: int | None
    firmware: Firmware
    ports: tuple[Port, ...]
