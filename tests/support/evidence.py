"""A TPM, its manufacturer, a site and a release, all in software and all synthetic: evidence without a TPM.

``Machine`` makes what an honest machine sends. Tests change one thing of it and expect one finding.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from ipaddress import IPv6Address
from pathlib import Path

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.x509.oid import NameOID

from hsm.bls import SecretKey
from hsm.box import seal_to
from nodeos.core.addresses import IpAddress
from nodeos.core.principal import Principal
from nodeos.core.protocol import (
    QUOTED_PCRS,
    Challenge,
    Evidence,
    KeyProofs,
    NodeKeys,
    Request,
    Statement,
    StateVolume,
    possession_message,
    qualifying_data,
    secret_proof,
)
from nodeos.core.recovery import RecoveryBlob, RecoveryKey, recovery_context
from nodeos.core.recovery_request import LockedEvidence, LockedStatement, recovery_qualifying_data
from nodeos.core.release import (
    AcceptedPcr7,
    BootPhase,
    Release,
    ReleaseKeys,
    ReleaseSignature,
    Variant,
    signatures_to_bytes,
    signed_message,
)
from nodeos.core.site import SIGNATURE_DOMAIN, SiteConfig
from nodeos.core.statereport import Mode
from nodeos.core.wire import canonical_json
from provisioning.verify.credential import kdfa, kdfe
from provisioning.verify.tpm import Attribute

POLICY_A = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
POLICY_B_384 = bytes.fromhex(
    "b26e7d28d11a50bc53d882bcf5fd3a1a074148bb35d3b4e4cb1c0ad9bde419cacb47ba09699646150f9fc000f3f80e12"
)
EK_ATTRIBUTES = 0x000300B2
AK_ATTRIBUTES = 0x00050072
START = datetime(2025, 1, 1, tzinfo=UTC)
END = datetime(2045, 1, 1, tzinfo=UTC)
OPERATOR = ed25519.Ed25519PrivateKey.from_private_bytes(b"\x01" * 32)
RELEASE_KEY = ed25519.Ed25519PrivateKey.from_private_bytes(b"\x03" * 32)
# Secrets are encrypted to it: the operator's second key.
RECOVERY = ec.derive_private_key(3, ec.SECP256R1())
RECOVERY_KEY = RecoveryKey(value=bytes(range(32)))
SITE_KEY = ed25519.Ed25519PrivateKey.from_private_bytes(b"\x02" * 32)
CertificateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


def spki(key: CertificateKey | ed25519.Ed25519PrivateKey) -> bytes:
    """The public half as DER."""
    return key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def sized(data: bytes) -> bytes:
    """A TPM2B."""
    return struct.pack(">H", len(data)) + data


def name(text: str) -> x509.Name:
    """A subject with one common name, or none."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)] if text else [])


def tpm_san() -> x509.SubjectAlternativeName:
    """The directory name of an endorsement certificate."""
    oids = {"2.23.133.2.1": "id:54455354", "2.23.133.2.2": "synthetic", "2.23.133.2.3": "id:00010002"}
    attributes = [x509.NameAttribute(x509.ObjectIdentifier(oid), text) for oid, text in oids.items()]
    return x509.SubjectAlternativeName([x509.DirectoryName(x509.Name(attributes))])


@dataclass(frozen=True, kw_only=True)
class Authority:
    """A CA of a chain."""

    subject: str
    key: ec.EllipticCurvePrivateKey
    der: bytes

    @classmethod
    def make(
        cls,
        subject: str,
        issuer: Authority | None = None,
        *,
        ca: bool = True,
        path_length: int | None = None,
        sign_usage: bool = True,
        list_usage: bool = True,
        key_id: bool = False,
        start: datetime = START,
        end: datetime = END,
    ) -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name(issuer.subject if issuer else subject))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca, path_length if ca else None), critical=True)
            .add_extension(
                x509.KeyUsage(True, False, False, False, False, sign_usage, list_usage, False, False),
                critical=True,
            )
        )
        if key_id:
            identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
            builder = builder.add_extension(identifier, critical=False)
        signed = builder.sign(issuer.key if issuer else key, hashes.SHA256())
        return cls(subject=subject, key=key, der=signed.public_bytes(serialization.Encoding.DER))

    def issue(
        self,
        public: rsa.RSAPublicKey | ec.EllipticCurvePublicKey,
        *,
        subject: str = "",
        usage: str | None = "2.23.133.8.1",
        san: bool = True,
        ca: bool = False,
        critical: bool = False,
        start: datetime = START,
        end: datetime = END,
        issuer: str | x509.Name | None = None,
        more: x509.UnrecognizedExtension | None = None,
    ) -> bytes:
        """An endorsement certificate in DER."""
        builder = (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(issuer if isinstance(issuer, x509.Name) else name(issuer or self.subject))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca, None), critical=True)
        )
        if usage:
            use = x509.ExtendedKeyUsage([x509.ObjectIdentifier(usage)])
            builder = builder.add_extension(use, critical=False)
        if san:
            builder = builder.add_extension(tpm_san(), critical=True)
        if critical:
            odd = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
            builder = builder.add_extension(odd, critical=True)
        if more is not None:
            builder = builder.add_extension(more, critical=True)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


