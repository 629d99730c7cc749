"""What the node states about itself and how it proves it."""

from __future__ import annotations

import fcntl
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hsm.tpm.types import Quote
from nodeos.agent.config import Config
from nodeos.agent.device import TpmDevice
from nodeos.core.errors import NodeosError, UsageError
from nodeos.core.files import read_file
from nodeos.core.protocol import (
    QUOTED_PCRS,
    Challenge,
    Evidence,
    KeyProofs,
    NodeKeys,
    Statement,
    StateVolume,
    qualifying_data,
    secret_proof,
)

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# What the protocol lets through for each log, in bytes.
LOG_LIMIT = 1 << 18

ProveKeys = Callable[[bytes], KeyProofs]


def boot_id() -> str:
    """The kernel's random name for this boot."""
    return read_file(BOOT_ID, "boot id", limit=64).decode().strip()


def read_release(path: Path) -> str:
    """IMAGE_VERSION in os-release(5). Raises UsageError: an image without a version is no release."""
    for line in read_file(path, "os-release", limit=1 << 16).decode(errors="replace").splitlines():
        name, _, value = line.partition("=")
        if name.strip() == "IMAGE_VERSION" and (version := value.strip().strip("\"'")):
            return version
    raise UsageError(
        f"os-release {path}: has no IMAGE_VERSION", hint="build the image again with `nodeos image build`"
    )


def make_statement(
    config: Config,
    *,
    keys: NodeKeys,
    volume: StateVolume,
    recovery: bytes,
    memory_encryption: str,
    fingerprint: bytes,
) -> Statement:
    """What holds for the whole boot."""
    return Statement(
        boot_id=boot_id(),
        release=read_release(config.os_release),
        keys=keys,
        volume=volume,
        recovery=recovery,
        memory_encryption=memory_encryption,
        fingerprint=fingerprint,
        # Those of the moment are put in at each attestation.
        addresses=(),
    )


def gather(
    config: Config,
    tpm: TpmDevice,
    prove_keys: ProveKeys,
    challenge: Challenge,
    *,
    secret: bytes,
    statement: bytes,
) -> Evidence:
    """Quote the registers, with the logs that explain them, and have the node's keys sign for it."""
    qualifying = qualifying_data(challenge.nonce, statement)
    quote, firmware, userspace = quote_with_logs(config, tpm, qualifying)
    return Evidence(
        session=challenge.session,
        statement=statement,
        secret_proof=secret_proof(secret, qualifying),
        key_proofs=prove_keys(qualifying),
        quote=quote.attest,
        signature=quote.signature,
        pcrs={index: quote.pcrs[index] for index in QUOTED_PCRS},
        firmware_log=firmware,
        userspace_log=userspace,
    )


def quote_with_logs(config: Config, tpm: TpmDevice, qualifying: bytes) -> tuple[Quote, bytes, bytes]:
    """A quote and the two logs as they were at that moment. A log that is absent is empty bytes: the
    registrar decides what that means."""
    with locked(config.userspace_log):
        quote = tpm.quote(qualifying, QUOTED_PCRS)
        return quote, read_log(config.firmware_log), read_log(config.userspace_log)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold systemd's lock on its measurement log: it takes the same one around each extension and its record
    (``tpm2_userspace_log_open`` in tpm2-util.c), so that none comes between the quote and the reading."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        yield
        return
    except OSError as error:
        raise NodeosError(
            f"measurement log {path}: {error.strerror}", hint="the agent must run as root"
        ) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


def is_incomplete(path: Path) -> bool:
    """True if systemd marked its log (sticky bit) because a measurement was cut off before its record."""
    try:
        return bool(path.stat().st_mode & stat.S_ISVTX)
    except OSError:
        return False


def read_log(path: Path) -> bytes:
    """A whole log, or empty bytes if there is none. Raises NodeosError if the protocol can't carry it."""
    try:
        with path.open("rb") as file:
            data = file.read(LOG_LIMIT + 1)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise NodeosError(
            f"measurement log {path}: {error.strerror}", hint="the agent must run as root"
        ) from error
    if len(data) > LOG_LIMIT:
        raise NodeosError(
            f"measurement log {path}: larger than {LOG_LIMIT} bytes",
            hint="restart the machine; if it stays, report the firmware's make and version",
        )
    return data
