"""Predicts what a boot of the image extends into the PCRs, from the files alone.

The banks are sha256 and sha384, SHA-256 if not said.

Sources: TCG PC Client Platform Firmware Profile 1.06 (PCRs 4 and 7, sections 3.3.4 and 10.4),
Microsoft "Windows Authenticode Portable Executable Signature Format" (image digest), systemd-stub(7) and
src/boot/measure.c of systemd 257 (PCR 11), systemd-pcrphase.service(8) (boot phases).
"""

from __future__ import annotations

import hashlib
import struct
import uuid
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from image.efivars import EFI_GLOBAL, IMAGE_SECURITY_DATABASE, VENDORS, X509, Entry, parse_lists, payload
from image.pe import authenticode, section_contents, signatures
from nodeos.core.errors import UsageError
from nodeos.core.gpt import Table
from nodeos.core.layout import ESP_TYPE
from nodeos.core.release import BANKS, BootPhase
from nodeos.core.run import find_tool, run

# The order in which systemd-stub measures the sections; .pcrsig is never measured.
MEASURED_SECTIONS = (".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".uname", ".sbat",
             ".pcrpkey", ".profile", ".dtbauto", ".hwids")  # fmt: skip
_SEPARATOR = b"\0\0\0\0"
_BOOT_ACTION = b"Calling EFI Application from Boot Option"


def extend(value: bytes, digest: bytes, bank: str = "sha256") -> bytes:
    """One PCR extend: the bank's hash of the old value and the digest."""
    return _hash(bank, value + digest)


def replay(digests: Iterable[bytes], start: bytes | None = None, bank: str = "sha256") -> bytes:
    """The PCR value after extending ``digests`` in their order, from zeroes unless ``start`` is given."""
    value = bytes(hashlib.new(bank).digest_size) if start is None else start
    for digest in digests:
        value = extend(value, digest, bank)
    return value


def _hash(bank: str, data: bytes) -> bytes:
    return hashlib.new(bank, data).digest()


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Uki:
    """A unified kernel image: its bytes, and its sections trimmed to their virtual size."""

    data: bytes
    sections: Mapping[str, bytes]

    @classmethod
    def read(cls, path: Path) -> Uki:
        """Raises UsageError if the file is no PE image or lacks the sections of a UKI."""
        return cls.parse(path.read_bytes(), str(path))

    @classmethod
    def parse(cls, data: bytes, what: str) -> Uki:
        """As ``read``; ``what`` names the image in errors."""
        sections = section_contents(data, what)
        missing = {".linux", ".initrd", ".cmdline"} - set(sections)
        if missing:
            raise UsageError(f"{what}: no unified kernel image, it lacks {', '.join(sorted(missing))}")
        return cls(data=data, sections=sections)

    @property
    def command_line(self) -> str:
        return self.sections[".cmdline"].rstrip(b"\0\n").decode()

    @property
    def root_hash(self) -> bytes:
        """The dm-verity root hash on the kernel command line. Raises UsageError if there is none."""
        for word in self.command_line.split():
            if word.startswith("roothash="):
                return bytes.fromhex(word.removeprefix("roothash="))
        raise UsageError(f"the kernel command line names no roothash: {self.command_line}")


def pcr11(uki: Uki, bank: str = "sha256") -> dict[BootPhase, bytes]:
    """PCR 11 after each boot phase: the stub measures name and content of each section, then the phases."""
    measured = [part for name in MEASURED_SECTIONS if name in uki.sections
                for part in (name.encode() + b"\0", uki.sections[name])]  # fmt: skip
    value = replay((_hash(bank, part) for part in measured), bank=bank)
    phases = {}
    for phase in BootPhase:
        value = extend(value, _hash(bank, phase.encode()), bank)
        phases[phase] = value
    return phases


