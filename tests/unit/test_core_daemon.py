from __future__ import annotations

from pathlib import Path

import pytest

from nodeos.core.daemon import notify, parse_listen
from nodeos.core.errors import UsageError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:8443", ("127.0.0.1", 8443)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:65535", ("::1", 65535)),
        ("[::]:8080", ("::", 8080)),
    ],
)
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    assert parse_listen(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "8443",
        ":8443",
        "[]:1",
        "localhost",
        "localhost:",
        "a:-1",
        "a:65536",
        "a:000001",
        "a:١",
        "::1:80",
        "[::1:80",
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError, match="expected HOST:PORT"):
        parse_listen(text)


def test_a_supervisor_that_is_gone_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "absent"))
    notify("READY=1")
    assert "systemd can't be told" in capsys.readouterr().err
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify("READY=1")
    assert capsys.readouterr().err == ""
