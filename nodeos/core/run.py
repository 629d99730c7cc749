"""The only place that starts a program and waits for it."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from nodeos.core.errors import ToolError

# Programs get these variables and no others, so that a build or a test is the same in every shell.
# The certificate and proxy settings are what a host needs to reach its package mirror.
KEPT = (
    "PATH",
    "HOME",
    "TERM",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
)


def scrubbed_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment that every program of ours gets: a fixed locale and the variables in KEPT."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    return {**kept, "LC_ALL": "C.UTF-8", **(extra or {})}


def find_tool(name: str, *, package: str) -> str:
    """The path of a program, or a ToolError that names the Debian package to install."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if not found:
        raise ToolError(
            f"the program {name} is not installed", hint=f"run `make setup`, or: apt-get install {package}"
        )
    return found


def end(process: subprocess.Popen[bytes], *, seconds: float = 10) -> None:
    """End a program that was started in the background: ask it, wait ``seconds``, then kill it."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def run(
    command: Sequence[str | Path],
    *,
    what: str,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
    timeout: float = 60,
    log: Path | None = None,
    hint: str | None = None,
    good: Collection[int] = (0,),
) -> bytes:
    """Run a program to its end and return its standard output.

    ``what`` says in a few words what it does, for the error. With ``log``, both outputs go to that file
    (appended) and nothing is returned. ``timeout`` is in seconds. ``good`` are the exit codes that are no failure.

    Raises ToolError with the end of the program's own words and a line that can be copied and run again.
    """
    arguments = [str(part) for part in command]
    line = shlex.join(arguments)
    # Without input a program reads nothing: never the terminal of whoever started us.
    given: dict[str, Any] = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
    try:
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as file:
                file.write(f"$ {line}\n".encode())
                file.flush()
                done = subprocess.run(
                    arguments,
                    cwd=cwd,
                    env=scrubbed_environment(env),
                    **given,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    timeout=timeout,
                    check=False,
                )
        else:
            done = subprocess.run(
                arguments,
                cwd=cwd,
                env=scrubbed_environment(env),
                **given,
                capture_output=True,
                timeout=timeout,
                check=False,
            )
    except FileNotFoundError as error:
        raise ToolError(f"{what}: {arguments[0]} is not there", hint=hint or "run `make setup`") from error
    except subprocess.TimeoutExpired as error:
        raise ToolError(f"{what}: no end after {timeout:.0f} s\n  $ {line}", hint=hint) from error
    if done.returncode not in good:
        words = log.read_bytes() if log is not None else done.stderr or done.stdout
        tail = b"\n".join(words.strip().splitlines()[-12:]).decode(errors="replace")
        indented = "".join(f"\n  | {entry}" for entry in tail.splitlines())
        raise ToolError(f"{what}: exit code {done.returncode}\n  $ {line}{indented}", hint=hint)
    return done.stdout or b""
