"""Runs inside an attacker's system, with the release's own root as its root directory.

Extends PCR 11 as it was told to, asks the TPM for the key of the state volume, tries it, and reports on a virtio
port.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

HERE = Path("/run/attack")
PORT = Path("/dev/virtio-ports/nodeos.verdict")


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.2)


def state_partition() -> str:
    command = ["lsblk", "--json", "--list", "--paths", "--output", "NAME,PARTTYPE"]
    rows = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["blockdevices"]
    return next(str(row["name"]) for row in rows if row["parttype"] == "2d1f0a56-7b1c-4d8e-9c52-6e6f64656f73")


def cryptsetup(*words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["cryptsetup", *words], check=False, capture_output=True, input=stdin)


def main() -> None:
    sys.path.insert(0, "/usr/lib/nodeos/python")
    from hsm.tpm import Tpm
    from nodeos.core.errors import NodeosError
    from nodeos.core.statepolicy import PolicySignatures
    from nodeos.state import header

    wait_for(PORT)
    wait_for(Path("/dev/tpmrm0"))
    subprocess.run(["udevadm", "settle", "--timeout=60"], check=False)
    # Raw commands: the project has no function that extends PCR 11.
    for command in sorted(HERE.glob("extend.*")):
        with Path("/dev/tpm0").open("r+b", buffering=0) as tpm:
            tpm.write(command.read_bytes())
            tpm.read(4096)
    device = state_partition()
    metadata = cryptsetup("luksDump", "--dump-json-metadata", device).stdout
    uuid = cryptsetup("luksUUID", device).stdout.decode().strip()
    signatures = PolicySignatures.parse((HERE / "signature.json").read_bytes())
    opened, errors = False, []
    with Tpm() as chip:
        pcrs = chip.read_pcrs((7, 11))
        for token in header.parse(metadata, uuid, device).tokens:
            try:
                key = chip.unseal(token.sealed, signatures)
            except NodeosError as error:
                errors.append(str(error))
                continue
            words = ("open", "--test-passphrase", "--key-slot", str(token.keyslot), "--key-file", "-", device)
            opened = cryptsetup(*words, stdin=key).returncode == 0
    report = {"device": device, "opened": opened, "errors": errors}
    report |= {f"pcr{index}": value.hex() for index, value in pcrs.items()}
    PORT.write_text(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
