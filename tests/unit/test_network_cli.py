from __future__ import annotations

import json
from pathlib import Path

import pytest

from nodeos import cli
from nodeos.core.addresses import parse_address, parse_network
from nodeos.core.firewall import render

MACHINE = ("--mgmt-mac", "00-11-22-33-44-55", "--deployment", "testnet")


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main(["network", *words])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_the_table_of_addresses(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("addresses", *MACHINE) == 0
    assert capsys.readouterr().out == (
        "system  MAC for IPv6       MAC for IPv4       interface id\n"
        "host    6a:00:ae:1a:09:bb  4a:00:ae:1a:09:bb  6800:aeff:fe1a:9bb\n"
        "setup   6a:0f:ae:1a:09:bb  4a:0f:ae:1a:09:bb  680f:aeff:fe1a:9bb\n"
        "guest   6a:01:ae:1a:09:bb  4a:01:ae:1a:09:bb  6801:aeff:fe1a:9bb\n"
    )
    assert run("addresses", *MACHINE, "--prefix", "2001:db8:1:2::/64") == 0
    assert "  2001:db8:1:2:6801:aeff:fe1a:9bb\n" in capsys.readouterr().out


def test_addresses_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("addresses", *MACHINE, "--json") == 0
    value = json.loads(capsys.readouterr().out)
    assert value["management_mac"] == "00:11:22:33:44:55"
    assert value["prefix"] is None
    assert [row["system"] for row in value["systems"]] == ["host", "setup", "guest"]
    assert "ipv6" not in value["systems"][0]
    assert run("addresses", *MACHINE, "--prefix", "2001:db8:1:2::/64", "--json") == 0
    value = json.loads(capsys.readouterr().out)
    assert value["prefix"] == "2001:db8:1:2::/64"
    assert value["systems"][2] == {
        "system": "guest",
        "mac_ipv6": "6a:01:ae:1a:09:bb",
        "mac_ipv4": "4a:01:ae:1a:09:bb",
        "interface_id": "6801:aeff:fe1a:9bb",
        "ipv6": "2001:db8:1:2:6801:aeff:fe1a:9bb",
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--mgmt-mac", "x", "--deployment", "testnet"), "'x' is no MAC address"),
        (("--mgmt-mac", "00:11:22:33:44:55", "--deployment", "X"), "'X' is no deployment name"),
        ((*MACHINE, "--prefix", "2001:db8::/48"), "'2001:db8::/48' is no /64"),
    ],
)
def test_wrong_arguments(words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("addresses", *words) == 2
    assert message in capsys.readouterr().err


def test_the_ruleset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "nodes.txt"
    path.write_text("2001:db8::1 # zh1\n192.0.2.1\n2001:db8::1\n")
    expected = render([parse_address("192.0.2.1"), parse_address("2001:db8::1")])
    assert run("firewall", "--nodes", str(path)) == 0
    assert capsys.readouterr() == (expected, "")
    assert run("firewall", "--nodes", str(path), "--json") == 0
    value = json.loads(capsys.readouterr().out)
    assert value == {"nodes": ["192.0.2.1", "2001:db8::1"], "clients": [], "ruleset": expected}


def test_clients_of_the_ruleset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "nodes.txt"
    path.write_text("")
    words = ("firewall", "--nodes", str(path), "--client", "198.51.100.0/24", "--client", "2001:db8::7")
    assert run(*words) == 0
    out, err = capsys.readouterr()
    assert out == render((), clients=[parse_network("198.51.100.0/24"), parse_network("2001:db8::7/128")])
    assert "nodes reach nothing" in err
    assert run(*words, "--client", "192.0.2.1/24") == 2
    assert "'192.0.2.1/24' is no IP prefix" in capsys.readouterr().err


def test_an_empty_list_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "nodes.txt"
    path.write_text("# none yet\n")
    assert run("firewall", "--nodes", str(path)) == 0
    out, err = capsys.readouterr()
    assert out == render(())
    assert "every service is closed" in err


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"192.0.2.1\nx\n", "nodes.txt: line 2: 'x' is no IP address"),
        (b"192.0.2.1\n\xff\n", "nodes.txt: line 2: not UTF-8"),
        (b" " * ((1 << 23) + 1), "larger than 8388608 bytes"),
        (None, "No such file"),
    ],
)
def test_wrong_files(
    data: bytes | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "nodes.txt"
    if data is not None:
        path.write_bytes(data)
    assert run("firewall", "--nodes", str(path)) == 2
    assert message in capsys.readouterr().err
