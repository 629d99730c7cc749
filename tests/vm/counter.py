"""The demo's counter canister, asked on a machine of the boot matrix: its value lies on the state volume."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from typing import Any

from image.vm import Vm
from nodeos.core.errors import NodeosError
from nodeos.core.run import run
from tests.vm.lab import SECONDS, Lab

# The port of a node's replica, which ``forward`` of ``switch_on`` maps.
REPLICA = 8080


def read_counter(lab: Lab, vm: Vm, port: int) -> int:
    """What the counter stands at, certified by the node's own chain key. Waits for the replica."""
    summary = json.loads((lab.demo / "summary.json").read_text())
    command = [
        sys.executable, "-m", "nodeos", "--json", "canister", "query", summary["canister"]["id"], "read",
        "--url", f"http://127.0.0.1:{port}", "--root-key", summary["node"]["committee_key"],
        "--identity", lab.demo / "operator.json", "--pin-file", lab.demo / "pin",
    ]  # fmt: skip
    found: list[Any] = []

    def answers() -> bool:
        with suppress(NodeosError):
            output = run(command, what="nodeos canister query", env=lab.token_environment, timeout=60)
            found.append(json.loads(output)["values"])
        return bool(found)

    vm.wait_until(answers, seconds=SECONDS, what=f"{lab.case}: waiting for the replica")
    (value,) = found[0]
    return int(value)
