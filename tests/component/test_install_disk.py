"""`nodeos install` on disk images and loop devices: the same bytes each time, whatever cuts it off. Needs root."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from nodeos import cli
from nodeos.core import layout
from nodeos.core.errors import NodeosError, RefusedError, UsageError
from nodeos.core.gpt import MIB, Table
from nodeos.core.run import find_tool, run
from nodeos.flash.writer import Target
from nodeos.install import esp
from nodeos.install.survey import get
from nodeos.install.target import Disk, open_file
from nodeos.install.writer import Outcome, install
from tests.support import installable
from tests.support.installable import CONTENT, ROOT_HASH, Installable

SIZE = layout.MINIMUM + 3 * MIB
DISK_UUID = UUID("11111111-2222-4333-8444-555555555555")


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Installable:
    return installable.make(tmp_path_factory.mktemp("install") / "release")


@pytest.fixture(scope="module")
def finished(release: Installable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk image that was installed without any trouble."""
    path = tmp_path_factory.mktemp("finished") / "disk.raw"
    with open_file(path, SIZE) as disk:
        put(release, disk)
    return path


def put(release: Installable, disk: Disk, **more: Any) -> Outcome:
    return install(
        release.source(), disk, site=release.site, progress=lambda *_: None, disk_uuid=DISK_UUID, **more
    )


def table_of(path: Path, sector: int = 512, size: int = SIZE) -> Table:
    with path.open("rb") as file:

        def read_at(offset: int, length: int) -> bytes:
            file.seek(offset)
            return file.read(length)

        return Table.parse(read_at, size, sector)


