from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeos.agent.volume import read_volume, token_pcrs
from nodeos.core.errors import NodeosError
from nodeos.core.protocol import StateVolume
from nodeos.core.wire import ParseError
from tests.support.agent_fakes import METADATA, UUID, make_config, read_header


def metadata(*tokens: dict[str, Any]) -> bytes:
    return json.dumps({"tokens": {str(i): token for i, token in enumerate(tokens)}}).encode()


def token(**changes: Any) -> dict[str, Any]:
    fields = {"type": "systemd-tpm2", "tpm2-pcrs": [7], "tpm2_pubkey_pcrs": [11], **changes}
    return {name: value for name, value in fields.items() if value is not None}


def test_the_volume_is_read(tmp_path: Path) -> None:
    found = read_volume(make_config(tmp_path).volume_report, read_header)
    assert found == StateVolume(luks_uuid=UUID, made_this_boot=True, signed_pcrs=(11,), literal_pcrs=(7,))


def test_a_token_without_a_signed_policy_is_told_as_it_is() -> None:
    assert token_pcrs(metadata(token(tpm2_pubkey_pcrs=None)), "/dev/x") == ((), (7,))
    assert token_pcrs(metadata(token(**{"tpm2-pcrs": []})), "/dev/x") == ((11,), ())


def test_numbers_are_sorted() -> None:
    assert token_pcrs(metadata(token(**{"tpm2-pcrs": [7, 0, 7]})), "/dev/x")[1] == (0, 7)


@pytest.mark.parametrize("count", [0, 2])
def test_exactly_one_tpm_token_is_expected(count: int) -> None:
    with pytest.raises(NodeosError, match=f"/dev/x has {count} TPM tokens, expected one"):
        token_pcrs(metadata({"type": "systemd-recovery"}, *[token()] * count), "/dev/x")


@pytest.mark.parametrize("value", [7, ["7"], [True], [24], [-1], {"7": 1}])
def test_what_is_no_list_of_registers_is_refused(value: Any) -> None:
    with pytest.raises(ParseError, match="tpm2_pubkey_pcrs: expected a list"):
        token_pcrs(metadata(token(tpm2_pubkey_pcrs=value)), "/dev/x")


@given(st.binary(max_size=60) | st.sampled_from([b"{}", b'{"tokens":[]}', b'{"tokens":{"0":1}}', b"[]"]))
def test_any_header_is_read_or_refused(data: bytes) -> None:
    with pytest.raises(NodeosError):
        token_pcrs(data, "/dev/x")


def test_an_exchanged_disk_is_told(tmp_path: Path) -> None:
    with pytest.raises(NodeosError, match="has the UUID other, but the initial RAM disk opened"):
        read_volume(
            make_config(tmp_path).volume_report, lambda device: ("other", json.dumps(METADATA).encode())
        )


def test_a_missing_report_is_told(tmp_path: Path) -> None:
    with pytest.raises(NodeosError, match=r"state volume report .* No such file") as caught:
        read_volume(tmp_path / "absent", read_header)
    assert "initial RAM disk" in (caught.value.hint or "")


@pytest.mark.parametrize("content", ["{}", "[]", '{"made_this_boot":1,"luks_uuid":"","device":""}'])
def test_a_misshapen_report_is_refused(tmp_path: Path, content: str) -> None:
    report = tmp_path / "state.json"
    report.write_text(content)
    with pytest.raises(ParseError, match=r"state\.json"):
        read_volume(report, read_header)
