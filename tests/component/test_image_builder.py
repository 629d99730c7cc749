"""The build around mkosi: what it is given, what its failures are called, and what becomes of its outputs."""

from __future__ import annotations

import configparser
import dataclasses
import hashlib
import os
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from image import apt, builder, pe
from image.builder import Config, Context
from image.lock import Role
from image.packages import Selection
from image.publickeys import IN_THE_ROOT, PCR
from image.unsigned import ARTEFACTS, Rollback, Unsigned
from nodeos.core.errors import NodeosError, ToolError, UsageError
from nodeos.core.release import Variant
from nodeos.core.run import run
from tests.support.packages import make_trees
from tests.support.pe import make_pe, sign_pe
from tests.support.publickeys import make_public_keys

ROOT_HASH = "5a" * 32
ROLLBACK = Rollback(security_version=3, rollback_floor=2)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_public_keys(tmp_path_factory.mktemp("build") / "keys")


@pytest.fixture
def context(tmp_path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    archives = [
        apt.Archive(uri="http://mirror.example.org/debian", security=False),
        apt.Archive(uri="http://mirror.example.org/debian-security", security=True),
    ]
    config = Config(source=tmp_path / "source", work=tmp_path / "work", keys=keys, version="1.2.3")
    config.source.mkdir()
    selection = Selection(
        lock=None,
        variant=Variant.RELEASE,
        locked=False,
        reasons=(),
        sources=apt.sources(archives).encode(),
        mkosi=None,
    )
    return Context(config=config, mkosi=["/absent/mkosi"], progress=lambda _: None, selection=selection)


def contents(keys: Path) -> dict[str, bytes]:
    return {name: (keys / name).read_bytes() for name in (PCR, *IN_THE_ROOT)}


def with_release_toml(context: Context) -> None:
    path = context.config.source / "image/release.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("security_version = 3\nrollback_floor = 2\n")


def test_missing_key_ends_the_build_before_anything_is_made(context: Context, tmp_path: Path) -> None:
    config = dataclasses.replace(context.config, keys=tmp_path / "none")
    with pytest.raises(UsageError, match="public keys are missing"):
        builder.build(config, lambda _: None)
    assert not config.work.exists()


@pytest.mark.parametrize("text", ["security_version = 1\nrollback_floor = 2\n", None])
def test_wrong_floor_ends_the_build_before_anything_is_made(text: str | None, context: Context) -> None:
    with_release_toml(context)
    path = context.config.source / "image/release.toml"
    path.write_text(text) if text else path.unlink()
    with pytest.raises(UsageError, match=r"release\.toml"):
        builder.build(context.config, lambda _: None)
    assert not context.config.work.exists()


@pytest.mark.parametrize("version", ["", "-1", "1/2", "1 2", "1_2", "ä", "1" * 23, "1\n"])
def test_version_that_names_no_partition(version: str, context: Context) -> None:
    with pytest.raises(UsageError, match="can't name a release"):
        builder.build(dataclasses.replace(context.config, version=version), lambda _: None)
    assert not context.config.work.exists()


@pytest.mark.parametrize("version", ["1", "1.2.3", "2027.01~rc1^x-y", "1" * 22])
def test_version_that_names_a_partition(version: str) -> None:
    builder.check_version(version)


def test_what_goes_in_as_it_is_has_the_modes_that_git_knows(context: Context) -> None:
    for top in ("image/extra", "image/initrd/extra"):
        program = context.config.source / top / "usr/bin/program"
        text = context.config.source / top / "etc/text"
        for path, mode in ((program, 0o700), (text, 0o600)):
            path.parent.mkdir(parents=True)
            path.write_text(top)
            path.chmod(mode)
            path.parent.chmod(0o700)
        (text.parent / "link").symlink_to("text")
    with_release_toml(context)
    umask = os.umask(0o022)
    try:
        builder.prepare_trees(context, contents(context.config.keys))
    finally:
        os.umask(umask)
    shutil.rmtree(context.sandbox / "extra/usr/lib")
    for name in ("extra", "initrd-extra"):
        modes = {
            str(path.relative_to(context.sandbox / name)): stat.S_IMODE(path.stat().st_mode)
            for path in (context.sandbox / name).rglob("*")
            if not path.is_symlink()
        }
        assert (context.sandbox / name / "etc/link").readlink() == Path("text")
        assert modes == {
            "usr": 0o755, "usr/bin": 0o755, "usr/bin/program": 0o755, "etc": 0o755, "etc/text": 0o644,
        }  # fmt: skip


def test_only_root_builds(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UsageError, match="building the image needs root") as caught:
        builder.check_host(context.config)
    assert "sudo" in str(caught.value)


def test_too_little_room(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    usage = type(shutil.disk_usage("/"))(100 << 30, 99 << 30, 1 << 30)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(NodeosError, match=r"1024 MiB free, a first build needs 6144 MiB") as caught:
        builder.check_host(context.config)
    assert "--work" in str(caught.value)
    (context.config.work / "cache").mkdir(parents=True)
    builder.check_host(context.config)


def test_host_without_apt(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, *, package: str) -> str:
        raise ToolError(f"the program {name} is not installed", hint=package)

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(builder, "NEEDED_SPACE", 0)
    monkeypatch.setattr(builder, "find_tool", missing)
    with pytest.raises(ToolError, match="the program apt-get is not installed"):
        builder.check_host(context.config)


def test_the_root_gets_the_public_keys_and_the_security_version(context: Context) -> None:
    with_release_toml(context)
    builder.prepare_trees(context, contents(context.config.keys))
    inside = context.sandbox / "extra/usr/lib/nodeos"
    assert {path.name for path in inside.iterdir()} == {
        "site.pub.pem", "release.pub.pem", "verity.crt", "release.toml",
    }  # fmt: skip
    for name in IN_THE_ROOT:
        assert (inside / name).read_bytes() == (context.config.keys / name).read_bytes()
    assert Rollback.parse((inside / "release.toml").read_bytes()) == ROLLBACK


def test_sandbox(context: Context) -> None:
    builder.prepare_sandbox(context, b"the PCR key")
    sources = (context.sandbox / "common/etc/apt/sources.list.d/mkosi.sources").read_text()
    assert apt.parse_deb822(sources)[0].uri == "http://mirror.example.org/debian"
    tree = context.sandbox / "image"
    ukify = configparser.ConfigParser(delimiters="=")
    ukify.optionxform = str  # type: ignore[assignment,method-assign] # the names as they are written
    ukify.read_string((tree / "usr/lib/systemd/ukify.conf").read_text())
    assert ukify.sections() == ["UKI"], "no group that would sign a policy"
    assert dict(ukify["UKI"]) == {"PCRPKey": "/etc/nodeos-keys/pcr.pub.pem"}
    assert (tree / "etc/nodeos-keys/pcr.pub.pem").read_bytes() == b"the PCR key"


def test_mkosi_signs_nothing() -> None:
    conf = (Path(builder.__file__).parents[1] / "mkosi.conf").read_text()
    for line in ("SecureBoot=no", "SignExpectedPcr=no", "Verity=no"):
        assert f"\n{line}\n" in conf
    assert not [name for name in ("SecureBootKey", "VerityKey", "SignExpectedPcrKey") if name in conf]


def test_sandbox_keeps_nothing_of_an_earlier_build(context: Context) -> None:
    old = context.sandbox / "image/etc/nodeos-keys/old.key"
    old.parent.mkdir(parents=True)
    old.touch()
    builder.prepare_sandbox(context, b"key")
    assert not old.exists()


def fake_mkosi(context: Context, directory: Path, body: str) -> None:
    program = directory / "mkosi"
    program.write_text(f"#!{sys.executable} -IS\nimport sys, pathlib\n{body}\n")
    program.chmod(0o755)
    context.mkosi = [str(program)]


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("cp: write error: No space left on device", "is full: make room"),
        ("E: Temporary failure resolving 'mirror.example.org'", "no network to the package mirror"),
        ("Could not connect to mirror.example.org:80", "no network to the package mirror"),
        (
            "E: Failed to fetch http://mirror.example.org/x.deb  404",
            "refused or lacks a file: check /etc/apt",
        ),
        ("E: Unable to locate package systemd-boot-efi", "the mirror has no trixie"),
        ("something new", "the whole log is {log}"),
    ],
)
def test_hint_for_a_failure(words: str, hint: str, context: Context, tmp_path: Path) -> None:
    fake_mkosi(context, tmp_path, f"print({words!r}); print('more' * 9); sys.exit(1)")
    prepare(context)
    with pytest.raises(ToolError, match="mkosi: exit code 1") as caught:
        builder.build_initrd(context)
    assert hint.format(log=context.log) in str(caught.value.hint)
    assert words in context.log.read_text()


