"""How the state partition is protected: what the initrd handed over, and the tokens in its LUKS2 header."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nodeos.core.errors import NodeosError, UsageError
from nodeos.core.files import read_file
from nodeos.core.protocol import StateVolume
from nodeos.core.wire import ParseError, parse_json

TOKEN_TYPE = "systemd-tpm2"  # noqa: S105

ReadHeader = Callable[[str], tuple[str, bytes]]


def read_volume(report: Path, read_header: ReadHeader | None = None) -> StateVolume:
    """The state volume's protection. ``report`` is {"made_this_boot", "luks_uuid", "device"}.

    ``read_header(device)`` gives the UUID and the JSON metadata. Raises NodeosError if the header is another
    volume's, or says that the key is not bound to this TPM in exactly one way.
    """
    try:
        data = read_file(report, "state volume report", limit=1 << 12)
    except UsageError as error:
        raise NodeosError(
            error.message, hint="the initial RAM disk writes it: the image is damaged, or was not booted"
        ) from error
    fields = parse_json(data, report.name)
    made = fields.flag("made_this_boot")
    uuid = fields.text("luks_uuid", limit=64)
    device = fields.text("device", limit=256)
    fields.done()
    found, metadata = (read_header or cryptsetup_header)(device)
    if found != uuid:
        raise NodeosError(
            f"the state volume on {device} has the UUID {found}, but the initial RAM disk opened {uuid}",
            hint="a disk was exchanged while the machine ran: restart it",
        )
    signed, literal = token_pcrs(metadata, device)
    return StateVolume(luks_uuid=uuid, made_this_boot=made, signed_pcrs=signed, literal_pcrs=literal)


def token_pcrs(metadata: bytes, device: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The PCRs of the one systemd-tpm2 token: those under the signed policy, and the literal ones.

    Field names: ``tpm2_make_luks2_json`` in systemd 257's src/shared/tpm2-util.c: "tpm2-pcrs" and
    "tpm2_pubkey_pcrs" (absent without a signed policy). More tokens are other ways in, of which the weakest
    counts; there is no place to state them, so they are refused.
    """
    try:
        tokens = json.loads(metadata)["tokens"]
        found = [token for token in tokens.values() if token["type"] == TOKEN_TYPE]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ParseError(f"LUKS2 header of {device}: not the JSON that it must be") from error
    if len(found) != 1:
        raise NodeosError(
            f"the state volume on {device} has {len(found)} TPM tokens, expected one",
            hint="it was not made by this image, or its key slots were changed",
        )
    return _pcrs(found[0], "tpm2_pubkey_pcrs", device), _pcrs(found[0], "tpm2-pcrs", device)


def _pcrs(token: dict[str, Any], name: str, device: str) -> tuple[int, ...]:
    value = token.get(name, [])
    if not isinstance(value, list) or not all(type(item) is int and 0 <= item < 24 for item in value):
        raise ParseError(f"LUKS2 header of {device}: {name}: expected a list of PCR numbers")
    return tuple(sorted(set(value)))


def cryptsetup_header(device: str) -> tuple[str, bytes]:
    """The UUID and JSON metadata of a LUKS2 device, by cryptsetup (which checks the header's checksums)."""
    from nodeos.core.run import run

    uuid = run(["cryptsetup", "luksUUID", device], what="read the state volume's UUID")
    command = ["cryptsetup", "luksDump", "--dump-json-metadata", device]
    return uuid.decode().strip(), run(command, what="read the state volume's header")