def pcr4(bootloader: bytes, uki: bytes, *, bank: str = "sha256", secure_boot: bool = True) -> bytes:
    """PCR 4: the boot attempt, the separator, and the images that the firmware loads.

    With Secure Boot on they are boot loader and UKI. With it off, systemd-stub has the firmware load the kernel
    inside the UKI too.
    """
    digests = [
        _hash(bank, _BOOT_ACTION),
        _hash(bank, _SEPARATOR),
        authenticode(bootloader, "boot loader", bank),
        authenticode(uki, "UKI", bank),
    ]
    if not secure_boot:
        kernel = section_contents(uki, "UKI").get(".linux")
        if kernel is None:
            raise UsageError("no unified kernel image, it lacks .linux")
        digests.append(authenticode(kernel, ".linux", bank))
    return replay(digests, bank=bank)


def pcr7(
    enrolled: Mapping[str, bytes], *, bank: str = "sha256", secure_boot: bool = True,
    authority: x509.Certificate | None = None,
) -> bytes:  # fmt: skip
    """PCR 7 with the keys of ``enrolled`` (PK, KEK, db, and perhaps dbx: .auth files); see ``pcr7_of_lists``."""
    lists = {name: payload(data) for name, data in enrolled.items()}
    return pcr7_of_lists(lists, bank=bank, secure_boot=secure_boot, authority=authority)


def pcr7_of_lists(
    lists: Mapping[str, bytes], *, bank: str = "sha256", secure_boot: bool = True,
    authority: x509.Certificate | None = None,
) -> bytes:  # fmt: skip
    """PCR 7 with these values of PK, KEK, db and dbx; one that isn't named is empty.

    Both images are signed by ``authority``, so it is measured once; None stands for db's only certificate. With
    Secure Boot off no signer is measured. Raises UsageError if Secure Boot is on and the authority isn't in db,
    or is in dbx: such firmware would start neither image.
    """
    if not lists.keys() <= VENDORS.keys():
        raise UsageError(f"no Secure Boot variables: {', '.join(sorted(lists.keys() - VENDORS.keys()))}")
    variables = [(EFI_GLOBAL, "SecureBoot", b"\x01" if secure_boot else b"\x00")]
    variables += [(vendor, name, lists.get(name, b"")) for name, vendor in VENDORS.items()]
    measured = [variable_data(*variable) for variable in variables] + [_SEPARATOR]
    if secure_boot:
        signer = _authority(lists, authority)
        measured.append(variable_data(IMAGE_SECURITY_DATABASE, "db", signer.to_bytes()))
    return replay((_hash(bank, data) for data in measured), bank=bank)


def _authority(lists: Mapping[str, bytes], authority: x509.Certificate | None) -> Entry:
    """The entry of db that lets the firmware start an image signed by ``authority``."""
    for name in ("PK", "KEK", "db"):
        if not lists.get(name):
            raise UsageError(f"Secure Boot can't be on with an empty {name}")
    entries = [entry for entry in parse_lists(lists["db"]) if entry.kind == X509]
    if authority is None:
        if len(entries) != 1:
            raise UsageError(
                "db doesn't hold exactly one certificate (none, or more than one certificate): the measured"
                " signer can't be told from db alone"
            )
        found = entries
    else:
        wanted = authority.public_bytes(Encoding.DER)
        found = [entry for entry in entries if entry.data == wanted]
        if not found:
            raise UsageError("the signer's certificate isn't in db: the firmware would refuse the image")
    if found[0].data in {entry.data for entry in parse_lists(lists.get("dbx", b""))}:
        raise UsageError("the signer's certificate is in dbx: the firmware would refuse the image")
    return found[0]


