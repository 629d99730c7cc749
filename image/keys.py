"""The keys of a build: Secure Boot, verity, the PCR policy, and the site key.

Each key is made apart, so that each can be replaced and kept apart. They are files here; keys on tokens are
the signing step of a later release. Directory layout (mode 0700): ``NAME.key`` PKCS#8 PEM, ``NAME.crt`` X.509
PEM, ``NAME.pub.pem`` public key PEM.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.x509.oid import NameOID

from nodeos.core.errors import UsageError
from nodeos.core.files import read_file, write_atomic
from nodeos.core.release import Variant

_YEARS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildKeys:
    """Where the keys of a build lie."""

    directory: Path

    def path(self, name: str) -> Path:
        return self.directory / name

    @property
    def secure_boot_key(self) -> Path:
        return self.path("secure-boot.key")

    @property
    def secure_boot_certificate(self) -> Path:
        return self.path("secure-boot.crt")

    @property
    def verity_key(self) -> Path:
        return self.path("verity.key")

    @property
    def verity_certificate(self) -> Path:
        return self.path("verity.crt")

    @property
    def pcr_key(self) -> Path:
        return self.path("pcr.key")

    @property
    def pcr_public_key(self) -> Path:
        return self.path("pcr.pub.pem")

    @property
    def site_key(self) -> Path:
        return self.path("site.key")

    @property
    def site_public_key(self) -> Path:
        return self.path("site.pub.pem")

    @property
    def variant_file(self) -> Path:
        """Says which variant the keys are for: a debug image signed like a release could open a node's state."""
        return self.path("VARIANT")

    def missing(self) -> list[Path]:
        """The files that are not there."""
        wanted = [
            self.secure_boot_key, self.secure_boot_certificate, self.verity_key, self.verity_certificate,
            self.pcr_key, self.pcr_public_key, self.site_key, self.site_public_key,
        ]  # fmt: skip
        return [path for path in wanted if not path.is_file()]

    def require(self, variant: Variant) -> None:
        """Raises UsageError if a key is missing, or if the keys are for another variant."""
        missing = self.missing()
        if missing:
            raise UsageError(
                f"keys are missing: {', '.join(str(path) for path in missing)}",
                hint=f"make them with `nodeos image keygen --variant {variant} {self.directory}`",
            )
        found = read_file(self.variant_file, "the variant of the keys").decode("ascii", "replace").strip()
        if found != variant:
            raise UsageError(
                f"the keys in {self.directory} are for the {found} variant, not for {variant}",
                hint="an image with a shell must never be signed like a release; make keys of its own",
            )


def generate(directory: Path, variant: Variant = Variant.RELEASE) -> BuildKeys:
    """Make all keys of a ``variant``'s builds in ``directory``, which must not hold any yet.

    RSA-2048 for what firmware and TPMs check (all of them can), Ed25519 for the site key.
    """
    if directory.exists() and any(directory.iterdir()):
        raise UsageError(f"{directory} is not empty", hint="keys are never overwritten; name another folder")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)
    keys = BuildKeys(directory=directory)
    write_atomic(keys.variant_file, f"{variant}\n".encode())
    for name, purpose in (("secure-boot", "nodeos Secure Boot"), ("verity", "nodeos root verity")):
        key = generate_private_key(public_exponent=65537, key_size=2048)
        _write_private(directory / f"{name}.key", key)
        certificate = _self_signed(key, purpose)
        write_atomic(directory / f"{name}.crt", certificate.public_bytes(serialization.Encoding.PEM))
    pcr = generate_private_key(public_exponent=65537, key_size=2048)
    _write_private(keys.pcr_key, pcr)
    write_atomic(keys.pcr_public_key, _public_pem(pcr))
    site = Ed25519PrivateKey.generate()
    _write_private(keys.site_key, site)
    write_atomic(keys.site_public_key, _public_pem(site))
    return keys


def keys_of(work: Path, variant: Variant) -> BuildKeys:
    """The keys that builds of ``variant`` in ``work`` use by default, made if there are none yet."""
    directory = work / ("keys" if variant is Variant.RELEASE else f"keys-{variant}")
    return BuildKeys(directory=directory) if directory.exists() else generate(directory, variant)


def _write_private(path: Path, key: RSAPrivateKey | Ed25519PrivateKey) -> None:
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_atomic(path, pem, mode=0o600)


def _public_pem(key: RSAPrivateKey | Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _self_signed(key: RSAPrivateKey, common_name: str) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=365 * _YEARS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
