"""The variables in a virtual machine's firmware flash: EDK2's authenticated variable store.

Source: EDK2, MdeModulePkg/Include/Guid/VariableFormat.h. A firmware volume's header, the store's header, then the
variables, each at a multiple of 4. An update adds a new one and marks the one before as deleted.
"""

from __future__ import annotations

import struct
from pathlib import Path

_STORE = 28
_HEADER = struct.Struct("<HBBIQ16sIII16s")
_START = 0x55AA
# VAR_ADDED; with VAR_IN_DELETED_TRANSITION it holds until the new one is whole.
_HOLDS = (0x3F, 0x3E)


def read_variables(flash: Path) -> dict[str, bytes]:
    """The values by name. Of one that is being written either the old or the new one."""
    data = flash.read_bytes()
    place = int.from_bytes(data[48:50], "little") + _STORE
    found = {}
    while place + _HEADER.size <= len(data):
        start, state, _, _, _, _, _, name_size, size, _ = _HEADER.unpack_from(data, place)
        if start != _START:
            break
        name = place + _HEADER.size
        end = name + name_size + size
        if state in _HOLDS:
            found[data[name : name + name_size].decode("utf-16-le").rstrip("\0")] = data[end - size : end]
        place = -(-end // 4) * 4
    return found
