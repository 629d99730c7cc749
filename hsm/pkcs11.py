"""Keys on a PKCS#11 token (smart card, USB key, HSM). Not for the node: needs python-pkcs11.

Keys are made on the token and can't leave it. Signatures are ECDSA over SHA-256, or RSA for releases: which
kinds are seen at all is the caller's to say with ``accepted``, and without it RSA keys are not. A new key on a
curve can agree on secrets too (ECDH): an operator has one key, and what it signs and what is encrypted to it have
domains of their own.
"""

from __future__ import annotations

import functools
import hashlib
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from hsm.agreement import SECRET_BYTES, parse_agreement_key, parse_point
from hsm.errors import TokenError, TokenKeyError, TokenMissingError, TokenPinError
from hsm.keys import PEOPLE, RSA_BITS, RSA_EXPONENT, SIGNATURE_BYTES, kinds, public_der, signature_bytes
from hsm.signer import Algorithm
from nodeos.core.errors import UsageError

# DER object identifiers: RFC 5480 section 2.1.1.1 (P-256), SEC 2 section A.2.1 (secp256k1).
_CURVES: dict[bytes, tuple[Algorithm, ec.EllipticCurve]] = {
    bytes.fromhex("06082a8648ce3d030107"): (Algorithm.ECDSA_P256, ec.SECP256R1()),
    bytes.fromhex("06052b8104000a"): (Algorithm.ECDSA_SECP256K1, ec.SECP256K1()),
}
# RFC 8017, section 9.2, note 1: what stands before a SHA-256 digest in an RSASSA-PKCS1-v1_5 signature.
_SHA256_INFO = bytes.fromhex("3031300d060960864801650304020105000420")
# PKCS#11 2.40, section 3.2: CK_TOKEN_INFO flags.
_PIN_COUNT_LOW, _PIN_FINAL_TRY, _PIN_LOCKED = 0x10000, 0x20000, 0x40000

# Finalising a module ends all its sessions, so it is done when the last one of ours is over. It is done at
# all so that the next one sees tokens that were plugged in meanwhile.
_lock = threading.Lock()
_users: dict[str, int] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenKey:
    """A key pair on a token. ``public_key`` is a DER SubjectPublicKeyInfo."""

    label: str
    algorithm: Algorithm
    public_key: bytes


@contextmanager
def open_token(module: Path, token: str, pin: Callable[[], str]) -> Iterator[OpenToken]:
    """Log in to the token with the label ``token``. ``pin`` is called only when the token was found and its
    PIN is usable, and its result is kept nowhere.

    Raises TokenMissingError (module or token), TokenPinError (with what is known of the tries left).
    """
    import pkcs11

    with _loaded(module) as library:
        found = _find_token(library, module, token)
        check_pin_flags(int(found.flags), token)
        try:
            session = found.open(rw=True, user_pin=pin())
        except (pkcs11.PinIncorrect, pkcs11.PinLenRange, pkcs11.PinInvalid) as error:
            flags = int(_find_token(library, module, token).flags)
            raise TokenPinError(f"token {token!r}: the PIN is wrong", hint=tries_left(flags)) from error
        except pkcs11.PinLocked as error:
            raise _locked(token) from error
        except pkcs11.UserPinNotInitialized as error:
            raise TokenPinError(
                f"token {token!r} has no PIN yet", hint="set one with the token's own tool"
            ) from error
        except pkcs11.PKCS11Error as error:
            raise _failed(token, "logging in", error) from error
        try:
            yield OpenToken(token, session)
        finally:
            session.close()


