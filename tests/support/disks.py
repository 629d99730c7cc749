"""A machine's disks as files, and the programs that the initrd's state script calls, for tests of that script.

``blkid``, ``cmp`` and the text tools are the host's own. ``lsblk`` shows the disks of this world; what would need
a TPM or write to a disk is a stand-in that records how it was called.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "image/initrd/extra/usr/lib/nodeos/state"
STATE_TYPE = "2d1f0a56-7b1c-4d8e-9c52-6e6f64656f73"
ESP_UUID = "6b1c7f3e-0d5a-4c39-9f2e-5a1f0c9d7e11"
GIB = 1 << 30

# What cryptsetup prints for a volume of systemd-repart 257, without the long fields.
BOUND = """LUKS header information
Version:       \t2
UUID:          \tde7aa503-1abf-4b38-8ec5-1d6e696a6c23
Tokens:
  0: systemd-tpm2
\ttpm2-hash-pcrs:   7
\ttpm2-pcr-bank:    sha256
\ttpm2-pubkey-pcrs: 11
\tKeyslot:    0
Digests:
"""

_LSBLK = """
import json, pathlib, sys
here = pathlib.Path(__file__).parent
if (here / "lsblk-fails").exists():
    sys.exit(1)
words = sys.argv[1:]
columns = words[words.index("--output") + 1].split(",")
table = json.loads((here / "table.json").read_text())
wanted = words[-1] if words[-1].startswith("/") else None
for row in table:
    if wanted and row["NAME"] != wanted and ("--nodeps" in words or row.get("PKNAME") != wanted):
        continue
    if "--nodeps" in words and not wanted and row.get("PKNAME"):
        continue
    print(" ".join(str(row.get(column, "")) for column in columns))
"""
_REPART = """
import json, pathlib, sys
here = pathlib.Path(__file__).parent
if (here / "repart-fails").exists():
    print("Failed to seal to TPM2: lockout")
    sys.exit(1)
if not (here / "udev-is-late").exists():
    table = json.loads((here / "table.json").read_text())
    disk = sys.argv[-1]
    table.append({"NAME": disk + "1", "TYPE": "part", "PKNAME": disk, "PARTTYPE": "%s"})
    (here / "table.json").write_text(json.dumps(table))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How the script ended, what it said, and which programs it called."""

    code: int
    words: str
    calls: list[list[str]]

    def called(self, program: str) -> list[list[str]]:
        return [call[1:] for call in self.calls if call[0] == program]


@dataclass(slots=True)
class World:
    """The disks of one machine below ``directory``."""

    directory: Path
    rows: list[dict[str, object]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tools.mkdir(parents=True)
        (self.directory / "dev").mkdir()
        self.key.write_text("a public key")
        self.signature.write_text("{}")
        self.header.write_text(BOUND)
        self._program("lsblk", _LSBLK)
        self._program("systemd-repart", _REPART % STATE_TYPE)
        for name in ("modprobe", "udevadm", "systemd-cryptsetup"):
            self._program(
                name, f"import sys, os\nsys.exit(os.path.exists({str(self.tools / name)!r} + '-fails'))"
            )
        dump = f"print(open({str(self.header)!r}).read() if sys.argv[1] == 'luksDump' else 'the-uuid')"
        self._program(
            "cryptsetup", f"import os, sys\nif not os.path.exists({str(self.header)!r}): sys.exit(1)\n{dump}"
        )
        # Files of efivarfs refuse to be sought in, which tail does and cat does not.
        refuse = "if sys.argv[-1].endswith('PartUUID'): sys.exit('tail: Illegal seek')"
        self._program("tail", f"import os, sys\n{refuse}\nos.execv('/usr/bin/tail', ['tail', *sys.argv[1:]])")
        self.when_it_waits("")

    @property
    def tools(self) -> Path:
        return self.directory / "tools"

    @property
    def key(self) -> Path:
        return self.directory / "key.pem"

    @property
    def signature(self) -> Path:
        return self.directory / "signature.json"

    @property
    def header(self) -> Path:
        """What ``cryptsetup luksDump`` says; without it no device is a LUKS volume."""
        return self.directory / "header"

    @property
    def run_directory(self) -> Path:
        return self.directory / "run"

    def breaks(self, what: str) -> None:
        """Break a stand-in: lsblk-fails, repart-fails, systemd-cryptsetup-fails, udev-is-late."""
        (self.tools / what).touch()

    def when_it_waits(self, script: str, *, end_after: int = 4) -> None:
        """Python lines that run each time the script sleeps. It is ended at the fourth time."""
        self._program(
            "sleep",
            f"""
