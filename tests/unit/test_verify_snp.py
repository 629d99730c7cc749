"""SEV-SNP reports: real ones hold, every check broken alone refuses with its own code, and nothing slips by."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeos.core.wire import ParseError
from provisioning.verify import snp
from provisioning.verify.der import Certificate, parse_certificate, parse_certificates
from provisioning.verify.findings import Result
from provisioning.verify.snp import Grade, RefusedReport, SnpAssessment, SnpPolicy, verify_report
from provisioning.verify.snp_report import Cpu, Generation, SigningKey, Tcb, parse_report, read_tcb
from tests.support import amd
from tests.support.vectors import vectors

MILAN, GENOA, TURIN = Generation.MILAN, Generation.GENOA, Generation.TURIN
REAL_AT = datetime(2026, 6, 1, tzinfo=UTC)


def real(name: str) -> tuple[Certificate, ...]:
    return tuple(parse_certificates((vectors("snp") / name).read_bytes(), name))


def real_report() -> bytes:
    return bytes.fromhex((vectors("snp") / "milan-report.hex").read_text("ascii"))


def judge_real(
    data: bytes, vcek: str = "milan-vcek.der", chain: str = "milan-chain.pem", **changes: Any
) -> SnpAssessment:
    given: dict[str, Any] = {"report_data": data[0x50:0x90], "at": REAL_AT, "policy": SnpPolicy()}
    return verify_report(parse_report(data), real(vcek)[0], real(chain), **(given | changes))


def refused_real(*words: Any, **changes: Any) -> set[str]:
    with pytest.raises(RefusedReport) as caught:
        judge_real(*words, **changes)
    assert caught.value.assessment.grade is Grade.UNKNOWN
    return {f.code for f in caught.value.findings}


def test_real_report_of_milan_is_chip_signed() -> None:
    done = judge_real(real_report())
    assert (done.grade, done.generation, done.verdict.result) == (Grade.CHIP_SIGNED, MILAN, Result.PASSED)
    report = done.report
    assert (report.version, report.signing_key, report.cpu, report.tsme) == (2, SigningKey.VCEK, None, False)
    tcb, clean = read_tcb(report.reported_tcb, MILAN)
    assert clean
    assert str(tcb) == "bootloader 3, tee 0, snp 8, microcode 115"
    assert report.firmware == ("1.52.4", "1.52.4")
    assert [c.subject_text.rpartition(", ")[2] for c in done.path] == ["SEV-VCEK", "SEV-Milan", "ARK-Milan"]


def test_memory_that_is_not_encrypted_is_refused_where_it_must_be() -> None:
    assert refused_real(real_report(), policy=SnpPolicy(require_tsme=True)) == {"snp.tsme"}


@pytest.mark.parametrize("offset", range(0x00, 0x2A0, 3))
def test_altered_real_report_is_refused(offset: int) -> None:
    data = bytearray(real_report())
    data[offset] ^= 0x01
    try:
        assert "snp.signature" in refused_real(bytes(data))
    except ParseError as error:
        assert offset < 4, error  # another version


@pytest.mark.parametrize("offset", [0x2A0, 0x2CF, 0x2D0, 0x2E8, 0x317, 0x318, 0x330, 0x49F])
def test_altered_real_signature_is_refused(offset: int) -> None:
    data = bytearray(real_report())
    data[offset] ^= 0x01
    assert refused_real(bytes(data)) <= {"snp.signature", "snp.reserved"}


@pytest.mark.parametrize(
    ("at", "code"),
    [
        (datetime(2023, 4, 3, tzinfo=UTC), "snp.not_yet_valid"),
        (datetime(2030, 4, 4, tzinfo=UTC), "snp.expired"),
    ],
)
def test_real_chain_outside_its_dates_is_refused(at: datetime, code: str) -> None:
    assert refused_real(real_report(), at=at) == {code}


@pytest.mark.parametrize("chain", ["ask_ark_genoa.pem", "turin-chain.pem", "ask_ark_milan_vlek.pem"])
def test_real_chain_of_another_generation_or_kind_is_refused(chain: str) -> None:
    assert refused_real(real_report(), "milan-vcek.der", chain) == {"snp.chain"}


def test_real_certificate_of_another_chip_is_refused() -> None:
    """Turin's VCEK with Turin's own chain holds as a path; the report of Milan is not its chip's."""
    codes = refused_real(real_report(), "turin-vcek.der", "turin-chain.pem")
    assert codes == {"snp.signature", "snp.reserved", "snp.tcb", "snp.chip_id"}


