"""The build around mkosi: what it is given, what its failures are called, and what becomes of its outputs."""

from __future__ import annotations

import configparser
import hashlib
import json
import os
import shutil
import stat
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.hazmat.primitives.serialization.pkcs7 import PKCS7SignatureBuilder

from image import apt, builder, measure
from image.builder import Built, Config, Context
from image.keys import KeySet, generate
from nodeos.core.errors import NodeosError, ToolError, UsageError
from nodeos.core.release import BootPhase, Release, Variant
from nodeos.core.run import run
from tests.support.pe import make_auth, make_disk, make_pe, sign_pe

ROOT_HASH = "5a" * 32
WRAPPER = Path(builder.__file__).parent / "scripts/ukify"
KERNEL = make_pe({".text": b"a kernel"})


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> KeySet:
    return generate(tmp_path_factory.mktemp("build") / "keys")


@pytest.fixture
def context(tmp_path: Path, keys: KeySet, monkeypatch: pytest.MonkeyPatch) -> Context:
    archives = [
        apt.Archive(uri="http://mirror.example.org/debian", security=False),
        apt.Archive(uri="http://mirror.example.org/debian-security", security=True),
    ]
    monkeypatch.setattr(apt, "host_archives", lambda: archives)
    config = Config(source=tmp_path / "source", work=tmp_path / "work", keys=keys, version="1.2.3")
    config.source.mkdir()
    return Context(config=config, mkosi=["/absent/mkosi"], progress=lambda _: None)


def test_missing_key_ends_the_build_before_anything_is_made(context: Context, tmp_path: Path) -> None:
    config = Config(
        source=tmp_path / "source", work=tmp_path / "work", keys=KeySet(directory=tmp_path / "none")
    )
    with pytest.raises(UsageError, match="keys are missing"):
        builder.build(config, lambda _: None)
    assert not config.work.exists()


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
    umask = os.umask(0o022)
    try:
        builder.prepare_trees(context)
    finally:
        os.umask(umask)
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


def test_sandbox(context: Context) -> None:
    builder.prepare_sandbox(context)
    sources = (context.sandbox / "common/etc/apt/sources.list.d/mkosi.sources").read_text()
    assert apt.parse_deb822(sources)[0].uri == "http://mirror.example.org/debian"
    private = context.sandbox / "image"
    for name in ("pcr.key", "pcr.pub.pem"):
        path = private / "etc/nodeos-keys" / name
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.read_bytes() == context.config.keys.path(name).read_bytes()
    secrets = [
        path for path in context.sandbox.rglob("*") if path.is_file() and b"PRIVATE" in path.read_bytes()
    ]
    assert secrets == [private / "etc/nodeos-keys/pcr.key"], "no other key is laid over the tools"


def test_one_pcr_signature_and_that_for_the_initrd(context: Context) -> None:
    builder.prepare_sandbox(context)
    tree = context.sandbox / "image"
    ukify = configparser.ConfigParser(delimiters="=")
    ukify.optionxform = str  # type: ignore[assignment,method-assign] # the names as they are written
    ukify.read_string((tree / "usr/lib/systemd/ukify.conf").read_text())
    assert [name for name in ukify.sections() if name.startswith("PCRSignature:")] == ["PCRSignature:initrd"]
    group = dict(ukify["PCRSignature:initrd"])
    assert group.pop("Phases") == "enter-initrd"
    assert group == {
        "PCRPrivateKey": "/etc/nodeos-keys/pcr.key",
        "PCRPublicKey": "/etc/nodeos-keys/pcr.pub.pem",
    }
    assert ukify["UKI"]["PCRPKey"] == "/etc/nodeos-keys/pcr.pub.pem"
    for place in (*group.values(), ukify["UKI"]["PCRPKey"]):
        assert (tree / place.lstrip("/")).is_file()


def test_sandbox_keeps_nothing_of_an_earlier_build(context: Context) -> None:
    old = context.sandbox / "image/etc/nodeos-keys/old.key"
    old.parent.mkdir(parents=True)
    old.touch()
    builder.prepare_sandbox(context)
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
    with pytest.raises(ToolError, match="mkosi: exit code 1") as caught:
        builder.build_initrd(context)
    assert hint.format(log=context.log) in str(caught.value.hint)
    assert words in context.log.read_text()


def test_mkosi_that_makes_nothing(context: Context, tmp_path: Path) -> None:
    fake_mkosi(context, tmp_path, "sys.exit(0)")
    with pytest.raises(ToolError, match="mkosi made no initrd"):
        builder.build_initrd(context)


def test_initrd_is_the_file_not_its_link(context: Context, tmp_path: Path) -> None:
    fake_mkosi(
        context, tmp_path,
        "word = next(item for item in sys.argv if item.startswith('--output-directory='))\n"
        "out = pathlib.Path(word.partition('=')[2])\n"
        "(out / 'initrd.cpio.zst').write_bytes(b'x' * 100)\n"
        "(out / 'initrd.manifest').touch()\n"
        "(out / 'initrd').symlink_to('initrd.cpio.zst')",
    )  # fmt: skip
    assert builder.build_initrd(context) == context.config.work / "mkosi/initrd.cpio.zst"


