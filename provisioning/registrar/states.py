"""What can happen to an enrolment, and where it leads. Pure.

A request alone changes nothing that exists: anyone who knows a certificate can send one. Only evidence from
the machine's own TPM and an operator's signature move a machine.
"""

from __future__ import annotations

from enum import StrEnum

from nodeos.core.errors import Finding, RefusedError
from nodeos.core.protocol import EnrolmentState as State


class Event(StrEnum):
    """REQUESTED: a request passed; MOVED_AWAY: the node went on to another TPM by a recovery; the others name
    who decided what."""

    REQUESTED = "requested"
    REQUEST_REFUSED = "request-refused"
    EVIDENCE_ACCEPTED = "evidence-accepted"
    EVIDENCE_REFUSED = "evidence-refused"
    APPROVED = "approved"
    REJECTED = "rejected"
    RECOVERED = "recovered"
    MOVED_AWAY = "moved-away"


_TABLE: dict[Event, dict[State | None, State]] = {
    Event.REQUESTED: {None: State.CHALLENGED, **{state: state for state in State}},
    Event.REQUEST_REFUSED: {None: State.REFUSED, **{state: state for state in State}},
    Event.EVIDENCE_ACCEPTED: {
        State.CHALLENGED: State.PENDING,
        State.REFUSED: State.PENDING,
        State.PENDING: State.PENDING,
        State.REJECTED: State.REJECTED,
        State.INDUCTED: State.INDUCTED,
    },
    Event.EVIDENCE_REFUSED: {
        State.CHALLENGED: State.REFUSED,
        State.REFUSED: State.REFUSED,
        State.PENDING: State.REFUSED,
        State.REJECTED: State.REJECTED,
        State.INDUCTED: State.INDUCTED,
    },
    # An operator may think again after a rejection: what was seen then is still bound by its digest.
    Event.APPROVED: {State.PENDING: State.INDUCTED, State.REJECTED: State.INDUCTED},
    # An operator's approved recovery makes the machine (perhaps with another TPM) the node's again.
    Event.RECOVERED: {
        State.CHALLENGED: State.INDUCTED,
        State.REFUSED: State.INDUCTED,
        State.PENDING: State.INDUCTED,
        State.REJECTED: State.INDUCTED,
        State.INDUCTED: State.INDUCTED,
    },
    Event.MOVED_AWAY: {State.INDUCTED: State.REJECTED},
    Event.REJECTED: {
        State.CHALLENGED: State.REJECTED,
        State.REFUSED: State.REJECTED,
        State.PENDING: State.REJECTED,
        State.REJECTED: State.REJECTED,
    },
}


def advance(state: State | None, event: Event) -> State:
    """The state after ``event``. Raises RefusedError (``state.<from>``) where it can't happen."""
    try:
        return _TABLE[event][state]
    except KeyError as error:
        raise RefusedError(
            f"the machine can't be {event}",
            (Finding(code="enrolment.state", message=f"found {state}, where nothing can be {event}"),),
            hint="look at it with `nodeos enroll show`",
        ) from error
