"""The node's firewall: the list of those who may reach it, kept on the state volume, and the ruleset made of it.

The agent does not load the ruleset. It writes it to ``Config.ruleset``, where nodeos-firewall-load.path sees it;
the service that this starts may do nothing but change the firewall, and leaves what it loaded at
``Config.loaded_ruleset``. What was loaded at boot, before the network, lets nobody in.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from nodeos.agent.config import Config
from nodeos.core.access import LIMIT, AccessList, sorted_addresses
from nodeos.core.addresses import IpAddress, parse_address
from nodeos.core.errors import NodeosError, UsageError
from nodeos.core.files import read_file, write_atomic
from nodeos.core.wire import parse_json


@dataclass(slots=True, kw_only=True)
class Firewall:
    """``access`` is the list that the firewall is open for; None while it is closed."""

    config: Config
    access: AccessList | None = None

    def restore(self) -> bool:
        """Open for the list that was kept, if there is one. Raises NodeosError if it can't be read: then it stays
        closed until the registrar gives another."""
        path = self.config.access
        if not os.path.lexists(path):
            return False
        try:
            fields = parse_json(read_file(path, "access list", limit=LIMIT), path.name, limit=LIMIT)
            access = AccessList.parse(fields)
            self._write(access.ruleset())
        except UsageError as error:
            raise NodeosError(
                f"{path}: {error.message}", hint="nothing to do: the registrar gives the list again"
            ) from error
        self.access = access
        return True

    def open_for(self, access: AccessList) -> None:
        """Keep the list, and have the firewall opened for it and for nobody else."""
        ruleset = access.ruleset()
        write_atomic(self.config.access, access.to_bytes())
        self._write(ruleset)
        self.access = access

    def is_loaded(self) -> bool:
        """True if the firewall is as the list wants it."""
        return self.access is None or self._loaded() == self.access.ruleset()

    def load_again(self) -> None:
        if self.access is not None:
            self._write(self.access.ruleset())

    def _write(self, ruleset: str) -> None:
        # Loading starts the counts per source anew, so what is there is left alone.
        if self._loaded() != ruleset:
            write_atomic(self.config.ruleset, ruleset.encode())

    def _loaded(self) -> str | None:
        try:
            return self.config.loaded_ruleset.read_text()
        except OSError:
            return None


def own_addresses() -> tuple[IpAddress, ...]:
    """The addresses of this machine that others can reach it by."""
    import psutil

    found = []
    for items in psutil.net_if_addrs().values():
        for item in items:
            try:
                found.append(parse_address(item.address))
            except UsageError:
                continue  # a MAC address, or one for this machine or link alone
    return sorted_addresses(found)
