from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from nodeos.agent import identity
from nodeos.agent.identity import IdentityError, load, load_or_make, prove
from nodeos.core.principal import Principal
from provisioning.verify.findings import Result
from provisioning.verify.possession import check_possession

FILES = ("signing.pem", "tls.pem", "tls.der", "committee.hex", "public.json")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("identity") / "keys"
    load_or_make(directory)
    return directory


@pytest.fixture
def keys(made: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(made, tmp_path / "keys"))


def test_keys_are_made_once(tmp_path: Path) -> None:
    first = load_or_make(tmp_path / "state" / "keys")
    second = load_or_make(tmp_path / "state" / "keys")
    assert (first.made, second.made) == (True, False)
    assert first.keys == second.keys
    assert sorted(p.name for p in (tmp_path / "state" / "keys").iterdir()) == sorted(FILES)
    assert [p.name for p in (tmp_path / "state").iterdir()] == ["keys"]


def test_only_the_owner_can_read_them(keys: Path) -> None:
    assert stat.S_IMODE(keys.stat().st_mode) == 0o700
    assert {stat.S_IMODE((keys / name).stat().st_mode) for name in FILES} == {0o600}


def test_the_certificate_names_the_node(keys: Path) -> None:
    found = load(keys)
    certificate = x509.load_der_x509_certificate(found.tls_certificate)
    node_id = Principal.self_authenticating(found.signing)
    assert found.node_id == node_id
    assert certificate.subject.rfc4514_string() == f"CN={node_id}"
    assert certificate.issuer == certificate.subject
    certificate.verify_directly_issued_by(certificate)
    public = certificate.public_key()
    assert isinstance(public, EllipticCurvePublicKey)
    assert public.curve.name == "secp256r1"
    assert certificate.not_valid_after_utc.year == 9999


def test_each_key_signs_for_one_attestation(keys: Path) -> None:
    stated = load(keys)
    for qualifying in (b"q" * 32, b"r" * 32):
        assert check_possession(stated, prove(keys, qualifying), qualifying).result is Result.PASSED
    found = check_possession(stated, prove(keys, b"q" * 32), b"r" * 32)
    codes = [f.code for f in found.findings]
    assert codes == ["possession.signing", "possession.tls_certificate", "possession.committee"]


def test_keys_that_are_damaged_sign_nothing(keys: Path) -> None:
    (keys / "tls.der").unlink()
    with pytest.raises(IdentityError, match=r"tls\.der"):
        prove(keys, b"q" * 32)


def test_a_power_cut_before_the_rename_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "keys"
    left = 0

    def write(path: Path, data: bytes) -> None:
        nonlocal left
        if left == 0:
            raise InterruptedError
        left -= 1
        path.write_bytes(data)

    def rename(path: Path, target: object) -> Path:
        raise InterruptedError

    for writes in range(6):
        left = writes
        with monkeypatch.context() as patched:
            patched.setattr(identity, "write_new", write)
            patched.setattr(Path, "rename", rename)
            with pytest.raises(InterruptedError):
                load_or_make(directory)
        assert not directory.exists()
        assert list(tmp_path.iterdir())
    assert load_or_make(directory).made
    assert [p.name for p in tmp_path.iterdir()] == ["keys"]


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(keys: Path, name: str) -> None:
    (keys / name).unlink()
    with pytest.raises(IdentityError, match=f"damaged: {name}: No such file") as caught:
        load_or_make(keys)
    assert "not made anew" in (caught.value.hint or "")
    assert not (keys / name).exists()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [b"", b"nonsense", b"{}"])
def test_a_file_with_nonsense_is_refused(keys: Path, name: str, content: bytes) -> None:
    (keys / name).write_bytes(content)
    with pytest.raises(IdentityError, match="damaged"):
        load_or_make(keys)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_node_is_refused(keys: Path, tmp_path: Path, name: str) -> None:
    load_or_make(tmp_path / "other")
    shutil.copy2(tmp_path / "other" / name, keys / name)
    with pytest.raises(IdentityError, match="damaged"):
        load_or_make(keys)


def test_another_committee_key_is_refused(keys: Path) -> None:
    text = (keys / "committee.hex").read_text().strip()
    (keys / "committee.hex").write_text(text[:-1] + ("0" if text[-1] != "0" else "1"))
    with pytest.raises(IdentityError, match=r"committee\.hex is not the key in public\.json"):
        load_or_make(keys)


@pytest.mark.parametrize("name", [*FILES, "."])
def test_a_file_that_others_can_read_is_refused(keys: Path, name: str) -> None:
    (keys / name).chmod(0o740)
    with pytest.raises(IdentityError, match="can be read by others"):
        load_or_make(keys)


def test_an_empty_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir(mode=0o700)
    with pytest.raises(IdentityError, match="damaged"):
        load_or_make(tmp_path / "keys")


def test_a_dangling_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "keys").symlink_to(tmp_path / "nowhere")
    with pytest.raises(IdentityError):
        load_or_make(tmp_path / "keys")


def test_errors_show_no_secret(keys: Path) -> None:
    secret = (keys / "committee.hex").read_text().strip()
    (keys / "committee.hex").write_text(secret + "zz")
    with pytest.raises(IdentityError) as caught:
        load_or_make(keys)
    assert secret[:16] not in str(caught.value)


def test_public_json_is_what_is_sent(keys: Path) -> None:
    assert json.loads((keys / "public.json").read_bytes()) == load(keys).to_json()
