"""`nodeos flash` as a person runs it, on loop devices. Needs root."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nodeos import cli
from nodeos.core.errors import RefusedError
from nodeos.core.release import Artefact
from nodeos.core.run import run
from nodeos.flash import writer
from nodeos.flash.device import opened
from nodeos.flash.disks import Device
from tests.support import evidence

MIB = 1 << 20
DATA = random.Random(7).randbytes(5 * MIB) + bytes(9 * MIB) + random.Random(8).randbytes(MIB + 100)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "nodeos.raw"
    path.write_bytes(DATA)
    return path


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A loop device full of something else."""
    backing = tmp_path / "disk"
    backing.write_bytes(random.Random(9).randbytes(32 * MIB))
    name = run(["losetup", "--find", "--show", backing], what="making a loop device").decode().strip()
    yield Path(name)
    run(["losetup", "--detach", name], what="removing the loop device")


def nodeos(*words: object) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main([str(word) for word in words])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def manifest(image: Path, data: bytes) -> None:
    artefact = Artefact(size=len(data), sha256=hashlib.sha256(data).digest())
    release = replace(evidence.release(), artefacts={image.name: artefact})
    image.with_name("release.json").write_bytes(release.to_bytes())


def test_written_and_again(image: Path, disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest(image, DATA)
    for _ in range(2):
        assert nodeos("--json", "flash", image, disk, "--yes") == 0
        out, err = capsys.readouterr()
        result = json.loads(out)
        assert (result["device"], result["matches_release"]) == (str(disk), True)
        assert result["sha256"] == hashlib.sha256(DATA).hexdigest()
        events = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
        assert {event["phase"] for event in events} == {"check", "write", "verify"}
        content = disk.read_bytes()
        assert content[: len(DATA)] == DATA
        assert content[-MIB:] == bytes(MIB)


def test_the_list(image: Path, disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert nodeos("--json", "flash", image) == 0
    found = {item["path"]: item for item in json.loads(capsys.readouterr().out)}
    assert found[str(disk)]["refusals"] == []
    assert found[str(disk)]["size"] == 32 * MIB
    assert nodeos("flash", image) == 0
    assert str(disk) in capsys.readouterr().out


def refused(image: Path, disk: Path, capsys: pytest.CaptureFixture[str]) -> set[str]:
    """Flash and expect a refusal that leaves the disk as it was; its codes."""
    before = disk.read_bytes() if disk.is_block_device() else b""
    assert nodeos("--json", "flash", image, disk, "--yes") == 3
    assert not before or disk.read_bytes() == before
    return {item["code"] for item in json.loads(capsys.readouterr().out)["error"]["findings"]}


@pytest.mark.parametrize(
    ("data", "codes"),
    [(DATA[:-1] + b"x", {"image.sha256"}), (DATA + b"x", {"image.size", "image.sha256"})],
)
def test_an_image_of_another_release(
    data: bytes, codes: set[str], image: Path, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest(image, data)
    assert refused(image, disk, capsys) == codes


def test_a_mounted_disk(image: Path, disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["mkfs.ext4", "-q", "-F", disk], what="making a file system")
    point = tmp_path / "a b"
    point.mkdir()
    run(["mount", disk, point], what="mounting")
    try:
        assert refused(image, disk, capsys) == {"disk.mounted"}
    finally:
        run(["umount", point], what="unmounting")


def test_a_disk_that_someone_holds(image: Path, disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    holder = os.open(disk, os.O_RDONLY | os.O_EXCL)
    try:
        assert refused(image, disk, capsys) == {"disk.busy"}
    finally:
        os.close(holder)
    # Locked, as systemd's tools do.
    locker = os.open(disk, os.O_RDONLY)
    try:
        fcntl.flock(locker, fcntl.LOCK_EX)
        assert refused(image, disk, capsys) == {"disk.busy"}
    finally:
        os.close(locker)


def test_what_is_no_whole_disk(image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_bytes(bytes(32 * MIB))
    for path in (tmp_path / "file", Path("/dev/null"), tmp_path / "absent"):
        assert refused(image, path, capsys) == {"disk.kind"}


def test_the_name_must_be_typed(
    image: Path, disk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = disk.read_bytes()
    for answer in ("y", ""):
        monkeypatch.setattr("click.termui.visible_prompt_func", lambda _, answer=answer: answer)
        assert nodeos("flash", image, disk) == 130
        assert disk.read_bytes() == before
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda _: disk.name)
    assert nodeos("flash", image, disk) == 0
    assert "data of an unknown kind" in capsys.readouterr().err
    assert disk.read_bytes()[: len(DATA)] == DATA


def test_yes_needs_a_device(image: Path) -> None:
    assert nodeos("flash", image, "--yes") == 2


def test_a_disk_that_was_exchanged(disk: Path) -> None:
    status = disk.stat()
    number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    seen = Device(name=disk.name, number=number, size=32 * MIB)
    with opened(seen) as target:
        assert target.size == 32 * MIB
    for other in (replace(seen, size=MIB), replace(seen, number="8:0")):
        with pytest.raises(RefusedError) as caught, opened(other):
            pass
        assert [finding.code for finding in caught.value.findings] == ["disk.changed"]


def test_an_image_that_changes_meanwhile(
    image: Path, disk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "digest", lambda *_: bytes(32))
    assert nodeos("flash", image, disk, "--yes") == 1
    assert "changed while it was written" in capsys.readouterr().err


def test_an_interruption_says_what_to_do(
    image: Path, disk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(writer, "verify", interrupted)
        assert nodeos("flash", image, disk, "--yes") == 130
    assert "run the same command again" in capsys.readouterr().err
    assert nodeos("flash", image, disk, "--yes") == 0


def test_a_manifest_that_does_not_know_the_image(image: Path, disk: Path) -> None:
    manifest(image.with_name("other.raw"), DATA)
    assert nodeos("flash", image, disk, "--yes", "--release", image.with_name("release.json")) == 2
