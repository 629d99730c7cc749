"""Names of UKIs with boot counters: parsed, judged and renamed."""

from __future__ import annotations

import pytest

from nodeos.update.entries import (
    BootEntry,
    can_fall_back,
    failed_version,
    parse_entries,
    parse_name,
    rollback_renames,
)


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("nodeos_1.0.efi", BootEntry(version="1.0")),
        ("nodeos_1.0+3.efi", BootEntry(version="1.0", left=3)),
        ("nodeos_1.0+3-0.efi", BootEntry(version="1.0", left=3)),
        ("nodeos_1.0~rc1+0-3.efi", BootEntry(version="1.0~rc1", left=0, done=3)),
    ],
)
def test_names(name: str, entry: BootEntry) -> None:
    found = parse_name(name)
    assert found is not None
    assert (found.version, found.left, found.done) == (entry.version, entry.left, entry.done)
    assert found.name == name


@pytest.mark.parametrize(
    "name", ["nodeos_.efi", "other_1.0.efi", "nodeos_1.0.efi.bak", "nodeos_1.0+x.efi", "n"]
)
def test_files_of_others(name: str) -> None:
    assert parse_name(name) is None


@pytest.mark.parametrize(
    ("names", "running", "failed", "back"),
    [
        (["nodeos_1.0.efi"], "1.0", None, False),
        (["nodeos_1.0.efi", "nodeos_1.1+2-1.efi"], "1.1", None, True),
        (["nodeos_1.0.efi", "nodeos_1.1+0-3.efi"], "1.0", "1.1", False),
        (["nodeos_1.0.efi", "nodeos_1.1+0-3.efi"], "1.1", None, True),
        # Both were given up: there is nothing to go back to, and a restart would only loop.
        (["nodeos_1.0+0-3.efi", "nodeos_1.1+0-4.efi"], "1.1", "1.0", False),
        # Set aside by a rollback is not failed.
        (["nodeos_1.0.efi", "nodeos_1.1+0.efi"], "1.0", None, False),
    ],
)
def test_fall_back(names: list[str], running: str, failed: str | None, back: bool) -> None:
    entries = parse_entries(names)
    assert failed_version(entries, running) == failed
    assert can_fall_back(entries, running) == back


def test_a_rollback_gives_tries_first_and_sets_aside_second() -> None:
    entries = parse_entries(["nodeos_1.0.efi", "nodeos_1.1.efi"])
    assert rollback_renames(entries, "1.1", "1.0") == (
        ("nodeos_1.0.efi", "nodeos_1.0+3.efi"),
        ("nodeos_1.1.efi", "nodeos_1.1+0.efi"),
    )
    halfway = parse_entries(["nodeos_1.0+3.efi", "nodeos_1.1.efi"])
    assert rollback_renames(halfway, "1.1", "1.0") == (("nodeos_1.1.efi", "nodeos_1.1+0.efi"),)
    with pytest.raises(ValueError, match=r"no entry for 0\.9"):
        rollback_renames(entries, "1.1", "0.9")
