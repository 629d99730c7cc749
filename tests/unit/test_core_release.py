"""The release manifest and its signature: strict, canonical, and trusted only if a trusted key signed it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from hsm.identity import FileSigner
from hsm.keys import public_der
from nodeos.core import release as release_format
from nodeos.core.errors import RefusedError, UsageError
from nodeos.core.release import (
    AcceptedPcr7,
    Artefact,
    BootPhase,
    Release,
    ReleaseKeys,
    ReleaseSignature,
    Variant,
    check_signature,
    parse_signatures,
    signatures_to_bytes,
    signed_message,
)
from nodeos.core.wire import ParseError

DIGEST = st.binary(min_size=32, max_size=32)
LONG = st.binary(min_size=48, max_size=48)


def banks(*keys: Any) -> st.SearchStrategy[dict[str, dict[Any, bytes]]]:
    return st.fixed_dictionaries({
        "sha256": st.fixed_dictionaries(dict.fromkeys(keys, DIGEST)),
        "sha384": st.fixed_dictionaries(dict.fromkeys(keys, LONG)),
    })  # fmt: skip


RELEASES = st.builds(
    Release,
    version=st.text(max_size=64),
    variant=st.sampled_from(Variant),
    root_hash=DIGEST,
    kernel_command_line=st.text(max_size=100),
    artefacts=st.dictionaries(
        st.text(max_size=20),
        st.builds(Artefact, size=st.integers(0, 2**62), sha256=DIGEST),
        max_size=3,
    ),
    security_version=st.integers(5, 63),
    rollback_floor=st.integers(0, 5),
    pcrs=banks(4, 7, 12, 13),
    pcr11=banks(*BootPhase),
    secure_boot_off=banks(4, 7),
    accepted_pcr7=st.lists(
        st.builds(AcceptedPcr7, name=st.text(max_size=20), sha256=DIGEST, sha384=LONG), min_size=1, max_size=3
    ).map(tuple),
    keys=st.builds(
        ReleaseKeys,
        db=DIGEST,
        pcr=st.lists(DIGEST, min_size=1, max_size=2).map(tuple),
        release=DIGEST,
        verity=DIGEST,
    ),
    source_commit=st.text(max_size=64),
    source_date_epoch=st.integers(0, 2**40),
)
ZEROES = {"sha256": bytes(32), "sha384": bytes(48)}
EXAMPLE = Release(
    version="1.2.3",
    variant=Variant.RELEASE,
    root_hash=bytes(32),
    kernel_command_line="quiet",
    artefacts={"root.raw": Artefact(size=5, sha256=bytes(32))},
    security_version=2,
    rollback_floor=1,
    pcrs={bank: dict.fromkeys((4, 7, 12, 13), zero) for bank, zero in ZEROES.items()},
    pcr11={bank: dict.fromkeys(BootPhase, zero) for bank, zero in ZEROES.items()},
    secure_boot_off={bank: dict.fromkeys((4, 7), zero) for bank, zero in ZEROES.items()},
    accepted_pcr7=(AcceptedPcr7(name="enrolled", sha256=bytes(32), sha384=bytes(48)),),
    keys=ReleaseKeys(db=bytes(32), pcr=(bytes(32),), release=bytes(32), verity=bytes(32)),
    source_commit="abc",
    source_date_epoch=1,
)


@given(RELEASES)
def test_round_trip(release: Release) -> None:
    assert Release.parse(release.to_bytes()) == release
    assert Release.parse(release.to_bytes()).to_bytes() == release.to_bytes()


@given(st.binary(max_size=200))
def test_parse_raises_nothing_but_parse_errors(data: bytes) -> None:
    with pytest.raises(ParseError):
        Release.parse(data)
    with pytest.raises(ParseError):
        parse_signatures(data)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("version",), 1, r"release\.json\.version"),
        (("variant",), "test", "'test' is not one of release, debug"),
        (("root_hash",), "00", "expected 32 bytes, found 1"),
        (("pcrs", "sha256", "7"), None, r"release\.json\.pcrs\.sha256\.7"),
        (("pcrs", "sha256", "8"), "00" * 32, r"release\.json\.pcrs\.sha256: unknown field: 8"),
        (("pcrs", "sha384", "4"), "00" * 32, "expected 48 bytes, found 32"),
        (("pcrs", "sha1"), {}, "pcrs: unknown field: sha1"),
        (("pcr11", "sha256", "ready"), 1, r"release\.json\.pcr11\.sha256\.ready: expected text"),
        (("pcr11", "sha384", "late"), "00" * 48, "unknown field: late"),
        (("secure_boot_off", "sha256", "11"), "00" * 32, "unknown field: 11"),
        (("accepted_pcr7",), [], "accepted_pcr7: none"),
        (("accepted_pcr7",), [{"name": "x"}], r"accepted_pcr7\[0\]\.sha256: missing"),
        (("keys", "pcr"), [], r"keys\.pcr: none"),
        (("keys", "pcr"), [1], r"keys\.pcr\[0\]"),
        (("keys", "site"), "00" * 32, "unknown field: site"),
        (("security_version",), 0, "security_version"),
        (("security_version",), 64, "security_version"),
        (("rollback_floor",), 3, "rollback_floor: 3 is not between 0 and 2"),
        (("artefacts", "root.raw"), {"size": -1, "sha256": "00" * 32}, r"artefacts\.root\.raw\.size"),
        (("artefacts", "root.raw"), {"size": 1, "sha256": "00" * 32, "md5": ""}, "unknown field: md5"),
        (("signature",), "", "unknown field: signature"),
    ],
)
def test_each_wrong_field_is_named(path: tuple[str, ...], value: Any, words: str) -> None:
    document = json.loads(EXAMPLE.to_bytes())
    place = document
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    with pytest.raises(ParseError, match=words):
        Release.parse(json.dumps(document).encode())


ED25519 = FileSigner(ed25519.Ed25519PrivateKey.generate())
P256 = FileSigner(ec.generate_private_key(ec.SECP256R1()))
DOCUMENT = EXAMPLE.to_bytes()


def signature(signer: FileSigner, message: bytes | None = None) -> ReleaseSignature:
    return ReleaseSignature(
        key=hashlib.sha256(signer.public_key).digest(),
        algorithm=str(signer.algorithm),
        signature=signer.sign(signed_message(DOCUMENT) if message is None else message),
    )


@pytest.mark.parametrize("signer", [ED25519, P256])
def test_a_trusted_signature(signer: FileSigner) -> None:
    other = signature(P256 if signer is ED25519 else ED25519)
    signed = signatures_to_bytes([other, signature(signer)])
    assert check_signature(DOCUMENT, signed, [signer.public_key]) == EXAMPLE


@pytest.mark.parametrize(
    ("signed", "code"),
    [
        ([], "release.unsigned"),
        ([signature(P256)], "release.unsigned"),
        ([signature(ED25519, DOCUMENT)], "release.signature"),
        ([signature(ED25519, signed_message(DOCUMENT + b" "))], "release.signature"),
        ([replace(signature(ED25519), algorithm="ecdsa-p256")], "release.signature"),
        ([replace(signature(P256), key=signature(ED25519).key)], "release.signature"),
        ([signature(ED25519), replace(signature(ED25519), signature=bytes(64))], "release.signature"),
    ],
)
def test_what_no_trusted_key_signed_is_refused(signed: list[ReleaseSignature], code: str) -> None:
    with pytest.raises(RefusedError) as caught:
        check_signature(DOCUMENT, signatures_to_bytes(signed), [ED25519.public_key])
    assert [found.code for found in caught.value.findings] == [code]
    with pytest.raises(RefusedError, match=r"release\.unsigned"):
        check_signature(DOCUMENT, signatures_to_bytes(signed), [])


def test_a_signed_manifest_must_still_be_well_formed() -> None:
    for document, words in ((DOCUMENT + b"\n", "canonical"), (b"{}", "missing")):
        signed = signatures_to_bytes([signature(ED25519, signed_message(document))])
        with pytest.raises(ParseError, match=words):
            check_signature(document, signed, [ED25519.public_key])


def test_keys_that_sign_no_releases() -> None:
    wrong = public_der(rsa.generate_private_key(65537, 2048).public_key())
    for key, words in ((wrong, "neither Ed25519 nor P-256"), (b"key", "not a public key")):
        with pytest.raises(UsageError, match=words):
            check_signature(DOCUMENT, signatures_to_bytes([signature(ED25519)]), [key])


def test_the_signed_message_has_its_own_prefix() -> None:
    assert signed_message(b"x") == b"nodeos-release-v1\0x"
    assert set(release_format.BANKS) == set(ZEROES)
