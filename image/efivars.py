"""Signs the updates (.auth files) of the Secure Boot variables PK, KEK, db and dbx, and applies them.

Source: UEFI 2.10, section 8.2.2 (EFI_VARIABLE_AUTHENTICATION_2). ``nodeos.core.efilists`` reads and writes the
signature lists in them. Every refusal is a UsageError. Nothing here depends on the clock: the time of an update is
given.
"""

from __future__ import annotations

import datetime
import struct
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from image import pkcs7
from image.pkcs7 import RsaSigner
from nodeos.core.efilists import (
    APPEND,
    ATTRIBUTES,
    EFI_GLOBAL,
    IMAGE_SECURITY_DATABASE,
    SHA256,
    VENDORS,
    X509,
    Entry,
    Update,
    efi_time,
    parse_lists,
    payload,
    to_lists,
)
from nodeos.core.errors import UsageError

__all__ = (
    "EFI_GLOBAL",
    "IMAGE_SECURITY_DATABASE",
    "SHA256",
    "VENDORS",
    "X509",
    "Entry",
    "RsaSigner",
    "Update",
    "Variable",
    "apply",
    "certificate_list",
    "hash_list",
    "parse_lists",
    "payload",
    "sign",
    "to_lists",
)


def certificate_list(certificate: x509.Certificate, owner: uuid.UUID) -> bytes:
    """An EFI_SIGNATURE_LIST with one X.509 certificate. Several certificates are several lists."""
    return to_lists([Entry(kind=X509, owner=owner, data=certificate.public_bytes(Encoding.DER))])


def hash_list(digests: Iterable[bytes], owner: uuid.UUID) -> bytes:
    """An EFI_SIGNATURE_LIST of SHA-256 Authenticode digests, in their order. Empty if there are none."""
    entries = [Entry(kind=SHA256, owner=owner, data=digest) for digest in digests]
    if any(len(entry.data) != 32 for entry in entries):
        raise UsageError("a SHA-256 hash for dbx has 32 bytes")
    return to_lists(entries)


def _message(name: str, time: datetime.datetime, data: bytes, *, append: bool) -> bytes:
    if name not in VENDORS:
        raise UsageError(f"{name!r} is no Secure Boot variable", hint=f"there are {', '.join(VENDORS)}")
    attributes = ATTRIBUTES | (APPEND if append else 0)
    head = name.encode("utf-16-le") + VENDORS[name].bytes_le + struct.pack("<I", attributes)
    return head + efi_time(time) + data


def sign(
    name: str, data: bytes, signer: RsaSigner, certificate: x509.Certificate, *,
    time: datetime.datetime, append: bool = False,
) -> bytes:  # fmt: skip
    """The .auth file that sets (or appends to) ``name``; PK and KEK are signed by PK, db and dbx by KEK or PK.

    ``time`` is in UTC; firmware drops its microseconds. The SignedData has no ContentInfo: older firmware reads
    no other form. Raises UsageError for an unknown name or lists that can't be read.
    """
    parse_lists(data)
    time = time.replace(microsecond=0)
    message = _message(name, time, data, append=append)
    signature = pkcs7.sign(signer, certificate, message=message, wrapped=False)
    return Update(time=time, signature=signature, data=data).to_bytes()


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """What firmware keeps of a variable: its value, and the time of the last update."""

    data: bytes
    time: datetime.datetime


def apply(
    name: str, current: Variable | None, auth: bytes, *, signers: Sequence[x509.Certificate], append: bool = False
) -> Variable:  # fmt: skip
    """The variable after firmware took the update, signed by one of ``signers`` (the enrolled PK or KEKs).

    Setting needs a time later than the last one. Appending doesn't, keeps the later time, and leaves out entries
    that are there already. Raises UsageError where firmware answers EFI_SECURITY_VIOLATION.
    """
    update = Update.parse(auth)
    added = parse_lists(update.data)
    message = _message(name, update.time, update.data, append=append)
    for index, certificate in enumerate(signers):
        try:
            pkcs7.verify(update.signature, certificate, message=message)
            break
        except UsageError:
            if index == len(signers) - 1:
                raise
    else:
        raise UsageError(f"no key is enrolled that could sign an update of {name}")
    if current is None:
        return Variable(data=update.data, time=update.time)
    if not append:
        if update.time <= current.time:
            raise UsageError(f"the update of {name} is not later than the one before it")
        return Variable(data=update.data, time=update.time)
    known = parse_lists(current.data)
    fresh = [entry for entry in added if entry not in known]
    return Variable(data=current.data + to_lists(fresh), time=max(current.time, update.time))
