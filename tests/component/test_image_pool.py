"""Pools of packages: from a web server by apt's own downloader, from folders, and what a build makes of them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from image import apt, lock_cli, mkosi, packages, pool, wheels
from image.apt import Archive
from image.lock import Drift, Lock, Locked, Package, Role
from image.packages import Policy, Selection
from image.pool import Folder, Network
from nodeos.cli import main
from nodeos.core.errors import RefusedError, ToolError, UsageError
from nodeos.core.release import Variant
from nodeos.core.run import find_tool, run
from tests.support.packages import VERSION, make_archive, make_lock, make_trees

NAMES = ["bash", "libc6", "zlib1g"]


@dataclass(slots=True)
class Mirror:
    """A web server over a folder, which can be made to cut answers short. ``asked`` holds (path, range)."""

    directory: Path
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    # Send so many bytes of each file, then close the connection.
    cut_after: int | None = None
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[Mirror]:
    state = Mirror(directory=tmp_path / "archive")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            ranged = self.headers.get("Range")
            state.asked.append((self.path, ranged))
            path = state.directory / self.path.lstrip("/").replace("%2b", "+")
            if not path.is_file():
                self.send_error(404)
                return
            data = path.read_bytes()
            match = re.fullmatch(r"bytes=(\d+)-", ranged or "")
            start = int(match[1]) if match else 0
            self.send_response(206 if match else 200)
            self.send_header("Content-Length", str(len(data) - start))
            self.send_header("Last-Modified", "Sat, 31 Jan 2026 12:00:00 GMT")
            if match:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            if state.cut_after is not None:
                self.wfile.write(data[start : start + state.cut_after])
                self.close_connection = True
                return
            self.wfile.write(data[start:])

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.port = server.server_port
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def lock(tmp_path: Path) -> Lock:
    """Three packages, which are in ``archive``."""
    return make_lock(make_archive(tmp_path / "archive", NAMES))


def network(mirror: Mirror, path: str = "") -> Network:
    return Network(name="the mirror", main=f"{mirror.url}{path}", security=None)


def quiet(_: str) -> None:
    pass


def is_whole(lock: Lock, directory: Path) -> bool:
    return all(pool.digest_of(directory / item.file_name) == item.sha256 for item in lock.packages)


def test_fetch(lock: Lock, mirror: Mirror, tmp_path: Path) -> None:
    target = tmp_path / "pool"
    said: list[str] = []
    pool.fetch(lock, target, [network(mirror)], said.append)
    assert is_whole(lock, target)
    assert said == ["packages: 0 of 3 from the mirror"]
    assert sorted(path.name for path in target.iterdir()) == sorted(
        [".lock", "Packages", "Release", *(item.file_name for item in lock.packages)]
    )
    mirror.asked.clear()
    pool.fetch(lock, target, [network(mirror)], quiet)
    assert mirror.asked == [], "what is there and right is not asked for again"


def test_security_packages_come_from_the_security_archive(tmp_path: Path, mirror: Mirror) -> None:
    lock = make_lock(make_archive(tmp_path / "archive/debian-security", ["bash"], suite="trixie-security"))
    origin = Network(name="m", main=f"{mirror.url}/debian", security=f"{mirror.url}/debian-security")
    pool.fetch(lock, tmp_path / "pool", [origin], quiet)
    assert [path.split("/")[1] for path, _ in mirror.asked] == ["debian-security"]
    with pytest.raises(RefusedError, match="bash"):
        pool.fetch(lock, tmp_path / "other", [dataclasses.replace(origin, security=None)], quiet)


def test_damaged_file_in_the_pool_is_fetched_again(lock: Lock, mirror: Mirror, tmp_path: Path) -> None:
    target = tmp_path / "pool"
    pool.fetch(lock, target, [network(mirror)], quiet)
    damaged = target / lock.packages[1].file_name
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    mirror.asked.clear()
    pool.fetch(lock, target, [network(mirror)], quiet)
    assert is_whole(lock, target)
    assert len(mirror.asked) == 1


def test_file_with_another_hash_is_refused(lock: Lock, mirror: Mirror, tmp_path: Path) -> None:
    bad = lock.packages[0]
    path = tmp_path / "archive" / bad.path
    path.write_bytes(b"\0" * bad.size)
    target = tmp_path / "pool"
    with pytest.raises(RefusedError, match="1 of 3 locked packages can't be had") as caught:
        pool.fetch(lock, target, [network(mirror)], quiet)
    (finding,) = caught.value.findings
    assert finding.code == "pool.file"
    assert finding.message == (
        f"bash {VERSION}: the mirror has a file with SHA-256 {hashlib.sha256(bytes(bad.size)).hexdigest()}, "
        f"locked is {bad.sha256.hex()}"
    )
    assert not list(target.rglob(bad.file_name)), "nothing of it is left"
    assert not (target / "Packages").exists(), "an incomplete pool is no repository"


def test_longer_file_is_refused(lock: Lock, mirror: Mirror, tmp_path: Path) -> None:
    path = tmp_path / "archive" / lock.packages[0].path
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(RefusedError, match="has a file with SHA-256"):
        pool.fetch(lock, tmp_path / "pool", [network(mirror)], quiet)


def test_missing_version_names_what_is_missing_and_keeps_the_others(
    lock: Lock, mirror: Mirror, tmp_path: Path
) -> None:
    (tmp_path / "archive" / lock.packages[1].path).unlink()
    target = tmp_path / "pool"
    with pytest.raises(RefusedError) as caught:
        pool.fetch(lock, target, [network(mirror)], quiet)
    assert [(item.code, item.message) for item in caught.value.findings] == [
        ("pool.missing", f"libc6 {VERSION}")
    ]
    assert "NODEOS_SNAPSHOT" in str(caught.value)
    for item in (lock.packages[0], lock.packages[2]):
        assert pool.digest_of(target / item.file_name) == item.sha256


def test_snapshot_has_what_the_mirror_has_no_longer(lock: Lock, mirror: Mirror, tmp_path: Path) -> None:
    gone = lock.packages[1]
    kept = tmp_path / f"archive/snap/debian/{lock.time}" / gone.path
    kept.parent.mkdir(parents=True)
    (tmp_path / "archive" / gone.path).rename(kept)
    origins = [network(mirror), pool.snapshot(f"{mirror.url}/snap/", lock.time)]
    pool.fetch(lock, tmp_path / "pool", origins, quiet)
    assert is_whole(lock, tmp_path / "pool")


def test_interrupted_download_is_gone_on_with(lock: Lock, mirror: Mirror, tmp_path: Path) -> None:
    target = tmp_path / "pool"
    mirror.cut_after = 1000
    with pytest.raises(RefusedError, match="3 of 3 locked packages can't be had"):
        pool.fetch(lock, target, [network(mirror)], quiet)
    mirror.cut_after = None
    mirror.asked.clear()
    pool.fetch(lock, target, [network(mirror)], quiet)
    assert is_whole(lock, target)
    assert any(ranged for _, ranged in mirror.asked), "what had come is not asked for again"


def test_cut_file_of_another_is_found_in_the_end(lock: Lock, mirror: Mirror, tmp_path: Path) -> None:
    """A beginning that is not the file's own gives a wrong hash; the run after that starts anew."""
    target = tmp_path / "pool"
    item = lock.packages[0]
    (target / "partial").mkdir(parents=True)
    (target / "partial" / item.file_name).write_bytes(b"\0" * 100)
    try:
        pool.fetch(lock, target, [network(mirror)], quiet)
    except RefusedError as error:
        assert [finding.code for finding in error.findings] == ["pool.file"]
        pool.fetch(lock, target, [network(mirror)], quiet)
    assert is_whole(lock, target)


