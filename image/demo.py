"""The whole path on one machine, by the commands that an operator would type.

Everything runs for real: mkosi's image, a virtual machine with Secure Boot and a software TPM, the registrar as
a process of its own, the operator's key on a SoftHSM token, the replica on the node. The verdict of each step
is an exit code, an answer of the registrar (which checked TPM-signed evidence), or a certified answer of the
replica; the console is only shown, never judged.
"""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hsm.softhsm import SoftHsm
from hsm.softtpm import ManufacturerCa
from image import builder, sign
from image.keys import keys_of
from image.packages import Policy, drift_of
from image.release_dir import ReleaseDir
from image.steps import Step, Steps
from image.vm import Machine, Vm, choose_accelerator, switch_on
from nodeos.core.errors import NodeosError, ToolError, UsageError
from nodeos.core.files import write_atomic
from nodeos.core.release import Variant
from nodeos.core.run import end, scrubbed_environment
from nodeos.core.run import run as run_program

DATA_CENTER = "demo-dc"
REWARD_TYPE = "dev"
_GUEST_SEES_HOST = "10.0.2.2"
REPLICA_PORT = 8080
# Of those that nodes reach with each other, and one (LLMNR) that systemd may open by itself: closed to us.
_CLOSED_PORTS = (22, 2497, 4100, 5355)
_PROBE_SECONDS = 8.0
# Software emulation is slow, and a build machine may be busy: these are for what hangs, not for what is slow.
_ENROL_SECONDS = 900.0
_SERVE_SECONDS = 420.0
_MARKER = ".nodeos-demo"


@dataclass(slots=True, kw_only=True)
class Result:
    """What the demo found. ``error`` is None only if every step held."""

    steps: list[Step]
    facts: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    hint: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "held": self.error is None,
            "error": self.error,
            "steps": [step.to_json() for step in self.steps],
            "seconds": round(sum(step.seconds for step in self.steps), 1),
            **self.facts,
        }


@dataclass(slots=True, kw_only=True)
class Context:
    """A demo under way: its folder and what the steps learned. ``work`` holds the keys."""

    source: Path
    work: Path
    directory: Path
    steps: Steps
    result: Result
    registrar_port: int = 0
    replica_port: int = 0
    closed_ports: dict[int, int] = field(default_factory=dict)
    token_environment: dict[str, str] = field(default_factory=dict)

    def path(self, name: str) -> Path:
        return self.directory / name

    def nodeos(self, *arguments: str | Path, timeout: float = 120) -> Any:
        """Run one nodeos command with --json and return its result."""
        command = [sys.executable, "-m", "nodeos", "--json", *arguments]
        words = " ".join(str(word) for word in arguments[:3])
        output = run_program(
            command, what=f"nodeos {words}", cwd=self.source, env=self.token_environment, timeout=timeout
        )
        return json.loads(output) if output.strip() else None

    def operator(self, *arguments: str | Path, timeout: float = 120) -> Any:
        """Run a command of the operator against the demo's registrar."""
        return self.nodeos(
            *arguments,
            "--registrar", f"https://127.0.0.1:{self.registrar_port}",
            "--ca", self.path("registrar") / "ca.pem",
            "--identity", self.path("operator.json"),
            "--pin-file", self.path("pin"),
            timeout=timeout,
        )  # fmt: skip

    def canister(self, *arguments: str | Path) -> Any:
        """Run a canister command as the operator, with the node's attested chain key pinned."""
        return self.nodeos(
            "canister", *arguments,
            "--url", f"http://127.0.0.1:{self.replica_port}",
            "--root-key", self.result.facts["node"]["committee_key"],
            "--identity", self.path("operator.json"),
            "--pin-file", self.path("pin"),
        )  # fmt: skip


def run(*, source: Path, work: Path, as_json: bool) -> Result:
    """Run the demo. What fails ends it, and stands in the result."""
    steps = Steps(7, as_json=as_json)
    context = Context(
        source=source, work=work, directory=work / "demo", steps=steps, result=Result(steps=steps.done)
    )
    try:
        with ExitStack() as stack:
            _run(context, stack)
    except NodeosError as error:
        context.result.error, context.result.hint = error.message, error.hint
    return context.result


