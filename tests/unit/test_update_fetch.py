"""Fetching an offered release: each thing that ends it, and what an interruption leaves for the next time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from nodeos.core.errors import NodeosError, RefusedError, UnreachableError, UsageError
from nodeos.core.protocol import Offer
from nodeos.core.release import Release
from nodeos.update import fetch as fetching
from nodeos.update.fetch import TRIES, Answer, fetch
from nodeos.update.machine import trusted_release_keys
from nodeos.update.source import WebFolder
from tests.support.update_machine import Machine, make_release, sign_release
from tests.support.webfolder import serve


@dataclass
class Disk:
    """A source that reads files, in parts of 1000 bytes; after ``cut`` parts in all the connection ends."""

    directory: Path
    cut: int = 1_000_000
    ranges: bool = True
    asked: list[tuple[str, int]] = field(default_factory=list)

    @contextmanager
    def open(self, name: str, start: int) -> Iterator[Answer]:
        self.asked.append((name, start))
        if self.cut <= 0:
            raise UnreachableError("nobody there")
        first = start if self.ranges else 0
        data = (self.directory / name).read_bytes()[first:]

        def parts() -> Iterator[bytes]:
            for place in range(0, len(data), 1000):
                if self.cut <= 0:
                    return
                self.cut -= 1
                yield data[place : place + 1000]

        yield Answer(start=first, parts=parts())


@dataclass
class Stage:
    """A node, a release of 1.1 and its offer; ``words`` is what was told, ``waits`` how often was waited."""

    node: Machine
    release: Path
    words: list[str] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)

    @property
    def offer(self) -> Offer:
        digest = hashlib.sha256((self.release / "release.json").read_bytes()).digest()
        return Offer(number=1, version="1.1", manifest=digest, url="http://192.0.2.7/1.1")

    def fetch(self, source: Disk | WebFolder, offer: Offer | None = None) -> Path:
        paths = self.node.paths
        return fetch(
            offer or self.offer, source, paths.download, trusted_release_keys(paths),
            tell=self.words.append, wait=self.waits.append,
        )  # fmt: skip

    def refused(self, offer: Offer | None = None) -> list[str]:
        with pytest.raises(RefusedError) as caught:
            self.fetch(Disk(self.release), offer)
        return [finding.code for finding in caught.value.findings]

    def whole(self) -> bool:
        names = ("release.json", "release.sig", "nodeos.efi", "boot.efi", "root.raw", "verity.raw")
        there = self.node.paths.download
        return all((there / name).read_bytes() == (self.release / name).read_bytes() for name in names)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    node = Machine.make(tmp_path / "node")
    return Stage(node, make_release(tmp_path / "release", "1.1", [node.pcr7]))


def test_all_files_that_a_node_needs(stage: Stage) -> None:
    (stage.release / "sbom.spdx.json").write_bytes(b"not for a node")
    stage.fetch(Disk(stage.release))
    assert stage.whole()
    assert not (stage.node.paths.download / "sbom.spdx.json").exists()
    assert stage.words[0].startswith("fetching 1.1: 0 MiB from http://192.0.2.7/1.1")
    assert stage.words[-1].startswith("fetched 100 %")
    assert stage.node.paths.download.stat().st_mode & 0o777 == 0o700


def test_a_manifest_that_is_not_the_offered_one(stage: Stage) -> None:
    assert stage.refused(replace(stage.offer, manifest=bytes(32))) == ["offer.manifest"]
    assert not stage.node.paths.download.exists()


def test_a_manifest_that_no_release_key_signed(stage: Stage) -> None:
    (stage.release / "release.sig").write_bytes(b'{"signatures":[],"version":1}')
    assert stage.refused() == ["release.unsigned"]
    assert not stage.node.paths.download.exists()


def test_a_manifest_of_another_version(stage: Stage) -> None:
    assert stage.refused(replace(stage.offer, version="1.2")) == ["offer.version"]


def test_a_manifest_that_leaves_a_file_out(stage: Stage) -> None:
    found = Release.parse((stage.release / "release.json").read_bytes())
    fewer = {name: item for name, item in found.artefacts.items() if name != "verity.raw"}
    sign_release(stage.release, replace(found, artefacts=fewer))
    assert stage.refused() == ["artefact.missing"]


def test_no_room_on_the_state_volume(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "MARGIN", 1 << 62)
    assert stage.refused() == ["state.space"]


def test_a_file_that_differs_is_fetched_anew_the_next_time(stage: Stage) -> None:
    right = (stage.release / "root.raw").read_bytes()
    (stage.release / "root.raw").write_bytes(right[:-1] + b"x")
    with pytest.raises(NodeosError, match=r"root\.raw: its SHA-256 is not the manifest's"):
        stage.fetch(Disk(stage.release))
    (stage.release / "root.raw").write_bytes(right)
    source = Disk(stage.release)
    stage.fetch(source)
    assert ("root.raw", 0) in source.asked
    assert stage.whole()


def test_a_file_without_end(stage: Stage) -> None:
    (stage.release / "root.raw").write_bytes(bytes(1 << 20))
    with pytest.raises(NodeosError, match=r"root\.raw: longer than the 8192 bytes of the manifest"):
        stage.fetch(Disk(stage.release))
    part = stage.node.paths.download / "root.raw.part"
    assert part.stat().st_size <= 8192


def test_a_manifest_without_end(stage: Stage) -> None:
    offer = stage.offer
    (stage.release / "release.json").write_bytes(bytes(1 << 21))
    with pytest.raises(NodeosError, match=r"release\.json: larger than"):
        stage.fetch(Disk(stage.release), offer)


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_file_is_gone_on_with(stage: Stage, ranges: bool) -> None:
    parts = sum(-(-(stage.release / name).stat().st_size // 1000)
                for name in ("release.json", "release.sig", "nodeos.efi", "boot.efi"))  # fmt: skip
    with pytest.raises(UnreachableError, match="nobody there"):
        stage.fetch(Disk(stage.release, cut=parts + 5))
    assert (stage.node.paths.download / "root.raw.part").stat().st_size == 5000
    # It got further once, and then nobody answered TRIES times.
    assert len(stage.waits) == TRIES
    source = Disk(stage.release, ranges=ranges)
    stage.fetch(source)
    assert ("root.raw", 5000) in source.asked
    assert not [name for name, _ in source.asked if name == "nodeos.efi"], "it was there"
    assert stage.whole()


def test_what_an_earlier_release_left_goes_away(stage: Stage, tmp_path: Path) -> None:
    directory = stage.node.paths.download
    directory.mkdir()
    (directory / "root.raw.part").write_bytes(b"of another release")
    stage.fetch(Disk(stage.release))
    assert stage.whole()


def test_from_a_web_server(stage: Stage) -> None:
    with serve(stage.release) as folder:
        stage.fetch(WebFolder(f"http://127.0.0.1:{folder.port}/release", ca=""))
    assert stage.whole()


@pytest.mark.parametrize("ranges", [True, False])
def test_a_web_server_that_breaks_off(stage: Stage, ranges: bool) -> None:
    with serve(stage.release, ranges=ranges, limit=6000) as folder:
        source = WebFolder(f"http://127.0.0.1:{folder.port}/release/", ca="")
        if ranges:
            stage.fetch(source)
            assert ("root.raw", 6000) in folder.asked
            assert stage.whole()
        else:
            with pytest.raises(UnreachableError, match="the connection ended after 6000 of 8192 bytes"):
                stage.fetch(source)


def test_a_web_server_without_the_file_or_none_at_all(stage: Stage) -> None:
    with serve(stage.release) as folder:
        source = WebFolder(f"http://127.0.0.1:{folder.port}/elsewhere", ca="")
        with pytest.raises(NodeosError, match="answered with status 404"):
            stage.fetch(source)
    with pytest.raises(UnreachableError):
        stage.fetch(WebFolder(f"http://127.0.0.1:{folder.port}/release", ca=""))
    assert len(stage.waits) == TRIES - 1


@pytest.mark.parametrize(
    "url", ["ftp://192.0.2.7/x", "http:///x", "http://a@b/x", "http://h/x?y", "http://h:99999/"]
)
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(UsageError):
        WebFolder(url, ca="")