import json, os, pathlib, signal
here = pathlib.Path(__file__).parent
count = here / "slept"
times = int(count.read_text()) + 1 if count.exists() else 1
count.write_text(str(times))
{script}
if times >= {end_after}:
    os.kill(os.getppid(), signal.SIGTERM)
""",
        )

    def disk(self, name: str, size: int = 2 * GIB, **columns: object) -> Path:
        """An empty disk: a sparse file, as ``lsblk`` shows it."""
        path = self.directory / "dev" / name
        with path.open("wb") as file:
            file.truncate(size)
        self.rows.append({"NAME": str(path), "TYPE": "disk", "RM": 0, "RO": 0, "SIZE": size, **columns})
        return path

    def partition(self, disk: Path, **columns: object) -> str:
        """The first partition of a disk. Nothing is written to the disk."""
        name = f"{disk}1"
        self.rows.append({"NAME": name, "TYPE": "part", "PKNAME": str(disk), **columns})
        return name

    def boot_disk(self, name: str = "vda", size: int = 4 * GIB, **columns: object) -> Path:
        """The disk that this machine was started from."""
        disk = self.disk(name, size, **columns)
        self.partition(disk, PARTUUID=ESP_UUID)
        return disk

    def outcome(self, body: str = "main", *, booted_from: str | None = ESP_UUID) -> Outcome:
        """Source the script and run ``body``. Without ``booted_from`` the boot loader left no word."""
        variable = self.directory / "LoaderDevicePartUUID"
        if booted_from is not None:
            variable.write_bytes(b"\x06\0\0\0" + (booted_from.upper() + "\0").encode("utf-16-le"))
        (self.tools / "table.json").write_text(json.dumps(self.rows))
        places = {
            "KEY": self.key, "SIGNATURE": self.signature, "BOOTED_FROM": variable,
            "CRYPTSETUP": self.tools / "systemd-cryptsetup", "RUN": self.run_directory,
            "SCREEN": self.tools / "no-screen",
        }  # fmt: skip
        settings = "\n".join(f"{name}={shlex.quote(str(path))}" for name, path in places.items())
        done = subprocess.run(
            ["/bin/bash", "-c", f". {shlex.quote(str(SCRIPT))}\n{settings}\n{body}"],
            env={"PATH": f"{self.tools}:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=60, check=False,
        )  # fmt: skip
        log = self.tools / "calls"
        calls = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        return Outcome(code=done.returncode, words=done.stdout.decode(), calls=calls)

    def _program(self, name: str, body: str) -> None:
        path = self.tools / name
        record = (
            "import json as _json, sys as _sys, pathlib as _pathlib\n"
            "with (_pathlib.Path(__file__).parent / 'calls').open('a') as _log:\n"
            f"    _log.write(_json.dumps([{name!r}, *_sys.argv[1:]]) + '\\n')\n"
        )
        path.write_text(f"#!{sys.executable} -IS\n{record}{body}\n")
        path.chmod(0o755)


def write_at(path: Path, offset: int, data: bytes) -> None:
    """Put bytes on a disk; a negative offset counts from its end."""
    with path.open("r+b") as file:
        file.seek(offset, os.SEEK_SET if offset >= 0 else os.SEEK_END)
        file.write(data)
