"""``nodeos attest ek-cert`` and ``nodeos attest snp``: certificates and reports that chips' makers vouch for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nodeos.cli import emit
from nodeos.core.errors import NodeosError, UsageError
from provisioning.cli_options import plain

if TYPE_CHECKING:
    from nodeos.core.errors import Finding
    from provisioning.verify.chain import Checked
    from provisioning.verify.crl import Crl
    from provisioning.verify.der import Certificate
    from provisioning.verify.snp import SnpAssessment
    from provisioning.verify.snp_report import Generation, SnpReport, Tcb

_REFUSED = 3
_FILE_LIMIT = 1 << 20
# A folder is told like any other file that is not what it should be, with the code 1.
_file = click.Path(path_type=Path)
_SUFFIXES = (".pem", ".crt", ".cer", ".der")
_GENERATIONS = ("milan", "genoa", "turin")
_LEVELS = ("fmc", "bootloader", "tee", "snp", "microcode")
_crl = click.option(
    "--crl", "crls", type=_file, multiple=True,
    help="A revocation list of an issuer in the path (DER or PEM). Can be given more than once.",
)  # fmt: skip
_at = click.option(
    "--at", type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%SZ"]),
    help="Judge as at this time, UTC.  [default: now]",
)  # fmt: skip


def register(group: click.Group) -> None:
    """Put these commands into the group ``attest``."""
    group.add_command(ek_cert)
    group.add_command(snp)


@click.command("ek-cert")
@click.argument("file", type=_file)
@click.option("--roots", type=click.Path(path_type=Path), help="A folder (or file) of certificates to trust.")
@_crl
@_at
@click.pass_context
def ek_cert(
    ctx: click.Context, file: Path, roots: Path | None, crls: tuple[Path, ...], at: datetime | None
) -> None:
    """Check the endorsement certificate of a TPM: its path to a root, its dates, what it says of the chip.

    FILE is DER, PEM, or what the TPM's NV memory holds; with several certificates the first one is checked.
    Roots are the self-issued certificates in --roots, and all of files whose name begins with "root"; the
    others help to find a path. Without --roots nothing is trusted.
    """
    from provisioning.verify.chain import check_certificate

    with _readable():
        leaf, *others = _certificates(file)
        pinned, helpers = _roots(roots)
        lists = _lists(crls)
        when = _moment(at)
        checked = check_certificate(leaf, (*others, *helpers), pinned, when, crls=lists)
    value, text = _show_ek(leaf, checked, when)
    if roots is None:
        click.echo("no --roots given: no certificate is trusted", err=True)
    emit(ctx, value, text)
    ctx.exit(_REFUSED if checked.findings else 0)


def _show_ek(leaf: Certificate, checked: Checked, when: datetime) -> tuple[dict[str, Any], str]:
    result = "refused" if checked.findings else "passed"
    model = checked.model
    tpm = model and {"manufacturer": model.manufacturer, "model": model.model, "version": model.version}
    value = {
        "result": result,
        "at": f"{when:%Y-%m-%dT%H:%M:%SZ}",
        "path": [_one(c, listed=c in checked.listed) for c in checked.path or (leaf,)],
        "rooted": bool(checked.path),
        "tpm": tpm,
        "usages": checked.usages,
        "findings": [f.to_json() for f in checked.findings],
    }
    lines = _path_lines(checked.path or (leaf,), checked.listed)
    if model is not None:
        lines.append(f"TPM   manufacturer {model.manufacturer}, model {model.model}, version {model.version}")
    said = "does not say" if checked.usages is None else ", ".join(checked.usages)
    lines.append(f"use   {said}")
    lines += _marks(checked.findings, ())
    return value, _text([*lines, result])


@click.command()
@click.argument("report", type=_file)
@click.option("--vcek", required=True, type=_file, help="The certificate of the chip's key: VCEK or VLEK.")
@click.option("--chain", required=True, type=_file, help="Its authorities, ASK (or ASVK) and ARK, in PEM.")
@_crl
@click.option("--report-data", metavar="HEX",
              help="What the report must carry: 64 bytes, or fewer with zeroes after them.")  # fmt: skip
@click.option("--deny", multiple=True, type=click.Choice(_GENERATIONS), help="Refuse chips of a generation.")
@click.option("--min-tcb", "least", multiple=True, metavar="PART=LEVEL",
              help=f"Lowest patch level of a part of the firmware: {', '.join(_LEVELS)}.")  # fmt: skip
@click.option("--require-tsme", is_flag=True, help="Refuse if the whole memory is not encrypted (TSME).")
@_at
@click.pass_context
def snp(  # noqa: PLR0917
    ctx: click.Context, report: Path, vcek: Path, chain: Path, crls: tuple[Path, ...], report_data: str | None,
    deny: tuple[str, ...], least: tuple[str, ...], require_tsme: bool, at: datetime | None,
) -> None:  # fmt: skip
    """Check an attestation report of AMD SEV-SNP, as 1184 bytes or in hexadecimal.

    A report that passes was signed by a genuine chip with the firmware that it names. Without --report-data
    nothing says that it is fresh: the result is "watch".
    """
    from provisioning.verify.snp import RefusedReport, SnpPolicy, verify_report
    from provisioning.verify.snp_report import Generation

    expected = _report_data(report_data)
    lowest = _least(least)
    policy = SnpPolicy(
        denied=frozenset(Generation(name) for name in deny),
        least={} if lowest is None else dict.fromkeys(Generation, lowest),
        require_tsme=require_tsme,
    )
    with _readable():
        parsed = _report(report)
        leaf, *more = _certificates(vcek)
        authorities = (*more, *_certificates(chain))
        lists = _lists(crls)
        try:
            done = verify_report(
                parsed, leaf, authorities, report_data=expected, at=_moment(at), policy=policy, crls=lists
            )
        except RefusedReport as error:
            done = error.assessment
    emit(ctx, *_show_snp(done, leaf))
    ctx.exit(_REFUSED if str(done.verdict.result) == "refused" else 0)


def _show_snp(done: SnpAssessment, leaf: Certificate) -> tuple[dict[str, Any], str]:
    report, generation = done.report, done.generation
    path = done.path or (leaf,)
    value = {
        "result": str(done.verdict.result),
        "grade": str(done.grade),
        "generation": None if generation is None else str(generation),
        "path": [_one(c, listed=c in done.listed) for c in path],
        "report": report.to_json(generation),
        "findings": [f.to_json() for f in done.verdict.findings],
    }
    lines = _path_lines(path, done.listed)
    lines += _report_lines(report, generation)
    lines += _marks((f for f in done.verdict.findings if f not in done.watch), done.watch)
    return value, _text([*lines, f"{done.verdict.result}, grade {done.grade}"])


def _report_lines(report: SnpReport, generation: Generation | None) -> list[str]:
    from provisioning.verify.snp_report import read_tcb

    lines = [
        f"chip  {generation or 'of an unknown generation'}, id {report.chip_id.hex()[:32]}…",
        f"report version {report.version}, VMPL {report.vmpl}, "
        f"signed with {report.signing_key or 'a reserved key'}",
    ]
    if generation is not None:
        lines.append(f"reported TCB: {read_tcb(report.reported_tcb, generation)[0]}")
    lines.append(f"whole memory encrypted (TSME): {'yes' if report.tsme else 'no'}")
    lines.append(f"measurement {report.measurement.hex()}")
    lines.append(f"report data {report.report_data.hex()}")
    return lines


def _one(certificate: Certificate, *, listed: bool) -> dict[str, Any]:
    import hashlib

    return {
        "subject": certificate.subject_text,
        "sha256": hashlib.sha256(certificate.der).hexdigest(),
        "not_before": f"{certificate.not_before:%Y-%m-%dT%H:%M:%SZ}",
        "not_after": f"{certificate.not_after:%Y-%m-%dT%H:%M:%SZ}",
        "revocation_checked": listed,
    }


def _path_lines(path: Iterable[Certificate], listed: tuple[Certificate, ...]) -> list[str]:
    return [
        f"{'      ' if index else 'path  '}{'  ' * index}{c.subject_text}  "
        f"({c.not_before:%Y-%m-%d} to {c.not_after:%Y-%m-%d}, "
        f"{'revocation checked' if c in listed else 'revocation not checked'})"
        for index, c in enumerate(path)
    ]


def _marks(refused: Iterable[Finding], watch: Iterable[Finding]) -> list[str]:
    return [f"✗ {f.code}: {f.message}" for f in refused] + [f"! {f.code}: {f.message}" for f in watch]


def _text(lines: Iterable[str]) -> str:
    """Lines for people. A line break in a name would make a line that looks like ours."""
    return "\n".join(plain(line).replace("\n", "?") for line in lines)


@contextmanager
def _readable() -> Iterator[None]:
    """A file that can't be read as what it should be ends with exit code 1: a script can tell it from a usage
    error."""
    try:
        yield
    except UsageError as error:
        raise NodeosError(error.message, hint=error.hint) from error


def _bytes(path: Path, what: str) -> bytes:
    from nodeos.core.files import read_file

    return read_file(path, what, limit=_FILE_LIMIT)


def _certificates(path: Path) -> list[Certificate]:
    from provisioning.verify.der import parse_certificates

    return parse_certificates(_bytes(path, "certificate"), str(path))


def _lists(paths: Iterable[Path]) -> list[Crl]:
    from nodeos.core.files import read_file
    from provisioning.verify.crl import parse_crls

    return [crl for path in paths for crl in parse_crls(read_file(path, "revocation list"), str(path))]


def _roots(where: Path | None) -> tuple[list[Certificate], list[Certificate]]:
    """Pinned roots and helpers. What can't be read is named and left out: it could only add trust."""
    from provisioning.verify.der import certificate_blocks, parse_certificate

    pinned: list[Certificate] = []
    helpers: list[Certificate] = []
    if where is None:
        return pinned, helpers
    files = sorted(where.iterdir()) if where.is_dir() else [where]
    for path in files:
        if where.is_dir() and path.suffix.lower() not in _SUFFIXES:
            continue
        try:
            blocks = certificate_blocks(_bytes(path, "certificate"), str(path))
        except UsageError as error:
            _left_out(error)
            continue
        for index, der in enumerate(blocks):
            try:
                certificate = parse_certificate(der, f"{path}: certificate {index}")
            except UsageError as error:
                _left_out(error)
                continue
            own = certificate.self_issued or path.name.lower().startswith("root")
            (pinned if own else helpers).append(certificate)
    if not pinned:
        raise UsageError(f"{where}: no root certificate in it", hint=f"give files in {', '.join(_SUFFIXES)}")
    return pinned, helpers


