"""The keys of releases: who may read them, that none is ever lost, and how they are replaced."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from cryptography import x509

from image import keys as keys_module
from image import rotation
from image.keys import ALGORITHMS, CERTIFICATES, NAMES, KeySet, generate, make_keys
from nodeos.core.errors import NodeosError, UsageError
from nodeos.core.release import Variant


def no_pin(name: str) -> str:
    raise AssertionError(f"no PIN is needed for {name}")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> KeySet:
    directory = tmp_path_factory.mktemp("build") / "keys"
    directory.mkdir(mode=0o755)
    return generate(directory)


def content(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def test_only_the_owner_reads(made: KeySet) -> None:
    assert stat.S_IMODE(made.directory.stat().st_mode) == 0o700
    for name in NAMES:
        assert stat.S_IMODE(made.path(f"{name}.key").stat().st_mode) == 0o600
    assert set(content(made.directory)) == {
        "VARIANT", *(f"{name}.key" for name in NAMES), *(made.public_file(name).name for name in NAMES)
    }  # fmt: skip
    assert list(made.directory.parent.iterdir()) == [made.directory], "nothing is left beside it"


def test_halves_belong_together(made: KeySet) -> None:
    made.require(Variant.RELEASE)
    seen = set()
    for name in NAMES:
        with made.signer(name, no_pin) as signer:
            assert signer.public_key == made.public(name)
            assert signer.algorithm in ALGORITHMS[name]
        seen.add(made.public(name))
        if name in CERTIFICATES:
            certificate = made.certificate(name)
            certificate.verify_directly_issued_by(certificate)
            constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
            assert constraints.critical
            assert not constraints.value.ca
    assert len(seen) == len(NAMES)


def test_never_overwritten(made: KeySet, tmp_path: Path) -> None:
    before = content(made.directory)
    with pytest.raises(UsageError, match="is not empty") as caught:
        generate(made.directory)
    assert "never overwritten" in str(caught.value)
    assert content(made.directory) == before
    (tmp_path / "note").touch()
    with pytest.raises(UsageError, match="is not empty"):
        generate(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["note"]


def test_interrupted_generation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = keys_module._write_public

    def interrupted(keys: KeySet, name: str, pin: keys_module.Pin) -> None:
        real(keys, name, pin)
        if name == "KEK":
            raise KeyboardInterrupt

    monkeypatch.setattr(keys_module, "_write_public", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "keys")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
def test_missing_key_is_named(name: str, tmp_path: Path) -> None:
    keys = KeySet(directory=tmp_path)
    for other in set(NAMES) - {name}:
        keys.public_file(other).touch()
    assert keys.missing() == [keys.public_file(name)]
    with pytest.raises(UsageError) as caught:
        keys.require(Variant.DEBUG)
    assert caught.value.message == f"keys are missing: {keys.public_file(name)}"
    assert caught.value.hint == f"make them with `nodeos image keygen --variant debug {tmp_path}`"


def test_keys_of_one_variant_sign_no_other(made: KeySet, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="are for the release variant, not for debug"):
        made.require(Variant.DEBUG)
    debug = generate(tmp_path / "debug", Variant.DEBUG)
    debug.require(Variant.DEBUG)
    with pytest.raises(UsageError, match="are for the debug variant, not for release"):
        debug.require(Variant.RELEASE)
    debug.variant_file.unlink()
    with pytest.raises(UsageError, match="the variant of the keys"):
        debug.require(Variant.DEBUG)


def test_a_key_elsewhere(made: KeySet, tmp_path: Path) -> None:
    """An identity file takes the place of the private half; tokens and TPMs have the same interface."""
    elsewhere = tmp_path / "token"
    elsewhere.mkdir()
    (elsewhere / "secret.key").write_bytes(made.path("db.key").read_bytes())
    (elsewhere / "secret.key").chmod(0o600)
    identity = elsewhere / "db.json"
    identity.write_text(json.dumps({"kind": "file", "key": "secret.key"}))
    keys = KeySet(directory=tmp_path / "keys")
    keys.directory.mkdir()
    make_keys(keys, ["db"], identities={"db": identity}, pin=None)
    assert sorted(content(keys.directory)) == ["db.crt", "db.json"]
    with keys.signer("db", no_pin) as signer:
        assert signer.public_key == keys.public("db") == made.public("db")
    (keys.directory / "db.key").touch()
    with pytest.raises(UsageError, match="both there"), keys.signer("db", no_pin):
        pass
    with pytest.raises(UsageError, match="no such key is made here: XX"):
        make_keys(keys, ["db"], identities={"XX": identity}, pin=None)
    with pytest.raises(UsageError, match="neither P-256"):
        make_keys(keys, ["pcr"], identities={"pcr": identity}, pin=None)


def test_halves_that_do_not_belong_together(made: KeySet, tmp_path: Path) -> None:
    keys = KeySet(directory=tmp_path)
    make_keys(keys, ["site"], identities={}, pin=None)
    keys.public_file("site").write_bytes(made.public_file("site").read_bytes())
    with (
        pytest.raises(UsageError, match=r"the private key site is not that of site\.pub\.pem"),
        keys.signer("site", no_pin),
    ):
        pass


@pytest.fixture
def small(tmp_path: Path) -> KeySet:
    """Keys that are quick to make, and enough to rotate."""
    keys = KeySet(directory=tmp_path / "keys")
    keys.directory.mkdir()
    make_keys(keys, ["pcr", "release", "site"], identities={}, pin=None)
    keys.variant_file.write_text("release\n")
    return keys


SMALL = ("pcr", "release", "site")


def test_rotation(small: KeySet) -> None:
    first = content(small.directory)
    following = rotation.begin(small, ["pcr", "site"])
    assert {name: following.has(name) for name in SMALL} == {"pcr": True, "release": False, "site": True}
    assert {name: data for name, data in content(small.directory).items() if "/" not in name} == first
    new = content(following.directory)
    assert small.public_pem("pcr") == first["pcr.pub.pem"] + new["pcr.pub.pem"]
    assert small.public_pem("release") == first["release.pub.pem"]
    with pytest.raises(UsageError, match="under way already"):
        rotation.begin(small, ["release"])
    assert rotation.finish(small) == ["pcr", "site"]
    small.require(Variant.RELEASE, SMALL)
    assert content(small.directory) == {
        **first, **new,
        **{f"retired/{name}-1/{file}": first[file] for name in ("pcr", "site")
           for file in (f"{name}.key", f"{name}.pub.pem")},
    }  # fmt: skip
    with pytest.raises(UsageError, match="no rotation is under way"):
        rotation.finish(small)
    rotation.begin(small, ["pcr"])
    rotation.finish(small)
    assert [item.directory.name for item in small.retired("pcr")] == ["pcr-1", "pcr-2"]
    assert small.retired("pcr")[1].path("pcr.key").read_bytes() == new["pcr.key"]


@pytest.mark.parametrize("step", range(24))
def test_interrupted_at_any_step(step: int, small: KeySet, monkeypatch: pytest.MonkeyPatch) -> None:
    first, new = content(small.directory), content(rotation.begin(small, SMALL).directory)
    real, made = keys_module.sync, 0

    def interrupted(directory: Path) -> None:
        nonlocal made
        if made == step:
            raise KeyboardInterrupt
        made += 1
        real(directory)

    monkeypatch.setattr(rotation, "sync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rotation.finish(small)
    monkeypatch.setattr(rotation, "sync", real)
    with pytest.raises(UsageError, match="was interrupted"):
        small.require(Variant.RELEASE, SMALL)
    with pytest.raises(UsageError, match="was interrupted"):
        rotation.begin(small, ["pcr"])
    assert rotation.finish(small) == sorted(SMALL)
    small.require(Variant.RELEASE, SMALL)
    kept = {name: data for name, data in content(small.directory).items() if not name.startswith("retired/")}
    assert kept == {**first, **new}
    for name in SMALL:
        assert small.retired(name)[0].path(f"{name}.key").read_bytes() == first[f"{name}.key"]


def test_rotations_that_are_refused(small: KeySet) -> None:
    for names, words in (
        (["PK"], "platform key"),
        ([], "name the keys"),
        (["db"], "nothing to rotate"),
        (["odd"], "no such key"),
    ):
        with pytest.raises(UsageError, match=words):
            rotation.begin(small, names)
        assert not small.next().directory.exists()
    following = rotation.begin(small, ["pcr"])
    (following.directory / "note").touch()
    with pytest.raises(UsageError, match="no keys: note"):
        rotation.finish(small)
    (following.directory / "note").unlink()
    small.journal.write_text(json.dumps({"moves": [["../x", "y"]]}))
    with pytest.raises(UsageError, match="leads out"):
        rotation.finish(small)
    small.journal.write_text(json.dumps({"moves": [["x", "y"]]}))
    with pytest.raises(NodeosError, match=r"neither .* is there"):
        rotation.finish(small)
