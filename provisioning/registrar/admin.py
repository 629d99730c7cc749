"""What the administrator of a registrar does: trust, releases, data centres. Works beside a server."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from hsm.identity import public_key_of
from hsm.keys import algorithm_of, parse_publics, public_der, read_public
from hsm.pin import read_pin
from nodeos.core.addresses import IpNetwork, collapse, parse_network
from nodeos.core.errors import UsageError
from nodeos.core.files import read_file
from nodeos.core.firewall import MAX_CLIENTS
from nodeos.core.http import check_folder_url as check_url
from nodeos.core.principal import Principal
from nodeos.core.release import Release, Variant, check_signature
from provisioning.registrar.rows import AuditRow, CenterRow, OfferRow, ReleaseRow, RevocationRow, TrustRow
from provisioning.registrar.service import now
from provisioning.registrar.store import Store, Transaction
from provisioning.verify.crl import Crl, check_list, parse_crls
from provisioning.verify.der import Certificate, parse_certificate, pem_blocks
from provisioning.verify.path import basic_constraints
from provisioning.verify.profile import load_profile


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """A certificate of a file: what it was taken as, and whether it is new."""

    row: TrustRow
    certificate: Certificate
    new: bool


def read_certificates(path: Path) -> list[Certificate]:
    """Every certificate of a PEM file, over its original bytes. Raises UsageError or ParseError."""
    blocks = pem_blocks(read_file(path, "certificates"), "CERTIFICATE", str(path))
    found = [parse_certificate(der, f"{path}: certificate {index}") for index, der in enumerate(blocks)]
    if not found:
        raise UsageError(f"{path}: no certificate in it", hint="give a PEM file")
    return found


def add_trust(store: Store, path: Path, *, pin_all: bool) -> list[Added]:
    """Pin the self-issued authorities of a file; the others only help to find a path to a pinned one.

    With ``pin_all`` every one of them is pinned. Raises UsageError for one that is no authority.
    """
    certificates = read_certificates(path)
    at, added = now(), []
    for certificate in certificates:
        if not basic_constraints(certificate)[0]:
            raise UsageError(
                f"{path}: {certificate.subject_text} is no authority", hint="give the CA's certificates"
            )
        certificate.key()
    with store.write() as tx:
        for certificate in certificates:
            kind = "root" if pin_all or certificate.self_issued else "intermediate"
            digest = hashlib.sha256(certificate.der).hexdigest()
            row = TrustRow(sha256=digest, kind=kind, der=certificate.der, added_at=at)
            new = tx.add_trust(row)
            added.append(Added(row=row, certificate=certificate, new=new))
            if new:
                _note(tx, "trust-added", {"sha256": digest, "kind": kind}, at)
    return added


def add_revocation_lists(store: Store, path: Path) -> list[tuple[Crl, bool]]:
    """Keep the lists of a file, and say which are new. Older ones stay: what they revoked stays revoked.

    Raises UsageError for a list that no known certificate signed, that is partial, or that says no end.
    """
    lists = parse_crls(read_file(path, "revocation list"), str(path))
    with store.read() as tx:
        known = [parse_certificate(row.der) for row in tx.trust()]
    for crl in lists:
        wrong = check_list(crl, known)
        if wrong:
            words = "; ".join(f.message for f in wrong)
            raise UsageError(f"{path}: {words}", hint="add its issuer first: `nodeos registrar trust add`")
    at, added = now(), []
    with store.write() as tx:
        for crl in lists:
            digest = hashlib.sha256(crl.der).hexdigest()
            new = tx.add_revocation_list(RevocationRow(sha256=digest, der=crl.der, added_at=at))
            added.append((crl, new))
            if new:
                _note(tx, "revocation-list-added", {"sha256": digest, "issuer": crl.issuer_text}, at)
    return added


def add_release(
    store: Store,
    path: Path,
    *,
    signature: Path | None = None,
    release_keys: Sequence[Path],
    allow_debug: bool,
) -> Release:
    """Accept machines of this release, which one of ``release_keys`` (PEM or DER files) must have signed.

    ``signature`` is ``release.sig`` beside the manifest unless it is named. Raises RefusedError if no such key
    signed it, and UsageError for a version that is there with other content.
    """
    trusted = [key for file in release_keys for key in read_release_keys(file)]
    document = read_file(path, "release manifest")
    hint = "a release is accepted only with its signature: copy release.sig beside release.json"
    try:
        signed = read_file(signature or path.with_name("release.sig"), "release signature", limit=1 << 16)
    except UsageError as error:
        raise UsageError(error.message, hint=hint) from error
    release = check_signature(document, signed, trusted)
    if release.variant is Variant.DEBUG and not allow_debug:
        raise UsageError(
            f"{path}: {release.version} is a debug image, which lets people in",
            hint="for a test network, add it with --allow-debug",
        )
    at = now()
    with store.write() as tx:
        for old in tx.releases():
            if old.version != release.version:
                continue
            if Release.parse(old.document) != release or old.withdrawn_at is not None:
                raise UsageError(
                    f"release {release.version} is there already, withdrawn or with other measurements",
                    hint="give the new build a version of its own",
                )
            return release
        tx.add_release(ReleaseRow(version=release.version, document=document, added_at=at))
        digest = hashlib.sha256(document).hexdigest()
        _note(tx, "release-added", {"version": release.version, "sha256": digest}, at)
    return release


def withdraw_release(store: Store, version: str) -> None:
    """From now on no machine attests with this release. Raises UsageError for an unknown one."""
    at = now()
    with store.write() as tx:
        if version not in [row.version for row in tx.releases()]:
            raise UsageError(f"there is no release {version}", hint="see `nodeos registrar release list`")
        tx.withdraw_release(version, at)
        _note(tx, "release-withdrawn", {"version": version}, at)


def offer_release(store: Store, version: str, center: str, url: str, *, rollback: bool) -> OfferRow:
    """From now on the nodes of ``center`` are told to install this release, from the folder at ``url``.

    It takes the place of the data centre's offer before; the same release once more is a new try for the nodes
    that failed. Raises UsageError for an unknown data centre, a release that isn't accepted, or no address.
    """
    check_url(url)
    at = now()
    with store.write() as tx:
        _check_center(tx, center)
        row = tx.release(version)
        if row is None or row.withdrawn_at is not None:
            raise UsageError(
                f"there is no release {version} that machines may run",
                hint="register it first, with its signature: `nodeos registrar release add`",
            )
        made = tx.add_offer(center, version, url, rollback=rollback, at=at)
        detail = {"data_center": center, "version": version, "url": url, "rollback": str(rollback).lower()}
        _note(tx, "release-offered", detail, at)
    return made


def withdraw_offer(store: Store, version: str, center: str) -> None:
    """No node begins with it any more. Raises UsageError if this release isn't offered to the data centre."""
    at = now()
    with store.write() as tx:
        _check_center(tx, center)
        row = tx.offer(center)
        if row is None or row.version != version:
            found = "nothing" if row is None else row.version
            raise UsageError(f"{version} is not offered to {center}, but {found}", hint="see `release list`")
        tx.end_offer(center, at)
        _note(tx, "offer-withdrawn", {"data_center": center, "version": version}, at)


