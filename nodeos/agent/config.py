"""Where the agent finds things. The defaults are the node image's paths; a test gives its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What the command line asked for. ``period`` is the time between attestations, in seconds."""

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
    # Made once the node is attested in this boot; starts nodeos-bless.service.
    attested: Path = Path("/run/nodeos/attested")

    # The registrar's offer, for nodeos-update.service.
    offer: Path = Path("/run/nodeos/offer.json")

    @property
    def keys(self) -> Path:
        return self.state / "keys"

    @property
    def node_record(self) -> Path:
        return self.state / "node.json"

    @property
    def enrolment(self) -> Path:
        return self.state / "enrolment.json"
