"""PCR values that a person gives to compare with: JSON, or the YAML of tpm2-tools. Pure.

JSON: ``{"pcrs": {"sha256": {"0": "hex"}}}``, what `nodeos attest replay --json` prints, or evidence of a node,
whose ``pcrs`` are of the SHA-256 bank without its name. YAML: what tpm2_eventlog and tpm2_pcrread print, of which
only ``pcrs:`` is read:

    pcrs:
      sha256:
        0 : 0xHEX
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from nodeos.core.wire import Fields, ParseError, parse_json
from provisioning.verify.eventlog import BANKS, PCRS

_LIMIT = 1 << 22
_BANK = re.compile(r"""["']?([a-z][a-z0-9_]*)["']?\s*:""")
_VALUE = re.compile(r"""["']?([0-9]{1,2})["']?\s*:\s*["']?(?:0[xX])?([0-9a-fA-F]+)["']?""")


def parse_expected(data: bytes, what: str) -> dict[int, dict[int, bytes]]:
    """Values by TPM_ALG_ID and PCR. Raises ParseError for an unknown form, a wrong length, or no value at all."""
    if len(data) > _LIMIT:
        raise ParseError(f"{what}: {len(data)} bytes, at most {_LIMIT} are allowed")
    values = _json(data, what) if data.lstrip()[:1] == b"{" else _yaml(data, what)
    banks = {alg: dict(bank) for alg, bank in values.items() if bank}
    if not banks:
        raise ParseError(f"{what}: it has no PCR values")
    return banks


def _json(data: bytes, what: str) -> dict[int, dict[int, bytes]]:
    fields = parse_json(data, what, limit=_LIMIT)
    values = fields.nested("pcrs") if fields.has("pcrs") else fields
    items = values.items()
    if items and all(name.isdecimal() for name, _ in items):
        return {_bank("sha256", what): _json_bank(dict(items), f"{values.path}", "sha256")}
    return {_bank(name, values.path): _json_bank(bank, f"{values.path}.{name}", name) for name, bank in items}


def _json_bank(value: object, path: str, bank: str) -> dict[int, bytes]:
    fields = Fields(value, path)
    found: dict[int, bytes] = {}
    for name, text in fields.items():
        if not isinstance(text, str):
            raise ParseError(f"{path}.{name}: expected text")
        _put(found, name, text.removeprefix("0x"), bank, path)
    return found


def _yaml(data: bytes, what: str) -> dict[int, dict[int, bytes]]:
    """The few lines of YAML that the tools write: banks, below each `PCR : value`. All else is refused."""
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError as error:
        raise ParseError(f"{what}: neither JSON nor YAML") from error
    start = max((at + 1 for at, line in enumerate(lines) if line.rstrip() == "pcrs:"), default=0)
    banks: dict[int, dict[int, bytes]] = {}
    bank = ""
    for at, line in enumerate(lines[start:], start + 1):
        text = line.split("#", 1)[0].strip()
        if not text or text in ("---", "..."):
            continue
        if value := _VALUE.fullmatch(text):
            if not bank:
                raise ParseError(f"{what}, line {at}: a value before the name of its bank")
            _put(banks[_bank(bank, what)], value[1], value[2], bank, f"{what}, line {at}")
        elif head := _BANK.fullmatch(text):
            bank = head[1]
            if banks.setdefault(_bank(bank, f"{what}, line {at}"), {}):
                raise ParseError(f"{what}, line {at}: the bank {bank} stands twice")
        else:
            raise ParseError(f"{what}, line {at}: expected `BANK:` or `PCR : VALUE`, found {text[:60]!r}")
    return banks


def _bank(name: str, what: str) -> int:
    for alg, (known, size) in BANKS.items():
        if known == name and size:
            return alg
    raise ParseError(f"{what}: there is no bank {name[:32]!r}")


def _put(values: dict[int, bytes], index: str, text: str, bank: str, path: str) -> None:
    size = BANKS[_bank(bank, path)][1]
    if not index.isdecimal() or not index.isascii() or int(index) >= PCRS or int(index) in values:
        raise ParseError(f"{path}: there is no PCR {index[:8]}, or it stands twice")
    try:
        value = bytes.fromhex(text)
    except ValueError as error:
        raise ParseError(f"{path}: PCR {index} is not hexadecimal") from error
    if len(value) != size:
        raise ParseError(f"{path}: PCR {index} has {len(value)} bytes, {bank} has {size}")
    values[int(index)] = value


def only(values: Mapping[int, Mapping[int, bytes]], pcrs: frozenset[int]) -> dict[int, dict[int, bytes]]:
    """The values of these PCRs alone. Raises ParseError if one of them is not there."""
    for index in sorted(pcrs):
        if not any(index in bank for bank in values.values()):
            raise ParseError(f"PCR {index} is to be compared, and its expected value is not given")
    return {alg: {i: v for i, v in bank.items() if i in pcrs} for alg, bank in values.items()}