class OpenToken:
    """A token that is logged in; made by ``open_token``."""

    def __init__(self, label: str, session: Any) -> None:
        self.label = label
        self._session = session

    def keys(self, accepted: frozenset[Algorithm] = PEOPLE) -> tuple[TokenKey, ...]:
        """The keys of a kind in ``accepted`` that can sign here, in order of their labels."""
        import pkcs11

        found: list[TokenKey] = []
        with self._answers("listing the keys"):
            for kind in (pkcs11.KeyType.EC, pkcs11.KeyType.RSA):
                private, public = (
                    list(
                        self._session.get_objects(
                            {pkcs11.Attribute.CLASS: half, pkcs11.Attribute.KEY_TYPE: kind}
                        )
                    )
                    for half in (pkcs11.ObjectClass.PRIVATE_KEY, pkcs11.ObjectClass.PUBLIC_KEY)
                )
                labels = {str(key.label) for key in private}
                described = [self._describe(key) for key in public if str(key.label) in labels]
                found += [key for key in described if key and key.algorithm in accepted]
        return tuple(sorted(found, key=lambda key: (key.label, key.public_key)))

    def generate(
        self,
        label: str,
        algorithm: Algorithm = Algorithm.ECDSA_P256,
        *,
        bits: int = RSA_BITS[0],
        derive: bool = True,
    ) -> TokenKey:
        """Make a key pair on the token; ``bits`` is for RSA. A key on a curve without ``derive`` signs only, and
        opens no boxes; an RSA key always does.

        Raises TokenKeyError if there is a key with this label or the token can't make such a one, and UsageError
        for an RSA key of too few or too many bits.
        """
        import pkcs11

        if self._objects(pkcs11.ObjectClass.PRIVATE_KEY, label) or self._objects(
            pkcs11.ObjectClass.PUBLIC_KEY, label
        ):
            raise TokenKeyError(
                f"token {self.label!r} has a key {label!r} already", hint="use it, or choose another label"
            )
        curve = next((der for der, (name, _) in _CURVES.items() if name is algorithm), None)
        if curve is None and algorithm is not Algorithm.RSA_PKCS1_SHA256:
            raise TokenKeyError(f"{algorithm} keys are not made on tokens", hint="use ecdsa-p256")
        if curve is None and bits not in RSA_BITS:
            raise UsageError(f"an RSA key has {RSA_BITS[0]} to {RSA_BITS[-1]} bits, not {bits}")
        derive = derive and curve is not None
        capabilities = pkcs11.MechanismFlag.SIGN | pkcs11.MechanismFlag.VERIFY
        if derive:
            capabilities |= pkcs11.MechanismFlag.DERIVE
        try:
            with self._answers("making a key"):
                if curve is None:
                    make = functools.partial(self._session.generate_keypair, pkcs11.KeyType.RSA, bits)
                else:
                    make = self._session.create_domain_parameters(
                        pkcs11.KeyType.EC, {pkcs11.Attribute.EC_PARAMS: curve}, local=True
                    ).generate_keypair
                public, _ = make(
                    id=secrets.token_bytes(16),
                    label=label,
                    store=True,
                    capabilities=capabilities,
                    private_template={
                        pkcs11.Attribute.SENSITIVE: True,
                        pkcs11.Attribute.EXTRACTABLE: False,
                        pkcs11.Attribute.PRIVATE: True,
                    },
                )
                made = self._describe(public)
        except TokenError as error:
            raise TokenKeyError(
                f"token {self.label!r} can't make a {algorithm} key{' that signs and derives' * derive}",
                hint="choose another algorithm, or a token that does ECDSA and ECDH",
            ) from error
        if made is None:
            raise TokenKeyError(f"token {self.label!r} made another key than {algorithm}")
        return made

    def signer(
        self, label: str, *, public_key: bytes | None = None, accepted: frozenset[Algorithm] = PEOPLE
    ) -> TokenSigner:
        """The key with this label; with ``public_key`` it must be that very key. Raises TokenKeyError, also for
        a key that is not of a kind in ``accepted``."""
        key, private = self._pair(label, public_key, accepted)
        return TokenSigner(key, self, private)

    def agreement(self, label: str, *, public_key: bytes | None = None) -> TokenAgreement:
        """Like ``signer``, to agree on secrets. Raises TokenKeyError also for a key that may not derive."""
        import pkcs11

        key, private = self._pair(label, public_key, PEOPLE)
        with self._answers("reading the key"):
            try:
                derives = bool(private[pkcs11.Attribute.DERIVE])
            except pkcs11.AttributeTypeInvalid:
                derives = False
        if not derives:
            raise TokenKeyError(
                f"token {self.label!r}: the key {label!r} was made to sign only (CKA_DERIVE is not set), so it "
                "can't decrypt",
                hint="make another key with `nodeos operator init`; what a key may do is fixed when it is made",
            )
        return TokenAgreement(key, self, private)

    def _pair(
        self, label: str, public_key: bytes | None, accepted: frozenset[Algorithm]
    ) -> tuple[TokenKey, Any]:
        """The key and its private half on the token."""
        import pkcs11

        private = self._objects(pkcs11.ObjectClass.PRIVATE_KEY, label)
        public = self._objects(pkcs11.ObjectClass.PUBLIC_KEY, label)
        if not private or not public:
            there = ", ".join(repr(key.label) for key in self.keys(accepted)) or "none"
            raise TokenKeyError(
                f"token {self.label!r} has no key {label!r}", hint=f"the signing keys there: {there}"
            )
        if len(private) > 1 or len(public) > 1:
            raise TokenKeyError(
                f"token {self.label!r} has several keys {label!r}", hint="give each its own label"
            )
        with self._answers("reading the key"):
            key = self._describe(public[0])
        if key is None or key.algorithm not in accepted:
            raise TokenKeyError(
                f"token {self.label!r}: the key {label!r} is neither {kinds(accepted)}",
                hint="make another key",
            )
        if public_key is not None and key.public_key != public_key:
            raise TokenKeyError(
                f"token {self.label!r}: the key {label!r} is not the one of this identity",
                hint="plug in the right token, or make the identity file anew",
            )
        return key, private[0]

    def _objects(self, kind: Any, label: str) -> list[Any]:
        import pkcs11

        with self._answers("looking for the key"):
            return list(
                self._session.get_objects({pkcs11.Attribute.CLASS: kind, pkcs11.Attribute.LABEL: label})
            )

    def _describe(self, public: Any) -> TokenKey | None:
        """None for a key that is in none of our sets: on another curve, RSA of another size, another type."""
        import pkcs11

        if public.key_type == pkcs11.KeyType.RSA:
            return self._describe_rsa(public)
        if public.key_type != pkcs11.KeyType.EC:
            return None
        known = _CURVES.get(bytes(public[pkcs11.Attribute.EC_PARAMS]))
        if known is None:
            return None
        algorithm, curve = known
        point = bytes(public[pkcs11.Attribute.EC_POINT])
        # PKCS#11 2.40, section 2.3.3: an OCTET STRING; some tokens give the point without it.
        if point[:2] == b"\x04\x41" and len(point) == 67:
            point = point[2:]
        try:
            key = ec.EllipticCurvePublicKey.from_encoded_point(curve, point)
        except ValueError as error:
            raise TokenKeyError(f"token {self.label!r}: its public key {public.label!r} is broken") from error
        return TokenKey(
            label=str(public.label),
            algorithm=algorithm,
            public_key=public_der(key),
        )

    def _describe_rsa(self, public: Any) -> TokenKey | None:
        import pkcs11

        modulus, exponent = (
            int.from_bytes(bytes(public[attribute]), "big")
            for attribute in (pkcs11.Attribute.MODULUS, pkcs11.Attribute.PUBLIC_EXPONENT)
        )
        if modulus.bit_length() not in RSA_BITS or exponent != RSA_EXPONENT:
            return None
        try:
            key = rsa.RSAPublicNumbers(exponent, modulus).public_key()
        except ValueError as error:
            raise TokenKeyError(f"token {self.label!r}: its public key {public.label!r} is broken") from error
        return TokenKey(
            label=str(public.label), algorithm=Algorithm.RSA_PKCS1_SHA256, public_key=public_der(key)
        )

    @contextmanager
    def _answers(self, what: str) -> Iterator[None]:
        import pkcs11

        try:
            yield
        except pkcs11.PKCS11Error as error:
            raise _failed(self.label, what, error) from error