def variable_data(vendor: uuid.UUID, name: str, data: bytes) -> bytes:
    """UEFI_VARIABLE_DATA, as the firmware hashes it for PCR 7."""
    return vendor.bytes_le + struct.pack("<QQ", len(name), len(data)) + name.encode("utf-16-le") + data


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """What a boot of a release shows, by bank: the fields of that name in ``nodeos.core.release.Release``."""

    pcrs: Mapping[str, Mapping[int, bytes]]
    pcr11: Mapping[str, Mapping[BootPhase, bytes]]
    secure_boot_off: Mapping[str, Mapping[int, bytes]]


def predict(
    bootloader: bytes, uki: Uki, lists: Mapping[str, bytes], authority: x509.Certificate | None
) -> Predictions:  # fmt: skip
    """The predictions for signed images, and the release's own Secure Boot variables (see ``pcr7_of_lists``)."""
    pcrs, phases, off = {}, {}, {}
    for bank, size in BANKS.items():
        pcrs[bank] = {
            4: pcr4(bootloader, uki.data, bank=bank),
            7: pcr7_of_lists(lists, bank=bank, authority=authority),
            12: bytes(size),
            13: bytes(size),
        }
        phases[bank] = pcr11(uki, bank)
        off[bank] = {
            4: pcr4(bootloader, uki.data, bank=bank, secure_boot=False),
            7: pcr7_of_lists({}, bank=bank, secure_boot=False),
        }
    return Predictions(pcrs=pcrs, pcr11=phases, secure_boot_off=off)


def signers(data: bytes, what: str) -> list[x509.Certificate]:
    """All certificates in the Authenticode signatures of a PE image (WIN_CERTIFICATE, PKCS #7)."""
    found: list[x509.Certificate] = []
    for signature in signatures(data, what):
        with warnings.catch_warnings():
            # The signatures of others are not always strict DER.
            warnings.simplefilter("ignore")
            try:
                found += pkcs7.load_der_pkcs7_certificates(signature)
            except ValueError as error:
                raise UsageError(f"{what}: a signature that can't be read: {error}") from error
    return found


def check_kernel_signer(uki: Uki, db: bytes) -> None:
    """Refuse a UKI whose inner kernel is signed by the certificate in ``db``. Raises UsageError.

    The firmware would start that kernel by itself, with an initrd and a command line of anyone's choice and with
    PCR 11 at zero; the initrd could then extend our own measurements and satisfy the policy of the state volume.
    (Debian's own signature on it does no harm: its certificate is not enrolled.)
    """
    enrolled = {entry.data for entry in parse_lists(payload(db))}
    for certificate in signers(uki.sections[".linux"], ".linux"):
        if certificate.public_bytes(Encoding.DER) in enrolled:
            raise UsageError(
                "the kernel inside the UKI is signed with the Secure Boot key",
                hint="only the whole UKI may be signed, never what is in it",
            )


def find_partition(disk: Path, kind: uuid.UUID, what: str) -> tuple[int, int]:
    """Where the first partition of a type begins and how long it is, in bytes (GPT, 512-byte sectors). Raises
    UsageError if there is none; ``what`` names it there.
    """
    with disk.open("rb") as file:

        def read_at(offset: int, length: int) -> bytes:
            file.seek(offset)
            return file.read(length)

        try:
            found = Table.parse(read_at, disk.stat().st_size, 512).find(kind, what)
        except UsageError as error:
            raise UsageError(f"{disk}: {error.message}") from error
    return found.start, found.size


def esp_offset(disk: Path) -> int:
    """Where the EFI system partition begins, in bytes."""
    return find_partition(disk, ESP_TYPE, "EFI system partition")[0]


def esp_of(disk: Path) -> str:
    """The EFI system partition of a disk image, as mtools' option ``-i`` wants it."""
    return f"{disk}@@{esp_offset(disk)}"


def read_esp(disk: Path, name: str) -> bytes:
    """A file of the EFI system partition in a disk image."""
    mcopy = find_tool("mcopy", package="mtools")
    return run(
        [mcopy, "-n", "-i", esp_of(disk), f"::{name}", "-"],
        what=f"reading {name} from {disk}",
    )
