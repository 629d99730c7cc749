"""Reads PE images: sections, the Authenticode digest, the certificate table. ``image.pe`` changes them.

Sources: Microsoft "PE Format" (headers, attribute certificate table) and "Windows Authenticode Portable Executable
Signature Format" (digest). Every offset is checked before it is used, and a layout that these documents leave open
(gaps, overlaps, a certificate table that isn't last) is refused: no byte of a file escapes the digest but those of
the signature itself. All offsets and sizes are in bytes; every refusal is a UsageError.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from nodeos.core.errors import UsageError

SECTION = struct.Struct("<8sIIIIIIHHI")
WIN_CERT_PKCS = 0x0002
_CERTIFICATE_ENTRY = 4
# The hashes of images and PCR banks: the digests that firmware of today can ask for.
BANKS = ("sha256", "sha384")


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One section's header: where it lies in the file (``offset``, ``size``) and in memory."""

    name: str
    offset: int
    size: int
    address: int
    virtual_size: int
    characteristics: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where everything of a PE image lies. ``end`` is where the sections end; table size 0 means unsigned."""

    coff: int
    optional: int
    certificate_entry: int
    section_table: int
    section_alignment: int
    file_alignment: int
    headers: int
    sections: Sequence[Section]
    end: int
    certificates: int
    certificates_size: int

    @property
    def checksum(self) -> int:
        return self.optional + 64


def number(data: bytes, offset: int, size: int, what: str) -> int:
    """An unsigned little-endian number of the headers. Raises UsageError beyond the end of the data."""
    if offset + size > len(data):
        raise UsageError(f"{what}: not a PE image: it ends within the headers")
    return int.from_bytes(data[offset : offset + size], "little")


def parse(data: bytes, what: str = "image") -> Layout:
    """The layout of a PE32 or PE32+ image. Raises UsageError (``what`` names the image there)."""

    def refuse(why: str) -> UsageError:
        return UsageError(f"{what}: not a PE image: {why}")

    if data[:2] != b"MZ":
        raise refuse("it doesn't begin with MZ")
    coff = number(data, 0x3C, 4, what) + 4
    if data[coff - 4 : coff] != b"PE\0\0":
        raise refuse("it has no PE header")
    count, optional_size = number(data, coff + 2, 2, what), number(data, coff + 16, 2, what)
    optional = coff + 20
    magic = number(data, optional, 2, what)
    if magic not in (0x10B, 0x20B):
        raise refuse(f"unknown kind {magic:#x}")
    directories = optional + (96 if magic == 0x10B else 112)
    entry = directories + 8 * _CERTIFICATE_ENTRY
    table = optional + optional_size
    if entry + 8 > table or number(data, directories - 4, 4, what) <= _CERTIFICATE_ENTRY:
        raise refuse("its headers have no room for a signature")
    section_alignment = number(data, optional + 32, 4, what)
    file_alignment = number(data, optional + 36, 4, what)
    for alignment in (section_alignment, file_alignment):
        if alignment == 0 or alignment & (alignment - 1):
            raise refuse(f"alignment {alignment} is no power of two")
    headers = number(data, optional + 60, 4, what)
    if not table + SECTION.size * count <= headers <= len(data):
        raise refuse("its section table doesn't fit into its headers")
    sections = tuple(_section(data, table + SECTION.size * index, what) for index in range(count))
    end = headers
    for section in sorted((item for item in sections if item.size), key=lambda item: item.offset):
        if section.offset != end:
            raise refuse(f"section {section.name} doesn't follow the one before it")
        end += section.size
    if end > len(data):
        raise refuse("a section goes beyond the end of the file")
    certificates, size = struct.unpack_from("<II", data, entry)
    if (certificates == 0) != (size == 0):
        raise refuse("its certificate table has a place but no size, or the other way round")
    if size and (certificates % 8 or certificates < end or certificates + size != len(data)):
        raise refuse("its certificate table isn't what the file ends with")
    return Layout(
        coff=coff, optional=optional, certificate_entry=entry, section_table=table,
        section_alignment=section_alignment, file_alignment=file_alignment, headers=headers, sections=sections,
        end=end, certificates=certificates, certificates_size=size,
    )  # fmt: skip


def _section(data: bytes, offset: int, what: str) -> Section:
    name, virtual_size, address, size, start, *_, flags = SECTION.unpack_from(data, offset)
    try:
        text = name.rstrip(b"\0").decode("ascii")
    except UnicodeDecodeError as error:
        raise UsageError(f"{what}: not a PE image: the section name {name!r} is no ASCII") from error
    return Section(
        name=text, offset=start, size=size, address=address, virtual_size=virtual_size, characteristics=flags
    )


def section_contents(data: bytes, what: str = "image") -> dict[str, bytes]:
    """The sections of an image by name, each trimmed or zero-filled to its virtual size.

    Raises UsageError for two sections of one name: it would not be clear which of them counts. A section that is
    said to be much longer in memory than the whole file is refused too.
    """
    contents: dict[str, bytes] = {}
    for section in parse(data, what).sections:
        if section.name in contents:
            raise UsageError(f"{what}: two sections are named {section.name}")
        if section.virtual_size > len(data) + (1 << 20):
            raise UsageError(f"{what}: section {section.name} is larger than the image")
        raw = data[section.offset : section.offset + min(section.size, section.virtual_size)]
        contents[section.name] = raw.ljust(section.virtual_size, b"\0")
    return contents


def authenticode(data: bytes, what: str = "image", bank: str = "sha256") -> bytes:
    """The Authenticode digest of a PE image, signed or not; ``bank`` is ``sha256`` or ``sha384``."""
    if bank not in BANKS:
        raise UsageError(f"no Authenticode digest with {bank}", hint=f"there are {', '.join(BANKS)}")
    layout = parse(data, what)
    end = layout.certificates if layout.certificates_size else len(data)
    view, digest = memoryview(data), hashlib.new(bank)
    for start, stop in (
        (0, layout.checksum),
        (layout.checksum + 4, layout.certificate_entry),
        # The sections follow the headers and each other without a gap: parse made sure.
        (layout.certificate_entry + 8, end),
    ):
        digest.update(view[start:stop])
    digest.update(bytes(-end % 8))
    return digest.digest()


def signatures(data: bytes, what: str = "image") -> list[bytes]:
    """The DER PKCS #7 signatures of an image, none if it is unsigned."""
    layout = parse(data, what)
    table = data[layout.certificates :] if layout.certificates_size else b""
    found: list[bytes] = []
    while table:
        if len(table) < 8:
            raise UsageError(f"{what}: a signature that can't be read")
        length, _revision, kind = struct.unpack_from("<IHH", table)
        if not 8 <= length <= len(table) or kind != WIN_CERT_PKCS:
            raise UsageError(f"{what}: a signature that can't be read")
        found.append(table[8:length])
        table = table[length + -length % 8 :]
    return found
