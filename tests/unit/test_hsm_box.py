"""Boxes: the exact construction, what each changed field does, and what errors keep to themselves."""

from __future__ import annotations

import hmac

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from hsm.agreement import point_of
from hsm.box import HIGHEST_PLAINTEXT, Box, BoxError, open_box, seal_to
from hsm.identity import FileAgreement
from hsm.keys import public_der
from nodeos.core.errors import UsageError
from nodeos.core.wire import ParseError

CURVES = {"p256": ec.SECP256R1(), "secp256k1": ec.SECP256K1()}
KEYS = {name: ec.generate_private_key(curve) for name, curve in CURVES.items()}
SECRET = b"a secret of some bytes"
# "recovery" under the context "frozen", to the P-256 key whose private number is 5.
FROZEN = (
    "010104d46297f5ed589f5b328f56c144c0a9afb8d4e4e5f6c7e8339b1e9286cd71169344a5d24d090e6261429f0bd75f"
    "c186f054b3586d9c0458d0713682df252c1ece0a0f472f823ca4eb04ed6755128d839540256bfe0ae6ad1e"
)


@pytest.fixture(params=list(KEYS))
def key(request: pytest.FixtureRequest) -> FileAgreement:
    return FileAgreement(KEYS[request.param])


def _opens_not(key: FileAgreement, blob: bytes, context: bytes = b"context") -> None:
    with pytest.raises(BoxError, match="does not open") as caught:
        open_box(key, blob, context)
    assert SECRET.decode() not in str(caught.value)
    assert SECRET.hex() not in repr(caught.value)
    # The traceback shows no inner error either.
    assert caught.value.__suppress_context__


@given(plaintext=st.binary(min_size=1, max_size=HIGHEST_PLAINTEXT), context=st.binary(max_size=200))
@pytest.mark.parametrize("name", KEYS)
def test_round_trip(name: str, plaintext: bytes, context: bytes) -> None:
    key = FileAgreement(KEYS[name])
    assert open_box(key, seal_to(key.public_key, plaintext, context), context) == plaintext


@pytest.mark.parametrize(("name", "curve"), [("p256", 1), ("secp256k1", 2)])
def test_construction_by_hand(name: str, curve: int) -> None:
    """The docstring's formula with RFC 5869 written out, so that the form can't change unseen."""
    private = KEYS[name]
    blob = seal_to(public_der(private.public_key()), SECRET, b"context")
    assert blob[:2] == bytes((1, curve))
    point, sealed = blob[2:67], blob[67:]
    other = ec.EllipticCurvePublicKey.from_encoded_point(private.curve, point)
    info = b"nodeos-box-v1\0" + bytes((curve,)) + bytes(7) + b"\x07context" + point
    info += point_of(private.public_key())
    prk = hmac.digest(bytes(32), private.exchange(ec.ECDH(), other), "sha256")
    first = hmac.digest(prk, info + b"\x01", "sha256")
    second = hmac.digest(prk, first + info + b"\x02", "sha256")
    assert AESGCM(first).decrypt(second[:12], sealed, b"context") == SECRET


def test_box_opens_as_frozen() -> None:
    """Boxes that are stored must open with later versions."""
    key = FileAgreement(ec.derive_private_key(5, ec.SECP256R1()))
    assert open_box(key, bytes.fromhex(FROZEN), b"frozen") == b"recovery"


def test_no_two_boxes_are_alike(key: FileAgreement) -> None:
    boxes = [Box.parse(seal_to(key.public_key, SECRET, b"")) for _ in range(8)]
    assert len({box.ephemeral for box in boxes}) == len({box.sealed for box in boxes}) == 8


@pytest.mark.parametrize("context", [b"", b"contex", b"context\0", b"Context"])
def test_another_context(key: FileAgreement, context: bytes) -> None:
    _opens_not(key, seal_to(key.public_key, SECRET, b"context"), context)


def test_another_recipient(key: FileAgreement) -> None:
    curve = next(
        private.curve for private in KEYS.values() if FileAgreement(private).public_key == key.public_key
    )
    other = FileAgreement(ec.generate_private_key(curve))
    _opens_not(other, seal_to(key.public_key, SECRET, b"context"))


def test_another_ephemeral_key(key: FileAgreement) -> None:
    blob, other = (seal_to(key.public_key, SECRET, b"context") for _ in range(2))
    _opens_not(key, blob[:2] + other[2:67] + blob[67:])


def test_mirrored_ephemeral_key(key: FileAgreement) -> None:
    """The point with -y has the same shared x-coordinate: only that it is bound in ``info`` tells them apart."""
    blob = seal_to(key.public_key, SECRET, b"context")
    primes = {1: 2**256 - 2**224 + 2**192 + 2**96 - 1, 2: 2**256 - 2**32 - 977}
    y = primes[blob[1]] - int.from_bytes(blob[35:67], "big")
    mirrored = blob[:35] + y.to_bytes(32, "big") + blob[67:]
    assert Box.parse(mirrored)
    assert key.exchange(mirrored[2:67]) == key.exchange(blob[2:67])
    _opens_not(key, mirrored)


