"""The service over a real store: what each party can bring about, and what it can't."""

from __future__ import annotations

import json
import sqlite3
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from hsm.identity import FileSigner
from nodeos.cli import root
from nodeos.core.errors import RefusedError, UsageError
from nodeos.core.principal import Principal
from nodeos.core.protocol import EnrolmentState, NodeRecord, Outcome
from nodeos.core.release import Variant
from nodeos.core.run import run
from nodeos.core.wire import b64, parse_json
from provisioning import operator_auth
from provisioning.cli_enroll import describe
from provisioning.operator_auth import Asked
from provisioning.registrar import admin, schema, store
from provisioning.registrar.directory import Directory
from provisioning.registrar.lookups import ConflictError, NotFoundError
from provisioning.registrar.service import MAX_OPEN_SESSIONS
from provisioning.registrar.store import KEPT_EVIDENCE, BusyError, Store
from provisioning.verify.der import parse_certificate
from tests.support import evidence as ev
from tests.support.registrar import AT, Registrar, caller, center, poll, write_identity

OTHER = ev.spki(ev.new_ak())


@pytest.fixture
def registrar(tmp_path: Path) -> Iterator[Registrar]:
    made = Registrar(tmp_path)
    yield made
    made.store.close()


def codes(outcome: Outcome) -> list[str]:
    return [f.code for f in outcome.findings]


def refusal(error: pytest.ExceptionInfo[RefusedError]) -> list[str]:
    return [f.code for f in error.value.findings]


def test_whole_path(registrar: Registrar) -> None:
    machine = ev.Machine()
    challenge = registrar.service.request(machine.request().to_bytes())
    assert registrar.state(machine) == "challenged"
    outcome = registrar.service.evidence(machine.id, machine.answer(challenge).to_bytes())
    assert (outcome.state, outcome.node, codes(outcome)) == (EnrolmentState.PENDING, None, [])
    secret = machine.secret(challenge)
    assert registrar.service.poll(machine.id, poll(challenge.session, secret, 0)).state == "pending"
    node = registrar.approve(machine)
    done = registrar.service.poll(machine.id, poll(challenge.session, secret, 1))
    assert done.state is EnrolmentState.INDUCTED
    assert done.node is not None
    assert str(done.node.node_id) == node["node_id"]
    assert done.node.keys == machine.keys
    assert registrar.events(machine) == [
        "requested",
        "recovery-escrowed",
        "evidence-accepted",
        "approved",
    ]


def _list(
    tmp_path: Path,
    *serials: int,
    days: int = 30,
    signer: ev.Authority | None = None,
    issuer: str | None = None,
) -> Path:
    """A list in a file, of the authority that issues the endorsement certificates or of ``issuer``."""
    start = datetime.fromtimestamp(AT, UTC) - timedelta(days=1)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ev.name(issuer or ev.issuing().subject))
        .last_update(start)
        .next_update(start + timedelta(days=days))
    )
    for serial in serials:
        item = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(start).build()
        builder = builder.add_revoked_certificate(item)
    path = tmp_path / f"list-{len(serials)}-{days}.crl"
    made = builder.sign((signer or ev.issuing()).key, hashes.SHA256())
    path.write_bytes(made.public_bytes(serialization.Encoding.DER))
    return path


def _know_issuing(registrar: Registrar, tmp_path: Path) -> None:
    file = tmp_path / "issuing.pem"
    file.write_bytes(ev.pem(ev.issuing().der))
    admin.add_trust(registrar.store, file, pin_all=False)


def test_revoked_machine_is_refused_from_then_on(registrar: Registrar, tmp_path: Path) -> None:
    _know_issuing(registrar, tmp_path)
    request = ev.Machine().request()
    registrar.service.request(request.to_bytes())
    ((_, new),) = admin.add_revocation_lists(registrar.store, _list(tmp_path, 1234))
    assert new
    registrar.service.request(request.to_bytes())
    serial = parse_certificate(request.ek_certificates[0]).serial
    admin.add_revocation_lists(registrar.store, _list(tmp_path, 1234, serial))
    with pytest.raises(RefusedError) as error:
        registrar.service.request(request.to_bytes())
    assert refusal(error) == ["ek.revoked"]
    ((_, again),) = admin.add_revocation_lists(registrar.store, tmp_path / "list-1-30.crl")
    assert not again


