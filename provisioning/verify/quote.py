"""Is this quote fresh, whole, from this key, and over exactly these PCR values?"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from nodeos.core.errors import Finding
from nodeos.core.protocol import QUOTED_PCRS
from nodeos.core.wire import ParseError
from provisioning.verify.findings import finding
from provisioning.verify.tpm import Alg, Public, Quote, parse_quote, parse_signature

# A TPM saves its clock at least every 2^22 ms, so after a power cut it may be back by that much at most
# (TPM 2.0 Part 1, section 36.2).
CLOCK_SAVED_MS = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """The counters of a TPM in one quote. ``clock`` is in milliseconds of power."""

    clock: int
    reset_count: int
    restart_count: int

    @classmethod
    def of(cls, quote: Quote) -> Clock:
        return cls(clock=quote.clock, reset_count=quote.reset_count, restart_count=quote.restart_count)


def check_quote(
    attest: bytes, signature: bytes, ak: Public, qualifying: bytes, pcrs: Mapping[int, bytes]
) -> tuple[tuple[Finding, ...], Quote | None]:
    """Every reason to refuse the quote, and the quote if it could be read."""
    try:
        quote = parse_quote(attest)
    except ParseError as error:
        return (finding("quote.form", error.message),), None
    found: list[Finding] = []
    if not is_signed(attest, signature, ak):
        found.append(finding("quote.signature", "the attestation key did not sign this quote"))
    if quote.extra_data != qualifying:
        found.append(
            finding(
                "quote.nonce",
                f"made for other data: found {quote.extra_data.hex() or 'nothing'}, "
                f"needed {qualifying.hex()} (this challenge's nonce and this statement)",
            )
        )
    if quote.selection != ((Alg.SHA256, QUOTED_PCRS),):
        found.append(
            finding(
                "quote.selection",
                f"covers {_selection_words(quote)}; needed: SHA-256 of exactly {_numbers(QUOTED_PCRS)}",
            )
        )
    values = b"".join(pcrs[index] for index in sorted(pcrs))
    if tuple(sorted(pcrs)) != QUOTED_PCRS or hashlib.sha256(values).digest() != quote.pcr_digest:
        found.append(finding("quote.digest", "the PCR values given are not the ones that were quoted"))
    return tuple(found), quote


def check_clock(now: Clock, before: Clock) -> tuple[Finding, ...]:
    """Refuses counters that a TPM can't show after it showed ``before``."""
    if now.reset_count < before.reset_count:
        return (
            finding("quote.reset_count", f"resets went from {before.reset_count} back to {now.reset_count}"),
        )
    slack = CLOCK_SAVED_MS if now.reset_count > before.reset_count else 0
    if now.clock + slack < before.clock:
        return (finding("quote.clock", f"the clock went from {before.clock} ms back to {now.clock} ms"),)
    if now.reset_count == before.reset_count and now.restart_count < before.restart_count:
        return (
            finding(
                "quote.restart_count", f"restarts went from {before.restart_count} to {now.restart_count}"
            ),
        )
    return ()


def is_signed(attest: bytes, signature: bytes, ak: Public) -> bool:
    """True if this attestation key made the signature (a TPMT_SIGNATURE)."""
    try:
        hash_alg, r, s = parse_signature(signature)
        key = ak.key()
        if hash_alg != Alg.SHA256 or not isinstance(key, ec.EllipticCurvePublicKey):
            return False
        key.verify(encode_dss_signature(r, s), attest, ec.ECDSA(hashes.SHA256()))
    except (ParseError, InvalidSignature, ValueError):
        return False
    return True


def _selection_words(quote: Quote) -> str:
    parts = [f"bank {bank:#06x} of {_numbers(indices)}" for bank, indices in quote.selection]
    return " and ".join(parts) or "nothing"


def _numbers(indices: tuple[int, ...]) -> str:
    return ",".join(str(index) for index in indices) or "no PCR"
