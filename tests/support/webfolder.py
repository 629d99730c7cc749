"""A folder on a plain web server, as a release is offered: GET, and Range from one byte on."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(slots=True)
class Folder:
    """``asked`` are the requests: file name and first byte. ``limit`` ends every answer after so many bytes."""

    directory: Path
    port: int = 0
    ranges: bool = True
    limit: int | None = None
    asked: list[tuple[str, int]] = field(default_factory=list)


@contextmanager
def serve(directory: Path, *, ranges: bool = True, limit: int | None = None) -> Iterator[Folder]:
    """Serve the files of ``directory`` below /release/ on a free port of the loopback."""
    folder = Folder(directory, ranges=ranges, limit=limit)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.close_connection = True
            top, _, name = self.path.removeprefix("/").partition("/")
            path = folder.directory / name
            if top != "release" or not path.is_file():
                self.send_error(404)
                return
            head = self.headers.get("Range", "")
            start = int(head.removeprefix("bytes=").rstrip("-")) if head and folder.ranges else 0
            folder.asked.append((name, start))
            size = path.stat().st_size
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
            self.send_header("Content-Length", str(size - start))
            self.end_headers()
            left = size - start if folder.limit is None else min(folder.limit, size - start)
            with path.open("rb") as file:
                file.seek(start)
                while left > 0 and (data := file.read(min(1 << 18, left))):
                    self.wfile.write(data)
                    left -= len(data)

        def log_message(self, format: str, *args: object) -> None:
            """Tests are quiet."""

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that breaks off is what some tests are about."""

    with Server(("127.0.0.1", 0), Handler) as server:
        folder.port = int(server.server_address[1])
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield folder
        finally:
            server.shutdown()
            thread.join()
