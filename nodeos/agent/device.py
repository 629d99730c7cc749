"""What the agent asks of a TPM: the part of ``hsm.tpm.Tpm`` that it uses, so that a test can stand in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol


class Endorsement(Protocol):
    """The endorsement key's TPMT_PUBLIC and its certificates in DER, leaf first."""

    @property
    def public(self) -> bytes: ...

    @property
    def certificates(self) -> tuple[bytes, ...]: ...


class Quote(Protocol):
    """A TPMS_ATTEST, its TPMT_SIGNATURE, and the SHA-256 bank's values that it is over."""

    @property
    def attest(self) -> bytes: ...

    @property
    def signature(self) -> bytes: ...

    @property
    def pcrs(self) -> dict[int, bytes]: ...


class Identity(Protocol):
    """Who made the TPM."""

    @property
    def manufacturer(self) -> str: ...

    @property
    def model(self) -> str: ...

    @property
    def firmware(self) -> str: ...


class TpmDevice(Protocol):
    """See ``hsm.tpm.Tpm`` for what each one promises."""

    def endorsement(self) -> Endorsement: ...

    def attestation_key(self) -> bytes: ...

    def activate(self, credential_blob: bytes, encrypted_secret: bytes) -> bytes: ...

    def quote(self, qualifying: bytes, pcrs: Sequence[int]) -> Quote: ...

    def read_pcrs(self, pcrs: Sequence[int]) -> dict[int, bytes]: ...

    def measure(self, pcr: int, data: bytes) -> object: ...

    def identity(self) -> Identity: ...


OpenTpm = Callable[[], AbstractContextManager[TpmDevice]]
