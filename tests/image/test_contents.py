"""What is in the image, and above all what isn't."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from image.measure import Uki, check_kernel_signer, esp_of, pcr11, read_esp
from nodeos.core.release import Variant
from tests.image.conftest import WORK, Image, build

pytestmark = pytest.mark.image


def test_manifest_describes_the_files(release_image: Image) -> None:
    release = release_image.release
    assert release.variant is Variant.RELEASE
    for name, artefact in release.artefacts.items():
        assert (release_image.built.directory / name).stat().st_size == artefact.size


def test_uki_holds_the_root_hash_and_the_right_policy(release_image: Image) -> None:
    uki = Uki.read(release_image.built.uki)
    assert uki.root_hash == release_image.release.root_hash
    assert pcr11(uki) == release_image.release.pcr11["sha256"]
    check_kernel_signer(uki, read_esp(release_image.built.disk, "loader/keys/auto/db.auth"))


def test_the_medium_carries_the_same_uki(release_image: Image) -> None:
    on_disk = read_esp(release_image.built.disk, f"EFI/Linux/{_uki_name(release_image)}")
    assert on_disk == release_image.built.uki.read_bytes()


def _uki_name(image: Image) -> str:
    from nodeos.core.run import find_tool, run

    esp = esp_of(image.built.disk)
    listed = run(
        [find_tool("mdir", package="mtools"), "-b", "-i", esp, "::EFI/Linux"], what="listing"
    ).decode()
    names = [line.strip().rsplit("/", 1)[-1] for line in listed.splitlines() if line.strip().endswith(".efi")]
    assert len(names) == 1, names
    return names[0]


@pytest.mark.parametrize(
    "unit",
    [
        "getty@.service",
        "serial-getty@.service",
        "console-getty.service",
        "debug-shell.service",
        "getty.target",
    ],
)
def test_no_login_on_any_console(release_image: Image, unit: str) -> None:
    link = release_image.root / "etc/systemd/system" / unit
    assert str(link.readlink()) == "/dev/null"


@pytest.mark.parametrize("unit", ["emergency.service", "rescue.service"])
def test_no_shell_where_the_system_cannot_start(release_image: Image, unit: str) -> None:
    text = (release_image.root / f"etc/systemd/system/{unit}.d/no-shell.conf").read_text()
    assert "ExecStart=\nExecStart=/usr/lib/nodeos/no-shell\n" in text
    assert (release_image.root / "usr/lib/nodeos/no-shell").stat().st_mode & stat.S_IXUSR


def test_nobody_can_log_in(release_image: Image) -> None:
    for line in (release_image.root / "etc/shadow").read_text().splitlines():
        name, password = line.split(":")[:2]
        assert password[:1] in ("*", "!"), name


def test_no_remote_shell_compiler_or_package_manager(release_image: Image) -> None:
    names = {item["name"] for item in _packages(release_image.built.directory)}
    unwanted = {"openssh-server", "dropbear-bin", "login", "gcc", "gcc-14", "python3-pip", "telnetd", "sudo"}
    assert names & unwanted == set()
    assert {"linux-image-amd64", "systemd", "systemd-cryptsetup", "python3-minimal"} <= names


def _packages(directory: Path) -> list[dict[str, str]]:
    packages: list[dict[str, str]] = json.loads((directory / "packages.json").read_text())["packages"]
    return packages


def test_the_projects_own_packages_are_inside_and_compiled(release_image: Image) -> None:
    library = release_image.root / "usr/lib/nodeos/python"
    for package in ("nodeos", "hsm", "replica"):
        assert (library / package / "__init__.py").is_file()
        assert list((library / package / "__pycache__").glob("__init__.cpython-313.pyc"))
    for dependency in ("cryptography", "tpm2_pytss", "wasmtime", "psutil"):
        assert (library / dependency).is_dir()
    # The builder and the registrar are not for a node.
    assert not (library / "image").exists()
    assert not (library / "provisioning").exists()


def test_os_release_names_the_release(release_image: Image) -> None:
    lines = (release_image.root / "usr/lib/os-release").read_text().splitlines()
    assert [line for line in lines if line.startswith("IMAGE_VERSION=")] in (
        [f"IMAGE_VERSION={release_image.release.version}"],
        [f'IMAGE_VERSION="{release_image.release.version}"'],
    )


def test_site_key_is_the_builds_own(release_image: Image) -> None:
    inside = (release_image.root / "usr/lib/nodeos/site.pub.pem").read_bytes()
    assert inside == (WORK / "keys/site.pub.pem").read_bytes()


def test_no_private_key_is_inside(release_image: Image) -> None:
    for folder, _, names in os.walk(release_image.root):
        for name in names:
            path = Path(folder) / name
            if path.is_file() and not path.is_symlink() and path.suffix in (".key", ".pem"):
                assert b"PRIVATE KEY" not in path.read_bytes(), path


def test_debug_variant_measures_differently_and_is_signed_by_other_keys(release_image: Image) -> None:
    from nodeos.core.release import Release

    built = build(Variant.DEBUG)
    debug = Release.parse(built.release.read_bytes())
    assert debug.variant is Variant.DEBUG
    assert debug.root_hash != release_image.release.root_hash
    for index in (4, 7):
        assert debug.pcrs["sha256"][index] != release_image.release.pcrs["sha256"][index]
    assert not set(debug.pcr11["sha256"].values()) & set(release_image.release.pcr11["sha256"].values())
