"""An unsigned build is read only as it was made: each test breaks one thing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from image.unsigned import ARTEFACTS, BuildManifest, Rollback, Unsigned, describe
from nodeos.core.errors import UsageError
from nodeos.core.release import Variant
from nodeos.core.wire import ParseError


@pytest.fixture
def made(tmp_path: Path) -> Unsigned:
    for name in ARTEFACTS:
        (tmp_path / name).write_bytes(name.encode() * 100)
    build = BuildManifest(
        release="1.2.3",
        variant=Variant.RELEASE,
        root_hash=bytes(range(32)),
        kernel_command_line="roothash=00 quiet",
        source_commit="abc",
        source_date_epoch=1000,
        security_version=3,
        rollback_floor=2,
        artefacts={name: describe(tmp_path / name) for name in ARTEFACTS},
    )
    (tmp_path / "build.json").write_bytes(build.to_bytes())
    return Unsigned(directory=tmp_path, build=build)


def test_round_trip(made: Unsigned) -> None:
    assert Unsigned.read(made.directory) == made
    for path in (made.root, made.verity, made.bootloader, made.uki, made.packages, made.sbom):
        assert path.is_file()


def test_the_form_of_the_manifest(made: Unsigned) -> None:
    value = json.loads(made.build.to_bytes())
    assert value.pop("artefacts")["root.raw"]["size"] == 800
    assert value == {
        "version": 1, "release": "1.2.3", "variant": "release", "root_hash": bytes(range(32)).hex(),
        "kernel_command_line": "roothash=00 quiet", "source_commit": "abc", "source_date_epoch": 1000,
        "security_version": 3, "rollback_floor": 2,
    }  # fmt: skip


@pytest.mark.parametrize("name", ARTEFACTS)
@pytest.mark.parametrize("change", ["longer", "other", "absent", "link"])
def test_a_file_that_was_not_built(name: str, change: str, made: Unsigned) -> None:
    path = made.directory / name
    data = path.read_bytes()
    path.unlink()
    if change == "link":
        (made.directory / "elsewhere").write_bytes(data)
        path.symlink_to("elsewhere")
    elif change != "absent":
        path.write_bytes(data + b"x" if change == "longer" else b"x" + data[1:])
    with pytest.raises(UsageError, match=name):
        Unsigned.read(made.directory)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"build\.json is not there"):
        Unsigned.read(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "version"),
        ({"variant": "beta"}, "variant: 'beta'"),
        ({"root_hash": "00"}, "root_hash: expected 32 bytes"),
        ({"security_version": 0}, "security_version"),
        ({"rollback_floor": 4}, r"rollback_floor: 4 is above security_version 3"),
        ({"more": 1}, "unknown field: more"),
        ({"artefacts": {}}, "artefacts: missing: boot.efi"),
        ({"artefacts": {"../x": {"size": 1, "sha256": "00" * 32}}}, r"artefacts: unknown: \.\./x"),
    ],
)
def test_a_manifest_of_another_form(changes: dict[str, Any], message: str, made: Unsigned) -> None:
    value = json.loads(made.build.to_bytes()) | changes
    with pytest.raises(ParseError, match=message):
        BuildManifest.parse(json.dumps(value).encode())


@pytest.mark.parametrize("name", ARTEFACTS)
def test_every_artefact_must_be_named(name: str, made: Unsigned) -> None:
    left = {key: item for key, item in made.build.artefacts.items() if key != name}
    with pytest.raises(ParseError, match=f"missing: {name}"):
        BuildManifest.parse(dataclasses.replace(made.build, artefacts=left).to_bytes())


def test_release_toml_of_the_project() -> None:
    data = (Path(__file__).parents[2] / "image/release.toml").read_bytes()
    rollback = Rollback.parse(data)
    assert 1 <= rollback.rollback_floor <= rollback.security_version


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("security_version = 1", "rollback_floor: missing"),
        ("security_version = 1\nrollback_floor = 2", "2 is above security_version 1"),
        ("security_version = 0\nrollback_floor = 0", "security_version: 0 is not between 1"),
        ("security_version = true\nrollback_floor = 1", "security_version: expected a whole number"),
        ("security_version = 4294967296\nrollback_floor = 1", "security_version"),
        ("security_version = 1\nrollback_floor = 1\nfloor = 1", "unknown field: floor"),
        ("security_version", "not TOML"),
    ],
)
def test_a_wrong_release_toml(text: str, message: str) -> None:
    with pytest.raises(ParseError, match=message):
        Rollback.parse(text.encode())


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_parsers(data: bytes) -> None:
    for parse in (BuildManifest.parse, Rollback.parse):
        with pytest.raises(ParseError):
            parse(data)
