"""Real releases, signed over a rotation of the db and the PCR-policy key, pass the preflight of a machine at every
step: none needs the recovery key, and a power cut between any two changes is signed for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from image import rotation
from image.keys import KeySet, generate
from image.sign import sign
from nodeos.core import secureboot
from nodeos.core.efilists import payload
from nodeos.core.release import Variant
from nodeos.update.candidate import Candidate, read_candidate
from nodeos.update.entries import BootEntry
from nodeos.update.preflight import Facts, boot_steps, preflight
from tests.support.unsigned_build import make_unsigned


def no_pin(name: str) -> str:
    raise AssertionError(f"no PIN is needed for {name}")


def release(
    keys: KeySet, directory: Path, version: str, *, epoch: int
) -> tuple[Candidate, Sequence[bytes], Path]:
    """The release, and the policy keys that a node is sealed to once it runs it."""
    following = keys.next()
    sets = [keys, following] if following.has("pcr") else [keys]
    pem = sets[-1].public_file("pcr").read_bytes()
    build = make_unsigned(directory / f"{version}-unsigned", pem, version=version, epoch=epoch)
    made = sign(build, keys, directory / version, pin=no_pin)
    candidate, _ = read_candidate(made.directory, [keys.public("release")], [keys.certificate("verity")])
    sealed = [hashlib.sha256(item.public("pcr")).digest() for item in sets]
    return candidate, sealed, made.directory


def run_on(facts: Facts, candidate: Candidate, sealed: Sequence[bytes]) -> Facts:
    """The machine once the release is blessed and all of its changes are made."""
    variables = boot_steps(facts, candidate)[-1].variables
    return replace(
        facts,
        version=candidate.version,
        entries=(BootEntry(version=candidate.version),),
        variables=variables,
        pcr7=secureboot.pcr7(variables, [candidate.loader.signer, candidate.uki.signer]),
        loader=candidate.loader,
        uki_signer=candidate.uki.signer,
        policy_keys=sealed,
    )


def test_two_updates_later_the_old_keys_are_gone(tmp_path: Path) -> None:
    keys = generate(tmp_path / "keys")
    first, sealed, directory = release(keys, tmp_path, "1.0", epoch=1_767_225_600)
    variables = {name: payload((directory / f"{name}.auth").read_bytes()) for name in ("PK", "KEK", "db")}
    variables["dbx"] = b""
    facts = Facts(
        version="0.9", variant=Variant.RELEASE, entries=(BootEntry(version="0.9"),), esp_free=1 << 30,
        secure_boot=True, variables=variables, pcr7=secureboot.pcr7(variables, [first.uki.signer]),
        loader=first.loader, uki_signer=first.uki.signer, policy_keys=sealed, floor=1,
    )  # fmt: skip
    assert preflight(facts, first) == ()
    facts = run_on(facts, first, sealed)
    old = facts.uki_signer
    rotation.begin(keys, ["db", "pcr", "KEK"])
    second, sealed, _ = release(keys, tmp_path, "1.1", epoch=1_767_312_000)
    assert preflight(facts, second) == ()
    facts = run_on(facts, second, sealed)
    rotation.finish(keys)
    third, sealed, _ = release(keys, tmp_path, "1.2", epoch=1_767_398_400)
    assert third.uki.signer != old
    assert preflight(facts, third) == ()
    facts = run_on(facts, third, sealed)
    assert secureboot.lets_start(facts.variables, old) == "its signer's certificate is in dbx"


def test_the_release_in_between_can_not_be_skipped(tmp_path: Path) -> None:
    keys = generate(tmp_path / "keys")
    first, sealed, directory = release(keys, tmp_path, "1.0", epoch=1_767_225_600)
    variables = {name: payload((directory / f"{name}.auth").read_bytes()) for name in ("PK", "KEK", "db")}
    rotation.begin(keys, ["db"])
    rotation.finish(keys)
    third, _, _ = release(keys, tmp_path, "1.2", epoch=1_767_398_400)
    facts = Facts(
        version="1.0", variant=Variant.RELEASE, entries=(BootEntry(version="1.0"),), esp_free=1 << 30,
        secure_boot=True, variables=variables, pcr7=secureboot.pcr7(variables, [first.uki.signer]),
        loader=first.loader, uki_signer=first.uki.signer, policy_keys=sealed, floor=1,
    )  # fmt: skip
    assert "signer" in {problem.code for problem in preflight(facts, third)}