def test_altered_real_certificates_are_refused() -> None:
    leaf, (ask, ark) = real("milan-vcek.der")[0], real("milan-chain.pem")
    parsed = parse_report(real_report())
    for which in range(3):
        path = [leaf, ask, ark]
        der = bytearray(path[which].der)
        der[-1] ^= 1  # the last byte of its signature
        path[which] = parse_certificate(bytes(der))
        with pytest.raises(RefusedReport) as caught:
            verify_report(
                parsed, path[0], path[1:], report_data=parsed.report_data, at=REAL_AT, policy=SnpPolicy()
            )
        code = "snp.untrusted" if which == 2 else "snp.signature_chain"
        assert {f.code for f in caught.value.findings} == {code}


def test_every_real_root_is_pinned() -> None:
    pinned = snp.load_roots()
    assert sorted(pinned.values()) == [GENOA, MILAN, TURIN]
    for name, generation in (
        ("milan-chain.pem", MILAN),
        ("ask_ark_milan_vlek.pem", MILAN),
        ("ask_ark_genoa.pem", GENOA),
        ("ask_ark_turin_vcek.pem", TURIN),
        ("turin-chain.pem", TURIN),
    ):
        ask, ark = real(name)
        amd_root = hashlib.sha256(ark.der).digest()
        assert pinned[amd_root] is generation
        assert snp._unsigned(ask, ark) == []


def test_real_turin_certificate_leads_to_its_root_and_names_its_firmware() -> None:
    leaf, chain = real("turin-vcek.der")[0], real("turin-chain.pem")
    found: list[Any] = []
    path, generation = snp._path(leaf, chain, snp.load_roots(), found)
    assert (len(path), generation, found) == (3, TURIN, [])
    assert snp._certified(leaf, TURIN) == Tcb(fmc=0, bootloader=0, tee=0, snp=0, microcode=9)


# --- made chips: each check alone


def judge(
    chip: amd.Chip | None = None,
    data: bytes | None = None,
    *,
    chain: tuple[amd.Authority, ...] | None = None,
    roots: dict[bytes, Generation] | None = None,
    **changes: Any,
) -> SnpAssessment:
    of = chip or amd.chip()
    own = chain if chain is not None else (amd.ask(of.generation, vlek=of.vlek), amd.ark(of.generation))
    given: dict[str, Any] = {
        "report_data": amd.REPORT_DATA,
        "at": amd.AT,
        "policy": SnpPolicy(),
        "roots": {amd.ark(g).digest: g for g in Generation} if roots is None else roots,
    }
    return verify_report(
        parse_report(amd.report(of) if data is None else data),
        parse_certificate(of.der),
        [parse_certificate(a.der) for a in own],
        **(given | changes),
    )


def codes(*words: Any, **changes: Any) -> list[str]:
    with pytest.raises(RefusedReport) as caught:
        judge(*words, **changes)
    assert caught.value.assessment.grade is Grade.UNKNOWN
    assert all(f.message for f in caught.value.findings)
    return [f.code for f in caught.value.findings]


def altered(
    at: dict[int, bytes], chip: amd.Chip | None = None, version: int = 5, **changes: Any
) -> list[str]:
    """The codes of a report that the chip itself signed with these bytes in it."""
    of = chip or amd.chip()
    return codes(of, amd.report(of, version=version, at=at), **changes)


@pytest.mark.parametrize("generation", list(Generation))
@pytest.mark.parametrize("version", [2, 3, 4, 5])
@pytest.mark.parametrize("vlek", [False, True])
def test_every_version_generation_and_key_is_accepted(
    generation: Generation, version: int, vlek: bool
) -> None:
    chip = amd.chip(generation, vlek=vlek)
    done = judge(chip, amd.report(chip, version=version))
    assert (done.grade, done.generation, done.verdict.findings) == (Grade.CHIP_SIGNED, generation, ())
    assert done.report.signing_key is (SigningKey.VLEK if vlek else SigningKey.VCEK)
    assert done.report.tsme
    assert (done.report.cpu is None) == (version == 2)
    assert done.report.mitigations == ((1, 3) if version == 5 else None)
    tcb = done.report.to_json(generation)["tcb"]["reported"]
    assert (tcb["snp"], tcb.get("fmc")) == (22, 1 if generation is TURIN else None)


def test_hardware_id_in_an_octet_string_is_accepted() -> None:
    chip = amd.chip(extra={"4": b"\x04\x40" + amd.CHIP})
    assert judge(chip).grade is Grade.CHIP_SIGNED


def test_report_without_a_question_is_watched() -> None:
    done = judge(report_data=None)
    assert done.verdict.result is Result.WATCH
    assert [f.code for f in done.watch] == ["snp.unbound"]


