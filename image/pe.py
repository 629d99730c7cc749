"""Changes PE images: adds sections, attaches and strips signatures. ``nodeos.core.pe`` reads them.

Sources: Microsoft "PE Format" (headers, attribute certificate table, CheckSum). All offsets and sizes are in
bytes; every refusal is a UsageError.

The normal form of an unsigned image: its CheckSum is 0 and its length a multiple of 8. ``add_section`` and
``strip_signatures`` give it, and for an image in it ``strip_signatures(attach_signature(image, signature))``
is the image. Any other image comes back in its normal form; its digest is the same.
"""

from __future__ import annotations

import struct

from nodeos.core.errors import UsageError
from nodeos.core.pe import (
    BANKS,
    SECTION,
    WIN_CERT_PKCS,
    authenticode,
    number,
    parse,
    section_contents,
    signatures,
)

__all__ = (
    "BANKS",
    "add_section",
    "attach_signature",
    "authenticode",
    "parse",
    "section_contents",
    "signatures",
    "strip_signatures",
)

DATA = 0x40000040  # initialised data, readable
_WIN_CERT_REVISION = 0x0200
_LIMIT = 1 << 32


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
    entry = layout.section_table + SECTION.size * len(layout.sections)
    if entry + SECTION.size > layout.headers or any(data[entry : entry + SECTION.size]):
        raise UsageError(f"{what}: no room in the headers for section {name}")
    if layout.end % layout.file_alignment:
        raise UsageError(f"{what}: its sections don't end at the file alignment")
    memory_end = max((item.address + item.virtual_size for item in layout.sections), default=layout.headers)
    address = _round_up(memory_end, layout.section_alignment)
    size = _round_up(len(content), layout.file_alignment)
    image_size = _round_up(address + len(content), layout.section_alignment)
    initialized = number(data, layout.optional + 8, 4, what) + len(content)
    if max(image_size, layout.end + size, initialized) >= _LIMIT:
        raise UsageError(f"{what}: with section {name} it would be larger than 4 GiB")
    result = bytearray(data[: layout.end] + content.ljust(size, b"\0"))
    offset = layout.end if size else 0
    SECTION.pack_into(
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
    entry = layout.section_table + SECTION.size * index
    initialized = max(
        0, number(data, layout.optional + 8, 4, what) - sum(item.virtual_size for item in dropped)
    )
    result = bytearray(data[:end])
    result[entry : entry + SECTION.size * len(dropped)] = bytes(SECTION.size * len(dropped))
    struct.pack_into("<H", result, layout.coff + 2, index)
    struct.pack_into("<I", result, layout.optional + 8, initialized)
    struct.pack_into("<I", result, layout.optional + 56, _round_up(memory, layout.section_alignment))
    struct.pack_into("<I", result, layout.checksum, 0)
    return bytes(result) + bytes(-len(result) % 8)


def _round_up(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment


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
    table = struct.pack("<IHH", 8 + len(signature), _WIN_CERT_REVISION, WIN_CERT_PKCS) + signature
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
