"""The attestation report of AMD SEV-SNP, versions 2 to 5, as the chip signs it. Little-endian.

Source: AMD 56860 "SEV Secure Nested Paging Firmware ABI Specification", 1.58, section 7.3 (ATTESTATION_REPORT,
GUEST_POLICY, PLATFORM_INFO) and 2.2 (TCB_VERSION, with the layout of family 1Ah). Reading says nothing of trust.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag, StrEnum
from typing import Any

from provisioning.verify.reader import Reader

SIZE, SIGNED = 0x4A0, 0x2A0
VERSIONS = range(2, 6)
ECDSA_P384_SHA384 = 1
# VMPL of a report that the hypervisor asked for and no guest (SNP_HV_REPORT_REQ).
ASKED_BY_HOST = 0xFFFFFFFF
_COORDINATE = 72


class Generation(StrEnum):
    """Chips with one root key. Genoa's is also Bergamo's and Siena's."""

    MILAN = "milan"
    GENOA = "genoa"
    TURIN = "turin"


class SigningKey(StrEnum):
    """Who signed: the chip's own key for its firmware (VCEK), a provider's key in the chip (VLEK), nobody."""

    VCEK = "vcek"
    VLEK = "vlek"
    NONE = "none"


_SIGNING_KEYS = {0: SigningKey.VCEK, 1: SigningKey.VLEK, 7: SigningKey.NONE}


class Guest(IntFlag):
    """GUEST_POLICY above the two bytes of the ABI version. ``ALWAYS`` is set in every valid policy."""

    SMT = 1 << 16
    ALWAYS = 1 << 17
    MIGRATE = 1 << 18
    DEBUG = 1 << 19
    SINGLE_SOCKET = 1 << 20
    CXL = 1 << 21
    AES_256_XTS = 1 << 22
    RAPL_OFF = 1 << 23
    CIPHERTEXT_HIDING = 1 << 24
    PAGE_SWAP_OFF = 1 << 25


class Platform(IntFlag):
    """PLATFORM_INFO. ``TSME``: the whole memory is encrypted, the host's too."""

    SMT = 1 << 0
    TSME = 1 << 1
    ECC = 1 << 2
    RAPL_OFF = 1 << 3
    CIPHERTEXT_HIDING = 1 << 4
    ALIAS_CHECKED = 1 << 5
    TIO = 1 << 7


_KNOWN_GUEST = sum(Guest) | 0xFFFF
KNOWN_PLATFORM = sum(Platform)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tcb:
    """Security patch levels of a chip's firmware, 0 to 255. ``fmc`` is None before Turin."""

    bootloader: int
    tee: int
    snp: int
    microcode: int
    fmc: int | None

    def lacks(self, least: Tcb) -> list[str]:
        """The parts that are lower than in ``least``. A part that this chip does not have can't be lower."""
        return [
            name
            for name in ("fmc", "bootloader", "tee", "snp", "microcode")
            if (getattr(self, name) if getattr(self, name) is not None else 255) < (getattr(least, name) or 0)
        ]

    def __str__(self) -> str:
        fmc = "" if self.fmc is None else f"fmc {self.fmc}, "
        return (
            f"{fmc}bootloader {self.bootloader}, tee {self.tee}, snp {self.snp}, microcode {self.microcode}"
        )

    def to_json(self) -> dict[str, int]:
        fmc = {} if self.fmc is None else {"fmc": self.fmc}
        return fmc | {
            "bootloader": self.bootloader,
            "tee": self.tee,
            "snp": self.snp,
            "microcode": self.microcode,
        }