def _ask(**changes: Any) -> tuple[amd.Chip, tuple[amd.Authority, ...]]:
    """A chip below an authority that is changed."""
    odd = amd.authority(changes.pop("common", "SEV-Milan"), amd.ark(MILAN), **changes)
    return amd.chip(issuer=odd), (odd, amd.ark(MILAN))


def below_ask(**changes: Any) -> list[str]:
    chip, chain = _ask(**changes)
    return codes(chip, chain=chain)


def below_ark(**changes: Any) -> list[str]:
    root = amd.authority("ARK-Milan", **changes)
    odd = amd.authority("SEV-Milan", root)
    return codes(amd.chip(issuer=odd), chain=(odd, root), roots={root.digest: MILAN})


def with_extension(
    number: str, value: bytes | None, generation: Generation = MILAN, **changes: Any
) -> list[str]:
    return codes(amd.chip(generation, extra={number: value}, **changes))


def least(**levels: int) -> SnpPolicy:
    lowest = {"bootloader": 0, "tee": 0, "snp": 0, "microcode": 0, "fmc": 0} | levels
    return SnpPolicy(least={g: Tcb(**lowest) for g in Generation})


def flipped(data: bytes, offset: int) -> bytes:
    return data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :]


def signed_then_flipped(offset: int) -> list[str]:
    chip = amd.chip()
    return codes(chip, flipped(amd.report(chip), offset))


