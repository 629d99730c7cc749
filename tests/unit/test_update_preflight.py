"""The preflight of an update: each case breaks one thing, and just that check refuses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from image import measure
from image.efivars import hash_list
from nodeos.core import secureboot
from nodeos.core.release import Variant
from nodeos.core.statepolicy import ZERO_PCRS, PolicySignature, policy_pcrs
from nodeos.update.candidate import ROOT, SIGNATURE, UKI, VERITY, Candidate, Image
from nodeos.update.entries import parse_entries
from nodeos.update.preflight import ESP_MARGIN, Facts, boot_steps, preflight
from nodeos.update.versions import older
from tests.support.release_keys import OWNER, auth, key, lists

OLD_LOADER = Image(digest=b"loader", signer=key("db").der)
PCR_KEY, OTHER_KEY = b"p" * 32, b"q" * 32
PCR11 = b"\x11" * 32


def variables(**changes: bytes) -> dict[str, bytes]:
    return {"PK": lists("PK"), "KEK": lists("KEK"), "db": lists("db"), **changes}


def pcr7(given: Mapping[str, bytes], *names: str) -> bytes:
    return secureboot.pcr7(given, [key(name).der for name in names])


TODAY = pcr7(variables(), "db")


def policy(
    value: bytes = TODAY, *, signer: bytes = PCR_KEY, version: int = 2, **pcrs: bytes
) -> PolicySignature:
    chosen = policy_pcrs(value, pcrs.get("pcr11", PCR11))
    chosen |= {pcr: pcrs.get(f"pcr{pcr}", zero) for pcr, zero in chosen.items() if pcr in ZERO_PCRS}
    return PolicySignature(key=signer, pcrs=chosen, version=version, signature=bytes(64))


def make_facts(**changes: Any) -> Facts:
    facts = Facts(
        version="1.0", variant=Variant.RELEASE, entries=parse_entries(["nodeos_1.0.efi"]), esp_free=1 << 30,
        secure_boot=True, variables=variables(), pcr7=TODAY, loader=OLD_LOADER, uki_signer=key("db").der,
        policy_keys=(PCR_KEY,), floor=1,
    )  # fmt: skip
    return replace(facts, **changes)


def make_candidate(**changes: Any) -> Candidate:
    candidate = Candidate(
        version="1.1", variant=Variant.RELEASE, root_hash=b"r" * 32, security_version=2, rollback_floor=1,
        sizes={UKI: 50 << 20, ROOT: 200 << 20, VERITY: 2 << 20, SIGNATURE: 4000},
        uki=Image(digest=b"uki", signer=key("db").der), loader=OLD_LOADER, policies=(policy(),), pcr11=PCR11,
        updates={}, root_hash_problem=None, verity_problem=None,
    )  # fmt: skip
    return replace(candidate, **changes)


def codes(facts: Facts, candidate: Candidate, *, rollback: bool = False) -> list[str]:
    found = preflight(facts, candidate, rollback=rollback)
    assert all(problem.reason and problem.todo for problem in found)
    return list(dict.fromkeys(problem.code for problem in found))


def test_a_good_update_passes() -> None:
    assert preflight(make_facts(), make_candidate()) == ()


@pytest.mark.parametrize(
    ("code", "facts", "candidate"),
    [
        ("version.running", {}, {"version": "1.0"}),
        ("version.older", {}, {"version": "0.9"}),
        ("version.form", {}, {"version": "1.1_x"}),
        ("variant", {"variant": Variant.DEBUG}, {}),
        ("floor", {}, {"security_version": 0}),
        ("boot.unblessed", {"entries": parse_entries(["nodeos_1.0+2-1.efi"])}, {}),
        ("boot.unblessed", {"entries": ()}, {}),
        ("update.unfinished", {"pending": "1.0"}, {}),
        ("root_hash", {}, {"root_hash_problem": "another"}),
        ("verity.signature", {}, {"verity_problem": "none"}),
        ("esp.space", {"esp_free": (50 << 20) + ESP_MARGIN - 1}, {}),
        ("slot.space", {}, {"sizes": {UKI: 1, ROOT: (1 << 30) + 1, VERITY: 1, SIGNATURE: 1}}),
        ("slot.space", {}, {"sizes": {UKI: 1, ROOT: 1, VERITY: (32 << 20) + 1, SIGNATURE: 1}}),
        ("slot.space", {}, {"sizes": {UKI: 1, ROOT: 1, VERITY: 1, SIGNATURE: (1 << 20) + 1}}),
        ("firmware.secure_boot", {"secure_boot": False}, {}),
        ("pcr_key", {"policy_keys": (OTHER_KEY,)}, {}),
        ("pcr_key", {"floor": 2}, {"policies": (policy(version=1),)}),
        ("pcr_key", {}, {"policies": (policy(pcr11=bytes(32)),)}),
        ("pcr_key", {}, {"policies": (policy(pcr15=b"x" * 32),)}),
        ("pcr_key", {}, {"policies": (policy(pcr12=b"x" * 32),)}),
        ("pcr_key", {}, {"policies": (policy(pcr13=b"x" * 32),)}),
        ("pcr7.unsigned", {}, {"policies": (policy(b"x" * 32),)}),
    ],
)
def test_each_check_refuses_alone(code: str, facts: dict[str, Any], candidate: dict[str, Any]) -> None:
    assert codes(make_facts(**facts), make_candidate(**candidate)) == [code]


def test_an_older_version_is_taken_as_a_declared_rollback_above_the_floor() -> None:
    old = make_candidate(version="0.9")
    assert codes(make_facts(), old, rollback=True) == []
    assert codes(make_facts(floor=3), replace(old, policies=(policy(version=3),)), rollback=True) == ["floor"]


def test_a_signer_that_firmware_refuses() -> None:
    foreign = make_candidate(uki=Image(digest=b"uki", signer=key("other").der))
    assert "signer" in codes(make_facts(), foreign)
    revoked = make_facts(variables=variables(dbx=lists("db")))
    assert "signer" in codes(revoked, make_candidate())


def test_a_release_that_revokes_its_own_signer() -> None:
    """Its dbx is signed and would be taken: the machine would not start any more."""
    suicidal = make_candidate(updates={"dbx": auth("dbx", lists("db"))})
    assert "signer" in codes(make_facts(), suicidal)


@pytest.mark.parametrize("image", ["uki", "loader"])
def test_a_release_that_forbids_its_own_image(image: str) -> None:
    forbidden = hash_list([b"!" * 32], OWNER)
    signed_for = (policy(), policy(pcr7(variables(dbx=forbidden), "db")))
    change = {"updates": {"dbx": auth("dbx", forbidden)}, "policies": signed_for}
    assert codes(make_facts(), make_candidate(**change)) == []
    own = Image(digest=b"!" * 32, signer=key("db").der)
    facts = make_facts(loader=own) if image == "loader" else make_facts()
    assert codes(facts, make_candidate(**change, **{image: own})) == ["signer"]


def test_a_change_of_dbx_needs_policies_for_before_and_after() -> None:
    after = pcr7(variables(dbx=lists("other")), "db")
    change = {"dbx": auth("dbx", lists("other"))}
    assert codes(make_facts(), make_candidate(updates=change)) == ["pcr7.unsigned"]
    only_after = make_candidate(updates=change, policies=(policy(after),))
    assert codes(make_facts(), only_after) == ["pcr7.unsigned"]
    both = make_candidate(updates=change, policies=(policy(), policy(after)))
    assert codes(make_facts(), both) == []


def test_every_step_of_a_rotation_is_signed_for() -> None:
    """The second update of a rotation: signed by the new key alone, and the old one leaves db and enters dbx."""
    before = variables(db=lists("db", "new"))
    today, changed = pcr7(before, "db"), {"db": auth("db", lists("new")), "dbx": auth("dbx", lists("db"))}
    facts = make_facts(variables=before, pcr7=today)
    new = Image(digest=OLD_LOADER.digest, signer=key("new").der)
    states = (
        pcr7(before, "db", "new"),
        pcr7(before, "new"),
        pcr7(variables(db=lists("new")), "new"),
        pcr7(variables(db=lists("new"), dbx=lists("db")), "new"),
    )
    release = make_candidate(
        uki=Image(digest=b"uki", signer=key("new").der), loader=new, updates=changed,
        policies=tuple(policy(value) for value in states),
    )  # fmt: skip
    assert codes(facts, release) == []
    assert [step.name for step in boot_steps(facts, release)] == ["first", "blessed", "db", "dbx"]
    for missing in states:
        fewer = replace(release, policies=tuple(policy(value) for value in states if value != missing))
        assert codes(facts, fewer) == ["pcr7.unsigned"]
    assert codes(facts, replace(release, loader=replace(new, digest=b"changed"))) == ["loader.signer"]


def test_an_update_of_a_variable_that_firmware_would_not_take() -> None:
    foreign = {"dbx": auth("dbx", lists("other"), signer="other")}
    assert codes(make_facts(), make_candidate(updates=foreign)) == ["variables.update"]
    own = {"KEK": auth("KEK", lists("KEK"), signer="KEK")}
    assert codes(make_facts(), make_candidate(updates=own)) == ["variables.update"]
    platform = {"KEK": auth("KEK", lists("KEK"), signer="PK")}
    assert codes(make_facts(), make_candidate(updates=platform)) == []


def test_appending_keeps_what_is_there() -> None:
    facts = make_facts(variables=variables(dbx=lists("first")))
    release = make_candidate(updates={"dbx": auth("dbx", lists("first", "second"), append=True)})
    assert boot_steps(facts, release)[-1].variables["dbx"] == lists("first", "second")
    release = make_candidate(updates={"dbx": auth("dbx", lists("second"))})
    assert boot_steps(facts, release)[-1].variables["dbx"] == lists("second")


def test_firmware_that_measures_more_than_the_standard() -> None:
    odd = make_facts(pcr7=b"odd" + bytes(29))
    assert codes(odd, make_candidate(policies=(policy(odd.pcr7),))) == []
    change = {"dbx": auth("dbx", lists("other"))}
    assert codes(odd, make_candidate(policies=(policy(odd.pcr7),), updates=change)) == ["pcr7.unknown"]


def test_pcr7_is_the_builds_prediction() -> None:
    given = variables(dbx=lists("other"))
    for bank in ("sha256", "sha384"):
        ours = secureboot.pcr7(given, [key("db").der], bank)
        assert ours == measure.pcr7_of_lists(given, bank=bank, authority=key("db").certificate)


ORDERED = ("0.9", "1.0~rc1", "1.0", "1.0-1", "1.0^1", "1.0.1", "1.9", "1.10", "1.10a", "2", "10")


def test_versions_are_ordered_as_systemd_orders_them() -> None:
    for index, version in enumerate(ORDERED):
        assert [older(version, other) for other in ORDERED] == [index < at for at in range(len(ORDERED))]
    assert not older("1.01", "1.1")
    assert not older("1.1", "1.01")
