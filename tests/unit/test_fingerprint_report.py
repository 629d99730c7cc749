from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeos import cli
from nodeos.core.errors import NodeosError
from nodeos.core.wire import ParseError
from nodeos.fingerprint import inventory
from nodeos.fingerprint.inventory import Sources, clean, read_cpu, serial_hash, take_inventory
from nodeos.fingerprint.report import collect, decode, encode
from nodeos.fingerprint.sketch import QUANTILES
from tests.support.agent_fakes import FakeTpm
from tests.support.smbios_tables import END, entry_point_3, machine, structure

CPUINFO = "".join(
    f"processor\t: {n}\nmodel name\t: AMD EPYC 7302 16-Core Processor\nphysical id\t: {n // 16 % 2}\n"
    f"core id\t\t: {n % 16}\nflags\t\t: fpu svm sev sme aes unheard_of\n\n"
    for n in range(64)
)


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    """A Gen-1 machine's files."""
    where = Sources(proc=tmp_path / "proc", sys=tmp_path / "sys")
    where.proc.mkdir()
    where.dmi.mkdir(parents=True)
    (where.proc / "cpuinfo").write_text(CPUINFO)
    (where.proc / "meminfo").write_text("MemTotal:       527983616 kB\nMemFree: 1 kB\n")
    put_tables(where, machine())
    return where


def put_tables(where: Sources, table: bytes) -> None:
    (where.dmi / "smbios_entry_point").write_bytes(entry_point_3(len(table)))
    (where.dmi / "DMI").write_bytes(table)


def test_a_gen_1_machine(sources: Sources) -> None:
    found = take_inventory(machine="m", tpm=FakeTpm().identity(), sources=sources)
    assert found["system"] == {
        "manufacturer": "Dell Inc.",
        "product": "PowerEdge R7525",
        "serial_hash": serial_hash("m", "ABC1234"),
    }
    assert found["cpu"] == {
        "model": "AMD EPYC 7302 16-Core Processor",
        "sockets": 2,
        "cores": 32,
        "threads": 64,
        "flags": ["aes", "sev", "sme", "svm"],
    }
    assert found["memory"]["bytes"] == 527983616 * 1024
    assert len(found["memory"]["dimms"]) == 16
    assert found["memory"]["dimms"][0] == {
        "size": 32 << 30,
        "part": "36ASF4G72PZ-3G2E7",
        "manufacturer": "002C0632002C",
    }
    assert found["tpm"] == {"manufacturer": "FAKE", "model": "none", "firmware": "1.2"}
    assert found["virtualization"] == "none"


def test_missing_sources_are_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory, "_devices", lambda subsystem, **match: [])
    nowhere = Sources(proc=tmp_path / "proc", sys=tmp_path / "sys")
    found = take_inventory(machine=None, tpm=None, sources=nowhere)
    assert found == {
        "system": {"manufacturer": "absent", "product": "absent"},
        "cpu": {"model": "absent", "sockets": 0, "cores": 0, "threads": 0, "flags": []},
        "memory": {"bytes": 0, "dimms": []},
        "disks": [],
        "nics": [],
        "tpm": {"manufacturer": "absent", "model": "absent", "firmware": "absent"},
        "virtualization": "none",
    }


def test_malformed_tables_are_data(sources: Sources) -> None:
    (sources.dmi / "DMI").write_bytes(b"\x01\x02")
    found = take_inventory(machine="m", tpm=None, sources=sources)
    assert found["system"] == {"manufacturer": "malformed", "product": "malformed"}
    assert found["memory"]["dimms"] == []


@pytest.mark.parametrize("serial", ["", "To Be Filled By O.E.M.", "None", "0123456789", " Default string "])
def test_what_is_no_serial_is_not_hashed(sources: Sources, serial: str) -> None:
    data = bytes([1, 2, 0, 3]) + bytes(19)
    put_tables(sources, structure(1, data, "Maker", "Product", serial or " ") + END)
    assert "serial_hash" not in take_inventory(machine="m", tpm=None, sources=sources)["system"]


