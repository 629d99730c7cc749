"""What manufacturers store in a TPM: endorsement certificates, padded and prefixed in various ways. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from hsm.errors import TpmError


@dataclass(frozen=True, slots=True, kw_only=True)
class EndorsementPlace:
    """Where the TCG EK Credential Profile 2.5 (section 2.2) puts a key and its certificate."""

    template: str
    certificate: int
    handle: int


# In order of preference. The handles are those of the TCG's "Provisioning Guidance" and of swtpm.
PLACES = (
    EndorsementPlace(template="EK-RSA2048", certificate=0x01C00002, handle=0x81010001),
    EndorsementPlace(template="EK-HIGH-RSA2048", certificate=0x01C00012, handle=0x81010012),
    EndorsementPlace(template="EK-ECC256", certificate=0x01C0000A, handle=0x8101000A),
    EndorsementPlace(template="EK-HIGH-ECC256", certificate=0x01C00014, handle=0x81010014),
    EndorsementPlace(template="EK-HIGH-ECC384", certificate=0x01C00016, handle=0x81010016),
)
CHAIN_FIRST, CHAIN_LAST = 0x01C00100, 0x01C001FF

# A TCG_PCCLIENT_STORED_CERT of the TPM 1.2 time: tag 0x1001, type 0, and then a two-byte size and a second
# tag 0x1002, both of which some makers leave out.
_STORED = b"\x10\x01\x00"
_FULL = b"\x10\x02"
_PADDING = (0x00, 0xFF)


def leaf_certificate(data: bytes) -> bytes:
    """The one DER certificate in ``data``. Raises TpmError if it is cut short or followed by other data."""
    start = 0
    if data.startswith(_STORED):
        start = len(_STORED) if data[3:4] == b"\x30" else len(_STORED) + 2
        if data[start : start + 2] == _FULL:
            start += 2
    end = _der_end(data, start)
    if end is None:
        raise TpmError(
            "the TPM's endorsement certificate can't be read",
            hint="update the TPM's firmware, or ask its manufacturer for the certificate",
        )
    if any(byte not in _PADDING for byte in data[end:]):
        raise TpmError("the TPM's endorsement certificate is followed by other data")
    return data[start:end]


def chain_certificates(data: bytes) -> tuple[bytes, ...]:
    """The DER certificates that stand one after the other in ``data``.

    What comes after the last that can be read is left out: the chain is a help for the verifier, who may have
    the missing certificates from elsewhere and refuses the machine if not.
    """
    found = []
    position = 0
    while position < len(data):
        if data[position] in _PADDING:
            position += 1
            continue
        end = _der_end(data, position)
        if end is None:
            break
        found.append(data[position:end])
        position = end
    return tuple(found)


def _der_end(data: bytes, start: int) -> int | None:
    """Where the DER SEQUENCE that begins at ``start`` ends, or None if there is no whole one.

    Only the two-byte length (0x82) is accepted: certificates have between 256 bytes and 64 KiB.
    """
    if data[start : start + 2] != b"\x30\x82" or len(data) < start + 4:
        return None
    end = start + 4 + int.from_bytes(data[start + 2 : start + 4], "big")
    return end if end <= len(data) and end - start >= 256 else None