@cache
def root() -> Authority:
    """The manufacturer's root, made once."""
    return Authority.make("Synthetic TPM Root")


@cache
def issuing() -> Authority:
    """The authority below it, which issues endorsement certificates."""
    return Authority.make("Synthetic TPM Issuing", root(), path_length=0)


_RSA_KEYS: dict[int, rsa.RSAPrivateKey] = {}


def rsa_key(number: int = 0) -> rsa.RSAPrivateKey:
    """An RSA-2048 key for each number."""
    if number not in _RSA_KEYS:
        _RSA_KEYS[number] = rsa.generate_private_key(65537, 2048)
    return _RSA_KEYS[number]


def rsa_public(key: rsa.RSAPublicKey, *, attributes: int = EK_ATTRIBUTES, policy: bytes = POLICY_A) -> bytes:
    """TPMT_PUBLIC of an RSA endorsement key."""
    head = struct.pack(">HHI", 0x0001, 0x000B, attributes) + sized(policy)
    parameters = struct.pack(">HHHHHI", 0x0006, 128, 0x0043, 0x0010, 2048, 0)
    return head + parameters + sized(key.public_numbers().n.to_bytes(256, "big"))


def ecc_ek_public(key: ec.EllipticCurvePublicKey) -> bytes:
    """TPMT_PUBLIC of an ECC endorsement key: P-256 low range, P-384 high range."""
    numbers = key.public_numbers()
    if key.curve.key_size == 256:
        head = struct.pack(">HHI", 0x0023, 0x000B, EK_ATTRIBUTES) + sized(POLICY_A)
        parameters = struct.pack(">HHHHHH", 0x0006, 128, 0x0043, 0x0010, 0x0003, 0x0010)
    else:
        head = struct.pack(">HHI", 0x0023, 0x000C, EK_ATTRIBUTES | 0x40) + sized(POLICY_B_384)
        parameters = struct.pack(">HHHHHH", 0x0006, 256, 0x0043, 0x0010, 0x0004, 0x0010)
    width = key.curve.key_size // 8
    return (
        head + parameters + sized(numbers.x.to_bytes(width, "big")) + sized(numbers.y.to_bytes(width, "big"))
    )


def ak_public(
    key: ec.EllipticCurvePublicKey,
    *,
    attributes: int = AK_ATTRIBUTES,
    name_alg: int = 0x000B,
    scheme: bytes = struct.pack(">HH", 0x0018, 0x000B),
) -> bytes:
    """TPMT_PUBLIC of an attestation key."""
    numbers = key.public_numbers()
    curve = {256: 0x0003, 384: 0x0004}[key.curve.key_size]
    width = key.curve.key_size // 8
    head = struct.pack(">HHI", 0x0023, name_alg, attributes) + sized(b"")
    parameters = struct.pack(">H", 0x0010) + scheme + struct.pack(">HH", curve, 0x0010)
    return (
        head + parameters + sized(numbers.x.to_bytes(width, "big")) + sized(numbers.y.to_bytes(width, "big"))
    )


def event(pcr: int, kind: int, data: bytes, digest: bytes | None = None) -> bytes:
    """One event of a crypto-agile log with SHA-256 only."""
    value = hashlib.sha256(data).digest() if digest is None else digest
    return struct.pack("<IIIH", pcr, kind, 1, 0x000B) + value + struct.pack("<I", len(data)) + data


def log_header() -> bytes:
    """The Spec ID event of a log with SHA-256 only."""
    spec = b"Spec ID Event03\0" + struct.pack("<IBBBBIHHB", 0, 0, 2, 0, 2, 1, 0x000B, 32, 0)
    return struct.pack("<II", 0, 3) + bytes(20) + struct.pack("<I", len(spec)) + spec