def test_no_serial_leaves_the_machine(sources: Sources) -> None:
    data = encode(
        {
            "inventory": take_inventory(machine="m", tpm=None, sources=sources),
            "measurements": {},
            "version": 1,
        }
    )
    assert b"ABC1234" not in data
    assert b"2B5D11F0" not in data
    without = take_inventory(machine=None, tpm=None, sources=sources)
    assert "serial_hash" not in without["system"]


def test_serial_hashes_are_of_one_machine() -> None:
    assert serial_hash("m", "s") == serial_hash("m", "s")
    assert len({serial_hash("m", "s"), serial_hash("n", "s"), serial_hash("m", "t")}) == 3


@pytest.mark.parametrize(
    ("maker", "flags", "hint"),
    [
        ("QEMU", "fpu hypervisor", "qemu"),
        ("QEMU", "fpu", "qemu"),
        ("Amazon EC2", "hypervisor", "amazon"),
        ("Somebody", "hypervisor", "unknown hypervisor"),
        ("Microsoft Corporation", "fpu", "none"),
        ("Dell Inc.", "fpu", "none"),
    ],
)
def test_the_hint_of_virtualization(sources: Sources, maker: str, flags: str, hint: str) -> None:
    put_tables(sources, structure(1, bytes([1, 0, 0, 0]) + bytes(19), maker) + END)
    (sources.proc / "cpuinfo").write_text(f"processor: 0\nflags: {flags}\n")
    assert take_inventory(machine=None, tpm=None, sources=sources)["virtualization"] == hint


def test_the_hypervisors_own_name_counts(sources: Sources) -> None:
    (sources.sys / "hypervisor").mkdir()
    (sources.sys / "hypervisor" / "type").write_text("xen\n")
    assert take_inventory(machine=None, tpm=None, sources=sources)["virtualization"] == "xen"


