"""The agent's recipe: site, identity, volume, fingerprint, then enrolment and attestation until it is told
to stop. What this machine can't mend by waiting ends the agent; what others may mend is tried again."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nodeos.agent import evidence, identity, memory, recovery, site, volume
from nodeos.agent.config import Config
from nodeos.agent.console import Console
from nodeos.agent.device import OpenTpm, TpmDevice
from nodeos.agent.enrolment import Enrolment, Machine
from nodeos.agent.registrar import Registrar
from nodeos.agent.stop import Stop
from nodeos.core.errors import NodeosError, UsageError
from nodeos.core.files import read_file
from nodeos.core.http import Client
from nodeos.core.protocol import NodeRecord, UpdateStatus, machine_id
from nodeos.core.site import PCR, SignedSite, SiteConfig
from nodeos.core.statereport import Mode
from nodeos.core.wire import parse_json
from nodeos.update import blessing
from nodeos.update.entries import read_entries
from nodeos.update.machine import Paths

CollectFingerprint = Callable[[TpmDevice, str], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the recipe reaches the outside through."""

    open_tpm: OpenTpm
    read_header: volume.ReadHeader
    reload_network: Callable[[], None]
    collect_fingerprint: CollectFingerprint
    locked_volume: recovery.Volume
    reboot: Callable[[], None]


def run_agent(config: Config, parts: Parts, console: Console, stop: Stop) -> None:
    """Runs until StopRequested comes. Raises NodeosError for what needs a person at this machine."""
    try:
        with told_system_errors(), only_agent(config.state):
            if volume.read_report(config.volume_report).mode is Mode.LOCKED:
                prepare_recovery(config, parts, console, stop).keep_asking()
            enrolment = prepare(config, parts, console, stop)
            enrolment.keep_attested(config.period)
    except NodeosError as error:
        console.failed(error)
        raise
    except Exception as error:
        # A fault of this program: its traceback goes to the journal, its kind to whoever stands at the machine.
        hint = "report it with the release; the agent is started again"
        console.failed(NodeosError(f"a fault of this program: {type(error).__name__}", hint=hint))
        raise


@contextmanager
def told_system_errors() -> Iterator[None]:
    """What the kernel refuses (a full or a read-only partition, most often) as an error with a hint."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise NodeosError(
            f"{error.filename or 'the system'}: {error.strerror}",
            hint="the partition is full: see what fills it" if full else "see the journal of the kernel",
        ) from error


def prepare(config: Config, parts: Parts, console: Console, stop: Stop) -> Enrolment:
    """All steps before the registrar is asked."""
    console.know(boot_id=evidence.boot_id())
    signed, settings = check_site(config, console)
    memory_encryption = memory.memory_encryption()
    memory.require(settings.memory_encryption, memory_encryption)
    with parts.open_tpm() as tpm:
        apply_site(config, parts, console, tpm, (signed, settings))
        machine = identify(config, tpm, console, signed)
        record = load_record(config.node_record, machine)
        protection = volume.read_volume(config.volume_report, parts.read_header)
        blob = recovery.read_blob(volume.read_report(config.volume_report).device, parts.read_header)
        console.tell("volume", f"state partition {protection.luks_uuid} is bound to the TPM")
        console.tell("fingerprint", "taking the inventory and measuring (a few seconds)")
        with stop.interruptible():
            fingerprint = parts.collect_fingerprint(tpm, machine.id)
    statement = evidence.make_statement(
        config,
        keys=machine.keys,
        volume=protection,
        recovery=blob.to_bytes(),
        memory_encryption=memory_encryption,
        fingerprint=fingerprint,
        update=update_status(config),
    )
    client = Client(settings.registrar_url, ca=settings.registrar_ca)
    return Enrolment(
        config=config,
        open_tpm=parts.open_tpm,
        prove_keys=partial(identity.prove, config.keys),
        registrar=Registrar(client),
        console=console,
        stop=stop,
        settings=settings,
        machine=machine,
        statement=statement.to_bytes(),
        record=record,
    )


def prepare_recovery(config: Config, parts: Parts, console: Console, stop: Stop) -> recovery.Recovery:
    """All steps of a locked boot before the registrar is asked. No keys are made or looked for."""
    console.know(boot_id=evidence.boot_id(), state="locked")
    signed, settings = check_site(config, console)
    memory.require(settings.memory_encryption, memory.memory_encryption())
    report = volume.read_report(config.volume_report)
    with parts.open_tpm() as tpm:
        apply_site(config, parts, console, tpm, (signed, settings))
        request = recovery.prepare_request(tpm, signed)
        console.know(machine=request.machine)
        blob = recovery.read_blob(report.device, parts.read_header)
        recovery.check_own(report, blob)
        console.tell("volume", f"state partition {report.luks_uuid} is locked: {report.reason}")
        with stop.interruptible():
            fingerprint = parts.collect_fingerprint(tpm, request.machine)
    client = Client(settings.registrar_url, ca=settings.registrar_ca)
    return recovery.Recovery(
        config=config,
        open_tpm=parts.open_tpm,
        registrar=Registrar(client),
        console=console,
        stop=stop,
        settings=settings,
        locked=recovery.Locked(request=request, report=report, blob=blob, fingerprint=fingerprint),
        volume=parts.locked_volume,
        reboot=parts.reboot,
    )


def apply_site(
    config: Config, parts: Parts, console: Console, tpm: TpmDevice, checked: tuple[SignedSite, SiteConfig]
) -> None:
    """Measure the site's document, then use its network."""
    signed, settings = checked
    if site.measure_site(tpm, signed):
        console.tell("site", f"measured into PCR {PCR}")
    if settings.network is not None:
        site.apply_network(settings.network, config.network_directory, parts.reload_network)
        console.tell("network", f"static addresses: {', '.join(settings.network.addresses)}")


