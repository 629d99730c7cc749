"""A downloaded release is held to everything that it says; each refusal by a change that breaks just that check.

Every changed release is described and signed again by its own release key: the manifest's signature doesn't help
here, only the one check does.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from image import assemble, authenticode, efivars, measure, pe, secureboot, unsigned, verify, verity
from image.keys import KeySet, generate
from image.sign import sign
from image.unsigned import Unsigned, describe
from nodeos.core.errors import RefusedError, UsageError
from nodeos.core.release import (
    AcceptedPcr7,
    Artefact,
    BootPhase,
    Release,
    ReleaseSignature,
    signatures_to_bytes,
    signed_message,
)
from nodeos.core.statepolicy import PolicySignatures
from tests.support.unsigned_build import EPOCH, KERNEL, make_unsigned


def no_pin(name: str) -> str:
    raise AssertionError(f"no PIN is needed for {name}")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> KeySet:
    return generate(tmp_path_factory.mktemp("made") / "keys")


@pytest.fixture(scope="module")
def other_keys(tmp_path_factory: pytest.TempPathFactory) -> KeySet:
    return generate(tmp_path_factory.mktemp("made") / "keys")


@pytest.fixture(scope="module")
def signed(keys: KeySet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("signed")
    build = make_unsigned(directory / "unsigned", keys.public_file("pcr").read_bytes())
    return sign(build, keys, directory / "release", pin=no_pin).directory


class Download:
    """A copy of a release that somebody changes."""

    def __init__(self, directory: Path, keys: KeySet) -> None:
        self.directory = directory
        self.keys = keys

    @property
    def release(self) -> Release:
        return Release.parse((self.directory / "release.json").read_bytes())

    def read(self, name: str) -> bytes:
        return (self.directory / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        (self.directory / name).write_bytes(data)

    def describe_again(self, **changes: Any) -> None:
        """Describe the files that are there, and sign that: with the right key, over whatever is said."""
        release = self.release
        artefacts = {name: describe(self.directory / name) for name in release.artefacts}
        changed = replace(release, **{"artefacts": artefacts, **changes})
        document = changed.to_bytes()
        with self.keys.signer("release", no_pin) as signer:
            signature = ReleaseSignature(
                key=assemble.key_id(signer.public_key),
                algorithm=str(signer.algorithm),
                signature=signer.sign(signed_message(document)),
            )
        self.write("release.json", document)
        for name in ("release.sig", "signatures/release.sig"):
            self.write(name, signatures_to_bytes([signature]))

    def refusal(self) -> list[str]:
        with pytest.raises(RefusedError) as caught:
            self.verify()
        return [found.code for found in caught.value.findings]

    def verify(self) -> Release:
        return verify.verify(self.directory, [self.keys.public("release")])


@pytest.fixture
def download(signed: Path, keys: KeySet, tmp_path: Path) -> Download:
    return Download(Path(shutil.copytree(signed, tmp_path / "release")), keys)


def flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def test_a_good_release(download: Download) -> None:
    before = download.release
    assert download.verify() == before
    download.describe_again()
    assert download.verify() == before


def test_manifest(download: Download, other_keys: KeySet, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"release\.unsigned"):
        verify.verify(download.directory, [other_keys.public("release")])
    with pytest.raises(RefusedError, match=r"release\.unsigned"):
        verify.verify(download.directory, [])
    download.write("release.json", replace(download.release, version="9").to_bytes())
    assert download.refusal() == ["release.signature"]
    (download.directory / "release.sig").unlink()
    with pytest.raises(UsageError, match="release signature"):
        download.verify()
    with pytest.raises(UsageError, match="release manifest"):
        verify.verify(tmp_path / "absent", [])


@pytest.mark.parametrize(
    "name", sorted([*unsigned.ARTEFACTS, "verity-sig.json", "PK.auth", "KEK.auth", "db.auth"])
)
def test_each_file_is_held_to_the_manifest(name: str, download: Download) -> None:
    good = download.read(name)
    download.write(name, flipped(good))
    assert download.refusal() == ["artefact.sha256"]
    download.write(name, good + b"\0")
    assert download.refusal() == ["artefact.size"]
    (download.directory / name).unlink()
    assert download.refusal() == ["artefact.missing"]
    (download.directory / "elsewhere").write_bytes(good)
    (download.directory / name).symlink_to("elsewhere")
    assert sorted(download.refusal()) == ["file.foreign", "file.kind"]


def test_nothing_else_is_in_the_folder(download: Download) -> None:
    download.write("note", b"")
    assert download.refusal() == ["file.foreign"]
    (download.directory / "note").unlink()
    # A variable that the manifest doesn't know would be enrolled all the same.
    download.write("dbx.auth", download.read("db.auth"))
    assert download.refusal() == ["file.foreign"]
    (download.directory / "dbx.auth").unlink()
    download.write("signatures/note", b"")
    assert download.refusal() == ["signatures.unreadable"]
    (download.directory / "signatures/note").unlink()
    download.verify()


def test_the_manifest_describes_what_a_release_has_and_no_more(download: Download) -> None:
    artefacts = dict(download.release.artefacts)
    del artefacts["db.auth"]
    download.describe_again(artefacts=artefacts)
    assert sorted(download.refusal()) == ["artefact.undescribed", "file.foreign"]
    artefacts["db.auth"] = describe(download.directory / "db.auth")
    artefacts["../unsigned/build.json"] = Artefact(size=0, sha256=bytes(32))
    download.describe_again(artefacts=artefacts)
    assert download.refusal() == ["artefact.unknown"]


@pytest.mark.parametrize("name", ["db.crt", "verity.crt", "pcr.pub.pem", "release.pub.pem"])
def test_other_public_halves(name: str, download: Download, other_keys: KeySet) -> None:
    key = name.partition(".")[0]
    download.write(f"signatures/{name}", other_keys.public_file(key).read_bytes())
    assert f"keys.{key}" in download.refusal()
    (download.directory / "signatures" / name).unlink()
    assert download.refusal() == ["signatures.unreadable"]


def test_the_release_key_that_the_manifest_names(download: Download) -> None:
    download.describe_again(keys=replace(download.release.keys, release=bytes(32)))
    assert download.refusal() == ["keys.release"]


@pytest.mark.parametrize(
    "name",
    [
        "PK.auth",
        "pcrsig.json",
        "accepted-pcr7.json",
        "nodeos.efi.p7",
        "boot.efi.p7",
        "verity-sig.p7",
        "release.sig",
    ],
)
def test_detached_signatures_are_those_that_are_attached(name: str, download: Download) -> None:
    download.write(f"signatures/{name}", flipped(download.read(f"signatures/{name}")))
    assert download.refusal() == ["signatures.differ"]


def test_one_detached_signature_too_many(download: Download) -> None:
    download.write("signatures/dbx.auth", download.read("db.auth"))
    assert download.refusal() == ["signatures.differ"]


def resigned(image: bytes, keys: KeySet) -> bytes:
    bare = pe.strip_signatures(image)
    with keys.signer("db", no_pin) as signer:
        return pe.attach_signature(bare, authenticode.sign(bare, signer, keys.certificate("db")))


def put(download: Download, name: str, image: bytes) -> None:
    """Another signed image, consistent in everything else."""
    download.write(name, image)
    found = pe.signatures(image)
    download.write(f"signatures/{name}.p7", found[0] if found else b"")
    predicted = measure.predict(
        download.read("boot.efi"),
        measure.Uki.read(download.directory / "nodeos.efi"),
        {item: efivars.payload(download.read(f"{item}.auth")) for item in ("PK", "KEK", "db")},
        download.keys.certificate("db"),
    )
    download.describe_again(
        pcrs=predicted.pcrs, pcr11=predicted.pcr11, secure_boot_off=predicted.secure_boot_off
    )


@pytest.mark.parametrize(
    ("name", "code"), [("boot.efi", "signature.bootloader"), ("nodeos.efi", "signature.uki")]
)
def test_images_by_another_key(name: str, code: str, download: Download, other_keys: KeySet) -> None:
    put(download, name, resigned(download.read(name), other_keys))
    assert download.refusal() == [code]
    put(download, name, pe.strip_signatures(download.read(name)))
    assert download.refusal() == [code]


def image_with(download: Download, **changes: bytes | None) -> bytes:
    """The UKI with sections changed or (None) left out, signed by our key."""
    from tests.support.pe import make_pe

    sections = pe.section_contents(download.read("nodeos.efi"))
    changed = {f".{name}": data for name, data in changes.items()}
    kept = {name: data for name, data in {**sections, **changed}.items() if data is not None}
    return resigned(make_pe(kept), download.keys)


def test_kernel_signed_by_our_key(download: Download) -> None:
    with download.keys.signer("db", no_pin) as signer:
        signature = authenticode.sign(KERNEL, signer, download.keys.certificate("db"))
    put(download, "nodeos.efi", image_with(download, linux=pe.attach_signature(KERNEL, signature)))
    # Another kernel is another PCR 11 too.
    assert download.refusal() == ["kernel.signed", "policy.signatures"]


def test_policies(download: Download, other_keys: KeySet) -> None:
    (policy,) = PolicySignatures.parse(download.read("signatures/pcrsig.json")).signatures

    def refused(*signatures: Any) -> list[str]:
        data = PolicySignatures(signatures=signatures).to_bytes()
        download.write("signatures/pcrsig.json", data)
        put(download, "nodeos.efi", image_with(download, pcrsig=data))
        return download.refusal()

    assert refused(replace(policy, signature=bytes(64))) == ["policy.signatures"]
    assert refused(replace(policy, pcrs={**policy.pcrs, 11: bytes(32)})) == ["policy.signatures"]
    assert refused(replace(policy, pcrs={**policy.pcrs, 15: b"\1" * 32})) == ["policy.signatures"]
    assert refused(replace(policy, version=1)) == ["policy.signatures"]
    assert refused(replace(policy, key=bytes(32))) == ["policy.signatures"]
    # A policy that nobody asked for, such as one for the running system.
    assert refused(policy, policy) == ["policy.signatures"]
    download.write("signatures/pcrsig.json", b"")
    put(download, "nodeos.efi", image_with(download, pcrsig=None))
    assert download.refusal() == ["policy.signatures"]


def test_policy_key_inside(download: Download, other_keys: KeySet) -> None:
    put(download, "nodeos.efi", image_with(download, pcrpkey=other_keys.public_file("pcr").read_bytes()))
    # Another key inside is another PCR 11 too.
    assert download.refusal() == ["policy.key", "policy.signatures"]


def test_command_line(download: Download) -> None:
    download.describe_again(kernel_command_line=f"debug roothash={download.release.root_hash.hex()}")
    assert download.refusal() == ["uki.command_line"]


def test_root(download: Download) -> None:
    good = download.read("root.raw")
    download.write("root.raw", flipped(good))
    download.describe_again()
    assert download.refusal() == ["root.hash"]
    download.write("root.raw", good)
    download.write("verity.raw", flipped(download.read("verity.raw")))
    download.describe_again()
    assert download.refusal() == ["root.hash"]


def test_root_hash_of_the_command_line(download: Download) -> None:
    line = f"quiet roothash={'0' * 64}"
    put(download, "nodeos.efi", image_with(download, cmdline=line.encode()))
    download.describe_again(kernel_command_line=line)
    assert download.refusal() == ["uki.root_hash", "policy.signatures"]


def test_verity_signature(download: Download, other_keys: KeySet) -> None:
    good = json.loads(download.read("verity-sig.json"))
    parsed = verity.RootHashSignature.parse(download.read("verity-sig.json"))
    for change in ({"rootHash": "0" * 64}, {"certificateFingerprint": "0" * 64}):
        download.write("verity-sig.json", json.dumps({**good, **change}).encode())
        download.describe_again()
        assert download.refusal() == ["verity.signature"]
    with other_keys.signer("verity", no_pin) as signer:
        foreign = verity.sign(parsed.root_hash, signer, other_keys.certificate("verity"))
    download.write("verity-sig.json", replace(parsed, signature=foreign).to_bytes())
    download.write("signatures/verity-sig.p7", foreign)
    download.describe_again()
    assert download.refusal() == ["verity.signature"]


@pytest.mark.parametrize("name", ["PK", "KEK", "db"])
def test_variables_signed_by_another_key(name: str, download: Download, other_keys: KeySet) -> None:
    data = efivars.payload(download.read(f"{name}.auth"))
    by = secureboot.SIGNERS[name]
    with other_keys.signer(by, no_pin) as signer:
        auth = efivars.sign(
            name, data, signer, other_keys.certificate(by), time=secureboot.update_time(EPOCH)
        )
    for place in (f"{name}.auth", f"signatures/{name}.auth"):
        download.write(place, auth)
    download.describe_again()
    assert download.refusal() == ["secure_boot.variables"]


def variable(download: Download, name: str, lists: bytes, epoch: int = EPOCH) -> None:
    by = secureboot.SIGNERS[name]
    keys = download.keys
    with keys.signer(by, no_pin) as signer:
        auth = efivars.sign(name, lists, signer, keys.certificate(by), time=secureboot.update_time(epoch))
    for place in (f"{name}.auth", f"signatures/{name}.auth"):
        download.write(place, auth)
    artefacts = {**download.release.artefacts, f"{name}.auth": describe(download.directory / f"{name}.auth")}
    download.describe_again(artefacts=artefacts)


def test_variables(download: Download, other_keys: KeySet) -> None:
    good = efivars.payload(download.read("db.auth"))
    variable(download, "db", secureboot._lists([other_keys.certificate("db")]))
    assert download.refusal() == ["secure_boot.variables"]
    variable(download, "db", good, EPOCH + 1)
    assert download.refusal() == ["secure_boot.variables"]
    variable(download, "db", good)
    download.verify()
    variable(download, "dbx", good)
    assert download.refusal() == ["secure_boot.variables"]
    # One that forbids others only: the measurements differ then.
    variable(download, "dbx", secureboot._lists([other_keys.certificate("db")]))
    assert download.refusal() == ["prediction.pcrs", "prediction.accepted"]


def test_a_second_certificate_in_db(download: Download, other_keys: KeySet) -> None:
    both = secureboot._lists([download.keys.certificate("db"), other_keys.certificate("db")])
    variable(download, "db", both)
    assert download.refusal() == ["prediction.pcrs", "prediction.accepted"]


def other(values: Any, bank: str, key: Any) -> Any:
    size = hashlib.new(bank).digest_size
    return {**values, bank: {**values[bank], key: b"\1" * size}}


@pytest.mark.parametrize("bank", ["sha256", "sha384"])
def test_each_prediction(bank: str, download: Download) -> None:
    release = download.release
    cases: list[tuple[dict[str, Any], str]] = [
        *(({"pcrs": other(release.pcrs, bank, pcr)}, "pcrs") for pcr in (4, 7, 12, 13)),
        *(({"pcr11": other(release.pcr11, bank, phase)}, "pcr11") for phase in BootPhase),
        *(
            ({"secure_boot_off": other(release.secure_boot_off, bank, pcr)}, "secure_boot_off")
            for pcr in (4, 7)
        ),
    ]
    for changes, name in cases:
        download.describe_again(**{"pcrs": release.pcrs, "pcr11": release.pcr11,
                                   "secure_boot_off": release.secure_boot_off, **changes})  # fmt: skip
        assert download.refusal() == [f"prediction.{name}"]


def accept(download: Download, change: Callable[[AcceptedPcr7], AcceptedPcr7]) -> None:
    accepted = tuple(map(change, download.release.accepted_pcr7))
    download.write("signatures/accepted-pcr7.json", assemble.accepted_to_bytes(accepted))
    download.describe_again(accepted_pcr7=accepted)


def test_accepted_pcr_7(download: Download) -> None:
    accept(download, lambda item: replace(item, sha384=bytes(48)))
    assert download.refusal() == ["prediction.accepted"]
    accept(download, lambda item: replace(item, sha256=bytes(32)))
    assert download.refusal() == ["policy.signatures", "prediction.accepted"]


def test_every_finding_is_told(download: Download) -> None:
    download.write("note", b"")
    download.write("root.raw", b"")
    (download.directory / "boot.efi").unlink()
    assert sorted(download.refusal()) == ["artefact.missing", "artefact.size", "file.foreign"]


def test_a_release_in_the_middle_of_a_rotation(keys: KeySet, tmp_path: Path) -> None:
    from image import rotation

    changing = KeySet(directory=Path(shutil.copytree(keys.directory, tmp_path / "keys")))
    rotation.begin(changing, ["db", "pcr"])
    for number, finish in enumerate((False, True)):
        if finish:
            rotation.finish(changing)
        newest = changing if finish else changing.next()
        directory = tmp_path / f"{number}"
        make_unsigned(directory / "unsigned", newest.public_file("pcr").read_bytes(), epoch=EPOCH + number)
        made = sign(Unsigned.read(directory / "unsigned"), changing, directory / "release", pin=no_pin)
        assert verify.verify(made.directory, [changing.public("release")]) == made.release
        assert ("dbx.auth" in made.release.artefacts) == finish


@pytest.mark.parametrize("at", [0, 3000, -1])
def test_installer_is_covered_to_the_last_byte(at: int, download: Download) -> None:
    data = bytearray(download.read("installer.efi"))
    data[at] ^= 1
    download.write("installer.efi", bytes(data))
    assert download.refusal() == ["installer"]


def test_installer_that_is_missing(download: Download) -> None:
    (download.directory / "installer.efi").unlink()
    assert download.refusal() == ["artefact.missing"]


def test_installer_signed_by_another_key(download: Download, other_keys: KeySet) -> None:
    made = pe.strip_signatures(download.read("installer.efi"))
    with other_keys.signer("db", no_pin) as signer:
        signature = authenticode.sign(made, signer, other_keys.certificate("db"))
    download.write("installer.efi", pe.attach_signature(made, signature))
    download.write("signatures/installer.efi.p7", signature)
    assert download.refusal() == ["installer"]


def test_installer_with_the_means_to_open_a_state(download: Download) -> None:
    made = pe.add_section(pe.strip_signatures(download.read("installer.efi")), ".pcrsig", b"{}")
    with download.keys.signer("db", no_pin) as signer:
        signature = authenticode.sign(made, signer, download.keys.certificate("db"))
    download.write("installer.efi", pe.attach_signature(made, signature))
    download.write("signatures/installer.efi.p7", signature)
    assert download.refusal() == ["installer"]
