"""Requests and evidence: an honest machine passes, and each check that is broken alone refuses alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from hsm.bls import SecretKey
from nodeos.core.errors import RefusedError
from nodeos.core.principal import Principal
from nodeos.core.protocol import (
    QUOTED_PCRS,
    Evidence,
    Request,
    UpdateStatus,
    qualifying_data,
    secret_proof,
)
from nodeos.core.site import MemoryPolicy
from nodeos.core.statereport import Mode
from nodeos.core.wire import ParseError
from provisioning.verify.der import parse_certificate
from provisioning.verify.evidence import (
    Assessment,
    DataCenter,
    Expected,
    RefusedEvidence,
    Trust,
    verify_evidence,
    verify_request,
)
from provisioning.verify.findings import Result
from provisioning.verify.policy import Enrolled, check_memory
from provisioning.verify.profile import load_profile
from provisioning.verify.quote import Clock
from tests.support import evidence as ev

NONCE, SECRET = b"n" * 32, b"s" * 32
CENTER = DataCenter(
    name="dc1",
    operator=Principal.self_authenticating(ev.spki(ev.OPERATOR)),
    site_key=ev.SITE_KEY.public_key(),
    node_reward_type="type1",
)


def trust() -> Trust:
    return Trust(roots=(parse_certificate(ev.root().der),), intermediates=())


def refusal(request: Request) -> list[str]:
    with pytest.raises(RefusedError) as caught:
        verify_request(request, CENTER, trust(), ev.later(10))
    return [f.code for f in caught.value.findings]


def test_honest_request_passes() -> None:
    asker = verify_request(ev.Machine().request(), CENTER, trust(), ev.later(10))
    assert asker.site == ev.site()
    assert asker.model.model == "synthetic"


def test_intermediates_of_the_registrar_help_a_machine_that_has_none() -> None:
    request = ev.Machine().request()
    alone = replace(request, ek_certificates=request.ek_certificates[:1])
    known = Trust(roots=trust().roots, intermediates=(parse_certificate(ev.issuing().der),))
    verify_request(alone, CENTER, known, ev.later(10))
    assert refusal(alone) == ["ek.untrusted"]


REQUESTS: dict[str, Callable[[Request], Request]] = {
    "ek.no_certificate": lambda r: replace(r, ek_certificates=()),
    "ek.certificate": lambda r: replace(r, ek_certificates=(b"\x30\x00",)),
    "ek.form": lambda r: replace(r, ek_public=r.ek_public + b"\0"),
    "ek.template": lambda r: replace(r, ek_public=ev.rsa_public(ev.rsa_key().public_key(), policy=bytes(32))),
    "ek.key": lambda r: replace(r, ek_public=ev.rsa_public(ev.rsa_key(1).public_key())),
    "ak.form": lambda r: replace(r, ak_public=r.ak_public + b"\0"),
    "ak.attributes": lambda r: replace(
        r, ak_public=ev.ak_public(ev.new_ak().public_key(), attributes=ev.AK_ATTRIBUTES & ~0x10000)
    ),
    "site.signature": lambda r: replace(r, site_signature=ev.flipped(r.site_signature)),
}


@pytest.mark.parametrize("code", REQUESTS)
def test_each_request_check_refuses_alone(code: str) -> None:
    assert refusal(REQUESTS[code](ev.Machine().request())) == [code]


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("site.operator", {"operator": Principal(b"\x01")}),
        ("site.reward_type", {"node_reward_type": "type3"}),
        ("site.data_center", {"data_center": "dc2"}),
    ],
)
def test_site_must_fit_the_data_center(code: str, changes: dict[str, object]) -> None:
    assert refusal(ev.Machine(site=ev.site(**changes)).request()) == [code]


def test_signed_document_that_is_no_site_configuration() -> None:
    from nodeos.core.site import SIGNATURE_DOMAIN

    request = replace(
        ev.Machine().request(),
        site_document=b"{}",
        site_signature=ev.SITE_KEY.sign(SIGNATURE_DOMAIN + b"{}"),
    )
    assert refusal(request) == ["site.form"]


@pytest.mark.parametrize(
    ("policy", "claimed", "findings"),
    [
        (MemoryPolicy.REQUIRE, "active", []),
        (MemoryPolicy.REQUIRE, "unknown", ["memory.encryption"]),
        (MemoryPolicy.REQUIRE, "absent", ["memory.encryption"]),
        (MemoryPolicy.REPORT, "absent", []),
    ],
)
def test_memory_as_the_site_requires(policy: MemoryPolicy, claimed: str, findings: list[str]) -> None:
    document = ev.site(memory_encryption=policy).to_bytes()
    assert [item.code for item in check_memory(document, claimed).findings] == findings


def test_all_request_findings_are_told() -> None:
    request = replace(ev.Machine().request(), ek_certificates=(), site_signature=bytes(64), ak_public=b"")
    assert set(refusal(request)) == {"ek.no_certificate", "site.signature", "ak.form"}


def expected(machine: ev.Machine, **changes: object) -> Expected:
    base = Expected(
        nonce=NONCE,
        secret=SECRET,
        machine=machine.id,
        ak_public=machine.ak_area,
        site_document=machine.site.to_bytes(),
        escrowed={},
        releases={"1.0.0": ev.release()},
        profile=load_profile("gen1"),
        clock=None,
        boot_id=None,
        enrolled=None,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def evidence(machine: ev.Machine, **changes: object) -> Evidence:
    return machine.evidence(session="s", nonce=NONCE, secret=SECRET, **changes)  # type: ignore[arg-type]


def refused(given: Evidence, held: Expected) -> tuple[list[str], Assessment]:
    with pytest.raises(RefusedEvidence) as caught:
        verify_evidence(given, held)
    return [f.code for f in caught.value.findings], caught.value.assessment


def test_honest_evidence_passes_every_check() -> None:
    machine = ev.Machine()
    assessment = verify_evidence(evidence(machine), expected(machine))
    assert assessment.result is Result.PASSED
    assert assessment.authentic
    assert assessment.findings == ()
    assert [v.check for v in assessment.verdicts] == [
        "credential",
        "quote",
        "clock",
        "eventlog",
        "site",
        "firmware",
        "release",
        "update",
        "volume",
        "recovery",
        "identity",
        "memory",
        "fingerprint",
        "possession",
    ]


def test_a_node_that_fell_back_is_watched() -> None:
    machine = ev.Machine()
    status = UpdateStatus(running=machine.release, blessed=True, failed="9.9")
    stated = replace(machine.statement(), update=status).to_bytes()
    assessment = verify_evidence(
        machine.evidence(session="s", nonce=NONCE, secret=SECRET, statement=stated), expected(machine)
    )
    assert assessment.result is Result.WATCH
    assert [finding.code for finding in assessment.findings] == ["update.fell_back"]
    other = replace(machine.statement(), update=replace(status, running="8.8", failed=None)).to_bytes()
    given = machine.evidence(session="s", nonce=NONCE, secret=SECRET, statement=other)
    assert refused(given, expected(machine))[0] == ["update.running"]


def requoted(machine: ev.Machine, **changes: object) -> Evidence:
    """Evidence whose quote is made anew with other contents, properly signed."""
    honest = evidence(machine)
    qualifying = qualifying_data(NONCE, honest.statement)
    quote = ev.quote_bytes(qualifying, honest.pcrs, **changes)  # type: ignore[arg-type]
    return replace(honest, quote=quote, signature=ev.sign_quote(machine.ak, quote))


QUOTES: dict[str, Callable[[ev.Machine], Evidence]] = {
    "credential.proof": lambda m: replace(evidence(m), secret_proof=bytes(32)),
    "quote.signature": lambda m: replace(
        evidence(m), signature=ev.sign_quote(ev.new_ak(), evidence(m).quote)
    ),
    "quote.digest": lambda m: replace(evidence(m), pcrs={**m.pcrs, 15: b"\x01" * 32}),
    "quote.selection": lambda m: requoted(m, selected=QUOTED_PCRS[1:]),
    "quote.form": lambda m: requoted(m, magic=0),
}


@pytest.mark.parametrize("code", QUOTES)
def test_each_quote_check_refuses_alone_and_nothing_is_authentic(code: str) -> None:
    machine = ev.Machine()
    codes, assessment = refused(QUOTES[code](machine), expected(machine))
    assert codes == [code]
    assert not assessment.authentic


@pytest.mark.parametrize(
    "changes",
    [
        {"selected": ()},
        {"selected": (*QUOTED_PCRS, 16)},
        {"bank": 0x0004},
    ],
)
def test_other_selections(changes: dict[str, object]) -> None:
    machine = ev.Machine()
    assert refused(requoted(machine, **changes), expected(machine))[0] == ["quote.selection"]


def test_quote_that_is_another_attestation_or_has_bytes_too_many() -> None:
    machine = ev.Machine()
    assert refused(requoted(machine, kind=0x8017), expected(machine))[0] == ["quote.form"]
    longer = evidence(machine).quote + b"\0"
    given = replace(evidence(machine), quote=longer, signature=ev.sign_quote(machine.ak, longer))
    assert refused(given, expected(machine))[0] == ["quote.form"]


def test_old_quote_for_another_nonce() -> None:
    machine = ev.Machine()
    old = machine.evidence(session="s", nonce=b"o" * 32, secret=SECRET)
    proof = secret_proof(SECRET, qualifying_data(NONCE, old.statement))
    assert refused(replace(old, secret_proof=proof), expected(machine))[0] == ["quote.nonce"]


def test_statement_that_the_quote_does_not_bind() -> None:
    machine = ev.Machine()
    other = replace(machine.statement(), memory_encryption="unknown").to_bytes()
    proof = secret_proof(SECRET, qualifying_data(NONCE, other))
    given = replace(evidence(machine), statement=other, secret_proof=proof)
    assert refused(given, expected(machine))[0] == ["quote.nonce"]


@pytest.mark.parametrize(
    ("code", "clock"),
    [
        ("quote.reset_count", Clock(clock=0, reset_count=2, restart_count=0)),
        ("quote.clock", Clock(clock=1001, reset_count=1, restart_count=0)),
        ("quote.restart_count", Clock(clock=999, reset_count=1, restart_count=1)),
        ("quote.clock", Clock(clock=(1 << 22) + 1001, reset_count=0, restart_count=0)),
    ],
)
def test_clock_that_goes_backwards(code: str, clock: Clock) -> None:
    machine = ev.Machine()
    codes, assessment = refused(evidence(machine), expected(machine, clock=clock))
    assert codes == [code]
    assert assessment.authentic


def test_clock_may_lose_after_a_power_cut_what_was_not_saved() -> None:
    machine = ev.Machine()
    before = Clock(clock=(1 << 22) + 1000, reset_count=0, restart_count=5)
    assert verify_evidence(evidence(machine), expected(machine, clock=before)).result is Result.PASSED


def changed_pcr(machine: ev.Machine, index: int) -> Evidence:
    return evidence(machine, pcrs={**machine.pcrs, index: b"\x55" * 32})


@pytest.mark.parametrize(
    ("index", "codes"),
    [
        (4, {"pcr.4", "eventlog.replay"}),
        (7, {"pcr.7", "eventlog.replay"}),
        (9, {"eventlog.replay"}),
        (11, {"pcr.11", "eventlog.replay"}),
        (12, {"pcr.12"}),
        (13, {"pcr.13"}),
        (14, {"pcr.14"}),
        (0, {"eventlog.replay"}),
    ],
)
def test_each_pcr_refuses_alone(index: int, codes: set[str]) -> None:
    machine = ev.Machine()
    assert set(refused(changed_pcr(machine, index), expected(machine))[0]) == codes


def test_pcr_9_is_whatever_the_firmware_says() -> None:
    machine = ev.Machine()
    initrd = (9, 0x00000006, b"Linux initrd")
    value = ev.extend(bytes(32), hashlib.sha256(initrd[2]).digest())
    given = evidence(machine, pcrs={**machine.pcrs, 9: value})
    told = replace(given, firmware_log=ev.firmware_log([*ev.firmware_events(), initrd]))
    assert verify_evidence(told, expected(machine)).result is Result.PASSED
    assert refused(given, expected(machine))[0] == ["eventlog.replay"]


@pytest.mark.parametrize("pcr", [12, 13, 14, 15])
def test_event_of_a_pcr_that_no_log_tells_of(pcr: int) -> None:
    """What our code measures there is in no log: an event is of something that does not belong there."""
    machine = ev.Machine()
    number = len(ev.firmware_events()) + 1
    extra = [*ev.firmware_events(), (pcr, 0x0000000D, b"an extra command line")]
    codes, assessment = refused(
        replace(evidence(machine), firmware_log=ev.firmware_log(extra)), expected(machine)
    )
    assert codes == ["eventlog.unexpected"]
    words = assessment.findings[0].message
    assert f"PCR {pcr}, event {number} (EV_IPL): found 'an extra command line', expected" in words
    extra_record = ev.userspace_log([*((11, phase) for phase in ev.PHASES), (pcr, b"more")])
    assert refused(replace(evidence(machine), userspace_log=extra_record), expected(machine))[0] == [
        "eventlog.unexpected"
    ]


def test_release_that_predicts_other_values() -> None:
    machine = ev.Machine()
    good = ev.release()
    other = replace(good, pcrs={**good.pcrs, "sha256": {**good.pcrs["sha256"], 4: bytes(32)}})
    assert refused(evidence(machine), expected(machine, releases={"1.0.0": other}))[0] == ["pcr.4"]
    before, enrolled = good.accepted_pcr7
    other = replace(good, accepted_pcr7=(before, replace(enrolled, sha256=bytes(32))))
    codes, assessment = refused(evidence(machine), expected(machine, releases={"1.0.0": other}))
    assert codes == ["pcr.7"]
    assert any("before the change of db" in found.message for found in assessment.findings)


def test_each_accepted_pcr_7_is_enough() -> None:
    machine = ev.Machine()
    good = ev.release()
    # What the manifest predicts for a new machine doesn't decide: an older machine may show the value before.
    other = replace(good, pcrs={**good.pcrs, "sha256": {**good.pcrs["sha256"], 7: bytes(32)}})
    assert (
        verify_evidence(evidence(machine), expected(machine, releases={"1.0.0": other})).result
        is Result.PASSED
    )


def test_unknown_release() -> None:
    machine = ev.Machine(release="9.9.9")
    assert refused(evidence(machine), expected(machine))[0] == ["release.unknown"]


def test_boot_that_is_not_finished_says_so() -> None:
    machine = ev.Machine()
    early = next(iter(ev.release().pcr11["sha256"].values()))
    given = evidence(machine, pcrs={**machine.pcrs, 11: early})
    given = replace(given, userspace_log=ev.userspace_log([(11, ev.PHASES[0])]))
    codes, assessment = refused(given, expected(machine))
    assert codes == ["pcr.11", "release.phase"]
    assert any("enter-initrd" in f.message for f in assessment.findings)


def test_other_site_document_than_in_the_request() -> None:
    machine = ev.Machine()
    held = expected(machine, site_document=ev.site(data_center="dc2").to_bytes())
    assert refused(evidence(machine), held)[0] == ["pcr.12"]


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("volume.policy_pcrs", {"policy_pcrs": ()}),
        ("volume.policy_pcrs", {"policy_pcrs": (7, 11)}),
        ("volume.policy_pcrs", {"policy_pcrs": (7, 11, 15)}),
        ("volume.policy_pcrs", {"policy_pcrs": (7, 15)}),
        ("volume.policy_pcrs", {"policy_pcrs": (11, 15)}),
        ("volume.policy_keys", {"policy_keys": ()}),
        ("volume.locked", {"mode": Mode.LOCKED}),
        ("volume.unproven", {"creation_proven": False}),
    ],
)
def test_volume_that_is_not_sealed_as_it_must_be(code: str, changes: dict[str, object]) -> None:
    machine = ev.Machine()
    statement = machine.statement()
    volume = replace(statement.volume, **changes)  # type: ignore[arg-type]
    given = evidence(machine, statement=replace(statement, volume=volume).to_bytes())
    assert refused(given, expected(machine))[0] == [code]


def test_volume_key_that_was_not_measured() -> None:
    machine = ev.Machine()
    given = evidence(machine, pcrs={**machine.pcrs, 15: bytes(32)})
    assert refused(given, expected(machine))[0] == ["volume.unmeasured"]


def test_volume_from_an_earlier_boot_is_accepted_if_its_making_is_proven() -> None:
    machine = ev.Machine(made_this_boot=False)
    assert verify_evidence(evidence(machine), expected(machine)).findings == ()


def test_unproven_volume_of_an_enrolled_machine() -> None:
    # Sealed anew after the TPM was cleared. It is held to the UUID and to PCR 15.
    machine = ev.Machine(creation_proven=False, made_this_boot=False)
    held = expected(machine, enrolled=enrolled(machine))
    assert verify_evidence(evidence(machine), held).findings == ()


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("keys.signing", {"signing": b"\x30" * 44}),
        ("keys.signing", {"signing": ev.spki(ev.new_ak())}),
        ("keys.tls_certificate", {"tls_certificate": b"\x30\x00"}),
        ("keys.tls_certificate", {"tls_certificate": ev.flipped(ev.node_keys().tls_certificate)}),
        ("keys.tls_certificate", {"tls_certificate": ev.issuing().der}),
        ("keys.committee", {"committee": bytes(96)}),
        ("keys.committee", {"committee": b"\xc0" + bytes(95)}),
    ],
)
def test_node_keys_of_a_wrong_form(code: str, changes: dict[str, bytes]) -> None:
    machine = ev.Machine(keys=replace(ev.node_keys(), **changes))
    assert refused(evidence(machine), expected(machine))[0] == [code]


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("statement.form", {"statement": b"{}"}),
        ("fingerprint.form", {}),
    ],
)
def test_malformed_parts(code: str, changes: dict[str, object]) -> None:
    machine = ev.Machine(fingerprint=b"\xa0") if code == "fingerprint.form" else ev.Machine()
    assert refused(evidence(machine, **changes), expected(machine))[0] == [code]


def test_malformed_log_and_changed_log() -> None:
    machine = ev.Machine()
    given = replace(evidence(machine), firmware_log=b"")
    assert refused(given, expected(machine))[0] == ["eventlog.form"]
    given = replace(evidence(machine), userspace_log=b"x")
    assert refused(given, expected(machine))[0] == ["eventlog.form"]


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("possession.signing", {"signing": ev.node_secret(2).sign(b"another")}),
        ("possession.tls_certificate", {"tls": bytes(64)}),
        ("possession.committee", {"committee": bytes(48)}),
        ("possession.committee", {"committee": SecretKey(b"\x01" * 32).sign(b"another")}),
    ],
)
def test_each_key_must_be_shown_to_be_held(code: str, changes: dict[str, bytes]) -> None:
    machine = ev.Machine()
    given = evidence(machine)
    given = replace(given, key_proofs=replace(given.key_proofs, **changes))
    codes, assessment = refused(given, expected(machine))
    assert codes == [code]
    assert assessment.authentic


def test_key_proofs_of_another_attestation_show_nothing() -> None:
    machine = ev.Machine()
    other = machine.evidence(session="s", nonce=bytes(32), secret=SECRET)
    given = replace(evidence(machine), key_proofs=other.key_proofs)
    codes = refused(given, expected(machine))[0]
    assert codes == ["possession.signing", "possession.tls_certificate", "possession.committee"]


def test_a_tls_key_that_can_not_sign_for_it_is_refused() -> None:
    key = ev.rsa_key()
    name = x509.Name([])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, ev.START, ev.END)
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.DER)
    )
    machine = ev.Machine(keys=replace(ev.node_keys(), tls_certificate=certificate))
    assert refused(evidence(machine), expected(machine))[0] == ["possession.tls_certificate"]


def enrolled(machine: ev.Machine) -> Enrolled:
    return Enrolled(
        ak_public=machine.ak_area,
        keys=machine.keys,
        pcrs=machine.pcrs,
        luks_uuid=machine.luks_uuid,
        boot_id=machine.boot_id,
    )


def test_enrolled_machine_attests_again_in_the_same_boot_and_in_the_next() -> None:
    machine = ev.Machine()
    held = enrolled(machine)
    assert verify_evidence(evidence(machine), expected(machine, enrolled=held)).result is Result.PASSED
    machine.reboot()
    assert verify_evidence(evidence(machine), expected(machine, enrolled=held)).result is Result.PASSED


ENROLLED: dict[str, Callable[[ev.Machine], None]] = {
    "identity.ak": lambda m: setattr(m, "ak", ev.new_ak()),
    "identity.signing": lambda m: setattr(m, "keys", replace(m.keys, signing=ev.node_keys(2).signing)),
    "identity.tls_certificate": lambda m: setattr(
        m, "keys", replace(m.keys, tls_certificate=ev.node_keys(2).tls_certificate)
    ),
    "identity.committee": lambda m: setattr(m, "keys", replace(m.keys, committee=ev.node_keys(2).committee)),
    "volume.remade": lambda m: setattr(m, "made_this_boot", True),
    "volume.luks_uuid": lambda m: setattr(m, "luks_uuid", "2" * 8 + m.luks_uuid[8:]),
    "pcr.15": lambda m: setattr(m, "volume", b"another key"),
}


@pytest.mark.parametrize("code", ENROLLED)
def test_each_change_after_enrolment_refuses_alone(code: str) -> None:
    machine = ev.Machine()
    held = enrolled(machine)
    machine.reboot()
    ENROLLED[code](machine)
    codes, assessment = refused(evidence(machine), expected(machine, enrolled=held))
    assert codes == [code]
    assert assessment.authentic


@pytest.mark.parametrize("index", [0, 1, 2, 3])
def test_changed_firmware_is_watched(index: int) -> None:
    machine = ev.Machine()
    held = enrolled(machine)
    machine.reboot()
    held = replace(held, pcrs={**held.pcrs, index: bytes(32)})
    assessment = verify_evidence(evidence(machine), expected(machine, enrolled=held))
    assert assessment.result is Result.WATCH
    assert [f.code for f in assessment.findings] == [f"pcr.{index}"]


def test_an_update_renames_partitions_and_is_no_change_of_the_firmware() -> None:
    machine = ev.Machine()
    held = enrolled(machine)
    machine.reboot()
    held = replace(held, pcrs={**held.pcrs, 5: bytes(32)})
    assert verify_evidence(evidence(machine), expected(machine, enrolled=held)).result is Result.PASSED


@pytest.mark.parametrize(("boot_id", "reset"), [("boot-1", 0), ("another", 1)])
def test_reset_and_boot_id_change_together(boot_id: str, reset: int) -> None:
    machine = ev.Machine()
    held = expected(machine, clock=Clock(clock=0, reset_count=reset, restart_count=0), boot_id=boot_id)
    assessment = verify_evidence(evidence(machine), held)
    assert [f.code for f in assessment.findings] == ["boot.reset"]
    assert assessment.result is Result.WATCH


def test_all_evidence_findings_are_told() -> None:
    machine = ev.Machine(release="9.9.9", keys=replace(ev.node_keys(), committee=bytes(96)))
    given = evidence(machine, pcrs={**machine.pcrs, 13: b"\x01" * 32, 14: b"\x01" * 32})
    codes, _ = refused(replace(given, secret_proof=bytes(32), firmware_log=b""), expected(machine))
    assert set(codes) == {
        "credential.proof",
        "eventlog.form",
        "pcr.13",
        "pcr.14",
        "release.unknown",
        "keys.committee",
    }


_HONEST = ev.Machine()
_EVIDENCE = evidence(_HONEST)
_PARTS = ("statement", "quote", "signature", "firmware_log", "userspace_log")


@given(st.sampled_from(_PARTS), st.integers(0, 1 << 16), st.integers(1, 255))
@settings(max_examples=200, deadline=None)
def test_damage_anywhere_raises_only_refusals(part: str, at: int, change: int) -> None:
    data = bytearray(getattr(_EVIDENCE, part))
    data[at % len(data)] ^= change
    changes: dict[str, Any] = {part: bytes(data)}
    given = replace(_EVIDENCE, **changes)
    try:
        verify_evidence(given, expected(_HONEST))
    except RefusedError as error:
        assert error.findings
    else:
        # Only what is not measured may change unnoticed: types and data of events, words of records.
        assert part in ("firmware_log", "userspace_log")


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_request_of_noise_is_refused(data: bytes) -> None:
    request = replace(ev.Machine().request(), ek_public=data, ak_public=data, ek_certificates=(data,))
    with pytest.raises((RefusedError, ParseError)):
        verify_request(request, CENTER, trust(), ev.later(10))


def test_machine_id_is_the_protocols() -> None:
    machine = ev.Machine()
    assert machine.request().machine == machine.id == hashlib.sha256(machine.request().ek_public).hexdigest()
