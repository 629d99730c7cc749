"""What a TPM gives: values without a TPM behind them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Endorsement:
    """``public`` is a TPMT_PUBLIC; ``certificates`` are DER, the endorsement key's first, then intermediates.

    There are no certificates if the manufacturer stored none.
    """

    public: bytes
    certificates: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """``attest`` is a TPMS_ATTEST, ``signature`` a TPMT_SIGNATURE, ``pcrs`` the quoted SHA-256 values."""

    attest: bytes
    signature: bytes
    pcrs: dict[int, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmIdentity:
    """What the TPM says of itself. Not proven; the endorsement certificate's word counts."""

    manufacturer: str
    model: str
    firmware: str
