"""Writes variables into a firmware's variable store that is not in use, as a set-up menu would.

Sources: EDK2 MdeModulePkg/Include/Guid/VariableFormat.h (VARIABLE_STORE_HEADER, AUTHENTICATED_VARIABLE_HEADER);
UEFI 2.10, sections 3.1.3 (EFI_LOAD_OPTION), 3.3 (BootNext), 10.3.4.23 (URI device path).
"""

from __future__ import annotations

import struct
import uuid
from pathlib import Path

from nodeos.core.efilists import EFI_GLOBAL

_STORE = uuid.UUID("aaf32c78-947b-439a-a180-2e144ec37792").bytes_le
_HEADER = struct.Struct("<HBBIQ16sIII16s")
_START, _ADDED = 0x55AA, 0x3F
_KEPT = 7  # non-volatile, boot services, run time


def add_variable(store: Path, name: str, data: bytes, *, vendor: uuid.UUID = EFI_GLOBAL) -> None:
    """Append a variable that is not there yet."""
    image = bytearray(store.read_bytes())
    at = image.index(_STORE) + 28
    while image[at : at + 2] == struct.pack("<H", _START):
        *_, name_size, data_size, _ = _HEADER.unpack_from(image, at)
        at += _HEADER.size + name_size + data_size
        at += -at % 4
    text = name.encode("utf-16-le") + b"\0\0"
    head = _HEADER.pack(
        _START, _ADDED, 0, _KEPT, 0, bytes(16), 0, len(text), len(data), vendor.bytes_le
    )  # fmt: skip
    entry = head + text + data
    assert set(image[at : at + len(entry)]) == {0xFF}, "the store is full, or no store"
    image[at : at + len(entry)] = entry
    store.write_bytes(image)


def boot_from_url(store: Path, url: str) -> None:
    """Have the next start fetch a boot image over HTTP."""
    uri = url.encode()
    path = struct.pack("<BBH", 3, 24, 4 + len(uri)) + uri + b"\x7f\xff\x04\x00"
    option = struct.pack("<IH", 1, len(path)) + "HTTP".encode("utf-16-le") + b"\0\0" + path
    add_variable(store, "Boot0100", option)
    add_variable(store, "BootNext", struct.pack("<H", 0x100))
