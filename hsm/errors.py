"""What can go wrong with a key in hardware.

NodeosError
├── TpmError                1  the TPM said no; ``response_code`` is its answer
│   ├── TpmMissingError        no TPM, or it may not be opened
│   ├── TpmLockoutError        too many wrong passwords (TPM_RC_LOCKOUT)
│   ├── TpmPasswordError       a hierarchy has a password that we don't know
│   ├── TpmPolicyError         the PCRs are not those that a key is bound to
│   │   ├── TpmPcrError            a PCR has none of the values that the release is signed for
│   │   ├── TpmRollbackError       the release is older than the machine's floor
│   │   └── TpmSignatureError      no policy signature by the right key, or a wrong one
│   ├── TpmFloorError          no rollback floor in the TPM, or something else in its place
│   ├── TpmStorageRootError    another TPM than at sealing, or a cleared one
│   ├── TpmSealedError         a sealed secret that is damaged
│   ├── TpmCreationError       a sealed secret that was not provably made under a signed policy
│   ├── TpmKeyMissingError     no key at its handle
│   ├── TpmKeyPasswordError    a signing key's password is wrong
│   ├── TpmForeignKeyError     something else lies where our key belongs
│   └── TpmCredentialError     a credential that was made for another TPM or another key
└── TokenError              1  the PKCS#11 token said no
    ├── TokenMissingError      no such module or token
    ├── TokenPinError          wrong PIN, or it is locked
    └── TokenKeyError          no such key, or one that does not fit
"""

from __future__ import annotations

from nodeos.core.errors import NodeosError


