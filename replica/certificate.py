"""Certificates: a pruned state tree and the committee's BLS signature of its root.

Source: interface specification, section "Certificate". Agents accept a certificate whose ``/time`` is
near their clock. Delegations from another subnet aren't accepted: this subnet is its own root.
"""

from __future__ import annotations

from dataclasses import dataclass

from hsm.bls import BlsError, SecretKey, verify
from nodeos.core.errors import NodeosError
from replica import cbor
from replica.hashing import STATE_ROOT_DOMAIN, read_leb128
from replica.tree import Path, Tree, TreeError, find, from_cbor, lookup, to_cbor

MAX_AGE = 5 * 60 * 10**9  # nanoseconds, to both sides


class CertificateError(NodeosError):
    """A certificate that doesn't hold. ``code`` is stable and for machines."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


def sign_root(key: SecretKey, root: bytes) -> bytes:
    """The signature, 48 bytes, of a root hash."""
    return key.sign(STATE_ROOT_DOMAIN + root)


def encode(tree: Tree, signature: bytes) -> bytes:
    """The CBOR of a certificate for a (pruned) tree whose root was signed."""
    return cbor.encode({"tree": to_cbor(tree), "signature": signature})


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate that was verified, and only such a one."""

    tree: Tree

    def lookup(self, *path: bytes) -> bytes | None:
        """The value at ``path``, None if proven absent. Raises CertificateError if it doesn't tell."""
        try:
            return lookup(self.tree, path)
        except TreeError as error:
            raise CertificateError("certificate.path", error.message) from error

    def find(self, *path: bytes) -> Tree | None:
        """The subtree at ``path``, None if proven absent. Raises CertificateError if it doesn't tell."""
        try:
            return find(self.tree, path)
        except TreeError as error:
            raise CertificateError("certificate.path", error.message) from error


def open_certificate(data: bytes, *, root_key: bytes, now: int) -> Certificate:
    """Verify a certificate under ``root_key`` (96 bytes); ``now`` in nanoseconds since 1970.

    Raises CertificateError: certificate.form, .delegation, .signature or .time.
    """
    try:
        fields = cbor.fields(cbor.decode(data), "certificate", frozenset({"tree", "signature", "delegation"}))
        tree = from_cbor(fields.get("tree"))
    except (cbor.CborError, TreeError) as error:
        raise CertificateError("certificate.form", error.message) from error
    if "delegation" in fields:
        raise CertificateError("certificate.delegation", "another subnet's certificate is not accepted")
    signature = fields.get("signature")
    if not isinstance(signature, bytes):
        raise CertificateError("certificate.form", "the signature is missing")
    try:
        verify(root_key, STATE_ROOT_DOMAIN + tree.digest, signature)
    except BlsError as error:
        raise CertificateError(
            "certificate.signature", f"not signed by the root key: {error.message}"
        ) from error
    certificate = Certificate(tree)
    _check_time(certificate.lookup(b"time"), now)
    return certificate


def _check_time(leaf: bytes | None, now: int) -> None:
    try:
        time = None if leaf is None else read_leb128(leaf)
    except ValueError:
        time = None
    if time is None:
        raise CertificateError("certificate.time", "it has no time")
    if abs(now - time) > MAX_AGE:
        seconds = (now - time) // 10**9
        raise CertificateError("certificate.time", f"it is {seconds} seconds old; compare the two clocks")


def state_path(*labels: str | bytes) -> Path:
    """A path from text and blobs."""
    return tuple(label.encode() if isinstance(label, str) else label for label in labels)
