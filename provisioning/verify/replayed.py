"""A boot's logs, replayed and judged for a person who has nothing else. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nodeos.core.errors import Finding
from provisioning.verify.celog import parse_measure_log
from provisioning.verify.eventchecks import check_events, check_replay, must_match
from provisioning.verify.eventdata import is_error, measured
from provisioning.verify.eventlog import (
    EV_EFI_ACTION,
    EV_SEPARATOR,
    Event,
    EventLog,
    bank_name,
    parse_event_log,
    replayable,
)

_SEPARATED = range(8)
_EXIT = b"Exit Boot Services"


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """``events`` with True, False or None: the digest is of the data, is not and must be, can't be told.

    ``banks`` maps TPM_ALG_ID to the values of the PCRs that the logs say anything of. ``notes`` are no reason to
    refuse.
    """

    log: EventLog
    events: tuple[tuple[Event, bool | None], ...]
    banks: Mapping[int, Mapping[int, bytes]]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]


def replay_logs(firmware: bytes, userspace: bytes, expected: Mapping[int, Mapping[int, bytes]]) -> Replayed:
    """Parse, replay and check; ``expected`` values by TPM_ALG_ID and PCR are compared. Raises ParseError."""
    log = parse_event_log(firmware)
    more = parse_measure_log(userspace, first=len(log.events))
    banks, missing = replayable(log, more)
    findings = [*check_events(log, more)]
    for alg, values in expected.items():
        for found in check_replay(log, more, values, sorted(values), alg):
            findings.append(Finding(code=found.code, message=f"{bank_name(alg)}: {found.message}"))
    return Replayed(
        log=log,
        events=tuple((event, _checked(event)) for event in (*log.events, *more)),
        banks=banks,
        findings=tuple(findings),
        notes=(*missing, *_notes(log, more)),
    )


def _checked(event: Event) -> bool | None:
    if is_error(event):
        return False
    if measured(event) is not None:
        return True
    return False if must_match(event) else None


def _notes(log: EventLog, more: Sequence[Event]) -> list[str]:
    notes = []
    if log.locality:
        notes.append(f"PCR 0 starts at the start-up locality {log.locality}")
    if log.padding:
        notes.append(f"{log.padding} bytes of filling stand behind the last event")
    extended = {event.pcr for event in log.events if event.extends}
    ended = {event.pcr for event in log.events if event.kind == EV_SEPARATOR}
    open_ended = sorted(extended.intersection(_SEPARATED) - ended)
    if open_ended:
        notes.append(
            f"no separator in PCR {', '.join(map(str, open_ended))}: the log ends early, or the firmware is odd"
        )
    if not any(event.kind == EV_EFI_ACTION and event.data.startswith(_EXIT) for event in log.events):
        notes.append(
            "no event of the exit from boot services: the system's loader may be running still, or didn't log it"
        )
    return notes