def _run(context: Context, stack: ExitStack) -> None:
    steps, facts = context.steps, context.result.facts
    with steps.step("Build and sign the node image") as step:
        release = build_image(context, step)
    with steps.step("Prepare the site: registrar, operator's token, disk") as step:
        prepare(context, release, step)
        stack.enter_context(serve_registrar(context))
        facts["accelerator"] = choose_accelerator(context.path("probe"))
        step.notes.append(f"virtual machine by {facts['accelerator']}")
    machine = Machine(directory=context.path("machine"))
    forward = {context.replica_port: REPLICA_PORT, **context.closed_ports}
    with switch_on(machine, accelerator=facts["accelerator"], forward=forward) as vm:
        with steps.step("First boot: state volume, identity, fingerprint, request") as step:
            first_boot(context, vm, step)
        with steps.step("Enrolment: evidence verified, operator approves, node inducted") as step:
            enrol(context, vm, step)
        with steps.step("Replica: a counter canister answers") as step:
            run_canister(context, vm, step)
        with steps.step("Power off") as step:
            vm.power_button(seconds=240)
    with (
        switch_on(machine, accelerator=facts["accelerator"], forward=forward) as vm,
        steps.step("Second boot: state unlocked, identity and counter kept") as step,
    ):
        second_boot(context, vm, step)
        steps.say("switching off")
        vm.power_button(seconds=240)


def build_image(context: Context, step: Step) -> ReleaseDir:
    """Step 1. Keys are made once and kept: a new build is an update, not another product."""
    keys = keys_of(context.work, Variant.RELEASE)
    # A demo must run on any day: where a locked package can't be had it takes the mirror's, and says so.
    config = builder.Config(
        source=context.source, work=context.work, keys=keys.directory, packages=Policy.ALLOW_DRIFT
    )
    unsigned = builder.build(config, context.steps.say)
    drifted = drift_of(unsigned.directory)
    if drifted:
        step.notes.append(f"not the locked packages: {len(drifted)} differ, see packages.json")
    context.steps.say("signing")
    signed = sign.sign(unsigned, keys, context.work / "image/release/release", pin=_no_pin, allow_drift=True)
    release = signed.release
    size = sum(item.size for item in release.artefacts.values()) >> 20
    packages = builder.package_count(signed.directory)
    uki = release.artefacts[signed.uki.name].size >> 20
    step.notes.append(f"release {release.version}: {size} MiB, UKI {uki} MiB, {packages} packages")
    step.notes.append(f"root hash {release.root_hash.hex()}")
    context.result.facts["release"] = {
        "version": release.version,
        "variant": str(release.variant),
        "root_hash": release.root_hash.hex(),
        "predicted_pcrs": {
            "4": release.pcrs["sha256"][4].hex(),
            "7": release.pcrs["sha256"][7].hex(),
            **{f"11 after {phase}": value.hex() for phase, value in release.pcr11["sha256"].items()},
        },
    }
    return signed


def _no_pin(name: str) -> str:
    raise UsageError(f"the demo's key {name} is not in a file", hint="use keys that the demo made itself")


def prepare(context: Context, release: ReleaseDir, step: Step) -> None:
    """Step 2: what a site has before its first machine is switched on."""
    fresh_directory(context.directory)
    keys = keys_of(context.work, Variant.RELEASE)
    context.steps.say("the operator's token")
    write_atomic(context.path("pin"), b"demo-operator-pin\n", mode=0o600)
    token = SoftHsm.create(context.path("token"), label="demo", pin_file=context.path("pin"))
    context.token_environment = token.environment
    operator = context.nodeos(
        "operator", "init", "--module", token.module, "--token", "demo", "--key", "operator",
        "--pin-file", context.path("pin"), "--out", context.path("operator.json"),
    )  # fmt: skip
    context.steps.say("the manufacturer of the test TPM")
    ca = ManufacturerCa.create(context.path("manufacturer"))
    context.steps.say("the registrar")
    registrar = context.path("registrar")
    context.nodeos("registrar", "init", "--dir", registrar, "--name", _GUEST_SEES_HOST, "--name", "127.0.0.1")
    context.nodeos("registrar", "trust", "add", "--dir", registrar, ca.roots)
    context.nodeos(
        "registrar", "release", "add", "--dir", registrar, "--release-key", keys.public_file("release"),
        release.manifest,
    )  # fmt: skip
    context.nodeos(
        "registrar", "dc", "add", "--dir", registrar, "--dc", DATA_CENTER,
        "--operator-key", context.path("operator.json"), "--profile", "dev",
        "--reward-type", REWARD_TYPE, "--site-key", keys.public_file("site"),
    )  # fmt: skip
    # What the virtual machine's port forwarding shows as the sender of everything.
    context.nodeos("registrar", "dc", "allow", "--dir", registrar, DATA_CENTER, _GUEST_SEES_HOST)
    context.registrar_port, context.replica_port = free_port(), free_port()
    context.closed_ports = {free_port(): port for port in _CLOSED_PORTS}
    context.steps.say("the site's configuration, the machine and its disk")
    context.nodeos(
        "media", "site", context.path("site"), "--site-key", keys.path("site.key"), "--dc", DATA_CENTER,
        "--registrar", f"https://{_GUEST_SEES_HOST}:{context.registrar_port}",
        "--ca", registrar / "ca.pem", "--operator", operator["principal"],
        "--operator-key", context.path("operator.json"), "--reward-type", REWARD_TYPE,
    )  # fmt: skip
    disk = context.path("disk.raw")
    context.nodeos(
        "install", release.directory, "--file", disk, "--size", str(8 << 30), "--site", context.path("site"),
        "--site-key", keys.public_file("site"), "--release-key", keys.public_file("release"),
    )  # fmt: skip
    Machine.make(context.path("machine"), image=disk, ca=ca)
    disk.unlink()
    step.notes.append(f"operator {operator['principal']}")
    context.result.facts["operator"] = operator["principal"]


