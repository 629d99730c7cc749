"""``nodeos attest snp`` and ``nodeos attest ek-cert``: what they say, and their exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from nodeos.cli import main
from provisioning.verify.der import parse_certificate
from tests.support import evidence as ev
from tests.support.vectors import vectors

Run = tuple[int, str, str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*words: str | Path) -> Run:
        with pytest.raises(SystemExit) as caught:
            main(["attest", *map(str, words)])
        done = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, done.out, done.err

    return call


def real(name: str) -> Path:
    return vectors("snp") / name


MILAN = ("--vcek", real("milan-vcek.der"), "--chain", real("milan-chain.pem"), "--at", "2026-06-01")
DATA = (
    "d447b55d197491bfe15cf298f9de9986b7a7c4be2468b4f6e2d53b71d7c64581"
    "0b0f2cdfca0040433be063fc1a8293f0f3f8dae7b79fecb3d1cd82bd6a93ebfd"
)


def test_real_report_is_good(run: Any) -> None:
    code, out, _ = run("snp", real("milan-report.hex"), *MILAN, "--report-data", DATA)
    assert code == 0
    assert "reported TCB: bootloader 3, tee 0, snp 8, microcode 115" in out
    assert out.rstrip().endswith("passed, grade chip-signed")


def test_binary_report_is_read_too(run: Any, tmp_path: Path) -> None:
    report = tmp_path / "report.bin"
    report.write_bytes(bytes.fromhex(real("milan-report.hex").read_text("ascii")))
    code, out, _ = run("--json", "snp", report, *MILAN)
    told = json.loads(out)
    assert (code, told["result"], told["grade"], told["generation"]) == (0, "watch", "chip-signed", "milan")
    assert [f["code"] for f in told["findings"]] == ["snp.unbound"]
    assert told["report"]["report_data"] == DATA
    assert [c["revocation_checked"] for c in told["path"]] == [False] * 3


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--deny", "milan"), "snp.denied"),
        (("--report-data", "00"), "snp.report_data"),
        (("--min-tcb", "microcode=116"), "snp.minimal_tcb"),
        (("--require-tsme",), "snp.tsme"),
        (("--at", "2031-01-01"), "snp.expired"),
        (("--chain", real("turin-chain.pem")), "snp.chain"),
    ],
)
def test_refused_report_ends_with_3(run: Any, words: tuple[str, ...], code: str) -> None:
    status, out, _ = run("--json", "snp", real("milan-report.hex"), *MILAN, *words)
    told = json.loads(out)
    assert (status, told["result"], told["grade"]) == (3, "refused", "unknown")
    assert code in [f["code"] for f in told["findings"]]


def test_policy_that_is_met_does_not_refuse(run: Any) -> None:
    words = ("--deny", "genoa", "--min-tcb", "microcode=115", "--min-tcb", "snp=8", "--report-data", DATA)
    assert run("snp", real("milan-report.hex"), *MILAN, *words)[0] == 0


def test_revocation_list_is_used(run: Any, tmp_path: Path) -> None:
    listed = tmp_path / "list.crl"
    listed.write_bytes(_list("ARK-Milan"))
    status, out, _ = run("snp", real("milan-report.hex"), *MILAN, "--crl", listed)
    assert status == 3
    assert "snp.crl_unrelated" in out


@pytest.mark.parametrize("words", [("--report-data", "zz"), ("--report-data", "00" * 65), ("--min-tcb", "x=1"),
                                   ("--min-tcb", "snp=256"), ("--deny", "rome"), ("--at", "soon")])  # fmt: skip
def test_wrong_words_are_usage_errors(run: Any, words: tuple[str, ...]) -> None:
    assert run("snp", real("milan-report.hex"), *MILAN, *words)[0] == 2


def test_what_can_not_be_read_ends_with_1(run: Any, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    report = real("milan-report.hex")
    for words in (
        ("snp", empty, *MILAN),
        ("snp", tmp_path / "absent", *MILAN),
        ("snp", report, *MILAN, "--vcek", empty),
        ("snp", report, *MILAN, "--chain", empty),
        ("snp", report, *MILAN, "--crl", empty),
        ("ek-cert", empty),
        ("ek-cert", tmp_path / "absent"),
        ("ek-cert", tmp_path),
        ("ek-cert", real("milan-vcek.der"), "--roots", tmp_path),
        ("ek-cert", real("milan-vcek.der"), "--roots", tmp_path / "absent"),
    ):
        status, out, err = run(*words)
        assert (status, out) == (1, ""), words
        assert "error: " in err


# --- endorsement certificates


def _list(issuer: str, *serials: int) -> bytes:
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ev.name(issuer))
        .last_update(ev.later(50))
        .next_update(ev.later(150))
    )
    for serial in serials:
        item = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(ev.later(60)).build()
        builder = builder.add_revoked_certificate(item)
    return builder.sign(ev.issuing().key, hashes.SHA256()).public_bytes(Encoding.DER)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Roots and an authority, as DER, beside a file that is no certificate."""
    where = tmp_path / "roots"
    where.mkdir()
    (where / "maker.der").write_bytes(ev.root().der)
    (where / "issuing.crt").write_bytes(ev.issuing().der)
    (where / "broken.pem").write_bytes(b"-----BEGIN CERTIFICATE-----\n")
    (where / "more.pem").write_bytes(
        b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"
        + ev.pem(ev.Authority.make("Another").der)
    )
    (where / "readme.txt").write_bytes(b"not read")
    return where


