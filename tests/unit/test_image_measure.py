"""PCR values predicted from files, held to values that other programs computed."""

from __future__ import annotations

import datetime
import hashlib
import uuid
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.hazmat.primitives.serialization.pkcs7 import PKCS7Options, PKCS7SignatureBuilder
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from image import measure, pe
from nodeos.core.errors import UsageError
from nodeos.core.release import BootPhase
from tests.support.pe import make_auth, make_disk, make_pe, sign_pe, signature_list, without_signature_fields

# systemd-measure 252 gave these for the sections below (calculate --bank=… --phase=…).
SECTIONS = {
    ".linux": b"synthetic kernel",
    ".osrel": b"ID=nodeos\n",
    ".cmdline": b"ro quiet",
    ".initrd": b"synthetic initrd, longer than a few bytes",
    ".splash": b"a splash",
    ".dtb": b"a devicetree",
    ".pcrpkey": b"a public key",
}
PHASES = {
    BootPhase.ENTER_INITRD: "019b9ba96681b1eb57637782ecdad51f4831810ac113dffffd02d0aae4bc0613",
    BootPhase.LEAVE_INITRD: "12545745846696bd0f7f401abc759ce484feadfdb37d974313490a51257eacc8",
    BootPhase.SYSINIT: "5be25e1039bef485ea2bda5b25e47988d03587f1c20c85179b3e1d4fa18990a0",
    BootPhase.READY: "5d4b8e326d2b6512106a76ccc778ed16412a5a821b9569f339a52b8c9615dbaa",
}
INITRD_SHA384 = (
    "c9bc20ddcbbf6effa6d62ec29e6ad087bed51e7bd17b72e081ed28021b1dc21ed88fe65fcb49157964c325db8dcd3adb"
)


def uki(sections: dict[str, bytes], directory: Path) -> measure.Uki:
    path = directory / "nodeos.efi"
    path.write_bytes(make_pe(sections))
    return measure.Uki.read(path)


def test_pcr11_is_what_systemd_measures(tmp_path: Path) -> None:
    values = measure.pcr11(uki(SECTIONS, tmp_path))
    assert {phase: value.hex() for phase, value in values.items()} == PHASES


def test_pcr11_goes_by_the_stub_s_order_not_the_file_s(tmp_path: Path) -> None:
    reversed_file = dict(reversed(SECTIONS.items()))
    assert measure.pcr11(uki(reversed_file, tmp_path)) == measure.pcr11(uki(SECTIONS, tmp_path))


def test_pcr11_leaves_out_what_the_stub_does_not_measure(tmp_path: Path) -> None:
    more = {**SECTIONS, ".pcrsig": b"{}", ".text": b"code", ".sdmagic": b"#### LoaderInfo"}
    assert measure.pcr11(uki(more, tmp_path)) == measure.pcr11(uki(SECTIONS, tmp_path))


@pytest.mark.parametrize("name", list(SECTIONS))
def test_every_section_counts(name: str, tmp_path: Path) -> None:
    changed = {**SECTIONS, name: SECTIONS[name] + b"\0"}
    assert measure.pcr11(uki(changed, tmp_path)) != measure.pcr11(uki(SECTIONS, tmp_path))


def test_pcr11_of_another_bank(tmp_path: Path) -> None:
    image = uki(SECTIONS, tmp_path)
    assert measure.pcr11(image, "sha384")[BootPhase.ENTER_INITRD].hex() == INITRD_SHA384
    assert measure.pcr11(image, "sha256")[BootPhase.ENTER_INITRD].hex() == PHASES[BootPhase.ENTER_INITRD]


def test_sections_end_at_their_virtual_size(tmp_path: Path) -> None:
    assert uki(SECTIONS, tmp_path).sections == SECTIONS


def test_root_hash(tmp_path: Path) -> None:
    root = "ab" * 32
    image = uki({**SECTIONS, ".cmdline": f"ro roothash={root} quiet\n".encode()}, tmp_path)
    assert image.command_line == f"ro roothash={root} quiet"
    assert image.root_hash.hex() == root
    with pytest.raises(UsageError, match="names no roothash"):
        _ = uki(SECTIONS, tmp_path).root_hash


@pytest.mark.parametrize("name", [".linux", ".initrd", ".cmdline"])
def test_no_uki(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"no unified kernel image, it lacks {name}"):
        uki({key: data for key, data in SECTIONS.items() if key != name}, tmp_path)


