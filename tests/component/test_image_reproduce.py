"""What is said of two builds: each test makes one thing differ."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from image import reproduce
from image.measure import Uki
from image.unsigned import BuildManifest, Unsigned, describe
from nodeos.cli import root
from nodeos.core.errors import Finding, UsageError
from nodeos.core.release import Artefact, Variant
from nodeos.core.run import run
from tests.support.cpio import archive
from tests.support.pe import make_pe

BUILD = BuildManifest(
    release="1.2.3",
    variant=Variant.RELEASE,
    root_hash=bytes(32),
    kernel_command_line="quiet",
    source_commit="abc",
    source_date_epoch=1000,
    security_version=1,
    rollback_floor=1,
    artefacts={},
)
TOOLS = Path("/absent")


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
    first = Uki(data=b"", sections={".linux": b"one", ".cmdline": b"two"})
    second = Uki(data=b"", sections={".linux": b"one", ".cmdline": b"other"})
    (finding,) = reproduce.compare_ukis(first, second, tools=TOOLS)
    assert finding == Finding(code="uki.section", message=".cmdline: 3 bytes and 5 bytes")


def test_a_section_that_only_one_has() -> None:
    first, second = Uki(data=b"", sections={}), Uki(data=b"", sections={".ucode": b"x"})
    (finding,) = reproduce.compare_ukis(first, second, tools=TOOLS)
    assert finding.message == ".ucode: absent and 1 bytes"


def test_a_header_that_differs() -> None:
    first, second = Uki(data=b"1", sections={}), Uki(data=b"2", sections={})
    (finding,) = reproduce.compare_ukis(first, second, tools=TOOLS)
    assert finding.code == "uki.layout"


def test_files_of_the_initrd() -> None:
    ukis = [Uki(data=b"", sections={".initrd": archive({"etc/a": (0o644, b"same"), "etc/b": (0o644, content)})})
            for content in (b"one", b"two")]  # fmt: skip
    findings = reproduce.compare_ukis(ukis[0], ukis[1], tools=TOOLS)
    assert [(item.code, item.message.split(":")[0]) for item in findings] == [
        ("uki.section", ".initrd"), ("initrd.file", "/etc/b"),
    ]  # fmt: skip


def test_an_initrd_whose_padding_differs() -> None:
    data = archive({"etc/a": (0o644, b"same")})
    (finding,) = reproduce.compare_initrds(data, data + bytes(512), tools=TOOLS)
    assert finding.code == "initrd.layout"


def test_an_initrd_that_can_not_be_read() -> None:
    (finding,) = reproduce.compare_initrds(archive({}), b"neither", tools=TOOLS)
    assert (finding.code, "neither cpio nor zstd" in finding.message) == ("initrd.unreadable", True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"root_hash": bytes([1] * 32)}, "root_hash: "),
        ({"kernel_command_line": "debug"}, "kernel_command_line: quiet or debug"),
        ({"rollback_floor": 2, "security_version": 1}, "rollback_floor: 1 or 2"),
        (
            {"artefacts": {"root.raw": Artefact(size=1, sha256=bytes(32))}},
            "root.raw: absent or 1 bytes, 0000",
        ),
    ],
)
def test_manifests(changes: dict[str, Any], message: str) -> None:
    assert reproduce.compare_manifests(BUILD, BUILD) == ()
    (finding,) = reproduce.compare_manifests(BUILD, dataclasses.replace(BUILD, **changes))
    assert finding.message.startswith(message)


@pytest.fixture
def builds(tmp_path: Path) -> tuple[Unsigned, Unsigned]:
    made = []
    for name in ("first", "second"):
        directory = tmp_path / name
        directory.mkdir()
        for file, content in {
            "root.raw": b"root", "verity.raw": b"tree", "boot.efi": b"loader", "packages.json": manifest(a="1"),
            "nodeos.efi": make_pe({".linux": b"kernel", ".initrd": b"", ".cmdline": b"quiet"}),
        }.items():  # fmt: skip
            (directory / file).write_bytes(content)
        artefacts = {path.name: describe(path) for path in directory.iterdir()}
        made.append(Unsigned(directory=directory, build=dataclasses.replace(BUILD, artefacts=artefacts)))
    return made[0], made[1]


def test_equal_builds(builds: tuple[Unsigned, Unsigned], tmp_path: Path) -> None:
    assert reproduce.compare(builds[0], builds[1], tools=TOOLS, scratch=tmp_path) == ()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("boot.efi", b"reloda", Finding(code="file", message="boot.efi")),
        ("verity.raw", b"eert", Finding(code="verity", message="the hash trees over equal roots differ")),
        ("packages.json", manifest(a="2"), Finding(code="packages.version", message="a: 1 or 2")),
        ("nodeos.efi", make_pe({".linux": b"kernel", ".initrd": b"", ".cmdline": b"debug"}),
         Finding(code="uki.section", message=".cmdline: 5 bytes and 5 bytes")),
    ],
)  # fmt: skip
def test_one_file_differs(
    name: str, content: bytes, expected: Finding, builds: tuple[Unsigned, Unsigned], tmp_path: Path
) -> None:
    """What lies there counts: the manifests are equal."""
    (builds[1].directory / name).write_bytes(content)
    assert reproduce.compare(builds[0], builds[1], tools=TOOLS, scratch=tmp_path) == (expected,)


def test_a_file_that_went_away(builds: tuple[Unsigned, Unsigned], tmp_path: Path) -> None:
    builds[1].bootloader.unlink()
    (finding,) = reproduce.compare(builds[0], builds[1], tools=TOOLS, scratch=tmp_path)
    assert finding == Finding(code="file", message="boot.efi")


def test_roots_that_differ(
    builds: tuple[Unsigned, Unsigned],
    trees: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    builds[1].root.write_bytes(b"toor")
    (trees[1] / "new").touch()
    monkeypatch.setattr(reproduce, "unpack_root", lambda image, target, *, tools: tmp_path / target.name)
    for path in (*builds[0].directory.iterdir(), *builds[1].directory.iterdir()):
        os.utime(path, (1000, 1000))
    found = reproduce.compare(builds[0], builds[1], tools=TOOLS, scratch=tmp_path)
    assert Finding(code="root.file", message="/new: only in the second build") in found


def make_repository(source: Path, files: Mapping[str, str]) -> str:
    for name, text in files.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text)
    git: list[str | Path] = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org", "-C", source]
    run([*git, "init", "--quiet"], what="init")
    run([*git, "add", "."], what="add")
    run([*git, "commit", "--quiet", "-m", "one"], what="commit")
    return run([*git, "rev-parse", "HEAD"], what="rev-parse").decode().strip()


def test_what_no_clone_holds_is_not_built(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown can't be built again elsewhere"):
        reproduce.check_source(tmp_path)
    commit = make_repository(tmp_path, {"file": "one"})
    assert reproduce.check_source(tmp_path) == commit
    (tmp_path / "file").write_text("two")
    with pytest.raises(UsageError, match=r"\+changes can't be built again elsewhere"):
        reproduce.check_source(tmp_path)


def test_a_dirty_tree_ends_it_before_the_first_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from image import builder, cli

    (tmp_path / "file").touch()
    make_repository(tmp_path, {"file": "one"})
    (tmp_path / "file").write_text("two")
    monkeypatch.setattr(cli, "SOURCE", tmp_path)
    monkeypatch.setattr(builder, "build", lambda *_: pytest.fail("it was built"))
    words = ["image", "verify-build", "--work", str(tmp_path / "work"), "--keys", str(tmp_path)]
    result = CliRunner().invoke(root, words)
    assert isinstance(result.exception, UsageError)
    assert "can't be built again elsewhere" in str(result.exception)
    assert not (tmp_path / "work").exists()


def test_a_change_during_the_first_build(tmp_path: Path) -> None:
    built = Unsigned(directory=tmp_path, build=dataclasses.replace(BUILD, source_commit="abc+changes"))
    with pytest.raises(UsageError, match="during the first build"):
        reproduce.check_unchanged(built, "abc")


def test_the_second_build_stands_under_other_conditions(tmp_path: Path) -> None:
    """A clone whose "nodeos" notes its conditions and makes no image."""
    source = tmp_path / "source"
    program = """
