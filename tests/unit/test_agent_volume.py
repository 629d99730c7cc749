from __future__ import annotations

import json
from pathlib import Path

import pytest

from nodeos.agent.volume import read_volume
from nodeos.core.errors import NodeosError
from nodeos.core.protocol import StateVolume
from nodeos.core.statereport import Mode
from nodeos.core.wire import ParseError
from tests.support.agent_fakes import METADATA, UUID, make_config, read_header, state_report


def test_the_volume_is_read(tmp_path: Path) -> None:
    found = read_volume(make_config(tmp_path).volume_report, read_header)
    assert found == StateVolume(
        mode=Mode.OPEN,
        luks_uuid=UUID,
        made_this_boot=True,
        policy_keys=(b"p" * 32,),
        policy_pcrs=(7, 11, 12, 13, 15),
        floor=1,
        creation_proven=True,
    )


def test_an_exchanged_disk_is_told(tmp_path: Path) -> None:
    with pytest.raises(NodeosError, match="has the UUID other, but the initial RAM disk opened"):
        read_volume(
            make_config(tmp_path).volume_report, lambda device: ("other", json.dumps(METADATA).encode())
        )


def test_a_missing_report_is_told(tmp_path: Path) -> None:
    with pytest.raises(NodeosError, match=r"state volume report .* No such file") as caught:
        read_volume(tmp_path / "absent", read_header)
    assert "initial RAM disk" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "change",
    [
        {"mode": "ajar"},
        {"made_this_boot": 1},
        {"policy_keys": ["ab"]},
        {"policy_keys": ["x" * 64]},
        {"policy_pcrs": ["7"]},
        {"floor": 64},
        {"floor": -1},
        {"creation_proven": None},
        {"reason": 1},
        {"more": 1},
    ],
)
def test_a_misshapen_report_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    report = tmp_path / "state.json"
    report.write_text(json.dumps({**json.loads(state_report("/dev/state")), **change}))
    with pytest.raises(ParseError, match=r"state\.json"):
        read_volume(report, read_header)
