"""The figures' records and their page. The measuring itself is run by people: `make bench-image`."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from image.bench import page, record
from image.bench.boot import MILESTONES, SIGNS, Watch
from image.bench.record import Record
from nodeos.core.errors import UsageError

BOOT: dict[str, Any] = {
    "seconds": {name: 5.0 * number for number, name in enumerate(MILESTONES)},
    "processor_seconds": {name: 7.0 * number for number, name in enumerate(MILESTONES) if name != "kernel"},
}
FIGURES: dict[str, dict[str, Any]] = {
    "build": {"changed_seconds": 28.5, "seconds": 27.0, "same_root_hash": True},
    "sign": {"sign_seconds": 3.0, "attach_seconds": 2.0, "verify_seconds": 4.0},
    "sizes": {
        "root": 86388736, "verity": 692224, "uki": 34352960, "bootloader": 125760, "installer": 156078912,
        "download": 121000000, "download_compressed": 119000000, "packages": 164,
    },
    "write": {
        "install": {"bytes": 130 << 20, "seconds": 2.0, "cp_seconds": 0.5, "dd_seconds": 1.0},
        "flash": {
            "bytes": 290 << 20, "seconds": 3.0, "phases": {"write": 1.5, "verify": 1.0}, "dd_seconds": 1.2,
            "cmp_seconds": 0.5,
        },
    },
    "boot-tcg": {
        "first": BOOT, "later": BOOT, "boots": 3,
        "memory": {"total-memory": 2 << 30, "available-memory": 1 << 30, "free-memory": 1, "disk-caches": 5 << 20},
    },
}  # fmt: skip


def records(*parts: str) -> dict[str, Record]:
    return {
        part: Record(
            at="2026-11-23 15:00 UTC", commit="c0ffee", machine="a machine", load=0.5, figures=FIGURES[part]
        )
        for part in parts
    }


def test_records_survive(tmp_path: Path) -> None:
    path = tmp_path / "bench/image.json"
    assert record.read(path) == {}
    record.write(path, records(*FIGURES))
    assert record.read(path) == records(*FIGURES)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "image.json"
    path.write_text('{"build": {"seconds": 1}}')
    with pytest.raises(UsageError, match="holds no figures"):
        record.read(path)


def test_the_section_takes_its_place_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "benchmarks.md"
    page.update(path, records("build"))
    path.write_text(f"words before\n{path.read_text()}words behind\n")
    page.update(path, records(*FIGURES))
    text = path.read_text()
    assert text.startswith("words before\n") and text.endswith("words behind\n")
    assert text.count("## Image") == 1
    for words in ("28.5 s (aim: 30 s)", "34.4 MB (aim: 40 MB)", "121.0 MB (aim: 150 MB)", "No KVM on this machine",
                  "Kernel to attested: 15.0 s", "c0ffee", "1073.7 MB in use"):  # fmt: skip
        assert words in text


def test_parts_that_were_not_measured_are_left_out() -> None:
    text = page.render(records("sizes"))
    assert "### Sizes" in text
    assert "### Boot" not in text and "### Writing" not in text
    assert "cold: tools, packages and caches too | not measured" in page.render(records("build"))


def test_a_page_without_marks_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "benchmarks.md"
    path.write_text("# Benchmarks\n")
    with pytest.raises(UsageError, match="no place"):
        page.update(path, records("sizes"))
    assert path.read_text() == "# Benchmarks\n"


def test_the_signs_are_what_the_parts_say() -> None:
    console = (
        b"\x1b[2JBdsDxe: loading Boot0001\r\n[   29.399355] open-state[332]: nodeos: state: opened /dev/vda8\r\n"
        b"nodeos: site: data center demo-dc\r\nnodeos: running: attested as the node\r\n"
    )
    places = [match.start() for sign in SIGNS.values() if (match := sign.search(console))]
    assert len(places) == len(SIGNS) and places == sorted(places)
    assert SIGNS["state"].search(b"[  9.5] open-state[7]: nodeos: state: made and opened /dev/vda8")


def test_the_kernels_start_is_reckoned_from_its_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = tmp_path / "console.log"
    console.write_bytes(b"BdsDxe\n[    4.000000] open-state[1]: nodeos: state: opened /dev/vda8\n")
    process = SimpleNamespace(pid=os.getpid())
    vm: Any = SimpleNamespace(
        machine=SimpleNamespace(console=console), process=process, started=time.monotonic() - 10
    )
    watch = Watch(vm=vm, port=1)
    assert watch.look(wanted="state")
    assert watch.seen["state"][0] - watch.seen["kernel"][0] == pytest.approx(4.0)
    assert not watch.look(wanted="replica")
    assert "kernel" not in watch.figures()["processor_seconds"]
