"""The tables, as ordered migrations. Each runs once, in one transaction, and is recorded in that same one."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from nodeos.core.errors import UsageError


def _first(connection: sqlite3.Connection) -> None:
    for statement in (
        """CREATE TABLE trust (
            sha256 TEXT PRIMARY KEY, kind TEXT NOT NULL CHECK (kind IN ('root', 'intermediate')),
            der BLOB NOT NULL, added_at INTEGER NOT NULL)""",
        """CREATE TABLE release (
            version TEXT PRIMARY KEY, document BLOB NOT NULL, added_at INTEGER NOT NULL,
            withdrawn_at INTEGER)""",
        """CREATE TABLE data_center (
            name TEXT PRIMARY KEY, operator TEXT NOT NULL, operator_key BLOB NOT NULL,
            profile TEXT NOT NULL, node_reward_type TEXT NOT NULL, site_key BLOB NOT NULL,
            added_at INTEGER NOT NULL)""",
        """CREATE TABLE enrolment (
            machine TEXT PRIMARY KEY, data_center TEXT NOT NULL REFERENCES data_center (name),
            state TEXT NOT NULL, revision INTEGER NOT NULL, ek_key TEXT UNIQUE, tpm TEXT NOT NULL,
            ak_public BLOB, evidence TEXT, findings TEXT NOT NULL,
            first_at INTEGER NOT NULL, changed_at INTEGER NOT NULL)""",
        "CREATE INDEX enrolment_by_data_center ON enrolment (data_center, machine)",
        """CREATE TABLE session (
            id TEXT PRIMARY KEY, machine TEXT NOT NULL REFERENCES enrolment (machine),
            secret BLOB NOT NULL, nonce BLOB NOT NULL, request BLOB NOT NULL, expires_at INTEGER NOT NULL,
            evidence TEXT, refused TEXT, counter INTEGER NOT NULL DEFAULT -1)""",
        "CREATE INDEX session_by_machine ON session (machine)",
        """CREATE TABLE evidence (
            digest TEXT PRIMARY KEY, machine TEXT NOT NULL REFERENCES enrolment (machine),
            at INTEGER NOT NULL, body BLOB NOT NULL)""",
        "CREATE INDEX evidence_by_machine ON evidence (machine, at)",
        """CREATE TABLE attestation (
            id INTEGER PRIMARY KEY AUTOINCREMENT, machine TEXT NOT NULL REFERENCES enrolment (machine),
            at INTEGER NOT NULL, state TEXT NOT NULL CHECK (state IN ('passed', 'watch', 'failed')),
            evidence TEXT NOT NULL, boot_id TEXT, release TEXT, clock INTEGER NOT NULL,
            reset_count INTEGER NOT NULL, restart_count INTEGER NOT NULL, firmware_version TEXT NOT NULL,
            pcrs TEXT NOT NULL, volume TEXT, verdicts TEXT NOT NULL)""",
        "CREATE INDEX attestation_by_machine ON attestation (machine, id)",
        """CREATE TABLE node (
            node_id TEXT PRIMARY KEY, machine TEXT NOT NULL UNIQUE REFERENCES enrolment (machine),
            data_center TEXT NOT NULL REFERENCES data_center (name),
            signing TEXT NOT NULL UNIQUE, tls TEXT NOT NULL UNIQUE, committee TEXT NOT NULL UNIQUE,
            record BLOB NOT NULL, ak_public BLOB NOT NULL, pcrs TEXT NOT NULL, luks_uuid TEXT NOT NULL,
            boot_id TEXT NOT NULL, evidence TEXT NOT NULL)""",
        """CREATE TABLE operator_nonce (
            operator TEXT NOT NULL, nonce TEXT NOT NULL, expires_at INTEGER NOT NULL,
            PRIMARY KEY (operator, nonce))""",
        """CREATE TABLE audit (
            id INTEGER PRIMARY KEY AUTOINCREMENT, at INTEGER NOT NULL, actor TEXT NOT NULL, machine TEXT,
            event TEXT NOT NULL, before TEXT, after TEXT, detail TEXT NOT NULL)""",
        "CREATE INDEX audit_by_machine ON audit (machine, id)",
        # The audit trail only grows.
        """CREATE TRIGGER audit_is_kept BEFORE DELETE ON audit
            BEGIN SELECT RAISE (ABORT, 'audit rows are never deleted'); END""",
        """CREATE TRIGGER audit_is_fixed BEFORE UPDATE ON audit
            BEGIN SELECT RAISE (ABORT, 'audit rows are never changed'); END""",
    ):
        connection.execute(statement)


def _signed_releases(connection: sqlite3.Connection) -> None:
    """Forget releases that were accepted before manifests were signed: they are added again, with a signature."""
    connection.execute("DELETE FROM release")


def _recovery(connection: sqlite3.Connection) -> None:
    for statement in (
        """CREATE TABLE escrow (
            id INTEGER PRIMARY KEY AUTOINCREMENT, machine TEXT NOT NULL REFERENCES enrolment (machine),
            luks_uuid TEXT NOT NULL, blob BLOB NOT NULL, evidence TEXT NOT NULL, at INTEGER NOT NULL,
            UNIQUE (machine, luks_uuid, blob))""",
        # A lost blob is a lost node: the history only grows.
        """CREATE TRIGGER escrow_is_kept BEFORE DELETE ON escrow
            BEGIN SELECT RAISE (ABORT, 'escrowed recovery keys are never deleted'); END""",
        """CREATE TRIGGER escrow_is_fixed BEFORE UPDATE ON escrow
            BEGIN SELECT RAISE (ABORT, 'escrowed recovery keys are never changed'); END""",
        """CREATE TABLE recovery (
            session TEXT PRIMARY KEY, machine TEXT NOT NULL REFERENCES enrolment (machine),
            node_id TEXT NOT NULL REFERENCES node (node_id), evidence TEXT NOT NULL UNIQUE, body BLOB NOT NULL,
            nonce BLOB NOT NULL, ak_public BLOB NOT NULL, ek_key TEXT NOT NULL, clock INTEGER NOT NULL,
            reset_count INTEGER NOT NULL, restart_count INTEGER NOT NULL, verdicts TEXT NOT NULL,
            at INTEGER NOT NULL, expires_at INTEGER NOT NULL, answer BLOB, answered_at INTEGER,
            used_at INTEGER)""",
        "CREATE INDEX recovery_by_machine ON recovery (machine, at)",
    ):
        connection.execute(statement)


def _installations(connection: sqlite3.Connection) -> None:
    """What installers report: said, not proven, so no other table refers to it."""
    connection.execute(
        """CREATE TABLE installation (
            id INTEGER PRIMARY KEY AUTOINCREMENT, at INTEGER NOT NULL, source TEXT NOT NULL,
            data_center TEXT NOT NULL, document BLOB NOT NULL)"""
    )
    connection.execute("CREATE INDEX installation_by_source ON installation (source, at)")


def _access(connection: sqlite3.Connection) -> None:
    """Who may reach nodes: what nodes stated of themselves, and what is allowed for a data centre."""
    connection.execute("ALTER TABLE node ADD COLUMN addresses TEXT NOT NULL DEFAULT '[]'")
    connection.execute(
        """CREATE TABLE client (
            data_center TEXT NOT NULL REFERENCES data_center (name), prefix TEXT NOT NULL,
            PRIMARY KEY (data_center, prefix))"""
    )


def _offers(connection: sqlite3.Connection) -> None:
    """Releases that nodes shall install. At most one offer of a data centre is not over."""
    connection.execute(
        """CREATE TABLE offer (
            number INTEGER PRIMARY KEY AUTOINCREMENT, data_center TEXT NOT NULL REFERENCES data_center (name),
            version TEXT NOT NULL REFERENCES release (version), url TEXT NOT NULL, rollback INTEGER NOT NULL,
            at INTEGER NOT NULL, over_at INTEGER)"""
    )
    connection.execute("CREATE UNIQUE INDEX offer_open ON offer (data_center) WHERE over_at IS NULL")


def _revocation_lists(connection: sqlite3.Connection) -> None:
    connection.execute(
        "CREATE TABLE revocation_list (sha256 TEXT PRIMARY KEY, der BLOB NOT NULL, added_at INTEGER NOT NULL)"
    )


MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (
    _first,
    _signed_releases,
    _recovery,
    _installations,
    _access,
    _offers,
    _revocation_lists,
)


def migrate(connection: sqlite3.Connection) -> int:
    """Bring the database up to date and return how many migrations ran.

    Raises UsageError for a database of a later version of this program.
    """
    ran = 0
    while True:
        connection.execute("BEGIN IMMEDIATE")
        try:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version > len(MIGRATIONS):
                raise UsageError(
                    f"the database has version {version}, this program knows {len(MIGRATIONS)}",
                    hint="update nodeos on this machine",
                )
            if version == len(MIGRATIONS):
                connection.execute("COMMIT")
                return ran
            MIGRATIONS[version](connection)
            connection.execute(f"PRAGMA user_version = {version + 1}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        ran += 1