def fresh_directory(directory: Path) -> None:
    """An empty folder for the demo. Only what an earlier demo made is removed."""
    if directory.exists() and any(directory.iterdir()):
        if not (directory / _MARKER).exists():
            raise UsageError(f"{directory} holds something that no demo made", hint="move it away")
        shutil.rmtree(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / _MARKER).touch()


@contextmanager
def serve_registrar(context: Context) -> Iterator[None]:
    """The registrar as a process of its own, as long as the demo runs."""
    log = context.path("registrar.log")
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "nodeos", "registrar", "serve", "--dir", context.path("registrar"),
             "--listen", f"127.0.0.1:{context.registrar_port}"],
            cwd=context.source, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=scrubbed_environment(),
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 30
        while not _listens(context.registrar_port):
            if process.poll() is not None or time.monotonic() > deadline:
                tail = log.read_text(errors="replace")[-800:]
                raise ToolError(f"the registrar did not start: {tail}", hint=f"its log is {log}")
            time.sleep(0.1)
        yield
    finally:
        end(process, seconds=15)


def first_boot(context: Context, vm: Vm, step: Step) -> None:
    """Step 3: the machine's request is at the registrar, its evidence verified."""
    found: dict[str, Any] = {}
    context.steps.say("waiting for the machine's request (firmware, key enrolment, kernel, state volume)")

    def asked() -> bool:
        for item in context.operator("enroll", "list"):
            found.update(item)
        return found.get("state") in ("pending", "refused")

    vm.wait_until(asked, seconds=_ENROL_SECONDS, what="waiting for the machine's request")
    seconds = time.monotonic() - vm.started
    if found["state"] != "pending":
        raise NodeosError(f"the registrar refused the machine: {json.dumps(found.get('findings'))}")
    check_ports(context, "before_induction", dict.fromkeys((REPLICA_PORT, *_CLOSED_PORTS), "silent"))
    context.result.facts["machine"] = found["machine"]
    context.result.facts["power_on_to_verified_seconds"] = round(seconds, 1)
    step.notes.append(f"machine {found['machine']}")
    step.notes.append(f"{seconds:.0f} s from power-on to verified evidence")


def enrol(context: Context, vm: Vm, step: Step) -> None:
    """Step 4: the operator reads what was verified and approves; the node is in the registry."""
    machine = context.result.facts["machine"]
    context.operator("enroll", "approve", machine, "--yes")
    nodes = context.operator("node", "list")
    if [node["machine"] for node in nodes] != [machine]:
        raise NodeosError("the approved machine is not in the node registry")
    node = context.operator("node", "show", nodes[0]["node_id"])
    facts = context.result.facts
    facts["node"] = {
        "node_id": node["node_id"],
        "committee_key": base64.b64decode(node["keys"]["committee"]).hex(),
        "first_attestation": node["attestation"],
    }
    volume = node["attestation"]["volume"]
    if not volume["made_this_boot"]:
        raise NodeosError("the node did not make its state volume in its first boot")
    step.notes.append(f"node {node['node_id']}")
    step.notes.append(
        f"state volume sealed to signed policies on PCRs {volume['policy_pcrs']}, floor {volume['floor']}"
    )
    predicted = facts["release"]["predicted_pcrs"]
    for index, name in (("4", "4"), ("7", "7"), ("11", "11 after ready")):
        quoted = node["attestation"]["pcrs"][index]
        if quoted != predicted[name]:
            raise NodeosError(f"PCR {index} is {quoted}, the build predicted {predicted[name]}")
        step.notes.append(f"PCR {index:<2} {quoted} as predicted")
    if vm.process.poll() is not None:
        raise NodeosError("the node switched itself off")


def wait_for_replica(context: Context, vm: Vm) -> float:
    """Wait until the replica answers on the node's HTTP port; the seconds since power-on."""

    def answers() -> bool:
        return answers_http(context.replica_port)

    vm.wait_until(answers, seconds=_SERVE_SECONDS, what="waiting for the replica")
    return time.monotonic() - vm.started


