"""UEFI's Secure Boot variables (UEFI Specification 2.10, chapters 3.3 and 32.4)."""

from __future__ import annotations

from pathlib import Path

from nodeos.core.efilists import X509, certificates, parse_lists
from nodeos.core.efivarfs import read_variable
from nodeos.core.errors import UsageError
from nodeos.preflight.facts import Firmware

_GLOBAL = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
_LIMIT = 1 << 16


def read_firmware(directory: Path) -> Firmware:
    """``directory`` is /sys/firmware/efi, which is there only if the system was started by UEFI."""
    if not directory.is_dir():
        return Firmware(uefi=False, secure_boot=None, setup_mode=None, platform_keys=None)
    variables = directory / "efivars"
    setup_mode = _switch(variables, "SetupMode")
    return Firmware(
        uefi=True,
        secure_boot=_switch(variables, "SecureBoot"),
        setup_mode=setup_mode,
        platform_keys=_platform_keys(variables),
    )


def _switch(variables: Path, name: str) -> bool | None:
    """A variable of one byte, 0 or 1."""
    value = _read(variables, name)
    return {b"\0": False, b"\1": True}.get(value) if value is not None else None


def _platform_keys(variables: Path) -> tuple[bytes, ...] | None:
    data = _read(variables, "PK")
    if data is None:
        return None
    try:
        entries = parse_lists(data)
    except UsageError:
        return None
    return certificates(entries) if all(entry.kind == X509 for entry in entries) else None


def _read(variables: Path, name: str) -> bytes | None:
    """The value of a global variable; None if it can't be read, or is larger than any of them is."""
    try:
        value = read_variable(variables, name, _GLOBAL, limit=_LIMIT)
    except OSError:
        return None
    return value if value is not None and len(value) + 4 <= _LIMIT else None
