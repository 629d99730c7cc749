"""A connection to a TPM: opening and closing it, sessions, stored data, and its errors in our words."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hsm.errors import TpmError, TpmMissingError, tpm_error

DEFAULT_TCTI = "device:/dev/tpmrm0"


class Connection:
    """An open ESAPI context, ``esys``. Every use of it stands inside ``answers``."""

    def __init__(self, tcti: str) -> None:
        # The libraries print every error of the TPM to standard error; ours say it once and better.
        os.environ.setdefault("TSS2_LOG", "all+none")
        kind, _, where = tcti.partition(":")
        if kind == "device":
            _check_device(Path(where or "/dev/tpmrm0"))
        from tpm2_pytss import ESAPI

        with self.answers("opening the TPM"):
            try:
                self.esys: Any = ESAPI(tcti)
            except RuntimeError as error:
                if hasattr(error, "rc"):
                    raise TpmMissingError(
                        f"no TPM answers at {tcti}: {error}",
                        hint="see that the TPM is switched on in the firmware and that nothing else holds it",
                        response_code=int(error.rc),
                    ) from error
                raise

    def close(self) -> None:
        self.esys.close()

    @contextmanager
    def answers(self, what: str) -> Iterator[None]:
        """Turn the library's errors into ours; ``what`` says what was tried."""
        from tpm2_pytss import TSS2_Exception

        try:
            yield
        except TSS2_Exception as error:
            raise tpm_error(int(error.rc), what, str(error)) from error

    # Sessions

    @contextmanager
    def salted_session(self, kind: int, salt_key: Any) -> Iterator[Any]:
        """A session whose key only the TPM with ``salt_key`` knows, with parameter encryption."""
        from tpm2_pytss import TPMA_SESSION

        with self._session(kind, salt_key) as session:
            self.esys.trsess_set_attributes(
                session, TPMA_SESSION.CONTINUESESSION | TPMA_SESSION.DECRYPT | TPMA_SESSION.ENCRYPT
            )
            yield session

    @contextmanager
    def plain_policy(self) -> Iterator[Any]:
        """A policy session without salt, for policies that carry no secret."""
        from tpm2_pytss import ESYS_TR, TPM2_SE, TPMA_SESSION

        with self._session(TPM2_SE.POLICY, ESYS_TR.NONE) as session:
            self.esys.trsess_set_attributes(session, TPMA_SESSION.CONTINUESESSION)
            yield session

    @contextmanager
    def _session(self, kind: int, salt_key: Any) -> Iterator[Any]:
        from tpm2_pytss import ESYS_TR, TPM2_ALG, TPMT_SYM_DEF

        session = self.esys.start_auth_session(
            salt_key, ESYS_TR.NONE, kind, TPMT_SYM_DEF.parse("aes128cfb"), TPM2_ALG.SHA256
        )
        try:
            yield session
        finally:
            self.esys.flush_context(session)

    # What the TPM holds

    def exists(self, handle: int) -> bool:
        """True if there is an object or an NV index at this handle."""
        from tpm2_pytss import TPM2_CAP

        with self.answers(f"looking for 0x{handle:x}"):
            _, capability = self.esys.get_capability(TPM2_CAP.HANDLES, handle, 1)
            found = capability.data.handles
            return len(found) > 0 and int(found[0]) == handle

    def property(self, number: int) -> int:
        """One of the TPM's properties (TPM 2.0 Library, Part 2, "TPM_PT")."""
        from tpm2_pytss import TPM2_CAP

        # The list is a view into the capability: keep that alive until the value is out.
        _, capability = self.esys.get_capability(TPM2_CAP.TPM_PROPERTIES, number, 1)
        found = capability.data.tpmProperties
        if len(found) != 1 or int(found[0].property) != number:
            raise TpmError(f"the TPM does not tell its property 0x{number:x}")
        return int(found[0].value)

    def read_storage(self, index: int) -> bytes:
        """The whole content of an NV index."""
        from tpm2_pytss import ESYS_TR, TPMA_NV

        handle = self.esys.tr_from_tpmpublic(index)
        public, _ = self.esys.nv_read_public(handle)
        size = int(public.nvPublic.dataSize)
        own = bool(int(public.nvPublic.attributes) & int(TPMA_NV.AUTHREAD))
        step = min(self.property(0x12C), 1024)  # TPM_PT_NV_BUFFER_MAX
        data = b""
        while len(data) < size:
            part = self.esys.nv_read(
                handle,
                min(step, size - len(data)),
                len(data),
                auth_handle=handle if own else ESYS_TR.OWNER,
            )
            data += bytes(part)
        return data

    def is_persistent(self, handle: Any) -> bool:
        return int(self.esys.tr_get_tpm_handle(handle)) >> 24 == 0x81

    def works(self) -> bool:
        """False if the TPM is in failure mode, in which it refuses everything but questions about itself."""
        from tpm2_pytss import TSS2_Exception

        try:
            self.esys.get_random(1)
        except TSS2_Exception:
            return False
        return True


def _check_device(path: Path) -> None:
    if not path.exists():
        raise TpmMissingError(
            f"there is no TPM: {path} does not exist",
            hint="switch the TPM 2.0 (also: fTPM, PTT, security device) on in the firmware",
        )
    if not os.access(path, os.R_OK | os.W_OK):
        raise TpmMissingError(f"{path}: no permission to use the TPM", hint="run this as root")
