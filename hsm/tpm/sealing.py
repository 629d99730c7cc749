"""A secret sealed in the TPM under the state policy, and its way out again.

The object has no password (userWithAuth is off) and only the policy opens it. It is noDA: there is nothing to
guess, and a TPM that is locked out after power cuts must still start the node. The secret crosses the bus only as
an encrypted parameter of sessions that are salted to the enrolled storage root key.

Whoever can use the TPM can seal a secret of their own under the same public policy, and plant a volume with it. So
the TPM's word on the making is kept: the creation data, which hold the PCRs of that moment, and the TPM's
ticket for them (TPM 2.0 Library 1.59, Part 1, "Creation Data"; Part 3, 18.3 TPM2_CertifyCreation).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key

from hsm.errors import (
    TpmCreationError,
    TpmCredentialError,
    TpmError,
    TpmPcrError,
    TpmPolicyError,
    TpmRollbackError,
    TpmSealedError,
    TpmSignatureError,
)
from hsm.keys import public_der
from hsm.tpm import floor, pcrs, storage
from hsm.tpm.connection import Connection
from nodeos.core import statepolicy
from nodeos.core.statepolicy import PolicySignature, PolicySignatures
from nodeos.core.wire import Fields, ParseError, b64, parse_text

TOKEN_TYPE = "nodeos-tpm2"  # noqa: S105 - the kind of a LUKS2 token, no secret
MAX_SECRET = 128
_SIGNATURE, _POLICY, _POLICY_FAIL, _TICKET = 0x09B, 0x126, 0x09D, 0x0A0
_SELECTION = "sha256:" + ",".join(map(str, statepolicy.POLICY_PCRS))
_PCR_WORDS = {
    7: "7 (Secure Boot keys or state)",
    11: "11 (release or boot phase)",
    12: "12 (a credential, an addon or another command line on the EFI partition)",
    13: "13 (a system extension on the EFI partition)",
    15: "15 (the volume was opened already in this boot)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Creation:
    """How a secret came to be sealed: ``data`` is a TPM2B_CREATION_DATA, ``ticket`` a TPMT_TK_CREATION.

    ``policy`` is the signed policy whose PCRs held; it is by the key that the secret is sealed to.
    """

    data: bytes
    ticket: bytes
    policy: PolicySignature

    def to_json(self) -> dict[str, object]:
        return {"data": b64(self.data), "ticket": b64(self.ticket), "policy": self.policy.to_json()}

    @classmethod
    def parse(cls, fields: Fields) -> Creation:
        found = cls(
            data=fields.data("data", limit=1024),
            ticket=fields.data("ticket", limit=256),
            policy=PolicySignature.parse(fields.nested("policy")),
        )
        fields.done()
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedSecret:
    """``public`` is a TPM2B_PUBLIC, ``private`` a TPM2B_PRIVATE, ``srk_public`` a TPMT_PUBLIC.

    ``policy_key`` is DER SubjectPublicKeyInfo. Without ``creation`` nothing proves when the secret was sealed.
    """

    public: bytes
    private: bytes
    srk_public: bytes
    policy_key: bytes
    creation: Creation | None = None

    def to_json(self, keyslots: tuple[int, ...]) -> dict[str, object]:
        """A LUKS2 token for these key slots."""
        return {
            "type": TOKEN_TYPE,
            "keyslots": [str(slot) for slot in keyslots],
            "public": b64(self.public),
            "private": b64(self.private),
            "srk_public": b64(self.srk_public),
            "policy_key": b64(self.policy_key),
            **({} if self.creation is None else {"creation": self.creation.to_json()}),
        }

    @classmethod
    def parse(cls, fields: Fields) -> tuple[SealedSecret, tuple[int, ...]]:
        """The secret and its key slots. Raises ParseError with the path of the first wrong field."""
        if (kind := fields.text("type")) != TOKEN_TYPE:
            raise ParseError(f"{fields.path}.type: expected {TOKEN_TYPE}, found {kind}")
        slots = fields.list_of("keyslots", _keyslot, limit=32)
        creation = Creation.parse(fields.nested("creation")) if fields.has("creation") else None
        sealed = cls(
            public=fields.data("public", limit=2048),
            private=fields.data("private", limit=2048),
            srk_public=fields.data("srk_public", limit=2048),
            policy_key=fields.data("policy_key", limit=2048),
            creation=creation,
        )
        fields.done()
        return sealed, slots


def seal(
    connection: Connection,
    secret: bytes,
    policy_key: ec.EllipticCurvePublicKey,
    *,
    enrolled: bytes | None = None,
    under: PolicySignature | None = None,
) -> SealedSecret:
    """Seal ``secret`` (1 to 128 bytes) to what ``policy_key`` signs. The storage root key must be there.

    With ``under``, a policy by that key whose PCRs hold now, the secret carries the proof of it.
    """
    from tpm2_pytss import TPM2B_SENSITIVE_CREATE, TPM2B_SENSITIVE_DATA, TPMS_SENSITIVE_CREATE

    if not 1 <= len(secret) <= MAX_SECRET:
        raise ValueError(f"a sealed secret has 1 to {MAX_SECRET} bytes, not {len(secret)}")
    der = public_der(policy_key)
    template = _template(der)
    _, srk_public = storage.find(connection, enrolled)
    sensitive = TPM2B_SENSITIVE_CREATE(TPMS_SENSITIVE_CREATE(data=TPM2B_SENSITIVE_DATA(secret)))
    with (
        connection.answers("sealing"),
        storage.session(connection, srk_public, encrypt=True, decrypt=True) as session,
    ):
        parent, _ = storage.find(connection, srk_public)
        private, public, data, _, ticket = connection.esys.create(
            parent, sensitive, template, creation_pcr=_SELECTION, session1=session
        )
    creation = None
    if under is not None:
        creation = Creation(data=bytes(data.marshal()), ticket=bytes(ticket.marshal()), policy=under)
    return SealedSecret(
        public=bytes(public.marshal()),
        private=bytes(private.marshal()),
        srk_public=srk_public,
        policy_key=der,
        creation=creation,
    )


def check_creation(connection: Connection, sealed: SealedSecret) -> None:
    """Does this TPM say that it sealed the secret itself, while the PCRs of a policy by the secret's key held?

    Raises TpmCreationError if not, and what ``unseal`` raises for another TPM or a damaged blob. Whether the
    key may be trusted is the caller's question.
    """
    from tpm2_pytss import ESYS_TR, TPM2_ALG, TPMT_SIG_SCHEME

    creation = sealed.creation
    if creation is None:
        raise _unproven("it carries no proof of its making")
    _check_policy(sealed.policy_key, creation.policy)
    data, ticket = _creation_parts(creation)
    made_under = data.creationData
    if bytes(made_under.pcrSelect.marshal()) != _selection():
        raise _unproven("its making was recorded with other PCRs")
    values = b"".join(creation.policy.pcrs[pcr] for pcr in statepolicy.POLICY_PCRS)
    if bytes(made_under.pcrDigest) != hashlib.sha256(values).digest():
        raise _unproven("it was made in another state of the machine than our initial RAM disk's")
    digest = hashlib.sha256(bytes(made_under.marshal())).digest()
    with _loaded(connection, sealed) as (_, handle):
        try:
            with (
                connection.answers("checking how the secret was sealed"),
                storage.session(connection, sealed.srk_public) as session,
            ):
                connection.esys.certify_creation(
                    ESYS_TR.NULL,
                    handle,
                    b"",
                    digest,
                    TPMT_SIG_SCHEME(scheme=TPM2_ALG.NULL),
                    ticket,
                    session1=session,
                )
        except TpmError as error:
            if (code := error.response_code or 0) & 0x080 and 0x080 | code & 0x3F == _TICKET:
                raise _unproven("the TPM does not know the ticket of its making") from error
            raise


def unseal(connection: Connection, sealed: SealedSecret, signatures: PolicySignatures) -> bytes:
    """The secret, if one of ``signatures`` is for this key, these PCRs and a version that the floor allows.

    Raises TpmStorageRootError (another or a cleared TPM), TpmSealedError (a damaged blob), TpmSignatureError (none
    for this key, or a wrong one), TpmPcrError, TpmRollbackError, TpmFloorError, TpmLockoutError.
    """
    _blob(sealed)
    storage.find(connection, sealed.srk_public)
    chosen = choose(connection, sealed.policy_key, signatures, enrolled=sealed.srk_public)
    with _loaded(connection, sealed) as (parent, handle):
        try:
            with connection.answers("unsealing"):
                return _open(connection, parent, handle, sealed, chosen)
        except TpmError as error:
            raise _explained(error) from error


@contextmanager
def _loaded(connection: Connection, sealed: SealedSecret) -> Iterator[tuple[Any, Any]]:
    """The parent and the sealed object in the TPM."""
    public, private = _blob(sealed)
    parent, _ = storage.find(connection, sealed.srk_public)
    esys = connection.esys
    try:
        with (
            connection.answers("loading the sealed secret"),
            storage.session(connection, sealed.srk_public, decrypt=True) as session,
        ):
            handle = esys.load(parent, private, public, session1=session)
    except TpmCredentialError as error:  # TPM_RC_INTEGRITY
        raise TpmSealedError(
            "the sealed secret is damaged, or it is from another TPM",
            hint="use the recovery key",
            response_code=error.response_code,
        ) from error
    try:
        yield parent, handle
    finally:
        esys.flush_context(handle)


def _open(
    connection: Connection, parent: Any, handle: Any, sealed: SealedSecret, chosen: PolicySignature
) -> bytes:
    from tpm2_pytss import TPM2_EO, TPM2_SE, TPMA_SESSION

    esys = connection.esys
    index = floor.find(connection)
    key, name, ticket = _verified(connection, sealed.policy_key, chosen)
    esys.flush_context(key)
    with connection.salted_session(TPM2_SE.POLICY, parent) as session:
        # TPM2_Unseal has no parameter to encrypt on the way in.
        esys.trsess_set_attributes(session, TPMA_SESSION.CONTINUESESSION | TPMA_SESSION.ENCRYPT)
        esys.policy_pcr(session, b"", _SELECTION)
        operand = statepolicy.floor_operand(chosen.version)
        esys.policy_nv(index, index, session, operand, TPM2_EO.BITCLEAR)
        esys.policy_authorize(session, chosen.policy, name, ticket, statepolicy.POLICY_REF)
        return bytes(esys.unseal(handle, session1=session))


def _verified(connection: Connection, der: bytes, chosen: PolicySignature) -> tuple[Any, Any, Any]:
    """Handle and name of the policy key in the TPM, and the TPM's ticket for the signature."""
    from tpm2_pytss import ESYS_TR, TPM2_ALG, TPM2B_PUBLIC, TPMA_OBJECT, TPMT_SIGNATURE

    esys = connection.esys
    external = TPM2B_PUBLIC.from_pem(
        _pem(der), objectAttributes=TPMA_OBJECT.USERWITHAUTH | TPMA_OBJECT.SIGN_ENCRYPT, symmetric=None
    )
    signature = TPMT_SIGNATURE(sigAlg=TPM2_ALG.ECDSA)
    signature.signature.ecdsa.hash = TPM2_ALG.SHA256
    signature.signature.ecdsa.signatureR = chosen.signature[:32]
    signature.signature.ecdsa.signatureS = chosen.signature[32:]
    digest = hashlib.sha256(statepolicy.signed_message(chosen.policy)).digest()
    # Tickets of the null hierarchy don't count for PolicyAuthorize.
    key = esys.load_external(external, hierarchy=ESYS_TR.OWNER)
    try:
        _, name, _ = esys.read_public(key)
        return key, name, esys.verify_signature(key, digest, signature)
    except BaseException:
        esys.flush_context(key)
        raise


