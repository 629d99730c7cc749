"""The operator's permission to erase a disk: good for one disk, one nonce, one operator, and not for long."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from hsm.identity import FileSigner
from hsm.keys import verify
from nodeos.core.erase import DOMAIN, LONGEST_SECONDS, Challenge, DiskIdentity, EraseToken
from nodeos.core.errors import RefusedError
from nodeos.core.principal import Principal
from nodeos.core.wire import ParseError, canonical_json
from nodeos.install.permission import Permission, challenge_for
from nodeos.install.survey import NO_TOKEN

NOW = 1_800_000_000
DISK = DiskIdentity(serial="S1", model="Disk 1", size=1 << 40)
ASKED = Challenge(nonce=b"n" * 16, disk=DISK)
SIGNER = FileSigner(generate_private_key(SECP256R1()))
OPERATOR = Principal.self_authenticating(SIGNER.public_key)


def signed(document: bytes, domain: bytes = DOMAIN) -> EraseToken:
    return EraseToken(
        document=document, public_key=SIGNER.public_key, signature=SIGNER.sign(domain + document)
    )


GOOD = signed(ASKED.permission(expires=NOW + 3600))


def codes(
    token: EraseToken, challenge: Challenge = ASKED, operator: Principal = OPERATOR, now: int = NOW
) -> list[str]:
    with pytest.raises(RefusedError) as caught:
        token.check(challenge, operator=operator, now=now, verify=verify)
    return [finding.code for finding in caught.value.findings]


def changed(**changes: object) -> EraseToken:
    return signed(canonical_json({**json.loads(GOOD.document), **changes}))


def test_good() -> None:
    EraseToken.parse(GOOD.to_bytes()).check(
        Challenge.parse(ASKED.to_bytes()), operator=OPERATOR, now=NOW, verify=verify
    )


def test_another_disk() -> None:
    for name, value in (("serial", "S2"), ("model", "Disk 2"), ("size", 1)):
        other = replace(ASKED, disk=replace(DISK, **{name: value}))  # type: ignore[arg-type]
        assert codes(GOOD, other) == [f"erase.{name}"]


def test_another_run() -> None:
    assert codes(GOOD, replace(ASKED, nonce=b"m" * 16)) == ["erase.nonce"]


def test_another_operator() -> None:
    other = Principal.self_authenticating(FileSigner(generate_private_key(SECP256R1())).public_key)
    assert codes(GOOD, operator=other) == ["erase.operator"]


def test_a_signature_that_does_not_hold() -> None:
    for token in (
        replace(GOOD, signature=bytes(64)),
        replace(GOOD, document=ASKED.permission(expires=NOW + 7200)),
        signed(GOOD.document, b"nodeos-other-v1\0"),
    ):
        assert codes(token) == ["erase.signature"]


def test_time() -> None:
    assert codes(GOOD, now=NOW + 3600) == ["erase.expired"]
    assert codes(changed(expires=NOW + LONGEST_SECONDS + 1)) == ["erase.expires"]


def test_another_purpose_or_form() -> None:
    assert codes(changed(purpose="install")) == ["erase.purpose"]
    assert codes(changed(version=2)) == ["erase.form"]
    assert codes(changed(more=1)) == ["erase.form"]
    assert codes(signed(b"{")) == ["erase.form"]


@pytest.mark.parametrize("data", [b"", b"[]", b'{"version":1}', GOOD.to_bytes() + b"x", ASKED.to_bytes()])
def test_misshapen(data: bytes) -> None:
    with pytest.raises(ParseError):
        EraseToken.parse(data)
    if data != ASKED.to_bytes():
        with pytest.raises(ParseError):
            Challenge.parse(data)


def permission(place: Path, token: EraseToken) -> Permission:
    return Permission(token=token, place=place, operator=OPERATOR, now=NOW)


def refusal(made: Permission, used: bytes = NO_TOKEN) -> list[str]:
    with pytest.raises(RefusedError) as caught:
        made.use(DISK, used)
    return [finding.code for finding in caught.value.findings]


def test_a_token_is_good_once(tmp_path: Path) -> None:
    place = tmp_path / "challenge"
    asked = challenge_for(place, DISK)
    assert challenge_for(place, DISK) == asked
    kept = place.read_bytes()
    made = permission(place, signed(asked.permission(expires=NOW + 60)))
    digest = made.use(DISK, NO_TOKEN)
    assert refusal(made) == ["erase.nonce"]
    # Whoever kept the challenge too meets the disk's own record.
    place.write_bytes(kept)
    assert refusal(made, digest) == ["erase.used"]


def test_a_refused_token_leaves_the_challenge(tmp_path: Path) -> None:
    place = tmp_path / "challenge"
    asked = challenge_for(place, DISK)
    assert refusal(permission(place, GOOD)) == ["erase.nonce"]
    assert challenge_for(place, DISK) == asked
    assert challenge_for(place, replace(DISK, serial="S2")) != asked
    # The file is now about another disk than the token's; the nonce is another too.
    assert refusal(permission(place, signed(asked.permission(expires=NOW + 60)))) == ["erase.nonce"]


def test_a_broken_challenge_is_made_anew(tmp_path: Path) -> None:
    place = tmp_path / "challenge"
    place.write_bytes(b"{")
    assert challenge_for(place, DISK).disk == DISK
