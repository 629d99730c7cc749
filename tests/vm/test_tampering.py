"""One bit, one file, one disk: each change ends the boot, or keeps the state shut, or the registrar names it.

The machine is enrolled and its state is made. Whoever changes it holds its disk and everything that was ever
published; where a case says so, our own Secure Boot key too.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from image import pe
from image.keys import KeySet
from image.measure import read_esp
from image.vm import Machine
from nodeos.core import layout
from nodeos.core.gpt import MIB
from nodeos.core.site import SIGNATURE_DOMAIN
from nodeos.install.esp import uki_name
from tests.support import tamper
from tests.vm.conftest import WORK
from tests.vm.lab import Lab, Outcome, change_on_esp, flip, put_on_esp, read_at, table_of, write_at

pytestmark = pytest.mark.vm
matrix = pytest.mark.matrix

LOADER = "EFI/BOOT/BOOTX64.EFI"
STUBS = WORK / "mkosi/tools/usr/lib/systemd/boot/efi"
# What somebody would like to have on the command line.
WORDS = "systemd.debug_shell=ttyS0"


def uki_of(machine: Machine) -> str:
    """The path of the kernel image on the EFI system partition."""
    slot, _ = layout.slots(table_of(machine.disk))
    assert slot.version is not None
    return uki_name(slot.version)


def said(machine: Machine) -> str:
    return machine.console.read_bytes().decode(errors="replace")


def assert_shut(machine: Machine, outcome: Outcome, *words: str) -> None:
    """The state's program refused with these words, and nothing of the state was touched."""
    assert outcome.kind == "state", outcome
    for word in words:
        assert word in said(machine)
    assert "nodeos: state: opened" not in said(machine)


# The system on the disk


def test_bit_in_the_root(lab: Lab) -> None:
    machine = lab.machine()
    slot, _ = layout.slots(table_of(machine.disk))
    # The superblock of erofs, which every mount reads.
    flip(machine.disk, slot.root, 1024)
    assert lab.boot(machine).kind == "verity"


@matrix
def test_bit_in_the_hash_tree(lab: Lab) -> None:
    machine = lab.machine()
    slot, _ = layout.slots(table_of(machine.disk))
    # The block under the root hash: it comes after the superblock.
    flip(machine.disk, slot.verity, 4096)
    assert lab.boot(machine).kind == "verity"


@matrix
def test_bit_in_the_signature(lab: Lab) -> None:
    machine = lab.machine()
    slot, _ = layout.slots(table_of(machine.disk))
    text = read_at(machine.disk, slot.signature.start, 1 << 14)
    flip(machine.disk, slot.signature, text.index(b'"signature"') + 40)
    assert_shut(machine, lab.boot(machine), "verity.signature")


@matrix
@pytest.mark.parametrize("section", [".linux", ".initrd", ".cmdline"])
def test_bit_in_the_kernel_image(lab: Lab, section: str) -> None:
    machine = lab.machine()
    change_on_esp(machine.disk, uki_of(machine), lambda image: tamper.flip_in_section(image, section))
    assert lab.boot(machine).kind == "firmware"


@matrix
def test_bit_in_the_boot_loader(lab: Lab) -> None:
    machine = lab.machine()
    change_on_esp(machine.disk, LOADER, lambda image: tamper.flip_in_section(image, ".text"))
    assert lab.boot(machine).kind == "firmware"


@matrix
def test_another_boot_loader_that_our_key_signed(lab: Lab) -> None:
    """An earlier release's boot loader is one: firmware starts it, and the registrar sees what it is."""
    machine = lab.machine()
    keys = KeySet(directory=WORK / "keys")
    change_on_esp(
        machine.disk,
        LOADER,
        lambda image: tamper.signed(
            pe.add_section(pe.strip_signatures(image), ".other", b"another one"), keys
        ),
    )
    outcome = lab.boot(machine)
    assert (outcome.kind, outcome.words) == ("attested", "refused")
    assert "pcr.4" in outcome.findings


# What the boot loader and the stub add is measured into PCR 12, and the state's policy wants that zero


@matrix
def test_options_of_a_boot_loader_entry(lab: Lab) -> None:
    machine = lab.machine()
    entry = f"title maintenance\nefi /{uki_of(machine)}\noptions {WORDS}\n"
    put_on_esp(machine.disk, "loader/entries/maintenance.conf", entry.encode())
    put_on_esp(machine.disk, "loader/loader.conf", b"timeout 0\ndefault maintenance.conf\n")
    assert_shut(machine, lab.boot(machine), "Different: 12")


