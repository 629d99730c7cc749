"""The demo's result as a person reads it."""

from __future__ import annotations

from typing import Any

from image.demo import Result
from image.steps import duration


def render(result: Result) -> str:
    """Steps, times, node id, measurements and verdicts."""
    facts = result.facts
    lines = ["", "Summary", "-------"]
    for step in result.steps:
        lines.append(f"{'held  ' if step.held else 'FAILED'}  {duration(step.seconds):>12}  {step.title}")
    lines.append("")
    if "release" in facts:
        release = facts["release"]
        lines += [
            f"release       {release['version']} ({release['variant']})",
            f"root hash     {release['root_hash']}",
        ]
    if "machine" in facts:
        lines.append(f"machine       {facts['machine']}")
    if "node" in facts:
        node = facts["node"]
        lines.append(f"node          {node['node_id']}")
        lines += _measurements(facts["release"]["predicted_pcrs"], node["first_attestation"]["pcrs"])
        for name, key in (("first boot", "first_attestation"), ("second boot", "second_attestation")):
            if key in node:
                lines.append(f"{name:<13} {_verdicts(node[key])}")
    if "canister" in facts:
        canister = facts["canister"]
        after = canister.get("counter_after_reboot", "not read")
        lines.append(
            f"canister      {canister['id']}: counter {canister['counter']}, after the reboot {after}"
        )
    lines.append(f"verdict       {'every step held' if result.error is None else 'FAILED'}")
    return "\n".join(lines)


def _measurements(predicted: dict[str, str], quoted: dict[str, str]) -> list[str]:
    lines = []
    for name, label in (("4", "4"), ("7", "7"), ("11", "11 after ready")):
        same = "as predicted" if predicted[label] == quoted[name] else "NOT as predicted"
        lines.append(f"PCR {name:<9} {quoted[name]} {same}")
    return lines


def _verdicts(attestation: dict[str, Any]) -> str:
    """The verdict of one boot: how many checks, and those that did not simply pass by name and code."""
    verdicts = attestation["verdicts"]
    odd = [
        f"{item['check']} {item['result']} ({', '.join(found['code'] for found in item['findings'])})"
        for item in verdicts
        if item["result"] != "passed"
    ]
    return f"{attestation['state']}: {'; '.join(odd) or f'all {len(verdicts)} checks'}"