@pytest.fixture
def ek(tmp_path: Path) -> Path:
    path = tmp_path / "ek.der"
    path.write_bytes(ev.issuing().issue(ev.rsa_key().public_key()) + b"\xff" * 40)
    return path


AT = ("--at", f"{ev.later(100):%Y-%m-%dT%H:%M:%SZ}")


def test_good_certificate(run: Any, folder: Path, ek: Path) -> None:
    status, out, err = run("ek-cert", ek, "--roots", folder, *AT)
    assert status == 0
    assert "TPM   manufacturer id:54455354, model synthetic, version id:00010002" in out
    assert out.rstrip().endswith("passed")
    assert "left out: " in err
    assert "broken.pem" in err
    assert "more.pem: certificate 0" in err
    assert err.count("left out") == 2


def test_names_from_certificates_can_not_move_the_cursor(run: Any, tmp_path: Path) -> None:
    odd = tmp_path / "odd.der"
    odd.write_bytes(ev.issuing().issue(ev.rsa_key().public_key(), subject="\x1b[2J\npassed"))
    out = run("ek-cert", odd, *AT)[1]
    assert "\x1b" not in out
    assert out.splitlines().count("refused") == 1
    assert "passed" not in out.splitlines()


def test_good_certificate_as_json(run: Any, folder: Path, ek: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.crl"
    listed.write_bytes(_list(ev.issuing().subject, 7))
    status, out, _ = run("ek-cert", ek, "--roots", folder, *AT, "--crl", listed, "--json")
    told = json.loads(out)
    assert (status, told["result"], told["findings"], told["rooted"]) == (0, "passed", [], True)
    assert told["tpm"] == {"manufacturer": "id:54455354", "model": "synthetic", "version": "id:00010002"}
    assert told["usages"] == ["2.23.133.8.1"]
    assert [c["revocation_checked"] for c in told["path"]] == [True, False, False]


def test_revoked_certificate_is_refused(run: Any, folder: Path, ek: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.crl"
    listed.write_bytes(_list(ev.issuing().subject, parse_certificate(ek.read_bytes()).serial))
    status, out, _ = run("ek-cert", ek, "--roots", folder, *AT, "--crl", listed)
    assert status == 3
    assert "✗ ek.revoked" in out


def test_without_roots_nothing_is_trusted(run: Any, ek: Path) -> None:
    status, out, err = run("ek-cert", ek, *AT)
    assert status == 3
    assert "ek.untrusted" in out
    assert "no --roots given" in err


def test_intermediate_is_trusted_only_in_a_file_of_roots(run: Any, ek: Path, tmp_path: Path) -> None:
    pinned = tmp_path / "pinned"
    pinned.mkdir()
    (pinned / "maker.der").write_bytes(ev.Authority.make("Another").der)
    (pinned / "issuing.crt").write_bytes(ev.issuing().der)
    assert run("ek-cert", ek, "--roots", pinned, *AT)[0] == 3
    (pinned / "issuing.crt").rename(pinned / "root-issuing.crt")
    assert run("ek-cert", ek, "--roots", pinned, *AT)[0] == 0


def test_real_collection_is_read_whole(run: Any) -> None:
    """A VCEK is no endorsement certificate, and says why; all of the collection is read without a word."""
    status, out, err = run("ek-cert", real("milan-vcek.der"), "--roots", vectors("ek-roots"), *AT)
    assert status == 3
    assert {"ek.untrusted", "ek.san"} <= {
        line[2:].partition(":")[0] for line in out.splitlines() if "✗" in line
    }
    assert err == ""
