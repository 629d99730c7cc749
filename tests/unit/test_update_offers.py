"""Which offers a node takes, and what becomes of one that it takes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from nodeos.agent.delivery import AGAIN, Deliverer, Parts, take
from nodeos.core.errors import Finding, NodeosError, RefusedError, UnreachableError, UsageError
from nodeos.core.protocol import Delivery, DeliveryState, Offer, UpdateStatus
from nodeos.core.wire import canonical_json
from nodeos.update import machine
from nodeos.update.fetch import Answer
from nodeos.update.offers import Decision, decide, read_delivery, restart_delay
from tests.support.agent_fakes import Listener
from tests.support.update_machine import FakeTpm, Machine, make_release

OFFER = Offer(number=7, version="1.1", manifest=bytes(32), url="http://192.0.2.7/1.1")
STATUS = UpdateStatus(running="1.0", blessed=True)


def told(state: DeliveryState, number: int = 7, boot_id: str = "now") -> UpdateStatus:
    delivery = Delivery(number=number, version="1.1", state=state, boot_id=boot_id)
    return replace(STATUS, delivery=delivery)


def decision(
    offer: Offer | None = OFFER, status: UpdateStatus = STATUS, *, unfinished: bool = False
) -> Decision:
    return decide(offer, status, unfinished=unfinished, boot_id="now")


def test_an_offer_is_taken() -> None:
    assert decision().take
    assert decision(status=replace(STATUS, failed="1.1")).take, "offered again after it failed"


def test_nothing_to_do() -> None:
    assert decision(None) == Decision(take=False)
    assert decision(replace(OFFER, version="1.0")) == Decision(take=False)


def test_a_boot_on_trial_takes_nothing() -> None:
    found = decision(status=replace(STATUS, blessed=False))
    assert not found.take
    assert "not blessed yet" in found.why


def test_an_unfinished_update_comes_first() -> None:
    assert not decision(unfinished=True).take


@pytest.mark.parametrize("state", [DeliveryState.REFUSED, DeliveryState.INSTALLED])
def test_what_was_decided_is_not_tried_again_but_for_a_new_offer(state: DeliveryState) -> None:
    assert not decision(status=told(state)).take
    assert not decision(status=told(state, boot_id="before")).take
    assert decision(status=told(state, number=6)).take


@pytest.mark.parametrize("state", [DeliveryState.FETCHING, DeliveryState.FAILED])
def test_what_was_interrupted_or_broke_is_tried_again(state: DeliveryState) -> None:
    assert decision(status=told(state, boot_id="before")).take
    assert decision(status=told(state)).take


def test_nodes_restart_one_after_the_other() -> None:
    delays = {restart_delay(f"node-{number}", "1.1") for number in range(500)}
    assert (min(delays), max(delays)) == (10, 59)
    assert restart_delay("node-1", "1.1") == restart_delay("node-1", "1.1")


@dataclass
class Files:
    """The release's folder, as a source."""

    directory: Path

    @contextmanager
    def open(self, name: str, start: int) -> Iterator[Answer]:
        yield Answer(start=start, parts=iter([(self.directory / name).read_bytes()[start:]]))


class Nobody:
    @contextmanager
    def open(self, name: str, start: int) -> Iterator[Answer]:
        raise UnreachableError("nobody there")
        yield  # it is a generator


@dataclass
class Stage:
    """A node that is offered 1.1."""

    node: Machine
    release: Path
    console: Listener
    restarts: list[str] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    started: list[Offer] = field(default_factory=list)
    clock: float = 0.0

    @property
    def offer(self) -> Offer:
        digest = hashlib.sha256((self.release / "release.json").read_bytes()).digest()
        return replace(OFFER, manifest=digest)

    @property
    def file(self) -> Path:
        return self.node.directory / "offer.json"

    @property
    def deliverer(self) -> Deliverer:
        def start() -> None:
            self.started.append(self.offer)

        return Deliverer(
            paths=self.node.paths, offer_file=self.file, boot_id="now", console=self.console, start=start,
            clock=lambda: self.clock,
        )  # fmt: skip

    def take(self, source: Files | Nobody | None = None) -> Delivery:
        self.file.write_bytes(canonical_json(self.offer.to_json()))
        parts = Parts(
            source=lambda offer: source or Files(self.release),
            gather=lambda: machine.gather_facts(self.node.paths, lambda: FakeTpm(self.node.pcr7)),
            wait=self.waits.append,
            restart=lambda: self.restarts.append("now"),
            install=self.node.install,
        )
        try:
            take(self.node.paths, self.file, self.console, parts, boot_id="now", node="n")
        finally:
            found = read_delivery(self.node.paths.delivery)
            assert found is not None
            self.delivery = found
        return found

    delivery: Delivery | None = None


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    node = Machine.make(tmp_path / "node")
    return Stage(node, make_release(tmp_path / "release", "1.1", [node.pcr7]), Listener(tmp_path))


