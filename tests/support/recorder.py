"""A listener on the TPM's bus: a proxy in front of swtpm that keeps every byte of both directions."""

from __future__ import annotations

import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class Recording:
    """All bytes that were seen, as one text per direction and connection."""

    def __init__(self) -> None:
        self._parts: list[bytearray] = []

    def stream(self) -> bytearray:
        self._parts.append(bytearray())
        return self._parts[-1]

    def saw(self, data: bytes) -> bool:
        return any(data in bytes(part) for part in self._parts)


@contextmanager
def recorded(tcti: str) -> Iterator[tuple[str, Recording]]:
    """Stand in front of ``swtpm:path=…``; gives the TCTI to use instead and what is heard there."""
    target = tcti.removeprefix("swtpm:path=")
    recording = Recording()
    with tempfile.TemporaryDirectory(prefix="bus-") as directory:
        base = str(Path(directory) / "tpm")
        listeners = []
        for end in ("", ".ctrl"):
            listening = socket.socket(socket.AF_UNIX)
            listening.bind(base + end)
            listening.listen(8)
            listeners.append(listening)
            threading.Thread(target=_accept, args=(listening, target + end, recording), daemon=True).start()
        try:
            yield f"swtpm:path={base}", recording
        finally:
            for listening in listeners:
                with suppress(OSError):
                    listening.shutdown(socket.SHUT_RDWR)
                listening.close()


def _accept(listening: socket.socket, target: str, recording: Recording) -> None:
    while True:
        try:
            near, _ = listening.accept()
        except OSError:
            return
        far = socket.socket(socket.AF_UNIX)
        far.connect(target)
        pumps = [
            threading.Thread(target=_pump, args=(one, other, recording.stream()), daemon=True)
            for one, other in ((near, far), (far, near))
        ]
        for pump in pumps:
            pump.start()
        threading.Thread(target=_finish, args=(pumps, near, far), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket, heard: bytearray) -> None:
    with suppress(OSError):
        while data := source.recv(4096):
            heard += data
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_RDWR)


def _finish(pumps: list[threading.Thread], near: socket.socket, far: socket.socket) -> None:
    for pump in pumps:
        pump.join()
    near.close()
    far.close()
