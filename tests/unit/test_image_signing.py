"""PE images, Authenticode and Secure Boot variables; each refusal by a change that breaks just that check."""

from __future__ import annotations

import datetime
import struct
import subprocess
import uuid
from functools import cache
from pathlib import Path

import pefile
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from image import authenticode, efivars, measure, pe, pkcs7
from nodeos.core.errors import UsageError
from tests.support.pe import make_pe

BEGIN = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
OWNER = uuid.UUID(int=7)
ENTRY = 0x40 + 24 + 112 + 32
SECTIONS = {".text": b"code", ".cmdline": b"ro", ".initrd": b"i", ".linux": make_pe({".text": b"k"})}
IMAGE = make_pe(SECTIONS, alignment=1024)


class Key:
    """An RSA key and its certificate."""

    def __init__(self, name: str) -> None:
        self.key: RSAPrivateKey = generate_private_key(65537, 2048)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).serial_number(1)
        builder = builder.public_key(self.key.public_key()).not_valid_before(BEGIN)
        self.certificate = builder.not_valid_after(BEGIN.replace(year=2040)).sign(self.key, SHA256())

    def sign(self, message: bytes) -> bytes:
        return self.key.sign(message, PKCS1v15(), SHA256())


@cache
def key(name: str) -> Key:
    return Key(name)


def signed(image: bytes = IMAGE, name: str = "db") -> bytes:
    return pe.attach_signature(image, authenticode.sign(image, key(name), key(name).certificate))


