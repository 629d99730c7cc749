"""When the Python packages of the image are fetched anew."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from image import wheels
from nodeos.core.errors import ToolError


class Pip:
    """Stands in for pip: puts a file for each lock into the folder that it is told."""

    def __init__(self) -> None:
        self.locks: list[str] = []
        self.fails_at: str | None = None

    def run(self, command: Sequence[str | Path], **_: Any) -> bytes:
        words = [str(word) for word in command]
        assert "--require-hashes" in words
        lock = Path(words[words.index("-r") + 1]).name
        self.locks.append(lock)
        if lock == self.fails_at:
            raise ToolError("no network")
        (Path(words[words.index("--dest") + 1]) / f"{lock}.whl").touch()
        return b""


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> Pip:
    made = Pip()
    monkeypatch.setattr(wheels, "run", made.run)
    return made


@pytest.fixture
def locks(tmp_path: Path) -> Path:
    folder = tmp_path / "locks"
    folder.mkdir()
    (folder / "node.txt").write_text("a==1\n")
    (folder / "build.txt").write_text("b==1\n")
    return folder


def test_fetched_once(pip: Pip, locks: Path, tmp_path: Path) -> None:
    for _ in range(2):
        assert wheels.fetch(locks, tmp_path / "wheels") == tmp_path / "wheels"
    assert pip.locks == ["node.txt", "build.txt"]


@pytest.mark.parametrize("name", ["node.txt", "build.txt"])
def test_changed_lock(name: str, pip: Pip, locks: Path, tmp_path: Path) -> None:
    folder = wheels.fetch(locks, tmp_path / "wheels")
    (folder / "left-over.whl").touch()
    (locks / name).write_text("c==2\n")
    wheels.fetch(locks, folder)
    assert len(pip.locks) == 4
    assert not (folder / "left-over.whl").exists()


@pytest.mark.parametrize("name", ["node.txt", "build.txt"])
def test_half_fetched_is_not_taken_for_whole(name: str, pip: Pip, locks: Path, tmp_path: Path) -> None:
    pip.fails_at = name
    with pytest.raises(ToolError):
        wheels.fetch(locks, tmp_path / "wheels")
    pip.fails_at = None
    folder = wheels.fetch(locks, tmp_path / "wheels")
    assert sorted(path.name for path in folder.glob("*.whl")) == ["build.txt.whl", "node.txt.whl"]


def test_hashes_of_what_was_fetched(tmp_path: Path) -> None:
    (tmp_path / "a-1-py3-none-any.whl").write_bytes(b"a")
    (tmp_path / "b-1.tar.gz").write_bytes(b"b")
    (tmp_path / ".locks").write_bytes(b"not a package")
    expected = {hashlib.sha256(data).hexdigest() for data in (b"a", b"b")}
    assert wheels.hashes(tmp_path) == expected
