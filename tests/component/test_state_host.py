"""The edges of the state volume's opening that need no device-mapper: file systems on a loop device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeos.core.errors import NodeosError
from nodeos.core.run import find_tool, run
from nodeos.state import host as hosts
from nodeos.state.disks import NotThereYetError, find
from nodeos.state.host import Host

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="loop devices need root")


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A loop device in the place of the mapped volume."""
    image = tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    losetup = find_tool("losetup", package="mount")
    name = run([losetup, "--find", "--show", image], what="making a loop device").decode().strip()
    monkeypatch.setattr(hosts, "MAPPED", name)
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin:/sbin")
    yield name
    run([losetup, "--detach", name], what="removing a loop device")


def test_file_system_is_made_checked_and_used(device: str, tmp_path: Path) -> None:
    host = Host(tmp_path / "run")
    host.make_filesystem()
    host.check_filesystem()
    with host.volume() as var:
        (var / "file").write_bytes(b"kept")
    host.check_filesystem()
    with host.volume() as var:
        assert (var / "file").read_bytes() == b"kept"
    assert list(host.run.iterdir()) == []


def test_damaged_file_system_is_told(device: str, tmp_path: Path) -> None:
    host = Host(tmp_path / "run")
    with pytest.raises(NodeosError, match="is damaged"):
        host.check_filesystem()


def test_bytes_of_a_device(device: str, tmp_path: Path) -> None:
    host = Host(tmp_path / "run")
    host.write(device, 512, b"x" * (3 << 20))
    assert host.read(device, 0, 513) == bytes(512) + b"x"
    assert host.read(device, 512, 3 << 20) == b"x" * (3 << 20)
    host.write(device, (64 << 20) - 512, b"y" * 512)
    assert host.read(device, -1024, 1024) == bytes(512) + b"y" * 512
    with pytest.raises(NodeosError, match="can't be written"):
        host.write("/dev/no-disk", 0, b"x")
    with pytest.raises(NodeosError, match="can't be read"):
        host.read("/dev/no-disk", 0, 1)


def test_the_list_of_disks_has_the_form_that_is_read(tmp_path: Path) -> None:
    run_settle_free = run(
        ["lsblk", "--json", "--list", "--paths", "--output", "NAME,TYPE,PKNAME,PARTUUID,PARTTYPE"],
        what="listing the disks",
    )
    with pytest.raises(NotThereYetError):
        find(run_settle_free, "6b1c7f3e-0d5a-4c39-9f2e-5a1f0c9d7e11")
