"""Installation media are read back with other tools than those that the tests of their parts use."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from image import authenticode, installer, media, pe
from image.keys import generate
from image.measure import read_esp
from image.sign import sign
from nodeos import cli
from nodeos.core.errors import ToolError, UsageError
from nodeos.core.run import find_tool, run
from nodeos.core.site import SignedSite, SiteConfig
from tests.support.release import make_release
from tests.support.sites import SITE
from tests.support.unsigned_build import make_unsigned

KEY = Ed25519PrivateKey.generate()


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return make_release(tmp_path / "release")


@pytest.fixture
def content(release: Path) -> media.Content:
    return media.Content.read(release, media.sign(SITE, KEY), erase=b'{"token": 1}')


def check_esp(medium: Path, content: media.Content) -> None:
    for name, data in content.esp_files.items():
        assert read_esp(medium, name) == data, name
    site = SignedSite(
        document=read_esp(medium, "nodeos/site.json"), signature=read_esp(medium, "nodeos/site.sig")
    )
    assert site.verify(KEY.public_key()) == SITE


def test_usb(content: media.Content, tmp_path: Path) -> None:
    medium = tmp_path / "new/medium.raw"
    media.write(media.Kind.USB, content, medium)
    check_esp(medium, content)
    assert medium.stat().st_size % (1 << 20) == 0
    assert list(medium.parent.iterdir()) == [medium]


def test_iso_as_a_disk_and_as_a_disc(content: media.Content, tmp_path: Path) -> None:
    medium = tmp_path / "medium.iso"
    media.write(media.Kind.ISO, content, medium)
    check_esp(medium, content)
    xorriso = find_tool("xorriso", package="xorriso")
    out = tmp_path / "out"
    run(
        [xorriso, "-osirrox", "on", "-indev", medium, "-extract", "/nodeos", out],
        what="reading the ISO image",
    )
    assert {path.name: path.read_bytes() for path in out.iterdir()} == content.site_files
    # The boot image is the same FAT, by the catalogue (El Torito 1.0, section 2): no size, so to the disc's end.
    data = medium.read_bytes()
    record = data[17 * 2048 : 18 * 2048]
    assert record[:39].rstrip(b"\0") == b"\0CD001\1EL TORITO SPECIFICATION"
    catalog = int.from_bytes(record[0x47:0x4B], "little") * 2048
    assert data[catalog + 1] == 0xEF, "for UEFI"
    assert data[catalog + 32] == 0x88, "bootable"
    assert int.from_bytes(data[catalog + 38 : catalog + 40], "little") == 0
    boot = int.from_bytes(data[catalog + 40 : catalog + 44], "little") * 2048
    # EDK2 takes the end of the volume (ECMA-119, 8.4.8) for the end of the disc.
    volume_end = int.from_bytes(data[16 * 2048 + 80 : 16 * 2048 + 84], "little") * 2048
    assert boot + sum(map(len, content.esp_files.values())) < volume_end <= len(data)
    volume = tmp_path / "boot.img"
    volume.write_bytes(data[boot:])
    found = run(
        [find_tool("mcopy", package="mtools"), "-n", "-i", volume, "::EFI/BOOT/BOOTX64.EFI", "-"],
        what="reading",
    )
    assert found == content.bootloader


def test_http(content: media.Content, tmp_path: Path) -> None:
    medium = tmp_path / "folder"
    media.write(media.Kind.HTTP, content, medium)
    found = {path.name: path.read_bytes() for path in medium.iterdir()}
    lines = [line.split("  ") for line in found.pop("SHA256SUMS").decode().splitlines()]
    sums = {name: digest for digest, name in lines}
    assert found == {"installer.efi": content.installer, **content.site_files}
    assert sums == {name: hashlib.sha256(data).hexdigest() for name, data in found.items()}


@pytest.mark.parametrize("kind", media.Kind)
def test_same_content_gives_the_same_bytes(kind: media.Kind, content: media.Content, tmp_path: Path) -> None:
    first, second, other = tmp_path / "a/medium", tmp_path / "b/medium", tmp_path / "c/medium"
    media.write(kind, content, first)
    time.sleep(2.1)  # FAT's time stamps have two seconds
    media.write(kind, content, second)
    media.write(kind, replace(content, erase=None), other)
    assert read(first) == read(second)
    assert read(first) != read(other)


def read(path: Path) -> object:
    if path.is_dir():
        return {item.name: (item.read_bytes(), item.stat().st_mtime) for item in path.iterdir()}
    return path.read_bytes()


@pytest.mark.parametrize("kind", media.Kind)
def test_never_overwritten(kind: media.Kind, content: media.Content, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"somebody's")
    with pytest.raises(UsageError, match="is there already"):
        media.write(kind, content, target)
    assert target.read_bytes() == b"somebody's"


@pytest.mark.parametrize("kind", [media.Kind.USB, media.Kind.ISO])
def test_nothing_is_left_of_what_failed(
    kind: media.Kind, content: media.Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(media, "_SMALLEST_FAT", 1 << 20)
    small = replace(content, installer=b"", bootloader=b"")
    monkeypatch.setattr(media, "MIB", 1 << 10)
    with pytest.raises((ToolError, UsageError)):
        media.write(kind, small, tmp_path / "out/medium")
    assert list((tmp_path / "out").iterdir()) == []


def test_installer_of_another_release(release: Path) -> None:
    (release / "packages.json").write_bytes(b"[1]")
    with pytest.raises(UsageError, match="not the installer of this release"):
        media.Content.read(release, media.sign(SITE, KEY))


def test_unsigned_installer(release: Path) -> None:
    path = release / installer.NAME
    path.write_bytes(pe.strip_signatures(path.read_bytes()))
    with pytest.raises(UsageError, match="is not signed"):
        media.Content.read(release, media.sign(SITE, KEY))


def test_release_without_installer(release: Path) -> None:
    (release / installer.NAME).unlink()
    with pytest.raises(UsageError, match=r"installer\.efi"):
        media.Content.read(release, media.sign(SITE, KEY))


def test_install_disk_is_in_the_site() -> None:
    site = replace(SITE, install_disk="S4YPNF0R")
    assert media.sign(site, KEY).verify(KEY.public_key()) == site
    assert "install_disk" not in json.loads(SITE.to_bytes())


def call(*words: object) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--json", *map(str, words)])
    assert caught.value.code == 0


def test_command_line_on_a_signed_release(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = generate(tmp_path / "keys")
    build = make_unsigned(tmp_path / "unsigned", (tmp_path / "keys/pcr.pub.pem").read_bytes())
    sign(build, keys, tmp_path / "release", pin=lambda _: "")
    certificate = tmp_path / "ca.pem"
    certificate.write_bytes((tmp_path / "keys/db.crt").read_bytes())
    operator = tmp_path / "operator.der"
    operator.write_bytes(SITE.operator_key)
    call(
        "media", "site", tmp_path / "site", "--site-key", tmp_path / "keys/site.key", "--dc", "zh1",
        "--registrar", "https://registrar.example.org", "--ca", certificate, "--operator", "2vxsx-fae",
        "--operator-key", operator, "--reward-type", "type1", "--disk", "S1",
    )  # fmt: skip
    assert json.loads(capsys.readouterr().out)["data_center"] == "zh1"
    call(
        "media",
        "make",
        tmp_path / "medium.raw",
        "--release",
        tmp_path / "release",
        "--site",
        tmp_path / "site",
    )
    assert json.loads(capsys.readouterr().out)["release"] == "1.2.3"
    site = SiteConfig.parse(read_esp(tmp_path / "medium.raw", "nodeos/site.json"))
    assert site.install_disk == "S1"
    made = read_esp(tmp_path / "medium.raw", "EFI/Linux/nodeos-installer.efi")
    authenticode.verify(made, keys.certificate("db"))
    installer.check(made)
