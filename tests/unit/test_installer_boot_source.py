"""Where the machine was started from, out of a measurement log."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeos.core.wire import ParseError
from nodeos.installer import boot_source

URL = "http://192.0.2.7:8080/nodeos/installer.efi?x=1"
END = b"\x7f\xff\x04\x00"
DISK = struct.pack("<BBH", 4, 1, 42) + bytes(38) + END


def node(kind: int, subtype: int, data: bytes) -> bytes:
    return struct.pack("<BBH", kind, subtype, 4 + len(data)) + data


def http_path(url: str = URL) -> bytes:
    """ACPI, PCI, MAC, IPv4, URI: as EDK2 starts an image over HTTP."""
    mac = node(3, 11, bytes(33))
    return (
        node(2, 1, bytes(8))
        + node(1, 1, b"\0\2")
        + mac
        + node(3, 12, bytes(23))
        + node(3, 24, url.encode())
        + END
    )


def image_event(path: bytes) -> bytes:
    return struct.pack("<QQQQ", 1 << 20, 4096, 0, len(path)) + path


def event(pcr: int, kind: int, data: bytes) -> bytes:
    digests = struct.pack("<H", 4) + bytes(20) + struct.pack("<H", 11) + bytes(32)
    return struct.pack("<III", pcr, kind, 2) + digests + struct.pack("<I", len(data)) + data


def log(*events: bytes) -> bytes:
    spec = b"Spec ID Event03\0" + bytes(8) + struct.pack("<IHHHH", 2, 4, 20, 11, 32) + b"\0"
    return struct.pack("<II", 0, 3) + bytes(20) + struct.pack("<I", len(spec)) + spec + b"".join(events)


APPLICATION = boot_source.BOOT_APPLICATION


def test_http() -> None:
    found = log(
        event(0, 8, b"version"), event(4, APPLICATION, image_event(http_path())), event(4, 4, bytes(4))
    )
    assert boot_source.booted_url(found) == URL
    assert boot_source.folder_url(URL) == "http://192.0.2.7:8080/nodeos/"


def test_disk() -> None:
    assert boot_source.booted_url(log(event(4, APPLICATION, image_event(DISK)))) is None
    assert boot_source.booted_url(log()) is None


def test_only_the_first_image_counts() -> None:
    """What a boot loader from a disk starts over the network says nothing of where the machine was started."""
    events = (event(4, APPLICATION, image_event(DISK)), event(4, APPLICATION, image_event(http_path())))
    assert boot_source.booted_url(log(*events)) is None


def test_only_pcr_4_counts() -> None:
    assert boot_source.booted_url(log(event(5, APPLICATION, image_event(http_path())))) is None
    assert boot_source.booted_url(log(event(4, 0x80000004, image_event(http_path())))) is None


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "ends within"),
        (log()[:-2], "ends within"),
        (log(event(4, APPLICATION, image_event(http_path())))[:-1], "ends within"),
        (log().replace(b"Spec ID Event03", b"Spec ID Event02"), "not in the form"),
        (log(event(4, 1, b"").replace(struct.pack("<H", 11), struct.pack("<H", 18))), "unknown kind"),
        (log(event(4, APPLICATION, image_event(http_path()[:-4]))), "ends within"),
        (log(event(4, APPLICATION, image_event(b"\x01\x01\x03\x00" + END))), "shorter than its head"),
        (log(event(4, APPLICATION, image_event(node(3, 24, b"http://\xff") + END))), "no ASCII"),
        (log(event(4, APPLICATION, bytes(24) + struct.pack("<Q", 1 << 40))), "ends within"),
    ],
)
def test_broken(data: bytes, why: str) -> None:
    with pytest.raises(ParseError, match=why):
        boot_source.booted_url(data)


@pytest.mark.parametrize(
    "url", ["https://a/b.efi", "ftp://a/b", "file:///x", "http:///x", "installer.efi", "http://u:p@a/b.efi"]
)
def test_only_plain_http(url: str) -> None:
    with pytest.raises(ParseError, match="no http:// address"):
        boot_source.folder_url(url)


@given(st.binary(max_size=200))
def test_never_fails_otherwise(tail: bytes) -> None:
    for data in (tail, log() + tail, log(event(4, APPLICATION, image_event(tail)))):
        with suppress(ParseError):
            boot_source.booted_url(data)
