"""The state directory: one SQLite database, and a directory of compiled modules.

Every message that changes something is one transaction, synchronised before anybody hears of it: after a
crash or a power cut the last acknowledged update is there and no half of a later one.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nodeos.core.errors import NodeosError, UsageError
from nodeos.core.principal import Principal
from replica.errors import ErrorCode, RejectCode
from replica.state import Canister, CanisterStatus, Change, Reject, Reply, RequestStatus, Space, pages_from

_VERSION = 1
_SCHEMA = """
CREATE TABLE chain (one INTEGER PRIMARY KEY CHECK (one = 1), subnet BLOB NOT NULL, time INTEGER NOT NULL,
    height INTEGER NOT NULL, next_canister INTEGER NOT NULL) STRICT;
CREATE TABLE modules (hash BLOB PRIMARY KEY, code BLOB NOT NULL) STRICT;
CREATE TABLE canisters (id BLOB PRIMARY KEY, controllers BLOB NOT NULL, status TEXT NOT NULL,
    cycles TEXT NOT NULL, version INTEGER NOT NULL, certified_data BLOB NOT NULL, module BLOB,
    heap_pages INTEGER NOT NULL, stable_pages INTEGER NOT NULL, globals BLOB NOT NULL) STRICT;
CREATE TABLE pages (canister BLOB NOT NULL, space INTEGER NOT NULL, number INTEGER NOT NULL,
    content BLOB NOT NULL, PRIMARY KEY (canister, space, number)) STRICT, WITHOUT ROWID;
CREATE TABLE requests (id BLOB PRIMARY KEY, sender BLOB NOT NULL, canister BLOB NOT NULL,
    expires INTEGER NOT NULL, reply BLOB, reject_code INTEGER, error_code TEXT, message TEXT) STRICT;
CREATE INDEX requests_expire ON requests (expires);
CREATE TABLE compiled (name TEXT PRIMARY KEY, sha256 BLOB NOT NULL) STRICT;
"""


class StoreError(NodeosError):
    """The state could not be read or written. What was to be written did not happen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainHead:
    """Where the chain stands: ``time`` in nanoseconds since 1970, ``height`` counts commits."""

    time: int
    height: int
    next_canister: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """What one message leaves: written whole or not at all."""

    head: ChainHead
    change: Change | None = None
    request: RequestStatus | None = None