def test_an_offer_becomes_a_restart_into_it(stage: Stage) -> None:
    found = stage.take()
    assert (found.number, found.version, found.state) == (7, "1.1", DeliveryState.INSTALLED)
    assert stage.node.ukis == ["nodeos_1.0.efi", "nodeos_1.1+3-0.efi"]
    assert stage.restarts == ["now"]
    assert stage.waits == [restart_delay("n", "1.1")]
    assert not stage.node.paths.download.exists()
    assert "1.1 is installed; restarting in" in stage.console.words.getvalue()


def test_a_refusal_is_told_and_nothing_restarts(stage: Stage, tmp_path: Path) -> None:
    stage.release = make_release(tmp_path / "foreign", "1.1", [b"x" * 32])
    with pytest.raises(RefusedError):
        stage.take()
    assert stage.delivery is not None
    assert stage.delivery.state is DeliveryState.REFUSED
    assert [finding.code for finding in stage.delivery.findings] == ["pcr7.unsigned"]
    assert "✗ pcr7.unsigned" in stage.console.words.getvalue()
    assert stage.restarts == []
    assert stage.node.ukis == ["nodeos_1.0.efi"]


def test_a_release_that_cant_be_read_is_refused(stage: Stage) -> None:
    (stage.release / "release.sig").write_bytes(b"{")
    with pytest.raises(UsageError):
        stage.take()
    assert stage.delivery is not None
    assert stage.delivery.state is DeliveryState.REFUSED


def test_nobody_answers(stage: Stage) -> None:
    with pytest.raises(UnreachableError):
        stage.take(Nobody())
    assert stage.delivery is not None
    assert stage.delivery.state is DeliveryState.FAILED
    assert stage.delivery.findings == (Finding(code="update.error", message="nobody there"),)
    assert "it is tried again" in stage.console.words.getvalue()
    assert stage.take().state is DeliveryState.INSTALLED


def test_a_full_disk_is_a_failure_and_no_end_of_the_node(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nodeos.agent.delivery.apply", full)
    with pytest.raises(OSError, match="No space left"):
        stage.take()
    assert stage.delivery is not None
    assert stage.delivery.state is DeliveryState.FAILED


def test_the_agent_starts_the_update_and_tells_of_it(stage: Stage) -> None:
    deliverer = stage.deliverer
    assert not deliverer.unsettled()
    deliverer.consider(stage.offer)
    assert stage.started == [stage.offer]
    assert stage.file.read_bytes() == canonical_json(stage.offer.to_json())
    status = deliverer.status()
    assert status is not None
    assert status.delivery is not None
    assert status.delivery.state is DeliveryState.FETCHING
    assert deliverer.unsettled()
    stage.take()
    assert not deliverer.unsettled()
    deliverer.consider(stage.offer)
    assert len(stage.started) == 1
    assert "the machine restarts soon" in stage.console.words.getvalue()


def test_what_broke_is_not_tried_again_at_once(stage: Stage) -> None:
    deliverer = stage.deliverer
    deliverer.consider(stage.offer)
    with pytest.raises(UnreachableError):
        stage.take(Nobody())
    deliverer.consider(stage.offer)
    assert len(stage.started) == 1
    stage.clock = AGAIN
    deliverer.consider(stage.offer)
    assert len(stage.started) == 2


def test_a_boot_on_trial_waits_for_its_blessing(stage: Stage) -> None:
    (stage.node.linux / "nodeos_1.0.efi").rename(stage.node.linux / "nodeos_1.0+2-1.efi")
    assert stage.deliverer.unsettled()
    stage.deliverer.consider(stage.offer)
    assert stage.started == []


def test_an_update_that_cant_be_started_does_not_end_the_agent(stage: Stage) -> None:
    def start() -> None:
        raise NodeosError("systemctl is gone")

    deliverer = replace(stage.deliverer, start=start)
    deliverer.consider(stage.offer)
    assert "systemctl is gone" in stage.console.words.getvalue()


def test_a_system_without_a_boot_partition_takes_nothing(stage: Stage) -> None:
    for path in stage.node.linux.iterdir():
        path.unlink()
    assert stage.deliverer.status() is None
    stage.deliverer.consider(stage.offer)
    assert stage.started == []


def test_a_withdrawn_offer_is_forgotten_unless_it_is_under_way(stage: Stage, tmp_path: Path) -> None:
    deliverer = stage.deliverer
    deliverer.consider(stage.offer)
    deliverer.consider(None)
    assert read_delivery(stage.node.paths.delivery) is not None, "it is being fetched"
    stage.release = make_release(tmp_path / "foreign", "1.1", [b"x" * 32])
    with pytest.raises(RefusedError):
        stage.take()
    assert not stage.node.paths.download.exists()
    deliverer.consider(None)
    assert read_delivery(stage.node.paths.delivery) is None


def test_a_report_that_cant_be_read_counts_as_none(stage: Stage) -> None:
    stage.node.paths.delivery.write_bytes(b"{")
    assert read_delivery(stage.node.paths.delivery) is None