def at(path: Path, offset: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(length)


def on_esp(path: Path, name: str) -> bytes:
    mcopy = find_tool("mcopy", package="mtools")
    return run([mcopy, "-n", "-i", f"{path}@@{MIB}", f"::{name}", "-"], what=f"reading {name}")


def same(one: Path, other: Path) -> bool:
    return one.stat().st_size == other.stat().st_size and used(one) == used(other)


def used(path: Path) -> dict[int, bytes]:
    """The chunks of a sparse file that aren't zero: reading all of its holes takes long."""
    found: dict[int, bytes] = {}
    offset = 0
    with path.open("rb", buffering=0) as file:
        while True:
            try:
                offset = os.lseek(file.fileno(), offset, os.SEEK_DATA) // MIB * MIB
            except OSError:
                return found
            data = os.pread(file.fileno(), MIB, offset)
            if any(data):
                found[offset] = data
            offset += MIB


def test_content(release: Installable, finished: Path) -> None:
    table = table_of(finished)
    assert table == layout.plan(SIZE, 512, version="0.2.0", root_hash=ROOT_HASH, disk_uuid=DISK_UUID)
    slot, other = layout.slots(table)
    assert (slot.version, other.empty) == ("0.2.0", True)
    for part, name in zip(slot.partitions, ("root.raw", "verity.raw", "verity-sig.json"), strict=True):
        assert at(finished, part.start, len(CONTENT[name])) == CONTENT[name]
    state = layout.state(table)
    assert not any(at(finished, state.start, MIB) + at(finished, state.end - MIB, MIB))
    assert on_esp(finished, "EFI/BOOT/BOOTX64.EFI") == CONTENT["boot.efi"]
    assert on_esp(finished, "EFI/systemd/systemd-bootx64.efi") == CONTENT["boot.efi"]
    assert on_esp(finished, "EFI/Linux/nodeos_0.2.0.efi") == CONTENT["nodeos.efi"]
    for name in ("PK", "KEK", "db"):
        assert on_esp(finished, f"loader/keys/auto/{name}.auth") == CONTENT[f"{name}.auth"]
    assert b"secure-boot-enroll if-safe" in on_esp(finished, "loader/loader.conf")
    assert on_esp(finished, "nodeos/site.json") == release.site.document
    assert on_esp(finished, "nodeos/site.sig") == release.site.signature


def test_other_programs_agree(finished: Path, tmp_path: Path) -> None:
    sgdisk = find_tool("sgdisk", package="gdisk")
    assert b"No problems found" in run([sgdisk, "--verify", finished], what="checking the table")
    told = run([sgdisk, "--info=2", finished], what="reading the table").decode().lower()
    assert f"partition unique guid: {UUID(bytes=ROOT_HASH[:16])}" in told
    assert "attribute flags: 1000000000000000" in told
    volume = tmp_path / "esp"
    with volume.open("wb") as file:
        file.write(at(finished, MIB, 64 * MIB))
        file.truncate(layout.ESP_SIZE)
    run([find_tool("fsck.vfat", package="dosfstools"), "-n", volume], what="checking the ESP")


@pytest.mark.parametrize("sector", [512, 4096])
def test_the_same_input_gives_the_same_bytes(
    sector: int, release: Installable, finished: Path, tmp_path: Path
) -> None:
    images = [tmp_path / "one", tmp_path / "two"]
    for path in images:
        with open_file(path, SIZE // 4096 * 4096, sector) as disk:
            assert not put(release, disk).resumed
    assert same(*images)
    assert same(finished, images[0]) == (sector == 512)
    assert table_of(images[0], sector).word is None
    assert on_esp(images[0], "EFI/Linux/nodeos_0.2.0.efi") == CONTENT["nodeos.efi"]


class PowerCut(Exception):
    """The machine is off."""


class Failing:
    """A target that is cut off at its ``end``-th change; of a long write the first half arrives."""

    def __init__(self, target: Target, end: int) -> None:
        self.size, self.sector = target.size, target.sector
        self.log: list[tuple[str, int]] = []
        self._target, self._end = target, end

    def _change(self, name: str, offset: int) -> bool:
        self.log.append((name, offset))
        return len(self.log) == self._end

    def write(self, offset: int, data: memoryview) -> None:
        if self._change("write", offset):
            self._target.write(offset, data[: len(data) // 2 // self.sector * self.sector])
            raise PowerCut
        self._target.write(offset, data)

    def zero(self, offset: int, length: int) -> None:
        if self._change("zero", offset):
            raise PowerCut
        self._target.zero(offset, length)

    def sync(self) -> None:
        self._target.sync()

    def forget(self) -> None:
        self._target.forget()

    def read(self, offset: int, into: memoryview) -> None:
        self._target.read(offset, into)


def cut(path: Path, release: Installable, end: int) -> list[tuple[str, int]]:
    """Install until the power is cut; the changes up to there."""
    with open_file(path, SIZE) as disk:
        failing = Failing(disk.target, end)
        with pytest.raises(PowerCut):
            put(release, replace(disk, target=failing))
    return failing.log


@pytest.fixture(scope="module")
def changes(release: Installable, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, int]]:
    """Every change that an installation makes, in its order."""
    with open_file(tmp_path_factory.mktemp("log") / "disk", SIZE) as disk:
        logged = Failing(disk.target, -1)
        put(release, replace(disk, target=logged))
    return logged.log


def test_the_order_of_the_changes(changes: list[tuple[str, int]], finished: Path) -> None:
    table = table_of(finished)
    assert changes[:3] == [("write", 0), ("zero", 512), ("write", MIB - 4096)]
    assert changes[-3:] == [("write", table.backup_offset), ("write", 512), ("write", 0)]
    assert all(MIB <= offset < table.backup_offset for _, offset in changes[4:-3])


POINTS = {
    "marker": lambda log: 1,
    "old tables": lambda log: 2,
    "the ESP": lambda log: log.index(("write", MIB)) + 1,
    "the root": lambda log: log.index(("write", MIB + layout.ESP_SIZE + 4 * MIB)) + 1,
    "the backup table": lambda log: len(log) - 2,
    "the primary table": lambda log: len(log) - 1,
    "the protective MBR": len,
}  # fmt: skip


@pytest.mark.parametrize("point", POINTS)
def test_a_power_cut(
    point: str, release: Installable, finished: Path, changes: list[tuple[str, int]], tmp_path: Path
) -> None:
    path = tmp_path / "disk"
    log = cut(path, release, POINTS[point](changes))
    assert log == changes[: len(log)]
    assert at(path, 510, 2) != b"\x55\xaa", "without a protective MBR nothing starts from it"
    with open_file(path, SIZE) as disk:
        outcome = put(release, disk)
    assert outcome.resumed == (point != "marker")
    root = 2 in outcome.written
    assert root == (point in ("marker", "old tables", "the ESP", "the root"))
    assert same(path, finished)


def test_a_resumed_run_may_be_cut_too(release: Installable, finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "disk"
    for end in (4, 8, 300):
        cut(path, release, end)
    with open_file(path, SIZE) as disk:
        assert put(release, disk).resumed
    assert same(path, finished)


def test_the_state_is_not_touched_once_the_table_is_there(
    release: Installable, changes: list[tuple[str, int]], tmp_path: Path
) -> None:
    """Firmware that does without a protective MBR may have started the system meanwhile."""
    path = tmp_path / "disk"
    cut(path, release, len(changes))
    state = layout.state(layout.plan(SIZE, 512, version="0.2.0", root_hash=ROOT_HASH, disk_uuid=DISK_UUID))
    with path.open("r+b") as file:
        file.seek(state.start)
        file.write(b"LUKS\xba\xbe")
    with open_file(path, SIZE) as disk:
        assert put(release, disk).resumed
    assert at(path, state.start, 6) == b"LUKS\xba\xbe"
    assert table_of(path).word is None


@pytest.mark.parametrize("what", ["site", "release", "size"])
def test_an_unfinished_installation_of_something_else(
    what: str, release: Installable, tmp_path: Path
) -> None:
    path = tmp_path / "disk"
    cut(path, release, 30)
    source, site, size = release.source(), release.site, SIZE
    if what == "site":
        site = replace(site, document=site.document + b" ")
    elif what == "release":
        source = replace(source, digest=bytes(32))
    else:
        size += MIB
        with path.open("r+b") as file:
            file.truncate(size)
    before = at(path, 0, MIB)
    with open_file(path, size) as disk, pytest.raises(RefusedError, match=r"disk\.data.*something else"):
        install(source, disk, site=site, progress=lambda *_: None)
    assert at(path, 0, MIB) == before


def test_a_finished_one_is_data(release: Installable, finished: Path) -> None:
    with open_file(finished, SIZE) as disk, pytest.raises(RefusedError) as caught:
        put(release, disk)
    assert {finding.code for finding in caught.value.findings} == {"disk.data"}
    assert "GPT" in caught.value.findings[0].message


@pytest.mark.parametrize("offset", [5000, MIB + 3, SIZE - 7])
def test_any_data_counts(offset: int, release: Installable, tmp_path: Path) -> None:
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.truncate(SIZE)
        file.seek(offset)
        file.write(b"x")
    with open_file(path, SIZE) as disk, pytest.raises(RefusedError, match="holds data"):
        put(release, disk)
    assert at(path, 0, 512) == bytes(512)


def test_a_disk_that_lies(release: Installable, tmp_path: Path) -> None:
    """What was written is not what is read."""

    class Lying(Failing):
        def write(self, offset: int, data: memoryview) -> None:
            if offset == MIB + layout.ESP_SIZE:
                data[7] ^= 1
            super().write(offset, data)

    path = tmp_path / "disk"
    with open_file(path, SIZE) as disk:
        lying = Lying(disk.target, -1)
        with pytest.raises(
            NodeosError, match=r"does not hold what was written: partition 2 \(nodeos_0\.2\.0\)"
        ):
            put(release, replace(disk, target=lying))
    assert at(path, 510, 2) == bytes(2)


@pytest.mark.parametrize("name", ["root.raw", "verity-sig.json", "nodeos.efi", "db.auth"])
def test_a_damaged_release(name: str, tmp_path: Path) -> None:
    release = installable.make(tmp_path / "release")
    data = bytearray((release.directory / name).read_bytes())
    data[-1] ^= 1
    (release.directory / name).write_bytes(data)
    with open_file(tmp_path / "disk", SIZE) as disk:
        with pytest.raises(RefusedError) as caught:
            put(release, disk)
        assert get(disk.target, 0, MIB) == bytes(MIB)
    assert [(item.code, name in item.message) for item in caught.value.findings] == [("release.file", True)]
    (release.directory / name).unlink()
    with open_file(tmp_path / "disk", SIZE) as disk, pytest.raises(UsageError, match=name):
        put(release, disk)


# ---- on loop devices, as a person runs it


@contextmanager
def loop(path: Path, sector: int = 512) -> Iterator[Path]:
    words: list[str | Path] = ["losetup", "--find", "--show", "--sector-size", str(sector), path]
    name = run(words, what="making a loop device").decode().strip()
    try:
        yield Path(name)
    finally:
        run(["losetup", "--detach", name], what="removing the loop device")


def nodeos(*words: object) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main([str(word) for word in words])
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.fixture
def words(release: Installable, tmp_path: Path) -> list[object]:
    """The options that every installation needs."""
    keys = tmp_path / "keys"
    keys.mkdir()
    release.write_keys(keys)
    return [
        "--json", "install", release.directory, "--site", keys / "site", "--site-key", keys / "site.pub.pem",
        "--release-key", keys / "release.pub.pem", "--disk-uuid", DISK_UUID, "--challenge", tmp_path / "challenge",
    ]  # fmt: skip


def sparse(path: Path, size: int = SIZE) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


def test_a_file_by_command(
    words: list[object], finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "disk.raw"
    assert nodeos(*words, "--file", path, "--size", SIZE) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["verdict"], result["root_hash"]) == ("installed", ROOT_HASH.hex())
    assert result["partitions"][1]["label"] == "nodeos_0.2.0"
    assert same(path, finished)
    assert nodeos(*words, "--file", path, "--size", SIZE) == 3
    assert nodeos(*words, "--file", path, "--size", "9G") == 2


@pytest.mark.parametrize("sector", [512, 4096])
def test_an_empty_disk(
    sector: int, words: list[object], finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backing = sparse(tmp_path / "disk")
    with loop(backing, sector) as device:
        assert nodeos(*words, device, "--yes", "--serial", device.name) == 0
        result = json.loads(capsys.readouterr().out)
        assert (result["target"], result["erased"], result["disk"]["sector"]) == (str(device), [], sector)
        kernel = sorted(Path("/sys/block", device.name).glob("loop*p*"))
        assert not result["partitions_reread"] or len(kernel) in (0, 8)
    assert table_of(backing, sector).word is None
    assert sector == 4096 or same(backing, finished)


def test_a_used_disk_needs_the_operator(
    words: list[object], finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backing = sparse(tmp_path / "disk")
    run(["mkfs.ext4", "-q", "-F", backing], what="making a file system")
    challenge, token = tmp_path / "challenge", tmp_path / "token"
    identity = tmp_path / "keys/operator.json"
    with loop(backing) as device:
        sure: list[object] = ["--yes", "--serial", device.name]
        assert nodeos(*words, device, *sure) == 3
        told = json.loads(capsys.readouterr().out)["error"]
        assert {item["code"] for item in told["findings"]} == {"disk.data"}
        assert "ext4" in told["message"]
        assert challenge.read_text() in told["hint"]
        kept = challenge.read_bytes()
        assert nodeos("operator", "allow-erase", challenge, "--identity", identity, "--out", token) == 0
        sure += ["--erase-token", token]
        # A token of somebody else, and one that was changed.
        other = json.loads(token.read_text())
        other["signature"] = other["signature"][::-1].lstrip("=") + "=="
        (tmp_path / "wrong").write_text(json.dumps(other))
        assert nodeos(*words, device, *sure[:-1], tmp_path / "wrong") == 3
        assert "ext4" in run(["blkid", "-p", device], what="probing").decode()
        capsys.readouterr()
        assert nodeos(*words, device, *sure) == 0
        assert "ext4" in json.loads(capsys.readouterr().out)["erased"][0]
        # The same again, with a copy of the challenge that it was for.
        challenge.write_bytes(kept)
        assert nodeos(*words, device, *sure) == 3
        told = json.loads(capsys.readouterr().out)["error"]
        assert [item["code"] for item in told["findings"]] == ["erase.used"]
    table = table_of(backing)
    assert table == table_of(finished)


def test_it_asks(
    words: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    backing = sparse(tmp_path / "disk")
    with loop(backing) as device:
        monkeypatch.setattr("click.termui.visible_prompt_func", lambda _: "yes")
        assert nodeos(*words, device) == 130
        assert nodeos(*words, device, "--yes") == 2
        assert nodeos(*words, device, "--yes", "--serial", "another") == 2
        assert "not 'another'" in capsys.readouterr().out
    assert at(backing, 0, MIB) == bytes(MIB)


def test_disks_that_are_left_alone(
    words: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def codes(device: Path) -> set[str]:
        assert nodeos(*words, device, "--yes", "--serial", device.name) == 3
        return {item["code"] for item in json.loads(capsys.readouterr().out)["error"]["findings"]}

    point = tmp_path / "point"
    point.mkdir()
    backing = sparse(tmp_path / "disk")
    run(["mkfs.ext4", "-q", "-F", backing], what="making a file system")
    with loop(backing) as device:
        run(["mount", device, point], what="mounting")
        try:
            assert codes(device) == {"disk.mounted"}
        finally:
            run(["umount", point], what="unmounting")
    with loop(sparse(tmp_path / "small", layout.MINIMUM - 4096)) as device:
        assert codes(device) == {"disk.too_small"}
    assert codes(tmp_path / "disk") == {"disk.kind"}


def test_the_medium_is_left_alone(release: Installable, tmp_path: Path) -> None:
    from nodeos.install.target import open_disk

    point = tmp_path / "point"
    point.mkdir()
    backing = sparse(tmp_path / "disk")
    run(["mkfs.ext4", "-q", "-F", backing], what="making a file system")
    with loop(backing) as device:
        run(["mount", device, point], what="mounting")
        try:
            with pytest.raises(RefusedError) as caught, open_disk(device, point):
                pass
        finally:
            run(["umount", point], what="unmounting")
    assert {finding.code for finding in caught.value.findings} == {"disk.mounted", "disk.image"}


def test_files_go_into_folders_that_are_there_and_into_new_ones(tmp_path: Path) -> None:
    disk = tmp_path / "esp.raw"
    esp.make(disk, {"loader/loader.conf": b"a"}, sector=512, volume_id=1, epoch=0)
    esp.write_files(str(disk), {"loader/loader.conf": b"b", "loader/entries/x.conf": b"c"})
    mtype = find_tool("mtype", package="mtools")
    for name, content in (("loader/loader.conf", b"b"), ("loader/entries/x.conf", b"c")):
        assert run([mtype, "-i", disk, f"::{name}"], what="reading") == content
