"""The keys of a build: who may read them, and that none is ever lost."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from image.keys import BuildKeys, generate
from nodeos.core.errors import UsageError
from nodeos.core.release import Variant

PAIRS = [
    ("secure-boot.key", "secure-boot.crt"),
    ("verity.key", "verity.crt"),
    ("pcr.key", "pcr.pub.pem"),
    ("site.key", "site.pub.pem"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> BuildKeys:
    directory = tmp_path_factory.mktemp("build") / "keys"
    directory.mkdir(mode=0o755)
    return generate(directory)


def test_only_the_owner_reads(made: BuildKeys) -> None:
    assert stat.S_IMODE(made.directory.stat().st_mode) == 0o700, (
        "an empty folder that was there is closed too"
    )
    for name, _ in PAIRS:
        assert stat.S_IMODE(made.path(name).stat().st_mode) == 0o600


def test_halves_belong_together(made: BuildKeys) -> None:
    made.require(Variant.RELEASE)
    seen = set()
    for private_name, public_name in PAIRS:
        private = load_pem_private_key(made.path(private_name).read_bytes(), None)
        pem = made.path(public_name).read_bytes()
        certificate = public_name.endswith(".crt")
        public = x509.load_pem_x509_certificate(pem).public_key() if certificate else load_pem_public_key(pem)
        assert private.public_key() == public
        seen.add(pem)
    assert len(seen) == len(PAIRS)


def test_never_overwritten(made: BuildKeys, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in made.directory.iterdir()}
    with pytest.raises(UsageError, match="is not empty") as caught:
        generate(made.directory)
    assert "never overwritten" in str(caught.value)
    assert {path: path.read_bytes() for path in made.directory.iterdir()} == before
    (tmp_path / "note").touch()
    with pytest.raises(UsageError, match="is not empty"):
        generate(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["note"]


@pytest.mark.parametrize("name", [name for pair in PAIRS for name in pair])
def test_missing_key_is_named(name: str, tmp_path: Path) -> None:
    keys = BuildKeys(directory=tmp_path)
    for other in {name for pair in PAIRS for name in pair} - {name}:
        keys.path(other).touch()
    assert keys.missing() == [tmp_path / name]
    with pytest.raises(UsageError) as caught:
        keys.require(Variant.DEBUG)
    assert caught.value.message == f"keys are missing: {tmp_path / name}"
    assert caught.value.hint == f"make them with `nodeos image keygen --variant debug {tmp_path}`"


def test_keys_of_one_variant_sign_no_other(made: BuildKeys, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="are for the release variant, not for debug"):
        made.require(Variant.DEBUG)
    debug = generate(tmp_path / "debug", Variant.DEBUG)
    debug.require(Variant.DEBUG)
    with pytest.raises(UsageError, match="are for the debug variant, not for release"):
        debug.require(Variant.RELEASE)
    debug.variant_file.unlink()
    with pytest.raises(UsageError, match="the variant of the keys"):
        debug.require(Variant.DEBUG)
