"""Boxes: a short secret, encrypted to the holder of an elliptic-curve key.

    ephemeral key on the recipient's curve → ECDH → HKDF-SHA256 → AES-256-GCM

    box  = version (1) ‖ curve (1: P-256, 2: secp256k1) ‖ ephemeral point (65) ‖ ciphertext ‖ tag (16)
    info = "nodeos-box-v1\\0" ‖ curve (1) ‖ length of context (8, big-endian) ‖ context
           ‖ ephemeral point (65) ‖ recipient's point (65)
    key (32) ‖ nonce (12) = HKDF-SHA256(secret = x-coordinate, no salt, info); associated data = context

The context says what the secret is for; a box opens under the very same context only. Each box has its own
ephemeral key, so a key and a nonce are never used twice. A box does not tell who made it: anyone who knows
the public key can make one.

Why not RFC 9180 (HPKE): the library's has P-256 but not secp256k1, and wants the private key as an object in
memory, while an operator's key stays on its token, which only gives the raw secret. This is the same
construction (DHKEM in base mode: both public keys and the context bound in the key schedule) from the
library's ECDH, HKDF and AES-GCM; no primitive is our own.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from hsm.agreement import POINT_BYTES, KeyAgreement, parse_agreement_key, parse_point, point_of
from nodeos.core.errors import NodeosError
from nodeos.core.wire import ParseError

DOMAIN = b"nodeos-box-v1\0"
VERSION = 1
HIGHEST_PLAINTEXT = 4096
_CURVES: dict[int, ec.EllipticCurve] = {1: ec.SECP256R1(), 2: ec.SECP256K1()}
_HEADER, _TAG = 2 + POINT_BYTES, 16


class BoxError(NodeosError):
    """A box that this key does not open under this context. It is not told which of the two is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A box taken apart. ``ephemeral`` is a point that lies on the curve; ``sealed`` ends with the tag."""

    curve: int
    ephemeral: bytes
    sealed: bytes

    def to_bytes(self) -> bytes:
        return bytes((VERSION, self.curve)) + self.ephemeral + self.sealed

    @classmethod
    def parse(cls, blob: bytes, what: str = "box") -> Box:
        """Raises ParseError, or UsageError for an ephemeral key that is no point of the curve."""
        low, high = _HEADER + _TAG + 1, _HEADER + _TAG + HIGHEST_PLAINTEXT
        if not low <= len(blob) <= high:
            raise ParseError(f"{what}: {len(blob)} bytes, not between {low} and {high}")
        if blob[0] != VERSION:
            raise ParseError(f"{what}: version {blob[0]} is not known, only {VERSION}")
        if blob[1] not in _CURVES:
            raise ParseError(f"{what}: curve {blob[1]} is not known")
        box = cls(curve=blob[1], ephemeral=blob[2:_HEADER], sealed=blob[_HEADER:])
        parse_point(_CURVES[box.curve], box.ephemeral)
        return box


def seal_to(public_key: bytes, plaintext: bytes, context: bytes) -> bytes:
    """A box (bytes) that only the holder of ``public_key`` (DER) opens, under the same ``context`` only.

    ``plaintext`` has 1 to 4096 bytes. Raises UsageError for a key that can't receive secrets.
    """
    if not 1 <= len(plaintext) <= HIGHEST_PLAINTEXT:
        raise ValueError(f"a box holds 1 to {HIGHEST_PLAINTEXT} bytes, not {len(plaintext)}")
    recipient = parse_agreement_key(public_key, "the recipient's key")
    ephemeral = ec.generate_private_key(recipient.curve)
    curve, point = _number(recipient.curve), point_of(ephemeral.public_key())
    secret = ephemeral.exchange(ec.ECDH(), recipient)
    key, nonce = _derive(secret, _info(curve, context, point, point_of(recipient)))
    sealed = AESGCM(key).encrypt(nonce, plaintext, context)
    return Box(curve=curve, ephemeral=point, sealed=sealed).to_bytes()


def open_box(agreement: KeyAgreement, blob: bytes, context: bytes) -> bytes:
    """What was sealed to this key under ``context``.

    Raises UsageError (ParseError) for a broken box, BoxError for one that does not open, and what the key
    raises (TokenError if the token was taken out).
    """
    box = Box.parse(blob)
    recipient = parse_agreement_key(agreement.public_key, "the key")
    if _number(recipient.curve) != box.curve:
        raise BoxError(
            f"the box is for a key on {_CURVES[box.curve].name}, and this key is on {recipient.curve.name}",
            hint="use the key that the box was made for",
        )
    secret = agreement.exchange(box.ephemeral)
    key, nonce = _derive(secret, _info(box.curve, context, box.ephemeral, point_of(recipient)))
    try:
        return AESGCM(key).decrypt(nonce, box.sealed, context)
    except InvalidTag:
        raise BoxError(
            "the box does not open: it is for another key or purpose, or was changed",
            hint="use the key that the box was made for, and the box of this very machine and volume",
        ) from None


def _number(curve: ec.EllipticCurve) -> int:
    return next(number for number, known in _CURVES.items() if known.name == curve.name)


def _info(curve: int, context: bytes, ephemeral: bytes, recipient: bytes) -> bytes:
    return DOMAIN + bytes((curve,)) + len(context).to_bytes(8, "big") + context + ephemeral + recipient


def _derive(secret: bytes, info: bytes) -> tuple[bytes, bytes]:
    """Key (32 bytes) and nonce (12)."""
    derived = HKDF(algorithm=SHA256(), length=44, salt=None, info=info).derive(secret)
    return derived[:32], derived[32:]
