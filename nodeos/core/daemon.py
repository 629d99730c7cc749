"""What every daemon of this project needs: where to listen, and telling systemd how it stands."""

from __future__ import annotations

import os
import socket
import sys

from nodeos.core.errors import UsageError


def parse_listen(text: str) -> tuple[str, int]:
    """HOST:PORT, with an IPv6 address in brackets; port 0 takes any. Raises UsageError."""
    host, _, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    name = host[1:-1] if bracketed else host
    digits = port.isascii() and port.isdigit() and len(port) <= 5
    if not name or (":" in name) != bracketed or not digits or int(port) > 65535:
        raise UsageError(
            f"--listen {text}: expected HOST:PORT", hint="for example 0.0.0.0:8080, or [::]:8080 for IPv6"
        )
    return name, int(port)


def notify(message: str) -> None:
    """Send one sd_notify(3) datagram, if systemd asked for it. A supervisor that is gone is no error."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        try:
            channel.sendto(message.encode(), address)
        except OSError as error:
            print(f"nodeos: systemd can't be told {message!r}: {error.strerror}", file=sys.stderr)  # noqa: T201
