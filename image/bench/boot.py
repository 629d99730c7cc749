"""How long a node takes from power-on to answers, and what memory it needs then.

The demo's machine on the demo's path, watched from outside: the console's file tells when the firmware, the state
volume's program and the agent spoke, the replica's port when it answered. What the boots were worth the registrar
says: each must have been attested. Beside the time stands the processor time that QEMU took, which other work on
the host changes less.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from image import demo, qmp
from image.demo import Context, Result
from image.release_dir import ReleaseDir
from image.steps import Step, Steps
from image.vm import Machine, Vm, switch_on
from nodeos.core.errors import NodeosError

_SECONDS = 900.0
_POLL = 0.1
_ASK = 0.5
# An idle node: what the start left to do is done.
_IDLE = 30.0
_BALLOON = "/machine/peripheral/balloon"
_STATE = re.compile(rb"\[ *(\d+\.\d+)\] open-state\[\d+\]: nodeos: state: (?:made and )?opened")
# The console's words by milestone, in their order.
SIGNS = {
    "firmware": re.compile(rb"[^\0]"),
    "state": _STATE,
    "agent": re.compile(rb"nodeos: site: "),
    "attested": re.compile(rb"nodeos: running: attested"),
}
MILESTONES = ("firmware", "kernel", "state", "agent", "attested", "replica")


@dataclass(slots=True, kw_only=True)
class Watch:
    """When each milestone was seen: seconds since power-on, and QEMU's processor seconds until then.

    QEMU begins the console's file anew at each start.
    """

    vm: Vm
    port: int
    seen: dict[str, tuple[float, float]] = field(default_factory=dict)
    asked: float = 0.0

    def look(self, *, wanted: str) -> bool:
        """True once ``wanted`` was seen."""
        data = self.vm.machine.console.read_bytes() if self.vm.machine.console.exists() else b""
        now = time.monotonic() - self.vm.started
        for name, sign in SIGNS.items():
            if name not in self.seen and (match := sign.search(data)):
                self.seen[name] = (now, processor_seconds(self.vm.process.pid))
                if sign is _STATE:
                    # The kernel's clock stands before the line; QEMU's clock is the host's.
                    self.seen["kernel"] = (now - float(match[1]), float("nan"))
        if "attested" in self.seen and time.monotonic() - self.asked > _ASK and "replica" not in self.seen:
            self.asked = time.monotonic()
            if demo.answers_http(self.port):
                self.seen["replica"] = (
                    time.monotonic() - self.vm.started,
                    processor_seconds(self.vm.process.pid),
                )
        return wanted in self.seen

    def wait(self, wanted: str) -> None:
        deadline = time.monotonic() + _SECONDS
        while not self.look(wanted=wanted):
            if self.vm.process.poll() is not None or time.monotonic() > deadline:
                raise NodeosError(
                    f"the machine did not get as far as: {wanted}", hint=f"see {self.vm.machine.console}"
                )
            time.sleep(_POLL)

    def figures(self) -> dict[str, Any]:
        """Seconds from the first firmware line, and processor seconds from power-on."""
        start = self.seen["firmware"][0]
        return {
            "seconds": {
                name: round(self.seen[name][0] - start, 1) for name in MILESTONES if name in self.seen
            },
            "processor_seconds": {
                name: round(self.seen[name][1], 1)
                for name in MILESTONES
                if name in self.seen and name != "kernel"
            },
        }


def processor_seconds(pid: int) -> float:
    """User and system time of a process, all of its threads (proc_pid_stat(5): utime and stime)."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def measure(
    source: Path, work: Path, release: ReleaseDir, *, accelerator: str, boots: int, steps: Steps
) -> dict[str, Any]:
    """A first boot, and ``boots`` further ones with the median of each milestone."""
    directory = work / "bench/machine"
    step = Step(title="boot")
    context = Context(
        source=source, work=work, directory=directory, steps=steps, result=Result(steps=steps.done)
    )
    with ExitStack() as stack:
        demo.prepare(context, release, step)
        stack.enter_context(demo.serve_registrar(context))
        machine = Machine(directory=context.path("machine"))
        first = _first(context, machine, accelerator)
        later, memory = [], None
        for number in range(boots):
            steps.say(f"boot {number + 2} of {boots + 1}")
            watched, memory = _later(context, machine, accelerator, idle=number == boots - 1)
            later.append(watched)
    shutil.rmtree(directory, ignore_errors=True)
    return {
        "first": first,
        "later": {kind: _medians([item[kind] for item in later]) for kind in later[0]},
        "boots": boots,
        "memory": memory,
    }


def _on(context: Context, machine: Machine, accelerator: str) -> Any:
    return switch_on(
        machine,
        accelerator=accelerator,
        forward={context.replica_port: demo.REPLICA_PORT},
        extra=["-device", "virtio-balloon-pci,id=balloon"],
    )


def _first(context: Context, machine: Machine, accelerator: str) -> dict[str, Any]:
    """Keys are enrolled, the state volume is made, the operator approves at once."""
    with _on(context, machine, accelerator) as vm:
        watch = Watch(vm=vm, port=context.replica_port)
        context.steps.say("first boot: keys are enrolled, the state volume is made")
        watch.wait("agent")
        demo.first_boot(context, vm, Step(title="first boot"))
        context.operator("enroll", "approve", context.result.facts["machine"], "--yes")
        watch.wait("replica")
        vm.power_button(seconds=240)
    return watch.figures()


def _later(
    context: Context, machine: Machine, accelerator: str, *, idle: bool
) -> tuple[dict[str, Any], dict[str, int] | None]:
    before = _attestation(context)
    with _on(context, machine, accelerator) as vm:
        watch = Watch(vm=vm, port=context.replica_port)
        watch.wait("replica")
        memory = None
        if idle:
            context.steps.say(f"memory of the idle node, after {_IDLE:.0f} s")
            memory = memory_of(machine)
        vm.power_button(seconds=240)
    after = _attestation(context)
    if after["boot_id"] == before["boot_id"] or after["state"] not in ("passed", "watch"):
        raise NodeosError(f"the boot was not attested: {after['state']}", hint=f"see {machine.console}")
    return watch.figures(), memory


def _attestation(context: Context) -> dict[str, Any]:
    nodes = context.operator("node", "list")
    found: dict[str, Any] = context.operator("node", "show", nodes[0]["node_id"])["attestation"]
    return found


def memory_of(machine: Machine) -> dict[str, int] | None:
    """What the guest's balloon driver reports (virtio 1.2, 5.5.6.3), in bytes; None if it tells nothing."""
    socket = machine.directory / "qmp.sock"
    polling = {"path": _BALLOON, "property": "guest-stats-polling-interval", "value": 2}
    time.sleep(_IDLE)
    qmp.execute(socket, "qom-set", polling)
    time.sleep(6)
    answer = qmp.execute(socket, "qom-get", {"path": _BALLOON, "property": "guest-stats"})
    stats = {name: int(answer["stats"].get(f"stat-{name}", -1)) for name in
             ("total-memory", "available-memory", "free-memory", "disk-caches")}  # fmt: skip
    # QEMU shows what the guest did not tell as -1 in 64 bits.
    return None if any(value < 0 or value >= 1 << 62 for value in stats.values()) else stats


def _medians(items: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(statistics.median(item[name] for item in items), 1) for name in items[0]}
