"""Reading an initrd, as far as no program is needed for it."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from image import cpio
from nodeos.core.errors import UsageError
from tests.support.cpio import archive

TOOLS = Path("/absent")


def frame(*blocks: tuple[int, bytes], checksum: bool = False) -> bytes:
    """A zstd frame (RFC 8878): one segment with a one-byte content size; blocks of a kind and its bytes."""
    data = b"\x28\xb5\x2f\xfd" + bytes([0x20 | (4 if checksum else 0), 0])
    for index, (kind, content) in enumerate(blocks):
        size = 9 if kind == 1 else len(content)
        last = index == len(blocks) - 1
        data += (last | kind << 1 | size << 3).to_bytes(3, "little") + content
    return data + (b"sum!" if checksum else b"")


def test_entries() -> None:
    found = cpio.files(archive({"etc/a": (0o640, b"one"), "b": (0o644, b"")}), tools=TOOLS)
    assert list(found) == ["/etc", "/etc/a", "/b"]
    assert found["/etc/a"] == cpio.File(
        mode=0o100640, owner=(0, 0), modified=0, content=hashlib.sha256(b"one").digest()
    )


def test_archives_one_after_another() -> None:
    first = archive({"a": (0o644, b"one"), "b": (0o644, b"two")})
    second = archive({"a": (0o644, b"three")})
    found = cpio.files(first + bytes(8) + second, tools=TOOLS)
    assert set(found) == {"/a", "/b"}
    assert found["/a"].content == hashlib.sha256(b"three").digest(), "the later one counts"


@pytest.mark.parametrize(
    "packed",
    [
        frame((0, b"raw")),
        frame((2, b"compressed"), (1, b"r"), (0, b"")),
        frame((0, b"raw"), checksum=True),
        frame((0, b"\x28\xb5\x2f\xfd")),
    ],
)
def test_where_a_frame_ends(packed: bytes) -> None:
    plain = archive({"a": (0o644, b"one")})
    for padding in (b"", bytes(3)):
        parts = list(cpio.archives(packed + padding + packed + padding + plain))
        assert parts[:2] == [packed, packed]
        assert len(parts) == 3


@pytest.mark.parametrize(
    "data",
    [
        b"\x1f\x8b gzip",
        frame((0, b"raw"))[:-1],
        frame((3, b"")),
        b"\x28\xb5\x2f\xfd",
        archive({"a": (0o644, b"one")})[:-8],
        archive({"a": (0o644, b"one")})[:116],
        b"070701" + b"z" * 104,
        b"070701" + b"0" * 104,
    ],
)
def test_damaged(data: bytes) -> None:
    with pytest.raises(UsageError, match="initrd: "):
        cpio.files(data, tools=TOOLS)


@given(st.binary(max_size=300), st.sampled_from([b"", b"070701", b"\x28\xb5\x2f\xfd"]))
def test_no_bytes_crash_the_reader(data: bytes, start: bytes) -> None:
    with contextlib.suppress(UsageError):
        list(cpio.archives(start + data))
