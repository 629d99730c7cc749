"""Reads and changes PE images: sections, the Authenticode digest, the certificate table.

Sources: Microsoft "PE Format" (headers, attribute certificate table, CheckSum) and "Windows Authenticode Portable
Executable Signature Format" (digest). Every offset is checked before it is used, and a layout that these documents
leave open (gaps, overlaps, a certificate table that isn't last) is refused: no byte of a file escapes the digest
but those of the signature itself. All offsets and sizes are in bytes; every refusal is a UsageError.

The normal form of an unsigned image: its CheckSum is 0 and its length a multiple of 8. ``add_section`` and
``strip_signatures`` give it, and for an image in it ``strip_signatures(attach_signature(image, signature))``
is the image. Any other image comes back in its normal form; its digest is the same.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from nodeos.core.errors import UsageError

_SECTION = struct.Struct("<8sIIIIIIHHI")
_CERTIFICATE_ENTRY = 4
DATA = 0x40000040  # initialised data, readable
_WIN_CERT_REVISION, _WIN_CERT_PKCS = 0x0200, 0x0002
_LIMIT = 1 << 32
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


def _number(data: bytes, offset: int, size: int, what: str) -> int:
    if offset + size > len(data):
        raise UsageError(f"{what}: not a PE image: it ends within the headers")
    return int.from_bytes(data[offset : offset + size], "little")


def parse(data: bytes, what: str = "image") -> Layout:
    """The layout of a PE32 or PE32+ image. Raises UsageError (``what`` names the image there)."""

    def refuse(why: str) -> UsageError:
        return UsageError(f"{what}: not a PE image: {why}")

    if data[:2] != b"MZ":
        raise refuse("it doesn't begin with MZ")
    coff = _number(data, 0x3C, 4, what) + 4
    if data[coff - 4 : coff] != b"PE\0\0":
        raise refuse("it has no PE header")
    count, optional_size = _number(data, coff + 2, 2, what), _number(data, coff + 16, 2, what)
    optional = coff + 20
    magic = _number(data, optional, 2, what)
    if magic not in (0x10B, 0x20B):
        raise refuse(f"unknown kind {magic:#x}")
    directories = optional + (96 if magic == 0x10B else 112)
    entry = directories + 8 * _CERTIFICATE_ENTRY
    table = optional + optional_size
    if entry + 8 > table or _number(data, directories - 4, 4, what) <= _CERTIFICATE_ENTRY:
        raise refuse("its headers have no room for a signature")
    section_alignment = _number(data, optional + 32, 4, what)
    file_alignment = _number(data, optional + 36, 4, what)
    for alignment in (section_alignment, file_alignment):
        if alignment == 0 or alignment & (alignment - 1):
            raise refuse(f"alignment {alignment} is no power of two")
    headers = _number(data, optional + 60, 4, what)
    if not table + _SECTION.size * count <= headers <= len(data):
        raise refuse("its section table doesn't fit into its headers")
    sections = tuple(_section(data, table + _SECTION.size * index, what) for index in range(count))
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
    name, virtual_size, address, size, start, *_, flags = _SECTION.unpack_from(data, offset)
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


def add_section(
    data: bytes, name: str, content: bytes, what: str = "image", *, characteristics: int = DATA
) -> bytes:
    """The unsigned image with one more section at its end, read-only data if not said, as ukify adds them.

    Raises UsageError if the image is signed or has data after its sections, if the name is taken or doesn't fit,
    or if the headers have no room for another section.
    """
    layout = parse(data, what)
    encoded = name.encode()
    if not name.isascii() or not 1 <= len(encoded) <= 8 or "\0" in name:
        raise UsageError(f"{name!r} can't name a PE section", hint="names have 1 to 8 ASCII characters")
    if layout.certificates_size:
        raise UsageError(f"{what} is signed: sections are added before that")
    if any(data[layout.end :]) or len(data) - layout.end >= layout.file_alignment:
        raise UsageError(f"{what}: data follows the last section, so none can be added")
    if name in {section.name for section in layout.sections}:
        raise UsageError(f"{what} has a section {name} already")
    entry = layout.section_table + _SECTION.size * len(layout.sections)
    if entry + _SECTION.size > layout.headers or any(data[entry : entry + _SECTION.size]):
        raise UsageError(f"{what}: no room in the headers for section {name}")
    if layout.end % layout.file_alignment:
        raise UsageError(f"{what}: its sections don't end at the file alignment")
    memory_end = max((item.address + item.virtual_size for item in layout.sections), default=layout.headers)
    address = _round_up(memory_end, layout.section_alignment)
    size = _round_up(len(content), layout.file_alignment)
    image_size = _round_up(address + len(content), layout.section_alignment)
    initialized = _number(data, layout.optional + 8, 4, what) + len(content)
    if max(image_size, layout.end + size, initialized) >= _LIMIT:
        raise UsageError(f"{what}: with section {name} it would be larger than 4 GiB")
    result = bytearray(data[: layout.end] + content.ljust(size, b"\0"))
    offset = layout.end if size else 0
    _SECTION.pack_into(
        result, entry, encoded, len(content), address, size, offset, 0, 0, 0, 0, characteristics
    )
    struct.pack_into("<H", result, layout.coff + 2, len(layout.sections) + 1)
    struct.pack_into("<I", result, layout.optional + 8, initialized)
    struct.pack_into("<I", result, layout.optional + 56, image_size)
    struct.pack_into("<I", result, layout.checksum, 0)
    result += bytes(-len(result) % 8)
    return bytes(result)


def drop_sections(data: bytes, first: str, what: str = "image") -> bytes:
    """The unsigned image without the section ``first`` and all that follow it: ``add_section`` undone.

    Raises UsageError if the image is signed, lacks the section, has something behind its sections, or if what is
    dropped isn't what file, section table and memory end with, in one order.
    """
    layout = parse(data, what)
    names = [section.name for section in layout.sections]
    if layout.certificates_size or any(data[layout.end :]) or len(data) - layout.end >= layout.file_alignment:
        raise UsageError(f"{what}: it is signed, or data follows the last section: none can be dropped")
    if first not in names or not (index := names.index(first)):
        raise UsageError(f"{what} has no section {first} behind others")
    kept, dropped = layout.sections[:index], layout.sections[index:]
    end = max(section.offset + section.size for section in kept)
    memory = max(section.address + section.virtual_size for section in kept)
    for section in dropped:
        if (section.size and section.offset < end) or section.address < memory:
            raise UsageError(f"{what}: section {section.name} lies before one that is kept")
    entry = layout.section_table + _SECTION.size * index
    initialized = max(
        0, _number(data, layout.optional + 8, 4, what) - sum(item.virtual_size for item in dropped)
    )
    result = bytearray(data[:end])
    result[entry : entry + _SECTION.size * len(dropped)] = bytes(_SECTION.size * len(dropped))
    struct.pack_into("<H", result, layout.coff + 2, index)
    struct.pack_into("<I", result, layout.optional + 8, initialized)
    struct.pack_into("<I", result, layout.optional + 56, _round_up(memory, layout.section_alignment))
    struct.pack_into("<I", result, layout.checksum, 0)
    return bytes(result) + bytes(-len(result) % 8)


def _round_up(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment


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


def attach_signature(data: bytes, signature: bytes, what: str = "image") -> bytes:
    """The image with a DER PKCS #7 signature as its one WIN_CERTIFICATE, and its CheckSum set.

    The length in WIN_CERTIFICATE is without the padding to 8 bytes, the size in the directory with it, as
    systemd-sbsign writes them. Raises UsageError if the image is signed already or the signature is empty.
    """
    layout = parse(data, what)
    if layout.certificates_size:
        raise UsageError(f"{what} is signed already")
    if not signature:
        raise UsageError(f"{what}: an empty signature")
    padded = data + bytes(-len(data) % 8)
    table = struct.pack("<IHH", 8 + len(signature), _WIN_CERT_REVISION, _WIN_CERT_PKCS) + signature
    table += bytes(-len(table) % 8)
    if len(padded) + len(table) >= _LIMIT:
        raise UsageError(f"{what}: with a signature it would be larger than 4 GiB")
    result = bytearray(padded + table)
    struct.pack_into("<II", result, layout.certificate_entry, len(padded), len(table))
    struct.pack_into("<I", result, layout.checksum, 0)
    struct.pack_into("<I", result, layout.checksum, _checksum(result))
    return bytes(result)


def _checksum(data: bytearray) -> int:
    """The PE CheckSum of a file whose CheckSum field is 0: its 16-bit words added with carry, plus its length."""
    total: int = sum(struct.unpack(f"<{len(data) // 4}I", data[: len(data) & ~3]))
    total += int.from_bytes(data[len(data) & ~3 :], "little")
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total + len(data)


def strip_signatures(data: bytes, what: str = "image") -> bytes:
    """The image without its certificate table, in the normal form (see above); one that has none too."""
    layout = parse(data, what)
    body = data[: layout.certificates] if layout.certificates_size else data
    result = bytearray(body + bytes(-len(body) % 8))
    struct.pack_into("<I", result, layout.checksum, 0)
    struct.pack_into("<II", result, layout.certificate_entry, 0, 0)
    return bytes(result)


def signatures(data: bytes, what: str = "image") -> list[bytes]:
    """The DER PKCS #7 signatures of an image, none if it is unsigned."""
    layout = parse(data, what)
    table = data[layout.certificates :] if layout.certificates_size else b""
    found: list[bytes] = []
    while table:
        if len(table) < 8:
            raise UsageError(f"{what}: a signature that can't be read")
        length, _revision, kind = struct.unpack_from("<IHH", table)
        if not 8 <= length <= len(table) or kind != _WIN_CERT_PKCS:
            raise UsageError(f"{what}: a signature that can't be read")
        found.append(table[8:length])
        table = table[length + -length % 8 :]
    return found