@given(content=st.binary(max_size=2000), signature=st.binary(min_size=1, max_size=99))
def test_round_trips(content: bytes, signature: bytes) -> None:
    image = pe.add_section(IMAGE, ".pcrsig", content)
    assert pe.section_contents(image) == {**pe.section_contents(IMAGE), ".pcrsig": content}
    attached = pe.attach_signature(image, signature)
    assert pe.strip_signatures(attached) == image == pe.strip_signatures(image)
    assert pe.signatures(attached) == [signature]
    assert [pe.authenticode(attached, "it", bank) for bank in pe.BANKS] == [
        pe.authenticode(image, "it", bank) for bank in pe.BANKS
    ]
    other = pefile.PE(data=attached, fast_load=True)
    assert other.verify_checksum()
    end = other.sections[-1].VirtualAddress + other.sections[-1].Misc_VirtualSize
    assert end <= other.OPTIONAL_HEADER.SizeOfImage == -(-end // 4096) * 4096


@pytest.mark.parametrize(
    ("image", "name", "message"),
    [
        (pe.attach_signature(IMAGE, b"x"), ".a", "is signed"),
        (IMAGE + b"tail", ".a", "data follows the last section"),
        (IMAGE, ".linux", "already"),
        (IMAGE, ".too-long", "can't name"),
        (IMAGE, "", "can't name"),
        (make_pe({f".{index}": b"x" for index in range(4)}), ".a", "no room in the headers"),
    ],
)
def test_section_that_cannot_be_added(image: bytes, name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pe.add_section(image, name, b"content")


def patched(offset: int, form: str, *values: int, image: bytes = IMAGE) -> bytes:
    changed = bytearray(image)
    struct.pack_into(form, changed, offset, *values)
    return bytes(changed)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"ZM" + IMAGE[2:], "begin with MZ"),
        (IMAGE[:0x30], "ends within"),
        (patched(0x40, "<I", 0), "no PE header"),
        (patched(0x58, "<H", 0x107), "unknown kind"),
        (patched(0x58 + 108, "<I", 4), "no room for a signature"),
        (patched(0x58 + 36, "<I", 513), "no power of two"),
        (patched(0x46, "<H", 200), "section table"),
        (patched(0x58 + 240 + 20, "<I", 0x800), "doesn't follow"),
        (IMAGE[:-1], "beyond the end"),
        (patched(ENTRY, "<II", 8, 0), "a place but no size"),
        (patched(ENTRY, "<II", len(IMAGE) - 16, 16), "what the file ends with"),
        (signed() + bytes(8), "what the file ends with"),
        (patched(0x58 + 240, "<B", 0xFF), "no ASCII"),
    ],
)
def test_no_proper_image(image: bytes, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pe.parse(image)


def test_refusals_of_images() -> None:
    with pytest.raises(UsageError, match="signed already"):
        pe.attach_signature(signed(), b"x")
    with pytest.raises(UsageError, match="empty signature"):
        pe.attach_signature(IMAGE, b"")
    with pytest.raises(UsageError, match="no Authenticode digest with sha1"):
        pe.authenticode(IMAGE, "it", "sha1")
    with pytest.raises(UsageError, match="two sections"):
        pe.section_contents(IMAGE.replace(b".initrd\0", b".linux\0\0"))
    with pytest.raises(UsageError, match="larger than the image"):
        pe.section_contents(patched(0x58 + 240 + 8, "<I", 1 << 31))


def test_signatures_are_deterministic_and_verify() -> None:
    image = signed()
    assert image == signed()
    authenticode.verify(image, key("db").certificate)
    assert measure.signers(image, "it") == [key("db").certificate]


def test_openssl_accepts_authenticated_attributes(tmp_path: Path) -> None:
    # OpenSSL's command doesn't know Authenticode's content type, so the content is detached and plain here.
    certificate, signature, content = (tmp_path / name for name in ("crt", "p7", "content"))
    certificate.write_bytes(key("db").certificate.public_bytes(Encoding.PEM))
    signature.write_bytes(
        pkcs7.sign(key("db"), key("db").certificate, message=b"what is signed", attributes=True)
    )
    content.write_bytes(b"what is signed")
    openssl_verify(signature, content, certificate)
    content.write_bytes(b"something else")
    with pytest.raises(subprocess.CalledProcessError):
        openssl_verify(signature, content, certificate)


def openssl_verify(signature: Path, content: Path, certificate: Path) -> None:
    subprocess.run(
        ["openssl", "smime", "-verify", "-binary", "-inform", "DER", "-in", signature, "-content", content,
         "-CAfile", certificate, "-purpose", "any", "-out", "/dev/null"],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip


def test_signatures_that_are_refused() -> None:
    certificate = key("db").certificate
    other = pe.add_section(IMAGE, ".more", b"x")
    with pytest.raises(UsageError, match="has 0 signatures"):
        authenticode.verify(IMAGE, certificate)
    with pytest.raises(UsageError, match="another certificate"):
        authenticode.verify(signed(), key("other").certificate)
    with pytest.raises(UsageError, match="over another image"):
        authenticode.verify(pe.attach_signature(other, pe.signatures(signed())[0]), certificate)
    with pytest.raises(UsageError, match="isn't by the key"):
        authenticode.sign(IMAGE, key("other"), certificate)
    with pytest.raises(UsageError, match="signed already"):
        authenticode.sign(signed(), key("db"), certificate)
    signature = pe.signatures(signed())[0]
    with pytest.raises(UsageError, match="isn't by the key"):
        authenticode.verify(
            pe.attach_signature(IMAGE, signature[:-1] + bytes([signature[-1] ^ 1])), certificate
        )
    digest = pe.authenticode(IMAGE)
    with pytest.raises(UsageError, match="messageDigest doesn't match"):
        authenticode.verify(
            pe.attach_signature(other, signature.replace(digest, pe.authenticode(other), 1)), certificate
        )
    with pytest.raises(UsageError, match="can't be read"):
        authenticode.verify(pe.attach_signature(IMAGE, b"no signature"), certificate)


def lists(*names: str) -> bytes:
    return b"".join(efivars.certificate_list(key(name).certificate, OWNER) for name in names)


def auth(name: str, data: bytes, *, append: bool = False, day: int = 0, signer: str = "KEK") -> bytes:
    time = BEGIN + datetime.timedelta(days=day)
    return efivars.sign(name, data, key(signer), key(signer).certificate, time=time, append=append)


def test_lists() -> None:
    hashes = efivars.hash_list([b"a" * 32, b"b" * 32], OWNER)
    assert len(hashes) == 28 + 2 * 48
    entries = efivars.parse_lists(lists("db", "other") + hashes)
    assert [entry.kind for entry in entries] == [efivars.X509] * 2 + [efivars.SHA256] * 2
    assert efivars.to_lists(entries) == lists("db", "other") + hashes
    with pytest.raises(UsageError, match="32 bytes"):
        efivars.hash_list([b"short"], OWNER)
    with pytest.raises(UsageError, match="too short"):
        efivars.parse_lists(hashes[:20])
    with pytest.raises(UsageError, match="don't fit"):
        efivars.parse_lists(hashes[:-1])


def test_updates() -> None:
    kek = [key("KEK").certificate]
    set_db = auth("db", lists("db"))
    assert set_db == auth("db", lists("db"))
    assert efivars.Update.parse(set_db).to_bytes() == set_db
    first = efivars.apply("db", None, set_db, signers=kek)
    assert first == efivars.Variable(data=lists("db"), time=BEGIN)
    more = auth("db", lists("db", "other"), append=True)
    both = efivars.apply("db", first, more, signers=[key("other").certificate, *kek], append=True)
    assert both.data == lists("db", "other")
    assert efivars.apply("db", both, auth("db", lists("other"), day=1), signers=kek).data == lists("other")
    for name, update, signers, message in (
        ("db", set_db, kek, "not later"),
        ("dbx", set_db, kek, "isn't by the key"),
        ("db", more, kek, "isn't by the key"),
        ("db", set_db, [key("db").certificate], "another certificate"),
        ("db", set_db, [], "no key is enrolled"),
        ("db", set_db[:30], kek, "too short"),
        ("db", b"\0" * 16 + set_db[16:], kek, "time of a variable update is wrong"),
        ("db", set_db[:7] + b"\1" + set_db[8:], kek, "must be zero"),
        ("db", set_db[:21] + b"\0" + set_db[22:], kek, "signature can't be read"),
        ("boot", set_db, kek, "no Secure Boot variable"),
    ):
        with pytest.raises(UsageError, match=message):
            efivars.apply(name, first, update, signers=signers)
    with pytest.raises(UsageError, match="not in UTC"):
        efivars.sign("db", b"", key("KEK"), kek[0], time=datetime.datetime(2026, 1, 1))


def test_openssl_accepts_an_update(tmp_path: Path) -> None:
    update = efivars.Update.parse(auth("db", lists("db")))
    message = "db".encode("utf-16-le") + efivars.IMAGE_SECURITY_DATABASE.bytes_le + b"\x27\0\0\0"
    message += struct.pack("<HBB", 2026, 1, 1) + bytes(12) + lists("db")
    oid = bytes.fromhex("06092a864886f70d010702")
    size = len(update.signature)
    body = oid + b"\xa0\x82" + size.to_bytes(2, "big") + update.signature
    (tmp_path / "p7").write_bytes(b"\x30\x82" + len(body).to_bytes(2, "big") + body)
    (tmp_path / "message").write_bytes(message)
    (tmp_path / "crt").write_bytes(key("KEK").certificate.public_bytes(Encoding.PEM))
    openssl_verify(tmp_path / "p7", tmp_path / "message", tmp_path / "crt")


@pytest.mark.parametrize("bank", ["sha256", "sha384"])
def test_predictions(bank: str) -> None:
    loader = make_pe({".text": b"loader"})
    on = measure.pcr4(loader, IMAGE, bank=bank)
    kernel = pe.authenticode(make_pe({".text": b"k"}), "it", bank)
    assert measure.pcr4(loader, IMAGE, bank=bank, secure_boot=False) == measure.extend(on, kernel, bank)
    state = {"PK": lists("PK"), "KEK": lists("KEK"), "db": lists("db")}
    plain = measure.pcr7_of_lists(state, bank=bank)
    assert plain == measure.pcr7_of_lists(state, bank=bank, authority=key("db").certificate)
    two = {**state, "db": lists("db", "other")}
    values = {measure.pcr7_of_lists(two, bank=bank, authority=key(name).certificate)
              for name in ("db", "other")}  # fmt: skip
    dbx = {**state, "dbx": efivars.hash_list([bytes(32)], OWNER)}
    off = [measure.pcr7_of_lists(lists, bank=bank, secure_boot=False) for lists in ({}, state)]
    assert len({plain, *values, measure.pcr7_of_lists(dbx, bank=bank), *off}) == 6
    for wrong, authority, message in (
        (two, None, "more than one certificate"),
        (state, key("other").certificate, "isn't in db"),
        ({**state, "dbx": lists("db")}, key("db").certificate, "is in dbx"),
        ({**state, "PK": b""}, None, "with an empty PK"),
        ({**state, "MokList": b""}, None, "no Secure Boot variables"),
    ):
        with pytest.raises(UsageError, match=message):
            measure.pcr7_of_lists(wrong, bank=bank, authority=authority)
    with pytest.raises(UsageError, match=r"lacks \.linux"):
        measure.pcr4(loader, loader, secure_boot=False)
