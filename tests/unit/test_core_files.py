from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from nodeos.core.errors import UsageError
from nodeos.core.files import read_file, write_atomic, write_new


def test_write_atomic_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_secrets_are_for_their_owner_only(tmp_path: Path) -> None:
    write_new(tmp_path / "key", b"secret")
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


def test_write_new_refuses_to_overwrite(tmp_path: Path) -> None:
    path = tmp_path / "key"
    write_new(path, b"first")
    with pytest.raises(UsageError, match="is there already") as caught:
        write_new(path, b"second", hint="think again")
    assert caught.value.hint == "think again"
    assert path.read_bytes() == b"first"


def test_a_failed_write_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_read_file_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"site key .*absent: No such file"):
        read_file(tmp_path / "absent", "site key")


def test_read_file_has_a_limit(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_file(tmp_path / "file", "thing", limit=5) == b"12345"
    with pytest.raises(UsageError, match="larger than 4 bytes"):
        read_file(tmp_path / "file", "thing", limit=4)