def make_outputs(context: Context, *, kernel: bytes = KERNEL, db: bytes = b"db" * 9) -> dict[str, bytes]:
    """What mkosi leaves: a disk, a UKI and a list of packages. Returns the disk's files and the UKI."""
    made = context.config.work / "mkosi"
    made.mkdir(parents=True, exist_ok=True)
    sections = {
        ".cmdline": f"roothash={ROOT_HASH} ro".encode(),
        ".pcrpkey": b"a public key",
        ".linux": kernel,
        ".initrd": b"an initrd",
    }
    (made / "nodeos.efi").write_bytes(make_pe(sections))
    uki = sign_pe(make_pe(sections))
    (made / "nodeos.efi").write_bytes(uki)
    files = {
        "EFI/BOOT/BOOTX64.EFI": sign_pe(make_pe({".text": b"a boot loader"})),
        "loader/keys/auto/PK.auth": make_auth(b"PK" * 9),
        "loader/keys/auto/KEK.auth": make_auth(b"KEK" * 9),
        "loader/keys/auto/db.auth": make_auth(db),
    }
    make_disk(made / "nodeos_1.2.3.raw", files)
    (made / "nodeos.raw").unlink(missing_ok=True)
    (made / "nodeos.raw").symlink_to("nodeos_1.2.3.raw")
    (made / "nodeos.manifest").write_text(json.dumps({"packages": [{"name": "a"}, {"name": "b"}]}))
    return {"uki": uki, **files}


def test_finish(context: Context) -> None:
    files = make_outputs(context)
    built = builder.finish(context)
    assert built == Built.at(context.config.work / "image/release")
    assert not built.disk.is_symlink()
    release = Release.parse(built.release.read_bytes())
    assert (release.version, release.variant, release.source_commit) == ("1.2.3", Variant.RELEASE, "unknown")
    assert release.root_hash.hex() == ROOT_HASH
    assert set(release.artefacts) == {"nodeos.raw", "nodeos.efi", "packages.json"}
    for name, artefact in release.artefacts.items():
        data = (built.directory / name).read_bytes()
        assert (artefact.size, artefact.sha256) == (len(data), hashlib.sha256(data).digest())
    assert release.pcrs["sha256"][4] == measure.pcr4(files["EFI/BOOT/BOOTX64.EFI"], files["uki"])
    enrolled = {name: files[f"loader/keys/auto/{name}.auth"] for name in ("PK", "KEK", "db")}
    assert release.pcrs["sha256"][7] == measure.pcr7(enrolled)
    assert set(release.pcr11["sha256"]) == set(BootPhase)
    assert builder.package_count(built.directory) == 2


def test_finish_replaces_the_build_before(context: Context) -> None:
    make_outputs(context)
    first = builder.finish(context)
    (first.directory / "left-over").touch()
    make_outputs(context)
    second = builder.finish(context)
    assert second == first
    assert not (second.directory / "left-over").exists()
    assert [path.name for path in second.directory.parent.iterdir()] == ["release"]


@pytest.mark.parametrize("name", ["nodeos.raw", "nodeos.efi", "nodeos.manifest"])
def test_missing_output_keeps_the_build_before(name: str, context: Context) -> None:
    make_outputs(context)
    before = builder.finish(context).release.read_bytes()
    make_outputs(context)
    (context.config.work / "mkosi" / name).unlink()
    with pytest.raises(ToolError, match=f"mkosi made no {name}"):
        builder.finish(context)
    assert Built.at(context.output).release.read_bytes() == before


def test_kernel_signed_with_the_secure_boot_key_is_no_release(context: Context, keys: KeySet) -> None:
    key = load_pem_private_key(keys.path("db.key").read_bytes(), None)
    assert isinstance(key, RSAPrivateKey)
    certificate = x509.load_pem_x509_certificate(keys.path("db.crt").read_bytes())
    signature = PKCS7SignatureBuilder().set_data(b"digest").add_signer(certificate, key, SHA256())
    kernel = sign_pe(KERNEL, signature.sign(Encoding.DER, []))
    make_outputs(context, kernel=kernel, db=certificate.public_bytes(Encoding.DER))
    with pytest.raises(UsageError, match="the kernel inside the UKI is signed with the Secure Boot key"):
        builder.finish(context)


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


def test_ukify_goes_through_the_wrapper(context: Context) -> None:
    real = context.config.work / "mkosi/tools/usr/bin/ukify"
    wrapper = context.config.source / "image/scripts/ukify"
    for path, text in ((real, "import sys\nprint(*sys.argv[1:])\n"), (wrapper, WRAPPER.read_text())):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    builder.prepare_ukify(context)
    tree = context.sandbox / "image/usr"
    assert (tree / "bin/ukify").read_text() == WRAPPER.read_text()
    assert (tree / "lib/nodeos/ukify").read_text() == real.read_text()
    assert stat.S_IMODE((tree / "bin/ukify").stat().st_mode) == 0o755


@pytest.mark.parametrize(
    ("words", "passed"),
    [
        (["build", "--secureboot-private-key", "k", "--sign-kernel"],
         ["build", "--secureboot-private-key", "k", "--no-sign-kernel"]),
        (["build", "--secureboot-private-key", "k"],
         ["build", "--secureboot-private-key", "k", "--no-sign-kernel"]),
        (["--version"], ["--version"]),
    ],
)  # fmt: skip
def test_wrapper_never_has_the_kernel_signed(words: list[str], passed: list[str], tmp_path: Path) -> None:
    real = tmp_path / "ukify"
    real.write_text("import sys\nprint(*sys.argv[1:], sep='\\n')\n")
    script = tmp_path / "wrapper"
    text = WRAPPER.read_text()
    assert text.count('"/usr/lib/nodeos/ukify"') == 1
    script.write_text(text.replace('"/usr/lib/nodeos/ukify"', repr(str(real))))
    output = run([sys.executable, script, *words], what="the wrapper").decode()
    assert output.splitlines() == passed