import json, os, socket, sys
seen = [sys.argv, os.umask(0), os.environ["TZ"], socket.gethostname(), os.getcwd()]
json.dump(seen, open(os.path.join(os.path.dirname(os.getcwd()), "seen"), "w"))
"""
    commit = make_repository(source, {"nodeos/__init__.py": "", "nodeos/__main__.py": program})
    built = Unsigned(directory=tmp_path, build=dataclasses.replace(BUILD, source_commit=commit))
    with pytest.raises(UsageError, match=r"build\.json is not there"):
        reproduce.second_build(
            source, built, work=tmp_path / "work", keys=tmp_path / "keys", log=tmp_path / "log"
        )
    arguments, umask, zone, host, place = json.loads((tmp_path / "work/seen").read_text())
    assert umask == 0o077
    assert zone == reproduce.TIME_ZONE
    assert host == reproduce.HOST_NAME
    assert Path(place) == tmp_path / "work/source at another path"
    assert arguments[arguments.index("--version") + 1] == "1.2.3"
    assert arguments[arguments.index("--keys") + 1] == str(tmp_path / "keys")
    assert (tmp_path / "work/source at another path/nodeos/__main__.py").stat().st_mode & 0o077 == 0


def test_a_long_list_is_shortened() -> None:
    many = tuple(Finding(code="root.file", message=str(number)) for number in range(50))
    shown = reproduce.shorten(many)
    assert len(shown) == 41
    assert shown[-1].message == "10 more differences: see --json"
    assert reproduce.shorten(many[:40]) == many[:40]
