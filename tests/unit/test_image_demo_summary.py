"""The demo's summary says what held, what didn't, and never calls a difference "as predicted"."""

from __future__ import annotations

from typing import Any

from image.demo import Result
from image.demo_summary import render
from image.steps import Step


def _facts(**pcrs: str) -> dict[str, Any]:
    predicted = {"4": "a4", "7": "a7", "11 after ready": "a11"}
    attestation = {
        "state": "watch",
        "pcrs": {"4": "a4", "7": "a7", "11": "a11", **pcrs},
        "verdicts": [
            {"check": "quote", "result": "passed", "findings": []},
            {
                "check": "fingerprint",
                "result": "watch",
                "findings": [{"code": "fingerprint.memory", "message": ""}],
            },
        ],
    }
    return {
        "release": {"version": "1", "variant": "release", "root_hash": "00", "predicted_pcrs": predicted},
        "machine": "m",
        "node": {"node_id": "n", "first_attestation": attestation},
    }


def test_what_held() -> None:
    text = render(Result(steps=[Step(title="Build", held=True, seconds=61.0)], facts=_facts()))
    assert "held      1 min 01 s  Build" in text
    assert text.count("as predicted") == 3
    assert "NOT" not in text
    assert "first boot    watch: fingerprint watch (fingerprint.memory)" in text
    assert text.endswith("verdict       every step held")


def test_a_measurement_that_differs_and_a_step_that_failed() -> None:
    failed = Result(steps=[Step(title="Boot")], facts=_facts(**{"11": "b11"}), error="no")
    text = render(failed)
    assert "FAILED" in text
    assert "PCR 11        b11 NOT as predicted" in text
    assert text.endswith("verdict       FAILED")


def test_an_early_end_has_a_summary_too() -> None:
    assert render(Result(steps=[], error="no")).endswith("verdict       FAILED")


def test_json_says_whether_it_held() -> None:
    assert Result(steps=[]).to_json()["held"] is True
    assert Result(steps=[], error="no").to_json()["held"] is False