def _check_center(tx: Transaction, name: str) -> None:
    if tx.center(name) is None:
        raise UsageError(f"the data centre {name} is not known", hint="see `nodeos registrar dc list`")


def add_center(store: Store, row: CenterRow) -> None:
    """Raises UsageError if there is one of that name, or for a reward type that the profile lacks."""
    profile = load_profile(row.profile)
    if profile.reward_types and row.node_reward_type not in profile.reward_types:
        raise UsageError(
            f"machines of {row.profile} can't have the reward type {row.node_reward_type}",
            hint=f"take one of: {', '.join(profile.reward_types)}",
        )
    with store.write() as tx:
        if tx.center(row.name) is not None:
            raise UsageError(f"the data centre {row.name} is there already", hint="take another --dc")
        tx.add_center(row)
        detail = {"data_center": row.name, "operator": row.operator, "profile": row.profile}
        _note(tx, "data-center-added", detail, row.added_at)


def allow_clients(
    store: Store, center: str, prefixes: Sequence[str], *, withdraw: bool = False
) -> tuple[IpNetwork, ...]:
    """Let clients from ``prefixes`` reach the replicas of the data centre's nodes, or no longer; what then holds.

    Raises UsageError for an unknown data centre, for what is no prefix of unicast addresses, for too many, and for
    one that is withdrawn and was not allowed.
    """
    given = {parse_network(text) for text in prefixes}
    at = now()
    with store.write() as tx:
        if tx.center(center) is None:
            raise UsageError(f"there is no data centre {center}", hint="see `nodeos registrar dc list`")
        before = {parse_network(text) for text in tx.clients(center)}
        if withdraw and not given <= before:
            missing = ", ".join(str(prefix) for prefix in collapse(given - before))
            raise UsageError(f"{missing}: not allowed at {center}", hint="see `nodeos registrar dc list`")
        after = before - given if withdraw else before | given
        if len(after) > MAX_CLIENTS:
            raise UsageError(f"{len(after)} prefixes for {center}, at most {MAX_CLIENTS} are kept")
        if after != before:
            tx.put_clients(center, [str(prefix) for prefix in after])
            event = "clients-withdrawn" if withdraw else "clients-allowed"
            changed = ", ".join(sorted(str(prefix) for prefix in before ^ after))
            _note(tx, event, {"data_center": center, "prefixes": changed}, at)
    return tuple(
        sorted(after, key=lambda prefix: (prefix.version, int(prefix.network_address), prefix.prefixlen))
    )


def _note(tx: Transaction, event: str, detail: dict[str, str], at: int) -> None:
    tx.add_audit(
        AuditRow(
            at=at, actor="administrator", machine=None, event=event, before=None, after=None, detail=detail
        )
    )


def read_operator_key(path: Path) -> bytes:
    """An operator's public key in DER, from PEM, DER, or an identity file. Raises UsageError."""
    if read_file(path, "operator key", limit=1 << 16).lstrip().startswith(b"{"):
        return public_key_of(path, lambda: read_pin(None))
    hint = "give a public key in PEM or DER, or the identity file that `nodeos operator init` makes"
    key = read_public(path, "operator key", hint=hint)
    # What is accepted here must be what a request can be signed with.
    algorithm_of(key, f"operator key {path}")
    return public_der(key)


def read_release_keys(path: Path) -> list[bytes]:
    """The DER public keys of a release key file: several PEM blocks while one key is taking over from another.

    Raises UsageError.
    """
    data = read_file(path, "release key", limit=1 << 16)
    return parse_publics(data, f"release key {path}", hint="give the publisher's release.pub.pem")


def read_site_key(path: Path) -> bytes:
    """The raw 32 bytes of an Ed25519 public key in PEM or DER. Raises UsageError."""
    hint = "give the release's site.pub.pem"
    key = read_public(path, "site key", hint=hint)
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"site key {path}: not an Ed25519 key", hint=hint)
    return key.public_bytes_raw()


def operator_principal(key: bytes) -> Principal:
    return Principal.self_authenticating(key)