CASES: dict[str, tuple[str, Callable[[], list[str]]]] = {
    "authority missing": ("snp.chain", lambda: codes(chain=(amd.ark(MILAN),))),
    "root missing": ("snp.chain", lambda: codes(chain=(amd.ask(MILAN),))),
    "no chain": ("snp.chain", lambda: codes(chain=())),
    "chain of another generation": (
        "snp.chain",
        lambda: codes(chain=(amd.ask(GENOA), amd.ark(GENOA))),
    ),
    "root not pinned": ("snp.untrusted", lambda: codes(roots={bytes(32): MILAN})),
    "nothing pinned": ("snp.untrusted", lambda: codes(roots={})),
    "authority signed by another key": (
        "snp.signature_chain",
        lambda: below_ask(signer=amd.rsa_key(2)),
    ),
    "authority with PKCS #1 v1.5": ("snp.signature_chain", lambda: below_ask(pss=False)),
    "authority with SHA-256": ("snp.signature_chain", lambda: below_ask(algorithm=hashes.SHA256())),
    "authority with a short key": ("snp.signature_chain", lambda: below_ask(key=amd.rsa_key(3, 2048))),
    "certificate ended": ("snp.expired", lambda: codes(amd.chip(end=amd.BEFORE))),
    "certificate not begun": (
        "snp.not_yet_valid",
        lambda: codes(amd.chip(start=amd.AFTER)),
    ),
    "authority ended": ("snp.expired", lambda: below_ask(end=amd.BEFORE)),
    "root ended": ("snp.expired", lambda: below_ark(end=amd.BEFORE)),
    "authority without the CA flag": ("snp.not_a_ca", lambda: below_ask(ca=False)),
    "authority that may not sign": ("snp.key_usage", lambda: below_ask(sign_usage=False)),
    "root allows no authority": ("snp.path_length", lambda: below_ark(path_length=0)),
    "critical extension": ("snp.critical_extension", lambda: codes(amd.chip(critical=True))),
    "authority of the other kind": ("snp.authority", lambda: below_ask(common="SEV-VLEK-Milan")),
    "authority of a strange name": ("snp.authority", lambda: below_ask(common="SEV-Genoa")),
    "certificate with a CA flag": ("snp.is_a_ca", lambda: codes(amd.chip(ca=True))),
    "certificate of the other kind": ("snp.signing_key", lambda: codes(amd.chip(common="SEV-VLEK"))),
    "key on another curve": ("snp.key", lambda: codes(amd.chip(curve=ec.SECP256R1()))),
    "report altered": ("snp.signature", lambda: signed_then_flipped(0xC1)),
    "signature altered": ("snp.signature", lambda: signed_then_flipped(0x2A5)),
    "signature by another chip": (
        "snp.signature",
        lambda: codes(amd.chip(), amd.report(amd.chip())),
    ),
    "signature of zeroes": (
        "snp.signature",
        lambda: codes(amd.chip(), amd.report(amd.chip())[:0x2A0] + bytes(512)),
    ),
    "bytes after the signature": ("snp.reserved", lambda: signed_then_flipped(0x330)),
    "reserved bytes": ("snp.reserved", lambda: altered({0x4C: b"\1"})),
    "reserved bytes that later versions use": (
        "snp.reserved",
        lambda: altered({0x1F8: b"\1"}, version=4),
    ),
    "processor in version 2": ("snp.reserved", lambda: altered({0x188: b"\x19"}, version=2)),
    "reserved policy bit": ("snp.reserved", lambda: altered({0x0B: b"\x04"})),
    "policy without its fixed bit": ("snp.reserved", lambda: altered({0x0A: b"\x01"})),
    "reserved key information": ("snp.reserved", lambda: altered({0x48: b"\x20"})),
    "reserved TCB bytes": ("snp.reserved", lambda: altered({0x183: b"\1"})),
    "unknown algorithm": ("snp.algorithm", lambda: altered({0x34: b"\2"})),
    "signature left out": ("snp.unsigned", lambda: altered({0x48: b"\2"})),
    "signed by nobody": ("snp.signing_key", lambda: altered({0x48: bytes([7 << 2])})),
    "reserved signing key": ("snp.signing_key", lambda: altered({0x48: bytes([2 << 2])})),
    "generation denied": ("snp.denied", lambda: codes(policy=SnpPolicy(denied=frozenset({MILAN})))),
    "processor of another generation": ("snp.cpu", lambda: altered({0x189: b"\x11"})),
    "unknown processor": ("snp.cpu", lambda: altered({0x188: b"\x17"})),
    "patch level missing": ("snp.extension", lambda: with_extension("3.3", None)),
    "patch level of a wrong form": ("snp.extension", lambda: with_extension("3.3", b"\x04\x01\x16")),
    "patch level too high": ("snp.extension", lambda: with_extension("3.8", amd.der_integer(256))),
    "patch level negative": ("snp.extension", lambda: with_extension("3.8", b"\x02\x01\xd5")),
    "reserved patch level": ("snp.extension", lambda: with_extension("3.4", amd.der_integer(1))),
    "FMC level before Turin": ("snp.extension", lambda: with_extension("3.9", amd.der_integer(0))),
    "FMC level missing": ("snp.extension", lambda: with_extension("3.9", None, TURIN)),
    "hardware id missing": ("snp.extension", lambda: with_extension("4", None)),
    "hardware id too short": ("snp.extension", lambda: with_extension("4", b"\x04\x08" + bytes(8))),
    "Turin's hardware id too long": ("snp.extension", lambda: with_extension("4", amd.CHIP, TURIN)),
    "hardware id of another chip": ("snp.chip_id", lambda: with_extension("4", bytes(64))),
    "Turin's of another chip": ("snp.chip_id", lambda: with_extension("4", bytes(8), TURIN)),
    "chip id left out": ("snp.chip_id", lambda: altered({0x1A0: bytes(64)})),
    "Turin's chip id too long": ("snp.chip_id", lambda: altered({0x1A8: b"\1"}, amd.chip(TURIN))),
    "VCEK with a provider": ("snp.vcek", lambda: with_extension("5", b"\x16\x03csp")),
    "VLEK without a provider": ("snp.vlek", lambda: with_extension("5", None, vlek=True)),
    "VLEK with a hardware id": ("snp.vlek", lambda: with_extension("4", amd.CHIP, vlek=True)),
    "reported firmware too old": (
        "snp.minimal_tcb",
        lambda: altered({0x1F0: amd.tcb(MILAN, snp=23)}, policy=least(snp=23)),
    ),
    "launched under old firmware": (
        "snp.minimal_tcb",
        lambda: altered({0x1F0: amd.tcb(MILAN, snp=21)}, policy=least(snp=22)),
    ),
    "Turin's FMC too old": (
        "snp.minimal_tcb",
        lambda: altered({0x1F0: b"\2"}, amd.chip(TURIN), policy=least(fmc=2)),
    ),
    "debugging allowed": ("snp.debug", lambda: altered({0x0A: b"\x0b"})),
    "migration allowed": ("snp.migration", lambda: altered({0x0A: b"\x07"})),
    "asked by the host": ("snp.vmpl", lambda: altered({0x30: b"\xff\xff\xff\xff"})),
    "no such VMPL": ("snp.vmpl", lambda: altered({0x30: b"\4"})),
    "other report data": ("snp.report_data", lambda: codes(report_data=bytes(64))),
    "report data cut short": ("snp.report_data", lambda: codes(report_data=amd.REPORT_DATA[:63])),
    "memory not encrypted": (
        "snp.tsme",
        lambda: altered({0x40: b"\x21"}, policy=SnpPolicy(require_tsme=True)),
    ),
} | {
    f"patch level {number} of other firmware": (
        "snp.tcb",
        lambda number=number: with_extension(f"3.{number}", amd.der_integer(99), TURIN),
    )
    for number in (1, 2, 3, 8, 9)
}