def choose(
    connection: Connection, policy_key: bytes, signatures: PolicySignatures, *, enrolled: bytes | None = None
) -> PolicySignature:
    """The policy by ``policy_key`` (DER) that holds now. The TPM decides; this is for errors that say what is
    wrong.

    Raises TpmSignatureError, TpmPcrError, TpmRollbackError, TpmFloorError.
    """
    fingerprint = hashlib.sha256(policy_key).digest()
    ours = [item for item in signatures.signatures if item.key == fingerprint]
    if not ours:
        raise TpmSignatureError(
            f"the release has no policy signature by the volume's key, {fingerprint.hex()[:16]}…",
            hint="start a release that is signed by this key, or use the recovery key",
        )
    now = pcrs.read(connection, statepolicy.POLICY_PCRS)
    differing = [[pcr for pcr in now if item.pcrs[pcr] != now[pcr]] for item in ours]
    if all(differing):
        words = "; ".join(_PCR_WORDS[pcr] for pcr in min(differing, key=len))
        raise TpmPcrError(
            f"the PCRs are not those that the release was signed for. Different: {words}",
            hint="switch the machine off and on, start the released image, and see that Secure Boot has our keys",
        )
    best = max((item for item, wrong in zip(ours, differing, strict=True) if not wrong), key=_version)
    lowest = floor.read(connection, enrolled=enrolled)
    if lowest > best.version:
        raise _rollback(f"its security version is {best.version}, and this machine's floor is {lowest}")
    return best


