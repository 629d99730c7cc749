"""What is said of two builds: each test makes one thing differ."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest

from image import reproduce
from image.builder import Built
from image.measure import Uki
from nodeos.core.errors import Finding, UsageError
from nodeos.core.release import BootPhase
from nodeos.core.run import run
from tests.support import evidence

RELEASE = evidence.release("1.2.3")


@pytest.fixture
def trees(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("first", "second"):
        root = tmp_path / name
        (root / "etc").mkdir(parents=True)
        (root / "etc/hostname").write_text("node\n")
        (root / "link").symlink_to("etc/hostname")
        for path in (root / "etc/hostname", root / "etc"):
            os.utime(path, (1000, 1000))
        os.utime(root / "link", (1000, 1000), follow_symlinks=False)
    return tmp_path / "first", tmp_path / "second"


def found(trees: tuple[Path, Path]) -> list[str]:
    first, second = (reproduce.tree(root) for root in trees)
    return [finding.message for finding in reproduce.compare_trees(first, second)]


def test_equal_trees(trees: tuple[Path, Path]) -> None:
    assert set(reproduce.tree(trees[0])) == {"/etc", "/etc/hostname", "/link"}
    assert found(trees) == []


def test_content(trees: tuple[Path, Path]) -> None:
    path = trees[1] / "etc/hostname"
    path.write_text("edon\n")
    os.utime(path, (1000, 1000))
    assert found(trees) == ["/etc/hostname: content"]


def test_mode(trees: tuple[Path, Path]) -> None:
    (trees[1] / "etc").chmod(0o700)
    assert found(trees) == ["/etc: mode drwxr-xr-x or drwx------"]


def test_time_stamp(trees: tuple[Path, Path]) -> None:
    os.utime(trees[1] / "etc/hostname", (1000, 1001))
    assert found(trees) == ["/etc/hostname: time stamp 1000 or 1001"]


def test_target_of_a_link(trees: tuple[Path, Path]) -> None:
    (trees[1] / "link").unlink()
    (trees[1] / "link").symlink_to("etc/elsewhere")
    os.utime(trees[1] / "link", (1000, 1000), follow_symlinks=False)
    assert found(trees) == ["/link: content"]


def test_a_file_that_only_one_build_has(trees: tuple[Path, Path]) -> None:
    (trees[0] / "a").touch()
    (trees[1] / "b").touch()
    assert found(trees) == ["/a: only in the first build", "/b: only in the second build"]


def test_owner() -> None:
    entry = reproduce.Entry(mode=0o100644, owner=(0, 0), modified=1, content=b"")
    assert entry.differs(dataclasses.replace(entry, owner=(0, 4))) == "owner (0, 0) or (0, 4)"


def manifest(**versions: str) -> bytes:
    return json.dumps({"packages": [{"name": n, "version": v} for n, v in versions.items()]}).encode()


def test_packages() -> None:
    assert reproduce.compare_packages(manifest(a="1", b="2"), manifest(a="1", b="2")) == ()
    findings = reproduce.compare_packages(manifest(a="1", b="2"), manifest(a="3", c="4"))
    assert [finding.message for finding in findings] == ["a: 1 or 3", "b: 2 or absent", "c: absent or 4"]


def test_a_manifest_of_another_form() -> None:
    (finding,) = reproduce.compare_packages(manifest(a="1"), manifest(a="1") + b"\n")
    assert finding.code == "packages.form"


def test_sections() -> None:
    first = Uki(data=b"", sections={".linux": b"one", ".initrd": b"two", ".pcrsig": b"signed"})
    second = Uki(data=b"", sections={".linux": b"one", ".initrd": b"other", ".pcrsig": b"anew"})
    (finding,) = reproduce.compare_ukis(first, second)
    assert finding == Finding(code="uki.section", message=".initrd: 3 bytes and 5 bytes")


def test_a_section_that_only_one_has() -> None:
    (finding,) = reproduce.compare_ukis(Uki(data=b"", sections={}), Uki(data=b"", sections={".ucode": b"x"}))
    assert finding.message == ".ucode: absent and 1 bytes"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"root_hash": bytes([1] * 32)}, "root hash: "),
        ({"kernel_command_line": "debug"}, "kernel command line: quiet or debug"),
        ({"pcrs": {"sha256": {**RELEASE.pcrs["sha256"], 4: bytes([1] * 32)}}}, "PCR 4: "),
        (
            {"pcr11": {"sha256": {**RELEASE.pcr11["sha256"], BootPhase.READY: bytes([1] * 32)}}},
            "PCR 11 after ready: ",
        ),
    ],
)
def test_measurements(changes: dict[str, object], message: str) -> None:
    assert reproduce.compare_measurements(RELEASE, RELEASE) == ()
    (finding,) = reproduce.compare_measurements(RELEASE, dataclasses.replace(RELEASE, **changes))  # type: ignore[arg-type]
    assert finding.message.startswith(message)


@pytest.mark.parametrize("commit", ["unknown", "abc+changes"])
def test_what_no_clone_holds_is_not_built_again(commit: str, tmp_path: Path) -> None:
    path = tmp_path / "release.json"
    path.write_bytes(dataclasses.replace(RELEASE, source_commit=commit).to_bytes())
    built = Built(directory=tmp_path, disk=path, uki=path, release=path)
    with pytest.raises(UsageError, match="can't be built again elsewhere"):
        reproduce.second_build(tmp_path, built, work=tmp_path / "work", keys=tmp_path, log=tmp_path / "log")
    assert not (tmp_path / "work").exists()


def test_the_second_build_stands_under_other_conditions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clone whose "nodeos" notes its conditions and makes no image."""
    source = tmp_path / "source"
    (source / "nodeos").mkdir(parents=True)
    (source / "nodeos/__init__.py").touch()
    program = """
import json, os, socket, sys
seen = [sys.argv, os.umask(0), os.environ["TZ"], socket.gethostname(), os.getcwd()]
json.dump(seen, open(os.path.join(os.path.dirname(os.getcwd()), "seen"), "w"))
"""
    (source / "nodeos/__main__.py").write_text(program)
    git: list[str | Path] = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org", "-C", source]
    run([*git, "init", "--quiet"], what="init")
    run([*git, "add", "."], what="add")
    run([*git, "commit", "--quiet", "-m", "one"], what="commit")
    commit = run([*git, "rev-parse", "HEAD"], what="rev-parse").decode().strip()
    path = tmp_path / "release.json"
    path.write_bytes(dataclasses.replace(RELEASE, source_commit=commit).to_bytes())
    built = Built(directory=tmp_path, disk=path, uki=path, release=path)
    with pytest.raises(UsageError, match=r"nodeos\.raw is not there"):
        reproduce.second_build(
            source, built, work=tmp_path / "work", keys=tmp_path / "keys", log=tmp_path / "log"
        )
    arguments, umask, zone, host, place = json.loads((tmp_path / "work/seen").read_text())
    assert umask == 0o077
    assert zone == reproduce.TIME_ZONE
    assert host == reproduce.HOST_NAME
    assert Path(place) == tmp_path / "work/source at another path"
    assert arguments[arguments.index("--version") + 1] == "1.2.3"
    assert (tmp_path / "work/source at another path/nodeos/__main__.py").stat().st_mode & 0o077 == 0


def test_a_long_list_is_shortened() -> None:
    many = tuple(Finding(code="root.file", message=str(number)) for number in range(50))
    shown = reproduce.shorten(many)
    assert len(shown) == 41
    assert shown[-1].message == "10 more differences: see --json"
    assert reproduce.shorten(many[:40]) == many[:40]
