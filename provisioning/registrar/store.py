"""The one place that speaks SQL. SQLite in WAL mode with full synchronisation: what was committed stays.

A ``Store`` hands out transactions: ``write()`` holds the write lock from its start, so what it read is true
until it commits; ``read()`` sees one moment. Rows come and go as the frozen types of ``rows``.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from nodeos.core.errors import UnreachableError, UsageError
from nodeos.core.protocol import EnrolmentState
from nodeos.core.wire import canonical_json
from provisioning.registrar.rows import (
    Attestation,
    AuditRow,
    CenterRow,
    Enrolment,
    InstallationRow,
    NodeRow,
    OfferRow,
    RecoveryRow,
    ReleaseRow,
    RevocationRow,
    Session,
    TrustRow,
)
from provisioning.registrar.schema import migrate

BUSY_SECONDS = 5
# Evidence bodies are large: beside the approved one, so many of the latest are kept for each machine.
KEPT_EVIDENCE = 8


class BusyError(UnreachableError):
    """The database is locked or its disk is full: nothing was changed, asking again later may help."""


class Store:
    """Opens one connection for each thread. ``close()`` ends them all."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        if not create and not path.exists():
            raise UsageError(f"{path} is not there", hint="make it with `nodeos registrar init`")
        self._path = path
        self._local = threading.local()
        self._lock = threading.Lock()
        self._all: list[sqlite3.Connection] = []
        if create:
            path.touch(mode=0o600, exist_ok=True)
        migrate(self._connection())

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = sqlite3.connect(
                self._path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            self._local.connection = connection
            with self._lock:
                self._all.append(connection)
        return connection

    def close(self) -> None:
        with self._lock:
            for connection in self._all:
                connection.close()
            self._all.clear()
        self._local = threading.local()

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[Transaction]:
        try:
            connection = self._connection()
            connection.execute(begin)
            try:
                yield Transaction(connection)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        except sqlite3.OperationalError as error:
            raise BusyError(
                f"the registrar's database is not available: {error}", hint="ask again in a few seconds"
            ) from error

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """All or nothing, one at a time. Raises BusyError if the lock could not be had."""
        with self._transaction("BEGIN IMMEDIATE") as transaction:
            yield transaction

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """One consistent moment; never waits for a writer."""
        with self._transaction("BEGIN") as transaction:
            yield transaction


class Transaction:
    """The questions and changes that the service has."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    def _one(self, sql: str, *values: Any) -> sqlite3.Row | None:
        row: sqlite3.Row | None = self._db.execute(sql, values).fetchone()
        return row

    # Trust, releases, data centres: the administrator's tables.

    def add_trust(self, row: TrustRow) -> bool:
        """False if it was there already."""
        done = self._db.execute(
            "INSERT OR IGNORE INTO trust (sha256, kind, der, added_at) VALUES (?, ?, ?, ?)",
            (row.sha256, row.kind, row.der, row.added_at),
        )
        return done.rowcount == 1

    def trust(self) -> list[TrustRow]:
        rows = self._db.execute("SELECT sha256, kind, der, added_at FROM trust ORDER BY kind, sha256")
        return [TrustRow(**row) for row in rows]

    def add_revocation_list(self, row: RevocationRow) -> bool:
        """False if it was there already."""
        done = self._db.execute(
            "INSERT OR IGNORE INTO revocation_list (sha256, der, added_at) VALUES (?, ?, ?)",
            (row.sha256, row.der, row.added_at),
        )
        return done.rowcount == 1

    def revocation_lists(self) -> list[RevocationRow]:
        rows = self._db.execute("SELECT sha256, der, added_at FROM revocation_list ORDER BY added_at, sha256")
        return [RevocationRow(**row) for row in rows]

    def add_release(self, row: ReleaseRow) -> None:
        self._db.execute(
            "INSERT INTO release (version, document, added_at, withdrawn_at) VALUES (?, ?, ?, ?)",
            (row.version, row.document, row.added_at, row.withdrawn_at),
        )

    def withdraw_release(self, version: str, at: int) -> None:
        self._db.execute("UPDATE release SET withdrawn_at = ? WHERE version = ?", (at, version))

    def releases(self) -> list[ReleaseRow]:
        rows = self._db.execute(
            "SELECT version, document, added_at, withdrawn_at FROM release ORDER BY added_at, version"
        )
        return [ReleaseRow(**row) for row in rows]

    def release(self, version: str) -> ReleaseRow | None:
        row = self._one("SELECT * FROM release WHERE version = ?", version)
        return ReleaseRow(**row) if row else None

    def add_offer(self, data_center: str, version: str, url: str, *, rollback: bool, at: int) -> OfferRow:
        """In place of the one that the data centre has."""
        self.end_offer(data_center, at)
        row = self._one(
            "INSERT INTO offer (data_center, version, url, rollback, at) VALUES (?, ?, ?, ?, ?) RETURNING *",
            data_center, version, url, rollback, at,
        )  # fmt: skip
        if row is None:
            raise ValueError("an insert returns its row")
        return _offer(row)

    def end_offer(self, data_center: str, at: int) -> None:
        self._db.execute(
            "UPDATE offer SET over_at = ? WHERE data_center = ? AND over_at IS NULL", (at, data_center)
        )

    def offer(self, data_center: str) -> OfferRow | None:
        """The one that is not over, of a release that is still accepted."""
        row = self._one(
            "SELECT offer.* FROM offer JOIN release USING (version)"
            " WHERE data_center = ? AND over_at IS NULL AND withdrawn_at IS NULL",
            data_center,
        )
        return None if row is None else _offer(row)

    def add_center(self, row: CenterRow) -> None:
        self._db.execute(
            "INSERT INTO data_center (name, operator, operator_key, profile, node_reward_type, site_key,"
            " added_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                row.name,
                row.operator,
                row.operator_key,
                row.profile,
                row.node_reward_type,
                row.site_key,
                row.added_at,
            ),
        )

    def center(self, name: str) -> CenterRow | None:
        row = self._one("SELECT * FROM data_center WHERE name = ?", name)
        return CenterRow(**row) if row else None

    def centers(self, operator: str | None = None) -> list[CenterRow]:
        rows = self._db.execute(
            "SELECT * FROM data_center WHERE ?1 IS NULL OR operator = ?1 ORDER BY name", (operator,)
        )
        return [CenterRow(**row) for row in rows]

    def clients(self, center: str) -> list[str]:
        rows = self._db.execute("SELECT prefix FROM client WHERE data_center = ? ORDER BY prefix", (center,))
        return [str(row["prefix"]) for row in rows]

    def put_clients(self, center: str, prefixes: list[str]) -> None:
        """In place of those that were there."""
        self._db.execute("DELETE FROM client WHERE data_center = ?", (center,))
        self._db.executemany(
            "INSERT INTO client (data_center, prefix) VALUES (?, ?)",
            [(center, prefix) for prefix in prefixes],
        )

    # Enrolments and their sessions.

    def enrolment(self, machine: str) -> Enrolment | None:
        row = self._one("SELECT * FROM enrolment WHERE machine = ?", machine)
        return _enrolment(row) if row else None

    def machine_of_key(self, ek_key: str) -> str | None:
        row = self._one("SELECT machine FROM enrolment WHERE ek_key = ?", ek_key)
        return None if row is None else str(row["machine"])

    def enrolments(self, centers: list[str], state: str | None, after: str, limit: int) -> list[Enrolment]:
        rows = self._db.execute(
            "SELECT * FROM enrolment WHERE data_center IN (SELECT value FROM json_each(?))"
            " AND (?2 IS NULL OR state = ?2) AND machine > ? ORDER BY machine LIMIT ?",
            (json.dumps(centers), state, after, limit),
        )
        return [_enrolment(row) for row in rows]

    def count_enrolments(self, center: str, state: str) -> int:
        row = self._one("SELECT count(*) FROM enrolment WHERE data_center = ? AND state = ?", center, state)
        return int(row[0]) if row else 0

    def put_enrolment(self, row: Enrolment) -> None:
        """Insert or replace; the revision grows with each change."""
        self._db.execute(
            "INSERT INTO enrolment (machine, data_center, state, revision, ek_key, tpm, ak_public, evidence,"
            " findings, first_at, changed_at) VALUES (?, ?, ?, 1, ?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (machine) DO UPDATE SET"
            " data_center = excluded.data_center, state = excluded.state, revision = revision + 1,"
            " ek_key = excluded.ek_key, tpm = excluded.tpm,"
            " ak_public = excluded.ak_public, evidence = excluded.evidence,"
            " findings = excluded.findings, changed_at = excluded.changed_at",
            (
                row.machine,
                row.data_center,
                row.state,
                row.ek_key,
                _json(row.tpm),
                row.ak_public,
                row.evidence,
                _json(row.findings),
                row.first_at,
                row.changed_at,
            ),
        )

    def add_session(self, row: Session) -> None:
        self._db.execute(
            "INSERT INTO session (id, machine, secret, nonce, request, expires_at) VALUES (?, ?, ?, ?, ?, ?)",
            (row.id, row.machine, row.secret, row.nonce, row.request, row.expires_at),
        )

    def session(self, session: str) -> Session | None:
        row = self._one("SELECT * FROM session WHERE id = ?", session)
        if row is None:
            return None
        refused = None if row["refused"] is None else json.loads(row["refused"])
        return Session(**{**row, "refused": refused})

    def count_open_sessions(self, machine: str, at: int) -> int:
        row = self._one(
            "SELECT count(*) FROM session WHERE machine = ? AND evidence IS NULL AND expires_at > ?",
            machine,
            at,
        )
        return int(row[0]) if row else 0

    def use_session(
        self, session: str, evidence: str, refused: list[dict[str, str]] | None, expires_at: int
    ) -> None:
        """The nonce is spent: the session now only answers polls, until ``expires_at``."""
        self._db.execute(
            "UPDATE session SET evidence = ?, refused = ?, expires_at = ? WHERE id = ?",
            (evidence, None if refused is None else _json(refused), expires_at, session),
        )

    def count_poll(self, session: str, counter: int) -> None:
        self._db.execute("UPDATE session SET counter = ? WHERE id = ?", (counter, session))

    def end_other_sessions(self, machine: str, session: str) -> None:
        """Only the latest evidence of a machine is worth polling for."""
        self._db.execute(
            "DELETE FROM session WHERE machine = ? AND id != ? AND evidence IS NOT NULL", (machine, session)
        )

    def drop_expired(self, at: int) -> None:
        self._db.execute("DELETE FROM session WHERE expires_at <= ?", (at,))
        self._db.execute("DELETE FROM operator_nonce WHERE expires_at <= ?", (at,))

    # What installers report.

    def count_installations(self, source: str, since: int) -> int:
        row = self._one("SELECT count(*) FROM installation WHERE source = ? AND at > ?", source, since)
        return int(row[0]) if row is not None else 0

    def add_installation(self, row: InstallationRow, *, kept: int) -> None:
        """Beyond ``kept`` rows the oldest go."""
        self._db.execute(
            "INSERT INTO installation (at, source, data_center, document) VALUES (?, ?, ?, ?)",
            (row.at, row.source, row.data_center, row.document),
        )
        self._db.execute(
            "DELETE FROM installation WHERE id <= (SELECT max(id) FROM installation) - ?", (kept,)
        )

    def installations(self, data_center: str | None, limit: int) -> list[InstallationRow]:
        """The latest first; of one data centre or of all."""
        rows = self._db.execute(
            "SELECT at, source, data_center, document FROM installation"
            " WHERE ?1 IS NULL OR data_center = ?1 ORDER BY id DESC LIMIT ?2",
            (data_center, limit),
        )
        return [InstallationRow(**row) for row in rows]

    # Evidence, attestations, nodes.

    def add_evidence(self, digest: str, machine: str, at: int, body: bytes) -> None:
        self._db.execute(
            "INSERT OR IGNORE INTO evidence (digest, machine, at, body) VALUES (?, ?, ?, ?)",
            (digest, machine, at, body),
        )
        self._db.execute(
            "DELETE FROM evidence WHERE machine = ?1 AND digest NOT IN"
            " (SELECT evidence FROM node WHERE machine = ?1) AND digest NOT IN"
            " (SELECT evidence FROM enrolment WHERE machine = ?1 AND evidence IS NOT NULL) AND digest NOT IN"
            " (SELECT digest FROM evidence WHERE machine = ?1 ORDER BY at DESC, rowid DESC LIMIT ?2)",
            (machine, KEPT_EVIDENCE),
        )

    def evidence(self, digest: str) -> bytes | None:
        row = self._one("SELECT body FROM evidence WHERE digest = ?", digest)
        return None if row is None else bytes(row["body"])

    def add_attestation(self, row: Attestation) -> None:
        self._db.execute(
            "INSERT INTO attestation (machine, at, state, evidence, boot_id, release, clock, reset_count,"
            " restart_count, firmware_version, pcrs, volume, verdicts)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                row.machine,
                row.at,
                row.state,
                row.evidence,
                row.boot_id,
                row.release,
                row.clock,
                row.reset_count,
                row.restart_count,
                row.firmware_version,
                _json(row.pcrs),
                None if row.volume is None else _json(row.volume),
                _json(row.verdicts),
            ),
        )

    def attestations(self, machine: str, limit: int) -> list[Attestation]:
        """The latest first."""
        rows = self._db.execute(
            "SELECT * FROM attestation WHERE machine = ? ORDER BY id DESC LIMIT ?", (machine, limit)
        )
        return [_attestation(row) for row in rows]

    def attestation_of(self, evidence: str) -> Attestation | None:
        row = self._one("SELECT * FROM attestation WHERE evidence = ? ORDER BY id DESC LIMIT 1", evidence)
        return _attestation(row) if row else None

    def add_node(self, row: NodeRow) -> None:
        self._db.execute(
            "INSERT INTO node (node_id, machine, data_center, signing, tls, committee, record, ak_public,"
            " pcrs, luks_uuid, boot_id, evidence, addresses) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                row.node_id,
                row.machine,
                row.data_center,
                row.signing,
                row.tls,
                row.committee,
                row.record,
                row.ak_public,
                _json(row.pcrs),
                row.luks_uuid,
                row.boot_id,
                row.evidence,
                _json(row.addresses),
            ),
        )

    def put_addresses(self, node_id: str, addresses: tuple[str, ...]) -> None:
        self._db.execute("UPDATE node SET addresses = ? WHERE node_id = ?", (_json(addresses), node_id))

    def addresses(self) -> list[str]:
        """Those of all nodes, each once."""
        rows = self._db.execute("SELECT DISTINCT value FROM node, json_each(node.addresses) ORDER BY value")
        return [str(row["value"]) for row in rows]

    def node(self, name: str) -> NodeRow | None:
        """By node id or by machine."""
        row = self._one("SELECT * FROM node WHERE node_id = ?1 OR machine = ?1", name)
        return _node(row) if row else None

    def nodes(self, centers: list[str], after: str, limit: int) -> list[NodeRow]:
        rows = self._db.execute(
            "SELECT * FROM node WHERE data_center IN (SELECT value FROM json_each(?)) AND node_id > ?"
            " ORDER BY node_id LIMIT ?",
            (json.dumps(centers), after, limit),
        )
        return [_node(row) for row in rows]

    def holder_of_keys(self, signing: str, tls: str, committee: str) -> str | None:
        """The machine whose node has any of these keys (hex digests)."""
        row = self._one(
            "SELECT machine FROM node WHERE signing = ? OR tls = ? OR committee = ?", signing, tls, committee
        )
        return None if row is None else str(row["machine"])

    def move_node(self, row: NodeRow) -> None:
        """After a recovery: the node's machine, its TPM's keys and its firmware's registers. Its keys stay."""
        self._db.execute(
            "UPDATE node SET machine = ?, record = ?, ak_public = ?, pcrs = ? WHERE node_id = ?",
            (row.machine, row.record, row.ak_public, _json(row.pcrs), row.node_id),
        )

    # Escrowed recovery keys, and requests of locked machines.

    def add_escrow(self, machine: str, luks_uuid: str, blob: bytes, evidence: str, at: int) -> bool:
        """False if this one was kept already."""
        done = self._db.execute(
            "INSERT OR IGNORE INTO escrow (machine, luks_uuid, blob, evidence, at) VALUES (?, ?, ?, ?, ?)",
            (machine, luks_uuid, blob, evidence, at),
        )
        return done.rowcount == 1

    def escrows(self, machine: str) -> dict[str, tuple[bytes, ...]]:
        """All that were ever kept for the machine, by LUKS UUID, oldest first."""
        found: dict[str, tuple[bytes, ...]] = {}
        for row in self._db.execute(
            "SELECT luks_uuid, blob FROM escrow WHERE machine = ? ORDER BY id", (machine,)
        ):
            uuid = str(row["luks_uuid"])
            found[uuid] = (*found.get(uuid, ()), bytes(row["blob"]))
        return found

    def node_of_volume(self, luks_uuid: str, blob: bytes) -> NodeRow | None:
        """The node whose volume this is: by its UUID, and by the recovery key that was kept for its machine."""
        row = self._one(
            "SELECT node.* FROM node JOIN escrow ON escrow.machine = node.machine"
            " AND escrow.luks_uuid = node.luks_uuid WHERE node.luks_uuid = ? AND escrow.blob = ?",
            luks_uuid,
            blob,
        )
        return _node(row) if row else None

    def put_recovery(self, row: RecoveryRow) -> None:
        """In place of the machine's requests that nobody has answered."""
        self._db.execute("DELETE FROM recovery WHERE machine = ? AND answer IS NULL", (row.machine,))
        values = (
            *(getattr(row, name) for name in _RECOVERY[:-6]),
            _json(row.verdicts),
            row.at,
            row.expires_at,
        )
        self._db.execute(
            f"INSERT INTO recovery ({', '.join(_RECOVERY[:-3])})"  # noqa: S608 - names of our own
            f" VALUES ({', '.join('?' * len(values))})",
            values,
        )

    def answer_recovery(self, session: str, answer: bytes, at: int) -> None:
        self._db.execute(
            "UPDATE recovery SET answer = ?, answered_at = ? WHERE session = ? AND answer IS NULL",
            (answer, at, session),
        )

    def use_recoveries(self, machine: str, at: int) -> None:
        """The machine has its state again: what was answered is over, and nothing waits any more."""
        self._db.execute("DELETE FROM recovery WHERE machine = ? AND answer IS NULL", (machine,))
        self._db.execute(
            "UPDATE recovery SET used_at = ? WHERE machine = ? AND answer IS NOT NULL AND used_at IS NULL",
            (at, machine),
        )

    def recovery(self, session: str) -> RecoveryRow | None:
        row = self._one("SELECT * FROM recovery WHERE session = ?", session)
        return _recovery(row) if row else None

    def latest_recovery(self, machine: str, *, answered: bool | None = None) -> RecoveryRow | None:
        """The machine's latest request; only an answered or an unanswered one if that is asked for."""
        row = self._one(
            "SELECT * FROM recovery WHERE machine = ?1 AND (?2 IS NULL OR (answer IS NOT NULL) = ?2)"
            " ORDER BY at DESC, rowid DESC LIMIT 1",
            machine,
            answered,
        )
        return _recovery(row) if row else None

    def is_locked(self, machine: str, at: int) -> bool:
        """True while the machine asks for its recovery key and has no answer."""
        sql = "SELECT 1 FROM recovery WHERE machine = ? AND answer IS NULL AND expires_at > ?"
        return self._one(sql, machine, at) is not None

    def waiting_recoveries(self, centers: list[str], at: int) -> list[RecoveryRow]:
        rows = self._db.execute(
            "SELECT recovery.* FROM recovery JOIN node ON node.node_id = recovery.node_id"
            " WHERE node.data_center IN (SELECT value FROM json_each(?)) AND answer IS NULL"
            " AND expires_at > ? ORDER BY recovery.at",
            (json.dumps(centers), at),
        )
        return [_recovery(row) for row in rows]

    # Operators' nonces and the audit trail.

    def use_nonce(self, operator: str, nonce: str, expires_at: int) -> bool:
        """False if this operator used it before."""
        done = self._db.execute(
            "INSERT OR IGNORE INTO operator_nonce (operator, nonce, expires_at) VALUES (?, ?, ?)",
            (operator, nonce, expires_at),
        )
        return done.rowcount == 1

    def add_audit(self, row: AuditRow) -> None:
        self._db.execute(
            "INSERT INTO audit (at, actor, machine, event, before, after, detail)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (row.at, row.actor, row.machine, row.event, row.before, row.after, _json(row.detail)),
        )

    def approval(self, machine: str, evidence: str) -> dict[str, Any] | None:
        """What shows that an operator signed for the machine on this evidence."""
        row = self._one(
            "SELECT detail FROM audit WHERE machine = ? AND event = 'approved'"
            " AND json_extract(detail, '$.evidence') = ? ORDER BY id DESC LIMIT 1",
            machine,
            evidence,
        )
        if row is None:
            return None
        signed: dict[str, Any] = json.loads(row["detail"])["signed"]
        return signed

    def audit(self, machine: str | None, limit: int) -> list[AuditRow]:
        """The latest first; of one machine or of all."""
        rows = self._db.execute(
            "SELECT at, actor, machine, event, before, after, detail FROM audit"
            " WHERE ?1 IS NULL OR machine = ?1 ORDER BY id DESC LIMIT ?2",
            (machine, limit),
        )
        return [AuditRow(**{**row, "detail": json.loads(row["detail"])}) for row in rows]


_RECOVERY = tuple(field.name for field in fields(RecoveryRow))


def _recovery(row: sqlite3.Row) -> RecoveryRow:
    return RecoveryRow(**{**row, "verdicts": json.loads(row["verdicts"])})


def _json(value: Any) -> str:
    return canonical_json(value).decode()


def _offer(row: sqlite3.Row) -> OfferRow:
    return OfferRow(**{**row, "rollback": bool(row["rollback"])})


def _enrolment(row: sqlite3.Row) -> Enrolment:
    values = {
        **row,
        "state": EnrolmentState(row["state"]),
        "tpm": json.loads(row["tpm"]),
        "findings": json.loads(row["findings"]),
    }
    return Enrolment(**values)


def _attestation(row: sqlite3.Row) -> Attestation:
    values = {name: row[name] for name in row.keys() if name != "id"}  # noqa: SIM118
    values["pcrs"] = json.loads(row["pcrs"])
    values["verdicts"] = json.loads(row["verdicts"])
    values["volume"] = None if row["volume"] is None else json.loads(row["volume"])
    return Attestation(**values)


def _node(row: sqlite3.Row) -> NodeRow:
    addresses = tuple(json.loads(row["addresses"]))
    return NodeRow(**{**row, "pcrs": json.loads(row["pcrs"]), "addresses": addresses})
