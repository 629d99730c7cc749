"""Versions in the order of systemd-sysupdate and systemd-boot (UAPI.10 Version Format Specification). Pure."""

from __future__ import annotations

import re

_SIGNIFICANT = frozenset("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ~-^.")
_DIGITS, _LETTERS = re.compile("[0-9]*"), re.compile("[A-Za-z]*")


def older(version: str, than: str) -> bool:
    """True if ``version`` comes before ``than``."""
    return _compare(version, than) < 0


def _compare(a: str, b: str) -> int:
    while True:
        a, b = _from_significant(a), _from_significant(b)
        for mark in ("~", None, "-", "^", "."):
            if mark is None:
                if not a or not b:
                    return (a > b) - (a < b)
                continue
            if a.startswith(mark) or b.startswith(mark):
                if not (a.startswith(mark) and b.startswith(mark)):
                    return -1 if a.startswith(mark) else 1
                a, b = a[1:], b[1:]
        digits = a[0] in "0123456789" or b[0] in "0123456789"
        left, a = _run(a, digits=digits)
        right, b = _run(b, digits=digits)
        if digits:
            if not left or not right:
                return -1 if not left else 1
            if int(left) != int(right):
                return -1 if int(left) < int(right) else 1
        elif left != right:
            return -1 if left < right else 1


def _from_significant(text: str) -> str:
    while text and text[0] not in _SIGNIFICANT:
        text = text[1:]
    return text


def _run(text: str, *, digits: bool) -> tuple[str, str]:
    found = (_DIGITS if digits else _LETTERS).match(text)
    end = found.end() if found else 0
    return text[:end], text[end:]