def run_canister(context: Context, vm: Vm, step: Step) -> None:
    """Step 5: install a counter, increment it twice, read it."""
    context.steps.say("waiting for the replica")
    wait_for_replica(context, vm)
    check_ports(context, "inducted", {REPLICA_PORT: "answers", **dict.fromkeys(_CLOSED_PORTS, "silent")})
    step.notes.append(
        f"port {REPLICA_PORT} open to {_GUEST_SEES_HOST} since the induction, all others closed"
    )
    context.steps.say("installing the counter")
    canister = context.canister("create")["canister"]
    module = context.source / "replica/canisters/counter.wat"
    context.canister("install", canister, module)
    replies = []
    timings = []
    for kind, method in (("call", "increment"), ("call", "increment"), ("query", "read")):
        began = time.monotonic()
        replies.append(context.canister(kind, canister, method)["values"])
        timings.append(time.monotonic() - began)
    if replies != [[1], [2], [2]]:
        raise NodeosError(f"the counter answered {replies}, expected 1, 2, 2")
    context.result.facts["canister"] = {"id": canister, "counter": 2}
    step.notes.append(f"canister {canister}: increment → 1, increment → 2, read → 2 (certified)")
    step.notes.append(
        f"seconds with the command's start-up: {', '.join(f'{value:.2f}' for value in timings)}"
    )


def second_boot(context: Context, vm: Vm, step: Step) -> None:
    """Step 6: the same machine after a power cycle."""
    facts = context.result.facts
    first = facts["node"]["first_attestation"]
    node: dict[str, Any] = {}
    context.steps.say("waiting for the node to attest again")

    def attested() -> bool:
        node.update(context.operator("node", "show", facts["node"]["node_id"]))
        return bool(node["attestation"]["boot_id"] != first["boot_id"])

    vm.wait_until(attested, seconds=_ENROL_SECONDS, what="waiting for the node to attest again")
    attestation = node["attestation"]
    facts["node"]["second_attestation"] = attestation
    facts["power_on_to_attested_again_seconds"] = round(time.monotonic() - vm.started, 1)
    if attestation["state"] not in ("passed", "watch"):
        raise NodeosError(f"the second attestation is {attestation['state']}: {attestation['verdicts']}")
    if attestation["volume"]["made_this_boot"]:
        raise NodeosError("the node made a new state volume instead of unlocking its own")
    if attestation["volume"]["luks_uuid"] != first["volume"]["luks_uuid"]:
        raise NodeosError("the state volume is another one than before")
    context.steps.say("waiting for the replica")
    seconds = wait_for_replica(context, vm)
    facts["power_on_to_replica_seconds"] = round(seconds, 1)
    reply = context.canister("query", facts["canister"]["id"], "read")["values"]
    if reply != [facts["canister"]["counter"]]:
        raise NodeosError(f"the counter is {reply} after the reboot, it was {facts['canister']['counter']}")
    facts["canister"]["counter_after_reboot"] = reply[0]
    step.notes.append(f"state volume unlocked by the TPM, same node id, attestation {attestation['state']}")
    step.notes.append(f"counter still {reply[0]}; replica answered {seconds:.0f} s after power-on")


def free_port() -> int:
    """A TCP port of the loopback interface that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def check_ports(context: Context, when: str, expected: dict[int, str]) -> None:
    """Look at the node's ports from outside, and keep what was found. Raises NodeosError for another answer."""
    forwarded = {REPLICA_PORT: context.replica_port}
    forwarded |= {guest: host for host, guest in context.closed_ports.items()}
    with ThreadPoolExecutor(len(expected)) as pool:
        found = dict(zip(expected, pool.map(lambda port: probe(forwarded[port]), expected), strict=True))
    context.result.facts.setdefault("ports", {})[when] = {str(port): sign for port, sign in found.items()}
    if found != expected:
        raise NodeosError(f"ports of the node, {when.replace('_', ' ')}: found {found}, expected {expected}")


def probe(port: int, *, seconds: float = _PROBE_SECONDS) -> str:
    """How the guest takes a connection to the forwarded port: "answers" (in HTTP), "refused", or "silent".

    QEMU accepts the connection before the guest has seen it: only what comes back counts. Where nobody listens the
    guest refuses at once; where its firewall drops what comes, nothing comes back.
    """
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=seconds) as link:
            link.sendall(b"GET /api/v2/status HTTP/1.0\r\nHost: node\r\n\r\n")
            return "answers" if link.recv(16).startswith(b"HTTP/1.") else "refused"
    except TimeoutError:
        return "silent"
    except OSError:
        return "refused"


def answers_http(port: int) -> bool:
    """Whether a replica answers on this port of the loopback interface."""
    return probe(port, seconds=3) == "answers"
