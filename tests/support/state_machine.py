"""A machine for the tests of the state volume: its partition is a file, its TPM a software one.

There is no device-mapper: what is opened, formatted and mounted is recorded, and every key that a volume is opened
with is tried on its header by cryptsetup.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hsm.keys import public_der
from nodeos.core import statepolicy
from nodeos.core.layout import SIGNATURE_SIZE, signature_uuid
from nodeos.core.site import SIGNATURE_DOMAIN, SiteConfig
from nodeos.core.statepolicy import PolicySignature, PolicySignatures
from nodeos.state.disks import SIGNATURE_TYPE, STATE_TYPE
from nodeos.state.host import Host
from nodeos.state.luks import Luks
from tests.support import evidence, release_keys

BOOT_PARTITION = "6b1c7f3e-0d5a-4c39-9f2e-5a1f0c9d7e11"
SIZE = 48 << 20
ZERO = {pcr: bytes(32) for pcr in statepolicy.POLICY_PCRS}
KEY = ec.derive_private_key(11, ec.SECP256R1())
NEW_KEY = ec.derive_private_key(12, ec.SECP256R1())


class StateMachine(Host):
    """A started machine. ``calls`` is what was done to the volume, ``said`` what its console shows."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory / "run")
        self.directory = directory
        self.device = directory / "disk9"
        self.extra = directory / "extra"
        self.library = directory / "library"
        self.esp = directory / "esp"
        self.var = directory / "var"
        for folder in (self.extra, self.library, self.esp / "nodeos", self.var):
            folder.mkdir(parents=True)
        self.erase()
        self.root_hash = bytes(range(32))
        self.signature = directory / "disk4"
        self.sign_root()
        self.rows = [
            row("/dev/vda", "disk"),
            row(str(self.signature), "part", "/dev/vda", str(signature_uuid(self.root_hash)), SIGNATURE_TYPE),
            row("/dev/vda1", "part", "/dev/vda", BOOT_PARTITION),
            row(str(self.device), "part", "/dev/vda", "aa", STATE_TYPE),
        ]
        self.variable: bytes | None = b"\x06\0\0\0" + (BOOT_PARTITION.upper() + "\0").encode("utf-16-le")
        self.calls: list[str] = []
        self.said: list[str] = []
        self.breaks_at = ""
        self.site_key = evidence.SITE_KEY
        self.release(KEY)
        self.site(evidence.site())

    # What is on the disk

    def erase(self) -> None:
        with self.device.open("wb") as file:
            file.truncate(SIZE)

    def release(
        self,
        *keys: ec.EllipticCurvePrivateKey,
        version: int = 1,
        floor: int = 1,
        signers: tuple[ec.EllipticCurvePrivateKey, ...] = (),
        values: Mapping[int, bytes] = ZERO,
    ) -> None:
        """Boot a release with these policy keys, signed by ``signers`` (the same keys if none are named)."""
        pems = [
            key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo) for key in keys
        ]
        (self.extra / "tpm2-pcr-public-key.pem").write_bytes(b"".join(pems) + b"\0\0")
        made = PolicySignatures(signatures=tuple(signed(key, version, values) for key in signers or keys))
        (self.extra / "tpm2-pcr-signature.json").write_bytes(made.to_bytes())
        words = f"security_version = {version}\nrollback_floor = {floor}\n"
        (self.library / "release.toml").write_text(words)

    def sign_root(self, *, by: str = "verity", trusted: tuple[str, ...] = ("verity",)) -> None:
        """The signature partition, and the certificates in the root."""
        data = release_keys.verity_json(self.root_hash, by)
        self.signature.write_bytes(data.ljust(SIGNATURE_SIZE, b"\0"))
        pems = [release_keys.key(name).certificate.public_bytes(Encoding.PEM) for name in trusted]
        (self.library / "verity.crt").write_bytes(b"".join(pems))

    def site(self, config: SiteConfig) -> None:
        document = config.to_bytes()
        (self.esp / "nodeos/site.json").write_bytes(document)
        (self.esp / "nodeos/site.sig").write_bytes(self.site_key.sign(SIGNATURE_DOMAIN + document))
        public = evidence.SITE_KEY.public_key()
        other = evidence.OPERATOR.public_key()
        pems = [key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo) for key in (other, public)]
        (self.library / "site.pub.pem").write_bytes(b"".join(pems))

    def contents(self) -> bytes:
        return self.device.read_bytes()

    # The host

    def say(self, words: str) -> None:
        self.said.append(words)

    def command_line(self) -> bytes:
        return b"ro quiet roothash=" + self.root_hash.hex().encode() + b"\n"

    def boot_variable(self) -> bytes | None:
        return self.variable

    def disks(self) -> bytes:
        return json.dumps({"blockdevices": self.rows}).encode()

    def wait(self, seconds: float) -> None:
        self.calls.append("wait")

    def write(self, device: str, offset: int, data: bytes) -> None:
        self._call(f"write {offset}")
        super().write(device, offset, data)

    @contextmanager
    def boot_files(self, partition: str) -> Iterator[Path]:
        assert partition == "/dev/vda1"
        yield self.esp

    def open(self, header: Path, device: str, key: bytes, keyslot: int) -> None:
        assert device == str(self.device)
        Luks(header).volume_key(key, keyslot)
        self._call("open")

    def make_filesystem(self) -> None:
        self._call("make file system")

    def check_filesystem(self) -> None:
        self._call("check file system")

    @contextmanager
    def volume(self) -> Iterator[Path]:
        self._call("mount")
        yield self.var

    def _call(self, name: str) -> None:
        if name == self.breaks_at:
            raise KeyboardInterrupt(name)
        self.calls.append(name)


def row(name: str, kind: str, disk: str = "", uuid: str = "", parttype: str = "") -> dict[str, str]:
    return {"name": name, "type": kind, "pkname": disk, "partuuid": uuid, "parttype": parttype}


def signed(
    key: ec.EllipticCurvePrivateKey, version: int = 1, values: Mapping[int, bytes] = ZERO
) -> PolicySignature:
    message = statepolicy.signed_message(statepolicy.approved_policy(values, version))
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256())))
    return PolicySignature(
        key=fingerprint(key),
        pcrs=values,
        version=version,
        signature=r.to_bytes(32, "big") + s.to_bytes(32, "big"),
    )


def fingerprint(key: ec.EllipticCurvePrivateKey) -> bytes:
    return hashlib.sha256(public_der(key.public_key())).digest()
