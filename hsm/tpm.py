"""The node's TPM: its endorsement, its attestation key, quotes, measurements.

The attestation key is a primary key of the endorsement hierarchy with a fixed template, so the same TPM
makes the same key again after a reinstallation. It is exempt from the TPM's dictionary attack protection: its
password is empty, there is nothing to guess, and otherwise each power cut after a quote would count as a
wrong guess (with swtpm the fourth start would be locked out).

Sessions that carry secrets are salted to the endorsement key and encrypt their first parameters, against
listeners on the bus.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from hsm.errors import TpmCredentialError, TpmError, TpmForeignKeyError, TpmMissingError, tpm_error
from hsm.tpm_nv import CHAIN_FIRST, CHAIN_LAST, PLACES, EndorsementPlace, chain_certificates, leaf_certificate
from nodeos.core.errors import UsageError

DEFAULT_TCTI = "device:/dev/tpmrm0"
ATTESTATION_HANDLE = 0x81010002
PCRS = range(24)

_UNIQUE = hashlib.sha256(b"nodeos attestation key 1").digest()
_ATTESTATION_ATTRIBUTES = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|sign"
_ENDORSEMENT_HIERARCHY = bytes.fromhex("4000000b")
_QUOTE_TRIES = 8
# TPM 2.0 Library, Part 2, "TPM_ALG_ID": the name in hashlib and in TPMU_HA.
_BANKS = {
    0x0004: ("sha1", "sha1"),
    0x000B: ("sha256", "sha256"),
    0x000C: ("sha384", "sha384"),
    0x000D: ("sha512", "sha512"),
    0x0012: ("sm3", "sm3_256"),
}


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


@dataclass(frozen=True, slots=True)
class _EndorsementKey:
    handle: Any
    public: Any
    certificate: bytes | None


class Tpm:
    """A connection to a TPM 2.0, used as a context manager. All methods raise ``hsm.errors.TpmError``.

    ``tcti`` names the way to it in the form of the TPM2 tools. Use the kernel's resource manager (the
    default): the plain device has room for three keys only.
    """

    def __init__(self, tcti: str = DEFAULT_TCTI) -> None:
        self.tcti = tcti
        self._context: Any = None
        self._endorsement_key: _EndorsementKey | None = None

    def __enter__(self) -> Tpm:
        # The libraries print every error of the TPM to standard error; ours say it once and better.
        os.environ.setdefault("TSS2_LOG", "all+none")
        kind, _, where = self.tcti.partition(":")
        if kind == "device":
            _check_device(Path(where or "/dev/tpmrm0"))
        from tpm2_pytss import ESAPI

        with self._answers("opening the TPM"):
            try:
                self._context = ESAPI(self.tcti)
            except RuntimeError as error:
                if hasattr(error, "rc"):
                    raise TpmMissingError(
                        f"no TPM answers at {self.tcti}: {error}",
                        hint="see that the TPM is switched on in the firmware and that nothing else holds it",
                        response_code=int(error.rc),
                    ) from error
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        key, self._endorsement_key = self._endorsement_key, None
        try:
            if key is not None and not _persistent(self._context, key.handle):
                self._context.flush_context(key.handle)
        except RuntimeError:
            # The connection is broken, and its end frees the key. The error to see is the one before.
            if error is None:
                raise
        finally:
            self._context.close()
            self._context = None

    @property
    def _esys(self) -> Any:
        if self._context is None:
            raise RuntimeError("use Tpm as a context manager")
        return self._context

    # Endorsement

    def endorsement(self) -> Endorsement:
        """The endorsement key and its certificates: RSA-2048 if it has a certificate, else an elliptic curve.

        Makes the key from the TCG's template if the TPM doesn't hold it ready; on some TPMs that takes tens
        of seconds. Writes nothing to the TPM.
        """
        key = self._endorsement_loaded()
        with self._answers("reading the endorsement certificates"):
            chain = chain_certificates(self._chain()) if key.certificate else ()
        leaf = (key.certificate,) if key.certificate else ()
        return Endorsement(public=bytes(key.public.publicArea.marshal()), certificates=(*leaf, *chain))

    def _endorsement_loaded(self) -> _EndorsementKey:
        if self._endorsement_key is None:
            with self._answers("loading the endorsement key"):
                self._endorsement_key = self._load_endorsement()
        return self._endorsement_key

    def _load_endorsement(self) -> _EndorsementKey:
        place = next((place for place in PLACES if self._exists(place.certificate)), None)
        certificate = leaf_certificate(self._read_storage(place.certificate)) if place else None
        place = place or PLACES[0]
        if self._exists(place.handle):
            handle = self._esys.tr_from_tpmpublic(place.handle)
            public, _, _ = self._esys.read_public(handle)
            if certificate is None or _key_bytes(public) in certificate:
                return _EndorsementKey(handle, public, certificate)
        handle, public = self._create_endorsement(place)
        if certificate is not None and _key_bytes(public) not in certificate:
            self._esys.flush_context(handle)
            raise TpmError(
                "the TPM's endorsement key is not the one in its certificate",
                hint="its endorsement seed was changed after manufacture: restore it, or replace the TPM",
            )
        return _EndorsementKey(handle, public, certificate)

    def _create_endorsement(self, place: EndorsementPlace) -> tuple[Any, Any]:
        from tpm2_pytss import ESYS_TR
        from tpm2_pytss.utils import NoSuchIndex, create_ek_template

        def stored(index: int) -> bytes:
            if not self._exists(index):
                raise NoSuchIndex(index)
            return self._read_storage(index)

        _, template = create_ek_template(place.template, stored)
        handle, public, *_ = self._esys.create_primary(None, template, ESYS_TR.ENDORSEMENT)
        return handle, public

    def _chain(self) -> bytes:
        data = b""
        for index in range(CHAIN_FIRST, CHAIN_LAST + 1):
            if not self._exists(index):
                break
            data += self._read_storage(index)
        return data

    # Attestation

    def attestation_key(self) -> bytes:
        """The attestation key's TPMT_PUBLIC. Makes the key and stores it at 0x81010002 if it isn't there.

        Raises TpmForeignKeyError, and changes nothing, if another key is there.
        """
        from tpm2_pytss import ESYS_TR, TPM2_SE

        if self._exists(ATTESTATION_HANDLE):
            _, public = self._attestation()
            return bytes(public.publicArea.marshal())
        with (
            self._answers("making the attestation key"),
            self._salted_session(TPM2_SE.HMAC) as session,
        ):
            handle, public, *_ = self._esys.create_primary(
                None, _attestation_template(), ESYS_TR.ENDORSEMENT, session1=session
            )
            try:
                self._esys.evict_control(ESYS_TR.OWNER, handle, ATTESTATION_HANDLE)
            finally:
                self._esys.flush_context(handle)
        return bytes(public.publicArea.marshal())

    def _attestation(self) -> tuple[Any, Any]:
        """The stored attestation key, after a check that it is one of ours: our template and a primary key of
        the endorsement hierarchy, which its qualified name shows."""
        with self._answers("reading the attestation key"):
            if not self._exists(ATTESTATION_HANDLE):
                raise TpmError(
                    f"there is no attestation key at 0x{ATTESTATION_HANDLE:x}",
                    hint="the TPM was cleared, or the node was never enrolled: enrol it",
                )
            handle = self._esys.tr_from_tpmpublic(ATTESTATION_HANDLE)
            public, name, qualified = self._esys.read_public(handle)
            ours = b"\x00\x0b" + hashlib.sha256(_ENDORSEMENT_HIERARCHY + bytes(name)).digest()
            if (
                _template_bytes(public) != _template_bytes(_attestation_template())
                or bytes(qualified) != ours
            ):
                raise TpmForeignKeyError(
                    f"the TPM holds a foreign key at 0x{ATTESTATION_HANDLE:x}, the attestation key's place",
                    hint=f"if nothing needs it: tpm2_evictcontrol -C o -c 0x{ATTESTATION_HANDLE:x}",
                )
            return handle, public

    def activate(self, credential_blob: bytes, encrypted_secret: bytes) -> bytes:
        """Open a registrar's credential (TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET) and return the secret.

        Works only on the TPM whose endorsement key, and for the attestation key whose name, it was made for;
        raises TpmCredentialError otherwise.
        """
        from tpm2_pytss import ESYS_TR, TPM2_SE, TPM2B_ENCRYPTED_SECRET, TPM2B_ID_OBJECT, TPMA_OBJECT

        blob = _unmarshal(TPM2B_ID_OBJECT, credential_blob, "credential")
        secret = _unmarshal(TPM2B_ENCRYPTED_SECRET, encrypted_secret, "credential's secret")
        handle, _ = self._attestation()
        key = self._endorsement_loaded()
        # Keys of the high range may be used with their empty password, those of the low range never.
        simple = bool(int(key.public.publicArea.objectAttributes) & int(TPMA_OBJECT.USERWITHAUTH))
        try:
            with (
                self._answers("opening the registrar's credential"),
                self._salted_session(TPM2_SE.HMAC) as session,
            ):
                if simple:
                    found = self._esys.activate_credential(
                        handle, key.handle, blob, secret, session1=session, session2=ESYS_TR.PASSWORD
                    )
                    return bytes(found)
                with self._plain_policy() as policy:
                    self._esys.policy_secret(ESYS_TR.ENDORSEMENT, policy, expiration=0)
                    found = self._esys.activate_credential(
                        handle, key.handle, blob, secret, session1=session, session2=policy
                    )
                    return bytes(found)
        except TpmError as error:
            # Format-1 answers about a parameter: the blob or the secret is not what this TPM can open.
            # libtpms 0.9 answers a secret for another RSA key with TPM_RC_FAILURE, and goes on working.
            code = error.response_code or 0
            if code & 0xC0 == 0xC0 or (code == 0x101 and self._works()):
                raise TpmCredentialError(
                    "the registrar's credential was not made for this TPM and this attestation key "
                    f"(0x{code:x})",
                    hint="ask for a new challenge; if it stays so, the registrar knows another key",
                    response_code=error.response_code,
                ) from error
            raise

    def quote(self, qualifying: bytes, pcrs: Sequence[int]) -> Quote:
        """Sign the SHA-256 values of exactly these PCRs, and ``qualifying`` (at most 32 bytes), with the
        attestation key. Values and signature belong together: a quote that a change overtook is repeated."""
        from tpm2_pytss import TPMS_ATTEST

        wanted = _checked(pcrs)
        if len(qualifying) > 32:
            raise UsageError(f"the qualifying data has {len(qualifying)} bytes, at most 32 are allowed")
        handle, _ = self._attestation()
        selection = "sha256:" + ",".join(str(pcr) for pcr in wanted)
        for _ in range(_QUOTE_TRIES):
            values = self.read_pcrs(wanted)
            with self._answers("quoting"):
                attest, signature = self._esys.quote(handle, selection, qualifying)
                statement, _ = TPMS_ATTEST.unmarshal(bytes(attest))
                digest = bytes(statement.attested.quote.pcrDigest)
            if digest == hashlib.sha256(b"".join(values[pcr] for pcr in wanted)).digest():
                return Quote(attest=bytes(attest), signature=bytes(signature.marshal()), pcrs=values)
        raise TpmError(
            f"the PCRs changed during each of {_QUOTE_TRIES} quotes", hint="try again when the system is up"
        )

    # PCRs

    def read_pcrs(self, pcrs: Sequence[int]) -> dict[int, bytes]:
        """The values of these PCRs in the SHA-256 bank, in rising order."""
        left = list(_checked(pcrs))
        values: dict[int, bytes] = {}
        with self._answers("reading PCRs"):
            while left:
                # One answer holds at most 8 values; the selection that comes with it says which.
                batch = left[:8]
                _, _, digests = self._esys.pcr_read("sha256:" + ",".join(str(pcr) for pcr in batch))
                found = [bytes(digest) for digest in digests]
                if len(found) != len(batch):
                    raise TpmError(
                        f"the TPM has no SHA-256 values for the PCRs {', '.join(map(str, batch))}",
                        hint="switch the SHA-256 PCR bank on in the firmware",
                    )
                values.update(zip(batch, found, strict=True))
                left = left[8:]
        return values

    def measure(self, pcr: int, data: bytes) -> dict[str, bytes]:
        """Extend ``pcr`` with the hash of ``data`` in every active bank; returns the digests by bank.

        A bank that was left out could be filled with anything later, so one that can't be hashed for is an
        error, before anything is extended.
        """
        from tpm2_pytss import ESYS_TR, TPML_DIGEST_VALUES, TPMT_HA, TPMU_HA

        _checked((pcr,))
        digests: dict[str, bytes] = {}
        values = []
        for bank in self._banks(pcr):
            if bank not in _BANKS or _BANKS[bank][0] not in hashlib.algorithms_available:
                raise TpmError(
                    f"the TPM has a PCR bank that can't be extended here (algorithm 0x{bank:x})",
                    hint="switch this bank off in the firmware",
                )
            name, field = _BANKS[bank]
            digests[name] = hashlib.new(name, data).digest()
            values.append(TPMT_HA(hashAlg=bank, digest=TPMU_HA(**{field: digests[name]})))
        if not values:
            raise TpmError(
                "the TPM has no active PCR bank", hint="switch the SHA-256 bank on in the firmware"
            )
        with self._answers(f"extending PCR {pcr}"):
            self._esys.pcr_extend(ESYS_TR(pcr), TPML_DIGEST_VALUES(values))
        return digests

    def _banks(self, pcr: int) -> list[int]:
        from tpm2_pytss import TPM2_CAP

        with self._answers("reading the PCR banks"):
            _, capability = self._esys.get_capability(TPM2_CAP.PCRS, 0, 1)
            banks = capability.data.assignedPCR
            selections = [(int(bank.hash), bytes(bank.pcrSelect)) for bank in banks]
        return [bank for bank, bits in selections if len(bits) > pcr // 8 and bits[pcr // 8] >> (pcr % 8) & 1]

    # The device itself

    def identity(self) -> TpmIdentity:
        """Manufacturer (four letters), model and firmware version, as the TPM reports them."""
        # TPM 2.0 Library, Part 2, "TPM_PT": manufacturer 0x105, vendor strings 0x106-0x109, firmware 0x10B-C.
        with self._answers("reading the TPM's properties"):
            values = [self._property(number) for number in range(0x105, 0x10D)]
        words = b"".join(value.to_bytes(4, "big") for value in values[1:5])
        high, low = values[6], values[7]
        return TpmIdentity(
            manufacturer=_printable(values[0].to_bytes(4, "big")),
            model=_printable(words),
            firmware=f"{high >> 16}.{high & 0xFFFF}.{low >> 16}.{low & 0xFFFF}",
        )

    def _works(self) -> bool:
        """False if the TPM is in failure mode, in which it refuses everything but questions about itself."""
        from tpm2_pytss import TSS2_Exception

        try:
            self._esys.get_random(1)
        except TSS2_Exception:
            return False
        return True

    def _property(self, number: int) -> int:
        from tpm2_pytss import TPM2_CAP

        # The list is a view into the capability: keep that alive until the value is out.
        _, capability = self._esys.get_capability(TPM2_CAP.TPM_PROPERTIES, number, 1)
        found = capability.data.tpmProperties
        if len(found) != 1 or int(found[0].property) != number:
            raise TpmError(f"the TPM does not tell its property 0x{number:x}")
        return int(found[0].value)

    def _exists(self, handle: int) -> bool:
        from tpm2_pytss import TPM2_CAP

        with self._answers(f"looking for 0x{handle:x}"):
            _, capability = self._esys.get_capability(TPM2_CAP.HANDLES, handle, 1)
            found = capability.data.handles
            return len(found) > 0 and int(found[0]) == handle

    def _read_storage(self, index: int) -> bytes:
        from tpm2_pytss import ESYS_TR, TPMA_NV

        handle = self._esys.tr_from_tpmpublic(index)
        public, _ = self._esys.nv_read_public(handle)
        size = int(public.nvPublic.dataSize)
        own = bool(int(public.nvPublic.attributes) & int(TPMA_NV.AUTHREAD))
        step = min(self._property(0x12C), 1024)  # TPM_PT_NV_BUFFER_MAX
        data = b""
        while len(data) < size:
            part = self._esys.nv_read(
                handle,
                min(step, size - len(data)),
                len(data),
                auth_handle=handle if own else ESYS_TR.OWNER,
            )
            data += bytes(part)
        return data

    # Sessions

    @contextmanager
    def _salted_session(self, kind: int) -> Iterator[Any]:
        """A session whose key only the TPM with our endorsement key knows, with parameter encryption."""
        from tpm2_pytss import TPMA_SESSION

        with self._session(kind, self._endorsement_loaded().handle) as session:
            self._esys.trsess_set_attributes(
                session, TPMA_SESSION.CONTINUESESSION | TPMA_SESSION.DECRYPT | TPMA_SESSION.ENCRYPT
            )
            yield session

    @contextmanager
    def _plain_policy(self) -> Iterator[Any]:
        from tpm2_pytss import ESYS_TR, TPM2_SE, TPMA_SESSION

        with self._session(TPM2_SE.POLICY, ESYS_TR.NONE) as session:
            self._esys.trsess_set_attributes(session, TPMA_SESSION.CONTINUESESSION)
            yield session

    @contextmanager
    def _session(self, kind: int, salt_key: Any) -> Iterator[Any]:
        from tpm2_pytss import ESYS_TR, TPM2_ALG, TPMT_SYM_DEF

        session = self._esys.start_auth_session(
            salt_key, ESYS_TR.NONE, kind, TPMT_SYM_DEF.parse("aes128cfb"), TPM2_ALG.SHA256
        )
        try:
            yield session
        finally:
            self._esys.flush_context(session)

    @contextmanager
    def _answers(self, what: str) -> Iterator[None]:
        """Turn the library's errors into ours; ``what`` says what was tried."""
        from tpm2_pytss import TSS2_Exception

        try:
            yield
        except TSS2_Exception as error:
            raise tpm_error(int(error.rc), what, str(error)) from error


