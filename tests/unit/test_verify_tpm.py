"""TPM structures and credentials."""

from __future__ import annotations

import struct

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.kdf.kbkdf import KBKDFHMAC, CounterLocation, Mode
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeos.core.wire import ParseError
from provisioning.verify.credential import kdfa, kdfe, make_credential
from provisioning.verify.reader import Reader
from provisioning.verify.tpm import (
    Alg,
    Attribute,
    digest,
    parse_public,
    parse_quote,
    parse_signature,
)
from tests.support import evidence as ev


def test_reader_reads_both_orders_and_refuses_what_is_left() -> None:
    reader = Reader(b"\x01\x02\x03\x04\x05", "x", order="little")
    assert reader.u16() == 0x0201
    assert Reader(b"\x01\x02", "x").u16() == 0x0102
    with pytest.raises(ParseError, match="3 bytes too many at offset 2"):
        reader.done()
    with pytest.raises(ParseError, match="4 bytes are needed at offset 3, 2 are left"):
        reader.u8()
        reader.u32()


def test_public_of_an_rsa_endorsement_key() -> None:
    raw = ev.rsa_public(ev.rsa_key().public_key())
    public = parse_public(raw)
    assert (public.kind, public.rsa_bits, public.exponent) == (Alg.RSA, 2048, 65537)
    assert public.spki() == ev.spki(ev.rsa_key())
    assert public.name == b"\x00\x0b" + digest(Alg.SHA256, raw)


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1()])
def test_public_of_an_ecc_endorsement_key(curve: ec.EllipticCurve) -> None:
    key = ec.generate_private_key(curve)
    public = parse_public(ev.ecc_ek_public(key.public_key()))
    assert public.spki() == ev.spki(key)
    assert len(public.name) == 2 + (32 if curve.key_size == 256 else 48)


def test_public_refuses_trailing_bytes_unknown_bits_and_points_off_the_curve() -> None:
    raw = ev.ak_public(ev.new_ak().public_key())
    with pytest.raises(ParseError, match="1 bytes too many"):
        parse_public(raw + b"\0")
    with pytest.raises(ParseError, match="unknown attribute bits"):
        parse_public(raw[:4] + b"\x80" + raw[5:])
    with pytest.raises(ParseError, match="not a valid key"):
        parse_public(ev.flipped(raw)).key()
    with pytest.raises(ParseError, match="neither RSA nor ECC"):
        parse_public(b"\x00\x08" + raw[2:])
    with pytest.raises(ParseError, match="hash algorithm"):
        parse_public(raw[:2] + b"\x00\x12" + raw[4:])


def test_quote_and_signature_round_trip() -> None:
    pcrs = ev.boot_pcrs(b"")
    quote = parse_quote(ev.quote_bytes(b"q" * 32, pcrs, clock=7, reset_count=8, restart_count=9))
    assert (quote.clock, quote.reset_count, quote.restart_count) == (7, 8, 9)
    assert quote.selection == ((Alg.SHA256, tuple(sorted(pcrs))),)
    key = ev.new_ak()
    assert parse_signature(ev.sign_quote(key, b"x"))[0] == Alg.SHA256


@given(st.binary(max_size=400))
@settings(max_examples=300, deadline=None)
def test_parsers_raise_nothing_but_parse_errors(data: bytes) -> None:
    for parse in (parse_public, parse_quote, parse_signature):
        try:
            parse(data)
        except ParseError:
            continue


@given(st.integers(0, 10_000), st.integers(0, 255), st.sampled_from(["rsa", "ecc", "quote", "signature"]))
@settings(max_examples=300, deadline=None)
def test_parsers_stand_damaged_structures(at: int, value: int, kind: str) -> None:
    whole = {
        "rsa": ev.rsa_public(ev.rsa_key().public_key()),
        "ecc": ev.ak_public(_KEY.public_key()),
        "quote": ev.quote_bytes(b"q" * 32, ev.boot_pcrs(b"")),
        "signature": _SIGNATURE,
    }[kind]
    damaged = bytearray(whole)
    damaged[at % len(whole)] = value
    try:
        if kind in ("rsa", "ecc"):
            parse_public(bytes(damaged)).key()
        elif kind == "quote":
            parse_quote(bytes(damaged))
        else:
            parse_signature(bytes(damaged))
    except ParseError:
        pass


_KEY = ev.new_ak()
_SIGNATURE = ev.sign_quote(_KEY, b"message")


@pytest.mark.parametrize(("alg", "size"), [(Alg.SHA256, 128), (Alg.SHA384, 256), (Alg.SHA512, 1024)])
def test_kdfa_is_sp800_108_in_counter_mode(alg: Alg, size: int) -> None:
    algorithm = {Alg.SHA256: hashes.SHA256(), Alg.SHA384: hashes.SHA384(), Alg.SHA512: hashes.SHA512()}[alg]
    reference = KBKDFHMAC(
        algorithm=algorithm,
        mode=Mode.CounterMode,
        length=size // 8,
        rlen=4,
        llen=4,
        location=CounterLocation.BeforeFixed,
        label=b"STORAGE",
        context=b"name",
        fixed=None,
    )
    assert kdfa(alg, b"seed", b"STORAGE", b"name", size) == reference.derive(b"seed")


def test_kdfe_is_sp800_56a_concatenation() -> None:
    reference = ConcatKDFHash(hashes.SHA256(), 32, b"IDENTITY\0" + b"uv")
    assert kdfe(Alg.SHA256, b"z" * 32, b"IDENTITY", b"uv", 256) == reference.derive(b"z" * 32)


def _endorsement_keys() -> list[tuple[ev.CertificateKey, bytes]]:
    p256, p384 = (ec.generate_private_key(curve) for curve in (ec.SECP256R1(), ec.SECP384R1()))
    return [
        (ev.rsa_key(), ev.rsa_public(ev.rsa_key().public_key())),
        (p256, ev.ecc_ek_public(p256.public_key())),
        (p384, ev.ecc_ek_public(p384.public_key())),
    ]


def test_credential_opens_for_its_key_and_name_only() -> None:
    name = b"\x00\x0b" + b"n" * 32
    for key, raw in _endorsement_keys():
        credential = make_credential(parse_public(raw), name, b"s" * 32)
        assert ev.activate(key, name, credential.blob, credential.encrypted_secret) == b"s" * 32
        with pytest.raises(ValueError, match="INTEGRITY"):
            ev.activate(key, ev.flipped(name), credential.blob, credential.encrypted_secret)
        with pytest.raises(ValueError, match="INTEGRITY"):
            ev.activate(key, name, ev.flipped(credential.blob), credential.encrypted_secret)


def test_credential_needs_a_storage_key() -> None:
    with pytest.raises(ParseError, match="not a storage key"):
        make_credential(parse_public(ev.ak_public(ev.new_ak().public_key())), b"n", b"s")


def test_selection_of_more_than_four_bytes_is_refused() -> None:
    quote = ev.quote_bytes(b"", ev.boot_pcrs(b""))
    at = quote.index(struct.pack(">HB", 0x000B, 3)) + 2
    with pytest.raises(ParseError, match="at most 4"):
        parse_quote(quote[:at] + b"\x05" + quote[at + 1 :])


def test_attribute_names_cover_what_is_needed() -> None:
    assert Attribute(ev.AK_ATTRIBUTES) & Attribute.RESTRICTED
