"""Debian package sources for the build, derived from the host's own, so that no mirror's name is in the project.

mkosi writes its sources file only where none is there, and its default names a debug archive that not every
mirror has. The file made here goes into the sandbox of the tools tree and of both images.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

from nodeos.core.errors import ToolError
from nodeos.core.files import write_atomic
from nodeos.core.run import find_tool, run

RELEASE = "trixie"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_FALSE = ("no", "false", "without", "off", "disable", "0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """One Debian archive on a mirror: its address and whether it is the security archive."""

    uri: str
    security: bool


def parse_deb822(text: str) -> list[Archive]:
    """The archives in a ``.sources`` file (sources.list(5), deb822 style)."""
    archives = []
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n\s*\n", lines):
        # A line that begins with a blank goes on with the field above it.
        unfolded = re.sub(r"\n[ \t]+", " ", stanza)
        fields = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in unfolded.splitlines())
        }
        if "deb" not in fields.get("types", "").split() or "main" not in fields.get("components", "").split():
            continue
        if fields.get("enabled", "yes").lower() in _FALSE or not _signed_by_debian(fields.get("signed-by")):
            continue
        archives += _archives(fields.get("uris", "").split(), fields.get("suites", "").split())
    return archives


def parse_one_line(text: str) -> list[Archive]:
    """The archives in a ``.list`` file (one-line style)."""
    archives = []
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s+([^#]*)", line)
        if not match or "main" not in match[4].split():
            continue
        options = dict(option.partition("=")[::2] for option in (match[1] or "").split())
        if _signed_by_debian(options.get("signed-by")):
            archives += _archives([match[2]], [match[3]])
    return archives


def _signed_by_debian(keyring: str | None) -> bool:
    # Vendors name their suites "stable" and "main" too, but each brings a keyring of its own.
    return keyring is None or "debian-archive" in keyring


def _archives(uris: list[str], suites: list[str]) -> list[Archive]:
    codenames = r"(bookworm|trixie|forky|stable|testing)(-updates|-security|/updates)?"
    return [
        Archive(uri=uri.rstrip("/"), security=suite.endswith(("-security", "/updates")))
        for uri in uris
        for suite in suites
        if re.fullmatch(codenames, suite)
    ]


def host_archives(etc: Path = Path("/etc/apt")) -> list[Archive]:
    """The Debian archives that this host uses, in their order. Raises ToolError if there are none."""
    archives = []
    for path in [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]:
        if path.suffix == ".sources" and path.is_file():
            archives += parse_deb822(path.read_text())
        elif path.suffix == ".list" and path.is_file():
            archives += parse_one_line(path.read_text())
    if not any(not archive.security for archive in archives):
        raise ToolError(
            f"{etc} names no Debian archive",
            hint="the build needs a Debian 12 or 13 host with a package mirror in /etc/apt",
        )
    return archives


def sources(archives: list[Archive]) -> str:
    """A sources file for trixie on the same mirrors."""
    main = next(archive.uri for archive in archives if not archive.security)
    security = next((archive.uri for archive in archives if archive.security), None)
    stanzas = [(main, f"{RELEASE} {RELEASE}-updates")]
    if security:
        stanzas.append((security, f"{RELEASE}-security"))
    return "\n".join(
        f"Types: deb\nURIs: {uri}\nSuites: {suites}\nComponents: main\nSigned-By: {KEYRING}\n"
        for uri, suites in stanzas
    )


_OFFLINE = "check the network and the mirror in /etc/apt, then run the same command again"


def _options(scratch: Path) -> list[str]:
    """apt's options for lists and caches of our own below ``scratch``."""
    return [
        f"-oDir::State::lists={scratch}/lists",
        f"-oDir::State::status={scratch}/status",
        f"-oDir::Cache={scratch}",
        "-oDir::Etc::sourcelist=/dev/null",
        f"-oDir::Etc::sourceparts={scratch}/sources.list.d",
        "-oAPT::Sandbox::User=root",
        "-oAcquire::Retries=3",
        # A host may keep its lists compressed; ours are read.
        "-oAcquire::GzipIndexes=false",
        "-oAcquire::Languages=none",
    ]


def update(scratch: Path) -> str:
    """Fetch trixie's package lists into ``scratch``/lists, checked by apt. Returns the path of apt-get."""
    apt_get = find_tool("apt-get", package="apt")
    write_atomic(scratch / "sources.list.d/trixie.sources", sources(host_archives()).encode())
    (scratch / "lists/partial").mkdir(parents=True, exist_ok=True)
    (scratch / "archives/partial").mkdir(parents=True, exist_ok=True)
    (scratch / "status").touch()
    run(
        [apt_get, *_options(scratch), "update"],
        what="reading the package lists",
        timeout=300,
        hint=_OFFLINE,
    )
    return apt_get


def lists(directory: Path) -> list[tuple[str, Path]]:
    """The package indexes in a folder of apt's lists, each with its suite."""
    found = []
    for path in sorted(directory.glob("*_Packages")):
        match = re.search(r"_dists_([a-z-]+)_main_binary-amd64_Packages$", path.name)
        if match:
            found.append((match[1], path))
    return found


def newest(versions: Collection[str]) -> str | None:
    """The highest version by Debian's order (deb-version(7)); None of none."""
    best = None
    for version in sorted(versions):
        if best is None:
            best = version
            continue
        done = run(
            ["sh", "-c", 'dpkg --compare-versions "$1" gt "$2" && echo yes || echo no', "sh", version, best],
            what="comparing versions",
        )
        best = version if done.strip() == b"yes" else best
    return best


def list_dates(directory: Path) -> list[datetime]:
    """When the archives whose lists are in ``directory`` were made, by their own signed word."""
    dates = []
    for path in sorted(directory.glob("*_InRelease")):
        match = re.search(r"^Date: (.+)$", path.read_text(), re.MULTILINE)
        if match:
            dates.append(parsedate_to_datetime(match[1].replace("UTC", "+0000")))
    return dates


def download(package: str, version: str, *, directory: Path, scratch: Path) -> Path:
    """Fetch one binary package of trixie into ``directory`` with apt's own signature checks.

    Uses lists and caches of its own below ``scratch``; the host's package state is neither read nor changed.
    """
    options = _options(scratch)
    directory.mkdir(parents=True, exist_ok=True)
    apt_get = update(scratch)
    run(
        [apt_get, *options, "download", f"{package}={version}"],
        what=f"fetching {package} {version}",
        cwd=directory,
        timeout=300,
        hint=f"{_OFFLINE}; if the mirror no longer has this version, the pin in image/mkosi.py needs an update",
    )
    found = sorted(directory.glob(f"{package}_*.deb"))
    if not found:
        raise ToolError(f"apt-get download left no {package} package in {directory}")
    return found[-1]