def read_tcb(raw: bytes, generation: Generation) -> tuple[Tcb, bool]:
    """A TCB_VERSION of eight bytes, and whether its reserved bytes are zero as they must be."""
    if generation is Generation.TURIN:
        tcb = Tcb(fmc=raw[0], bootloader=raw[1], tee=raw[2], snp=raw[3], microcode=raw[7])
        return tcb, not any(raw[4:7])
    return Tcb(fmc=None, bootloader=raw[0], tee=raw[1], snp=raw[6], microcode=raw[7]), not any(raw[2:6])


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """Family, model and stepping as CPUID combines them (reports from version 3 on)."""

    family: int
    model: int
    stepping: int

    @property
    def generation(self) -> Generation | None:
        """None for a processor that is none of the generations known here."""
        if self.family == 0x19 and self.model <= 0x0F:
            return Generation.MILAN
        if self.family == 0x19 and (0x10 <= self.model <= 0x1F or 0xA0 <= self.model <= 0xAF):
            return Generation.GENOA
        if self.family == 0x1A and self.model <= 0x1F:
            return Generation.TURIN
        return None

    def __str__(self) -> str:
        return f"family {self.family:#x}, model {self.model:#x}, stepping {self.stepping}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpReport:
    """A report. The four TCBs are raw: their layout depends on the generation (``read_tcb``).

    ``signing_key`` is None for a reserved value. ``r`` and ``s`` are the numbers of the ECDSA signature over
    ``signed``. ``reserved`` names the fields that must be zero and are not. ``cpu`` is None in version 2,
    ``mitigations`` (at launch, now) before version 5. ``firmware`` is major.minor.build, current and committed.
    """

    signed: bytes
    version: int
    guest_svn: int
    policy: int
    family_id: bytes
    image_id: bytes
    vmpl: int
    signature_algorithm: int
    platform: int
    signing_key: SigningKey | None
    key_masked: bool
    author_key: bool
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    report_id_ma: bytes
    current_tcb: bytes
    reported_tcb: bytes
    committed_tcb: bytes
    launch_tcb: bytes
    cpu: Cpu | None
    chip_id: bytes
    firmware: tuple[str, str]
    mitigations: tuple[int, int] | None
    r: int
    s: int
    reserved: tuple[str, ...]

    @property
    def tsme(self) -> bool:
        return bool(self.platform & Platform.TSME)

    def to_json(self, generation: Generation | None) -> dict[str, Any]:
        """For people and tools; the TCBs only if the generation is known."""
        tcbs = {
            name: read_tcb(getattr(self, f"{name}_tcb"), generation)[0].to_json()
            for name in ("current", "reported", "committed", "launch")
            if generation is not None
        }
        cpu = self.cpu
        return {
            "version": self.version,
            "vmpl": self.vmpl,
            "guest_svn": self.guest_svn,
            "policy": [str(bit.name).lower() for bit in Guest if self.policy & bit],
            "platform": [str(bit.name).lower() for bit in Platform if self.platform & bit],
            "tsme": self.tsme,
            "signing_key": str(self.signing_key) if self.signing_key is not None else None,
            "cpu": None
            if cpu is None
            else {"family": cpu.family, "model": cpu.model, "stepping": cpu.stepping},
            "tcb": tcbs,
            "firmware": {"current": self.firmware[0], "committed": self.firmware[1]},
            "mitigations": None
            if self.mitigations is None
            else {"launch": self.mitigations[0], "current": self.mitigations[1]},
            "chip_id": self.chip_id.hex(),
            "report_data": self.report_data.hex(),
            "measurement": self.measurement.hex(),
            "host_data": self.host_data.hex(),
            "id_key_digest": self.id_key_digest.hex(),
            "author_key_digest": self.author_key_digest.hex(),
            "report_id": self.report_id.hex(),
        }


def parse_report(data: bytes, what: str = "SEV-SNP report") -> SnpReport:
    """Parse a report of exactly 1184 bytes. Raises ParseError for another size or an unknown version."""
    reader = Reader(data, what, order="little")
    if len(data) != SIZE:
        raise reader.fail(f"a report has {SIZE} bytes, found {len(data)}")
    version = reader.u32()
    if version not in VERSIONS:
        raise reader.fail(f"version {version} is not one of {VERSIONS[0]} to {VERSIONS[-1]}")
    reserved: list[str] = []

    def zero(count: int) -> None:
        at = reader.offset
        if any(reader.take(count)):
            reserved.append(f"bytes {at:#x} to {at + count - 1:#x}")

    guest_svn, policy = reader.u32(), reader.u64()
    family_id, image_id = reader.take(16), reader.take(16)
    vmpl, algorithm = reader.u32(), reader.u32()
    current_tcb = reader.take(8)
    platform, key_info = reader.u64(), reader.u32()
    zero(4)
    report_data, measurement, host_data = reader.take(64), reader.take(48), reader.take(32)
    id_key_digest, author_key_digest = reader.take(48), reader.take(48)
    report_id, report_id_ma, reported_tcb = reader.take(32), reader.take(32), reader.take(8)
    cpu = None
    if version >= 3:
        cpu = Cpu(family=reader.u8(), model=reader.u8(), stepping=reader.u8())
    zero(0x1A0 - reader.offset)
    chip_id, committed_tcb = reader.take(64), reader.take(8)
    current = _firmware(reader.take(3))
    zero(1)
    committed = _firmware(reader.take(3))
    zero(1)
    launch_tcb = reader.take(8)
    mitigations = (reader.u64(), reader.u64()) if version >= 5 else None
    zero(SIGNED - reader.offset)
    r, s = (int.from_bytes(reader.take(_COORDINATE), "little") for _ in range(2))
    zero(reader.left)
    if key_info >> 5:
        reserved.append("bits 5 to 31 of the key information")
    if policy & ~_KNOWN_GUEST or not policy & Guest.ALWAYS:
        reserved.append("reserved bits of the guest policy")
    return SnpReport(
        signed=data[:SIGNED],
        version=version,
        guest_svn=guest_svn,
        policy=policy,
        family_id=family_id,
        image_id=image_id,
        vmpl=vmpl,
        signature_algorithm=algorithm,
        platform=platform,
        signing_key=_SIGNING_KEYS.get(key_info >> 2 & 7),
        key_masked=bool(key_info & 2),
        author_key=bool(key_info & 1),
        report_data=report_data,
        measurement=measurement,
        host_data=host_data,
        id_key_digest=id_key_digest,
        author_key_digest=author_key_digest,
        report_id=report_id,
        report_id_ma=report_id_ma,
        current_tcb=current_tcb,
        reported_tcb=reported_tcb,
        committed_tcb=committed_tcb,
        launch_tcb=launch_tcb,
        cpu=cpu,
        chip_id=chip_id,
        firmware=(current, committed),
        mitigations=mitigations,
        r=r,
        s=s,
        reserved=tuple(reserved),
    )


def _firmware(raw: bytes) -> str:
    build, minor, major = raw
    return f"{major}.{minor}.{build}"
