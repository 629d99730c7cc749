"""What an installation refuses before it looks at a disk: releases, keys, sites, words on the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hsm.keys import public_der
from nodeos import cli
from nodeos.core import layout
from nodeos.core.errors import NodeosError, RefusedError, UsageError
from nodeos.core.release import Artefact
from nodeos.flash.disks import Device, Facts
from nodeos.install import trust
from nodeos.install.source import NEEDED, read_release
from nodeos.install.survey import NO_TOKEN, Marker
from nodeos.install.target import open_disk, open_file
from tests.support import installable
from tests.support.installable import Installable


@pytest.fixture
def release(tmp_path: Path) -> Installable:
    return installable.make(tmp_path / "release")


def nodeos(*words: object) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main([str(word) for word in words])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def codes(error: RefusedError) -> list[str]:
    return [finding.code for finding in error.findings]


def test_a_release(release: Installable) -> None:
    source = release.source()
    assert (source.version, source.root_hash) == ("0.2.0", installable.ROOT_HASH)
    source.check_files(lambda *_: None)
    assert source.read("boot.efi") == installable.CONTENT["boot.efi"]


def test_a_release_of_another_key(release: Installable) -> None:
    with pytest.raises(RefusedError) as caught:
        read_release(release.directory, [public_der(release.site_key.public_key())])
    assert codes(caught.value) == ["release.unsigned"]


def test_a_changed_manifest(release: Installable) -> None:
    path = release.directory / "release.json"
    path.write_bytes(path.read_bytes().replace(b'"0.2.0"', b'"0.2.1"'))
    with pytest.raises(RefusedError) as caught:
        release.source()
    assert codes(caught.value) == ["release.signature"]


@pytest.mark.parametrize("name", ["release.json", "release.sig"])
def test_a_missing_manifest(name: str, release: Installable) -> None:
    (release.directory / name).unlink()
    with pytest.raises(UsageError, match=name):
        release.source()


@pytest.mark.parametrize("name", NEEDED)
def test_what_a_release_must_have(name: str, release: Installable) -> None:
    artefacts = dict(release.source().artefacts)
    large = Artefact(size=NEEDED[name] + 1, sha256=bytes(32))
    release.sign(artefacts={**artefacts, name: large})
    with pytest.raises(UsageError, match=f"{name}: {NEEDED[name] + 1} bytes, there is room for"):
        release.source()
    del artefacts[name]
    release.sign(artefacts=artefacts)
    with pytest.raises(UsageError, match=f"does not know {name}"):
        release.source()


def test_a_version_that_is_no_label(release: Installable) -> None:
    release.sign(version="a/b")
    with pytest.raises(UsageError, match="can't be a partition's label"):
        release.source()


def test_every_damaged_file_is_named(release: Installable) -> None:
    for name in ("boot.efi", "root.raw"):
        (release.directory / name).write_bytes(b"short")
    (release.directory / "PK.auth").write_bytes(installable.CONTENT["PK.auth"] + b"more")
    with pytest.raises(RefusedError) as caught:
        release.source().check_files(lambda *_: None)
    assert {item.message.split()[0] for item in caught.value.findings} == {"boot.efi", "root.raw", "PK.auth"}
    with pytest.raises(RefusedError):
        release.source().read("boot.efi")


def test_sites(release: Installable, tmp_path: Path) -> None:
    release.write_keys(tmp_path)
    site, key = tmp_path / "site", tmp_path / "site.pub.pem"
    assert trust.read_site(site, key)[0] == release.site
    # During a change of keys the file holds two.
    other = tmp_path / "other.pub.pem"
    foreign = installable.make(tmp_path / "foreign")
    (tmp_path / "f").mkdir()
    foreign.write_keys(tmp_path / "f")
    other.write_bytes((tmp_path / "f/site.pub.pem").read_bytes())
    with pytest.raises(RefusedError) as caught:
        trust.read_site(site, other)
    assert codes(caught.value) == ["site.signature"]
    other.write_bytes(other.read_bytes() + key.read_bytes())
    assert trust.read_site(site, other)[0] == release.site
    assert len(trust.read_keys(other, "the key")) == 2
    (site / "site.sig").write_bytes(bytes(63))
    with pytest.raises(UsageError, match="63 bytes, expected 64"):
        trust.read_site(site, key)


@pytest.mark.parametrize("data", [b"", b"x", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"])
def test_keys_that_are_none(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "key.pub.pem"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=r"key\.pub\.pem"):
        trust.read_keys(path, "the key")


def test_a_marker_that_was_not_written_whole() -> None:
    marker = Marker(plan=bytes(range(32)), disk_uuid=layout.ESP_TYPE, token=NO_TOKEN)
    data = marker.to_bytes()
    assert Marker.parse(data.ljust(4096, b"\0")) == marker
    assert len(data) <= 446, "what stands behind it in a sector would be an MBR's partitions"
    for at in range(len(data)):
        assert Marker.parse(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]) is None


def test_the_disk_must_be_free(tmp_path: Path) -> None:
    device = Device(name="vdz", number="254:99", size=layout.MINIMUM, read_only=True)
    for changed, code in (
        (device, "disk.read_only"),
        (replace(device, read_only=False, size=layout.MINIMUM - 1), "disk.too_small"),
    ):
        with (
            pytest.raises(RefusedError) as caught,
            open_disk(Path("/dev/vdz"), tmp_path, Facts(devices=(changed,))),
        ):
            pass
        assert codes(caught.value) == [code]


def test_files_that_cannot_be_a_disk(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no size for a disk"), open_file(tmp_path / "a", 1 << 20):
        pass
    with pytest.raises(UsageError, match="is no file"), open_file(tmp_path, 8 << 30):
        pass
    with pytest.raises(NodeosError, match="can't be opened"), open_file(tmp_path / "no/a", 8 << 30):
        pass
    path = tmp_path / "b"
    with open_file(path, 8 << 30), pytest.raises(RefusedError) as caught, open_file(path, 8 << 30):
        pass
    assert codes(caught.value) == ["disk.busy"]


def test_words_that_do_not_fit(
    release: Installable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    release.write_keys(tmp_path)
    keys = ["--release-key", tmp_path / "release.pub.pem", "--site-key", tmp_path / "site.pub.pem"]
    file = ["--file", tmp_path / "disk", "--size", "8G"]
    for words, told in (
        ([release.directory], "either a device, or a disk image"),
        ([release.directory, "/dev/null", *file], "either a device, or a disk image"),
        ([release.directory, "--file", tmp_path / "disk"], "--file and --size belong together"),
        ([release.directory, "--file", tmp_path / "disk", "--size", "8X"], "--size 8X"),
        ([release.directory, "/dev/null", "--yes"], "--yes without --serial"),
        ([release.directory, *file, "--erase-token", tmp_path], "--erase-token without --site"),
        ([tmp_path / "absent", *file], "is no folder"),
        ([release.directory, *file, "--release-key", tmp_path / "absent"], "absent"),
        ([release.directory, *file, *keys, "--site", tmp_path / "absent"], "absent"),
    ):
        assert nodeos("--json", "install", *words) == 2
        assert told in json.loads(capsys.readouterr().out)["error"]["message"]
    assert not (tmp_path / "disk").exists()
