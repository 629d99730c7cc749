"""A new version is blessed once the node is attested again and its replica has caught up, and only then do
its
changes that can't be taken back take effect.

A boot that systemd-boot counts (LoaderBootCountPath) is a trial. The agent's first passed attestation of a
boot leaves a mark in /run, which starts ``nodeos update bless``: it asks the replica, and has
systemd-bless-boot take the counter off the UKI's name. If that didn't happen within 15 minutes of the start
(nodeos-fallback.timer), ``nodeos update give-up`` restarts the machine, and with the third restart
systemd-boot takes the version before. A boot that isn't counted (a fresh installation that waits for its
operator, for instance) is never restarted.

After the blessing, in this order, and again after a power cut: raise the TPM's rollback floor; put the
release's boot loader on the ESP; apply its KEK, db and dbx; forget the PCR-policy keys that the release no longer
has.
"""

from __future__ import annotations

import http.client
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nodeos.core.errors import Finding, NodeosError, RefusedError
from nodeos.core.files import read_file, write_atomic
from nodeos.core.protocol import UpdateStatus
from nodeos.core.release import Release
from nodeos.core.run import run
from nodeos.update import machine
from nodeos.update.apply import write_loader
from nodeos.update.candidate import LOADER, VARIABLES
from nodeos.update.entries import can_fall_back, failed_version, read_entries
from nodeos.update.machine import Paths, Tpm
from nodeos.update.offers import read_delivery

# Made by the agent after the first attestation that passed in this boot; gone with the boot.
ATTESTED = Path("/run/nodeos/attested")
BLESSED = Path("/run/nodeos/blessed")
BLESS_BOOT = Path("/usr/lib/systemd/systemd-bless-boot")
# nodeos-replica.service
REPLICA = ("::1", 8080)
_LIMIT = 1 << 16

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a blessing reaches the outside through. ``forget_keys`` is told which policy keys (SHA-256)
    stay."""

    replica_health: Callable[[], str]
    mark_good: Callable[[Paths], None]
    open_tpm: Callable[[], Tpm]
    apply_variables: Callable[[dict[str, bytes], Path], Sequence[str]]
    forget_keys: Callable[[Sequence[bytes]], None]


def bless(
    paths: Paths, parts: Parts, tell: Tell, *, attested: Path = ATTESTED, blessed: Path = BLESSED
) -> None:
    """Bless this boot if it is on trial, and finish the update. Can be run again; does nothing if all is
    done.

    Raises RefusedError if the node isn't healthy yet, NodeosError if a step failed.
    """
    version = machine.running_version(paths)
    if on_trial(paths, version):
        check_health(parts, attested)
        parts.mark_good(paths)
        if on_trial(paths, version):
            raise NodeosError(f"{version} is still on trial after its blessing", hint="see the ESP")
        write_atomic(blessed, b"")
        tell(f"{version} is blessed")
    finish(paths, parts, tell, version)


def on_trial(paths: Paths, version: str) -> bool:
    """True in a boot that systemd-boot counts, until the counter is off the UKI's name."""
    return machine.is_counted(paths) and not machine.is_blessed(read_entries(paths.esp), version)


def check_health(parts: Parts, attested: Path) -> None:
    """Raises RefusedError with everything that is not well yet."""
    found = []
    if not attested.exists():
        found.append(Finding(code="health.attestation", message="the node was not attested in this boot"))
    health = parts.replica_health()
    if health != "healthy":
        found.append(Finding(code="health.replica", message=f"the replica has not caught up: {health}"))
    if found:
        raise RefusedError("this boot is not blessed yet", tuple(found), hint="it is tried again")


def finish(paths: Paths, parts: Parts, tell: Tell, version: str) -> None:
    """What follows a blessing. ``paths.pending`` goes away last, so a power cut leaves the rest to the next
    boot."""
    release = machine.pending_release(paths)
    if release is None or release.version != version:
        return
    if not machine.is_blessed(read_entries(paths.esp), version):
        return
    floor = parts.open_tpm().raise_floor(release.rollback_floor)
    tell(f"the rollback floor is {floor}")
    for name in write_loader(paths.esp, _pending_file(paths, release, LOADER)):
        tell(f"boot loader written: {name}")
    updates = {
        name: _pending_file(paths, release, f"{name}.auth")
        for name in VARIABLES
        if f"{name}.auth" in release.artefacts
    }
    for name in parts.apply_variables(updates, paths.efivars):
        tell(f"Secure Boot: {name} is the release's")
    parts.forget_keys(release.keys.pcr)
    shutil.rmtree(paths.pending)


def _pending_file(paths: Paths, release: Release, name: str) -> bytes:
    import hashlib

    data = read_file(paths.pending / name, name, limit=1 << 26)
    if hashlib.sha256(data).digest() != release.artefacts[name].sha256:
        raise NodeosError(
            f"{paths.pending / name}: its SHA-256 is not the manifest's", hint="apply the release again"
        )
    return data


def should_give_up(paths: Paths) -> bool:
    """True if this boot is a trial that was not blessed, and there is another version to go back to."""
    version = machine.running_version(paths)
    return on_trial(paths, version) and can_fall_back(read_entries(paths.esp), version)


def update_status(paths: Paths) -> UpdateStatus:
    """What the node tells the registrar."""
    version, entries = machine.running_version(paths), read_entries(paths.esp)
    return UpdateStatus(
        running=version,
        blessed=machine.is_blessed(entries, version),
        failed=failed_version(entries, version),
        delivery=read_delivery(paths.delivery),
    )


def mark_good(paths: Paths) -> None:
    run([BLESS_BOOT, f"--path={paths.esp}", "good"], what="bless this boot")


def replica_health(address: tuple[str, int] = REPLICA) -> str:
    """What the replica says of itself (Internet Computer Interface Specification, "Request: Status
    endpoint")."""
    import cbor2

    connection = http.client.HTTPConnection(*address, timeout=10)
    try:
        connection.request("GET", "/api/v2/status")
        answer = connection.getresponse()
        data = answer.read(_LIMIT + 1)
    except (OSError, http.client.HTTPException) as error:
        return f"no answer ({error})"
    finally:
        connection.close()
    if answer.status != 200 or len(data) > _LIMIT:
        return f"status {answer.status}"
    try:
        value = cbor2.loads(data)
        value = value.value if isinstance(value, cbor2.CBORTag) else value
        return str(value["replica_health_status"])
    except (cbor2.CBORError, ValueError, KeyError, TypeError):
        return "an answer that can't be read"


def forget_keys_but(paths: Paths, keep: Sequence[bytes]) -> None:
    """Take every other policy key's way to the state volume out of its header. Raises NodeosError if none is left:
    the volume was then not sealed to a key of this release, and stays as it is."""
    from nodeos.state.host import Host
    from nodeos.state.recovery import forget_key

    report = machine.volume_report(paths)
    for key in report.policy_keys:
        if key not in keep:
            forget_key(report.device, key, host=Host())
