from __future__ import annotations

from pathlib import Path

import pytest

from nodeos.agent.memory import memory_encryption, require
from nodeos.core.errors import NodeosError
from nodeos.core.site import MemoryPolicy

PLAIN = "6,0,0,-;Linux version 6.12\n6,1,5,-;Command line: quiet\n"
ACTIVE = "6,2,9,-;Memory Encryption Features active: AMD SME\n"


def claim(tmp_path: Path, *, log: str | None, flags: str | None = "fpu aes", tsme: str | None = None) -> str:
    paths = {"kernel_log": tmp_path / "kmsg", "cpuinfo": tmp_path / "cpuinfo", "pci": tmp_path / "pci"}
    if log is not None:
        paths["kernel_log"].write_text(log)
    if flags is not None:
        paths["cpuinfo"].write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    if tsme is not None:
        device = paths["pci"] / "0000:00:00.2"
        device.mkdir(parents=True)
        (device / "tsme_status").write_text(tsme + "\n")
    return memory_encryption(**paths)


def test_the_kernel_says_so(tmp_path: Path) -> None:
    assert claim(tmp_path, log=PLAIN + ACTIVE) == "active"


def test_the_kernel_of_6_1_and_intel_say_so(tmp_path: Path) -> None:
    assert claim(tmp_path, log="6,3,9,-;AMD Memory Encryption Features active: SEV\n") == "active"
    assert claim(tmp_path, log="6,3,9,-;x86/tme: enabled by BIOS\n") == "active"


def test_the_register_says_so(tmp_path: Path) -> None:
    assert claim(tmp_path, log=None, tsme="1") == "active"


@pytest.mark.parametrize("priority", ["14", "x", ""])
def test_what_user_space_writes_into_the_log_counts_for_nothing(tmp_path: Path, priority: str) -> None:
    assert claim(tmp_path, log=PLAIN + ACTIVE.replace("6,", f"{priority},", 1)) == "absent"


def test_absent_needs_the_whole_log_and_a_processor_without_it(tmp_path: Path) -> None:
    assert claim(tmp_path, log=PLAIN) == "absent"


@pytest.mark.parametrize("flag", ["sme", "sev", "tme", "tdx_guest"])
def test_a_processor_that_could_is_unknown(tmp_path: Path, flag: str) -> None:
    assert claim(tmp_path, log=PLAIN, flags=f"fpu {flag}") == "unknown"


def test_a_log_without_its_beginning_is_unknown(tmp_path: Path) -> None:
    assert claim(tmp_path, log=PLAIN.splitlines(keepends=True)[1]) == "unknown"


def test_a_log_that_is_forbidden_is_unknown(tmp_path: Path) -> None:
    assert claim(tmp_path, log=None) == "unknown"
    assert claim(tmp_path, log="") == "unknown"


def test_an_unreadable_processor_or_a_register_that_says_no_is_unknown(tmp_path: Path) -> None:
    assert claim(tmp_path, log=PLAIN, flags=None) == "unknown"
    assert claim(tmp_path, log=PLAIN, tsme="0") == "unknown"


def test_this_machine_gives_one_of_three_answers() -> None:
    assert memory_encryption() in ("active", "absent", "unknown")


@pytest.mark.parametrize("claim", ["absent", "unknown"])
def test_site_that_requires_encrypted_memory(claim: str) -> None:
    require(MemoryPolicy.REQUIRE, "active")
    require(MemoryPolicy.REPORT, claim)
    with pytest.raises(NodeosError, match="requires encrypted memory") as caught:
        require(MemoryPolicy.REQUIRE, claim)
    assert "firmware" in (caught.value.hint or "")
