"""The installer's edges: a web server, a mounted medium, a loop device, the registrar as a process. Needs root."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hsm.identity import FileSigner
from nodeos.core import layout
from nodeos.core.erase import DOMAIN, EraseToken
from nodeos.core.errors import RefusedError, UnreachableError, UsageError
from nodeos.core.installation import Installation, Verdict
from nodeos.core.run import find_tool, run
from nodeos.core.site import SiteConfig
from nodeos.installer import machine, medium, result
from nodeos.installer.target import MachineDisks
from tests.support import installable
from tests.support.pe import make_auth
from tests.support.served import Served, nodeos
from tests.support.sites import SITE


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and its URL."""
    folder = tmp_path / "www"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{made.server_port}/"
        made.shutdown()
        thread.join()


def test_over_http(server: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = server
    source = medium.HttpMedium(url)
    with pytest.raises(UsageError, match=r"no site\.json and no site\.sig"):
        medium.save_site(source, tmp_path / "site")
    (folder / "site.json").write_bytes(b"{}")
    (folder / "site.sig").write_bytes(b"s" * 64)
    medium.save_site(source, tmp_path / "site")
    assert (tmp_path / "site/site.sig").read_bytes() == b"s" * 64
    assert source.read(("erase.json",)) == {}
    (folder / "erase.json").write_bytes(bytes(1 << 17))
    with pytest.raises(UnreachableError, match="status 200 and 65537 bytes"):
        source.read(("erase.json",))
    with pytest.raises(UnreachableError):
        medium.HttpMedium("http://127.0.0.1:1/").read(("site.json",))


def test_from_a_partition(tmp_path: Path) -> None:
    tree, volume = tmp_path / "tree", tmp_path / "volume"
    (tree / "nodeos").mkdir(parents=True)
    (tree / "nodeos/site.json").write_bytes(b"{}")
    (tree / "nodeos/site.sig").write_bytes(b"s")
    # Not every kernel that runs the tests knows vfat; that it is mounted, read and unmounted is the same.
    mkfs = find_tool("mkfs.ext4", package="e2fsprogs")
    run([mkfs, "-q", "-d", tree, volume, "8M"], what="making a file system")
    source = medium.BlockMedium((tmp_path / "absent", volume), "ext4")
    assert source.read(("site.json", "site.sig", "erase.json")) == {"site.json": b"{}", "site.sig": b"s"}
    with pytest.raises(UnreachableError, match="can't be read"):
        medium.BlockMedium((tmp_path / "absent",), "ext4").read(("site.json",))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A loop device with data on it."""
    backing = tmp_path / "disk"
    with backing.open("wb") as file:
        file.write(b"somebody's")
        file.truncate(layout.MINIMUM)
    name = run(["losetup", "--find", "--show", backing], what="making a loop device").decode().strip()
    yield Path(name)
    run(["losetup", "--detach", name], what="removing the loop device")


def test_data_is_erased_with_the_operators_token_alone(disk: Path, tmp_path: Path) -> None:
    release = installable.make(tmp_path / "release")
    config = SiteConfig.parse(release.site.document)
    disks = MachineDisks(
        release.source(),
        site=release.site,
        operator=config.operator,
        challenge_file=tmp_path / "challenge.json",
    )
    assert all(item.path != str(disk) for item in disks.survey()), "a loop device is no disk of the machine"
    with pytest.raises(RefusedError) as caught:
        disks.install(str(disk), None, lambda *_: None)
    assert {item.code for item in caught.value.findings} == {"disk.data"}
    challenge, contents = disks.challenge(str(disk))
    assert "data of an unknown kind" in contents[0]
    document = challenge.permission(expires=int(time.time()) + 600)
    signer = FileSigner(release.operator)
    token = EraseToken(
        document=document, public_key=signer.public_key, signature=signer.sign(DOMAIN + document)
    )
    with pytest.raises(RefusedError) as caught:
        disks.install(str(disk), replace(token, signature=b"another"), lambda *_: None)
    assert [item.code for item in caught.value.findings] == ["erase.signature"]
    with disk.open("rb") as file:
        assert file.read(10) == b"somebody's"
    installed = disks.install(str(disk), token, lambda *_: None)
    assert installed.document["verdict"] == "installed"
    assert (installed.esp.number, installed.esp.start) == (1, 2048)
    with disk.open("rb") as file:
        file.seek(512)
        assert file.read(8) == b"EFI PART"


def test_platform_keys(tmp_path: Path) -> None:
    path = tmp_path / "PK.auth"
    path.write_bytes(make_auth(b"a certificate"))
    assert machine.platform_keys(path) == (b"a certificate",)
    for wrong in (b"", make_auth(b"x")[:30], bytes(40), make_auth(b"x") + b"y"):
        path.write_bytes(wrong)
        with pytest.raises(UsageError, match=r"PK\.auth"):
            machine.platform_keys(path)


def test_reported_to_the_registrar(tmp_path: Path) -> None:
    served = Served.make(tmp_path)
    served.start()
    told = Installation(
        verdict=Verdict.INSTALLED, data_center="dc1", machine=None, release="0.1.0", root_hash=bytes(32),
        source="disk", disk="S1", message="done",
    )  # fmt: skip
    words: list[str] = []
    try:
        site = replace(
            SITE, registrar_url=f"https://127.0.0.1:{served.port}", registrar_ca=served.ca.read_text()
        )
        assert result.report(site, told, tell=words.append)
        assert not result.report(site, replace(told, data_center="dc9"), tell=words.append)
        assert "data_center.unknown" in words[-1]
    finally:
        served.stop()
    pauses: list[float] = []
    assert not result.report(site, told, tell=words.append, tries=3, sleep=pauses.append)
    assert len(pauses) == 2
    (row,) = nodeos("registrar", "installations", "--dir", served.directory)
    assert (row["proven"], row["source"], row["reported"]["disk"]) == (False, "127.0.0.1", "S1")
