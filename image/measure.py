"""Predicts what a boot of the image extends into the PCRs, from the files alone.

SHA-256 bank. Sources: TCG PC Client Platform Firmware Profile 1.06 (PCRs 4 and 7, sections 3.3.4 and 10.4),
Microsoft "Windows Authenticode Portable Executable Signature Format" (image digest), systemd-stub(7) and
src/boot/measure.c of systemd 257 (PCR 11), systemd-pcrphase.service(8) (boot phases).
"""

from __future__ import annotations

import hashlib
import json
import struct
import uuid
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pefile
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from nodeos.core.errors import UsageError
from nodeos.core.release import BootPhase
from nodeos.core.run import find_tool, run

# The order in which systemd-stub measures the sections; .pcrsig is never measured.
MEASURED_SECTIONS = (".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".uname", ".sbat",
             ".pcrpkey", ".profile", ".dtbauto", ".hwids")  # fmt: skip
_EFI_GLOBAL = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
_IMAGE_SECURITY_DATABASE = uuid.UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
_ESP = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
_SEPARATOR = b"\0\0\0\0"
_BOOT_ACTION = b"Calling EFI Application from Boot Option"


def extend(value: bytes, digest: bytes) -> bytes:
    """One PCR extend: SHA-256 of the old value and the digest."""
    return hashlib.sha256(value + digest).digest()


def replay(digests: Iterable[bytes], start: bytes = bytes(32)) -> bytes:
    """The PCR value after extending ``digests`` in their order."""
    value = start
    for digest in digests:
        value = extend(value, digest)
    return value


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
        data = path.read_bytes()
        image = _parse(data, str(path))
        sections = {}
        for section in image.sections:
            name = section.Name.rstrip(b"\0").decode("ascii", "replace")
            raw = data[section.PointerToRawData : section.PointerToRawData + section.SizeOfRawData]
            sections[name] = raw[: section.Misc_VirtualSize].ljust(section.Misc_VirtualSize, b"\0")
        missing = {".linux", ".initrd", ".cmdline"} - set(sections)
        if missing:
            raise UsageError(f"{path}: no unified kernel image, it lacks {', '.join(sorted(missing))}")
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


def pcr11(uki: Uki) -> dict[BootPhase, bytes]:
    """PCR 11 after each boot phase: the stub measures name and content of each section, then the phases."""
    value = bytes(32)
    for name in MEASURED_SECTIONS:
        if name in uki.sections:
            value = extend(value, _sha256(name.encode() + b"\0"))
            value = extend(value, _sha256(uki.sections[name]))
    phases = {}
    for phase in BootPhase:
        value = extend(value, _sha256(phase.encode()))
        phases[phase] = value
    return phases


def pcr4(bootloader: bytes, uki: bytes) -> bytes:
    """PCR 4 with Secure Boot on: the boot attempt, the separator, and the two images that the firmware loads."""
    return replay([
        _sha256(_BOOT_ACTION),
        _sha256(_SEPARATOR),
        authenticode(bootloader, "boot loader"),
        authenticode(uki, "UKI"),
    ])  # fmt: skip


def pcr7(enrolled: Mapping[str, bytes]) -> bytes:
    """PCR 7 with Secure Boot on and the keys of ``enrolled`` (PK, KEK, db: the .auth files) and an empty dbx.

    Both images are signed by the one certificate in db, so the authority is measured once.
    """
    lists = {name: auth_payload(data) for name, data in enrolled.items()}
    digests = [
        _sha256(variable_data(_EFI_GLOBAL, "SecureBoot", b"\x01")),
        _sha256(variable_data(_EFI_GLOBAL, "PK", lists["PK"])),
        _sha256(variable_data(_EFI_GLOBAL, "KEK", lists["KEK"])),
        _sha256(variable_data(_IMAGE_SECURITY_DATABASE, "db", lists["db"])),
        _sha256(variable_data(_IMAGE_SECURITY_DATABASE, "dbx", b"")),
        _sha256(_SEPARATOR),
        _sha256(variable_data(_IMAGE_SECURITY_DATABASE, "db", signature_data(lists["db"]))),
    ]
    return replay(digests)


