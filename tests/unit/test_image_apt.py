"""Package sources, from what a host has in /etc/apt."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from image import apt
from image.apt import Archive
from nodeos.core.errors import ToolError

MAIN = Archive(uri="http://mirror.example.org/debian", security=False)
SECURITY = Archive(uri="http://mirror.example.org/debian-security", security=True)

BOOKWORM = """\
Types: deb
# http://snapshot.example.org/archive
URIs: http://mirror.example.org/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example.org/debian-security/
Suites: bookworm-security
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""


@pytest.mark.parametrize("codename", ["bookworm", "trixie", "stable"])
def test_deb822(codename: str) -> None:
    assert apt.parse_deb822(BOOKWORM.replace("bookworm", codename)) == [MAIN, MAIN, SECURITY]


@pytest.mark.parametrize(
    "text",
    [
        "Types: deb deb-src\nURIs: http://mirror.example.org/debian/\nSuites: trixie\nComponents: main\n",
        "types: deb\nuris: http://mirror.example.org/debian\nsuites: trixie\ncomponents: contrib main",
        "# a comment\n\n\nTypes: deb\n# another\nURIs:\n http://mirror.example.org/debian\nSuites:\n"
        "# in a folded field\n\ttrixie\nComponents:\n main\n contrib\n",
        "Types: deb\nURIs: http://mirror.example.org/debian\nSuites: trixie\nComponents: main\nEnabled: yes\n",
    ],
)
def test_deb822_as_people_write_it(text: str) -> None:
    assert apt.parse_deb822(text) == [MAIN]


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("Types: deb-src", "Types: deb"),
        ("Components: contrib", "Components: main"),
        ("Suites: noble", "Suites: trixie"),
        ("Suites: trixie-backports", "Suites: trixie"),
        ("Enabled: no", "Enabled: yes"),
        ("Enabled: False", "Enabled: yes"),
        ("#URIs: http://mirror.example.org/debian", "URIs: http://mirror.example.org/debian"),
        ("Signed-By: /usr/share/keyrings/vendor.gpg", ""),
    ],
)
def test_deb822_that_is_no_use(wrong: str, right: str) -> None:
    name = wrong.lstrip("#").partition(":")[0]
    fields = {
        "Types": "Types: deb", "URIs": "URIs: http://mirror.example.org/debian", "Suites": "Suites: trixie",
        "Components": "Components: main", "Enabled": "Enabled: yes",
        "Signed-By": "Signed-By: /usr/share/keyrings/debian-archive-keyring.pgp",
    }  # fmt: skip
    assert apt.parse_deb822("\n".join(fields.values())) == [MAIN]
    assert apt.parse_deb822("\n".join({**fields, name: right}.values()).replace("\n\n", "\n")) == [MAIN]
    assert apt.parse_deb822("\n".join({**fields, name: wrong}.values())) == []


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("deb http://mirror.example.org/debian trixie main", [MAIN]),
        ("  deb\thttp://mirror.example.org/debian/  bookworm  main contrib # the near one", [MAIN]),
        ("deb [arch=amd64] http://mirror.example.org/debian bookworm main", [MAIN]),
        ("deb [ arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg ] "
         "http://mirror.example.org/debian bookworm main", [MAIN]),
        ("deb [signed-by=/etc/apt/keyrings/vendor.asc] http://vendor.example.org/apt stable main", []),
        ("deb http://mirror.example.org/debian-security trixie-security main", [SECURITY]),
        ("deb http://mirror.example.org/debian-security stable/updates main", [SECURITY]),
        ("# deb http://mirror.example.org/debian trixie main", []),
        ("deb-src http://mirror.example.org/debian trixie main", []),
        ("deb http://mirror.example.org/debian trixie contrib # main", []),
        ("deb http://mirror.example.org/debian trixie-backports main", []),
        ("deb http://vendor.example.org/apt cloud-sdk-bookworm main", []),
        ("deb cdrom:[Debian GNU/Linux 12 _Bookworm_]/ bookworm main", []),
        ("", []),
    ],
)  # fmt: skip
def test_one_line(line: str, found: list[Archive]) -> None:
    assert apt.parse_one_line(f"# first\n{line}\n") == found


@given(st.text())
def test_no_text_breaks_a_parser(text: str) -> None:
    apt.parse_deb822(text)
    apt.parse_one_line(text)


def test_host(tmp_path: Path) -> None:
    parts = tmp_path / "sources.list.d"
    parts.mkdir()
    (tmp_path / "sources.list").write_text("deb http://mirror.example.org/debian bookworm main\n")
    (parts / "debian.sources").write_text(BOOKWORM)
    (parts / "old.sources.save").write_text(BOOKWORM)
    (parts / "more.list").write_text("deb http://other.example.org/debian trixie main\n")
    other = Archive(uri="http://other.example.org/debian", security=False)
    assert apt.host_archives(tmp_path) == [MAIN, MAIN, MAIN, SECURITY, other]


def test_vendor_before_debian_is_not_taken_for_it(tmp_path: Path) -> None:
    parts = tmp_path / "sources.list.d"
    parts.mkdir()
    (parts / "browser.list").write_text(
        "deb [signed-by=/k/v.gpg] http://vendor.example.org/deb stable main\n"
    )
    (parts / "debian.sources").write_text(BOOKWORM)
    assert "vendor" not in apt.sources(apt.host_archives(tmp_path))


@pytest.mark.parametrize(
    "text",
    ["", "deb http://ubuntu.example.org/ubuntu noble main\n",
     "deb http://mirror.example.org/debian-security trixie-security main\n"],
)  # fmt: skip
def test_host_without_a_debian_archive(text: str, tmp_path: Path) -> None:
    (tmp_path / "sources.list").write_text(text)
    with pytest.raises(ToolError, match="names no Debian archive") as caught:
        apt.host_archives(tmp_path)
    assert caught.value.hint
    assert "Debian 12 or 13" in caught.value.hint


def test_sources_are_trixie_s_whatever_the_host_is() -> None:
    text = apt.sources([MAIN, MAIN, SECURITY])
    assert "bookworm" not in text
    stanzas = text.split("\n\n")
    assert [stanza.splitlines()[1:3] for stanza in stanzas] == [
        ["URIs: http://mirror.example.org/debian", "Suites: trixie trixie-updates"],
        ["URIs: http://mirror.example.org/debian-security", "Suites: trixie-security"],
    ]
    assert all("Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg" in stanza for stanza in stanzas)
    assert apt.parse_deb822(text) == [MAIN, MAIN, SECURITY]


def test_sources_without_a_security_archive() -> None:
    assert apt.parse_deb822(apt.sources([MAIN])) == [MAIN, MAIN]