def _unproven(why: str) -> TpmCreationError:
    return TpmCreationError(
        f"nothing proves that our system sealed this secret: {why}",
        hint="the volume may have been prepared by somebody else: erase its partition and start anew",
    )


def _check_policy(der: bytes, policy: PolicySignature) -> None:
    """Raises TpmCreationError unless the key ``der`` has signed ``policy``."""
    if policy.key != hashlib.sha256(der).digest():
        raise _unproven("the policy of its making is by another key")
    r, s = (int.from_bytes(part, "big") for part in (policy.signature[:32], policy.signature[32:]))
    try:
        message = statepolicy.signed_message(policy.policy)
        _key(der).verify(encode_dss_signature(r, s), message, ec.ECDSA(SHA256()))
    except (InvalidSignature, ValueError) as error:
        raise _unproven("the policy of its making has a wrong signature") from error


def _creation_parts(creation: Creation) -> tuple[Any, Any]:
    """The TPM2B_CREATION_DATA and the TPMT_TK_CREATION."""
    from tpm2_pytss import TPM2B_CREATION_DATA, TPMT_TK_CREATION, TSS2_Exception

    try:
        data, used = TPM2B_CREATION_DATA.unmarshal(creation.data)
        ticket, length = TPMT_TK_CREATION.unmarshal(creation.ticket)
    except (TSS2_Exception, ValueError) as error:
        raise _unproven("the proof of its making is malformed") from error
    if used != len(creation.data) or length != len(creation.ticket):
        raise _unproven("the proof of its making is malformed")
    return data, ticket