def test_folder_never_changes(lock: Lock, mirror: Mirror, tmp_path: Path) -> None:
    """A cut file in a folder of the user's is not what apt goes on with: it would write into it."""
    folder = tmp_path / "folder"
    folder.mkdir()
    cut = folder / lock.packages[0].file_name
    cut.write_bytes(b"\0" * 100)
    pool.fetch(lock, tmp_path / "pool", [Folder(directory=folder, name="the folder"), network(mirror)], quiet)
    assert cut.read_bytes() == b"\0" * 100
    assert is_whole(lock, tmp_path / "pool")


def test_wrong_file_in_a_folder(lock: Lock, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for item in lock.packages:
        shutil.copy(tmp_path / "archive" / item.path, folder)
    bad = lock.packages[2]
    (folder / bad.file_name).write_bytes(b"\0" * bad.size)
    with pytest.raises(RefusedError, match="the folder has a file with SHA-256"):
        pool.fetch(lock, tmp_path / "pool", [Folder(directory=folder, name="the folder")], quiet)


def test_apt_s_cache_is_a_source_too(lock: Lock, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    for item in lock.packages:
        escaped = VERSION.replace(":", "%3a")
        shutil.copy(tmp_path / "archive" / item.path, cache / f"{item.package.name}_{escaped}_all.deb")
    pool.fetch(lock, tmp_path / "pool", [Folder(directory=cache, name="the cache")], quiet)
    assert is_whole(lock, tmp_path / "pool")


def test_index_is_what_apt_reads(lock: Lock, mirror: Mirror, tmp_path: Path) -> None:
    """apt itself, with the pool as its only source: it sees the packages, offline, and would install these."""
    target = tmp_path / "pool"
    pool.fetch(lock, target, [network(mirror)], quiet)
    state = tmp_path / "apt"
    for folder in ("lists/partial", "archives/partial", "sources.list.d"):
        (state / folder).mkdir(parents=True)
    (state / "status").touch()
    (state / "sources.list.d/pool.sources").write_text(pool.sources(str(target)))
    options = [
        f"-oDir::State::lists={state}/lists", f"-oDir::State::status={state}/status", f"-oDir::Cache={state}",
        "-oDir::Etc::sourcelist=/dev/null", f"-oDir::Etc::sourceparts={state}/sources.list.d",
        "-oDir::Etc::preferencesparts=/dev/null", "-oAPT::Sandbox::User=root", "-oDir::Etc::main=/dev/null",
    ]  # fmt: skip
    apt_get = find_tool("apt-get", package="apt")
    mirror.asked.clear()
    run([apt_get, *options, "update"], what="reading the pool")
    planned = run([apt_get, *options, "--simulate", "install", "bash", "libc6"], what="planning").decode()
    assert f"Inst bash ({VERSION}" in planned
    assert f"Inst libc6 ({VERSION}" in planned
    assert mirror.asked == []


def test_index_has_one_form(lock: Lock, mirror: Mirror, tmp_path: Path) -> None:
    for name in ("one", "two"):
        pool.fetch(lock, tmp_path / name, [network(mirror)], quiet)
    for name in ("Packages", "Release"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    digest = hashlib.sha256((tmp_path / "one/Packages").read_bytes()).hexdigest()
    assert digest in (tmp_path / "one/Release").read_text()


def test_file_that_holds_another_package(lock: Lock, mirror: Mirror, tmp_path: Path) -> None:
    """The lock's hash fits, its name doesn't: somebody wrote the lock by hand."""
    item = lock.packages[0]
    wrong = make_lock(
        [
            *lock.packages[1:],
            dataclasses.replace(item, package=dataclasses.replace(item.package, version="2:9")),
        ]
    )
    with pytest.raises(RefusedError, match=re.escape(f"holds bash {VERSION} all")):
        pool.fetch(wrong, tmp_path / "pool", [network(mirror)], quiet)


@pytest.fixture
def source(tmp_path: Path, lock: Lock) -> Path:
    source = tmp_path / "source"
    (source / "image").mkdir(parents=True)
    (source / packages.LOCK).write_bytes(lock.to_bytes())
    return source


def select(source: Path, work: Path, policy: Policy = Policy.LOCKED, pool_: Path | None = None) -> Selection:
    return packages.select(source, work, Variant.RELEASE, policy=policy, pool_=pool_, progress=quiet)


@pytest.fixture
def host(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> Mirror:
    """The mirror, as the one that this host's apt names."""
    monkeypatch.setattr(apt, "host_archives", lambda: [Archive(uri=mirror.url, security=False)])
    return mirror


def test_locked_build_sees_only_the_pool(source: Path, host: Mirror, lock: Lock, tmp_path: Path) -> None:
    work = tmp_path / "work"
    selection = select(source, work)
    assert selection.locked
    assert (
        selection.sources
        == b"Types: deb\nURIs: file:/var/cache/apt/archives/pool\nSuites: ./\nTrusted: yes\n"
    )
    assert is_whole(lock, work / "cache/packages/cache/apt/archives/pool")


def test_build_from_a_pool_asks_no_mirror(
    source: Path, mirror: Mirror, lock: Lock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool.fetch(lock, tmp_path / "pool", [network(mirror)], quiet)
    mirror.asked.clear()

    def no_apt() -> list[Archive]:
        raise AssertionError("the host's archives are not looked at")

    monkeypatch.setattr(apt, "host_archives", no_apt)
    assert select(source, tmp_path / "work", pool_=tmp_path / "pool").locked
    assert mirror.asked == []


def test_pool_that_lacks_a_package(source: Path, mirror: Mirror, lock: Lock, tmp_path: Path) -> None:
    pool.fetch(lock, tmp_path / "pool", [network(mirror)], quiet)
    (tmp_path / "pool" / lock.packages[0].file_name).unlink()
    with pytest.raises(RefusedError, match=re.escape(f"bash {VERSION}")):
        select(source, tmp_path / "work", pool_=tmp_path / "pool")


def test_pool_and_drift_exclude_each_other(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exclude each other"):
        select(source, tmp_path / "work", Policy.ALLOW_DRIFT, tmp_path)
    with pytest.raises(UsageError, match="no folder"):
        select(source, tmp_path / "work", pool_=tmp_path / "absent")


def drifted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lock: Lock) -> None:
    """The mirror has a newer bash, and the locked one is gone."""
    (tmp_path / "archive" / lock.packages[0].path).unlink()
    lists = tmp_path / "work/tools/apt/lists"
    lists.mkdir(parents=True)
    (lists / "m_dists_trixie_main_binary-amd64_Packages").write_text(
        f"Package: bash\nVersion: 1:2.0\nArchitecture: all\nFilename: ./x.deb\nSize: 1\nSHA256: {'00' * 32}\n"
    )
    monkeypatch.setattr(apt, "update", lambda _: "apt-get")


def test_drift_ends_a_locked_build(
    source: Path, host: Mirror, lock: Lock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drifted(monkeypatch, tmp_path, lock)
    with pytest.raises(RefusedError) as caught:
        select(source, tmp_path / "work")
    assert [item.message for item in caught.value.findings] == [f"bash {VERSION}: the mirror has 1:2.0 now"]
    assert "nodeos image lock" in str(caught.value)


def test_allowed_drift_is_told(
    source: Path, host: Mirror, lock: Lock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drifted(monkeypatch, tmp_path, lock)
    selection = select(source, tmp_path / "work", Policy.ALLOW_DRIFT)
    assert not selection.locked
    assert selection.reasons == (f"bash {VERSION}",)
    assert host.url.encode() in selection.sources
    assert selection.mkosi is None


def test_allowed_drift_takes_the_locked_where_it_can(source: Path, host: Mirror, tmp_path: Path) -> None:
    assert select(source, tmp_path / "work", Policy.ALLOW_DRIFT).locked


def test_mirror_that_is_away_is_no_drift(
    source: Path, host: Mirror, lock: Lock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drifted(monkeypatch, tmp_path, lock)

    def away(_: Path) -> str:
        raise ToolError("no network")

    monkeypatch.setattr(apt, "update", away)
    with pytest.raises(ToolError, match="no network to the package mirror"):
        select(source, tmp_path / "work")


def test_trees_of_other_packages_are_dropped(source: Path, host: Mirror, tmp_path: Path) -> None:
    work = tmp_path / "work"
    select(source, work)
    tree = work / "cache/image-release/tree"
    tree.mkdir(parents=True)
    select(source, work)
    assert tree.exists()
    select(source, work, Policy.MIRROR)
    assert not tree.exists()


def trees_of(work: Path, names: list[str]) -> None:
    make_trees(work, Variant.RELEASE, {Role.ROOT: names})


def test_report_of_a_locked_build(source: Path, host: Mirror, lock: Lock, tmp_path: Path) -> None:
    work = tmp_path / "work"
    selection = select(source, work)
    trees_of(work, NAMES)
    data = packages.report(selection, work)
    value = json.loads(data)
    assert (value["version"], value["locked"], value["drift"]) == (1, True, [])
    assert value["lock"] == hashlib.sha256((source / packages.LOCK).read_bytes()).hexdigest()
    assert value["packages"] == [
        {"name": item.package.name, "version": VERSION, "architecture": "all", "sha256": item.sha256.hex(),
         "images": ["root"]}
        for item in lock.packages
    ]  # fmt: skip
    packages.require_locked(data)


def test_what_was_installed_must_be_the_lock(source: Path, host: Mirror, tmp_path: Path) -> None:
    work = tmp_path / "work"
    selection = select(source, work)
    trees_of(work, [*NAMES[:2], "nc"])
    with pytest.raises(RefusedError) as caught:
        packages.report(selection, work)
    assert [item.message for item in caught.value.findings] == [
        f"nc: not locked, found {VERSION} (root)",
        f"zlib1g: locked {VERSION}, not found (root)",
    ]


def test_file_that_was_swapped_during_the_build(
    source: Path, host: Mirror, lock: Lock, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    selection = select(source, work)
    trees_of(work, NAMES)
    target = work / "cache/packages/cache/apt/archives/pool" / lock.packages[0].file_name
    target.unlink()
    target.write_bytes(b"another")
    with pytest.raises(RefusedError, match=hashlib.sha256(b"another").hexdigest()):
        packages.report(selection, work)


def test_report_of_a_drifted_build(
    source: Path, host: Mirror, lock: Lock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drifted(monkeypatch, tmp_path, lock)
    work = tmp_path / "work"
    selection = select(source, work, Policy.ALLOW_DRIFT)
    trees_of(work, [*NAMES, "nc"])
    data = packages.report(selection, work)
    value = json.loads(data)
    assert not value["locked"]
    assert f"nc: not locked, found {VERSION} (root)" in value["drift"]
    with pytest.raises(RefusedError, match="not the locked ones"):
        packages.require_locked(data)


@pytest.mark.parametrize(
    "data", [b'{"version":1,"packages":[]}', b'{"version":1,"locked":"yes"}', b'{"locked":true}']
)
def test_only_a_plain_yes_is_locked(data: bytes) -> None:
    with pytest.raises(RefusedError):
        packages.require_locked(data)


def test_builds_without_a_manifest_or_tree(source: Path, host: Mirror, tmp_path: Path) -> None:
    work = tmp_path / "work"
    selection = select(source, work)
    trees_of(work, NAMES)
    (work / "mkosi/initrd.manifest").unlink()
    with pytest.raises(ToolError, match=r"no initrd\.manifest"):
        packages.report(selection, work)
    shutil.rmtree(work / "mkosi/tools")
    with pytest.raises(ToolError, match="status is not there"):
        packages.report(selection, work)


def test_mirror_s_newer_versions(lock: Lock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apt, "update", lambda _: "apt-get")
    lists = tmp_path / "lists"
    lists.mkdir()

    def stanza(item: Locked, version: str = VERSION, sha256: bytes | None = None) -> str:
        digest = (sha256 or item.sha256).hex()
        return (
            f"Package: {item.package.name}\nVersion: {version}\nArchitecture: all\n"
            f"Filename: {item.path}\nSize: {item.size}\nSHA256: {digest}\n"
        )

    one, two, three = lock.packages
    name = "m_dists_trixie_main_binary-amd64_Packages"
    (lists / name).write_text("\n".join(map(stanza, lock.packages)))
    assert packages.compare_mirror(lock, tmp_path) == ()
    (lists / name).write_text("\n".join([stanza(one), stanza(two, sha256=bytes(32))]))
    (lists / name.replace("trixie", "trixie-security")).write_text(stanza(one, "1:1.10"))
    assert [item.words for item in packages.compare_mirror(lock, tmp_path)] == [
        f"bash: locked {VERSION}, found 1:1.10 (root)",
        f"libc6 {VERSION}: the file has SHA-256 {'00' * 32}, not the locked one (root)",
        f"zlib1g: locked {VERSION}, not found (root)",
    ]
    assert three.package.name == "zlib1g"


def test_lock_is_written_when_packages_change(tmp_path: Path, lock: Lock) -> None:
    (tmp_path / "image").mkdir()
    assert len(packages.write_lock(tmp_path, lock)) == 3
    before = (tmp_path / packages.LOCK).read_bytes()
    later = dataclasses.replace(lock, time="20270101T000000Z")
    assert packages.write_lock(tmp_path, later) == ()
    assert (tmp_path / packages.LOCK).read_bytes() == before
    fewer = dataclasses.replace(later, packages=later.packages[1:])
    assert [item.package for item in packages.write_lock(tmp_path, fewer)] == ["bash"]
    assert packages.read_lock(tmp_path) == fewer


def test_lock_of_a_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the trees hold is locked with the roles that it has there, mkosi's own package besides."""
    work = tmp_path / "work"
    make_trees(
        work, Variant.RELEASE,
        {Role.ROOT: ["bash"], Role.BUILD: ["gcc"], Role.INITRD: ["bash"], Role.TOOLS: ["qemu"]},
    )  # fmt: skip
    make_trees(
        work, Variant.DEBUG,
        {Role.ROOT: ["bash", "strace"], Role.INITRD: ["bash"], Role.TOOLS: ["qemu"]},
    )  # fmt: skip
    names = ["bash", "gcc", "qemu", "strace"]
    made = make_archive(tmp_path / "archive", names)
    archives = work / "cache/packages/cache/apt/archives"
    archives.mkdir(parents=True)
    for item in made:
        target = f"{item.package.name}_{VERSION.replace(':', '%3a')}_all.deb"
        shutil.copy(tmp_path / "archive" / item.path, archives / target)
    tool = Package(name="mkosi", version=mkosi.PACKAGE_VERSION, architecture="all")
    index = [
        f"Package: {item.package.name}\nVersion: {VERSION}\nArchitecture: all\nFilename: {item.path}\n"
        f"Size: {item.size}\nSHA256: {item.sha256.hex()}\n"
        for item in made
    ]
    index.append(
        f"Package: mkosi\nVersion: {tool.version}\nArchitecture: all\n"
        "Filename: pool/main/m/mkosi/mkosi_1_all.deb\n"
        f"Size: 5\nSHA256: {mkosi.PACKAGE_SHA256}\n"
    )
    lists = work / "cache/packages/lib/apt/lists"
    lists.mkdir(parents=True)
    with pytest.raises(ToolError, match="no lists"):
        packages.make_lock(work)
    (lists / "m_dists_trixie_main_binary-amd64_Packages").write_text("\n".join(index))
    (lists / "m_dists_trixie_InRelease").write_text("Date: Sat, 21 Nov 2026 09:15:44 UTC\n")
    lock = packages.make_lock(work)
    assert lock.time == "20261122T091544Z"
    assert {item.package.name: item.roles for item in lock.packages} == {
        "bash": (Role.INITRD, Role.ROOT),
        "gcc": (Role.BUILD,),
        "mkosi": (Role.MKOSI,),
        "qemu": (Role.TOOLS,),
        "strace": (Role.DEBUG,),
    }


def cli(*arguments: str) -> object:
    """The exit code of ``nodeos image`` with these words."""
    with pytest.raises(SystemExit) as caught:
        main(["image", *arguments])
    return caught.value.code


def test_pool_fetch(  # noqa: PLR0917 - pytest calls it by keyword
    source: Path, host: Mirror, lock: Lock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(lock_cli, "SOURCE", source)
    monkeypatch.setattr(wheels, "fetch", lambda locks, directory: directory)
    assert cli("pool", "fetch", str(tmp_path / "pool")) == 0
    assert is_whole(lock, tmp_path / "pool")
    assert "3 packages" in capsys.readouterr().out
    monkeypatch.setattr(apt, "update", lambda _: "apt-get")
    (tmp_path / "archive" / lock.packages[0].path).unlink()
    assert cli("pool", "fetch", str(tmp_path / "other")) == 3
    assert f"pool.missing: bash {VERSION}" in capsys.readouterr().err


def test_lock_check(
    source: Path,
    lock: Lock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(lock_cli, "SOURCE", source)
    monkeypatch.setattr(packages, "compare_mirror", lambda lock, scratch: ())
    assert cli("lock", "--check", "--work", str(tmp_path)) == 0
    found = Drift(package="bash", trees=("root",), locked=VERSION, found="2")
    monkeypatch.setattr(packages, "compare_mirror", lambda lock, scratch: (found,))
    before = (source / packages.LOCK).read_bytes()
    assert cli("lock", "--check", "--work", str(tmp_path)) == 3
    assert f"bash: locked {VERSION}, found 2 (root)" in capsys.readouterr().err
    assert (source / packages.LOCK).read_bytes() == before
