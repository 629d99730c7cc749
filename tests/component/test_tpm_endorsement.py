"""The endorsement key and its certificates, on a real software TPM."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from tpm2_pytss import ESAPI, ESYS_TR, TPM2_ALG, TPM2B_NV_PUBLIC, TPMA_NV, TPMS_NV_PUBLIC, TPMT_PUBLIC

from hsm.errors import TpmError, TpmMissingError, TpmPasswordError
from hsm.softtpm import ManufacturerCa, SoftTpm
from hsm.tpm import Tpm
from nodeos.core.errors import ToolError, UsageError
from tests.support.tpm_tools import certified_key, credential, handles, key_of, name_of

pytestmark = pytest.mark.tpm


def _undefine(tcti: str, *indices: int) -> None:
    with ESAPI(tcti) as esys:
        for index in indices:
            esys.nv_undefine_space(esys.tr_from_tpmpublic(index), auth_handle=ESYS_TR.PLATFORM)


def _evict(tcti: str, handle: int) -> None:
    with ESAPI(tcti) as esys:
        esys.evict_control(ESYS_TR.OWNER, esys.tr_from_tpmpublic(handle), handle)


def _define(tcti: str, index: int, data: bytes, *, attributes: int | None = None) -> None:
    chosen = attributes or TPMA_NV.PPWRITE | TPMA_NV.OWNERREAD | TPMA_NV.AUTHREAD | TPMA_NV.PLATFORMCREATE
    public = TPM2B_NV_PUBLIC(
        nvPublic=TPMS_NV_PUBLIC(nvIndex=index, nameAlg=TPM2_ALG.SHA256, attributes=chosen, dataSize=len(data))
    )
    with ESAPI(tcti) as esys:
        handle = esys.nv_define_space(None, public, auth_handle=ESYS_TR.PLATFORM)
        for offset in range(0, len(data), 512):
            esys.nv_write(handle, data[offset : offset + 512], offset, auth_handle=ESYS_TR.PLATFORM)


def test_rsa_is_preferred_and_the_chain_leads_to_the_pinned_root(
    soft_tpm: SoftTpm, manufacturer_ca: ManufacturerCa
) -> None:
    with soft_tpm.serve() as tcti, Tpm(tcti) as tpm:
        endorsement = tpm.endorsement()
    leaf, intermediate = (x509.load_der_x509_certificate(der) for der in endorsement.certificates)
    root = x509.load_pem_x509_certificate(manufacturer_ca.roots.read_bytes())
    leaf.verify_directly_issued_by(intermediate)
    intermediate.verify_directly_issued_by(root)
    root.verify_directly_issued_by(root)
    assert endorsement.public[:2] == b"\x00\x01"
    assert certified_key(endorsement.certificates[0]) == key_of(endorsement.public)


def test_certificate_is_one_of_the_tcg(soft_tpm: SoftTpm) -> None:
    with soft_tpm.serve() as tcti, Tpm(tcti) as tpm:
        leaf = x509.load_der_x509_certificate(tpm.endorsement().certificates[0])
    usages = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert [usage.dotted_string for usage in usages] == ["2.23.133.8.1"]
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    attributes = {item.oid.dotted_string for name in names for item in name.value}
    assert attributes == {"2.23.133.2.1", "2.23.133.2.2", "2.23.133.2.3"}
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_elliptic_curve_when_there_is_no_rsa_certificate(soft_tpm: SoftTpm) -> None:
    with soft_tpm.serve() as tcti:
        _undefine(tcti, 0x01C00002)
        with Tpm(tcti) as tpm:
            endorsement, key = tpm.endorsement(), tpm.attestation_key()
            sealed = credential(endorsement.public, name_of(key), b"secret")
            assert tpm.activate(*sealed) == b"secret"
    area, _ = TPMT_PUBLIC.unmarshal(endorsement.public)
    assert int(area.type) == 0x0023
    certificate = x509.load_der_x509_certificate(endorsement.certificates[0])
    public = certificate.public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert public.curve.name == "secp384r1"
    assert certified_key(endorsement.certificates[0]) == key_of(endorsement.public)


@pytest.mark.parametrize("certificate", [0x01C00002, 0x01C00016])
def test_key_is_made_again_if_the_tpm_does_not_hold_it(soft_tpm: SoftTpm, certificate: int) -> None:
    with soft_tpm.serve() as tcti:
        if certificate == 0x01C00016:
            _undefine(tcti, 0x01C00002)
        with Tpm(tcti) as tpm:
            before = tpm.endorsement()
        _evict(tcti, 0x81010001 if certificate == 0x01C00002 else 0x81010016)
        with Tpm(tcti) as tpm:
            assert tpm.endorsement() == before
            key = tpm.attestation_key()
            assert tpm.activate(*credential(before.public, name_of(key), b"again")) == b"again"
        with ESAPI(tcti) as esys:
            assert handles(esys, 0x80000000) == []


def test_no_certificates_at_all(soft_tpm: SoftTpm) -> None:
    with soft_tpm.serve() as tcti:
        _undefine(tcti, 0x01C00002, 0x01C00016)
        with Tpm(tcti) as tpm:
            assert tpm.endorsement().certificates == ()


def test_key_that_is_not_the_certified_one_is_refused(soft_tpm: SoftTpm) -> None:
    with soft_tpm.serve() as tcti:
        with ESAPI(tcti) as esys:
            esys.change_eps()
        with Tpm(tcti) as tpm, pytest.raises(TpmError, match="not the one in its certificate"):
            tpm.endorsement()


def test_foreign_key_at_the_endorsement_handle_is_passed_over(soft_tpm: SoftTpm) -> None:
    with soft_tpm.serve() as tcti:
        with Tpm(tcti) as tpm:
            before = tpm.endorsement()
        _evict(tcti, 0x81010001)
        with ESAPI(tcti) as esys:
            key, *_ = esys.create_primary(None)
            esys.evict_control(ESYS_TR.OWNER, key, 0x81010001)
        with Tpm(tcti) as tpm:
            assert tpm.endorsement() == before


@pytest.mark.parametrize("prefix", [b"", b"\x10\x01\x00"])
def test_padded_and_prefixed_certificates(soft_tpm: SoftTpm, prefix: bytes) -> None:
    with soft_tpm.serve() as tcti:
        with Tpm(tcti) as tpm:
            before = tpm.endorsement()
        _undefine(tcti, 0x01C00002)
        stored = prefix + before.certificates[0]
        _define(tcti, 0x01C00002, stored + b"\xff" * (1500 - len(stored)))
        with Tpm(tcti) as tpm:
            assert tpm.endorsement() == before


def test_certificate_that_only_the_owner_reads(soft_tpm: SoftTpm) -> None:
    with soft_tpm.serve() as tcti:
        with Tpm(tcti) as tpm:
            before = tpm.endorsement()
        _undefine(tcti, 0x01C00002)
        owner = TPMA_NV.PPWRITE | TPMA_NV.OWNERREAD | TPMA_NV.PLATFORMCREATE
        _define(tcti, 0x01C00002, before.certificates[0], attributes=owner)
        with Tpm(tcti) as tpm:
            assert tpm.endorsement() == before


def test_chain_over_several_places(soft_tpm: SoftTpm) -> None:
    with soft_tpm.serve() as tcti:
        with Tpm(tcti) as tpm:
            before = tpm.endorsement()
        chain = before.certificates[1]
        _undefine(tcti, 0x01C00100)
        _define(tcti, 0x01C00100, chain[:300])
        _define(tcti, 0x01C00101, chain[300:] + b"\xff" * 40)
        with Tpm(tcti) as tpm:
            assert tpm.endorsement() == before


def test_broken_certificate_is_an_error(soft_tpm: SoftTpm) -> None:
    with soft_tpm.serve() as tcti:
        _undefine(tcti, 0x01C00002)
        _define(tcti, 0x01C00002, b"\x30\x82\x04\x00" + bytes(100))
        with Tpm(tcti) as tpm, pytest.raises(TpmError, match="can't be read"):
            tpm.endorsement()


def test_identity(soft_tpm: SoftTpm) -> None:
    with soft_tpm.serve() as tcti, Tpm(tcti) as tpm:
        identity = tpm.identity()
    assert identity.manufacturer == "IBM"
    assert identity.model == "SW   TPM"
    assert len(identity.firmware.split(".")) == 4


def test_endorsement_password(soft_tpm: SoftTpm) -> None:
    with soft_tpm.serve() as tcti:
        _evict(tcti, 0x81010001)
        with ESAPI(tcti) as esys:
            esys.hierarchy_change_auth(ESYS_TR.ENDORSEMENT, b"stranger")
        with Tpm(tcti) as tpm, pytest.raises(TpmPasswordError, match="has a password") as caught:
            tpm.endorsement()
    assert caught.value.response_code == 0x9A2
    assert "tpm2_changeauth" in (caught.value.hint or "")


def test_no_device(tmp_path: Path) -> None:
    with pytest.raises(TpmMissingError, match="does not exist") as caught, Tpm(f"device:{tmp_path}/tpm0"):
        pass
    assert "firmware" in (caught.value.hint or "")


def test_nobody_answers(tmp_path: Path) -> None:
    with pytest.raises(TpmMissingError, match="no TPM answers"), Tpm(f"swtpm:path={tmp_path}/tpm"):
        pass


def test_provisioning_twice_changes_nothing(soft_tpm: SoftTpm, manufacturer_ca: ManufacturerCa) -> None:
    state = soft_tpm.directory / "tpm2-00.permall"
    before = hashlib.sha256(state.read_bytes()).digest()
    soft_tpm.provision(manufacturer_ca)
    assert hashlib.sha256(state.read_bytes()).digest() == before


def test_state_of_others_is_not_overwritten(tmp_path: Path, manufacturer_ca: ManufacturerCa) -> None:
    (tmp_path / "tpm2-00.permall").write_bytes(b"precious")
    with pytest.raises(UsageError, match="not provisioned here"):
        SoftTpm(tmp_path).provision(manufacturer_ca)
    assert (tmp_path / "tpm2-00.permall").read_bytes() == b"precious"


def test_manufacturer_is_made_once(manufacturer_ca: ManufacturerCa, tmp_path: Path) -> None:
    before = manufacturer_ca.roots.read_bytes()
    assert ManufacturerCa.create(manufacturer_ca.directory).roots.read_bytes() == before
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(UsageError, match="neither empty"):
        ManufacturerCa.create(tmp_path)


def test_relative_directory(
    provisioned_tpm: SoftTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    twin = provisioned_tpm.copy(Path("relative"))
    with twin.serve() as tcti, Tpm(tcti) as tpm:
        assert tpm.identity().manufacturer == "IBM"


def test_two_at_a_time_are_refused(soft_tpm: SoftTpm) -> None:
    with (
        soft_tpm.serve(),
        pytest.raises(ToolError, match="did not start") as caught,
        SoftTpm(soft_tpm.directory).serve(),
    ):
        pass
    assert "no other process" in (caught.value.hint or "")


def test_unprovisioned(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no software TPM"), SoftTpm(tmp_path / "nothing").serve():
        pass


def test_virtual_machine_socket(soft_tpm: SoftTpm) -> None:
    """The control channel that QEMU uses answers (CMD_GET_CAPABILITY: a zero result and the capabilities)."""
    import socket

    with soft_tpm.serve_vm() as path, socket.socket(socket.AF_UNIX) as control:
        control.settimeout(10)
        control.connect(str(path))
        control.sendall((1).to_bytes(4, "big"))
        answer = control.recv(64)
    assert answer[:4] == bytes(4)
    assert not path.exists()