def extend(value: bytes, digest: bytes) -> bytes:
    return hashlib.sha256(value + digest).digest()


def firmware_events() -> list[tuple[int, int, bytes]]:
    """A short boot: something in every PCR from 0 to 7, and a separator in each."""
    boot = [(pcr, 0x0000000D if pcr == 4 else 0x80000002, b"measured %d" % pcr) for pcr in range(8)]
    return [*boot, *((pcr, 0x00000004, bytes(4)) for pcr in range(8)), (11, 0x0000000D, b"kernel")]


def firmware_log(events: list[tuple[int, int, bytes]] | None = None) -> bytes:
    return log_header() + b"".join(event(*item) for item in events or firmware_events())


def userspace_log(records: list[tuple[int, bytes]]) -> bytes:
    """systemd's log for these (PCR, data)."""
    return b"".join(
        b"\x1e"
        + canonical_json(
            {
                "pcr": pcr,
                "digests": [{"hashAlg": "sha256", "digest": hashlib.sha256(data).hexdigest()}],
                "content_type": "systemd",
                "content": {"string": data.decode(), "bootId": "0" * 32, "timestamp": 1},
            }
        )
        + b"\n"
        for pcr, data in records
    )


PHASES = [b"enter-initrd", b"leave-initrd", b"sysinit", b"ready"]


def site(**changes: object) -> SiteConfig:
    """A site's configuration."""
    base = SiteConfig(
        data_center="dc1",
        registrar_url="https://registrar.test:8443",
        registrar_ca="-----BEGIN CERTIFICATE-----\n",
        operator=Principal.self_authenticating(spki(OPERATOR)),
        operator_key=spki(RECOVERY),
        node_reward_type="type1",
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def boot_pcrs(document: bytes, volume: bytes = b"volume key") -> dict[int, bytes]:
    """What an honest boot leaves in the quoted PCRs."""
    pcrs = dict.fromkeys(range(24), bytes(32))
    for pcr, _, data in firmware_events():
        pcrs[pcr] = extend(pcrs[pcr], hashlib.sha256(data).digest())
    for phase in PHASES:
        pcrs[11] = extend(pcrs[11], hashlib.sha256(phase).digest())
    pcrs[12] = extend(bytes(32), hashlib.sha256(document).digest())
    pcrs[15] = extend(bytes(32), hashlib.sha256(volume).digest())
    return {index: pcrs[index] for index in QUOTED_PCRS}


def release(version: str = "1.0.0", variant: Variant = Variant.RELEASE) -> Release:
    """The release that ``boot_pcrs`` boots."""
    pcrs = boot_pcrs(b"")
    values, value = {}, extend(bytes(32), hashlib.sha256(b"kernel").digest())
    for phase, words in zip(BootPhase, PHASES, strict=True):
        value = extend(value, hashlib.sha256(words).digest())
        values[phase] = value
    return Release(
        version=version,
        variant=variant,
        root_hash=bytes(32),
        kernel_command_line="quiet",
        artefacts={},
        security_version=1,
        rollback_floor=1,
        pcrs={
            "sha256": {4: pcrs[4], 7: pcrs[7], 12: bytes(32), 13: bytes(32)},
            "sha384": dict.fromkeys((4, 7, 12, 13), bytes(48)),
        },
        pcr11={"sha256": values, "sha384": dict.fromkeys(BootPhase, bytes(48))},
        secure_boot_off={
            "sha256": dict.fromkeys((4, 7), bytes(32)),
            "sha384": dict.fromkeys((4, 7), bytes(48)),
        },
        accepted_pcr7=(
            AcceptedPcr7(name="before the change of db", sha256=b"\x07" * 32, sha384=bytes(48)),
            AcceptedPcr7(name="enrolled", sha256=pcrs[7], sha384=bytes(48)),
        ),
        keys=ReleaseKeys(db=bytes(32), pcr=(bytes(32),), release=_release_key_id(), verity=bytes(32)),
        source_commit="0" * 40,
        source_date_epoch=1_767_225_600,
    )


def _release_key_id() -> bytes:
    return hashlib.sha256(spki(RELEASE_KEY)).digest()


def write_release(path: Path, made: Release) -> Path:
    """The manifest, ``release.sig`` beside it, and the public key ``release.pub.pem``, which is returned."""
    document = made.to_bytes()
    path.write_bytes(document)
    signature = ReleaseSignature(
        key=_release_key_id(), algorithm="ed25519", signature=RELEASE_KEY.sign(signed_message(document))
    )
    path.with_name("release.sig").write_bytes(signatures_to_bytes([signature]))
    public = path.with_name("release.pub.pem")
    public.write_bytes(
        RELEASE_KEY.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return public


def inventory() -> dict[str, object]:
    """A machine that meets the profile gen1."""
    return {
        "system": {"manufacturer": "Dell Inc.", "product": "PowerEdge R7525"},
        "cpu": {
            "model": "AMD EPYC 7302 16-Core Processor",
            "sockets": 2,
            "cores": 32,
            "threads": 64,
            "flags": ["svm", "sev"],
        },
        "memory": {
            "bytes": 540_000_000_000,
            "dimms": [{"size": 32 << 30, "part": "HMA84", "manufacturer": "Hynix"}] * 16,
        },
        "disks": [{"model": "NVMe 6.4", "bytes": 6_400_000_000_000, "transport": "nvme", "rotational": False}]
        * 5,
        "nics": [{"driver": "bnxt_en", "speed_mbit": 10000, "pci": "0000:41:00.0"}],
        "tpm": {"manufacturer": "TEST", "model": "synthetic", "firmware": "1.2"},
        "virtualization": "none",
    }


def report(changed: dict[str, object] | None = None, measurements: dict[str, object] | None = None) -> bytes:
    """A fingerprint report in canonical CBOR."""
    value = {
        "version": 1,
        "inventory": inventory() if changed is None else changed,
        "measurements": measurements or {},
    }
    return cbor2.dumps(value, canonical=True)


@cache
def node_keys(seed: int = 1) -> NodeKeys:
    """The public keys of a node; another seed, other keys."""
    key = node_secret(seed)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name("node"))
        .issuer_name(name("node"))
        .public_key(key.public_key())
        .serial_number(seed)
        .not_valid_before(START)
        .not_valid_after(END)
        .sign(key, None)
    )
    return NodeKeys(
        signing=spki(key),
        tls_certificate=certificate.public_bytes(serialization.Encoding.DER),
        committee=SecretKey(seed.to_bytes(32, "big")).public_key,
    )