def test_mkosi_that_makes_nothing(context: Context, tmp_path: Path) -> None:
    fake_mkosi(context, tmp_path, "sys.exit(0)")
    prepare(context)
    with pytest.raises(ToolError, match="mkosi made no initrd"):
        builder.build_initrd(context)


def counting_mkosi(context: Context, directory: Path) -> Path:
    """Makes an initrd that is another one each time, and counts how often it does."""
    count = directory / "count"
    fake_mkosi(
        context, directory,
        f"count = pathlib.Path({str(count)!r})\n"
        "count.write_text((count.read_text() if count.exists() else '') + 'x')\n"
        "word = next(item for item in sys.argv if item.startswith('--output-directory='))\n"
        "out = pathlib.Path(word.partition('=')[2])\n"
        "link = out / 'initrd-release'\n"
        "link.unlink(missing_ok=True)\n"
        "link.with_suffix('.cpio.zst').write_bytes(b'x' * 100 + count.read_bytes())\n"
        "link.with_suffix('.manifest').touch()\n"
        "link.symlink_to('initrd-release.cpio.zst')",
    )  # fmt: skip
    initrd = context.config.source / "image/initrd/extra/file"
    initrd.parent.mkdir(parents=True, exist_ok=True)
    initrd.write_text("one")
    return count


