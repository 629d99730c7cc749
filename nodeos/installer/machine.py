"""Who this machine is, and whose Secure Boot keys are ours."""

from __future__ import annotations

from pathlib import Path

from nodeos.core.efilists import certificates, parse_lists
from nodeos.core.errors import NodeosError, UsageError
from nodeos.core.files import read_file


def identify(tcti: str) -> str | None:
    """The machine's id at the registrar, from the TPM's endorsement key; None if the TPM doesn't answer."""
    from hsm.tpm import Tpm
    from nodeos.core.protocol import machine_id

    try:
        with Tpm(tcti) as tpm:
            return machine_id(tpm.endorsement().public)
    except NodeosError:
        return None


def platform_keys(update: Path) -> tuple[bytes, ...]:
    """The certificates (DER) of the release's PK.auth: EFI_VARIABLE_AUTHENTICATION_2 (UEFI 2.10, 8.2.2), that is
    16 bytes of time and a WIN_CERTIFICATE, which begins with its length, before the signature lists."""
    data = read_file(update, "Secure Boot update", limit=1 << 20)
    length = int.from_bytes(data[16:20], "little")
    if len(data) < 24 or not 24 <= length <= len(data) - 16:
        raise UsageError(f"{update}: no signed Secure Boot update", hint="sign the release again")
    try:
        return certificates(parse_lists(data[16 + length :]))
    except UsageError as error:
        raise UsageError(f"{update}: {error.message}", hint="sign the release again") from error
