"""The installer: a unified kernel image of its own, made from a finished release without another build.

Kernel, initrd, os-release and stub are the node's. The release itself is appended to the initrd, so that the
Authenticode signature of this one file covers all that it installs. It has neither .pcrpkey nor .pcrsig, and
another command line and initrd than the node's: PCR 11 never takes a value that a policy was signed for, so an
installer can't open the state of a node.

How it boots (image/initrd/extra, image/extra): the kernel unpacks /release into the initramfs; in the initrd
``nodeos-release.service`` moves it to /run/nodeos/release, which outlives the initrd, and a generator has its
root.raw mounted on /sysroot; the system then starts ``nodeos-installer.target`` instead of a node's services.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from image import cpio, measure, pe
from nodeos.core.errors import UsageError
from nodeos.core.files import read_file
from nodeos.core.release import BootPhase

NAME = "installer.efi"
# Where the kernel unpacks the release; the initrd's unit knows it too.
FOLDER = "release"
# What every release directory holds; the rest of its files (dbx.auth, the lists of packages) come along.
NEEDED = (
    "boot.efi", "nodeos.efi", "root.raw", "verity.raw", "verity-sig.json", "PK.auth", "KEK.auth", "db.auth",
    "release.json", "release.sig",
)  # fmt: skip
_LIMIT = 2 << 30
# What the installer takes over from the node's command line: how the machine is run and where it speaks. Nothing
# that says what the root is.
_KEPT = ("console=", "quiet", "panic=", "mem_encrypt=", "systemd.machine_id=", "systemd.getty_auto=",
         "systemd.firstboot=", "lockdown=")  # fmt: skip
_OWN = (
    "nodeos.install",
    "systemd.unit=nodeos-installer.target",
    # The installer has the screen to itself: no moving line about a unit that takes long, which is the installer.
    "systemd.show_status=error",
    # Its root is what the initrd's unit mounts: nothing that lies on a disk may be taken for it, or be mounted.
    "rd.systemd.gpt_auto=no",
    "systemd.gpt_auto=no",
    "systemd.swap=no",
    "systemd.volatile=state",
)
_NODE_ONLY = (".pcrpkey", ".pcrsig")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What an installer is made of: the node's UKI, and the files of the release by name."""

    uki: bytes
    files: Mapping[str, bytes]
    source_date_epoch: int

    @classmethod
    def read(cls, release: Path) -> Parts:
        """From a finished release directory. Raises UsageError if it lacks something."""
        missing = [name for name in NEEDED if not (release / name).is_file()]
        if missing:
            raise UsageError(
                f"{release} is no complete release, it lacks {', '.join(missing)}",
                hint="make it with `nodeos image sign`",
            )
        files = {
            path.name: read_file(path, "release artefact", limit=_LIMIT)
            for path in sorted(release.iterdir())
            if path.is_file() and path.name != NAME
        }
        return cls(uki=files["nodeos.efi"], files=files, source_date_epoch=_epoch(files["release.json"]))


def _epoch(manifest: bytes) -> int:
    try:
        value = json.loads(manifest)["source_date_epoch"]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError("release.json names no source_date_epoch", hint="sign the release again") from error
    if not isinstance(value, int) or not 0 <= value < 1 << 32:
        raise UsageError(f"release.json: source_date_epoch {value!r} is no time")
    return value


def command_line(node: str) -> str:
    """The installer's kernel command line, from the node's."""
    kept = [word for word in node.split() if any(_same(word, item) for item in _KEPT)]
    return " ".join([*kept, *_OWN])


def _same(word: str, item: str) -> bool:
    return word.startswith(item) if item.endswith("=") else word == item


def make_uki(parts: Parts) -> bytes:
    """The unsigned installer. The same release gives the same bytes; signatures on the node's UKI don't count.

    Raises UsageError if ``parts.uki`` is no UKI whose own sections follow the stub's.
    """
    what = "nodeos.efi"
    missing = [name for name in NEEDED if name not in parts.files]
    if missing:
        raise UsageError(f"the release lacks {', '.join(missing)}")
    image = pe.strip_signatures(parts.uki, what)
    layout, contents = pe.parse(image, what), pe.section_contents(image, what)
    # systemd-stub's last section of its own; what ukify adds follows it.
    names = [section.name for section in layout.sections]
    if ".reloc" not in names or not {".linux", ".initrd", ".cmdline"} <= set(names):
        raise UsageError(f"{what}: no unified kernel image on systemd-stub")
    added = layout.sections[names.index(".reloc") + 1 :]
    if not {".linux", ".initrd", ".cmdline"} <= {section.name for section in added}:
        raise UsageError(f"{what}: its kernel, initrd and command line don't follow the stub")
    if added[0].name == ".profile" or ".profile" in names:
        raise UsageError(f"{what} has profiles: an installer is made from a UKI with one")
    node_line = contents[".cmdline"].rstrip(b"\0\n").decode()
    own = {
        ".cmdline": command_line(node_line).encode(),
        ".initrd": _initrd(contents[".initrd"], parts),
    }
    result = pe.drop_sections(image, added[0].name, what)
    for section in added:
        if section.name not in _NODE_ONLY:
            content = own.get(section.name, contents[section.name])
            result = pe.add_section(
                result, section.name, content, NAME, characteristics=section.characteristics
            )
    return result


def _initrd(node: bytes, parts: Parts) -> bytes:
    files = {f"{FOLDER}/{name}": data for name, data in parts.files.items()}
    return node + bytes(-len(node) % 4) + cpio.archive(files, mtime=parts.source_date_epoch)


def check(uki: bytes) -> None:
    """Refuse an installer that carries what belongs to a node alone. Raises UsageError."""
    found = [name for name in _NODE_ONLY if name in pe.section_contents(uki, NAME)]
    if found:
        raise UsageError(f"{NAME} carries {', '.join(found)}: it must not be able to open a node's state")
    line = _uki(uki).command_line.split()
    if "nodeos.install" not in line or any(word.startswith(("roothash=", "root=")) for word in line):
        raise UsageError(f"{NAME}: its command line is not an installer's: {' '.join(line)}")


def pcr11(uki: bytes, bank: str = "sha256") -> dict[BootPhase, bytes]:
    """PCR 11 of the installer after each boot phase."""
    return measure.pcr11(_uki(uki), bank)


def _uki(data: bytes) -> measure.Uki:
    return measure.Uki(data=data, sections=pe.section_contents(data, NAME))