def prepare(context: Context) -> None:
    with_release_toml(context)
    no_shell = context.config.source / "image/extra/usr/lib/nodeos/no-shell"
    no_shell.parent.mkdir(parents=True, exist_ok=True)
    no_shell.touch()
    (context.config.source / "image/initrd/extra").mkdir(parents=True, exist_ok=True)
    builder.prepare_sandbox(context, b"key")
    builder.prepare_trees(context, contents(context.config.keys))


def test_initrd_is_the_file_not_its_link(context: Context, tmp_path: Path) -> None:
    counting_mkosi(context, tmp_path)
    prepare(context)
    assert builder.build_initrd(context) == context.config.work / "mkosi/initrd-release.cpio.zst"


def test_initrd_of_the_same_inputs_is_used_again(context: Context, tmp_path: Path) -> None:
    count = counting_mkosi(context, tmp_path)
    for _ in range(2):
        prepare(context)
        builder.build_initrd(context)
    assert count.read_text() == "x"


def edit_file(context: Context) -> None:
    (context.config.source / "image/initrd/extra/file").write_text("two")


def change_mode(context: Context) -> None:
    (context.config.source / "image/initrd/extra/file").chmod(0o755)


def edit_no_shell(context: Context) -> None:
    (context.config.source / "image/extra/usr/lib/nodeos/no-shell").write_text("#!/bin/sh")


def edit_output(context: Context) -> None:
    (context.config.work / "mkosi/initrd-release.cpio.zst").write_bytes(b"another")


