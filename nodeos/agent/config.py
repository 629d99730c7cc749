"""Where the agent finds things. The defaults are the node image's paths; a test gives its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What the command line asked for. Periods are in seconds; ``period`` is that of attestations."""

    state: Path = Path("/var/lib/nodeos")
    esp: Path = Path("/efi/nodeos")
    site_key: Path = Path("/usr/lib/nodeos/site.pub.pem")
    volume_report: Path = Path("/run/nodeos/state.json")
    tcti: str = "device:/dev/tpmrm0"
    status: Path = Path("/run/nodeos/status.json")
    console: Path = Path("/dev/console")
    firmware_log: Path = Path("/sys/kernel/security/tpm0/binary_bios_measurements")
    userspace_log: Path = Path("/run/log/systemd/tpm2-measure.log")
    os_release: Path = Path("/etc/os-release")
    network_directory: Path = Path("/run/systemd/network")
    period: int = 900
    # Between questions whether the list of those who may reach the node has changed.
    access_period: int = 300
    # Made once the node is attested in this boot; starts nodeos-bless.service.
    attested: Path = Path("/run/nodeos/attested")
    # What is written here is loaded by nodeos-firewall-load.service, and then lies at ``loaded_ruleset``.
    ruleset: Path = Path("/run/nodeos/firewall.new")

    # The registrar's offer, for nodeos-update.service.
    offer: Path = Path("/run/nodeos/offer.json")

    @property
    def keys(self) -> Path:
        return self.state / "keys"

    @property
    def node_record(self) -> Path:
        return self.state / "node.json"

    @property
    def loaded_ruleset(self) -> Path:
        return self.ruleset.with_suffix(".nft")

    @property
    def access(self) -> Path:
        return self.state / "access.json"

    @property
    def enrolment(self) -> Path:
        return self.state / "enrolment.json"
