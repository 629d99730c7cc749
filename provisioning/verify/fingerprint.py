"""The fingerprint report: canonical CBOR from the node, made into typed values or refused with a path.

The report is a map with "version", "inventory" and "measurements". Further keys in the inventory are let
through (a newer agent may say more); a wrong type anywhere is refused. No floats, no tags.
"""

from __future__ import annotations

from dataclasses import dataclass

from nodeos.core import cbor
from nodeos.core.wire import Fields, ParseError, parse_text

MAX_BYTES = 8192
QUANTILES = 33


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    model: str
    sockets: int
    cores: int
    threads: int
    flags: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dimm:
    """``size`` in bytes."""

    size: int
    part: str
    manufacturer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """``size`` in bytes; ``transport`` as udev names it (nvme, sata, virtio, ...)."""

    model: str
    size: int
    transport: str
    rotational: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Nic:
    """``speed_mbit`` is None where the link is down or does not tell."""

    driver: str
    speed_mbit: int | None
    pci: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmChip:
    manufacturer: str
    model: str
    firmware: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """``memory_bytes`` is what the system can use, ``dimms`` what is plugged in."""

    manufacturer: str
    product: str
    cpu: Cpu
    memory_bytes: int
    dimms: tuple[Dimm, ...]
    disks: tuple[Disk, ...]
    nics: tuple[Nic, ...]
    tpm: TpmChip
    virtualization: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """33 quantiles (0/32 to 32/32) of ``count`` samples in ``unit``; or why there are none."""

    unit: str
    count: int
    minimum: int
    quantiles: tuple[int, ...]
    invalid: str | None

    @property
    def median(self) -> int:
        return self.quantiles[QUANTILES // 2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    inventory: Inventory
    measurements: dict[str, Measurement]


def parse_report(data: bytes) -> Report:
    """Raises ParseError with the path of the first wrong field."""
    fields = Fields(cbor.decode(data, "fingerprint", limit=MAX_BYTES), "fingerprint")
    fields.integer("version", low=1, high=1)
    report = Report(
        inventory=_inventory(fields.nested("inventory")),
        measurements={
            name: _measurement(item, f"fingerprint.measurements.{name}")
            for name, item in fields.nested("measurements").items()
        },
    )
    fields.done()
    return report


def _inventory(fields: Fields) -> Inventory:
    system, memory = fields.nested("system"), fields.nested("memory")
    cpu, tpm = fields.nested("cpu"), fields.nested("tpm")
    return Inventory(
        manufacturer=system.text("manufacturer", limit=256),
        product=system.text("product", limit=256),
        cpu=Cpu(
            model=cpu.text("model", limit=256),
            sockets=cpu.integer("sockets"),
            cores=cpu.integer("cores"),
            threads=cpu.integer("threads"),
            flags=cpu.list_of("flags", parse_text, limit=512),
        ),
        memory_bytes=memory.integer("bytes"),
        dimms=memory.list_of("dimms", _dimm, limit=128),
        disks=fields.list_of("disks", _disk, limit=128),
        nics=fields.list_of("nics", _nic, limit=128),
        tpm=TpmChip(
            manufacturer=tpm.text("manufacturer", limit=64),
            model=tpm.text("model", limit=64),
            firmware=tpm.text("firmware", limit=64),
        ),
        virtualization=fields.text("virtualization", limit=64),
    )


def _dimm(value: object, path: str) -> Dimm:
    fields = Fields(value, path)
    return Dimm(
        size=fields.integer("size"), part=fields.text("part"), manufacturer=fields.text("manufacturer")
    )


def _disk(value: object, path: str) -> Disk:
    fields = Fields(value, path)
    return Disk(
        model=fields.text("model"),
        size=fields.integer("bytes"),
        transport=fields.text("transport"),
        rotational=fields.flag("rotational"),
    )


def _nic(value: object, path: str) -> Nic:
    fields = Fields(value, path)
    return Nic(
        driver=fields.text("driver"),
        speed_mbit=fields.integer("speed_mbit") if fields.has("speed_mbit") else None,
        pci=fields.text("pci"),
    )


def _measurement(value: object, path: str) -> Measurement:
    fields = Fields(value, path)
    unit = fields.text("unit", limit=32) if fields.has("unit") else ""
    count = fields.integer("n") if fields.has("n") else 0
    if fields.has("invalid"):
        reason = fields.text("invalid", limit=256)
        return Measurement(unit=unit, count=count, minimum=0, quantiles=(), invalid=reason)
    minimum = fields.integer("min")
    quantiles = fields.list_of("quantiles", _quantile, limit=QUANTILES)
    fields.done()
    if len(quantiles) != QUANTILES or list(quantiles) != sorted(quantiles) or not unit or not count:
        raise ParseError(f"{path}: needs a unit, samples, and {QUANTILES} quantiles in rising order")
    if quantiles[0] < minimum:
        raise ParseError(f"{path}.min: {minimum} is larger than the lowest quantile {quantiles[0]}")
    return Measurement(unit=unit, count=count, minimum=minimum, quantiles=quantiles, invalid=None)


def _quantile(value: object, path: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise ParseError(f"{path}: expected a whole number from 0")
    return value