class TokenSigner:
    """A ``hsm.signer.Signer`` whose key is on a token; usable while the token is open."""

    def __init__(self, key: TokenKey, token: OpenToken, private: Any) -> None:
        self._key = key
        self._token = token
        self._private = private

    @property
    def algorithm(self) -> Algorithm:
        return self._key.algorithm

    @property
    def public_key(self) -> bytes:
        return self._key.public_key

    def sign(self, message: bytes) -> bytes:
        """r and s, 32 bytes each, or RSA's bytes. Raises TokenError if the token was taken out."""
        import pkcs11

        digest, mechanism, length = hashlib.sha256(message).digest(), pkcs11.Mechanism.ECDSA, SIGNATURE_BYTES
        if self.algorithm is Algorithm.RSA_PKCS1_SHA256:
            # The digest is made here, as for ECDSA: tokens take few bytes at a time.
            digest, mechanism = _SHA256_INFO + digest, pkcs11.Mechanism.RSA_PKCS
            length = signature_bytes(self.public_key)
        with self._token._answers("signing"):
            signature = bytes(self._private.sign(digest, mechanism=mechanism))
        if len(signature) != length:
            raise TokenError(
                f"token {self._token.label!r}: a signature of {len(signature)} bytes, not {length}"
            )
        return signature