def test_no_pe(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("no program at all")
    with pytest.raises(UsageError, match="not a PE image"):
        measure.Uki.read(path)


def test_authenticode_of_an_unsigned_image() -> None:
    image = make_pe(SECTIONS)
    assert pe.authenticode(image, "it") == hashlib.sha256(without_signature_fields(image)).digest()


@given(
    sections=st.lists(st.binary(max_size=1500), min_size=1, max_size=4),
    tail=st.binary(max_size=40),
    certificate=st.binary(min_size=1, max_size=50),
)
def test_signing_does_not_change_authenticode(sections: list[bytes], tail: bytes, certificate: bytes) -> None:
    image = make_pe({f".s{index}": data for index, data in enumerate(sections)}, tail=tail)
    digest = pe.authenticode(image, "it")
    signed = sign_pe(image, certificate)
    assert signed != image
    assert pe.authenticode(signed, "it") == digest
    assert digest == hashlib.sha256(without_signature_fields(image)).digest()


@pytest.mark.parametrize("offset", [0x3F, 0x48, 0x58 + 63, 0x58 + 68, 600, -1])
def test_every_other_byte_changes_authenticode(offset: int) -> None:
    image = bytearray(make_pe(SECTIONS, tail=b"more"))
    before = pe.authenticode(bytes(image), "it")
    offset %= len(image)
    image[offset] ^= 1
    try:
        after = pe.authenticode(bytes(image), "it")
    except UsageError:
        return
    assert after != before


def test_pcr4_is_the_firmware_s_order() -> None:
    # Digests of the action and the separator as they stand in every event log.
    digests = [
        bytes.fromhex("3d6772b4f84ed47595d72a2c4c5ffd15f5bb72c7507fe26f2aaee2c69d5633ba"),
        bytes.fromhex("df3f619804a92fdb4057192dc43dd748ea778adc52bc498ce80524c014b81119"),
        hashlib.sha256(without_signature_fields(make_pe({".text": b"loader"}))).digest(),
        hashlib.sha256(without_signature_fields(make_pe(SECTIONS))).digest(),
    ]
    value = bytes(32)
    for digest in digests:
        value = hashlib.sha256(value + digest).digest()
    assert measure.pcr4(sign_pe(make_pe({".text": b"loader"})), sign_pe(make_pe(SECTIONS))) == value


def test_variables_as_every_event_log_has_them() -> None:
    efi = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
    database = uuid.UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
    secure_boot = hashlib.sha256(measure.variable_data(efi, "SecureBoot", b"\x01")).hexdigest()
    assert secure_boot == "ccfc4bb32888a345bc8aeadaba552b627d99348c767681ab3141f5b01e40a40e"
    empty_dbx = hashlib.sha256(measure.variable_data(database, "dbx", b"")).hexdigest()
    assert empty_dbx == "9f75b6823bff6af1024a4e2036719cdd548d3cbc2bf1de8e7ef4d0ed01f94bf9"


def enrolled() -> dict[str, bytes]:
    certificates = {"PK": "3082aa01", "KEK": "3082aa0203", "db": "3082aa030405"}
    return {name: make_auth(bytes.fromhex(text)) for name, text in certificates.items()}


def test_pcr7() -> None:
    # Computed with sha256sum and xxd in a shell.
    expected = "46b8ed5a2f8046aa458dde207f24cb488818057129b6f908f1a61905211c7074"
    assert measure.pcr7(enrolled()).hex() == expected


@pytest.mark.parametrize("name", ["PK", "KEK", "db"])
def test_pcr7_depends_on_every_key(name: str) -> None:
    changed = {**enrolled(), name: make_auth(b"\x30\x82another")}
    assert measure.pcr7(changed) != measure.pcr7(enrolled())


def test_pcr7_with_two_signers_is_not_guessed() -> None:
    two = make_auth(b"x")[: -len(signature_list(bytes(17)))] + signature_list(bytes(20), bytes(20))
    with pytest.raises(UsageError, match="more than one certificate"):
        measure.pcr7({**enrolled(), "db": two})
    with pytest.raises(UsageError, match="too short"):
        measure.pcr7({**enrolled(), "db": bytes(23)})


def test_esp_offset(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk", {"EFI/BOOT/BOOTX64.EFI": b"loader"})
    assert measure.esp_offset(disk) == 2 << 20
    assert measure.read_esp(disk, "EFI/BOOT/BOOTX64.EFI") == b"loader"


def test_no_esp(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no EFI system partition"):
        measure.esp_offset(make_disk(tmp_path / "disk", None))
    empty = tmp_path / "empty"
    empty.write_bytes(bytes(4096))
    with pytest.raises(UsageError, match="no partition table"):
        measure.esp_offset(empty)
    empty.write_bytes(b"")
    with pytest.raises(UsageError, match="no partition table"):
        measure.esp_offset(empty)


def certified(name: str) -> tuple[x509.Certificate, bytes]:
    """A certificate, and a PKCS #7 signature that carries it."""
    key = generate_private_key(SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    begin = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(begin)
        .not_valid_after(begin.replace(year=2040))
        .sign(key, SHA256())
    )
    builder = PKCS7SignatureBuilder().set_data(b"digest").add_signer(certificate, key, SHA256())
    return certificate, builder.sign(Encoding.DER, [PKCS7Options.Binary])


def test_kernel_signed_with_the_enrolled_key(tmp_path: Path) -> None:
    ours, signature = certified("ours")
    other, vendor = certified("a vendor")
    db = make_auth(ours.public_bytes(Encoding.DER))
    kernel = make_pe({".text": b"a kernel"})
    for accepted in (kernel, sign_pe(kernel, vendor)):
        measure.check_kernel_signer(uki({**SECTIONS, ".linux": accepted}, tmp_path), db)
    assert measure.signers(sign_pe(kernel, vendor), "it") == [other]
    for refused in (sign_pe(kernel, signature), sign_pe(kernel, vendor, signature)):
        with pytest.raises(UsageError, match="is signed with the Secure Boot key"):
            measure.check_kernel_signer(uki({**SECTIONS, ".linux": refused}, tmp_path), db)


def test_kernel_signature_that_cannot_be_read() -> None:
    signed_kernel = bytearray(sign_pe(make_pe({".text": b"a kernel"}), b"x" * 24))
    signed_kernel[-26] ^= 0x40
    with pytest.raises(UsageError, match="a signature that can't be read"):
        measure.signers(bytes(signed_kernel), "kernel")
    with pytest.raises(UsageError, match="a signature that can't be read"):
        measure.signers(sign_pe(make_pe({".text": b"a kernel"}), b"no PKCS #7"), "kernel")
