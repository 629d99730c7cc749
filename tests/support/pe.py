"""Small PE images and disk images, made byte by byte, so that what is measured of them is known."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Mapping
from pathlib import Path

from nodeos.core.gpt import Partition, Table
from nodeos.core.layout import ESP_TYPE
from nodeos.core.run import find_tool, run

_LFANEW = 0x40
_OPTIONAL = _LFANEW + 4 + 20
_CHECKSUM = _OPTIONAL + 64
_CERTIFICATES = _OPTIONAL + 112 + 4 * 8
_LINUX = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
_PKCS7 = uuid.UUID("4aafd29d-68df-49ee-8aa9-347d375665a7")
MIB = 1 << 20


def make_pe(sections: Mapping[str, bytes], *, alignment: int = 512, tail: bytes = b"") -> bytes:
    """A PE32+ image with these sections in their order; each is padded with 0xCC to the file alignment.

    The padding is no zeroes, so that a reader that doesn't trim to the virtual size shows. ``tail`` follows the
    last section.
    """
    headers = -(-(_OPTIONAL + 240 + 40 * len(sections)) // alignment) * alignment
    table, body, address = b"", b"", 0x1000
    for name, data in sections.items():
        raw = data + b"\xcc" * (-len(data) % alignment)
        table += struct.pack(
            "<8sIIIIIIHHI",
            name.encode(),
            len(data),
            address,
            len(raw),
            headers + len(body),
            0,
            0,
            0,
            0,
            0x40000040,
        )
        body += raw
        address += -(-max(len(data), 1) // 0x1000) * 0x1000
    optional = struct.pack(
        "<HBBIIIIIQIIHHHHHHIIIIHHQQQQII",
        0x20B, 14, 0, 0, len(body), 0, 0x1000, 0x1000, 0x10000000, 0x1000, alignment, 0, 0, 0, 0, 1, 1, 0,
        address, headers, 0, 10, 0, 0, 0, 0, 0, 0, 16,
    ) + bytes(16 * 8)  # fmt: skip
    dos = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", _LFANEW)
    coff = b"PE\0\0" + struct.pack("<HHIIIHH", 0x8664, len(sections), 0, 0, 0, len(optional), 0x22E)
    return (dos + coff + optional + table).ljust(headers, b"\0") + body + tail


def sign_pe(image: bytes, *certificates: bytes) -> bytes:
    """The image as a signing tool leaves it: padded, with a certificate table, its directory entry, a checksum."""
    padded = image + bytes(-len(image) % 8)
    table = b""
    for certificate in certificates or (b"a PKCS #7 signature",):
        table += struct.pack("<IHH", 8 + len(certificate), 0x0200, 2) + certificate
        table += bytes(-len(table) % 8)
    signed = bytearray(padded + table)
    struct.pack_into("<II", signed, _CERTIFICATES, len(padded), len(table))
    struct.pack_into("<I", signed, _CHECKSUM, 0x12345678)
    return bytes(signed)


def without_signature_fields(image: bytes) -> bytes:
    """What Authenticode hashes of an unsigned image whose file holds nothing but headers and sections."""
    assert image[_CERTIFICATES : _CERTIFICATES + 8] == bytes(8), "not for signed images"
    kept = image[:_CHECKSUM] + image[_CHECKSUM + 4 : _CERTIFICATES] + image[_CERTIFICATES + 8 :]
    return kept + bytes(-len(image) % 8)


def make_disk(path: Path, files: Mapping[str, bytes] | None, *, esp_mib: int = 8) -> Path:
    """A GPT disk image with a Linux partition and, unless ``files`` is None, an EFI system partition of them."""
    first = 2 * MIB
    partitions = [Partition(number=1, type=_LINUX, uuid=uuid.UUID(int=1), start=MIB, size=MIB)]
    if files is not None:
        partitions.append(
            Partition(number=2, type=ESP_TYPE, uuid=uuid.UUID(int=2), start=first, size=esp_mib * MIB)
        )
    table = Table(
        size=first + (esp_mib + 1) * MIB, sector=512, uuid=uuid.UUID(int=0), partitions=tuple(partitions)
    )
    with path.open("wb") as file:
        file.write(table.primary())
        file.seek(table.backup_offset)
        file.write(table.backup())
    if files is None:
        return path
    volume = f"{path}@@{first}"
    mtools = {name: find_tool(name, package="mtools") for name in ("mformat", "mmd", "mcopy")}
    size = str(esp_mib * MIB // 512)
    run([mtools["mformat"], "-i", volume, "-T", size, "-h", "16", "-s", "32", "::"], what="making the ESP")
    made: set[str] = set()
    for name, data in files.items():
        for parent in reversed([str(item) for item in Path(name).parents if str(item) != "."]):
            if parent not in made:
                run([mtools["mmd"], "-i", volume, f"::{parent}"], what=f"making {parent}")
                made.add(parent)
        scratch = path.with_name("scratch")
        scratch.write_bytes(data)
        run([mtools["mcopy"], "-i", volume, scratch, f"::{name}"], what=f"writing {name}")
        scratch.unlink()
    return path


def make_auth(certificate: bytes, *, owner: bytes = bytes(range(16))) -> bytes:
    """A signed variable update (EFI_VARIABLE_AUTHENTICATION_2) with one certificate and no real signature."""
    signature = b"not a real signature"
    time_stamp = struct.pack("<HBBBBBBIhBB", 2026, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0)
    wrapper = struct.pack("<IHH", 24 + len(signature), 0x0200, 0x0EF1) + _PKCS7.bytes_le + signature
    return time_stamp + wrapper + signature_list(owner + certificate)


def signature_list(*entries: bytes) -> bytes:
    """EFI_SIGNATURE_LIST of EFI_CERT_X509_GUID with these EFI_SIGNATURE_DATA, all of one size."""
    kind = uuid.UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072").bytes_le
    each = len(entries[0])
    return kind + struct.pack("<III", 28 + each * len(entries), 0, each) + b"".join(entries)
