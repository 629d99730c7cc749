"""The registrar's directory: what lies where, how it is made, how it is opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nodeos.core.errors import UsageError
from nodeos.core.files import read_file, write_atomic, write_new
from nodeos.core.wire import parse_toml
from provisioning.operator_auth import registrar_id
from provisioning.registrar import authority
from provisioning.registrar.service import Settings
from provisioning.registrar.store import Store

_TOML = """# The registrar's settings. Times are in seconds.
# How long a challenge to a machine holds:
nonce_seconds = 600
# How long a sender may take for one request:
request_seconds = 30
"""


@dataclass(frozen=True, slots=True)
class Directory:
    """Paths inside one registrar's directory."""

    root: Path

    @property
    def ca(self) -> Path:
        return self.root / "ca.pem"

    @property
    def ca_key(self) -> Path:
        return self.root / "ca.key"

    @property
    def tls(self) -> Path:
        return self.root / "tls.pem"

    @property
    def tls_key(self) -> Path:
        return self.root / "tls.key"

    @property
    def config(self) -> Path:
        return self.root / "registrar.toml"

    @property
    def database(self) -> Path:
        return self.root / "registrar.db"

    def make(self, names: Sequence[str]) -> None:
        """Make everything. Raises UsageError if anything of it is there already."""
        for path in (self.config, self.database, self.ca, self.ca_key, self.tls, self.tls_key):
            if path.exists():
                raise UsageError(
                    f"{path} is there already", hint="this directory holds a registrar; name another --dir"
                )
        for name in names:
            authority.general_name(name)
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        ca, ca_key = authority.make_ca(authority.today())
        write_new(self.ca_key, ca_key)
        write_new(self.ca, ca, mode=0o644)
        self.issue(names)
        Store(self.database, create=True).close()
        # Last: where this file is, all of it is.
        write_new(self.config, _TOML.encode(), mode=0o644)

    def issue(self, names: Sequence[str]) -> None:
        """Make a new TLS key and certificate from the CA. Running servers take it at their next start."""
        ca, ca_key = read_file(self.ca, "CA certificate"), read_file(self.ca_key, "CA key")
        tls, tls_key = authority.make_tls(ca, ca_key, names, authority.today())
        write_atomic(self.tls_key, tls_key, mode=0o600)
        write_atomic(self.tls, tls)

    def settings(self) -> Settings:
        """Raises UsageError if there is no registrar here, ParseError for a wrong setting."""
        if not self.config.exists():
            raise UsageError(f"{self.root} holds no registrar", hint="make one with `nodeos registrar init`")
        fields = parse_toml(read_file(self.config, "settings"), str(self.config))
        ca = read_file(self.ca, "CA certificate", limit=1 << 16).decode("ascii", errors="replace")
        settings = Settings(
            registrar=registrar_id(ca),
            nonce_seconds=fields.integer("nonce_seconds", low=10, high=86400),
            request_seconds=fields.integer("request_seconds", low=1, high=600),
        )
        fields.done()
        return settings

    def open(self) -> Store:
        self.settings()
        return Store(self.database)