class Store:
    """The open state directory. One process at a time; safe to use from several threads."""

    def __init__(self, directory: Path, subnet: bytes) -> None:
        """Open the directory, making it if need be. ``subnet`` is the public key of its chain.

        Raises UsageError if the state belongs to another chain or another process holds it.
        """
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.directory = directory
        self._lock = threading.Lock()
        self._file = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._database = sqlite3.connect(
                directory / "replica.sqlite", isolation_level=None, check_same_thread=False
            )
        except OSError as error:
            os.close(self._file)
            raise UsageError(
                f"{directory}: another replica runs on this state", hint="end it first"
            ) from error
        except sqlite3.Error as error:
            os.close(self._file)
            raise StoreError(f"{directory}: {error}", hint="check the disk") from error
        try:
            self._prepare(subnet)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the database; the last commit stays."""
        self._database.close()
        os.close(self._file)

    def _prepare(self, subnet: bytes) -> None:
        try:
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            version = self._database.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                self._database.executescript(
                    f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;"
                )
            elif version != _VERSION:
                raise UsageError(
                    f"{self.directory}: state of version {version}, this replica reads {_VERSION}"
                )
            row = self._database.execute("SELECT subnet FROM chain").fetchone()
            if row is None:
                self._database.execute("INSERT INTO chain VALUES (1, ?, 0, 0, 0)", (subnet,))
            elif row[0] != subnet:
                raise UsageError(
                    f"{self.directory}: the state belongs to another chain key",
                    hint="give the committee key that made it, or another state directory",
                )
        except sqlite3.Error as error:
            raise StoreError(f"{self.directory}: {error}", hint="restore the state from a backup") from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._database.execute("BEGIN IMMEDIATE")
                try:
                    yield self._database
                    self._database.execute("COMMIT")
                except BaseException:
                    if self._database.in_transaction:
                        self._database.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise StoreError(f"{self.directory}: {error}", hint="is the disk full?") from error

    # --- reading, at start ---

    def head(self) -> ChainHead:
        with self._lock:
            row = self._database.execute("SELECT time, height, next_canister FROM chain").fetchone()
        return ChainHead(time=row[0], height=row[1], next_canister=row[2])

    def module(self, module_hash: bytes) -> bytes:
        """The code as it was installed."""
        with self._lock:
            row = self._database.execute("SELECT code FROM modules WHERE hash = ?", (module_hash,)).fetchone()
        if row is None:
            raise StoreError(f"{self.directory}: module {module_hash.hex()} is missing")
        return bytes(row[0])

    def canisters(self) -> list[tuple[Canister, bytes | None]]:
        """All canisters without their code, and the hash of that."""
        with self._lock:
            rows = self._database.execute("SELECT * FROM canisters").fetchall()
        return [self._canister(row) for row in rows]

    def _canister(self, row: tuple[object, ...]) -> tuple[Canister, bytes | None]:
        raw, controllers, status, cycles, version, certified, module, heap, stable, bits = row
        if not (
            isinstance(raw, bytes)
            and isinstance(controllers, bytes)
            and isinstance(version, int)
            and isinstance(certified, bytes)
            and isinstance(heap, int)
            and isinstance(stable, int)
            and isinstance(bits, bytes)
        ):
            raise StoreError(f"{self.directory}: a canister that can't be read")
        canister = Canister(
            id=Principal(raw),
            controllers=_unpack_principals(controllers),
            status=CanisterStatus(str(status)),
            cycles=int(str(cycles)),
            version=version,
            certified_data=certified,
            heap=pages_from(heap, self._pages(raw, Space.HEAP)),
            stable=pages_from(stable, self._pages(raw, Space.STABLE)),
            globals=tuple(int.from_bytes(bits[i : i + 8], "little") for i in range(0, len(bits), 8)),
        )
        return canister, module if isinstance(module, bytes) else None

    def _pages(self, canister: bytes, space: Space) -> Iterator[tuple[int, bytes]]:
        with self._lock:
            rows = self._database.execute(
                "SELECT number, content FROM pages WHERE canister = ? AND space = ?", (canister, int(space))
            ).fetchall()
        yield from rows

    def requests(self) -> list[RequestStatus]:
        with self._lock:
            rows = self._database.execute("SELECT * FROM requests").fetchall()
        return [_request(*row) for row in rows]

    # --- writing ---

    def commit(self, commit: Commit) -> None:
        """Write everything that a message changed. Raises StoreError; then nothing was written."""
        head = commit.head
        with self._transaction() as database:
            if commit.change is not None:
                _write_change(database, commit.change)
            if commit.request is not None:
                _write_request(database, commit.request)
            database.execute("DELETE FROM requests WHERE expires < ?", (head.time,))
            database.execute(
                "UPDATE chain SET time = ?, height = ?, next_canister = ?",
                (head.time, head.height, head.next_canister),
            )

    # --- compiled code ---

    def compiled(self, name: str) -> bytes | None:
        """The SHA-256 of a compiled module in the cache."""
        with self._lock:
            row = self._database.execute("SELECT sha256 FROM compiled WHERE name = ?", (name,)).fetchone()
        return None if row is None else bytes(row[0])

    def keep_compiled(self, names: set[str]) -> None:
        """Forget all compiled modules but these."""
        with self._transaction() as database:
            rows = database.execute("SELECT name FROM compiled").fetchall()
            gone = [(name,) for (name,) in rows if name not in names]
            database.executemany("DELETE FROM compiled WHERE name = ?", gone)

    def record_compiled(self, name: str, digest: bytes) -> None:
        with self._transaction() as database:
            database.execute("INSERT OR REPLACE INTO compiled VALUES (?, ?)", (name, digest))


def _write_change(database: sqlite3.Connection, change: Change) -> None:
    canister = change.after
    code = canister.code
    if change.module is not None and code is not None:
        database.execute("INSERT OR IGNORE INTO modules VALUES (?, ?)", (code.module_hash, change.module))
    for space in change.fresh:
        database.execute("DELETE FROM pages WHERE canister = ? AND space = ?", (canister.id.raw, int(space)))
    for space in Space:
        database.executemany(
            "INSERT OR REPLACE INTO pages VALUES (?, ?, ?, ?)",
            ((canister.id.raw, int(space), number, content) for number, content in change.dirty(space)),
        )
    database.execute(
        "INSERT OR REPLACE INTO canisters VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            canister.id.raw,
            b"".join(bytes((len(p.raw),)) + p.raw for p in canister.controllers),
            str(canister.status),
            str(canister.cycles),
            canister.version,
            canister.certified_data,
            None if code is None else code.module_hash,
            len(canister.heap),
            len(canister.stable),
            b"".join(bits.to_bytes(8, "little") for bits in canister.globals),
        ),
    )
    if change.module is not None:
        used = "SELECT module FROM canisters WHERE module NOT NULL"
        database.execute(f"DELETE FROM modules WHERE hash NOT IN ({used})")  # noqa: S608 — constant text


def _write_request(database: sqlite3.Connection, request: RequestStatus) -> None:
    outcome = request.outcome
    parts: tuple[object, ...] = (None, None, None, None)
    match outcome:
        case Reply():
            parts = (outcome.data, None, None, None)
        case Reject():
            parts = (None, int(outcome.code), str(outcome.error_code), outcome.message)
    database.execute(
        "INSERT INTO requests VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (request.id, request.sender.raw, request.canister.raw, request.expires, *parts),
    )


def _request(  # noqa: PLR0917 — the columns of a row
    raw: bytes,
    sender: bytes,
    canister: bytes,
    expires: int,
    reply: bytes | None,
    code: int,
    error_code: str,
    message: str,
) -> RequestStatus:
    outcome: Reply | Reject
    if reply is not None:
        outcome = Reply(data=reply)
    else:
        outcome = Reject(code=RejectCode(code), error_code=ErrorCode(error_code), message=message)
    return RequestStatus(
        id=raw, sender=Principal(sender), canister=Principal(canister), expires=expires, outcome=outcome
    )


def _unpack_principals(data: bytes) -> tuple[Principal, ...]:
    principals, at = [], 0
    while at < len(data):
        size = data[at]
        principals.append(Principal(data[at + 1 : at + 1 + size]))
        at += 1 + size
    return tuple(principals)
