"""From the registrar's offer to a restart into it, in two programs.

The agent decides (``Deliverer``): it puts the offer into /run and starts nodeos-update.service, and goes on
attesting. That service (``take``) fetches, checks and installs, with the rights that the agent has no need of: it
writes partitions and the ESP. What it found lies on the state volume, and is told to the registrar with the next
attestation.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nodeos.agent.console import Console
from nodeos.core.errors import Finding, NodeosError, RefusedError, UsageError
from nodeos.core.files import read_file, write_atomic
from nodeos.core.protocol import Delivery, DeliveryState, Offer, UpdateStatus
from nodeos.core.wire import canonical_json, parse_json
from nodeos.update import machine
from nodeos.update.apply import Install, apply
from nodeos.update.blessing import update_status
from nodeos.update.entries import read_entries
from nodeos.update.fetch import Source, Wait, fetch
from nodeos.update.machine import Paths
from nodeos.update.offers import decide, restart_delay, write_delivery
from nodeos.update.preflight import Facts

STEP = "update"
# What broke is not tried again sooner than this, in seconds.
AGAIN = 600.0


@dataclass(slots=True, kw_only=True)
class Deliverer:
    """The agent's side. ``start`` starts nodeos-update.service, if it doesn't run."""

    paths: Paths
    offer_file: Path
    boot_id: str
    console: Console
    start: Callable[[], None]
    clock: Callable[[], float] = time.monotonic
    told: str = ""
    started: tuple[int, float] | None = None

    def status(self) -> UpdateStatus | None:
        """Which version runs, which one failed, and what became of the last offer. None if the ESP holds no kernel
        image of ours."""
        if not read_entries(self.paths.esp):
            return None
        return update_status(self.paths)

    def unsettled(self) -> bool:
        """True while the status may change soon without the agent: a boot on trial, an update under way."""
        status = self.status()
        if status is None:
            return False
        told = status.delivery
        here = told is not None and told.boot_id == self.boot_id
        return not status.blessed or (here and told is not None and told.state is DeliveryState.FETCHING)

    def consider(self, offer: Offer | None) -> None:
        """Take the offer, or say why not (once). An update must not end the agent."""
        status = self.status()
        if status is None:
            return
        if offer is None:
            self._forget(status.delivery)
        try:
            pending = machine.pending_release(self.paths)
            unfinished = pending is not None and pending.version == status.running
            decision = decide(offer, status, unfinished=unfinished, boot_id=self.boot_id)
            if decision.why and decision.why != self.told:
                self.console.tell(STEP, decision.why)
                self.told = decision.why
            if decision.take and offer is not None and self._is_due(offer):
                self.started = (offer.number, self.clock())
                write_atomic(self.offer_file, canonical_json(offer.to_json()))
                first = Delivery(
                    number=offer.number,
                    version=offer.version,
                    state=DeliveryState.FETCHING,
                    boot_id=self.boot_id,
                )
                write_delivery(self.paths.delivery, first)
                self.start()
        except NodeosError as error:
            self.console.tell(STEP, str(error))

    def _forget(self, told: Delivery | None) -> None:
        """An offer that was withdrawn is nobody's concern any more, unless it is being carried out."""
        under_way = (DeliveryState.FETCHING, DeliveryState.INSTALLED)
        if told is not None and not (told.boot_id == self.boot_id and told.state in under_way):
            self.paths.delivery.unlink(missing_ok=True)

    def _is_due(self, offer: Offer) -> bool:
        if self.started is None or self.started[0] != offer.number:
            return True
        return self.clock() - self.started[1] >= AGAIN


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What ``take`` reaches the outside through."""

    source: Callable[[Offer], Source]
    gather: Callable[[], Facts]
    wait: Wait
    restart: Callable[[], None]
    install: Install | None = None


def take(paths: Paths, offer_file: Path, console: Console, parts: Parts, *, boot_id: str, node: str) -> None:
    """Fetch the release of the offer, install it and restart the machine.

    Raises NodeosError if it came to nothing; why stands in the report (``paths.delivery``) then.
    """
    offer = Offer.parse(parse_json(read_file(offer_file, "offer", limit=1 << 16), offer_file.name))

    def report(state: DeliveryState, findings: tuple[Finding, ...] = ()) -> None:
        told = Delivery(
            number=offer.number, version=offer.version, state=state, boot_id=boot_id, findings=findings
        )
        write_delivery(paths.delivery, told)

    def tell(text: str) -> None:
        console.tell(STEP, text)

    report(DeliveryState.FETCHING)
    try:
        trusted = machine.trusted_release_keys(paths)
        directory = fetch(offer, parts.source(offer), paths.download, trusted, tell=tell, wait=parts.wait)
        apply(paths, directory, parts.gather, tell, rollback=offer.rollback, install=parts.install, ours=True)
    except RefusedError as error:
        report(DeliveryState.REFUSED, error.findings[:32])
        shutil.rmtree(paths.download, ignore_errors=True)
        console.findings(STEP, f"{offer.version} is not installed", error.findings, error.hint or "")
        raise
    except UsageError as error:
        # A release that can't be read is no better the next time.
        _failed(report, DeliveryState.REFUSED, console, offer, error)
        raise
    except (NodeosError, OSError) as error:
        _failed(report, DeliveryState.FAILED, console, offer, error)
        raise
    report(DeliveryState.INSTALLED)
    # The other slot holds it now.
    shutil.rmtree(paths.download, ignore_errors=True)
    delay = restart_delay(node, offer.version)
    tell(f"{offer.version} is installed; restarting in {delay} s")
    parts.wait(delay)
    parts.restart()


def _failed(
    report: Callable[[DeliveryState, tuple[Finding, ...]], None],
    state: DeliveryState,
    console: Console,
    offer: Offer,
    error: NodeosError | OSError,
) -> None:
    words, hint = (error.message, error.hint) if isinstance(error, NodeosError) else (str(error), None)
    findings = (Finding(code="update.error", message=words[:500]),)
    report(state, findings)
    again = "" if state is DeliveryState.REFUSED else "it is tried again with the next attestation"
    console.findings(STEP, f"{offer.version} is not installed", findings, hint or again)
