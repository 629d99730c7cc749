"""The section "Image" of docs/benchmarks.md, from the records. What people wrote around it stays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from image.bench.boot import MILESTONES
from image.bench.record import Record
from nodeos.core.errors import UsageError
from nodeos.core.files import write_atomic

BEGIN, END = "<!-- image: made by `make bench-image` -->", "<!-- /image -->"
_ORDER = ("cold", "build", "sign", "sizes", "write", "boot-tcg", "boot-kvm")
_MEGA = 1e6
_GIGA = 1e9

_WORDS = {
    "firmware": "first line of the firmware",
    "kernel": "kernel started",
    "state": "state volume open",
    "agent": "agent speaks",
    "attested": "attested: evidence sent and verified",
    "replica": "replica answers over HTTP",
}

# Only what the projects publish themselves, each with its place.
RELATIVES = (
    (
        "Talos", "size on disk below 100 MB; at least 1 GiB of memory and 10 GiB of disk for a worker",
        "https://docs.siderolabs.com/talos/v1.14/getting-started",
    ),
    (
        "IncusOS", "at least 4 GiB of memory for the system, 50 GiB of disk; each of two roots 1 GiB, ESP 2 GiB",
        "lxc/incus-os: doc/getting-started/requirements.md (1902db7e),"
        " doc/reference/partitioning-scheme.md (1b26c05c)",
    ),
    (
        "IC-OS",
        "SetupOS: root 1750 MiB, data with HostOS and GuestOS 3500 MiB; GuestOS: each of two roots 10 GiB",
        "dfinity/ic: ic-os/setupos/partitions.csv (6a9f91d6), ic-os/guestos/partitions.csv (311a90cb)",
    ),
    (
        "ParticleOS", "each of two `/usr` at least 5 GiB",
        "systemd/particleos: mkosi.extra/usr/lib/repart.d/22-usr.conf (0dac6920)",
    ),
)  # fmt: skip


def update(path: Path, records: dict[str, Record]) -> None:
    """Write the section between its marks. Raises UsageError if a page has lost them."""
    text = path.read_text() if path.exists() else f"# Benchmarks\n\n{BEGIN}\n{END}\n"
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise UsageError(f"{path} has no place for the section", hint=f"put the lines {BEGIN} and {END} in")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    write_atomic(path, f"{before}{BEGIN}\n{render(records)}{END}{after}".encode())


def render(records: dict[str, Record]) -> str:
    lines = ["## Image", ""]
    records = {part: records[part] for part in _ORDER if part in records}
    lines += table(("measured", "at", "commit", "load before", "on"), [
        (part, record.at, record.commit, f"{record.load}", record.machine) for part, record in records.items()
    ])  # fmt: skip
    for part, section in (("build", _build), ("sign", _sign), ("sizes", _sizes), ("write", _write)):
        if part in records or (part == "build" and "cold" in records):
            lines += section(records)
    for part, title in (("boot-tcg", "software emulation (TCG)"), ("boot-kvm", "KVM")):
        if part in records:
            lines += _boot(records[part].figures, title)
    if "boot-tcg" in records and "boot-kvm" not in records:
        lines += ["", "No KVM on this machine: how long a boot takes with it was not measured."]
    return "\n".join([*lines, *_relatives(), ""])


def _build(records: dict[str, Record]) -> list[str]:
    cold = (
        f"{records['cold'].figures['seconds']:.0f} s" if "cold" in records else "not measured in these runs"
    )
    rows = [("cold: tools, packages and caches too", cold)]
    if "build" in records:
        warm = records["build"].figures
        rows += [
            ("warm, after a change of Python code", f"{warm['changed_seconds']:.1f} s (aim: 30 s)"),
            ("warm, back to the source as it was", f"{warm['seconds']:.1f} s"),
        ]
    return ["", "### Build", "", *table(("`nodeos image build`", "time"), rows)]


def _sign(records: dict[str, Record]) -> list[str]:
    figures = records["sign"].figures
    rows = [
        (f"`nodeos image {verb}`", f"{figures[f'{verb}_seconds']:.1f} s")
        for verb in ("sign", "attach", "verify")
    ]
    return ["", "### Signatures", "", *table(("keys in files", "time"), rows)]


def _sizes(records: dict[str, Record]) -> list[str]:
    figures = records["sizes"].figures
    rows = [
        ("root (erofs, lz4hc)", _mb(figures["root"])),
        ("hash tree", _mb(figures["verity"])),
        ("UKI: kernel, initrd, policies", f"{_mb(figures['uki'])} (aim: 40 MB)"),
        (
            "download of a release: all artefacts but the installer",
            f"{_mb(figures['download'])} (aim: 150 MB)",
        ),
        ("the same, compressed by xz", _mb(figures["download_compressed"])),
        ("installer, made of them", _mb(figures["installer"])),
        ("Debian packages in root and initrd", str(figures["packages"])),
    ]
    return ["", "### Sizes", "", *table(("", "MB = 1 000 000 bytes"), rows)]


def _write(records: dict[str, Record]) -> list[str]:
    install, flash = records["write"].figures["install"], records["write"].figures["flash"]
    phases = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in flash["phases"].items())
    rows = [
        (
            "`nodeos install --file`: checks, writes, reads back",
            *_speed(install["bytes"], install["seconds"]),
        ),
        ("`cp --sparse=always` of that image", *_speed(install["bytes"], install["cp_seconds"])),
        ("`dd conv=sparse,fsync` of that image", *_speed(install["bytes"], install["dd_seconds"])),
        (f"`nodeos flash` to a loop device ({phases})", *_speed(flash["bytes"], flash["seconds"])),
        ("`dd oflag=direct conv=fsync` of that image", *_speed(flash["bytes"], flash["dd_seconds"])),
        ("`dd`, then `cmp`", *_speed(flash["bytes"], flash["dd_seconds"] + flash["cmp_seconds"])),
    ]
    return ["", "### Writing", "", *table(("", "data", "time", "speed"), rows)]


def _boot(figures: dict[str, Any], title: str) -> list[str]:
    first, later = figures["first"], figures["later"]
    rows = []
    for name in MILESTONES:
        row = [_WORDS[name]]
        for boot in (first, later):
            seconds, work = boot["seconds"].get(name), boot["processor_seconds"].get(name)
            row += ["-" if seconds is None else f"{seconds:.1f} s", "-" if work is None else f"{work:.1f} s"]
        rows.append(tuple(row))
    lines = ["", f"### Boot under {title}", "",
             "Seconds from the firmware's first line, and the processor seconds that QEMU took since power-on."
             " First boot: keys are enrolled (a restart), the state volume is made."
             f" Later boots: medians of {figures['boots']}.",
             "", *table(("", "first boot", "processor", "later boot", "processor"), rows)]  # fmt: skip
    times = later["seconds"]
    if {"kernel", "attested", "replica"} <= times.keys():
        attested, replica = (times[name] - times["kernel"] for name in ("attested", "replica"))
        lines += [
            "",
            f"Kernel to attested: {attested:.1f} s; kernel to the replica's answer: {replica:.1f} s (aim: 45 s).",
        ]
    memory = figures["memory"]
    if memory:
        used = memory["total-memory"] - memory["available-memory"]
        lines += [
            "",
            f"Memory of the idle node: {_mb(used)} in use of {_mb(memory['total-memory'])}"
            f" (files kept in memory: {_mb(memory['disk-caches'])}). The guest's balloon driver tells it.",
        ]
    return lines


def _relatives() -> list[str]:
    rows = [(name, words, source) for name, words, source in RELATIVES]
    return ["", "### What relatives publish", "",
            "Sizes and needs as they stand in their own documents; no times of boots or builds were found there.",
            "", *table(("", "published", "where"), rows)]  # fmt: skip


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _mb(size: float) -> str:
    return f"{size / _MEGA:.1f} MB" if size < _GIGA * 10 else f"{size / _GIGA:.1f} GB"


def _speed(size: int, seconds: float) -> tuple[str, str, str]:
    return _mb(size), f"{seconds:.2f} s", f"{size / _MEGA / max(seconds, 0.01):.0f} MB/s"
