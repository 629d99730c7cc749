"""The EFI system partition of an installed disk: made as a file, the same bytes for the same input.

The file system is made with mkfs.vfat (dosfstools) and filled with mtools, so no mount is needed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from nodeos.core import layout
from nodeos.core.run import find_tool, run
from nodeos.core.site import SignedSite
from nodeos.install.source import Source

SECURE_BOOT_VARIABLES = ("PK", "KEK", "db", "dbx")
# The menu is there for who holds a key down; nobody may edit the command line. In a virtual machine in setup mode
# sd-boot enrols the keys of loader/keys/auto without a question, on metal it asks (see docs/operator.md).
LOADER_CONF = b"timeout 0\neditor no\nsecure-boot-enroll if-safe\n"


def uki_name(version: str) -> str:
    """The UKI's name without boot counting: what was installed by hand is not tried, it is the system."""
    return f"EFI/Linux/nodeos_{version}.efi"


def site_files(site: SignedSite) -> dict[str, bytes]:
    """Where a node looks for its site configuration."""
    return {"nodeos/site.json": site.document, "nodeos/site.sig": site.signature}


def files(source: Source, site: SignedSite | None) -> dict[str, bytes]:
    """Everything on the EFI system partition of a first installation, by path."""
    loader = source.read("boot.efi")
    found = {
        "EFI/BOOT/BOOTX64.EFI": loader,
        "EFI/systemd/systemd-bootx64.efi": loader,
        uki_name(source.version): source.read("nodeos.efi"),
        "loader/loader.conf": LOADER_CONF,
    }
    for name in SECURE_BOOT_VARIABLES:
        # dbx is the only one that a release may do without.
        if name != "dbx" or f"{name}.auth" in source.artefacts:
            found[f"loader/keys/auto/{name}.auth"] = source.read(f"{name}.auth")
    return found | (site_files(site) if site is not None else {})


def make(path: Path, content: Mapping[str, bytes], *, sector: int, volume_id: int, epoch: int) -> None:
    """Make a vfat of the layout's size in ``path``, a sparse file. ``epoch`` becomes all of its times."""
    with path.open("wb") as file:
        file.truncate(layout.ESP_SIZE)
    mkfs = find_tool("mkfs.vfat", package="dosfstools")
    run(
        [mkfs, "--invariant", "-F", "32", "-S", str(sector), "-i", f"{volume_id:08x}", "-n", "ESP", path],
        what="making the EFI system partition",
        env=_environment(epoch),
    )
    write_files(str(path), content, epoch=epoch)


def write_files(volume: str, content: Mapping[str, bytes], *, epoch: int | None = None) -> None:
    """Put files on a vfat, over those of the same name. ``volume`` is as mtools' option ``-i`` wants it.

    They are written in the order of their names, whatever the order of ``content``. Without ``epoch`` they get
    the present time.
    """
    mmd, mcopy = (find_tool(name, package="mtools") for name in ("mmd", "mcopy"))
    folders = sorted({str(parent) for name in content for parent in PurePosixPath(name).parents} - {"."})
    environment = _environment(epoch)
    if folders:
        # -D s: a folder that is there is left as it is, though mmd fails then. If one is missing mcopy fails.
        run(
            [mmd, "-D", "s", "-i", volume, *(f"::{folder}" for folder in folders)],
            what=f"making folders on {volume}",
            env=environment,
            good=(0, 1),
        )
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "file"
        for name in sorted(content):
            file.write_bytes(content[name])
            run(
                [mcopy, "-D", "o", "-i", volume, file, f"::{name}"],
                what=f"writing {name} to {volume}",
                env=environment,
                stdin=b"",
            )


def _environment(epoch: int | None) -> dict[str, str]:
    """Times on vfat are local ones; the host's own mtools.conf has no say."""
    fixed = {"TZ": "UTC", "MTOOLSRC": "/dev/null"}
    return fixed if epoch is None else {**fixed, "SOURCE_DATE_EPOCH": str(epoch)}
