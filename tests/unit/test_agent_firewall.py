"""The node's firewall: what is kept, what is written to be loaded, and what is left alone."""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from nodeos.agent.config import Config
from nodeos.agent.firewall import Firewall, own_addresses
from nodeos.core.access import AccessList
from nodeos.core.addresses import parse_address, parse_network
from nodeos.core.errors import NodeosError
from tests.support.agent_fakes import make_config

LIST = AccessList(nodes=(parse_address("2001:db8::1"),), clients=(parse_network("10.0.2.2"),))


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return make_config(tmp_path)


def load(config: Config) -> None:
    """What nodeos-firewall-load.service does."""
    config.ruleset.rename(config.loaded_ruleset)


def test_a_fresh_node_stays_closed(config: Config) -> None:
    firewall = Firewall(config=config)
    assert firewall.restore() is False
    assert firewall.is_loaded()
    assert not config.ruleset.exists()


def test_what_was_opened_is_open_again_after_a_restart(config: Config) -> None:
    Firewall(config=config).open_for(LIST)
    assert config.ruleset.read_text() == LIST.ruleset()
    config.ruleset.unlink()  # the next boot
    firewall = Firewall(config=config)
    assert firewall.restore() is True
    assert config.ruleset.read_text() == LIST.ruleset()
    assert firewall.access is not None
    assert firewall.access.digest == LIST.digest


def test_a_ruleset_that_is_loaded_is_not_loaded_again(config: Config) -> None:
    """It would forget the counts per source."""
    Firewall(config=config).open_for(LIST)
    load(config)
    firewall = Firewall(config=config)
    assert firewall.restore() is True
    firewall.open_for(LIST)
    firewall.load_again()
    assert firewall.is_loaded()
    assert not config.ruleset.exists()


def test_a_ruleset_that_was_not_loaded_is_seen(config: Config) -> None:
    firewall = Firewall(config=config)
    firewall.open_for(AccessList(nodes=(), clients=()))
    load(config)
    firewall.open_for(LIST)
    config.ruleset.unlink()  # taken by the service, which failed
    assert not firewall.is_loaded()
    firewall.load_again()
    assert config.ruleset.read_text() == LIST.ruleset()
    load(config)
    assert firewall.is_loaded()


@pytest.mark.parametrize("data", [b"", b"{}", b'{"nodes":["::1"],"clients":[]}', b"x" * ((1 << 22) + 1)])
def test_a_damaged_list_opens_nothing(config: Config, data: bytes) -> None:
    config.access.parent.mkdir()
    config.access.write_bytes(data)
    firewall = Firewall(config=config)
    with pytest.raises(NodeosError, match=r"access\.json"):
        firewall.restore()
    assert firewall.access is None
    assert not config.ruleset.exists()
    firewall.open_for(LIST)
    assert Firewall(config=config).restore() is True


def test_only_what_others_can_reach_is_an_own_address(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = (
        "127.0.0.1",
        "::1",
        "fe80::1%eth0",
        "52:54:00:12:34:56",
        "fec0::5054:ff:fe12:3456",
        "169.254.1.1",
    )
    good = ("2001:db8::7", "192.0.2.7", "fd00::7")
    rows = [SimpleNamespace(family=socket.AF_INET, address=text) for text in (*texts, *good, *good)]
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: {"lo": rows[:2], "eth0": rows[2:]})
    assert own_addresses() == (
        ipaddress.IPv4Address("192.0.2.7"),
        ipaddress.IPv6Address("2001:db8::7"),
        ipaddress.IPv6Address("fd00::7"),
    )


def test_this_machine_has_no_address_that_nobody_can_reach() -> None:
    assert not {str(address) for address in own_addresses()} & {"127.0.0.1", "::1"}