def _check_device(path: Path) -> None:
    if not path.exists():
        raise TpmMissingError(
            f"there is no TPM: {path} does not exist",
            hint="switch the TPM 2.0 (also: fTPM, PTT, security device) on in the firmware",
        )
    if not os.access(path, os.R_OK | os.W_OK):
        raise TpmMissingError(f"{path}: no permission to use the TPM", hint="run this as root")


def _checked(pcrs: Sequence[int]) -> tuple[int, ...]:
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


def _attestation_template() -> Any:
    from tpm2_pytss import TPM2B_PUBLIC, TPMA_OBJECT

    template = TPM2B_PUBLIC.parse(
        "ecc256:ecdsa-sha256:null", objectAttributes=TPMA_OBJECT.parse(_ATTESTATION_ATTRIBUTES)
    )
    template.publicArea.unique.ecc.x = _UNIQUE
    return template


def _template_bytes(public: Any) -> bytes:
    """A public area without its key: type, name algorithm, attributes, policy and parameters."""
    marshalled = bytes(public.publicArea.marshal())
    unique = public.publicArea.unique.ecc if int(public.publicArea.type) == 0x0023 else None
    length = 4 + len(bytes(unique.x)) + len(bytes(unique.y)) if unique is not None else 0
    return marshalled[: len(marshalled) - length]