def lose_output(context: Context) -> None:
    (context.config.work / "mkosi/initrd-release.cpio.zst").unlink()


def lock_packages(context: Context) -> None:
    (context.config.source / "image/packages.lock").write_text("other versions")


def clear_cache(context: Context) -> None:
    shutil.rmtree(context.config.work / "cache/initrd")


def another_mkosi(context: Context) -> None:
    copy = Path(context.mkosi[0]).with_name("newer")
    shutil.copy2(context.mkosi[0], copy)
    context.mkosi = [str(copy)]


@pytest.mark.parametrize(
    "change",
    [
        edit_file,
        change_mode,
        edit_no_shell,
        edit_output,
        lose_output,
        lock_packages,
        clear_cache,
        another_mkosi,
    ],
)
def test_initrd_is_made_anew_when_an_input_changes(
    change: Callable[[Context], None], context: Context, tmp_path: Path
) -> None:
    count = counting_mkosi(context, tmp_path)
    prepare(context)
    builder.build_initrd(context)
    change(context)
    prepare(context)
    builder.build_initrd(context)
    assert count.read_text() == "xx"


def test_initrd_after_a_failure_is_made_anew(context: Context, tmp_path: Path) -> None:
    count = counting_mkosi(context, tmp_path)
    working = context.mkosi
    prepare(context)
    builder.build_initrd(context)
    edit_file(context)
    prepare(context)
    other = tmp_path / "other"
    other.mkdir()
    fake_mkosi(context, other, "sys.exit(1)")
    with pytest.raises(ToolError):
        builder.build_initrd(context)
    context.mkosi = working
    builder.build_initrd(context)
    assert count.read_text() == "xx"


def make_outputs(context: Context, **sections: bytes) -> None:
    """What mkosi leaves; ``sections`` of the UKI come on top of what it should have."""
    made = context.config.work / "mkosi"
    made.mkdir(parents=True, exist_ok=True)
    content = {
        ".cmdline": f"roothash={ROOT_HASH} ro".encode(),
        ".pcrpkey": (context.config.keys / PCR).read_bytes(),
        ".linux": b"a kernel",
        ".initrd": b"an initrd",
    }
    content |= {f".{name}": data for name, data in sections.items()}
    (made / "nodeos.efi").write_bytes(make_pe(content))
    (made / "boot.efi").write_bytes(make_pe({".text": b"a boot loader"}))
    (made / "nodeos.root.raw").write_bytes(b"r" * 8192)
    (made / "nodeos.verity.raw").write_bytes(b"v" * 4096)
    (made / "nodeos.raw").write_bytes(b"a disk")
    make_trees(context.config.work, Variant.RELEASE, {Role.ROOT: ["a", "b"], Role.INITRD: ["a"]})
    locks = context.config.source / "image/locks"
    locks.mkdir(parents=True, exist_ok=True)
    (locks / "node.txt").write_text("")
    (context.config.work / "wheels").mkdir(exist_ok=True)


def finish(context: Context) -> Unsigned:
    return builder.finish(context, (context.config.keys / PCR).read_bytes(), ROLLBACK)


def test_finish(context: Context) -> None:
    make_outputs(context)
    built = finish(context)
    assert built == Unsigned.read(context.config.work / "image/release/unsigned")
    build = built.build
    assert (build.release, build.variant, build.source_commit) == ("1.2.3", Variant.RELEASE, "unknown")
    assert (build.security_version, build.rollback_floor) == (3, 2)
    assert (build.root_hash.hex(), build.kernel_command_line) == (ROOT_HASH, f"roothash={ROOT_HASH} ro")
    assert build.source_date_epoch == 1_767_225_600
    assert set(build.artefacts) == set(ARTEFACTS)
    for name, artefact in build.artefacts.items():
        data = (built.directory / name).read_bytes()
        assert (artefact.size, artefact.sha256) == (len(data), hashlib.sha256(data).digest())
    assert built.root.read_bytes() == b"r" * 8192
    assert {stat.S_IMODE(path.stat().st_mode) for path in built.directory.iterdir()} == {0o644}
    assert builder.package_count(built.directory) == 2
    assert not list((context.config.work / "mkosi").glob("nodeos*")), "the disk image goes"