def _left_out(error: UsageError) -> None:
    click.echo(plain(f"left out: {error.message}"), err=True)


def _moment(at: datetime | None) -> datetime:
    return datetime.now(UTC) if at is None else at.replace(tzinfo=UTC)


def _report(path: Path) -> SnpReport:
    from provisioning.verify.snp_report import SIZE, parse_report

    data = _bytes(path, "report")
    if len(data) != SIZE:
        with suppress(ValueError):
            data = bytes.fromhex(data.decode("ascii"))
    return parse_report(data, str(path))


def _report_data(value: str | None) -> bytes | None:
    if value is None:
        return None
    try:
        data = bytes.fromhex(value)
    except ValueError as error:
        raise UsageError("--report-data: not hexadecimal") from error
    if not 1 <= len(data) <= 64:
        raise UsageError(f"--report-data: {len(data)} bytes, expected 1 to 64")
    return data.ljust(64, b"\0")


def _least(words: Iterable[str]) -> Tcb | None:
    from provisioning.verify.snp_report import Tcb

    levels: dict[str, int] = {}
    for word in words:
        name, _, value = word.partition("=")
        if name not in _LEVELS or not value.isdecimal() or int(value) > 255:
            raise UsageError(
                f"--min-tcb: found {word!r}", hint=f"such as microcode=115; parts: {', '.join(_LEVELS)}"
            )
        levels[name] = int(value)
    if not levels:
        return None
    fmc = levels.pop("fmc", None)
    return Tcb(fmc=fmc, **({"bootloader": 0, "tee": 0, "snp": 0, "microcode": 0} | levels))
