"""Rotation of release keys: ``begin`` makes ``next/``, ``finish`` puts it in the place of the keys in use.

A release signed in between (update 1) carries both keys and is signed by the old one; the first one after it
(update 2) is signed by the new one alone, and forbids the old db certificate. Every private key stays where it can
be found again: nothing here deletes or overwrites one.

``finish`` can be interrupted at any step and run again: it first writes down every move (``ROTATION``), in the
order in which they are made; a move whose target is there has been made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from image.keys import NAMES, KeySet, Pin, make_next, sync
from nodeos.core.errors import NodeosError, UsageError
from nodeos.core.files import read_file, write_atomic
from nodeos.core.wire import ParseError, parse_json

Move = tuple[Path, Path]


def begin(
    keys: KeySet,
    names: Sequence[str],
    *,
    identities: Mapping[str, Path] | None = None,
    pin: Pin | None = None,
) -> KeySet:
    """Make the next keys ``names`` in ``next/``. Raises UsageError if a rotation is under way, and for PK."""
    if keys.journal.exists():
        raise UsageError(f"{keys.directory}: the end of a rotation was interrupted", hint=_again(keys))
    if keys.next().directory.exists():
        raise UsageError(
            f"{keys.directory}: a rotation is under way already", hint=f"sign a release, then {_again(keys)}"
        )
    if not names:
        raise UsageError("name the keys to rotate", hint=f"there are {', '.join(NAMES)}")
    if "PK" in names:
        raise UsageError(
            "the platform key can't be rotated by an update: the firmware takes a new one from its old one only,"
            " and machines in setup mode need it signed otherwise",
            hint="put the machines into setup mode and install a release made with new keys",
        )
    for path in keys.missing([name for name in names if name in NAMES]):
        raise UsageError(f"{path} is not there: there is nothing to rotate", hint="see `nodeos image keygen`")
    return make_next(keys, dict.fromkeys(names), identities=identities or {}, pin=pin)


def _again(keys: KeySet) -> str:
    return f"run `nodeos image rotate {keys.directory} --finish`"


def finish(keys: KeySet) -> list[str]:
    """Retire the keys that ``next/`` replaces; returns their names.

    Raises UsageError if no rotation is under way.
    """
    if not keys.journal.exists():
        moves = _plan(keys)
        listed = [[_relative(keys, source), _relative(keys, target)] for source, target in moves]
        write_atomic(keys.journal, json.dumps({"moves": listed}, indent=2).encode())
    moves = _read(keys)
    for source, target in moves:
        _move(source, target)
    following = keys.next().directory
    if following.exists():
        following.rmdir()
    keys.journal.unlink()
    sync(keys.directory)
    return sorted(
        {target.parent.name.rpartition("-")[0] for _, target in moves if target.parent != keys.directory}
    )


def _plan(keys: KeySet) -> list[Move]:
    """Old files out, then new ones in, name by name."""
    following = keys.next()
    names = [name for name in NAMES if following.has(name)]
    if not names:
        raise UsageError(
            f"{keys.directory}: no rotation is under way",
            hint=f"begin one with `nodeos image rotate {keys.directory} NAME…`",
        )
    moves: list[Move] = []
    for name in names:
        place = keys.path("retired") / f"{name}-{_number(keys, name)}"
        moves += [(path, place / path.name) for path in keys.files(name)]
        moves += [(path, keys.path(path.name)) for path in following.files(name)]
    extra = set(following.directory.iterdir()) - {source for source, _ in moves}
    if extra:
        words = ", ".join(sorted(path.name for path in extra))
        raise UsageError(
            f"{following.directory} holds files that are no keys: {words}", hint="move them away"
        )
    return moves


def _number(keys: KeySet, name: str) -> int:
    retired = keys.retired(name)
    return int(retired[-1].directory.name.rpartition("-")[2]) + 1 if retired else 1


def _relative(keys: KeySet, path: Path) -> str:
    return path.relative_to(keys.directory).as_posix()


def _read(keys: KeySet) -> list[Move]:
    fields = parse_json(read_file(keys.journal, "the rotation under way"), str(keys.journal))
    moves = fields.list_of("moves", lambda item, path: _parse(keys, item, path))
    fields.done()
    return list(moves)


def _parse(keys: KeySet, item: object, path: str) -> Move:
    if not isinstance(item, list) or len(item) != 2 or not all(isinstance(part, str) for part in item):
        raise ParseError(f"{path}: not a move")
    names = [PurePosixPath(part) for part in item]
    if any(name.is_absolute() or ".." in name.parts for name in names):
        raise ParseError(f"{path}: leads out of the folder")
    return keys.directory / names[0], keys.directory / names[1]


def _move(source: Path, target: Path) -> None:
    if target.exists():
        return
    if not source.exists():
        raise NodeosError(
            f"neither {source} nor {target} is there",
            hint="the folder was changed by hand: bring the file back",
        )
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    source.rename(target)
    for directory in (target.parent, source.parent):
        sync(directory)