@pytest.mark.parametrize("at", [67, 67 + len(SECRET) - 1, -16, -1])
def test_changed_ciphertext_or_tag(key: FileAgreement, at: int) -> None:
    blob = bytearray(seal_to(key.public_key, SECRET, b"context"))
    blob[at] ^= 1
    _opens_not(key, bytes(blob))


@pytest.mark.parametrize("size", [-1, -5])
def test_cut_box(key: FileAgreement, size: int) -> None:
    _opens_not(key, seal_to(key.public_key, SECRET, b"context")[:size])


def test_longer_box(key: FileAgreement) -> None:
    _opens_not(key, seal_to(key.public_key, SECRET, b"context") + b"\0")


def test_ephemeral_key_off_the_curve(key: FileAgreement) -> None:
    blob = bytearray(seal_to(key.public_key, SECRET, b"context"))
    blob[66] ^= 1
    with pytest.raises(UsageError, match="not an uncompressed point"):
        open_box(key, bytes(blob), b"context")


def test_changed_version(key: FileAgreement) -> None:
    with pytest.raises(ParseError, match="version 2 is not known"):
        open_box(key, b"\x02" + seal_to(key.public_key, SECRET, b"context")[1:], b"context")


@pytest.mark.parametrize("curve", [0, 3, 255])
def test_unknown_curve(key: FileAgreement, curve: int) -> None:
    blob = seal_to(key.public_key, SECRET, b"context")
    with pytest.raises(ParseError, match=f"curve {curve} is not known"):
        open_box(key, blob[:1] + bytes((curve,)) + blob[2:], b"context")


def test_curve_changed_to_the_other(key: FileAgreement) -> None:
    blob = seal_to(key.public_key, SECRET, b"context")
    with pytest.raises(UsageError, match="not an uncompressed point"):
        open_box(key, blob[:1] + bytes((3 - blob[1],)) + blob[2:], b"context")


def test_key_on_the_other_curve() -> None:
    p256, secp256k1 = (FileAgreement(private) for private in KEYS.values())
    with pytest.raises(BoxError, match="for a key on secp256r1, and this key is on secp256k1"):
        open_box(secp256k1, seal_to(p256.public_key, SECRET, b""), b"")


@pytest.mark.parametrize("size", [0, HIGHEST_PLAINTEXT + 1])
def test_size_of_the_plaintext(key: FileAgreement, size: int) -> None:
    with pytest.raises(ValueError, match="a box holds 1 to"):
        seal_to(key.public_key, bytes(size), b"")


def test_recipients_that_cannot_receive() -> None:
    with pytest.raises(UsageError, match="Ed25519 key can sign but not"):
        seal_to(public_der(ed25519.Ed25519PrivateKey.generate().public_key()), SECRET, b"")
    with pytest.raises(UsageError, match="neither Ed25519, P-256"):
        seal_to(public_der(ec.generate_private_key(ec.SECP384R1()).public_key()), SECRET, b"")
    with pytest.raises(UsageError, match="not a public key"):
        seal_to(b"nothing", SECRET, b"")


@given(st.binary(max_size=200))
def test_parser_takes_boxes_or_says_no(blob: bytes) -> None:
    try:
        box = Box.parse(blob)
    except UsageError:
        return
    assert box.to_bytes() == blob


@given(at=st.integers(0, 66), bit=st.integers(0, 7), rest=st.binary(min_size=17, max_size=60))
@pytest.mark.parametrize("name", KEYS)
def test_parser_on_damaged_boxes(name: str, at: int, bit: int, rest: bytes) -> None:
    private = KEYS[name]
    head = seal_to(public_der(private.public_key()), SECRET, b"")[:67]
    box = Box.parse(head + rest)
    assert (box.ephemeral, box.sealed, box.to_bytes()) == (head[2:], rest, head + rest)
    damaged = bytearray(head + rest)
    damaged[at] ^= 1 << bit
    with pytest.raises(UsageError):
        Box.parse(bytes(damaged))


def test_sizes_of_the_parser() -> None:
    head = seal_to(public_der(KEYS["p256"].public_key()), SECRET, b"")[:67]
    for size in (17, 16 + HIGHEST_PLAINTEXT):
        assert len(Box.parse(head + bytes(size)).sealed) == size
    for size in (0, 16, 17 + HIGHEST_PLAINTEXT):
        with pytest.raises(ParseError, match="bytes, not between"):
            Box.parse(head + bytes(size))
