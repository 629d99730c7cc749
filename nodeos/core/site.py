"""The site configuration: what one data centre tells its machines, signed by the network's site key.

It lies on the EFI system partition as ``nodeos/site.json`` and ``nodeos/site.sig``. The image carries the
public key; a node refuses a configuration that this key did not sign, and extends PCR 12 with the SHA-256
of the document before it uses it, so that every quote shows which configuration the node runs.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256K1, SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from nodeos.core.errors import Finding, RefusedError
from nodeos.core.principal import Principal
from nodeos.core.wire import Fields, ParseError, b64, canonical_json, parse_json, parse_text

SIGNATURE_DOMAIN = b"nodeos-site-v1\x00"
PCR = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """Static addresses of the node; ``SiteConfig.network`` is None for DHCP."""

    addresses: tuple[str, ...]
    gateways: tuple[str, ...]
    dns: tuple[str, ...]


class MemoryPolicy(StrEnum):
    """What becomes of a machine whose memory is not seen to be encrypted: told, or refused."""

    REPORT = "report"
    REQUIRE = "require"


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteConfig:
    """One data centre's settings. ``registrar_ca`` is the PEM certificate that signs the registrar's own.

    ``operator_key`` is the DER of the operator's recovery key (P-256 or secp256k1): the key of every state volume
    is encrypted to it before the volume holds anything, so without it no volume is made.
    """

    data_center: str
    registrar_url: str
    registrar_ca: str
    operator: Principal
    operator_key: bytes
    node_reward_type: str
    network: Network | None = None
    install_disk: str | None = None
    """The serial of the disk that is installed on; None for the largest empty one."""
    memory_encryption: MemoryPolicy = MemoryPolicy.REPORT

    def to_bytes(self) -> bytes:
        network = self.network
        return canonical_json(
            {
                "version": 1,
                "data_center": self.data_center,
                "registrar": {"url": self.registrar_url, "ca": self.registrar_ca},
                "operator": str(self.operator),
                "operator_key": b64(self.operator_key),
                "node_reward_type": self.node_reward_type,
                "memory_encryption": str(self.memory_encryption),
                "network": None
                if network is None
                else {
                    "addresses": list(network.addresses),
                    "gateways": list(network.gateways),
                    "dns": list(network.dns),
                },
                **({} if self.install_disk is None else {"install_disk": self.install_disk}),
            }
        )

    @classmethod
    def parse(cls, document: bytes, what: str = "site.json") -> SiteConfig:
        """Raises ParseError with the path of the first wrong field."""
        fields = parse_json(document, what, limit=1 << 16)
        fields.integer("version", low=1, high=1)
        registrar = fields.nested("registrar")
        network = None
        if fields.has("network"):
            part = fields.nested("network")
            network = Network(
                addresses=part.list_of("addresses", parse_text),
                gateways=part.list_of("gateways", parse_text),
                dns=part.list_of("dns", parse_text),
            )
            part.done()
        config = cls(
            data_center=fields.text("data_center", limit=64),
            registrar_url=registrar.text("url", limit=256),
            registrar_ca=registrar.text("ca", limit=8192),
            operator=Principal.parse(fields.text("operator")),
            operator_key=_operator_key(fields, what),
            node_reward_type=fields.text("node_reward_type", limit=16),
            network=network,
            install_disk=fields.text("install_disk", limit=128) if fields.has("install_disk") else None,
            memory_encryption=_memory_policy(fields.text("memory_encryption", limit=16), what),
        )
        registrar.done()
        fields.done()
        if not config.registrar_url.startswith("https://"):
            raise ParseError(f"{what}.registrar.url: must begin with https://")
        return config


def _memory_policy(text: str, what: str) -> MemoryPolicy:
    try:
        return MemoryPolicy(text)
    except ValueError as error:
        words = ", ".join(MemoryPolicy)
        raise ParseError(f"{what}.memory_encryption: {text!r} is not one of {words}") from error


def _operator_key(fields: Fields, what: str) -> bytes:
    """Raises ParseError for anything but the canonical DER of a key that secrets can be encrypted to."""
    path = f"{what}.operator_key"
    if not fields.has("operator_key"):
        raise ParseError(
            f"{path}: missing: this configuration was made before state volumes had a recovery key",
            hint="make the operator's recovery key with `nodeos operator init`, and the medium again with "
            "`nodeos media make --operator-key`",
        )
    der = fields.data("operator_key", limit=256)
    try:
        key = load_der_public_key(der)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ParseError(f"{path}: not a public key in DER") from error
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1 | SECP256K1):
        raise ParseError(f"{path}: neither a P-256 nor a secp256k1 key, so nothing can be encrypted to it")
    if key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != der:
        raise ParseError(f"{path}: not in the canonical form")
    return der


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedSite:
    """The document as it was signed, byte for byte, and its Ed25519 signature of 64 bytes."""

    document: bytes
    signature: bytes

    @property
    def digest(self) -> bytes:
        """SHA-256 of the document: what PCR 12 is extended with."""
        return hashlib.sha256(self.document).digest()

    def verify(self, site_key: Ed25519PublicKey) -> SiteConfig:
        """The configuration, once its signature holds. Raises RefusedError or ParseError."""
        try:
            site_key.verify(self.signature, SIGNATURE_DOMAIN + self.document)
        except InvalidSignature as error:
            finding = Finding(code="site.signature", message="the site key of this image did not sign it")
            raise RefusedError(
                "the site configuration is refused",
                (finding,),
                hint="make the medium again with `nodeos media make`, with the site key of this release",
            ) from error
        return SiteConfig.parse(self.document)
