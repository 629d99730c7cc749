"""The operator's permission to erase one disk, once. Pure.

An installer that finds data on a disk makes a challenge: the disk and a nonce. The operator signs them, with an
expiry, under the key whose principal the site configuration names. The token is good for this disk and this nonce
alone; whoever made the nonce forgets it before the disk is written to, so a token is good once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nodeos.core.errors import Finding, NodeosError, RefusedError
from nodeos.core.principal import Principal
from nodeos.core.wire import Fields, ParseError, b64, canonical_json, parse_json

DOMAIN = b"nodeos-erase-v1\0"
PURPOSE = "erase"
NONCE_BYTES = 16
# A token is for somebody who stands at the machine, or nearly so.
LONGEST_SECONDS = 7 * 24 * 3600
_LIMIT = 1 << 14

Verify = Callable[[bytes, bytes, bytes], None]
"""``hsm.keys.verify``: public key (DER), message, signature; raises NodeosError unless it holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskIdentity:
    """What tells one disk from another: as the kernel and udev say, ``size`` in bytes."""

    serial: str
    model: str
    size: int

    def to_json(self) -> dict[str, str | int]:
        return {"serial": self.serial, "model": self.model, "size": self.size}

    @classmethod
    def parse(cls, fields: Fields) -> DiskIdentity:
        disk = cls(
            serial=fields.text("serial", limit=256),
            model=fields.text("model", limit=256),
            size=fields.integer("size"),
        )
        fields.done()
        return disk


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """What an installer asks the operator to sign."""

    nonce: bytes
    disk: DiskIdentity

    def to_bytes(self) -> bytes:
        return canonical_json({"version": 1, "nonce": self.nonce.hex(), "disk": self.disk.to_json()})

    @classmethod
    def parse(cls, data: bytes, what: str = "erase challenge") -> Challenge:
        """Raises ParseError with the path of the first wrong field."""
        fields = parse_json(data, what, limit=_LIMIT)
        fields.integer("version", low=1, high=1)
        challenge = cls(
            nonce=fields.hexadecimal("nonce", length=NONCE_BYTES),
            disk=DiskIdentity.parse(fields.nested("disk")),
        )
        fields.done()
        return challenge

    def permission(self, *, expires: int) -> bytes:
        """The document to sign (after DOMAIN). ``expires`` is in seconds since 1970."""
        return canonical_json(
            {
                "version": 1, "purpose": PURPOSE, "nonce": self.nonce.hex(), "disk": self.disk.to_json(),
                "expires": expires,
            }
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class EraseToken:
    """A signed permission: the document byte for byte, the DER public key, the signature of DOMAIN + document."""

    document: bytes
    public_key: bytes
    signature: bytes

    def to_bytes(self) -> bytes:
        return canonical_json(
            {
                "version": 1, "document": b64(self.document), "public_key": b64(self.public_key),
                "signature": b64(self.signature),
            }
        )  # fmt: skip

    @classmethod
    def parse(cls, data: bytes, what: str = "erase token") -> EraseToken:
        """Raises ParseError with the path of the first wrong field. Nothing is verified yet."""
        fields = parse_json(data, what, limit=_LIMIT)
        fields.integer("version", low=1, high=1)
        token = cls(
            document=fields.data("document", limit=_LIMIT),
            public_key=fields.data("public_key", limit=1024),
            signature=fields.data("signature", limit=1024),
        )
        fields.done()
        return token

    def check(self, challenge: Challenge, *, operator: Principal, now: int, verify: Verify) -> None:
        """Raises RefusedError with every reason why this is no permission to erase the challenge's disk.

        ``operator`` is the site configuration's, ``now`` in seconds since 1970. A token whose signature does not
        hold is not read any further.
        """
        found: list[Finding] = []

        def refuse(code: str, message: str) -> None:
            found.append(Finding(code=f"erase.{code}", message=message))

        signer = Principal.self_authenticating(self.public_key)
        if signer != operator:
            refuse("operator", f"it is signed by {signer}, the site's operator is {operator}")
        try:
            verify(self.public_key, DOMAIN + self.document, self.signature)
        except NodeosError as error:
            refuse("signature", error.message)
        if not found:
            _check_document(self.document, challenge, now, refuse)
        if found:
            raise RefusedError(
                "the erase token is refused; nothing was written",
                tuple(found),
                hint="show the challenge of this run to the operator, for another token",
            )


def _check_document(
    document: bytes, challenge: Challenge, now: int, refuse: Callable[[str, str], None]
) -> None:
    try:
        fields = parse_json(document, "erase token", limit=_LIMIT)
        fields.integer("version", low=1, high=1)
        purpose, expires = fields.text("purpose", limit=32), fields.integer("expires")
        nonce = fields.hexadecimal("nonce", length=NONCE_BYTES)
        disk = DiskIdentity.parse(fields.nested("disk"))
        fields.done()
    except ParseError as error:
        refuse("form", error.message)
        return
    if purpose != PURPOSE:
        refuse("purpose", f"it is for {purpose!r}, not for erasing a disk")
    if nonce != challenge.nonce:
        refuse("nonce", "it is for another run of the installer, or was used before")
    for name in ("serial", "model", "size"):
        wanted, given = getattr(challenge.disk, name), getattr(disk, name)
        if wanted != given:
            refuse(name, f"it is for a disk whose {name} is {given!r}, this one's is {wanted!r}")
    if expires <= now:
        refuse("expired", f"it expired {now - expires} seconds ago by this machine's clock")
    elif expires > now + LONGEST_SECONDS:
        refuse("expires", f"it is good for more than {LONGEST_SECONDS // 86400} days by this machine's clock")