class TpmError(NodeosError):
    """The TPM, or the way to it, failed. ``response_code`` is a TPM_RC, or None if no TPM answered."""

    def __init__(self, message: str, *, hint: str | None = None, response_code: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.response_code = response_code


class TpmMissingError(TpmError):
    """There is no TPM at the given place, or it may not be opened."""


class TpmLockoutError(TpmError):
    """The TPM refuses protected keys for a time, since it saw too many wrong passwords or power cuts."""


class TpmPasswordError(TpmError):
    """A hierarchy of the TPM has a password. This project uses TPMs whose hierarchies have none."""


class TpmPolicyError(TpmError):
    """The policy of a key is not met, most often since the PCRs differ."""


class TpmKeyMissingError(TpmError):
    """There is no key at the handle."""


class TpmKeyPasswordError(TpmError):
    """The password of a signing key is wrong. Too many of these end in TpmLockoutError."""


class TpmPcrError(TpmPolicyError):
    """A PCR has none of the values that the release is signed for; the message says which."""


class TpmRollbackError(TpmPolicyError):
    """The release's security version is below the floor of this machine."""


class TpmSignatureError(TpmPolicyError):
    """The release has no policy signature by the key that the secret is bound to, or a wrong one."""


class TpmFloorError(TpmError):
    """There is no rollback floor in the TPM, or an index with other attributes in its place."""


class TpmStorageRootError(TpmError):
    """The storage root key is missing or not the enrolled one: another TPM, or a cleared one."""


class TpmSealedError(TpmError):
    """A sealed secret that is damaged, or has another policy than it should."""


class TpmCreationError(TpmError):
    """Nothing proves that this TPM sealed the secret while the PCRs of a signed policy held."""


class TpmForeignKeyError(TpmError):
    """The handle of our key holds another key. It is left as it is."""


class TpmCredentialError(TpmError):
    """A credential that this TPM can't open: it was made for another TPM or another attestation key."""


class TokenError(NodeosError):
    """The PKCS#11 token, or the module that speaks to it, failed."""


class TokenMissingError(TokenError):
    """No such module, or no token with that label."""


class TokenPinError(TokenError):
    """The PIN is wrong or locked."""


class TokenKeyError(TokenError):
    """No such key on the token, or not one that this project can use."""


# TPM 2.0 Library, Part 2, "TPM_RC values". For a format-1 code the handle, parameter or session number
# is taken off first.
_KNOWN: dict[int, tuple[type[TpmError], str, str]] = {
    0x921: (
        TpmLockoutError,
        "the TPM is locked out after too many wrong passwords or power cuts",
        "wait until its recovery time is over (see `tpm2_getcap properties-variable`) with the machine on, "
        "or clear the TPM in the firmware; a cleared TPM can't unlock the state that it sealed",
    ),
    0x922: (
        TpmError,
        "the TPM asks to try again",
        "try again; if it stays so, switch the machine off and on",
    ),
    0x902: (
        TpmError,
        "the TPM has no room for another key",
        "another program keeps keys loaded: use /dev/tpmrm0, and see `tpm2_getcap handles-transient`",
    ),
    0x903: (
        TpmError,
        "the TPM has no room for another session",
        "another program keeps sessions open: see `tpm2_getcap handles-loaded-session`",
    ),
    0x904: (
        TpmError,
        "the TPM is out of memory",
        "end other programs that use the TPM, or restart the machine",
    ),
    0x905: (
        TpmError,
        "the TPM has no room for another session",
        "another program keeps sessions open: see `tpm2_getcap handles-saved-session`",
    ),
    0x907: (TpmError, "this PCR can't be changed from the operating system", "use one of the PCRs 0 to 15"),
    0x923: (TpmError, "the TPM's storage can't be written now", "try again; if it stays so, replace the TPM"),
    0x14B: (TpmError, "the TPM has no room for another stored key", "see `tpm2_getcap handles-persistent`"),
    0x14C: (TpmError, "that place in the TPM is taken", "see `tpm2_getcap handles-persistent`"),
    0x100: (TpmError, "the firmware has not started the TPM", "switch the TPM on in the firmware"),
    0x101: (
        TpmError,
        "the TPM failed its self-test",
        "switch the machine off and on; if it stays so, replace it",
    ),
    0x120: (
        TpmError,
        "the TPM has this command switched off",
        "switch the TPM's hierarchies on in the firmware",
    ),
    0x08B: (TpmError, "the TPM has no such key or storage", "see `tpm2_getcap handles-persistent`"),
    0x085: (
        TpmError,
        "a hierarchy of the TPM is switched off",
        "switch the TPM's storage and endorsement hierarchies on in the firmware",
    ),
    0x08E: (
        TpmPasswordError,
        "the TPM wants a password that this system does not know",
        "a hierarchy or key was given a password: remove it with `tpm2_changeauth`, or clear the TPM in the "
        "firmware",
    ),
    0x0A2: (
        TpmPasswordError,
        "a hierarchy of the TPM has a password",
        "remove it with `tpm2_changeauth -c endorsement` (or owner), or clear the TPM in the firmware",
    ),
    0x09D: (
        TpmPolicyError,
        "the PCRs are not those that the key is bound to",
        "another system was booted, or firmware settings changed: boot the released image, or restore them",
    ),
    0x09F: (
        TpmCredentialError,
        "the credential was not made for this TPM and this attestation key",
        "ask for a new challenge; if it stays so, the registrar knows this machine with another key",
    ),
    0x0A3: (TpmError, "the policy has expired", "try again"),
}


def tpm_error(code: int, what: str, words: str) -> TpmError:
    """The error for an answer of the TPM software stack.

    ``what`` says what was tried, ``words`` is the stack's own text. A code of another layer than the TPM
    (bits 16 to 23) becomes a plain TpmError, a failed transport a TpmMissingError.
    """
    layer, answer = code >> 16 & 0xFF, code & 0xFFFF
    # The resource manager of the kernel (layer 11 or 12) passes the TPM's own answers on.
    if layer not in (0, 11, 12):
        if answer in (0x5, 0x8, 0xA):  # no connection, try again, input or output error
            return TpmMissingError(
                f"{what}: no answer from the TPM: {words}",
                hint="see that the TPM is switched on in the firmware and that no other program holds it",
                response_code=code,
            )
        return TpmError(f"{what}: {words} (0x{code:x})", response_code=code)
    base = 0x080 | answer & 0x3F if answer & 0x080 else answer
    if base not in _KNOWN:
        return TpmError(f"{what}: {words} (0x{answer:x})", response_code=answer)
    kind, message, hint = _KNOWN[base]
    return kind(f"{what}: {message} (0x{answer:x})", hint=hint, response_code=answer)
