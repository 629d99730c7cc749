"""The project's errors.

    NodeosError            1  something failed
    ├── UsageError         2  wrong arguments, files or configuration
    ├── RefusedError       3  a policy said no; carries every finding
    ├── ToolError          1  a program failed or is missing
    └── UnreachableError   1  a service did not answer; worth trying again

The number is the exit code of the command line. Only ``nodeos.cli.main`` exits.
A message says what happened and where; the hint says what to do next.
"""

from __future__ import annotations

from dataclasses import dataclass


class NodeosError(Exception):
    """Base of all expected failures: ``message`` for what happened, ``hint`` for what to do next."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  → {self.hint}" if self.hint else self.message


class UsageError(NodeosError):
    """Wrong arguments, a file that can't be read as what it should be, or bad configuration."""

    exit_code = 2


class ToolError(NodeosError):
    """A program that this project runs failed or is missing."""


class UnreachableError(NodeosError):
    """A service did not answer. Trying again later may help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One result of a check. ``code`` is stable and for machines, ``message`` is for people."""

    code: str
    message: str

    def to_json(self) -> dict[str, str]:
        return {"code": self.code, "message": self.message}


class RefusedError(NodeosError):
    """A policy check said no. ``findings`` holds every reason, never just the first."""

    exit_code = 3

    def __init__(self, message: str, findings: tuple[Finding, ...], *, hint: str | None = None) -> None:
        if not findings:
            raise ValueError("a refusal needs at least one finding")
        lines = "".join(f"\n  ✗ {f.code}: {f.message}" for f in findings)
        super().__init__(message + lines, hint=hint)
        self.findings = findings
