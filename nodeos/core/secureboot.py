"""What Secure Boot's variables become when an update is applied, and the PCR 7 that they give. Pure.

Sources: TCG PC Client Platform Firmware Profile 1.06, section 3.3.4.8 (PCR 7) and 10.4.1 (UEFI_VARIABLE_DATA);
UEFI 2.10, section 8.2.2 (what is signed of an update, and what appending does).
"""

from __future__ import annotations

import hashlib
import struct
import uuid
from collections.abc import Mapping, Sequence

from nodeos.core.efilists import (
    APPEND,
    ATTRIBUTES,
    EFI_GLOBAL,
    IMAGE_SECURITY_DATABASE,
    SHA256,
    VENDORS,
    X509,
    Update,
    efi_time,
    parse_lists,
    to_lists,
)
from nodeos.core.errors import UsageError

_SEPARATOR = bytes(4)


def update_message(name: str, update: Update, *, append: bool) -> bytes:
    """What the signature of an update is over."""
    attributes = ATTRIBUTES | (APPEND if append else 0)
    head = name.encode("utf-16-le") + VENDORS[name].bytes_le + struct.pack("<I", attributes)
    return head + efi_time(update.time) + update.data


def updated(current: bytes, data: bytes, *, append: bool) -> bytes:
    """The variable's value after the update: firmware appends only what isn't there yet."""
    if not append:
        return data
    known = parse_lists(current)
    return current + to_lists([entry for entry in parse_lists(data) if entry not in known])


def pcr7(lists: Mapping[str, bytes], authorities: Sequence[bytes], bank: str = "sha256") -> bytes:
    """PCR 7 with Secure Boot on and these values of PK, KEK, db and dbx.

    ``authorities`` are the signers' certificates (DER) of the images in the order in which they start; firmware
    measures each once. Raises UsageError if it would refuse one of them.
    """
    variables = [(EFI_GLOBAL, "SecureBoot", b"\x01")]
    variables += [(vendor, name, lists.get(name, b"")) for name, vendor in VENDORS.items()]
    measured = [_variable_data(*variable) for variable in variables] + [_SEPARATOR]
    for certificate in dict.fromkeys(authorities):
        measured.append(_variable_data(IMAGE_SECURITY_DATABASE, "db", _authority(lists, certificate)))
    value = bytes(hashlib.new(bank).digest_size)
    for data in measured:
        value = hashlib.new(bank, value + hashlib.new(bank, data).digest()).digest()
    return value


def lets_start(lists: Mapping[str, bytes], certificate: bytes, digest: bytes | None = None) -> str | None:
    """Why firmware with these variables refuses what this certificate signed; None if it doesn't.

    ``digest`` is the image's Authenticode digest (SHA-256).
    """
    forbidden = parse_lists(lists.get("dbx", b""))
    if digest is not None and any(entry.data == digest for entry in forbidden if entry.kind == SHA256):
        return "its hash is in dbx"
    if any(entry.data == certificate for entry in forbidden if entry.kind == X509):
        return "its signer's certificate is in dbx"
    if all(entry.data != certificate for entry in parse_lists(lists.get("db", b"")) if entry.kind == X509):
        return "its signer's certificate is not in db"
    return None


def _authority(lists: Mapping[str, bytes], certificate: bytes) -> bytes:
    why = lets_start(lists, certificate)
    if why is not None:
        raise UsageError(f"firmware would not start an image: {why}")
    return next(e for e in parse_lists(lists["db"]) if e.kind == X509 and e.data == certificate).to_bytes()


def _variable_data(vendor: uuid.UUID, name: str, data: bytes) -> bytes:
    return vendor.bytes_le + struct.pack("<QQ", len(name), len(data)) + name.encode("utf-16-le") + data
