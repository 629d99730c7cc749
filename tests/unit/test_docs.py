"""The documents: fresh, linked, and free of what belongs to one machine or one mirror only."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import click
import pytest

from nodeos import __version__
from nodeos.core.run import run

TOP = Path(__file__).resolve().parents[2]
DOCUMENTS = (TOP / "README.md", TOP / "NEWS.md", *sorted((TOP / "docs").glob("*.md")))
# Hosts that hold packages: a project that names one works with that one only.
REGISTRIES = re.compile(
    r"\b(?:[a-z0-9-]+\.)*(?:pypi\.org|pythonhosted\.org|anaconda\.org|npmjs\.org|npmjs\.com|crates\.io"
    r"|golang\.org|docker\.io|ghcr\.io|quay\.io|(?:deb|ftp|security|snapshot|mirrors?|archive|debug)"
    r"[a-z0-9.-]*\.(?:debian|ubuntu)\.(?:org|net|com))\b"
)
# Where somebody's checkout lies. What the node, Debian or a made-up example uses is not among them.
CONFLICT = re.compile(r"^(?:<{7}|>{7}) \S")
LOCAL = re.compile(r"(?<![\w./~-])/(?:work|root|builds|Users|github|mnt|home/(?!x\b)\w+)/")
# Written by others; its words are theirs.
FOREIGN = ("LICENSE",)


@cache
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", TOP / "docs/generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def committed() -> list[Path]:
    """Every file that git keeps, without those that were removed and not committed."""
    # The owner of the checkout may be another user than the one who runs the tests.
    names = run(["git", "-c", "safe.directory=*", "-C", TOP, "ls-files", "-z"], what="listing the files")
    paths = [TOP / name for name in names.decode().split("\0") if name]
    found = [path for path in paths if path.is_file() and not path.is_symlink()]
    assert found, "git knows no file here"
    return found


def without_code(text: str) -> str:
    return re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)


def anchors(path: Path) -> set[str]:
    """The names that a link into a document can have, by the rule of the common forges."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def test_the_reference_is_fresh() -> None:
    fresh = generator().render()
    stored = (TOP / "docs/reference.md").read_text(encoding="utf-8")
    assert stored == fresh, "stale: run `.venv/bin/python docs/generate.py`"


def test_the_reference_does_not_depend_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    before = generator().render()
    monkeypatch.setenv("COLUMNS", "40")
    assert generator().render() == before


def test_every_command_and_option_has_help() -> None:
    found = list(generator().commands())
    assert len(found) > 30
    lacking = []
    for command, context in found:
        if not command.help:
            lacking.append(context.command_path)
        lacking += [
            f"{context.command_path} {parameter.opts[0]}"
            for parameter in command.params
            if isinstance(parameter, click.Option) and not parameter.help
        ]
    assert lacking == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.name))
def test_relative_links_resolve(path: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(path.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name) if name else path
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def test_every_document_is_reached_from_the_readme() -> None:
    text = (TOP / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in DOCUMENTS if path.name != "README.md" and path.name not in text] == []


def test_pictures_are_well_formed() -> None:
    pictures = sorted((TOP / "docs").glob("*.svg"))
    assert pictures
    for path in pictures:
        picture = ElementTree.parse(path).getroot()  # noqa: S314 - our own file
        assert picture.get("aria-label"), f"{path.name} says nothing to who can't see it"
        assert any(path.name in document.read_text(encoding="utf-8") for document in DOCUMENTS), path.name


def test_documents_name_only_files_of_the_project_that_exist() -> None:
    """Paths in code marks that begin with a top-level folder; what a build makes is not committed."""
    tops = {path.name for path in TOP.iterdir() if path.is_dir()} - {"build", "tests"}
    wrong = []
    for document in DOCUMENTS:
        for text in re.findall(r"`([\w.*/-]+/[\w.*/-]*)`", document.read_text(encoding="utf-8")):
            path = TOP / text.rstrip("/")
            if text.split("/")[0] in tops and not (path.exists() or list(TOP.glob(text.rstrip("/")))):
                wrong.append(f"{document.name}: {text}")
    assert wrong == []


def test_news_begins_with_this_version() -> None:
    versions = re.findall(r"^## (\S+)", (TOP / "NEWS.md").read_text(encoding="utf-8"), re.M)
    assert versions[0] == __version__


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        (REGISTRIES, "the host of a package registry"),
        (LOCAL, "a path of a build machine"),
        (CONFLICT, "a side of a merge that was not finished"),
    ],
    ids=["registries", "local paths", "conflicts"],
)
def test_no_committed_file_names(pattern: re.Pattern[str], words: str) -> None:
    found = []
    for path in committed():
        if path.name in FOREIGN:
            continue
        for number, line in enumerate(path.read_bytes().decode(errors="replace").splitlines(), 1):
            match = pattern.search(line)
            if match:
                found.append(f"{path.relative_to(TOP)}:{number}: {match[0]}")
    assert found == [], f"{words} is named"


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (REGISTRIES, f"https://deb.{'debian'}.org/debian"),
        (REGISTRIES, f"--index-url https://{'pypi'}.org/simple"),
        (REGISTRIES, f"files.{'pythonhosted'}.org"),
        (LOCAL, f"see /{'work'}/main/build"),
        (LOCAL, f"'/home/{'somebody'}/nodeos'"),
        (CONFLICT, f"{'<' * 7} HEAD"),
        (CONFLICT, f"{'>' * 7} other"),
    ],
)
def test_the_patterns_find_what_they_are_for(pattern: re.Pattern[str], text: str) -> None:
    assert pattern.search(text)


@pytest.mark.parametrize(
    "text", ["/usr/lib/nodeos/python", "build/work/x", "WORK/demo", "/etc/apt", "/var/lib"]
)
def test_the_patterns_leave_ordinary_words_alone(text: str) -> None:
    assert not REGISTRIES.search(text)
    assert not LOCAL.search(text)