def node_secret(seed: int) -> ed25519.Ed25519PrivateKey:
    """The signing key of a node, which its TLS certificate has too."""
    return ed25519.Ed25519PrivateKey.from_private_bytes(seed.to_bytes(32, "big"))


def key_proofs(qualifying: bytes, keys: NodeKeys) -> KeyProofs:
    """What the keys of ``node_keys`` sign, each of whatever seed it was made from (else of 1)."""
    known = {seed: node_keys(seed) for seed in range(1, 5)}

    def seed_of(part: str) -> int:
        return next((s for s, k in known.items() if getattr(k, part) == getattr(keys, part)), 1)

    message = possession_message(qualifying)
    return KeyProofs(
        signing=node_secret(seed_of("signing")).sign(message),
        tls=node_secret(seed_of("tls_certificate")).sign(message),
        committee=SecretKey(seed_of("committee").to_bytes(32, "big")).sign(message),
    )


def quote_bytes(
    qualifying: bytes,
    pcrs: dict[int, bytes],
    *,
    magic: int = 0xFF544347,
    kind: int = 0x8018,
    clock: int = 1000,
    reset_count: int = 1,
    restart_count: int = 0,
    bank: int = 0x000B,
    selected: tuple[int, ...] = QUOTED_PCRS,
) -> bytes:
    """A TPMS_ATTEST."""
    bits = sum(1 << index for index in selected).to_bytes(3, "little")
    digest = hashlib.sha256(b"".join(pcrs[index] for index in sorted(pcrs))).digest()
    return (
        struct.pack(">IH", magic, kind)
        + sized(b"\x00\x0b" + bytes(32))
        + sized(qualifying)
        + struct.pack(">QIIBQ", clock, reset_count, restart_count, 1, 0x0001000200030004)
        + struct.pack(">IHB", 1, bank, 3)
        + bits
        + sized(digest)
    )


def sign_quote(key: ec.EllipticCurvePrivateKey, attest: bytes) -> bytes:
    """A TPMT_SIGNATURE: ECDSA with SHA-256."""
    r, s = decode_dss_signature(key.sign(attest, ec.ECDSA(hashes.SHA256())))
    return struct.pack(">HH", 0x0018, 0x000B) + sized(r.to_bytes(32, "big")) + sized(s.to_bytes(32, "big"))


