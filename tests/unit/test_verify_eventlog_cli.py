"""``nodeos attest replay``: real logs and their values, what is refused, and what can't be read."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from nodeos import cli
from nodeos.core.wire import ParseError
from provisioning.verify.expected import only, parse_expected
from tests.support import evidence as ev
from tests.support.vectors import vectors

KNOWN = ("arch-linux", "bootorder", "gce-ubuntu-2104-log", "postcode", "uefi-sha1-log")


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        cli.main(["attest", "replay", *map(str, words)])
    shown = capsys.readouterr()
    assert isinstance(caught.value.code, int)
    return caught.value.code, shown.out, shown.err


def as_json(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, dict[str, Any]]:
    code, out, _ = run(capsys, "--json", *words)
    value = json.loads(out)
    assert isinstance(value, dict)
    return code, value


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "firmware.log"
    path.write_bytes(ev.firmware_log())
    return path


@pytest.fixture
def cel(tmp_path: Path) -> Path:
    path = tmp_path / "systemd.log"
    path.write_bytes(ev.userspace_log([(11, phase) for phase in ev.PHASES]))
    return path


@pytest.mark.parametrize("name", KNOWN)
def test_real_logs_have_exactly_the_expected_values(capsys: pytest.CaptureFixture[str], name: str) -> None:
    folder = vectors("eventlogs")
    values = folder / f"{name}.expected.yaml"
    code, value = as_json(capsys, folder / f"{name}.bin", "--expect", values)
    assert (code, value["findings"]) == (0, [])
    wanted = parse_expected(values.read_bytes(), name)
    assert len(value["pcrs"]) == len(wanted)
    shown = parse_expected(json.dumps({"pcrs": value["pcrs"]}).encode(), "shown")
    assert shown == wanted


def test_every_real_log_is_good(capsys: pytest.CaptureFixture[str]) -> None:
    paths = sorted(vectors("eventlogs").glob("*.bin"))
    assert len(paths) == 12
    for path in paths:
        code, value = as_json(capsys, path)
        assert (code, value["findings"]) == (0, []), path
        assert value["events"]
        assert not any(event["data_checked"] is False for event in value["events"])


def test_table_for_people(capsys: pytest.CaptureFixture[str], log: Path, cel: Path) -> None:
    code, out, err = run(capsys, log, "--cel", cel)
    assert (code, err) == (0, "")
    assert "Spec ID Event03, sha256" in out
    assert "    9    0  EV_SEPARATOR" in out
    assert "systemd record" in out
    assert f"   11  {ev.boot_pcrs(b'')[11].hex()}" in out


def test_json(capsys: pytest.CaptureFixture[str], log: Path, cel: Path) -> None:
    code, value = as_json(capsys, log, "--cel", cel)
    assert code == 0
    assert set(value) == {"pcrs", "events", "startup_locality", "notes", "findings"}
    assert value["pcrs"]["sha256"]["11"] == ev.boot_pcrs(b"")[11].hex()
    first, last = value["events"][1], value["events"][-1]
    assert (first["log"], first["type"], first["extends"]) == ("firmware", "EV_EFI_VARIABLE_BOOT", True)
    assert (last["log"], last["number"], last["words"]) == ("systemd", len(value["events"]) - 1, "ready")
    assert last["data_checked"] is True


def test_quoted_values_of_evidence(capsys: pytest.CaptureFixture[str], log: Path, cel: Path) -> None:
    evidence = log.with_name("evidence.json")
    machine = ev.Machine()
    evidence.write_bytes(machine.evidence(session="s", nonce=b"n" * 32, secret=b"s" * 32).to_bytes())
    covered = ("--pcrs", "0-5,7,9,11,13")
    assert run(capsys, log, "--cel", cel, "--expect", evidence, *covered)[0] == 0
    code, _, err = run(capsys, log, "--cel", cel, "--expect", evidence)
    assert code == 3
    assert "eventlog.replay: sha256: PCR 12, which has no event" in err
    assert "--pcrs" in err
    code, value = as_json(capsys, log, "--expect", evidence, *covered)
    assert code == 3
    assert [found["code"] for found in value["findings"]] == ["eventlog.replay"]
    assert "PCR 11, after its last of 1, event 17 (EV_IPL)" in value["findings"][0]["message"]


def test_first_difference_is_named_first(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = vectors("eventlogs")
    text = (folder / "arch-linux.expected.yaml").read_text()
    for value in ("7672cbacaf65", "3b4a4db44b7a"):  # PCRs 4 and 7
        text = text.replace(value, "000000000000")
    path = tmp_path / "other.yaml"
    path.write_text(text)
    code, out, err = run(capsys, folder / "arch-linux.bin", "--expect", path)
    assert code == 3
    assert "EV_S_CRTM_VERSION" in out
    first, second = [line for line in err.splitlines() if "✗" in line]
    for part in ("PCR 4", "event 23 (EV_EFI_BOOT_SERVICES_APPLICATION)", "7672cbacaf65", "000000000000"):
        assert part in first
    assert "PCR 7" in second


def test_bank_that_the_log_lacks(capsys: pytest.CaptureFixture[str], log: Path, tmp_path: Path) -> None:
    path = tmp_path / "sha384.json"
    path.write_text(json.dumps({"sha384": {"0": "00" * 48}}))
    code, value = as_json(capsys, log, "--expect", path)
    assert (code, value["findings"][0]["code"]) == (3, "eventlog.bank")


def test_changed_note_is_refused(capsys: pytest.CaptureFixture[str], log: Path) -> None:
    digest = hashlib.sha256(bytes(4)).digest()
    separator, changed = ev.event(0, 4, bytes(4)), ev.event(0, 4, b"\1\2\3\4", digest)
    log.write_bytes(log.read_bytes().replace(separator, changed))
    code, value = as_json(capsys, log)
    assert (code, [found["code"] for found in value["findings"]]) == (3, ["eventlog.digest"])
    assert [event["number"] for event in value["events"] if event["data_checked"] is False] == [9]


def test_incomplete_log_of_systemd_is_noted(capsys: pytest.CaptureFixture[str], log: Path, cel: Path) -> None:
    cel.chmod(0o1600)
    code, value = as_json(capsys, log, "--cel", cel)
    assert code == 0
    assert any("incomplete" in note for note in value["notes"])


@pytest.mark.parametrize("what", ["log", "cel", "expect"])
@pytest.mark.parametrize("how", ["missing", "folder", "garbage", "empty"])
def test_unreadable_is_1(  # noqa: PLR0917
    capsys: pytest.CaptureFixture[str], log: Path, cel: Path, tmp_path: Path, what: str, how: str
) -> None:
    bad = tmp_path / "bad"
    if how == "folder":
        bad.mkdir()
    elif how != "missing":
        bad.write_bytes(b"MZ\x90\0garbage" * 10 if how == "garbage" else b"")
    words: list[str | Path] = [bad if what == "log" else log, "--cel", bad if what == "cel" else cel]
    if what == "expect":
        words += ["--expect", bad]
    if (what, how) == ("cel", "empty"):
        assert run(capsys, *words)[0] == 0  # systemd has not measured anything yet
        return
    code, out, err = run(capsys, *words)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert json.loads(run(capsys, "--json", *words)[1])["error"]["findings"] == []


@pytest.mark.parametrize("pcrs", ["", "24", "x", "1-", "-1", "3-2", "²", "0,,1"])
def test_wrong_pcrs_are_2(capsys: pytest.CaptureFixture[str], log: Path, pcrs: str) -> None:
    assert run(capsys, log, "--expect", log, "--pcrs", pcrs)[0] == 2


def test_pcrs_without_expected_values_are_2(capsys: pytest.CaptureFixture[str], log: Path) -> None:
    assert run(capsys, log, "--pcrs", "0")[0] == 2


ZERO, ONE = "00" * 32, "11" * 32


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"pcrs": {"sha256": {"0": ONE, "4": ZERO}}}),
        json.dumps({"sha256": {"4": f"0x{ZERO}", "0": ONE.upper()}}),
        json.dumps({"pcrs": {"0": ONE, "4": ZERO}, "quote": "x"}),
        f"---\nevents:\n- x: y\npcrs:\n  sha256:\n    0  : 0x{ONE}\n    4  : 0x{ZERO}\n",
        f"  sha1:\n  sha256:\n    0 : 0x{ONE}\n    4 : 0x{ZERO}  # a note\n  sha384:\n",
        f'sha256:\n  "0": "{ONE}"\n  \'4\': {ZERO}\n',
    ],
)
def test_forms_of_expected_values(text: str) -> None:
    values = {11: {0: bytes.fromhex(ONE), 4: bytes(32)}}
    assert parse_expected(text.encode(), "x") == values
    assert only(values, frozenset({4})) == {11: {4: bytes(32)}}
    with pytest.raises(ParseError, match="PCR 5"):
        only(values, frozenset({4, 5}))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no PCR values"),
        ("{}", "no PCR values"),
        ("pcrs:\n  sha256:\n", "no PCR values"),
        (f"0 : 0x{ONE}", "before the name"),
        (f"sha256:\n  24 : {ONE}", "no PCR 24"),
        (f"sha256:\n  1 : {ONE}\n  1 : {ONE}", "stands twice"),
        (f"sha256:\n  1 : {ONE}\nsha256:\n", "stands twice"),
        ("sha256:\n  1 : 11", "has 1 bytes"),
        ("sha256:\n  1 : 111", "not hexadecimal"),
        ("md5:\n  1 : 11", "no bank 'md5'"),
        ("sha256:\n  1 : zz", "expected `BANK:`"),
        ("\xff", "no PCR values|expected `BANK:`"),
        ('{"pcrs": {"sha256": {"0": 1}}}', "expected text"),
        ('{"pcrs": {"sha256": []}}', "expected an object"),
        ('{"pcrs": {"md5": {}}}', "no bank 'md5'"),
        (json.dumps({"sha256": {"00": ONE, "0": ONE}}), "stands twice"),
    ],
)
def test_wrong_expected_values(text: str, words: str) -> None:
    with pytest.raises(ParseError, match=words):
        parse_expected(text.encode(), "x")


def test_other_tools_are_added_where_they_are() -> None:
    """The group takes what the module of the chips' tools registers."""
    from provisioning.cli_attest import commands

    assert "replay" in commands.commands
    assert ("provisioning.cli_attest_chips" in sys.modules) == ("snp" in commands.commands)
