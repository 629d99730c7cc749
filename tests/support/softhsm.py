"""Fresh SoftHSM tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nodeos.core.errors import ToolError
from nodeos.core.run import find_tool, run

MODULES = (
    Path("/usr/lib/softhsm/libsofthsm2.so"),
    Path("/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so"),
    Path("/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftToken:
    """A token and its secrets. ``configuration`` is what SOFTHSM2_CONF must name while it is used."""

    module: Path
    label: str
    pin: str
    pin_file: Path
    configuration: Path


def find_module() -> Path:
    """SoftHSM's library, or a ToolError that says what to install."""
    for module in MODULES:
        if module.exists():
            return module
    raise ToolError("SoftHSM is not installed", hint="run `make setup`, or: apt-get install softhsm2")


def make_token(directory: Path, *, label: str = "operator", pin: str = "123456") -> SoftToken:
    """Initialise a new token below ``directory``."""
    module = find_module()
    tokens = directory / "tokens"
    tokens.mkdir(parents=True)
    configuration = directory / "softhsm2.conf"
    configuration.write_text(
        f"directories.tokendir = {tokens}\nobjectstore.backend = file\nlog.level = ERROR\n"
    )
    pin_file = directory / "pin"
    pin_file.write_text(pin + "\n")
    pin_file.chmod(0o600)
    tool = find_tool("softhsm2-util", package="softhsm2")
    run(
        [tool, "--init-token", "--free", "--label", label, "--pin", pin, "--so-pin", "87654321"],
        what="making a token",
        env={"SOFTHSM2_CONF": str(configuration)},
    )
    return SoftToken(module=module, label=label, pin=pin, pin_file=pin_file, configuration=configuration)
