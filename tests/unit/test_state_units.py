"""The units that open the state volume, held against each other and against the files that they name."""

from __future__ import annotations

from pathlib import Path

import pytest

IMAGE = Path(__file__).resolve().parents[2] / "image"
UNITS = IMAGE / "initrd/extra/usr/lib/systemd/system"


def settings(name: str) -> list[str]:
    lines = (UNITS / name).read_text().splitlines()
    return [line for line in lines if "=" in line and not line.startswith("#")]


def test_the_code_comes_from_the_verified_root() -> None:
    unit = settings("nodeos-state.service")
    assert {"RootDirectory=/sysroot", "BindPaths=/dev /run /sys /proc", "MountAPIVFS=no"} < set(unit)
    [program] = [line.removeprefix("ExecStart=") for line in unit if line.startswith("ExecStart=")]
    assert (IMAGE / "extra" / program[1:]).stat().st_mode & 0o111
    assert not (IMAGE / "initrd/extra" / program[1:]).exists()
    from nodeos.state.__main__ import EXTRA

    assert f"BindReadOnlyPaths=-/.extra:{EXTRA}" in unit


@pytest.mark.parametrize("name", ["nodeos-state.service", "nodeos-locked.service", "sysroot-var.mount"])
def test_the_volume_outlives_the_initrd(name: str) -> None:
    unit = settings(name)
    assert "IgnoreOnIsolate=yes" in unit
    assert not [line for line in unit if line.startswith(("Requires=", "BindsTo=")) and "pcrphase" in line]


def test_var_is_the_volume_or_in_memory_and_never_both() -> None:
    from nodeos.core.statereport import LOCKED

    assert f"ConditionPathExists=!{LOCKED}" in settings("sysroot-var.mount")
    assert f"ConditionPathExists={LOCKED}" in settings("nodeos-locked.service")
    wanted = {path.name for path in (UNITS / "initrd-fs.target.requires").iterdir()}
    assert wanted == {"sysroot-var.mount", "nodeos-locked.service"}


def test_a_failure_ends_the_boot() -> None:
    for name in ("nodeos-state.service", "nodeos-locked.service"):
        assert "OnFailure=emergency.target" in settings(name)
    assert "Requires=nodeos-state.service sysroot.mount" in settings("sysroot-var.mount")


def test_the_volume_may_take_as_long_as_its_program() -> None:
    from nodeos.state.host import MAPPED

    device = MAPPED.removeprefix("/dev/").replace("/", "-")
    assert "JobRunningTimeoutSec=infinity" in settings(f"dev-{device}.device.d/10-nodeos.conf")
    assert f"What={MAPPED}" in settings("sysroot-var.mount")
    assert "TimeoutStartSec=infinity" in settings("nodeos-state.service")