def test_a_processor_without_topology(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor: 0\n\nprocessor: 1\n\nHardware: x\n")
    found = read_cpu(tmp_path / "cpuinfo")
    assert (found["sockets"], found["cores"], found["threads"]) == (1, 2, 2)


@given(st.binary(max_size=200))
def test_any_cpuinfo_is_read(data: bytes) -> None:
    import tempfile

    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        assert read_cpu(Path(file.name))["sockets"] >= 0


@given(st.text())
def test_texts_are_short_and_printable(text: str) -> None:
    found = clean(text)
    assert 0 < len(found) <= 40
    assert found.isascii()
    assert found.isprintable()
    assert found == found.strip()


def sketch_map() -> dict[str, Any]:
    return {"unit": "ns", "n": 2048, "min": 10**8, "quantiles": [10**8 + k for k in range(QUANTILES)]}


def example() -> dict[str, Any]:
    return {
        "version": 1,
        "inventory": {
            "system": {"manufacturer": "M", "product": "P", "serial_hash": bytes(16)},
            "cpu": {"model": "C", "sockets": 1, "cores": 1, "threads": 1, "flags": ["aes"]},
            "memory": {"bytes": 1, "dimms": [{"size": 1, "part": "p", "manufacturer": "m"}]},
            "disks": [{"model": "d", "bytes": 1, "transport": "nvme", "rotational": False}],
            "nics": [{"driver": "e", "speed_mbit": None, "pci": "0000:00:03.0"}],
            "tpm": {"manufacturer": "IFX", "model": "SLB", "firmware": "7.85"},
            "virtualization": "none",
        },
        "measurements": {"copy": sketch_map(), "tpm": {"invalid": "no TPM"}},
    }


def test_a_report_survives_a_round_trip() -> None:
    assert decode(encode(example())) == example()
    reordered = dict(reversed(example().items()))
    assert encode(reordered) == encode(example())


def test_a_full_machine_fits() -> None:
    report = example()
    found = report["inventory"]
    name = "X" * 24
    found["memory"]["dimms"] = [{"size": 1 << 36, "part": name, "manufacturer": "Y" * 12}] * 32
    disk = {"model": "Z" * 32, "bytes": 6400 * 10**9, "transport": "nvme", "rotational": False}
    found["disks"] = [disk] * 12
    found["nics"] = [{"driver": "bnxt_en", "speed_mbit": 10_000, "pci": "0000:c3:00.1"}] * 6
    report["measurements"] = {f"reading_number_{n}": sketch_map() for n in range(7)}
    assert len(encode(report)) <= 8192


def test_a_report_that_is_too_large_is_told() -> None:
    with pytest.raises(NodeosError, match="at most 8192 are allowed"):
        encode({**example(), "more": bytes(8192)})
    with pytest.raises(ParseError, match="at most 8192"):
        decode(bytes(8193))


def changed(path: str, value: Any) -> dict[str, Any]:
    report = example()
    *parents, last = path.split(".")
    place: Any = report
    for name in parents:
        place = place[int(name)] if isinstance(place, list) else place[name]
    place[last] = value
    return report


@pytest.mark.parametrize(
    "path",
    [
        "version",
        "more",
        "inventory.more",
        "inventory.system.product",
        "inventory.system.serial_hash",
        "inventory.system.serial",
        "inventory.cpu.sockets",
        "inventory.cpu.flags",
        "inventory.memory.bytes",
        "inventory.memory.dimms.0.size",
        "inventory.disks.0.rotational",
        "inventory.disks.0.more",
        "inventory.nics.0.speed_mbit",
        "inventory.tpm.firmware",
        "inventory.virtualization",
        "measurements.copy.n",
        "measurements.new",
    ],
)
def test_each_wrong_field_is_refused(path: str) -> None:
    with pytest.raises(ParseError):
        decode(cbor2.dumps(changed(path, [[]]), canonical=True))


UNUSUAL: dict[Any, Any] = {**example(), 1: 2}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        encode(example()) + b"\x00",
        encode(example())[:-1],
        cbor2.dumps(example()),
        cbor2.dumps([example()], canonical=True),
        cbor2.dumps(UNUSUAL, canonical=True),
        cbor2.dumps(cbor2.CBORTag(55799, example()), canonical=True),
        b"\x81" * 4000,
        b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff",
    ],
)
def test_what_is_not_in_canonical_form_is_refused(data: bytes) -> None:
    with pytest.raises(ParseError):
        decode(data)


@given(st.binary(max_size=300))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ParseError):
        decode(data)


@given(st.data())
def test_a_damaged_report_is_read_or_refused(data: st.DataObject) -> None:
    report = bytearray(encode(example()))
    for _ in range(data.draw(st.integers(1, 4))):
        report[data.draw(st.integers(0, len(report) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ParseError):
        decode(bytes(report))


def test_this_machine() -> None:
    began = time.monotonic()
    report = collect(machine="m", tpm=None, tpm_command=None)
    assert time.monotonic() - began < 15  # 2 s when nothing else runs; 5 s are promised
    assert decode(encode(report)) == report
    assert report["inventory"]["cpu"]["threads"] >= 1
    assert report["inventory"]["memory"]["bytes"] > 1 << 26
    assert report["measurements"]["tpm_command"] == {"invalid": "no TPM"}


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--json", "fingerprint", *words])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_collect_and_show(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nodeos.fingerprint.report.collect", lambda **options: example())
    monkeypatch.setattr("nodeos.fingerprint.cli._TPM", tmp_path / "no-tpm")
    out = tmp_path / "report.cbor"
    assert run("collect", "--out", str(out)) == 0
    collected = json.loads(capsys.readouterr().out)
    assert run("show", str(out)) == 0
    assert json.loads(capsys.readouterr().out) == collected
    assert collected["inventory"]["system"]["serial_hash"] == "00" * 16
    assert run("collect", "--out", str(out)) == 2
    assert "is there already" in capsys.readouterr().out
    out.write_bytes(b"nonsense")
    assert run("show", str(out)) == 2
    with pytest.raises(SystemExit):
        cli.main(["fingerprint", "collect"])
    assert "copy" in capsys.readouterr().out
