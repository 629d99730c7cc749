"""What the agent asks of a TPM: the part of ``hsm.tpm.Tpm`` that it uses, so that a test can stand in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from hsm.tpm.types import Endorsement, Quote, TpmIdentity


class TpmDevice(Protocol):
    """See ``hsm.tpm.Tpm`` for what each one promises."""

    def endorsement(self) -> Endorsement: ...

    def attestation_key(self) -> bytes: ...

    def activate(self, credential_blob: bytes, encrypted_secret: bytes) -> bytes: ...

    def quote(self, qualifying: bytes, pcrs: Sequence[int]) -> Quote: ...

    def read_pcrs(self, pcrs: Sequence[int]) -> dict[int, bytes]: ...

    def measure(self, pcr: int, data: bytes) -> object: ...

    def identity(self) -> TpmIdentity: ...


OpenTpm = Callable[[], AbstractContextManager[TpmDevice]]
