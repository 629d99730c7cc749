"""A software TPM's own evidence against verifier and service: nothing is synthetic but the boot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hsm.softtpm import ManufacturerCa, SoftTpm
from hsm.tpm import Tpm
from nodeos.core.protocol import (
    QUOTED_PCRS,
    Challenge,
    EnrolmentState,
    Evidence,
    Outcome,
    Request,
    Statement,
    qualifying_data,
    secret_proof,
)
from nodeos.core.site import SIGNATURE_DOMAIN
from provisioning.registrar import admin
from provisioning.registrar.service import now
from provisioning.verify.credential import make_credential
from provisioning.verify.keys import check_endorsement_key
from provisioning.verify.tpm import parse_public
from tests.support import evidence as ev
from tests.support.registrar import Registrar, caller

pytestmark = pytest.mark.tpm


@pytest.fixture
def registrar(tmp_path: Path, manufacturer_ca: ManufacturerCa) -> Iterator[Registrar]:
    made = Registrar(tmp_path)
    admin.add_trust(made.store, manufacturer_ca.roots, pin_all=False)
    made.service.clock = now
    yield made
    made.store.close()


def boot(tpm: Tpm) -> None:
    """What an honest boot of the synthetic release measures."""
    for pcr, _, data in ev.firmware_events():
        tpm.measure(pcr, data)
    for phase in ev.PHASES:
        tpm.measure(11, phase)
    tpm.measure(12, ev.site().to_bytes())
    tpm.measure(15, b"volume key")


def request(tpm: Tpm) -> Request:
    endorsement = tpm.endorsement()
    document = ev.site().to_bytes()
    return Request(
        ek_public=endorsement.public,
        ek_certificates=endorsement.certificates,
        ak_public=tpm.attestation_key(),
        site_document=document,
        site_signature=ev.SITE_KEY.sign(SIGNATURE_DOMAIN + document),
    )


def evidence(tpm: Tpm, challenge: Challenge, statement: Statement) -> Evidence:
    secret = tpm.activate(challenge.credential_blob, challenge.encrypted_secret)
    stated = statement.to_bytes()
    qualifying = qualifying_data(challenge.nonce, stated)
    quote = tpm.quote(qualifying, QUOTED_PCRS)
    return Evidence(
        session=challenge.session,
        statement=stated,
        secret_proof=secret_proof(secret, qualifying),
        key_proofs=ev.key_proofs(qualifying, statement.keys),
        quote=quote.attest,
        signature=quote.signature,
        pcrs=quote.pcrs,
        firmware_log=ev.firmware_log(),
        userspace_log=ev.userspace_log([(11, phase) for phase in ev.PHASES]),
    )


def attest(registrar: Registrar, tpm: Tpm, statement: Statement) -> tuple[str, Outcome]:
    asked = request(tpm)
    challenge = registrar.service.request(asked.to_bytes())
    body = evidence(tpm, challenge, statement).to_bytes()
    return asked.machine, registrar.service.evidence(asked.machine, body)


def test_software_tpm_is_enrolled_and_attests_after_a_reset(registrar: Registrar, soft_tpm: SoftTpm) -> None:
    statement = ev.Machine().statement()
    with soft_tpm.serve() as tcti, Tpm(tcti) as tpm:
        boot(tpm)
        blob = ev.recovery_blob(request(tpm).machine, statement.volume.luks_uuid, ev.site().operator_key)
        statement = replace(statement, recovery=blob)
        machine, outcome = attest(registrar, tpm, statement)
    assert (outcome.state, outcome.findings) == (EnrolmentState.PENDING, ())
    digest = registrar.operators.enrolment(caller(), machine)["evidence"]
    registrar.operators.approve(caller(), machine, f'{{"evidence":"{digest}"}}'.encode())

    volume = replace(statement.volume, made_this_boot=False)
    second = replace(statement, boot_id="boot-2", volume=volume)
    with soft_tpm.serve() as tcti, Tpm(tcti) as tpm:
        boot(tpm)
        _, outcome = attest(registrar, tpm, second)
        assert (outcome.state, outcome.findings) == (EnrolmentState.INDUCTED, ())
        tpm.measure(14, b"something that should not be there")
        _, outcome = attest(registrar, tpm, second)
        assert [f.code for f in outcome.findings] == ["pcr.14"]
    history = registrar.operators.node(caller(), machine)["attestation"]["history"]
    assert [entry["state"] for entry in history] == ["failed", "passed", "passed"]
    assert history[2]["reset_count"] < history[1]["reset_count"]


def test_tpm_of_another_manufacturer_is_refused(soft_tpm: SoftTpm, tmp_path: Path) -> None:
    made = Registrar(tmp_path)
    made.service.clock = now
    with soft_tpm.serve() as tcti, Tpm(tcti) as tpm, pytest.raises(Exception, match=r"ek\.untrusted"):
        made.service.request(request(tpm).to_bytes())
    made.store.close()


def test_ecc_endorsement_key_opens_its_credential(soft_tpm: SoftTpm) -> None:
    """The P-384 key of the high range, which the agent uses only where there is no RSA key."""
    from tpm2_pytss import ESAPI, TPM2B_ENCRYPTED_SECRET, TPM2B_ID_OBJECT

    with soft_tpm.serve() as tcti:
        with Tpm(tcti) as tpm:
            name = parse_public(tpm.attestation_key()).name
        with ESAPI(tcti) as esys:
            ek, ak = esys.tr_from_tpmpublic(0x81010016), esys.tr_from_tpmpublic(0x81010002)
            area, _, _ = esys.read_public(ek)
            public = parse_public(bytes(area.publicArea.marshal()))
            assert check_endorsement_key(public) == ()
            credential = make_credential(public, name, b"s" * 32)
            blob, _ = TPM2B_ID_OBJECT.unmarshal(credential.blob)
            secret, _ = TPM2B_ENCRYPTED_SECRET.unmarshal(credential.encrypted_secret)
            assert bytes(esys.activate_credential(ak, ek, blob, secret)) == b"s" * 32
