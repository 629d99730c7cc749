"""Tokens of SoftHSM, for tests and the demo. They guard nothing: a real operator's key is on hardware."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path

from hsm.pin import read_pin
from nodeos.core.errors import ToolError
from nodeos.core.run import find_tool, run

_MODULES = tuple(
    Path("/usr/lib") / part / "libsofthsm2.so"
    for part in ("softhsm", "x86_64-linux-gnu/softhsm", "aarch64-linux-gnu/softhsm")
)


def find_module() -> Path:
    """SoftHSM's library, or a ToolError that says what to install."""
    for module in _MODULES:
        if module.exists():
            return module
    raise ToolError("SoftHSM is not installed", hint="run `make setup`, or: apt-get install softhsm2")


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftHsm:
    """One token. ``configuration`` is what SOFTHSM2_CONF must name in every process that uses it."""

    module: Path
    label: str
    configuration: Path

    @property
    def environment(self) -> dict[str, str]:
        return {"SOFTHSM2_CONF": str(self.configuration)}

    @classmethod
    def create(cls, directory: Path, *, label: str, pin_file: Path) -> SoftHsm:
        """Initialise a new token in ``directory`` (absolute, not there yet) with the PIN of ``pin_file``.

        The security officer's PIN is random and not kept: a token that is locked is made anew.
        """
        tokens = directory / "tokens"
        tokens.mkdir(parents=True)
        token = cls(module=find_module(), label=label, configuration=directory / "softhsm2.conf")
        token.configuration.write_text(
            f"directories.tokendir = {tokens}\nobjectstore.backend = file\nlog.level = ERROR\n"
        )
        tool = find_tool("pkcs11-tool", package="opensc")
        # The tool reads PINs from its environment: arguments can be seen by every process of the host.
        environment = {
            **token.environment,
            "TOKEN_PIN": read_pin(pin_file),
            "TOKEN_SO_PIN": secrets.token_hex(8),
        }
        start: list[str | Path] = [tool, "--module", token.module, "--so-pin", "env:TOKEN_SO_PIN"]
        run(
            [*start, "--init-token", "--slot-index", "0", "--label", label],
            what="making a token",
            env=environment,
        )
        pin = [
            "--init-pin",
            "--login",
            "--login-type",
            "so",
            "--pin",
            "env:TOKEN_PIN",
            "--token-label",
            label,
        ]
        run([*start, *pin], what="setting the token's PIN", env=environment)
        return token
