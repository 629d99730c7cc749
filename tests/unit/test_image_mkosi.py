"""Which mkosi builds: only the pinned package, or a host's of the same version."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from image import apt, mkosi
from nodeos.core.errors import ToolError
from nodeos.core.run import find_tool, run


def host_mkosi(directory: Path, version: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = directory / "mkosi"
    program.write_text(f"#!/bin/sh\necho '{version}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")
    return program


def test_host_s_own_if_it_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = host_mkosi(tmp_path, "mkosi 25.3", monkeypatch)
    assert mkosi.host_command() == [str(program)]
    assert mkosi.command(tmp_path / "tools") == [str(program)]


@pytest.mark.parametrize("version", ["mkosi 25.4", "mkosi 14", "mkosi 25.3~devel", "25.3 mkosi", ""])
def test_host_s_own_of_another_version(version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host_mkosi(tmp_path, version, monkeypatch)
    assert mkosi.host_command() is None


def test_host_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert mkosi.host_command() is None


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Debian package with a mkosi of three lines, which apt is made to deliver."""
    root = tmp_path / "root"
    library = root / "usr/lib/python3/dist-packages/mkosi"
    library.mkdir(parents=True)
    (library / "__init__.py").touch()
    (library / "__main__.py").write_text("import sys\ndef main():\n    print(*sys.argv[1:])\n")
    (root / "DEBIAN").mkdir()
    (root / "DEBIAN/control").write_text(
        f"Package: mkosi\nVersion: {mkosi.PACKAGE_VERSION}\nArchitecture: all\n"
        "Maintainer: test <test@example.org>\nDescription: test\n"
    )
    path = tmp_path / "mkosi.deb"
    run([find_tool("dpkg-deb", package="dpkg"), "--root-owner-group", "-b", root, path], what="packing")

    def download(name: str, version: str, *, directory: Path, scratch: Path) -> Path:
        assert (name, version) == ("mkosi", mkosi.PACKAGE_VERSION)
        directory.mkdir(parents=True, exist_ok=True)
        target = directory / "mkosi.deb"
        target.write_bytes(path.read_bytes())
        return target

    monkeypatch.setattr(apt, "download", download)
    monkeypatch.setattr(mkosi, "host_command", lambda: None)
    return path


def test_package_with_another_checksum(package: Path, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    with pytest.raises(ToolError, match=f"pinned is {mkosi.PACKAGE_SHA256}") as caught:
        mkosi.command(tools)
    assert "don't use this mirror" in str(caught.value)
    assert [path for path in tools.rglob("*") if path.is_file()] == [], "nothing of it is left"
    with pytest.raises(ToolError, match="pinned is"):
        mkosi.command(tools)


def test_pinned_package_runs(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = run(["sha256sum", package], what="hashing").split()[0].decode()
    monkeypatch.setattr(mkosi, "PACKAGE_SHA256", digest)
    command = mkosi.command(tmp_path / "tools")
    assert command[0] == sys.executable
    done = subprocess.run([*command, "--force", "build"], capture_output=True, check=True, text=True)
    assert done.stdout == "--force build\n"
    # The second time nothing is fetched.
    package.unlink()
    assert mkosi.command(tmp_path / "tools") == command
