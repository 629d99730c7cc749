"""The TPM as the rest of the project sees it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from types import TracebackType

from cryptography.hazmat.primitives.asymmetric import ec

from hsm.errors import TpmError
from hsm.tpm import attestation, endorsement, floor, sealing, storage
from hsm.tpm import pcrs as registers
from hsm.tpm.connection import DEFAULT_TCTI, Connection
from hsm.tpm.endorsement import EndorsementKey
from hsm.tpm.nv import chain_certificates
from hsm.tpm.sealing import SealedSecret
from hsm.tpm.types import Endorsement, Quote, TpmIdentity
from nodeos.core.errors import UsageError
from nodeos.core.statepolicy import PolicySignature, PolicySignatures

_QUOTE_TRIES = 8


class Tpm:
    """A connection to a TPM 2.0, used as a context manager. All methods raise ``hsm.errors.TpmError``.

    ``tcti`` names the way to it in the form of the TPM2 tools. Use the kernel's resource manager (the
    default): the plain device has room for three keys only.
    """

    def __init__(self, tcti: str = DEFAULT_TCTI) -> None:
        self.tcti = tcti
        self._opened: Connection | None = None
        self._endorsement_key: EndorsementKey | None = None

    def __enter__(self) -> Tpm:
        self._opened = Connection(self.tcti)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        connection, key = self._connection, self._endorsement_key
        self._opened = self._endorsement_key = None
        try:
            if key is not None and not connection.is_persistent(key.handle):
                connection.esys.flush_context(key.handle)
        except RuntimeError:
            # The connection is broken, and its end frees the key. The error to see is the one before.
            if error is None:
                raise
        finally:
            connection.close()

    @property
    def _connection(self) -> Connection:
        if self._opened is None:
            raise RuntimeError("use Tpm as a context manager")
        return self._opened

    def _endorsement(self) -> EndorsementKey:
        """The endorsement key, loaded when it is first needed."""
        if self._endorsement_key is None:
            self._endorsement_key = endorsement.load(self._connection)
        return self._endorsement_key

    def endorsement(self) -> Endorsement:
        """The endorsement key and its certificates: RSA-2048 if it has a certificate, else an elliptic curve.

        Makes the key from the TCG's template if the TPM doesn't hold it ready; on some TPMs that takes tens
        of seconds. Writes nothing to the TPM.
        """
        key = self._endorsement()
        chain = chain_certificates(endorsement.read_chain(self._connection)) if key.certificate else ()
        leaf = (key.certificate,) if key.certificate else ()
        return Endorsement(public=bytes(key.public.publicArea.marshal()), certificates=(*leaf, *chain))

    def attestation_key(self) -> bytes:
        """The attestation key's TPMT_PUBLIC. Makes the key and stores it at 0x81010002 if it isn't there.

        Raises TpmForeignKeyError, and changes nothing, if another key is there.
        """
        if self._connection.exists(attestation.ATTESTATION_HANDLE):
            _, public = attestation.find(self._connection)
        else:
            public = attestation.make(self._connection, self._endorsement().handle)
        return bytes(public.publicArea.marshal())

    def activate(self, credential_blob: bytes, encrypted_secret: bytes) -> bytes:
        """Open a registrar's credential (TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET) and return the secret.

        Works only on the TPM whose endorsement key, and for the attestation key whose name, it was made for;
        raises TpmCredentialError otherwise.
        """
        return attestation.activate(self._connection, self._endorsement(), credential_blob, encrypted_secret)

    def quote(self, qualifying: bytes, pcrs: Sequence[int]) -> Quote:
        """Sign the SHA-256 values of exactly these PCRs, and ``qualifying`` (at most 32 bytes), with the
        attestation key. Values and signature belong together: a quote that a change overtook is repeated."""
        from tpm2_pytss import TPMS_ATTEST

        wanted = registers.checked(pcrs)
        if len(qualifying) > 32:
            raise UsageError(f"the qualifying data has {len(qualifying)} bytes, at most 32 are allowed")
        handle, _ = attestation.find(self._connection)
        selection = "sha256:" + ",".join(str(pcr) for pcr in wanted)
        for _ in range(_QUOTE_TRIES):
            values = self.read_pcrs(wanted)
            with self._connection.answers("quoting"):
                attest, signature = self._connection.esys.quote(handle, selection, qualifying)
                statement, _ = TPMS_ATTEST.unmarshal(bytes(attest))
                digest = bytes(statement.attested.quote.pcrDigest)
            if digest == hashlib.sha256(b"".join(values[pcr] for pcr in wanted)).digest():
                return Quote(attest=bytes(attest), signature=bytes(signature.marshal()), pcrs=values)
        raise TpmError(
            f"the PCRs changed during each of {_QUOTE_TRIES} quotes", hint="try again when the system is up"
        )

    def read_pcrs(self, pcrs: Sequence[int]) -> dict[int, bytes]:
        """The values of these PCRs in the SHA-256 bank, in rising order."""
        return registers.read(self._connection, pcrs)

    def measure(self, pcr: int, data: bytes) -> dict[str, bytes]:
        """Extend ``pcr`` with the hash of ``data`` in every active bank; returns the digests by bank."""
        return registers.measure(self._connection, pcr, data)

    # The state volume. ``srk`` is the enrolled storage root key's TPMT_PUBLIC; None trusts the TPM at first sight.

    def storage_root(self, owner_auth: bytes = b"") -> bytes:
        """The storage root key's TPMT_PUBLIC. Makes the key and stores it at 0x81000001 if it isn't there."""
        if self._connection.exists(storage.STORAGE_ROOT_HANDLE):
            return storage.find(self._connection)[1]
        return storage.ensure(self._connection, self._endorsement().handle, owner_auth)

    def seal(
        self,
        secret: bytes,
        policy_key: ec.EllipticCurvePublicKey,
        *,
        srk: bytes | None = None,
        under: PolicySignature | None = None,
    ) -> SealedSecret:
        """Seal at most 128 bytes to the policies that the P-256 key ``policy_key`` signs.

        With ``under``, a policy by that key whose PCRs hold now, ``check_creation`` will accept the result.
        """
        return sealing.seal(self._connection, secret, policy_key, enrolled=srk, under=under)

    def choose_policy(
        self, policy_key: bytes, signatures: PolicySignatures, *, srk: bytes | None = None
    ) -> PolicySignature:
        """The policy by ``policy_key`` (DER) that this boot satisfies; raises like ``unseal`` if there is none."""
        return sealing.choose(self._connection, policy_key, signatures, enrolled=srk)

    def check_creation(self, sealed: SealedSecret) -> None:
        """Raises TpmCreationError unless this TPM sealed the secret under a policy that its key signed."""
        sealing.check_creation(self._connection, sealed)

    def unseal(self, sealed: SealedSecret, signatures: PolicySignatures) -> bytes:
        """The secret; see ``hsm.tpm.sealing.unseal`` for what can be wrong."""
        return sealing.unseal(self._connection, sealed, signatures)

    def define_floor(self, version: int, owner_auth: bytes = b"", *, srk: bytes | None = None) -> int:
        """Make the rollback floor if it isn't there, at least at ``version``. Returns the floor."""
        return floor.define(self._connection, version, owner_auth, enrolled=srk)

    def read_floor(self, *, srk: bytes | None = None) -> int:
        """The rollback floor: releases with a lower security version can't unseal."""
        return floor.read(self._connection, enrolled=srk)

    def raise_floor(self, version: int, *, srk: bytes | None = None) -> int:
        """Raise the floor to ``version``, never lower it. Returns the floor."""
        return floor.raise_to(self._connection, version, enrolled=srk)

    def set_owner_auth(self, new: bytes, *, old: bytes = b"", srk: bytes | None = None) -> None:
        """Give the owner hierarchy a random password of 16 to 32 bytes."""
        storage.set_owner_auth(self._connection, new, old=old, enrolled=srk)

    def has_owner_auth(self) -> bool:
        """True if the owner hierarchy has a password (TPM 2.0 Library, Part 2, TPMA_PERMANENT: ownerAuthSet)."""
        with self._connection.answers("asking if the TPM has an owner password"):
            return bool(self._connection.property(0x200) & 1)

    def identity(self) -> TpmIdentity:
        """Manufacturer (four letters), model and firmware version, as the TPM reports them."""
        # TPM 2.0 Library, Part 2, "TPM_PT": manufacturer 0x105, vendor strings 0x106-0x109, firmware 0x10B-C.
        with self._connection.answers("reading the TPM's properties"):
            values = [self._connection.property(number) for number in range(0x105, 0x10D)]
        words = b"".join(value.to_bytes(4, "big") for value in values[1:5])
        high, low = values[6], values[7]
        return TpmIdentity(
            manufacturer=_printable(values[0].to_bytes(4, "big")),
            model=_printable(words),
            firmware=f"{high >> 16}.{high & 0xFFFF}.{low >> 16}.{low & 0xFFFF}",
        )


def _printable(data: bytes) -> str:
    """The text in a property: unused bytes are zero or spaces, others than ASCII become '?'."""
    text = data.replace(b"\0", b"").decode("ascii", errors="replace")
    return "".join(c if c.isprintable() and c != "\ufffd" else "?" for c in text).strip()
