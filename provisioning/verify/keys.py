"""Which keys are accepted as endorsement key and as attestation key."""

from __future__ import annotations

from nodeos.core.errors import Finding
from nodeos.core.wire import ParseError
from provisioning.verify.findings import finding
from provisioning.verify.tpm import Alg, Attribute, Public

# The endorsement key's public area must be exactly a template's: its hash is the machine's name, so a free
# choice of attributes or policy would give one TPM many names. Policies: TCG EK Credential Profile 2.5,
# annex B.6: PolicyA (low range), PolicyB and PolicyC (high range).
_COMMON = (
    Attribute.FIXED_TPM
    | Attribute.FIXED_PARENT
    | Attribute.SENSITIVE_DATA_ORIGIN
    | Attribute.ADMIN_WITH_POLICY
    | Attribute.RESTRICTED
    | Attribute.DECRYPT
)
_POLICY_A = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
_POLICY_B_256 = bytes.fromhex("ca3d0a99a2b93906f7a3342414efcfb3a385d44cd1fd459089d19b5071c0b7a0")
_POLICY_B_384 = bytes.fromhex(
    "b26e7d28d11a50bc53d882bcf5fd3a1a074148bb35d3b4e4cb1c0ad9bde419cacb47ba09699646150f9fc000f3f80e12"
)
# (key, bits or curve, name algorithm, AES bits, policy, user-with-auth allowed)
_TEMPLATES = {
    (Alg.RSA, 2048, Alg.SHA256, 128, _POLICY_A, False),
    (Alg.ECC, 0x0003, Alg.SHA256, 128, _POLICY_A, False),
    (Alg.RSA, 2048, Alg.SHA256, 128, _POLICY_B_256, True),
    (Alg.ECC, 0x0003, Alg.SHA256, 128, _POLICY_B_256, True),
    (Alg.ECC, 0x0004, Alg.SHA384, 256, _POLICY_B_384, True),
}

AK_NEEDED = (
    Attribute.RESTRICTED
    | Attribute.SIGN
    | Attribute.FIXED_TPM
    | Attribute.FIXED_PARENT
    | Attribute.SENSITIVE_DATA_ORIGIN
)


def check_endorsement_key(ek: Public) -> tuple[Finding, ...]:
    """Refuses a public area that is not that of one of the TCG's templates, or that is no valid key."""
    user = bool(ek.attributes & Attribute.USER_WITH_AUTH)
    shape = (ek.kind, ek.rsa_bits or ek.curve, ek.name_alg, ek.symmetric_bits, ek.policy, user)
    found = []
    attributes = _COMMON | (Attribute.USER_WITH_AUTH if user else Attribute(0))
    if shape not in _TEMPLATES or ek.attributes != attributes or ek.scheme or ek.exponent not in (0, 65537):
        found.append(
            finding(
                "ek.template",
                f"not the public area of a TCG template (type {ek.kind.name}, name algorithm "
                f"{ek.name_alg:#06x}, attributes {ek.attributes:#010x}); needed: low-range RSA-2048 or "
                "P-256, or high-range RSA-2048, P-256 or P-384",
            )
        )
    return tuple(found + _valid(ek, "ek.invalid"))


def check_attestation_key(ak: Public) -> tuple[Finding, ...]:
    """Refuses a key that could sign something other than what its own TPM made, or is not P-256."""
    found = []
    missing = AK_NEEDED & ~ak.attributes
    if missing:
        found.append(finding("ak.attributes", f"the attestation key lacks {_names(missing)}"))
    if ak.attributes & Attribute.DECRYPT:
        found.append(finding("ak.decrypt", "the attestation key can decrypt; it may only sign"))
    if ak.kind is not Alg.ECC or ak.curve != 0x0003:
        found.append(finding("ak.curve", "the attestation key is not on the curve P-256"))
    if ak.scheme != (Alg.ECDSA, Alg.SHA256):
        found.append(finding("ak.scheme", "the attestation key's scheme is not ECDSA with SHA-256"))
    if ak.name_alg != Alg.SHA256:
        found.append(finding("ak.name_algorithm", "the attestation key's name algorithm is not SHA-256"))
    return tuple(found + _valid(ak, "ak.invalid"))


def _valid(public: Public, code: str) -> list[Finding]:
    try:
        public.key()
    except ParseError as error:
        return [finding(code, error.message)]
    return []


def _names(bits: Attribute) -> str:
    return ", ".join(str(bit.name).lower().replace("_", "-") for bit in Attribute if bit in bits)
