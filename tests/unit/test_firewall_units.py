"""The units that load the firewall, held against each other, the agent's paths and the image's scripts."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodeos.agent.config import Config

IMAGE = Path(__file__).resolve().parents[2] / "image"
UNITS = IMAGE / "extra/usr/lib/systemd/system"
BOOT, LOAD = "nodeos-firewall.service", "nodeos-firewall-load.service"


def settings(name: str) -> list[str]:
    lines = (UNITS / name).read_text().splitlines()
    return [line for line in lines if "=" in line and not line.startswith("#")]


def values(name: str, key: str) -> list[str]:
    lines = [line.partition("=") for line in settings(name)]
    return [word for found, _, value in lines if found == key for word in value.split()]


def test_no_network_without_a_firewall() -> None:
    drop_in = "systemd-networkd.service.d/10-firewall.conf"
    assert values(drop_in, "Requires") == values(drop_in, "After") == [BOOT]
    assert {"network-pre.target", "systemd-networkd.service"} <= set(values(BOOT, "Before"))
    assert values(BOOT, "DefaultDependencies") == ["no"]
    assert not values(BOOT, "ExecStop"), "the rules stay"


def test_the_closed_ruleset_comes_with_the_image_and_needs_no_python() -> None:
    [path] = [word for word in values(BOOT, "ExecStart") if word.endswith(".nft")]
    assert values(BOOT, "ExecStart") == ["/usr/sbin/nft", "--file", path]
    script = (IMAGE / "scripts/build.chroot").read_text()
    assert "from nodeos.core.firewall import render; print(render(())" in script
    assert f'"$DESTDIR{path}"' in script


def test_what_the_agent_writes_is_loaded_and_kept_for_it_to_see() -> None:
    config = Config()
    assert values("nodeos-firewall-load.path", "PathExists") == [str(config.ruleset)]
    loading = config.ruleset.with_suffix(".loading")
    steps = [line.partition("=")[2] for line in settings(LOAD) if line.startswith("ExecStart=")]
    assert steps == [
        f"/usr/bin/mv --no-target-directory {config.ruleset} {loading}",
        f"/usr/sbin/nft --file {loading}",
        f"/usr/bin/mv --no-target-directory {loading} {config.loaded_ruleset}",
    ]
    assert values(LOAD, "ReadWritePaths") == [str(config.ruleset.parent)]
    # A path unit ends for good when what it starts has hit its limit.
    assert values(LOAD, "StartLimitIntervalSec") == ["0"]


def test_it_is_loaded_after_the_closed_one() -> None:
    assert values(LOAD, "Requires") == values(LOAD, "After") == [BOOT]


@pytest.mark.parametrize("name", [BOOT, LOAD])
def test_it_may_change_the_network_and_nothing_else(name: str) -> None:
    assert values(name, "CapabilityBoundingSet") == ["CAP_NET_ADMIN"]
    assert values(name, "RestrictAddressFamilies") == ["AF_NETLINK"]
    assert values(name, "NoNewPrivileges") == ["yes"]


def test_the_image_watches_for_it_and_leaves_debians_own_out() -> None:
    script = (IMAGE / "scripts/postinst").read_text()
    enabled, masked = script.partition("\n# Not of use")[::2]
    assert "nodeos-firewall-load.path" in enabled
    assert "nftables.service" in masked