def activate(key: CertificateKey, ak_name: bytes, blob: bytes, encrypted: bytes) -> bytes:
    """TPM2_ActivateCredential in software, written from the specification's other side."""
    alg, bits = 0x000B, 128
    if isinstance(key, rsa.RSAPrivateKey):
        oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), label=b"IDENTITY\0")
        seed = key.decrypt(encrypted[2:], oaep)
    else:
        width = key.curve.key_size // 8
        if width == 48:
            alg, bits = 0x000C, 256
        x, y = encrypted[4 : 4 + width], encrypted[6 + width :]
        point = ec.EllipticCurvePublicNumbers(
            int.from_bytes(x, "big"), int.from_bytes(y, "big"), key.curve
        ).public_key()
        ours = key.public_key().public_numbers().x.to_bytes(width, "big")
        size = hashlib.new({0x0B: "sha256", 0x0C: "sha384"}[alg]).digest_size
        seed = kdfe(alg, key.exchange(ec.ECDH(), point), b"IDENTITY", x + ours, size * 8)
    hash_name = {0x0B: "sha256", 0x0C: "sha384"}[alg]
    size = hashlib.new(hash_name).digest_size
    mac, identity = blob[4 : 4 + size], blob[4 + size :]
    mac_key = kdfa(alg, seed, b"INTEGRITY", b"", size * 8)
    if not hmac.compare_digest(mac, hmac.digest(mac_key, identity + ak_name, hash_name)):
        raise ValueError("TPM_RC_INTEGRITY")
    block = Cipher(
        algorithms.AES(kdfa(alg, seed, b"STORAGE", ak_name, bits)),
        modes.ECB(),  # noqa: S305
    ).encryptor()
    plain, feedback = b"", bytes(16)
    for start in range(0, len(identity), 16):
        part = identity[start : start + 16]
        plain += bytes(a ^ b for a, b in zip(part, block.update(feedback), strict=False))
        feedback = part
    return plain[2:]


