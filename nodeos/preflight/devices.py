"""What only a device itself can tell: a port's link modes, a disk's health. Each is an ioctl that only reads."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from typing import Protocol

from nodeos.preflight.facts import Health

# linux/sockios.h, linux/ethtool.h
_SIOCETHTOOL = 0x8946
_GLINKSETTINGS = 0x4C
# struct ethtool_link_settings: cmd, speed, 7 bytes, the number of words of each mask, 4 bytes, 7 reserved words.
_LINK_FORMAT = "=IIBBBBBBBbBBBB7I"
_LINK_HEAD = 48
_NWORDS = 9
_MASKS = 21
_MOST_WORDS = 16
# The greatest speed (Mbit/s) of ranges of ETHTOOL_LINK_MODE_* bits; those that are missing are no speeds.
_SPEEDS = (
    ((0, 1), 10), ((2, 3), 100), ((4, 5), 1000), ((12, 12), 10_000), ((15, 15), 2500), ((17, 17), 1000),
    ((18, 20), 10_000), ((21, 22), 20_000), ((23, 26), 40_000), ((27, 30), 56_000), ((31, 33), 25_000),
    ((34, 35), 50_000), ((36, 39), 100_000), ((40, 40), 50_000), ((41, 41), 1000), ((42, 46), 10_000),
    ((47, 47), 2500), ((48, 48), 5000), ((52, 56), 50_000), ((57, 61), 100_000), ((62, 66), 200_000),
    ((69, 73), 400_000), ((75, 79), 100_000), ((80, 84), 200_000), ((85, 89), 400_000),
)  # fmt: skip
# linux/nvme_ioctl.h: NVME_IOCTL_ADMIN_CMD, _IOWR('N', 0x41, struct nvme_passthru_cmd)
_NVME_ADMIN = 0xC0484E41
_GET_LOG_PAGE = 0x02
_SMART_LOG = 0x02
_SMART_BYTES = 512


class Devices(Protocol):
    """Asks the devices of a machine. None: no answer."""

    def port_speed(self, name: str) -> int | None:
        """The greatest speed in Mbit/s that a port supports, with a link or without."""

    def disk_health(self, controller: str) -> Health | None:
        """The health of an NVMe controller such as "nvme0"."""


class KernelDevices:
    """The devices of this machine. Health needs root."""

    def port_speed(self, name: str) -> int | None:
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
                # The kernel answers the first question with how many words it has, as a negative number.
                words = -_ask_link(handle, name, 0)[_NWORDS]
                if not 0 < words <= _MOST_WORDS:
                    return None
                answer = _ask_link(handle, name, words)
        except OSError:
            return None
        masks = answer[_MASKS : _MASKS + words]
        return fastest(sum(word << 32 * i for i, word in enumerate(masks)))

    def disk_health(self, controller: str) -> Health | None:
        log = ctypes.create_string_buffer(_SMART_BYTES)
        # opcode, flags, -, nsid (all), cdw2, cdw3, metadata, address, lengths, cdw10 to 15, timeout in ms, result
        command = struct.pack(
            "<BBHIIIQQIIIIIIIIII", _GET_LOG_PAGE, 0, 0, 0xFFFFFFFF, 0, 0, 0, ctypes.addressof(log), 0,
            _SMART_BYTES, (_SMART_BYTES // 4 - 1) << 16 | _SMART_LOG, 0, 0, 0, 0, 0, 5000, 0,
        )  # fmt: skip
        try:
            descriptor = os.open(f"/dev/{controller}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            status = fcntl.ioctl(descriptor, _NVME_ADMIN, bytearray(command))
        except OSError:
            return None
        finally:
            os.close(descriptor)
        return parse_health(log.raw) if status == 0 else None


def _ask_link(handle: socket.socket, name: str, words: int) -> tuple[int, ...]:
    """One ETHTOOL_GLINKSETTINGS: the fields of struct ethtool_link_settings, then its masks, supported first."""
    data = bytearray(_LINK_HEAD + 3 * 4 * _MOST_WORDS)
    struct.pack_into("=I", data, 0, _GLINKSETTINGS)
    struct.pack_into("=b", data, 15, words)
    buffer = (ctypes.c_char * len(data)).from_buffer(data)
    request = struct.pack("16sP16x", name.encode()[:15], ctypes.addressof(buffer))
    fcntl.ioctl(handle, _SIOCETHTOOL, request)
    return struct.unpack(f"{_LINK_FORMAT}{3 * _MOST_WORDS}I", data)


def fastest(modes: int) -> int | None:
    """The greatest speed of a mask of link modes; None if no known mode is in it."""
    return max(
        (speed for (low, high), speed in _SPEEDS if modes >> low & ((1 << high - low + 1) - 1)), default=None
    )


def parse_health(log: bytes) -> Health | None:
    """The SMART log page (02h) of a controller; None for one that is empty, as some bridges give."""
    if len(log) != _SMART_BYTES or not any(log):
        return None
    return Health(
        critical_warning=log[0],
        spare=log[3],
        spare_threshold=log[4],
        used=log[5],
        media_errors=int.from_bytes(log[160:176], "little"),
    )
