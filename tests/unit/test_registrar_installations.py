"""Reports of installers: kept as what somebody said, within limits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nodeos.core.errors import Finding, RefusedError
from nodeos.core.installation import LIMIT, Installation, Verdict
from nodeos.core.wire import ParseError
from provisioning.registrar import installations
from provisioning.registrar.installations import Installations
from provisioning.registrar.store import BusyError
from tests.support.registrar import AT, Registrar

TOLD = Installation(
    verdict=Verdict.REFUSED,
    data_center="dc1",
    machine="ab" * 32,
    release="0.1.0",
    root_hash=bytes(32),
    source="http://192.0.2.7/nodeos/",
    disk="S1",
    message="this machine is not fit",
    findings=(Finding(code="preflight.tpm", message="none"),),
    seconds=70,
)


@pytest.fixture
def registrar(tmp_path: Path) -> Iterator[Registrar]:
    made = Registrar(tmp_path)
    yield made
    made.store.close()


def taker(registrar: Registrar) -> Installations:
    return Installations(registrar.store, registrar.service.clock)


def kept(registrar: Registrar, center: str | None = None) -> list[Installation]:
    with registrar.store.read() as tx:
        return [Installation.parse(row.document) for row in tx.installations(center, 1000)]


def test_kept_with_where_it_came_from(registrar: Registrar) -> None:
    taker(registrar).take(TOLD.to_bytes(), "192.0.2.9")
    with registrar.store.read() as tx:
        (row,) = tx.installations("dc1", 10)
        assert tx.installations("dc2", 10) == []
    assert (row.at, row.source, row.data_center) == (AT, "192.0.2.9", "dc1")
    assert Installation.parse(row.document) == TOLD


def test_no_enrolment_comes_of_it(registrar: Registrar) -> None:
    taker(registrar).take(TOLD.to_bytes(), "192.0.2.9")
    with registrar.store.read() as tx:
        assert tx.enrolment("ab" * 32) is None


def test_unknown_data_center(registrar: Registrar) -> None:
    with pytest.raises(RefusedError) as caught:
        taker(registrar).take(replace(TOLD, data_center="dc9").to_bytes(), "192.0.2.9")
    assert [item.code for item in caught.value.findings] == ["data_center.unknown"]
    assert kept(registrar) == []


def test_limit_for_each_address_and_hour(registrar: Registrar, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installations, "PER_HOUR", 2)
    for _ in range(2):
        taker(registrar).take(TOLD.to_bytes(), "192.0.2.9")
    with pytest.raises(BusyError, match="in an hour"):
        taker(registrar).take(TOLD.to_bytes(), "192.0.2.9")
    taker(registrar).take(TOLD.to_bytes(), "192.0.2.10")
    registrar.clock.at += 3601
    taker(registrar).take(TOLD.to_bytes(), "192.0.2.9")
    assert len(kept(registrar)) == 4


def test_oldest_go_first(registrar: Registrar, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installations, "KEPT", 3)
    for number in range(5):
        taker(registrar).take(replace(TOLD, seconds=number).to_bytes(), "192.0.2.9")
    assert [item.seconds for item in kept(registrar)] == [4, 3, 2]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"version":1', b'"version":2'),
        (b'"refused"', b'"proven"'),
        (b'"seconds":70', b'"seconds":-1'),
        (b'"disk"', b'"disc"'),
        (b'"00000000', b'"0000000z'),
        (b'"message":"none"', b'"message":3'),
        (b'"message":"none"', b'"message":"\\u001b[2J"'),
        (b'"S1"', b'"S1\\n"'),
    ],
)
def test_misshapen(old: bytes, new: bytes, registrar: Registrar) -> None:
    body = TOLD.to_bytes()
    assert old in body
    with pytest.raises(ParseError):
        taker(registrar).take(body.replace(old, new, 1), "192.0.2.9")
    assert kept(registrar) == []


def test_the_longest_report_fits() -> None:
    finding = Finding(code="c" * 64, message="ü" * 9999)
    longest = replace(TOLD, message="ü" * 9999, findings=(finding,) * 99)
    assert len(longest.to_bytes()) <= LIMIT
    assert len(Installation.parse(longest.to_bytes()).findings) == 32
