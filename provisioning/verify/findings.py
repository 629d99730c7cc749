"""How checks report: each gives a verdict, and a verdict holds every finding of that check."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from nodeos.core.errors import Finding


class Result(StrEnum):
    """PASSED; WATCH: allowed, and a person should know; REFUSED."""

    PASSED = "passed"
    WATCH = "watch"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What one check found. ``check`` is its stable name."""

    check: str
    result: Result
    findings: tuple[Finding, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "check": self.check,
            "result": str(self.result),
            "findings": [finding.to_json() for finding in self.findings],
        }


def finding(code: str, message: str) -> Finding:
    """A finding whose message fits what goes over the wire (1024 characters)."""
    return Finding(code=code, message=message if len(message) <= 1000 else message[:997] + "...")


def verdict(check: str, refused: Iterable[Finding], watch: Iterable[Finding] = ()) -> Verdict:
    """REFUSED if there is any refusal, else WATCH if there is anything to watch, else PASSED."""
    bad, odd = tuple(refused), tuple(watch)
    result = Result.REFUSED if bad else Result.WATCH if odd else Result.PASSED
    return Verdict(check=check, result=result, findings=bad + odd)


def refusals(verdicts: Iterable[Verdict]) -> tuple[Finding, ...]:
    """Every finding of the checks that refused."""
    return tuple(f for v in verdicts if v.result is Result.REFUSED for f in v.findings)


def all_findings(verdicts: Iterable[Verdict]) -> tuple[Finding, ...]:
    """Every finding, refusals first."""
    every = tuple(verdicts)
    return refusals(every) + tuple(f for v in every if v.result is not Result.REFUSED for f in v.findings)