def _key_bytes(public: Any) -> bytes:
    """The modulus or the point of a public area, as it stands in a certificate of this key."""
    area = public.publicArea
    if int(area.type) == 0x0001:
        return bytes(area.unique.rsa)
    size = {0x0003: 32, 0x0004: 48}[int(area.parameters.eccDetail.curveID)]
    return bytes(area.unique.ecc.x).rjust(size, b"\0") + bytes(area.unique.ecc.y).rjust(size, b"\0")


def _persistent(context: Any, handle: Any) -> bool:
    return int(context.tr_get_tpm_handle(handle)) >> 24 == 0x81


def _unmarshal(kind: Any, data: bytes, what: str) -> Any:
    from tpm2_pytss import TSS2_Exception

    try:
        value, used = kind.unmarshal(data)
    except TSS2_Exception as error:
        raise TpmCredentialError(f"the {what} is malformed") from error
    if used != len(data):
        raise TpmCredentialError(f"the {what} is followed by other data")
    return value


def _printable(data: bytes) -> str:
    """The text in a property: unused bytes are zero or spaces, others than ASCII become '?'."""
    text = data.replace(b"\0", b"").decode("ascii", errors="replace")
    return "".join(c if c.isprintable() and c != "\ufffd" else "?" for c in text).strip()