def test_list_that_ended_refuses_the_machines_of_its_issuer(registrar: Registrar, tmp_path: Path) -> None:
    _know_issuing(registrar, tmp_path)
    admin.add_revocation_lists(registrar.store, _list(tmp_path))
    registrar.clock.at += 30 * 86400
    with pytest.raises(RefusedError) as error:
        registrar.attest(ev.Machine())
    assert refusal(error) == ["ek.crl_expired"]


def test_list_that_no_known_authority_signed_is_not_kept(registrar: Registrar, tmp_path: Path) -> None:
    other = ev.Authority.make("Another")
    with pytest.raises(UsageError, match="no certificate of"):
        admin.add_revocation_lists(registrar.store, _list(tmp_path))
    _know_issuing(registrar, tmp_path)
    with pytest.raises(UsageError, match="is not signed by its key"):
        admin.add_revocation_lists(registrar.store, _list(tmp_path, signer=other))
    with registrar.store.read() as tx:
        assert tx.revocation_lists() == []


def test_list_is_added_on_the_command_line(registrar: Registrar, tmp_path: Path) -> None:
    _know_issuing(registrar, tmp_path)
    words = ["--json", "registrar", "trust", "add-crl", "--dir", str(registrar.directory.root)]
    done = CliRunner().invoke(root, [*words, str(_list(tmp_path, 1, 2))], catch_exceptions=False)
    (told,) = json.loads(done.stdout)
    assert (told["revoked"], told["new"], "has ended" in done.stderr) == (2, True, True)


def test_list_of_another_maker_changes_nothing(registrar: Registrar, tmp_path: Path) -> None:
    """Not even one that has ended."""
    file = tmp_path / "maker.pem"
    other = ev.Authority.make("Another maker")
    file.write_bytes(ev.pem(other.der))
    admin.add_trust(registrar.store, file, pin_all=False)
    admin.add_revocation_lists(registrar.store, _list(tmp_path, days=1, signer=other, issuer="Another maker"))
    registrar.clock.at += 86400
    assert registrar.attest(ev.Machine()).state is EnrolmentState.PENDING


def test_node_attests_again_and_keeps_its_history(registrar: Registrar) -> None:
    machine = ev.Machine()
    registrar.attest(machine)
    registrar.approve(machine)
    machine.reboot()
    outcome = registrar.attest(machine)
    assert outcome.state is EnrolmentState.INDUCTED
    assert outcome.node is not None
    shown = registrar.operators.node(caller(), machine.id)
    record = {name: value for name, value in shown.items() if name not in ("attestation", "addresses")}
    NodeRecord.parse(parse_json(json.dumps(record).encode(), "node"))
    history = shown["attestation"]["history"]
    assert [entry["boot_id"] for entry in history] == ["boot-1+", "boot-1"]
    assert [entry["reset_count"] for entry in history] == [2, 1]
    assert {entry["state"] for entry in history} == {"passed"}


def test_node_with_other_keys_fails_but_stays_a_node(registrar: Registrar) -> None:
    machine = ev.Machine()
    registrar.attest(machine)
    registrar.approve(machine)
    machine.reboot()
    machine.keys = replace(machine.keys, committee=ev.node_keys(2).committee)
    outcome = registrar.attest(machine)
    assert (outcome.state, outcome.node) == (EnrolmentState.REFUSED, None)
    assert codes(outcome) == ["identity.committee"]
    assert registrar.state(machine) == "inducted"
    shown = registrar.operators.node(caller(), machine.id)
    assert shown["attestation"]["state"] == "failed"
    machine.reboot()
    machine.keys = ev.node_keys()
    assert registrar.attest(machine).state is EnrolmentState.INDUCTED
    assert registrar.operators.node(caller(), machine.id)["attestation"]["state"] == "passed"