@pytest.mark.parametrize("case", CASES)
def test_each_check_refuses_alone(case: str) -> None:
    code, found = CASES[case]
    assert found() == [code]


def test_every_code_has_a_case() -> None:
    """A new check needs its own test."""
    text = Path(snp.__file__).read_text("utf-8")
    written = {word for word in text.split('"') if word.startswith("snp.") and word != "snp.py"}
    of_lists = {"snp.product", "snp.unbound", "snp.platform"}
    assert written - of_lists <= {code for code, _ in CASES.values()}


def test_wrong_product_name_refuses_unless_the_report_names_the_processor() -> None:
    """AMD made certificates with a wrong product name; version 3 brought the processor into what is signed."""
    chip = amd.chip(product="Genoa-B1")
    assert altered({}, chip, version=2) == ["snp.product"]
    done = judge(chip, amd.report(chip, version=3))
    assert [f.code for f in done.watch] == ["snp.product"]
    assert done.grade is Grade.CHIP_SIGNED


@pytest.mark.parametrize("name", ["Bergamo-A1", "Siena-B0", "Genoa-B2"])
def test_sisters_of_genoa_have_its_root(name: str) -> None:
    chip = amd.chip(GENOA, product=name)
    assert judge(chip, amd.report(chip, version=2)).verdict.findings == ()


def test_unknown_platform_bits_are_watched() -> None:
    chip = amd.chip()
    done = judge(chip, amd.report(chip, at={0x41: b"\x01"}))
    assert [f.code for f in done.watch] == ["snp.platform"]


@pytest.mark.parametrize(
    ("family", "model", "generation"),
    [
        (0x19, 0x01, MILAN), (0x19, 0x11, GENOA), (0x19, 0xA0, GENOA), (0x1A, 0x02, TURIN), (0x1A, 0x11, TURIN),
        (0x19, 0x21, None), (0x1A, 0x50, None), (0x17, 0x31, None),
    ],
)  # fmt: skip
def test_generation_of_a_processor(family: int, model: int, generation: Generation | None) -> None:
    assert Cpu(family=family, model=model, stepping=0).generation is generation


@pytest.mark.parametrize("step", [
    "load_roots", "_path", "check_dates", "check_authority", "check_critical", "check_revocation", "_form",
    "_signature", "_leaf", "_generation", "_kind", "_binding", "_levels", "_guest", "_certified", "_chip",
    "_unsigned", "verify_signature", "verdict",
])  # fmt: skip
def test_fault_at_any_step_ends_in_no_trust(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*words: object, **more: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(snp, step, broken)
    with pytest.raises(RuntimeError, match="broken"):
        judge_real(real_report())


@pytest.mark.parametrize("version", [0, 1, 6, 1 << 31])
def test_unknown_version_is_unreadable(version: int) -> None:
    with pytest.raises(ParseError, match="is not one of 2 to 5"):
        parse_report(version.to_bytes(4, "little") + bytes(1180))


@pytest.mark.parametrize("size", [0, 1183, 1185])
def test_other_size_is_unreadable(size: int) -> None:
    with pytest.raises(ParseError, match="1184"):
        parse_report(bytes(size))


_CHIP = amd.chip()
_GOOD = amd.report(_CHIP)


@given(st.integers(0, len(_GOOD) - 1), st.integers(1, 255))
@settings(max_examples=300, deadline=None)
def test_damaged_report_never_passes(at: int, change: int) -> None:
    data = _GOOD[:at] + bytes([_GOOD[at] ^ change]) + _GOOD[at + 1 :]
    with pytest.raises((RefusedReport, ParseError)):
        judge(_CHIP, data)


@given(st.integers(0, len(_CHIP.der) - 1), st.integers(1, 255))
@settings(max_examples=200, deadline=None)
def test_damaged_certificate_never_passes(at: int, change: int) -> None:
    damaged = _CHIP.der[:at] + bytes([_CHIP.der[at] ^ change]) + _CHIP.der[at + 1 :]
    chip = amd.Chip(generation=MILAN, key=_CHIP.key, der=damaged, vlek=False)
    with pytest.raises((RefusedReport, ParseError)):
        judge(chip, _GOOD)


@given(st.binary(min_size=1180, max_size=1180), st.integers(2, 5))
@settings(max_examples=200, deadline=None)
def test_parser_reads_or_raises_parse_errors(data: bytes, version: int) -> None:
    report = parse_report(version.to_bytes(4, "little") + data)
    assert report.to_json(TURIN)["version"] == version
