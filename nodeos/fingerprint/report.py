"""The hardware report: an inventory and measurements, as canonical CBOR (RFC 8949, 4.2.1), 8 KiB at most."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hsm.tpm.types import TpmIdentity
from nodeos.core import cbor
from nodeos.core.errors import NodeosError
from nodeos.core.wire import Fields, ParseError, parse_text
from nodeos.fingerprint.inventory import Sources, take_inventory
from nodeos.fingerprint.measure import quick_suite
from nodeos.fingerprint.sketch import Reading, parse_reading

VERSION = 1
LIMIT = 8192


def collect(
    *,
    machine: str | None,
    tpm: TpmIdentity | None,
    tpm_command: Callable[[], object] | None,
    sources: Sources | None = None,
) -> dict[str, Any]:
    """Take the inventory and run the quick suite. Reads only; takes up to 5 s.

    ``machine`` is the machine id (of the TPM's endorsement key), ``tpm_command`` one cheap TPM command.
    """
    inventory = take_inventory(machine=machine, tpm=tpm, sources=sources)
    readings: dict[str, Reading] = quick_suite(tpm_command)
    return {
        "version": VERSION,
        "inventory": inventory,
        "measurements": {name: reading.to_map() for name, reading in readings.items()},
    }


def encode(report: dict[str, Any]) -> bytes:
    """Canonical CBOR. Raises NodeosError if the report is larger than the protocol carries."""
    data = cbor.encode(report)
    if len(data) > LIMIT:
        raise NodeosError(
            f"the hardware report has {len(data)} bytes, at most {LIMIT} are allowed",
            hint="report the machine's make and model, with the output of `nodeos fingerprint collect`",
        )
    return data


def decode(data: bytes, what: str = "report") -> dict[str, Any]:
    """Read a report back, and check its whole shape. Raises ParseError with the path of the wrong field."""
    value = cbor.decode(data, what, limit=LIMIT)
    _check(value, what)
    return dict(value)


def _check(value: object, what: str) -> None:
    fields = Fields(value, what)
    fields.integer("version", low=VERSION, high=VERSION)
    inventory = fields.nested("inventory")
    _check_texts(inventory.nested("system"), ("manufacturer", "product"), digest="serial_hash")
    cpu = inventory.nested("cpu")
    for name in ("sockets", "cores", "threads"):
        cpu.integer(name, high=1 << 20)
    cpu.list_of("flags", parse_text, limit=64)
    _check_texts(cpu, ("model",))
    memory = inventory.nested("memory")
    memory.integer("bytes")
    memory.list_of("dimms", _check_dimm)
    memory.done()
    inventory.list_of("disks", _check_disk)
    inventory.list_of("nics", _check_nic)
    _check_texts(inventory.nested("tpm"), ("manufacturer", "model", "firmware"))
    inventory.text("virtualization", limit=64)
    inventory.done()
    measurements = fields.nested("measurements")
    fields.done()
    for name, item in measurements.items():
        parse_reading(item, f"{what}.measurements.{name}")


def _check_texts(fields: Fields, names: tuple[str, ...], digest: str | None = None) -> None:
    for name in names:
        fields.text(name, limit=64)
    if digest is not None and fields.has(digest):
        left = dict(fields.items())
        if not isinstance(left.pop(digest), bytes) or left:
            raise ParseError(f"{fields.path}: {digest} must be bytes, and the last field")
    fields.done()


def _check_dimm(item: object, path: str) -> None:
    fields = Fields(item, path)
    fields.integer("size")
    _check_texts(fields, ("part", "manufacturer"))


def _check_disk(item: object, path: str) -> None:
    fields = Fields(item, path)
    fields.integer("bytes")
    fields.flag("rotational")
    _check_texts(fields, ("model", "transport"))


def _check_nic(item: object, path: str) -> None:
    fields = Fields(item, path)
    if fields.has("speed_mbit"):
        fields.integer("speed_mbit")
    _check_texts(fields, ("driver", "pci"))
