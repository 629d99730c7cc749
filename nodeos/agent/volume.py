"""How the state volume is protected: what the initial RAM disk's phase reported, held against the disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nodeos.core.errors import NodeosError, UsageError
from nodeos.core.files import read_file
from nodeos.core.protocol import StateVolume
from nodeos.core.statereport import StateReport

ReadHeader = Callable[[str], tuple[str, bytes]]


def read_report(report: Path) -> StateReport:
    """The report. Raises NodeosError if there is none, or none in its form."""
    try:
        data = read_file(report, "state volume report", limit=1 << 13)
    except UsageError as error:
        raise NodeosError(
            error.message, hint="the initial RAM disk writes it: the image is damaged, or was not booted"
        ) from error
    return StateReport.parse(data, report.name)


def read_volume(report: Path, read_header: ReadHeader | None = None) -> StateVolume:
    """The state volume's protection.

    ``read_header(device)`` gives the UUID and the JSON metadata. Raises NodeosError if the disk is another one
    now.
    """
    known = read_report(report)
    found, _ = (read_header or cryptsetup_header)(known.device)
    if found != known.luks_uuid:
        raise NodeosError(
            f"the state volume on {known.device} has the UUID {found}, but the initial RAM disk opened "
            f"{known.luks_uuid}",
            hint="a disk was exchanged while the machine ran: restart it",
        )
    return StateVolume(
        mode=known.mode,
        luks_uuid=known.luks_uuid,
        made_this_boot=known.made_this_boot,
        policy_keys=known.policy_keys,
        policy_pcrs=known.policy_pcrs,
        floor=known.floor,
        creation_proven=known.creation_proven,
    )


def cryptsetup_header(device: str) -> tuple[str, bytes]:
    """The UUID and JSON metadata of a LUKS2 device, by cryptsetup (which checks the header's checksums)."""
    from nodeos.core.run import run

    uuid = run(["cryptsetup", "luksUUID", device], what="read the state volume's UUID")
    command = ["cryptsetup", "luksDump", "--dump-json-metadata", device]
    return uuid.decode().strip(), run(command, what="read the state volume's header")
