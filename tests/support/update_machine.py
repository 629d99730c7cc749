"""A node with two slots, and releases for it: files below a directory, keys made for the test."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from nodeos.core import secureboot
from nodeos.core.efilists import EFI_GLOBAL, VENDORS
from nodeos.core.release import (
    BANKS,
    PREDICTED,
    PREDICTED_OFF,
    AcceptedPcr7,
    Artefact,
    BootPhase,
    Release,
    ReleaseKeys,
    ReleaseSignature,
    Variant,
    signatures_to_bytes,
    signed_message,
)
from nodeos.core.statepolicy import PolicySignature, PolicySignatures, policy_pcrs
from nodeos.core.statereport import Mode, StateReport
from nodeos.update.machine import LOADER_VENDOR, LOADERS, Paths
from tests.support.pe import make_pe
from tests.support.release_keys import key, lists, signed_image, verity_json

PCR_KEY = hashlib.sha256(b"the PCR-policy key").digest()
PCR11 = b"\x11" * 32
VOLUME = StateReport(
    mode=Mode.OPEN,
    made_this_boot=False,
    luks_uuid="u",
    device="/dev/state",
    policy_keys=(PCR_KEY,),
    policy_pcrs=(7, 11, 12, 13, 15),
    floor=1,
    security_version=1,
    creation_proven=True,
)
RELEASE_KEY = Ed25519PrivateKey.from_private_bytes(b"r" * 32)
_SPKI = RELEASE_KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@dataclass(slots=True)
class FakeTpm:
    """PCR 7 and the floor."""

    pcr7: bytes
    floor: int = 1

    def read_pcrs(self, pcrs: Sequence[int]) -> dict[int, bytes]:
        return {7: self.pcr7}

    def read_floor(self) -> int:
        return self.floor

    def raise_floor(self, version: int) -> int:
        self.floor = max(self.floor, version)
        return self.floor


def root_hash(version: str) -> bytes:
    return hashlib.sha256(version.encode()).digest()


def make_loader(text: bytes = b"loader", *, signer: str = "db") -> bytes:
    return signed_image(make_pe({".text": text}, alignment=1024), signer)


def make_uki(version: str, pcr7s: Sequence[bytes], *, signer: str = "db", security_version: int = 1) -> bytes:
    policies = tuple(
        PolicySignature(
            key=PCR_KEY,
            pcrs=policy_pcrs(value, PCR11),
            version=security_version,
            signature=bytes(64),
        )
        for value in pcr7s
    )
    sections = {
        ".linux": b"kernel " + version.encode(),
        ".cmdline": b"ro roothash=" + root_hash(version).hex().encode(),
        ".pcrsig": PolicySignatures(signatures=policies).to_bytes(),
    }
    return signed_image(make_pe(sections, alignment=1024), signer)


def make_release(
    directory: Path, version: str, pcr7s: Sequence[bytes], *, signer: str = "db", loader: bytes | None = None,
    auths: Mapping[str, bytes] | None = None, security_version: int = 1, rollback_floor: int = 1,
) -> Path:  # fmt: skip
    """A signed release directory."""
    directory.mkdir()
    files = {
        "nodeos.efi": make_uki(version, pcr7s, signer=signer, security_version=security_version),
        "boot.efi": make_loader(signer=signer) if loader is None else loader,
        "root.raw": f"root of {version}".encode().ljust(8192, b"r"),
        "verity.raw": f"hash tree of {version}".encode().ljust(4096, b"v"),
        "verity-sig.json": verity_json(root_hash(version)),
        **{f"{name}.auth": data for name, data in (auths or {}).items()},
    }
    for name, data in files.items():
        (directory / name).write_bytes(data)
    release = Release(
        version=version,
        variant=Variant.RELEASE,
        root_hash=root_hash(version),
        kernel_command_line=f"ro roothash={root_hash(version).hex()}",
        artefacts={
            name: Artefact(size=len(data), sha256=hashlib.sha256(data).digest())
            for name, data in files.items()
        },
        security_version=security_version,
        rollback_floor=rollback_floor,
        pcrs={bank: {index: bytes(size) for index in PREDICTED} for bank, size in BANKS.items()},
        pcr11={
            bank: {phase: PCR11.ljust(size, b"\0") for phase in BootPhase} for bank, size in BANKS.items()
        },
        secure_boot_off={
            bank: {index: bytes(size) for index in PREDICTED_OFF} for bank, size in BANKS.items()
        },
        accepted_pcr7=tuple(AcceptedPcr7(name="one", sha256=value, sha384=bytes(48)) for value in pcr7s),
        keys=ReleaseKeys(
            db=bytes(32), pcr=(PCR_KEY,), release=hashlib.sha256(_SPKI).digest(), verity=bytes(32)
        ),
        source_commit="0" * 40,
        source_date_epoch=0,
    )
    sign_release(directory, release)
    return directory


def sign_release(directory: Path, release: Release) -> None:
    data = release.to_bytes()
    signature = ReleaseSignature(
        key=hashlib.sha256(_SPKI).digest(),
        algorithm="ed25519",
        signature=RELEASE_KEY.sign(signed_message(data)),
    )
    (directory / "release.json").write_bytes(data)
    (directory / "release.sig").write_bytes(signatures_to_bytes([signature]))


@dataclass(slots=True)
class Machine:
    """An installed node that runs 1.0. ``installed`` are the versions that ``install`` was asked for."""

    directory: Path
    installed: list[str] = field(default_factory=list)
    offered: dict[str, int] = field(default_factory=dict)

    @classmethod
    def make(cls, directory: Path) -> Machine:
        machine = cls(directory)
        paths = machine.paths
        for path in (machine.linux, paths.efivars, paths.library, paths.work):
            path.mkdir(parents=True)
        machine.run("1.0")
        (paths.library / "variant").write_text("release\n")
        pem = RELEASE_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        paths.release_key.write_bytes(pem)
        paths.verity_certificate.write_bytes(key("verity").certificate.public_bytes(Encoding.PEM))
        paths.volume_report.write_bytes(VOLUME.to_bytes())
        for name in ("PK", "KEK", "db"):
            machine.set_variable(name, str(VENDORS[name]), lists(name))
        machine.set_variable("SecureBoot", str(EFI_GLOBAL), b"\x01")
        for loader in LOADERS:
            (paths.esp / loader).parent.mkdir(parents=True)
            (paths.esp / loader).write_bytes(make_loader())
        (machine.linux / "nodeos_1.0.efi").write_bytes(make_uki("1.0", [machine.pcr7]))
        return machine

    @property
    def paths(self) -> Paths:
        return Paths(
            esp=self.directory / "esp",
            work=self.directory / "state/update",
            library=self.directory / "usr",
            efivars=self.directory / "efivars",
            os_release=self.directory / "os-release",
            volume_report=self.directory / "state.json",
        )

    @property
    def linux(self) -> Path:
        return self.paths.esp / "EFI/Linux"

    @property
    def ukis(self) -> list[str]:
        return sorted(path.name for path in self.linux.iterdir())

    @property
    def pcr7(self) -> bytes:
        given = {name: lists(name) for name in ("PK", "KEK", "db")}
        return secureboot.pcr7(given, [key("db").der])

    def run(self, version: str) -> None:
        self.paths.os_release.write_text(f"IMAGE_VERSION={version}\n")

    def set_variable(self, name: str, vendor: str, value: bytes) -> None:
        (self.paths.efivars / f"{name}-{vendor}").write_bytes(struct.pack("<I", 7) + value)

    def count(self) -> None:
        """This boot is one that systemd-boot counts."""
        self.set_variable("LoaderBootCountPath", LOADER_VENDOR, "\\EFI\\Linux\\x".encode("utf-16-le"))

    def install(self, paths: Paths, version: str) -> None:
        """What systemd-sysupdate does, as far as the ESP shows it."""
        self.installed.append(version)
        self.offered = {path.name: path.stat().st_size for path in paths.incoming.iterdir()}
        others = [path for path in self.linux.iterdir() if f"_{version}" in path.name]
        if not others:
            data = (paths.incoming / f"nodeos_{version}.efi").read_bytes()
            (self.linux / f"nodeos_{version}+3-0.efi").write_bytes(data)