def variable_data(vendor: uuid.UUID, name: str, data: bytes) -> bytes:
    """UEFI_VARIABLE_DATA, as the firmware hashes it for PCR 7."""
    return vendor.bytes_le + struct.pack("<QQ", len(name), len(data)) + name.encode("utf-16-le") + data


def auth_payload(auth: bytes) -> bytes:
    """The signature lists in a signed variable update: what follows EFI_VARIABLE_AUTHENTICATION_2."""
    if len(auth) < 24:
        raise UsageError("a Secure Boot variable is too short")
    (length,) = struct.unpack_from("<I", auth, 16)
    return auth[16 + length :]


def signature_data(signature_list: bytes) -> bytes:
    """The single EFI_SIGNATURE_DATA (owner and certificate) of an EFI_SIGNATURE_LIST.

    Raises UsageError if the list holds more than one: then the signer would not be known from db alone.
    """
    size, header, each = struct.unpack_from("<III", signature_list, 16)
    if size != len(signature_list) or 28 + header + each != size:
        raise UsageError(
            "db holds more than one certificate: the measured signer can't be told from db alone"
        )
    return signature_list[28 + header :]


def check_kernel_signer(uki: Uki, db: bytes) -> None:
    """Refuse a UKI whose inner kernel is signed by the certificate in ``db``. Raises UsageError.

    The firmware would start that kernel by itself, with an initrd and a command line of anyone's choice and with
    PCR 11 at zero; the initrd could then extend our own measurements and satisfy the policy of the state volume.
    (Debian's own signature on it does no harm: its certificate is not enrolled.)
    """
    enrolled = signature_data(auth_payload(db))[16:]
    for certificate in signers(uki.sections[".linux"], ".linux"):
        if certificate.public_bytes(Encoding.DER) == enrolled:
            raise UsageError(
                "the kernel inside the UKI is signed with the Secure Boot key",
                hint="only the whole UKI may be signed: see image/scripts/ukify",
            )


def signers(data: bytes, what: str) -> list[x509.Certificate]:
    """All certificates in the Authenticode signatures of a PE image (WIN_CERTIFICATE, PKCS #7)."""
    directory = _parse(data, what).OPTIONAL_HEADER.DATA_DIRECTORY[4]
    table = data[directory.VirtualAddress : directory.VirtualAddress + directory.Size]
    found: list[x509.Certificate] = []
    while len(table) >= 8:
        (length, _revision, kind) = struct.unpack_from("<IHH", table)
        if not 8 <= length <= len(table) or kind != 2:
            raise UsageError(f"{what}: a signature that can't be read")
        with warnings.catch_warnings():
            # The signatures of others are not always strict DER.
            warnings.simplefilter("ignore")
            try:
                found += pkcs7.load_der_pkcs7_certificates(table[8:length])
            except ValueError as error:
                raise UsageError(f"{what}: a signature that can't be read: {error}") from error
        table = table[length + -length % 8 :]
    return found


def authenticode(data: bytes, what: str) -> bytes:
    """The SHA-256 Authenticode digest of a PE image, signed or not."""
    image = _parse(data, what)
    optional = image.OPTIONAL_HEADER
    checksum = optional.get_file_offset() + 64
    directory = image.OPTIONAL_HEADER.DATA_DIRECTORY[4]
    entry = directory.get_file_offset()
    header = data[:checksum] + data[checksum + 4 : entry] + data[entry + 8 : optional.SizeOfHeaders]
    digest = hashlib.sha256(header)
    hashed = optional.SizeOfHeaders
    for section in sorted(image.sections, key=lambda item: int(item.PointerToRawData)):
        start, size = section.PointerToRawData, section.SizeOfRawData
        digest.update(data[start : start + size])
        hashed += size
    end = len(data) - directory.Size
    if end > hashed:
        digest.update(data[hashed:end])
    digest.update(bytes(-end % 8))
    return digest.digest()


