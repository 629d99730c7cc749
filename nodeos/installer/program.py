"""The installer's recipe: site, network, preflight, disk, installation, boot entry, result.

A failed check stops it before anything is written. What others can mend is waited for: a web server, a stick that
is plugged in again, the operator's permission to erase a disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nodeos.core.erase import Challenge, EraseToken
from nodeos.core.errors import Finding, NodeosError, RefusedError, UnreachableError, UsageError
from nodeos.core.installation import Installation, Verdict
from nodeos.core.site import Network, SignedSite, SiteConfig
from nodeos.flash.writer import Report
from nodeos.installer import decide, medium
from nodeos.installer.boot_entry import Esp
from nodeos.installer.target import Installed
from nodeos.preflight.checks import Check

_WORDS = {"check": "checking the release", "write": "writing", "verify": "reading back"}
_PAUSE = 5.0


class Disks(Protocol):
    """See ``target.MachineDisks``."""

    def survey(self) -> tuple[decide.Surveyed, ...]: ...
    def challenge(self, path: str) -> tuple[Challenge, tuple[str, ...]]: ...
    def install(self, path: str, token: EraseToken | None, progress: Report) -> Installed: ...


class Screen(Protocol):
    """The part of ``nodeos.agent.console.Console`` that is used."""

    def tell(self, step: str, message: str) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """What is installed."""

    version: str
    root_hash: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the recipe reaches the outside through."""

    release: Release
    find_medium: Callable[[], medium.Medium]
    read_site: Callable[[Path], tuple[SignedSite, SiteConfig]]
    site_directory: Path
    apply_network: Callable[[Network], None]
    preflight: Callable[[str], tuple[Check, ...]]
    open_disks: Callable[[SignedSite, SiteConfig], Disks]
    start_next: Callable[[Esp], str]
    machine: Callable[[], str | None]
    report: Callable[[SiteConfig, Installation], bool]
    picture: Callable[[Installation], str]
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic


@dataclass(slots=True)
class _Known:
    """What a report can say when it comes to one."""

    source: str = "unknown"
    removable: bool = True
    site: SiteConfig | None = None
    disk: str | None = None


def run_installer(parts: Parts, screen: Screen) -> bool:
    """Install, and tell how it ended. True if a medium must be taken out before the machine is started again.

    Raises NodeosError, after it was told and reported, for what a person must mend.
    """
    began = parts.clock()
    known = _Known()

    def finish(verdict: Verdict, message: str, findings: tuple[Finding, ...] = ()) -> None:
        _finish(parts, screen, known, _end(parts, known, began, verdict, message, findings))

    try:
        message = _install(parts, screen, known)
    except NodeosError as error:
        refused = isinstance(error, RefusedError | UsageError)
        screen.tell("refused" if refused else "failed", str(error))
        findings = error.findings if isinstance(error, RefusedError) else ()
        finish(Verdict.REFUSED if refused else Verdict.FAILED, error.message.splitlines()[0], findings)
        raise
    except Exception as error:
        # What the kernel refused, or a fault of this program: the journal gets the whole of it.
        told = f"{type(error).__name__}: {error}" if isinstance(error, OSError) else type(error).__name__
        screen.tell("failed", f"{told}\n  → start the installer again; if it fails again, report it")
        finish(Verdict.FAILED, told)
        raise
    finish(Verdict.INSTALLED, message)
    return known.removable


def _install(parts: Parts, screen: Screen, known: _Known) -> str:
    screen.tell("installer", f"nodeos {parts.release.version}, root hash {parts.release.root_hash.hex()}")
    source = parts.find_medium()
    known.source, known.removable = source.source, source.removable
    _fetch(parts, screen, source)
    signed, site = parts.read_site(parts.site_directory)
    known.site = site
    screen.tell("site", f"data center {site.data_center}, registrar {site.registrar_url}")
    if site.network is not None:
        parts.apply_network(site.network)
        screen.tell("network", f"static addresses: {', '.join(site.network.addresses)}")
    _preflight(parts, screen, site)
    disks = parts.open_disks(signed, site)
    chosen = decide.choose(disks.survey(), site.install_disk)
    device = chosen.candidate.device
    known.disk = device.serial or None
    named = " ".join(word for word in (device.path, device.model, device.serial) if word)
    screen.tell("disk", f"{named}, {device.size} bytes ({chosen.state})")
    token_wanted = chosen.state == decide.DATA
    installed = _write(parts, screen, disks, chosen.path, source) if token_wanted else None
    if installed is None:
        installed = disks.install(chosen.path, None, _progress(screen))
    screen.tell("disk", f"{device.path} holds nodeos {parts.release.version} and reads back the same")
    try:
        screen.tell("firmware", f"{parts.start_next(installed.esp)} starts the disk")
    except NodeosError as error:
        # The disk has the loader where firmware looks without an entry.
        screen.tell("firmware", str(error))
    return f"{device.path} holds nodeos {parts.release.version}"


