"""What installers report. Nobody is authenticated here: a report is kept as what somebody said. It proves nothing.

No decision about a machine looks at it. What keeps a flood out: the data centre must be known, so many reports for
each source address and hour, and so many rows in all, of which the oldest go first.
"""

from __future__ import annotations

from collections.abc import Callable

from nodeos.core.errors import Finding, RefusedError
from nodeos.core.installation import Installation
from provisioning.registrar.rows import InstallationRow
from provisioning.registrar.store import BusyError, Store

PER_HOUR = 60
KEPT = 10_000
_HOUR = 3600


class Installations:
    """Takes reports. ``clock`` gives seconds since 1970."""

    def __init__(self, store: Store, clock: Callable[[], int]) -> None:
        self._store, self._clock = store, clock

    def take(self, body: bytes, source: str) -> None:
        """Keep a report from the address ``source``. Raises ParseError, RefusedError for a data centre that is not
        known, BusyError beyond the limit."""
        told = Installation.parse(body)
        at = self._clock()
        with self._store.write() as tx:
            if tx.center(told.data_center) is None:
                finding = Finding(
                    code="data_center.unknown", message=f"there is no data centre {told.data_center!r}"
                )
                raise RefusedError("the report is not kept", (finding,))
            if tx.count_installations(source, at - _HOUR) >= PER_HOUR:
                raise BusyError(
                    f"more than {PER_HOUR} reports in an hour from one address",
                    hint="report again in an hour",
                )
            row = InstallationRow(
                at=at, source=source, data_center=told.data_center, document=told.to_bytes()
            )
            tx.add_installation(row, kept=KEPT)
