"""Do the logs hold together, and do they explain the registers? Each refusal names PCR, event, found, expected."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

from nodeos.core.errors import Finding
from provisioning.verify.celog import PHASE
from provisioning.verify.eventdata import DATA_IS_MEASURED, describe, is_error, measured
from provisioning.verify.eventlog import Event, EventLog, bank_name, extend, hasher, initial
from provisioning.verify.findings import finding
from provisioning.verify.tpm import Alg

# A forged log can be wrong in thousands of events; so many are told one by one.
_TOLD = 16


def check_events(log: EventLog, more: Sequence[Event] = ()) -> tuple[Finding, ...]:
    """Events whose data is what was measured, and whose digest is another: the log was changed. And the
    firmware's own word that it failed."""
    events = (*log.events, *more)
    wrong = (
        one for event in events if must_match(event) and not is_error(event) for one in _differences(event)
    )
    failed = (_failure(event) for event in events if is_error(event))
    return (*_bounded("eventlog.digest", wrong), *_bounded("eventlog.separator", failed))


def _failure(event: Event) -> Finding:
    return finding(
        "eventlog.separator",
        f"PCR {event.pcr}, {event.words}: the firmware failed here, and says of it: "
        f"found {event.data[:32].hex() or 'nothing'}, expected a separator of 0 or 0xffffffff",
    )


def must_match(event: Event) -> bool:
    """True if the event's type says that its data is what was hashed."""
    if not event.firmware:
        return event.name == PHASE
    return event.extends and event.kind in DATA_IS_MEASURED


def _differences(event: Event) -> Iterator[Finding]:
    if measured(event) is not None:
        return
    for alg, value in event.digests.items():
        hashed = hasher(alg)
        if hashed is None:
            continue
        expected = hashed(event.data)
        if value != expected:
            words = f"{bank_name(alg)} found {value.hex()}, expected {expected.hex()}"
            yield finding("eventlog.digest", f"PCR {event.pcr}, {event.words}: {words}")


def _bounded(code: str, found: Iterable[Finding]) -> tuple[Finding, ...]:
    """The first of them, and how many more: none of those is kept."""
    every = iter(found)
    told = list(islice(every, _TOLD))
    if more := sum(1 for _ in every):
        told.append(finding(code, f"and {more} more of this kind"))
    return tuple(told)


def check_replay(
    log: EventLog,
    more: Sequence[Event],
    quoted: Mapping[int, bytes],
    covered: Iterable[int],
    alg: int = Alg.SHA256,
) -> tuple[Finding, ...]:
    """Refuses logs that do not give the ``quoted`` values of the PCRs ``covered``, in the bank ``alg``.

    A PCR without any event counts as never extended: an empty log explains nothing but zeros.
    """
    if alg not in log.algorithms or hasher(alg) is None:
        return (finding("eventlog.bank", f"the firmware log has no {bank_name(alg)} digests"),)
    by_pcr: dict[int, list[Event]] = {}
    for event in (*log.events, *more):
        if event.extends:
            by_pcr.setdefault(event.pcr, []).append(event)
    start = initial(log, alg)
    found = (_explains(by_pcr.get(index, []), alg, start[index], quoted[index], index) for index in covered)
    return tuple(one for one in found if one is not None)


def _explains(events: list[Event], alg: int, value: bytes, quoted: bytes, pcr: int) -> Finding | None:
    """None if these events take the register from ``value`` to ``quoted``."""
    surplus = events[0] if value == quoted and events else None
    for position, event in enumerate(events):
        if alg not in event.digests:
            words = f"{event.words}: found no digest of {bank_name(alg)}, expected one"
            return finding("eventlog.bank", f"PCR {pcr}, {words}")
        value = extend(alg, value, event.digests[alg])
        if value == quoted and position + 1 < len(events):
            surplus = events[position + 1]
    if value == quoted:
        return None
    last = f"after its last of {len(events)}, {events[-1].words}" if events else "which has no event"
    place = f"; the quote ends before {surplus.words}" if surplus is not None else ""
    return finding(
        "eventlog.replay",
        f"PCR {pcr}, {last}: the log gives {value.hex()}, expected the quoted value {quoted.hex()}{place}",
    )


def check_unlogged(log: EventLog, more: Sequence[Event], unlogged: Mapping[int, str]) -> tuple[Finding, ...]:
    """Refuses events of PCRs into which the image measures without a log, and nobody else may measure.

    ``unlogged``: what alone belongs into the PCR. The value itself is for the policy to judge.
    """
    found = (
        finding(
            "eventlog.unexpected",
            f"PCR {event.pcr}, {event.words}: found {describe(event)!r}, "
            f"expected {unlogged[event.pcr]} and no event",
        )
        for event in (*log.events, *more)
        if event.extends and event.pcr in unlogged
    )
    return _bounded("eventlog.unexpected", found)