def update_status(config: Config) -> UpdateStatus | None:
    """Which version runs and which one failed, as the ESP tells; None if it holds no kernel image of ours."""
    esp = config.esp.parent
    if not read_entries(esp):
        return None
    return blessing.update_status(Paths(esp=esp, os_release=config.os_release))


def check_site(config: Config, console: Console) -> tuple[SignedSite, SiteConfig]:
    signed, settings = site.load_site(config.esp, config.site_key)
    console.tell("site", f"data center {settings.data_center}, registrar {settings.registrar_url}")
    return signed, settings


def identify(config: Config, tpm: TpmDevice, console: Console, signed: SignedSite) -> Machine:
    """The node's keys on the state partition, and the TPM's own."""
    loaded = identity.load_or_make(config.keys)
    endorsement = tpm.endorsement()
    machine = Machine(
        id=machine_id(endorsement.public),
        ek_public=endorsement.public,
        ek_certificates=tuple(endorsement.certificates),
        ak_public=tpm.attestation_key(),
        keys=loaded.keys,
        site=signed,
    )
    console.know(machine=machine.id, node_id=str(machine.keys.node_id))
    made = "new keys made; " if loaded.made else ""
    console.tell("identity", f"{made}node id {machine.keys.node_id}, machine {machine.id}")
    return machine


def load_record(path: Path, machine: Machine) -> NodeRecord | None:
    """The node record of an earlier boot, if there is one. Raises NodeosError if it is another node's."""
    if not os.path.lexists(path):
        return None
    try:
        record = NodeRecord.parse(parse_json(read_file(path, "node record", limit=1 << 16), path.name))
    except UsageError as error:
        raise NodeosError(
            f"node record {path}: {error.message}", hint="remove it: the registrar sends it again"
        ) from error
    if record.keys != machine.keys:
        raise NodeosError(
            f"node record {path}: belongs to the node {record.node_id} on the machine {record.machine}",
            hint="the state partition comes from another machine: enrol anew",
        )
    if record.machine != machine.id:
        # Our own keys with another TPM: the state was recovered. The registrar says whether that holds.
        return None
    return record


@contextmanager
def only_agent(state: Path) -> Iterator[None]:
    """Hold the state directory for this process; the kernel lets go of it even after a kill."""
    state.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(state / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise NodeosError(
                f"another agent works on {state}", hint="stop it: `systemctl stop nodeos-agent`"
            ) from error
        yield
    finally:
        os.close(descriptor)
