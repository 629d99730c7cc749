"""db and dbx are written to firmware's variables once, signed, and db first; a directory stands for efivarfs."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nodeos.core.efilists import VENDORS
from nodeos.core.errors import NodeosError, UsageError
from nodeos.update.variables import apply_variables, read_lists
from tests.support.release_keys import auth, lists


@dataclass
class Firmware:
    """Files as efivarfs shows them. ``calls`` are the changes of the immutable flag."""

    directory: Path
    calls: list[bool] = field(default_factory=list)

    def put(self, name: str, value: bytes) -> None:
        self.path(name).write_bytes(struct.pack("<I", 0x27) + value)

    def path(self, name: str) -> Path:
        return self.directory / f"{name}-{VENDORS[name]}"

    def immutable(self, descriptor: int, wanted: bool) -> bool:
        self.calls.append(wanted)
        return True

    def apply(self, **updates: bytes) -> tuple[str, ...]:
        return apply_variables(updates, self.directory, self.immutable)


@pytest.fixture
def firmware(tmp_path: Path) -> Firmware:
    found = Firmware(tmp_path)
    for name in ("PK", "KEK", "db"):
        found.put(name, lists(name))
    return found


def test_setting_db_then_dbx(firmware: Firmware) -> None:
    db, dbx = auth("db", lists("new")), auth("dbx", lists("db"))
    assert firmware.apply(dbx=dbx, db=db) == ("db", "dbx")
    assert firmware.path("db").read_bytes() == struct.pack("<I", 0x27) + db
    assert firmware.path("dbx").read_bytes() == struct.pack("<I", 0x27) + dbx
    # db was guarded before; dbx wasn't there.
    assert firmware.calls == [False, True]


def test_appending_says_so_in_the_attributes(firmware: Firmware) -> None:
    update = auth("db", lists("new"), append=True)
    assert firmware.apply(db=update) == ("db",)
    assert firmware.path("db").read_bytes() == struct.pack("<I", 0x67) + update


def test_what_is_applied_already_is_left_alone(firmware: Firmware) -> None:
    assert firmware.apply(db=auth("db", lists("db"))) == ()
    assert firmware.apply(db=auth("db", lists("db"), append=True)) == ()
    assert firmware.calls == []


def test_an_update_by_a_stranger_is_never_written(firmware: Firmware) -> None:
    before = firmware.path("db").read_bytes()
    with pytest.raises(UsageError, match=r"db\.auth is not signed"):
        firmware.apply(db=auth("db", lists("new"), signer="other"))
    assert firmware.path("db").read_bytes() == before


def test_the_guard_is_put_back_after_a_refusal(firmware: Firmware) -> None:
    def immutable(descriptor: int, wanted: bool) -> bool:
        firmware.calls.append(wanted)
        if not wanted:
            firmware.path("db").unlink()
            firmware.path("db").mkdir()  # what the firmware refuses
        return True

    with pytest.raises(NodeosError, match="the firmware refuses the new db"):
        apply_variables({"db": auth("db", lists("new"))}, firmware.directory, immutable)
    assert firmware.calls == [False, True]


def test_variables_that_are_not_there_are_empty(tmp_path: Path) -> None:
    assert read_lists(tmp_path) == {"PK": b"", "KEK": b"", "db": b"", "dbx": b""}
    (tmp_path / f"db-{VENDORS['db']}").write_bytes(b"")
    assert read_lists(tmp_path)["db"] == b""
