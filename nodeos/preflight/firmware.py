"""UEFI's Secure Boot variables (UEFI Specification 2.10, chapters 3.3 and 32.4)."""

from __future__ import annotations

import os
from pathlib import Path

from nodeos.core.wire import ParseError
from nodeos.preflight.facts import Firmware

_GLOBAL = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
# EFI_CERT_X509_GUID, as it lies in memory.
CERT_X509 = bytes.fromhex("a159c0a5e494a74a87b5ab155c2bf072")
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


def parse_certificates(data: bytes) -> tuple[bytes, ...]:
    """The certificates (DER) of EFI_SIGNATURE_LISTs. Raises ParseError for anything else."""
    found = []
    while data:
        size, header, each = (int.from_bytes(data[at : at + 4], "little") for at in (16, 20, 24))
        if len(data) < 28 or not 28 + header <= size <= len(data) or each <= 16:
            raise ParseError("signature list: its sizes don't fit")
        body = data[28 + header : size]
        if data[:16] != CERT_X509 or len(body) % each:
            raise ParseError("signature list: not of X.509 certificates")
        found += [body[at + 16 : at + each] for at in range(0, len(body), each)]
        data = data[size:]
    return tuple(found)


def _switch(variables: Path, name: str) -> bool | None:
    """A variable of one byte, 0 or 1."""
    value = _read(variables, name)
    return {b"\0": False, b"\1": True}.get(value) if value is not None else None


def _platform_keys(variables: Path) -> tuple[bytes, ...] | None:
    data = _read(variables, "PK")
    if data is None:
        return None
    try:
        return parse_certificates(data)
    except ParseError:
        return None


def _read(variables: Path, name: str) -> bytes | None:
    """The value of a global variable, without the 4 bytes of attributes that efivarfs puts before it.

    Read with plain calls: files of efivarfs can't be seeked.
    """
    try:
        descriptor = os.open(variables / f"{name}-{_GLOBAL}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        data = b""
        while len(data) <= _LIMIT and (part := os.read(descriptor, _LIMIT)):
            data += part
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return data[4:] if 4 <= len(data) <= _LIMIT else None