def new_ak() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@dataclass(kw_only=True)
class Machine:
    """An honest machine. Tests change its fields, or what its methods return."""

    number: int = 0
    site: SiteConfig = field(default_factory=site)
    ak: ec.EllipticCurvePrivateKey = field(default_factory=new_ak)
    keys: NodeKeys = field(default_factory=node_keys)
    boot_id: str = "boot-1"
    release: str = "1.0.0"
    clock: int = 1000
    reset_count: int = 1
    made_this_boot: bool = True
    creation_proven: bool = True
    luks_uuid: str = "11111111-2222-3333-4444-555555555555"
    volume: bytes = b"volume key"
    fingerprint: bytes = field(default_factory=report)
    memory_encryption: str = "active"
    addresses: tuple[IpAddress, ...] = (IPv6Address("2001:db8::7"),)
    recovery: bytes = b""

    @property
    def ek(self) -> rsa.RSAPrivateKey:
        return rsa_key(self.number)

    @property
    def ak_area(self) -> bytes:
        return ak_public(self.ak.public_key())

    @property
    def pcrs(self) -> dict[int, bytes]:
        return boot_pcrs(self.site.to_bytes(), self.volume)

    def request(self) -> Request:
        document = self.site.to_bytes()
        return Request(
            ek_public=rsa_public(self.ek.public_key()),
            ek_certificates=(issuing().issue(self.ek.public_key()), issuing().der),
            ak_public=self.ak_area,
            site_document=document,
            site_signature=SITE_KEY.sign(SIGNATURE_DOMAIN + document),
        )

    @property
    def id(self) -> str:
        return hashlib.sha256(rsa_public(self.ek.public_key())).hexdigest()

    def secret(self, challenge: Challenge) -> bytes:
        ak_name = b"\x00\x0b" + hashlib.sha256(self.ak_area).digest()
        return activate(self.ek, ak_name, challenge.credential_blob, challenge.encrypted_secret)

    def statement(self) -> Statement:
        return Statement(
            boot_id=self.boot_id,
            release=self.release,
            keys=self.keys,
            volume=StateVolume(
                mode=Mode.OPEN,
                luks_uuid=self.luks_uuid,
                made_this_boot=self.made_this_boot,
                policy_keys=(b"p" * 32,),
                policy_pcrs=(7, 11, 12, 13, 15),
                floor=1,
                creation_proven=self.creation_proven,
            ),
            recovery=self.recovery or recovery_blob(self.id, self.luks_uuid, self.site.operator_key),
            memory_encryption=self.memory_encryption,
            fingerprint=self.fingerprint,
            addresses=self.addresses,
        )

    def evidence(
        self,
        *,
        session: str,
        nonce: bytes,
        secret: bytes,
        statement: bytes | None = None,
        pcrs: dict[int, bytes] | None = None,
        signer: ec.EllipticCurvePrivateKey | None = None,
    ) -> Evidence:
        """Evidence for one challenge."""
        stated = self.statement().to_bytes() if statement is None else statement
        values = self.pcrs if pcrs is None else pcrs
        qualifying = qualifying_data(nonce, stated)
        quote = quote_bytes(qualifying, values, clock=self.clock, reset_count=self.reset_count)
        return Evidence(
            session=session,
            statement=stated,
            secret_proof=secret_proof(secret, qualifying),
            key_proofs=key_proofs(qualifying, self.keys),
            quote=quote,
            signature=sign_quote(signer or self.ak, quote),
            pcrs=values,
            firmware_log=firmware_log(),
            userspace_log=userspace_log([(11, phase) for phase in PHASES]),
        )

    def answer(self, challenge: Challenge) -> Evidence:
        return self.evidence(session=challenge.session, nonce=challenge.nonce, secret=self.secret(challenge))

    def locked_statement(self, fresh_key: bytes) -> LockedStatement:
        """What the machine states while its state is locked."""
        return LockedStatement(
            boot_id=self.boot_id,
            release=self.release,
            luks_uuid=self.luks_uuid,
            recovery=self.recovery or recovery_blob(self.id, self.luks_uuid, self.site.operator_key),
            fresh_key=fresh_key,
            reason="the TPM was cleared",
            memory_encryption=self.memory_encryption,
            fingerprint=self.fingerprint,
        )

    def ask(
        self,
        challenge: Challenge,
        fresh_key: bytes,
        *,
        statement: bytes | None = None,
        pcrs: dict[int, bytes] | None = None,
    ) -> LockedEvidence:
        """Evidence of the locked machine for one challenge."""
        stated = self.locked_statement(fresh_key).to_bytes() if statement is None else statement
        values = {**self.pcrs, 15: bytes(32)} if pcrs is None else pcrs
        qualifying = recovery_qualifying_data(challenge.nonce, stated)
        quote = quote_bytes(qualifying, values, clock=self.clock, reset_count=self.reset_count)
        return LockedEvidence(
            session=challenge.session,
            statement=stated,
            secret_proof=secret_proof(self.secret(challenge), qualifying),
            quote=quote,
            signature=sign_quote(self.ak, quote),
            pcrs=values,
            firmware_log=firmware_log(),
            userspace_log=userspace_log([(11, phase) for phase in PHASES]),
        )

    def clear_tpm(self) -> None:
        """TPM2_Clear and a reboot: the endorsement and attestation keys stay, the counters begin anew."""
        self.reboot()
        self.reset_count, self.clock = 0, 10
        # The running system seals the volume anew: no later boot can prove its creation.
        self.creation_proven = False

    def reboot(self) -> None:
        """The next boot of the same machine."""
        self.boot_id += "+"
        self.reset_count += 1
        self.clock += 60_000
        self.made_this_boot = False


@cache
def recovery_blob(machine: str, luks_uuid: str, operator_key: bytes) -> bytes:
    """What the header of a state volume holds; always the same for the same volume."""
    box = seal_to(operator_key, RECOVERY_KEY.value, recovery_context(machine=machine, volume=luks_uuid))
    blob = RecoveryBlob(
        keyslot=1,
        operator_key=hashlib.sha256(operator_key).digest(),
        machine=machine,
        volume=luks_uuid,
        box=box,
    )
    return blob.to_bytes()


def flipped(data: bytes, at: int = -1) -> bytes:
    """The same bytes with one bit of one byte changed."""
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


def site_key_pem() -> bytes:
    return SITE_KEY.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def pem(der: bytes) -> bytes:
    """A certificate as PEM."""
    return x509.load_der_x509_certificate(der).public_bytes(serialization.Encoding.PEM)


def attributes(*wanted: Attribute) -> int:
    return int(sum(wanted))


def later(days: int) -> datetime:
    return START + timedelta(days=days)
