"""The node's own reader of PKCS #7 takes what the build signs, and refuses every change."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from image import pe, pkcs7
from nodeos.core.errors import UsageError
from nodeos.core.signed_data import check_authenticode, check_detached
from nodeos.core.verity import root_hash_of, root_hash_problem, verity_problem
from nodeos.update.candidate import Image, read_image
from tests.support.pe import make_pe
from tests.support.release_keys import key, signed_image, verity_json

IMAGE = make_pe({".text": b"code", ".cmdline": b"ro"}, alignment=1024)
HASH = bytes(range(32))


def detached(message: bytes, name: str = "db", *, attributes: bool = False, wrapped: bool = True) -> bytes:
    signer = key(name)
    return pkcs7.sign(signer, signer.certificate, message=message, attributes=attributes, wrapped=wrapped)


@pytest.mark.parametrize("attributes", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
def test_detached(attributes: bool, wrapped: bool) -> None:
    data = detached(b"message", attributes=attributes, wrapped=wrapped)
    check_detached(data, key("db").certificate, b"message")
    with pytest.raises(UsageError):
        check_detached(data, key("db").certificate, b"another")
    with pytest.raises(UsageError, match="another certificate"):
        check_detached(data, key("other").certificate, b"message")


@given(st.integers(0, 10_000), st.integers(0, 7))
def test_any_changed_bit_of_a_signature_is_refused_or_beside_the_point(at: int, bit: int) -> None:
    data = bytearray(detached(b"message"))
    data[at % len(data)] ^= 1 << bit
    certificate = key("db").certificate
    start = bytes(data).rfind(b"\x04\x82\x01\x00") + 4
    try:
        check_detached(bytes(data), certificate, b"message")
    except UsageError:
        return
    # The certificates that it carries don't count; the signature itself does.
    assert at % len(data) < start


@given(st.binary(max_size=200))
def test_anything_is_refused_in_words(data: bytes) -> None:
    with pytest.raises(UsageError):
        check_detached(data, key("db").certificate, b"message")


def test_authenticode() -> None:
    image = signed_image(IMAGE)
    found = read_image(image, "image")
    assert found == Image(digest=pe.authenticode(IMAGE), signer=key("db").der)
    changed = image.replace(b"ro", b"rw", 1)
    with pytest.raises(UsageError, match="another image"):
        read_image(changed, "image")
    with pytest.raises(UsageError, match="0 signatures"):
        read_image(IMAGE, "image")
    twice = pe.attach_signature(IMAGE, pe.signatures(image)[0])
    assert read_image(twice, "image") == found
    with pytest.raises(UsageError, match="not over a PE image"):
        check_authenticode(detached(b"message"), key("db").certificate, bytes(32))


def test_a_verity_signature_for_this_root_hash() -> None:
    trusted = [key("verity").certificate]
    assert verity_problem(verity_json(HASH), HASH, trusted) is None
    assert (
        verity_problem(verity_json(HASH).ljust(4096, b"\0"), HASH, [key("db").certificate, *trusted]) is None
    )
    for data, certificates, words in (
        (verity_json(bytes(32)), trusted, "for the root hash"),
        (verity_json(HASH), [], "trusts no"),
        (verity_json(HASH), [key("db").certificate], "another certificate"),
        (b"{}", trusted, "can't be read"),
        (b"[]", trusted, "can't be read"),
        (verity_json(HASH).replace(b'"signature": "MII', b'"signature": "MIJ'), trusted, "signature"),
    ):
        assert words in str(verity_problem(data, HASH, certificates))


def test_the_root_hash_on_the_command_line() -> None:
    assert root_hash_problem(b"ro roothash=" + HASH.hex().encode() + b" quiet\n\0", HASH) is None
    assert "no root hash" in str(root_hash_problem(b"ro quiet", HASH))
    twice = b" ".join([b"roothash=" + HASH.hex().encode()] * 2)
    assert root_hash_problem(twice, HASH) is not None
    assert root_hash_problem(b"roothash=" + bytes(32).hex().encode(), HASH) is not None


def test_the_one_root_hash_of_a_command_line() -> None:
    word = b"roothash=" + HASH.hex().encode()
    assert root_hash_of(b"ro " + word + b" quiet\n\0") == HASH
    for line in (b"ro quiet", b"ro " + word + b" " + word, word[:-1], word + b"00", word.replace(b"f", b"F")):
        with pytest.raises(UsageError, match="expected one root hash"):
            root_hash_of(line)
