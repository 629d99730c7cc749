"""The Secure Boot variables of a release: what it enrols, and in which states of them it may be started.

A release is started by machines that took its variables, by machines that have those of the release before it, and
by machines that lost their power in between. Its state policy is signed for all of them. The image's signer is
measured too, so none of these values lets a key in that was retired.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from image import efivars, forbidden, measure
from image.keys import KeySet, Pin
from nodeos.core import secureboot
from nodeos.core.errors import UsageError
from nodeos.core.release import AcceptedPcr7

# Who enters our certificates (SignatureOwner): it is measured with them, so it stays the same for ever.
OWNER = uuid.UUID("124e39f0-561e-4f9d-afcf-63e3a64ccbee")
# Who signs the update of each variable.
SIGNERS = {"PK": "PK", "KEK": "PK", "db": "KEK", "dbx": "KEK"}


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The values of the variables (see ``image.efivars``) by name, empty ones left out; ``name`` is for people."""

    name: str
    lists: Mapping[str, bytes]


def _lists(certificates: Sequence[x509.Certificate]) -> bytes:
    return b"".join(efivars.certificate_list(certificate, OWNER) for certificate in certificates)


def states(keys: KeySet) -> list[State]:
    """Every state in which a release that these keys sign may be started; the first is the release's own."""
    platform = _lists([keys.certificate("PK")])
    made: dict[tuple[bytes, ...], State] = {}
    for db_words, db in _values(keys, "db"):
        for kek_words, kek in _values(keys, "KEK"):
            for dbx_words, dbx in _forbidden(keys):
                lists = {"PK": platform, "KEK": _lists(kek), "db": _lists(db), "dbx": dbx}
                name = f"db {db_words}; KEK {kek_words}; dbx {dbx_words}"
                state = State(name=name, lists={key: value for key, value in lists.items() if value})
                made.setdefault(tuple(lists.values()), state)
    return list(made.values())


def _values(keys: KeySet, name: str) -> list[tuple[str, list[x509.Certificate]]]:
    """What the variable can hold: what this release enrols first, then what earlier ones did."""
    current = keys.certificate(name)
    values = [("current", [current])]
    if keys.next().has(name):
        values.insert(0, ("current and next", [current, keys.next().certificate(name)]))
    retired = keys.retired(name)
    if retired:
        # The order of the release in between, which enrolled both.
        values.append(("retired and current", [retired[-1].certificate(name), current]))
    return values


def _forbidden(keys: KeySet) -> list[tuple[str, bytes]]:
    """What dbx can hold: retired certificates, then images. The last of either may not be in it yet."""
    retired = [item.certificate("db") for item in keys.retired("db")]
    images = forbidden.read(keys)
    found = []
    for count in _counts(retired):
        for lists in _counts(images):
            digests = [digest for item in images[:lists] for digest in item]
            value = _lists(retired[:count]) + (efivars.hash_list(digests, OWNER) if digests else b"")
            words = _words("retired", count, len(retired))
            if images:
                words += f", {_words('forbidden images', lists, len(images))}"
            found.append((words, value))
    return found


def _counts(items: Sequence[object]) -> tuple[int, ...]:
    return (len(items), len(items) - 1) if items else (0,)


def _words(what: str, count: int, of: int) -> str:
    if count == of and count:
        return f"all {what}"
    if count:
        return f"the first {count} {what}"
    return "empty" if what == "retired" else f"no {what}"


def accepted(
    states: Sequence[State], authority: x509.Certificate, before: x509.Certificate | None = None
) -> list[AcceptedPcr7]:
    """PCR 7 of each state, when images signed by ``authority`` are started.

    ``before`` signed the release before this one: a node takes the new boot loader after the blessing, so that the
    way back stays open. Until then the old signer is measured first, with the old boot loader.
    """
    signer = authority.public_bytes(Encoding.DER)
    found = [_accepted(state, state.name, [signer]) for state in states]
    if before is not None:
        old = before.public_bytes(Encoding.DER)
        found += [
            _accepted(state, f"{state.name}; boot loader by the retired key", [old, signer])
            for state in states
            if secureboot.lets_start(state.lists, old) is None
        ]
    return found


def _accepted(state: State, name: str, signers: Sequence[bytes]) -> AcceptedPcr7:
    return AcceptedPcr7(
        name=name,
        sha256=secureboot.pcr7(state.lists, signers, "sha256"),
        sha384=secureboot.pcr7(state.lists, signers, "sha384"),
    )


def update_time(epoch: int) -> datetime.datetime:
    """The time of all updates of a release; firmware takes a later one only."""
    return datetime.datetime.fromtimestamp(epoch, datetime.UTC)


def sign(state: State, keys: KeySet, epoch: int, pin: Pin) -> dict[str, bytes]:
    """The .auth files that bring a machine into the release's own state, by name: the same bytes each time."""
    made = {}
    for name, lists in state.lists.items():
        by = SIGNERS[name]
        with keys.signer(by, pin) as signer:
            made[name] = efivars.sign(name, lists, signer, keys.certificate(by), time=update_time(epoch))
    return made


def check(enrolled: Mapping[str, bytes], authority: x509.Certificate, epoch: int) -> dict[str, bytes]:
    """Hold the .auth files to each other, and return the lists in them.

    PK signs itself and KEK, a KEK signs db and dbx, all at the release's time; the images' signer is in db and not
    in dbx. Raises UsageError that begins with the name of the wrong file.
    """
    lists: dict[str, bytes] = {}
    for name, by in SIGNERS.items():
        if name not in enrolled:
            if name == "dbx":
                continue
            raise UsageError(f"{name}.auth is not there")
        try:
            update = efivars.Update.parse(enrolled[name])
            signers = _certificates(update.data if name == "PK" else lists[by])
            if name == "PK" and len(signers) != 1:
                raise UsageError("there is one platform key, no more and no less")
            efivars.apply(name, None, enrolled[name], signers=signers)
            if update.time != update_time(epoch):
                raise UsageError("its time is not that of the release")
        except UsageError as error:
            raise UsageError(f"{name}.auth: {error.message}", hint=error.hint) from error
        lists[name] = update.data
    try:
        measure.pcr7_of_lists(lists, authority=authority)
    except UsageError as error:
        raise UsageError(f"db.auth: {error.message}", hint=error.hint) from error
    return lists


def _certificates(lists: bytes) -> list[x509.Certificate]:
    try:
        return [
            x509.load_der_x509_certificate(entry.data)
            for entry in efivars.parse_lists(lists)
            if entry.kind == efivars.X509
        ]
    except ValueError as error:
        raise UsageError(f"a certificate that can't be read: {error}") from error