def test_what_is_watched_is_shown_to_the_operator(registrar: Registrar) -> None:
    machine = ev.Machine(memory_encryption="absent")
    outcome = registrar.attest(machine)
    assert (outcome.state, codes(outcome)) == (EnrolmentState.PENDING, ["fingerprint.memory_encryption"])
    details = registrar.operators.enrolment(caller(), machine.id)
    assert details["attestation"]["state"] == "watch"
    assert details["fingerprint"]["inventory"]["cpu"]["threads"] == 64


def test_machine_that_asks_twice_continues(registrar: Registrar) -> None:
    machine = ev.Machine()
    registrar.attest(machine)
    seen = registrar.digest(machine)
    registrar.service.request(machine.request().to_bytes())
    assert (registrar.state(machine), registrar.digest(machine)) == ("pending", seen)
    registrar.attest(machine)
    assert registrar.digest(machine) != seen
    assert len(registrar.operators.enrolments(caller(), None, "")["enrolments"]) == 1


def test_same_evidence_sent_again_gives_the_same_outcome(registrar: Registrar) -> None:
    machine = ev.Machine()
    challenge = registrar.service.request(machine.request().to_bytes())
    body = machine.answer(challenge).to_bytes()
    assert registrar.service.evidence(machine.id, body) == registrar.service.evidence(machine.id, body)
    assert registrar.events(machine) == ["requested", "recovery-escrowed", "evidence-accepted"]


def test_nonce_is_good_once(registrar: Registrar) -> None:
    machine = ev.Machine()
    challenge = registrar.service.request(machine.request().to_bytes())
    registrar.service.evidence(machine.id, machine.answer(challenge).to_bytes())
    with pytest.raises(ConflictError) as caught:
        registrar.service.evidence(machine.id, machine.answer(challenge).to_bytes())
    assert refusal(caught) == ["nonce.used"]


def test_nonce_expires(registrar: Registrar) -> None:
    machine = ev.Machine()
    challenge = registrar.service.request(machine.request().to_bytes())
    registrar.clock.at += challenge.seconds
    with pytest.raises(ConflictError) as caught:
        registrar.service.evidence(machine.id, machine.answer(challenge).to_bytes())
    assert refusal(caught) == ["nonce.expired"]


def test_session_of_another_machine_is_unknown(registrar: Registrar) -> None:
    one, two = ev.Machine(), ev.Machine(number=1, keys=ev.node_keys(2))
    challenge = registrar.service.request(one.request().to_bytes())
    registrar.service.request(two.request().to_bytes())
    with pytest.raises(NotFoundError):
        registrar.service.evidence(two.id, one.answer(challenge).to_bytes())


def test_unproven_evidence_leaves_the_machine_alone(registrar: Registrar) -> None:
    machine = ev.Machine()
    registrar.attest(machine)
    seen = registrar.digest(machine)
    challenge = registrar.service.request(machine.request().to_bytes())
    forged = replace(machine.answer(challenge), secret_proof=bytes(32))
    outcome = registrar.service.evidence(machine.id, forged.to_bytes())
    assert (outcome.state, codes(outcome)) == (EnrolmentState.REFUSED, ["credential.proof"])
    assert (registrar.state(machine), registrar.digest(machine)) == ("pending", seen)
    assert registrar.events(machine)[-1] == "evidence-unproven"
    assert registrar.attest(machine).state is EnrolmentState.PENDING