def _parse(data: bytes, what: str) -> pefile.PE:
    try:
        return pefile.PE(data=data, fast_load=True)
    except pefile.PEFormatError as error:
        raise UsageError(f"{what}: not a PE image: {error}") from error


def find_partition(disk: Path, kind: uuid.UUID, what: str) -> tuple[int, int]:
    """Where the first partition of a type begins and how long it is, in bytes (GPT, 512-byte sectors; UEFI 2.10,
    section 5.3). Raises UsageError if there is none; ``what`` names it there.
    """
    with disk.open("rb") as file:
        file.seek(512)
        header = file.read(92)
        if header[:8] != b"EFI PART":
            raise UsageError(f"{disk}: no GPT disk image")
        table, count, size = struct.unpack_from("<QII", header, 72)
        file.seek(table * 512)
        entries = file.read(count * size)
    for start in range(0, len(entries), size):
        if entries[start : start + 16] == kind.bytes_le:
            first, last = struct.unpack_from("<QQ", entries, start + 32)
            return first * 512, (last - first + 1) * 512
    raise UsageError(f"{disk}: no {what}")


def esp_offset(disk: Path) -> int:
    """Where the EFI system partition begins, in bytes."""
    return find_partition(disk, _ESP, "EFI system partition")[0]


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


# The TPM's names of the banks that a policy can be signed for (TPM 2.0 Part 2, table 9).
_BANKS = {"sha1": 0x0004, "sha256": 0x000B, "sha384": 0x000C, "sha512": 0x000D}


def policy_pcr(pcr: int, value: bytes, *, bank: str = "sha256") -> bytes:
    """The digest of a TPM policy that demands one PCR value (TPM 2.0 Part 3, TPM2_PolicyPCR).

    ``bank`` is the PCR's; the policy's own hash is SHA-256, as systemd's always is.
    """
    selection = bytearray(3)
    selection[pcr // 8] |= 1 << pcr % 8
    command = struct.pack(">IIHB", 0x0000017F, 1, _BANKS[bank], 3) + bytes(selection)
    return _sha256(bytes(32) + command + _sha256(value))


def pcr11_in_initrd(uki: Uki, bank: str) -> bytes:
    """PCR 11 of any bank at the phase ``enter-initrd``."""
    value = bytes(hashlib.new(bank).digest_size)
    measured = [part for name in MEASURED_SECTIONS if name in uki.sections
                for part in (name.encode() + b"\0", uki.sections[name])]  # fmt: skip
    for data in [*measured, BootPhase.ENTER_INITRD.encode()]:
        value = hashlib.new(bank, value + hashlib.new(bank, data).digest()).digest()
    return value


def check_pcr_signature(uki: Uki) -> None:
    """Hold the UKI's PCR signature to the prediction: one a bank, for PCR 11 in the initrd and no later phase.

    All banks count: the volume's policy takes what the key signed, whichever bank that was for. Raises UsageError
    otherwise: with no signature the state would be bound to PCR 7 alone, with more the running system could
    unseal it.
    """
    wrong = "the UKI's PCR signature is not the one that was asked for"
    try:
        banks = json.loads(uki.sections[".pcrsig"].rstrip(b"\0"))
        found = {bank: [(entry["pcrs"], entry["pol"]) for entry in banks[bank]] for bank in banks}
    except (KeyError, ValueError, TypeError) as error:
        raise UsageError(f"{wrong}: it can't be read: {error}") from error
    if ".pcrpkey" not in uki.sections:
        raise UsageError("the UKI carries no PCR policy key")
    if "sha256" not in found or not found.keys() <= _BANKS.keys():
        raise UsageError(f"{wrong}: it is for the banks {', '.join(sorted(found))}")
    for bank, policies in found.items():
        expected = [([11], policy_pcr(11, pcr11_in_initrd(uki, bank), bank=bank).hex())]
        if policies != expected:
            raise UsageError(f"{wrong}: bank {bank} has {policies}, expected {expected}")