def test_what_comes_out_is_what_signatures_are_taken_off_to(context: Context) -> None:
    make_outputs(context)
    built = finish(context)
    for path in (built.uki, built.bootloader):
        data = path.read_bytes()
        assert pe.strip_signatures(pe.attach_signature(data, b"a signature")) == data


def test_finish_replaces_the_build_before(context: Context) -> None:
    make_outputs(context)
    first = finish(context)
    (first.directory / "left-over").touch()
    make_outputs(context)
    second = finish(context)
    assert second == first
    assert not (second.directory / "left-over").exists()
    assert [path.name for path in second.directory.parent.iterdir()] == ["unsigned"]


@pytest.mark.parametrize(
    "name", ["nodeos.root.raw", "nodeos.verity.raw", "nodeos.efi", "boot.efi", "nodeos.manifest"]
)
def test_missing_output_keeps_the_build_before(name: str, context: Context) -> None:
    make_outputs(context)
    before = finish(context)
    make_outputs(context)
    (context.config.work / "mkosi" / name).unlink()
    with pytest.raises(ToolError, match=f"mkosi made no {name}"):
        finish(context)
    assert Unsigned.read(context.output) == before


@pytest.mark.parametrize("name", ["nodeos.efi", "boot.efi"])
def test_signed_image_is_no_unsigned_build(name: str, context: Context) -> None:
    make_outputs(context)
    path = context.config.work / "mkosi" / name
    path.write_bytes(sign_pe(path.read_bytes()))
    with pytest.raises(UsageError, match=f"{name} is signed"):
        finish(context)
    assert not context.output.exists()


def test_pcr_signature_is_no_part_of_an_unsigned_build(context: Context) -> None:
    make_outputs(context, pcrsig=b"{}")
    with pytest.raises(UsageError, match="carries a PCR signature"):
        finish(context)
    assert not context.output.exists()


@pytest.mark.parametrize("key", [b"", b"another key"])
def test_another_pcr_key_than_was_asked_for(key: bytes, context: Context) -> None:
    make_outputs(context, pcrpkey=key)
    with pytest.raises(UsageError, match="doesn't carry the PCR policy key"):
        finish(context)


@pytest.mark.parametrize("name", ["nodeos.root.raw", "nodeos.verity.raw"])
def test_partition_of_half_a_block(name: str, context: Context) -> None:
    make_outputs(context)
    with (context.config.work / "mkosi" / name).open("ab") as file:
        file.write(bytes(512))
    with pytest.raises(ToolError, match="no whole number of blocks"):
        finish(context)


def test_source_without_git(context: Context) -> None:
    assert builder.source_commit(context.config.source) == "unknown"
    assert builder.source_date_epoch(context.config.source) == 1_767_225_600


def test_source_with_changes(tmp_path: Path) -> None:
    source = tmp_path / "repository"
    source.mkdir()
    moment = "2026-01-02T03:04:05+00:00"
    who = {"GIT_AUTHOR_DATE": moment, "GIT_COMMITTER_DATE": moment}
    git = ["git", "-C", str(source), "-c", "user.name=test", "-c", "user.email=test@example.org"]
    (source / "file").write_text("one")
    for arguments in (["init", "-q"], ["add", "file"], ["commit", "-q", "-m", "test: Begin"]):
        run([*git, *arguments], what="git", env=who)
    commit = builder.source_commit(source)
    assert len(commit) == 40
    assert builder.source_date_epoch(source) == 1_767_323_045
    (source / "file").write_text("two")
    assert builder.source_commit(source) == f"{commit}+changes"