def test_evidence_that_fails_is_refused_and_better_evidence_heals(registrar: Registrar) -> None:
    machine = ev.Machine(release="9.9.9")
    assert codes(registrar.attest(machine)) == ["release.unknown"]
    assert registrar.state(machine) == "refused"
    with pytest.raises(RefusedError, match=r"enrolment\.state"):
        registrar.operators.approve(caller(), machine.id, b'{"evidence":"%s"}' % (b"0" * 64))
    machine.release = "1.0.0"
    assert registrar.attest(machine).state is EnrolmentState.PENDING


def test_clock_that_goes_backwards_across_sessions(registrar: Registrar) -> None:
    machine = ev.Machine(reset_count=5)
    registrar.attest(machine)
    machine.reset_count = 4
    assert codes(registrar.attest(machine)) == ["quote.reset_count"]


def test_refused_request_is_shown_to_the_operator_and_can_heal(registrar: Registrar) -> None:
    machine = ev.Machine()
    request = replace(machine.request(), ek_certificates=())
    for _ in range(2):
        with pytest.raises(RefusedError, match=r"ek\.no_certificate"):
            registrar.service.request(request.to_bytes())
    (listed,) = registrar.operators.enrolments(caller(), "refused", "")["enrolments"]
    assert [f["code"] for f in listed["findings"]] == ["ek.no_certificate"]
    assert registrar.events(machine) == ["request-refused"]
    assert registrar.attest(machine).state is EnrolmentState.PENDING
    with pytest.raises(RefusedError, match=r"ek\.no_certificate"):
        registrar.service.request(request.to_bytes())
    assert registrar.state(machine) == "pending"


def test_request_without_the_sites_signature_leaves_no_trace(registrar: Registrar) -> None:
    machine = ev.Machine()
    with pytest.raises(RefusedError, match=r"site\.signature"):
        registrar.service.request(replace(machine.request(), site_signature=bytes(64)).to_bytes())
    with pytest.raises(RefusedError, match=r"site\.unknown"):
        registrar.service.request(ev.Machine(site=ev.site(data_center="dc9")).request().to_bytes())
    assert registrar.state(machine) == "absent"


def test_half_a_surrogate_is_refused_at_the_edge(registrar: Registrar) -> None:
    document = ev.site(data_center="dcX").to_bytes().replace(b"dcX", b"\\ud800")
    with pytest.raises(UsageError, match="data_center: not Unicode text"):
        registrar.service.request(replace(ev.Machine().request(), site_document=document).to_bytes())


def test_machines_words_can_not_steer_a_terminal(registrar: Registrar) -> None:
    machine = ev.Machine(release="1.0.0\x1b[2J\rpassed")
    registrar.attest(machine)
    shown = describe(registrar.operators.enrolment(caller(), machine.id))
    assert "1.0.0?[2J?passed" in shown
    assert not set(shown) & {"\x1b", "\r"}


def test_registrar_needs_no_tpm_library_and_no_token() -> None:
    program = (
        "import sys\nfrom provisioning.registrar import admin, app, operators, server\n"
        "sys.exit(any(name in sys.modules for name in ('tpm2_pytss', 'pkcs11', 'wasmtime')))"
    )
    run([sys.executable, "-c", program], what="importing the registrar", cwd=Path(__file__).parents[2])


def test_one_tpm_has_one_name(registrar: Registrar) -> None:
    """The same endorsement key under another template is another name: it is refused once one is bound."""
    machine = ev.Machine()
    registrar.attest(machine)
    policy_b = bytes.fromhex("ca3d0a99a2b93906f7a3342414efcfb3a385d44cd1fd459089d19b5071c0b7a0")
    area = ev.rsa_public(machine.ek.public_key(), attributes=ev.EK_ATTRIBUTES | 0x40, policy=policy_b)
    with pytest.raises(ConflictError) as caught:
        registrar.service.request(replace(machine.request(), ek_public=area).to_bytes())
    assert refusal(caught) == ["ek.other_name"]


