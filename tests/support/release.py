"""A made-up release directory, complete with its installer: nothing in it starts, all of it has the right form."""

from __future__ import annotations

import json
from pathlib import Path

from image import installer, pe
from tests.support.pe import make_pe, sign_pe

STUB = {
    ".text": b"code" * 300,
    ".sbat": b"sbat,1",
    ".sdmagic": b"#### LoaderInfo: systemd-stub 257 ####",
    ".reloc": b"r",
}
LINE = (
    "roothash="
    + "ab" * 32
    + " console=tty0 console=ttyS0,115200 quiet panic=30 rd.systemd.gpt_auto=yes init=/x"
)
UKI = {
    ".osrel": b"ID=nodeos\n", ".cmdline": LINE.encode(), ".uname": b"6.12", ".pcrpkey": b"a key",
    ".linux": b"MZ a kernel" * 100, ".initrd": b"an initrd", ".pcrsig": b"{}",
}  # fmt: skip
EPOCH = 1_700_000_000


def stub() -> bytes:
    """With room in its headers, as systemd's has."""
    return pe.drop_sections(make_pe({**STUB, **UKI, ".x": b"", ".y": b""}), ".osrel")


def build_uki(sections: dict[str, bytes], *, kernel: int = pe.DATA) -> bytes:
    """An unsigned UKI on that stub; ``kernel`` are the characteristics of .linux."""
    image = stub()
    for name, data in sections.items():
        image = pe.add_section(image, name, data, characteristics=kernel if name == ".linux" else pe.DATA)
    return image


def make_release(directory: Path) -> Path:
    """With a signed installer."""
    directory.mkdir(parents=True)
    manifest = {"version": 2, "release": "0.1.0", "source_date_epoch": EPOCH}
    files = {name: f"content of {name}".encode() for name in installer.NEEDED}
    files |= {
        "release.json": json.dumps(manifest).encode(),
        "nodeos.efi": sign_pe(build_uki(UKI)),
        "packages.json": b"[]",
    }
    for name, data in files.items():
        (directory / name).write_bytes(data)
    made = installer.make_uki(installer.Parts.read(directory))
    (directory / installer.NAME).write_bytes(sign_pe(made))
    return directory