def _fetch(parts: Parts, screen: Screen, source: medium.Medium) -> None:
    """Waits for a network or a stick as long as it takes: nothing can be done without."""
    told = ""
    while True:
        try:
            medium.save_site(source, parts.site_directory)
            return
        except UnreachableError as error:
            if str(error) != told:
                told = str(error)
                screen.tell("medium", f"{told}\n  waiting for it")
            parts.sleep(_PAUSE)


def _preflight(parts: Parts, screen: Screen, site: SiteConfig) -> None:
    profile = decide.profile_for(site.node_reward_type)
    screen.tell("preflight", f"checking this machine against the profile {profile}")
    checks = parts.preflight(profile)
    warned = "".join(f"\n  ! {item.code}: {item.found}" for item in checks if item.status == "warn")
    decide.check_preflight(profile, checks)
    screen.tell("preflight", f"{len(checks)} checks, none failed{warned}")


def _write(parts: Parts, screen: Screen, disks: Disks, path: str, source: medium.Medium) -> Installed:
    """A disk with data: wait for the operator's token, as long as it takes. A bad one is told."""
    challenge, contents = disks.challenge(path)
    lines = "".join(f"\n  {line}" for line in contents)
    where = f"{source.source} as " + ("nodeos/erase.json" if source.removable else medium.ERASE_FILE)
    screen.tell(
        "erase",
        f"{path} holds data and is left alone without the operator's permission:{lines}\n"
        f"  nonce {challenge.nonce.hex()}\n"
        f"  → put this in a file: {challenge.to_bytes().decode()}\n"
        "  → have the operator run `nodeos operator allow-erase FILE`\n"
        f"  → put what it writes on the {where}; looking every {_PAUSE:.0f} s",
    )
    seen: bytes | None = None
    while True:
        found = _token(source)
        if found is not None and found != seen:
            seen = found
            try:
                return disks.install(path, EraseToken.parse(found), _progress(screen))
            except (RefusedError, UsageError) as error:
                if isinstance(error, RefusedError) and not all(
                    item.code.startswith("erase.") for item in error.findings
                ):
                    raise
                screen.tell("erase", str(error))
        parts.sleep(_PAUSE)


def _token(source: medium.Medium) -> bytes | None:
    try:
        return source.read((medium.ERASE_FILE,)).get(medium.ERASE_FILE)
    except UnreachableError:
        return None  # the stick is out: somebody writes the token


def _progress(screen: Screen) -> Report:
    """A line for each tenth of a phase: a serial line is slow, and a screen scrolls."""
    shown: dict[str, int] = {}

    def show(phase: str, done: int, of: int) -> None:
        tenth = 10 * done // of if of else 10
        if shown.get(phase) != tenth:
            shown[phase] = tenth
            screen.tell(phase, f"{_WORDS.get(phase, phase)}: {10 * tenth} % of {of >> 20} MiB")

    return show


def _end(  # noqa: PLR0917 - called in one place
    parts: Parts, known: _Known, began: float, verdict: Verdict, message: str, findings: tuple[Finding, ...]
) -> Installation:
    return Installation(
        verdict=verdict,
        data_center=known.site.data_center if known.site is not None else "",
        machine=parts.machine(),
        release=parts.release.version,
        root_hash=parts.release.root_hash,
        source=known.source,
        disk=known.disk,
        message=message,
        findings=findings,
        seconds=int(parts.clock() - began),
    )


def _finish(parts: Parts, screen: Screen, known: _Known, installation: Installation) -> None:
    screen.tell("result", installation.to_bytes().decode())
    screen.tell("code", "\n" + parts.picture(installation))
    # Without a verified configuration nobody is told: a foreign one could name any registrar.
    if known.site is not None and parts.report(known.site, installation):
        screen.tell("registrar", f"{known.site.registrar_url} knows the result")