def test_two_machines_with_one_key(registrar: Registrar) -> None:
    one, two = ev.Machine(), ev.Machine(number=1)
    registrar.attest(one)
    registrar.attest(two)
    registrar.approve(one)
    with pytest.raises(ConflictError) as caught:
        registrar.approve(two)
    assert refusal(caught) == ["identity.duplicate"]
    assert registrar.state(two) == "pending"
    two.reboot()
    assert codes(registrar.attest(two)) == ["identity.duplicate"]


def test_approval_binds_what_was_seen(registrar: Registrar) -> None:
    machine = ev.Machine()
    registrar.attest(machine)
    body = json.dumps({"evidence": registrar.digest(machine)}).encode()
    machine.reboot()
    registrar.attest(machine)
    with pytest.raises(ConflictError) as caught:
        registrar.operators.approve(caller(), machine.id, body)
    assert refusal(caught) == ["approval.evidence"]
    assert registrar.state(machine) == "pending"


def test_approving_again_gives_the_same_node(registrar: Registrar) -> None:
    machine = ev.Machine()
    registrar.attest(machine)
    body = json.dumps({"evidence": registrar.digest(machine)}).encode()
    first = registrar.operators.approve(caller(), machine.id, body)
    assert registrar.operators.approve(caller(), machine.id, body)["node_id"] == first["node_id"]
    assert registrar.events(machine).count("approved") == 1


def test_rejected_machine_stays_rejected_until_the_operator_thinks_again(registrar: Registrar) -> None:
    machine = ev.Machine()
    registrar.attest(machine)
    registrar.operators.reject(caller(), machine.id, b'{"reason":"not ours"}')
    machine.reboot()
    assert registrar.attest(machine).state is EnrolmentState.REJECTED
    registrar.approve(machine)
    assert registrar.state(machine) == "inducted"
    with pytest.raises(RefusedError, match=r"enrolment\.state"):
        registrar.operators.reject(caller(), machine.id, b'{"reason":""}')


def test_operator_sees_and_moves_only_its_own(registrar: Registrar) -> None:
    machine = ev.Machine()
    registrar.attest(machine)
    admin.add_center(registrar.store, center("dc2", OTHER))
    stranger = caller(OTHER)
    digest = registrar.digest(machine)
    assert registrar.operators.enrolments(stranger, None, "")["enrolments"] == []
    with pytest.raises(NotFoundError):
        registrar.operators.enrolment(stranger, machine.id)
    with pytest.raises(NotFoundError):
        registrar.operators.approve(stranger, machine.id, f'{{"evidence":"{digest}"}}'.encode())
    with pytest.raises(NotFoundError):
        registrar.operators.reject(stranger, machine.id, b'{"reason":""}')
    registrar.approve(machine)
    assert registrar.operators.nodes(stranger, "")["nodes"] == []
    with pytest.raises(NotFoundError):
        registrar.operators.node(stranger, machine.id)
    assert len(registrar.operators.nodes(caller(), "")["nodes"]) == 1


def test_site_of_another_operator_is_refused(registrar: Registrar) -> None:
    admin.add_center(registrar.store, center("dc2", OTHER))
    with pytest.raises(RefusedError, match=r"site\.operator"):
        registrar.service.request(ev.Machine(site=ev.site(data_center="dc2")).request().to_bytes())


def test_machine_that_moves(registrar: Registrar) -> None:
    """Before induction a machine may come to another data centre; a node may not."""
    admin.add_center(registrar.store, center("dc2", OTHER))
    theirs = ev.site(data_center="dc2", operator=Principal.self_authenticating(OTHER))
    machine = ev.Machine()
    registrar.attest(machine)
    machine.reboot()
    machine.site = theirs
    assert registrar.attest(machine).state is EnrolmentState.PENDING
    with pytest.raises(NotFoundError):
        registrar.operators.enrolment(caller(), machine.id)
    machine.reboot()
    machine.site = ev.site()
    registrar.attest(machine)
    registrar.approve(machine)
    machine.reboot()
    machine.site = theirs
    assert codes(registrar.attest(machine)) == ["identity.data_center"]