def _selection() -> bytes:
    from tpm2_pytss import TPML_PCR_SELECTION

    return bytes(TPML_PCR_SELECTION.parse(_SELECTION).marshal())


def _version(item: PolicySignature) -> int:
    return item.version


def _rollback(words: str) -> TpmRollbackError:
    return TpmRollbackError(f"the release is too old for this machine: {words}", hint="start a newer release")


def _explained(error: TpmError) -> TpmError:
    """What the TPM's answer to one of the policy commands means."""
    code = error.response_code or 0
    base = 0x080 | code & 0x3F if code & 0x080 else code
    if base == _SIGNATURE:
        return TpmSignatureError(
            "the release's policy signature is wrong: it is not by the key that it names, or for another policy",
            hint="build or download the release again",
            response_code=code,
        )
    if base == _POLICY:  # TPM2_PolicyNV: the comparison failed
        return _rollback("the TPM refused its security version")
    if base in (_POLICY_FAIL, 0x084, 0x128):  # TPM_RC_POLICY_FAIL, TPM_RC_VALUE, TPM_RC_PCR_CHANGED
        return TpmPolicyError(
            "the TPM did not accept the release's policy",
            hint="the PCRs changed meanwhile, or the release was signed for others: switch off and on",
            response_code=code,
        )
    return error


def _blob(sealed: SealedSecret) -> tuple[Any, Any]:
    from tpm2_pytss import TPM2B_PRIVATE, TPM2B_PUBLIC, TSS2_Exception

    try:
        public, used = TPM2B_PUBLIC.unmarshal(sealed.public)
        private, length = TPM2B_PRIVATE.unmarshal(sealed.private)
        whole = used == len(sealed.public) and length == len(sealed.private)
        ours = bytes(public.publicArea.marshal())
        expected = _template(sealed.policy_key).publicArea
        expected.unique.keyedHash = bytes(public.publicArea.unique.keyedHash)
        good = whole and ours == bytes(expected.marshal())
    except (TSS2_Exception, ValueError) as error:
        raise TpmSealedError("the sealed secret is malformed", hint="use the recovery key") from error
    if not good:
        raise TpmSealedError("the sealed secret has another form or policy", hint="use the recovery key")
    return public, private


def _template(der: bytes) -> Any:
    from tpm2_pytss import TPM2_ALG, TPM2B_PUBLIC, TPMA_OBJECT, TPMT_PUBLIC

    numbers = _key(der).public_numbers()
    name = statepolicy.key_name(numbers.x.to_bytes(32, "big"), numbers.y.to_bytes(32, "big"))
    area = TPMT_PUBLIC(
        type=TPM2_ALG.KEYEDHASH,
        nameAlg=TPM2_ALG.SHA256,
        objectAttributes=TPMA_OBJECT.FIXEDTPM | TPMA_OBJECT.FIXEDPARENT | TPMA_OBJECT.NODA,
        authPolicy=statepolicy.sealed_policy(name),
    )
    area.parameters.keyedHashDetail.scheme.scheme = TPM2_ALG.NULL
    return TPM2B_PUBLIC(publicArea=area)


def _key(der: bytes) -> ec.EllipticCurvePublicKey:
    key = load_der_public_key(der)
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
        raise ValueError("a policy key is on the curve P-256")
    return key


def _pem(der: bytes) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return _key(der).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _keyslot(value: object, path: str) -> int:
    text = parse_text(value, path)
    if not (text.isascii() and text.isdigit() and len(text) <= 2 and int(text) < 32):
        raise ParseError(f"{path}: expected the number of a key slot")
    return int(text)
