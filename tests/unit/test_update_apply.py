"""The whole of an update on files: verified copy, other slot, boot loader, rollback, blessing."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nodeos.core.errors import NodeosError, RefusedError
from nodeos.core.protocol import UpdateStatus
from nodeos.core.release import Release, Variant
from nodeos.update import apply as applying
from nodeos.update import blessing, machine
from nodeos.update.machine import Paths
from nodeos.update.preflight import Facts
from tests.support.release_keys import auth, lists
from tests.support.update_machine import (
    PCR_KEY,
    FakeTpm,
    Machine,
    make_loader,
    make_release,
    root_hash,
    sign_release,
)


@pytest.fixture
def node(tmp_path: Path) -> Machine:
    return Machine.make(tmp_path / "node")


def gather(node: Machine) -> Callable[[], Facts]:
    return lambda: machine.gather_facts(node.paths, lambda: FakeTpm(node.pcr7))


def install(node: Machine, directory: Path, **options: Any) -> applying.Applied:
    return applying.apply(
        node.paths, directory, gather(node), lambda text: None, install=node.install, **options
    )


def refusals(node: Machine, directory: Path, **options: Any) -> list[str]:
    with pytest.raises(RefusedError) as caught:
        install(node, directory, **options)
    assert node.installed == []
    assert not node.paths.staging.exists()
    return [finding.code for finding in caught.value.findings]


def test_an_update_is_offered_under_the_names_of_its_slot(node: Machine, tmp_path: Path) -> None:
    release = make_release(tmp_path / "release", "1.1", [node.pcr7])
    assert install(node, release).version == "1.1"
    number = root_hash("1.1")
    first, last = uuid.UUID(bytes=number[:16]), uuid.UUID(bytes=number[16:])
    assert node.offered[f"nodeos_1.1_{first}.root.raw"] == 8192
    assert node.offered[f"nodeos_1.1_{last}.verity.raw"] == 4096
    # The whole partition, so that nothing of an older signature stays behind the new one.
    assert [size for name, size in node.offered.items() if name.endswith(".verity-sig.raw")] == [1 << 20]
    assert node.ukis == ["nodeos_1.0.efi", "nodeos_1.1+3-0.efi"]
    assert not node.paths.staging.exists()
    assert not node.paths.incoming.exists()
    pending = machine.pending_release(node.paths)
    assert pending is not None
    assert pending.version == "1.1"


def test_the_machine_as_the_preflight_sees_it(node: Machine) -> None:
    facts = gather(node)()
    assert (facts.version, facts.variant, facts.floor) == ("1.0", Variant.RELEASE, 1)
    assert facts.secure_boot
    assert facts.policy_keys == (PCR_KEY,)
    assert facts.variables["db"] == lists("db")
    (node.linux / "nodeos_1.0.efi").unlink()
    with pytest.raises(NodeosError, match=r"no UKI of the running version 1\.0"):
        gather(node)()


def test_any_file_that_differs_from_the_manifest(node: Machine, tmp_path: Path) -> None:
    for name in ("nodeos.efi", "boot.efi", "root.raw", "verity.raw", "verity-sig.json"):
        release = make_release(tmp_path / name, "1.1", [node.pcr7])
        data = (release / name).read_bytes()
        (release / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert refusals(node, release) == ["artefact.hash"]
        (release / name).write_bytes(data + b"x")
        assert refusals(node, release) == ["artefact.size"]
        (release / name).write_bytes(data[:-1])
        assert refusals(node, release) == ["artefact.size"]


def test_a_manifest_by_another_key(node: Machine, tmp_path: Path) -> None:
    release = make_release(tmp_path / "release", "1.1", [node.pcr7])
    manifest = (release / "release.json").read_bytes()
    (release / "release.json").write_bytes(manifest.replace(b'"release":"1.1"', b'"release":"1.2"'))
    assert refusals(node, release) == ["release.signature"]
    (release / "release.json").write_bytes(manifest)
    (release / "release.sig").write_bytes(b'{"signatures":[],"version":1}')
    assert refusals(node, release) == ["release.unsigned"]


def test_a_manifest_that_leaves_a_file_out(node: Machine, tmp_path: Path) -> None:
    release = make_release(tmp_path / "release", "1.1", [node.pcr7])
    found = Release.parse((release / "release.json").read_bytes())
    fewer = {name: item for name, item in found.artefacts.items() if name != "verity.raw"}
    sign_release(release, replace(found, artefacts=fewer))
    assert refusals(node, release) == ["artefact.missing"]


def test_nothing_is_written_when_the_preflight_refuses(node: Machine, tmp_path: Path) -> None:
    release = make_release(tmp_path / "release", "1.1", [b"x" * 32])
    assert refusals(node, release) == ["pcr7.unsigned"]
    assert node.ukis == ["nodeos_1.0.efi"]
    assert not node.paths.pending.exists()


def test_an_interrupted_update_is_finished_by_running_it_again(node: Machine, tmp_path: Path) -> None:
    release = make_release(tmp_path / "release", "1.1", [node.pcr7])

    def cut_off(paths: Paths, version: str) -> None:
        raise NodeosError("power cut")

    with pytest.raises(NodeosError, match="power cut"):
        applying.apply(node.paths, release, gather(node), lambda text: None, install=cut_off)
    node.paths.staging.mkdir()
    (node.paths.staging / "left over").write_bytes(b"")
    assert install(node, release).version == "1.1"
    # And once more: the same release is there already.
    install(node, release)
    assert node.ukis == ["nodeos_1.0.efi", "nodeos_1.1+3-0.efi"]


def test_a_version_that_was_given_up_gets_its_tries_again(node: Machine, tmp_path: Path) -> None:
    release = make_release(tmp_path / "release", "1.1", [node.pcr7])
    install(node, release)
    (node.linux / "nodeos_1.1+3-0.efi").rename(node.linux / "nodeos_1.1+0-3.efi")
    install(node, release)
    assert node.ukis == ["nodeos_1.0.efi", "nodeos_1.1+3.efi"]


def test_another_release_of_the_same_version(node: Machine, tmp_path: Path) -> None:
    (node.linux / "nodeos_1.1.efi").write_bytes(b"another")
    release = make_release(tmp_path / "release", "1.1", [node.pcr7])
    assert refusals(node, release) == ["version.taken"]


def test_a_declared_rollback_sets_the_running_version_aside(node: Machine, tmp_path: Path) -> None:
    release = make_release(tmp_path / "release", "0.9", [node.pcr7])
    assert refusals(node, release) == ["version.older"]
    install(node, release, rollback=True)
    assert node.ukis == ["nodeos_0.9+3.efi", "nodeos_1.0+0.efi"]


def test_a_changed_boot_loader_is_written_before_the_uki(node: Machine, tmp_path: Path) -> None:
    changed = make_loader(b"a newer loader")
    release = make_release(tmp_path / "release", "1.1", [node.pcr7], loader=changed)
    install(node, release)
    for name in machine.LOADERS:
        assert (node.paths.esp / name).read_bytes() == changed


class World:
    """A node's surroundings after the restart into 1.1, and what the blessing did to them."""

    def __init__(self, node: Machine, tmp_path: Path, **release: Any) -> None:
        self.node = node
        install(node, make_release(tmp_path / "release", "1.1", [node.pcr7], **release))
        (node.linux / "nodeos_1.1+3-0.efi").rename(node.linux / "nodeos_1.1+2-1.efi")
        node.run("1.1")
        node.count()
        self.attested, self.blessed = tmp_path / "attested", tmp_path / "blessed"
        self.health = "healthy"
        self.tpm = FakeTpm(node.pcr7)
        self.kept: list[bytes] = []
        self.applied: list[str] = []
        self.fail_variables = False

    def good(self, paths: Paths) -> None:
        (self.node.linux / "nodeos_1.1+2-1.efi").rename(self.node.linux / "nodeos_1.1.efi")

    def variables(self, updates: dict[str, bytes], directory: Path) -> list[str]:
        if self.fail_variables:
            raise NodeosError("the firmware refuses the new dbx")
        self.applied += updates
        return list(updates)

    def bless(self) -> None:
        parts = blessing.Parts(
            replica_health=lambda: self.health,
            mark_good=self.good,
            open_tpm=lambda: self.tpm,
            apply_variables=self.variables,
            forget_keys=self.kept.extend,
        )
        blessing.bless(
            self.node.paths, parts, lambda text: None, attested=self.attested, blessed=self.blessed
        )