def test_operators_nonce_is_good_once_and_strangers_are_refused(registrar: Registrar) -> None:
    here = registrar.service.settings.registrar
    asked = Asked(registrar=here, method="GET", path="/x", body=b"")
    elsewhere = replace(asked, registrar="0" * 64)
    headers = operator_auth.sign(FileSigner(ev.OPERATOR), asked, registrar.clock.at)
    registrar.operators.authenticate(headers, "GET", "/x", b"")
    with pytest.raises(RefusedError, match=r"operator\.replay"):
        registrar.operators.authenticate(headers, "GET", "/x", b"")

    headers = operator_auth.sign(FileSigner(ev.OPERATOR), elsewhere, registrar.clock.at)
    with pytest.raises(RefusedError, match=r"operator\.signature"):
        registrar.operators.authenticate(headers, "GET", "/x", b"")

    stranger = FileSigner(ed25519.Ed25519PrivateKey.generate())
    headers = operator_auth.sign(stranger, asked, registrar.clock.at)
    with pytest.raises(RefusedError, match=r"operator\.unknown"):
        registrar.operators.authenticate(headers, "GET", "/x", b"")


def test_polls(registrar: Registrar) -> None:
    machine = ev.Machine()
    challenge = registrar.service.request(machine.request().to_bytes())
    secret = machine.secret(challenge)
    with pytest.raises(ConflictError, match=r"poll\.early"):
        registrar.service.poll(machine.id, poll(challenge.session, secret, 0))
    registrar.service.evidence(machine.id, machine.answer(challenge).to_bytes())
    registrar.service.poll(machine.id, poll(challenge.session, secret, 5))
    for counter in (5, 4):
        with pytest.raises(ConflictError, match=r"poll\.counter"):
            registrar.service.poll(machine.id, poll(challenge.session, secret, counter))
    with pytest.raises(RefusedError, match=r"poll\.proof"):
        registrar.service.poll(machine.id, poll(challenge.session, bytes(32), 6))
    registrar.clock.at += 8 * 86400
    with pytest.raises(ConflictError, match=r"nonce\.expired"):
        registrar.service.poll(machine.id, poll(challenge.session, secret, 6))


def test_newer_evidence_ends_older_sessions(registrar: Registrar) -> None:
    machine = ev.Machine()
    challenge = registrar.service.request(machine.request().to_bytes())
    registrar.service.evidence(machine.id, machine.answer(challenge).to_bytes())
    machine.reboot()
    registrar.attest(machine)
    with pytest.raises(NotFoundError, match="no such session"):
        registrar.service.poll(machine.id, poll(challenge.session, machine.secret(challenge), 0))


def test_open_challenges_are_bounded_and_expire(registrar: Registrar) -> None:
    machine = ev.Machine()
    body = machine.request().to_bytes()
    for _ in range(MAX_OPEN_SESSIONS):
        registrar.service.request(body)
    with pytest.raises(BusyError, match="too many open challenges"):
        registrar.service.request(body)
    registrar.clock.at += 601
    registrar.service.request(body)
    with registrar.store.read() as tx:
        assert tx.count_open_sessions(machine.id, registrar.clock.at) == 1


def test_withdrawn_release_is_refused(registrar: Registrar) -> None:
    admin.withdraw_release(registrar.store, "1.0.0")
    assert codes(registrar.attest(ev.Machine())) == ["release.unknown"]


def test_approved_evidence_is_kept_and_the_rest_is_bounded(registrar: Registrar) -> None:
    machine = ev.Machine()
    registrar.attest(machine)
    approved = registrar.digest(machine)
    registrar.approve(machine)
    for _ in range(KEPT_EVIDENCE + 3):
        machine.reboot()
        registrar.attest(machine)
    with registrar.store.read() as tx:
        assert tx.evidence(approved) is not None
    with closing(sqlite3.connect(registrar.directory.database)) as connection:
        (count,) = connection.execute("SELECT count(*) FROM evidence").fetchone()
    assert count <= KEPT_EVIDENCE + 1


