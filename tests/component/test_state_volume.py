"""The state volume from its making to its recovery: real LUKS2 headers, a software TPM, no device-mapper."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tpm2_pytss import ESAPI, ESYS_TR

from hsm.box import open_box
from hsm.errors import (
    TpmFloorError,
    TpmMissingError,
    TpmPcrError,
    TpmRollbackError,
    TpmSignatureError,
)
from hsm.identity import FileAgreement
from hsm.softtpm import SoftTpm
from hsm.tpm import Tpm
from nodeos.core.errors import NodeosError, RefusedError
from nodeos.core.protocol import machine_id
from nodeos.core.recovery import RecoveryKey
from nodeos.core.run import run as start_program
from nodeos.core.statereport import Mode, StateReport
from nodeos.state import header as headers
from nodeos.state import recovery
from nodeos.state.booted import read_booted
from nodeos.state.contents import MAKING, MIB, Contents, contents
from nodeos.state.header import Header
from nodeos.state.luks import Luks
from nodeos.state.service import run
from tests.support import evidence
from tests.support.state_machine import KEY, NEW_KEY, SIZE, StateMachine, fingerprint, signed

pytestmark = pytest.mark.tpm


@pytest.fixture
def machine(tmp_path: Path) -> StateMachine:
    return StateMachine(tmp_path / "machine")


@contextmanager
def powered(soft_tpm: SoftTpm) -> Iterator[Tpm]:
    """One boot: the TPM starts with its PCRs at zero."""
    with soft_tpm.serve() as tcti, Tpm(tcti) as tpm:
        yield tpm


def boot(machine: StateMachine, soft_tpm: SoftTpm) -> StateReport:
    machine.calls.clear()
    machine.said.clear()
    with powered(soft_tpm) as tpm:
        return run(machine, tpm, extra=machine.extra, library=machine.library)


def header_of(machine: StateMachine) -> Header:
    luks = Luks(machine.device)
    return headers.parse(luks.metadata(), luks.uuid(), str(machine.device))


def recovery_key(machine: StateMachine) -> RecoveryKey:
    blob = header_of(machine).recovery
    assert blob is not None
    context = blob.context_for(
        machine=blob.machine,
        volume=blob.volume,
        operator_key=hashlib.sha256(evidence.spki(evidence.RECOVERY)).digest(),
    )
    return RecoveryKey(value=open_box(FileAgreement(evidence.RECOVERY), blob.box, context))


def clear(soft_tpm: SoftTpm) -> None:
    with soft_tpm.serve() as tcti, ESAPI(tcti) as esys:
        esys.clear(ESYS_TR.LOCKOUT)


def assert_untouched(machine: StateMachine, before: bytes) -> None:
    assert machine.contents() == before
    assert "open" not in machine.calls
    assert not (machine.run / "state.json").exists()


# Making and opening


def test_first_boot_and_second(machine: StateMachine, soft_tpm: SoftTpm) -> None:
    report = boot(machine, soft_tpm)
    assert report == StateReport(
        mode=Mode.OPEN,
        made_this_boot=True,
        luks_uuid=header_of(machine).uuid,
        device=str(machine.device),
        policy_keys=(fingerprint(KEY),),
        policy_pcrs=(7, 11, 15),
        floor=1,
        security_version=1,
        creation_proven=True,
    )
    assert StateReport.parse((machine.run / "state.json").read_bytes()) == report
    assert machine.calls == ["write 0", "open", "make file system", "write 512", "write 0", "mount"]
    password = machine.var / "lib/nodeos/tpm-owner-password"
    assert password.stat().st_mode & 0o777 == 0o600
    before = machine.contents()
    again = boot(machine, soft_tpm)
    assert again == replace(report, made_this_boot=False)
    assert machine.calls == ["open", "check file system", "mount"]
    assert machine.contents() == before
    assert not (machine.run / "locked").exists()
    assert {path.name for path in machine.run.iterdir()} == {"policy", "state.json"}


def test_volume_key_is_measured_and_the_seal_shut(machine: StateMachine, soft_tpm: SoftTpm) -> None:
    boot(machine, soft_tpm)
    key = recovery_key(machine)
    header = header_of(machine)
    with powered(soft_tpm) as tpm:
        run(machine, tpm, extra=machine.extra, library=machine.library)
        volume_key = Luks(machine.device).volume_key(key.value, 1)
        event = hmac.digest(volume_key, f"nodeos-state:{header.uuid}".encode(), "sha256")
        expected = hashlib.sha256(bytes(32) + hashlib.sha256(event).digest()).digest()
        assert tpm.read_pcrs([15])[15] == expected
        with pytest.raises(TpmPcrError, match=r"15 \(the volume was opened already"):
            tpm.unseal(header.tokens[0].sealed, read_booted(machine.extra, machine.library).signatures)


def test_agent_can_use_the_tpm_afterwards(machine: StateMachine, soft_tpm: SoftTpm) -> None:
    boot(machine, soft_tpm)
    with powered(soft_tpm) as tpm:
        assert tpm.has_owner_auth()
        assert tpm.attestation_key()
        assert tpm.endorsement().certificates
        assert tpm.quote(b"nonce", [15]).pcrs
        assert tpm.raise_floor(1) == 1


def test_recovery_key_is_for_the_operator_this_machine_and_this_volume(
    machine: StateMachine, soft_tpm: SoftTpm
) -> None:
    boot(machine, soft_tpm)
    header = header_of(machine)
    assert header.recovery is not None
    with powered(soft_tpm) as tpm:
        assert header.recovery.machine == machine_id(tpm.endorsement().public)
    assert header.recovery.volume == header.uuid
    assert len(Luks(machine.device).volume_key(recovery_key(machine).value, 1)) == 64


@pytest.mark.parametrize("where", ["open", "make file system", "write 512", "mount"])
def test_making_that_was_cut_off_is_begun_anew(machine: StateMachine, soft_tpm: SoftTpm, where: str) -> None:
    machine.breaks_at = where
    with pytest.raises(KeyboardInterrupt):
        boot(machine, soft_tpm)
    # What the file system left at the end.
    if where == "write 512":
        machine.breaks_at = ""
        machine.write(str(machine.device), SIZE - 4096, b"data" * 1024)
    machine.breaks_at = ""
    report = boot(machine, soft_tpm)
    # Once the header is whole, the volume is made: only the owner's password was missing.
    assert report.made_this_boot is (where != "mount")
    assert report.creation_proven
    assert boot(machine, soft_tpm).luks_uuid == report.luks_uuid


def test_half_written_header_does_not_count(machine: StateMachine, soft_tpm: SoftTpm) -> None:
    machine.breaks_at = "mount"
    with pytest.raises(KeyboardInterrupt):
        boot(machine, soft_tpm)
    machine.breaks_at = ""
    uuid = header_of(machine).uuid
    with machine.device.open("r+b") as file:
        file.write(MAKING)
    report = boot(machine, soft_tpm)
    assert report.made_this_boot
    assert report.luks_uuid != uuid


def test_rotation(machine: StateMachine, soft_tpm: SoftTpm) -> None:
    first = boot(machine, soft_tpm)
    machine.release(NEW_KEY, signers=(KEY, NEW_KEY))
    second = boot(machine, soft_tpm)
    assert second.policy_keys == (fingerprint(KEY), fingerprint(NEW_KEY))
    assert second.creation_proven
    assert second.luks_uuid == first.luks_uuid
    # The earlier release still opens it, if it knows the new key.
    machine.release(KEY, signers=(KEY, NEW_KEY))
    assert boot(machine, soft_tpm).mode is Mode.OPEN
    machine.release(NEW_KEY)
    with pytest.raises(RefusedError, match="policy key that this release does not know"):
        boot(machine, soft_tpm)
    recovery.forget_key(str(machine.device), fingerprint(KEY), host=machine)
    third = boot(machine, soft_tpm)
    assert third.policy_keys == (fingerprint(NEW_KEY),)
    assert third.creation_proven


def test_only_policy_key_is_never_forgotten(machine: StateMachine, soft_tpm: SoftTpm) -> None:
    boot(machine, soft_tpm)
    before = machine.contents()
    with pytest.raises(NodeosError, match="sealed to no other policy key"):
        recovery.forget_key(str(machine.device), fingerprint(KEY), host=machine)
    recovery.forget_key(str(machine.device), fingerprint(NEW_KEY), host=machine)
    assert machine.contents() == before


def test_volume_with_two_older_keys_is_not_sealed_to_a_third(
    machine: StateMachine, soft_tpm: SoftTpm
) -> None:
    machine.release(KEY, NEW_KEY)
    boot(machine, soft_tpm)
    third = ec.derive_private_key(13, ec.SECP256R1())
    machine.release(third, signers=(KEY, NEW_KEY, third))
    assert boot(machine, soft_tpm).policy_keys == (fingerprint(KEY), fingerprint(NEW_KEY))
    assert any("two older policy keys" in line for line in machine.said)


# Refusals: of the TPM


@pytest.mark.parametrize("pcr", [7, 11])
def test_other_pcr(machine: StateMachine, soft_tpm: SoftTpm, pcr: int) -> None:
    for made in (False, True):
        if made:
            boot(machine, soft_tpm)
            (machine.run / "state.json").unlink()
        before = machine.contents()
        machine.calls.clear()
        with powered(soft_tpm) as tpm:
            tpm.measure(pcr, b"other")
            measured = tpm.read_pcrs([pcr])[pcr]
            with pytest.raises(TpmPcrError, match=f"Different: {pcr} "):
                run(machine, tpm, extra=machine.extra, library=machine.library)
        assert f"PCR {pcr} is {measured.hex()}" in machine.said
        assert_untouched(machine, before)


def test_pcr_15_that_was_extended(machine: StateMachine, soft_tpm: SoftTpm) -> None:
    with powered(soft_tpm) as tpm:
        tpm.measure(15, b"something")
        with pytest.raises(TpmPcrError, match="Different: 15 "):
            run(machine, tpm, extra=machine.extra, library=machine.library)


def test_release_below_the_floor(machine: StateMachine, soft_tpm: SoftTpm) -> None:
    machine.release(KEY, version=3, floor=3)
    boot(machine, soft_tpm)
    machine.release(KEY, version=2)
    with pytest.raises(TpmRollbackError, match="machine's floor is 3"):
        boot(machine, soft_tpm)
    machine.erase()
    clear(soft_tpm)
    machine.release(KEY, version=2)
    assert boot(machine, soft_tpm).floor == 1


def test_release_without_a_signature_by_its_own_key(machine: StateMachine, soft_tpm: SoftTpm) -> None:
    machine.release(NEW_KEY, signers=(KEY,))
    before = machine.contents()
    with pytest.raises(TpmSignatureError, match="no policy signature"):
        boot(machine, soft_tpm)
    assert_untouched(machine, before)


def test_signature_that_is_wrong(machine: StateMachine, soft_tpm: SoftTpm) -> None:
    wrong = replace(signed(KEY), signature=signed(NEW_KEY).signature)
    machine.release(KEY)
    path = machine.extra / "tpm2-pcr-signature.json"
    path.write_text(json.dumps({"version": 1, "signatures": [wrong.to_json()]}))
    with pytest.raises(NodeosError, match="wrong"):
        boot(machine, soft_tpm)
    assert contents(machine.contents()[:MIB], machine.contents()[-MIB:]) in (Contents.BLANK, Contents.MAKING)


def test_owner_password_of_somebody_else(machine: StateMachine, soft_tpm: SoftTpm) -> None:
    with powered(soft_tpm) as tpm:
        tpm.storage_root()
        tpm.set_owner_auth(b"known to somebody else")
    before = machine.contents()
    with pytest.raises(NodeosError, match="owner has a password"):
        boot(machine, soft_tpm)
    assert_untouched(machine, before)


def test_floor_that_was_removed(machine: StateMachine, soft_tpm: SoftTpm) -> None:
    boot(machine, soft_tpm)
    password = (machine.var / "lib/nodeos/tpm-owner-password").read_bytes()
    with soft_tpm.serve() as tcti, ESAPI(tcti) as esys:
        esys.tr_set_auth(ESYS_TR.OWNER, password)
        esys.nv_undefine_space(esys.tr_from_tpmpublic(0x01804E4F))
    with pytest.raises(TpmFloorError, match="no rollback floor"):
        boot(machine, soft_tpm)


def test_tpm_that_is_gone() -> None:
    with pytest.raises(TpmMissingError), Tpm("device:/dev/no-tpm"):
        pass


# Refusals: of the disk


@pytest.mark.parametrize("at", [0, 4096, MIB - 1, SIZE - MIB, SIZE - 1])
def test_foreign_data(machine: StateMachine, soft_tpm: SoftTpm, at: int) -> None:
    with machine.device.open("r+b") as file:
        file.seek(at)
        file.write(b"x")
    before = machine.contents()
    with pytest.raises(NodeosError, match="no state volume; they are left alone"):
        boot(machine, soft_tpm)
    assert_untouched(machine, before)


def test_other_luks_volume(machine: StateMachine, soft_tpm: SoftTpm) -> None:
    Luks.format(machine.directory / "other", "6a4e0f0e-52a5-4f0c-9e2c-111111111111", b"k" * 32)
    with machine.device.open("r+b") as file:
        file.write((machine.directory / "other").read_bytes())
    before = machine.contents()
    with pytest.raises(RefusedError, match="0 TPM tokens") as caught:
        boot(machine, soft_tpm)
    assert "not those that its tokens name" in str(caught.value)
    assert_untouched(machine, before)


def test_planted_key_slot(machine: StateMachine, soft_tpm: SoftTpm) -> None:
    boot(machine, soft_tpm)
    (machine.run / "state.json").unlink()
    Luks(machine.device).add_key(5, b"known to the planter", by=recovery_key(machine).value)
    before = machine.contents()
    with pytest.raises(RefusedError, match="not those that its tokens name"):
        boot(machine, soft_tpm)
    assert machine.contents() == before


def planted_volume(machine: StateMachine, soft_tpm: SoftTpm, *, forged: bool) -> None:
    """A volume of our form that somebody made with their own key, in a system of theirs on this very machine."""
    boot(machine, soft_tpm)
    honest = header_of(machine).tokens[0].sealed
    machine.erase()
    path = machine.directory / "planted"
    luks = Luks.format(path, "6a4e0f0e-52a5-4f0c-9e2c-111111111111", b"known".ljust(32))
    with powered(soft_tpm) as tpm:
        tpm.measure(7, b"another system")
        sealed = tpm.seal(b"known".ljust(32), KEY.public_key(), under=signed(KEY))
    if forged:
        sealed = replace(sealed, creation=honest.creation)
    luks.add_token(sealed.to_json((0,)))
    with machine.device.open("r+b") as file:
        file.write(path.read_bytes())


@pytest.mark.parametrize("forged", [False, True])
def test_planted_volume_is_told(machine: StateMachine, soft_tpm: SoftTpm, forged: bool) -> None:
    planted_volume(machine, soft_tpm, forged=forged)
    report = boot(machine, soft_tpm)
    assert report.mode is Mode.OPEN
    assert not report.creation_proven
    assert "nothing proves" in report.reason
    # Sealing it to the next key does not make it ours.
    machine.release(NEW_KEY, signers=(KEY, NEW_KEY))
    assert not boot(machine, soft_tpm).creation_proven
    recovery.forget_key(str(machine.device), fingerprint(KEY), host=machine)
    machine.release(NEW_KEY)
    assert not boot(machine, soft_tpm).creation_proven


# Refusals: of the release and the site


@pytest.mark.parametrize("name", ["tpm2-pcr-public-key.pem", "tpm2-pcr-signature.json"])
def test_image_without_a_policy(machine: StateMachine, soft_tpm: SoftTpm, name: str) -> None:
    (machine.extra / name).unlink()
    with pytest.raises(NodeosError, match="carries no state policy"):
        boot(machine, soft_tpm)
    (machine.extra / name).write_bytes(b"{}")
    with pytest.raises(NodeosError, match=r"tpm2-pcr-public-key|pcrsig"):
        boot(machine, soft_tpm)


@pytest.mark.parametrize(
    "text", ["", "security_version = 0\nrollback_floor = 0", "security_version = 1\nrollback_floor = 2"]
)
def test_release_versions_that_cannot_be(machine: StateMachine, soft_tpm: SoftTpm, text: str) -> None:
    (machine.library / "release.toml").write_text(text)
    with pytest.raises(NodeosError, match=r"release\.toml"):
        boot(machine, soft_tpm)


def test_site_that_is_missing_or_foreign(machine: StateMachine, soft_tpm: SoftTpm) -> None:
    before = machine.contents()
    machine.site_key = Ed25519PrivateKey.generate()
    machine.site(evidence.site())
    with pytest.raises(RefusedError, match="site configuration is refused"):
        boot(machine, soft_tpm)
    (machine.esp / "nodeos/site.json").unlink()
    with pytest.raises(NodeosError, match="no site configuration on the boot partition"):
        boot(machine, soft_tpm)
    assert_untouched(machine, before)


# Locked, and recovered


def test_cleared_tpm_locks_and_the_recovery_key_opens(machine: StateMachine, soft_tpm: SoftTpm) -> None:
    made = boot(machine, soft_tpm)
    with powered(soft_tpm) as tpm:
        run(machine, tpm, extra=machine.extra, library=machine.library)
        enrolled = tpm.read_pcrs([15])[15]
    key = recovery_key(machine)
    before = machine.contents()
    clear(soft_tpm)
    report = boot(machine, soft_tpm)
    assert report.mode is Mode.LOCKED
    assert not report.creation_proven
    assert (report.luks_uuid, report.floor) == (made.luks_uuid, 0)
    assert "no storage root key" in report.reason
    assert (machine.run / "locked").exists()
    assert machine.calls == []
    assert machine.contents() == before

    with powered(soft_tpm) as tpm:
        with pytest.raises(NodeosError, match="does not open the volume"):
            recovery.open_with_recovery(str(machine.device), RecoveryKey.generate(), host=machine, tpm=tpm)
        assert tpm.read_pcrs([15])[15] == bytes(32)
        recovery.open_with_recovery(str(machine.device), key, host=machine, tpm=tpm)
        assert tpm.read_pcrs([15])[15] == enrolled
        assert machine.calls == ["open", "check file system"]
        booted = read_booted(machine.run / "policy", machine.library)
        with pytest.raises(NodeosError, match="does not open the volume"):
            recovery.reseal(str(machine.device), RecoveryKey.generate(), host=machine, tpm=tpm, booted=booted)
        assert machine.contents() == before
        recovery.reseal(str(machine.device), key, host=machine, tpm=tpm, booted=booted)
    (machine.run / "locked").unlink()

    with powered(soft_tpm) as tpm:
        report = run(machine, tpm, extra=machine.extra, library=machine.library)
        assert tpm.read_pcrs([15])[15] == enrolled
        assert tpm.has_owner_auth()
    assert (report.mode, report.luks_uuid, report.floor) == (Mode.OPEN, made.luks_uuid, 1)
    assert not report.creation_proven
    assert recovery_key(machine) == key
    assert set(header_of(machine).areas) == {1, 2}


@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_resealing_that_was_cut_off(
    machine: StateMachine, soft_tpm: SoftTpm, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    boot(machine, soft_tpm)
    key = recovery_key(machine)
    clear(soft_tpm)
    boot(machine, soft_tpm)
    booted = read_booted(machine.extra, machine.library)
    write = machine.write
    done: list[int] = []

    def cut(device: str, offset: int, data: bytes) -> None:
        if len(done) == step:
            # The last sector that reached the disk.
            write(device, offset, data[: len(data) // 2 & ~511])
            raise KeyboardInterrupt
        done.append(offset)
        write(device, offset, data)

    monkeypatch.setattr(machine, "write", cut)
    with powered(soft_tpm) as tpm, pytest.raises(KeyboardInterrupt):
        recovery.reseal(str(machine.device), key, host=machine, tpm=tpm, booted=booted)
    monkeypatch.undo()
    report = boot(machine, soft_tpm)
    if report.mode is Mode.LOCKED:
        with powered(soft_tpm) as tpm:
            recovery.reseal(str(machine.device), key, host=machine, tpm=tpm, booted=booted)
        report = boot(machine, soft_tpm)
    assert report.mode is Mode.OPEN
    assert recovery_key(machine) == key


def test_cleared_tpm_without_a_recovery_key(machine: StateMachine, soft_tpm: SoftTpm) -> None:
    boot(machine, soft_tpm)
    (machine.run / "state.json").unlink()
    Luks(machine.device).remove_token(0)
    # Without a key cryptsetup asks for none in its batch mode.
    command = ["cryptsetup", "--batch-mode", "luksKillSlot", str(machine.device), "1"]
    start_program(command, what="removing a key slot")
    before = machine.contents()
    clear(soft_tpm)
    with pytest.raises(NodeosError, match="has no recovery key"):
        boot(machine, soft_tpm)
    assert_untouched(machine, before)
    assert not (machine.run / "locked").exists()