def test_a_boot_is_blessed_once_attested_and_healthy(node: Machine, tmp_path: Path) -> None:
    signed_anew = make_loader(signer="db") + b""
    world = World(
        node, tmp_path, loader=signed_anew, security_version=2, rollback_floor=2,
    )  # fmt: skip
    assert blessing.should_give_up(node.paths)
    with pytest.raises(RefusedError) as caught:
        world.bless()
    assert [finding.code for finding in caught.value.findings] == ["health.attestation"]
    world.attested.touch()
    world.health = "replica_behind"
    with pytest.raises(RefusedError) as caught:
        world.bless()
    assert [finding.code for finding in caught.value.findings] == ["health.replica"]
    assert (world.tpm.floor, world.blessed.exists()) == (1, False)
    world.health = "healthy"
    world.bless()
    assert node.ukis == ["nodeos_1.0.efi", "nodeos_1.1.efi"]
    assert (world.tpm.floor, world.blessed.exists(), world.kept) == (2, True, [PCR_KEY])
    assert not node.paths.pending.exists()
    assert not blessing.should_give_up(node.paths)
    world.bless()


def test_variables_change_after_the_blessing_and_a_failure_is_tried_again(
    node: Machine, tmp_path: Path
) -> None:
    """Both values of PCR 7 are signed for; firmware that says no leaves the rest for the next time."""
    from nodeos.core import secureboot
    from tests.support.release_keys import key

    given = {name: lists(name) for name in ("PK", "KEK", "db")}
    after = secureboot.pcr7({**given, "dbx": lists("other")}, [key("db").der])
    release = make_release(
        tmp_path / "both", "1.1", [node.pcr7, after], auths={"dbx": auth("dbx", lists("other"))}
    )
    world = World.__new__(World)
    world.node, world.health, world.tpm = node, "healthy", FakeTpm(node.pcr7)
    world.attested, world.blessed = tmp_path / "attested", tmp_path / "blessed"
    world.kept, world.applied, world.fail_variables = [], [], True
    install(node, release)
    (node.linux / "nodeos_1.1+3-0.efi").rename(node.linux / "nodeos_1.1+2-1.efi")
    node.run("1.1")
    node.count()
    world.attested.touch()
    with pytest.raises(NodeosError, match="refuses the new dbx"):
        world.bless()
    assert node.ukis[-1] == "nodeos_1.1.efi"
    assert node.paths.pending.exists()
    world.fail_variables = False
    world.bless()
    assert world.applied == ["dbx"]
    assert not node.paths.pending.exists()