def test_many_at_once_lose_and_double_nothing(registrar: Registrar) -> None:
    machine = ev.Machine()
    challenges = [registrar.service.request(machine.request().to_bytes()) for _ in range(6)]
    bodies = [machine.answer(challenge).to_bytes() for challenge in challenges]
    outcomes: list[object] = []

    def send(body: bytes) -> None:
        try:
            outcomes.append(registrar.service.evidence(machine.id, body).state)
        except BusyError:
            outcomes.append("busy")

    threads = [threading.Thread(target=send, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    accepted = [o for o in outcomes if o != "busy"]
    assert accepted
    assert set(accepted) == {EnrolmentState.PENDING}
    assert registrar.events(machine).count("evidence-accepted") == len(accepted)


def test_locked_database_is_busy_and_changes_nothing(
    registrar: Registrar, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "BUSY_SECONDS", 0)
    second = Store(registrar.directory.database)
    machine = ev.Machine()
    with registrar.store.write(), pytest.raises(BusyError), second.write():
        pass
    second.close()
    assert registrar.attest(machine).state is EnrolmentState.PENDING


def test_failed_transaction_leaves_nothing(registrar: Registrar) -> None:
    with pytest.raises(ZeroDivisionError), registrar.store.write() as tx:
        tx.add_center(center("dc7"))
        raise ZeroDivisionError
    with registrar.store.read() as tx:
        assert tx.center("dc7") is None


def test_audit_rows_are_never_changed_or_deleted(registrar: Registrar) -> None:
    connection = sqlite3.connect(registrar.directory.database)
    for statement in ("DELETE FROM audit", "UPDATE audit SET actor = 'x'"):
        with pytest.raises(sqlite3.IntegrityError, match="never"):
            connection.execute(statement)
    connection.close()


def test_migrations_run_once_and_a_newer_database_is_refused(registrar: Registrar) -> None:
    connection = sqlite3.connect(registrar.directory.database, isolation_level=None)
    assert schema.migrate(connection) == 0
    (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
    assert mode == "wal"
    connection.execute(f"PRAGMA user_version = {len(schema.MIGRATIONS) + 1}")
    with pytest.raises(UsageError, match="update nodeos"):
        schema.migrate(connection)
    connection.close()


def test_directory_is_never_overwritten(registrar: Registrar) -> None:
    before = registrar.directory.ca.read_bytes()
    with pytest.raises(UsageError, match="is there already"):
        registrar.directory.make(["localhost"])
    assert registrar.directory.ca.read_bytes() == before
    for secret in (registrar.directory.ca_key, registrar.directory.tls_key, registrar.directory.database):
        assert secret.stat().st_mode & 0o077 == 0


def test_directory_needs_proper_names(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="neither an IP address nor a host name"):
        Directory(tmp_path / "r").make(["https://x"])
    assert not (tmp_path / "r").exists()


def test_settings_are_strict(registrar: Registrar) -> None:
    registrar.directory.config.write_text("nonce_seconds = 600\nrequest_seconds = 30\nodd = 1\n")
    with pytest.raises(UsageError, match="unknown field: odd"):
        registrar.directory.settings()


def test_administrators_mistakes(registrar: Registrar, tmp_path: Path) -> None:
    debug, leaf = tmp_path / "debug.json", tmp_path / "leaf.pem"
    keys = [ev.write_release(debug, ev.release("2.0.0", Variant.DEBUG))]
    with pytest.raises(UsageError, match="debug image"):
        admin.add_release(registrar.store, debug, release_keys=keys, allow_debug=False)
    admin.add_release(registrar.store, debug, release_keys=keys, allow_debug=True)
    ev.write_release(debug, replace(ev.release("2.0.0", Variant.DEBUG), root_hash=b"\x01" * 32))
    with pytest.raises(UsageError, match="there already"):
        admin.add_release(registrar.store, debug, release_keys=keys, allow_debug=True)
    leaf.write_bytes(ev.pem(ev.issuing().issue(ev.rsa_key().public_key())))
    with pytest.raises(UsageError, match="is no authority"):
        admin.add_trust(registrar.store, leaf, pin_all=False)
    with pytest.raises(UsageError, match="there already"):
        admin.add_center(registrar.store, center())
    with pytest.raises(UsageError, match="can't have the reward type"):
        admin.add_center(registrar.store, replace(center("dc3"), node_reward_type="type3"))


def test_intermediate_is_not_pinned_unless_told(registrar: Registrar, tmp_path: Path) -> None:
    file = tmp_path / "issuing.pem"
    file.write_bytes(ev.pem(ev.issuing().der))
    assert [a.row.kind for a in admin.add_trust(registrar.store, file, pin_all=False)] == ["intermediate"]
    (again,) = admin.add_trust(registrar.store, file, pin_all=False)
    assert not again.new


def test_operator_keys_in_every_form(tmp_path: Path) -> None:
    der = ev.spki(ev.OPERATOR)
    pem = ev.OPERATOR.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    for name, data in (("key.der", der), ("key.pem", pem)):
        (tmp_path / name).write_bytes(data)
        assert admin.read_operator_key(tmp_path / name) == der
    assert admin.read_operator_key(write_identity(tmp_path)) == der
    token = tmp_path / "token.json"
    identity = {"kind": "pkcs11", "module": "m", "token": "t", "key": "k", "public_key": b64(der)}
    token.write_text(json.dumps(identity))
    assert admin.read_operator_key(token) == der
    for wrong in (b"x", b"{}", b'{"public_key":"AAAA"}', b"[]"):
        token.write_bytes(wrong)
        with pytest.raises(UsageError):
            admin.read_operator_key(token)


def test_only_signed_releases_are_accepted(registrar: Registrar, tmp_path: Path) -> None:
    manifest = tmp_path / "two.json"
    key = ev.write_release(manifest, ev.release("2.0.0"))
    signature = manifest.with_name("release.sig")

    def add(keys: Sequence[Path]) -> None:
        admin.add_release(registrar.store, manifest, release_keys=keys, allow_debug=False)

    with pytest.raises(RefusedError, match=r"release\.unsigned"):
        add([])
    other = tmp_path / "other.pem"
    other.write_bytes(ev.site_key_pem())
    with pytest.raises(RefusedError, match=r"release\.unsigned"):
        add([other])
    manifest.write_bytes(ev.release("2.0.1").to_bytes())
    with pytest.raises(RefusedError, match=r"release\.signature"):
        add([key])
    signed = signature.read_bytes()
    signature.unlink()
    with pytest.raises(UsageError, match="release signature"):
        add([key])
    key.write_bytes(b"no key")
    with pytest.raises(UsageError, match="not public keys"):
        add([key])
    with registrar.store.read() as tx:
        assert [row.version for row in tx.releases()] == ["1.0.0"]
    manifest.write_bytes(ev.release("2.0.0").to_bytes())
    (tmp_path / "elsewhere").write_bytes(signed)
    both = tmp_path / "both.pem"
    ev.write_release(tmp_path / "scratch.json", ev.release())
    both.write_bytes(ev.site_key_pem() + (tmp_path / "release.pub.pem").read_bytes())
    admin.add_release(
        registrar.store, manifest, signature=tmp_path / "elsewhere", release_keys=[both], allow_debug=False
    )


def test_releases_that_were_accepted_unsigned_are_forgotten(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "old.db", isolation_level=None)) as connection:
        schema._first(connection)
        connection.execute("PRAGMA user_version = 1")
        connection.execute("INSERT INTO release VALUES ('1.0.0', x'00', 0, NULL)")
        assert schema.migrate(connection) == len(schema.MIGRATIONS) - 1
        assert connection.execute("SELECT count(*) FROM release").fetchone() == (0,)