class TokenAgreement:
    """A ``hsm.agreement.KeyAgreement`` whose key is on a token; usable while the token is open."""

    def __init__(self, key: TokenKey, token: OpenToken, private: Any) -> None:
        self._key = key
        self._token = token
        self._private = private
        self._curve = parse_agreement_key(key.public_key, "the key").curve

    @property
    def public_key(self) -> bytes:
        return self._key.public_key

    def exchange(self, point: bytes) -> bytes:
        """CKM_ECDH1_DERIVE without a KDF, the point raw (PKCS#11 2.40, CK_ECDH1_DERIVE_PARAMS).

        The result is an object of this session only; it is read and destroyed at once. Raises TokenError.
        """
        import pkcs11

        # A token may not check the point, and an answer for one off the curve tells of the private key.
        parse_point(self._curve, point)
        with self._token._answers("agreeing on a secret"):
            derived = self._private.derive_key(
                pkcs11.KeyType.GENERIC_SECRET,
                SECRET_BYTES * 8,
                store=False,
                capabilities=0,
                mechanism=pkcs11.Mechanism.ECDH1_DERIVE,
                mechanism_param=(pkcs11.KDF.NULL, None, point),
                template={pkcs11.Attribute.SENSITIVE: False, pkcs11.Attribute.EXTRACTABLE: True},
            )
            try:
                secret = bytes(derived[pkcs11.Attribute.VALUE])
            finally:
                derived.destroy()
        if len(secret) != SECRET_BYTES:
            raise TokenError(
                f"token {self._token.label!r}: a secret of {len(secret)} bytes, not {SECRET_BYTES}"
            )
        return secret


def tries_left(flags: int) -> str:
    """What a token's flags (CK_TOKEN_INFO) say about the PIN, in words for a person."""
    if flags & _PIN_LOCKED:
        return "the PIN is locked now: unlock it with the security officer's PIN"
    if flags & _PIN_FINAL_TRY:
        return "ONE try is left before the PIN locks: be sure of it"
    if flags & _PIN_COUNT_LOW:
        return "at least one try is used up, and the token locks after a few: check the PIN before the next"
    return "check the PIN; the token does not tell how many tries are left"


def check_pin_flags(flags: int, token: str) -> None:
    """Refuse to send a PIN to a token that is locked, or that the next wrong PIN would lock."""
    if flags & _PIN_LOCKED:
        raise _locked(token)
    if flags & _PIN_FINAL_TRY:
        raise TokenPinError(
            f"token {token!r}: one try is left before its PIN locks, so no PIN was sent",
            hint="log in once with the token's own tool (`pkcs11-tool --login --test`): it resets the count",
        )


def _locked(token: str) -> TokenPinError:
    return TokenPinError(
        f"token {token!r}: the PIN is locked",
        hint="unlock it with the security officer's PIN and the token's own tool",
    )


def _failed(token: str, what: str, error: Exception) -> TokenError:
    import pkcs11

    words = str(error) or type(error).__name__
    if isinstance(error, pkcs11.DeviceRemoved | pkcs11.TokenNotPresent | pkcs11.SessionHandleInvalid):
        return TokenMissingError(f"token {token!r}: gone while {what}", hint="plug it in and try again")
    return TokenError(f"token {token!r}: {what} failed: {words}")


@contextmanager
def _loaded(module: Path) -> Iterator[Any]:
    import pkcs11

    name = str(module)
    if not module.is_file():
        raise TokenMissingError(
            f"there is no PKCS#11 module {module}", hint="install the token's driver, or correct the path"
        )
    with _lock:
        try:
            library = pkcs11.lib(name)
        except (pkcs11.PKCS11Error, RuntimeError, OSError) as error:
            raise TokenMissingError(
                f"the PKCS#11 module {module} can't be loaded: {str(error) or type(error).__name__}",
                hint="see that it is a PKCS#11 library and that its configuration is right",
            ) from error
        _users[name] = _users.get(name, 0) + 1
    try:
        yield library
    finally:
        with _lock:
            _users[name] -= 1
            if not _users[name]:
                library.finalize()


def _find_token(library: Any, module: Path, label: str) -> Any:
    import pkcs11

    try:
        tokens = [slot.get_token() for slot in library.get_slots(token_present=True)]
    except pkcs11.PKCS11Error as error:
        raise _failed(label, "looking for it", error) from error
    ready = [token for token in tokens if int(token.flags) & int(pkcs11.TokenFlag.TOKEN_INITIALIZED)]
    found = [token for token in ready if token.label == label]
    if len(found) > 1:
        raise TokenMissingError(
            f"several tokens have the label {label!r}", hint="take out all but one, or give them other labels"
        )
    if not found:
        there = ", ".join(repr(str(token.label)) for token in ready) or "none"
        raise TokenMissingError(
            f"there is no token {label!r} (through {module})", hint=f"plug it in; tokens there: {there}"
        )
    return found[0]
