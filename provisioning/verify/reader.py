"""The one reader of binary formats: every read is checked against the end, and what is left is refused."""

from __future__ import annotations

import struct
from typing import Literal

from nodeos.core.wire import ParseError


class Reader:
    """Takes a byte string apart from the front. ``what`` names it in errors, with the offset."""

    def __init__(self, data: bytes, what: str, *, order: Literal["big", "little"] = "big") -> None:
        self._data = data
        self._at = 0
        self._mark = ">" if order == "big" else "<"
        self.what = what

    @property
    def offset(self) -> int:
        return self._at

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes. Raises ParseError if there are fewer."""
        if count < 0 or count > self.left:
            raise ParseError(
                f"{self.what}: {count} bytes are needed at offset {self._at}, {self.left} are left"
            )
        part = self._data[self._at : self._at + count]
        self._at += count
        return part

    def _number(self, code: str, size: int) -> int:
        (value,) = struct.unpack(self._mark + code, self.take(size))
        return int(value)

    def u8(self) -> int:
        return self._number("B", 1)

    def u16(self) -> int:
        return self._number("H", 2)

    def u32(self) -> int:
        return self._number("I", 4)

    def u64(self) -> int:
        return self._number("Q", 8)

    def sized(self, *, limit: int) -> bytes:
        """A TPM2B: two bytes of size, then that many bytes, at most ``limit``."""
        size = self.u16()
        if size > limit:
            raise ParseError(f"{self.what}: a field of {size} bytes at offset {self._at}, at most {limit}")
        return self.take(size)

    def fail(self, message: str) -> ParseError:
        """The error for something wrong at the place just read."""
        return ParseError(f"{self.what}: {message} (before offset {self._at})")

    def done(self) -> None:
        """Raises ParseError if bytes are left over."""
        if self.left:
            raise ParseError(f"{self.what}: {self.left} bytes too many at offset {self._at}")
