from __future__ import annotations

import fcntl
from collections.abc import Sequence
from pathlib import Path

import pytest

from hsm.tpm.types import Quote
from nodeos.agent import evidence
from nodeos.agent.config import Config
from nodeos.core.errors import NodeosError, UsageError
from nodeos.core.protocol import (
    QUOTED_PCRS,
    Challenge,
    Evidence,
    qualifying_data,
    secret_proof,
)
from tests.support.agent_fakes import FakeTpm, make_config, prove_keys

CHALLENGE = Challenge(session="s", credential_blob=b"", encrypted_secret=b"", nonce=b"n" * 32, seconds=60)


def gather(config: Config, tpm: FakeTpm) -> Evidence:
    return evidence.gather(config, tpm, prove_keys, CHALLENGE, secret=b"secret", statement=b"statement")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return make_config(tmp_path)


def test_evidence_binds_nonce_and_statement(config: Config) -> None:
    found = gather(config, FakeTpm())
    qualifying = qualifying_data(b"n" * 32, b"statement")
    assert found.quote == qualifying
    assert found.secret_proof == secret_proof(b"secret", qualifying)
    assert found.key_proofs == prove_keys(qualifying)
    assert (found.firmware_log, found.userspace_log) == (b"firmware", b"userspace")
    assert set(found.pcrs) == set(QUOTED_PCRS)
    assert Evidence.parse(found.to_bytes()) == found


def test_absent_logs_are_empty(config: Config) -> None:
    config.firmware_log.unlink()
    config.userspace_log.unlink()
    found = gather(config, FakeTpm())
    assert (found.firmware_log, found.userspace_log) == (b"", b"")


def test_a_log_that_is_too_large_is_told(config: Config) -> None:
    config.firmware_log.write_bytes(bytes(evidence.LOG_LIMIT + 1))
    with pytest.raises(NodeosError, match="larger than 262144 bytes"):
        gather(config, FakeTpm())


def test_systemd_can_not_measure_between_quote_and_log(config: Config) -> None:
    """systemd takes the exclusive lock of its log for each measurement: while we quote, it can't get it."""

    class Watching(FakeTpm):
        def quote(self, qualifying: bytes, pcrs: Sequence[int]) -> Quote:
            with config.userspace_log.open("ab") as log, pytest.raises(BlockingIOError):
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return super().quote(qualifying, pcrs)

    gather(config, Watching())
    with config.userspace_log.open("ab") as log:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_an_interrupted_measurement_is_seen(config: Config) -> None:
    assert not evidence.is_incomplete(config.userspace_log)
    config.userspace_log.chmod(0o1600)
    assert evidence.is_incomplete(config.userspace_log)
    config.userspace_log.unlink()
    assert not evidence.is_incomplete(config.userspace_log)


@pytest.mark.parametrize(
    ("text", "version"),
    [("IMAGE_VERSION=1.2\n", "1.2"), ('ID=x\nIMAGE_VERSION="1.2"\n', "1.2"), ("IMAGE_VERSION='1'\n", "1")],
)
def test_the_release_is_the_version_of_the_image(tmp_path: Path, text: str, version: str) -> None:
    (tmp_path / "os-release").write_text(text)
    assert evidence.read_release(tmp_path / "os-release") == version


@pytest.mark.parametrize("text", ["", "VERSION_ID=13\n", "IMAGE_VERSION=\n", 'IMAGE_VERSION=""\n'])
def test_an_image_without_a_version_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "os-release").write_text(text)
    with pytest.raises(UsageError, match="has no IMAGE_VERSION"):
        evidence.read_release(tmp_path / "os-release")
