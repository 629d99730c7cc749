"""Signing and attaching: what a release consists of, and that no wrong signature goes in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from image import assemble, authenticode, efivars, measure, pe, rotation, secureboot
from image.keys import KeySet, generate
from image.sign import attach, read_pcr7, sign
from image.unsigned import Unsigned
from nodeos.core.errors import RefusedError, ToolError, UsageError
from nodeos.core.release import AcceptedPcr7, Variant, check_signature
from nodeos.core.run import find_tool, run
from nodeos.core.statepolicy import PolicySignatures
from nodeos.core.wire import canonical_json
from tests.support.unsigned_build import BOOTLOADER, EPOCH, KERNEL, make_unsigned


def no_pin(name: str) -> str:
    raise AssertionError(f"no PIN is needed for {name}")


@pytest.fixture(scope="module")
def shared_keys(tmp_path_factory: pytest.TempPathFactory) -> KeySet:
    return generate(tmp_path_factory.mktemp("made") / "keys")


@pytest.fixture
def keys(shared_keys: KeySet, tmp_path: Path) -> KeySet:
    """A copy that a test may change."""
    return KeySet(directory=Path(shutil.copytree(shared_keys.directory, tmp_path / "keys")))


@pytest.fixture
def build(keys: KeySet, tmp_path: Path) -> Unsigned:
    return make_unsigned(tmp_path / "unsigned", keys.public_file("pcr").read_bytes())


def content(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def test_a_release(keys: KeySet, build: Unsigned, tmp_path: Path) -> None:
    made = sign(build, keys, tmp_path / "release", pin=no_pin)
    assert set(content(made.directory)) == {
        "boot.efi", "nodeos.efi", "root.raw", "verity.raw", "verity-sig.json", "PK.auth", "KEK.auth", "db.auth",
        "packages.json", "sbom.spdx.json", "release.json", "release.sig", "installer.efi",
        *(f"signatures/{name}" for name in assemble.NAMES if name != "dbx.auth"),
    }  # fmt: skip
    release = check_signature(
        made.manifest.read_bytes(), made.signature.read_bytes(), [keys.public("release")]
    )
    assert release == made.release
    assert (release.version, release.security_version, release.rollback_floor) == ("1.2.3", 2, 1)
    for path in (made.uki, made.bootloader):
        authenticode.verify(path.read_bytes(), keys.certificate("db"))
    uki = measure.Uki.read(made.uki)
    assert release.pcr11["sha256"] == measure.pcr11(measure.Uki.read(build.uki)), ".pcrsig is not measured"
    (policy,) = PolicySignatures.parse(uki.sections[".pcrsig"]).signatures
    assert policy.pcrs == {
        7: release.pcrs["sha256"][7],
        11: release.pcr11["sha256"][next(iter(release.pcr11["sha256"]))],
        15: bytes(32),
    }
    assert policy.version == 2
    assert [item.name for item in release.accepted_pcr7] == ["db current; KEK current; dbx empty"]
    enrolled = made.enrolled()
    assert measure.pcr7(enrolled) == release.pcrs["sha256"][7]
    assert efivars.Update.parse(enrolled["db"]).time == secureboot.update_time(EPOCH)
    assert not list(tmp_path.glob(".*")), "nothing is left beside it"


def test_another_program_takes_the_images(keys: KeySet, build: Unsigned, tmp_path: Path) -> None:
    made = sign(build, keys, tmp_path / "release", pin=no_pin)
    sbverify = find_tool("sbverify", package="sbsigntool")
    for path in (made.uki, made.bootloader):
        run([sbverify, "--cert", keys.public_file("db"), path], what="sbverify")
        with pytest.raises(ToolError):
            run([sbverify, "--cert", keys.public_file("verity"), path], what="sbverify")


def test_attaching_needs_no_key_and_gives_the_same(keys: KeySet, build: Unsigned, tmp_path: Path) -> None:
    made = sign(build, keys, tmp_path / "release", pin=no_pin)
    shutil.rmtree(keys.directory)
    first = attach(build, made.signatures, tmp_path / "first")
    second = attach(build, made.signatures, tmp_path / "second")
    assert content(first.directory) == content(second.directory) == content(made.directory)
    # Again over itself.
    assert content(attach(build, first.signatures, first.directory).directory) == content(made.directory)


def test_an_interrupted_signing_leaves_the_earlier_release(
    keys: KeySet, build: Unsigned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = sign(build, keys, tmp_path / "release", pin=no_pin)
    before = content(made.directory)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("image.sign.check_signature", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sign(build, keys, tmp_path / "release", pin=no_pin)
    assert content(made.directory) == before
    assert not list(tmp_path.glob(".*"))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/note").touch()
    with pytest.raises(UsageError, match="something else than a release"):
        sign(build, keys, tmp_path / "notes", pin=no_pin)


def flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def other_policy(data: bytes) -> bytes:
    (item,) = PolicySignatures.parse(data).signatures
    return PolicySignatures(signatures=(replace(item, pcrs={**item.pcrs, 11: bytes(32)}),)).to_bytes()


def more_policy(data: bytes) -> bytes:
    (item,) = PolicySignatures.parse(data).signatures
    return PolicySignatures(signatures=(item, item)).to_bytes()


def wrong_policy(data: bytes) -> bytes:
    (item,) = PolicySignatures.parse(data).signatures
    return PolicySignatures(signatures=(replace(item, signature=bytes(64)),)).to_bytes()


def accepted_more(data: bytes) -> bytes:
    value = json.loads(data)
    value["accepted"].append({"name": "mine", "sha256": "11" * 32, "sha384": "11" * 48})
    return canonical_json(value)


def accepted_other(data: bytes) -> bytes:
    value = json.loads(data)
    value["accepted"][0]["sha256"] = "11" * 32
    return canonical_json(value)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("boot.efi.p7", flipped, r"signatures/boot\.efi\.p7: the signature isn't by the key"),
        ("nodeos.efi.p7", flipped, r"signatures/nodeos\.efi\.p7: the signature isn't by the key"),
        ("verity-sig.p7", flipped, r"signatures/verity-sig\.p7: the signature isn't by the key"),
        ("pcrsig.json", other_policy, r"signatures/pcrsig\.json: a signed policy with other PCRs"),
        ("pcrsig.json", more_policy, r"signatures/pcrsig\.json: 2 policy signatures, expected 1"),
        ("pcrsig.json", wrong_policy, r"signatures/pcrsig\.json: a policy signature that does not hold"),
        ("pcrsig.json", lambda data: data + b"\n", r"signatures/pcrsig\.json: not in its canonical form"),
        ("pcrsig.json", lambda _: b"{}", r"signatures/pcrsig\.json"),
        ("accepted-pcr7.json", accepted_more, r"signatures/pcrsig\.json: 1 policy signatures, expected 2"),
        ("accepted-pcr7.json", accepted_other, r"signatures/pcrsig\.json: a signed policy with other PCRs"),
        ("PK.auth", flipped, r"signatures/PK\.auth: "),
        ("KEK.auth", flipped, r"signatures/KEK\.auth: "),
        ("db.auth", flipped, r"signatures/db\.auth: "),
        ("db.crt", lambda _: b"no certificate", r"signatures/db\.crt: not a certificate"),
        ("verity.crt", lambda _: b"no certificate", r"signatures/verity\.crt: not a certificate"),
        ("pcr.pub.pem", lambda _: b"no key", r"signatures/pcr\.pub\.pem: not public keys"),
        ("release.pub.pem", lambda _: b"no key", r"signatures/release\.pub\.pem: not public keys"),
    ],
)
def test_a_wrong_detached_signature_is_named(  # noqa: PLR0917
    name: str, change: Callable[[bytes], bytes], words: str, keys: KeySet, build: Unsigned, tmp_path: Path
) -> None:
    signatures = sign(build, keys, tmp_path / "release", pin=no_pin).signatures
    (signatures / name).write_bytes(change((signatures / name).read_bytes()))
    with pytest.raises(UsageError, match=words):
        attach(build, signatures, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_signatures_of_another_build(keys: KeySet, build: Unsigned, tmp_path: Path) -> None:
    made = sign(build, keys, tmp_path / "release", pin=no_pin)
    pem = keys.public_file("pcr").read_bytes()
    changed = {".osrel": b"ID=other\n"}
    for other, words in (
        (make_unsigned(tmp_path / "osrel", pem, sections=changed), "pcrsig.json"),
        (make_unsigned(tmp_path / "epoch", pem, epoch=EPOCH + 1), "PK.auth: its time"),
        (make_unsigned(tmp_path / "version", pem, security_version=3), "pcrsig.json"),
    ):
        with pytest.raises(UsageError, match=words):
            attach(other, made.signatures, tmp_path / "out")
    # What only the manifest says.
    manifest = replace(build.build, release="6.6.6")
    (build.directory / "build.json").write_bytes(manifest.to_bytes())
    with pytest.raises(RefusedError, match=r"release\.signature"):
        attach(Unsigned.read(build.directory), made.signatures, tmp_path / "out")


def test_missing_and_foreign_signatures(keys: KeySet, build: Unsigned, tmp_path: Path) -> None:
    made = sign(build, keys, tmp_path / "release", pin=no_pin)
    for name in sorted(path.name for path in made.signatures.iterdir()):
        partial = tmp_path / "partial"
        shutil.copytree(made.signatures, partial)
        (partial / name).unlink()
        with pytest.raises(UsageError, match=name.replace(".", r"\.")):
            attach(build, partial, tmp_path / "out")
        shutil.rmtree(partial)
    (made.signatures / "note").touch()
    with pytest.raises(UsageError, match="no signature of a release"):
        attach(build, made.signatures, tmp_path / "out")
    with pytest.raises(UsageError, match="is not there"):
        attach(build, tmp_path / "absent", tmp_path / "out")


def test_keys_of_another_variant(keys: KeySet, tmp_path: Path) -> None:
    pem = keys.public_file("pcr").read_bytes()
    debug = make_unsigned(tmp_path / "debug", pem, variant=Variant.DEBUG)
    with pytest.raises(UsageError, match="are for the release variant, not for debug"):
        sign(debug, keys, tmp_path / "out", pin=no_pin)
    keys.variant_file.write_text("debug\n")
    with pytest.raises(UsageError, match="are for the debug variant, not for release"):
        sign(make_unsigned(tmp_path / "unsigned", pem), keys, tmp_path / "out", pin=no_pin)


def test_builds_that_are_not_signed(keys: KeySet, tmp_path: Path) -> None:
    pem = keys.public_file("pcr").read_bytes()
    with keys.signer("db", no_pin) as signer:
        signature = authenticode.sign(KERNEL, signer, keys.certificate("db"))
    number = iter(range(100))

    def make(**changes: object) -> Path:
        directory = tmp_path / str(next(number))
        make_unsigned(directory, pem, **changes)  # type: ignore[arg-type]
        return directory

    def refused(directory: Path, words: str) -> None:
        with pytest.raises(UsageError, match=words):
            sign(Unsigned.read(directory), keys, tmp_path / "out", pin=no_pin)
        assert not (tmp_path / "out").exists()

    refused(make(kernel=pe.attach_signature(KERNEL, signature)), "signed with the Secure Boot key")
    refused(make(sections={".pcrsig": b"{}"}), "carries policy signatures already")
    refused(make(sections={".cmdline": b"roothash=" + b"0" * 64}), "its command line is not")
    refused(make(sections={".pcrpkey": b""}), "carries no PCR policy key")
    refused(make(sections={".pcrpkey": pem + pem}), "carries 2 PCR policy keys")
    other = keys.public_file("site").read_bytes()
    refused(make(sections={".pcrpkey": other}), "the PCR policy key inside is not")

    def changed(name: str, data: bytes) -> Path:
        """Another file with a manifest that describes it."""
        directory = make()
        (directory / name).write_bytes(data)
        build = Unsigned.read(make()).build
        artefacts = {**build.artefacts, name: assemble._describe(data)}
        (directory / "build.json").write_bytes(replace(build, artefacts=artefacts).to_bytes())
        return directory

    root = (make() / "root.raw").read_bytes()
    refused(changed("root.raw", flipped(root)), "has the root hash")
    refused(
        changed("verity.raw", flipped((make() / "verity.raw").read_bytes())),
        "superblock|is not the hash tree",
    )
    refused(
        changed("boot.efi", pe.attach_signature(BOOTLOADER, b"signature")), r"boot\.efi is signed already"
    )
    directory = make()
    (directory / "root.raw").write_bytes(flipped(root))
    refused(directory, r"root\.raw is not the file")


def test_further_values_of_pcr_7(keys: KeySet, build: Unsigned, tmp_path: Path) -> None:
    path = tmp_path / "pcr7.json"
    path.write_text(json.dumps([{"name": "a maker's firmware", "sha256": "11" * 32, "sha384": "22" * 48}]))
    further = read_pcr7(path)
    assert further == [AcceptedPcr7(name="a maker's firmware", sha256=b"\x11" * 32, sha384=b"\x22" * 48)]
    made = sign(build, keys, tmp_path / "release", pin=no_pin, pcr7=further)
    assert made.release.accepted_pcr7[1:] == tuple(further)
    found = PolicySignatures.parse((made.signatures / "pcrsig.json").read_bytes()).signatures
    assert [item.pcrs[7] for item in found] == [item.sha256 for item in made.release.accepted_pcr7]
    with pytest.raises(UsageError, match="signed for already: db current"):
        sign(build, keys, tmp_path / "out", pin=no_pin, pcr7=made.release.accepted_pcr7[:1])
    for text, words in (("{}", "a list"), ("x", "not JSON"), ('[{"name": "x"}]', r"\[0\]\.sha256: missing")):
        path.write_text(text)
        with pytest.raises(UsageError, match=words):
            read_pcr7(path)


def machine(*updates: dict[str, bytes]) -> dict[str, efivars.Variable]:
    """What firmware holds after taking these .auth files, the first set in setup mode."""
    held: dict[str, efivars.Variable] = {}
    for update in updates:
        for name in ("PK", "KEK", "db", "dbx"):
            if name in update:
                by = secureboot.SIGNERS[name]
                known = held.get(by)
                data = efivars.payload(update[name]) if known is None or by == name else known.data
                signers = secureboot._certificates(data)
                held[name] = efivars.apply(name, held.get(name), update[name], signers=signers)
    return held


def shown(held: dict[str, efivars.Variable], keys: KeySet) -> bytes:
    lists = {name: variable.data for name, variable in held.items()}
    return measure.pcr7_of_lists(lists, authority=keys.certificate("db"))


def test_rotation_of_keys_over_two_updates(keys: KeySet, tmp_path: Path) -> None:
    """Each release's policies are signed for what machines show when they start it."""

    def release(name: str, day: int) -> dict[str, object]:
        newest = keys.next() if keys.next().has("pcr") else keys
        build = make_unsigned(
            tmp_path / f"{name}.build", newest.public_file("pcr").read_bytes(), epoch=EPOCH + 86400 * day
        )
        made = sign(build, keys, tmp_path / name, pin=no_pin)
        signed = PolicySignatures.parse((made.signatures / "pcrsig.json").read_bytes()).signatures
        return {
            "enrolled": made.enrolled(),
            "keys": [key.hex() for key in made.release.keys.pcr],
            "pcr7": {item.pcrs[7] for item in signed},
            "count": len(signed),
            "accepted": made.release.accepted_pcr7,
        }

    first = release("first", 0)
    assert isinstance(first["enrolled"], dict)
    assert shown(machine(first["enrolled"]), keys) in first["pcr7"]  # type: ignore[operator]

    old_pcr = assemble.key_id(keys.public("pcr")).hex()
    rotation.begin(keys, ["db", "KEK", "pcr"])
    new_pcr = assemble.key_id(keys.next().public("pcr")).hex()
    with pytest.raises(UsageError, match="the PCR policy key inside is not"):
        sign(Unsigned.read(tmp_path / "first.build"), keys, tmp_path / "out", pin=no_pin)
    update_1 = release("update 1", 1)
    assert update_1["keys"] == [old_pcr, new_pcr]
    assert isinstance(update_1["enrolled"], dict)
    assert "dbx" not in update_1["enrolled"]
    before, after = machine(first["enrolled"]), machine(first["enrolled"], update_1["enrolled"])
    torn = {**before, "KEK": after["KEK"]}
    fresh = machine(update_1["enrolled"])
    for held in (before, torn, after, fresh):
        assert shown(held, keys) in update_1["pcr7"]  # type: ignore[operator]
    assert update_1["count"] == 2 * len(update_1["accepted"])  # type: ignore[arg-type]

    old_db = keys.certificate("db")
    rotation.finish(keys)
    update_2 = release("update 2", 2)
    assert update_2["keys"] == [new_pcr]
    assert isinstance(update_2["enrolled"], dict)
    db = [entry.data for entry in efivars.parse_lists(efivars.payload(update_2["enrolled"]["db"]))]
    dbx = [entry.data for entry in efivars.parse_lists(efivars.payload(update_2["enrolled"]["dbx"]))]
    assert db == [keys.certificate("db").public_bytes(Encoding.DER)]
    assert dbx == [old_db.public_bytes(Encoding.DER)]
    done = machine(first["enrolled"], update_1["enrolled"], update_2["enrolled"])
    for held in (
        after, done, machine(update_2["enrolled"]), {**after, "db": done["db"]},
        {**after, "dbx": done["dbx"]}, {**after, "KEK": done["KEK"], "db": done["db"]},
    ):  # fmt: skip
        assert shown(held, keys) in update_2["pcr7"]  # type: ignore[operator]
    # The retired key opens nothing: neither after the update nor, started by it, before.
    lists = {name: variable.data for name, variable in after.items()}
    assert measure.pcr7_of_lists(lists, authority=old_db) not in update_2["pcr7"]  # type: ignore[operator]
    with pytest.raises(UsageError, match="isn't in db"):
        measure.pcr7_of_lists({name: item.data for name, item in done.items()}, authority=old_db)


def test_packages_that_are_not_the_locked_ones(keys: KeySet, tmp_path: Path) -> None:
    pcr_key = keys.public_file("pcr").read_bytes()
    build = make_unsigned(tmp_path / "unsigned", pcr_key, drift=["libc6: locked 1, found 2"])
    with pytest.raises(RefusedError) as caught:
        sign(build, keys, tmp_path / "release", pin=no_pin)
    assert [finding.code for finding in caught.value.findings] == ["packages.drift"]
    assert not (tmp_path / "release").exists()
    assert sign(build, keys, tmp_path / "release", pin=no_pin, allow_drift=True).release.version == "1.2.3"
