"""Hardware that the tests share: a manufacturer, a software TPM, a PKCS#11 token. All real programs."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

from hsm.softtpm import ManufacturerCa, SoftTpm
from tests.support.softhsm import SoftToken, make_token

# Tests assert what is done, not how fast: another program may have the processor.
settings.register_profile("nodeos", deadline=None)
settings.load_profile("nodeos")


@pytest.fixture(scope="session")
def manufacturer_ca(tmp_path_factory: pytest.TempPathFactory) -> ManufacturerCa:
    """The test manufacturer whose certificates the software TPMs carry."""
    return ManufacturerCa.create(tmp_path_factory.mktemp("manufacturer") / "ca")


@pytest.fixture(scope="session")
def provisioned_tpm(manufacturer_ca: ManufacturerCa, tmp_path_factory: pytest.TempPathFactory) -> SoftTpm:
    """Provisioned once, never run: what ``soft_tpm`` is copied from."""
    tpm = SoftTpm(tmp_path_factory.mktemp("tpm") / "machine")
    tpm.provision(manufacturer_ca)
    return tpm


@pytest.fixture
def soft_tpm(provisioned_tpm: SoftTpm, tmp_path: Path) -> SoftTpm:
    """A software TPM of its own for each test; all have the same keys. Run it with ``serve()``."""
    return provisioned_tpm.copy(tmp_path / "tpm")


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SoftToken:
    """An empty token of its own for each test."""
    made = make_token(tmp_path / "token")
    monkeypatch.setenv("SOFTHSM2_CONF", str(made.configuration))
    return made
