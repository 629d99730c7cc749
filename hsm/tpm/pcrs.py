"""Reading and extending the platform configuration registers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from hsm.errors import TpmError
from hsm.tpm.connection import Connection
from nodeos.core.errors import UsageError

PCRS = range(24)
# TPM 2.0 Library, Part 2, "TPM_ALG_ID": the name in hashlib and in TPMU_HA.
_BANKS = {
    0x0004: ("sha1", "sha1"),
    0x000B: ("sha256", "sha256"),
    0x000C: ("sha384", "sha384"),
    0x000D: ("sha512", "sha512"),
    0x0012: ("sm3", "sm3_256"),
}


def checked(pcrs: Sequence[int]) -> tuple[int, ...]:
    """The PCRs in rising order, each once. An empty selection proves nothing and is refused."""
    wanted = tuple(sorted(set(pcrs)))
    if not wanted:
        raise UsageError("no PCRs are named", hint="name at least one of the PCRs 0 to 23")
    if wanted[0] not in PCRS or wanted[-1] not in PCRS:
        raise UsageError(
            f"there is no PCR {wanted[0] if wanted[0] not in PCRS else wanted[-1]}",
            hint="PCRs have the numbers 0 to 23",
        )
    return wanted


def read(connection: Connection, pcrs: Sequence[int]) -> dict[int, bytes]:
    """The values of these PCRs in the SHA-256 bank, in rising order."""
    left = list(checked(pcrs))
    values: dict[int, bytes] = {}
    with connection.answers("reading PCRs"):
        while left:
            # One answer holds at most 8 values; the selection that comes with it says which.
            batch = left[:8]
            _, _, digests = connection.esys.pcr_read("sha256:" + ",".join(str(pcr) for pcr in batch))
            found = [bytes(digest) for digest in digests]
            if len(found) != len(batch):
                raise TpmError(
                    f"the TPM has no SHA-256 values for the PCRs {', '.join(map(str, batch))}",
                    hint="switch the SHA-256 PCR bank on in the firmware",
                )
            values.update(zip(batch, found, strict=True))
            left = left[8:]
    return values


def measure(connection: Connection, pcr: int, data: bytes) -> dict[str, bytes]:
    """Extend ``pcr`` with the hash of ``data`` in every active bank; returns the digests by bank.

    A bank that was left out could be filled with anything later, so one that can't be hashed for is an
    error, before anything is extended.
    """
    from tpm2_pytss import ESYS_TR, TPML_DIGEST_VALUES, TPMT_HA, TPMU_HA

    checked((pcr,))
    digests: dict[str, bytes] = {}
    values = []
    for bank in _active_banks(connection, pcr):
        if bank not in _BANKS or _BANKS[bank][0] not in hashlib.algorithms_available:
            raise TpmError(
                f"the TPM has a PCR bank that can't be extended here (algorithm 0x{bank:x})",
                hint="switch this bank off in the firmware",
            )
        name, field = _BANKS[bank]
        digests[name] = hashlib.new(name, data).digest()
        values.append(TPMT_HA(hashAlg=bank, digest=TPMU_HA(**{field: digests[name]})))
    if not values:
        raise TpmError("the TPM has no active PCR bank", hint="switch the SHA-256 bank on in the firmware")
    with connection.answers(f"extending PCR {pcr}"):
        connection.esys.pcr_extend(ESYS_TR(pcr), TPML_DIGEST_VALUES(values))
    return digests


def _active_banks(connection: Connection, pcr: int) -> list[int]:
    from tpm2_pytss import TPM2_CAP

    with connection.answers("reading the PCR banks"):
        _, capability = connection.esys.get_capability(TPM2_CAP.PCRS, 0, 1)
        banks = capability.data.assignedPCR
        selections = [(int(bank.hash), bytes(bank.pcrSelect)) for bank in banks]
    return [bank for bank, bits in selections if len(bits) > pcr // 8 and bits[pcr // 8] >> (pcr % 8) & 1]
