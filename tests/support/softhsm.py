"""Fresh SoftHSM tokens, with their PIN at hand for the tests that get it wrong."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hsm.softhsm import SoftHsm


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftToken:
    """A token and its PIN. ``configuration`` is what SOFTHSM2_CONF must name while it is used."""

    module: Path
    label: str
    pin: str
    pin_file: Path
    configuration: Path


def make_token(directory: Path, *, label: str = "operator", pin: str = "123456") -> SoftToken:
    """Initialise a new token below ``directory``."""
    directory.mkdir(parents=True, exist_ok=True)
    pin_file = directory / "pin"
    pin_file.write_text(pin + "\n")
    pin_file.chmod(0o600)
    token = SoftHsm.create(directory / label, label=label, pin_file=pin_file)
    return SoftToken(
        module=token.module, label=label, pin=pin, pin_file=pin_file, configuration=token.configuration
    )