def test_a_pending_file_that_was_changed_on_disk(node: Machine, tmp_path: Path) -> None:
    world = World(node, tmp_path)
    world.attested.touch()
    (node.paths.pending / "boot.efi").write_bytes(b"another")
    with pytest.raises(NodeosError, match="not the manifest's"):
        world.bless()


def test_nothing_happens_in_a_boot_that_is_not_counted(node: Machine, tmp_path: Path) -> None:
    world = World(node, tmp_path)
    (node.paths.efivars / f"LoaderBootCountPath-{machine.LOADER_VENDOR}").unlink()
    world.bless()
    assert node.paths.pending.exists(), "it was not blessed, so nothing may be finished"
    assert not blessing.should_give_up(node.paths)


def test_no_restart_without_a_way_back(node: Machine, tmp_path: Path) -> None:
    World(node, tmp_path)
    (node.linux / "nodeos_1.0.efi").rename(node.linux / "nodeos_1.0+0-3.efi")
    assert not blessing.should_give_up(node.paths)


def test_the_status_tells_of_a_fall_back(node: Machine, tmp_path: Path) -> None:
    World(node, tmp_path)
    assert blessing.update_status(node.paths) == UpdateStatus(running="1.1", blessed=False)
    (node.linux / "nodeos_1.1+2-1.efi").rename(node.linux / "nodeos_1.1+0-3.efi")
    node.run("1.0")
    assert blessing.update_status(node.paths) == UpdateStatus(running="1.0", blessed=True, failed="1.1")
