"""The units of updates, held against the code and the files that they name."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from nodeos.agent.config import Config
from nodeos.cli import root
from nodeos.update.machine import LOADER_VENDOR

EXTRA = Path(__file__).resolve().parents[2] / "image/extra/usr/lib"


def settings(name: str) -> list[str]:
    lines = (EXTRA / "systemd/system" / name).read_text().splitlines()
    return [line for line in lines if "=" in line and not line.startswith("#")]


def test_the_agent_and_the_update_mean_the_same_offer() -> None:
    unit = settings("nodeos-update.service")
    assert f"ConditionPathExists={Config().offer}" in unit
    [command] = [line.removeprefix("ExecStart=/usr/bin/nodeos ") for line in unit if line.startswith("Exec")]
    [agent] = [line for line in settings("nodeos-agent.service") if line.startswith("ExecStart=")]
    # Both take the ESP from the same option.
    assert command.partition(" --esp ")[2] == agent.partition(" --esp ")[2] != ""
    done = CliRunner().invoke(root, [*command.split(), "--help"])
    assert done.exit_code == 0
    assert "nodeos-update.service" in (EXTRA.parents[3] / "nodeos/agent/cli.py").read_text()


def test_a_version_on_trial_that_cant_start_restarts() -> None:
    """Both units ask for the variable by which systemd-boot counts tries, and so does the initrd's last resort."""
    variable = f"LoaderBootCountPath-{LOADER_VENDOR}"
    words = (EXTRA / "nodeos/no-shell").read_text()
    assert (
        words.index(variable) < words.index("systemctl --force --force reboot") < words.index("power-cycle")
    )
    for name in ("nodeos-fallback.service", "nodeos-fallback.timer"):
        assert f"ConditionPathExists=/sys/firmware/efi/efivars/{variable}" in settings(name)
