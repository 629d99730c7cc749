"""What the state's program does when the TPM gives no answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hsm.errors import TpmMissingError, TpmPcrError
from nodeos.core.errors import NodeosError
from nodeos.state import service
from nodeos.state.host import Host


class Patient(Host):
    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.said: list[str] = []
        self.waits = 0

    def say(self, words: str) -> None:
        self.said.append(words)

    def wait(self, seconds: float) -> None:
        self.waits += 1


def outcome(host: Patient, monkeypatch: pytest.MonkeyPatch, *errors: NodeosError | None) -> Any:
    """The runs end with these errors, None is a success."""
    left = list(errors)
    opened: list[bool] = []

    @contextmanager
    def open_tpm() -> Iterator[Any]:
        opened.append(True)
        yield object()

    def run(*_: Any, **__: Any) -> str:
        error = left.pop(0)
        if error is not None:
            raise error
        return "open"

    monkeypatch.setattr(service, "run", run)
    try:
        return service.run_patiently(host, open_tpm, extra=host.run, library=host.run)
    finally:
        assert not left
        assert len(opened) == len(errors)


def silent() -> TpmMissingError:
    return TpmMissingError("unsealing: no answer from the TPM", hint="look at it")


def test_a_tpm_that_answers_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Patient(tmp_path)
    assert outcome(host, monkeypatch, silent(), silent(), None) == "open"
    assert host.said == ["unsealing: no answer from the TPM; trying again"] * 2
    assert host.waits == 2


def test_a_tpm_that_never_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TpmMissingError):
        outcome(Patient(tmp_path), monkeypatch, silent(), silent(), silent())


def test_what_the_tpm_refuses_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Patient(tmp_path)
    with pytest.raises(TpmPcrError):
        outcome(host, monkeypatch, TpmPcrError("the PCRs are others", hint="power-cycle"))
    assert (host.said, host.waits) == ([], 0)
