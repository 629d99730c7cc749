"""TPM2_MakeCredential in software: a secret that only one TPM can read, and only for one key's name.

Source: TCG "TPM 2.0 Library", Part 1: 11.4.10 (KDFa, KDFe), 24 (credential protection), annexes B.10.4
(RSA) and C.6.1 (ECC).
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from nodeos.core.wire import ParseError
from provisioning.verify.tpm import DIGEST_NAMES, Alg, Public, digest, digest_size

HASHES: dict[int, Callable[[], hashes.HashAlgorithm]] = {
    Alg.SHA256: hashes.SHA256,
    Alg.SHA384: hashes.SHA384,
    Alg.SHA512: hashes.SHA512,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """``blob`` is a TPM2B_ID_OBJECT, ``encrypted_secret`` a TPM2B_ENCRYPTED_SECRET, sizes included."""

    blob: bytes
    encrypted_secret: bytes


def kdfa(alg: int, key: bytes, label: bytes, context: bytes, bits: int) -> bytes:
    """KDFa of Part 1, 11.4.10.2. ``label`` is without its final zero byte, ``context`` is U and V
    joined; ``bits`` is a multiple of 8."""
    result = b""
    counter = 0
    while len(result) * 8 < bits:
        counter += 1
        message = counter.to_bytes(4, "big") + label + b"\0" + context + bits.to_bytes(4, "big")
        result += hmac.digest(key, message, DIGEST_NAMES[Alg(alg)])
    return result[: bits // 8]


def kdfe(alg: int, z: bytes, label: bytes, parties: bytes, bits: int) -> bytes:
    """KDFe of Part 1, 11.4.10.3. ``z`` is the x-coordinate of the shared point, padded to the field;
    ``parties`` the x-coordinates of U and V."""
    result = b""
    counter = 0
    while len(result) * 8 < bits:
        counter += 1
        result += digest(alg, counter.to_bytes(4, "big") + z + label + b"\0" + parties)
    return result[: bits // 8]


def make_credential(ek: Public, name: bytes, secret: bytes) -> Credential:
    """Wrap ``secret`` (at most the digest size of the EK's name algorithm) for the key called ``name``.

    Raises ParseError if the endorsement key can't receive one.
    """
    if ek.name_alg not in HASHES or not ek.symmetric_bits:
        raise ParseError("endorsement key: not a storage key with SHA-256, SHA-384 or SHA-512")
    if len(secret) > digest_size(ek.name_alg):
        raise ValueError("the secret is longer than the endorsement key's digest")
    seed, encrypted = _seed(ek)
    size = digest_size(ek.name_alg)
    inner_key = kdfa(ek.name_alg, seed, b"STORAGE", name, ek.symmetric_bits)
    identity = _aes_cfb(inner_key, _sized(secret))
    mac_key = kdfa(ek.name_alg, seed, b"INTEGRITY", b"", size * 8)
    mac = hmac.digest(mac_key, identity + name, DIGEST_NAMES[Alg(ek.name_alg)])
    return Credential(blob=_sized(_sized(mac) + identity), encrypted_secret=_sized(encrypted))


def _seed(ek: Public) -> tuple[bytes, bytes]:
    """A fresh seed, and the form in which it travels to the TPM."""
    key = ek.key()
    size = digest_size(ek.name_alg)
    if isinstance(key, rsa.RSAPublicKey):
        seed = secrets.token_bytes(size)
        algorithm = HASHES[ek.name_alg]()
        oaep = padding.OAEP(padding.MGF1(algorithm), algorithm, label=b"IDENTITY\0")
        return seed, key.encrypt(seed, oaep)
    width = (key.curve.key_size + 7) // 8
    ephemeral = ec.generate_private_key(key.curve)
    ours = ephemeral.public_key().public_numbers()
    theirs = key.public_numbers()
    z = ephemeral.exchange(ec.ECDH(), key)
    our_x, our_y = ours.x.to_bytes(width, "big"), ours.y.to_bytes(width, "big")
    seed = kdfe(ek.name_alg, z, b"IDENTITY", our_x + theirs.x.to_bytes(width, "big"), size * 8)
    return seed, _sized(our_x) + _sized(our_y)


def _aes_cfb(key: bytes, plain: bytes) -> bytes:
    """AES-CFB-128 with a zero IV, made of single blocks: the library's own CFB moves between its modules."""
    block = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305
    feedback = bytes(16)
    result = b""
    for start in range(0, len(plain), 16):
        part = plain[start : start + 16]
        feedback = bytes(a ^ b for a, b in zip(part, block.update(feedback), strict=False))
        result += feedback
    return result


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data