@pytest.mark.parametrize(
    "folder", ["{uki}.extra.d", pytest.param("loader/credentials", marks=matrix)], ids=["image", "all"]
)
def test_credential_on_the_esp(lab: Lab, folder: str) -> None:
    machine = lab.machine()
    name = f"{folder.format(uki=uki_of(machine))}/tmpfiles.extra.cred"
    put_on_esp(machine.disk, name, b"f /run/planted - - - - x\n")
    assert_shut(machine, lab.boot(machine), "Different: 12")


@matrix
def test_unsigned_addon(lab: Lab) -> None:
    """The stub has the firmware check it, and goes on without: the quote is the one of an untouched machine."""
    machine = lab.machine()
    addon = tamper.addon((STUBS / "addonx64.efi.stub").read_bytes(), WORDS)
    put_on_esp(machine.disk, f"{uki_of(machine)}.extra.d/maintenance.addon.efi", addon)
    outcome = lab.boot(machine, past={"firmware"})
    assert (outcome.kind, outcome.words) == ("attested", "passed")


@matrix
def test_addon_signed_by_our_own_key(lab: Lab) -> None:
    machine = lab.machine()
    addon = tamper.addon((STUBS / "addonx64.efi.stub").read_bytes(), WORDS)
    ours = tamper.signed(addon, KeySet(directory=WORK / "keys"))
    put_on_esp(machine.disk, f"{uki_of(machine)}.extra.d/maintenance.addon.efi", ours)
    assert_shut(machine, lab.boot(machine), "Different: 12")


# The site configuration


@matrix
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "foreign"])
def test_site_configuration(lab: Lab, signed: bool) -> None:
    """Another registrar's, with the signature of the true one or with one by another site's key."""
    machine = lab.machine()
    document = read_esp(machine.disk, "nodeos/site.json").replace(b"10.0.2.2", b"10.0.2.3")
    put_on_esp(machine.disk, "nodeos/site.json", document)
    if signed:
        signature = Ed25519PrivateKey.generate().sign(SIGNATURE_DOMAIN + document)
        put_on_esp(machine.disk, "nodeos/site.sig", signature)
    outcome = lab.boot(machine)
    assert outcome.kind == "agent", outcome
    assert "site.signature" in said(machine)


# Disks


def enrolled_volume(lab: Lab) -> str:
    """The UUID of the machine's own volume."""
    return str(lab.attestation()["volume"]["luks_uuid"])


def digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


@matrix
def test_planted_disks(lab: Lab) -> None:
    """Disks with a state partition of the right type, label and UUID: not looked into, not written to."""
    machine, volume = lab.machine(), enrolled_volume(lab)
    own = layout.state(table_of(machine.disk))
    planted = [
        tamper.disk_like(lab.directory / "luks.raw", own, tamper.luks(lab.directory / "header", volume)),
        tamper.disk_like(lab.directory / "ext4.raw", own, tamper.ext4(lab.directory / "files", 32 * MIB)),
    ]
    before = [digest(path) for path in planted]
    extra: list[str] = []
    for number, path in enumerate(planted):
        extra += ["-drive", f"if=none,id=planted{number},format=raw,file={path}"]
        extra += ["-device", f"virtio-blk-pci,drive=planted{number},serial=planted{number}"]
    outcome = lab.boot(machine, extra=extra)
    # A person should know that the firmware saw other disks; no more than that.
    assert (outcome.kind, outcome.words) in {("attested", "passed"), ("attested", "watch")}, outcome
    assert outcome.findings <= {"pcr.1", "pcr.5"}
    assert outcome.judgement["volume"]["luks_uuid"] == volume
    assert not outcome.judgement["volume"]["made_this_boot"]
    assert [digest(path) for path in planted] == before


@matrix
def test_planted_volume(lab: Lab) -> None:
    """A volume that the attacker has the passphrase of, in the place of the machine's own."""
    machine, volume = lab.machine(), enrolled_volume(lab)
    own = layout.state(table_of(machine.disk))
    header = tamper.luks(lab.directory / "header", volume)
    write_at(machine.disk, own.start, header)
    assert_shut(machine, lab.boot(machine), "0 TPM tokens")
    assert read_at(machine.disk, own.start, len(header)) == header
