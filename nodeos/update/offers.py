"""Whether a node takes the release that its registrar offers. Pure but for the two functions on ``report``.

A node takes an offer once: what it refused, or what was installed and did not stay, waits until the registrar
offers it again (under a new number). What merely broke (no network, most often) is tried again later.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from nodeos.core.errors import UsageError
from nodeos.core.files import read_file, write_atomic
from nodeos.core.protocol import Delivery, DeliveryState, Offer, UpdateStatus
from nodeos.core.wire import canonical_json, parse_json

# Nodes of a data centre don't restart together: each waits as long as its id says, in seconds. The first seconds
# are for telling the registrar.
_SOONEST, _WINDOW = 10, 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """``why`` is for people; empty if there is nothing to say."""

    take: bool
    why: str = ""


def decide(offer: Offer | None, status: UpdateStatus, *, unfinished: bool, boot_id: str) -> Decision:
    """Whether to fetch and install ``offer`` now. ``unfinished``: the running version's own update is."""
    if offer is None or offer.version == status.running:
        return Decision(take=False)
    if not status.blessed:
        return Decision(take=False, why=f"{offer.version} is offered; {status.running} is not blessed yet")
    if unfinished:
        words = f"{offer.version} is offered; the update to {status.running} is not finished yet"
        return Decision(take=False, why=words)
    return _continue(offer, status.delivery, boot_id)


def _continue(offer: Offer, told: Delivery | None, boot_id: str) -> Decision:
    """What an earlier attempt at this offer leaves to do."""
    if told is None or told.number != offer.number:
        return Decision(take=True, why=f"{offer.version} is offered")
    match told.state:
        case DeliveryState.REFUSED:
            return Decision(take=False, why=f"{offer.version} was refused; it waits for a new offer")
        case DeliveryState.INSTALLED if told.boot_id == boot_id:
            return Decision(take=False, why=f"{offer.version} is installed; the machine restarts soon")
        case DeliveryState.INSTALLED:
            return Decision(take=False, why=f"{offer.version} did not stay; it waits for a new offer")
        case _:
            return Decision(take=True, why=f"{offer.version} is offered; going on with it")


def restart_delay(node: str, version: str) -> int:
    """Seconds between installing and restarting, from 10 to 59: the same for a node each time it is asked."""
    digest = hashlib.sha256(f"{node} {version}".encode()).digest()
    return _SOONEST + int.from_bytes(digest[:4]) % _WINDOW


def read_delivery(path: Path) -> Delivery | None:
    """What became of the last offer. A report that can't be read counts as none: then the offer is taken again."""
    try:
        fields = parse_json(read_file(path, "delivery report", limit=1 << 16), path.name)
        return Delivery.parse(fields)
    except UsageError:
        return None


def write_delivery(path: Path, delivery: Delivery) -> None:
    write_atomic(path, canonical_json(delivery.to_json()))
